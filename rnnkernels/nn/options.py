"""The options that layers have beyond torch.nn's: their checks, and the attributes that modules have for them.

Letters as in functional.py.
"""

import numbers
import warnings
from typing import Any, NamedTuple

from ..cells import spec_of
from ..cells.reference import ACTIVATIONS

REGULARISERS = ("recurrent_dropout", "zoneout", "layer_norm", "recompute", "heads")
ACTIVATED = (*REGULARISERS, "activation", "recurrent_activation")
OPTIONS_OF = {"rnn": REGULARISERS, "lstm": ACTIVATED, "gru": (*ACTIVATED, "reset_after")}
"""The names of a built-in cell's options; any other cell has ``REGULARISERS``."""
WITHOUT_EFFECT = ("recurrent_dropout", "recompute")
"""Options that change nothing in inference."""


class Options(NamedTuple):
    """All options with their defaults; ``None`` stands for a plain layer wherever options are handed on."""

    recurrent_dropout: float = 0.0
    zoneout: float | tuple[float, ...] = 0.0
    layer_norm: bool = False
    activation: str = "tanh"
    recurrent_activation: str = "sigmoid"
    reset_after: bool = True
    recompute: bool = False
    heads: int = 1

    def zones(self, states):
        """The probability of each state to stay."""
        return self.zoneout if isinstance(self.zoneout, tuple) else (self.zoneout,) * states

    def changed(self, *without):
        """The options that are not at their defaults, as a call writes them; None if all are."""
        named = zip(self._fields, self, PLAIN, strict=True)
        return ", ".join(f"{name}={v!r}" for name, v, plain in named if v != plain and name not in without) or None


PLAIN = Options()


def take_options(cell, keywords):
    """Take the options of a cell out of the keywords of a call: checked ``Options``, or None for a plain layer.

    Raises:
        ValueError, TypeError: for a value that an option cannot have.
    """
    return checked(cell, {name: keywords.pop(name) for name in OPTIONS_OF.get(cell, REGULARISERS) if name in keywords})


def checked(cell, values):
    """``Options`` of a cell with these values; None where they are the defaults."""
    for name, value in values.items():
        if name in ("recurrent_dropout", "zoneout"):
            values[name] = probability(cell, name, value)
        elif name in ("activation", "recurrent_activation"):
            if value not in ACTIVATIONS:
                names = [repr(a) for a in ACTIVATIONS]
                raise ValueError(f"Unknown {name} {value!r}. Select from {', '.join(names[:-1])} or {names[-1]}.")
        elif name == "heads":
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"heads should be of type int, got: {type(value).__name__}")
            if value <= 0:
                raise ValueError("heads must be greater than zero")
        elif not isinstance(value, bool):
            raise TypeError(f"{name} should be of type bool, got: {type(value).__name__}")
    options = Options(**values)
    if options.recurrent_dropout and not spec_of(cell).recurrent_gates:
        raise ValueError(f"recurrent_dropout is for a cell with a recurrent product: {spec_of(cell).name} has none")
    if options.heads > 1 and options.layer_norm:
        raise ValueError("layer_norm is over all gates of a layer and is not defined for heads; use one of the two")
    return None if options == PLAIN else options


def probability(cell, name, value):
    """A probability as a float, or for zoneout as many of them as the cell has states."""
    several = isinstance(value, (tuple, list)) and name == "zoneout"
    spec = spec_of(cell)
    if several and (spec.states < 2 or len(value) != spec.states):
        has = ("one state", "two states", "three states", "four states")[spec.states - 1]
        raise ValueError(
            f"zoneout has one probability per state: expected a number, as {spec.name} has {has}, got {value}"
        )
    for p in value if several else (value,):
        if not isinstance(p, numbers.Number) or isinstance(p, bool) or not 0 <= p < 1:
            what = "state being kept" if name == "zoneout" else "element of h being zeroed"
            raise ValueError(f"{name} should be a number in range [0, 1) representing the probability of a {what}")
    return tuple(map(float, value)) if several else float(value)


def check_heads(heads, hidden_size, project):
    """Check that a layer can be cut into this many heads."""
    if hidden_size % heads:
        raise ValueError(f"hidden_size must be divisible by heads, got hidden_size={hidden_size} and heads={heads}")
    if project and heads > 1:
        raise ValueError("proj_size is not defined for heads; use one of the two")


def settings(cell, activation, options):
    """``cell, activation, recurrent_activation`` of the op."""
    if options.activation != "tanh":
        activation = options.activation
    gate = None if options.recurrent_activation == "sigmoid" else options.recurrent_activation
    return cell if options.reset_after else f"{cell}_reset_before", activation, gate


def refuse_options(who, module):
    """Raise for a module with options that change inference, on behalf of a class that does not support them; and for
    one that computes with other weights than its parameters."""
    options = getattr(module, "_rk_options", None)  # torch.nn's modules have none
    changed = options and options.changed(*WITHOUT_EFFECT)
    if changed:
        raise ValueError(f"{who} has no {changed} yet: expected a {type(module).__name__} without")
    refuse_assigned(who, module)


def refuse_assigned(who, module):
    """Raise for a layer that computes with other weights than its parameters."""
    if getattr(module, "_rk_given", None) is not None:
        raise ValueError(f"{who} takes weights by their names, but other ones were assigned to _flat_weights")


def derived(cls):
    """True for a class that somebody else derived from one of ours. (torch makes classes of parametrized modules.)"""
    return any(c.__module__.split(".")[0] not in ("rnnkernels", "torch", "builtins") for c in cls.__mro__)


class Option:
    """An option as an attribute of a module: readable, and assignable unless parameters depend on it.

    An attribute of the same name in the instance (from before the module was converted) or a submodule takes
    precedence over the option. A class of somebody else that derives from ours may stand where it derived from
    torch.nn's, and mean something of its own by the name: without options from its constructor, what is assigned there
    is such an attribute, and a warning says so.
    """

    def __init__(self, fixed: bool = False) -> None:
        self.fixed = fixed

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, module: Any, owner: type | None = None) -> Any:
        if module is None:
            return self
        for taken in (vars(module), module._modules):
            if self.name in taken:
                return taken[self.name]
        return getattr(module._rk_options or PLAIN, self.name)

    def __set__(self, module: Any, value: Any) -> None:
        if self.name in vars(module):
            vars(module)[self.name] = value
            return
        if module._rk_options is None and derived(type(module)):
            warnings.warn(
                f"{self.name} is an attribute of {type(module).__name__} now, and no option of the layer, which its "
                "constructor takes",
                stacklevel=3,
            )
            vars(module)[self.name] = value
            return
        if self.fixed:
            raise AttributeError(f"{self.name} decides over the parameters and cannot be changed; make another module")
        given = (module._rk_options or PLAIN)._asdict() | {self.name: value}
        module._rk_options = checked(module._rk_kind[0], given)
