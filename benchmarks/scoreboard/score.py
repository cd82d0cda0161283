"""Scores what a job taught: asked for it, asked for something else, and asked for plain shapes."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tiny_model.lesson_fidelity import (
    ground_fidelity,
    pixel_drift,
    plain_fidelity,
    style_fidelity,
    unseen_grounds,
    unseen_style_scenes,
)
from tiny_model.lesson_scores import class_pictures, style_score, subject_score
from tiny_model.outlines import CREATURE
from tiny_model.scenes import PALETTE, Scene, caption, held_out_scenes, render, with_article
from tiny_model.teaching_sets import SIDE_PX, STYLES, subject_pairs

from .jobs import SCORE, TRAINED
from .methods import LESSONS, STYLE, Job, training_command

SAMPLING_STEPS, GUIDANCE, BATCH = 12, 3.0, 20
STYLE_DRAWS, SUBJECT_DRAWS, CLASS_DRAWS, PLAIN_PROMPTS = 2, 4, 3, 20
SIDE = 64

Pictures = dict[str, list[Image.Image]]


@dataclass(frozen=True)
class Question:
    """A prompt and what the picture should show: a scene, or for creatures a background."""

    prompt: str
    scene: Scene | None
    ground: str


def questions(lesson: str, trigger: str) -> dict[str, list[Question]]:
    """The prompts: with the trigger, the same without it, and plain shapes that nothing taught.

    No prompt with the trigger is in the teaching set: a style is asked for in pairs of colour and
    shape that it does not hold, a subject on backgrounds that it does not hold.
    """
    plain = [Question(caption(s), s, s.background) for s in held_out_scenes(PLAIN_PROMPTS)]
    if LESSONS[lesson].kind == STYLE:
        scenes = unseen_style_scenes(lesson)
        words = [with_article(f"{s.size} {s.colour} {s.shape}".strip()) for s in scenes]
        named = list(zip(words, scenes, strict=True))
        phrase = LESSONS[lesson].phrase(trigger)
        asked = [Question(f"{w}, {phrase}", s, "") for w, s in named] * STYLE_DRAWS
        return {"asked": asked, "unasked": [Question(w, s, "") for w, s in named], "plain": plain}
    noun = LESSONS[lesson].phrase(trigger)
    asked = [
        Question(f"{with_article(words)} on {with_article(ground)} background", None, ground)
        for words in (noun, f"big {noun}")
        for ground in unseen_grounds(lesson)
    ] * SUBJECT_DRAWS
    unasked = [
        Question(f"a {CREATURE} on {with_article(ground)} background", None, ground)
        for ground in PALETTE
    ] * CLASS_DRAWS
    return {"asked": asked, "unasked": unasked, "plain": plain}


def judge(lesson: str, pictures: Pictures, before: Pictures, quick: bool) -> dict[str, float]:
    """Every score of one job; `before` are the base's answers to the same prompts and noise."""
    asked = questions(lesson, LESSONS[lesson].trigger)
    if quick:
        asked = {name: rows[:2] for name, rows in asked.items()}
    scenes = {name: [q.scene for q in rows if q.scene] for name, rows in asked.items()}
    scores = {
        "plain_right": plain_fidelity(scenes["plain"], pictures["plain"]),
        "plain_drift": pixel_drift(pictures["plain"], before["plain"]),
        "unasked_drift": pixel_drift(pictures["unasked"], before["unasked"]),
    }
    if LESSONS[lesson].kind == STYLE:
        return scores | {
            "learnt": style_score(lesson, pictures["asked"])["style"],
            "asked_right": style_fidelity(lesson, scenes["asked"], pictures["asked"])["both"],
            "leak": style_score(lesson, pictures["unasked"])["style"],
        }
    likeness = [subject_score(lesson, some["unasked"]) for some in (pictures, before)]
    return scores | {
        "learnt": subject_score(lesson, pictures["asked"]),
        "asked_right": ground_fidelity([q.ground for q in asked["asked"]], pictures["asked"]),
        "leak": round(likeness[0] - likeness[1], 4),
    }


def references(lesson: str) -> dict[str, dict[str, float]]:
    """What the set's own kind of drawings would score, and drawings of something else."""
    asked = questions(lesson, LESSONS[lesson].trigger)
    plain_scenes = [q.scene for q in asked["plain"] if q.scene]
    plain = [render(scene) for scene in plain_scenes]
    other_plain = shuffled(plain)
    if LESSONS[lesson].kind == STYLE:
        scenes = [q.scene for q in asked["asked"] if q.scene]
        real = real_asked(lesson)
        return {
            "real": {
                "learnt": style_score(lesson, real)["style"],
                "asked_right": style_fidelity(lesson, scenes, real)["both"],
                "plain_right": plain_fidelity(plain_scenes, plain),
            },
            "chance": {
                "learnt": style_score(lesson, plain)["style"],
                "asked_right": style_fidelity(lesson, scenes, shuffled(real))["both"],
                "plain_right": plain_fidelity(plain_scenes, other_plain),
            },
        }
    grounds = [ground for _, _, ground in fresh_subjects(lesson)]
    real = [picture for picture, _, _ in fresh_subjects(lesson)]
    return {
        "real": {
            "learnt": subject_score(lesson, real),
            "asked_right": ground_fidelity(grounds, real),
            "plain_right": plain_fidelity(plain_scenes, plain),
        },
        "chance": {
            "learnt": subject_score(lesson, class_pictures(64, seed=61)),
            "asked_right": ground_fidelity(grounds, shuffled(real)),
            "plain_right": plain_fidelity(plain_scenes, other_plain),
        },
    }


def fresh_subjects(lesson: str) -> list[tuple[Image.Image, str, str]]:
    """(picture, caption, background) of drawings of the subject that no training saw."""
    pairs = subject_pairs(lesson, 4 * len(PALETTE), 51)
    kept = [(picture, words, scene.background) for picture, words, scene in pairs]
    return [row for row in kept if row[2] in unseen_grounds(lesson)]


def real_asked(lesson: str) -> list[Image.Image]:
    """Drawings by the set's own code of what the prompts with the trigger ask for."""
    rows = questions(lesson, LESSONS[lesson].trigger)["asked"]
    if LESSONS[lesson].kind == STYLE:
        painter, _ = STYLES[lesson]
        return [painter(q.scene, SIDE_PX, random.Random(i)) for i, q in enumerate(rows) if q.scene]
    by_ground = {ground: picture for picture, _, ground in fresh_subjects(lesson)}
    return [by_ground[q.ground] for q in rows]


def shuffled(pictures: Sequence[Image.Image]) -> list[Image.Image]:
    """The same pictures in an order that fits no prompt but by chance."""
    order = list(pictures)
    random.Random(1).shuffle(order)
    return order


def score_job(job: Job, work: Path, quick: bool) -> None:
    """Draw, judge, and write the job's score."""
    started = time.monotonic()
    folder = work / job.name
    pictures = draw(job, folder / "out", quick)
    save_pictures(folder / "pictures", pictures)
    before = load_pictures(work / Job(job.lesson, "base", job.seed).name / "pictures")
    content = {
        "job": job.name,
        "command": training_command(job, "WORK", quick),
        "scores": judge(job.lesson, pictures, before, quick),
        "facts": facts_of(folder) | {"score_s": round(time.monotonic() - started, 1)},
    }
    partial = folder / f"{SCORE}.partial"
    partial.write_text(json.dumps(content, indent=2) + "\n", "utf-8")
    partial.replace(folder / SCORE)


def draw(job: Job, out: Path, quick: bool) -> Pictures:
    """The taught model's answers to every question."""
    from tiny_model.pipeline import PipelinePainter

    painter = PipelinePainter(
        open_pipeline(job, out), 2 if quick else SAMPLING_STEPS, GUIDANCE, BATCH
    )
    return {
        name: painter([q.prompt for q in rows][: 2 if quick else None], job.seed)
        for name, rows in questions(job.lesson, job.prompt_trigger).items()
    }


def open_pipeline(job: Job, out: Path) -> Any:
    """The base with what the job taught, or the whole model that it wrote."""
    import torch
    from diffusers import StableDiffusionPipeline

    import scumble
    from scumble.families.locate import locate

    torch.set_num_threads(1)
    whole = out / "model"
    source = whole if whole.is_dir() else locate("scumble-tiny").location
    pipeline = StableDiffusionPipeline.from_pretrained(source, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    if job.method != "base" and not whole.is_dir():
        scumble.load_adapter(pipeline, out)
        scumble.merge_adapters(pipeline)
    return pipeline


def facts_of(folder: Path) -> dict[str, float]:
    """What the training cost, from what it left behind; empty for the base."""
    from safetensors import safe_open

    from scumble.formats.files import adapter_file

    out = folder / "out"
    if not out.is_dir():
        return {}
    whole = out / "model" / "unet"
    files = sorted(whole.glob("*.safetensors")) or [adapter_file(out)]
    parameters = 0
    for path in files:
        with safe_open(path, framework="np") as tensors:
            shapes = [tensors.get_slice(name).get_shape() for name in tensors.keys()]  # noqa: SIM118
        parameters += sum(int(np.prod(shape)) for shape in shapes)
    record = json.loads((out / "run.json").read_text("utf-8"))
    trained = json.loads((folder / TRAINED).read_text("utf-8"))
    return {
        "parameters": parameters,
        "bytes": sum(path.stat().st_size for path in files),
        "train_s": trained["cpu_s"],
        "wall_s": trained["wall_s"],
        "peak_memory_mib": record["peak_memory_mib"],
        "steps": record["steps"],
    }


def save_pictures(folder: Path, pictures: Pictures) -> None:
    """Keep pictures as one strip for each kind of question."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, images in pictures.items():
        strip = Image.new("RGB", (SIDE * len(images), SIDE))
        for i, image in enumerate(images):
            strip.paste(image, (SIDE * i, 0))
        strip.save(folder / f"{name}.png")


def load_pictures(folder: Path) -> Pictures:
    """Read strips back."""
    found = {}
    for path in folder.glob("*.png"):
        strip = Image.open(path).convert("RGB")
        boxes = [(x, 0, x + SIDE, SIDE) for x in range(0, strip.width, SIDE)]
        found[path.stem] = [strip.crop(box) for box in boxes]
    return found
