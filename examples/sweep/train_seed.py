"""Train a model from one seed with a fixed amount of compute, and score it on valid.

    python train_seed.py SEED

Works in the current folder, as the stages of the pipeline do. Reads section train of
params.yaml and build/, and writes build/train/SEED: the checkpoint and loss.csv of
examples/train.py, and score.json.

Losses per token cannot be compared between vocabularies, because tokens differ in
length. Bits per byte can: the bits that the model needs for the text of valid, over the
number of its bytes.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from examples.train import Config, train
from tiny_llm.atomic import write_json
from tiny_llm.errors import ConfigError, InputError, IntegrityError
from tiny_llm.exit_status import run
from tiny_llm.layout import PARAMS_PATH, TOKENIZER_PATH, TOKENS_DIR
from tiny_llm.tokenize import BPETokenizer
from tiny_llm.tokens import check_tokenizer, open_tokens, read_manifest
from tiny_llm.yaml_file import read_yaml

NUM_CHECKPOINTS = 10


def flops_per_token(config: Config, vocab_size: int) -> int:
    """Operations that training spends on one id, forward and backward.

    Six for each weight that is multiplied: the blocks' and the output layer's (Kaplan
    et al. 2020, arXiv 2001.08361); looking up an embedding is free. Attention adds
    12 * seq_len * width per block (PaLM, arXiv 2204.02311, appendix B).
    """
    weights = 12 * config.num_layers * config.width**2 + vocab_size * config.width
    return 6 * weights + 12 * config.num_layers * config.seq_len * config.width


def scored_windows(num_ids: int, seq_len: int) -> Iterator[tuple[int, int]]:
    """Yield windows as (start, num_scored), so that each id but the first is scored.

    A window starts at `start`; the model sees seq_len ids from there and predicts the
    one after each. Only its last `num_scored` predictions count. Windows overlap by
    half, so that ids are predicted from at least seq_len // 2 ids, except near the
    beginning of the file.

    >>> list(scored_windows(9, 4))
    [(0, 4), (2, 2), (4, 2)]
    """
    seq_len = min(seq_len, num_ids - 1)
    scored = 0  # Ids 1 to `scored` are done.
    while scored < num_ids - 1:
        step = seq_len if scored == 0 else max(1, seq_len // 2)
        scored_before, scored = scored, min(scored + step, num_ids - 1)
        yield scored - seq_len, scored - scored_before


@torch.no_grad()
def score_ids(
    model: nn.Module, ids: np.ndarray[Any, Any], seq_len: int, batch_size: int
) -> tuple[float, np.ndarray[Any, Any]]:
    """Sum the loss over ids, each scored once.

    Args:
        model: Returns logits of shape (B, T, V) for ids of shape (B, T).
        ids: Shape (N,), N >= 2, any integer dtype.
        seq_len: The model sees at most this many ids.
        batch_size: Windows at a time.

    Returns:
        The sum in nats, and the positions of the scored ids, int64, in the order of
        scoring.
    """
    windows = list(scored_windows(len(ids), seq_len))
    seq_len = min(seq_len, len(ids) - 1)
    nats, positions = 0.0, []
    for first in range(0, len(windows), batch_size):
        batch = windows[first : first + batch_size]
        places = np.array([start for start, _ in batch])[:, None] + np.arange(seq_len)
        x = torch.from_numpy(ids[places].astype(np.int64))
        y = torch.from_numpy(ids[places + 1].astype(np.int64))
        losses = nn.functional.cross_entropy(
            model(x).flatten(0, 1), y.flatten(), reduction="none"
        )
        num_scored = torch.tensor([number for _, number in batch])[:, None]
        counts = torch.arange(seq_len) >= seq_len - num_scored
        nats += losses[counts.flatten()].double().sum().item()
        positions.append((places + 1)[counts.numpy()])
    return nats, np.concatenate(positions)


def token_lengths(tokenizer: BPETokenizer) -> np.ndarray[Any, Any]:
    """Return the length in bytes of each token, shape (V,), int64.

    The separator counts as the bytes of its text, as in the manifest's num_bytes.
    """
    ids = range(tokenizer.vocab_size)
    return np.array([len(tokenizer.token_bytes(token_id)) for token_id in ids])


def score_file(
    model: nn.Module, path: Path, tokenizer: BPETokenizer, config: Config
) -> dict[str, Any]:
    """Score a token file, and account for each of its bytes.

    Raises:
        InputError: The file holds fewer than two ids.
        IntegrityError: The scored bytes are not those of the text.
    """
    ids, manifest = open_tokens(path)
    if len(ids) < 2:
        raise InputError(f"{path} holds {len(ids)} id; use more text for valid")
    nats, positions = score_ids(model, ids, config.seq_len, config.batch_size)
    lengths = token_lengths(tokenizer)
    # The first id is given, not predicted: nothing comes before it.
    num_bytes = manifest.num_bytes - int(lengths[ids[0]])
    num_scored_bytes = int(lengths[ids[positions]].sum())
    if num_scored_bytes != num_bytes or len(positions) != len(ids) - 1:
        raise IntegrityError(
            f"{path}: scored {num_scored_bytes:,} bytes in {len(positions):,} ids, but "
            f"the text has {num_bytes:,} bytes after the first id; encode it again"
        )
    return {
        "bits_per_byte": nats / math.log(2) / num_bytes,
        "nats_per_token": nats / len(positions),
        "num_scored_bytes": num_bytes,
        "num_scored_tokens": len(positions),
    }


def plan(section: dict[str, Any], seed: int, vocab_size: int) -> Config:
    """Turn section train of params.yaml into the config of a run that spends tflop."""
    sizes = {name: value for name, value in section.items() if name != "tflop"}
    try:
        config = Config(**sizes, seed=seed)
        per_step = config.batch_size * config.seq_len
        per_step *= flops_per_token(config, vocab_size)
        num_steps = round(section["tflop"] * 1e12 / per_step)
    except (KeyError, TypeError) as error:
        raise ConfigError(
            f"{PARAMS_PATH}: section train does not fit ({error})"
        ) from error
    if num_steps < 1:
        raise ConfigError(
            f"train.tflop is {section['tflop']}, too little for one step of "
            f"{per_step / 1e12:.6f}; raise it"
        )
    every = math.ceil(num_steps / NUM_CHECKPOINTS)
    return Config(**sizes, seed=seed, num_steps=num_steps, checkpoint_every=every)


def train_and_score(seed: int) -> str:
    """Write the files of one seed; return a line that says how good its model is."""
    # Sums depend on the number of threads; queued experiments use the other cores.
    torch.set_num_threads(1)
    tokenizer = BPETokenizer.load(TOKENIZER_PATH)
    for split in ("train", "valid"):
        path = TOKENS_DIR / f"{split}.bin"
        check_tokenizer(path, read_manifest(path), tokenizer.sha256)
    config = plan(read_yaml(PARAMS_PATH)["train"], seed, tokenizer.vocab_size)
    out = Path("build/train") / str(seed)
    paths = argparse.Namespace(tokens=TOKENS_DIR, out=out, device="cpu")
    model = train(config, {}, paths)
    score = score_file(model, TOKENS_DIR / "valid.bin", tokenizer, config)
    per_step = config.batch_size * config.seq_len
    flops = flops_per_token(config, tokenizer.vocab_size) * per_step
    score |= {
        "vocab_size": tokenizer.vocab_size,
        "num_steps": config.num_steps,
        "num_parameters": sum(weight.numel() for weight in model.parameters()),
        "tflop": round(flops * config.num_steps / 1e12, 6),
    }
    write_json(out / "score.json", score)
    return f"seed {seed}: {score['bits_per_byte']:.4f} bits per byte on valid"


def main() -> int:
    """Read the command line; a fault that the user can fix ends in one line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("seed", type=int)
    seed = parser.parse_args().seed
    return run(parser.prog, lambda: train_and_score(seed), print)


if __name__ == "__main__":
    sys.exit(main())
