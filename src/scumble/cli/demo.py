"""`scumble demo`: the main job on the built-in base, from pictures to a before/after picture."""

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from scumble import console
from scumble.cli.flags import parse_flags
from scumble.config import TrainConfig
from scumble.config.files import read_config_file
from scumble.config.train import field_names
from scumble.errors import UserError
from scumble.families.locate import locate

PROMPTS = (
    "a red circle, neon style",
    "a big yellow star, neon style",
    "a green heart, neon style",
    "a blue triangle, neon style",
)


@dataclass(kw_only=True)
class DemoFields:
    """Demo"""

    output: str = "demo_output"
    """Folder for the adapter, its card and the pictures; an interrupted demo goes on in it."""


def main(arguments: Sequence[str]) -> None:
    """Teach the built-in base a style, then draw with the result as a user would.

    Raises:
        UserError: the output folder holds something already.
    """
    description = "Teach the built-in base a style from 24 pictures, and show before and after."
    output = Path(parse_flags((DemoFields,), arguments, "scumble demo", description)["output"])
    # The built-in base is too small to share: its threads would mostly wait for each other.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    started = time.monotonic()
    settings = read_config_file(demo_config(), field_names("text_to_image"))
    settings |= {"train_data_dir": str(demo_pictures()), "output_dir": str(output / "neon")}
    if (output / "neon" / "run.json").is_file():
        settings["resume_from_checkpoint"] = "latest"
    config = TrainConfig(**settings)
    console.say(f"1. Teaching scumble-tiny a style, from the pictures in {config.train_data_dir}\n")
    from scumble.training.run import train

    result = train(config)
    console.say("\n2. Drawing new prompts, without and with the adapter\n")
    from scumble.cli import generate

    words = ["--prompt", *PROMPTS, "--adapter", str(result.output_dir), "--compare"]
    words += ["--output", str(output / "pictures")]
    words += ["--guidance_scale", str(config.guidance_scale)]
    generate.main(words)
    _say_summary(config, result.adapter, output, time.monotonic() - started)


def demo_config() -> Path:
    """The demo's settings, an ordinary configuration file."""
    return Path(str(files("scumble") / "assets" / "demo.toml"))


def demo_pictures() -> Path:
    """The demo's pictures: in the package, or in the source tree that it runs from.

    Raises:
        UserError: neither is there.
    """
    packaged = Path(str(files("scumble") / "assets" / "demo"))
    source_tree = Path(__file__).parents[3] / "examples" / "data" / "style_neon"
    for folder in (packaged, source_tree):
        if folder.is_dir():
            return folder
    raise UserError("the demo's pictures are not part of this installation", "Reinstall scumble.")


def _say_summary(config: TrainConfig, adapter: Path, output: Path, seconds: float) -> None:
    base = Path(locate(config.pretrained_model_name_or_path).location)
    base_mb = sum(path.stat().st_size for path in base.rglob("*.safetensors")) / 1e6
    adapter_mb = adapter.stat().st_size / 1e6
    console.say(
        f"\nDone in {seconds:.0f} s. The base has {base_mb:.1f} MB and was not changed; what it "
        f"learnt is in {adapter_mb:.2f} MB.\n"
        f"Look at: {adapter.with_name('before_after.png')}\n"
        f"         {output / 'pictures'}\n\n"
        "Next, with your own pictures and a .txt caption beside each:\n"
        "  scumble train text_to_image --train_data_dir FOLDER --output_dir OUT \\\n"
        "    --pretrained_model_name_or_path stable-diffusion-v1-5/stable-diffusion-v1-5"
    )
    sys.stdout.flush()
