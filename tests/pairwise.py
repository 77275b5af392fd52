"""Which cases of a product of factors the tests run: a pairwise covering array, or the product (RNNKERNELS_TESTS=all).

In a pairwise array every two values of two factors meet in a case at least: most faults need no more than two things
to come together, and the array grows like the product of the two largest factors, not of all.
"""

import itertools
import os
import random

ALL = os.environ.get("RNNKERNELS_TESTS") == "all"  # make test-all


def product(*factors, exists=lambda *case: True):
    """The cases (tuples, one value per factor) that exist."""
    return [case for case in itertools.product(*map(list, factors)) if exists(*case)]


def cover(factors, strength, exists):
    """Cases in which all that any ``strength`` places of a case that exists have in them come together.

    Greedy and deterministic: each time the case with most that is new, the first of those with equally many.
    """
    factors = [list(factor) for factor in factors]
    known = [
        at
        for at in itertools.product(*(range(len(f)) for f in factors))  # values need not be hashable
        if exists(*(f[k] for f, k in zip(factors, at, strict=True)))
    ]
    places = list(itertools.combinations(range(len(factors)), strength))
    parts = {at: {(where, tuple(at[i] for i in where)) for where in places} for at in known}
    missing, chosen = set().union(*parts.values()), []
    while missing:
        chosen.append(max(known, key=lambda at: len(parts[at] & missing)))
        missing -= parts[chosen[-1]]
    return [tuple(f[k] for f, k in zip(factors, at, strict=True)) for at in sorted(chosen)]


def cases(*factors, exists=lambda *case: True):
    """The cases that this run of the tests has, in the product's order: in the short suite every pair of values."""
    return product(*factors, exists=exists) if ALL else cover(factors, min(2, len(factors)), exists)


def in_turn(*factors, exists=lambda *case: True):
    """The same where cases are dear and pairs are covered elsewhere: in the short suite every value."""
    return product(*factors, exists=exists) if ALL else cover(factors, 1, exists)


def thinned(listed, features):
    """Those of a long list that bring two new things together, ``features(case)`` being what it has; in its order."""
    chosen, met = [], set()
    for n in random.Random(0).sample(
        range(len(listed)), len(listed)
    ):  # else those that come first would be all there is
        pairs = set(itertools.combinations(features(listed[n]), 2))
        if not pairs <= met:
            chosen.append(n)
            met |= pairs
    return [listed[n] for n in sorted(chosen)]


def among(listed, strength=2):
    """The same for a list of ``pytest.param``s: in the short suite every pair of values, or with ``strength`` 1 every
    value."""
    listed = list(listed)
    by_values = {case.values: case for case in listed}
    factors = [list(dict.fromkeys(values)) for values in zip(*by_values, strict=True)]
    return listed if ALL else [by_values[case] for case in cover(factors, strength, lambda *case: case in by_values)]
