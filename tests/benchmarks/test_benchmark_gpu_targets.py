"""What `python -m benchmarks.gpu` makes of its measurements: targets, crossovers, lines through times."""

import needs_compiler  # noqa: F401
import pytest

from benchmarks import gpu_experiments, gpu_report, gpu_targets
from benchmarks.chips import GPUS
from benchmarks.rows import derive
from benchmarks.targets import without_threads

pytestmark = pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")  # Triton 3.9 tells of 3.10's default


def row(name="w", kind="LSTM", dtype="bfloat16", mode="infer", ours=1.0, torch=2.0, H=256, B=16, L=1, **peers):
    found = {"rnnkernels": {"seconds": ours}, "torch": {"seconds": torch}}
    found |= {peer: {"seconds": seconds} for peer, seconds in peers.items()}
    shape = {"workload": name, "kind": kind, "source": "", "T": 7, "B": B, "I": 1, "H": H, "L": L, "device": "cuda"}
    return derive({**shape, "dtype": dtype, "mode": mode, "threads": 1, "providers": found})


def test_every_row_belongs_to_one_target():
    special, wide, persistent, rest = gpu_targets.CATEGORIES
    of = gpu_targets.category
    assert of(row(kind="LSTM, 3% resets", dtype="float16")) == of(row(kind="GRU, packed", H=64)) == special
    assert (
        of(row()) == of(row(dtype="float32")) == of(row(kind="LSTM bi")) == of(row(kind="GRU", dtype="float16")) == wide
    )
    assert of(row(dtype="float16")) == of(row(dtype="float16", H=1024, B=8)) == persistent
    for no in ({"H": 1152}, {"H": 200}, {"B": 3}, {"L": 2}, {"kind": "LSTM bi"}, {"kind": "LSTM alternating"}):
        assert of(row(**{"dtype": "float16", **no})) == rest
    assert of(row(H=192)) == of(row(kind="GRU", H=64, dtype="float16")) == of(row(kind="RNN")) == rest


def test_targets_are_reached_or_missed():
    rows = [
        row("resets", "GRU, 3% resets", torch=4.0, torchrl_triton=1.9),
        row("wide", torch=1.6), row("wide", torch=1.4, dtype="float32"),
        row("fp16", dtype="float16", torch=0.95), row("small", H=64, torch=1.0), row("small", H=64, mode="train"),
    ]  # fmt: skip
    rows[5]["providers"]["rnnkernels"]["peak_bytes"] = 50
    rows[5]["providers"]["torch"]["peak_bytes"], rows[5]["providers"]["torchrl_triton"] = 50, {"peak_bytes": 60}
    said = {r.target: (r.good, r.value) for r in gpu_targets.reached(rows)}
    assert said["resets and packed rows: forward ≥ 2.0 x the best peer"] == (
        False, "1.90 (resets, bfloat16); 0 of 1 workloads"
    )  # fmt: skip
    assert not said["LSTM in bf16 and fp32, and any GRU, with H > 192: forward ≥ 1.5 x cuDNN"][0]
    assert said["LSTM in fp16 at cuDNN's persistent shapes: forward ≥ 0.9 x cuDNN"][0]
    assert said["everything else: forward ≥ 1.0 x cuDNN"][0]
    assert said["training memory ≤ 1.0 x cuDNN's"][0] and not said["training memory ≤ 0.6 x TorchRL's Triton"][0]
    assert len(said) == 7 and any("**missed**" in line for line in without_threads(gpu_targets.reached(rows)))


def test_lines_and_crossovers_of_the_experiments():
    def result(schedule, purpose, us, H=512, B=16, T=1):
        return {
            "schedule": schedule,
            "purpose": purpose,
            "H": H,
            "B": B,
            "T": T,
            "seconds": us * T / 1e6,
            "us_per_step": us,
        }

    results = [result("stepwise", "crossover", 3.0), result("resident", "crossover", 2.0)]
    results += [result("stepwise", "crossover", 3.0, B=64), {"purpose": "crossover", "reason": "too large"}]
    found = gpu_experiments.crossovers(results)
    assert [(r["B"], r["fastest"]) for r in found] == [(16, "resident"), (64, "stepwise")]
    scaling = [result("stepwise", "scaling", 0, T=T) | {"seconds": (20 + 3.5 * T) / 1e6} for T in (10, 100, 1000)]
    (line,) = gpu_experiments.lines_through(results + scaling)
    assert line["us_per_call"] == pytest.approx(20) and line["us_per_step"] == pytest.approx(3.5)
    (waited,) = gpu_experiments.with_waits([line], GPUS["H200"])
    assert waited["us_waiting"] == pytest.approx(3.5 - waited["us_model"] + 1.5, abs=1e-6)  # the model's graph node
    seen = [
        {"schedule": "stepwise", "H": 512, "B": 16, "captured": same, "purpose": "capture"} for same in (True, False)
    ]
    text = gpu_report._experiments(results[:3] + seen, [waited])
    assert "CUDA graph, the same bits" in text and "**other bits**" in text
    assert "| 512 | 16 | 2.00 |  | 3.00 | resident |" in text and "| stepwise | 512 | 16 | 20.00 | 3.50 |" in text
