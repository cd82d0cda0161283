"""The Train tab in a browser: from pictures to a file that diffusers loads, come what may."""

import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from scumble.runs.listing import read_run
from scumble.runs.queue import PROCESS, Queue, _read

PICTURES = Path(__file__).parents[2] / "examples" / "data" / "style_neon"
SOME = [PICTURES / name for name in ("00.png", "00.txt", "01.png", "01.txt", "02.png")]

pytestmark = [pytest.mark.browser, pytest.mark.timeout(290)]


@pytest.fixture
def work(tmp_path: Path) -> Iterator[Path]:
    """The page's folder; what still trains at the end of the test is killed."""
    yield tmp_path / "work"
    queue = Queue(tmp_path / "work" / "queue")
    for job in queue.jobs():
        queue.stop(job.name)
        process = _read(job.folder / PROCESS)
        if process is not None and psutil.pid_exists(process["pid"]):
            psutil.Process(process["pid"]).kill()


def box(page: Any, name: str) -> Any:
    """Where text is typed, by the id of the widget."""
    return page.locator(f"#{name}").locator("input:not([type=file]), textarea").first


def fill(page: Any, **values: str) -> None:
    for name, value in values.items():
        box(page, f"field-{name}").fill(value)


def see(page: Any, selector: str, text: str, seconds: float = 30) -> str:
    """Wait until an element says something; returns all that it says."""
    from playwright.sync_api import expect

    expect(page.locator(selector)).to_contain_text(re.compile(text, re.S), timeout=seconds * 1000)
    return str(page.locator(selector).inner_text())


def steps(page: Any) -> int:
    found = re.search(r"([\d,]+) of", page.locator("#status").inner_text())
    return int(found[1].replace(",", "")) if found else 0


def upload(page: Any, paths: list[Path]) -> None:
    page.locator("#upload input[type=file]").set_input_files([str(path) for path in paths])
    see(page, "#findings", "pictures: ")


def start(page: Any, name: str, **values: str) -> None:
    small = {"pretrained_model_name_or_path": "scumble-tiny", "train_batch_size": "1"}
    fill(page, **small, **values)
    box(page, "name").fill(name)
    page.locator("#start").click()


@pytest.mark.slow
def test_from_pictures_to_a_file_through_stops_reloads_and_crashes(
    work: Path,
    serve: Callable[..., Any],
    visit: Callable[..., Any],
    tiny_pipeline: Any,
    tmp_path: Path,
) -> None:
    served = serve(work)
    page = visit(served.address)
    upload(page, SOME)
    see(page, "#findings", "1 without a caption: 02.png")
    assert box(page, "caption-0").input_value() == (PICTURES / "00.txt").read_text().strip()
    box(page, "caption-2").fill("a blue triangle, edited")
    box(page, "name").focus()
    see(page, "#findings", r"3 found, 3 used, 0 skipped\s*$")
    (folder,) = (work / "pictures").iterdir()
    assert (folder / "02.txt").read_text() == "a blue triangle, edited\n"

    start(
        page,
        "neon",
        rank="0",
        max_train_steps="100000",
        validation_prompt="a red circle",
        validation_steps="5",
    )
    see(page, "#answer", "“Rank” must be at least 1")
    assert page.locator("#field-rank.wrong").count() == 1
    assert not (work / "queue").exists()

    page.locator("#advanced > button").click()
    page.get_by_role("button", name="Sample pictures").click()
    fill(page, rank="2", num_validation_images="1", num_inference_steps="1")
    page.locator("#start").click()
    see(page, "#status", r"is training.*neon.*of 100,000.*loss", 90)
    page.locator("#samples img").first.wait_for()
    seen = steps(page)
    points = page.locator("svg.curve").get_attribute("data-points")
    page.wait_for_function(
        "before => +document.querySelector('svg.curve').dataset.points > +before", arg=points
    )

    served.kill()  # the page dies, the run goes on
    record = work / "runs" / "neon"
    before = read_run(record).step
    deadline = time.monotonic() + 20
    while read_run(record).step <= before:
        assert time.monotonic() < deadline, "the run ended with the page"
        time.sleep(0.1)
    page = visit(serve(work).address)
    see(page, "#status", "is training.*neon")
    assert steps(page) > seen

    page.locator("#stop").click()
    see(page, "#status", "stopped.*neon")
    stopped = steps(page)
    assert (record / f"checkpoint-{stopped}").is_dir()
    page.reload()
    see(page, "#status", "stopped.*neon")

    # So that it ends in the time of a test, the rest of the run is made short.
    settings = work / "queue" / "neon" / "settings.yaml"
    text = re.sub("max_train_steps: .*", f"max_train_steps: {stopped + 2}", settings.read_text())
    settings.write_text(text + "before_after: false\n")
    page.locator("#resume").click()
    see(page, "#status", f"finished.*{stopped + 2:,} of {stopped + 2:,}", 90)
    with page.expect_download() as download:
        page.locator("#download:not([disabled])").click()
    assert download.value.suggested_filename == "neon.safetensors"
    file = tmp_path / "neon.safetensors"
    download.value.save_as(file)
    assert file.read_bytes() == (record / "pytorch_lora_weights.safetensors").read_bytes()
    tiny_pipeline.load_lora_weights(tmp_path, weight_name=file.name, adapter_name="neon")
    assert tiny_pipeline.get_list_adapters()["unet"] == ["neon"]

    page.get_by_role("button", name="Share it on the Hub").click()
    box(page, "repository").fill("ann/neon")
    page.locator("#push").click()
    see(page, "#pushed", "nobody is logged in to the Hub|the Hub cannot be reached")


def test_a_visitors_own_folder_is_left_alone_unless_he_asks(
    shared_page: Any, visit: Callable[..., Any], tmp_path: Path
) -> None:
    served, work, own = shared_page
    for number in range(10):
        shutil.copy(PICTURES / f"{number:02d}.png", own)
    page = visit(served.address, width=390, height=844)
    box(page, "folder").fill(str(tmp_path))
    box(page, "folder").press("Enter")
    see(page, "#findings", "outside of the folders that this page may read")
    box(page, "folder").fill(str(own))
    box(page, "folder").press("Enter")
    see(page, "#findings", "10 found, 10 used.*10 without a caption")
    assert not box(page, "caption-0").is_enabled()
    assert page.locator(".picture-row:visible").count() == 8
    page.get_by_role("button", name="Next").click()
    see(page, "#place", "9 to 10 of 10")
    assert page.locator(".picture-row:visible").count() == 2
    start(page, "uncaptioned", max_train_steps="2")
    see(page, "#answer", "no picture has a caption")
    assert list(own.glob("*.txt")) == []
    assert not (work / "queue").exists()

    page.get_by_label("Write captions into this folder").check()
    see(page, "#findings", "10 without a caption")
    box(page, "caption-1").fill("a star")
    box(page, "caption-0").focus()
    see(page, "#findings", "9 without a caption")
    assert (own / "09.txt").read_text() == "a star\n"
    wide = page.evaluate("document.documentElement.scrollWidth")
    assert wide <= 390, "the page is wider than a phone"


def test_the_form_follows_the_method_and_the_keyboard(
    shared_page: Any, visit: Callable[..., Any]
) -> None:
    page = visit(shared_page[0].address)
    assert not page.locator("#field-placeholder_token").is_visible()
    page.locator("#method input").first.focus()
    for key in ("Tab", "Tab", "Space"):
        page.keyboard.press(key)
    box(page, "field-placeholder_token").wait_for()
    assert not page.locator("#field-rank").is_visible()
    assert box(page, "field-learning_rate").input_value() == "0.0005"
    box(page, "name").focus()
    page.keyboard.type("word")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    see(page, "#answer", "“Base model” is empty")
    page.locator("#check").click()
    see(page, "#checked", "Do not start it yet.*“Base model” is empty")


def test_uploads_are_checked_and_renamed_and_nothing_else_is_served(
    shared_page: Any, visit: Callable[..., Any], tmp_path: Path
) -> None:
    served, work, _ = shared_page
    (tmp_path / "a <b>& c.png").write_bytes((PICTURES / "03.png").read_bytes())
    (tmp_path / "not.png").write_text("<script>alert(1)</script>")
    (tmp_path / "cut.png").write_bytes((PICTURES / "04.png").read_bytes()[:300])
    page = visit(served.address)
    upload(page, [tmp_path / name for name in ("a <b>& c.png", "not.png", "cut.png")])
    see(page, "#findings", "1 found, 1 used.*not.png: not a picture.*cut.png: ")
    (folder,) = (work / "pictures").iterdir()
    assert [path.name for path in folder.iterdir()] == ["a-b-c.png"]

    (work / "runs" / "x").mkdir(parents=True)
    (work / "runs" / "x" / "run.json").write_text("{}")
    for path in (work / "runs" / "x" / "run.json", folder / "a-b-c.png", "/etc/passwd"):
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(f"{served.address}/gradio_api/file={path}")
        assert caught.value.code in (403, 404), path
