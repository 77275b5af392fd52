"""Forward mode: the tangent of a layer is a layer of another cell (cells/tangent.py), on the same kernels.

The states that entered the steps are known once the layer has run. So are, by products over all steps at once, the
pre-activations, and what the tangents of the weights add to theirs. All of it is a differentiable function of the
layer's tensors and results: reverse mode, another forward mode and vmap go through it.

Letters as in cells/reference.py.
"""

from functools import reduce
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch._C._functorch import TransformType, get_unwrapped, is_functorch_wrapped_tensor
from torch._functorch.pyfunctorch import retrieve_all_functorch_interpreters

from .. import backends
from ..cells import accumulate_dtype, interpret, reference, spec_of, tangent
from ..cells.call import LayerCall
from ..cells.weights import names_of
from .flat import Plan
from .recompute import entered


def why_not(call):
    """Why the tangents of a call are those of the reference, step by step: the end of a sentence, or None."""
    levels = retrieve_all_functorch_interpreters() if torch._C._are_functorch_transforms_active() else ()
    return tangent.why_not(
        call.cell, call.activation, call.recurrent_activation, call.project, call.layer_norm,
        order=max(1, sum(level.key() == TransformType.Jvp for level in levels)),
    )  # fmt: skip


def differentiated(tensors):
    """False where no reverse mode follows, whether of ``torch.func`` or not."""
    if torch._C._are_functorch_transforms_active():
        if any(level.key() == TransformType.Grad for level in retrieve_all_functorch_interpreters()):
            return True
    if not torch.is_grad_enabled():
        return False
    for t in tensors:
        while t is not None and is_functorch_wrapped_tensor(t):
            t = get_unwrapped(t)
        if t is not None and t.requires_grad:
            return True
    return False


def of_layer(apply, plan, tensors, tangents, y, cells):
    """The tangents of ``y, *last, [cells]`` of a layer that has run.

    Args:
        apply: ``Transform.apply``.
        plan, tensors: of the layer.
        tangents: of its tensors; None where there is none.
        y, cells: results of the layer; cells (the states apart from y times D, T, B, H), or None without such states.
    """
    call, moving = plan.call(tensors), plan.call(tangents)
    if any(t is not None for t in (moving.h_mask, *moving.zone)):
        raise NotImplementedError("rnnkernels: h_mask and zone have no forward-mode derivative; detach them")
    if (reason := why_not(call)) is not None:  # a call of the op by hand: modules and functions ask before
        raise NotImplementedError(f"rnnkernels: the op has no forward-mode derivative here: {reason}")
    apart, D, dtype = call.spec.apart, call.D, call.x.dtype
    derived = derivation(call, moving)
    found = [None] * D
    for backward in dict.fromkeys(call.reverse):
        own = [d for d in range(D) if call.reverse[d % len(call.reverse)] == backward]
        layer = together(call, moving, derived, own, [Direction(call, moving, derived, d, y, cells) for d in own])
        on_cpu = layer.x.device.type == "cpu" and backends.forced() is None
        backend = "dispatch" if on_cpu else backends.route(layer.facts())
        y_own, *rest = apply(Plan.of(layer, backend, return_cells=apart > 0, recompute=plan.recompute), *layer.flat())
        y_own, last = y_own.unflatten(-1, (len(own), -1)), rest[: call.spec.states]
        for k, d in enumerate(own):
            found[d] = [y_own[:, :, k], *(s[k] for s in last)]
            found[d] += [rest[-1].unflatten(0, (apart, -1))[:, k]] if apart else []
    ys, *states = zip(*found, strict=True)
    results = [torch.cat(ys, -1).to(dtype)]
    results += [torch.stack(s).to(dtype) for s in states[: call.spec.states]]
    return results + [torch.stack(s, 1).flatten(0, 1) for s in states[call.spec.states :]]


def of_gradients(apply, pull, grads, inputs, tangents):
    """The tangents of the needed gradients, as far as they come from those of the layer's inputs.

    They are the gradients of the layer's tangent: second derivatives are symmetric.
    """
    n, apart = sum(pull.plan.sizes()), spec_of(pull.plan.cell).apart
    plan = pull.plan._replace(return_cells=apart > 0, exposed=False, return_saved=False)

    def along(*leaves):
        tensors = (*leaves, *inputs[n:])
        y, *rest = apply(plan, *tensors)
        return tuple(of_layer(apply, plan, tensors, tangents, y, rest[-1] if apart else None))

    (y, *last), pullback = torch.func.vjp(along, *inputs[:n])
    dy, *dlast = grads
    dcells = [dlast.pop()] if pull.has_cells else []
    given = [dy, *(dlast or map(torch.zeros_like, last[: len(last) - (apart > 0)]))]
    given += dcells if dcells or not apart else [torch.zeros_like(last[-1])]
    return tuple(g for g, want in zip(pullback(tuple(given)), pull.wanted(), strict=True) if want)


def derivation(call, moving):
    """The ``Tangent`` of the call's cell, for the tensors that have tangents."""
    names = names_of(call.cell, call.bias)
    names = {names[k % len(names)] for k, t in enumerate(moving.weights) if t is not None}
    vectors = names.intersection(call.spec.vectors)
    return tangent.of_cell(
        call.cell, call.activation, call.recurrent_activation, names > vectors,
        bool(vectors) or any(t is not None for t in moving.extras),
    )  # fmt: skip


def together(call, moving, derived, own, parts):
    """The call of the tangents' layer for directions that run through time in the same way, each with its own input."""
    one, acc = len(own) == 1, accumulate_dtype(call.x.dtype)
    stacked = lambda tensors: tensors[0] if one else torch.stack(tensors)  # noqa: E731

    def of_groups(t, dims):  # lengths, reset
        if t is None or t.dim() < dims:
            return t
        return stacked([reference.group(t, d, call.reverse, dims - 1) for d in own])

    def of_directions(t):  # masks (..., D, B, H), which may be broadcast
        if t is None or len(own) == call.D or t.dim() < 3 or t.size(-3) == 1:
            return t
        return t[own] if t.dim() == 3 else t[:, own]

    def of_states(tangents):
        if all(t is None for t in tangents):
            return []
        shape = call.D, call.x.size(-2), call.H
        return [(call.x.new_zeros(shape) if t is None else t)[own].to(acc) for t in tangents]

    weights = [w for part in parts for w in part.weights()]
    return LayerCall(
        derived.text, stacked([part.input() for part in parts]), of_states(moving.states), weights,
        (call.reverse[own[0] % len(call.reverse)],), bias=False,
        lengths=of_groups(call.lengths, 2), reset=of_groups(call.reset, 3), reset_states=of_states(moving.reset_states),
        h_mask=of_directions(call.h_mask), zone=list(map(of_directions, call.zone)), hidden_size=call.H,
        extras=[stacked(tensors) for tensors in zip(*(part.extras() for part in parts), strict=True)], parts=call.parts,
    )  # fmt: skip


class Direction:
    """One direction of a layer, step by step and all steps at once: its values, and the inputs of its tangent."""

    def __init__(self, call, moving, derived, d, y, cells):
        self.program, self.derived, self.own = call.spec.program, derived, reference.Direction(call, d)
        acc, names = accumulate_dtype(call.x.dtype), names_of(call.cell, call.bias)
        ends = reference.group(call.lengths, d, call.reverse, 1)

        def of_steps(t):
            t = reference.group(t, d, call.reverse, 3)
            return t if t is None else reference.zero_past(t.to(acc), ends)

        def of_extras(tensors):
            steps = len(self.program.step)
            found = [of_steps(t) for t in tensors[:steps]]
            found += [t if t is None else reference.group(t, d, call.reverse, 2).to(acc) for t in tensors[steps:]]
            return dict(zip(self.program.extras, found, strict=True))

        self.x, self.d_x = of_steps(call.x), of_steps(moving.x)
        d_weights = [w if w is None else w.to(acc) for w in reference.weights_of(moving.weights, d, call.D)]
        self.d_weights = dict(zip(names, d_weights, strict=True))
        self.h_mask = None if call.h_mask is None else call.h_mask[d].to(acc)
        self.states = dict(zip(self.program.states, entered(call, y, cells, d), strict=True))
        h = self.states[self.program.states[0]]
        self.like, extras = h, of_extras(call.extras)
        self.known = {
            "s": self.states,
            "v": self.own.vectors,
            "u": extras,
            "m": {self.program.states[0]: self.masked(h)},
        }
        self.known |= {"dv": self.d_weights, "du": of_extras(moving.extras)}
        operand = self.program.sections.get("operand")
        self.operand = self.masked(h if operand is None else self.put(operand)["operand", None])
        self.inner = None
        self.known |= self.pre_activations()
        if derived.inner is not None:
            self.inner = self.put(derived.inner)["inner", None]
            self.known["i"] = {None: self.own.again(self.inner)}

    def masked(self, h):
        return h if self.h_mask is None else h * self.h_mask

    def pre_activations(self):
        """Those of the step itself that the sections read: ``{load: {gate: (T, B, H)}}``."""
        own, program, derived = self.own, self.program, self.derived
        x = Side(program.inputs, [(self.x, own.w_ih)], own.b_ih, self.x if program.given else None)
        r = Side(program.recurrent, [(self.operand, own.w_hh)], own.b_hh)
        sections, found = [s for s in (derived.values, derived.inner, derived.one_step) if s is not None], {}
        for op, sides in {"a": (x, r), "x": (x,), "r": (r,)}.items():
            gates = tuple(dict.fromkeys(g for s in sections for g in s.loads(op)))
            found[op] = by_gate(gates, affine(sides, gates, own.H))
        return found

    def load(self, op, what):
        found = self.known[op][what]
        return torch.zeros_like(self.load(op[1:], what)) if found is None else found

    def put(self, section):
        return interpret.run(section, self.load, self.like)

    def weights(self):
        """The weights of the tangents' layer."""
        matrices = [None if self.derived.given else self.own.w_ih, self.own.w_hh]
        return [w for w in matrices if w is not None] + [self.own.vectors[v] for v in self.derived.vectors]

    def extras(self):
        """Its step and sequence inputs."""
        values = self.put(self.derived.values)
        values = [values["keep", k] for k in range(len(values))]
        return values + [self.known["u"][name] for name in (*self.derived.narrow, *self.derived.sequence)]

    def input(self):
        """Its x: that of x, or its gates (T, B, G*H), but for the products with the tangents of the operands."""
        if not self.derived.given:
            return torch.zeros_like(self.x) if self.d_x is None else self.d_x
        own, d, program, derived = self.own, self.d_weights, self.program, self.derived
        once = self.put(derived.one_step)
        d_operand, n = once.get(("operand", None)), len(program.recurrent) - (self.inner is not None)
        d_operand = d_operand if d_operand is None else self.masked(d_operand)
        w, dw, db = own.w_hh, d.get("weight_hh"), d.get("bias_hh")
        rows = [(t if t is None else t[: own.first], t if t is None else t[own.first :]) for t in (w, dw, db)]
        (w, w_inner), (dw, dw_inner), (db, db_inner) = rows
        x = Side(
            program.inputs, [(self.d_x, own.w_ih), (self.x, d.get("weight_ih"))], d.get("bias_ih"),
            self.d_x if program.given else None,
        )  # fmt: skip
        r = Side(program.recurrent[:n], [(d_operand, w), (self.operand, dw)], db)
        i = Side(program.recurrent[n:], [(once.get(("inner", None)), w_inner), (self.inner, dw_inner)], db_inner)
        shared = tuple(g for g in program.inputs if g in r.gates and g not in derived.apart)
        alone = tuple(g for g in program.inputs if g not in shared)
        of_r = {}
        for side in (r, i):
            gates = tuple(g for g in derived.apart if g in side.gates)
            of_r |= by_gate(gates, affine((side,), gates, own.H))
        of_shared, all_shared = affine((x, r), shared, own.H), shared == program.inputs
        if all_shared and not derived.apart + derived.added and of_shared is not None and of_shared.dim() == 4:
            return of_shared.flatten(-2)
        of_x = by_gate(shared, of_shared) | by_gate(alone, affine((x,), alone, own.H))
        found = [of_x.get(g) for g in program.inputs] + [of_r.get(g) for g in derived.apart]
        found += [once[to] for to in derived.added]
        shape = self.like.shape
        return torch.cat([self.like.new_zeros(shape) if t is None else t.expand(shape) for t in found], -1)


class Side(NamedTuple):
    """A part of the pre-activations of some gates: sums of (T, B, K) times (gates * H, K), biases, numbers as given."""

    gates: tuple
    products: list
    bias: torch.Tensor | None
    given: torch.Tensor | None = None


def affine(sides, gates, H):
    """What sides have of gates, in sum and by one product: (T, B, gates, H), or less of T and B; None for nothing."""

    def blocks(side, t, dim=0):
        if t is None or side.gates == gates:
            return t
        at = [side.gates.index(g) for g in gates]
        t = t.unflatten(dim, (-1, H))
        return t[at].flatten(0, 1) if dim == 0 else t[..., at, :].flatten(-2)

    if not gates:
        return None
    factors = [(v, blocks(s, w)) for s in sides for v, w in s.products if v is not None and w is not None]
    bias, given = (
        total(*parts) for parts in zip(*((blocks(s, s.bias), blocks(s, s.given, -1)) for s in sides), strict=True)
    )
    found = bias
    if factors:
        v, w = (t[0] if len(t) == 1 else torch.cat(t, -1) for t in zip(*factors, strict=True))
        found = F.linear(v, w, bias)
    found = total(found, given)
    return found if found is None else found.unflatten(-1, (-1, H))


def by_gate(gates, found):
    return {} if found is None else dict(zip(gates, found.unbind(-2), strict=True))


def total(*terms):
    """The sum of those that are not None; None for none."""
    terms = [t for t in terms if t is not None]
    return reduce(torch.add, terms) if terms else None
