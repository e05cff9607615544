"""Batches: inputs and targets as tensors, one at a time or as an endless stream."""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
import torch.distributed as dist

from tiny_llm.batching.loading import Data, as_source
from tiny_llm.batching.sampling import Samples, samples_of_batch
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
    """Draw a batch of random windows; with a seed, one that can be drawn again.

    With replacement each window is equally likely, the last one included.

    Args:
        data: What `load_token_array` returned, or a `Mixture`; or a path, "train" or
            "valid", which stays open for the next call. Any integer array or tensor of
            shape (N,) works too.
        batch_size: B, the number of windows.
        seq_len: T, in tokens; N must be at least T + 1.
        device: Where the tensors go.
        seed: Makes the batch a function of the arguments (and the ids) alone, and
            leaves the global random state of torch and numpy untouched. Without a
            seed, `torch.manual_seed` repeats the draws.
        step: Number of batches before this one: all that a checkpoint needs to hold.
        rank: Which part of the global batch this process draws, in [0, world_size).
        world_size: Number of processes. The global batch of world_size * B windows is
            the same for any number of processes that divides it.
        num_samples: Instead of `step`, the number of samples that all ranks consumed
            before. It resumes exactly after a change of batch size.
        replace: False goes through all windows of an epoch before the next epoch.
        align: "document" draws only windows that start with a document, so no story is
            entered in the middle; ids more than seq_len after the start of their
            document are then never drawn. None covers all ids.

    Returns:
        Inputs x and targets y, each int64, shape (B, T), contiguous and fresh;
        y[b, t] is the id that follows x[b, t].

    Raises:
        ValueError: An argument is out of range or needs a seed, there are too few ids,
            `data` is not ids, or its file was damaged.
    """
    source = as_source(data)
    batch_size = check_int("batch_size", batch_size)
    seq_len = check_int("seq_len", seq_len)
    if seed is None:
        _require_seed(step, rank, world_size, num_samples, replace)
        samples = Samples(None, 0, batch_size, True)
    else:
        samples = samples_of_batch(
            batch_size, seed, step, rank, world_size, num_samples, replace
        )
    starts = source.choose_starts(samples, seq_len, align)
    batch = source.cut_batch(starts, seq_len, device)
    if seed is not None and source.access == "random":
        ahead = samples._replace(first=samples.first + int(world_size) * batch_size)
        source.read_ahead(source.choose_starts(ahead, seq_len, align), seq_len)
    return batch


def _require_seed(*values: object) -> None:
    """Refuse the arguments of `get_batch` that mean nothing without a seed."""
    names = ("step", "rank", "world_size", "num_samples", "replace")
    for name, value, default in zip(names, values, (0, 0, 1, None, True), strict=True):
        if value != default:
            raise ValueError(
                f"{name}={value!r} needs a seed; give one, such as seed=1337"
            )


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
    """Draw batches without end, and prefetch them in a background thread.

        for step, (x, y) in batches(train, 32, 256, seed=1337, start=resume_step):

    The thread ends when the loop does, and what it raises is raised in the loop. Copies
    to a GPU are queued on its default stream. Besides those of `get_batch` there are
    these arguments:

        start: The first step.
        prefetch: How many batches to prepare ahead; with 0 there is no thread.
        rank, world_size: 0 and 1 by default, unless torch.distributed runs several
            processes: then give both.
        num_samples: How many samples all ranks consumed before step `start`, if their
            batches were not all of this size.
        fingerprint: Of the data with which the run began, from its checkpoint, to
            verify that the data is the same.

    Yields:
        The step and its batch, which is `get_batch(..., seed=seed, step=step)`.

    Raises:
        IntegrityError (a ValueError): `data` has another fingerprint.
        ValueError: As of `get_batch`.
    """
    start, prefetch = check_int("start", start, 0), check_int("prefetch", prefetch, 0)
    source = as_source(data)
    if fingerprint is not None and (found := source.fingerprint()) != fingerprint:
        raise IntegrityError(
            f"the run began with data of fingerprint {fingerprint}, but this is "
            f"{found}; give the same data, or begin a new run"
        )
    rank, world_size = _check_ranks(rank, world_size)
    samples = samples_of_batch(
        batch_size, seed, 0, rank, world_size, num_samples, replace
    )
    # Fail here rather than inside the loop.
    source.choose_starts(samples, check_int("seq_len", seq_len), align)
    stride = int(world_size) * samples.num_rows
    before = start * stride if num_samples is None else int(num_samples)
    if device != "cpu":  # Another thread may have another default GPU.
        device = torch.empty(0, device=check_device(device)).device

    def make(step: int) -> Batch:
        return get_batch(
            source,
            batch_size,
            seq_len,
            device,
            seed=seed,
            rank=rank,
            world_size=world_size,
            num_samples=before + (step - start) * stride,
            replace=replace,
            align=align,
        )

    return _prefetch(make, start, prefetch)


def _check_ranks(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """Return the defaults of `rank` and `world_size` where one process draws."""
    several = (
        dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    )
    if several and (rank is None or world_size is None):
        raise ValueError(
            f"torch.distributed runs {dist.get_world_size()} processes, which would "
            "all draw the same batches; give rank and world_size"
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
    # Its thread idles between batches: no break and no exit has to wait for long.
    pool = ThreadPoolExecutor(1, thread_name_prefix="tiny_llm.batching")
    ahead = deque(pool.submit(make, start + i) for i in range(prefetch))
    try:
        for step in itertools.count(start):
            if getpid() != process:
                raise RuntimeError(
                    "this process was forked while another drew these batches, and "
                    "their thread stayed there; call batches() again"
                )
            batch = ahead.popleft().result()
            ahead.append(pool.submit(make, step + prefetch))
            yield step, batch
    finally:  # At the interpreter's exit too, when modules may be gone.
        for future in ahead:
            future.cancel()
        if getpid() == process:
            pool.shutdown()
