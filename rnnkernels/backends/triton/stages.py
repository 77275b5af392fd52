"""The stages between the steps of the time loops: reset, recurrent dropout, zoneout; each only if a call has it. And
what a cell reads beside states and products.

Letters as in forward.py. With reset, a row's states are replaced by zeros, or by given states, before the steps that
the mask names. The mask of recurrent dropout multiplies h where the recurrent product reads it. Zoneout keeps the
fraction z of the state that entered the step.
"""

import triton
import triton.language as tl


@triton.jit
def resets_at(reset, reset_x, t, b, d, B, DIRECTIONS: tl.constexpr):
    """The mask of the rows b that restart at time t."""
    return tl.load(reset + (d // DIRECTIONS) * reset_x + t * B + b, mask=b < B, other=0) != 0


@triton.jit
def entering(s, again, s_reset, S: tl.constexpr, H: tl.constexpr, mask, j, b, d, B):
    """The states that enter a step."""
    if again is None:
        return s
    else:
        out = ()
        for v in tl.static_range(S):
            given = tl.zeros_like(s[v])
            if s_reset is not None:
                given = tl.load(s_reset[v] + (d * B + b) * H + j, mask=mask & again, other=0.0).to(s[v].dtype)
            out = out + (tl.where(again, given, s[v]),)
        return out


@triton.jit
def masked(h, keep):
    """h as the recurrent product reads it."""
    if keep is None:
        return h
    else:
        return h * keep


@triton.jit
def load_keep(h_mask, H: tl.constexpr, mask, j, b, d, B, ACC: tl.constexpr):
    """The tile of the recurrent dropout's mask (D, B, H)."""
    return tl.load(h_mask + (d * B + b) * H + j, mask=mask, other=0.0).to(ACC)


@triton.jit
def load_zone(zone, zone_at, v: tl.constexpr, ZONE_J: tl.constexpr, t, b, j, d, mask, ACC: tl.constexpr):
    """The fraction of state v that stays at time t: a tile of (T, D, B, H) by the strides zone_at."""
    at = zone[v] + t * zone_at[v][0] + d * zone_at[v][1] + b * zone_at[v][2] + j * ZONE_J[v]
    return tl.load(at, mask=mask, other=0.0).to(ACC)


@triton.jit
def zoned(new, old, zone, zone_at, S: tl.constexpr, ZONE_J: tl.constexpr, t, b, j, d, mask, ACC: tl.constexpr):
    """The states after zoneout."""
    if zone is None:
        return new
    else:
        out = ()
        for v in tl.static_range(S):
            z = load_zone(zone, zone_at, v, ZONE_J, t, b, j, d, mask, ACC)
            out = out + (z * old[v] + (1 - z) * new[v],)
        return out


@triton.jit
def unzoned(
    new, old, ds, zone, zone_at, S: tl.constexpr, NEW: tl.constexpr, ZONE_J: tl.constexpr, t, b, j, d, mask,
    ACC: tl.constexpr,
):  # fmt: skip
    """Zoneout backwards: the cell's own new states, their gradients, and the gradients straight to the old states.

    With a fraction of 1 the own new state is lost; a cell that needs it has ``renew``.
    """
    own, through, direct = (), (), ()
    for v in tl.static_range(S):
        z = load_zone(zone, zone_at, v, ZONE_J, t, b, j, d, mask, ACC)
        if NEW[v]:
            own = own + (tl.where(z < 1, (new[v] - z * old[v]) / tl.where(z < 1, 1 - z, 1), 0.0),)
        else:
            own = own + (new[v],)
        through = through + ((1 - z) * ds[v],)
        direct = direct + (z * ds[v],)
    return own, through, direct


@triton.jit
def load_vectors(
    vectors, V: tl.constexpr, H: tl.constexpr, j, d, BH: tl.constexpr, BB: tl.constexpr, ACC: tl.constexpr
):
    """The learned vectors (D, V, H) as tiles (units, batch), whose rows are the same registers."""
    tiles = ()
    for v in tl.static_range(V):
        tile = tl.load(vectors + (d * V + v) * H + j, mask=j < H, other=0.0).to(ACC)
        tiles = tiles + (tl.broadcast_to(tile, (BH, BB)),)
    return tiles


@triton.jit
def load_inputs(
    inputs, inputs_at, FROM: tl.constexpr, TO: tl.constexpr, INPUT_J: tl.constexpr, group, t, b, j, mask,
    ACC: tl.constexpr,
):  # fmt: skip
    """The inputs beside x number FROM..TO-1 at time t: tiles of (X, T, B, H) by the strides inputs_at."""
    tiles = ()
    for v in tl.static_range(FROM, TO):
        at = inputs[v] + group * inputs_at[v][0] + t * inputs_at[v][1] + b * inputs_at[v][2] + j * INPUT_J[v]
        tiles = tiles + (tl.load(at, mask=mask, other=0.0).to(ACC),)
    return tiles


@triton.jit
def biased(r, biases, BIASED: tl.constexpr, FROM: tl.constexpr, TO: tl.constexpr):
    """The recurrent products of the gates BIASED in FROM..TO-1 with their own biases, one tile each."""
    if len(biases) == 0:
        return r
    else:
        out = ()
        for g in tl.static_range(len(r)):
            tile = r[g]
            for n in tl.static_range(len(BIASED)):
                if BIASED[n] == g and FROM <= g and g < TO:
                    tile = tile + biases[n]
            out = out + (tile,)
        return out
