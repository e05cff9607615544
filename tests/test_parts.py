"""Interrupted encodings: what is kept, what is used again, what is removed."""

import itertools
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.conftest import SEP
from tiny_llm.encoding import encode_file
from tiny_llm.parts import parts_folder
from tiny_llm.tokenize import BPETokenizer
from tiny_llm.tokens import open_tokens
from tiny_llm.verify import verify

TEXT = b"".join(b"Story %d of the cat. " % n * 9 + SEP for n in range(40))
RANGE_BYTES = 500
NUM_RANGES = -(-len(TEXT) // RANGE_BYTES)


@pytest.fixture
def tokenizer():
    return BPETokenizer([(b"t", b"h"), (b"th", b"e")])


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "in.txt"
    path.write_bytes(TEXT)
    return path


class Stop(BaseException):
    pass


def interrupt(tokenizer, source, after):
    """Encode some ranges, then stop as Ctrl-C would."""
    count = [0]

    def stop(_):
        count[0] += 1
        if count[0] == after:
            raise Stop

    with pytest.raises(Stop):
        encode_file(
            tokenizer,
            source,
            source.with_name("out.bin"),
            on_progress=stop,
            range_bytes=RANGE_BYTES,
            num_workers=1,
        )


def list_parts(folder):
    """The parts on disk, with what changes when one is written again."""
    return {
        path.name: (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in folder.glob("out.parts/*/*.part")
    }


def finish_watched(tokenizer, source):
    """Finish the encoding; return the parts as they were just before the end."""
    seen = {}

    def look(_):
        seen.update(list_parts(source.parent))

    target = source.with_name("out.bin")
    encode_file(tokenizer, source, target, on_progress=look, range_bytes=RANGE_BYTES)
    return seen


def test_a_rerun_encodes_only_what_is_missing(tokenizer, source):
    interrupt(tokenizer, source, after=NUM_RANGES // 2)
    kept = list_parts(source.parent)
    assert len(kept) >= NUM_RANGES // 2
    found = finish_watched(tokenizer, source)
    assert found.items() >= kept.items()
    assert len(found) == NUM_RANGES
    target = source.with_name("out.bin")
    assert tokenizer.decode_bytes(open_tokens(target)[0]) == TEXT
    verify(target, tokenizer.sha256)
    assert not (source.parent / "out.parts").exists()


def test_parts_of_another_text_are_not_used(tokenizer, source):
    """Not even if it has the same size, time of change and file."""
    interrupt(tokenizer, source, after=NUM_RANGES // 2)
    kept, before = list_parts(source.parent), source.stat()
    with source.open("r+b") as file:
        file.write(b"Other")
    os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns))
    found = finish_watched(tokenizer, source)
    assert [name for name in kept if found[name] != kept[name]] == [min(kept)]
    decoded = tokenizer.decode_bytes(open_tokens(source.with_name("out.bin"))[0])
    assert decoded == b"Other" + TEXT[5:]


def test_parts_of_another_tokenizer_are_removed(tokenizer, source):
    interrupt(tokenizer, source, after=3)
    other = BPETokenizer([(b"c", b"a")])
    kept = list_parts(source.parent)
    found = finish_watched(other, source)
    assert not set(found.values()) & set(kept.values())
    verify(source.with_name("out.bin"), other.sha256)
    assert not (source.parent / "out.parts").exists()


def test_half_a_part_that_a_killed_worker_left_is_removed_at_the_start(
    tokenizer, source
):
    interrupt(tokenizer, source, after=3)
    [folder] = source.parent.glob("out.parts/*")
    left = folder / "0000000000000000.part.0123abcd.tmp"
    left.touch()
    interrupt(tokenizer, source, after=5)
    assert folder.exists()
    assert not left.exists()


@pytest.mark.parametrize("place", [0, 100, -1, -20])
def test_a_damaged_part_is_made_again(tokenizer, source, place):
    interrupt(tokenizer, source, after=3)
    for path in source.parent.glob("out.parts/*/*.part"):
        damaged = bytearray(path.read_bytes())
        damaged[place] ^= 1
        path.write_bytes(damaged)
    encode_file(tokenizer, source, source.with_name("out.bin"), range_bytes=RANGE_BYTES)
    assert tokenizer.decode_bytes(open_tokens(source.with_name("out.bin"))[0]) == TEXT


def test_a_live_run_keeps_its_parts_from_another(tokenizer, source):
    target = source.with_name("out.bin")
    with parts_folder(target, "key") as folder:
        (folder / "0.part").touch()
        for key in ("key", "other"):
            with parts_folder(target, key) as other:
                assert other != folder
        assert (folder / "0.part").exists()
    assert not (source.parent / "out.parts").exists()


class Stopped(BaseException):
    """As the signal handler of the pipeline raises."""


def stop_at_line(number):
    """Raise Stopped before the n-th line that parts.py or atomic.py runs."""
    lines = itertools.count(1)

    def trace(frame, event, _):
        if not frame.f_code.co_filename.endswith(("parts.py", "atomic.py")):
            return None
        if event == "line" and next(lines) == number:
            sys.settrace(None)
            raise Stopped
        return trace

    sys.settrace(trace)


# A stop between opening a file and the next line closes it by dropping it.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_stop_while_the_folder_is_made_leaves_no_file(tmp_path):
    before = sys.gettrace()
    for number in itertools.count(1):
        try:
            stop_at_line(number)
            with parts_folder(tmp_path / "out.bin", "key"):
                sys.settrace(before)
                break
        except Stopped:
            assert not [path for path in tmp_path.rglob("*") if path.is_file()]
        finally:
            sys.settrace(before)
    assert number > 20


@pytest.mark.skipif(os.name == "nt", reason="nothing is removed without locks")
def test_parts_that_a_killed_run_was_removing_are_removed(tokenizer, source):
    folder = source.with_name("out.parts") / "0123456789abcdef"
    folder.mkdir(parents=True)
    (folder / "0.part").touch()  # Its lock was removed first.
    encode_file(tokenizer, source, source.with_name("out.bin"))
    assert not folder.parent.exists()


CODE = """
import sys
from tiny_llm.encoding import encode_file
from tiny_llm.tokenize import BPETokenizer
tokenizer = BPETokenizer.load(sys.argv[1])
print(flush=True)
encode_file(tokenizer, sys.argv[2], sys.argv[3], range_bytes=500, num_workers=2)
"""


def test_killed_runs_resume_until_one_succeeds(tokenizer, source):
    folder, target = source.parent, source.with_name("out.bin")
    tokenizer.save(folder / "bpe.json")
    most = 0
    for delay in (0.1, 0.3, 0.4, 0.5):
        run = subprocess.Popen(
            [sys.executable, "-c", CODE, folder / "bpe.json", source, target],
            stdout=subprocess.PIPE,
        )
        run.stdout.readline()
        time.sleep(delay)
        run.send_signal(signal.SIGKILL)
        run.communicate()
        if target.exists():
            verify(target)
        else:
            assert len(list_parts(folder)) >= most
            most = len(list_parts(folder))
    encode_file(tokenizer, source, target, range_bytes=500)
    assert tokenizer.decode_bytes(open_tokens(target)[0]) == TEXT
    assert sorted(os.listdir(folder)) == [
        *("bpe.json", "in.txt", "out.bin", "out.documents", "out.json"),
    ]


KILL_AT = """
import os, signal, sys
from tiny_llm.encoding import encode_file
from tiny_llm.tokenize import BPETokenizer
steps = int(sys.argv[4])
def count(event, _):
    global steps
    if event in ("os.remove", "os.rename"):
        steps -= 1
        if steps == 0:
            os.kill(os.getpid(), signal.SIGKILL)
tokenizer = BPETokenizer.load(sys.argv[1])
sys.addaudithook(count)
encode_file(tokenizer, sys.argv[2], sys.argv[3])
"""


def test_no_order_of_kills_leaves_a_token_file_beside_another_manifest(
    tokenizer, source
):
    """Killed before each rename and removal in turn, with another tokenizer."""
    folder, target = source.parent, source.with_name("out.bin")
    tokenizer.save(folder / "bpe.json")
    old = BPETokenizer([(b"c", b"a")])
    status, step = -signal.SIGKILL, 0
    while status:
        step += 1
        encode_file(old, source, target)
        arguments = (folder / "bpe.json", source, target, str(step))
        run = subprocess.run([sys.executable, "-c", KILL_AT, *arguments])
        status = run.returncode
        if target.exists():
            maker = old if verify(target).vocab_size == len(old) else tokenizer
            verify(target, maker.sha256)
            assert maker.decode_bytes(open_tokens(target)[0]) == TEXT
    assert step > 5
