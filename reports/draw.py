"""Draw reports/plots.svg: plots of dvc.yaml side by side, for the README.

The pages of `dvc plots` load their script from the network; this draws the same
Vega-Lite specifications offline. `make picture` runs it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import vl_convert

from tiny_llm.atomic import atomic_write

TARGET = "reports/plots.svg"
PLOTS = ["merge_counts", "token_frequency-train", "document_lengths-train"]


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


def main() -> None:
    """Draw the plots in one row."""
    picture = {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
        "background": "white",
        "hconcat": [read_plot(name) for name in PLOTS],
    }
    svg = vl_convert.vegalite_to_svg(picture, vl_version="5.20")
    with atomic_write(TARGET) as file:
        file.write(svg.encode())
    sys.stderr.write(f"wrote {TARGET}\n")


if __name__ == "__main__":
    main()
