"""Models whose packages bring trained weights give the same embeddings and labels."""

from pathlib import Path

import numpy
import pytest
import torch
from client_cases import package, with_converted
from common import assert_close

pytestmark = pytest.mark.filterwarnings("ignore")


def test_resemblyzer_s_embeddings():
    """Two voices of chords, 4 seconds each; an utterance is cut into windows, which are one batch of the LSTM."""
    resemblyzer = package("resemblyzer")
    theirs, ours = with_converted(resemblyzer.VoiceEncoder("cpu", verbose=False))
    t = numpy.arange(4 * resemblyzer.sampling_rate) / resemblyzer.sampling_rate
    for pitch in (110, 220):
        wave = sum(numpy.sin(2 * numpy.pi * pitch * k * t) / k for k in range(1, 9)) * (1 + 0.5 * numpy.sin(9 * t)) / 4
        expected, windows, _ = theirs.embed_utterance(wave.astype(numpy.float32), return_partials=True)
        actual, same_windows, _ = ours.embed_utterance(wave.astype(numpy.float32), return_partials=True)
        assert len(windows) > 1
        assert_close("embedding", torch.from_numpy(actual), torch.from_numpy(expected))
        assert_close("windows", torch.from_numpy(same_windows), torch.from_numpy(windows))


def test_ribodetector_s_labels():
    """Reads of 40 to 100 letters, packed and not; half of them are pieces of one sequence, with errors."""
    model = package("ribodetector.model.model")
    encoder = package("ribodetector.data_loader.seq_encoder")
    weights = Path(package("ribodetector").__file__).parent / "data/model_len70_101.pth"
    detector = model.SeqModel(4, 128, 1, 2)
    detector.load_state_dict(torch.load(weights, weights_only=False, map_location="cpu")["state_dict"])
    theirs, ours = with_converted(detector.eval())
    draw = numpy.random.default_rng(0)
    long = "".join(draw.choice(list("ACGT"), 400))
    reads = []
    for n in range(64):
        length, start = draw.integers(40, 101), draw.integers(0, 300)
        reads.append(long[start : start + length] if n % 2 else "".join(draw.choice(list("ACGTN"), length)))
    lengths = torch.tensor([len(read) for read in reads])
    x = torch.tensor([encoder.encode_variable_len_read(read) for read in reads], dtype=torch.float32)
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    with torch.no_grad():
        for name, call in (("packed", lambda m: m(packed)), ("padded", lambda m: m.forward2(x))):
            expected, actual = call(theirs), call(ours)
            assert_close(name, actual, expected)
            assert torch.equal(actual.argmax(1), expected.argmax(1))
        assert len(expected.argmax(1).unique()) == 2
