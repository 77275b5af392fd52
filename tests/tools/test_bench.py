"""``python -m rnnkernels`` and its ``--bench``: what is timed, in which order, and how it is shown."""

import sys

import pytest
import torch

import rnnkernels.__main__
from rnnkernels.tools import bench

ROWS = [
    bench.Row("LSTM, T 1, B 1, 2→3", "inference", 2e-6, 5e-6),
    bench.Row("LSTM, T 1, B 1, 2→3", "training", 0.002, 0.001),
    bench.Row("GRU, T 1, B 1, 2→3", "inference", 2.0, 20.0),
]
TABLE = """
layer                           rnnkernels    torch.nn  ratio
LSTM, T 1, B 1, 2→3  inference        2 µs        5 µs   2.50
LSTM, T 1, B 1, 2→3  training         2 ms        1 ms   0.50
GRU, T 1, B 1, 2→3   inference         2 s        20 s  10.00
geometric mean       inference                           5.00
geometric mean       training                            0.50
"""


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(bench, "SHAPES", ((2, 1, 3, 4), (1, 2, 3, 5)))
    monkeypatch.setattr(bench, "BLOCK", 0.0)


def test_every_kind_and_mode_has_a_row(small):
    rows = list(bench.rows(seconds=0.0))
    assert len(rows) == bench.count() == 12
    assert {(row.layer.split(",")[0], row.mode) for row in rows} == {
        (kind, mode) for kind in ("LSTM", "GRU", "RNN") for mode in ("inference", "training")
    }
    assert all(row.ours > 0 and row.torch > 0 and row.ratio == row.torch / row.ours for row in rows)


def test_a_busy_machine_gets_fewer_rows(small, monkeypatch):
    """A clock on which each look at it takes a second: the first layer's two rows take longer than all may."""
    clock = iter(range(10_000))
    monkeypatch.setattr(bench.time, "perf_counter", lambda: next(clock))
    rows = list(bench.rows(seconds=10.0))
    assert [row.layer for row in rows] == ["LSTM, T 2, B 1, 3→4"] * 2
    assert "10 of 12 rows are left out, for lack of time" in bench.table(rows)


def test_other_results_are_not_timed(small, monkeypatch):
    def wrong(layer, x):
        return x.new_zeros(*x.shape[:2], layer.hidden_size), None

    monkeypatch.setattr(rnnkernels.GRU, "forward", wrong)
    rows = bench.rows(seconds=0.0)
    assert [next(rows).layer for _ in range(2)] == ["LSTM, T 2, B 1, 3→4"] * 2
    with pytest.raises(RuntimeError, match="GRU, T 2, B 1: results differ by"):
        next(rows)


def test_training_computes_new_gradients():
    layer, x = rnnkernels.RNN(3, 4), torch.randn(2, 1, 3)
    run = bench.train(layer, x)
    run()
    once = layer.weight_hh_l0.grad.clone()
    run()
    assert torch.equal(layer.weight_hh_l0.grad, once) and once.abs().sum() > 0


def test_calls_take_turns(monkeypatch):
    monkeypatch.setattr(bench, "BLOCK", 0.0)
    order = []
    times = bench.alternating([lambda: order.append("a"), lambda: order.append("b")], seconds=0.0)
    assert "".join(order) == "abab" + bench.FEWEST * "ab" and len(times) == 2


def test_the_table(monkeypatch):
    monkeypatch.setattr(bench.os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    monkeypatch.setattr(bench, "count", lambda: len(ROWS))
    *lines, last = bench.table(ROWS).splitlines()
    assert lines == TABLE.strip("\n").splitlines() and last.startswith("ratio: torch.nn's time over ours")
    monkeypatch.setattr(bench.os, "getloadavg", lambda: (99.0, 0.0, 0.0))
    assert bench.table(ROWS).endswith("the machine is busy, and these numbers say little: its load is 99.0")


def test_progress_without_tqdm(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert list(bench.shown(iter(ROWS))) == ROWS
    assert capsys.readouterr().err.splitlines()[1] == f"2/{bench.count()} LSTM, T 1, B 1, 2→3, training"


def test_the_command_line(small, capsys):
    rnnkernels.__main__.main([])
    out = capsys.readouterr().out
    for name in ("rnnkernels", "torch", "CPU", "extension", "instruction sets", "threads", "GPUs", "backends"):
        assert any(line.startswith(f"{name} ") for line in out.splitlines()), out
    rnnkernels.__main__.main(["--bench", "--seconds", "0", "--device", "cpu"])
    assert "RNN, T 1, B 2, 3→5" in capsys.readouterr().out
