"""The calls that a tutorial makes, as it makes them, in a clone with real DVC."""

import hashlib
import json
import os
import shutil
import sys

import pytest

from tests.conftest import serve_folder

HEAD = "from tiny_llm.data import *\n"


def run_code(clone, code, check=True, **env):
    """Run Python code in a clone, without its environment's bin folder on PATH."""
    return clone.run(
        sys.executable, "-c", HEAD + code, check=check, PATH=os.environ["PATH"], **env
    )


def test_the_code_of_a_tutorial_runs_unchanged(clone):
    params = (clone.path / "params.yaml").read_text()
    code = """
tok = prepare(vocab_size=2048, sample_mb=1)
print(tok.vocab_size, len(tok.merges))
x, y = get_batch("train", batch_size=4, seq_len=16, device="cpu")
print(x.shape, x.dtype, bool((x[:, 1:] == y[:, :-1]).all()))
print(type(tok.decode(x[0].tolist())))
train = load_token_array("train")
print(len(train) > 100_000, train.dtype, get_batch(train, 4, 16)[1].shape)
"""
    done = run_code(clone, code)
    assert done.stdout.splitlines()[-4:] == [
        "2048 1791",
        "torch.Size([4, 16]) torch.int64 True",
        "<class 'str'>",
        "True uint16 torch.Size([4, 16])",
    ]
    said = done.stderr.splitlines()
    assert said[:2] == [
        "set bpe.vocab_size in params.yaml: 4096 -> 2048",
        "set bpe.sample_mb in params.yaml: 10 -> 1",
    ]
    assert any(line.startswith("wrote build/tokenizer.json") for line in said)
    changed = params.replace("size: 4096", "size: 2048").replace("mb: 10", "mb: 1")
    assert (clone.path / "params.yaml").read_text() == changed

    # Without arguments params.yaml decides, and nothing is left to do.
    again = run_code(clone, "print(prepare().vocab_size)")
    assert again.stdout.splitlines()[-1] == "2048"
    assert "up to date" in again.stdout
    assert "set bpe" not in again.stderr


def test_a_tutorial_on_a_text_of_your_own_runs_unchanged(clone, text):
    (clone.path / "mine.txt").write_bytes(text * 20)
    code = """
tok = train_tokenizer("mine.txt", vocab_size=300, sample_mb=1)
encode_and_save(tok, "mine.txt", "mine.bin")
x, y = get_batch(load_token_array("mine.bin"), 2, 8)
print(tok.vocab_size, len(tok.merges), tok.decode(x[0].tolist()) != "")
"""
    assert run_code(clone, code).stdout == "300 43 True\n"


def test_tinystories_is_downloaded_with_the_small_split_first(clone, text, tmp_path):
    (tmp_path / "train.txt").write_bytes(text * 3)
    (tmp_path / "valid.txt").write_bytes(text)
    with serve_folder(tmp_path) as (url, asked):
        pins = {
            split: {
                "url": f"{url}/{split}.txt",
                "size": (tmp_path / f"{split}.txt").stat().st_size,
                "sha256": hashlib.sha256(
                    (tmp_path / f"{split}.txt").read_bytes()
                ).hexdigest(),
            }
            for split in ("train", "valid")
        }
        (clone.path / "pipeline" / "tinystories.yaml").write_text(json.dumps(pins))
        code = """
train_path, valid_path = download_tinystories()
print(train_path.read_bytes() == 3 * valid_path.read_bytes())
"""
        done = run_code(clone, code, XDG_CACHE_HOME=str(tmp_path / "cache"))
    assert done.stdout == "True\n"
    assert asked == ["/valid.txt", "/train.txt"]


@pytest.mark.parametrize(
    ("setting", "arguments", "kind", "message"),
    [
        ("vocab_size: 5", "", "ConfigError", "vocab_size is 5; give an integer"),
        ("vocab_size: 9", "sample_mb=1", "ConfigError", "vocab_size is 9; give"),
        ("source: gone", "", "InputError", "gone"),
        ("sample_mb: 10", "vocab_size=256", "ConfigError", "vocab_size is 256; give"),
        ("sample_mb: 10", "sample_mb=-1", "ConfigError", "sample_mb is -1; give"),
        ("sample_mb: 10", "vocab_size='2k'", "ConfigError", "vocab_size is '2k'; give"),
    ],
)
def test_prepare_raises_what_the_stage_said(clone, setting, arguments, kind, message):
    clone.set_param(*setting.split(": "))
    code = f"""
from tiny_llm import errors
try:
    prepare({arguments})
except errors.{kind} as error:
    print("raised", error)
"""
    done = run_code(clone, code)
    line = done.stdout.splitlines()[-1]
    assert line.startswith("raised ")
    assert message in line
    assert "Traceback" not in done.stderr


def test_prepare_learns_from_all(clone):
    done = run_code(clone, "print(prepare(sample_mb='all').vocab_size)")
    assert "set bpe.sample_mb in params.yaml: 10 -> all\n" in done.stderr
    assert done.stdout.endswith("4096\n")


def test_an_impossible_argument_leaves_params_alone(clone):
    before = (clone.path / "params.yaml").read_text()
    done = run_code(clone, "prepare(vocab_size=1 << 40)", check=False)
    assert "ConfigError: vocab_size is 1,099,511,627,776; give" in done.stderr
    done = run_code(clone, "prepare(vocab_size=512, sample_mb=-1)", check=False)
    assert "ConfigError: sample_mb is -1; give" in done.stderr
    assert (clone.path / "params.yaml").read_text() == before


def test_a_tree_without_git_is_told_what_to_run(clone):
    shutil.rmtree(clone.path / ".git")
    done = run_code(clone, "prepare()", check=False)
    assert "InputError" in done.stderr.splitlines()[-1]
    assert "is not a git repository; run `git init` in it" in done.stderr
    clone.dvc("config", "--local", "core.no_scm", "true")
    assert "up to date" in run_code(clone, "prepare()").stdout


def test_a_python_without_dvc_is_told_how_to_get_it(clone):
    code = """
import sys
sys.modules["dvc"] = None
try:
    prepare()
except ValueError as error:
    print(error)
"""
    assert "lacks DVC" in run_code(clone, code).stdout
