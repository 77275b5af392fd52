"""The bound of a workload, and the roofs of this machine from which it follows."""
