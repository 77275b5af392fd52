"""CUDA graphs of passes with a launch per step: recorded at the second call of a shape, replayed from then on.

A graph reads and writes its own memory: a replay copies the arguments there, and the results out. Least recently used
graphs are dropped when there are too many of them or when they hold too much memory. While the caller records a graph,
the launches go into that graph.
"""

import os
import sys
import threading
import warnings
from collections import OrderedDict
from contextlib import suppress
from typing import Any, NamedTuple

import torch

MOST_GRAPHS = 16
MOST_LAUNCHES = 4096
MOST_MEMORY = 1 / 16  # of the device's
MOST_BYTES_A_LAUNCH = 6 << 20  # of arguments and results: to copy more takes longer than to launch (seen on an H200)
PLAIN = (int, float, str, bool, torch.dtype, torch.device)
ENVIRONMENT_VARIABLE = "RNNKERNELS_CUDA_GRAPHS"  # 0: launch every step


class Recording(NamedTuple):
    """A graph, the tensors that it reads, and the result (a tree) that it writes."""

    graph: Any
    inputs: list
    result: Any
    done: Any
    """The event after which its memory may be written again."""
    bytes: int


RECORD, LAUNCH = "record", "launch"  # the action at the next call of a key, after the first one
_seen: OrderedDict = OrderedDict()  # by key: one of these, or a Recording
_lock = threading.Lock()


def run(function, launches, *arguments):
    """``function(*arguments)``, which launches kernels and allocates its results; arguments are trees of tensors."""
    if launches == 1:  # nothing to save, and looking through the arguments costs as much as a launch
        return function(*arguments)
    leaves = list(leaves_of(arguments))
    device = next(leaf.device for leaf in leaves if isinstance(leaf, torch.Tensor))
    if not possible(device, launches):
        return function(*arguments)
    key = (function, *map(described, leaves))
    if _seen.get(key) is None:
        result = function(*arguments)  # it may compile kernels: nobody waits for that
        with _lock:
            _seen.setdefault(key, RECORD if size_of([leaves, result]) <= MOST_BYTES_A_LAUNCH * launches else LAUNCH)
            if len(_seen) > 64 * MOST_GRAPHS:
                forget(next(iter(_seen)))
        return result
    with _lock:
        if _seen.get(key) == RECORD:
            try:
                with torch.inference_mode(False), torch.no_grad():  # later calls may be outside of inference mode
                    _seen[key] = record(function, arguments, device)
                make_room(device, key)
            except RuntimeError as error:  # without memory, for example: the launches one by one may still go
                _seen[key] = LAUNCH
                why = f"rnnkernels: no CUDA graph of a layer's steps, which are launched one by one: {error}"
                warnings.warn(why, stacklevel=2)
        recording = _seen.get(key)
        if isinstance(recording, Recording):
            _seen.move_to_end(key)
            return replay(recording, leaves)
    return function(*arguments)


def possible(device, launches):
    """True if a call with so many launches may become a graph here."""
    return (
        on_gpu(device)
        and launches <= MOST_LAUNCHES
        and os.environ.get(ENVIRONMENT_VARIABLE) != "0"
        and not torch.cuda.is_current_stream_capturing()
        and not warming_up(device)
    )


def warming_up(device):
    """True while torch.compile's own graphs are made ready: memory that is allocated then belongs to these."""
    trees = sys.modules.get("torch._inductor.cudagraph_trees")
    manager = trees and trees.get_manager(device.index, create_if_none_exists=False)
    return bool(manager) and manager.in_warmup


def on_gpu(device):
    return device.type == "cuda"


def described(leaf):
    """The properties of a leaf that a graph depends on."""
    if isinstance(leaf, torch.Tensor):
        return leaf.shape, leaf.stride(), leaf.dtype, leaf.device
    return leaf if leaf is None or isinstance(leaf, PLAIN) else id(leaf)  # jit functions, which live for ever


def leaves_of(tree):
    """The leaves of a tree of tuples and lists, in order."""
    if isinstance(tree, tuple | list):
        for branch in tree:
            yield from leaves_of(branch)
    else:
        yield tree


def mapped(function, tree):
    """The tree with ``function`` applied to its tensors."""
    if isinstance(tree, tuple | list):
        branches = [mapped(function, branch) for branch in tree]
        return type(tree)(*branches) if hasattr(tree, "_fields") else type(tree)(branches)
    return function(tree) if isinstance(tree, torch.Tensor) else tree


def tensors_of(tree):
    return [leaf for leaf in leaves_of(tree) if isinstance(leaf, torch.Tensor)]


def size_of(tree):
    """The bytes of the tensors of a tree."""
    return sum(t.numel() * t.element_size() for t in tensors_of(tree))


def record(function, arguments, device):
    """Record the launches of a call on copies of its arguments; they run once before, which compiles the kernels for
    the copies' alignment."""
    own = mapped(torch.clone, arguments)
    inputs, graph = tensors_of(own), torch.cuda.CUDAGraph()
    stream, outside = torch.cuda.Stream(device), torch.cuda.current_stream(device)
    stream.wait_stream(outside)
    with torch.cuda.stream(stream):
        function(*own)
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            result = function(*own)
        except BaseException:
            with suppress(RuntimeError):  # it would say no more than that something failed
                graph.capture_end()
            raise
        graph.capture_end()
    outside.wait_stream(stream)
    done = torch.cuda.Event()
    done.record(outside)
    return Recording(graph, inputs, result, done, size_of([inputs, result]))


def replay(recording, leaves):
    """Run a graph on other tensors of the same shapes."""
    stream = torch.cuda.current_stream(recording.inputs[0].device)
    stream.wait_event(recording.done)
    for own, given in zip(recording.inputs, tensors_of(leaves), strict=True):
        own.copy_(given)
    recording.graph.replay()
    result = mapped(torch.clone, recording.result)
    recording.done.record(stream)
    return result


def make_room(device, key):
    """Drop the graphs that were used longest ago, but not the one of ``key``, until the rest is within the bounds."""
    most = MOST_MEMORY * torch.cuda.get_device_properties(device).total_memory
    held = [(k, kept) for k, kept in _seen.items() if isinstance(kept, Recording) and k != key]
    while held and (len(held) >= MOST_GRAPHS or sum(kept.bytes for _, kept in held) + _seen[key].bytes > most):
        forget(held.pop(0)[0])


def forget(key):
    recording = _seen.pop(key)
    if isinstance(recording, Recording):
        recording.done.synchronize()  # its memory may be in use


def clear():
    """Drop all graphs and their memory."""
    with _lock:
        for key in list(_seen):
            forget(key)
