"""A Chromium for tests of pages: CHROMIUM=PATH, one on the path, or playwright's own."""

import os
import shutil
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
SIZES = {"phone": (390, 844), "desktop": (1280, 800)}


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as playwright:
        found = [os.environ.get("CHROMIUM"), *map(shutil.which, NAMES)]
        own = playwright.chromium.executable_path
        path = next(filter(None, found), own if Path(own).exists() else None)
        if path is None:
            pytest.skip("no Chromium: install one, or name it with CHROMIUM=PATH")
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        opened = playwright.chromium.launch(executable_path=path, args=arguments)
        yield opened
        opened.close()
