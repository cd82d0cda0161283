"""`scumble space`: a folder that the Hub runs as a page, tried here as a process of its own."""

import io
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from example_adapters import write_example
from PIL import Image

import scumble
from scumble.cli.main import run
from scumble.errors import UserError
from scumble.ui.space_folder import make_space

TOKEN = "hf_" + "secret" * 5


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return write_example(tmp_path / "first.safetensors", 1, trigger_phrase="sks style")


@pytest.fixture
def space(adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    words = [str(adapter), str(tmp_path / "space"), "--title", "First: a *style*"]
    assert run(["space", *words, "--prompt", "a red circle", "a blue square"]) == 0
    return tmp_path / "space"


def test_the_folder_has_what_the_hub_asks_for(space: Path, adapter: Path) -> None:
    header = yaml.safe_load((space / "README.md").read_text("utf-8").split("---")[1])
    assert header["sdk"] == "gradio"
    assert (header["title"], header["app_file"]) == ("First: a *style*", "app.py")
    assert len(header["short_description"]) <= 60
    needs = (space / "requirements.txt").read_text().split()
    assert {re.split("[=<>]", need)[0] for need in needs} >= {"torch", "diffusers", "gradio"}
    assert f"gradio=={header['sdk_version']}" in needs
    (copy,) = (space / "adapter").iterdir()
    assert copy.read_bytes() == adapter.read_bytes()


def test_nothing_in_the_folder_is_of_this_machine(space: Path, tmp_path: Path) -> None:
    repository = str(Path(scumble.__file__).parents[2])
    for path in (path for path in space.rglob("*") if path.is_file()):
        content = path.read_bytes()
        for secret in (TOKEN, str(tmp_path), repository):
            assert secret.encode() not in content, path
    assert not list(space.rglob("__pycache__"))


@pytest.mark.parametrize(
    ("metadata", "message"),
    [({"base_model": "mine"}, "a Space cannot reach the base model 'mine'"), ({}, "does not say")],
)
def test_a_base_that_others_cannot_reach_is_refused(
    metadata: dict[str, str], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "other.safetensors"
    weights = scumble.read_adapter(write_example(path, 1))
    weights.metadata.clear()
    weights.metadata.update(metadata)
    scumble.write_adapter(weights, path)
    with pytest.raises(UserError, match=message):
        make_space(str(path), str(tmp_path / "space"))
    assert not (tmp_path / "space").exists()
    make_space(str(path), str(tmp_path / "space"), base="user/name")
    assert not (tmp_path / "space" / "scumble" / "assets" / "tiny").exists()


def test_a_folder_with_something_in_it_is_left_alone(adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    with pytest.raises(UserError, match="is not empty"):
        make_space(str(adapter), str(tmp_path / "full"))
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine"]


@pytest.fixture
def address(space: Path) -> Iterator[str]:
    """The Space, run from its own folder with the package that lies in it."""
    environment = os.environ | {"GRADIO_SERVER_PORT": "0", "PYTHONDONTWRITEBYTECODE": "1"}
    process = subprocess.Popen(
        [sys.executable, "-P", str(space / "app.py")],
        cwd=space,
        env=environment | {"PYTHONPATH": str(space)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    found = re.search(r"http://127\.0\.0\.1:\d+", process.stdout.readline())
    assert found is not None
    yield found[0]
    process.kill()
    process.wait()


@pytest.mark.browser
def test_the_page_draws_with_the_adapter_and_shows_nothing_else(
    address: str, adapter: Path, visit: Callable[..., Any]
) -> None:
    expect = pytest.importorskip("playwright.sync_api").expect
    expect.set_options(timeout=20_000)
    page = visit(address)
    expect(page.get_by_text("Strength of first")).to_be_visible()
    expect(page.get_by_role("tab")).to_have_count(0)
    page.locator("#more").get_by_role("button").first.click()
    expect(page.locator("#base")).to_have_count(0)
    page.wait_for_load_state("networkidle")
    for label, value in (("Steps", "2"), ("Guidance", "2")):
        box = page.get_by_role("spinbutton", name=f"number input for {label}", exact=True)
        box.fill(value)
        page.keyboard.press("Tab")
        # The page may still be putting its own values in: the typed one has to stay.
        page.wait_for_timeout(500)
        if box.input_value() != value:
            box.fill(value)
            page.keyboard.press("Tab")
        expect(page.get_by_role("slider", name=f"range slider for {label}")).to_have_value(value)
    page.get_by_role("button", name="Draw", exact=True).click()
    image = page.locator("#drawn img").first
    expect(image).to_be_visible()
    with Image.open(io.BytesIO(page.request.get(image.get_attribute("src")).body())) as opened:
        drawn = np.asarray(opened.convert("RGB")).astype(int)
    options: dict[str, Any] = {"num_inference_steps": 2, "guidance_scale": 2.0}
    (wanted,) = scumble.generate("a red circle", adapter=str(adapter), **options)
    assert np.abs(drawn - np.asarray(wanted)).max() <= 1
