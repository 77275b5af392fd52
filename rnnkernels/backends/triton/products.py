"""The matrix products outside the time loops, in torch: inputs before, gradients of inputs, states and weights after.

Letters: T time, B batch, D directions, X input groups, G gates, H hidden, I input, P output of a step.
"""

import torch
import torch.nn.functional as F

ALIGNED = 8  # elements of 16 bits: the loads of tensor-core kernels are of 16 bytes


def aligned(problem):
    """The problem with the input and its weights padded with zeros to a width whose rows tensor cores can load: for
    other widths cuBLAS takes kernels several times as slow. ``problem.I`` stays the width without padding."""
    more = -problem.I % ALIGNED
    if problem.dtype.itemsize != 2 or more == 0:
        return problem
    return problem._replace(x=F.pad(problem.x, (0, more)), w_ih=[F.pad(w, (0, more)) for w in problem.w_ih])


def of_group(problem, x, d):
    """The part (T, B, I) of the input, or of its gradient, that belongs to direction d."""
    return x[problem.group(d)] if x.dim() == 4 else x


def project_inputs(problem):
    """The input pre-activations with their biases, (D, T, B, G*H); in memory (D, B, T, G*H) where x is batch first."""
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


def input_bias(problem, d):
    """b_ih + b_hh, but for the gate whose b_hh belongs to its recurrent product."""
    b_ih, b_hh, merged = problem.b_ih[d], problem.b_hh[d], problem.w_ih[d].size(0)
    if not problem.cell.recurrent_bias:
        return b_ih + b_hh
    merged -= problem.H
    return torch.cat([b_ih[:merged] + b_hh[:merged], b_ih[merged:]])


def runs(planes):
    """Cut a tuple of plane numbers into (first gate, first plane, how many) of consecutive ones."""
    found = []
    for gate, plane in enumerate(planes):
        if found and plane == found[-1][1] + found[-1][2]:
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
    lengths = problem.lengths if problem.lengths.dim() == 1 else problem.lengths[problem.group(d)]
    return (lengths - 1).clamp(min=0), torch.arange(problem.B, device=problem.device)


def input_gradient(problem, found):
    """dx, shaped like x."""
    dx = problem.empty(*problem.x.shape)
    for d in range(problem.D):
        into = of_group(problem, dx, d).view(-1, dx.size(-1))
        if d % len(problem.reverse) == 0:
            torch.mm(input_planes(problem, found, d), problem.w_ih[d], out=into)
        else:
            into.addmm_(input_planes(problem, found, d), problem.w_ih[d])
    return dx[..., : problem.I].contiguous()


def state_gradients(problem, found):
    """The gradients of the initial states, and of those that rows restart from: two lists, the latter may be empty."""
    first, restarted = list(found.states), list(found.reset_states)
    if not found.whole:
        for d in range(problem.D):
            rows = found.planes[d][first_index(problem, d)][:, list(problem.cell.reads)].flatten(1)
            dh = torch.mm(rows, problem.w_hh[d][: rows.size(1)]).to(problem.accumulate)
            if problem.h_mask is not None:
                dh *= problem.h_mask[d]
            if problem.reset is not None:
                again = problem.group_reset(d)[first_index(problem, d)][:, None] != 0
                if restarted:
                    restarted[0][d] += dh * again
                dh = dh.masked_fill(again, 0)
            first[0][d] += dh
    return [g.to(problem.dtype) for g in first], [g.to(problem.dtype) for g in restarted]


def biases(problem, found, d):
    """The gradients of b_ih and b_hh, if there are any, from the planes."""
    if not problem.b_ih:
        return []
    db = found.planes[d].sum((0, 1))
    recurrent = torch.cat([db[plane : plane + n] for _, plane, n in runs(problem.cell.recurrent)])
    return [db[: problem.cell.gates].flatten(), recurrent.flatten()]


def weight_gradients(problem, y, gates, cells, found, dbiases=None, dgains=None):
    """The gradients of the weights, in the op's order; those of biases and of layer norms may be known already."""
    out = []
    for d in range(problem.D):
        dx = input_planes(problem, found, d)
        dw_ih = torch.mm(dx.t(), of_group(problem, problem.x, d).reshape(dx.size(0), -1))
        out.append(dw_ih[:, : problem.I].contiguous())
        out.append(recurrent_weight_gradient(problem, y, gates, found.planes[d].flatten(2), d))
        out += dbiases[d] if dbiases else biases(problem, found, d)
        if problem.w_hr:
            c = own_cells(problem, gates, cells, d)
            if problem.ln_c:
                gain, bias = (v[d].to(c.dtype) for v in problem.ln_c)
                c = F.layer_norm(c, c.shape[2:], gain, bias, problem.eps)
            hidden = problem.cell.output(gates[d], c, problem.activation)
            out.append(torch.mm(found.projected[d].view(-1, problem.P).t(), hidden.view(-1, problem.H)))
        out += dgains[d] if dgains else []
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


def own_cells(problem, gates, cells, d):
    """The cell states as the cell made them, before zoneout."""
    if not problem.zone:
        return cells[d]
    restart = problem.reset_states[1][d] if problem.reset_states else None
    old = entered(problem, cells[d], problem.states[1][d] if problem.states else None, restart, d)
    return problem.cell.new_cells(gates[d], old)


def entered_vector(problem, y, d):
    """The operand of direction d's recurrent product at each step (T, B, P)."""
    h_TBP = y[..., d * problem.P : (d + 1) * problem.P]
    restart = problem.reset_states[0][d] if problem.reset_states else None
    h = entered(problem, h_TBP, problem.states[0][d] if problem.states else None, restart, d)
    return h if problem.h_mask is None else h.mul_(problem.h_mask[d])


def recurrent_weight_gradient(problem, y, gates, planes_TB, d):
    """dW_hh: the sum over steps of the recurrent gradients' outer product with the vector that entered the step."""
    P, H, backward, cell = problem.P, problem.H, problem.reverse[d % len(problem.reverse)], problem.cell
    if problem.reset is not None or problem.h_mask is not None or cell.first is not None:
        h, later, first = entered_vector(problem, y, d), planes_TB, None
    else:
        h_TBP, first = y[..., d * P : (d + 1) * P], problem.states[0][d] if problem.states else None
        h, later = (h_TBP[1:], planes_TB[:-1]) if backward else (h_TBP[:-1], planes_TB[1:])
    h, later, earliest = h.flatten(0, 1), later.flatten(0, 1), planes_TB[first_index(problem, d)]
    out = problem.empty(cell.gates * H, P)
    for gate, plane, n in runs(cell.reads):
        into, columns = out[gate * H : (gate + n) * H], slice(plane * H, (plane + n) * H)
        torch.mm(later[:, columns].t(), h, out=into)
        if first is not None:
            into.addmm_(earliest[:, columns].t(), first)
    if cell.first is not None:
        torch.mm(later[:, -H:].t(), gates[d, :, :, 0].flatten(0, 1) * h, out=out[-H:])
    return out
