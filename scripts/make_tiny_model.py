"""Builds `scumble-tiny`, the built-in base model, from nothing but this repository.

Stages: autoencoder, text encoder, latents, denoiser, export. Each one writes checkpoints to the
work folder and goes on from them when the command is given again, also after a kill.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from tiny_model.captions_tokenizer import build_tokenizer
from tiny_model.creature_scores import creature_fidelity
from tiny_model.denoiser import DenoiserRecipe, DenoiserTraining, build_denoiser, train_denoiser
from tiny_model.latent_pools import load_pools
from tiny_model.model_card import write_card
from tiny_model.pipeline import GUIDANCE, SAMPLING_STEPS, PipelinePainter, assemble, export
from tiny_model.scenes import (
    caption,
    held_out_scenes,
    held_out_small,
    render,
    scored_creatures,
)
from tiny_model.scoring import passes_gate, prompt_fidelity, reference_fidelity
from tiny_model.teaching_sets import write_sets
from tiny_model.text_encoder import ContrastRecipe, train_text_encoder
from tiny_model.vae import VaeRecipe, psnr_db, train_vae

PROMPTS = 96
SEEDS = (0, 1)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for flag, default, meaning in (
        (
            "--output_dir",
            Path("models/scumble-tiny"),
            "where the model goes, each time it is better",
        ),
        (
            "--work_dir",
            Path("work/scumble-tiny"),
            "checkpoints and encoded pictures; keep it to resume",
        ),
        ("--device", "cuda" if torch.cuda.is_available() else "cpu", "where to train"),
        ("--threads", 2, "CPU threads; 1 is fastest on shared cores"),
        ("--vae_steps", VaeRecipe.steps, "steps of the autoencoder, about 25 minutes on one core"),
        ("--text_steps", ContrastRecipe.steps, "contrastive steps of the text encoder, minutes"),
        (
            "--denoiser_steps",
            DenoiserRecipe.steps,
            "steps of the denoiser, about an hour on one core",
        ),
        ("--batch", DenoiserRecipe.batch, "pictures per denoiser step; 256 on a GPU"),
    ):
        text = f"{meaning} (default: {default})"
        parser.add_argument(
            flag,
            type=Path if isinstance(default, Path) else type(default),
            default=default,
            help=text,
        )
    parser.add_argument(
        "--teaching_sets", type=Path, help="only write the teaching sets to this folder, and stop"
    )
    return parser.parse_args()


class Judge:
    """Scores the averaged weights now and then, and exports them when they are the best so far."""

    def __init__(self, vae: AutoencoderKL, arguments: argparse.Namespace, psnr: float) -> None:
        self.vae, self.arguments, self.psnr = vae, arguments, psnr
        self.scenes = held_out_scenes(PROMPTS)

    def __call__(self, training: DenoiserTraining) -> str:
        """Score with one seed; export if better; say both in one line."""
        painter = self.painter(training)
        scores = prompt_fidelity(self.scenes, painter, SEEDS[:1])
        summary = " ".join(f"{name} {value:.3f}" for name, value in scores.items())
        total = scores["background"] + scores["colour"] + 2 * scores["shape"] + scores["overlap"]
        if total < training.best:
            return f"scores at {training.step}: {summary}"
        training.best = total
        rows = {"scumble-tiny": scores, **reference_fidelity(self.scenes)}
        size = self.export(training, painter, rows, seeds=1)
        return f"scores at {training.step}: {summary} (exported, {size / 2**20:.1f} MiB)"

    def finish(self, training: DenoiserTraining) -> str:
        """Score everything the card promises, with every seed, and export."""
        painter = self.painter(training)
        rows = {"scumble-tiny": prompt_fidelity(self.scenes, painter, SEEDS)}
        rows |= reference_fidelity(self.scenes)
        small, creatures = held_out_small(PROMPTS), scored_creatures(PROMPTS // 2)
        rows["scumble-tiny, small objects"] = prompt_fidelity(small, painter, SEEDS[:1])
        painted = painter([caption(scene) for scene in creatures], SEEDS[0])
        rows["scumble-tiny, creatures"] = creature_fidelity(creatures, painted)
        real = [render(scene) for scene in creatures]
        rows["real, creatures"] = creature_fidelity(creatures, real)
        size = self.export(training, painter, rows, seeds=len(SEEDS))
        gate = "passed" if passes_gate(rows["scumble-tiny"]) else "not passed"
        table = "\n".join(f"{name}: {row}" for name, row in rows.items())
        return f"{table}\ngate {gate}; exported {size / 2**20:.1f} MiB"

    def painter(self, training: DenoiserTraining) -> PipelinePainter:
        """A painter with the averaged weights."""
        denoiser, text_encoder = training.averaged()
        return PipelinePainter(assemble(self.vae, text_encoder, denoiser))

    def export(
        self,
        training: DenoiserTraining,
        painter: PipelinePainter,
        rows: dict[str, dict[str, float]],
        seeds: int,
    ) -> int:
        """Write the pipeline, its card and its scores."""
        recipe = training.recipe
        facts = {
            "scored on": f"{PROMPTS} held-out captions x {seeds} seeds",
            "sampler": f"DPM-Solver++, {SAMPLING_STEPS} steps, guidance {GUIDANCE}",
            "autoencoder": f"{self.arguments.vae_steps} steps, {self.psnr:.1f} dB on fresh scenes",
            "text encoder": f"{self.arguments.text_steps} contrastive steps",
            "denoiser": f"{training.step} steps of {recipe.batch}, seed {recipe.seed}",
        }
        gate = passes_gate(rows["scumble-tiny"])
        report = {"scores": rows, "facts": facts, "passes_gate": gate}
        return export(painter.pipeline, self.arguments.output_dir, write_card(rows, facts), report)


def main() -> None:
    """Run every stage that is not finished yet."""
    arguments = parse_arguments()
    if arguments.teaching_sets:
        write_sets(arguments.teaching_sets)
        return
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    work: Path = arguments.work_dir
    work.mkdir(parents=True, exist_ok=True)
    arguments.output_dir.parent.mkdir(parents=True, exist_ok=True)
    vae_recipe = dataclasses.replace(VaeRecipe(), steps=arguments.vae_steps)
    vae = train_vae(work, vae_recipe, device)
    psnr = psnr_db(vae)
    print(f"autoencoder: {psnr:.1f} dB, creatures {psnr_db(vae, creatures=1.0):.1f} dB", flush=True)
    contrast = dataclasses.replace(ContrastRecipe(), steps=arguments.text_steps)
    text_encoder = train_text_encoder(work, contrast, device)
    recipe = dataclasses.replace(
        DenoiserRecipe(), steps=arguments.denoiser_steps, batch=arguments.batch
    )
    pools = load_pools(work, vae, recipe.seed)
    torch.manual_seed(recipe.seed)
    training = DenoiserTraining(
        recipe, build_denoiser(), text_encoder, build_tokenizer(), pools, device
    )
    judge = Judge(vae, arguments, psnr)
    print(judge.finish(train_denoiser(work, training, judge)), flush=True)


if __name__ == "__main__":
    main()
