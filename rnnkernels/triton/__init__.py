"""The Triton backend: cells (arithmetic), loop and tiles (kernels), schedules (the choice of tiles), launch (the backend)."""
