"""Rank the vocabularies that `dvc exp run` compared, as a table and a plot.

    python plot.py

Works in the current folder. Takes the experiments of the current commit that have
finished, prints a table, best first, and writes reports/bits_per_byte.svg.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import vl_convert

METRICS = "reports/bits_per_byte.json"
PICTURE = Path("reports/bits_per_byte.svg")


def read_experiments() -> list[dict[str, Any]]:
    """Return the metrics of each finished experiment, with its name, best first."""
    command = [sys.executable, "-m", "dvc", "exp", "show", "--json"]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    rows, settings = [], {}
    for commit in json.loads(output):
        for experiment in commit["experiments"] or []:
            data = (experiment["revs"] or [{}])[0].get("data") or {}
            metrics = (data.get("metrics") or {}).get(METRICS, {}).get("data")
            if metrics is None:
                continue  # Not finished, failed, or of another project.
            params = data["params"]["params.yaml"]["data"]
            params["bpe"].pop("vocab_size")
            settings[json.dumps(params, sort_keys=True)] = experiment["name"]
            rows.append({"name": experiment["name"], **metrics})
    if len(settings) > 1:
        raise ValueError(
            f"experiments {', '.join(settings.values())} differ in more than "
            "bpe.vocab_size; remove those that you do not compare: dvc exp remove NAME"
        )
    if not rows:
        raise ValueError("no experiment of this commit has finished; run some")
    return sorted(rows, key=lambda row: row["mean"])


def table(rows: list[dict[str, Any]]) -> str:
    """Format the ranking as Markdown."""
    lines = [
        "| vocab_size | bits per byte | steps | parameters | experiment |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['vocab_size']:,} | {row['mean']:.4f} ± {row['plus_minus']:.4f} "
        f"| {row['num_steps']:,} | {row['num_parameters']:,} | {row['name']} |"
        for row in rows
    ]
    return "\n".join(lines)


def plot(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a Vega-Lite plot: a bar for each interval, a dot for each seed."""
    intervals = [
        {
            "vocab_size": row["vocab_size"],
            "mean": row["mean"],
            "low": row["mean"] - row["plus_minus"],
            "high": row["mean"] + row["plus_minus"],
        }
        for row in rows
    ]
    seeds = [
        {"vocab_size": row["vocab_size"], "bits": bits}
        for row in rows
        for bits in row["seeds"].values()
    ]
    sizes = sorted({row["vocab_size"] for row in rows})
    x = {
        "field": "vocab_size",
        "type": "quantitative",
        "title": "vocab size",
        "scale": {"type": "log", "domain": [sizes[0] / 1.3, sizes[-1] * 1.3]},
        "axis": {"values": sizes, "format": "d", "grid": False},
    }

    def y(field: str) -> dict[str, Any]:
        title = "bits per byte on valid"
        scale = {"zero": False, "nice": True}
        kind = "quantitative"
        return {"field": field, "type": kind, "title": title, "scale": scale}

    color = "#4c78a8"
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
        "background": "white",
        "title": "Mean and 95% t-interval of the seeds; dots are seeds",
        "width": 480,
        "height": 260,
        "layer": [
            {
                "data": {"values": intervals},
                "mark": {"type": "rule", "color": color, "strokeWidth": 2},
                "encoding": {"x": x, "y": y("low"), "y2": {"field": "high"}},
            },
            {
                "data": {"values": intervals},
                "mark": {"type": "line", "color": color, "point": {"size": 60}},
                "encoding": {"x": x, "y": y("mean")},
            },
            {
                "data": {"values": seeds},
                "mark": {"type": "point", "color": "#f58518", "size": 25},
                "encoding": {"x": x, "y": y("bits")},
            },
        ],
    }


def main() -> None:
    """Print the table and write the picture."""
    try:
        rows = read_experiments()
    except ValueError as error:
        sys.stderr.write(f"plot.py: error: {error}\n")
        sys.exit(2)
    PICTURE.parent.mkdir(exist_ok=True)
    PICTURE.write_text(vl_convert.vegalite_to_svg(plot(rows), vl_version="5.20"))
    print(table(rows))


if __name__ == "__main__":
    main()
