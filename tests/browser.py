"""A headless Chromium without a network, for tests of the pages we write."""

import contextlib
import os
import shutil
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@contextlib.contextmanager
def start_chromium():
    """Start the Chromium of this machine; skip the test if there is none."""
    with sync_playwright() as playwright:
        own = playwright.chromium.executable_path  # After `playwright install`.
        installed = [shutil.which(name) for name in NAMES]
        found = [*filter(None, installed), *([own] if os.path.exists(own) else [])]
        if not found:
            if os.environ.get("CI"):
                pytest.fail("CI needs Chromium: see .ci/run")
            pytest.skip("no Chromium: install it, or run `playwright install chromium`")
        chromium = playwright.chromium.launch(executable_path=found[0])
        yield chromium
        chromium.close()


@contextlib.contextmanager
def open_offline(browser, path: Path, width=1280, scheme="light"):
    """Open a file without a network; yields the page, its errors and its requests."""
    context = browser.new_context(
        viewport={"width": width, "height": 844}, color_scheme=scheme, offline=True
    )
    try:
        page = context.new_page()
        page.errors, page.requests = [], []
        page.on("console", lambda message: page.errors.append(message))
        page.on("pageerror", lambda error: page.errors.append(error))
        page.on("dialog", lambda dialog: page.errors.append(dialog))
        page.on("request", lambda request: page.requests.append(request.url))
        page.goto(path.as_uri())
        yield page
    finally:
        context.close()
