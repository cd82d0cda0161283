"""Drawing with `scumble.generate` and with `scumble generate`."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from PIL import Image

import scumble
from scumble.cli.main import run
from scumble.errors import UserError
from scumble.formats import AdapterWeights, ModuleWeights
from scumble.inference import generator
from scumble.inference.generator import parse_adapter

BASE = "scumble-tiny"
PROMPT = "a red circle"


def drawn(prompt: str | Sequence[str] = PROMPT, **options: Any) -> list[np.ndarray]:
    settings = {"pretrained_model_name_or_path": BASE, "num_inference_steps": 2}
    return [
        np.asarray(image).astype(int) for image in scumble.generate(prompt, **settings | options)
    ]


@pytest.fixture
def generate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Runs the command with few steps; gives exit code, files in the folder, and error text."""

    def run_verb(*words: str, base: str | None = BASE) -> tuple[int, list[str], str]:
        capsys.readouterr()
        folder = tmp_path / "pictures"
        options = ["--num_inference_steps", "1", "--output", str(folder)]
        options += ["--pretrained_model_name_or_path", base] if base else []
        try:
            code = run(["generate", *options, *words])
        except SystemExit as stop:
            code = int(stop.code or 0)
        files = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
        return code, files, capsys.readouterr().err

    return run_verb


def test_one_seed_is_one_picture_however_many_are_drawn() -> None:
    three = drawn(seed=5, num_images=3)
    (alone,) = drawn(seed=6)
    assert len(three) == 3
    assert np.array_equal(three[1], alone)
    assert not np.array_equal(three[0], three[1])
    two_prompts = drawn(["a blue square", PROMPT], seed=6)
    assert np.array_equal(two_prompts[1], alone)
    assert not np.array_equal(two_prompts[0], alone)


def test_the_picture_is_the_pipelines_own(tiny_pipeline: Any) -> None:
    scheduler = DPMSolverMultistepScheduler.from_config(tiny_pipeline.scheduler.config)
    tiny_pipeline.scheduler = scheduler
    options = {"negative_prompt": "blue", "guidance_scale": 4.0, "height": 32, "width": 64}
    generator = torch.Generator().manual_seed(7)
    wanted = tiny_pipeline(PROMPT, num_inference_steps=2, generator=generator, **options).images[0]
    (got,) = drawn(seed=7, **options)
    assert got.shape == (32, 64, 3)
    # Lean layers round differently: by one level of 255 in a few places.
    assert np.abs(got.astype(int) - np.asarray(wanted)).max() <= 1


def test_an_adapter_acts_at_its_strength_and_names_the_base(
    tiny_pipeline: Any, adapter_file: Path
) -> None:
    (plain,) = drawn()
    (full,) = drawn(adapter=str(adapter_file), pretrained_model_name_or_path=None)
    (none,) = drawn(adapter=f"{adapter_file.parent}:0")
    (half,) = drawn(adapter=[f"{adapter_file}:0.25", f"{adapter_file}:0.25"])
    (also_half,) = drawn(adapter=f"{adapter_file}:0.5")
    assert np.array_equal(none, plain)
    assert np.abs(full - plain).max() > 2
    assert np.abs(half - plain).max() > 2
    assert np.abs(half - also_half).max() <= 1
    assert np.abs(full - half).max() > 2


def test_a_python_caller_gets_the_same_pictures_as_the_command(
    generate: Any, adapter_file: Path, tmp_path: Path
) -> None:
    code, files, _ = generate("--prompt", PROMPT, "--adapter", str(adapter_file), base=None)
    assert (code, files) == (0, ["00001_seed0.png"])
    with Image.open(tmp_path / "pictures" / files[0]) as image:
        (wanted,) = drawn(adapter=str(adapter_file), num_inference_steps=1)
        assert np.array_equal(np.asarray(image), wanted)


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("pokemon", ("pokemon", 1.0)),
        ("pokemon:0.7", ("pokemon", 0.7)),
        ("runs/a:-1", ("runs/a", -1.0)),
        (r"C:\runs\a", (r"C:\runs\a", 1.0)),
        (r"C:\runs\a:0.5", (r"C:\runs\a", 0.5)),
        ("a:b", ("a:b", 1.0)),
        ("a:nan", ("a:nan", 1.0)),
        (":0.5", (":0.5", 1.0)),
    ],
)
def test_a_strength_stands_behind_the_last_colon(text: str, parsed: tuple[str, float]) -> None:
    assert parse_adapter(text) == parsed


def test_the_command_numbers_its_pictures_and_overwrites_none(
    generate: Any, tmp_path: Path
) -> None:
    code, files, _ = generate("--prompt", PROMPT, "--seed", "3", "--num_images", "2")
    assert code == 0
    assert files == ["00001_grid.png", "00001_seed3.png", "00002_seed4.png"]
    before = {name: (tmp_path / "pictures" / name).read_bytes() for name in files}
    (tmp_path / "pictures" / "00007_seed9.png").write_bytes(b"mine")
    code, files, _ = generate("--prompt", PROMPT, "--seed", "3")
    assert code == 0
    assert files == [*before, "00007_seed9.png", "00008_seed3.png"]
    for name, content in before.items():
        assert (tmp_path / "pictures" / name).read_bytes() == content
    assert (tmp_path / "pictures" / "00007_seed9.png").read_bytes() == b"mine"
    assert (tmp_path / "pictures" / files[-1]).read_bytes() == before["00001_seed3.png"]


def test_a_grid_has_a_row_for_each_prompt(generate: Any, tmp_path: Path) -> None:
    words = ("--prompt", PROMPT, "--prompt", "a blue square", "--num_images", "3")
    code, files, _ = generate(*words)
    assert code == 0
    assert len(files) == 7
    with Image.open(tmp_path / "pictures" / "00001_grid.png") as grid:
        assert 3 * 192 < grid.width < 4 * 192 + 150
        assert 2 * 192 < grid.height < 3 * 192


def test_comparing_shows_base_and_adapter_side_by_side(
    generate: Any, adapter_file: Path, tmp_path: Path
) -> None:
    code, files, _ = generate("--prompt", PROMPT, "--adapter", str(adapter_file), "--compare")
    assert (code, files) == (0, ["00001_grid.png", "00001_seed0.png"])
    with Image.open(tmp_path / "pictures" / files[0]) as opened:
        grid = np.asarray(opened).astype(int)
    for x, options in ((150, {}), (150 + 200, {"adapter": str(adapter_file)})):
        (picture,) = drawn(num_inference_steps=1, **options)
        large = Image.fromarray(picture.astype(np.uint8)).resize((192, 192), Image.BICUBIC)
        assert np.array_equal(grid[30 : 30 + 192, x : x + 192], np.asarray(large))


def test_several_adapters_may_share_a_flag_or_have_one_each(
    generate: Any, make_weights: Any, tmp_path: Path
) -> None:
    names = [str(tmp_path / f"{seed}.safetensors") for seed in (0, 1)]
    for seed, name in enumerate(names):
        scumble.write_adapter(make_weights(seed=seed), name)
    for words in (
        ("--adapter", *names),
        ("--adapter", names[0], "--adapter", names[1]),
        (f"--adapter={names[0]}", f"--adapter={names[1]}"),
        ("--adapter", names[1]),
    ):
        assert generate("--prompt", PROMPT, *words)[0] == 0
    drawings = [path.read_bytes() for path in sorted((tmp_path / "pictures").iterdir())]
    assert drawings[0] == drawings[1] == drawings[2] != drawings[3]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--adapter", "nowhere.safetensors:0.5"], "there is no adapter at nowhere.safetensors"),
        (["--num_images", "0"], "--num_images must be at least 1, not 0"),
        (["--height", "60"], "--height must be a multiple of 8 for scumble-tiny, not 60"),
        (["--seed", "-1"], f"--seed must be from 0 to {2**63 - 1}, not -1"),
        (["--seed", str(2**63)], f"--seed must be from 0 to {2**63 - 1}, not {2**63}"),
        (["--width", "0"], "--width must be a multiple of 8 for scumble-tiny, not 0"),
    ],
)
def test_bad_input_is_one_clear_line(words: list[str], message: str, generate: Any) -> None:
    code, files, errors = generate("--prompt", PROMPT, *words)
    assert code == 1
    assert files == []
    assert errors.splitlines()[0] == f"scumble: {message}"
    assert "Traceback" not in errors


def test_a_damaged_adapter_is_one_clear_line(generate: Any, adapter_file: Path) -> None:
    adapter_file.write_bytes(adapter_file.read_bytes()[:-20])
    code, files, errors = generate("--prompt", PROMPT, "--adapter", str(adapter_file))
    assert (code, files) == (1, [])
    assert errors.startswith(f"scumble: {adapter_file} is not a readable safetensors file")
    assert "Traceback" not in errors


def test_a_base_must_come_from_somewhere(generate: Any, make_weights: Any, tmp_path: Path) -> None:
    code, _, errors = generate("--prompt", PROMPT, base=None)
    assert code == 1
    assert "neither a base model nor an adapter" in errors
    silent = AdapterWeights(make_weights().components)
    path = scumble.write_adapter(silent, tmp_path / "silent.safetensors")
    code, _, errors = generate("--prompt", PROMPT, "--adapter", str(path), base=None)
    assert code == 1
    assert "does not say which base model" in errors
    assert "--pretrained_model_name_or_path" in errors


def test_an_output_folder_that_cannot_be_made_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    words = ["--pretrained_model_name_or_path", BASE, "--prompt", PROMPT]
    assert run(["generate", *words, "--output", str(tmp_path / "file" / "x")]) == 1
    assert "cannot be written" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("words", [["--promt", "a"], ["--prompt", "a", "--compar"], []])
def test_a_misspelt_or_missing_flag_ends_with_usage(words: list[str], generate: Any) -> None:
    code, files, errors = generate(*words)
    assert (code, files) == (2, [])
    assert "prompt" in errors or "compare" in errors


def test_a_misspelt_verb_suggests_the_right_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["genrate"]) == 2
    assert "Did you mean 'generate'?" in capsys.readouterr().err


def test_a_picture_of_nan_is_an_error_and_not_a_black_square(
    make_weights: Any, tmp_path: Path, generate: Any
) -> None:
    modules = {
        path: ModuleWeights(e.type, e.tensors | {"up": torch.full_like(e.tensors["up"], 1e30)}, 4)
        for path, e in make_weights().components["unet"].items()
    }
    path = scumble.write_adapter(AdapterWeights({"unet": modules}), tmp_path / "loud.safetensors")
    with pytest.raises(UserError, match="came out as NaN"):
        drawn(adapter=f"{path}:1e30")
    code, files, errors = generate("--prompt", PROMPT, "--adapter", f"{path}:1e30")
    assert (code, files) == (1, [])
    assert "came out as NaN" in errors


def test_ctrl_c_keeps_the_pictures_that_are_finished(
    generate: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn_so_far = []
    draw = generator.draw

    def interrupted(*words: Any) -> Any:
        if len(drawn_so_far) == 2:
            raise KeyboardInterrupt
        drawn_so_far.append(draw(*words))
        return drawn_so_far[-1]

    monkeypatch.setattr(generator, "draw", interrupted)
    code, files, _ = generate("--prompt", PROMPT, "--num_images", "5")
    assert code == 130
    assert files == ["00001_seed0.png", "00002_seed1.png"]
