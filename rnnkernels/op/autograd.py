"""Derivatives of the op: thin ``autograd.Function``s for eager mode and for ``torch.func`` transforms.

Old-style functions (``Eager``) cost less per call than those with ``setup_context``, which ``torch.func`` needs
(``Transform``). Both have a backward of their own, so that the backward pass can be differentiated again.

Both work on the flat lists of tensors described in flat.py, and call the plain ops, which have no autograd. Modules use
them directly; the ops that have autograd come to them by the kernels in autograd_kernels.py.
"""

from itertools import chain

import torch
from torch._C._functorch import TransformType, is_legacy_batchedtensor
from torch._functorch.pyfunctorch import retrieve_all_functorch_interpreters
from torch.autograd import forward_ad

from .. import backends
from ..cells import reference, spec_of
from ..cells.interpret import primal
from . import recompute, tangent, vmap
from .flat import Plan, Pull


def autocast_enabled(device):
    """True if autocast is on for a type of device; False for types without autocast, such as "meta"."""
    return (
        torch._C._is_any_autocast_enabled()
        and torch.amp.is_autocast_available(device)
        and torch.is_autocast_enabled(device)
    )


def without_autocast(function):
    """A kernel in Python with autocast switched off around it: such kernels choose their dtypes themselves."""

    def kernel(*args):
        device = next(a for a in args if isinstance(a, torch.Tensor)).device.type
        if not autocast_enabled(device):
            return function(*args)
        with torch.autocast(device, enabled=False):
            return function(*args)

    return kernel


OPS, PLAIN = {}, {}  # by name, with autograd and without; filled by schema.py


def plain(name):
    """The op without autograd, for a caller that handles autograd itself around this call.

    Tracers and dispatch modes get the op with autograd instead: they may run it again, or know it by its name. Under
    ``torch.compile`` the caller handles the backward pass as in eager mode, so the op without autograd is right there.
    """
    if torch.compiler.is_compiling():
        recorded = torch.compiler.is_exporting()
    else:
        recorded = jit_tracing() or torch._C._len_torch_dispatch_stack()
    return (OPS if recorded else PLAIN)[name]


def jit_tracing():
    """True while torch.jit.trace records calls."""
    return torch._C._get_tracing_state() is not None


def recording():
    """True while calls are recorded for a program that later runs without the Python code around the op."""
    return torch.compiler.is_exporting() or jit_tracing()


def watched():
    """True where results may be kept by whoever records or watches calls, and must not be changed in place: by
    torch.compile, torch.jit.trace, or a dispatch mode, such as that of selective checkpointing."""
    return torch.compiler.is_compiling() or jit_tracing() or torch._C._len_torch_dispatch_stack() > 0


def may_change(y):
    """True if a tensor, just computed, may get another shape in place: it is no view then, and ``detach_`` works.

    Not where somebody keeps it, nor where a tangent would keep its shape. Of tensors of a subclass it is a view
    already, of what autograd has seen, or it wraps another.
    """
    return not (watched() or forward_ad._current_level >= 0 or y._is_view() or type(y) is not torch.Tensor)


def eager():
    """True for plain eager execution with no backend forced: nobody transforms, records or watches calls."""
    return not (
        torch.compiler.is_compiling()
        or jit_tracing()
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack()
        or autocast_enabled("cpu")
        or forward_ad._current_level >= 0
        or backends.forced() is not None
    )


def implementation(backend, name, op=plain):
    """``layer`` or ``layer_backward`` of a backend; "dispatch" leaves the choice to PyTorch's dispatcher.

    ``op`` gives the op of a name: ``plain``, or ``OPS.get`` for the one that has autograd.
    """
    if backend == "dispatch":
        return op(name)
    if backend == "reference":
        return op(f"reference_{name}")
    return without_autocast(getattr(backends.BACKENDS[backend], name))


def wants_gradient(tensors):
    """True if ordinary autograd has to record a call on these tensors."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def run_layer(plan, tensors):
    """``y, last, saved`` of a call that a backward pass may follow."""
    forward = implementation(plan.backend, "layer")
    if not plan.recompute:
        return forward(*plan.call(tensors), True)
    y, last, saved = forward(*plan.call(tensors), spec_of(plan.cell).apart > 0)
    return y, last, recompute.without_gates(plan.cell, saved)


def gates_again(call, y, saved):
    """The saved tensors with the gates that ``recompute`` dropped; y comes first: its device decides about autocast."""
    return without_autocast(lambda y: recompute.with_gates(call, y, saved))(y)


def run_layer_backward(pull, *tensors):
    """The needed gradients as a flat tuple."""
    (dy, *dlast), inputs, (y, *saved) = pull.split(tensors)
    dcells = dlast.pop() if pull.has_cells else None
    call = pull.plan.call(inputs)
    if pull.plan.recompute:
        saved = gates_again(call, y, saved)
    out = implementation(pull.plan.backend, "layer_backward")(dy, dlast, dcells, *call, y, saved, list(pull.needs))
    return (*((out[0],) if pull.needs[0] else ()), *chain(*out[1:]))


def pull_of(plan, n_in, needs_input_grad, saved_tensors, grads):
    """The ``Pull`` and flat list of a backward pass, from the saved tensors and the incoming gradients."""
    inputs, (y, *saved) = saved_tensors[:n_in], saved_tensors[n_in:]
    S = spec_of(plan.cell).states
    dy, *dlast = grads[: 1 + S]
    dcells = grads[1 + S] if plan.return_cells else None
    dy = torch.zeros_like(y) if dy is None else dy
    if all(g is None for g in dlast):
        dlast = []
    else:
        first = next(g for g in dlast if g is not None)
        call = plan.call(inputs)
        widths = [call.P, *[call.H] * len(dlast)]
        dlast = [first.new_zeros(*first.shape[:-1], n) if g is None else g for g, n in zip(dlast, widths, strict=False)]
    states = 1 + plan.n_states
    weights = states + plan.n_weights
    reset = weights + plan.n_reset
    extras = reset + plan.n_extras
    need = needs_input_grad
    if any(need[extras:]):
        raise NotImplementedError("rnnkernels: h_mask and zone have no gradient; detach them")
    need_states = any(need[1:states]) or any(need[weights:reset])
    needs = need[0], need_states, any(need[states:weights]), any(need[reset:extras])
    pull = Pull(plan, len(dlast), dcells is not None, n_in, needs)
    return pull, (dy, *dlast, *(() if dcells is None else (dcells,)), *inputs, y, *saved)


def double_backward(pull, tensors, gg):
    """Gradients of the backward's flat list: the pullback of the reference's pullback, in torch operations."""
    grads, inputs = tensors[: 1 + pull.n_last + pull.has_cells], tensors[len(tensors) - pull.n_in :]
    wanted = pull.wanted()
    n = len(wanted)

    def backward(*flat):
        (dy, *dlast), leaves = flat[: len(grads)], flat[len(grads) :]
        dcells = dlast.pop() if pull.has_cells else None
        out = reference.pullback(pull.plan.call((*leaves, *inputs[n:])), dy, dlast, dcells)
        return tuple(g for g, want in zip(out, wanted, strict=True) if want)

    out, pullback = torch.func.vjp(backward, *grads, *inputs[:n])
    return pullback(tuple(torch.zeros_like(o) if g is None else g for o, g in zip(out, gg, strict=True)))


def run_in_torch(pull, *tensors):
    """``run_layer_backward`` in torch operations, for ``is_grads_batched``, whose old vmap takes only torch's ops."""
    (dy, *dlast), inputs, _ = pull.split(tensors)
    n = sum(pull.plan.sizes())
    with torch.enable_grad():
        leaves = [t.view_as(t) if t.requires_grad else t.detach().requires_grad_() for t in inputs[:n]]
        y, last, saved = reference.layer(*pull.plan.call((*leaves, *inputs[n:])), pull.has_cells)
    outputs = [y, *(last if pull.n_last else ()), *(saved[-1:] if pull.has_cells else ())]
    wanted = [t for t, want in zip(leaves, pull.wanted(), strict=True) if want]
    create_graph = torch.is_grad_enabled()
    # a state may depend on nothing that has a gradient: one that counts steps
    of = [(o, d) for o, d in zip(outputs, (dy, *dlast), strict=True) if o.requires_grad]
    if not of:
        return tuple(map(torch.zeros_like, wanted))
    outputs, given = zip(*of, strict=True)
    return torch.autograd.grad(
        outputs, wanted, given, create_graph=create_graph, allow_unused=True, materialize_grads=True
    )


class EagerBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, pull, *tensors):
        grads, inputs, _ = pull.split(tensors)
        ctx.pull, ctx.n = pull, len(tensors)
        ctx.save_for_backward(*grads, *inputs)
        ctx.set_materialize_grads(False)
        return run_layer_backward(pull, *tensors)

    @staticmethod
    def backward(ctx, *gg):
        out = double_backward(ctx.pull, ctx.saved_tensors, gg)
        return (None, *out, *[None] * (ctx.n - len(out)))


def kept(y):
    """A copy of y for the backward pass, which stays as it is when the caller writes into the y that it gets.

    On the CPU it costs no memory until such a write: torch copies a lazy clone once a pointer for writing is requested.
    Lazy clones of CUDA tensors exist too, but are copied outside of the current stream. Compilers get ``clone``, an op
    that they know; without it the compiled gradient would be computed from the overwritten values.
    """
    if torch.compiler.is_compiling() or type(y) is not torch.Tensor or not y.is_cpu:
        return y.clone()
    return torch._lazy_clone(y)


def output_gradients(plan, grads):
    """The gradients of ``y, *last, [cells]`` from those of ``y, *last, *saved``."""
    S = spec_of(plan.cell).states
    outputs, saved = grads[: 1 + S], grads[1 + S :]
    if any(g is not None for g in (saved[:-1] if plan.return_cells else saved)):
        raise NotImplementedError("rnnkernels: the gates that the op saves have no gradient")
    return (*outputs, saved[-1]) if plan.return_cells else outputs


class Eager(torch.autograd.Function):
    @staticmethod
    def forward(ctx, plan, *tensors):
        y, last, saved = run_layer(plan, tensors)
        ctx.plan, ctx.n_in = plan, len(tensors)
        own, shown = [y, *saved], saved if plan.return_saved else saved[-1:] if plan.return_cells else []
        if plan.exposed:
            own[0] = kept(y)
            own[len(own) - len(shown) :] = map(kept, shown)
        if not torch.compiler.is_compiling():
            # aliases of what has no gradient: a program may give a state new memory meanwhile (h.data = h_n.data)
            tensors = [t if t is None or t.requires_grad else t.detach() for t in tensors]
        ctx.save_for_backward(*tensors, *own)
        ctx.set_materialize_grads(False)
        return (y, *last, *shown)

    @staticmethod
    def backward(ctx, *grads):
        grads = output_gradients(ctx.plan, grads) if ctx.plan.return_saved else grads
        pull, flat = pull_of(ctx.plan, ctx.n_in, ctx.needs_input_grad[1:], ctx.saved_tensors, grads)
        given = [g for g in grads if g is not None]
        if not torch.compiler.is_compiling() and of_old_vmap(given):
            run = without_autocast(run_in_torch)
        elif not torch.compiler.is_compiling() and has_tangent(given):
            run = TransformBackward.apply
        else:
            run = EagerBackward.apply if torch.is_grad_enabled() else run_layer_backward
        return (None, *pull.spread(run(pull, *flat)))


class TransformBackward(torch.autograd.Function):
    """``EagerBackward`` for ``torch.func``."""

    @staticmethod
    def forward(pull, *tensors):
        return run_layer_backward(pull, *tensors)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pull, *tensors = inputs
        grads, tensors_in, _ = pull.split(tensors)
        ctx.pull, ctx.n = pull, len(tensors)
        ctx.save_for_backward(*grads, *tensors_in)
        ctx.save_for_forward(*tensors)
        ctx.set_materialize_grads(False)

    backward = EagerBackward.backward

    @staticmethod
    def vmap(info, in_dims, pull, *tensors):
        return vmap.layer_backward(TransformBackward.apply, info.batch_size, in_dims[1:], pull, tensors)

    @staticmethod
    def jvp(ctx, _, *tangents):
        """The backward pass is linear in its gradients. What it saved are functions of the layer's inputs."""
        given, of_inputs, _ = ctx.pull.split(tangents)
        with forward_ad._set_fwd_grad_enabled(True):
            grads, inputs, saved = ctx.pull.split([t if t is None else primal(t) for t in ctx.saved_tensors])
            found = []
            if any(t is not None for t in given):
                given = [torch.zeros_like(g) if t is None else t for t, g in zip(given, grads, strict=True)]
                found.append(TransformBackward.apply(ctx.pull, *given, *inputs, *saved))
            if any(t is not None for t in of_inputs):
                run = without_autocast(
                    lambda y: tangent.of_gradients(Transform.apply, ctx.pull, grads, inputs, of_inputs)
                )
                found.append(run(saved[0]))
            if not found:  # y and what is saved have no derivative of their own
                return (None,) * sum(ctx.pull.wanted())
            return found[0] if len(found) == 1 else tuple(map(torch.add, *found))


class Transform(torch.autograd.Function):
    """``Eager`` for ``torch.func``: the saved tensors have to be outputs too, ``[copy of y], *saved``."""

    @staticmethod
    def forward(plan, *tensors):
        y, last, saved = run_layer(plan, tensors)
        return (y, *last, *([kept(y)] if plan.exposed else []), *saved)

    @staticmethod
    def setup_context(ctx, inputs, output):
        plan, *tensors = inputs
        ctx.n_out = len(output)
        rest = output[1 + spec_of(plan.cell).states :]
        own, saved = rest[: plan.exposed], rest[plan.exposed :]
        ctx.plan, ctx.n_in = plan, len(tensors)
        ctx.save_for_backward(*tensors, own[0] if plan.exposed else output[0], *saved)
        ctx.save_for_forward(*tensors, output[0], *(saved[-1:] if plan.return_cells else ()))
        if not plan.return_saved:
            saved = saved[:-1] if plan.return_cells else saved
            ctx.mark_non_differentiable(*own, *saved)
        elif plan.exposed:
            ctx.mark_non_differentiable(*own)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, *grads):
        n = 1 + spec_of(ctx.plan.cell).states
        grads = output_gradients(ctx.plan, grads[:n] + grads[n + ctx.plan.exposed :])
        pull, flat = pull_of(ctx.plan, ctx.n_in, ctx.needs_input_grad[1:], ctx.saved_tensors, grads)
        return (None, *pull.spread(TransformBackward.apply(pull, *flat)))

    @staticmethod
    def vmap(info, in_dims, plan, *tensors):
        return vmap.layer(Transform.apply, info.batch_size, in_dims[1:], plan, tensors)

    @staticmethod
    def jvp(ctx, _, *tangents):
        plan, n = ctx.plan, ctx.n_in
        spec = spec_of(plan.cell)
        if plan.return_saved or plan.return_cells != (spec.apart > 0):  # not by run.py
            raise NotImplementedError(FORWARD_MODE)
        with forward_ad._set_fwd_grad_enabled(True):
            tensors = [t if t is None else primal(t) for t in ctx.saved_tensors]
            (y, *cells), tensors = tensors[n:], tensors[:n]
            run = without_autocast(
                lambda y: tangent.of_layer(Transform.apply, plan, tensors, tangents, y, *cells or [None])
            )
            found = run(y)
        dcells = found[1 + spec.states :]
        return (*found[: 1 + spec.states], *[None] * (ctx.n_out - len(found)), *dcells)


FORWARD_MODE = "rnnkernels: the raw ops have no forward-mode derivative (jvp, jacfwd); modules and functional have"


def has_tangent(tensors):
    """True if a tensor may have a forward-mode tangent: it has one, or a ``torch.func`` transform may hide it."""
    if forward_ad._current_level < 0:
        return False
    if transforming():
        return True
    return any(t is not None and forward_ad.unpack_dual(t).tangent is not None for t in tensors)


def of_old_vmap(tensors):
    """True if a tensor, or its tangent, is of torch's old vmap, which takes only torch's ops: ``is_grads_batched``."""
    tensors = [t for t in tensors if t is not None]
    if forward_ad._current_level >= 0 and not transforming():
        tensors += [t for t in map(lambda t: forward_ad.unpack_dual(t).tangent, tensors) if t is not None]
    return any(map(is_legacy_batchedtensor, tensors))


def forward_mode():
    """True within forward mode; also while torch.compile traces."""
    return forward_ad._current_level >= 0


def refuse_forward_mode(tensors):
    """Raise if a tensor has a forward-mode tangent, which would be dropped otherwise."""
    if forward_ad._current_level >= 0 and any(
        t is not None and forward_ad.unpack_dual(t).tangent is not None for t in tensors
    ):
        raise NotImplementedError(FORWARD_MODE)


def differentiating():
    """While torch.compile traces: true if a ``torch.func`` transform around the call may be differentiated.

    A tensor under vmap does not show if ordinary autograd outside needs its gradient, so grad mode decides.
    """
    torch._dynamo.allow_in_graph(transform_in_graph)  # here, because at import it would load torch._dynamo
    levels = retrieve_all_functorch_interpreters()
    return any(level.key() == TransformType.Grad for level in levels) or (bool(levels) and torch.is_grad_enabled())


def transforming():
    """True if a ``torch.func`` transform is around the call; also while torch.compile traces."""
    return torch._C._are_functorch_transforms_active()


def functionalizing():
    """True under ``torch.func.functionalize``, which knows no ``autograd.Function``, but ops."""
    return any(level.key() == TransformType.Functionalize for level in retrieve_all_functorch_interpreters())


# torch.compiler.assume_constant_result: run while tracing
differentiating._dynamo_marked_constant = transforming._dynamo_marked_constant = True
forward_mode._dynamo_marked_constant = True


def transform_in_graph(*plan_and_tensors):
    """``Transform`` as one node of a compiled graph: Dynamo would trace into it and lose its derivative unnoticed."""
    n = len(Plan._fields)
    return Transform.apply(Plan(*plan_and_tensors[:n]), *plan_and_tensors[n:])
