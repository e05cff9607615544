"""Batches: inputs and targets as tensors, on a device, one by one or in a row."""

from __future__ import annotations

import functools
import itertools
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from tiny_llm.batching.arrays import (
    Data,
    Ids,
    StrPath,
    check_data,
)
from tiny_llm.batching.arrays import fingerprint as fingerprint_of
from tiny_llm.batching.cutting import is_random, read_windows, will_need
from tiny_llm.batching.documents import sample_starts
from tiny_llm.batching.mixture import Mixture
from tiny_llm.batching.windows import (
    Ints,
    Samples,
    batch_samples,
    count_windows,
)
from tiny_llm.checks import check_int
from tiny_llm.errors import IntegrityError

Device = str | torch.device
Batch = tuple[torch.Tensor, torch.Tensor]
# The signed dtype of the same width, which torch can index on every device.
_SIGNED = {torch.uint16: torch.int16, torch.uint32: torch.int32}


def get_batch(
    data: Data | StrPath,
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

    With replacement every window can be drawn, the last one too, and each is equally
    likely.

    Args:
        data: What `load_token_array` returned, or a `Mixture`; or a path, or "train"
            or "valid", which is then opened on each call. Any contiguous array of
            shape (N,), uint16 or uint32, will do, and so will such a tensor.
        batch_size: B, the number of windows.
        seq_len: T, in tokens; N must be at least T + 1.
        device: Where the tensors go.
        seed: Makes the batch a function of the arguments (and the ids) alone, and
            leaves torch's and numpy's global random state untouched. Without one,
            `torch.manual_seed` makes the draws repeat.
        step: How many batches came before: all that a checkpoint needs to hold.
        rank: Which part of the global batch this process draws, in [0, world_size).
        world_size: Number of processes; the global batch of world_size * B windows is
            the same for any number that divides it.
        num_samples: In place of `step`, how many samples all ranks together took
            before: goes on exactly where the batch size changed on the way.
        replace: False goes through all windows of an epoch before the next.
        align: "document" draws only windows that begin with a document, so no story
            is entered in its middle; but ids more than seq_len behind the beginning
            of their document are then never drawn. None covers all ids.

    Returns:
        Inputs x and targets y, each int64, shape (B, T), contiguous and fresh;
        y[b, t] is the id that follows x[b, t].

    Raises:
        ValueError: An argument is out of its range or lacks a seed, there are too
            few ids, `data` is not such an array, or its file was damaged.
    """
    data = check_data(data)
    batch_size, seq_len = (
        check_int("batch_size", batch_size),
        check_int("seq_len", seq_len),
    )
    if seed is None:
        if (step, rank, world_size, num_samples, replace) != (0, 0, 1, None, True):
            raise ValueError(
                f"step {step}, rank {rank}, world_size {world_size}, num_samples "
                f"{num_samples} and replace {replace} have no meaning without a seed; "
                "give one"
            )
        starts = _draw_unseeded(data, batch_size, seq_len, align)
    else:
        samples = batch_samples(
            batch_size, seed, step, rank, world_size, num_samples, replace
        )
        starts = _draw(data, seq_len, align, samples)
    if isinstance(data, torch.Tensor):
        return _split(_cut_tensor(data, starts, seq_len).to(device))
    windows = read_windows(data, starts, seq_len)
    if seed is not None and is_random(data):
        stride = int(world_size) * samples.num_rows
        ahead = samples._replace(first=samples.first + stride)
        will_need(data, _draw(data, seq_len, align, ahead), seq_len)
    return _to_tensors(windows, device)


def batches(
    data: Data | StrPath,
    batch_size: int,
    seq_len: int,
    *,
    seed: int,
    start: int = 0,
    device: Device = "cpu",
    prefetch: int = 2,
    rank: int = 0,
    world_size: int = 1,
    num_samples: int | None = None,
    replace: bool = True,
    align: str | None = None,
    fingerprint: str | None = None,
) -> Iterator[tuple[int, Batch]]:
    """Draw one batch after another, without end, and the next ones ahead.

        for step, (x, y) in batches(train, 32, 256, seed=1337, start=resume_step):

    A thread makes the next batches; it ends when the loop does, and what it raises
    is raised here; copies to a GPU are queued on its default stream. Besides those of
    `get_batch` it has the arguments

        start: The first step.
        prefetch: How many batches to make ahead; with 0 there is no thread.
        num_samples: How many samples all ranks together took before step `start`, if
            their batches were not all of this size.
        fingerprint: That of the data with which the run began, out of its checkpoint.

    Yields:
        The step and its batch, which is `get_batch(..., seed=seed, step=step)`.

    Raises:
        IntegrityError (a ValueError): `data` has another fingerprint.
        ValueError: As of `get_batch`.
    """
    start, prefetch = check_int("start", start, 0), check_int("prefetch", prefetch, 0)
    data = check_data(data)
    if fingerprint is not None and (found := fingerprint_of(data)) != fingerprint:
        raise IntegrityError(
            f"the run began with data of fingerprint {fingerprint}, this is {found}; "
            "give the same data, or begin a new run"
        )
    samples = batch_samples(batch_size, seed, 0, rank, world_size, num_samples, replace)
    # Now, and not in the loop, is said what is wrong with these.
    _draw(data, check_int("seq_len", seq_len), align, samples)
    stride = int(world_size) * samples.num_rows
    before = start * stride if num_samples is None else int(num_samples)
    # Another thread may have another default GPU.
    device = torch.empty(0, device=device).device

    def make(step: int) -> Batch:
        return get_batch(
            data,
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

    return _make_ahead(make, start, prefetch)


def _make_ahead(
    make: Callable[[int], Batch], start: int, prefetch: int
) -> Iterator[tuple[int, Batch]]:
    if prefetch == 0:
        for step in itertools.count(start):
            yield step, make(step)
        return
    getpid = os.getpid
    process = getpid()
    # Its thread idles between batches: no break, and no exit, has to wait for long.
    pool = ThreadPoolExecutor(1, thread_name_prefix="tiny_llm.batching")
    ahead = deque(pool.submit(make, start + i) for i in range(prefetch))
    try:
        for step in itertools.count(start):
            if getpid() != process:
                raise RuntimeError(
                    "this process was forked while another drew these batches, and "
                    "their thread stayed there; call batches() anew"
                )
            batch = ahead.popleft().result()
            ahead.append(pool.submit(make, step + prefetch))
            yield step, batch
    finally:  # At the interpreter's exit too, when modules may be gone.
        for future in ahead:
            future.cancel()
        if getpid() == process:
            pool.shutdown()


class BatchDataset(IterableDataset[tuple[int, Batch]]):
    """`batches` as a torch dataset, for `DataLoader(dataset, batch_size=None)`.

    With num_workers=0 the thread of `batches` makes them ahead. With n workers, worker
    k makes the steps start + k, start + k + n and so on, and the loader, which takes
    turns, gives the same batches in the same order; only slower, as they have to
    travel between processes, and never to a GPU: device must be "cpu" then.
    """

    def __init__(
        self,
        data: Data | StrPath,
        batch_size: int,
        seq_len: int,
        **options: Any,
    ) -> None:
        """Take the arguments of `batches`, and check them as it does."""
        self._batches = functools.partial(batches, data, batch_size, seq_len, **options)
        self._batches()
        self._batch_size = int(batch_size)
        self._options = options

    def __iter__(self) -> Iterator[tuple[int, Batch]]:
        worker = get_worker_info()
        if worker is None:
            return self._batches()
        device = self._options.get("device", "cpu")
        if torch.device(device).type != "cpu":
            raise ValueError(
                f"device is {device} in a worker of a DataLoader; give num_workers=0"
            )
        start = int(self._options.get("start", 0))
        world_size = int(self._options.get("world_size", 1))
        stride = world_size * self._batch_size
        before = self._options.get("num_samples")
        before = start * stride if before is None else int(before)
        # Every n-th batch of all ranks is what n times as many ranks leave to one.
        mine = self._batches(
            start=0,
            num_samples=before + worker.id * stride,
            world_size=world_size * worker.num_workers,
            prefetch=0,
        )
        first = start + worker.id
        return ((first + turn * worker.num_workers, batch) for turn, batch in mine)


def _draw_unseeded(
    data: Data, batch_size: int, seq_len: int, align: str | None
) -> Ints:
    if align is not None or isinstance(data, Mixture):
        seed = int(torch.randint(1 << 62, ()))
        return _draw(data, seq_len, align, Samples(seed, 0, batch_size, True))
    starts = np.empty(batch_size, dtype=np.int64)
    torch.from_numpy(starts).random_(count_windows(len(data), seq_len))
    return starts


def _draw(data: Data, seq_len: int, align: str | None, samples: Samples) -> Ints:
    if isinstance(data, Mixture):
        return data.sample_starts(seq_len, align, samples)
    return sample_starts(data, seq_len, align, samples)


def _to_tensors(windows: Ids, device: Device) -> Batch:
    """Inputs and targets of windows, shape (B, T + 1), on a device."""
    if device != "cpu" and torch.device(device).type != "cpu":
        # Half or a quarter of one int64 tensor's bytes travel, and only once.
        narrow = torch.from_numpy(windows.view(f"i{windows.itemsize}"))
        if torch.device(device).type == "cuda":
            narrow = narrow.pin_memory()
        return _split(narrow.to(device, non_blocking=True))
    # In one piece of memory: two would go back to the system with each large batch,
    # and their pages be faulted in anew (benchmarks/LOG.md).
    batch_size, window_size = windows.shape
    both = np.empty((2, batch_size, window_size - 1), dtype=np.int64)
    both[0], both[1] = windows[:, :-1], windows[:, 1:]
    return torch.from_numpy(both[0]), torch.from_numpy(both[1])


def _cut_tensor(ids: torch.Tensor, starts: Ints, seq_len: int) -> torch.Tensor:
    """Windows, shape (B, T + 1), of a tensor of ids, on its device, as signed ints."""
    places = torch.from_numpy(np.asarray(starts)).to(ids.device)
    return ids.view(_SIGNED[ids.dtype]).unfold(0, seq_len + 1, 1)[places]


def _split(windows: torch.Tensor) -> Batch:
    """Inputs and targets of windows of signed ints, widened where they are."""
    mask = (1 << 8 * windows.itemsize) - 1
    x = windows[:, :-1].to(torch.int64).bitwise_and_(mask)
    y = windows[:, 1:].to(torch.int64).bitwise_and_(mask)
    return x, y
