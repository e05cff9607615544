"""The two engines: how one is chosen, and that they give the same merges and ids."""

import os
import re
import subprocess
import sys
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packaging.requirements import Requirement

from tests.conftest import ROOT, SEP, expect
from tests.test_tokenize import ADVERSARIAL
from tiny_llm import engine_gigatoken, engine_tokenizers
from tiny_llm.engine import learn_merges, library
from tiny_llm.errors import ConfigError
from tiny_llm.parallel import Job, map_jobs
from tiny_llm.tokenize import BPETokenizer
from tiny_llm.tokenizer_json import format_merges

ENGINES = ("gigatoken", "tokenizers")


@pytest.fixture(params=ENGINES)
def engine(request, monkeypatch):
    """Runs a test once with each engine."""
    monkeypatch.setenv("TINY_LLM_ENGINE", request.param)
    return request.param


def with_each(monkeypatch, work) -> list:
    results = []
    for name in ENGINES:
        monkeypatch.setenv("TINY_LLM_ENGINE", name)
        results.append(work())
    return results


def run_python(code, **env):
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT), **env},
        capture_output=True,
        text=True,
        check=True,
    )


def test_the_variable_chooses_the_library(monkeypatch):
    assert with_each(monkeypatch, library) == [engine_gigatoken, engine_tokenizers]
    monkeypatch.delenv("TINY_LLM_ENGINE")
    assert library() is engine_gigatoken
    monkeypatch.setenv("TINY_LLM_ENGINE", "")
    assert library() is engine_gigatoken


def name_of_library(number):
    return library().__name__


@pytest.mark.parametrize("name", ENGINES)
def test_workers_use_the_library_of_their_parent(monkeypatch, name):
    monkeypatch.setenv("TINY_LLM_ENGINE", name)
    jobs = [Job("a name", {"number": number}) for number in range(9)]
    assert set(map_jobs(name_of_library, jobs, 2)) == {f"tiny_llm.engine_{name}"}


@pytest.mark.parametrize("name", ["tiktoken", "Gigatoken", "gigatoken "])
def test_an_unknown_engine_is_refused_with_the_known_ones(monkeypatch, name):
    monkeypatch.setenv("TINY_LLM_ENGINE", name)
    with pytest.raises(ConfigError, match=f"'{name}'; set it to gigatoken or tokeni"):
        BPETokenizer().encode("a")


USE_AN_ENGINE = """
import sys
import tiny_llm.data, tiny_llm.encoding
assert not {"gigatoken", "tokenizers"} & set(sys.modules)
tokenizer = tiny_llm.data.BPETokenizer()
tokenizer.train("low low lower", 259)
assert tokenizer.decode(tokenizer.encode("low")) == "low"
print(*sorted({"gigatoken", "tokenizers"} & set(sys.modules)))
"""


@pytest.mark.parametrize("name", ENGINES)
def test_only_the_chosen_library_is_imported(name):
    done = run_python(USE_AN_ENGINE, TINY_LLM_ENGINE=name)
    assert done.stdout == f"{name}\n"
    assert done.stderr == ""


def test_a_missing_library_is_one_line_with_the_command(workspace):
    """In an interpreter that cannot import tokenizers."""
    (workspace.path / "tokenizers.py").write_text("raise ImportError('not here')\n")
    workspace.stage("fetch")
    done = workspace.stage("bpe", TINY_LLM_ENGINE="tokenizers")
    command = f"{sys.executable} -m pip install 'tokenizers>=0.21'"
    expect(done, 2, "lacks the packages for TINY_LLM_ENGINE=tokenizers", command)
    assert workspace.stage("bpe").returncode == 0


def test_both_learn_the_same_merges_and_file(monkeypatch, corpus_text):
    sample = corpus_text[: 1 << 20] + b"\xff\xc3 " + "".join(ADVERSARIAL).encode()

    def train():
        tokenizer = BPETokenizer()
        tokenizer.train(sample, 1500)
        return tokenizer

    one, other = with_each(monkeypatch, train)
    assert one.merges == other.merges
    assert one.sha256 == other.sha256
    assert one.merge_counts.tolist() == other.merge_counts.tolist()
    assert len(one) == 1500


def test_both_learn_the_same_merges_from_a_file(engine, tmp_path, text):
    path = tmp_path / "text.parquet"  # A name must not decide how a file is read.
    path.write_bytes(text * 50)
    assert learn_merges(path, 60) == learn_merges(text * 50, 60) != []


ANY_BYTES = st.lists(
    st.one_of(
        st.binary(max_size=30),
        st.text("ab '\n\té\u4f60\U0001f600\u00a0\u0301", max_size=30).map(str.encode),
        st.just(SEP),
    )
).map(b"".join)


def test_both_give_the_same_ids_for_any_bytes(monkeypatch, text):
    tokenizer = BPETokenizer()
    tokenizer.train(text, 300)

    @settings(max_examples=200, deadline=None)
    @given(ANY_BYTES)
    def check(data):
        monkeypatch.setenv("TINY_LLM_ENGINE", "gigatoken")
        ids = BPETokenizer(tokenizer.merges).encode(data)
        monkeypatch.setenv("TINY_LLM_ENGINE", "tokenizers")
        other = BPETokenizer(tokenizer.merges)
        assert other.encode(data).tolist() == ids.tolist()
        assert other.decode_bytes(ids) == data

    check()


def test_both_decode_every_id(engine):
    tokenizer = BPETokenizer([(b"\xc3", b"\xa9"), (b"a", b"\xff")])
    expected = [bytes([byte]) for byte in range(256)] + [SEP, b"\xc3\xa9", b"a\xff"]
    assert list(map(tokenizer.token_bytes, range(259))) == expected


def test_the_parallelism_of_tokenizers_changes_nothing(text):
    code = (
        "import sys\n"
        "from tiny_llm.tokenize import BPETokenizer\n"
        "tokenizer = BPETokenizer()\n"
        "tokenizer.train(sys.stdin.buffer.read(), 330)\n"
        "sys.stdout.write(tokenizer.sha256)\n"
    )
    results = set()
    for env in ({}, {"TOKENIZERS_PARALLELISM": "false"}, {"RAYON_NUM_THREADS": "3"}):
        done = subprocess.run(
            [sys.executable, "-c", code],
            input=text * 20,
            env={**os.environ, "TINY_LLM_ENGINE": "tokenizers", **env},
            capture_output=True,
            check=True,
        )
        results.add((done.stdout, done.stderr))
    assert len(results) == 1
    assert results.pop()[1] == b""


def kinds_of_characters() -> tuple[str, np.ndarray]:
    """Return all characters, and whether each engine joins them to a, 1 and !.

    The first byte of a character merges with "a", "1" or "!" before it only if both
    are letters, numbers, or neither: pretokens end elsewhere.

    Returns:
        Characters that may be assigned (planes 4 to 13 are empty, 15 and 16 private),
        and ones of shape (2 engines, number of characters, 3).
    """
    ranges = [*range(0x80, 0xD800), *range(0xE000, 0x40000), *range(0xE0000, 0xE0200)]
    chars = "".join(map(chr, ranges))
    leads = sorted({char.encode()[0] for char in chars})
    merges = [(a, bytes([lead])) for a in (b"a", b"1", b"!") for lead in leads]
    file_bytes = format_merges(merges)
    first_bytes = np.array([char.encode()[0] for char in chars])
    found = []
    for engine in (engine_gigatoken, engine_tokenizers):
        worker = engine.new_worker(file_bytes)
        columns = []
        for place, before in enumerate("a1!"):
            text = "".join(f"{before}{char}\n" for char in chars).encode()
            ids = worker.encode(text)
            # An example is "a", the bytes of the character and "\n"; U+0085 and U+00A0
            # to U+3000 are white space, but never join the "\n" after them with an id.
            begins = np.flatnonzero(np.append(True, ids[:-1] == ord("\n")))
            joined = ids[begins] >= 257
            assert len(joined) == len(chars)
            assert (ids[begins][~joined] == ord(before)).all()
            row = np.searchsorted(leads, first_bytes[joined])
            assert (ids[begins][joined] == 257 + place * len(leads) + row).all()
            columns.append(joined)
        found.append(np.stack(columns, axis=1))
    return chars, np.array(found)


def test_both_split_alike_at_every_character_that_both_know():
    """Unicode 16 is what tokenizers 0.23 knows, and 17 what gigatoken 0.10 knows.

    Characters that are new in 17 are letters or numbers to one, and like punctuation
    to the other, because they are unassigned there.
    """
    chars, (ours, theirs) = kinds_of_characters()
    new = np.flatnonzero((ours != theirs).any(axis=1))
    assert (theirs[new] == [False, False, True]).all()
    assert not ours[new, 2].any()
    assert 0x10940 in [ord(chars[place]) for place in new]
    if tuple(map(int, unicodedata.unidata_version.split("."))) < (17,):
        assert {unicodedata.category(chars[place]) for place in new} == {"Cn"}
    # To both, each other character is of one kind, or white space.
    assert (ours.sum(axis=1) <= 1).all()
    is_space = ~ours.any(axis=1)
    assert all(chars[place].isspace() for place in np.flatnonzero(is_space))


def test_the_version_of_gigatoken_is_the_same_everywhere():
    pinned = f"gigatoken=={engine_gigatoken.VERSION}"
    assert re.findall(r'"(gigatoken[^"]*)"', _read("pyproject.toml")) == [pinned]
    lock = map(Requirement, re.findall(r"(?m)^\w.*", _read("requirements.lock")))
    assert [str(pin) for pin in lock if pin.name == "gigatoken"] == [pinned]


def _read(name):
    return (ROOT / name).read_text()


def change_version(clone):
    path = clone.path / "tiny_llm" / "engine_gigatoken.py"
    code = path.read_text()
    line = f'VERSION = "{engine_gigatoken.VERSION}"'
    assert code.count(line) == 1
    path.write_text(code.replace(line, 'VERSION = "0.9.9"'))


def test_another_version_of_gigatoken_is_refused(workspace):
    workspace.stage("fetch")
    assert workspace.stage("bpe").returncode == 0
    change_version(workspace)
    found = f"gigatoken {engine_gigatoken.VERSION} is installed, but"
    for command in (["bpe"], ["encode", "train"]):
        done = workspace.stage(*command)
        expect(done, 2, found, "expects 0.9.9", "pip install gigatoken==0.9.9")
    assert workspace.stage("bpe", TINY_LLM_ENGINE="tokenizers").returncode == 0
