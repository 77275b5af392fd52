"""The providers of the benchmarks: each computes what torch computes, or says why it does not."""

import copy
import importlib.util
import os
import sys
import types
from dataclasses import replace
from functools import cache

import pytest
import torch
from benchmark_children import Asked, facts_of, facts_without_inductor

from benchmarks import machine, worker
from benchmarks.measure import Subject, truth_of
from benchmarks.providers import OURS, PROVIDERS, Case, Job, Provider, Unsupported, gpu_peers
from benchmarks.providers.case import directions, split_and_pad
from benchmarks.workloads import Workload

SMALL = Workload("small", "cpu", "lstm", T=5, B=3, I=4, H=6, L=2)
EXTRAS = {"plain": {}, "bi": {"bidirectional": True}, "alternating": {"alternating": True}, "step": {"T": 1, "L": 1}}
CELLS = ("rnn", "lstm", "gru")
SHAPES = [  # each cell and each extra
    replace(SMALL, cell=cell, **EXTRAS[extra])
    for cell, extra in (("rnn", "plain"), ("lstm", "bi"), ("gru", "alternating"), ("lstm", "step"), ("gru", "plain"))
]
SPECIAL = {"resets": {"resets": 0.3}, "heads": {"heads": 2, "L": 1}, "packed": {"packed": True}}


def plain(name):
    modes = ["infer"] * 5 if name in ("onnxruntime", "openvino") else ["train"] * 3 + ["infer"] * 2  # train gives y too
    return [(w, "float32", mode) for w, mode in zip(SHAPES, modes, strict=True)]


def special(name):
    shapes = [replace(SMALL, cell=cell, **extra) for cell in ("lstm", "gru") for extra in SPECIAL.values()]
    return [(w, "float32", mode) for w in shapes for mode in ("infer", "train")]


def steps(name):
    cells, L = (CELLS, 2) if name == "stepper" else (("rnn",), 1)
    return [(replace(SMALL, cell=cell, T=1, L=L), "float32", "infer") for cell in cells]


def sequence(name):
    return [(SMALL, "float32", "infer")]


def dtypes(name):
    cells = CELLS if name == "onnxruntime" else ("lstm",)  # it refuses some cells
    return [(replace(SMALL, cell=cell, L=1), dtype, "infer") for cell in cells for dtype in ("float64", "bfloat16")]


def int8(name):
    return [(replace(SMALL, cell=cell, I=32, H=32), "int8", "infer") for cell in CELLS]


ASKED = {
    "torch": (plain, special, int8), "rnnkernels": (plain, special, int8), "onnxruntime": (plain, dtypes, int8),
    "openvino": (plain, dtypes), "jax": (plain, dtypes), "torch_compile": (steps, sequence),
    "stepper": (steps, sequence),
}  # fmt: skip


def asked_of(kind):
    return [name for name, kinds in ASKED.items() if kind in kinds]


@cache
def answers(name):
    """The facts of all that a provider is asked, by kind: from one process of its own, where its library may start what
    threads it likes."""
    kinds = [(kind, case) for kind in ASKED[name] for case in kind(name)]
    ask = facts_without_inductor if name == "torch_compile" else facts_of
    facts = worker.call(1, ask, name, [case for _, case in kinds])
    return {kind: [f for (k, _), f in zip(kinds, facts, strict=True) if k is kind] for kind in ASKED[name]}


def checked(name, kind):
    """Pairs of a case of this kind and what was found."""
    if PROVIDERS[name].missing():
        pytest.skip(f"{name} {PROVIDERS[name].missing()}")
    return list(zip(kind(name), answers(name)[kind], strict=True))


@pytest.mark.parametrize("name", asked_of(plain))
def test_every_provider_gives_what_torch_gives(name):
    for case, facts in checked(name, plain):
        assert "reason" not in facts and facts["error"] < 2e-5, (case, facts)


@pytest.mark.parametrize("name", asked_of(special))
def test_resets_heads_and_lengths_are_what_ours_and_torch_s_way_agree_on(name):
    """torch splits and pads, packs, loops over heads; ours has arguments. Both against torch's way in float64."""
    for case, facts in checked(name, special):
        assert "reason" not in facts and facts["error"] < 2e-5, (case, facts)


def test_split_and_pad_is_a_loop_that_restarts():
    w = replace(SMALL, cell="gru", T=9, L=1, resets=0.3)
    case = Case(w, "float64", "infer")
    module = case.module.double()
    h, y = torch.zeros(1, w.B, w.H, dtype=torch.float64), []
    for x, reset in zip(case.x, case.reset, strict=True):
        h = module(x[None], h * ~reset[None, :, None])[1]
        y.append(h[0])
    assert case.reset[1:].any() and torch.allclose(split_and_pad(module, case.reset, case.x)[0], torch.stack(y))


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_flashrnn_gets_gates_in_its_own_order(cell, monkeypatch):
    """With a stand-in for the package (it needs CUDA), written after its documented equations."""

    def flashrnn(gates, r, b, function, backend, dtype):
        (B, _, _, heads, H), S = gates.shape, 2 if function == "lstm" else 1
        state, out = gates.new_zeros(S, B, heads, H), []
        for x in gates.unbind(1):
            q = torch.einsum("bnk,gnhk->gbnh", state[0], r)
            x = x.transpose(0, 1)
            if function == "lstm":
                i, f, z, o = x + q + b[:, None]
                c = f.sigmoid() * state[1] + i.sigmoid() * z.tanh()
                state = torch.stack([o.sigmoid() * c.tanh(), c])
            elif function == "gru":
                reset, u = (x[:2] + q[1:] + b[1:3, None]).sigmoid()
                n = (x[2] + b[3] + reset * (q[0] + b[0])).tanh()
                state = (u * state[0] + (1 - u) * n)[None]
            else:
                state = (x + q + b[:, None]).tanh()
            out.append(state)
        return torch.stack(out, 2), state

    monkeypatch.setitem(sys.modules, "flashrnn", types.SimpleNamespace(flashrnn=flashrnn))
    provider = Provider(lambda case: gpu_peers.flashrnn_job(case, "vanilla"), "torch")
    for mode in ("infer", "train"):
        case = replace(SMALL, cell=cell, L=1), "float32", mode
        facts = Subject(provider, *case, 1).admit(truth_of(Case(*case)))
        assert "reason" not in facts and facts["error"] < 2e-5, facts


def test_torchrl_says_what_it_is_measured_on():
    for extra in ({}, {"resets": 0.1, "cell": "rnn"}, {"resets": 0.1, "bidirectional": True}):
        with pytest.raises(Unsupported):
            gpu_peers.torchrl_job(Case(replace(SMALL, **extra), "float32", "infer"), "scan")
    if PROVIDERS["torchrl_scan"].missing():
        pytest.skip(f"torchrl {PROVIDERS['torchrl_scan'].missing()}")
    provider = Provider(lambda case: gpu_peers.torchrl_job(case, "pad"), "torchrl")
    for mode in ("infer", "train"):
        case = replace(SMALL, L=1, resets=0.3), "float32", mode
        facts = Subject(provider, *case, 1).admit(truth_of(Case(*case)))
        assert "reason" not in facts and facts["error"] < 2e-5, facts


@pytest.mark.parametrize("name", asked_of(steps))
def test_the_providers_of_single_steps_give_what_torch_gives(name):
    for _, facts in checked(name, steps):
        assert "reason" not in facts and facts["error"] < 2e-5, facts
    ((_, long),) = checked(name, sequence)
    assert "step" in long["reason"] and not long.get("red"), long


@pytest.mark.parametrize("name", asked_of(dtypes))
def test_other_dtypes_are_right_or_refused_with_a_reason(name):
    found = checked(name, dtypes)
    for case, facts in found:
        assert not facts.get("red"), (case, facts)
    right = {dtype for (_, dtype, _), facts in found if "reason" not in facts}
    assert right == {"jax": {"float64", "bfloat16"}, "openvino": {"bfloat16"}}.get(name, right & {"float64"})


@pytest.mark.parametrize("name", asked_of(int8))
def test_int8_weights_are_near_or_refused_with_a_reason(name):
    found = {w.cell: facts for (w, _, _), facts in checked(name, int8)}
    assert not any(facts.get("red") for facts in found.values()), found
    right = {cell for cell, facts in found.items() if "reason" not in facts}
    for cell in right:
        assert 0 < found[cell]["rms_error"] < found[cell]["max_error"] < 0.1
    assert right == {"torch": {"lstm", "gru"}, "onnxruntime": {"lstm"}}.get(name, right)


@pytest.mark.parametrize("name", [name for name in PROVIDERS if name not in OURS])
def test_what_a_peer_cannot_do_is_a_reason_not_an_error(name):
    if PROVIDERS[name].missing():
        pytest.skip(f"{name} {PROVIDERS[name].missing()}")
    for extra in ({"resets": 0.1}, {"heads": 2}, {"packed": True}, {"device": "mars"}):
        loops = dict.fromkeys(("loop", "torch_script"), {"resets", "packed"})
        has = ({"torch": set(extra), "keras": {"packed"}} | loops).get(name, set())
        if set(extra) & (has - {"device"}):  # it has a way of its own
            continue
        with pytest.raises(Unsupported):
            provider = PROVIDERS[name]
            case = Case(replace(SMALL, T=1, L=1), "float32", "infer")
            case.workload = replace(case.workload, **extra)
            provider.job(case)


def test_int8_is_for_inference_and_for_those_that_have_it():
    assert facts_of("jax", [(SMALL, "int8", "infer")]) == [{"reason": "no int8 weights"}]
    with pytest.raises(Unsupported, match="inference"):
        PROVIDERS["torch"].job(Case(SMALL, "int8", "train"))


def test_the_layers_name_every_parameter_once():
    for extra in EXTRAS.values():
        w = replace(SMALL, **extra)
        named = [
            name for layer in directions(Case(w, "float32", "infer")) for names, _ in layer for name in names.values()
        ]
        assert sorted(named) == sorted(dict(Case(w, "float32", "infer").module.named_parameters()))


def test_a_missing_package_is_found_without_importing_any(monkeypatch):
    looked = []
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: looked.append(name))
    absent = copy.copy(PROVIDERS["jax"])
    assert "no module named 'jax'" in absent.missing() and looked == ["jax"]


def test_a_worker_is_a_process_on_its_own_cores_that_survives_errors():
    cores = machine.cores(1)
    with worker.Worker(cores, Asked) as asked:
        process, where = asked.ask("where")
        assert process != os.getpid() and where == cores and len(cores) == 1
        with pytest.raises(RuntimeError, match="KeyError: 'no such thing'"):
            asked.ask("fails")
        assert asked.ask("where")[0] == process
        with pytest.raises(worker.Lost, match="status 3"):
            asked.ask("ends")


def test_a_worker_is_stopped_while_it_is_not_asked():
    stat = "/proc/{}/stat"
    with worker.Worker(machine.cores(1), Asked) as asked:
        process = asked.ask("where")[0]
        try:
            states = []
            for _ in range(1000):
                with open(stat.format(process)) as text:
                    states.append(text.read().rsplit(")", 1)[1].split()[0])
                if states[-1] == "T":
                    break
        except OSError:
            pytest.skip("this system has no /proc")
        assert states[-1] == "T"
    assert not asked._process.is_alive()


def test_all_threads_of_a_provider_stay_within_its_cores():
    """CPU time is at most wall time where there is one core, whatever number of threads the library has."""
    if PROVIDERS["jax"].missing():
        pytest.skip(f"jax {PROVIDERS['jax'].missing()}")
    w = Workload("products", "cpu", "rnn", T=4, B=64, I=256, H=256)
    with worker.Worker(machine.cores(1), Subject, PROVIDERS["jax"], w, "float32", "infer", 1) as subject:
        assert "reason" not in subject.ask("admit", truth_of(Case(w, "float32", "infer")))
        wall, busy = subject.ask("time", 50)
        assert busy < 1.1 * wall


def test_nothing_of_ours_is_loaded_before_a_worker_is_forked():
    """It would run on one thread there."""
    loaded = "[name for name in __import__('sys').modules if name.split('.')[0] in ('torch', 'rnnkernels')]"
    found = worker.call(1, eval, loaded)
    assert "torch" in found and not [name for name in found if name.startswith("rnnkernels")]


def test_memory_of_a_call_holds_at_least_its_results():
    w = replace(SMALL, T=1000, B=50, H=32, L=1)
    truth = truth_of(Case(w, "float32", "infer"))
    with worker.Worker(machine.cores(1), Subject, PROVIDERS["torch"], w, "float32", "infer", 1) as subject:
        growth = subject.ask("admit", truth, True)["peak_bytes"]
    if growth is None:
        pytest.skip("this system has no /proc/self/clear_refs to count peak memory with")
    assert 1000 * 50 * 32 * 4 <= growth <= 2**30


def test_a_provider_is_one_function():
    made = Provider(lambda case: Job(lambda: case.x, lambda x: {"y": x}), "torch")
    case = Case(SMALL, "float32", "infer")
    assert made.job(case).run() is case.x and made.missing() is None
