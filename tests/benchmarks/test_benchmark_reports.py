"""What is made of the rows: bounds, ratios, means, targets, tables, plots and the README, from hand-made results."""

import json

import pytest

from benchmarks import bounds, plots, probe, report, stats, tables, targets
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
    assert bounds.flops(LSTM, "infer") == 2 * 10 * 4 * 20 * 8 + 2 * 10 * 4 * 20 * 10
    assert bounds.flops(LSTM, "train") == 3 * bounds.flops(LSTM, "infer")
    # W_hh: 20 * 5 floats in each of 2 layers, read 10 times; W_ih: 20 * (3 + 5) floats, once.
    assert bounds.weight_reads(LSTM, "float32", "infer") == [(8000.0, 400.0), (640.0, 1440.0)]
    # Forward and backward read them, and the 360 gradients are written once.
    assert bounds.weight_reads(LSTM, "float32", "train") == [(16000.0, 400.0), (1280.0 + 1440.0, 1440.0)]
    assert bounds.weight_reads(LSTM, "bfloat16", "infer")[0] == (4000.0, 200.0)


def test_operations_and_bytes_of_two_directions_and_of_a_single_step_by_hand():
    both = Workload("bi", "cpu", "gru", T=2, B=1, I=3, H=5, L=2, bidirectional=True)
    assert bounds.flops(both, "infer") == 2 * 2 * 2 * 15 * (3 + 5) + 2 * 2 * 2 * 15 * (10 + 5)
    assert bounds.weight_reads(both, "float64", "infer") == [(4800.0, 600.0), (3120.0, 5520.0)]
    step = Workload("step", "cpu", "rnn", T=1, B=1, I=3, H=5)
    assert bounds.weight_reads(step, "float32", "infer") == [(160.0, 160.0)]


def test_the_bound_is_the_larger_time_from_the_level_that_holds_the_weights():
    assert bounds.level_of(1000, 1, SIZES) == "L1" and bounds.level_of(1001, 1, SIZES) == "L2"
    assert bounds.level_of(2000, 2, SIZES) == "L1" and bounds.level_of(8000, 2, SIZES) == "L2"
    assert bounds.level_of(8001, 2, SIZES) == "L3" and bounds.level_of(100_001, 2, SIZES) == "memory"
    single = Workload("single", "cpu", "lstm", T=10, B=1, I=3, H=5, L=2)
    # W_hh from L1, W_ih from L2, against 7200 operations at 100 a second.
    moved = 8000 / 40 + 640 / 20
    found = bounds.bound(single, "float32", "infer", 1, ROOFS)
    assert found == {"flops": 7200.0, "bytes": 8640.0, "seconds": moved, "by": "L1"}
    found = bounds.bound(LSTM, "float32", "infer", 1, ROOFS)
    assert found["seconds"] == 28800 / 100 and found["by"] == "FMA peak"
    assert bounds.bound(LSTM, "bfloat16", "infer", 1, ROOFS)["seconds"] == 28800 / 100  # widening is allowed
    assert bounds.bound(LSTM, "float64", "infer", 2, ROOFS)["seconds"] == pytest.approx(28800 / 99)
    assert bounds.bound(LSTM, "float32", "infer", 3, ROOFS)["reason"] == "the probe did not run"
    assert bounds.bound(LSTM, "float32", "infer", 1, {"reason": "no compiler"})["reason"] == "no compiler"


def test_the_probe_measures_roofs_or_says_why_not(monkeypatch):
    monkeypatch.setattr(probe, "_memory", lambda: 1 << 30)
    found = probe.probe([1], 0.002)
    if "reason" not in found:
        assert found["flops"]["float32"]["1"] > 1e8 and found["flops"]["float64"]["1"] > 1e8
        read = [found["bandwidth"][level]["1"] for level in probe.LEVELS]
        assert min(read) > 1e7 and read[0] > read[-1]
    monkeypatch.setenv("CXX", "no-such-compiler")
    found = probe.probe([1], 0.002)
    assert "no-such-compiler" in found["reason"]
    assert "no-such-compiler" in tables.roofs_section(found)


def test_buffers_lie_in_the_level_that_they_measure():
    sizes = {"L1": 48 << 10, "L2": 2 << 20, "L3": 480 << 20}
    for threads in (1, 2, 64):
        buffers = probe.buffer_sizes(sizes, threads)
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
    mean = stats.means(rows)["float32", "infer", 1, "rnnkernels"]
    assert mean == (pytest.approx(0.999 ** (1 / 3)), 0.25, "b", 3)
    best = stats.means(rows, "ratio_best")["float32", "infer", 1, "rnnkernels"]
    assert best == (pytest.approx((2 * 0.25 * 0.999) ** (1 / 3)), 0.25, "b", 3)
    assert "0.25 (b)" in stats.means_lines(rows)[0] and "to the best peer" in stats.means_lines(rows)[-1]


def test_losing_cells_are_marked_and_missing_ones_have_numbered_reasons():
    rows = [row("a", torch=4.0, peer=2.0), row("b", torch=0.25), row("c", torch=0.999)]
    rows[1]["providers"]["jax"] = {"reason": "cannot | do that"}
    text = tables.markdown(results(rows))
    assert "| 4.00 | onnxruntime 2.00 | 50 % of FMA peak |" in text
    assert "| **0.25 slower** | **torch 0.25 slower** |" in text and "| **0.9990 slower** |" in text
    assert "– (3)" in text and "3. jax: cannot | do that" in text and "1. jax: not asked" in text
    assert "jax –" in tables.line(rows[1])
    rows[1]["providers"]["jax"] |= {"red": True}
    assert "cannot | do that" in tables.line(rows[1])


def test_targets_are_computed_from_the_rows_in_their_own_dtype():
    rows = [
        row("stream-gru", torch=4.0, T=1, ours=10e-6, bound={"seconds": 1e-6, "by": "L2", "flops": 1, "bytes": 1}),
        row("wide", torch=4.0, peer=1.2, B=64, H=256),
        row("wide", ours=2.0, torch=1.0, mode="train"),
        row("wide", ours=0.5, dtype="bfloat16", B=64, H=256),
        row("wide", ours=1.0, threads=2, torch=8.0),
    ]
    rows[0]["providers"]["stepper"] = {"seconds": 5e-6}
    rows[2]["providers"]["rnnkernels"]["peak_bytes"], rows[2]["providers"]["torch"]["peak_bytes"] = 3 << 20, 2 << 20
    rows[4]["providers"]["rnnkernels"]["busy_seconds"] = 3.5
    met = {(r.target, r.threads): (r.good, r.value) for r in targets.reached(rows)}

    def said(words, threads=1):
        return next(value for (target, count), value in met.items() if words in target and count == threads)

    assert said("infer, ratio to torch.nn: geometric mean")[0]
    assert said("infer, ratio to torch.nn: no workload") == (True, "4.00 (wide); 2 of 2 workloads")
    assert said("train, ratio to torch.nn: no workload") == (False, "0.50 (wide); 0 of 1 workloads")
    assert said("infer, ratio to the best peer: no workload")[0]
    assert said("B ≥ 16, H ≥ 128") == (False, "50 % (wide); 0 of 1 workloads")
    assert said("module: ≤ 12 µs") == (True, "9.0 µs (stream-gru); 1 of 1 workloads")
    assert said("Stepper: ≤ 3 µs") == (False, "4.0 µs (stream-gru); 0 of 1 workloads")
    assert said("peak memory") == (False, "1.50 (wide); 0 of 1 workloads")
    assert said("bfloat16 over our float32, B ≥ 16") == (True, "2.00 (wide); 1 of 1 workloads")
    assert said("busy neighbour", 2) == (False, "3.50 (wide, infer); 0 of 1 workloads")
    assert "| yes |" in tables.markdown(results(rows)) and "| **no** |" in tables.markdown(results(rows))


def test_int8_rows_have_their_errors_and_their_target():
    rows = [row("wide", torch=2.0, dtype="int8")]
    for name, error in (("rnnkernels", 0.01), ("torch", 0.005)):
        rows[0]["providers"][name] |= {"max_error": 0.1, "rms_error": error, "relative_error": 0.03}
    text = tables.markdown(results(rows))
    assert "| wide | 1 | rnnkernels | 1.00e-01 | 1.00e-02 | 3.00e-02 |" in text
    met = {r.target: r.good for r in targets.reached(rows)}
    assert met["int8, ratio to the fastest int8 peer ≥ 1.0"] and not met["int8, error (rms) over that peer's ≤ 1"]


def test_plots_are_drawn_where_there_is_something_to_draw(tmp_path):
    rows = [
        row(f"w{n}", torch=0.5 + n, peer=1.0 + n, mode=m, threads=t)
        for n in range(3)
        for m in ("infer", "train")
        for t in (1, 2)
    ]
    for draw in (plots.ratios, plots.roofline):
        path = tmp_path / f"{draw.__name__}.png"
        assert draw(results(rows), path)
        assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and path.stat().st_size > 10_000
    assert not plots.ratios(results([]), tmp_path / "none.png")
    assert not plots.roofline(results(rows) | {"roofs": {"reason": "no compiler"}}, tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_a_report_is_made_anew_from_its_json_between_the_readme_s_markers_only(tmp_path):
    path, readme = tmp_path / "cpu.json", tmp_path / "README.md"
    path.write_text(json.dumps(results([row("a", torch=4.0, peer=2.0), row("b", torch=0.25, dtype="bfloat16")])))
    readme.write_text(f"above\n{report.BEGIN}\nold\n{report.END}\nbelow\n")
    for _ in range(2):
        report.main([str(path), "--readme", str(readme)])
        text = readme.read_text()
        assert text.startswith(f"above\n{report.BEGIN}\n") and text.endswith(f"\n{report.END}\nbelow\n")
        assert "old" not in text and "`python -m benchmarks.run" in text and text.count("| a | LSTM") == 1
        assert "1000.00 ms, 4.00, onnxruntime 2.00" in text.replace("1000 ms", "1000.00 ms")
        assert "**0.25 slower**, **torch 0.25 slower**" in text and "](cpu-ratio.png)" in text
    assert {p.name for p in tmp_path.iterdir()} >= {"cpu.md", "cpu-ratio.png", "cpu-roofline.png"}
    readme.write_text("no markers")
    with pytest.raises(SystemExit) as exit:
        report.main([str(path), "--readme", str(readme)])
    assert exit.value.code == 2 and readme.read_text() == "no markers"
