"""What merges are learned from: a file as a whole, and without giant pretokens."""

import subprocess
import sys
import tempfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import SEP, expect, needs_proc, run_up_to
from tiny_llm.data import train_tokenizer
from tiny_llm.engine import library
from tiny_llm.errors import InputError
from tiny_llm.sample import MAX_PRETOKEN_BYTES, file_sample, text_sample
from tiny_llm.tokenize import BPETokenizer
from tiny_llm.training import train_on_file

pytestmark = pytest.mark.parametrize("engine", ["gigatoken", "tokenizers"])


@pytest.fixture(autouse=True)
def _choose(engine, monkeypatch):
    """Runs every test with each engine."""
    monkeypatch.setenv("TINY_LLM_ENGINE", engine)


@pytest.mark.parametrize("odd", [b"", b"\xff\xfe caf\xc3", b"x" * 40_000 + b" "])
def test_all_gives_the_merges_of_a_sample_larger_than_the_file(tmp_path, text, odd):
    """`BPETokenizer.train` has the text in memory; `all` learns from the file."""
    path = tmp_path / "train.txt"
    path.write_bytes((text + odd) * 20 + b"\xff no separator")
    training = train_on_file(path, 330, "all")
    larger = train_on_file(path, 330, 100)
    tokenizer = BPETokenizer()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.warn", lambda *_, **__: None)
        tokenizer.train(path.read_bytes(), 330)
    for other in (larger.tokenizer, tokenizer):
        assert training.tokenizer.merges == other.merges
        assert (training.tokenizer.merge_counts == other.merge_counts).all()
    assert training.tokenizer.vocab_size == 330
    assert training.num_bytes == path.stat().st_size
    assert training.num_documents == 20 * text.count(SEP) + 1
    assert (training.num_giant_bytes > 0) == odd.startswith(b"xx")


def test_a_copy_of_a_file_is_only_made_if_needed(tmp_path, text):
    path = tmp_path / "train.txt"
    path.write_bytes(text)
    with file_sample(path, 1 << 62, tmp_path / "copies") as sample:
        assert sample.text == path
    path.write_bytes(b"\xff" + text)
    with file_sample(path, 1 << 62, tmp_path / "copies") as sample:
        assert sample.text.parent == tmp_path / "copies"
        assert sample.text.read_bytes() == SEP + text


def test_a_changed_file_is_noticed(tmp_path, text):
    path = tmp_path / "train.txt"
    path.write_bytes(text)
    with (
        pytest.raises(InputError, match="changed while it was read"),
        file_sample(path, 1 << 62, tmp_path),
    ):
        path.write_bytes(text * 2)


@pytest.mark.parametrize("text", [b"", SEP * 9, b" \n" * 9])
def test_a_file_without_a_document_is_refused(tmp_path, text):
    (tmp_path / "train.txt").write_bytes(text)
    with pytest.raises(InputError, match="holds no document"):
        train_on_file(tmp_path / "train.txt", 300, "all")


GIANTS = [
    b"x" * (MAX_PRETOKEN_BYTES + 1),
    b" " + b"7" * MAX_PRETOKEN_BYTES,
    b"!" * 100_000,
    b" " * (MAX_PRETOKEN_BYTES + 1) + b"\n\n",
    "\u3000 ".encode() * MAX_PRETOKEN_BYTES,
    "\u4f60".encode() * (MAX_PRETOKEN_BYTES // 3 + 1),
]


@pytest.mark.parametrize("giant", GIANTS, ids=range(len(GIANTS)))
@pytest.mark.parametrize("before", [0, 1, 4095])
def test_giant_pretokens_are_left_out_wherever_they_are(text, giant, before):
    words = b"ab, cd " * (before // 7 + 1)
    data = text + words[:before] + SEP + giant + SEP + text
    sample = text_sample(data)
    assert sample.text.count(SEP) > data.count(SEP)
    assert sample.num_giant_bytes == len(giant)
    assert len(sample.text) < len(data) - MAX_PRETOKEN_BYTES + 2 * len(SEP)
    tokenizer, expected = BPETokenizer(), BPETokenizer()
    with pytest.warns(UserWarning, match=r"bytes of the sample were left out"):
        tokenizer.train(data, 330)
    expected.train(text + words[:before] + SEP + text, 330)
    assert tokenizer.merges == expected.merges
    assert tokenizer.merge_counts.tolist() == expected.merge_counts.tolist()


PIECES = st.sampled_from(
    ["a", "1", "!", " ", "\n", "\u3000", "\u4f60", "\xa0", "'s", SEP.decode()]
)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(PIECES, st.sampled_from([1, 2, 3000, 4097, 8190, 8193]))))
def test_only_giant_pretokens_are_left_out(engine, pieces):
    text = "".join(piece * count for piece, count in pieces).encode()
    documents = text.split(SEP)
    pretokens = [p for document in documents for p in library().split(document)]
    giant = [len(p) for p in pretokens if len(p) > MAX_PRETOKEN_BYTES]
    sample = text_sample(text)
    assert sample.num_giant_bytes == sum(giant)
    if not giant:
        assert sample.text == text
    kept = b"".join(p for p in pretokens if len(p) <= MAX_PRETOKEN_BYTES)
    assert sample.text.replace(SEP, b"") == kept.replace(SEP, b"")


def test_text_without_spaces_but_with_short_pretokens_is_learned_from(engine):
    text = ("\u4f60\u597d\uff0c\u4e16\u754c\u3002" * 5000).encode()
    assert text_sample(text).text is text


def test_a_warning_says_how_many_bytes_were_left_out(workspace, text):
    path = workspace.source / "train.txt"
    path.write_bytes(text + b"x" * 30_000)
    with pytest.warns(UserWarning, match="^30,000 of ") as caught:
        train_tokenizer(path, 280)
    assert caught[0].filename == __file__
    done = run_up_to(workspace, "bpe")
    line = f"bpe: warning: 30,000 of {len(text) + 30_000:,} bytes of the sample were"
    assert line in done.stderr
    assert '"sample_bytes_left_out": 30000' in _report(workspace)


def test_the_stage_learns_from_all(workspace, text):
    (workspace.source / "train.txt").write_bytes(text * 3000)
    workspace.set_param("sample_mb", "all")
    workspace.set_param("vocab_size", "300")
    done = run_up_to(workspace, "bpe")
    assert f"learned from {3000 * len(text):,} bytes" in done.stderr
    assert f'"sample_documents": {3000 * text.count(SEP)}' in _report(workspace)
    workspace.set_param("sample_mb", "everything")
    expect(
        workspace.stage("bpe"), 2, "sample_mb is 'everything'", "MiB above 0, or all"
    )


def _report(workspace):
    return (workspace.path / "reports" / "bpe.json").read_text()


TRAIN_ON_ALL = """
import sys, time
from tiny_llm.training import learn_from_file
text, path = sys.stdin.buffer.read(), sys.argv[1]
with open(path, "wb") as file:
    for _ in range(int(sys.argv[2])):
        file.write(text)
del text

def anonymous():
    lines = open("/proc/self/status").read().splitlines()
    return [int(line.split()[1]) for line in lines if line.startswith("RssAnon")][0]

# gigatoken keeps the GIL while it learns, so look from another process.
import os
before, parent, (reader, writer) = anonymous(), os.getpid(), os.pipe()
if os.fork() == 0:
    peak = 0
    os.close(reader)
    while os.getppid() == parent and not os.path.exists(path + ".done"):
        lines = open(f"/proc/{parent}/status").read().splitlines()
        peak = max([peak, *(int(x.split()[1]) for x in lines if "RssAnon" in x)])
        time.sleep(0.005)
    os.write(writer, str(peak).encode())
    os._exit(0)
os.close(writer)
learn_from_file(path, path + ".folder", 600, 1 << 62)
open(path + ".done", "w").close()
print(int(os.read(reader, 20)) - before)
"""


@needs_proc
def test_memory_does_not_grow_with_the_file(engine, tmp_path, corpus_text):
    grown_kib = {}
    text_bytes = 1 << (22 if engine == "gigatoken" else 18)  # tokenizers is slow.
    for times in (4, 12):
        path = tmp_path / f"{times}.txt"
        done = subprocess.run(
            [sys.executable, "-c", TRAIN_ON_ALL, str(path), str(times)],
            input=corpus_text[:text_bytes] + SEP,
            capture_output=True,
            check=True,
        )
        grown_kib[times] = int(done.stdout)
    small, large = grown_kib.values()
    assert large < small + 12_000


def test_temporary_copies_are_removed(tmp_path, text, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    (tmp_path / "train.txt").write_bytes(b"\xff" + text)
    train_on_file(tmp_path / "train.txt", 300, "all")
    assert list((tmp_path / "tmp").iterdir()) == []
