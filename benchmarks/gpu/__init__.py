"""Everything that is to be known of a GPU, in eight minutes: `python -m benchmarks.gpu` (__main__.py)."""
