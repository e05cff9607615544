"""Write .dvc/plots/page.html, the page of `dvc plots`: `make plots-page` runs this.

DVC's own page loads Vega from the network and is blank without it. This one contains
Vega, from vl-convert, so it works offline; .dvc/config names it. It is in git so that a
clone needs nothing but DVC: if it were missing, `dvc plots` would fail.
"""

from __future__ import annotations

import sys
from pathlib import Path

import vl_convert

from tiny_llm.atomic import atomic_write

PAGE = Path(".dvc/plots/page.html")
VEGA_LITE = "5.20"  # DVC's templates are for Vega-Lite 5.
# What DVC calls. The symbols in a legend are long enough to show dashes.
SNIPPET = """\
window.vegaEmbed = (place, spec) =>
  vegaEmbed(place, spec, { config: { legend: { symbolSize: 700 } } });
"""


def page() -> bytes:
    """Return the page, with DVC's placeholders."""
    template = Path(__file__).with_suffix(".html").read_text(encoding="utf-8")
    vega = vl_convert.javascript_bundle(SNIPPET, VEGA_LITE)
    return template.replace("{vega}", vega).encode()


def main() -> int:
    """Write it."""
    with atomic_write(PAGE) as file:
        file.write(page())
    sys.stderr.write(f"wrote {PAGE}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
