"""Draw the pictures of the README: `make picture` runs this.

reports/plots.svg has plots of dvc.yaml side by side. The pages of `dvc plots` load
their script from the network; this draws the same Vega-Lite specifications offline.

reports/loss.svg has the loss of examples/train.py on the built-in corpus, which is no
stage of the pipeline; this made its data:

    python examples/train.py --num-steps 1000 --out build/loss
    cp build/loss/loss.csv reports/
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from typing import Any

import vl_convert

from tiny_llm.atomic import atomic_write

PLOTS = ["merge_counts", "token_frequency-train", "document_lengths-train"]
SCHEMA = "https://vega.github.io/schema/vega-lite/v5.json"


def read_plot(name: str) -> dict[str, Any]:
    """The Vega-Lite specification that DVC makes of a plot of dvc.yaml."""
    path = f"reports/{name}.csv"
    command = [sys.executable, "-m", "dvc", "plots", "show", "--json", path]
    output = subprocess.run(command, check=True, capture_output=True).stdout
    [plot] = json.loads(output)["data"][path]
    spec: dict[str, Any] = plot["content"]
    # One revision needs no legend.
    spec["encoding"]["color"] = {"value": "#4c78a8"}
    return spec | {"width": 260, "height": 200}


def draw_plots() -> dict[str, Any]:
    """The plots of dvc.yaml in one row."""
    return {"hconcat": [read_plot(name) for name in PLOTS]}


def draw_loss() -> dict[str, Any]:
    """The loss on train at each step, and on valid at each checkpoint."""
    with open("reports/loss.csv", newline="") as file:
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


def main() -> None:
    """Draw both."""
    for name, spec in (("plots", draw_plots()), ("loss", draw_loss())):
        spec |= {"$schema": SCHEMA, "background": "white"}
        svg = vl_convert.vegalite_to_svg(spec, vl_version="5.20")
        with atomic_write(f"reports/{name}.svg") as file:
            file.write(svg.encode())
        sys.stderr.write(f"wrote reports/{name}.svg\n")


if __name__ == "__main__":
    main()
