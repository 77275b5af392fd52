"""What torch.nn's layers do not have, on the CPU: `python -m benchmarks.variants`, as run.py says."""

import sys
from functools import partial

from benchmarks import run

main = partial(run.main, name="variants")

if __name__ == "__main__":
    sys.exit(main())
