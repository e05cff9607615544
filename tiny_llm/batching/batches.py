"""Batches: inputs and targets as tensors, one at a time or as an endless stream."""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch.distributed as dist

from tiny_llm.batching.loading import Data, as_source
from tiny_llm.batching.sampling import Samples, samples_of_batch
from tiny_llm.batching.sources import Source
from tiny_llm.batching.windows import Batch, Device, check_device
from tiny_llm.checks import check_int
from tiny_llm.errors import IntegrityError


def get_batch(
    data: Data,
    batch_size: int,
    seq_len: int,
    device: Device = "cpu",
    *,
    seed: int | None = None,
    step: int = 0,
    rank: int = 0,
    world_size: int = 1,
    num_samples: int | None = None,
    replace: bool = True,
    align: str | None = None,
) -> Batch:
    """Draw a batch of random windows, reproducible if `seed` is given.

    With replacement each window is equally likely, including the last.

    Args:
        data: What `load_token_array` returned, or a `Mixture`; or a path, "train" or
            "valid", which stays open for the next call. Any integer array or tensor of
            shape (N,) works too.
        batch_size: B, the number of windows.
        seq_len: T, in tokens; N must be at least T + 1.
        device: Where the tensors go.
        seed: The batch then depends only on the arguments and the ids, and global
            random state is not touched. Without a seed, call `torch.manual_seed` for
            reproducible draws.
        step: Number of batches before this one: all that a checkpoint needs to hold.
        rank: Which part of the global batch this process draws, in [0, world_size).
        world_size: Number of processes. The global batch, world_size * B windows, is
            the same for any world_size that divides it.
        num_samples: Instead of `step`, the number of samples that all ranks consumed
            before. Use it to resume exactly after a change of batch size.
        replace: False visits each window once per epoch.
        align: "document" draws only windows that start where a document does; ids more
            than seq_len past a document's start are never drawn. None draws from all
            ids.

    Returns:
        Inputs x and targets y, each int64, shape (B, T), contiguous and fresh;
        y[b, t] is the id that follows x[b, t].

    Raises:
        ValueError: An argument is out of range or needs a seed, there are too few ids,
            `data` is not ids, or its file was damaged.
    """
    source: Source = as_source(data)
    batch_size = check_int("batch_size", batch_size)
    seq_len = check_int("seq_len", seq_len)
    if seed is None:
        _require_seed(step, rank, world_size, num_samples, replace)
        samples = Samples(None, 0, batch_size, True)
    else:
        samples = samples_of_batch(
            batch_size, seed, step, rank, world_size, num_samples, replace
        )
    stride = int(world_size) * batch_size
    return source.draw_batch(samples, seq_len, device, align, stride)


def _require_seed(*values: object) -> None:
    """Refuse the arguments of `get_batch` that mean nothing without a seed."""
    defaults = (0, 0, 1, None, True)
    if values == defaults:
        return
    names = ("step", "rank", "world_size", "num_samples", "replace")
    triples = zip(names, values, defaults, strict=True)
    given = ", ".join(f"{name}={value!r}" for name, value, x in triples if value != x)
    raise ValueError(f"{given} needs a seed; give one, such as seed=0")


def batches(
    data: Data,
    batch_size: int,
    seq_len: int,
    *,
    seed: int,
    start: int = 0,
    device: Device = "cpu",
    prefetch: int = 2,
    rank: int | None = None,
    world_size: int | None = None,
    num_samples: int | None = None,
    replace: bool = True,
    align: str | None = None,
    fingerprint: str | None = None,
) -> Iterator[tuple[int, Batch]]:
    """Yield batches forever, prefetched in a background thread.

        for step, (x, y) in batches(train, 32, 256, seed=1337, start=resume_step):

    The thread stops when the loop does, and its exceptions are raised in the loop.
    Copies to a GPU are queued on its default stream. Arguments that are not here are
    those of `get_batch`.

        start: The first step.
        prefetch: How many batches to prepare ahead; with 0 there is no thread.
        rank, world_size: 0 and 1 by default, unless torch.distributed runs several
            processes: then give both.
        num_samples: How many samples all ranks consumed before step `start`, for runs
            whose batch size changed.
        fingerprint: From the run's checkpoint; verified against the data.

    Yields:
        The step and its batch, which is `get_batch(..., seed=seed, step=step)`.

    Raises:
        IntegrityError (a ValueError): `data` does not match `fingerprint`.
        ValueError: See `get_batch`.
    """
    start, prefetch = check_int("start", start, 0), check_int("prefetch", prefetch, 0)
    source = as_source(data)
    if fingerprint is not None and (found := source.fingerprint()) != fingerprint:
        raise IntegrityError(
            f"data has fingerprint {found}, but the run started with {fingerprint}; "
            "give the same data, or start a new run"
        )
    rank, world_size = _check_ranks(rank, world_size)
    step = start if num_samples is None else 0
    samples = samples_of_batch(
        batch_size, seed, step, rank, world_size, num_samples, replace
    )
    # Fail here rather than inside the loop.
    source.choose_starts(samples, check_int("seq_len", seq_len), align)
    if device != "cpu":  # Resolve "cuda" now: each thread has its own current GPU.
        device = check_device(device)
    stride = int(world_size) * samples.num_rows

    def make(step: int) -> Batch:
        mine = samples._replace(first=samples.first + (step - start) * stride)
        return source.draw_batch(mine, int(seq_len), device, align, stride)

    return _prefetch(make, start, prefetch)


def _check_ranks(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """Default to one process; refuse to guess where there are several."""
    is_distributed = dist.is_available() and dist.is_initialized()
    num_processes = dist.get_world_size() if is_distributed else world_size or 1
    if num_processes > 1 and (rank is None or world_size is None):
        raise ValueError(
            f"there are {num_processes} processes, which would all draw the same "
            "batches; give rank and world_size"
        )
    return 0 if rank is None else rank, 1 if world_size is None else world_size


def _prefetch(
    make: Callable[[int], Batch], start: int, prefetch: int
) -> Iterator[tuple[int, Batch]]:
    if prefetch == 0:
        for step in itertools.count(start):
            yield step, make(step)
        return
    getpid = os.getpid
    process = getpid()
    # The executor's thread is idle between batches, so break and exit do not block.
    pool = ThreadPoolExecutor(1, thread_name_prefix="tiny_llm.batching")
    ahead = deque(pool.submit(make, start + i) for i in range(prefetch))
    try:
        for step in itertools.count(start):
            if getpid() != process:
                raise RuntimeError(
                    "batches() does not survive a fork: its thread stayed in the "
                    "parent process; call batches() again"
                )
            batch = ahead.popleft().result()
            ahead.append(pool.submit(make, step + prefetch))
            yield step, batch
    finally:  # Also runs at interpreter exit, when modules may be gone.
        if getpid() == process:
            pool.shutdown(cancel_futures=True)
