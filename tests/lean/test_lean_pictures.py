"""diffusers' own pipelines draw the same picture with a lean denoiser."""

import numpy as np
import torch
from diffusers import (
    AutoPipelineForImage2Image,
    EulerDiscreteScheduler,
    StableDiffusionPAGPipeline,
)
from lean_steps import adapt, lean

from scumble.adapters.blend import merge
from scumble.lean.levels import LEVELS


def draw(pipeline, steps=25, **more):
    generator = torch.Generator().manual_seed(7)
    options = {"guidance_scale": 5.0, "output_type": "np", "generator": generator} | more
    return pipeline("a spiral", num_inference_steps=steps, **options).images[0]


def difference(ours, theirs):
    assert np.abs(theirs).max() > 0.1
    return float(np.abs(ours - theirs).max())


def test_a_picture_of_25_steps(tiny_pipeline):
    tiny_pipeline.unet.requires_grad_(False)
    adapt(tiny_pipeline.unet, ("to_q", "to_v", "ff.net.2", "conv1"))
    plain = draw(tiny_pipeline)
    with lean(tiny_pipeline.unet):
        assert difference(draw(tiny_pipeline), plain) < 1e-3


def test_every_level_and_none_again(tiny_pipeline):
    tiny_pipeline.unet.requires_grad_(False)
    plain = draw(tiny_pipeline, 3)
    for level in LEVELS:
        with lean(tiny_pipeline.unet, level):
            assert difference(draw(tiny_pipeline, 3), plain) < 1e-3
    assert difference(draw(tiny_pipeline, 3), plain) == 0


def test_merged_scaled_and_masked(tiny_pipeline):
    tiny_pipeline.unet.requires_grad_(False)
    adapt(tiny_pipeline.unet)
    merge(tiny_pipeline.unet)
    more = {"steps": 4, "cross_attention_kwargs": {"scale": 0.5}, "guidance_rescale": 0.7}
    plain = draw(tiny_pipeline, **more)
    with lean(tiny_pipeline.unet):
        assert difference(draw(tiny_pipeline, **more), plain) < 1e-3


def test_from_picture_to_picture(tiny_pipeline):
    tiny_pipeline.scheduler = EulerDiscreteScheduler.from_config(tiny_pipeline.scheduler.config)
    pipeline = AutoPipelineForImage2Image.from_pipe(tiny_pipeline)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.unet.requires_grad_(False)
    more = {"image": torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(1))}
    plain = draw(pipeline, 6, strength=0.6, **more)
    with lean(pipeline.unet):
        assert difference(draw(pipeline, 6, strength=0.6, **more), plain) < 1e-3


def test_perturbed_attention_guidance_sets_processors_of_its_own(tiny_pipeline):
    pipeline = StableDiffusionPAGPipeline(**tiny_pipeline.components, pag_applied_layers=["mid"])
    pipeline.set_progress_bar_config(disable=True)
    pipeline.unet.requires_grad_(False)
    usual = draw(pipeline, 4, pag_scale=0.0)
    plain = draw(pipeline, 4, pag_scale=3.0)
    assert difference(plain, usual) > 1e-3
    with lean(pipeline.unet):
        assert difference(draw(pipeline, 4, pag_scale=3.0), plain) < 1e-3
        assert difference(draw(pipeline, 4, pag_scale=0.0), usual) < 1e-3
