"""The Triton backend: cells/ (arithmetic), loop.py (time loops), schedules.py (what runs how), launch.py (the backend)."""
