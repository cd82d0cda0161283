"""Scores a tiny model: prompt fidelity, and what a LoRA learnt of a style or a subject.

Beside every score stand those of the base, of real pictures and of chance.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))

from tiny_model.lesson_scores import (
    class_pictures,
    style_prompt,
    style_reference,
    style_scenes,
    style_score,
    subject_prompts,
    subject_score,
)
from tiny_model.pipeline import GUIDANCE, SAMPLING_STEPS, PipelinePainter
from tiny_model.scenes import held_out_scenes
from tiny_model.scoring import passes_gate, prompt_fidelity, reference_fidelity
from tiny_model.teaching_sets import STYLES, SUBJECTS, subject_pairs

Rows = dict[str, dict[str, float]]


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", help="folder of the base model")
    parser.add_argument("--lora", help="LoRA file to score beside the base")
    parser.add_argument("--tuned", help="folder of a fully fine-tuned model to score beside it")
    parser.add_argument("--style", choices=sorted(STYLES), help="score a style")
    parser.add_argument("--subject", choices=sorted(SUBJECTS), help="score a subject")
    parser.add_argument("--prompts", type=int, default=96)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--steps", type=int, default=SAMPLING_STEPS)
    parser.add_argument("--guidance", type=float, default=GUIDANCE)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="also write the scores here")
    parser.add_argument("--grid", type=Path, help="also save the pictures of the first seed here")
    return parser.parse_args()


def load_painter(folder: str, arguments: argparse.Namespace) -> PipelinePainter:
    """A painter for one model folder, in float32."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return PipelinePainter(pipeline, arguments.steps, arguments.guidance)


def load_painters(arguments: argparse.Namespace) -> dict[str, PipelinePainter]:
    """The base, and whatever was fine-tuned from it."""
    painters = {"base": load_painter(arguments.model, arguments)}
    if arguments.lora:
        painters["lora"] = load_painter(arguments.model, arguments)
        painters["lora"].pipeline.load_lora_weights(arguments.lora)
    if arguments.tuned:
        painters["tuned"] = load_painter(arguments.tuned, arguments)
    return painters


def grid_of(pictures: Sequence[Image.Image], columns: int = 12) -> Image.Image:
    """Pictures side by side."""
    side = pictures[0].width
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * side, rows * side))
    for i, picture in enumerate(pictures):
        sheet.paste(picture, (i % columns * side, i // columns * side))
    return sheet


def score_prompts(painters: dict[str, PipelinePainter], arguments: argparse.Namespace) -> Rows:
    """Prompt fidelity on held-out captions."""
    scenes = held_out_scenes(arguments.prompts)
    rows = {
        name: prompt_fidelity(scenes, painter, arguments.seeds)
        for name, painter in painters.items()
    }
    return {**rows, **reference_fidelity(scenes)}


def score_style(painters: dict[str, PipelinePainter], arguments: argparse.Namespace) -> Rows:
    """Style rules on prompts that the teaching set does not contain."""
    scenes = style_scenes(min(arguments.prompts, 40))
    prompts = [style_prompt(arguments.style, scene) for scene in scenes]
    rows: Rows = {}
    for name, painter in painters.items():
        pictures = [picture for seed in arguments.seeds for picture in painter(prompts, seed)]
        rows[name] = style_score(arguments.style, pictures)
        if arguments.grid:
            grid_of(pictures).save(arguments.grid.with_stem(f"{arguments.grid.stem}_{name}"))
    return {**rows, **style_reference(arguments.style, scenes)}


def score_subject(painters: dict[str, PipelinePainter], arguments: argparse.Namespace) -> Rows:
    """Likeness to the subject when asked for it, and drift when only its class is asked for."""
    wanted, plain = zip(*subject_prompts(arguments.subject), strict=True)
    rows: Rows = {}
    for name, painter in painters.items():
        ours = [picture for seed in arguments.seeds for picture in painter(wanted, seed)]
        drift = [picture for seed in arguments.seeds for picture in painter(plain, seed)]
        rows[name] = {
            "subject": subject_score(arguments.subject, ours),
            "drift": subject_score(arguments.subject, drift),
        }
        if arguments.grid:
            sheet = grid_of(ours + drift, len(wanted))
            sheet.save(arguments.grid.with_stem(f"{arguments.grid.stem}_{name}"))
    real = [picture for picture, _, _ in subject_pairs(arguments.subject, 16, 51)]
    rows["real"] = {"subject": subject_score(arguments.subject, real)}
    rows["chance"] = {"subject": subject_score(arguments.subject, class_pictures(64, seed=61))}
    return rows


def main() -> None:
    """Score, print one line for each painter, and write JSON when asked."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    painters = load_painters(arguments)
    if arguments.style:
        rows = score_style(painters, arguments)
    elif arguments.subject:
        rows = score_subject(painters, arguments)
    else:
        rows = score_prompts(painters, arguments)
    for name, row in rows.items():
        print(name.ljust(8), " ".join(f"{key} {value:.3f}" for key, value in row.items()))
    if not (arguments.style or arguments.subject):
        print("gate:", "passed" if passes_gate(rows["base"]) else "not passed")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
