"""The Triton backend: cells (arithmetic), loop and tiles (kernels), schedules (choice of tiles), launch (the backend)."""
