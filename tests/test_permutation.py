"""Permutations: one-to-one, even, and without neighbours that stay together."""

import numpy as np
import pytest

from tiny_llm.batching.permutation import Permutation, permutation

SMALL = list(range(1, 2001))
AROUND_POWERS = [4**k + d for k in range(6, 11) for d in (-2, -1, 0, 1, 2)]


def test_a_permutation_is_one_to_one_for_every_size():
    """Other loaders' index shuffle is not a permutation at n = 4**k + 1."""
    for n in SMALL + AROUND_POWERS:
        for order in (Permutation(n, "test"), permutation(n, "test")):
            sent = order(np.arange(n))
            assert np.array_equal(np.sort(sent), np.arange(n)), n


def test_the_example_of_the_permutation_worked_by_hand():
    permutation = Permutation(5, "test")
    permutation._tables = [np.array([1, 2]), np.array([0, 1, 0])]
    assert permutation(np.array([4, 3])).tolist() == [3, 1]


@pytest.mark.parametrize("make", [Permutation, permutation])
def test_permutations_of_other_keys_differ_and_are_even(make):
    n, tries = 7, 7000
    sent = np.array([make(n, key)(np.arange(n)) for key in range(tries)])
    for index in range(n):
        counts = np.bincount(sent[:, index], minlength=n)
        # Each of 7 places 1,000 times, give or take 6 standard deviations.
        assert np.abs(counts - tries / n).max() < 6 * np.sqrt(tries / n)


def test_every_order_of_few_comes_up():
    orders = {tuple(permutation(4, key)(np.arange(4)).tolist()) for key in range(1000)}
    assert len(orders) == 24


@pytest.mark.parametrize("n", [4097, 10_000])
def test_neighbours_do_not_stay_neighbours(n):
    """With four rounds, they did so twice as often as by chance."""
    num_keys = 400
    steps = [np.diff(Permutation(n, key)(np.arange(n))) for key in range(num_keys)]
    num_neighbours = np.count_nonzero(np.array(steps) == 1)
    assert num_neighbours < num_keys + 6 * np.sqrt(num_keys)


def test_an_index_outside_a_permutation_is_refused():
    for index in (-1, 5, 1 << 40):
        with pytest.raises(ValueError, match="give indices from 0 to 4"):
            Permutation(5, "test")(np.array([0, index]))
