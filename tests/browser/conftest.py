"""Drive an installed Chromium against a server of our own. Run it by `make test-browser`.

It is looked for on the PATH; EFFACE_BROWSER names another.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PATIENCE = 120_000
"""Milliseconds until something that must appear is missed."""


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave these tests out unless they are asked for by path: they need a browser and minutes."""
    here = Path(__file__).parent
    asked = [Path(argument.partition("::")[0]).resolve() for argument in config.args]
    return None if any(path == here or here in path.parents for path in asked) else True


@pytest.fixture(scope="session")
def browser() -> Iterator:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = filter(None, map(shutil.which, (os.environ.get("EFFACE_BROWSER", ""), *NAMES)))
    executable = next(found, None)
    if executable is None:
        pytest.skip("there is no Chromium here: apt-get install chromium")
    playwright.expect.set_options(timeout=PATIENCE)
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=executable, args=ARGUMENTS, timeout=PATIENCE)
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a server that runs as long as the tests do."""
    command = [sys.executable, Path(__file__).with_name("served.py"), tmp_path_factory.mktemp("served") / "weights"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        yield f"http://127.0.0.1:{int(server.stdout.readline())}"
        server.terminate()


@pytest.fixture
def options() -> dict:
    """What the page's browser context is made with; tests override it."""
    return {"viewport": {"width": 1280, "height": 800}}


@pytest.fixture
def page(browser, address: str, options: dict) -> Iterator:
    """The page, opened on an empty server. It must not raise, break its own policy, or ask another server."""
    context = browser.new_context(**options)
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda line: wrong.append(line.text) if "Content Security Policy" in line.text else None)
    page.on("request", lambda sent: None if sent.url.startswith((address, "blob:")) else wrong.append(sent.url))
    page.goto(address)
    page.wait_for_selector("html[data-ready]")
    yield page
    for picture in page.request.get(f"{address}/api/pictures").json():
        page.request.delete(f"{address}/api/pictures/{picture['id']}")
    context.close()
    assert wrong == []
