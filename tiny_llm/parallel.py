"""Parallel work on chunks, with results in the order of the chunks."""

from __future__ import annotations

import collections
import concurrent.futures
import os
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from tiny_llm.checks import check_int

Item = TypeVar("Item")
Result = TypeVar("Result")

# The caller's thread reads, hashes and writes at the same time: a third thread does
# not help, and each costs 25 MB (benchmarks/LOG.md).
_MAX_THREADS = 2


def count_threads() -> int:
    """Return how many threads are worth starting on this machine."""
    if hasattr(os, "sched_getaffinity"):
        return min(_MAX_THREADS, len(os.sched_getaffinity(0)))
    return min(_MAX_THREADS, os.cpu_count() or 1)


def map_in_order(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    num_threads: int | None = None,
) -> Iterator[Result]:
    """Like `map`, but in threads; for functions that release the GIL.

    Args:
        function: Called once for each item.
        items: Taken one by one in the caller's thread, only a few ahead of the
            results, so they need not fit in memory.
        num_threads: By default `count_threads()`. Results do not depend on it.

    Yields:
        Results in the order of the items.

    Raises:
        ConfigError: `num_threads` is below 1.
        Exception: Whatever `items` or `function` raised, in place of its result.
            Calls already running finish first.
    """
    if num_threads is None:
        num_threads = count_threads()
    num_threads = check_int("num_threads", num_threads)
    ahead: collections.deque[concurrent.futures.Future[Result]] = collections.deque()
    with concurrent.futures.ThreadPoolExecutor(num_threads) as pool:
        try:
            for item in items:
                ahead.append(pool.submit(function, item))
                if len(ahead) > num_threads:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()
