"""The base class of ``RNN``, ``LSTM`` and ``GRU``: from a call to layers, and the parameters of the options.

They derive from torch.nn's as well; tracers.py says how that goes with TorchDynamo. A plain layer holds no parameter
and no setting beyond what torch.nn's have, so that :func:`rnnkernels.convert` can turn one into the other in place. All
read their parameters by name at every forward: parametrizations, weight norm, weight drop, tied weights and
``functional_call`` are seen at once. What is ours alone has names with ``_rk_``: the others are free for classes that
users derive. Letters: T time, B batch, D directions, H hidden, I input, L layers, N heads, P projection.
"""

import operator
import warnings

import torch
from torch import _VF, nn
from torch.nn.utils.rnn import PackedSequence

from ..cells.weights import weights_of
from ..op.autograd import jit_tracing
from ..recorders import onnx
from ..recorders.tracers import LEAF, Leaf, pass_dynamo
from .checks import check_lengths, check_reset, refuse_nested
from .functional import BOTH, FORWARD, batch_major, layers
from .options import Option, check_heads, take_options

MODES = {"RNN_TANH": ("rnn", None), "RNN_RELU": ("rnn", "relu"), "LSTM": ("lstm", None), "GRU": ("gru", None)}


CALLED_BY_TORCH = (
    "check_input", "check_forward_args", "check_hidden_size", "get_expected_hidden_size", "get_expected_cell_size",
    "permute_hidden", "_flat_weights", "_init_flat_weights", "_update_flat_weights", "_weights_have_changed",
)  # fmt: skip
"""What nn.LSTM.forward (RNN's, GRU's) calls or reads and ours does not: there an override has no effect."""


class FlatWeights(list):
    """What ``_flat_weights`` gives. As in torch.nn, layers compute with a tensor that is put into it."""

    def __init__(self, module, weights):
        super().__init__(weights)
        self.module = module

    def __setitem__(self, k, weight):
        super().__setitem__(k, weight)
        self.module._flat_weights = self


def check_recurrent(module):
    """Raise for a module that is not rnnkernels', in functions that need more than torch.nn's have."""
    if not isinstance(module, RecurrentBase):
        raise TypeError(f"Expected an RNN, LSTM or GRU of rnnkernels, but got {type(module).__name__}")


class RecurrentBase(Leaf, nn.RNNBase):
    """Everything of the layers but the form of ``hx``. RNN, LSTM and GRU are also instances of torch.nn's classes."""

    _rk_wrong_input: str  # torch.nn's message for an input with a wrong number of dimensions
    _rk_options = None  # ``Options``, or None for a plain layer, which costs it one lookup
    _rk_packed = None  # of a frozen module: see tools/freeze.py
    _rk_given = None  # weights that were assigned to ``_flat_weights``, and the named ones at that time
    _rk_overridden = None  # names of CALLED_BY_TORCH

    recurrent_dropout, zoneout, recompute = Option(), Option(), Option()
    layer_norm, heads = Option(fixed=True), Option(fixed=True)

    # those of nn.RNNBase, which keep ``_flat_weights`` up to date, are left out; those of a user's classes are not
    def __setattr__(self, name, value):
        super(nn.RNNBase, self).__setattr__(name, value)

    def _replicate_for_data_parallel(self):
        return super(nn.RNNBase, self)._replicate_for_data_parallel()

    def __init_subclass__(cls, **kwargs):
        """Notice what a user's class overrides that only torch.nn's forward calls, which then runs."""
        super().__init_subclass__(**kwargs)
        ours = next(c for c in cls.__mro__ if c.__module__.split(".")[0] == "rnnkernels")
        missed = [n for n in CALLED_BY_TORCH if getattr(cls, n, None) is not getattr(ours, n, None)]
        if missed and ours is not cls and issubclass(cls, (nn.RNN, nn.LSTM, nn.GRU)):
            warnings.warn(
                f"{cls.__name__} overrides {', '.join(missed)}, which rnnkernels does not call: torch.nn's forward "
                "runs in its place",
                stacklevel=2,
            )
            cls._rk_overridden = missed

    def _rk_torchs_forward(self, input, hx, more):
        """torch.nn's forward, for a class that overrides what only that one calls."""
        if self._rk_options or more:
            raise NotImplementedError(
                f"{type(self).__name__} overrides {', '.join(self._rk_overridden)}, which only torch.nn's forward "
                "calls: that has no options, lengths, reset and return_cell_states"
            )
        torchs = next(c for c in type(self).__mro__ if c.__module__ == nn.LSTM.__module__)
        return torchs.forward(self, input, hx)

    def _rk_weights(self):
        """The weights of a call: those that were given as ``_flat_weights``, else those that have the names."""
        named = [getattr(self, name, None) for name in self._flat_weights_names]
        if self._rk_given is not None:
            weights, before = self._rk_given
            if all(now is None or now is then for now, then in zip(named, before, strict=True)):
                return weights
            del self._rk_given  # as in torch.nn, once a named one is another
        return named

    @property
    def _flat_weights(self):
        """The weights as they are now. What is assigned, or put into the list, counts until a named one is replaced."""
        return FlatWeights(self, self._rk_weights())

    @_flat_weights.setter
    def _flat_weights(self, value):
        self._init_flat_weights()
        value, named = list(value), self._rk_weights()
        if len(value) != len(named) or not all(map(operator.is_, value, named)):
            vars(self)["_rk_given"] = value, named

    def _init_flat_weights(self):
        """Forget what was assigned to ``_flat_weights``; there is no other list of weights to keep."""
        vars(self).pop("_rk_given", None)

    def __getstate__(self):
        """As in torch.nn, copies and pickles have the parameters, not what was assigned to ``_flat_weights``."""
        return {name: v for name, v in super().__getstate__().items() if name != "_rk_given"}

    def _update_flat_weights(self):
        """Nothing to do: there is no list of weights to keep."""

    def flatten_parameters(self) -> None:
        """Nothing to do: the kernels take weights at any address."""

    def __init__(self, mode, *args, **kwargs):
        cell = MODES[mode][0]
        options = take_options(cell, kwargs)
        if options is None or options.heads == 1:
            nn.RNNBase.__init__(self, mode, *args, **kwargs)  # super() is nn.LSTM, which passes the mode itself
        else:  # on the meta device, because the weights of heads are much smaller than these
            if len(args) > 8:
                device, args = args[8], (*args[:8], "meta", *args[9:])
            else:
                device, kwargs = kwargs.get("device"), {**kwargs, "device": "meta"}
            nn.RNNBase.__init__(self, mode, *args, **kwargs)
            N, H = options.heads, self.hidden_size
            check_heads(N, H, self.proj_size > 0)
            for name, p in list(self._parameters.items()):
                shape = (N, p.size(0) // N, H // N) if name.startswith("weight_hh") else p.shape
                setattr(self, name, nn.Parameter(torch.empty(shape, dtype=p.dtype, device=device)))
            self.reset_parameters()
        self.__module__ = LEAF
        if options is None:
            return
        self._rk_options = options
        if options.layer_norm:
            like = self.weight_ih_l0
            for names in self._all_weights:
                suffix = names[0].removeprefix("weight_ih")
                for name, kind, shape in weights_of(cell, 1, self.hidden_size, layer_norm=True):
                    if kind in ("gain", "shift"):
                        p = nn.Parameter(torch.empty(shape, dtype=like.dtype, device=like.device))
                        setattr(self, name + suffix, p)
                        names.append(name + suffix)
            self._flat_weights_names = [name for names in self._all_weights for name in names]
            self._rk_reset_norms()

    def reset_parameters(self) -> None:
        """Initial values as torch.nn draws them; gains of layer norms are 1 and biases 0."""
        super().reset_parameters()
        self._rk_reset_norms()

    def _rk_reset_norms(self):
        for name in self._flat_weights_names:
            if name.startswith("ln_"):
                nn.init.constant_(getattr(self, name), 0.0 if "bias" in name else 1.0)

    def _load_from_state_dict(self, state_dict, prefix, *args):
        """Load; gains of layer norms may also have their former names, ``ln_x_weight_l0`` and so on."""
        for name in self._flat_weights_names:
            old = prefix + name.replace("_gain_", "_weight_")
            if name.startswith("ln_") and old in state_dict and prefix + name not in state_dict:
                state_dict[prefix + name] = state_dict.pop(old)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        """The arguments that are not at their defaults."""
        changed = self._rk_options and self._rk_options.changed()
        return super().extra_repr() + (f", {changed}" if changed else "")

    @property
    def _rk_kind(self):
        """The cell of the op and its activation, without the changes that options make to them."""
        return MODES[self.mode]

    def _rk_states(self, hx, dims=None):
        """``hx`` as a tuple of states; where ``dims`` is given, they are checked to have as many dimensions."""
        if dims and hx.dim() != dims:
            kind = "batched 3-D" if dims == 3 else "unbatched 2-D"
            raise RuntimeError(f"For {kind} input, hx should also be {dims}-D but got {hx.dim()}-D tensor")
        return (hx,)

    @staticmethod
    def _rk_hidden(last):
        """The final states in the form that ``hx`` has."""
        return last[0]

    def forward(self, input, hx=None, lengths=None, reset=None, return_cell_states=False):
        """Run the layers over a sequence; see the class."""
        # the last three are not keyword-only: torch.onnx.export(dynamo=False) passes defaults by position
        if self._rk_overridden:
            return self._rk_torchs_forward(input, hx, lengths is not None or reset is not None or return_cell_states)
        if lengths is not None or reset is not None or return_cell_states:
            return self._rk_forward_more(input, hx, lengths, reset, return_cell_states)
        if isinstance(input, PackedSequence):
            return self._rk_outside_graphs(self._rk_forward_packed)(input, hx)
        dims = input.dim()
        if input.is_nested:
            refuse_nested(type(self).__name__)
        if dims != 3 and dims != 2:
            raise ValueError(self._rk_wrong_input.format(dims))
        states = () if hx is None else self._rk_states(hx, dims)
        batch_first = self.batch_first
        if dims == 2:
            y, last = self._rk_layers(input.unsqueeze(1), [s.unsqueeze(1) for s in states])
            return y.squeeze(1), self._rk_hidden([s.squeeze(1) for s in last])
        y, last = self._rk_layers(input.transpose(0, 1) if batch_first else input, states)
        return batch_major(y) if batch_first else y, self._rk_hidden(last)

    def _rk_forward_more(self, input, hx, lengths, reset, cells, call=None, extras=()):
        """``forward`` with arguments that torch.nn does not have; the last two as in ``functional.layers``."""
        more = {name: v for name, v in (("return_cells", cells), ("call", call), ("extras", extras)) if v}
        if isinstance(input, PackedSequence):
            if lengths is not None or reset is not None:
                name = "reset" if lengths is None else "lengths"
                raise ValueError(f"{name} is for padded input: a PackedSequence has lengths and an order of its own")
            return self._rk_outside_graphs(self._rk_forward_packed)(input, hx, more)
        dims = input.dim()
        if input.is_nested:
            refuse_nested(type(self).__name__)
        if dims != 3 and dims != 2:
            raise ValueError(self._rk_wrong_input.format(dims))
        states, restart = () if hx is None else self._rk_states(hx, dims), ()
        batch_first = self.batch_first and dims == 3
        if reset is not None:
            reset, restart = check_reset(reset, input, batch_first, self.bidirectional)
            restart = self._rk_states(restart, dims) if len(restart) else ()
        x = input.transpose(0, 1) if batch_first else input
        if dims == 2:
            if lengths is not None:
                raise ValueError("lengths is for a batch of sequences: expected input to be 3D, got 2D tensor")
            x, reset = x.unsqueeze(1), None if reset is None else reset.unsqueeze(1)
            states, restart = [s.unsqueeze(1) for s in states], [s.unsqueeze(1) for s in restart]
        if lengths is not None:
            lengths = check_lengths(lengths, x)
        if len(restart):
            more["reset_states"] = restart
        y, last, *c = self._rk_layers(x, states, lengths, torch.dropout, reset, more)
        outputs = [y, *c]
        if dims == 2:
            outputs, last = [v.squeeze(1) for v in outputs], [s.squeeze(1) for s in last]
        elif batch_first:
            outputs = [batch_major(v) for v in outputs]
        return outputs[0], self._rk_hidden(last), *outputs[1:]

    def _rk_layers(self, x, states, lengths=None, drop=torch.dropout, reset=None, more=None):
        """Check and run all layers on x (T, B, I); ``more`` are further arguments of ``functional.layers``."""
        parameters, names, H, P = self._parameters, self._flat_weights_names, self.hidden_size, self.proj_size
        if self._rk_own_reads:
            parameters = {}
        try:
            weights = [parameters[name] for name in names] if self._rk_given is None else self._rk_weights()
        except KeyError:  # a buffer or attribute has the parameter's name
            weights = [getattr(self, name) for name in names]
        cell, activation = self._rk_kind
        return layers(
            cell, x, states, weights, self.num_layers, BOTH if self.bidirectional else FORWARD, self.bias, P > 0,
            self.input_size, H, P or H, activation, self.dropout if self.training else 0.0, lengths, reset, drop,
            self._rk_options, self.training, packed=self._rk_packed.of(weights) if self._rk_packed else 0,
            **(more or {}),
        )  # fmt: skip

    @staticmethod
    def _rk_outside_graphs(run):
        """The function behind a graph break, as in torch.nn: the sizes of a PackedSequence are data."""
        if not torch.compiler.is_compiling():
            return run
        onnx.refuse_packed()
        return torch.compiler.disable(run)

    def _rk_forward_packed(self, packed, hx, more=None):
        """Pad, run with lengths, pack again: the kernels skip the padding, and rows stay in packed order."""
        data, batch_sizes, sorted_indices, unsorted_indices = packed
        if data.dim() != 2:
            raise RuntimeError(f"input must have 2 dimensions, got {data.dim()}")
        if hx is None:
            states = ()
        else:
            states = self._rk_states(hx)
            if sorted_indices is not None:  # the rows of hx have the order of the user's sequences
                states = [s.index_select(1, sorted_indices) for s in states]
        if not jit_tracing() and int(batch_sizes[-1]) == int(batch_sizes[0]):  # every row has all T steps
            T, B = batch_sizes.size(0), int(batch_sizes[0])
            y, last, *c = self._rk_layers(data.view(T, B, data.size(1)), states, more=more)
            outputs = [torch.ops.aten._unsafe_view(v, (T * B, v.size(2))) for v in (y, *c)]  # no view: detach_ works
        else:
            x, lengths = _VF._pad_packed_sequence(data, batch_sizes, False, 0.0, -1)

            def drop(y, p, train):  # draws random numbers for the packed rows only, as torch does
                mask = torch.dropout(y.new_ones(data.size(0), y.size(2)), p, train)
                return y * _VF._pad_packed_sequence(mask, batch_sizes, False, 0.0, -1)[0]

            y, last, *c = self._rk_layers(x, states, lengths.to(x.device), drop, more=more)
            outputs = [_VF._pack_padded_sequence(v, lengths, False)[0] for v in (y, *c)]
        if unsorted_indices is not None:
            last = [s.index_select(1, unsorted_indices) for s in last]
        y, *c = (PackedSequence(v, batch_sizes, sorted_indices, unsorted_indices) for v in outputs)
        return y, self._rk_hidden(last), *c


pass_dynamo(RecurrentBase)
