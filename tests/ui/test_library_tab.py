"""The Library tab in a browser: look into adapters, compare, merge, convert, download, load."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from example_adapters import write_example
from in_process import served_page

import scumble
from scumble.ui.folders import Folders
from scumble.ui.library import Library
from scumble.ui.shelf import Shelf

PROMPT = "a red circle"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A page's folder with two adapters, one damaged one, and what is not to be listed."""
    work = tmp_path / "page"
    first = write_example(work / "runs" / "first" / "pytorch_lora_weights.safetensors", 1)
    write_example(work / "second.safetensors", 2, trigger_phrase="sks *style*")
    (work / "cut.safetensors").write_bytes(first.read_bytes()[:-9])
    write_example(work / "runs" / "first" / "checkpoint-10" / "adapter.safetensors", 3)
    outside = write_example(tmp_path / "outside.safetensors", 4)
    (work / "link.safetensors").symlink_to(outside)
    return work


@pytest.fixture
def library(folder: Path) -> Library:
    folders = Folders(folder)
    return Library(folders, Shelf(folders))


def test_the_table_lists_adapters_and_names_what_is_damaged(library: Library) -> None:
    rows, said = library.table()
    assert sorted(row[0] for row in rows) == ["runs/first", "second"]
    row = next(row for row in rows if row[0] == "second")
    assert row[1:5] == ["scumble-tiny", "lora", "4", row[4]]
    assert row[6] == "sks *style*"
    assert said.startswith("Not listed:")
    assert "cut: cut.safetensors is not a readable safetensors file" in said
    assert str(library.folders.work) not in said


def test_the_table_sees_new_and_changed_files(library: Library) -> None:
    library.table()
    write_example(library.folders.work / "second.safetensors", 2, trigger_phrase="another")
    write_example(library.folders.work / "third.safetensors", 5)
    triggers = {row[0]: row[6] for row in library.table()[0]}
    assert triggers == {"second": "another", "third": "", "runs/first": ""}


@pytest.mark.parametrize("name", ["../outside.safetensors", "link", "runs/../../outside", ""])
def test_no_tool_reads_outside_of_the_folders(library: Library, name: str) -> None:
    outside = str(library.folders.work.parent / "outside.safetensors")
    for place in (name, outside):
        said, file = library.convert(place, "stolen", "kohya", None)
        assert file is None
        assert "outside of the folders" in said or "no adapter" in said
        assert "fp32" not in library.inspect(place, measure=False)
        assert "differ" not in library.compare(place, "second")
        assert library.merge([(place, 1.0)], "stolen", "peft")[1] is None
    assert not (library.folders.work / "library").exists()


def test_new_files_stay_in_the_library_whatever_they_are_called(library: Library) -> None:
    said, file = library.convert("second", "../../evil/..\\name", "kohya", "fp16")
    assert file is not None, said
    (written,) = (library.folders.work / "library").glob("*.safetensors")
    assert written.name == file.name == "evil-name.safetensors"
    said, file = library.convert("second", "evil-name", "kohya", "fp16")
    assert file is None
    assert said.startswith("**there is a 'evil-name' in the library**")


@pytest.mark.browser
def test_a_visitor_inspects_compares_merges_converts_and_downloads(
    folder: Path, visit: Callable[..., Any], tiny_pipeline: Any, tmp_path: Path
) -> None:
    expect = pytest.importorskip("playwright.sync_api").expect
    expect.set_options(timeout=20_000)
    with served_page(folder) as served:
        page = visit(served.local_url)
        page.get_by_role("tab", name="Library").click()
        expect(page.locator("#adapters")).to_contain_text("runs/first")
        choose(page.locator("#inspect_adapter input"), "runs/first")
        page.get_by_label("Measure how much each layer is changed").check()
        expect(page.locator("#inspection")).to_contain_text("strongest layers")

        page.get_by_role("tab", name="Compare").click()
        choose(page.locator("#compare_first input"), "runs/first")
        choose(page.locator("#compare_second input"), "second")
        page.get_by_role("button", name="Compare").click()
        expect(page.locator("#comparison")).to_contain_text("The files differ in 6 of 6 layers")

        page.get_by_role("tab", name="Merge").click()
        choose(page.get_by_role("combobox", name="Adapters to merge"), "runs/first", "second")
        strength = page.get_by_role("spinbutton", name="number input for Strength of runs/first")
        strength.fill("0.5")
        strength.press("Tab")
        page.get_by_label("Name of the new adapter").fill("both")
        page.locator("#merge").click()
        merged = download(page, "#merge_download", tmp_path)
        expect(page.locator("#adapters")).to_contain_text("library/both")

        page.get_by_role("tab", name="Convert and download").click()
        choose(page.locator("#convert_adapter input"), "second")
        choose(page.locator("#convert_format input"), "for A1111, Forge, ComfyUI, Civitai")
        page.locator("#convert").click()
        converted = download(page, "#convert_download", tmp_path)
    assert merged.read_bytes() == (folder / "library" / "both.safetensors").read_bytes()
    assert scumble.inspect_adapter(converted).format == "kohya"
    options: dict[str, Any] = {"num_inference_steps": 2, "guidance_scale": 2.0}
    sources = [f"{folder / 'runs' / 'first'}:0.5", str(folder / "second.safetensors")]
    (wanted,) = scumble.generate(PROMPT, adapter=sources, **options)
    (plain,) = scumble.generate(PROMPT, pretrained_model_name_or_path="scumble-tiny", **options)
    tiny_pipeline.load_lora_weights(str(tmp_path), weight_name=merged.name)
    drawn = drawn_by(tiny_pipeline, options)
    assert np.abs(drawn - np.asarray(wanted)).max() <= 2
    assert np.abs(drawn - np.asarray(plain)).max() > 10


def choose(field: Any, *names: str) -> None:
    for name in names:
        field.click()
        field.fill(name)
        field.press("Enter")
    field.press("Escape")


def download(page: Any, selector: str, folder: Path) -> Path:
    with page.expect_download() as waiting:
        page.locator(selector).click()
    path = folder / waiting.value.suggested_filename
    waiting.value.save_as(path)
    return path


def drawn_by(pipeline: Any, options: dict[str, Any]) -> np.ndarray:
    import torch
    from diffusers import DPMSolverMultistepScheduler

    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    generator = torch.Generator().manual_seed(0)
    image = pipeline(PROMPT, generator=generator, **options).images[0]
    return np.asarray(image).astype(int)
