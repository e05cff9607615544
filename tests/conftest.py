"""Shared by several tests: tiny texts, a fresh clone of this repository, a server."""

import contextlib
import gzip
import http.server
import os
import shutil
import string
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from tests.faulty_server import Fetch, serve
from tiny_llm.encoding import encode_file
from tiny_llm.source_files import find_files
from tiny_llm.sources import Reading
from tiny_llm.splitting import write_corpus
from tiny_llm.tokenize import BPETokenizer
from tiny_llm.tokens import write_tokens

try:
    from compression import zstd
except ImportError:
    from backports import zstd

ROOT = Path(__file__).resolve().parents[1]
SEP = b"<|endoftext|>"
COMPRESS = {".gz": gzip.compress, ".zst": zstd.compress}

STORIES = [
    "Once there was a little cat. The cat sat on the mat.",
    'Ben said, "I want the ball!" Ben didn\'t share the ball.',
    "The dog ran to the big red barn, and the cat ran too.",
    "  Two spaces,\ttabs\r\nand a CRLF; caf\u00e9 \U0001f600 \u4f60\u597d 1234!!",
    "",
]

# A child's ru_maxrss starts at its parent's, so read the peak from /proc instead.
PRINT_PEAK_KIB = (
    "\nprint(*[line.split()[1] for line in open('/proc/self/status') "
    "if line.startswith('VmHWM')])\n"
)
needs_proc = pytest.mark.skipif(
    not os.path.exists("/proc/self/status"), reason="peak memory is read from /proc"
)


@pytest.fixture
def text() -> bytes:
    """A few stories with awkward white space, digits and Unicode; one is blank."""
    return b"".join(story.encode() + b"\n" + SEP + b"\n" for story in STORIES)


def save_tokens(path, ids, vocab_size=300, tokenizer_sha256=""):
    """Write ids as a token file with a manifest; the separator is id 256."""
    dtype = np.uint16 if vocab_size <= 1 << 16 else np.uint32
    ids = np.array(ids, dtype=dtype)
    with write_tokens(
        path,
        vocab_size=vocab_size,
        separator_id=256,
        tokenizer_sha256=tokenizer_sha256,
    ) as writer:
        writer.append(ids)
        # A last document without a separator counts too.
        writer.rest_is_document = len(ids) > 0 and ids[-1] != 256
    return path


class Clone:
    """A checkout in which a test runs commands as a user would."""

    def __init__(self, path: Path, home: Path):
        self.path = path
        self.env = {
            **os.environ,
            "PATH": os.pathsep.join(
                [os.path.dirname(sys.executable), os.environ["PATH"]]
            ),
            "HOME": str(home),
            "XDG_CACHE_HOME": str(home / "cache"),
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_AUTHOR_NAME": "tester",
            "GIT_AUTHOR_EMAIL": "tester@example.org",
            "GIT_COMMITTER_NAME": "tester",
            "GIT_COMMITTER_EMAIL": "tester@example.org",
            "NO_COLOR": "1",
        }

    def run(self, *command, check=True, **env):
        done = subprocess.run(
            command,
            cwd=self.path,
            env={**self.env, **env},
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        if check and done.returncode:
            raise AssertionError(f"{command} failed:\n{done.stdout}\n{done.stderr}")
        return done

    def dvc(self, *arguments, **options):
        return self.run(sys.executable, "-m", "dvc", *arguments, **options)

    def stage(self, name, *arguments, **env):
        """Run a stage without DVC; a failure does not raise."""
        return self.run(
            sys.executable, "-m", "pipeline", name, *arguments, check=False, **env
        )

    def tool(self, name, *arguments, **env):
        """Run a command of `tiny-llm`; a failure does not raise."""
        return self.run(
            sys.executable, "-m", "tiny_llm.cli", name, *arguments, check=False, **env
        )

    def git(self, *arguments):
        return self.run("git", *arguments).stdout

    def set_param(self, name, value):
        path = self.path / "params.yaml"
        lines = path.read_text().splitlines()
        [place] = [
            i for i, line in enumerate(lines) if line.strip().startswith(f"{name}:")
        ]
        lines[place] = f"{lines[place].split(':')[0]}: {value}"
        path.write_text("\n".join(lines) + "\n")

    def copy(self, path: Path) -> "Clone":
        shutil.copytree(self.path, path, symlinks=True)
        return Clone(path, Path(self.env["HOME"]))


@pytest.fixture(scope="session")
def fresh_clone(tmp_path_factory) -> Clone:
    """A clone of this working tree: only the files that git tracks, in one commit."""
    base = tmp_path_factory.mktemp("session")
    path, home = base / "clone", base / "home"
    home.mkdir()
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout.decode()
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            target = path / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target)
    clone = Clone(path, home)
    clone.git("init", "-q", "-b", "main")
    clone.git("add", "-A")
    clone.git("commit", "-q", "-m", "clone")
    return clone


@pytest.fixture(scope="session")
def built_clone(fresh_clone, tmp_path_factory) -> Clone:
    """A fresh clone after `dvc repro`; copy it before changing anything."""
    clone = fresh_clone.copy(tmp_path_factory.mktemp("built") / "clone")
    clone.dvc("repro")
    return clone


@pytest.fixture
def clone(built_clone, tmp_path) -> Clone:
    """A built clone that a test may change."""
    return built_clone.copy(tmp_path / "clone")


@pytest.fixture(scope="session")
def browser():
    """A headless browser; see tests/browser.py, which few tests need."""
    from tests.browser import start_chromium

    with start_chromium() as chromium:
        yield chromium


@pytest.fixture(scope="session")
def corpus_text() -> bytes:
    """The train split of the built-in corpus."""
    return (ROOT / "data" / "train.txt").read_bytes()


@pytest.fixture
def workspace(fresh_clone, tmp_path, text) -> Clone:
    """The code without its corpus, and its own source folder."""
    path = tmp_path / "workspace"
    for name in ("tiny_llm", "pipeline"):
        shutil.copytree(fresh_clone.path / name, path / name)
    shutil.copy(fresh_clone.path / "params.yaml", path)
    source = tmp_path / "my stories"
    source.mkdir()
    for split in ("train", "valid"):
        (source / f"{split}.txt").write_bytes(text)
    (tmp_path / "home").mkdir()
    workspace = Clone(path, tmp_path / "home")
    workspace.source = source
    workspace.set_param("source", f'"{source}"')
    return workspace


@pytest.fixture(scope="session")
def encoded(tmp_path_factory):
    """A folder with both splits encoded as the pipeline does; not to be changed."""
    folder = tmp_path_factory.mktemp("encoded")
    text = b"".join(story.encode() + b"\n" + SEP + b"\n" for story in STORIES)
    tokenizer = BPETokenizer()
    tokenizer.train(text, 300)
    tokenizer.save(folder / "build" / "tokenizer.json")
    for split in ("train", "valid"):
        (folder / f"{split}.txt").write_bytes(text)
        encode_file(
            tokenizer, folder / f"{split}.txt", folder / f"build/tokens/{split}.bin"
        )
    return folder


@pytest.fixture
def project(encoded, tmp_path):
    """Like `encoded`, but a test may change it."""
    return Path(shutil.copytree(encoded, tmp_path / "project"))


def built(workspace) -> list[str]:
    """The files that stages have written."""
    return sorted(
        str(path.relative_to(workspace.path))
        for name in ("build", "reports")
        for path in (workspace.path / name).rglob("*")
        if path.is_file()
    )


def expect(done, status, *words):
    """Check for one readable line, the right exit status, and no traceback."""
    assert done.returncode == status, done.stderr
    assert done.stdout == ""
    [line] = done.stderr.splitlines()
    assert "error: " in line
    for word in words:
        assert word in line
    assert "Traceback" not in line


def run_up_to(workspace, name):
    """Run the stages without DVC, in order, up to and with the named one."""
    stages = ["fetch", "bpe", "encode train", "encode valid", "leakage"]
    for stage in stages[: stages.index(name) + 1]:
        done = workspace.stage(*stage.split())
        assert done.returncode == 0, done.stderr
    return done


@pytest.fixture
def source(tmp_path) -> Path:
    """An empty folder for source files."""
    folder = tmp_path / "source"
    folder.mkdir()
    return folder


@pytest.fixture
def out(tmp_path) -> Path:
    """Where `write` puts train.txt and valid.txt."""
    return tmp_path / "out"


def stories(count) -> list[bytes]:
    """Documents, all of them different."""
    return [f"Story {n}.\nIt ends.\n".encode() for n in range(count)]


def write(source, out, *patterns, **options):
    """Write both splits from a source, as the stage fetch does."""
    return write_corpus(find_files(source, patterns), out, Reading(**options))


def texts(out) -> list[bytes]:
    """What `write` wrote: train and valid."""
    return [(out / f"{split}.txt").read_bytes() for split in ("train", "valid")]


def refuse(error, source, out, match, *patterns, **options):
    """Refuse a source in one line, and leave nothing behind."""
    with pytest.raises(error, match=match) as caught:
        write(source, out, *patterns, **options)
    assert "\n" not in str(caught.value)
    assert not out.exists() or list(out.iterdir()) == []


@pytest.fixture
def server():
    """An HTTP server on the loopback interface; see tests/faulty_server.py."""
    with serve() as server:
        yield server


@pytest.fixture
def fetch(server, tmp_path) -> Fetch:
    """Downloads from `server`, to `tmp_path`."""
    return Fetch(server, tmp_path)


@contextlib.contextmanager
def serve_folder(folder: Path):
    """Serve files on the loopback interface; yields the URL and the paths asked for."""
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(folder))

        def do_GET(self):
            asked.append(self.path)
            super().do_GET()

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=[0.01])
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()
            thread.join()


def wide_merges() -> list[tuple[bytes, bytes]]:
    """65,536 merges: words of two and three letters, and ABAB as the last."""
    letters = [letter.encode() for letter in string.ascii_uppercase]
    letters += [letter.encode() for letter in string.ascii_lowercase]
    pairs = [(a, b) for a in letters for b in letters]
    triples = [(a + b, c) for a, b in pairs for c in letters]
    return [*[*pairs, *triples][:65_535], (b"AB", b"AB")]
