"""``rnnkernels.counters`` for type checkers: to import it is all there is to do with it."""
