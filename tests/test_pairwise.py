"""The covering arrays that choose cases of the short suite."""

import itertools

import pytest
from pairwise import cover, product, thinned


@pytest.mark.parametrize("sizes, most", [((3, 3), 9), ((4, 3, 2), 12), ((6, 5, 4, 3), 34), ((2,) * 8, 12)])
def test_every_two_values_meet(sizes, most):
    factors = [[f"{n}-{v}" for v in range(size)] for n, size in enumerate(sizes)]
    chosen = cover(factors, 2, lambda *case: True)
    for a, b in itertools.combinations(range(len(sizes)), 2):
        assert {(case[a], case[b]) for case in chosen} == set(itertools.product(factors[a], factors[b]))
    assert len(chosen) <= most and chosen == cover(factors, 2, lambda *case: True) and len(set(chosen)) == len(chosen)


def test_what_does_not_exist_is_left_out():
    exists = lambda cell, activation, T: (cell, activation) != ("rnn", "hard") and T  # noqa: E731
    factors = ["rnn", "gru"], ["soft", "hard"], [0, 1, 2]
    chosen = cover(factors, 2, exists)
    assert all(exists(*case) for case in chosen)
    assert {(c, a) for c, a, _ in chosen} == {("rnn", "soft"), ("gru", "soft"), ("gru", "hard")}
    assert {(a, T) for _, a, T in chosen} == set(itertools.product(["soft", "hard"], [1, 2]))
    assert set(chosen) <= set(product(*factors, exists=exists)) and len(product(*factors, exists=exists)) == 6
    once = cover(factors, 1, exists)
    assert [set(values) for values in zip(*once, strict=True)] == [{"rnn", "gru"}, {"soft", "hard"}, {1, 2}]
    assert len(once) == 2


def test_a_long_list_keeps_its_pairs():
    listed = [
        (cell, stage, T) for T in range(4) for stage in "abc" for cell in "xyz" if (stage, cell) != ("a", "x")
    ] * 3
    chosen, found = thinned(listed, lambda case: list(enumerate(case))), set()
    for case in chosen:
        found |= set(itertools.combinations(enumerate(case), 2))
    assert found == {pair for case in listed for pair in itertools.combinations(enumerate(case), 2)}
    assert 12 <= len(chosen) < 30 and chosen == thinned(listed, lambda case: list(enumerate(case)))
