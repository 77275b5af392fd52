"""The tensors of a call of a cell that is a program, with options, and the comparison with what its text means."""

import torch
from common import TOLERANCES, assert_close
from program_texts import CELLS
from programs import meant, split, weight_shapes

from rnnkernels.cells import accumulate_dtype, program
from rnnkernels.cells.parts import projected

OPS = torch.ops.rnnkernels
HALVES = (torch.bfloat16, torch.float16)
OPTIONS = ("", "both lengths", "reverse reset unbiased", "restart lengths both", "zone", "zone_mask lengths reset",
           "h_mask both", "h_mask zone restart", "groups both lengths", "strided stateless", "groups strided",
           "norm both lengths", "norm h_mask reset unbiased", "norm zone")  # fmt: skip


class Case:
    """The tensors of one call, as leaves in float64 with values that the dtype has; words say which options are on."""

    def __init__(self, name, dtype, T, B, I, H, words="", seed=0):  # noqa: E741
        self.text, self.dtype, self.H, self.words = CELLS.get(name, name), dtype, H, words.split()
        self.random = torch.Generator().manual_seed(seed)
        header, sections = split(self.text)
        S, on = len(header["states"]), self.words.__contains__
        self.reverse = [False, True, True] if on("three") else [False, True] if on("both") else [on("reverse")]
        X = 2 if on("groups") else 1
        D, lead = X * len(self.reverse), (X,) if on("groups") else ()
        if "given" in header:
            I = len(header["inputs"]) * H  # noqa: E741
        self.bias = not on("unbiased")
        self.norm = on("norm")
        self.P = P = max(2 * H // 3, 1) if on("project") else 0
        if P:
            self.text = projected(program.parse(self.text))
        widths = [P or H, *[H] * (S - 1)]
        shapes = weight_shapes(self.text, I, H, self.bias, self.norm, P)
        leaf = lambda *shape, scale=0.5: self.leaf(shape, scale)  # noqa: E731
        self.x = leaf(*lead, T, B, I)
        scales = [H**-0.5 if len(s) == 2 and s[1] in (H, P) else 0.5 for s in shapes]
        self.weights = [leaf(*s, scale=scale) for _ in range(D) for s, scale in zip(shapes, scales, strict=True)]
        self.states = [leaf(D, B, n) for n in widths] if not on("stateless") else []
        steps = header.get("step", [])
        self.extras = [leaf(*lead, T, B, 1 if name.endswith(":1") else H) for name in steps]
        self.extras += [leaf(*lead, B, H) for _ in header.get("sequence", [])]
        self.reset_states = [leaf(D, B, n) for n in widths] if on("restart") else []
        self.lengths = torch.randint(0, T + 1, (B,), generator=self.random) if on("lengths") else None
        self.reset = torch.rand(T, B, generator=self.random) < 0.3 if on("reset") or on("restart") else None
        chance = lambda *shape: torch.rand(*shape, generator=self.random, dtype=torch.float64)  # noqa: E731
        self.h_mask = (chance(D, B, P or H) < 0.7) * 1.5 if on("h_mask") and "recurrent" in header else None
        self.zone = [chance(T, D, B, n) for n in widths] if on("zone") else []
        self.zone = [chance(1, D, 1, 1).round() for _ in range(S)] if on("zone_mask") else self.zone
        self.dcells = None  # gradients of the states apart from y after every step

    def leaf(self, shape, scale):
        t = scale * torch.randn(shape, generator=self.random, dtype=torch.float64)
        return t.to(self.dtype).double().requires_grad_()

    def leaves(self):
        return [self.x, *self.states, *self.weights, *self.extras]

    def arguments(self):
        to = lambda tensors: [t.detach().to(self.dtype) for t in tensors]  # noqa: E731
        x, *_ = to([self.x])
        if "strided" in self.words:
            x = torch.stack([x, x], -1)[..., 0]
        extras = to(self.extras)
        if "strided" in self.words:
            extras = [e.transpose(0, 1).contiguous().transpose(0, 1) for e in extras]
        return (
            self.text, x, to(self.states), to(self.weights), self.reverse, self.bias, self.P > 0, None, None,
            self.lengths, self.reset, to(self.reset_states), self.h_mask, self.zone, self.norm, 1e-5, self.H, extras,
            0, 0,
        )  # fmt: skip

    def run(self):
        y, last, saved = OPS.plain_layer(*self.arguments(), True)
        inferred = OPS.plain_layer(*self.arguments(), False)
        for a, b in zip((y, *last), (inferred[0], *inferred[1]), strict=True):
            assert torch.equal(a, b), "with and without saving"
        return y, last, saved

    def backward(self, y, saved, dy, dlast, needs=(True,) * 4):
        dlast = [d.to(self.dtype) for d in dlast]
        return OPS.plain_layer_backward(dy.to(self.dtype), dlast, self.dcells, *self.arguments(), y, saved, needs)

    def meant(self):
        return meant(
            self.text, self.x, self.states, self.weights, self.reverse, self.bias, self.extras, self.H, self.lengths,
            self.reset, self.reset_states, self.h_mask, self.zone, self.norm, self.P,
        )  # fmt: skip

    def expectation(self):
        y, last, cells = self.meant()
        grads = [torch.randn(t.shape, generator=self.random, dtype=torch.float64).to(self.dtype).double()
                 for t in (y, *last)]  # fmt: skip
        leaves = [self.x, *self.states, *self.weights, *self.reset_states, *self.extras]
        loss = sum((t * g).sum() for t, g in zip((y, *last), grads, strict=True))
        if len(cells) and self.words:
            self.dcells = torch.randn(cells.shape, generator=self.random).to(accumulate_dtype(self.dtype))
            loss = loss + (cells * self.dcells).sum()
        found = torch.autograd.grad(loss, leaves, allow_unused=True)
        return y, last, grads, [torch.zeros_like(t) if g is None else g for t, g in zip(leaves, found, strict=True)]

    def compare(self, expectation=None):
        """``expectation``: where it is known already."""
        expected_y, expected_last, (dy, *dlast), expected = expectation or self.expectation()
        # rounding of what is kept, of states and of gradients adds up in 16 bits
        tolerance = TOLERANCES[self.dtype] * (4 if self.dtype in HALVES else 1)
        y, last, saved = self.run()
        assert_close("y", y, expected_y, tolerance)
        for k, (a, e) in enumerate(zip(last, expected_last, strict=True)):
            assert_close(f"last {k}", a, e, tolerance)
        dx, dstates, dweights, dreset, dextras = self.backward(y, saved, dy, dlast)
        found = [dx, *dstates, *dweights, *dreset, *dextras]
        names = [f"{n} {k}" for n, each in (("dx", [dx]), ("dstate", dstates), ("dweight", dweights),
                 ("dreset_state", dreset), ("dextra", dextras)) for k in range(len(each))]  # fmt: skip
        assert len(found) == len(expected)
        for name, a, e in zip(names, found, expected, strict=True):
            assert_close(name, a, e, tolerance)
