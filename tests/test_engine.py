"""Ids and merges are tested in test_tokenize.py, against an oracle."""

import subprocess
import sys
import threading

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import PRINT_PEAK_KIB, needs_proc
from tiny_llm.engine import is_utf8
from tiny_llm.tokenize import BPETokenizer


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.sampled_from([0x41, 0x20, 0x80, 0xBF, 0xC3, 0xE2, 0xED, 0xF0, 0xFF]))
)
def test_bytes_are_utf8_when_python_says_so(data):
    try:
        bytes(data).decode()
        valid = True
    except UnicodeDecodeError:
        valid = False
    assert is_utf8(bytes(data)) == valid
    # Across the border of two blocks, and beside one that is all ASCII.
    for before in range(4096 - len(data), 4097, 3):
        assert is_utf8(b"x" * before + bytes(data) + b"x" * 9000) == valid


@needs_proc
def test_memory_stays_bounded_on_ever_new_words():
    """Without the limit on gigatoken's cache this takes 560 MB."""
    code = (
        "import numpy as np\n"
        "from tiny_llm.tokenize import BPETokenizer\n"
        "tokenizer, words = BPETokenizer(), np.random.default_rng(0)\n"
        "for _ in range(48):\n"
        "    text = words.integers(97, 123, size=(1 << 17, 8), dtype=np.uint8)\n"
        "    text[:, 0] = 32\n"
        "    tokenizer.encode(text.tobytes())\n" + PRINT_PEAK_KIB
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert int(done.stdout) < 250_000  # KiB


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
