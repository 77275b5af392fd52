"""The model of a step on a GPU: its units, what must grow with what, and where one schedule overtakes another."""

import itertools
from dataclasses import replace

import pytest

pytest.importorskip("triton", reason="triton is not installed")

from benchmarks import bounds, model
from benchmarks.chips import GPUS
from benchmarks.workloads import Workload, select
from rnnkernels.backends.triton import schedules
from rnnkernels.backends.triton.launch import cell_of

H100, H200 = GPUS["H100"], GPUS["H200"]
LSTM = model.Layer(cell_of("lstm"), T=100, B=16, D=1, H=1024, K=1024, kind="half")


def tiles(schedule, BH, BB, BK=64):
    return schedules.Tiles(schedule, BH, BB, BK, 4, 3, "")


SHAPES = [tiles("stepwise", 64, 32), tiles("cooperative", 8, 16), tiles("resident", 1024, 16, 1024)]


@pytest.mark.parametrize("at", SHAPES, ids=lambda t: t.schedule)
@pytest.mark.parametrize("letter", ["B", "H", "D"])
def test_a_larger_layer_takes_no_less(at, letter):
    values = [1, 16, 64, 100, 128, 512, 4096]
    for backward in (False, True):
        times = []
        for value in values:
            layer = LSTM._replace(**{letter: value}, backward=backward)
            layer = layer._replace(K=layer.H)
            times.append(model.step(H200, layer, at).seconds)
        assert times == sorted(times) and times[-1] > times[0] > 0


@pytest.mark.parametrize("at", SHAPES, ids=lambda t: t.schedule)
def test_parts_are_those_of_the_schedule_and_none_is_longer_than_the_step(at):
    for backward in (False, True):
        found = model.step(H200, LSTM._replace(backward=backward), at)
        assert all(0 <= part <= found.seconds for part in found.parts.values())
        assert found.by in found.parts
        assert (found.parts["launch"] > 0) == (at.schedule == "stepwise")
        assert (found.parts["barrier"] > 0) == (at.schedule == "cooperative")
        assert (found.parts["L2"] > 0) == (at.schedule != "resident")


def test_bytes_of_a_step_by_hand():
    # x: 4 gates, y: 1, in 2 bytes; saved: 4 gates in 2 bytes and c in 4.
    assert LSTM.memory() == 16 * 1024 * (4 + 1) * 2
    assert LSTM._replace(save=True).memory() == 16 * 1024 * ((4 + 1 + 4) * 2 + 4)
    # dy and 4 kept planes in 2 bytes, c and the c before it in 4, and 4 gradients in 2.
    assert LSTM._replace(backward=True).memory() == 16 * 1024 * (
        schedules.bytes_read(cell_of("lstm"), "half", True) + 4 * 2
    )
    # One program's weights, 4 gates of 8 x 1024 in 2 bytes, through shared memory at 128 bytes a clock.
    parts = model.step(H200, LSTM, tiles("cooperative", 8, 16)).parts
    assert parts["shared memory"] == pytest.approx(4 * 8 * 1024 * 2 / (128 * H200.clock))
    # 128 programs read h, 16 rows of 1024.
    assert parts["L2"] == pytest.approx(128 * 16 * 1024 * 2 / H200.L2)


def test_streamed_weights_are_read_anew_by_each_tile_of_rows():
    def of(B):
        return model.step(H200, LSTM._replace(B=B), tiles("stepwise", 64, 32)).parts["L2"]

    assert of(256) == pytest.approx(2 * of(128), rel=0.3)


def test_a_graph_costs_less_than_launches_and_faster_memory_is_never_slower():
    assert model.step(H200, LSTM, SHAPES[0], graph=False).seconds > model.step(H200, LSTM, SHAPES[0]).seconds
    long = next(w for w in select("cuda", ["rl-bench-lstm"]))
    with schedules.force("stepwise"):
        recorded, launched = (model.predict(H200, long, "bf16", "train", graph)["seconds"] for graph in (True, False))
    assert launched - recorded > 2 * long.T * (model.LAUNCH - model.NODE) * 0.8
    for w, arithmetic, mode in itertools.product(select("cuda", []), model.arithmetics(H200), ("infer", "train")):
        there, here = (model.predict(gpu, w, arithmetic, mode)["seconds"] for gpu in (H100, H200))
        assert here <= there


def test_cooperative_wins_small_batches_and_is_overtaken_once():
    """One batch tile of 8 units a program, its weights on chip, against the best tiles of a launch per step."""

    def ahead(B):
        layer = LSTM._replace(B=B)
        cooperative = model.step(H200, layer, tiles("cooperative", 8, schedules.block(B))).seconds
        stepwise = min(
            model.step(H200, layer, tiles("stepwise", BH, BB)).seconds for BH in (32, 64) for BB in (16, 32, 64, 128)
        )
        return cooperative < stepwise

    won = [ahead(B) for B in (1, 16, 32, 64, 128, 256, 512)]
    assert won[0] and not won[-1] and won == sorted(won, reverse=True)


@pytest.mark.parametrize("gpu", GPUS.values(), ids=list(GPUS))
def test_no_prediction_is_below_the_bound(gpu):
    for w, mode in itertools.product(select("cuda", []), ("infer", "train")):
        for arithmetic in model.arithmetics(gpu):
            limit, said = model.bound(gpu, w, arithmetic, mode), model.predict(gpu, w, arithmetic, mode)
            assert 0 < limit["seconds"] <= said["seconds"], (w.name, arithmetic, mode)
            assert set(said["steps"]) == ({"forward"} if mode == "infer" else {"forward", "backward"})


def test_the_bound_by_hand():
    w = Workload("w", "cuda", "lstm", T=10, B=4, I=3, H=5)
    found = model.bound(H200, w, "bf16", "infer")
    assert found["flops"] == bounds.flops(w, "infer") == 2 * 10 * 4 * 20 * 8
    assert found["bytes"] == 10 * 4 * (3 + 5) * 2 + (20 * 5 + 20 * 3) * 2
    assert found["seconds"] == pytest.approx(max(found["bytes"] / H200.memory, found["flops"] / H200.rates["half"],
                                                 10 * 20 * 5 * 2 / (132 * 128 * H200.clock)))  # fmt: skip
    heads = replace(w, heads=2, I=6)  # two recurrences with half of the input each
    assert bounds.flops(heads, "train") == 2 * bounds.flops(w, "train")


def test_narrow_numbers_are_never_slower_and_the_switch_is_put_back():
    import torch

    before = torch.backends.cudnn.rnn.fp32_precision
    for w in select("cuda", ["legged", "camels", "bonito"]):
        bf16, tf32, ieee = (model.bound(H200, w, a, "train")["seconds"] for a in ("bf16", "tf32", "ieee"))
        assert bf16 < tf32 < ieee
        assert model.predict(H200, w, "bf16", "infer")["seconds"] < model.predict(H200, w, "tf32", "infer")["seconds"]
    assert torch.backends.cudnn.rnn.fp32_precision == before
    assert "tf32" not in model.arithmetics(GPUS["MI300X"])


def test_the_command_prints_a_line_for_each_workload_and_mode(capsys):
    model.main(["--gpu", "A100", "--only", "amp,legged", "--dtype", "bf16"])
    printed = capsys.readouterr().out
    assert "not a measurement" in printed and printed.count("│ amp ") == printed.count("│ legged ") == 2
    with pytest.raises(SystemExit):
        model.main(["--only", "nothing"])
    assert "no such workload" in capsys.readouterr().err
