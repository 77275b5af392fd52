"""A cell's program in JAX: lax.scan under jit, with the input's product of a whole sequence before the scan.

As in jax_scan.py, the process has to be pinned before JAX starts. T time, B batch, G gates, H hidden.
"""

from __future__ import annotations

import torch

from benchmarks.providers.case import Job, Unsupported, compiled


def operations():
    import jax
    import jax.numpy as jnp
    from jax.lax import stop_gradient

    def number(condition):
        return jnp.asarray(condition, "float32")

    return {
        "add": lambda a, b: a + b, "sub": lambda a, b: a - b, "mul": lambda a, b: a * b, "div": lambda a, b: a / b,
        "neg": lambda a: -a, "abs": jnp.abs, "sign": jnp.sign, "sqrt": jnp.sqrt, "exp": jnp.exp, "log": jnp.log,
        "log1p": jnp.log1p, "expm1": jnp.expm1, "sigmoid": jax.nn.sigmoid, "tanh": jnp.tanh, "relu": jax.nn.relu,
        "min": jnp.minimum, "max": jnp.maximum, "lt": lambda a, b: number(a < b), "le": lambda a, b: number(a <= b),
        "eq": lambda a, b: number(a == b), "where": lambda c, a, b: jnp.where(c != 0, a, b),
        "through": lambda y, x, m: stop_gradient(y) + stop_gradient(m) * (x - stop_gradient(x)),
    }  # fmt: skip


def network(program, H, bias):
    """The layer as a function (weights by name, x_TBI, extra inputs by name) -> y_TBH."""
    import jax.numpy as jnp
    from jax import lax

    table, inner, name = operations(), int(program.inner), program.states[0]

    def run(section, loads):
        values = []
        for op, args, what in program.sections[section].code:
            if op == "const":
                values.append(what)
            else:
                values.append(table[op](*(values[n] for n in args)) if args else loads(op, what))
        return {(put.to, put.what): values[put.value] for put in program.sections[section].puts}

    def product(v, p, rows):
        return v @ p["weight_hh"][rows].T + (p["bias_hh"][rows] if bias else 0)

    def forward(p, x, u):
        if program.inputs and not program.given:
            x = x @ p["weight_ih"].T + (p["bias_ih"] if bias else 0)
        first = program.recurrent[: len(program.recurrent) - inner]

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
                parts = jnp.split(product(operand, p, slice(len(first) * H)), len(first), -1)
                r = dict(zip(first, parts, strict=True))
            if inner:
                put = run("first", loads)
                crossing = {what: v for (to, what), v in put.items() if to == "cross"}
                i = product(put["inner", None], p, slice(-H, None))
            put = run("forward", loads)
            new = tuple(jnp.broadcast_to(put["new", n], s[n].shape) for n in program.states)
            return new, put.get(("y", None), new[0])

        start = (jnp.zeros((x.shape[1], H), x.dtype),) * len(program.states)
        steps = {n: u[n] for n in program.step}
        whole = {n: u[n] for n in program.sequence}
        return lax.scan(lambda state, given: step(state, (given[0], given[1] | whole)), start, (x, steps))[1]

    return forward


def jax_job(layer, x, inputs, mode) -> Job:
    try:
        import jax
    except ImportError as error:
        raise Unsupported(str(error)) from None
    if x.dtype == torch.float64:
        jax.config.update("jax_enable_x64", True)  # float32 jobs of the same process stay what they are

    def to_jax(t):
        return jax.device_put(t.detach().contiguous().numpy())

    def to_torch(a):
        return torch.from_dlpack(a).clone()

    p = {n.removesuffix("_l0"): to_jax(t) for n, t in layer.named_parameters()}
    x, u = to_jax(x), {n: to_jax(t) for n, t in inputs.items()}
    forward = network(layer.cell.program, layer.hidden_size, layer.bias)
    if mode == "infer":
        infer = jax.jit(forward)
        return compiled(Job(lambda: infer(p, x, u).block_until_ready(), lambda y: {"y": to_torch(y)}))

    @jax.jit
    def step(p, x, u):
        y, back = jax.vjp(forward, p, x, u)
        return y, *back(jax.numpy.ones_like(y))

    return compiled(
        Job(lambda: jax.block_until_ready(step(p, x, u)), lambda out: {"y": to_torch(out[0]), "dx": to_torch(out[2])})
    )
