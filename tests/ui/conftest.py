"""A browser for the page's tests, and the page itself as a process of its own."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "msedge")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
INSTALL = "apt-get update -q && apt-get install -q -y --no-install-recommends chromium"


def find_browser() -> str | None:
    """A Chromium on this machine, installed where that can be done; None if there is none."""
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    may_install = shutil.which("apt-get") and hasattr(os, "geteuid") and os.geteuid() == 0
    if found is None and may_install:
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        subprocess.run(["sh", "-c", INSTALL], capture_output=True, check=False, env=environment)
        found = shutil.which("chromium")
    return found


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A headless Chromium, driven by Playwright."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = find_browser()
    if path is None:
        pytest.skip("NOT TESTED: the web page. There is no Chromium; install one")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=path, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens an address in a fresh window; fails where it asked for anything beyond this machine.

    Errors on the page's console fail the test as well.
    """
    outside: list[str] = []
    errors: list[str] = []
    contexts = []

    def look(request: Any) -> None:
        if not re.match(r"(https?|wss?)://127\.0\.0\.1[:/]|data:|blob:", request.url):
            outside.append(request.url)

    def open_page(address: str, width: int = 1280, height: int = 1000) -> Any:
        context = browser.new_context(viewport={"width": width, "height": height})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(15_000)
        page.on("request", look)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(address)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert outside == [], "the page asked for something beyond this machine"
    assert errors == []


class Served:
    """`scumble ui` in a process of its own, on a free port.

    Args:
        folder: that the page works in.
        options: further flags.
    """

    def __init__(self, folder: Path, *options: str) -> None:
        words = ["ui", "--folder", str(folder), "--port", "0", *options]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "scumble", *words], stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:\d+", line)
        assert found is not None, f"the page did not start: {line}"
        self.address = found[0]

    def kill(self) -> None:
        """End the page as a crash would."""
        self.process.kill()
        self.process.wait()


@pytest.fixture
def serve() -> Iterator[Callable[..., Served]]:
    """Starts a page; it is ended with the test."""
    started: list[Served] = []

    def start(folder: Path, *options: str) -> Served:
        started.append(Served(folder, *options))
        return started[-1]

    yield start
    for page in started:
        page.kill()


@pytest.fixture(scope="module")
def shared_page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Served, Path, Path]]:
    """A page for the tests of a file; with its own folder, and one more that it may read."""
    work, allowed = tmp_path_factory.mktemp("work"), tmp_path_factory.mktemp("allowed")
    served = Served(work, "--allow", str(allowed))
    yield served, work, allowed
    served.kill()
