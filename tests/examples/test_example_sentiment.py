"""The sentiment example: its grammar and data, models that do not see padding, runs that repeat, and two processes."""

import io
import itertools
import json
import os
import random
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("lightning", reason="the examples need Lightning: pip install .[examples]")
pytest.importorskip("sklearn", reason="the examples need scikit-learn: pip install .[examples]")

import pooch

from examples import common, french, products, reader, reviews, sentiment

ROOT = Path(__file__).parents[2]
SMALL = ("--embedding", 16, "--batch", 16, "--rate", 0.01)
DATA = Path(os.environ.get("RNNKERNELS_DATA", "does-not-exist"))  # a folder with rt-polarity.pos and rt-polarity.neg


def run(*arguments):
    return sentiment.main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Reviews of which only the order of two words tells good from bad: what stands after "but" counts."""
    draw, path = random.Random(0), tmp_path_factory.mktemp("reviews") / "mine.csv"
    things = [
        " ".join(pair) for pair in itertools.product("the a this that one our".split(), "film plot cast end".split())
    ]
    rows = ["text,label"]
    for thing, other in draw.sample([(p, q) for p in things for q in things], 260):
        rows.append(f'"{thing} dull, but {other} fine",1')
        rows.append(f'"{thing} fine, but {other} dull",0')
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def trained(table, tmp_path_factory):
    """One run of the GRU and its folder."""
    out = tmp_path_factory.mktemp("runs") / "first"
    assert run("--path", table, "--cell", "gru", "--epochs", 3, *SMALL, "--out", out) == 0
    return out


def metrics(out):
    return json.loads((out / "metrics.json").read_text())


def test_it_learns_what_a_bag_of_words_cannot(trained):
    found = metrics(trained)
    assert found["gru_accuracy"] == found["accuracy"] >= 0.95 and found["gru_loss"] < 0.3
    assert found["bag_of_words_accuracy"] < 0.75
    assert found["gru_parameters"] == sum(p.numel() for p in load_file(trained / "weights.safetensors").values())
    assert 1 <= found["gru_best_epoch"] <= found["gru_epochs"] <= 3
    for name in ("accuracy", "curves", "confusion"):
        assert (trained / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_a_seed_repeats_its_metrics_and_loading_does_too(table, trained, tmp_path):
    assert run("--path", table, "--cell", "gru", "--epochs", 3, *SMALL, "--out", tmp_path / "again") == 0
    assert run("--load", trained, "--out", tmp_path / "loaded") == 0
    for name in ("again", "loaded"):
        assert (tmp_path / name / "metrics.json").read_bytes() == (trained / "metrics.json").read_bytes()


def test_all_six_models_stand_in_one_table(table, tmp_path, capsys):
    assert run("--path", table, "--reviews", 120, "--epochs", 1, *SMALL, "--out", tmp_path) == 0
    printed, found = capsys.readouterr().out, metrics(tmp_path)
    for kind in (*reader.MODELS, "bag_of_words"):
        assert found[f"{kind}_parameters"] > 0 and 0 <= found[f"{kind}_accuracy"] <= 1
        assert kind.replace("_", " ") in printed
    assert "precision" in printed and "fine, but" in printed  # the report, and a hard phrase
    assert (tmp_path / "attention.png").read_bytes().startswith(b"\x89PNG")


def test_the_reviews_of_products():
    """Every word of the six phrases is known; and no phrase stands in the corpus."""
    made = french.reviews(4000, 0, products.PRODUCTS, products.HARD)
    texts = {review.text for review in made}
    assert len(texts) == 4000 and sum(review.label for review in made) == 2000
    known = {word for text in texts for word in reviews.words(text)}
    assert {word for text, _ in products.HARD for word in reviews.words(text)} <= known
    assert not re.search(r"[{/]|  |\b(ce|ma|la) (équipe|interface|expérience)", "\n".join(texts))
    assert not {" ".join(reviews.words(text)) for text in texts} & {
        " ".join(reviews.words(p)) for p, _ in products.HARD
    }


@pytest.mark.parametrize("sizes", sentiment.SIZES)
def test_the_sizes_of_the_texts(sizes, tmp_path):
    """Parameters as the text's model has them, with torch's second bias and one logit instead of two."""
    options = ("--reviews", 240, "--epochs", 1, "--tokens", 9, "--batch", 32, "--cell", "stacked")
    assert run("--sizes", sizes, *options, "--out", tmp_path) == 0
    E, H, stack = {
        "overview": (100, 128, (128, 64)),
        "course": (128, 64, (128, 64)),
        "notebook": (100, 128, (128, 128)),
    }[sizes]
    weights = load_file(tmp_path / "weights.safetensors")
    shapes = [tuple(weights[f"stacked.layers.{n}.weight_{of}_l0"].shape) for n in range(2) for of in ("ih", "hh")]
    p, q = stack
    assert shapes == [(4 * p, E), (4 * p, p), (4 * q, p), (4 * q, q)]
    asked = sentiment.parser().parse_args([])
    vars(asked).update(sentiment.SIZES[sizes] | {"recurrent_dropout": 0.0})
    assert reader.Reader("bilstm", 1000, asked).head.in_features == 2 * H


def test_vectors_to_begin_with(table, tmp_path, capsys):
    path = tmp_path / "some.vec"
    path.write_text("2 3\nfilm 1 2 3\nzebra 4 5 6\n", encoding="utf-8")
    vocabulary = reviews.Vocabulary(["<padding>", "<unknown>", "film"])
    assert {n: v.tolist() for n, v in reviews.read_vectors(path, vocabulary, 3).items()} == {2: [1, 2, 3]}
    for content, words in (
        ("film 1 2\n", "3 numbers wanted"),
        ("film 1 2 x\n", "'x'"),
        ("zebra 1 2 3\n", "none of the"),
    ):
        path.write_text(content)
        options = ("--embedding", 3, "--cell", "rnn", "--vectors", path)
        assert run("--path", table, *options, "--out", tmp_path / "out") == 2
        assert words in capsys.readouterr().err
    path.write_text("film 0.5 -0.5 9\n")
    small = ("--embedding", 3, "--batch", 16, "--rate", 1e-9, "--epochs", 1, "--cell", "rnn")
    assert run("--path", table, *small, "--vectors", path, "--out", tmp_path / "with") == 0
    assert "vectors of 1 words" in capsys.readouterr().out
    known = json.loads((tmp_path / "with" / "model.json").read_text())["words"]
    learned = load_file(tmp_path / "with" / "weights.safetensors")["rnn.embedding.weight"][known.index("film")]
    torch.testing.assert_close(learned, torch.tensor([0.5, -0.5, 9.0]), rtol=1e-4, atol=1e-4)


@pytest.mark.long
def test_the_layers_of_torch_nn(table, tmp_path, capsys):
    options = ("--path", table, "--cell", "bilstm", "--epochs", 2, *SMALL, "--dropout", 0, "--recurrent-dropout", 0)
    for layers in common.LAYERS:
        assert run(*options, "--layers", layers, "--out", tmp_path / layers) == 0
    found = [metrics(tmp_path / layers) for layers in common.LAYERS]
    assert found[0]["bilstm_loss"] == pytest.approx(found[1]["bilstm_loss"], rel=1e-2)
    assert "without it" not in capsys.readouterr().out
    assert run(*options[:-1], 0.3, "--epochs", 1, "--layers", "torch", "--out", tmp_path) == 0
    assert "no recurrent dropout: trained without it" in capsys.readouterr().out


@pytest.mark.parametrize("layers", common.LAYERS)
@pytest.mark.parametrize("kind", reader.MODELS)
def test_padding_has_no_influence(kind, layers):
    torch.manual_seed(0)
    asked = sentiment.parser().parse_args(
        ["--embedding", "12", "--units", "20", "--stack", "24", "20", "--layers", layers]
    )
    asked.recurrent_dropout = 0.3
    model = reader.Reader(kind, 30, asked).eval()
    lengths = torch.tensor([5, 1, 7, 3])
    tokens = torch.randint(2, 30, (4, 7))
    past = torch.arange(7) >= lengths[:, None]
    padded = torch.cat([tokens.masked_fill(past, reviews.PADDING), torch.full((4, 6), reviews.PADDING)], 1)
    found, weights = model(padded, lengths)
    rubbish, _ = model(torch.cat([tokens, torch.randint(2, 30, (4, 6))], 1), lengths)  # any words past the ends
    alone = torch.cat([model(tokens[n : n + 1, :length], length[None])[0] for n, length in enumerate(lengths)])
    torch.testing.assert_close(rubbish, found, rtol=0, atol=1e-6)
    torch.testing.assert_close(alone, found, rtol=0, atol=1e-6)
    assert len(set(found.tolist())) == 4
    if kind == "attention":
        assert weights[:, :7][past].eq(0).all() and weights[:, 7:].eq(0).all()
        torch.testing.assert_close(weights.sum(1), torch.ones(4))


def test_the_grammar():
    made = french.reviews(3000, seed=3)
    assert made == french.reviews(3000, seed=3) != french.reviews(3000, seed=4)
    texts = {review.text for review in made}
    assert len(texts) == 3000 and not texts & {text for text, _ in french.HARD}
    assert sum(review.label for review in made) == 1500
    kinds = [review.kind for review in made]
    assert all(kinds.count(kind) > 400 for kind in french.CORES)
    known = {word for text in texts for word in reviews.words(text)}
    assert {word for text, _ in french.HARD for word in reviews.words(text)} <= known
    assert {"malgré", "finalement", "l'", "ratée", "ennuyeuse"} <= known
    assert not re.search(r"\{|  | ,|l[ea] (intrigue|histoire|humour)", "\n".join(texts))


def test_no_word_of_the_grammar_tells_the_label_of_a_concession():
    """Both labels use every word equally often, but for chance: no count is beyond five standard deviations."""
    made = [french.sentence(draw, n % 2) for draw in [random.Random(0)] for n in range(8000)]
    bags = [(set(reviews.words(review.text)), review.label) for review in made if review.kind != "plain"]
    for word in set().union(*(bag for bag, _ in bags)):
        labels = [label for bag, label in bags if word in bag]
        assert abs(2 * sum(labels) - len(labels)) <= 5 * len(labels) ** 0.5, word


@pytest.mark.parametrize("data", ["french", "file"])
def test_no_test_sentence_stands_in_training(data, table):
    arguments = ["--data", data, "--reviews", "300", *(["--path", str(table)] if data == "file" else [])]
    asked = sentiment.parser().parse_args(arguments)
    sentiment.settle(asked)
    parts = [{" ".join(reviews.words(review.text)) for review in part} for part in reviews.load(asked)]
    assert [len(part) for part in parts] == [243, 27, 30]
    assert not parts[0] & parts[1] and not parts[0] & parts[2] and not parts[1] & parts[2]


def test_copies_are_dropped_and_the_test_part_wins():
    many = [french.Review(text, 1) for text in ("a  fine Film", "a fine film", " ", "so so", "other")]
    kept = reviews.distinct(many, without=[french.Review("So so", 0)])
    assert [review.text for review in kept] == ["a  fine Film", "other"]


def test_words_and_vocabulary():
    assert reviews.words("L'intrigue n’est pas, d'accord ?") == [
        "l'",
        "intrigue",
        "n'",
        *"est pas , d' accord ?".split(),
    ]
    assert reviews.words("it isn't well-made .") == ["it", "isn't", "well-made", "."]
    known = reviews.Vocabulary.of([french.Review("a b b c c c", 1), french.Review("c b", 0)], size=4)
    assert known.known == ["<padding>", "<unknown>", "c", "b"]  # a occurs once
    assert known.encode("a b c", 2).tolist() == [3, 2] and known.encode("z", 5).tolist() == [1]
    assert known.encode("", 5).tolist() == [1]
    tokens, lengths, labels = reviews.batch([(known.encode("c", 9), 1), (known.encode("b c b", 9), 0)])
    assert tokens.tolist() == [[2, 0, 0], [3, 2, 3]] and lengths.tolist() == [1, 3] and labels.tolist() == [1.0, 0.0]


def test_a_tsv_and_another_encoding(tmp_path):
    (tmp_path / "x.tsv").write_bytes("text\tlabel\nun café, oui\t1\n".encode("latin-1"))
    assert reviews.from_file(tmp_path / "x.tsv", "latin-1") == [french.Review("un café, oui", 1)]


def test_the_layout_of_imdb(tmp_path):
    places = itertools.product(("train", "test"), ("pos", "neg"), range(40))
    files = {f"aclImdb/{part}/{kind}/{n}_7.txt": f"{part} {kind} é<br />{n}".encode() for part, kind, n in places}
    files["aclImdb/train/pos/99_9.txt"] = "Test pos é 7".encode()  # stands in the test part
    files |= {"aclImdb/train/unsup/0_0.txt": b"no label", "aclImdb/README": b"about"}
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz") as made:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            made.addfile(member, io.BytesIO(content))
    asked = sentiment.parser().parse_args(["--data", "imdb", "--path", str(tmp_path / "x.tar.gz")])
    sentiment.settle(asked)
    train, validation, test = reviews.load(asked)
    assert (len(train), len(validation), len(test)) == (72, 8, 80) and asked.recurrent_dropout == 0.2
    assert {review.text.split()[0] for review in train + validation} == {"train"}
    assert {review.text for review in test if review.label} == {f"test pos é {n}" for n in range(40)}


def test_rt_polarity_is_fetched_unpacked_and_latin_1(tmp_path, monkeypatch):
    def retrieve(url, sha256, **_):
        assert url.endswith("rt-polaritydata.tar.gz") and len(sha256) == 64
        return [str(tmp_path / name) for name in ("rt-polarity.pos", "README", "rt-polarity.neg")]

    for suffix in ("neg", "pos"):
        lines = "".join(f"café {suffix} {n}\n" for n in range(30))
        (tmp_path / f"rt-polarity.{suffix}").write_text(lines, encoding="latin-1")
    monkeypatch.setattr(pooch, "retrieve", retrieve)
    asked = sentiment.parser().parse_args(["--data", "rt-polarity"])
    sentiment.settle(asked)
    found = [review for part in reviews.load(asked) for review in part]
    assert len(found) == 60 and all(review.text.startswith("café") for review in found)
    assert all(("pos" in review.text) == review.label for review in found)


@pytest.mark.parametrize("data", ["rt-polarity", "imdb"])
def test_without_a_network_it_is_one_clear_line(data, tmp_path, capsys, monkeypatch):
    def retrieve(*_, **__):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(pooch, "retrieve", retrieve)
    assert run("--data", data, "--out", tmp_path) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and len(printed.err.splitlines()) == 1
    assert "cannot be had (no route to host); name a file with --path" in printed.err


LINES = "".join(f"a review {n},{n % 2}\n" for n in range(60))


@pytest.mark.parametrize(
    "name, content, word",
    [
        ("x.csv", None, "No such file"),
        ("x.csv", b"", "empty"),
        ("x.csv", b"\x7fELF\0\0" * 9, "binary"),
        ("x.csv", f"text,label\ncaf\xe9,1\n{LINES}".encode("latin-1"), "not UTF-8 text (byte 14)"),
        ("x.csv", f"text,stars\n{LINES}".encode(), "columns text and label wanted, but found text, stars"),
        ("x.csv", f"text,label\n{LINES}good,yes\n".encode(), "line 62: label 0 or 1 wanted, but found 'yes'"),
        ("x.csv", b"text,label\nonly\n", "line 2: label 0 or 1 wanted, but found None"),
        ("x.csv", f"text,label\n{LINES[: LINES.index('a review 38')]}".encode(), "at least 20 of each are needed"),
        ("x.pos", b"good\n", "x.neg: No such file"),
    ],
)
def test_an_unusable_file_is_one_clear_line_and_status_2(name, content, word, tmp_path, capsys):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert run("--path", tmp_path / name, "--out", tmp_path / "out") == 2
    printed = capsys.readouterr()
    assert printed.out == "" and len(printed.err.splitlines()) == 1
    assert printed.err.startswith("sentiment: ") and word in printed.err


def test_what_does_not_go_together_is_status_2(table, tmp_path, capsys):
    (tmp_path / "model.json").write_text('{"example": "other"}')
    common.save_file({"w": torch.zeros(1)}, tmp_path / "weights.safetensors")
    for arguments, word in (
        (("--data", "french", "--path", "x.csv"), "--path FILE goes with"),
        (("--data", "file"), "--path FILE goes with"),
        (("--data", "imdb", "--path", __file__), "not a gzip file"),
        (("--reviews", 100, "--batch", 200), "less than a batch"),
        (("--path", table, "--reviews", 1), "at least 20 of each are needed"),
        (("--load", tmp_path / "nowhere"), "no model.json there"),
        (("--load", tmp_path), "not a run of sentiment"),
    ):
        assert run(*arguments, "--out", tmp_path / "out") == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and word in lines[0]
    with pytest.raises(SystemExit):
        run("--dropout", "1")
    assert "--dropout" in capsys.readouterr().err


@pytest.mark.long
def test_two_processes_train_like_one_with_twice_the_batch(table, tmp_path):
    """The same rows make up each step, gradients are averaged; without dropout what remains is rounding."""
    options = ["--path", table, "--cell", "gru", "--reviews", 200, "--epochs", 2, "--embedding", 16]
    options += ["--rate", 0.01, "--seed", 5, "--dropout", 0, "--recurrent-dropout", 0]
    both = [*options, "--processes", 2, "--batch", 8, "--out", tmp_path / "both"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [sys.executable, "-m", "examples.sentiment", *map(str, both)],
        capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=300,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("written: ") == 1  # the second process is silent
    assert run(*options, "--batch", 16, "--out", tmp_path / "one") == 0
    found, expected = (load_file(tmp_path / name / "weights.safetensors") for name in ("both", "one"))
    for name, value in expected.items():
        assert (found[name] - value).abs().max() <= 1e-4 * value.abs().max(), name
    found, expected = metrics(tmp_path / "both"), metrics(tmp_path / "one")
    assert found.pop("chosen") == expected.pop("chosen") == "gru"
    assert found == pytest.approx(expected, rel=1e-3) and expected["gru_loss"] < 0.69


def test_two_epochs_of_the_real_rt_polarity(tmp_path):
    """They leave chance behind; the full training reaches 74 %."""
    if not (path := DATA / "rt-polarity.pos").exists():
        pytest.skip("RNNKERNELS_DATA names no folder with rt-polarity.pos")
    options = ("--cell", "attention", "--epochs", 2, "--out", tmp_path)
    assert run("--data", "rt-polarity", "--path", path, *options) == 0
    assert metrics(tmp_path)["accuracy"] >= 0.65
