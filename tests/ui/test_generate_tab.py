"""The Generate tab in a browser: adapters, strengths, before and after, grids, stopping, files."""

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from example_adapters import write_example
from in_process import served_page
from PIL import Image

import scumble

pytestmark = pytest.mark.browser
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = sync_api.expect
expect.set_options(timeout=20_000)

PROMPT = "a red circle"


class GeneratePage:
    """The tab as a visitor uses it."""

    def __init__(self, page: Any) -> None:
        self.page = page
        page.get_by_role("tab", name="Generate").click()

    def choose(self, *names: str) -> None:
        self.page.get_by_role("combobox", name="Adapters").click()
        for name in names:
            self.page.get_by_role("option", name=name).click()
        self.page.keyboard.press("Escape")

    def set_number(self, label: str, value: float) -> None:
        field = self.page.get_by_role("spinbutton", name=f"number input for {label}", exact=True)
        field.fill(str(value))
        field.press("Tab")

    def draw(self, prompt: str = PROMPT) -> None:
        self.page.locator("#prompt textarea").fill(prompt)
        self.page.get_by_role("button", name="Draw", exact=True).click()

    def pictures(self, count: int) -> list[np.ndarray]:
        """Wait for so many pictures, and fetch the files behind them."""
        images = self.page.locator("#drawn .thumbnail-item img, #drawn img")
        expect(images).to_have_count(count)
        addresses = [image.get_attribute("src") for image in images.all()]
        return [self.fetch(address) for address in addresses]

    def fetch(self, address: str) -> np.ndarray:
        with Image.open(io.BytesIO(self.page.request.get(address).body())) as image:
            return np.asarray(image.convert("RGB")).astype(int)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page's folder with two adapters."""
    work = tmp_path_factory.mktemp("page")
    write_example(work / "runs" / "first" / "pytorch_lora_weights.safetensors", 1)
    write_example(work / "second.safetensors", 2, trigger_phrase="sks *style*")
    return work


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    with served_page(folder) as page:
        yield page.local_url


@pytest.fixture
def tab(address: str, visit: Callable[..., Any]) -> GeneratePage:
    return GeneratePage(visit(address))


def test_a_visitor_draws_with_two_adapters_and_sees_what_they_change(
    tab: GeneratePage, folder: Path
) -> None:
    tab.choose("runs/first", "second")
    expect(tab.page.get_by_text("Strength of second, called by: sks *style*")).to_be_visible()
    tab.page.get_by_text("Base model, steps, size").click()
    tab.set_number("Steps", 2)
    tab.set_number("Guidance", 2)
    tab.draw()
    (both,) = tab.pictures(1)
    paths = [str(folder / "runs" / "first"), str(folder / "second.safetensors")]
    options: dict[str, Any] = {"num_inference_steps": 2, "guidance_scale": 2.0}
    (wanted,) = scumble.generate(PROMPT, adapter=paths, **options)
    assert np.abs(both - np.asarray(wanted)).max() <= 1

    tab.set_number("Strength of second, called by: sks *style*", -0.5)
    tab.draw()
    expect(tab.page.locator("#drawn")).to_contain_text("seed 0 · 1 + -0.5")
    (moved,) = tab.pictures(1)
    (wanted,) = scumble.generate(PROMPT, adapter=[paths[0], f"{paths[1]}:-0.5"], **options)
    assert np.abs(moved - np.asarray(wanted)).max() <= 1
    assert np.abs(moved - both).max() > 2

    tab.page.get_by_label("Before / after").check()
    tab.draw()
    expect(tab.page.locator("#before_after img")).to_have_count(2)
    before, after = tab.pictures(2)
    (base,) = scumble.generate(PROMPT, pretrained_model_name_or_path="scumble-tiny", **options)
    assert np.abs(before - np.asarray(base)).max() <= 1
    assert np.array_equal(after, moved)

    tab.page.get_by_label("Strength grid").check()
    tab.page.get_by_label("Columns of the grid").fill("0, 0.5, 1")
    tab.draw(f"{PROMPT}\na blue square")
    expect(tab.page.locator("#sheet img")).to_be_visible(timeout=20_000)
    cells = tab.pictures(6)
    assert np.array_equal(cells[0], before)
    assert np.array_equal(cells[2], moved)
    assert len({cell.tobytes() for cell in cells}) == 6
    assert len(list((folder / "drawn").glob("*_grid.png"))) == 1
    kept = sorted((folder / "drawn").glob("*_seed0.png"))[1]
    with Image.open(kept) as image:
        assert json.loads(image.text["scumble"])["adapters"] == {"first": 1.0, "second": -0.5}


def test_what_cannot_be_meant_is_said_in_the_page(tab: GeneratePage, tmp_path: Path) -> None:
    status = tab.page.locator("#generate_status")
    tab.draw()
    expect(status).to_contain_text("there is neither an adapter nor a base")
    outside = write_example(tmp_path / "outside.safetensors", 3)
    field = tab.page.get_by_role("combobox", name="Adapters")
    field.fill(str(outside))
    field.press("Enter")
    tab.draw()
    expect(status).to_contain_text("is outside of the folders that this page may read")


def test_a_visitor_stops_a_long_drawing_on_a_phone(address: str, visit: Callable[..., Any]) -> None:
    tab = GeneratePage(visit(address, width=390, height=800))
    tab.choose("second")
    tab.set_number("Pictures each", 8)
    tab.draw("a red circle\na blue square")
    expect(tab.page.locator("#drawn img").first).to_be_visible(timeout=20_000)
    tab.page.get_by_role("button", name="Stop").click()
    expect(tab.page.locator("#generate_status")).to_contain_text("Stopped after")
    wide = tab.page.evaluate("document.documentElement.scrollWidth")
    assert wide <= 390
