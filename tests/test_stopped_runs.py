"""Two encodings to one target, one of them stopped (SIGSTOP) and continued later."""

import fcntl
import itertools
import os
import signal
import subprocess
import sys

import pytest

from tests.conftest import SEP, needs_proc
from tiny_llm.tokenize import BPETokenizer
from tiny_llm.tokens import open_tokens
from tiny_llm.verify import verify

# Encodes once per line on stdin. It stops itself at the event whose number is on the
# line, or at the end if there are fewer, and says how many events were left.
CODE = """
import fcntl, os, signal, sys
from tiny_llm.encoding import encode_file
from tiny_llm.tokenize import BPETokenizer
EVENTS = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "fcntl.flock")
steps = 0
def watch(event, arguments):
    global steps
    if event not in EVENTS:
        return
    if event == "fcntl.flock" and arguments[1] == fcntl.LOCK_EX:
        if os.readlink(f"/proc/self/fd/{arguments[0]}").endswith(".lock"):
            print("locking", flush=True)
    steps -= 1
    if steps == 0:
        os.kill(os.getpid(), signal.SIGSTOP)
tokenizer = BPETokenizer.load(sys.argv[1])
sys.addaudithook(watch)
for line in sys.stdin:
    steps = int(line)
    encode_file(tokenizer, sys.argv[2], sys.argv[3])
    left = steps
    if left > 0:
        os.kill(os.getpid(), signal.SIGSTOP)
    print(left, flush=True)
"""


class Run:
    """A process that encodes one text with one tokenizer whenever it is told to."""

    def __init__(self, folder, name, word, target):
        self.text = b"".join(b"The %s is %d. " % (word, n) + SEP for n in range(50))
        self.tokenizer = BPETokenizer([(word[:1], word[1:2])])
        (folder / f"{name}.txt").write_bytes(self.text)
        self.tokenizer.save(folder / f"{name}.bpe")
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-c", CODE),
                *(folder / f"{name}.bpe", folder / f"{name}.txt", target),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def begin(self, stop_at):
        self.process.stdin.write(f"{stop_at}\n")
        self.process.stdin.flush()

    def wait_until_stopped(self):
        _, status = os.waitpid(self.process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)

    def wait_until_locking(self):
        assert self.process.stdout.readline() == "locking\n"

    def finish(self):
        """Let it go on to the end; return how many events were left."""
        os.kill(self.process.pid, signal.SIGCONT)
        while (line := self.process.stdout.readline()) == "locking\n":
            pass
        return int(line)

    def assert_made(self, target):
        verify(target, self.tokenizer.sha256)
        assert self.tokenizer.decode_bytes(open_tokens(target)[0]) == self.text


def is_locked(path):
    try:
        with open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


@needs_proc
@pytest.mark.parametrize("word", [b"cat", b"dog"], ids=["same text", "other text"])
def test_of_two_runs_stopped_anywhere_one_leaves_all_three_files(tmp_path, word):
    target = tmp_path / "out.bin"
    stopped = Run(tmp_path, "a", b"cat", target)
    other = Run(tmp_path, "b", word, target)
    try:
        num_waits = 0
        for step in itertools.count(1):
            stopped.begin(step)
            stopped.wait_until_stopped()
            if target.exists():
                verify(target)
            must_wait = is_locked(tmp_path / "out.lock")
            num_waits += must_wait
            other.begin(0)
            if must_wait:  # The stopped run is about to rename its files.
                other.wait_until_locking()
                left = stopped.finish()
                other.finish()
                other.assert_made(target)
            else:
                other.finish()
                other.assert_made(target)
                left = stopped.finish()
            made_by = other if other.tokenizer.sha256 == maker(target) else stopped
            made_by.assert_made(target)
            names = {"a.txt", "b.txt", "a.bpe", "b.bpe"}
            names |= {"out.bin", "out.json", "out.documents"}
            assert set(os.listdir(tmp_path)) == names
            if left > 0:
                break
        assert num_waits >= 4
        assert step > 15
    finally:
        for run in (stopped, other):
            run.process.kill()
            run.process.communicate()


def maker(target):
    return verify(target).tokenizer_sha256
