"""Loaders of other libraries that make the same batches: peers in bench_batching.py.

Each is set up as its documentation recommends, or the fastest way we found (LOG.md).
It yields inputs and targets of random windows: int64, shape (B, T).
"""

from __future__ import annotations

import importlib.metadata
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, RandomSampler

Batch = tuple[torch.Tensor, torch.Tensor]
# A peer imports and prepares, untimed, and returns a function that starts its loader.
Start = Callable[[], Iterator[Batch]]

# Peers with their own file format get fewer ids, because the files are slow to write.
NUM_IDS = 50_000_000


class Windows(Dataset[Batch]):
    """All windows of a token file, as tutorials implement it."""

    def __init__(self, path: Path, seq_len: int) -> None:
        self.ids = np.memmap(path, dtype=np.uint16, mode="r")
        self.seq_len = seq_len

    def __len__(self) -> int:
        return len(self.ids) - self.seq_len

    def __getitem__(self, i: int) -> Batch:
        x = self.ids[i : i + self.seq_len].astype(np.int64)
        y = self.ids[i + 1 : i + 1 + self.seq_len].astype(np.int64)
        return torch.from_numpy(x), torch.from_numpy(y)


def load_torch(
    path: Path,
    batch_size: int,
    seq_len: int,
    num_workers: int,
    loader: type[DataLoader[Batch]] = DataLoader,
) -> Start:
    def start() -> Iterator[Batch]:
        windows = Windows(path, seq_len)
        # Sampling without replacement would first build a list of 250 million numbers.
        sampler = RandomSampler(windows, replacement=True, num_samples=1 << 40)
        options = {"sampler": sampler, "num_workers": num_workers}
        return iter(loader(windows, batch_size, **options))

    return start


def load_torchdata(path: Path, *size: int, num_workers: int) -> Start:
    from torchdata.stateful_dataloader import StatefulDataLoader

    return load_torch(path, *size, num_workers=num_workers, loader=StatefulDataLoader)


def load_litdata(path: Path, batch_size: int, seq_len: int, num_workers: int) -> Start:
    import litdata
    from litdata.streaming.item_loader import TokensLoader

    folder = path.with_name("litdata")
    if not (folder / "index.json").exists():
        ids = np.fromfile(path, dtype=np.uint16, count=NUM_IDS)
        litdata.optimize(
            fn=np.array,
            inputs=np.split(ids, 10),
            output_dir=str(folder),
            num_workers=1,
            chunk_bytes="64MB",
            item_loader=TokensLoader(),
        )

    def start() -> Iterator[Batch]:
        loader = TokensLoader(block_size=seq_len + 1)
        windows = litdata.StreamingDataset(
            str(folder), item_loader=loader, shuffle=True, drop_last=True
        )
        rows = litdata.StreamingDataLoader(
            windows, batch_size=batch_size, num_workers=num_workers
        )
        return (split(row.long()) for row in repeat(rows))

    return start


def load_datatrove(path: Path, batch_size: int, seq_len: int) -> Start:
    from datatrove.utils.dataset import DatatroveFolderDataset

    folder = path.with_name("datatrove")
    folder.mkdir(exist_ok=True)
    link = folder / "train.ds"
    if not link.exists():
        link.symlink_to(path)

    def start() -> Iterator[Batch]:
        # Its documentation says to shuffle beforehand and read the ids in order.
        windows = DatatroveFolderDataset(str(folder), seq_len, "*.ds")
        rows = DataLoader(windows, batch_size, drop_last=True)
        return (split(row["input_ids"]) for row in repeat(rows))

    return start


def load_grain(path: Path, batch_size: int, seq_len: int) -> Start:
    import grain

    def start() -> Iterator[Batch]:
        ids = np.memmap(path, dtype=np.uint16, mode="r").view(np.ndarray)
        rows = (
            grain.MapDataset.range(len(ids) - seq_len)
            .shuffle(seed=1337)
            .repeat()
            .map(lambda i: ids[i : i + seq_len + 1])
            .batch(batch_size)
        )
        # No threads, as its documentation advises for data in memory.
        options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
        rows = rows.to_iter_dataset(options)
        return (split(torch.from_numpy(row.astype(np.int64))) for row in rows)

    return start


def load_mosaic(path: Path, batch_size: int, seq_len: int, num_workers: int) -> Start:
    try:
        import streaming
    except RuntimeError:
        # The import fails if torchvision was built for another torch: define the two
        # operators that it lacks.
        operators = torch.library.Library("torchvision", "DEF")
        operators.define("nms(Tensor a, Tensor b, float c) -> Tensor")
        operators.define("qnms(Tensor a, Tensor b, float c) -> Tensor")
        import streaming
    from streaming.base.util import clean_stale_shared_memory

    folder = path.with_name(f"mosaic-{seq_len}")
    if not folder.exists():
        ids = np.fromfile(path, dtype=np.uint16, count=NUM_IDS)
        width = seq_len + 1
        with streaming.MDSWriter(out=str(folder), columns={"ids": "bytes"}) as out:
            for row in ids[: len(ids) // width * width].reshape(-1, width):
                out.write({"ids": row.tobytes()})

    def collate(rows: list[dict[str, bytes]]) -> torch.Tensor:
        ids = np.frombuffer(b"".join(row["ids"] for row in rows), dtype=np.uint16)
        return torch.from_numpy(ids.reshape(len(rows), -1).astype(np.int64))

    def start() -> Iterator[Batch]:
        clean_stale_shared_memory()
        windows = streaming.StreamingDataset(
            local=str(folder), shuffle=True, batch_size=batch_size
        )
        rows = DataLoader(
            windows,
            batch_size,
            collate_fn=collate,
            drop_last=True,
            num_workers=num_workers,
        )
        return map(split, repeat(rows))

    return start


def split(rows: torch.Tensor) -> Batch:
    return rows[:, :-1], rows[:, 1:]


def repeat(rows: Iterable[Any]) -> Iterator[Any]:
    while True:
        yield from rows


MOSAIC = "mosaicml-streaming"


class Peer(NamedTuple):
    label: str
    package: str
    load: Callable[[Path, int, int], Start]

    @property
    def python(self) -> str:
        """The interpreter that has the package."""
        other = os.environ.get("MOSAIC_PYTHON")
        return other if other and self.package == MOSAIC else sys.executable

    @property
    def is_installed(self) -> bool:
        if self.python != sys.executable:
            return True
        try:
            return bool(importlib.metadata.version(self.package))
        except importlib.metadata.PackageNotFoundError:
            return False


ALONE, HELPED = {"num_workers": 0}, {"num_workers": 2}
PEERS = {
    "torch": Peer("DataLoader", "torch", partial(load_torch, **ALONE)),
    "torch2": Peer("DataLoader, 2 workers", "torch", partial(load_torch, **HELPED)),
    "torchdata": Peer(
        "StatefulDataLoader", "torchdata", partial(load_torchdata, **ALONE)
    ),
    "torchdata2": Peer(
        "StatefulDataLoader, 2 workers", "torchdata", partial(load_torchdata, **HELPED)
    ),
    "litdata": Peer("TokensLoader", "litdata", partial(load_litdata, **ALONE)),
    "litdata2": Peer(
        "TokensLoader, 2 workers", "litdata", partial(load_litdata, **HELPED)
    ),
    "grain": Peer("MapDataset", "grain", load_grain),
    "mosaic": Peer("StreamingDataset", MOSAIC, partial(load_mosaic, **ALONE)),
    "mosaic2": Peer(
        "StreamingDataset, 2 workers", MOSAIC, partial(load_mosaic, **HELPED)
    ),
    "datatrove": Peer("DatatroveFolderDataset", "datatrove", load_datatrove),
}
