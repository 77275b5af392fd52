"""`python -m benchmarks.offline`: what it compiles, what it reads in machine code, and what it takes for broken."""

import itertools
import json

import machine_code
import needs_compiler  # noqa: F401
import offline_rows
import pytest
import torch
import triton_offline
from common import make_case, refused
from triton_offline import ARCHS

from benchmarks import cli, offline
from benchmarks.workloads import Workload
from rnnkernels.backends.triton import schedules
from rnnkernels.backends.triton.cells import CELLS
from rnnkernels.cells.call import LayerCall

pytestmark = pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")  # Triton 3.9 tells of 3.10's default

SASS = """
.text.kernel:
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_0:
        /*0010*/                   LDG.E.128 R4, [R2.64] ;
.L_x_1:
        /*0020*/              @!P0 LDGSTS.E.BYPASS.LTC128B.64 [R1], [R2.64] ;
        /*0030*/                   HMMA.16816.F32 R4, R4, R8, RZ ;
        /*0040*/               @P1 BRA `(.L_x_1) ;
        /*0050*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
        /*0055*/                   STL.64 [R1+0x8], R4 ;
        /*0060*/              @UP0 LDG.E.U16 R4, [R2.64] ;
        /*0070*/               @P1 BRA `(.L_x_0) ;
        /*0080*/                   EXIT ;
"""
GCN = """
.LBB0_1:
	buffer_load_dwordx4 v[0:3], v4, s[0:3], 0 offen
	v_mfma_f32_16x16x16_bf16 a[0:3], v[0:1], v[2:3], a[0:3]
	s_barrier
	s_cbranch_scc1 .LBB0_1
	s_endpgm
"""  # noqa: E101, W191


def test_loops_and_opcodes_of_both_machine_codes():
    lines = SASS.splitlines()
    assert machine_code.loops(lines) == [(5, 8), (3, 12)]
    names = machine_code.names_of(machine_code.opcodes(lines[3:13]))
    assert names == {"LDG": 2, "LDGSTS": 1, "HMMA": 1, "BRA": 2, "BAR": 1, "STL": 1}
    assert machine_code.count(names, machine_code.STACK) == 1
    (span,) = machine_code.loops(GCN.splitlines())
    names = machine_code.names_of(machine_code.opcodes(GCN.splitlines()[span[0] : span[1]]))
    assert machine_code.count(names, machine_code.TENSOR_CORE) == machine_code.count(names, machine_code.BARRIER) == 1


@pytest.mark.parametrize(
    "opcode, size",
    [
        ("LDG.E.128.CONSTANT", 16), ("LDGSTS.E.BYPASS.LTC128B.64", 8), ("LDG.E.STRONG.GPU", 4), ("LDG.E.U16", 2),
        ("LDS.128", 0), ("STG.E.128", 0), ("global_load_dwordx2", 8), ("buffer_load_ushort", 2),
        ("global_load_short_d16_hi", 2), ("buffer_load_dword", 4), ("ds_read_b128", 0), ("s_load_dwordx4", 0),
    ],
)  # fmt: skip
def test_bytes_of_a_load(opcode, size):
    assert machine_code.loaded(opcode) == size


def test_a_workload_is_compiled_and_written(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(offline_rows, "CACHE", tmp_path / "cache")
    asked = ["--arch", "sm_90", "--only", "amp", "--dtype", "bf16", "--check", "--processes", "1"]
    status = offline.main([*asked, "--out", str(tmp_path / "offline")])
    results, text = json.loads((tmp_path / "offline.json").read_text()), (tmp_path / "offline.md").read_text()
    broken = sum(row["broken"] != [] for row in results["rows"])  # test_triton_compiled.py says which may be
    assert status == (broken > 0)
    assert [row["pass"] for row in results["rows"]] == ["training forward", "backward", "inference"]
    for row in results["rows"]:
        assert row["workloads"]["amp"]["grid"] == [2, 1, 1]
        assert row["schedule"] == "resident" and row["tiles"][0] == 32
        assert row["registers"] > 0 and row["shared"] < ARCHS["sm_90"].chip.shared
        assert row["tensor"] > 0 < row["loads"] and row["weights"] == "on chip"
        assert len(row["kernels"]) == 1 and row["load_bytes"] >= 18 * 8 * 2
    assert text.count("| amp |") == 3 and f"budgets broken: {broken}, of" in text and "triton: " in text
    assert f"3 rows, {broken} with a broken budget" in capsys.readouterr().out


def test_weights_in_the_loop_are_noticed():
    """A kernel that keeps its weights, and one that streams them, taken for the former."""
    H, schedule = 250, "cooperative"
    with schedules.force(schedule):
        kept = triton_offline.launches(ARCHS["sm_90"], "lstm", torch.bfloat16, 9, 16, H)
    for launch in kept:
        facts = machine_code.facts(launch.compiled)
        assert not triton_offline.reloads(CELLS["lstm"], launch.tiles, "half", H, H, launch.backward, facts)
        more = facts | {"load_bytes": facts["load_bytes"] + 4 * launch.tiles.BH * H * 2 + (1 << 16)}
        assert triton_offline.reloads(CELLS["lstm"], launch.tiles, "half", H, H, launch.backward, more)
    with schedules.force("stepwise"):
        (launch,) = triton_offline.launches(ARCHS["sm_90"], "lstm", torch.bfloat16, 1, 16, H, train=False)
    taken, facts = launch.tiles._replace(schedule=schedule), machine_code.facts(launch.compiled)
    assert triton_offline.reloads(CELLS["lstm"], taken, "half", H, H, launch.backward, facts)


GOOD = {"arch": "sm_80", "arithmetic": "bf16", "pass": "backward", "note": ""}
GOOD |= {"stack": 0, "spills": 0, "shared": 1024, "tensor": 8, "weights": "on chip", "kernels": ["k"]}
OWN = {"grid": [1, 1, 1]}
GOOD["workloads"] = {"a": OWN}


@pytest.mark.parametrize(
    "change, word",
    [({"stack": 8}, "8 bytes of stack"), ({"shared": 1 << 20}, "shared memory"), ({"tensor": 0}, "tensor-core"),
     ({"weights": "loaded again"}, "loaded again")],
)  # fmt: skip
def test_a_broken_budget_is_named_and_the_check_fails(change, word, monkeypatch, tmp_path, capsys):
    rest = dict.fromkeys(("schedule", "warps", "stages", "registers", "loads", "load_bytes", "barriers", "atomics"), 0)
    row = GOOD | rest | {"tiles": [1, 2, 3]}
    assert triton_offline.problems(row, ARCHS["sm_80"]) == []
    assert triton_offline.problems(row | {"tensor": 0, "arithmetic": "ieee"}, ARCHS["sm_80"]) == []
    monkeypatch.setattr(offline_rows, "rows_of", lambda *task: [row | change])
    asked = ["--arch", "sm_80", "--only", "amp", "--dtype", "bf16", "--processes", "1", "--out", str(tmp_path / "o")]
    assert offline.main(asked) == 0 and offline.main([*asked, "--check"]) == 1
    said = capsys.readouterr().out
    assert word in said and word in (tmp_path / "o.md").read_text()
    monkeypatch.setattr(offline_rows, "EXPLAINED", {said.splitlines()[0]: "It has to be."})
    assert offline.main([*asked, "--check"]) == 0
    text = (tmp_path / "o.md").read_text()
    assert "It has to be." in text and "of which explained: 1." in text


def test_every_broken_budget_of_the_table_is_explained():
    results = json.loads((cli.RESULTS / "offline.json").read_text())
    assert offline_rows.broken(results["rows"]).keys() <= offline_rows.EXPLAINED.keys()
    assert offline_rows.markdown(results) == (cli.RESULTS / "offline.md").read_text()


def test_every_two_things_meet_in_the_table_and_the_dearest_workloads_are_whole():
    archs, kinds, found = list(ARCHS), list(triton_offline.ARITHMETICS), offline_rows.workloads()
    some, every = (offline_rows.chosen(archs, kinds, found, full) for full in (False, True))
    assert set(some) < set(every) and len(set(some)) == len(some) < len(every) / 4
    assert all(("gfx942", "tf32") != task[:2] for task in every) and len(every) == 19 * 2 * len(found)
    for a, b in itertools.combinations(range(4), 2):
        assert {(task[a], task[b]) for task in some} == {(task[a], task[b]) for task in every}
    assert sum(task[3] == "train" for task in some) > len(some) / 2  # with the backward pass
    dearest = {task for task in every if task[2].name in offline_rows.DEAREST and task[3] == "train"}
    assert len(dearest) == 19 * len(offline_rows.DEAREST) and dearest < set(some)
    for cell in ("li_gru", "peephole_lstm", "gru_d", "min_gru"):
        assert any(w.name.endswith(f"own-{cell}") for w in found)
    assert len(offline_rows.chosen(["sm_90"], kinds, found[:1], full=False)) == 2 * len(kinds)  # one workload, one chip


def test_a_cell_without_a_product_has_no_weights_to_keep():
    """It uses no tensor cores, and that breaks no budget."""
    (w,) = [w for w in offline_rows.workloads() if w.name.endswith("own-min_gru")]
    launched = triton_offline.launches(ARCHS["sm_90"], w.cell, torch.bfloat16, w.T, w.B, w.H, train=False)
    row, _ = triton_offline.summary(launched, w.cell, "bf16", w.H)
    assert (row["weights"], row["tensor"]) == ("none", 0)
    assert triton_offline.problems(row | {"arithmetic": "bf16"}, ARCHS["sm_90"]) == []


def test_the_same_kernels_are_one_row():
    other = GOOD | {"workloads": {"b": OWN}}
    (row,) = offline_rows.merged([GOOD | {"workloads": {"a": OWN}}, other])
    assert row["workloads"] == {"a": OWN, "b": OWN} and GOOD["workloads"] == {"a": OWN}
    assert len(offline_rows.merged([GOOD, other | {"kernels": ["other"]}, other | {"pass": "inference"}])) == 3


def test_tensors_without_memory_launch_the_kernels_that_real_ones_do():
    cell, H = "lstm", 200
    case = make_case(cell, T=3, B=5, I=16, H=H, states=False, dtype=torch.bfloat16)
    x, states, weights = case.split(case.detached())
    args = tuple(LayerCall(cell, x, states, weights))
    with triton_offline.compiling(ARCHS["sm_90"]) as real:
        y, _, saved = triton_offline.launch.layer(*args, True)
        triton_offline.launch.layer_backward(y, [], None, *args, y, saved, [True] * 4)
    found = triton_offline.launches(ARCHS["sm_90"], cell, torch.bfloat16, 3, 5, H)
    assert [launch.compiled.hash for launch in found] == [launch.compiled.hash for launch in real] and len(found) == 2
    assert [launch.backward for launch in found] == [False, True]


def test_each_stage_is_another_kernel_and_an_unknown_one_is_refused():
    def hashes(*stages):
        found = triton_offline.launches(ARCHS["sm_80"], "rnn", torch.bfloat16, 3, 4, 16, stages=stages, train=False)
        return {launch.compiled.hash for launch in found}

    apart = [
        hashes(*stages) for stages in ((), ("lengths",), ("reset",), ("h_mask",), ("zone",), triton_offline.STAGES)
    ]
    assert all(len(these) == 1 for these in apart) and len(set.union(*apart)) == len(apart)
    assert hashes("restart") != hashes()
    with pytest.raises(ValueError, match="Expected stages out of lengths, .* but got dropout"):
        hashes("dropout")


def test_what_the_kernels_lack_is_noted(monkeypatch):
    def launches(*sizes):
        if "reset" in sizes[10]:
            raise NotImplementedError("triton: no reset")
        return []

    monkeypatch.setattr(triton_offline, "launches", launches)
    monkeypatch.setattr(triton_offline, "summary", lambda *given: ({}, [1, 1, 1]))
    w = Workload("w", "cuda", "lstm", T=2, B=1, I=1, H=16, resets=0.5)
    rows = [
        row
        for of in (w, w.plain)
        for mode in offline_rows.PASSES
        for row in offline_rows.rows_of("sm_80", "bf16", of, mode)
    ]
    assert [row["note"] for row in rows] == ["compiled without reset: no reset"] * 3 + [""] * 3


def test_every_chip_is_one_that_the_chooser_knows(monkeypatch):
    assert set(ARCHS) == {"sm_80", "sm_86", "sm_90", "sm_100", "gfx942"}
    for gpu in ARCHS.values():
        for dtype in triton_offline.ARITHMETICS.values():
            assert schedules.choose(dtype, CELLS["gru"], 4, 1, 64, 64, False, gpu.chip).schedule in schedules.NAMES

    class Properties:
        name, major, minor = "NVIDIA H100", 9, 0
        shared_memory_per_block_optin, multi_processor_count = 232_448, 132

    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)
    here = triton_offline.gpu_here()
    assert here == ARCHS["sm_90"]._replace(chip=ARCHS["sm_90"].chip._replace(name="NVIDIA H100"))


@pytest.mark.parametrize(
    "arguments, word",
    [(["--arch", "sm_70"], "unknown 'sm_70'"), (["--only", "nothing"], "no such workload"), (["--dtype", "x"], "bf16")],
)
def test_a_bad_argument_is_status_2(arguments, word, capsys):
    assert word in refused(offline.main, arguments, capsys)
