"""What the matrix of formats is run on: two small bases, one prompt, and a plain way to draw."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.resources import files

import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline, UNet2DConditionModel
from lycoris import LycorisNetwork
from lycoris_delta import lycoris_delta
from torch import nn

from scumble.adapters import ADAPTERS
from scumble.formats import AdapterWeights

BLOCK = "down_blocks.0.attentions.0.transformer_blocks.0"
PARTS = ("to_q", "to_k", "to_v", "to_out.0")
ATTENTION = [f"{BLOCK}.{attention}.{part}" for attention in ("attn1", "attn2") for part in PARTS]
RESNET = "down_blocks.1.resnets.0"
KERNELS = [f"{RESNET}.conv1", f"{RESNET}.conv2"]
CONVOLUTIONS = [*KERNELS, f"{RESNET}.conv_shortcut", f"{RESNET}.time_emb_proj"]
NORMS = [f"{RESNET}.norm1", f"{BLOCK}.norm2"]
TEXT = [
    f"text_model.encoder.layers.{number}.self_attn.{part}_proj"
    for number in range(3)
    for part in ("k", "v", "q", "out")
]

WORD = "<thing>"
PROMPT = f"a {WORD} in the sun"


@cache
def untouched(base: str) -> StableDiffusionPipeline:
    """One pipeline of diffusers for all, to look at.

    Args:
        base: "tiny", the built-in one; or "narrow", which has as many layers as Stable Diffusion
            1.5, for files that count them.
    """
    tiny = str(files("scumble") / "assets" / "tiny")
    pipeline = StableDiffusionPipeline.from_pretrained(tiny, torch_dtype=torch.float32)
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    if base == "narrow":
        torch.manual_seed(0)
        widths = {"block_out_channels": (8, 8, 8, 8), "norm_num_groups": 4, "sample_size": 16}
        pipeline.unet = UNet2DConditionModel(
            cross_attention_dim=128, attention_head_dim=2, **widths
        )
    return pipeline


def fresh(base: str = "tiny") -> StableDiffusionPipeline:
    """One to change; the VAE, which no adapter changes, is that of all."""
    pipeline = untouched(base)
    return copy.deepcopy(pipeline, {id(pipeline.vae): pipeline.vae})


@torch.no_grad()
def draw(pipeline: StableDiffusionPipeline, prompt: str = PROMPT) -> np.ndarray:
    options = {"num_inference_steps": 2, "guidance_scale": 3.0, "output_type": "np"}
    return pipeline(prompt, generator=torch.Generator().manual_seed(3), **options).images[0]


@cache
def plain(base: str) -> np.ndarray:
    """The picture without any adapter."""
    return draw(untouched(base))


def layer_of(pipeline: StableDiffusionPipeline, component: str, path: str) -> nn.Module:
    model = getattr(pipeline, component)
    live = path if hasattr(model, "text_model") else path.removeprefix("text_model.")
    return model.get_submodule(live)


@torch.no_grad()
def by_hand(weights: AdapterWeights, base: str) -> np.ndarray:
    """The picture that an adapter should give, without our code for adapters or files.

    LyCORIS's layers say how weights change, whatever the type; words are put in one by one.
    """
    pipeline, prompt = fresh(base), PROMPT
    for component, modules in weights.components.items():
        for path, entry in modules.items():
            layer = layer_of(pipeline, component, path)
            names = ADAPTERS[entry.type].file_names
            tensors = {names[parameter]: tensor for parameter, tensor in entry.tensors.items()}
            if ADAPTERS[entry.type].has_rank:
                tensors["alpha"] = torch.tensor(entry.alpha)
            delta, bias_delta = lycoris_delta(layer, tensors)
            layer.weight += delta
            if bias_delta is not None:
                layer.bias += bias_delta
    for token, learned in weights.tokens.items():
        vectors = learned.vectors["text_encoder"]
        # Names that diffusers does not take for pieces of one word, which it would multiply.
        pieces = [f"<piece {letter}>" for letter in "abcdef"[: len(vectors)]]
        pipeline.tokenizer.add_tokens(pieces)
        pipeline.text_encoder.resize_token_embeddings(len(pipeline.tokenizer))
        rows = pipeline.tokenizer.convert_tokens_to_ids(pieces)
        pipeline.text_encoder.get_input_embeddings().weight[rows] = vectors
        prompt = prompt.replace(token, " ".join(pieces))
    return draw(pipeline, prompt)


@contextmanager
def lycoris_preset(**preset: object) -> Iterator[None]:
    """Set what LyCORIS keeps for the whole process, for a while."""
    names = ("LORA_PREFIX", "TARGET_REPLACE_MODULE", "TARGET_REPLACE_NAME")
    kept = {name: getattr(LycorisNetwork, name) for name in names}
    LycorisNetwork.apply_preset(preset)
    try:
        yield
    finally:
        for name, value in kept.items():
            setattr(LycorisNetwork, name, value)
