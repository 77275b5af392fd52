"""What is made of the rows: bounds, ratios, means, tables, plots and the README, from hand-made results."""

import json
import sys

import pytest

from benchmarks import cli, plots, report, roofline
from benchmarks.rows import derive
from benchmarks.workloads import Workload

LSTM = Workload("lstm", "cpu", "lstm", T=10, B=4, I=3, H=5, L=2)
SIZES = {"L1": 1000, "L2": 4000, "L3": 100_000}
ROOFS = {
    "flops": {
        "float32": {"1": 100.0, "2": 200.0},
        "bfloat16": {"1": 50.0, "2": 100.0},
        "float64": {"1": 50.0, "2": 99.0},
    },
    "bandwidth": {
        level: {"1": v, "2": 2 * v} for level, v in {"L1": 40.0, "L2": 20.0, "L3": 10.0, "memory": 5.0}.items()
    },
    "sizes": SIZES,
}
SMALL = (16 << 10, 256 << 10, 4 << 20, 128 << 20)  # bytes that the probe reads
MACHINE = {"cpu": "x", "cores": 2, "instruction sets": "y", "python": "3", "torch": "2", "rnnkernels": "0"}
MACHINE |= {"backends": "cpp", "commit": "c", "date": "d", "command": "python -m benchmarks.run"}


def row(name="w", ours=1.0, torch=2.0, peer=None, mode="infer", threads=1, dtype="float32", **extra):
    shape = {"workload": name, "kind": "LSTM", "source": "", "T": 7, "B": 1, "I": 1, "H": 1, "L": 1, "device": "cpu"}
    found = {"torch": {"seconds": torch}, "rnnkernels": {"seconds": ours}}
    if peer:
        found["onnxruntime"] = {"seconds": peer}
    how = {"dtype": dtype, "own_dtype": dtype == "float32", "mode": mode, "threads": threads, "providers": found}
    bound = {"flops": 50.0, "bytes": 100.0, "seconds": 0.5, "by": "FMA peak"}
    return derive({**shape, **how, "bound": bound, **extra})


def results(rows):
    return {"machine": MACHINE, "providers": ["torch", "rnnkernels"], "roofs": ROOFS, "rows": rows}


def test_operations_and_bytes_of_a_stack_by_hand():
    # Layer 0: 2 T B G H (I + H) = 2 * 10 * 4 * 20 * (3 + 5); layer 1 has I = 5.
    assert roofline.flops(LSTM, "infer") == 2 * 10 * 4 * 20 * 8 + 2 * 10 * 4 * 20 * 10
    assert roofline.flops(LSTM, "train") == 3 * roofline.flops(LSTM, "infer")
    # W_hh: 20 * 5 floats in each of 2 layers, read 10 times; W_ih: 20 * (3 + 5) floats, once.
    assert roofline.weight_reads(LSTM, "float32", "infer") == [(8000.0, 400.0), (640.0, 1440.0)]
    # Forward and backward read them, and the 360 gradients are written once.
    assert roofline.weight_reads(LSTM, "float32", "train") == [(16000.0, 400.0), (1280.0 + 1440.0, 1440.0)]
    assert roofline.weight_reads(LSTM, "bfloat16", "infer")[0] == (4000.0, 200.0)


def test_operations_and_bytes_of_two_directions_and_of_a_single_step_by_hand():
    both = Workload("bi", "cpu", "gru", T=2, B=1, I=3, H=5, L=2, bidirectional=True)
    assert roofline.flops(both, "infer") == 2 * 2 * 2 * 15 * (3 + 5) + 2 * 2 * 2 * 15 * (10 + 5)
    assert roofline.weight_reads(both, "float64", "infer") == [(4800.0, 600.0), (3120.0, 5520.0)]
    step = Workload("step", "cpu", "rnn", T=1, B=1, I=3, H=5)
    assert roofline.weight_reads(step, "float32", "infer") == [(160.0, 160.0)]


def test_the_bound_is_the_larger_time_from_the_level_that_holds_the_weights():
    assert roofline.level_of(1000, 1, SIZES) == "L1" and roofline.level_of(1001, 1, SIZES) == "L2"
    assert roofline.level_of(2000, 2, SIZES) == "L1" and roofline.level_of(8000, 2, SIZES) == "L2"
    assert roofline.level_of(8001, 2, SIZES) == "L3" and roofline.level_of(100_001, 2, SIZES) == "memory"
    single = Workload("single", "cpu", "lstm", T=10, B=1, I=3, H=5, L=2)
    # W_hh from L1, W_ih from L2, against 7200 operations at 100 a second.
    moved = 8000 / 40 + 640 / 20
    found = roofline.bound(single, "float32", "infer", 1, ROOFS)
    assert found == {"flops": 7200.0, "bytes": 8640.0, "seconds": moved, "by": "L1"}
    found = roofline.bound(LSTM, "float32", "infer", 1, ROOFS)
    assert found["seconds"] == 28800 / 100 and found["by"] == "FMA peak"
    assert roofline.bound(LSTM, "bfloat16", "infer", 1, ROOFS)["seconds"] == 28800 / 100  # widening is allowed
    assert roofline.bound(LSTM, "float64", "infer", 2, ROOFS)["seconds"] == pytest.approx(28800 / 99)
    assert roofline.bound(LSTM, "float32", "infer", 3, ROOFS)["reason"] == "the probe did not run"
    assert roofline.bound(LSTM, "float32", "infer", 1, {"reason": "no compiler"})["reason"] == "no compiler"


def test_the_probe_measures_roofs_or_says_why_not(monkeypatch):
    monkeypatch.setattr(roofline, "buffer_sizes", lambda sizes, threads: dict(zip(roofline.LEVELS, SMALL, strict=True)))
    found = roofline.probe([1], 0.002)
    if "reason" not in found:
        assert found["flops"]["float32"]["1"] > 1e8 and found["flops"]["float64"]["1"] > 1e8
        read = [found["bandwidth"][level]["1"] for level in roofline.LEVELS]
        assert min(read) > 1e7 and read[0] > read[-1]
    monkeypatch.setenv("CXX", "no-such-compiler")
    found = roofline.probe([1], 0.002)
    assert "no-such-compiler" in found["reason"]
    assert "no-such-compiler" in report.roofs_text(found)


def test_buffers_lie_in_the_level_that_they_measure():
    sizes = {"L1": 48 << 10, "L2": 2 << 20, "L3": 480 << 20}
    for threads in (1, 2, 64):
        buffers = roofline.buffer_sizes(sizes, threads)
        assert buffers["L1"] < sizes["L1"] < buffers["L2"] < sizes["L2"]
        assert buffers["L3"] * threads <= sizes["L3"]


def test_ratios_are_to_torch_and_to_the_fastest_that_is_not_ours():
    found = row(ours=2.0, torch=6.0, peer=3.0)
    assert found["best_peer"] == "onnxruntime"
    ours, torch, peer = (found["providers"][name] for name in ("rnnkernels", "torch", "onnxruntime"))
    assert ours["ratio"] == 3 and ours["ratio_best"] == 1.5 and ours["share"] == 0.25
    assert torch["ratio"] == 1 and torch["ratio_best"] == 0.5
    assert peer["ratio"] == 2 and peer["ratio_best"] == 2  # the best itself, to the next
    alone = row()
    alone["providers"].pop("torch")
    alone = derive(alone)
    assert alone["best_peer"] is None and alone["providers"]["rnnkernels"]["ratio_best"] is None


def test_means_are_geometric_and_name_the_least():
    rows = [row("a", torch=4.0, peer=2.0), row("b", torch=0.25, peer=0.5), row("c", torch=0.999, peer=8.0)]
    lines = [line for line in report.means_lines(rows) if line.startswith("rnnkernels,")]
    assert lines == [
        f"rnnkernels, float32, infer, 1 thread: geometric mean of the ratio to {whom} {mean:.2f} over 3 workloads, "
        "none below 0.25 (b)"
        for whom, mean in (("torch", 0.999 ** (1 / 3)), ("the best peer", (2 * 0.25 * 0.999) ** (1 / 3)))
    ]
    assert any(line.startswith("onnxruntime, float32") for line in report.means_lines(rows))
    assert report.means_lines([]) == []


def test_without_pandas_the_tables_and_the_means_are_there(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    text = report.markdown(results([row("a", torch=4.0)]))
    assert "geometric mean of the ratio to torch 4.00" in text and "| a | LSTM |" in text


def test_losing_cells_are_marked_and_missing_ones_have_numbered_reasons():
    rows = [row("a", torch=4.0, peer=2.0), row("b", torch=0.25), row("c", torch=0.999)]
    rows[1]["providers"]["jax"] = {"reason": "cannot | do that"}
    text = report.markdown(results(rows))
    assert "| 4.00 | onnxruntime 2.00 | 50 % of FMA peak |" in text
    assert "| **0.25 slower** | **torch 0.25 slower** |" in text and "| **0.9990 slower** |" in text
    assert "– (3)" in text and "3. jax: cannot | do that" in text and "1. jax: not asked" in text
    assert "jax –" in report.line(rows[1])
    rows[1]["providers"]["jax"] |= {"red": True}
    assert "cannot | do that" in report.line(rows[1])


def test_precisions_memory_and_neighbours_have_tables_of_their_own():
    rows = [row("wide"), row("wide", ours=0.5, dtype="bfloat16"), row("wide", ours=2.0, threads=2), row("deep")]
    rows[0]["providers"]["rnnkernels"]["peak_bytes"] = 3 << 20
    rows[2]["providers"]["rnnkernels"]["busy_seconds"] = 3.5
    text = report.markdown(results(rows))
    assert "| wide | bfloat16 | infer | 1 | 2.00 |" in text
    assert "| wide | float32 | infer | 1 | 3.0 MiB |" in text
    assert "| wide | float32 | infer | 2 | 3500 ms | 3.50 |" in text


def test_int8_rows_have_their_errors():
    rows = [row("wide", torch=2.0, dtype="int8")]
    rows[0]["providers"]["rnnkernels"] |= {"max_error": 0.1, "rms_error": 0.01, "relative_error": 0.03}
    text = report.markdown(results(rows))
    assert "| wide | int8 | infer | 1 | rnnkernels | 1.00e-01 | 1.00e-02 | 3.00e-02 |" in text


def test_variants_have_the_plain_layer_and_each_other_way_beside_them():
    rows = [row(name, ours=2.0, torch=6.0) | {"variant": "reset", "plain": {"seconds": 1.6}} for name in ("a", "b")]
    for r, over in zip(rows, (1.25, 5.0), strict=True):
        r |= {"over_plain": over, "masks": {"seconds": 0.1}, "schedule": "cpp: x"}
    machine = MACHINE | {"command": "python -m benchmarks.variants"}
    more = {"machine": machine, "absent": {"keras": "is not here"}, "cut": ["c, reset, train"]}
    text = report.markdown(results(rows) | more)
    assert "| a | LSTM | reset | 7 | 1 | 1→1 | 1 | float32 | 1 | cpp |" in text
    assert "| cpp | 1600 ms | 2000 ms | 1.25 | 100 ms | 6000 ms | 3.00 |" in text
    assert "| reset | infer | 2 | 2.50 | 5.00 | b |" in text
    assert "Left out: keras is not here." in text and "Out of time: c, reset, train." in text
    assert "reset, float32, infer, 1 thread: torch 6000 ms (3.00), rnnkernels 2000 ms, 1.25 of" in report.line(rows[0])
    assert "1600 ms" in report.terminal(rows)


def test_plots_are_drawn_where_there_is_something_to_draw(tmp_path):
    rows = [
        row(f"w{n}", torch=0.5 + n, peer=1.0 + n, mode=m, threads=t)
        for n, m, t in ((0, "infer", 1), (1, "infer", 1), (1, "train", 2))
    ]
    for suffix, draw in plots.PLOTS.items():
        path = tmp_path / f"drawn{suffix}"
        assert draw(results(rows), path)
        assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and path.stat().st_size > 10_000
    assert not plots.ratios(results([]), tmp_path / "none.png")
    assert not plots.roofline(results(rows) | {"roofs": {"reason": "no compiler"}}, tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_a_report_is_made_anew_from_its_json(tmp_path):
    path = tmp_path / "cpu.json"
    path.write_text(json.dumps(results([row("a", torch=4.0, peer=2.0), row("b", torch=0.25, dtype="bfloat16")])))
    report.main([str(path)])
    text = (tmp_path / "cpu.md").read_text()
    assert "    python -m benchmarks.run" in text and text.count("| a | LSTM") == 1
    assert "| 4.00 | onnxruntime 2.00 |" in text and "| **0.25 slower** | **torch 0.25 slower** |" in text
    assert {p.name for p in tmp_path.iterdir()} == {"cpu.json", "cpu.md", "cpu-ratio.png", "cpu-roofline.png"}
    path.write_text("{}")
    with pytest.raises(SystemExit) as exit:
        report.main([str(path)])
    assert exit.value.code == 2


@pytest.mark.parametrize(
    "path", [p for p in sorted(cli.RESULTS.glob("*.json")) if p.stem != "offline"], ids=lambda path: path.stem
)
def test_results_that_were_saved_can_be_read_and_make_their_page(path):
    saved = json.loads(path.read_text())
    text, page = report.markdown(saved), path.with_suffix(".md").read_text()
    assert text == page or path.stem == "variants-cpu"  # its preamble was in other words then
    assert [line for line in text.splitlines() if "|" in line] == [line for line in page.splitlines() if "|" in line]
    assert json.loads(report.dumped(saved)) == saved


def test_a_column_is_left_out_only_where_no_line_has_a_text():
    lines = [{"a": 1, "b": None, "c": ""}, {"a": 0.999, "b": "x slower", "c": ""}]
    assert report.table(lines) == "| a | b |\n|---|---|\n| 1 |  |\n| 1.00 | **x slower** |"
