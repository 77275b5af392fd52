"""The gates example: what is drawn is what the equations say, runs repeat, and the page works in a browser."""

import json
import re
import shutil
import subprocess

import pytest
import torch

pytest.importorskip("lightning", reason="the examples need Lightning: pip install .[examples]")
pytest.importorskip("plotly", reason="the examples need plotly: pip install .[examples]")

from examples import common, gate_plots, gates, products, reviews, sentiment

SMALL = ("--reviews", 200, "--epochs", 1, "--characters", 62_000)
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PROBE = """<script>
window.addEventListener("load", () => setTimeout(() => {
  const plot = document.querySelector(".js-plotly-plot"), map = plot.querySelector(".nsewdrag");
  const box = map.getBoundingClientRect(), bubbles = true, view = window;
  const at = {clientX: box.left + 0.35 * box.width, clientY: box.top + 0.5 * box.height, bubbles, view};
  for (const kind of ["mouseover", "mousemove"]) map.dispatchEvent(new MouseEvent(kind, at));
  const texts = (wanted) => [...plot.querySelectorAll(wanted)].map((e) => [...e.querySelectorAll("tspan")].length ?
      [...e.querySelectorAll("tspan")].map((line) => line.textContent).join("|") : e.textContent);
  document.body.innerHTML = "<pre>" + JSON.stringify({
    title: texts(".gtitle"), axes: texts("[class^=x][class$=title], [class^=y][class$=title]"),
    ticks: texts("[class^=x][class$=tick]"), hover: texts(".hovertext"),
  }) + "</pre>";
}, 300));
</script></body>"""


def run(*arguments):
    return gates.main([str(argument) for argument in arguments])


def metrics(out):
    return json.loads((out / "metrics.json").read_text())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "first"
    assert run(*SMALL, "--out", out) == 0
    return out


def test_phrases_are_in_the_language_of_what_was_learned(tmp_path):
    learned = ("--data", "products", "--cell", "lstm", "--reviews", "300", "--epochs", "1", "--out")
    assert sentiment.main([*learned, str(tmp_path / "learned")]) == 0
    assert run(*SMALL, "--load", tmp_path / "learned", "--out", tmp_path / "drawn") == 0
    page = (tmp_path / "drawn" / "reviews.html").read_text(encoding="utf-8")
    assert all(json.dumps(phrase)[1:-1] in page for phrase, _ in products.HARD[:2])


def test_it_writes_pictures_and_pages_that_need_no_network(trained):
    for of in ("reviews", "characters"):
        assert (trained / f"{of}.png").read_bytes().startswith(b"\x89PNG")
        page = (trained / f"{of}.html").read_text(encoding="utf-8")
        assert "Plotly.newPlot" in page and not re.search(r"<(script|link)[^>]+(src|href)=", page)
    assert (trained / "beside_invented.png").read_bytes().startswith(b"\x89PNG")
    found = metrics(trained)
    assert 0 < found["characters_bits"] < 6 and 0 <= found["characters_line_correlation"] <= 1
    for half in ("reviews", "characters"):
        for gate in "fio":
            assert 0 <= found[f"{half}_{gate}_open"] + found[f"{half}_{gate}_shut"] <= 1


@pytest.mark.long
def test_a_seed_repeats_its_metrics_and_loading_does_too(trained, tmp_path):
    assert run(*SMALL, "--out", tmp_path / "again") == 0
    assert run("--load", trained, "--out", tmp_path / "loaded") == 0
    for name in ("again", "loaded"):
        assert (tmp_path / name / "metrics.json").read_bytes() == (trained / "metrics.json").read_bytes()


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_what_is_traced_obeys_the_equations(cell):
    torch.manual_seed(0)
    for layers in common.LAYERS:  # a layer of torch.nn is converted
        model = gates.Characters(["?", "a", "b"], cell, layers)
        planes = gates.trace(model, model.encode("abba?z")[None])
        h, before = planes["h"][0], torch.cat([torch.zeros(1, 96), planes["h"][0, :-1]])
        if cell == "lstm":
            c = planes["c"][0]
            c_before = torch.cat([torch.zeros(1, 96), c[:-1]])
            torch.testing.assert_close(c, planes["f"][0] * c_before + planes["i"][0] * planes["g"][0])
            torch.testing.assert_close(h, planes["o"][0] * c.tanh())
        else:
            torch.testing.assert_close(h, (1 - planes["z"][0]) * planes["n"][0] + planes["z"][0] * before)
        with torch.no_grad():
            torch.testing.assert_close(h, model.layers[0](model.embedding(model.encode("abba?z")))[0])


def test_units_keep_their_order_and_numbers():
    planes = {"h": torch.tensor([[0.0, 0, 0], [0.1, 0.9, -0.5]]), "f": torch.rand(2, 3), "g": torch.rand(2, 3)}
    other = {"h": torch.rand(2, 3), "f": torch.rand(2, 3)}
    (first, second), units = gate_plots.in_order(
        [gate_plots.Traced("p", ["a", "b"], planes), gate_plots.Traced("q", ["a", "b"], other)]
    )
    assert units == [1, 0, 2] and list(first.planes) == ["f", "h"]
    assert torch.equal(second.planes["f"], other["f"][:, units]) and torch.equal(
        first.planes["f"], planes["f"][:, units]
    )
    assert gate_plots.colours([first, second], "f") == ("viridis", 0.0, 1.0)
    assert gate_plots.lengths({"h": torch.tensor([[3.0, 4.0]])}) == {"|h|": [5.0]}


def test_open_and_shut_are_shares():
    found = gates.open_and_shut({"f": torch.tensor([[0.95, 0.5], [0.05, 0.99]]), "h": torch.ones(2, 2)})
    assert found == {"f_open": 0.5, "f_shut": 0.25}


def test_the_unit_that_counts_is_found_and_judged_on_the_other_half(monkeypatch):
    """Unit 2 follows the place in the line, unit 1 does so in the first half only, where it is even better."""
    text = ("." * 49 + "\n") * 400
    place = torch.arange(20_000).remainder(50).float().view(40, 500)
    noise = torch.randn(40, 500, 3, generator=torch.Generator().manual_seed(0))
    noise[..., 2] += place
    monkeypatch.setattr(gates, "trace", lambda *_: {"c": noise, "h": noise})
    model = gates.Characters(["?", ".", "\n"], "lstm", "torch")
    unit, correlation = gates.line_unit(model, text)
    assert unit == 2 and 0.99 < correlation < 1
    noise[:20, :, 1] = place[:20]
    unit, correlation = gates.line_unit(model, text)
    assert unit == 1 and correlation < 0.1


def test_a_model_of_sentiment_can_be_loaded(tmp_path, capsys):
    options = ("--cell", "gru", "--reviews", 120, "--epochs", 1, "--batch", 16, "--embedding", 8)
    assert sentiment.main([str(word) for word in (*options, "--out", tmp_path / "s")]) == 0
    phrase = ("--phrase", "le film est raté.")
    assert run("--load", tmp_path / "s", "--cell", "gru", *phrase, "--out", tmp_path / "g") == 0
    assert set(metrics(tmp_path / "g")) == {"reviews_accuracy"} | {
        f"reviews_{g}_{s}" for g in "rz" for s in ("open", "shut")
    }
    assert metrics(tmp_path / "g")["reviews_accuracy"] == metrics(tmp_path / "s")["gru_accuracy"]
    page = (tmp_path / "g" / "reviews.html").read_text(encoding="utf-8")
    assert "reset gate r" in page and "forget gate f" not in page and "le film est rat" in page
    assert not (tmp_path / "g" / "characters.png").exists()
    assert not (tmp_path / "g" / "beside_invented.png").exists()  # those are of an LSTM
    capsys.readouterr()
    assert run("--load", tmp_path / "s", "--out", tmp_path / "x") == 2
    assert capsys.readouterr().err == f"gates: --load {tmp_path / 's'}: no lstm there, but gru\n"


@pytest.mark.parametrize(
    "content, word", [(None, "No such file"), (b"", "empty"), (b"caf\xe9", "not UTF-8"), (b"short", "at least 60000")]
)
def test_an_unusable_text_is_one_clear_line_and_status_2(content, word, tmp_path, capsys):
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    assert run("--text", path, "--out", tmp_path / "out") == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith(f"gates: {path}") and word in lines[0]


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium in the path")
def test_the_page_in_a_browser(trained, tmp_path):
    """Title, axes, and under the pointer the word, the gate, the unit and its value: the one that trace gives."""
    page = (trained / "reviews.html").read_text(encoding="utf-8")
    assert page.count("</body>") == 1
    probe = tmp_path / "probe.html"
    probe.write_text(page.replace("</body>", PROBE), encoding="utf-8")
    options = ("--headless", "--no-sandbox", "--disable-gpu", "--window-size=1400,1400", "--virtual-time-budget=5000")
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    command = [CHROMIUM, *options, profile, "--dump-dom", probe.as_uri()]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=240)
    shown = re.search(r"<pre>(.*)</pre>", ended.stdout, re.DOTALL)
    assert shown, ended.stderr
    found = json.loads(shown[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    assert found["title"] == ["Gates and states of the LSTM that reads reviews"]
    assert found["axes"].count("word") == 2 and {"forget gate f", "cell state c", "length"} <= set(found["axes"])
    phrase = reviews.words("malgré une fin ratée, le film est superbe.")
    assert found["ticks"][: len(phrase)] == phrase
    word, gate, unit, value = re.fullmatch(r"(.*)\|(.*), unit (\d+): ([\d.]+)", found["hover"][0]).groups()
    assert (word, gate) == ("ratée", "forget gate f")
    asked = sentiment.parser().parse_args(["--load", str(trained / "sentiment")])
    models, vocabulary, _ = sentiment.recall(asked)
    planes = gates.trace(models["lstm"], vocabulary.encode(" ".join(phrase), 200)[None])
    assert float(value) == pytest.approx(planes["f"][0, phrase.index("ratée"), int(unit)].item(), abs=6e-4)
