"""The Triton backend: cells (arithmetic), loop and tiles (kernels), schedules (what runs how), launch (the backend)."""
