"""Our modules under torch's tracers: TorchDynamo traces them, torch.fx records a call, TorchScript refuses them.

Our layers and cells derive from torch.nn's, so that ``isinstance`` and ``issubclass`` hold for everyone, compiled code
included, and ``super()`` in a user's class finds ours before torch.nn's. TorchDynamo, however,
refuses every instance of nn.RNN, nn.LSTM and nn.GRU (their op unrolls over time) unless ``config.allow_rnn`` is set,
which would admit torch.nn's own too. So ``VariableBuilder.wrap_module``, which reads that switch (in torch 2.10 to
2.13), runs with it on for our layers only. A ``__class__`` property that answers Dynamo's frames differently is no
alternative: ``issubclass``, pickles, and ``isinstance(m, (A, B))`` in compiled code use the true class. If a future
torch reads the switch elsewhere, ``torch.compile(fullgraph=True)`` ends in Dynamo's error.
"""

import functools

from torch import nn

from .imports import when_imported

BUILDER = "torch._dynamo.variables.builder"
LEAF = "torch.nn:rnnkernels"


class Leaf:
    """A module that torch.fx records as one call, and that TorchScript cannot compile.

    Tracers of torch.fx (``prepare_fx`` of torch.ao too) take a module for a leaf if
    ``m.__module__.startswith("torch.nn")``. They read it from the instance: so each instance has such a ``__module__``,
    while that of the class stays true, for pickling too.
    """

    __jit_ignored_attributes__ = ["__module__"]  # traced modules do not copy it
    _rk_own_reads = False  # a user's class or mixin has a ``__getattr__`` of its own, which weights are read through
    _rk_instead = ": call rnnkernels.revert(model) first, which turns a model's recurrent modules back into torch.nn's"

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        usual = getattr(cls, "__getattr__", None) is nn.Module.__getattr__
        cls._rk_own_reads = not usual or cls.__getattribute__ is not object.__getattribute__

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.__module__ = LEAF

    def __setstate__(self, state):
        super().__setstate__(state)
        self.__module__ = LEAF  # a module pickled by an older version has none

    def __prepare_scriptable__(self):
        """Refuse ``torch.jit.script``, which calls this first for every module in a model."""
        raise RuntimeError(f"torch.jit.script cannot compile {type(self).__name__} of rnnkernels{self._rk_instead}")


def pass_dynamo(kind):
    """Let Dynamo trace instances of ``kind``: at once, or once it is loaded (which takes seconds)."""
    when_imported(BUILDER, functools.partial(allow, kind))


def allow(kind, builder):
    """Wrap ``wrap_module``: instances of ``kind`` are built with ``allow_rnn``."""
    original = getattr(builder.VariableBuilder, "wrap_module", None)
    if original is None or not hasattr(builder.config, "allow_rnn"):
        return  # another version of torch: it compiles our modules or refuses them

    @functools.wraps(original)
    def wrap_module(self, value):
        if not isinstance(value, kind):
            return original(self, value)
        with builder.config.patch(allow_rnn=True):
            return original(self, value)

    builder.VariableBuilder.wrap_module = wrap_module
