"""Mixtures: exact shares, each source drawn as if alone, bad weights refused."""

import math
import pickle
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import save_tokens
from tiny_llm.batching import Mixture, batches, get_batch, load_token_array
from tiny_llm.batching.sampling import Samples, choose_window_starts

# The smallest possible share of these, 1 / 40,001, is still accepted.
weights = st.one_of(st.integers(1, 1000), st.floats(0.1, 1000))


def sources(*lengths):
    """Arrays whose ids show their source: 0, 1, ... then 1000, 1001, ... and so on."""
    return [
        (np.arange(length) + 1000 * number).astype(np.uint16)
        for number, length in enumerate(lengths)
    ]


@settings(deadline=None)
@given(
    st.lists(weights, min_size=1, max_size=5),
    st.integers(0, 10**6),
    st.integers(0, 9),
)
def test_every_block_ends_within_one_of_each_share(parts, block, seed):
    mixture = Mixture([(np.zeros(9, np.uint16), weight) for weight in parts])
    size = mixture.block_size
    before, after = (
        mixture.num_taken(block * size),
        mixture.num_taken((block + 1) * size),
    )
    assert sum(after) == (block + 1) * size
    for share, count in zip(mixture.shares, after, strict=True):
        assert abs(count - share * (block + 1) * size) < 1
    assigned, numbers = mixture.assign(seed, block * size, size)
    for source in range(len(parts)):
        own = numbers[assigned == source].tolist()
        assert own == list(range(before[source], after[source]))


def test_each_source_is_drawn_as_if_it_were_alone():
    """None of its samples is lost or repeated between batches."""
    arrays = sources(300, 200, 400)
    mixture = Mixture([(arrays[0], 5), (arrays[1], 3), (arrays[2], 2)])
    x = torch.cat(
        [
            get_batch(mixture, 100, 7, seed=4, step=step, replace=False)[0]
            for step in range(30)
        ]
    )
    drawn = x[:, 0].numpy()
    for number, array in enumerate(arrays):
        own = drawn[drawn // 1000 == number]
        assert len(own) >= 3000 * mixture.shares[number] - 100
        alone = choose_window_starts(
            len(array), 7, Samples(f"4/{number}", 0, len(own), replace=False)
        )
        assert own.tolist() == (alone + 1000 * number).tolist()


def test_unseeded_draws_have_the_shares_of_seeded_ones():
    mixture = Mixture(list(zip(sources(40, 30, 50), (5, 3, 2), strict=True)))
    drawn = get_batch(mixture, 10_000, 9)[0][:, 0] // 1000
    for number, share in enumerate(mixture.shares):
        assert abs(int((drawn == number).sum()) / 10_000 - share) < 0.03


def test_windows_stay_inside_their_source():
    mixture = Mixture([(array, 1) for array in sources(40, 30, 50)])
    x, y = get_batch(mixture, 500, 25)
    assert torch.equal(x + 1, y)
    assert len(set((x[:, 0] // 1000).tolist())) == 3


@pytest.mark.parametrize("replace", [True, False])
def test_the_global_batch_is_equal_for_any_number_of_ranks(replace):
    mixture = Mixture(list(zip(sources(900, 500), [0.7, 0.3], strict=True)))
    whole = get_batch(mixture, 64, 9, seed=2, step=31, replace=replace)[0]
    for world_size in (2, 8, 64):
        parts = [
            get_batch(
                mixture,
                64 // world_size,
                9,
                seed=2,
                step=31,
                rank=rank,
                world_size=world_size,
                replace=replace,
            )[0]
            for rank in range(world_size)
        ]
        assert torch.equal(torch.cat(parts), whole)


def test_sources_may_be_several_files_and_begin_with_documents(tmp_path):
    a = save_tokens(tmp_path / "a.bin", [1, 2, 256, 3, 4, 256])
    b = save_tokens(tmp_path / "b.bin", [5, 6, 256, 7, 8, 9, 256])
    mixture = Mixture([(load_token_array([a, b]), 1), (b, 1)])
    x, _ = get_batch(mixture, 300, 2, align="document")
    assert {tuple(row) for row in x.tolist()} == {(1, 2), (3, 4), (5, 6), (7, 8)}


def test_sources_of_two_tokenizers_are_refused(tmp_path):
    a = save_tokens(tmp_path / "a.bin", [1, 2, 3], tokenizer_sha256="a" * 64)
    b = save_tokens(tmp_path / "b.bin", [1, 2, 3], tokenizer_sha256="b" * 64)
    with pytest.raises(ValueError, match="was made by the tokenizer"):
        Mixture([(load_token_array(a), 1), (load_token_array(b), 1)])


@pytest.mark.parametrize(
    "weight", [0, -1, -0.5, math.nan, math.inf, "1", None, True, 0.0, -(10**400)]
)
def test_bad_weights_are_refused(weight):
    first, second = sources(30, 30)
    message = r"the weight of source 1 is .*; give a number > 0"
    with pytest.raises(ValueError, match=message):
        Mixture([(first, 1), (second, weight)])


def test_bad_sources_are_refused():
    [array] = sources(30)
    mixture = Mixture([(array, 1)])
    with pytest.raises(ValueError, match="at least one"):
        Mixture([])
    with pytest.raises(ValueError, match=r"source 1 is not a pair \(data, weight\)"):
        Mixture([(array, 1), array])
    with pytest.raises(ValueError, match="source 0 is of type Mixture"):
        Mixture([(mixture, 1)])
    with pytest.raises(ValueError, match="source 0 is of type DeviceArray"):
        Mixture([(torch.zeros(9, dtype=torch.uint16), 1)])
    with pytest.raises(ValueError, match=r"source 1 .* than one sample in 1,048,576"):
        Mixture([(array, 1), (array, 1e-9)])


def test_a_source_without_a_window_is_refused_at_the_first_batch():
    """Not when it is first drawn from, which may be a thousand batches later."""
    [array] = sources(30)
    mixture = Mixture([(array, 999), (array[:5], 1)])
    message = "source 1 of the mixture: data holds 5 ids, too few"
    with pytest.raises(ValueError, match=message):
        get_batch(mixture, 1, 9, seed=0)
    with pytest.raises(ValueError, match=message):
        batches(mixture, 1, 9, seed=0)
    with pytest.raises(
        ValueError, match="source 0 of the mixture: align='document' needs"
    ):
        get_batch(mixture, 1, 4, seed=0, align="document")


def test_a_mixture_pickles_without_what_it_keeps():
    mixture = Mixture([(np.zeros(9, np.uint16), Fraction(1, 3)), (np.ones(9, "u2"), 2)])
    get_batch(mixture, 4, 2, seed=0)
    pickled = pickle.dumps(mixture)
    assert len(pickled) < 1500
    assert (
        pickle.loads(pickled).shares
        == mixture.shares
        == [Fraction(1, 7), Fraction(6, 7)]
    )
