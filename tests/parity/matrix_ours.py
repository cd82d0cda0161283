"""The files that we write, for the matrix of formats: each kind, and the picture it should give."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import matrix_base as base
import numpy as np
import torch
from torch import nn

import scumble
from scumble.adapters import ADAPTERS, LayerSpec
from scumble.formats import AdapterWeights, LearnedToken, ModuleWeights

BEYOND = [*base.ATTENTION, *base.CONVOLUTIONS]
RANK = 4


class Made(NamedTuple):
    """A file, the base that it is for, and the picture that it should give there."""

    path: Path
    base: str
    picture: np.ndarray


class Row(NamedTuple):
    """A kind of file.

    Args:
        source: its format, or the program that wrote it.
        holds: what is in it.
        make: writes one into an empty folder.
        has_layers: whether there is more in it than words.
    """

    source: str
    holds: str
    make: Callable[[Path], Made]
    has_layers: bool = True


def entry(layer: nn.Module, kind: str, alpha: float) -> ModuleWeights:
    """Random tensors of an adapter type for a layer, as files hold them.

    Args:
        layer: that it is for.
        kind: name of the type; "lora, Tucker" and "dora, of inputs" are forms that are only read.
        alpha: where the type has one.
    """
    type_name = kind.partition(",")[0]
    outputs, *rest = layer.weight.shape
    like = {
        "lora, Tucker": {"mid": ()},
        "difference": {"diff": ()},
        "norm_difference": {"diff": (), "diff_b": ()},
        "ia3": {"weight": (1, outputs, 1, 1) if len(rest) == 3 else (outputs,)},
    }.get(kind, {})
    rank, alpha = (RANK, alpha) if ADAPTERS[type_name].has_rank else (1, 1.0)
    adapter = ADAPTERS[type_name](LayerSpec.of(layer), rank, alpha, like)
    for name, parameter in adapter.named_parameters():
        nn.init.normal_(parameter, std=0.05 if name.startswith("diff") else 0.2)
    if kind == "ia3":
        adapter.on_input = torch.tensor(0)
    tensors = adapter.tensors()
    if type_name == "dora":
        axis = int(kind == "dora, of inputs")
        others = [a for a in range(layer.weight.ndim) if a != axis]
        lengths = torch.linalg.vector_norm(layer.weight.detach(), dim=others, keepdim=True)
        tensors["magnitude"] = lengths * (1 + 0.3 * torch.randn_like(lengths))
    return ModuleWeights(type_name, tensors, adapter.file_alpha)


def adapter(
    kind: str,
    unet: Sequence[str] = BEYOND,
    text_encoder: Sequence[str] = (),
    *,
    alphas: Sequence[float] = (2.0,),
    on: str = "tiny",
) -> AdapterWeights:
    """Random weights of one type; the layers take the alphas by turns."""
    torch.manual_seed(0)
    pipeline = base.untouched(on)
    components = {
        component: {
            path: entry(
                base.layer_of(pipeline, component, path), kind, alphas[number % len(alphas)]
            )
            for number, path in enumerate(paths)
        }
        for component, paths in (("unet", unet), ("text_encoder", text_encoder))
        if paths
    }
    return AdapterWeights(components, {"base_model": "scumble-tiny"})


def numbered(text_encoder: Sequence[str] = ()) -> AdapterWeights:
    """LoRA of all layers that files without names count, in their order; alpha is rank."""
    attn1, attn2 = ([f"{name}.{part}" for part in base.PARTS] for name in ("attn1", "attn2"))
    layers = [*attn1, "ff.net.0.proj", *attn2]
    stems = [
        stem
        for blocks in ("down_blocks", "up_blocks", "mid_block")
        for stem, _ in base.untouched("narrow").unet.named_modules()
        if stem.startswith(blocks) and stem.endswith(".transformer_blocks.0")
    ]
    paths = [f"{stem}.{layer}" for stem in stems for layer in layers]
    return adapter("lora", paths, text_encoder, alphas=(RANK,), on="narrow")


def word() -> AdapterWeights:
    torch.manual_seed(1)
    return AdapterWeights({}, {}, {base.WORD: LearnedToken({"text_encoder": torch.randn(2, 128)})})


def with_word() -> AdapterWeights:
    layers = adapter("lora", base.ATTENTION)
    return AdapterWeights(layers.components, layers.metadata, word().tokens)


def written(
    format: str, holds: str, weights: Callable[[], AdapterWeights], on: str = "tiny"
) -> Row:
    def make(folder: Path) -> Made:
        made = weights()
        path = scumble.write_adapter(made, folder / "made.safetensors", format)
        return Made(path, on, base.by_hand(made, on))

    return Row(f"`{format}`", holds, make, has_layers=format != "embedding")


peft = partial(written, "peft")
kohya = partial(written, "kohya")
lora = partial(adapter, "lora")
MANY = (8.0, 1.0, 2.5)

OURS = [
    peft("LoRA of attention", lambda: lora(base.ATTENTION, alphas=(RANK,))),
    peft("LoRA of attention and text encoder", lambda: lora(base.ATTENTION, base.TEXT)),
    peft("LoRA of attention and convolutions", lora),
    peft("LoRA, alphas differ", lambda: lora(alphas=MANY)),
    peft("DoRA", lambda: adapter("dora")),
    peft("LoHa", lambda: adapter("loha")),
    peft("LoKr", lambda: adapter("lokr")),
    peft("LoRA and a word", with_word),
    kohya("LoRA of attention", lambda: lora(base.ATTENTION)),
    kohya("LoRA of attention and text encoder", lambda: lora(base.ATTENTION, base.TEXT)),
    kohya("LoRA of attention and convolutions", lora),
    kohya("LoRA, alphas differ", lambda: lora(alphas=MANY)),
    kohya("LoRA, convolutions in Tucker form", lambda: adapter("lora, Tucker", base.KERNELS)),
    kohya("DoRA", lambda: adapter("dora")),
    kohya("DoRA with lengths of inputs", lambda: adapter("dora, of inputs")),
    kohya("LoHa", lambda: adapter("loha")),
    kohya("LoKr", lambda: adapter("lokr")),
    kohya("IA3", lambda: adapter("ia3")),
    kohya("differences of weights", lambda: adapter("difference")),
    kohya("differences of norms", lambda: adapter("norm_difference", base.NORMS)),
    kohya("LoRA and a word", with_word),
    written(
        "attn_procs",
        "LoRA of attention and text encoder",
        lambda: lora(base.ATTENTION, base.TEXT, alphas=(RANK,)),
    ),
    written(
        "cloneofsimo",
        "LoRA of attention and text encoder",
        lambda: numbered(base.TEXT),
        on="narrow",
    ),
    written("embedding", "a word", word),
]
