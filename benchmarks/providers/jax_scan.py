"""JAX: a cell's program under lax.scan under jit, with the input's product of a whole sequence before the scan.

Training is jax.vjp under the same jit and gives the gradients of x and of every weight. Weights are (in, out) matrices,
as JAX libraries have them. Threads: XLA takes as many as the process may use when JAX starts, so the process has to be
pinned first (`benchmarks.worker` does). T time, B batch, G gates, H hidden.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.providers.case import Case, Job, Unsupported, directions, provider


def operations() -> dict[str, Callable]:
    import jax
    import jax.numpy as jnp
    from jax.lax import stop_gradient

    def number(compare: Callable) -> Callable:
        return lambda a, b: jnp.asarray(compare(a, b), "float32")

    return {
        "add": jnp.add, "sub": jnp.subtract, "mul": jnp.multiply, "div": jnp.divide, "neg": jnp.negative,
        "abs": jnp.abs, "sign": jnp.sign, "sqrt": jnp.sqrt, "exp": jnp.exp, "log": jnp.log, "log1p": jnp.log1p,
        "expm1": jnp.expm1, "sigmoid": jax.nn.sigmoid, "tanh": jnp.tanh, "relu": jax.nn.relu, "min": jnp.minimum,
        "max": jnp.maximum, "lt": number(jnp.less), "le": number(jnp.less_equal), "eq": number(jnp.equal),
        "where": lambda c, a, b: jnp.where(c != 0, a, b),
        "through": lambda y, x, m: stop_gradient(y) + stop_gradient(m) * (x - stop_gradient(x)),
    }  # fmt: skip


def network(program: Any, H: int, reverse: bool = False) -> Callable:
    """One direction of a layer as a function (weights by name, x_TBI, extra inputs by name) -> y_TBH."""
    import jax.numpy as jnp
    from jax import lax

    table, inner, name = operations(), int(program.inner), program.states[0]
    first = program.recurrent[: len(program.recurrent) - inner]

    def run(section, loads):
        values = []
        for op, args, what in program.sections[section].code:
            if op == "const":
                values.append(what)
            else:
                values.append(table[op](*(values[n] for n in args)) if args else loads(op, what))
        return {(put.to, put.what): values[put.value] for put in program.sections[section].puts}

    def product(v, p, side, part=slice(None)):
        return v @ p[f"weight_{side}"][:, part] + (p[f"bias_{side}"][part] if f"bias_{side}" in p else 0)

    def forward(p, x, u):
        if program.inputs and not program.given:
            x = product(x, p, "ih")

        def step(state, given):
            x_BG, now = given
            s, r, i, crossing = dict(zip(program.states, state, strict=True)), {}, None, {}
            gates = dict(zip(program.inputs, jnp.split(x_BG, len(program.inputs), -1), strict=True))

            def loads(op, what):
                if op == "a":
                    return gates[what] + r[what]
                kinds = {"x": gates, "r": r, "s": s, "v": p, "u": now, "cross": crossing}
                return i if op == "i" else kinds[op][what]

            operand = run("operand", loads)["operand", None] if "operand" in program.sections else s[name]
            if first:
                parts = jnp.split(product(operand, p, "hh", slice(len(first) * H)), len(first), -1)
                r = dict(zip(first, parts, strict=True))
            if inner:
                put = run("first", loads)
                crossing = {what: v for (to, what), v in put.items() if to == "cross"}
                i = product(put["inner", None], p, "hh", slice(-H, None))
            put = run("forward", loads)
            new = tuple(jnp.broadcast_to(put["new", n], s[n].shape) for n in program.states)
            return new, put.get(("y", None), new[0])

        start = (jnp.zeros((x.shape[1], H), x.dtype),) * len(program.states)
        steps, whole = ({n: u[n] for n in names} for names in (program.step, program.sequence))
        each = lambda state, given: step(state, (given[0], given[1] | whole))  # noqa: E731
        return lax.scan(each, start, (x, steps), reverse=reverse)[1]

    return forward


def to_jax(t: Tensor, dtype: str):
    import jax

    if dtype == "float64":
        jax.config.update("jax_enable_x64", True)  # float32 jobs of the same process stay what they are
    wide = t.detach().to(torch.float64 if dtype == "float64" else torch.float32).contiguous().numpy()
    return jax.device_put(wide.astype(jax.numpy.dtype(dtype)))


@provider("jax", package="jax")
def jax_scan(case: Case) -> Job:
    w, dtype = case.workload, case.dtype
    case.refuse_extras("the scan", "own")
    if dtype == "float16":
        raise Unsupported("XLA's float16 on CPUs is emulated")
    import jax
    import jax.numpy as jnp

    cells = importlib.import_module("rnnkernels.cells.built_in")
    program = case.module.cell.program if w.own else getattr(cells, w.cell).program
    walks = {reverse: network(program, w.H, reverse) for reverse in (False, True)}

    def forward(p, x, u):
        for layer in directions(case):
            ys = [walks[reverse]({n: p[name] for n, name in names.items()}, x, u) for names, reverse in layer]
            x = jnp.concatenate(ys, axis=-1)
        return x

    @jax.jit
    def step(p, x, u, dy):
        y, back = jax.vjp(forward, p, x, u)
        return y, *back(dy)

    def to_torch(a) -> Tensor:
        return torch.from_dlpack(a).clone()

    def read(out) -> dict[str, Tensor]:
        y, dp, dx, _ = out
        return {"y": to_torch(y), "dx": to_torch(dx)} | {f"d{name}": to_torch(g.T) for name, g in dp.items()}

    p = {name: to_jax(t.mT if t.ndim == 2 else t, dtype) for name, t in case.module.named_parameters()}
    x, dy, u = to_jax(case.x, dtype), to_jax(case.dy, dtype), {n: to_jax(t, dtype) for n, t in case.inputs.items()}
    infer = jax.jit(forward)
    if case.train:
        return Job(lambda: jax.block_until_ready(step(p, x, u, dy)), read).warmed()
    return Job(lambda: infer(p, x, u).block_until_ready(), lambda y: {"y": to_torch(y)}).warmed()
