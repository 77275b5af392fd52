"""The Triton backend: cells (arithmetic), loops (kernels), schedules (choice of tiles), launch (the backend)."""
