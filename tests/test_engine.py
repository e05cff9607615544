"""test_tokenize.py tests ids and merges against an oracle."""

import platform
import subprocess
import sys
import threading

import numpy as np
import pytest

from tests.conftest import PRINT_PEAK_KIB, needs_proc
from tiny_llm.tokenize import BPETokenizer

# Encodes text in which every word is new, 1 MiB at a time.
ENCODE_NEW_WORDS = """
import sys, numpy as np, psutil
from tiny_llm.engine import Engine
from tiny_llm.tokenizer_json import format_merges
engine, words = Engine(format_merges([])), np.random.default_rng(0)
resident = []
for _ in range(int(sys.argv[1])):
    text = words.integers(97, 123, size=(1 << 17, 8), dtype=np.uint8)
    text[:, 0] = 32
    engine.encode(text.tobytes())
    if not engine._idle:  # The worker has just been dropped.
        resident.append(psutil.Process().memory_info().rss >> 10)
"""


def encode_new_words(num_mb, code_after) -> list[int]:
    """Run it in a fresh process; returns the numbers printed by `code_after`."""
    command = [sys.executable, "-c", ENCODE_NEW_WORDS + code_after, str(num_mb)]
    done = subprocess.run(command, capture_output=True, check=True)
    return list(map(int, done.stdout.split()))


@needs_proc
def test_memory_stays_bounded_when_every_word_is_new():
    """Without the limit on gigatoken's cache this takes 560 MB."""
    [peak_kib] = encode_new_words(48, PRINT_PEAK_KIB)
    assert peak_kib < 250_000


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs malloc_trim")
def test_dropping_a_worker_returns_its_memory():
    """Memory grows by 30 MB if trimming comes before the last reference is gone."""
    resident_kib = encode_new_words(24, "print(*resident)")
    assert len(resident_kib) > 4
    assert max(resident_kib) < resident_kib[0] + 8_000


def test_threads_share_a_tokenizer(text):
    tokenizer = BPETokenizer()
    tokenizer.train(text, 300)
    expected = tokenizer.encode(text)
    wrong = []

    def work():
        ids = [tokenizer.encode(text) for _ in range(100)]
        wrong.extend(x for x in ids if not np.array_equal(x, expected))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
