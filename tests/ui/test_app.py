"""The page as a whole: who is answered, on which port, and which tabs there are."""

import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from scumble.config.ui import UiConfig
from scumble.errors import UserError
from scumble.ui.app import TABS, launch


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Serves a page inside of the test."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")  # put back afterwards
    served = []

    def start(**changes: Any) -> Any:
        served.append(launch(UiConfig(folder=str(tmp_path / "work"), **{"port": 0, **changes})))
        return served[-1]

    yield start
    for one in served:
        one.close()


def tabs_of(page: Any) -> list[str]:
    with urllib.request.urlopen(f"{page.local_url}config") as answer:
        components = json.load(answer)["components"]
    return [c["props"]["label"] for c in components if c["type"] == "tabitem"]


def test_a_page_with_a_password_answers_nobody_without_it(page: Callable[..., Any]) -> None:
    served = page(auth="ann:secret")
    for path in ("config", "gradio_api/info", "gradio_api/file=work/runs/x"):
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(f"{served.local_url}{path}")
        assert caught.value.code == 401, path


def test_a_port_that_is_taken_is_said(page: Callable[..., Any]) -> None:
    port = page(generate_only=True).server_port
    with pytest.raises(UserError, match=f"cannot be served at 127.0.0.1, port {port}"):
        page(generate_only=True, port=port)


def test_the_demo_of_an_adapter_only_draws(page: Callable[..., Any]) -> None:
    assert tabs_of(page(generate_only=True)) == ["Generate"]
    assert set(TABS) <= set(tabs_of(page()))


def test_a_folder_that_is_not_there_cannot_be_allowed(
    page: Callable[..., Any], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="nowhere is no folder"):
        page(allow=(str(tmp_path / "nowhere"),))
