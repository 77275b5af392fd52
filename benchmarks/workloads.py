"""The named workloads: shapes that published projects really run.

T time, B batch, I input, H hidden, L layers. Each name is one row of the benchmark tables; `family` is the project it
comes from, so that `--only wide` selects `wide-lstm` and `wide-gru`. A variant is a workload that has something which
torch.nn's layers lack; `plain` is the same workload without it. A cell of one's own is a workload too.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any


@dataclass(frozen=True)
class Workload:
    name: str
    device: str
    cell: str  # a key of rnnkernels.cells.CELLS; of one's own: a name of providers/own_cells.py
    T: int
    B: int
    I: int  # noqa: E741 - the letter that the whole library uses
    H: int
    L: int = 1
    source: str = ""
    family: str = ""
    dtype: str = "float32"
    bidirectional: bool = False
    alternating: bool = False  # odd layers walk backwards in time
    resets: float = 0.0  # fraction of the (T, B) steps at which the state restarts
    heads: int = 1  # independent block-diagonal recurrences: H units of each, and I / heads of the input
    packed: bool = False  # rows have lengths of their own
    single: bool = False  # a cell, called for one step, instead of a layer
    options: tuple[tuple[str, Any], ...] = ()  # what rnnkernels' module is given that torch.nn's does not take
    variant: str = ""  # a key of VARIANTS
    own: bool = False  # a cell as users write them, in a Recurrent, or a module made of it
    rounds: int = 5  # of timing, at least

    @property
    def D(self) -> int:
        """Directions of each layer."""
        return 2 if self.bidirectional else 1

    @property
    def stages(self) -> tuple[str, ...]:
        """What its kernels do beside a plain layer's, by the names of the op."""
        used = {"lengths": self.packed, "reset": self.resets > 0, "layer_norm": dict(self.options).get("layer_norm")}
        return tuple(name for name in used if used[name])

    @property
    def walks(self) -> list[tuple[bool, ...]]:
        """The kinds of its layers: of each direction, whether it walks backwards in time."""
        return [(False,), (True,)] if self.alternating else [(False, True)[: self.D]]

    @property
    def plain(self) -> Workload:
        """The workload without what its variant adds."""
        return replace(self, resets=0.0, packed=False, options=(), variant="")

    @property
    def streamed(self) -> int:
        """Bytes of x and y of cells without any product, else 0."""
        return 4 * self.T * self.B * (self.I + self.H) * self.cell.endswith("_given")

    @property
    def kind(self) -> str:
        """The cell and what is special about it, as it stands in the tables."""
        cell = self.cell if self.own else self.cell.upper() + "Cell" * self.single
        cell += " bi" if self.bidirectional else ""
        cell += " alternating" if self.alternating else ""
        cell += f" x{self.heads} heads" if self.heads > 1 else ""
        cell += f", {self.resets:.0%} resets" if self.resets else ""
        cell += ", packed" if self.packed else ""
        return ", ".join([cell, *(f"{name}={value}" for name, value in self.options)])


def _row(device, name, cells, T, B, sizes, L, source, **extra):
    """One row of the published table: a workload for each of its cells and each of its lengths."""
    lengths = T if isinstance(T, tuple) else (T,)
    ends = {(cell, steps): f"-{cell}" * (" " in cells) + f"-T{steps}" * (len(lengths) > 1)
            for cell in cells.split() for steps in lengths}  # fmt: skip
    return [
        Workload(name + end, device, cell, steps, B, *sizes, L, source, family=name, **extra)
        for (cell, steps), end in ends.items()
    ]


WORKLOADS: list[Workload] = [
    *_row("cpu", "stream-gru", "gru", 1, 1, (256, 256), 1, "DeepFilterNet, RNNoise live audio"),
    *_row("cpu", "stream-tiny", "gru", 1, 1, (47, 64), 2, "MNN issue 2707"),
    *_row("cpu", "act", "lstm", 1, 8, (64, 256), 1, "Stable-Baselines3 RecurrentPPO roll-out"),
    *_row("cpu", "rollout-64", "lstm", 1, 64, (64, 256), 1, "the same with more environments"),
    *_row("cpu", "rollout-256", "lstm", 1, 256, (64, 256), 1, "the same with more environments"),
    *_row("cpu", "silero", "lstm", 1, 1, (128, 128), 1, "silero-vad, a frame at a time", single=True),
    *_row("cpu", "decoder", "gru lstm", 1, 32, (256, 256), 1, "SpeechBrain's decoder", single=True),
    *_row("cpu", "elman", "rnn", (1, 200), 1, (5, 20), 1, "Elman 1990 word boundaries", dtype="float64"),
    *_row("cpu", "guide-bench", "rnn gru lstm", 100, 64, (50, 128), 1, "comparison benchmark of the RNN guide"),
    *_row("cpu", "sentiment", "lstm", 50, 32, (100, 128), 1, "sentiment model of the RNN guide"),
    *_row("cpu", "imdb", "lstm", 200, 64, (128, 64), 1, "Keras IMDB example"),
    *_row("cpu", "sine", "lstm", 20, 32, (1, 64), 2, "forecasting model of the RNN guide"),
    *_row("cpu", "char-rnn", "lstm", 50, 50, (64, 128), 2, "char-rnn's defaults"),
    *_row("cpu", "tiny-bi", "lstm", 63, 1, (24, 32), 1, "oneDNN issue 837", bidirectional=True),
    *_row("cpu", "ocr", "lstm", 100, 1, (256, 256), 2, "EasyOCR", bidirectional=True),
    *_row("cpu", "deepar", "lstm", 48, 32, (40, 40), 2, "GluonTS DeepAR"),
    *_row("cpu", "hydrology", "lstm", 365, 256, (15, 20), 1, "neuralhydrology tutorial"),
    *_row("cpu", "camels", "lstm", 270, 256, (32, 256), 1, "EA-LSTM paper"),
    *_row("cpu", "amd-report", "lstm", 2000, 8, (256, 256), 2, "pytorch issue 81634"),
    *_row("cpu", "speech", "gru", 300, 16, (512, 512), 2, "DeepFilterNet-like training"),
    *_row("cpu", "wide", "lstm gru", 50, 128, (1024, 1024), 1, "large batch"),
    *_row("cpu", "decode", "lstm", 200, 1, (1024, 1024), 1, "large, batch of one"),
    *_row("cuda", "legged", "lstm", 24, 1024, (235, 512), 1, "legged_gym", resets=0.03),
    *_row("cuda", "rl-bench", "gru lstm", 128, 128, (256, 256), 1, "torchrl's benchmark", resets=0.03),
    *_row("cuda", "sample-factory", "gru", 32, 32, (512, 512), 1, "its cfg.py"),
    *_row("cuda", "isaac", "lstm", 128, 4, (1024, 1024), 2, "Isaac Lab Factory"),
    *_row("cuda", "bonito", "lstm", 1667, 96, (1024, 1024), 5, "nanopore basecaller", alternating=True),
    *_row("cuda", "unmix", "lstm", 255, 16, (512, 256), 3, "Open-Unmix", bidirectional=True),
    *_row("cuda", "demucs", "lstm", 200, 2048, (192, 192), 2, "Demucs", bidirectional=True),
    *_row("cuda", "camels", "lstm", 270, 256, (32, 256), 1, "EA-LSTM paper"),
    *_row("cuda", "flashrnn", "lstm gru", 1024, 16, (768, 768), 1, "FlashRNN's plot"),
    *_row("cuda", "rnnt-decode", "lstm", 1, 16, (640, 640), 1, "NeMo"),
    *_row("cuda", "dreamer", "gru", 64, 16, (8192, 1024), 1, "DreamerV3", heads=8),
    *_row("cuda", "packed", "lstm", 500, 64, (256, 256), 1, "rows as in pytorch issue 149194", packed=True),
    *_row("cuda", "amp", "lstm", 32768, 16, (1, 18), 1, "Neural Amp Modeler"),
]


# What a workload is given for each; Keras says of itself what it has.
VARIANTS: dict[str, dict[str, Any]] = {
    "reset": {"resets": 0.03},
    "lengths": {"packed": True},
    "recurrent_dropout": {"options": (("recurrent_dropout", 0.2),)},
    "zoneout": {"options": (("zoneout", 0.1),)},
    "layer_norm": {"options": (("layer_norm", True),)},
    "reset_after=False": {"options": (("reset_after", False),)},
    "recompute": {"options": (("recompute", True),)},
}
VARIED = {"guide-bench": "cpu", "imdb": "cpu", "legged": "cuda", "rl-bench": "cuda"}  # families, by device
CPU_BATCH = {"legged": 64, "rl-bench": 32}  # of GPU workloads: at their own, a call of a scripted loop takes seconds


def variants(names: list[str]) -> list[Workload]:
    """The variants of these names, all of them on the CPU."""
    found = [replace(w.plain, device="cpu", B=CPU_BATCH.get(w.family, w.B)) for w in WORKLOADS
             if VARIED.get(w.family) == w.device]  # fmt: skip
    return [replace(w, variant=name, **VARIANTS[name]) for w in found for name in names
            if name != "reset_after=False" or w.cell == "gru"]  # fmt: skip


COMPARED = (100, 64, 50, 128)  # T, B, I, H of all cells of one's own
STREAM = "x is given, in memory"


def cells(small: bool = False) -> list[Workload]:
    """Cells of one's own: those of the library, one as a user writes it, and some at the shapes of their projects.
    ``small``: tiny ones, to see that they work."""

    def row(cell: str, T: int, B: int, I: int, H: int, source: str, rounds: int = 3, L: int = 1, D: int = 1):  # noqa: E741
        if small:
            T, B, I, H = 3, 2, 8 * I // H if cell.endswith("_given") else 4, 8  # noqa: E741
        name = f"{cell}, T {T}, B {B}, I {I}, H {H}" + (f", L {L}, D {D}" if L * D > 1 else "")
        more = {"family": cell, "own": True, "rounds": rounds, "bidirectional": D == 2}
        return Workload(name, "cpu", cell, T, B, I, H, L, source, **more)

    library = importlib.import_module("rnnkernels.cells.library")  # not with this file (worker.py)
    found = [
        *(row(cell, *COMPARED, "the shape of all") for cell in ("own_lstm", *library.__all__)),
        row("LiGRU", 400, 16, 512, 512, "SpeechBrain's CRDNN", 1, 5, 2),
        row("li_gru", 400, 16, 512, 512, "the same, one direction of a layer", 1),
        row("gru_d", 48, 64, 41, 64, "PhysioNet 2012"),
        row("ea_lstm", 365, 256, 5, 256, "neuralhydrology", 1),
        row("cfc", 32, 128, 14, 64, "ncps, irregular series"),
        row("leaky_rnn", 2000, 32, 33, 100, "cognitive tasks, long"),
        row("peephole_lstm", 1000, 16, 64, 128, "long sequences", 1),
        row("slstm", 256, 16, 256, 256, "xLSTM, a block", 1),
        row("lif", 100, 128, 700, 128, "snntorch, spoken digits"),
        row("ind_rnn", 784, 32, 1, 128, "sequential MNIST"),
        row("sru", 100, 32, 512, 512, "language model"),
        row("min_gru", 1024, 32, 64, 64, "selective copying, long"),
        row("augru", 100, 128, 36, 36, "click-through prediction"),
        row("min_gru_given", 1024, 64, 512, 256, STREAM, 1),
        row("sru_given", 1024, 64, 1024, 256, STREAM, 1),
        row("ind_rnn_given", 1024, 64, 256, 256, STREAM, 1),
    ]
    return list({w.name: w for w in found}.values())


def by_cell(w: Workload) -> list[str]:
    """The providers that there are for a cell of one's own; torch_compile takes minutes."""
    loops = [] if w.cell == "LiGRU" else ["loop", "torch_script", "torch_compile", "jax"]
    built_in = ["built_in"] * (w.cell in ("lstm", "own_lstm", "gru", "rnn"))
    return ["rnnkernels", *loops, *built_in, *["public"] * (w.cell in ("LiGRU", "ea_lstm", "cfc", "lif"))]


def named(name: str, patterns: list[str], family: str = "") -> bool:
    """Whether a workload is named by its family or by a shell pattern; each is without patterns."""
    return not patterns or any(fnmatchcase(name, p) or family == p for p in patterns)


def select(device: str, patterns: list[str]) -> list[Workload]:
    """The named workloads of a device."""
    return [w for w in WORKLOADS if w.device == device and named(w.name, patterns, w.family)]
