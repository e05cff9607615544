"""Draw the pictures of the README: `make picture` runs this.

reports/plots.svg shows plots of dvc.yaml side by side, from the same Vega-Lite
specifications as the pages of `dvc plots`.

reports/loss.svg shows the loss of examples/train.py on the built-in corpus. Training is
not a stage of the pipeline; the data comes from

    python examples/train.py --num-steps 1000 --out build/loss
    cp build/loss/loss.csv reports/

No stage draws these pictures, so `dvc repro` can leave them out of date: `--check`
draws them again and compares. The same data always gives the same bytes, because
vl-convert bundles its own fonts.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import vl_convert

from tiny_llm.atomic import atomic_write

REPORTS = Path("reports")
PLOTS = [
    "reports/merge_counts.csv",
    "reports/token_frequency-train.csv",
    "reports/document_lengths-train.csv",
]
SCHEMA = "https://vega.github.io/schema/vega-lite/v5.json"


def main() -> int:
    """Draw both pictures, or check them; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.draw_reports",
        description="Draw the pictures of the README, reports/*.svg.",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="only say whether the pictures are up to date; exit status 1 if not",
    )
    check = parser.parse_args().check
    status = 0
    for name, spec in (("plots", plots_spec()), ("loss", loss_spec())):
        path = REPORTS / f"{name}.svg"
        spec |= {"$schema": SCHEMA, "background": "white"}
        svg = vl_convert.vegalite_to_svg(spec, vl_version="5.20").encode()
        if not check:
            with atomic_write(path) as file:
                file.write(svg)
            sys.stderr.write(f"wrote {path}\n")
        elif not path.is_file() or path.read_bytes() != svg:
            sys.stderr.write(
                f"{path} does not show the current data; run `make picture` and "
                "commit it\n"
            )
            status = 1
    return status


def plots_spec() -> dict[str, Any]:
    """Put PLOTS, as DVC renders them, in one row."""
    command = [sys.executable, "-m", "dvc", "plots", "show", "--json", *PLOTS]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    plots = json.loads(output)["data"]
    return {"hconcat": [resize(plots[path]) for path in PLOTS]}


def resize(plots: list[dict[str, Any]]) -> dict[str, Any]:
    """Fit the plot of the only revision into the row; it needs no legend."""
    [plot] = plots
    spec: dict[str, Any] = plot["content"]
    spec["encoding"]["color"] = {"value": "#4c78a8"}
    return spec | {"width": 260, "height": 200}


def loss_spec() -> dict[str, Any]:
    """Plot the loss on train at each step, and on valid at each checkpoint."""
    with open(REPORTS / "loss.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    layers = []
    for split, field, width in (("train", "loss", 1), ("valid", "valid_loss", 2.5)):
        points = [
            {"step": int(row["step"]), "loss": float(row[field])}
            for row in rows
            if row[field]
        ]
        encoding = {
            "x": {"field": "step", "type": "quantitative"},
            "y": {
                "field": "loss",
                "type": "quantitative",
                "title": "loss, nats per token",
                "scale": {"zero": False},
            },
            "color": {"datum": split, "title": None},
        }
        mark = {"type": "line", "strokeWidth": width}
        layers.append({"data": {"values": points}, "mark": mark, "encoding": encoding})
    title = "Loss of examples/train.py on the built-in corpus"
    return {"layer": layers, "title": title, "width": 560, "height": 200}


if __name__ == "__main__":
    sys.exit(main())
