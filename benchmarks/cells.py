"""Cells of one's own, on the CPU: `python -m benchmarks.cells`, as run.py says."""

import sys
from functools import partial

from benchmarks import run

main = partial(run.main, name="cells")

if __name__ == "__main__":
    sys.exit(main())
