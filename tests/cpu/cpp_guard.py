"""Tensors with a page without access right behind them, or right before: who reads past them ends the process.

For the processes of cpp_worker.py. AddressSanitizer does not see what tiles and masked loads read; this does.
"""

import ctypes
import mmap
import sys
from itertools import chain, islice, product

import cpp_stages
import cpp_tiles
import cpp_worker
import torch
from cpp_cases import OPS, build
from pairwise import ALL
from program_texts import CELLS
from random_programs import Case

PAGE = mmap.PAGESIZE


def fenced(tensor, behind=True):
    """A copy whose last element (or first one) lies at the edge of what may be read."""
    if not tensor.numel():
        return tensor
    if tensor.dim() == 3 and not tensor.is_contiguous():  # batch first
        return fenced(tensor.transpose(0, 1), behind).transpose(0, 1)
    n = tensor.numel() * tensor.element_size()
    memory = mmap.mmap(-1, (n + PAGE - 1) // PAGE * PAGE + 2 * PAGE)
    begin = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for page in (begin, begin + len(memory) - PAGE):
        if ctypes.CDLL(None).mprotect(ctypes.c_void_p(page), ctypes.c_size_t(PAGE), 0):
            raise OSError("mprotect failed")
    at = len(memory) - PAGE - n if behind else PAGE
    return (
        torch.frombuffer(memory, dtype=tensor.dtype, count=tensor.numel(), offset=at).view(tensor.shape).copy_(tensor)
    )


def both_ways(shape, call, dy, dlast, dcells, fence=lambda t: t):
    call = [[fence(t) for t in v] if isinstance(v, list) and v and isinstance(v[0], torch.Tensor) else
            fence(v) if isinstance(v, torch.Tensor) else v for v in call]  # fmt: skip
    y, last, saved = OPS.layer(*call, True)
    given = [fence(dy), [fence(d) for d in dlast], None if dcells is None else fence(dcells)]
    found = OPS.layer_backward(*given, *call, fence(y), [fence(s) for s in saved], [*shape.needs, True])
    return [y, *last, *saved, found[0], *found[1], *found[2], *found[3]]


def shapes():
    for dtype in (torch.float32, torch.bfloat16):
        grids = cpp_worker.sizes(dtype), cpp_tiles.remainders(dtype), cpp_tiles.calls(dtype)
        step, more = (3, 7) if ALL else (7, 15)  # grids go through the four cells
        masks, norms = islice(cpp_stages.masks(dtype), 0, None, more), islice(cpp_stages.norms(dtype), 0, None, more)
        for shape in chain(islice(grids[0], 0, None, step), islice(grids[1], 0, None, step), grids[2], masks, norms):
            yield shape if shape.layout in (None, "batch first") else shape._replace(layout=None)
    yield from islice(cpp_worker.sizes(torch.float64), 0, None, 5 if ALL else 11)


def on_sets(sets):
    """Each case's shape and tensors, with each set in use in turn."""
    for n, shape in enumerate(shapes()):
        tensors = build(shape, n)
        torch.set_num_threads(shape.threads)
        for isa in sets:
            print(isa, shape, file=sys.stderr, flush=True)  # what was running, should the process die
            OPS.use_instruction_set(isa)
            yield isa, shape, tensors


def inputs(sets):
    """Results are those of the same numbers in other places, and the process lives."""
    for n, (isa, shape, tensors) in enumerate(on_sets(sets)):
        expected = both_ways(shape, *tensors)
        both = ALL or (n + n // len(sets)) % 4 == 0  # few faults read what lies before
        for behind in (True, False)[: 1 + both]:
            found = both_ways(shape, *tensors, lambda t, behind=behind: fenced(t, behind))
            if not all(torch.equal(a.nan_to_num(), e.nan_to_num()) for a, e in zip(found, expected, strict=True)):
                yield isa, f"{'behind' if behind else 'before'}: {shape}"


def programs(sets):
    """The same of cells as programs, some of whose sections are run for rows that have ended too."""
    words = ("both lengths", "reverse lengths restart unbiased", "both reset", "h_mask both lengths")
    for n, (name, more) in enumerate(product(CELLS, words)):
        case = Case(name, torch.float32 if n % 2 else torch.float64, 4, 3, 5, (5, 6, 16, 19)[n // 2 % 4], more, seed=n)
        _, _, (dy, *dlast), _ = case.expectation()
        for isa in sets[n % len(sets) :][:1] if not ALL else sets:
            print(isa, name, more, file=sys.stderr, flush=True)
            OPS.use_instruction_set(isa)
            y, last, saved = case.run()
            given = [g.to(case.dtype) for g in (dy, *dlast)]
            expected = OPS.plain_layer_backward(given[0], given[1:], None, *case.arguments(), y, saved, [True] * 4)
            put = [fenced(v) if isinstance(v, torch.Tensor) else
                   [fenced(t) for t in v] if isinstance(v, list) and v and isinstance(v[0], torch.Tensor) else v
                   for v in (*case.arguments(), y, list(saved))]  # fmt: skip
            found = OPS.plain_layer_backward(given[0], given[1:], None, *put, [True] * 4)
            for a, e in zip(chain(found[:1], *found[1:]), chain(expected[:1], *expected[1:]), strict=True):
                if not torch.equal(a.nan_to_num(), e.nan_to_num()):
                    yield isa, f"{name} {more}"


def past_the_end():
    """Shows that the fence bites: reads one element too many."""
    t = fenced(torch.zeros(5))
    return [ctypes.c_float.from_address(t.data_ptr() + 4 * i).value for i in range(6)]


def scratch(sets):
    """For a process with guard_alloc.c: whoever reads or writes past working memory ends it."""
    for _, shape, tensors in on_sets(sets):
        both_ways(shape, *tensors)
    return []


def past_the_end_of_scratch():
    """Shows that guard_alloc.c is there and bites."""
    libc = ctypes.CDLL(None)
    libc.aligned_alloc.restype = ctypes.c_void_p
    block = libc.aligned_alloc(ctypes.c_size_t(64), ctypes.c_size_t(192))
    return [ctypes.c_char.from_address(block + i).value for i in (0, 191, 192)]
