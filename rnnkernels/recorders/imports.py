"""``when_imported``: run a function on another package's module once that is imported, without importing it."""

import sys


def when_imported(name, then):
    """Call ``then(module)``: now if the module ``name`` is imported already, else after it was executed."""
    if name in sys.modules:
        then(sys.modules[name])
    else:
        sys.meta_path.insert(0, WhenImported(name, then))


class WhenImported:
    """An import hook that runs ``then(module)`` once, after the module ``name`` was executed."""

    def __init__(self, name, then):
        self.name, self.then, self.asking = name, then, False

    def find_spec(self, name, path=None, target=None):
        """The spec that the other finders give, with ``then`` called after its loader."""
        if name != self.name or self.asking:
            return None
        self.asking = True  # another hook for the same module asks this one
        found = (finder.find_spec(name, path, target) for finder in sys.meta_path)
        spec = next((spec for spec in found if spec is not None), None)
        self.asking = False
        if spec is not None:
            run = spec.loader.exec_module

            def exec_module(module):
                run(module)
                sys.meta_path.remove(self)
                self.then(module)

            spec.loader.exec_module = exec_module
        return spec
