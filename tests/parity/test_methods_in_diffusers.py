"""What each method leaves behind, drawn by unmodified diffusers and by us: the same picture.

The pictures that `train` itself draws at the end are the third witness.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline
from PIL import Image

import scumble
from scumble.training.methods import METHODS

PICTURES = Path(__file__).parents[2] / "examples" / "data" / "creature_pip"
WORD = {
    "placeholder_token": "<pip>",
    "initializer_token": "creature",
    "num_vectors": 2,
    "learnable_property": "object",
}
CASES: dict[str, dict[str, Any]] = {
    "text_to_image": {"train_text_encoder": True, "target_modules": ("to_q", "ff.net.0.proj:2")},
    "dreambooth": {"train_text_encoder": True, "text_encoder_rank": 2, "alpha": 8.0},
    "textual_inversion": {**WORD, "learning_rate": 2e-2},
    "pivotal_tuning": {**WORD, "row_learning_rate": 2e-2, "train_text_encoder": True},
    "full": {"learning_rate": 1e-3},
}
STEPS, GUIDANCE = 3, 3.0


def in_diffusers(folder: Path, make_pipeline: Any) -> StableDiffusionPipeline:
    """Load what a run left as any user of diffusers would."""
    if (folder / "model").is_dir():
        pipeline = StableDiffusionPipeline.from_pretrained(folder / "model")
        pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline
    pipeline = make_pipeline()
    if (folder / "pytorch_lora_weights.safetensors").is_file():
        pipeline.load_lora_weights(folder, weight_name="pytorch_lora_weights.safetensors")
    if (folder / "learned_embeds.safetensors").is_file():
        pipeline.load_textual_inversion(folder / "learned_embeds.safetensors")
    return pipeline


@pytest.mark.parametrize("method", METHODS)
def test_diffusers_draws_what_we_draw(method: str, make_pipeline: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prompt = "a <pip> on a red background" if "placeholder_token" in CASES[method] else "a star"
    source = "instance_data_dir" if method == "dreambooth" else "train_data_dir"
    config = scumble.TrainConfig(
        method=method,
        pretrained_model_name_or_path="scumble-tiny",
        output_dir=str(out),
        train_batch_size=1,
        max_train_steps=6,
        validation_prompt=prompt,
        num_validation_images=1,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        seed=7,
        **({"learning_rate": 5e-3, source: str(PICTURES)} | CASES[method]),
    )
    result = scumble.train(config)
    options = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE}
    drawn_by = {
        "diffusers": in_diffusers(out, make_pipeline)(
            prompt, generator=torch.Generator().manual_seed(7), **options
        ).images[0],
        "train": Image.open(out / "sample_0.png"),
    }
    place = {"pretrained_model_name_or_path": str(result.adapter)}
    if not result.adapter.is_dir():
        place = {"adapter": str(out)}
    (drawn_by["generate"],) = scumble.generate(prompt, seed=7, **options, **place)
    arrays = {name: np.asarray(image).astype(int) for name, image in drawn_by.items()}
    for name, array in arrays.items():
        assert np.abs(array - arrays["diffusers"]).max() <= 1, name
    (plain,) = scumble.generate(
        prompt.replace("<pip>", "creature"),
        seed=7,
        pretrained_model_name_or_path="scumble-tiny",
        **options,
    )
    assert np.abs(np.asarray(plain).astype(int) - arrays["diffusers"]).max() > 8
