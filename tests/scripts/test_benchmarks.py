"""The benchmarks: steps are counted, ratios say what they claim, counts are the known ones."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"
sys.path[:0] = [str(BENCHMARKS)]

import bench_multi
import bench_train
import count
from bench_train import Contest, Side
from stamped import AfterImport, RunError, measure, run_stamped

pytestmark = pytest.mark.long

SCRIPT = os.environ.get("DIFFUSERS_TRAINING_SCRIPT", "")
"""A local train_text_to_image_lora.py of diffusers: with it the baseline is tested too."""

PROGRAM = """
import sys, torch
layer = torch.nn.Linear(3, 2).requires_grad_(False)
layer.bias.requires_grad_(True)
optimizer = torch.optim.SGD([layer.bias], lr=0.1)
def steps():
    for number in range(int(sys.argv[1])):
        yield number
if __name__ == "__main__":
    with torch.no_grad():
        layer(torch.zeros(7, 3))
    for _ in steps():
        layer(torch.zeros(5, 3)).sum().backward()
        optimizer.step()
        assert sys.argv[0].endswith("program.py"), sys.argv
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "program.py"
    path.write_text(PROGRAM, "utf-8")
    return path


def stamps_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "stamps.jsonl").read_text().splitlines()]


def test_every_optimizer_step_is_stamped_and_the_first_training_pass(
    program: Path, tmp_path: Path
) -> None:
    run = run_stamped(["STAMPS", str(program), "4"], tmp_path / "run")
    records = stamps_of(tmp_path / "run")
    assert [r["event"] for r in records] == ["forward", *["step"] * 4, "end"]
    assert [r["number"] for r in records[1:-1]] == [1, 2, 3, 4]
    assert len(run["steps_s"]) == 3
    # The pass without gradients, of 7 rows, was none of training.
    assert run["work"] == {
        "input_shape": [5, 3],
        "trained_parameters": 2,
        "trained_dtypes": ["float32"],
        "frozen_dtype": "float32",
    }
    assert 0 < run["first_forward_s"] <= run["first_step_s"] <= run["command_s"]
    assert 0.05 < run["peak_rss_gib"] <= run["peak_rss_command_gib"] < 8


def test_only_every_so_many_steps_wait_for_the_clock(program: Path, tmp_path: Path) -> None:
    run_stamped(["--every", "3", "STAMPS", str(program), "8"], tmp_path / "run")
    steps = [r for r in stamps_of(tmp_path / "run") if r["event"] == "step"]
    assert [step["number"] for step in steps] == [1, 4, 7]


def test_what_a_generator_yields_is_counted_in_place_of_the_optimizer(tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "loop.py").write_text("def steps():\n    yield from 'abc'\n", "utf-8")
    (package / "go.py").write_text("from loop import steps\nassert ''.join(steps()) == 'abc'\n")
    words = ["--yields", "loop:steps", "STAMPS", str(package / "go.py")]
    assert len(run_stamped(words, tmp_path / "run")["steps_s"]) == 2


def test_nothing_is_imported_before_the_program_does(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(
        "import sys\nassert 'torch' not in sys.modules\n" + PROGRAM, "utf-8"
    )
    with pytest.raises(RunError, match="two are needed"):
        run_stamped(["STAMPS", str(tmp_path / "program.py"), "1"], tmp_path / "run")


def test_to_look_for_a_module_is_not_to_import_it() -> None:
    found: list[str] = []
    finder = AfterImport({"colorsys": lambda module: found.append(module.__name__)})
    sys.meta_path.insert(0, finder)
    sys.modules.pop("colorsys", None)
    try:
        assert importlib.util.find_spec("colorsys")
        assert found == []
        importlib.import_module("colorsys")
        assert found == ["colorsys"]
    finally:
        sys.meta_path.remove(finder)


def test_the_baseline_may_have_an_environment_of_its_own(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho "$0" >> {tmp_path}/used\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    assert bench_train.versions_of(str(python)) == bench_train.versions_of(sys.executable)
    (tmp_path / "program.py").write_text(PROGRAM, "utf-8")
    run_stamped(["STAMPS", str(tmp_path / "program.py"), "4"], tmp_path / "run", python=str(python))
    assert (tmp_path / "used").read_text().split() == [str(python)] * 2


def test_a_program_that_fails_is_said_with_its_last_words(program: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="invalid literal"):
        run_stamped(["STAMPS", str(program), "many"], tmp_path / "run")


def test_one_step_is_not_enough() -> None:
    with pytest.raises(RunError, match="1 steps were seen"):
        measure([step(1, 10.0)], started=0.0)


def step(number: int, wall: float, rss: int = 1) -> dict[str, Any]:
    return {"event": "step", "number": number, "wall_s": wall, "cpu_s": 2 * wall} | {
        "peak_rss_bytes": rss * 2**30
    }


def test_seconds_are_those_of_steady_steps_and_peaks_those_before_the_end() -> None:
    end = {"event": "end", "wall_s": 40.0, "cpu_s": 80.0, "peak_rss_bytes": 9 * 2**30}
    # The first ten seconds belong to no steady step.
    run = measure([step(1, 10), step(3, 14), step(5, 20, 3), step(7, 22, 2), end], started=0.0)
    assert run["steps_s"] == [2.0, 3.0, 1.0]
    assert (run["step_s"], run["step_low_s"], run["step_cpu_s"]) == (2.0, 1.0, 4.0)
    assert (run["first_forward_s"], run["first_step_s"], run["command_s"]) == (None, 10, 40)
    assert (run["peak_rss_gib"], run["peak_rss_command_gib"]) == (3, 9)
    assert "peak_cuda_allocated_gib" not in run


def rounds(*steps: list[float], peak: float, first: float | None = None) -> list[dict[str, Any]]:
    return [
        {
            "steps_s": values,
            "steps_cpu_s": values,
            "step_s": sorted(values)[len(values) // 2],
            "step_low_s": min(values),
            "peak_rss_gib": peak + number,
            "first_step_s": first,
            "work": {"input_shape": [1, 4], "trained_parameters": 8},
            "cache_grew": False,
        }
        for number, values in enumerate(steps)
    ]


def test_rounds_are_summed_up_by_medians_and_peaks_by_the_highest() -> None:
    summary = bench_train.summarise(rounds([1.0, 9.0, 2.0], [3.0, 4.0, 5.0], peak=1.0))
    assert summary["step_s"] == 3.5
    assert summary["step_low_s"] == 1.0
    assert summary["peak_rss_gib"] == 2.0
    assert "first_step_s" not in summary


def test_a_ratio_above_one_is_in_favour_of_the_side_that_has_it() -> None:
    summaries = {"diffusers": {"step_s": 6.0, "a": 1.0}, "lean": {"step_s": 2.0}, "x": {"a": 4.0}}
    assert bench_train.ratios(summaries, "diffusers") == {"lean": {"step_s": 3.0}, "x": {"a": 0.25}}
    runs = {"diffusers": rounds([4.0], [9.0], peak=1), "lean": rounds([2.0], [3.0], peak=1)}
    assert bench_train.round_ratios(runs, "diffusers") == {"lean": [2.0, 3.0]}


def options_of(*words: str) -> Any:
    return bench_train.parse_arguments(["--work", "w", *words])


def test_the_page_has_every_side_its_ratio_and_no_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "train_text_to_image_lora.py"
    script.write_text("", "utf-8")
    words = ["--work", str(tmp_path), "--baseline", str(script), f"--output={tmp_path}/r.json"]
    monkeypatch.setattr(sys, "argv", ["bench_train.py", *words])
    options = options_of("--baseline", str(script), "--variant", "lean=--memory low")
    sides = bench_train.sides_of(options)
    contest = Contest("base", "a base", tmp_path, tmp_path, 256, 1, "stand-in")
    runs = {"diffusers": rounds([6.0], peak=4.0), "lean": rounds([2.0], peak=1.0)}
    result = bench_train.result_of(contest, sides, options, runs)
    page = bench_train.markdown(result)
    assert "| seconds per step | 6 | 2 (3.00x) |" in page
    assert "lean: 3.00x to 3.00x in time per step" in page
    assert "--memory low" in page
    assert "stand-in" in page
    assert "peak CUDA" not in page
    for text in (page, json.dumps(result)):
        assert str(tmp_path) not in text
        assert str(ROOT) not in text


def test_sides_come_from_labels_and_flags(tmp_path: Path) -> None:
    words = ["--ours", "--attention sdpa", "--variant", "a=--memory low", "--variant", "b="]
    sides = bench_train.sides_of(options_of("--precision", "bf16", *words))
    assert sides == [
        Side("a", "bf16", ("--attention", "sdpa", "--memory", "low")),
        Side("b", "bf16", ("--attention", "sdpa")),
    ]
    assert [side.label for side in bench_train.sides_of(options_of())] == ["scumble"]
    with pytest.raises(SystemExit, match="each label once"):
        bench_train.sides_of(options_of("--variant", "a=", "--variant", "a=--memory low"))
    with pytest.raises(SystemExit):
        options_of("--steps", "10", "--every", "10")


def test_both_programs_get_the_same_flags(tmp_path: Path) -> None:
    contest = Contest("base", "a base", tmp_path, tmp_path, 256, 2, "stand-in")
    sides = [Side("scumble", "bf16"), Side("diffusers", "bf16", (), tmp_path / "script.py")]
    ours, theirs = (
        set(bench_train.command_for(contest, side, tmp_path / "run", 5, 1)) for side in sides
    )
    # What only one has: how it is started, and where its own cache is.
    assert {word for word in ours ^ theirs if word.startswith("--")} == {
        *("--yields", "--no_before_after", "--latent_cache_dir"),
        *("--stand_ins", "--cache_dir"),
    }


def test_sides_that_do_other_work_are_refused() -> None:
    work = {"input_shape": [1, 4, 8, 8], "trained_parameters": 8}
    bench_train.check_same_work({"a": work, "b": dict(work), "not seen": {}})
    for key, value in (("input_shape", [2, 4, 8, 8]), ("trained_parameters", 9)):
        with pytest.raises(RunError, match=key):
            bench_train.check_same_work({"a": work, "b": work | {key: value}})


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("--work=" + "/" + "tmp/a/b", "--work=b"),
        ("/" + "data/x.py", "x.py"),
        ("a/b.py", "a/b.py"),
        ("low=--latent_cache_dir /" + "tmp/c/d --rank 4", "'low=--latent_cache_dir d --rank 4'"),
    ],
)
def test_a_command_keeps_no_absolute_path(text: str, shown: str) -> None:
    assert bench_train.portable([text]) == shown


def bench(name: str, *words: str) -> str:
    command = [sys.executable, str(BENCHMARKS / name), *words]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.long
@pytest.mark.slow
def test_ours_is_timed_from_a_warm_cache(tmp_path: Path) -> None:
    output, page = tmp_path / "result.json", tmp_path / "page.md"
    words = ["--work", str(tmp_path / "work"), "--base", "tiny", "--resolution", "64"]
    words += ["--steps", "3", "--output", str(output), "--markdown", str(page)]
    assert "| seconds per step |" in bench("bench_train.py", *words)
    result = json.loads(output.read_text("utf-8"))
    (run,) = result["rounds"]["scumble"]
    assert len(run["steps_s"]) == 2
    assert not run["cache_grew"]
    assert run["peak_memory_mib"] > 100
    assert result["work"]["scumble"]["input_shape"] == [1, 4, 16, 16]
    assert result["summary"]["scumble"].keys() >= {"cold_first_step_s", "first_step_s"}
    assert str(tmp_path) not in output.read_text("utf-8") + page.read_text("utf-8")


@pytest.mark.slow
@pytest.mark.skipif(not SCRIPT, reason="DIFFUSERS_TRAINING_SCRIPT names no script of diffusers")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_baseline_runs_beside_ours(precision: str, tmp_path: Path) -> None:
    output = tmp_path / "result.json"
    words = ["--work", str(tmp_path), "--base", "tiny", "--resolution", "64", "--steps", "3"]
    words += ["--batch_size", "2", "--precision", precision, "--baseline", SCRIPT]
    bench("bench_train.py", *words, "--output", str(output))
    result = json.loads(output.read_text("utf-8"))
    assert result["reference"] == "diffusers"
    assert result["ratios"]["scumble"]["step_s"] > 0
    works = result["work"]
    assert works["diffusers"]["input_shape"] == works["scumble"]["input_shape"] == [2, 4, 16, 16]
    assert works["diffusers"]["trained_parameters"] == works["scumble"]["trained_parameters"]
    assert works["scumble"]["trained_dtypes"] == ["float32"]


@pytest.mark.long
@pytest.mark.slow
def test_the_grid_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    words = ["--work", str(tmp_path), "--base", "tiny", "--resolutions", "64", "--steps", "3"]
    words += ["--memory", "low", "--batches"]
    bench("bench_multi.py", *words, "1")
    (done,) = (tmp_path / "multi").glob("64px_b1_low_*.json")
    first = done.stat().st_mtime_ns
    printed = bench("bench_multi.py", *words, "1", "2")
    assert done.stat().st_mtime_ns == first
    assert [line.split(" | ")[1] for line in printed.splitlines()[-2:]] == ["1", "2"]


def test_a_row_says_what_hindered_it() -> None:
    good = {"resolution": 64, "batch": 1, "side": "low", "step_s": 0.5, "images_s": 2.0}
    bad = {"resolution": 64, "batch": 9, "side": "low", "failed": "out of memory"}
    lines = bench_multi.table([good | {"peak_gib": 1.25}, bad]).splitlines()
    assert lines[2] == "| 64 | 1 | low | 0.5 | 2 | 1.25 |  |"
    assert lines[3] == "| 64 | 9 | low | out of memory |  |  |  |"


def test_a_cell_is_measured_anew_when_what_it_depends_on_changes() -> None:
    words = ["--work", "w", "--memory", "low", "balanced"]
    options = bench_multi.parse_arguments(words)
    low, balanced = bench_multi.sides_of(options)
    other = bench_multi.parse_arguments([*words, "--steps", "9"])
    names = {bench_multi.cell_name(low, 64, 1, o) for o in (options, other)}
    names |= {bench_multi.cell_name(balanced, 64, 1, options)}
    assert len(names) == 3


def test_the_arithmetic_of_a_forward_pass_is_what_is_known() -> None:
    kinds = count.forward_flops("sd15", 512, 1)
    known = {"convolution": 443.9, "linear": 233.3, "attention": 126.1}
    assert {kind: round(flops / 1e9, 1) for kind, flops in kinds.items()} == known
    assert round(sum(count.forward_flops("sd15", 512, 2).values()) / 1e9) == round(2 * 803.27)


# Plain has 1.6 MB of the adapters' casts beside the 798.5 MB of the model; the attention is
# computed a second time on its way back, which is 63 of the 973 GFLOP of the backward pass.
KNOWN = {
    "plain": (800.1, 1777.4),
    "balanced": (476.8, 1777.4),
    "low": (292.0, 1879.8),
    "lowest": (195.7, 1934.3),
    "checkpointing": (149.3, 2366.1),
}


@pytest.mark.parametrize("setting", KNOWN)
def test_a_step_needs_what_is_known(setting: str) -> None:
    row = count.count("sd15", 512, 1, setting, "bf16", 4)
    assert (round(row.saved_bytes / 1e6, 1), round(row.flops / 1e9, 1)) == KNOWN[setting]
    assert row.saved_bytes < row.peak_bytes < row.saved_bytes + 500e6
    # 859.5 million frozen weights of 2 bytes, 797,184 trained with two moments of 4 bytes each.
    assert abs(row.resident_bytes - (2 * 859_520_964 + 12 * 797_184)) < 1e6


@pytest.fixture
def transforms(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The stand-in for torchvision.transforms, whether the real package is installed or not."""
    names = [name for name in sys.modules if name.split(".")[0] == "torchvision"]
    for name in names:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(BENCHMARKS / "stand_ins"))
    import torchvision.transforms

    assert Path(torchvision.__file__).parents[1] == BENCHMARKS / "stand_ins"
    yield torchvision.transforms
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]


def gradient(width: int, height: int) -> Image.Image:
    """A picture whose pixels tell where they are: red is the column, green the row."""
    picture = Image.new("RGB", (width, height))
    picture.putdata([(x, y, 7) for y in range(height) for x in range(width)])
    return picture


def test_resize_brings_the_short_edge_to_the_size(transforms: Any) -> None:
    mode = transforms.InterpolationMode.LANCZOS
    resize = transforms.Resize(32, interpolation=mode)
    for before, after in (((100, 50), (64, 32)), ((50, 100), (32, 64)), ((16, 16), (32, 32))):
        assert resize(gradient(*before)).size == after
    same = gradient(70, 32)
    assert transforms.Resize(32)(same) is same
    # The long edge is rounded down: 33 * 100 / 64 is 51.56.
    assert transforms.Resize(33)(gradient(100, 64)).size == (51, 33)
    nearest = transforms.Resize(32, transforms.InterpolationMode.NEAREST)(gradient(64, 64))
    lanczos = transforms.Resize(32, mode)(gradient(64, 64))
    assert (
        lanczos.tobytes() == gradient(64, 64).resize((32, 32), Image.Resampling.LANCZOS).tobytes()
    )
    assert nearest.tobytes() != lanczos.tobytes()


def test_center_crop_takes_the_middle_and_pads_what_is_small(transforms: Any) -> None:
    cropped = transforms.CenterCrop(4)(gradient(10, 6))
    assert cropped.size == (4, 4)
    assert cropped.getpixel((0, 0)) == (3, 1, 7)
    padded = transforms.CenterCrop(8)(gradient(5, 8))
    assert padded.size == (8, 8)
    # Three columns are missing: one goes to the left, two to the right.
    assert padded.getpixel((0, 4)) == (0, 0, 0)
    assert padded.getpixel((1, 4)) == (0, 4, 7)
    assert padded.getpixel((6, 4)) == (0, 0, 0)


def test_random_crop_reaches_every_place_and_is_seeded(transforms: Any) -> None:
    crop, picture = transforms.RandomCrop(4), gradient(6, 5)

    def corners() -> list[tuple[int, ...]]:
        torch.manual_seed(0)
        return [crop(picture).getpixel((0, 0))[:2] for _ in range(100)]

    assert set(corners()) == {(x, y) for x in range(3) for y in range(2)}
    assert corners() == corners()
    with pytest.raises(ValueError, match="no square of 7 pixels"):
        transforms.RandomCrop(7)(picture)


def test_flips_are_as_likely_as_said(transforms: Any) -> None:
    picture = gradient(3, 2)
    assert transforms.RandomHorizontalFlip(p=1.0)(picture).getpixel((0, 1)) == (2, 1, 7)
    assert transforms.RandomHorizontalFlip(p=0.0)(picture) is picture
    torch.manual_seed(0)
    flip = transforms.RandomHorizontalFlip()
    flipped = sum(flip(picture).getpixel((0, 0))[0] == 2 for _ in range(400))
    assert 160 < flipped < 240


def test_pixels_become_numbers_in_channel_order(transforms: Any) -> None:
    steps = [
        transforms.Lambda(lambda picture: picture),
        transforms.ToTensor(),
        transforms.Normalize([0.5], [0.5]),
    ]
    picture = gradient(5, 3)
    pixels = transforms.ToTensor()(picture)
    assert pixels.shape == (3, 3, 5)
    assert pixels.dtype == torch.float32
    assert pixels.is_contiguous()
    assert torch.equal(pixels[:, 2, 4], torch.tensor([4.0, 2.0, 7.0]) / 255)
    assert torch.allclose(transforms.Compose(steps)(picture), pixels * 2 - 1)
    grey = transforms.ToTensor()(Image.new("L", (4, 2), 255))
    assert torch.equal(grey, torch.ones(1, 2, 4))
