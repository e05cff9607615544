"""Start positions: the same forever, for any number of ranks, once per epoch."""

import hashlib
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tiny_llm.batching import get_batch, window_starts

# Changing one of these changes every seeded run: say it loudly in CHANGELOG.md.
GOLDEN = {
    True: "35bf1539789fc0237824956fb349348d5b946c53cac859a47bef357047c04466",
    False: "7cbd7204755e318c266b44050e938fab1e5b09f3a24a5830c5278b797aeb0a89",
}


def digest(starts) -> str:
    return hashlib.sha256(np.ascontiguousarray(starts, "<i8").tobytes()).hexdigest()


@pytest.mark.parametrize("replace", [True, False])
def test_starts_of_a_seed_never_change(replace):
    starts = [
        window_starts(num_tokens, 64, 256, seed=1337, step=step, replace=replace)
        for num_tokens in (257, 10_000, 764_264, 10**13)
        for step in (0, 1, 12_345, 10**9)
    ]
    assert digest(np.concatenate(starts)) == GOLDEN[replace]


@settings(deadline=None)
@given(
    st.integers(2, 10**13),
    st.integers(1, 4),
    st.integers(0, 10**6),
    st.integers(0, 2**70),
    st.booleans(),
)
def test_the_global_batch_is_equal_for_any_number_of_ranks(
    num_tokens, seq_len, step, seed, replace
):
    seq_len = min(seq_len, num_tokens - 1)
    whole = window_starts(
        num_tokens, 64, seq_len, seed=seed, step=step, replace=replace
    )
    assert 0 <= whole.min() <= whole.max() < num_tokens - seq_len
    for world_size in (2, 4, 8, 64):
        parts = [
            window_starts(
                num_tokens,
                64 // world_size,
                seq_len,
                seed=seed,
                step=step,
                rank=rank,
                world_size=world_size,
                replace=replace,
            )
            for rank in range(world_size)
        ]
        assert np.array_equal(np.concatenate(parts), whole)


@pytest.mark.parametrize("replace", [True, False])
def test_samples_go_on_when_the_batch_size_changes(replace):
    def starts(batch_size, step):
        return window_starts(
            50_000, batch_size, 32, seed=7, step=step, replace=replace
        ).tolist()

    assert starts(12, 0) + starts(12, 1) == starts(24, 0)
    assert starts(8, 3) == starts(24, 1)[:8]
    # 5 batches of 12, then one of 32 for each of two ranks: samples 60 to 124.
    later = [
        window_starts(
            50_000,
            32,
            32,
            seed=7,
            num_samples=60,
            rank=rank,
            world_size=2,
            replace=replace,
        ).tolist()
        for rank in range(2)
    ]
    assert later[0] + later[1] == (starts(124, 0))[60:]


@pytest.mark.parametrize("num_tokens", [9, 15, 16, 17, 24, 100, 1001])
def test_an_epoch_takes_each_of_its_windows_once(num_tokens):
    seq_len = 8
    num_windows = max(1, (num_tokens - seq_len) // seq_len)
    offsets = set()
    for epoch in range(40):
        starts = window_starts(
            num_tokens, num_windows, seq_len, seed=3, step=epoch, replace=False
        )
        offset = starts.min()
        offsets.add(int(offset))
        assert sorted(starts - offset) == list(range(0, num_windows * 8, 8))
        assert starts.max() + seq_len < num_tokens
    # Offsets change from epoch to epoch wherever there is room for it.
    assert len(offsets) > 4 or num_tokens < seq_len + 4


@pytest.mark.parametrize("num_tokens", [9, 15, 16, 17, 24, 100, 1001])
def test_epochs_together_take_every_id(num_tokens):
    seq_len = 8
    starts = window_starts(num_tokens, 20_000, seq_len, seed=3, replace=False)
    inputs = np.unique(starts[:, None] + np.arange(seq_len))
    assert inputs.tolist() == list(range(num_tokens - 1))


def test_rows_run_on_into_the_next_epoch():
    """Five windows an epoch, twelve rows a batch."""
    starts = [
        window_starts(48, 12, 8, seed=1, step=step, replace=False) for step in range(5)
    ]
    for epoch in np.concatenate(starts).reshape(12, 5):
        assert len(set(epoch.tolist())) == 5


def test_two_seeds_and_epochs_share_no_order():
    """With seed + epoch as a key, epoch 1 of seed 7 would be epoch 0 of seed 8."""

    def order(seed, epoch):
        return window_starts(
            80_008, 10_000, 8, seed=seed, step=epoch, replace=False
        ).tolist()

    assert order(7, 1) != order(8, 0)
    assert order(7, 0) != order(7, 1)


def test_draws_with_replacement_are_even():
    starts = window_starts(110, 100_000, 10, seed=0, step=0)
    counts = np.bincount(starts, minlength=100)
    assert len(counts) == 100
    assert np.abs(counts - 1000).max() < 6 * np.sqrt(1000)


def test_starts_are_a_fresh_array():
    arguments = {"num_tokens": 110, "batch_size": 8, "seq_len": 10, "seed": 0}
    starts = window_starts(**arguments)
    expected = starts.tolist()
    starts[:] = -1
    assert window_starts(**arguments).tolist() == expected


def test_the_first_starts_of_ten_trillion_ids_take_little_memory():
    """No index is built: for 10**13 ids, it would take 312 GB."""
    tracemalloc.start()
    window_starts(10**13, 32, 256, seed=11, step=10**9, replace=False)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5e6


def test_a_seed_leaves_the_global_random_state_alone():
    ids = np.arange(1000, dtype=np.uint16)
    torch.manual_seed(1)
    np.random.seed(1)
    expected = torch.rand(1).item(), np.random.random()
    torch.manual_seed(1)
    np.random.seed(1)
    first = get_batch(ids, 4, 8, seed=5, step=2)
    second = get_batch(ids, 4, 8, seed=5, step=2)
    assert torch.equal(first[0], second[0])
    assert (torch.rand(1).item(), np.random.random()) == expected


@pytest.mark.parametrize("kind", [np.int16, np.int32, np.int64, np.uint64])
def test_numpy_integers_are_integers(kind):
    plain = {"num_tokens": 500, "batch_size": 90, "seq_len": 80, "seed": 3}
    plain["step"] = 30_000
    numpy = {name: kind(value) for name, value in plain.items()}
    for replace in (True, False):
        starts = window_starts(**numpy, replace=replace)
        assert starts.tolist() == window_starts(**plain, replace=replace).tolist()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": -1}, "seed is -1; give an integer >= 0"),
        ({"seed": 1.5}, r"seed is 1\.5; give an integer"),
        ({"seed": 1, "step": -1}, "step is -1; give an integer >= 0"),
        ({"seed": 1, "step": 0.0}, r"step is 0\.0; give an integer"),
        (
            {"seed": 1, "step": 1 << 62},
            "beyond 2\\*\\*62; give a smaller step",
        ),
        ({"seed": 1, "rank": 2, "world_size": 2}, "rank is 2, but world_size is 2"),
        ({"seed": 1, "rank": -1}, "rank is -1"),
        ({"seed": 1, "world_size": 0}, "world_size is 0; give an integer >= 1"),
        ({"seed": 1, "num_samples": 1 << 62}, "at sample 4,611,686,018,427,387,904"),
        ({"seed": 1, "num_samples": -1}, "num_samples is -1; give an integer >= 0"),
        ({"seed": 1, "step": 2, "num_samples": 8}, "step is 2 and num_samples is 8"),
        ({"num_samples": 8}, "num_samples=8 needs a seed"),
        ({"seed": 1, "replace": "no"}, "replace is 'no'; give True or False"),
        ({"step": 1}, "step=1 needs a seed"),
        ({"replace": False}, "^replace=False needs a seed; give one, such as seed=0"),
    ],
)
def test_impossible_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        get_batch(np.arange(100, dtype=np.uint16), 4, 8, **arguments)
