"""The matrix products outside the time loops, in torch: inputs before, gradients of inputs, states and weights after.

Letters: T time, B batch, D directions, X input groups, G gates, H hidden, I input, P output of a step.
"""

import torch
import torch.nn.functional as F

from .problem import stacked

ALIGNED = 8  # elements of 16 bits: the loads of tensor-core kernels are of 16 bytes


def aligned(problem):
    """The problem with the input and its weights padded with zeros to a width whose rows tensor cores can load: for
    other widths cuBLAS takes kernels several times as slow. ``problem.I`` stays the width without padding."""
    more = -problem.I % ALIGNED
    if problem.dtype.itemsize != 2 or more == 0 or not problem.w_ih:
        return problem
    return problem._replace(x=F.pad(problem.x, (0, more)), w_ih=[F.pad(w, (0, more)) for w in problem.w_ih])


def of_group(problem, x, d):
    """The part (T, B, I) of the input, or of its gradient, that belongs to direction d."""
    return x[problem.group(d)] if x.dim() == 4 else x


def project_inputs(problem):
    """The input pre-activations with their biases, (D, T, B, G*H); in memory (D, B, T, G*H) where x is batch first;
    None for a cell without input gates."""
    if not problem.w_ih:
        return given_inputs(problem) if problem.given else None
    D, T, B, rows = problem.D, problem.T, problem.B, problem.w_ih[0].size(0)
    batch_first = of_group(problem, problem.x, 0).transpose(0, 1).is_contiguous()
    out = problem.empty(D, B, T, rows) if batch_first else problem.empty(D, T, B, rows)
    for d in range(D):
        x_TBI = of_group(problem, problem.x, d)
        flat = (x_TBI.transpose(0, 1) if batch_first else x_TBI).reshape(T * B, -1)
        into = out[d].view(T * B, rows)
        if problem.norm:
            bias = input_bias(problem, d) if problem.b_ih else None
            into.copy_(F.layer_norm(torch.mm(flat, problem.w_ih[d].t()), (rows,), problem.ln_x[d], bias, problem.eps))
        elif problem.b_ih:
            torch.addmm(input_bias(problem, d), flat, problem.w_ih[d].t(), out=into)
        else:
            torch.mm(flat, problem.w_ih[d].t(), out=into)
    return out.transpose(1, 2) if batch_first else out


def given_inputs(problem):
    """The pre-activations (D, T, B, G*H) that x is, for all directions of its groups."""
    x = problem.x if problem.x.stride(-1) == 1 else problem.x.contiguous()
    x = x[:, None] if x.dim() == 4 else x[None, None]
    return x.expand(-1, len(problem.reverse), -1, -1, -1).flatten(0, 1)


def input_bias(problem, d):
    """b_ih + b_hh, but for the gates whose b_hh belongs to their recurrent product."""
    b_ih, cell, H = problem.b_ih[d], problem.cell, problem.H
    if not problem.b_hh or not cell.merged:
        return b_ih
    b_hh = problem.b_hh[d]
    if cell.merged == tuple((g, g) for g in range(cell.gates)) and cell.gates == cell.recurrent_gates:
        return b_ih + b_hh
    b_ih = b_ih.clone()
    for x, r, n in runs(cell.merged):
        b_ih[x * H : (x + n) * H] += b_hh[r * H : (r + n) * H]
    return b_ih


def own_biases(problem):
    """The biases (D, gates, H) of the recurrent products that are not merged with those of the input; or None."""
    if not problem.b_hh or not problem.cell.biased:
        return None
    gates = list(problem.cell.biased)
    return stacked([b.view(-1, problem.H)[gates] for b in problem.b_hh])


def runs(pairs):
    """Cut pairs of numbers, of a gate and its plane for example, into (gate, plane, how many) of consecutive ones."""
    found = []
    for gate, plane in pairs:
        if found and (gate, plane) == (found[-1][0] + found[-1][2], found[-1][1] + found[-1][2]):
            found[-1][2] += 1
        else:
            found.append([gate, plane, 1])
    return found


def input_planes(problem, found, d):
    """(T*B, G*H): gradients of direction d's input pre-activations."""
    return found.planes[d].flatten(2).flatten(0, 1)[:, : problem.cell.gates * problem.H]


def first_index(problem, d):
    """The index of (T, B, ...) that selects the rows (B, ...) of the step that direction d takes first."""
    if not problem.reverse[d % len(problem.reverse)]:
        return 0
    if problem.lengths is None:
        return -1
    return (of_lengths(problem, d) - 1).clamp(min=0), torch.arange(problem.B, device=problem.device)


def of_lengths(problem, d):
    """The lengths (B,) of direction d's rows."""
    return problem.lengths if problem.lengths.dim() == 1 else problem.lengths[problem.group(d)]


def input_gradient(problem, found):
    """dx, shaped like x."""
    dx = problem.empty(*problem.x.shape)
    if not problem.w_ih:
        if not problem.given:
            return dx.zero_()
        planes = [input_planes(problem, found, d).unflatten(0, (problem.T, problem.B)) for d in range(problem.D)]
        R = len(problem.reverse)
        planes = [sum(planes[d + 1 : d + R], planes[d]) for d in range(0, problem.D, R)]
        return planes[0].contiguous() if dx.dim() == 3 else torch.stack(planes)
    for d in range(problem.D):
        into = of_group(problem, dx, d).view(-1, dx.size(-1))
        if d % len(problem.reverse) == 0:
            torch.mm(input_planes(problem, found, d), problem.w_ih[d], out=into)
        else:
            into.addmm_(input_planes(problem, found, d), problem.w_ih[d])
    return dx[..., : problem.I].contiguous()


def starts_again(problem):
    """True (D, B, 1) for rows that restart at the first step."""
    return torch.stack([problem.group_reset(d)[first_index(problem, d)] for d in range(problem.D)])[..., None] != 0


def first_step(problem, d):
    """The states (B, H), vectors (H) and inputs (B, H) that direction d's cell reads at its first step."""
    zero = problem.zeros(problem.B, problem.H)
    states = [s[d] for s in problem.states] or [zero] * problem.cell.states
    if problem.reset is not None:
        again = starts_again(problem)[d]
        states = [torch.where(again, problem.reset_states[v][d] if problem.reset_states else 0, s)
                  for v, s in enumerate(states)]  # fmt: skip
    vectors, inputs = beside(problem, d)
    at = first_index(problem, d)
    inputs = [u if n < problem.cell.sequences else u[at] for n, u in enumerate(inputs)]
    wide = [[t.to(problem.accumulate) for t in tensors] for tensors in (states, vectors, inputs)]
    return wide


def beside(problem, d):
    """Direction d's vectors, and its group's inputs."""
    inputs = [u[problem.group(d)] if problem.grouped else u for u in problem.inputs]
    return [v[d] for v in problem.vectors], inputs


def through_first_operand(problem, found):
    """For each direction, the gradients that come to all that the operand of the first step's product reads."""
    if found.whole or problem.cell.operand is None:
        return []
    out = []
    for d in range(problem.D):
        go, read = first_product_gradient(problem, found, d), first_step(problem, d)
        parts = [part.expand(problem.B, problem.H) for part in problem.cell.operand_gradients(go, *read)]
        if problem.lengths is not None:  # a row without a step may hold anything
            parts = [torch.where((of_lengths(problem, d) > 0)[:, None], part, 0) for part in parts]
        out.append(parts)
    return out


def first_product_gradient(problem, found, d):
    """The gradient (B, P) of the operand of direction d's first product."""
    rows = found.planes[d][first_index(problem, d)][:, list(problem.cell.reads)].flatten(1)
    dh = torch.mm(rows, problem.w_hh[d][: rows.size(1)]).to(problem.accumulate)
    return dh if problem.h_mask is None else dh.mul_(problem.h_mask[d])


def state_gradients(problem, found, through=()):
    """The gradients of the initial states, and of those that rows restart from: two lists, the latter may be empty.
    ``through``: of ``through_first_operand``."""
    first, restarted = list(found.states), list(found.reset_states)
    if not found.whole:
        for d in range(problem.D):
            parts = through[d][: len(first)] if through else [first_product_gradient(problem, found, d)]
            for v, dh in enumerate(parts):
                if problem.reset is not None:
                    again = problem.group_reset(d)[first_index(problem, d)][:, None] != 0
                    if restarted:
                        restarted[v][d] += dh * again
                    dh = dh.masked_fill(again, 0)
                first[v][d] += dh
    return [g.to(problem.dtype) for g in first], [g.to(problem.dtype) for g in restarted]


def beside_gradients(problem, found, through=()):
    """The gradients of the vectors, a list (H) per direction each, and of the inputs, shaped like these."""
    S, V, Q, of_steps = problem.cell.states, problem.cell.vectors, problem.cell.sequences, found.inputs
    if found.operand is not None:
        for d, parts in enumerate(through):
            found.operand[d][first_index(problem, d)] = torch.stack(parts[S + V + Q :], 1)
            late = found.operand[d]
            if problem.lengths is not None:
                late = torch.where(live(problem, d)[..., None], late, 0)
            of_steps[d] += late
    fixed = list(found.fixed)
    for d, parts in enumerate(through):
        for n in range(V + Q):
            fixed[n][d] += parts[S + n]
    vectors = [[v[d].sum(0).to(problem.dtype) for v in fixed[:V]] for d in range(problem.D)]
    inputs = []
    for n, u in enumerate(problem.inputs):
        whole = fixed[V + n] if n < Q else of_steps[:, :, :, n - Q]
        whole = whole.unflatten(0, (-1, len(problem.reverse))).sum(1)
        whole = whole.sum(-1, keepdim=True) if u.size(-1) < problem.H else whole
        inputs.append((whole if problem.grouped else whole[0]).to(problem.dtype))
    return vectors, inputs


def live(problem, d):
    """True (T, B, 1) where direction d's rows are live."""
    return (torch.arange(problem.T, device=problem.device)[:, None] < of_lengths(problem, d))[..., None]


def biases(problem, found, d):
    """The gradients of b_ih and b_hh, if there are any, from the planes."""
    if not problem.b_ih and not problem.b_hh:
        return []
    db = found.planes[d].sum((0, 1))
    out = [db[: problem.cell.gates].flatten()] if problem.b_ih else []
    if problem.b_hh:
        recurrent = torch.cat([db[plane : plane + n] for _, plane, n in runs(enumerate(problem.cell.recurrent))])
        out.append(recurrent.flatten())
    return out


def weight_gradients(problem, y, gates, cells, found, dvectors=None, dbiases=None, dgains=None):
    """The gradients of the weights, in the op's order; those of biases and of layer norms may be known already."""
    out = []
    for d in range(problem.D):
        dx = input_planes(problem, found, d)
        if problem.w_ih:
            dw_ih = torch.mm(dx.t(), of_group(problem, problem.x, d).reshape(dx.size(0), -1))
            out.append(dw_ih[:, : problem.I].contiguous())
        if problem.w_hh:
            out.append(recurrent_weight_gradient(problem, y, gates, cells, found.planes[d].flatten(2), d))
        out += dbiases[d] if dbiases else biases(problem, found, d)
        if problem.w_hr:
            hidden = before_projection(problem, y, gates, cells, d)
            out.append(torch.mm(found.projected[d].view(-1, problem.P).t(), hidden.reshape(-1, problem.H)))
        out += dgains[d] if dgains else []
        out += dvectors[d] if dvectors else []
    return out


def entered(problem, after, first, restart, d):
    """The state (T, B, ...) that entered each step of direction d, from the states after the steps."""
    before, backward = torch.zeros_like(after), problem.reverse[d % len(problem.reverse)]
    if backward:
        before[:-1] = after[1:]
    else:
        before[1:] = after[:-1]
    before[first_index(problem, d)] = 0 if first is None else first.to(after.dtype)
    if problem.reset is None:
        return before
    given = before.new_zeros(()) if restart is None else restart.to(after.dtype)
    return torch.where(problem.group_reset(d)[:, :, None] != 0, given, before)


def before_projection(problem, y, gates, cells, d):
    """h before the projection at each step of direction d (T, B, H)."""
    cell = problem.cell
    if not cell.text:
        c = own_cells(problem, gates, cells, d)
        if problem.ln_c:
            gain, bias = (v[d].to(c.dtype) for v in problem.ln_c)
            c = F.layer_norm(c, c.shape[2:], gain, bias, problem.eps)
        return cell.output(gates[d], c, problem.functions)
    kept, after = None if gates is None else gates[d].to(problem.accumulate), [None]
    for v in range(1, cell.states):
        zoned = problem.zone and v in cell.own
        after.append(kept[:, :, cell.kept + cell.own.index(v)] if zoned else cells[(v - 1) * problem.D + d])
    states, vectors, inputs = entered_all(problem, y, cells, d)
    hidden = cell.output(states, after, kept, vectors, inputs).to(problem.dtype)
    return hidden if problem.lengths is None else torch.where(live(problem, d), hidden, 0)


def own_cells(problem, gates, cells, d):
    """The cell states as the cell made them, before zoneout."""
    if not problem.zone:
        return cells[d]
    restart = problem.reset_states[1][d] if problem.reset_states else None
    old = entered(problem, cells[d], problem.states[1][d] if problem.states else None, restart, d)
    return problem.cell.new_cells(gates[d], old)


def entered_state(problem, y, cells, v, d):
    """State v (T, B, H) as it entered each step of direction d."""
    if v == 0 and not problem.cell.y:
        after = y[..., d * problem.P : (d + 1) * problem.P]
    else:
        after = cells[(v - 1 + problem.cell.y) * problem.D + d]
    restart = problem.reset_states[v][d] if problem.reset_states else None
    return entered(problem, after, problem.states[v][d] if problem.states else None, restart, d)


def entered_vector(problem, y, cells, d):
    """The operand of direction d's recurrent product at each step (T, B, P)."""
    if problem.cell.operand is None:
        h = entered_state(problem, y, cells, 0, d).to(problem.dtype)
    else:
        h = problem.cell.operands(*entered_all(problem, y, cells, d)).to(problem.dtype)
        if problem.lengths is not None:  # dead steps may hold anything
            h = torch.where(live(problem, d), h, 0)
    return h if problem.h_mask is None else h.mul_(problem.h_mask[d])


def entered_all(problem, y, cells, d):
    """All states (T, B, H) as they entered each step of direction d, its vectors and its inputs."""
    vectors, inputs = beside(problem, d)
    states = [entered_state(problem, y, cells, v, d) for v in range(problem.cell.states)]
    return [[t.to(problem.accumulate) for t in tensors] for tensors in (states, vectors, inputs)]


def inner_vector(problem, y, gates, cells, h, d):
    """The operand of direction d's second product at each step (T, B, H); ``h``: that of the first one, or None."""
    if not problem.cell.text:
        return problem.cell.inner([h], gates[d], [], [])
    states, vectors, inputs = entered_all(problem, y, cells, d)
    if problem.h_mask is not None:
        states[0] = states[0] * problem.h_mask[d]
    kept = None if gates is None else gates[d].to(problem.accumulate)
    inner = problem.cell.inner(states, kept, vectors, inputs).to(problem.dtype)
    return inner if problem.lengths is None else torch.where(live(problem, d), inner, 0)


def recurrent_weight_gradient(problem, y, gates, cells, planes_TB, d):
    """dW_hh: the sum over steps of the recurrent gradients' outer product with the vector that entered the step."""
    P, H, backward, cell = problem.P, problem.H, problem.reverse[d % len(problem.reverse)], problem.cell
    apart = cell.first is not None or cell.operand is not None or cell.y
    if problem.reset is not None or problem.h_mask is not None or apart:
        h, later, first = entered_vector(problem, y, cells, d), planes_TB, None
    else:
        h_TBP, first = y[..., d * P : (d + 1) * P], problem.states[0][d] if problem.states else None
        h, later = (h_TBP[1:], planes_TB[:-1]) if backward else (h_TBP[:-1], planes_TB[1:])
    h, later, earliest = h.flatten(0, 1), later.flatten(0, 1), planes_TB[first_index(problem, d)]
    out = problem.empty(cell.recurrent_gates * H, P)
    for gate, plane, n in runs(enumerate(cell.reads)):
        into, columns = out[gate * H : (gate + n) * H], slice(plane * H, (plane + n) * H)
        torch.mm(later[:, columns].t(), h, out=into)
        if first is not None:
            into.addmm_(earliest[:, columns].t(), first)
    if cell.first is not None:
        inner, at = inner_vector(problem, y, gates, cells, h.view(problem.T, -1, H), d), cell.recurrent[-1] * H
        torch.mm(later[:, at : at + H].t(), inner.flatten(0, 1), out=out[-H:])
    return out
