"""Datasets: batches as a torch IterableDataset."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch.utils.data import IterableDataset, get_worker_info

from tiny_llm.batching.batches import batches
from tiny_llm.batching.loading import Data
from tiny_llm.batching.windows import Batch
from tiny_llm.errors import ConfigError


class BatchDataset(IterableDataset[Any]):
    """`batches` as a torch dataset, for `DataLoader(dataset, batch_size=None)`.

    It yields (x, y); or with as_dict=True, for Hugging Face models, {"input_ids": x,
    "labels": x}, because these models shift the labels themselves. With Trainer set
    per_device_train_batch_size=1 and data_collator=lambda rows: rows[0].

    With num_workers=0 the thread of `batches` prefetches. With n workers, worker k
    makes steps start + k, start + k + n and so on. The loader reads workers
    round-robin, so the batches and their order stay the same. That is slower, because
    batches are copied between processes, and device must be "cpu".
    """

    def __init__(
        self,
        data: Data,
        batch_size: int,
        seq_len: int,
        *,
        as_dict: bool = False,
        **options: Any,
    ) -> None:
        """Take the arguments of `batches`, and validate them immediately."""
        if "seed" not in options:
            raise ConfigError("BatchDataset needs a seed; give one, such as seed=0")
        self._batches = functools.partial(batches, data, batch_size, seq_len, **options)
        self._batches()
        self._batch_size = int(batch_size)
        self._options = options
        self._as_dict = as_dict

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        stream = self._batches() if worker is None else self._batches_of(worker)
        for _, batch in stream:
            yield _Fields.of(batch) if self._as_dict else _Pair(*batch)

    def _batches_of(self, worker: Any) -> Iterator[tuple[int, Batch]]:
        """The batches that one worker of a DataLoader makes."""
        device = self._options.get("device", "cpu")
        if torch.device(device).type != "cpu":
            raise ValueError(
                f"device is {device} in a worker of a DataLoader; give num_workers=0"
            )
        world_size = int(self._options.get("world_size") or 1)
        stride = world_size * self._batch_size
        before = self._options.get("num_samples")
        if before is None:
            before = int(self._options.get("start", 0)) * stride
        # Worker k of n acts as one rank of n times the world size, k global batches on.
        return self._batches(
            start=0,
            num_samples=int(before) + worker.id * stride,
            rank=self._options.get("rank") or 0,
            world_size=world_size * worker.num_workers,
            prefetch=0,
        )


def _refuse_collated(x: Any) -> None:
    """Raise if default_collate stacked whole batches.

    accelerate builds batches of descriptions instead of tensors; these pass.
    """
    if isinstance(x, torch.Tensor) and x.ndim != 2:
        raise ValueError(
            f"DataLoader stacked whole batches to shape {tuple(x.shape)}; "
            "give DataLoader(..., batch_size=None)"
        )


class _Pair(NamedTuple("_Pair", [("x", torch.Tensor), ("y", torch.Tensor)])):
    """A batch that raises if default_collate stacks it."""

    def __new__(cls, x: torch.Tensor, y: torch.Tensor) -> _Pair:
        _refuse_collated(x)
        return super().__new__(cls, x, y)


class _Fields(dict[str, torch.Tensor]):
    """A batch for Hugging Face models that raises if default_collate stacks it."""

    @classmethod
    def of(cls, batch: Batch) -> _Fields:
        return cls(input_ids=batch[0], labels=batch[0].clone())

    def update(self, other: Any) -> None:  # type: ignore[override]  # As collate calls it.
        _refuse_collated(other["input_ids"])
        super().update(other)
