"""Photograph the report for the README: `make report-picture` runs this.

Needs Chromium. The picture shows parts of the page, in the fonts of this machine.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

from tiny_llm.layout import REPORT_PATH

PICTURE = Path("docs/report.png")
WIDTH, HEIGHT = 1120, 1420
# What shows best what the page is like, without gaps.
STYLE = """
:root { --sans: Roboto, sans-serif; }
#documents, #vocabulary, #leakage, #run, details { display: none; }
header { padding-top: 36px; } h2 { margin-top: 44px; }
"""


def main() -> int:
    """Write the picture."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
        page = browser.new_page(
            viewport={"width": WIDTH, "height": HEIGHT}, device_scale_factor=1.2
        )
        page.goto(REPORT_PATH.resolve().as_uri())
        page.add_style_tag(content=STYLE)
        page.screenshot(path=PICTURE)
        browser.close()
    sys.stderr.write(f"wrote {PICTURE}: {PICTURE.stat().st_size:,} bytes\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
