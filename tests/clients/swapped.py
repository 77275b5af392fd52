"""Plugin of pytest that puts rnnkernels under a client before its tests are collected.

RNNKERNELS_SWAP=replaced puts our classes in the place of torch.nn's; RNNKERNELS_SWAP=converted:MODULE:CLASS,...
converts each instance of these classes of the client when it has been built. pytest ends with status 3 where no layer
was ours.
"""

import functools
import importlib
import os
import warnings

from torch import nn

import rnnkernels

CLASSES = ("RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell")
ours = 0
"""Layers and cells of rnnkernels that there have been."""


def after(cls, act):
    """Call ``act(instance)`` whenever the part of an instance that is ``cls``'s own has been built."""
    build = cls.__init__

    @functools.wraps(build)
    def build_and_act(self, *args, **kwargs):
        build(self, *args, **kwargs)
        act(self)

    cls.__init__ = build_and_act


def count(model):
    global ours
    ours += sum(type(part).__module__.startswith("rnnkernels") for part in model.modules())


def convert(model):
    with warnings.catch_warnings():  # TorchRL has layers of its own that derive from torch.nn's; they stay as they are
        warnings.filterwarnings("ignore", message="convert left subclasses alone")
        rnnkernels.convert(model)
    count(model)


how, _, holders = os.environ.get("RNNKERNELS_SWAP", "").partition(":")
if how == "replaced":
    for base in (nn.RNNBase, nn.modules.rnn.RNNCellBase):
        after(base, count)
    for name in CLASSES:
        setattr(nn, name, getattr(rnnkernels, name))
elif how == "converted":
    for holder in holders.split(","):
        module, name = holder.split(":")
        after(getattr(importlib.import_module(module), name), convert)


def pytest_sessionfinish(session):
    if how and not ours:
        session.exitstatus = 3
