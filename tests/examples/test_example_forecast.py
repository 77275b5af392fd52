"""Forecasts: honest parts, scaling and back, the baselines, the closed loop, what is learned, and clear refusals."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from examples import forecast, series
from examples.common import BadData
from examples.series import LinearAR, Scaling, Series

EEG = Path(os.environ.get("RNNKERNELS_DATA", "does-not-exist")) / "eeg-eye-state.csv"


def run(*arguments):
    return forecast.main([str(argument) for argument in arguments])


def made(values, horizons=(1, 3), window=5):
    values = np.asarray(values, float)
    return Series("made", values, np.arange(len(values)), "", "step", horizons, window)


def walk(points, seed=0):
    return np.random.default_rng(seed).normal(size=points).cumsum()


@pytest.mark.parametrize("order", [0, 1, 2])
def test_scaling_and_back_is_the_future(order):
    values = walk(60)
    scaled = Scaling(order, 0.3, 1.7)
    origins = np.array([order, 7, 40, 54])
    z = scaled.apply(values)
    assert len(z) == 60 - order
    future = series.futures(z, origins - order, 5)
    np.testing.assert_allclose(scaled.undo(future, values, origins), series.futures(values, origins, 5), atol=1e-12)
    hidden = values.copy()
    hidden[8:] = np.nan  # nothing after an origin is needed
    np.testing.assert_allclose(scaled.undo(future[:2], hidden, origins[:2]), series.futures(values, origins[:2], 5))


def test_the_training_part_alone_decides():
    one = made(walk(200))
    two = one._replace(
        values=np.concatenate([one.values[: one.ends[0]], 1e3 * np.random.default_rng(1).normal(size=70)])
    )
    assert series.scaling(one) == series.scaling(two)
    order, p = series.scaling(one)[0].order, series.scaling(one)[1]
    assert order == 1 and p[0] > 0.05 >= p[1]
    noise, _ = series.scaling(made(np.random.default_rng(0).normal(3, 2, 400)))
    assert noise.order == 0 and noise.mean == pytest.approx(3, abs=0.3) and noise.std == pytest.approx(2, abs=0.3)


@pytest.mark.parametrize("order", [0, 1])
def test_targets_stay_in_their_part(order):
    data = made(np.arange(100))
    bounds = (5 + order, *data.ends, 100)
    for part in range(3):
        origins = series.origins(data, part, 5, order)
        targets = series.futures(data.values, origins, 3)
        assert (targets.min(), targets.max()) == (bounds[part], bounds[part + 1] - 1)
        known = series.windows(data.values, origins - order, 5)
        assert known.shape == (len(origins), 5) and (known[:, -1] == origins - order).all() and known.min() >= 0


def test_outliers_are_found_and_take_the_value_before():
    clean = made(10 * np.sin(np.arange(300) / 9) + np.random.default_rng(0).normal(size=300))
    assert series.cleaned(clean)[1] == []
    spoiled = clean.values.copy()
    spoiled[[40, 41, 250]] = 1e4, -1e5, 900
    mended, where = series.cleaned(clean._replace(values=spoiled))
    assert where == [40, 41, 250]
    expected = clean.values.copy()
    expected[[40, 41, 250]] = expected[[39, 39, 249]]
    np.testing.assert_array_equal(mended.values, expected)
    assert series.cleaned(made(np.arange(300) // 100))[1] == []  # mostly constant: no spread to measure with


def test_smoothing_is_the_best_of_the_grid_before_the_test_part():
    steps = made(walk(300))  # of a random walk the last value is all there is to know
    at = series.origins(steps, 2, 0, 0)
    found, alphas = series.smoothing(steps, at, 3)
    assert alphas[0] > 0.8
    noise = made(np.random.default_rng(0).normal(size=300))
    found, alphas = series.smoothing(noise, at, 3)
    assert (alphas <= 0.1).all()
    later = noise._replace(values=np.concatenate([noise.values[: noise.ends[1]], walk(60)]))
    np.testing.assert_array_equal(series.smoothing(later, at, 3)[1], alphas)
    np.testing.assert_array_equal(series.naive(noise, at, 2), noise.values[at][:, None].repeat(2, 1))


def test_the_linear_model_finds_an_autoregression():
    noise, values = np.random.default_rng(0).normal(size=3000), [0.0]
    for e in noise:
        values.append(0.8 * values[-1] + e)
    data = made(values)
    model = LinearAR.fit(data, Scaling(0, 0.0, 1.0))
    assert len(model.weights) == 1 and model.weights[0] == pytest.approx(0.8, abs=0.05)
    at = np.array([1000, 2000])
    expected = data.values[at][:, None] * model.weights[0] ** np.arange(1, 4)
    np.testing.assert_allclose(model.forecast(data, Scaling(0, 0.0, 1.0), at, 3), expected, atol=0.3)


@pytest.mark.parametrize("cell", forecast.CELLS)
def test_the_closed_loop_reads_its_own_forecasts(cell):
    torch.manual_seed(0)
    model = forecast.Forecaster("rnnkernels", forecast.Variant(cell, 6, (8, 5) if cell == "stack" else (8, 8), 1), 3)
    window = torch.randn(4, 6)
    with torch.no_grad():
        three = model(window, 3)
        for step in range(3):
            grown = torch.cat([window, three[:, :step]], 1)
            torch.testing.assert_close(model(grown, 1), three[:, step : step + 1])
    assert three.std() > 0


def test_the_forecast_of_several_is_their_mean():
    torch.manual_seed(0)
    data, scaled, at = made(walk(60)), Scaling(1, 0.2, 1.5), np.array([20, 40])
    variant = forecast.Variant("gru", 5, (4,), 3)
    models = [forecast.Forecaster("rnnkernels", variant, 3) for _ in range(3)]
    each = [forecast.Network(variant, torch.nn.ModuleList([m]), 0.0).forecast(data, scaled, at, 3) for m in models]
    together = forecast.Network(variant, torch.nn.ModuleList(models), 0.0).forecast(data, scaled, at, 3)
    assert abs(each[0] - each[1]).max() > 1e-3
    np.testing.assert_allclose(together, np.mean(each, 0), rtol=1e-6)


def test_gaps_take_the_last_value_and_text_is_refused(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("time,level\n" + "".join(f"{k},{'' if k in (3, 4) else k / 2}\n" for k in range(300)), "utf-8-sig")
    data = series.table(path, "level", 50.0)
    assert data.values[:6].tolist() == [0, 0.5, 1, 1, 1, 2.5] and data.times[50] == 1 and data.clock == "second"
    assert series.table(path, None, None).values[4] == 4
    with pytest.raises(BadData, match=r"no column 'depth'; there are time, level"):
        series.table(path, "depth", None)


BAD = {
    "missing": (None, "No such file"),
    "empty": (b"", "the file is empty"),
    "binary": (b"a\n1\0\n", "a binary file"),
    "latin": ("temp\xe9rature\n1\n".encode("latin-1"), "not UTF-8"),
    "ragged": (b"a\n1\n1,2,3\n", "not a CSV table"),
    "words": (b"a\n1\n2\nmany\n", "'many' in row 3 of column 'a' is not a number"),
    "infinite": (b"a\n1\ninf\n", "'inf' in row 2"),
    "short": (b"a\n" + b"1\n2\n" * 30, "60 values are too few, at least 280 are needed"),
    "no values": (b"a,b\n" + b",1\n" * 300, "no number in column 'a'"),
    "constant": (b"a\n" + b"7\n" * 300, "constant or a straight line"),
    "straight": (b"a\n" + b"".join(b"%d\n" % k for k in range(300)), "constant or a straight line"),
}


@pytest.mark.parametrize("name", BAD)
def test_unusable_files_end_in_one_line(name, tmp_path, capsys):
    content, words = BAD[name]
    path = tmp_path / "table.csv"
    if content is not None:
        path.write_bytes(content)
    assert run("--path", path, "--out", tmp_path / "out") == 2
    printed = capsys.readouterr().err
    assert words in printed and printed.count("\n") == 1


def test_other_refusals_are_one_line(tmp_path, capsys):
    (tmp_path / "model.json").write_text('{"example": "another"}')
    (tmp_path / "weights.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    for arguments, words in (
        (("--data", "eeg"), "name a CSV file with --path"),
        (("--data", "co2", "--path", "table.csv"), "for --data eeg only"),
        (("--points", 50), "50 values are too few"),
        (("--window", 5000), "2000 values are too few"),
        (("--cell", "relu", "--layers", "torch"), "--cell relu needs --layers rnnkernels"),
        (("--load", tmp_path), "not a model of this example"),
    ):
        assert run(*arguments, "--out", tmp_path / "out") == 2
        printed = capsys.readouterr().err
        assert words in printed and printed.count("\n") == 1


def test_a_run_is_written_repeated_and_loaded(tmp_path, capsys):
    tiny = ("--data", "sine", "--points", 210, "--hidden", 4, "--window", 8, "--epochs", 1, "--seed", 5)
    assert run(*tiny, "--out", tmp_path / "a") == run(*tiny, "--out", tmp_path / "b") == 0
    first, again = ((tmp_path / name / "metrics.json").read_bytes() for name in "ab")
    assert first == again
    metrics = json.loads(first)["sine"]
    assert set(metrics["rmse"]) == {"naive", "smoothing", "linear AR", "lstm", "gru", "relu"}
    assert metrics["differences"] == 0 and metrics["best"] in ("lstm", "gru", "relu")
    assert (tmp_path / "a" / "sine.png").read_bytes().startswith(b"\x89PNG")
    capsys.readouterr()
    assert run("--load", tmp_path / "a", "--out", tmp_path / "c") == 0
    assert (tmp_path / "c" / "metrics.json").read_bytes() == first
    assert "trained" not in capsys.readouterr().out
    assert run(*tiny, "--layers", "torch", "--out", tmp_path / "a") == 0
    printed = capsys.readouterr().out
    assert "left out: LSTM with activation='relu'" in printed and "last runs: torch" in printed
    other = json.loads((tmp_path / "a" / "metrics.json").read_text())["sine"]["rmse"]
    assert "relu" not in other and other["gru"] == pytest.approx(metrics["rmse"]["gru"], rel=1e-3)


def test_the_sizes_of_the_course(tmp_path):
    """Six networks on a sine without noise, one of them two LSTMs of different sizes; they come back from a run."""
    assert run("--sizes", "course", "--points", 300, "--epochs", 1, "--batch", 100, "--out", tmp_path / "a") == 0
    assert run("--load", tmp_path / "a", "--out", tmp_path / "b") == 0
    one, two = ((tmp_path / name / "metrics.json").read_bytes() for name in "ab")
    found = json.loads(one)["sine"]
    assert one == two and set(found["validation"]) == set(forecast.CELLS) and found["noise"] == 0
    weights = load_file(tmp_path / "a" / "weights.safetensors")
    assert weights["sine-stack.0.rnns.0.weight_hh_l0"].shape == (512, 128)
    assert weights["sine-stack.0.rnns.1.weight_ih_l0"].shape == (256, 128)
    values = series.sine(1000, forecast.PERIOD, 0.0, 0).values
    np.testing.assert_allclose(values, np.sin(np.linspace(0, 100, 1000)), atol=1e-9)


def test_the_network_of_a_csv_file_is_used_on_another(tmp_path, capsys):
    for name, seed in (("one", 0), ("two", 1)):
        values = series.sine(300, 40.0, 0.1, seed).values
        (tmp_path / f"{name}.csv").write_text("t,v\n" + "".join(f"{k},{value}\n" for k, value in enumerate(values)))
    tiny = ("--column", "v", "--rate", 10, "--hidden", 4, "--cell", "gru", "--epochs", 1)
    assert run("--path", tmp_path / "one.csv", *tiny, "--out", tmp_path / "a") == 0
    assert run("--load", tmp_path / "a", "--out", tmp_path / "b", "--future", 7) == 0
    assert run("--load", tmp_path / "a", "--path", tmp_path / "two.csv", "--out", tmp_path / "c") == 0
    a, b, c = (json.loads((tmp_path / name / "metrics.json").read_text())["eeg"] for name in "abc")
    assert a["rmse"] == b["rmse"] and a["rmse"]["gru"] != c["rmse"]["gru"]
    assert a["closed_loop_rmse"] != b["closed_loop_rmse"]


def test_a_little_training_beats_naive_and_smoothing_on_the_sine(tmp_path):
    short = ("--data", "sine", "--points", 500, "--hidden", 16, "--window", 20, "--cell", "gru", "--epochs", 12)
    assert run(*short, "--out", tmp_path) == 0
    rmse = json.loads((tmp_path / "metrics.json").read_text())["sine"]["rmse"]
    assert rmse["gru"][0] < 0.17
    assert all(
        mine < 0.8 * min(pair) for mine, *pair in zip(*map(rmse.get, ("gru", "naive", "smoothing")), strict=True)
    )


def test_the_shipped_series_are_what_they_are_said_to_be():
    spots, carbon = series.sunspots(), series.co2()
    assert (spots.times[0], spots.times[-1], len(spots.values)) == (1700, 2008, 309)
    assert len(carbon.values) == 526 and np.isfinite(carbon.values).all()
    assert series.scaling(carbon)[0].order == 1
    assert series.cleaned(spots)[1] == series.cleaned(carbon)[1] == []


@pytest.mark.skipif(not EEG.exists(), reason="RNNKERNELS_DATA names no folder with eeg-eye-state.csv (UCI)")
@pytest.mark.parametrize("column", ["V1", "V7", "V14"])
def test_the_four_gross_errors_of_the_real_eeg(column):
    assert series.cleaned(series.table(EEG, column, 128))[1] == [898, 10386, 11509, 13179]
