"""The files that others write, for the matrix of formats.

Those of PEFT, diffusers and LyCORIS are written by them, and the picture is drawn by the pipeline
that they were written from. Those of programs that are not here are laid out as they lay them out.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lycoris
import matrix_base as base
import torch
from diffusers import StableDiffusionPipeline
from matrix_ours import BEYOND, RANK, Made, Row, lora, numbered, word
from peft import IA3Config, LoHaConfig, LoKrConfig, LoraConfig, PeftConfig, get_peft_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn

from scumble.formats import AdapterWeights


def moved(model: nn.Module, mark: str = "") -> None:
    """Change every parameter whose name has the mark, as a training would."""
    torch.manual_seed(2)
    for name, parameter in model.named_parameters():
        if mark in name:
            is_length = "magnitude" in name or "dora_scale" in name
            size = parameter.detach() if is_length else 1
            parameter.data += 0.2 * size * torch.randn_like(parameter)


def by_peft(holds: str, config: PeftConfig, targets: Sequence[str] = BEYOND) -> Row:
    def make(folder: Path) -> Made:
        pipeline = base.fresh()
        config.target_modules = list(targets)
        pipeline.unet = get_peft_model(pipeline.unet, config)
        moved(pipeline.unet, ".default")
        pipeline.unet.save_pretrained(folder)
        return Made(folder / "adapter_model.safetensors", "tiny", base.draw(pipeline))

    return Row("PEFT", holds, make)


def by_diffusers(holds: str, *components: str, **options: Any) -> Row:
    def make(folder: Path) -> Made:
        pipeline = base.fresh()
        saved: dict[str, Any] = {}
        for component in components:
            model = getattr(pipeline, component)
            targets = BEYOND if component == "unet" else ["q_proj", "v_proj"]
            model.add_adapter(LoraConfig(r=RANK, target_modules=targets, **options))
            moved(model, ".default")
            saved[f"{component}_lora_layers"] = get_peft_model_state_dict(model)
            saved[f"{component}_lora_adapter_metadata"] = model.peft_config["default"].to_dict()
        StableDiffusionPipeline.save_lora_weights(folder, **saved)
        return Made(folder / "pytorch_lora_weights.safetensors", "tiny", base.draw(pipeline))

    return Row("diffusers", holds, make)


def by_lycoris(holds: str, names: Sequence[str] = BEYOND, **options: Any) -> Row:
    def make(folder: Path) -> Made:
        pipeline = base.fresh()
        options.update(linear_dim=RANK, linear_alpha=2.0)
        with base.lycoris_preset(target_module=[], target_name=list(names)):
            network = lycoris.create_lycoris(pipeline.unet, 1.0, **options)
        network.apply_to()
        moved(network)
        tensors = {key: tensor.contiguous() for key, tensor in network.state_dict().items()}
        save_file(tensors, folder / "made.safetensors")
        return Made(folder / "made.safetensors", "tiny", base.draw(pipeline))

    return Row("LyCORIS", holds, make)


def laid_out(
    source: str,
    holds: str,
    name: str,
    weights: Callable[[], AdapterWeights],
    content: Callable[[AdapterWeights], Any],
    *,
    on: str = "tiny",
    has_layers: bool = True,
) -> Row:
    def make(folder: Path) -> Made:
        made, path = weights(), folder / name
        save = save_file if path.suffix == ".safetensors" else torch.save
        save(content(made), path)
        return Made(path, on, base.by_hand(made, on))

    return Row(source, holds, make, has_layers)


def processors(weights: AdapterWeights) -> dict[str, Tensor]:
    """As diffusers 0.12 to 0.14 saved them: no component, and `to_out` without its number."""
    return {
        f"{path.removesuffix('.0').replace('.to_', '.processor.to_')}_lora.{side}.weight": tensor
        for path, entry in weights.components["unet"].items()
        for side, tensor in entry.tensors.items()
    }


def pairs(weights: AdapterWeights) -> list[Tensor]:
    """As cloneofsimo's scripts saved one component: up and down by turns, without names."""
    (modules,) = weights.components.values()
    return [entry.tensors[side] for entry in modules.values() for side in ("up", "down")]


def vectors(weights: AdapterWeights) -> Tensor:
    return weights.tokens[base.WORD].vectors["text_encoder"]


def of_a1111(weights: AdapterWeights) -> dict[str, Any]:
    return {
        "string_to_token": {"*": 265},
        "string_to_param": {"*": nn.Parameter(vectors(weights))},
        "name": base.WORD,
        "step": 500,
        "sd_checkpoint": None,
        "sd_checkpoint_name": None,
    }


peft_lora = partial(LoraConfig, r=RANK, lora_alpha=2)
both = ("unet", "text_encoder")
words = partial(laid_out, weights=word, has_layers=False)

OTHERS = [
    by_peft("LoRA", peft_lora()),
    by_peft("LoRA, rank-stabilised", peft_lora(use_rslora=True)),
    by_peft("LoRA with biases", peft_lora(lora_bias=True)),
    by_peft("PiSSA, not converted", peft_lora(init_lora_weights="pissa"), base.ATTENTION),
    by_peft("DoRA", peft_lora(use_dora=True)),
    by_peft("LoHa", LoHaConfig(r=RANK, alpha=2)),
    by_peft("LoKr", LoKrConfig(r=RANK, alpha=2)),
    by_peft("IA3", IA3Config(feedforward_modules=[])),
    by_diffusers("LoRA of both models", *both, lora_alpha=2),
    by_diffusers("DoRA of the denoiser", "unet", lora_alpha=2, use_dora=True),
    by_diffusers("DoRA of both models", *both, lora_alpha=2, use_dora=True),
    by_lycoris("LoRA"),
    by_lycoris("LoRA, convolutions in Tucker form", base.KERNELS, use_tucker=True),
    by_lycoris("DoRA", dora_wd=True),
    by_lycoris("DoRA with lengths of inputs", dora_wd=True, wd_on_output=False),
    by_lycoris("LoHa", algo="loha"),
    by_lycoris("LoKr", algo="lokr"),
    by_lycoris("LoKr, convolutions in Tucker form", base.KERNELS, algo="lokr", use_tucker=True),
    by_lycoris("IA3", algo="ia3"),
    by_lycoris("differences", [*BEYOND, *base.NORMS], algo="full", train_norm=True),
    by_lycoris("OFT", algo="diag-oft"),
    by_lycoris("GLoRA", algo="glora"),
    laid_out(
        "diffusers 0.12 to 0.14",
        "LoRA of attention (`.bin`)",
        "pytorch_lora_weights.bin",
        lambda: lora(base.ATTENTION, alphas=(RANK,)),
        processors,
    ),
    laid_out("cloneofsimo", "LoRA (`.pt`)", "made.pt", numbered, pairs, on="narrow"),
    words(
        "diffusers' script",
        "a word (`.bin`)",
        "learned_embeds.bin",
        content=lambda made: {base.WORD: vectors(made)},
    ),
    words("A1111", "a word (`.pt`)", "made.pt", content=of_a1111),
    words(
        "other trainers",
        "a word, as `emb_params`",
        f"{base.WORD}.safetensors",
        content=lambda made: {"emb_params": vectors(made)},
    ),
]
