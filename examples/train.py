"""Train a small GPT on token files. A stopped run resumes exactly.

    python examples/train.py                           # on a GPU if there is one
    python examples/train.py --resume                  # from the last checkpoint
    python examples/train.py --resume --num-steps 400  # train longer than planned
    torchrun --nproc-per-node 2 examples/train.py      # two ranks share each batch

In the order of this file: `Config` defines a run, `GPT` is the model, `train` the loop,
and `sample_story` shows what it learned. OUT/checkpoint.pt holds all that a resumed
run needs: the config with its seed, the step, the fingerprint of the data, and the
states of model and optimizer. Batches have no state but the step. OUT/loss.csv, written
with each checkpoint, has one row per step, counted from 0: the loss before its update,
the digest of its batch and, at a checkpoint, the loss on valid. On a CPU a resumed run
writes the same rows, bit for bit, as one that never stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import itertools
import math
import os
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from tiny_llm.atomic import atomic_write
from tiny_llm.batching import batches, fingerprint, get_batch
from tiny_llm.errors import ConfigError, InputError, IntegrityError
from tiny_llm.layout import SPLITS, TOKENIZER_PATH, TOKENS_DIR
from tiny_llm.tokenize import BPETokenizer
from tiny_llm.tokens import check_tokenizer, read_manifest

# torchrun sets these.
RANK = int(os.environ.get("RANK", "0"))
LOCAL_RANK = int(os.environ.get("LOCAL_RANK", "0"))
WORLD_SIZE = int(os.environ.get("WORLD_SIZE", "1"))

ROOT = Path(__file__).resolve().parents[1]
NUM_VALID_BATCHES = 8
TEMPERATURE = 0.8


def option(default: float, text: str) -> Any:
    """A field of `Config` and the help text of its option."""
    return dataclasses.field(default=default, metadata={"help": text})


@dataclasses.dataclass(frozen=True)
class Config:
    """All that determines a run, saved in its checkpoint. Each field is an option."""

    num_steps: int = option(200, "optimizer steps; with --resume, train up to this one")
    batch_size: int = option(16, "windows per step, of all ranks together")
    seq_len: int = option(128, "ids that the model sees at once")
    num_layers: int = option(4, "transformer blocks")
    num_heads: int = option(4, "attention heads per block; must divide width")
    width: int = option(128, "size of the embedding and of each block")
    lr: float = option(3e-3, "highest learning rate")
    seed: int = option(1337, "seed of weights, batches and story")
    checkpoint_every: int = option(50, "steps between checkpoints")

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not (0 < value < 1 << 63 or (name == "seed" and value == 0)):
                raise ConfigError(f"{name} is {value}; give one above 0, below 2**63")
        if self.width % self.num_heads:
            raise ConfigError(f"width is {self.width}; give a multiple of num_heads")
        if self.batch_size % WORLD_SIZE:
            raise ConfigError(
                f"batch_size is {self.batch_size}, to be shared by {WORLD_SIZE} ranks; "
                "give a multiple of their number"
            )


# B = windows of this rank, T = seq_len, V = vocab_size
class GPT(nn.Module):
    """A transformer that predicts the next id; its output layer is its embedding."""

    def __init__(self, config: Config, vocab_size: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocab_size, config.width)
        self.positions = nn.Embedding(config.seq_len, config.width)
        block = nn.TransformerEncoderLayer(
            config.width,
            config.num_heads,
            dim_feedforward=4 * config.width,
            dropout=0.0,  # No random state to save.
            activation="gelu",
            batch_first=True,
            norm_first=True,
            bias=False,
        )
        # PyTorch calls this an encoder; with a causal mask it is a GPT's decoder.
        norm = nn.LayerNorm(config.width, bias=False)
        self.blocks = nn.TransformerEncoder(
            block, config.num_layers, norm, enable_nested_tensor=False
        )
        for weight in self.parameters():  # The blocks start as copies of one.
            if weight.dim() > 1:
                nn.init.normal_(weight, std=0.5 * config.width**-0.5)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Return logits of the next id, shape (B, T, V), for ids of shape (B, T)."""
        seq_len = ids.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(seq_len, ids.device)
        x = self.tokens(ids) + self.positions.weight[:seq_len]
        x = self.blocks(x, mask=mask, is_causal=True)
        return nn.functional.linear(x, self.tokens.weight)


def compute_loss(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy in nats per token; x and y have shape (B, T)."""
    return nn.functional.cross_entropy(model(x).flatten(0, 1), y.flatten())


def learning_rate(config: Config, step: int) -> float:
    """Warm up over a tenth of the steps, and decay along a cosine to a tenth of lr."""
    warmup = min(1.0, (step + 1) / (0.1 * config.num_steps))
    cosine = math.cos(math.pi * step / config.num_steps)
    return config.lr * warmup * (0.55 + 0.45 * cosine)


def token_paths(folder: Path) -> list[Path]:
    """The token files of train and valid."""
    return [folder / f"{split}.bin" for split in SPLITS]


def gather(tensor: torch.Tensor) -> torch.Tensor:
    """Gather the tensors of all ranks, join them along dimension 0, move to the CPU."""
    parts = [tensor]
    if WORLD_SIZE > 1:
        parts = [torch.empty_like(tensor) for _ in range(WORLD_SIZE)]
        dist.all_gather(parts, tensor)
    return torch.cat(parts).cpu()


def train(config: Config, saved: dict[str, Any], paths: argparse.Namespace) -> GPT:
    """Train, from the checkpoint if there is one; only rank 0 prints and writes."""
    train_path, valid_path = token_paths(paths.tokens)
    first_step = saved.get("step", 0)
    how = {"seed": config.seed, "device": paths.device, "replace": False}
    stream = batches(
        train_path,
        config.batch_size // WORLD_SIZE,
        config.seq_len,
        start=first_step,
        rank=RANK,
        world_size=WORLD_SIZE,
        fingerprint=saved.get("fingerprint"),
        **how,
    )
    valid_batches = [
        get_batch(valid_path, config.batch_size, config.seq_len, step=step, **how)
        for step in range(NUM_VALID_BATCHES)
    ]
    torch.use_deterministic_algorithms(paths.device == "cpu")
    torch.manual_seed(config.seed)
    model = GPT(config, read_manifest(train_path).vocab_size).to(paths.device)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.1)
    if saved:
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
    # This averages the gradients of the ranks.
    replica = DistributedDataParallel(model) if WORLD_SIZE > 1 else model

    trace = saved.get("trace", ["step,loss,batch_sha256,valid_loss"])
    began = time.perf_counter()
    for step, (x, y) in itertools.islice(stream, config.num_steps - first_step):
        optimizer.param_groups[0]["lr"] = learning_rate(config, step)
        loss = compute_loss(replica, x, y)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

        mean_loss = gather(loss.detach()[None]).mean().item()
        digest = hashlib.sha256(gather(x).numpy()).hexdigest()[:12]
        if RANK > 0:
            continue
        trace.append(f"{step},{mean_loss!r},{digest},")
        report = f"step {step + 1:5}  loss {mean_loss:.3f}"
        is_last = step + 1 == config.num_steps
        if is_last or (step + 1) % config.checkpoint_every == 0:
            with torch.no_grad():
                losses = [compute_loss(model, *batch).item() for batch in valid_batches]
            valid_loss = sum(losses) / NUM_VALID_BATCHES
            trace[-1] += repr(valid_loss)
            report += f"  valid loss {valid_loss:.3f}"
            # Trace first: a run that has its last checkpoint does nothing on resume.
            with atomic_write(paths.out / "loss.csv") as file:
                file.write("\n".join([*trace, ""]).encode())
            checkpoint = {
                "step": step + 1,
                "config": vars(config),
                "fingerprint": fingerprint(train_path),
                "trace": trace,
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
            }
            with atomic_write(paths.out / "checkpoint.pt") as file:
                torch.save(checkpoint, file)
        if is_last or (step + 1) % 10 == 0:
            print(f"{report}  {time.perf_counter() - began:.0f} s", flush=True)
    return model


@torch.no_grad()
def sample_story(model: GPT, bpe: BPETokenizer, config: Config) -> str:
    """Sample ids after a separator, up to the next one or to seq_len, as text."""
    generator = torch.Generator().manual_seed(config.seed)
    ids = [bpe.separator_id]
    while len(ids) <= config.seq_len:
        logits = model(torch.tensor([ids], device=model.tokens.weight.device))[0, -1]
        chances = nn.functional.softmax(logits.cpu() / TEMPERATURE, dim=0)
        ids.append(int(torch.multinomial(chances, 1, generator=generator)))
        if ids[-1] == bpe.separator_id:
            break
    return bpe.decode(ids).replace("<|endoftext|>", "").strip()


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read what `train` saved; weights_only, so the file cannot run code."""
    if not path.is_file():
        raise InputError(
            f"{path}: no checkpoint to resume from; give the --out of the run that "
            "stopped, or leave out --resume"
        )
    try:
        return torch.load(path, "cpu", weights_only=True)
    except Exception as error:
        raise IntegrityError(f"{path} is damaged; begin a new run") from error


def merge_config(given: dict[str, Any], saved: dict[str, Any]) -> Config:
    """Take the config from the checkpoint, if any; num_steps alone may grow."""
    config = Config(**(saved | given))
    for name in given.keys() & saved.keys() - {"num_steps"}:
        if given[name] != saved[name]:
            raise ConfigError(
                f"{name} is {given[name]}, but the run began with {saved[name]}; leave "
                "it out, or begin a new run in another --out"
            )
    planned = saved.get("num_steps", config.num_steps)
    if config.num_steps < planned:
        raise ConfigError(
            f"num_steps is {config.num_steps}, but the run was planned for {planned}; "
            "a run can train longer, not shorter: leave it out, or begin a new run in "
            "another --out"
        )
    return config


def run(given: dict[str, Any], paths: argparse.Namespace) -> None:
    """Check the options, train, and print a story."""
    checkpoint_path = paths.out / "checkpoint.pt"
    if checkpoint_path.exists() and not paths.resume:
        raise ConfigError(f"{checkpoint_path} exists; give --resume or another --out")
    saved = load_checkpoint(checkpoint_path) if paths.resume else {}
    config = merge_config(given, saved.get("config", {}))
    bpe = BPETokenizer.load(paths.tokenizer)
    for path in token_paths(paths.tokens):
        check_tokenizer(path, read_manifest(path), bpe.sha256)
    if paths.device == "cuda":
        torch.cuda.set_device(LOCAL_RANK)
    if WORLD_SIZE > 1:
        dist.init_process_group("nccl" if paths.device == "cuda" else "gloo")
    if RANK == 0 and saved and config.num_steps > saved["config"]["num_steps"]:
        print(
            f"num_steps: {saved['config']['num_steps']} -> {config.num_steps}; from "
            f"step {saved['step'] + 1} on, the learning rate follows the longer "
            "schedule, unlike in a run planned for it from the start"
        )
    model = train(config, saved, paths)
    if RANK == 0:
        print("\n" + sample_story(model, bpe, config))
    if WORLD_SIZE > 1:
        dist.destroy_process_group()


def main() -> None:
    """Read the command line; a fault that the user can fix ends in one line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,  # Set only the options that are given.
    )
    add = parser.add_argument
    tokens, tokenizer = ROOT / TOKENS_DIR, ROOT / TOKENIZER_PATH
    add("--tokens", type=Path, default=tokens, help=f"folder; default: {TOKENS_DIR}")
    add(
        "--tokenizer",
        type=Path,
        default=tokenizer,
        help=f"the one that made the tokens; default: {TOKENIZER_PATH}",
    )
    out = tokens.parent / "train"
    add("--out", type=Path, default=out, help="folder of the run; default: build/train")
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    add("--device", choices=devices, default=devices[-1], help="default: %(default)s")
    resume = "continue the run in --out from its last checkpoint"
    add("--resume", action="store_true", default=False, help=resume)
    fields = {field.name: field for field in dataclasses.fields(Config)}
    for name, field in fields.items():
        flag, text = "--" + name.replace("_", "-"), field.metadata["help"]
        default = field.default
        add(flag, type=type(default), help=f"{text}; default: {default}")
    paths = parser.parse_args()
    try:
        run({name: getattr(paths, name) for name in fields if name in paths}, paths)
    except (ValueError, OSError) as error:
        status = getattr(error, "exit_status", 5 if isinstance(error, OSError) else 2)
        parser.exit(status, f"{parser.prog}: error: {error}\n")
    except KeyboardInterrupt:
        parser.exit(130, f"{parser.prog}: interrupted; the last checkpoint is kept\n")


if __name__ == "__main__":
    main()
