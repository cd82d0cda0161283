"""Writes the model's README.md: how it was made, on what, what it can draw, and its scores."""

from __future__ import annotations

from .outlines import SHAPES
from .scenes import HELD_OUT_SHARE, PALETTE, POSITIONS

HEADER = """---
license: cc0-1.0
library_name: diffusers
pipeline_tag: text-to-image
tags: [stable-diffusion, tiny, procedural]
---

# scumble-tiny

A real `StableDiffusionPipeline` at a tiny size, trained from scratch on pictures that this project
draws itself. It exists so that fine-tuning can be seen, tried and measured on a laptop without a
GPU and without a download. It knows one small world and nothing else.
"""


def describe_world() -> str:
    """What the base can be asked for."""
    places = ", ".join(f'"{words}"' for words in POSITIONS if words)
    return (
        "## What it can draw\n\n"
        "One object on a plain background, 64 x 64 pixels.\n\n"
        f"- shapes: {', '.join(SHAPES)}; and a little creature\n"
        f"- colours, for object and background: {', '.join(PALETTE)}\n"
        f'- sizes: "small", none, "big"; places: centre when unsaid, {places}\n'
        '- prompts such as "a red heart on a white background" or "a small blue star on the left '
        'on an orange background"\n\n'
        "Surest are big and middle-sized objects; small squares and stars are often wobbly, see "
        "the scores. Two objects, textures, scenes and words outside this list were not taught.\n"
    )


def score_table(rows: dict[str, dict[str, float]]) -> str:
    """One row for each painter, one column for each score."""
    names = ["background", "colour", "shape", *(f"shape:{shape}" for shape in SHAPES), "place"]
    names += ["overlap", "mixed_edges", "face"]
    names = [name for name in names if any(name in row for row in rows.values())]
    lines = ["| painter | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for painter, row in rows.items():
        cells = [f"{row[name]:.3f}" if name in row else "" for name in names]
        lines.append("| " + " | ".join([painter, *cells]) + " |")
    return "\n".join(lines)


def write_card(rows: dict[str, dict[str, float]], facts: dict[str, object]) -> str:
    """The whole card.

    Args:
        rows: scores by painter ("scumble-tiny", "real", "chance").
        facts: prompts, seeds, sampler, training lengths; printed as they are.
    """
    listed = "\n".join(f"- {name}: {value}" for name, value in facts.items())
    return (
        f"{HEADER}\n{describe_world()}\n"
        "## Scores\n\n"
        f"{score_table(rows)}\n\n"
        '"real" are freshly drawn pictures of the same captions, "chance" are real pictures of '
        "other captions. Colours are judged by the nearest of the palette, shapes by the best "
        "overlapping template (at least 0.7). `overlap` is that template's overlap, `mixed_edges` "
        "the share of pixels of neither colour; both are crispest at the real pictures' value. "
        "`face`: white and dark meet inside the object, as in eyes.\n\n"
        "Reproduce: `python benchmarks/score_tiny.py <this folder>`.\n\n"
        "## Teaching it\n\n"
        "It wants a LoRA learning rate of about 3e-3, thirty times the usual. What every method "
        "teaches it, with numbers and pictures: `docs/results.md`, remade by "
        "`python benchmarks/scoreboard.py`.\n\n"
        "## How it was made\n\n"
        f"{listed}\n"
        f"- kept from training: {HELD_OUT_SHARE:.0%} of all (shape, colour, background) "
        "combinations; scores use only those, except for creatures\n"
        "- text encoder pretrained contrastively on the same captions and pictures, then the "
        "denoiser by v-prediction with zero terminal SNR (arXiv:2305.08891)\n"
        "- made by one command: `python scripts/make_tiny_model.py`; bfloat16 and resumed runs "
        "make another build alike, not equal bit for bit\n\n"
        "## Licence\n\n"
        "Model and pictures are dedicated to the public domain (CC0 1.0).\n"
    )
