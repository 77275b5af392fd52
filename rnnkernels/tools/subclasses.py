"""Users' subclasses of torch.nn's layers and cells, with ours among their bases: ``convert(subclasses=True)``.

``class Mine(nn.LSTM)`` becomes ``class Mine(Mine, rnnkernels.LSTM)``. As ours derives from torch.nn's, Python's method
resolution puts it after Mine and all of Mine's other bases, and right before nn.LSTM: ``super()`` finds ours.
"""

import types
import weakref

from torch import nn

from ..nn.base import CALLED_BY_TORCH
from ..nn.options import OPTIONS_OF

made = weakref.WeakValueDictionary()  # from the user's class to the made one, which lives as long as its instances


class NoOption:
    """Hides an ``Option`` of ours: the attribute is the user's own, if there is one."""

    def __set_name__(self, owner, name):
        self.name = name

    def __get__(self, module, owner=None):  # called if the instance's dict has no such name
        if module is None:
            raise AttributeError(f"type object {owner.__name__!r} has no attribute {self.name!r}")
        return module.__getattr__(self.name)  # a submodule, parameter or buffer, or an error


def own_classes(own):
    """The classes of ``own.__mro__`` that are the user's."""
    return [c for c in own.__mro__ if c is not object and not c.__module__.startswith("torch.nn.modules.")]


def obstacle(module, own, ours):
    """The reason why a module of the user's class ``own`` cannot have ``ours`` among its bases, or None."""
    theirs = own_classes(own)
    for name in CALLED_BY_TORCH if issubclass(own, nn.RNNBase) else ():
        if any(name in vars(c) for c in theirs):
            return f"whose {name} rnnkernels would not call"
    needed = {name for c in own_classes(ours) for name in vars(c)} - {*dir(nn.LSTM), *CALLED_BY_TORCH, *OPTION_NAMES}
    for name in sorted(needed):
        if name in vars(module) or name in module._modules or any(name in vars(c) for c in theirs):
            return f"whose {name} rnnkernels would take for its own"
    return None


def with_ours(own, ours):
    """The class of the same name that is ``own`` with ``ours`` before torch.nn's; made once."""
    new = made.get(own)
    if new is None:
        body = {
            "__module__": own.__module__, "__qualname__": own.__qualname__, "__doc__": own.__doc__,
            "_converted_from": own, "__reduce_ex__": reduce_by_own_class,
        }  # fmt: skip
        body |= {name: NoOption() for name in OPTION_NAMES if not any(name in vars(c) for c in own_classes(own))}
        new = types.new_class(own.__name__, (own, ours), {}, lambda namespace: namespace.update(body))
        made[own] = new
    return new


def reduce_by_own_class(self, protocol):
    """Pickle and copy by the user's class, which can be imported by name, instead of the made class."""
    new = next(c for c in type(self).__mro__ if "_converted_from" in vars(c))
    found = super(new, self).__reduce_ex__(protocol)
    if isinstance(found, str) or found[1][:1] != (new,):  # the user's own reduction
        return found
    function, arguments, *state = found
    own = new._converted_from
    return restore, (function, own, next(b for b in new.__bases__ if b is not own), *arguments[1:]), *state


def restore(function, own, ours, *arguments):
    """The result of ``function`` on the class made for a user's class."""
    return function(with_ours(own, ours), *arguments)


OPTION_NAMES = frozenset(name for names in OPTIONS_OF.values() for name in names)
