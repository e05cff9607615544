"""Summarize the seeds of one vocabulary: mean and interval of bits per byte.

    python summarize.py

Works in the current folder. Reads params.yaml and build/train, and writes metrics,
reports/bits_per_byte.json, and plot data, reports/bits_per_byte.csv.
"""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tiny_llm.atomic import atomic_write, write_json
from tiny_llm.errors import ConfigError
from tiny_llm.exit_status import run
from tiny_llm.layout import PARAMS_PATH, REPORTS_DIR, TOKENS_DIR
from tiny_llm.tokens import read_manifest
from tiny_llm.yaml_file import read_yaml

# Student's t for a two-sided interval of 95%, by number of values: 2, 3, ...
T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and the half-width of its 95% interval by Student's t.

    Raises:
        ConfigError: There are fewer than 2 or more than 10 values.

    >>> interval([1.0, 2.0, 3.0])[1] == 4.303 * 1 / 3**0.5
    True
    """
    if not 2 <= len(values) <= len(T_95) + 1:
        raise ConfigError(
            f"seeds has {len(values)} values; give 2 to {len(T_95) + 1}, because an "
            "interval needs two"
        )
    half = T_95[len(values) - 2] * statistics.stdev(values) / math.sqrt(len(values))
    return statistics.fmean(values), half


def read_curve(out: Path, score: dict[str, Any]) -> list[tuple[float, float]]:
    """Return (TFLOP spent, bits per byte) at each checkpoint of one seed.

    examples/train.py measures the loss on a few batches of valid; the average number of
    bytes per token makes it bits per byte, approximately.
    """
    manifest = read_manifest(TOKENS_DIR / "valid.bin")
    per_nat = manifest.num_tokens / manifest.num_bytes / math.log(2)
    with open(out / "loss.csv", newline="") as file:
        return [
            (
                score["tflop"] * (int(row["step"]) + 1) / score["num_steps"],
                float(row["valid_loss"]) * per_nat,
            )
            for row in csv.DictReader(file)
            if row["valid_loss"]
        ]


def summarize() -> str:
    """Write metrics and plot data; return a line that says what they are."""
    seeds = read_yaml(PARAMS_PATH)["seeds"]
    outs = [Path("build/train") / str(seed) for seed in seeds]
    scores = [json.loads((out / "score.json").read_bytes()) for out in outs]
    values = [score["bits_per_byte"] for score in scores]
    mean, half = interval(values)
    first = scores[0]
    write_json(
        REPORTS_DIR / "bits_per_byte.json",
        {
            "mean": round(mean, 4),
            "plus_minus": round(half, 4),
            "seeds": {
                str(seed): round(value, 4)
                for seed, value in zip(seeds, values, strict=True)
            },
            "vocab_size": first["vocab_size"],
            "num_parameters": first["num_parameters"],
            "num_steps": first["num_steps"],
            "tflop": first["tflop"],
            "num_scored_bytes": first["num_scored_bytes"],
            "num_scored_tokens": first["num_scored_tokens"],
        },
    )
    curves = [read_curve(out, score) for out, score in zip(outs, scores, strict=True)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("tflop", "bits_per_byte"))
    for points in zip(*curves, strict=True):
        mean_here = statistics.fmean(bits for _, bits in points)
        writer.writerow((f"{points[0][0]:.6f}", f"{mean_here:.4f}"))
    with atomic_write(REPORTS_DIR / "bits_per_byte.csv") as file:
        file.write(text.getvalue().encode())
    return f"{mean:.4f} ± {half:.4f} bits per byte, {len(seeds)} seeds"


if __name__ == "__main__":
    sys.exit(run("summarize.py", summarize, print))
