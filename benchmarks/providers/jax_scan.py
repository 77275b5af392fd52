"""Provider JAX: lax.scan under jit, with the input projection of a whole sequence as one product before the scan.

Training is jax.vjp under the same jit and gives the gradients of x and of every weight. Weights are (in, out) matrices,
as JAX libraries have them. Threads: XLA takes as many as the process may use when JAX starts, so the process has to be
pinned first (`benchmarks.worker` does).
"""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.providers.case import Case, Job, Unsupported, compiled, directions, provider, refuse_extras


def _cells():
    """By name: (x's gates, h's gates, state) to (new state, output). The gates are torch's, biases already added."""
    import jax
    import jax.numpy as jnp

    sigmoid, tanh = jax.nn.sigmoid, jnp.tanh

    def rnn(x, r, state):
        h = tanh(x + r)
        return (h,), h

    def lstm(x, r, state):
        i, f, g, o = jnp.split(x + r, 4, axis=-1)
        c = sigmoid(f) * state[1] + sigmoid(i) * tanh(g)
        h = sigmoid(o) * tanh(c)
        return (h, c), h

    def gru(x, r, state):
        (x_r, x_z, x_n), (r_r, r_z, r_n) = jnp.split(x, 3, axis=-1), jnp.split(r, 3, axis=-1)
        z = sigmoid(x_z + r_z)
        n = tanh(x_n + sigmoid(x_r + r_r) * r_n)
        h = n + z * (state[0] - n)
        return (h,), h

    return {"rnn": (rnn, 1), "lstm": (lstm, 2), "gru": (gru, 1)}


def network(w):
    """The workload as a function (weights by torch's names, matrices as (in, out), and x_TBI) -> y_TBH."""
    import jax.numpy as jnp
    from jax import lax

    cell, states = _cells()[w.cell]

    def direction(p, d, x_TBI):
        gates_TBG = x_TBI @ p[d.w_ih] + p[d.b_ih]

        def step(state, x):
            return cell(x, state[0] @ p[d.w_hh] + p[d.b_hh], state)

        start = (jnp.zeros((x_TBI.shape[1], w.H), x_TBI.dtype),) * states
        return lax.scan(step, start, gates_TBG, reverse=d.reverse)[1]

    def forward(p, x):
        for layer in directions(w):
            x = jnp.concatenate([direction(p, d, x) for d in layer], axis=-1)
        return x

    return forward


@provider("jax", package="jax")
def jax_scan(case: Case) -> Job:
    refuse_extras("the scan", case.workload)
    if case.dtype == "float16":
        raise Unsupported("XLA's float16 on CPUs is emulated")
    import jax

    if case.dtype == "float64":
        jax.config.update("jax_enable_x64", True)  # float32 jobs of the same process stay what they are
    kind = jax.numpy.dtype(case.dtype)

    def to_jax(t: Tensor):
        wide = t.detach().to(torch.float64 if case.dtype == "float64" else torch.float32).contiguous().numpy()
        return jax.device_put(wide.astype(kind))

    def to_torch(a) -> Tensor:
        return torch.from_dlpack(a).clone()

    weights = {name: to_jax(p.mT if p.ndim == 2 else p) for name, p in case.module.named_parameters()}
    x, dy, forward = to_jax(case.x), to_jax(case.dy), network(case.workload)
    if case.mode == "infer":
        infer = jax.jit(forward)
        return compiled(Job(lambda: infer(weights, x).block_until_ready(), lambda y: {"y": to_torch(y)}))

    @jax.jit
    def step(weights, x, dy):
        y, back = jax.vjp(forward, weights, x)
        return y, *back(dy)

    def read(out) -> dict[str, Tensor]:
        y, dweights, dx = out
        grads = {f"d{name}": to_torch(g) for name, g in dweights.items()}
        return {"y": to_torch(y), "dx": to_torch(dx)} | {n: g.mT if g.ndim == 2 else g for n, g in grads.items()}

    return compiled(Job(lambda: jax.block_until_ready(step(weights, x, dy)), read))
