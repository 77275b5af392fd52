"""Examples: one task per file, run as `python -m examples.<name>`."""
