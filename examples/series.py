"""Time series for `forecast`: sources, cleaning, and forecasts that need no network.

The training part alone decides on outliers, differences, mean and deviation. N values, F future steps, O origins: the
positions of the last value that a forecast may see.
"""

from __future__ import annotations

import argparse
import io
import math
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas
import statsmodels.datasets
from lightning.pytorch.utilities import rank_zero_only
from matplotlib.ticker import LogLocator, NullFormatter
from statsmodels.tools.sm_exceptions import SingularMatrixWarning
from statsmodels.tsa.ar_model import ar_select_order
from statsmodels.tsa.stattools import adfuller

from examples.common import BadData, plot, read_text

NAMES = ("sine", "sunspots", "co2", "eeg")
TRAINING, VALIDATION = 0.65, 0.15  # in the order of time; the rest is the test part
GROSS = 25.0  # robust standard deviations from the RECENT values before: an outlier
RECENT = 25  # values
BASELINES = ("naive", "smoothing", "linear AR")
ALPHAS = np.linspace(0.05, 1.0, 20)

say = rank_zero_only(print)  # once, however many processes train
Curves = dict[str, np.ndarray]  # by method


class Series(NamedTuple):
    name: str
    values: np.ndarray  # (N,)
    times: np.ndarray  # (N,)
    unit: str  # of the values
    clock: str  # the unit of `times`
    horizons: tuple[int, ...]  # steps ahead that the table shows
    window: int  # values that a forecast starts from
    floor: float | None = None  # the noise: no forecast has a smaller RMSE, except by luck

    @property
    def ends(self) -> tuple[int, int]:
        """The ends of the training and of the validation part."""
        return int(len(self.values) * TRAINING), int(len(self.values) * (TRAINING + VALIDATION))


def sine(points: int, period: float, noise: float, seed: int) -> Series:
    """A sine with noise."""
    t = np.arange(points)
    values = np.sin(2 * np.pi * t / period) + np.random.default_rng(seed).normal(0, noise, points)
    return Series("sine", values, t, "", "step", (1, 5, 10, 20), 50, noise)


def sunspots() -> Series:
    """Sunspots per year since 1700, as statsmodels ships them."""
    data = statsmodels.datasets.sunspots.load_pandas().data
    values, years = (data[column].to_numpy(float) for column in ("SUNACTIVITY", "YEAR"))
    return Series("sunspots", values, years, "sunspots", "year", (1, 2, 4, 8, 12, 18, 24), 33)


def co2() -> Series:
    """CO2 over Mauna Loa, 1958 to 2001, as statsmodels ships it: means of months."""
    months = statsmodels.datasets.co2.load_pandas().data["co2"].resample("MS").mean()
    years = months.index.year + (months.index.month - 0.5) / 12
    return Series("co2", filled(months), years.to_numpy(), "CO2, ppm", "year", (1, 3, 6, 12, 24), 36)


def table(path: Path, column: str | None, rate: float | None) -> Series:
    """A column of a CSV file with a header, such as the UCI's EEG Eye State; the rate is in samples per second."""
    try:
        data = pandas.read_csv(io.StringIO(read_text(path)), dtype=str, skipinitialspace=True, index_col=False)
    except pandas.errors.ParserError as error:
        raise BadData(f"{path}: not a CSV table ({str(error).strip()})") from error
    except pandas.errors.EmptyDataError as error:
        raise BadData(f"{path}: no table in it") from error
    column = str(data.columns[0]) if column is None else column
    if column not in data:
        raise BadData(f"{path}: no column {column!r}; there are {', '.join(map(str, data.columns))}")
    given = data[column].reset_index(drop=True)
    numbers = pandas.to_numeric(given, errors="coerce").replace([np.inf, -np.inf], np.nan)
    wrong = given[numbers.isna() & given.notna()]
    if len(wrong):
        raise BadData(f"{path}: {wrong.iloc[0]!r} in row {wrong.index[0] + 1} of column {column!r} is not a number")
    if numbers.isna().all():
        raise BadData(f"{path}: no number in column {column!r}")
    values = filled(numbers)
    times = np.arange(len(values)) / (rate or 1)
    return Series("eeg", values, times, column, "second" if rate else "row", (1, 4, 8, 16, 32), 50)


def filled(numbers: pandas.Series) -> np.ndarray:
    """Gaps take the last value before them: an interpolation would look ahead."""
    return numbers.ffill().bfill().to_numpy(float)


def cleaned(series: Series) -> tuple[Series, list[int]]:
    """Without gross outliers: values far from the median of the recent ones. They take the value before; and where."""
    values = pandas.Series(series.values)
    away = values - values.rolling(RECENT, min_periods=1).median().shift(1).bfill()
    training = away[: series.ends[0]]
    spread = 1.4826 * (training - training.median()).abs().median()  # the standard deviation, were it a normal one
    gross = (away - training.median()).abs() > GROSS * spread if spread > 0 else pandas.Series(False, values.index)
    return series._replace(values=filled(values.mask(gross))), np.flatnonzero(gross).tolist()


def read(asked: argparse.Namespace, name: str) -> tuple[Series, list[int]]:
    """The series, long enough for its windows and horizons, and where it had gross outliers, which are printed."""
    if name == "sine":
        series = sine(asked.points, asked.period, asked.noise, asked.seed)
    elif name == "eeg":
        if not asked.path:
            raise BadData("--data eeg: name a CSV file with --path (the UCI's EEG Eye State, or your own)")
        series = table(asked.path, asked.column, asked.rate)
    else:
        series = {"sunspots": sunspots, "co2": co2}[name]()
    most = max(series.horizons) + 10  # so that each part has ten origins at least
    least = math.ceil(max(most / VALIDATION, (most + (asked.window or series.window)) / TRAINING))
    if len(series.values) < least:
        raise BadData(f"{name}: {len(series.values)} values are too few, at least {least} are needed")
    series, outliers = cleaned(series)
    if outliers:
        when = ", ".join(f"{series.times[k]:g}" for k in outliers[:10]) + (", ..." if len(outliers) > 10 else "")
        say(f"{name}: outliers, replaced by the value before them, at {series.clock} {when}")
    return series, outliers


class Scaling(NamedTuple):
    """Differences, then mean 0 and deviation 1."""

    order: int
    mean: float
    std: float

    def apply(self, values_N: np.ndarray) -> np.ndarray:
        """(N - order,): the differences of the first values are not known."""
        return (np.diff(values_N, self.order) - self.mean) / self.std

    def undo(self, z_OF: np.ndarray, values_N: np.ndarray, origins_O: np.ndarray) -> np.ndarray:
        """Forecasts in the series' own unit: differences are added up from the last values known."""
        steps = z_OF * self.std + self.mean
        for order in reversed(range(self.order)):
            steps = np.diff(values_N, order)[origins_O - order, None] + np.cumsum(steps, 1)
        return steps


def scaling(series: Series) -> tuple[Scaling, list[float]]:
    """Differences until the augmented Dickey-Fuller test says stationary (p <= 0.05), twice at most; and each p."""
    training = series.values[: series.ends[0]]
    if np.diff(training).std() <= 1e-12 * abs(training).max():
        raise BadData(f"{series.name}: the training part is constant or a straight line")
    p: list[float] = []
    for order in range(3):
        z = np.diff(training, order)
        with warnings.catch_warnings():  # statsmodels 0.15: the result will be another type
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", SingularMatrixWarning)  # as below
            p.append(float(adfuller(z)[1]))
        if p[-1] <= 0.05:
            break
    return Scaling(order, float(z.mean()), float(z.std())), p


def origins(series: Series, part: int, window: int, order: int) -> np.ndarray:
    """All origins whose future lies in the part: 0 training, 1 validation, 2 test. Windows may reach into the past."""
    ends = (window + order, *series.ends, len(series.values))
    return np.arange(ends[part] - 1, ends[part + 1] - max(series.horizons))


def futures(values_N: np.ndarray, origins_O: np.ndarray, steps: int) -> np.ndarray:
    """The true next values, (O, steps)."""
    return values_N[origins_O[:, None] + np.arange(1, steps + 1)]


def rmse(forecast_OF: np.ndarray, truth_OF: np.ndarray) -> np.ndarray:
    return np.sqrt(np.mean((forecast_OF - truth_OF) ** 2, 0))


def windows(z_N: np.ndarray, origins_O: np.ndarray, window: int) -> np.ndarray:
    """The values known at the origins, (O, window)."""
    return z_N[origins_O[:, None] + np.arange(1 - window, 1)]


def naive(series: Series, origins_O: np.ndarray, steps: int) -> np.ndarray:
    """The last value, for ever."""
    return np.repeat(series.values[origins_O, None], steps, 1)


def smoothing(series: Series, origins_O: np.ndarray, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Simple exponential smoothing, with the best alpha of the grid for each horizon before the test; and these."""
    smooth = [pandas.Series(series.values).ewm(alpha=alpha, adjust=False).mean().to_numpy() for alpha in ALPHAS]
    before = np.arange(RECENT, series.ends[1] - steps)
    truth = futures(series.values, before, steps)
    best = np.argmin([rmse(level[before, None], truth) for level in smooth], 0)
    return np.stack([smooth[k][origins_O] for k in best], 1), ALPHAS[best]


class LinearAR(NamedTuple):
    """z' = constant + weights . the last values of the scaled series; as many lags as BIC says."""

    constant: float
    weights: np.ndarray  # of the newest value first

    @classmethod
    def fit(cls, series: Series, scaled: Scaling) -> LinearAR:
        """To all that precedes the test part."""
        before = scaled.apply(series.values)[: series.ends[1] - scaled.order]
        with warnings.catch_warnings():  # a sine without noise follows from two lags: more are redundant
            warnings.simplefilter("ignore", SingularMatrixWarning)
            params = ar_select_order(before, min(series.window, len(before) // 4), ic="bic").model.fit().params
        return cls(float(params[0]), params[1:])

    def forecast(self, series: Series, scaled: Scaling, origins_O: np.ndarray, steps: int) -> np.ndarray:
        """In the series' own unit, (O, steps): each step is what the next one reads."""
        lags = len(self.weights)
        z = windows(scaled.apply(series.values), origins_O - scaled.order, lags)
        for _ in range(steps):
            z = np.column_stack([z, self.constant + z[:, ::-1][:, :lags] @ self.weights])
        return scaled.undo(z[:, lags:], series.values, origins_O)


def draw(path: Path, series: Series, origins_O: np.ndarray, found: Curves, loop: Curves, best: str) -> None:
    """True against predicted in the test part, forecasts that go on alone, and the error by horizon."""
    steps, future, times, start = max(series.horizons), len(loop[best]), series.times, series.ends[1] - 1
    truth = futures(series.values, origins_O, steps)
    colors = {name: f"C{k}" for k, name in enumerate(found)}
    with plot(path, 3, size=(9.5, 10)) as (top, middle, bottom):
        seen = origins_O[:300]  # more would not be legible
        shown, near = slice(seen[0], seen[-1] + steps + 1), slice(max(0, start - future // 2), start + future + 1)
        top.plot(times[shown], series.values[shown], "0.6", label="true")
        for h, style in ((1, "-"), (steps, "--")):
            values = found[best][: len(seen), h - 1]
            top.plot(times[seen + h], values, style, color=colors[best], linewidth=1, label=f"{best}, {h} ahead")
        top.set(title=f"{series.name}: true against predicted, test part", xlabel=series.clock, ylabel=series.unit)

        middle.plot(times[near], series.values[near], "0.6", label="true")
        ahead = times[start] + (times[1] - times[0]) * np.arange(1, future + 1)
        for name, values in loop.items():
            middle.plot(ahead, values, "--" if name in BASELINES else "-", color=colors[name], linewidth=1, label=name)
        middle.axvline(times[start], color="black", linewidth=0.5)
        middle.set(title=f"alone: {future} steps in a closed loop", xlabel=series.clock, ylabel=series.unit)

        for name, values in found.items():
            style = "--" if name in BASELINES else "-"
            bottom.plot(range(1, steps + 1), rmse(values, truth), style, color=colors[name], linewidth=1, label=name)
        if series.floor:
            bottom.axhline(series.floor, color="black", linewidth=0.5, label="noise")
        bottom.set(title="error by horizon, test part", xlabel="steps ahead", ylabel="RMSE", yscale="log")
        bottom.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
        bottom.yaxis.set_major_formatter("{x:g}")
        bottom.yaxis.set_minor_formatter(NullFormatter())
        for axes in (top, middle, bottom):
            axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
