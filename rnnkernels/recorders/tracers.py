"""What torch's tracers make of our modules: TorchDynamo traces them, torch.fx calls them, TorchScript refuses them.

Our layers and cells derive from torch.nn's, so that ``isinstance`` and ``issubclass`` hold for everyone, compiled code
included, and ``super()`` in a user's class finds ours before torch.nn's. TorchDynamo alone must not see that: it
refuses every instance of nn.RNN, nn.LSTM and nn.GRU (their op unrolls over time) unless ``config.allow_rnn`` is set,
which would let torch.nn's own pass too. So ``VariableBuilder.wrap_module``, where torch asks (2.10 as 2.13), runs with
that switch on for our layers only. A ``__class__`` property that answers Dynamo's frames differently would do without,
but ``issubclass``, pickles, and ``isinstance(m, (A, B))`` in compiled code go by the true class. Where a future torch
asks somewhere else, ``torch.compile(fullgraph=True)`` says so, in Dynamo's words.
"""

import functools

from .imports import when_imported

BUILDER = "torch._dynamo.variables.builder"
LEAF = "torch.nn:rnnkernels"


class Leaf:
    """A module that torch.fx records as one call, and that TorchScript cannot compile.

    A tracer of torch.fx takes for a leaf what ``m.__module__.startswith("torch.nn")`` is true of (``prepare_fx`` of
    torch.ao too). It asks the instance: so each instance says so, while the class tells where it is, to pickle as well.
    """

    __jit_ignored_attributes__ = ["__module__"]  # a traced module does not take it along

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.__module__ = LEAF

    def __setstate__(self, state):
        super().__setstate__(state)
        self.__module__ = LEAF  # a module pickled by an older version has none

    def __prepare_scriptable__(self):
        """What ``torch.jit.script`` calls first, of every module in a model."""
        raise RuntimeError(
            f"torch.jit.script cannot compile {type(self).__name__} of rnnkernels: call rnnkernels.revert(model) "
            "first, which turns a model's recurrent modules back into torch.nn's"
        )


def pass_dynamo(kind):
    """Have Dynamo trace instances of ``kind``: now where it is loaded, else when it is (loading it takes seconds)."""
    when_imported(BUILDER, functools.partial(allow, kind))


def allow(kind, builder):
    """Wrap ``wrap_module``: what is of ``kind`` is built with ``allow_rnn``."""
    original = getattr(builder.VariableBuilder, "wrap_module", None)
    if original is None or not hasattr(builder.config, "allow_rnn"):
        return  # a torch that decides in another way: compiling ours either works or is refused, nothing else changes

    @functools.wraps(original)
    def wrap_module(self, value):
        if not isinstance(value, kind):
            return original(self, value)
        with builder.config.patch(allow_rnn=True):
            return original(self, value)

    builder.VariableBuilder.wrap_module = wrap_module
