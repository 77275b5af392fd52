"""The head-to-head program: the two trainings agree, the model learns, and unusable files end in one clear line."""

import math
from pathlib import Path

import fresh
import pytest
import torch
from common import UNUSABLE_TEXTS, refused, unusable

import rnnkernels
from examples import demo, language_model, streams


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A text that is quickly learned: lines of a small language."""
    path = tmp_path_factory.mktemp("text") / "source.txt"
    path.write_text("".join(f"line {n % 10}: für n in range({n * 7 % 100})\r\n" for n in range(600)), encoding="utf-8")
    return path


def run(*arguments):
    return demo.main([str(argument) for argument in arguments])


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_it_trains_both_and_writes_the_picture(cell, source, tmp_path, capsys):
    out = tmp_path / "curve.png"
    assert run("--text", source, "--cell", cell, "--hidden", 24, "--layers", 2, "--steps", 12, "--out", out) == 0
    printed = capsys.readouterr().out
    assert f"2-layer {cell.upper()}, hidden 24" in printed and "digits over all 12 steps" in printed
    assert "times torch.nn" in printed and "sample" in printed
    assert out.read_bytes().startswith(b"\x89PNG")


def test_the_losses_fall_and_agree(source):
    asked = demo.parse(["--hidden", "48"])
    tokens = torch.tensor([ord(c) % 128 for c in streams.read_text(source)])
    torchs, ours = (demo.Training(library, asked, 128, tokens) for library in (torch.nn, rnnkernels))
    demo.train([torchs, ours], seconds=1, steps=60)
    assert len(torchs.losses) == len(ours.losses) == 60
    assert ours.losses[0] > 4.5 and ours.losses[-1] < 2.5
    assert ours.losses[:20] == pytest.approx(torchs.losses[:20], rel=1e-4)
    assert ours.losses == pytest.approx(torchs.losses, rel=1e-2)
    assert ours.held_out_loss(tokens[:500]) == pytest.approx(torchs.held_out_loss(tokens[:500]), rel=1e-2)


def test_the_time_budget_stops_both_after_the_same_steps(source):
    asked = demo.parse(["--hidden", "8", "--layers", "1"])
    tokens = torch.tensor([ord(c) % 128 for c in streams.read_text(source)])
    both = [demo.Training(library, asked, 128, tokens) for library in (torch.nn, rnnkernels)]
    demo.train(both, seconds=0.3, steps=None)
    assert len(both[0].losses) == len(both[1].losses) > 0


def test_batches_continue_and_targets_are_one_ahead():
    length = 2 * demo.T + 7
    tokens = torch.arange(demo.B * length + 1)
    stream = demo.batches(tokens)
    (x0, y0, new0), (x1, _, new1), (x2, _, new2) = (next(stream) for _ in range(3))
    assert x0.shape == (demo.T, demo.B) and (new0, new1, new2) == (True, False, True)
    assert torch.equal(y0, x0 + 1) and torch.equal(x1[0], x0[-1] + 1) and torch.equal(x2, x0)
    assert x0[0].tolist() == [b * length for b in range(demo.B)]


def test_a_sample_is_drawn_from_the_vocabulary_and_repeats_with_its_seed():
    model = language_model.CharLM(rnnkernels, "lstm", 3, 5, 2)
    drawn = [demo.sample(model, ["a", "b", "c"], "ab", 40, seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert drawn[0].startswith("ab") and len(drawn[0]) == 42 and set(drawn[0]) <= set("abc")


def test_agreement_counts_digits_and_steps():
    a = [2.0, 2.0, 2.0, 2.0]
    assert demo.agreement(a, a) == [(7, 4)]
    assert demo.agreement(a, [2.0, 2.0, 2.00005, 2.004]) == [(7, 2), (5, 3), (3, 4)]
    assert demo.agreement(a, [2.0, math.nan, 2.0, 2.0]) == [(7, 1)]


@pytest.mark.parametrize("name", UNUSABLE_TEXTS)
def test_an_unusable_file_is_one_clear_line_and_status_2(name, tmp_path, capsys):
    path, word = unusable(name, tmp_path)
    assert run("--text", path) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and len(printed.err.splitlines()) == 1
    assert printed.err.startswith(f"demo: {path}: ") and word in printed.err


def test_a_folder_is_not_a_text(tmp_path, capsys):
    assert run("--text", tmp_path) == 2
    assert "Is a directory" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, word",
    [
        (["--cell", "cnn"], "invalid choice"),
        (["--hidden", "0"], "positive int"),
        (["--seconds", "inf"], "positive float"),
        (["--steps", "1.5"], "positive int"),
        (["--device", "warp"], "--device warp"),
        (["--out", "no/such/folder/x.png"], "--out"),
    ],
)
def test_a_bad_argument_is_status_2(arguments, word, capsys):
    assert word in refused(demo.main, arguments, capsys)


def test_the_shortest_text_that_is_accepted_works(tmp_path, capsys):
    path = tmp_path / "text.txt"
    path.write_text("x")
    assert run("--text", path) == 2
    least = int(capsys.readouterr().err.split("at least ")[1].split()[0])
    path.write_text("ab" * (least // 2) + "c" * (least % 2))
    assert run("--text", path, "--hidden", 4, "--layers", 1, "--steps", 2, "--out", tmp_path / "x.png") == 0


def test_it_imports_no_more_than_make_demo_installs():
    """Packages of the extra `demo` and of torch; Lightning, tokenizers and the like belong to the other examples."""
    code = "import sys, examples.demo; print(*{name.partition('.')[0] for name in sys.modules})"
    done = fresh.python("-c", code, cwd=Path(demo.__file__).parents[1])
    assert done.returncode == 0, done.stderr
    imported = set(done.stdout.split())
    assert {"torch", "matplotlib", "numpy", "tqdm"} <= imported
    others = {"lightning", "pooch", "safetensors", "tokenizers", "scipy", "sklearn", "pandas", "rich", "statsmodels"}
    assert not imported & others


def test_the_default_text_is_python_and_always_the_same():
    default = streams.standard_library()
    assert default == streams.standard_library() and len(default) <= streams.STANDARD_LIBRARY
    assert len(default) > 500_000 and "import" in default
