"""The CRF of the tagging example against an enumeration of all tag sequences, in float64."""

import itertools

import pytest
import torch

from examples.crf import CRF


@pytest.fixture(scope="module", params=[2, 3])
def made(request):
    """A CRF of random weights, emissions of T = 4 steps, and lengths from 0 to T."""
    torch.manual_seed(request.param)
    crf = CRF(request.param).double()
    for weight in crf.parameters():
        torch.nn.init.normal_(weight)
    lengths = torch.tensor([4, 1, 3, 0, 2])
    return crf, torch.randn(5, 4, request.param, dtype=torch.float64), lengths


def enumerated(crf, emissions_TK, length):
    """Every sequence of tags with its score, term by term."""
    scores = {}
    for tags in itertools.product(range(emissions_TK.shape[1]), repeat=length):
        score = crf.start_K[tags[0]] + crf.end_K[tags[-1]]
        for t, tag in enumerate(tags):
            score = score + emissions_TK[t, tag]
        for a, b in itertools.pairwise(tags):
            score = score + crf.transitions_KK[a, b]
        scores[tags] = score
    return scores


def test_the_partition_is_the_sum_over_all_sequences(made):
    crf, emissions, lengths = made
    found = crf.log_partition(emissions, lengths)
    for b, length in enumerate(lengths.tolist()):
        if length:
            wanted = torch.stack(list(enumerated(crf, emissions[b], length).values())).logsumexp(0)
            torch.testing.assert_close(found[b], wanted, rtol=1e-12, atol=1e-12)


def test_viterbi_finds_the_best_sequence(made):
    crf, emissions, lengths = made
    found = crf.decode(emissions, lengths)
    for b, length in enumerate(lengths.tolist()):
        assert found[b, length:].eq(0).all()
        if length:
            scores = enumerated(crf, emissions[b], length)
            assert tuple(found[b, :length].tolist()) == max(scores, key=scores.get)


def test_the_likelihoods_of_all_sequences_sum_to_one(made):
    crf, emissions, lengths = made
    b, length = 2, 3
    tags = torch.tensor(list(enumerated(crf, emissions[b], length)))
    losses = crf(emissions[b, :length].expand(len(tags), -1, -1), tags, torch.full((len(tags),), length))
    torch.testing.assert_close(losses.neg().exp().sum(), torch.ones((), dtype=torch.float64), rtol=1e-12, atol=1e-12)
    assert losses.min() > 0


def test_gradients_are_those_of_the_enumeration(made):
    crf, emissions, lengths = made
    tags = torch.randint(emissions.shape[2], emissions.shape[:2], generator=torch.Generator().manual_seed(0))
    emissions = emissions.clone().requires_grad_()
    inputs = {"emissions": emissions, **dict(crf.named_parameters())}
    found = torch.autograd.grad(crf(emissions, tags, lengths).sum(), list(inputs.values()))
    loss = torch.zeros((), dtype=torch.float64)
    for b, length in enumerate(lengths.tolist()):
        if length:
            scores = enumerated(crf, emissions[b], length)
            loss = loss + torch.stack(list(scores.values())).logsumexp(0) - scores[tuple(tags[b, :length].tolist())]
    wanted = torch.autograd.grad(loss, list(inputs.values()))
    for name, p, q in zip(inputs, found, wanted, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}")


def test_padding_counts_for_nothing(made):
    crf, emissions, lengths = made
    tags = torch.zeros(emissions.shape[:2], dtype=torch.int64)
    other, others = emissions.clone(), tags.clone()
    for b, length in enumerate(lengths.tolist()):
        other[b, length:], others[b, length:] = 1e6, emissions.shape[2] - 1
    assert torch.equal(crf(emissions, tags, lengths), crf(other, others, lengths))
    assert torch.equal(crf.decode(emissions, lengths), crf.decode(other, lengths))
    assert crf(emissions, tags, lengths)[3] == 0  # a row of length 0


def test_what_is_not_allowed_never_comes():
    allowed, first = torch.tensor([[True, False], [True, True]]), torch.tensor([False, True])
    crf = CRF(2, allowed, first).double()
    emissions, lengths = torch.randn(50, 6, 2, dtype=torch.float64), torch.randint(1, 7, (50,))
    for row, length in zip(crf.decode(emissions, lengths).tolist(), lengths.tolist(), strict=True):
        assert row[0] == 1 and (0, 1) not in itertools.pairwise(row[:length])
    # four sequences of four steps are left: 1 1 1 1, 1 1 1 0, ... 1 0 0 0; without emissions they are equally likely
    tags = torch.tensor([[1] * n + [0] * (4 - n) for n in range(1, 5)])
    torch.testing.assert_close(
        crf(torch.zeros(4, 4, 2).double(), tags, torch.full((4,), 4)).exp(), torch.full((4,), 4.0).double()
    )


def test_transitions_decide_where_emissions_do_not():
    crf = CRF(3).double()
    with torch.no_grad():
        crf.transitions_KK.copy_(torch.tensor([[-9.0, 1, -9], [-9, -9, 1], [1, -9, -9]]))  # only 0 1 2 0 1 2 ...
    emissions = torch.zeros(1, 7, 3, dtype=torch.float64)
    emissions[0, 3, 2] = 0.1
    assert crf.decode(emissions, torch.tensor([7])).tolist() == [[2, 0, 1, 2, 0, 1, 2]]
