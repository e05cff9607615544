"""examples/sweep: each byte of valid is scored once, with the same compute for all."""

import math
import re
import shlex
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from examples.sweep import summarize, train_seed
from examples.train import GPT, Config, compute_loss
from tests.conftest import ROOT, SEP
from tests.test_layout import import_closure, stages
from tiny_llm.encoding import encode_file
from tiny_llm.errors import ConfigError, InputError, IntegrityError
from tiny_llm.tokenize import BPETokenizer
from tiny_llm.tokens import open_tokens

FOLDER = ROOT / "examples" / "sweep"
SMALL = {"num_layers": 1, "num_heads": 2, "width": 16, "seq_len": 8, "batch_size": 3}
ODD_TEXTS = [
    b"One story." + SEP + b"\nAnother one, of two lines.\r\n\n" + SEP,
    SEP + b"\nThe first id is a separator." + SEP + SEP,
    b"\xff is not UTF-8, and nothing ends it " + "caf\u00e9 \u4f60".encode(),
    b"ab",
]


def uniform(vocab_size):
    """A model that finds every id equally likely."""
    return lambda x: torch.zeros(*x.shape, vocab_size)


def encode(folder: Path, text: bytes, vocab_size: int = 300):
    """Learn a vocabulary from a text with a few merges, and encode the text."""
    tokenizer = BPETokenizer()
    tokenizer.train(b"the story of one, the story of another one. " * 9, vocab_size)
    (folder / "valid.txt").write_bytes(text)
    encode_file(tokenizer, folder / "valid.txt", folder / "valid.bin")
    return tokenizer, folder / "valid.bin"


@settings(deadline=None)
@given(st.integers(2, 200), st.integers(1, 40))
def test_each_id_but_the_first_is_scored_exactly_once(num_ids, seq_len):
    ids = np.arange(num_ids, dtype=np.uint16) % 50
    nats, positions = train_seed.score_ids(uniform(50), ids, seq_len, batch_size=4)
    assert positions.tolist() == list(range(1, num_ids))
    assert nats == pytest.approx((num_ids - 1) * math.log(50))


@settings(deadline=None)
@given(st.integers(2, 200), st.integers(1, 40))
def test_an_id_is_predicted_from_half_a_window_at_least(num_ids, seq_len):
    seen = min(seq_len, num_ids - 1)
    for start, num_scored in train_seed.scored_windows(num_ids, seq_len):
        assert 0 <= start <= num_ids - 1 - seen
        first_scored = start + seen + 1 - num_scored
        assert start == 0 or first_scored - start >= seq_len // 2 + 1


def test_scores_equal_those_of_one_prediction_at_a_time():
    """By hand: 11 ids, windows of 4; id 5 is predicted from ids 2 to 4."""
    torch.manual_seed(0)
    model = GPT(Config(**SMALL | {"seq_len": 4}), vocab_size=20)
    ids = np.array([3, 19, 0, 7, 7, 2, 5, 11, 13, 1, 4], dtype=np.uint16)
    contexts = {1: 0, 2: 0, 3: 0, 4: 0, 5: 2, 6: 2, 7: 4, 8: 4, 9: 6, 10: 6}
    expected = 0.0
    with torch.no_grad():
        for place, start in contexts.items():
            x = torch.from_numpy(ids[start:place].astype(np.int64))[None]
            expected -= model(x)[0, -1].log_softmax(0)[int(ids[place])].item()
    nats, _ = train_seed.score_ids(model, ids, seq_len=4, batch_size=2)
    assert nats == pytest.approx(expected, rel=1e-5)


@pytest.mark.filterwarnings("ignore:.*UTF-8")  # One of the texts is not.
@pytest.mark.parametrize("text", ODD_TEXTS)
def test_scored_bytes_are_the_size_of_the_file_less_its_first_token(tmp_path, text):
    tokenizer, path = encode(tmp_path, text)
    ids, manifest = open_tokens(path)
    lengths = train_seed.token_lengths(tokenizer)
    assert manifest.num_bytes == len(text) == lengths[ids].sum()
    first = tokenizer.token_bytes(int(ids[0]))
    model = uniform(tokenizer.vocab_size)
    score = train_seed.score_file(model, path, tokenizer, Config(**SMALL))
    assert score["num_scored_bytes"] == len(text) - len(first)
    assert score["num_scored_tokens"] == len(ids) - 1
    bits = (len(ids) - 1) * math.log2(tokenizer.vocab_size)
    assert score["bits_per_byte"] == pytest.approx(bits / (len(text) - len(first)))


def test_the_separator_counts_as_its_thirteen_bytes():
    lengths = train_seed.token_lengths(BPETokenizer([(b"t", b"h"), (b"th", b"e")]))
    assert lengths.tolist() == [*[1] * 256, 13, 2, 3]


def test_bits_per_byte_of_a_uniform_model_show_what_longer_tokens_save(tmp_path):
    """Bytes alone cost log2(257) bits each; merges cost less."""
    text = b"the story of one, the story of another one. " * 20
    bits = []
    for vocab_size in (257, 280):
        tokenizer, path = encode(tmp_path, text, vocab_size)
        model = uniform(vocab_size)
        score = train_seed.score_file(model, path, tokenizer, Config(**SMALL))
        bits.append(score["bits_per_byte"])
    assert bits[0] == pytest.approx(math.log2(257))
    assert bits[1] < bits[0] / 2


def test_bytes_that_do_not_add_up_are_refused(tmp_path):
    _, path = encode(tmp_path, ODD_TEXTS[0])
    other = BPETokenizer([(b"x", b"y")] + [(b"xy", bytes([n])) for n in range(97, 123)])
    model = uniform(300)
    with pytest.raises(IntegrityError, match=r"scored \d+ bytes in \d+ ids, but the"):
        train_seed.score_file(model, path, other, Config(**SMALL))


def test_a_valid_split_of_one_id_is_refused(tmp_path):
    tokenizer, path = encode(tmp_path, b"a")
    with pytest.raises(InputError, match="holds 1 id; use more text for valid"):
        train_seed.score_file(uniform(300), path, tokenizer, Config(**SMALL))


def section(**changes):
    return yaml.safe_load((FOLDER / "params.yaml").read_text())["train"] | changes


@pytest.mark.parametrize("vocab_size", [257, 512, 4096, 50_000])
def test_every_vocab_size_gets_the_same_compute(vocab_size):
    config = train_seed.plan(section(), 1, vocab_size)
    per_step = config.batch_size * config.seq_len
    per_step *= train_seed.flops_per_token(config, vocab_size)
    assert abs(config.num_steps * per_step - 5e12) <= per_step / 2


def test_flops_per_token_are_those_that_pytorch_counts():
    config = Config(num_layers=2, num_heads=2, width=32, seq_len=16, batch_size=2)
    model = GPT(config, vocab_size=300)
    ids = torch.zeros(2, 16, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        compute_loss(model, ids, ids).backward()
    # PyTorch counts matrix products, but not attention on a CPU.
    attention = 12 * config.num_layers * config.seq_len * config.width
    ours = train_seed.flops_per_token(config, 300) - attention
    assert counter.get_total_flops() == 32 * ours


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tflop": 1e-9}, "train.tflop is 1e-09, too little for one step"),
        ({"tflop": "much"}, "section train does not fit"),
        ({"depth": 3}, "section train does not fit .*depth"),
        ({"num_heads": 3}, "width is 128; give a multiple of num_heads"),
    ],
)
def test_a_section_that_cannot_be_trained_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        train_seed.plan(section(**changes), 1, 300)


def test_an_interval_worked_by_hand():
    """1, 2, 3: mean 2, standard deviation 1, t of 2 degrees of freedom is 4.303."""
    mean, half = summarize.interval([1.0, 2.0, 3.0])
    assert (mean, half) == (2.0, pytest.approx(4.303 / math.sqrt(3)))
    assert summarize.interval([1.0, 2.0])[1] == pytest.approx(12.706 / 2)


@pytest.mark.parametrize("num_values", [0, 1, 11])
def test_an_interval_needs_two_to_ten_seeds(num_values):
    with pytest.raises(ConfigError, match=f"seeds has {num_values} values"):
        summarize.interval([1.0] * num_values)


@pytest.mark.parametrize(
    ("stage", "scripts"),
    [
        (
            "tokens",
            [f"pipeline/{name}.py" for name in ("__main__", "fetch", "bpe", "encode")],
        ),
        ("train", ["examples/sweep/train_seed.py"]),
        ("summarize", ["examples/sweep/summarize.py"]),
    ],
)
def test_deps_of_a_stage_of_the_sweep_are_the_files_it_imports(stage, scripts):
    entry = yaml.safe_load((FOLDER / "dvc.yaml").read_text())["stages"][stage]
    deps = [dep for dep in entry.get("do", entry)["deps"] if dep.endswith(".py")]
    found = {str((FOLDER / dep).resolve().relative_to(ROOT)) for dep in deps}
    assert found == set().union(*(import_closure(ROOT / path) for path in scripts))


def test_the_pipeline_never_trains(built_clone):
    """The sweep is a project of its own, which DVC does not enter from the root."""
    listed = built_clone.dvc("stage", "list", "--all", "--name-only").stdout.split()
    assert set(listed) == {"data.dvc", *stages()}
    assert "up to date" in built_clone.dvc("repro", "--all-pipelines").stdout
    assert not (built_clone.path / "examples" / "sweep" / "build").exists()


SMALLER = {
    "tflop": "0.002",
    "num_layers": "1",
    "width": "32",
    "seq_len": "32",
    "seeds": "[1, 2]",
}


def documented_commands() -> list[str]:
    text = (ROOT / "docs" / "experiments.md").read_text()
    return re.findall(r"(?m)^    \$ (.+)$", text)


def test_the_commands_of_the_docs_work_in_their_order(fresh_clone, tmp_path):
    """With a smaller model than the docs show; trained once, then kept and merged."""
    clone = fresh_clone.copy(tmp_path / "clone")
    clone.git("init", "-q", "--bare", str(tmp_path / "origin"))
    clone.git("remote", "add", "origin", str(tmp_path / "origin"))
    clone.git("checkout", "-q", "-b", "best")
    clone.path /= "examples/sweep"
    for name, value in SMALLER.items():
        clone.set_param(name, value)
    clone.git("commit", "-q", "-a", "-m", "Use a small model")
    clone.git("push", "-q", "origin", "best")

    said = {}
    for command in documented_commands():
        command = command.replace("/path/to/store", str(tmp_path / "store"))
        said[command] = clone.run("bash", "-c", command).stdout
        deadline = time.monotonic() + 250
        while command == "dvc queue status" and said[command].count("Success") < 2:
            assert "Failed" not in said[command]
            assert time.monotonic() < deadline, said[command]
            time.sleep(1)
            said[command] = clone.run(*shlex.split(command)).stdout

    [shown] = [text for command, text in said.items() if "exp show" in command]
    assert "[vocab-512]" in shown
    assert "[vocab-1024]" in shown
    ranked = re.findall(r"\| ([\d,]+) \| \d\.\d{4} \u00b1", said["python plot.py"])
    assert sorted(ranked) == ["1,024", "512"]
    assert "num_scored_bytes" in said["dvc metrics diff vocab-1024 vocab-512 --md"]
    assert "vocab-1024" in said["dvc exp list origin --all-commits"]
    assert "conflict" in said["git merge best || echo conflict"]
    # The run cache has all of it: no stage ran again.
    assert "Running stage" not in said["dvc repro"]
    assert "is cached - skipping run" in said["dvc repro"]
    metrics = yaml.safe_load((clone.path / "reports/bits_per_byte.json").read_text())
    assert metrics["vocab_size"] == 1024
    assert clone.git("status", "--porcelain") == ""
    assert "up to date" in clone.dvc("status").stdout
    assert "vocab" not in clone.dvc("exp", "list", "--all-commits").stdout
