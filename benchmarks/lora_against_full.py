"""LoRA against full fine-tuning, on the built-in base: style score, parameters, file size, time.

The claim of arXiv:2106.09685, tried on our own small model:

    python benchmarks/lora_against_full.py --work /tmp/lora_against_full
"""

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))

from tiny_model.lesson_scores import style_prompt, style_reference, style_scenes, style_score
from tiny_model.pipeline import PipelinePainter

import scumble
from scumble.cli.demo import demo_config, demo_pictures
from scumble.config.files import read_config_file
from scumble.config.train import field_names
from scumble.inference.generator import build_pipeline
from scumble.training.methods import METHODS
from scumble.training.optimizers import Update
from scumble.training.phase import Phase
from scumble.training.run import open_workshop
from scumble.training.runtime import prepare_runtime
from scumble.training.workshop import Workshop

STYLE = "style_neon"
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
BLOCKS = (*ATTENTION, "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out")
LORAS = {
    "LoRA on attention, rank 4": {"rank": 4, "target_modules": ATTENTION},
    "LoRA on attention, rank 8": {"rank": 8, "target_modules": ATTENTION},
    "LoRA on transformer blocks, rank 8": {"rank": 8, "target_modules": BLOCKS},
}
"""What is compared with full fine-tuning; all else is as in the demo."""
FULL_LEARNING_RATE = 3e-4
"""A tenth of the LoRA's, as is usual for full fine-tuning."""


def begin(config: scumble.TrainConfig) -> tuple[Workshop, Phase]:
    """The base with its data and the fresh LoRA phase that the demo would train."""
    workshop = open_workshop(config, prepare_runtime(config))
    (phase,) = METHODS["text_to_image"](workshop)
    return workshop, phase


def teach(workshop: Workshop, phase: Phase, parameters: list[torch.nn.Parameter]) -> float:
    """Train the given parameters over the phase's steps; return the seconds it took."""
    config, runtime = workshop.config, workshop.runtime
    update = Update(parameters, config, phase.max_steps, 8, runtime.dtype, runtime.device)
    started = time.monotonic()
    for index in range(phase.max_steps):
        plan = phase.plan.step(index)
        update.backward(phase.loss(plan, range(len(plan.examples))).mean())
        update.step(index)
    return time.monotonic() - started


def score(workshop: Workshop, seeds: list[int]) -> float:
    """The style score of the model as it is now."""
    family = workshop.family
    family.load(workshop.components, family.components, torch.float32)
    pipeline = build_pipeline(family, workshop.components)
    pipeline.set_progress_bar_config(disable=True)
    prompts = [style_prompt(STYLE, scene) for scene in style_scenes(40)]
    painter = PipelinePainter(pipeline)
    pictures = [picture for seed in seeds for picture in painter(prompts, seed)]
    return style_score(STYLE, pictures)["style"]


def main() -> None:
    """Train both ways from the same settings, score, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for results")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    options = parser.parse_args()
    settings = read_config_file(demo_config(), field_names())
    settings |= {"train_data_dir": str(demo_pictures()), "output_dir": str(options.work / "none")}
    config = scumble.TrainConfig(**settings)
    rows = []
    for name, changes in LORAS.items():
        workshop, phase = begin(dataclasses.replace(config, **changes))
        parameters = phase.parameters()
        seconds = teach(workshop, phase, parameters)
        rows.append((name, parameters, seconds, score(workshop, options.seeds)))
    full = dataclasses.replace(config, learning_rate=FULL_LEARNING_RATE)
    workshop, phase = begin(full)
    phase.adapters["unet"].eject()
    base_score = score(workshop, options.seeds)
    parameters = list(workshop.components["unet"].requires_grad_(True).parameters())
    seconds = teach(workshop, phase, parameters)
    rows.append(("full fine-tuning", parameters, seconds, score(workshop, options.seeds)))
    report(rows, base_score, options.work)


def report(
    rows: list[tuple[str, list[torch.nn.Parameter], float, float]], base: float, work: Path
) -> None:
    """Print a Markdown table, and write it as JSON."""
    whole = sum(p.numel() for p in rows[-1][1])
    reference = style_reference(STYLE, style_scenes(40))
    print("| | style score | parameters | share | MB in fp32 | training, s |")
    print("|---|---|---|---|---|---|")
    print(f"| base | {base:.3f} | 0 | | | |")
    content = {"base": base, **{name: row["style"] for name, row in reference.items()}}
    for name, parameters, seconds, value in rows:
        count = sum(p.numel() for p in parameters)
        size_mb = count * 4 / 1e6
        share = count / whole
        print(f"| {name} | {value:.3f} | {count:,} | {share:.1%} | {size_mb:.2f} | {seconds:.0f} |")
        content[name] = value
    for name, row in reference.items():
        print(f"| {name} | {row['style']:.3f} | | | | |")
    work.mkdir(parents=True, exist_ok=True)
    (work / "scores.json").write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
