"""The names that original checkpoints give to the tensors of Stable Diffusion 1.x and 2.x.

Such a file holds the whole model under the names of the program that trained it; diffusers has
names of its own. One table, laid out here block by block, answers for single tensors in both
directions, so that files can be edited without building a model.
"""

from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Literal, NamedTuple

from scumble.errors import UserError

Version = Literal["sd1", "sd2"]
VERSIONS: tuple[Version, ...] = ("sd2", "sd1")
"""The deeper text encoder first: the other's layers are a part of it."""

Pairs = Iterator[tuple[str, str]]
"""Modules: diffusers' name, the original's name."""

PREFIXES = {
    "unet": "model.diffusion_model.",
    "vae": "first_stage_model.",
    "text_encoder": "cond_stage_model.",
}
"""Component -> beginning of its keys in an original checkpoint."""

LEVELS, LAYERS = 4, 2
"""Resolutions of UNet and VAE, and layers of each on the way down; one more on the way up."""

TEXT_LAYERS: dict[Version, int] = {"sd1": 12, "sd2": 23}
"""Layers of the text encoder that diffusers has. Files of version 2 hold a 24th, never used."""

TEXT_LEVEL = "text_model."
"""A level that names of the text encoder have in files and, from transformers 5 on, not live."""

POSITIONS = "text_model.embeddings.position_ids"
"""0, 1, 2, ...: a buffer in files of older programs, which every program counts for itself."""

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
TRANSFORMER_BLOCK = (
    *("norm1", "norm2", "norm3", "ff.net.0.proj", "ff.net.2"),
    *(f"attn{n}.{name}" for n in (1, 2) for name in ("to_q", "to_k", "to_v", "to_out.0")),
)
TRANSFORMER = {name: name for name in ("norm", "proj_in", "proj_out")}
TRANSFORMER |= {f"transformer_blocks.0.{n}": f"transformer_blocks.0.{n}" for n in TRANSFORMER_BLOCK}
"""Modules of the UNet's attention, which have the same names in both."""

VAE_ENDS = {"conv_in": "conv_in", "conv_norm_out": "norm_out", "conv_out": "conv_out"}
VAE_RESNET = {name: name for name in ("norm1", "conv1", "norm2", "conv2")}
VAE_RESNET |= {"conv_shortcut": "nin_shortcut"}
VAE_ATTENTION = {f"to_{name}": name for name in "qkv"}
VAE_ATTENTION |= {"group_norm": "norm", "to_out.0": "proj_out"}
EARLY_VAE_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""What files of early versions of diffusers call these modules -> their name now."""

CLIP_LAYER = (
    *("layer_norm1", "layer_norm2", "mlp.fc1", "mlp.fc2"),
    *(f"self_attn.{name}_proj" for name in ("q", "k", "v", "out")),
)
OPEN_CLIP_LAYER = {"layer_norm1": "ln_1", "layer_norm2": "ln_2"}
OPEN_CLIP_LAYER |= {"mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
OPEN_CLIP_LAYER |= {"self_attn.out_proj": "attn.out_proj"}


class Original(NamedTuple):
    """Where an original checkpoint holds a tensor of diffusers.

    Args:
        key: its name there.
        block: None for a tensor of its own; 0, 1 or 2 where the original is three tensors of
            diffusers on top of each other: this one is that third of its rows.
        is_pointwise: (out, in) in diffusers is a 1x1 convolution, (out, in, 1, 1), there.
    """

    key: str
    block: int | None = None
    is_pointwise: bool = False

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape there of a tensor, or of the third that it is, from its shape in diffusers."""
        return (*shape, 1, 1) if self.is_pointwise and len(shape) == 2 else shape


class Place(NamedTuple):
    """What a tensor of an original checkpoint is in diffusers.

    Args:
        component: of the pipeline.
        keys: its name there, as files spell it; three where its rows are three tensors of a size.
        is_pointwise: (out, in, 1, 1) here is a linear layer, (out, in), there.
    """

    component: str
    keys: tuple[str, ...]
    is_pointwise: bool = False

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of each of its tensors in diffusers, from the original's shape."""
        if len(self.keys) > 1:
            return (shape[0] // len(self.keys), *shape[1:])
        return shape[:2] if self.is_pointwise and shape[2:] == (1, 1) else shape


def to_original(component: str, key: str, version: Version) -> Original | None:
    """Find where an original checkpoint holds a tensor of "unet", "vae" or "text_encoder".

    Args:
        component: the tensor's.
        key: diffusers' name, as live models spell it or files old and new.
        version: of the checkpoint.

    Returns:
        The place; None for the text encoder's position numbers, where the original has none.

    Raises:
        UserError: this version has no such tensor.
    """
    key = _as_in_files(component, key)
    found = _table(component, version).get(key)
    if found is None and key != POSITIONS:
        raise UserError(
            f"the {component} of Stable Diffusion {version[2:]} has no tensor '{key}'",
            "The model is another family's, or was changed in a way that one file cannot hold.",
        )
    return found


def from_original(key: str) -> Place | None:
    """Find what a tensor of an original checkpoint, of either version, is in diffusers.

    Returns:
        The place; None for what diffusers does not have: averaged weights, the training schedule,
        the last layer and the projection of version 2's text encoder.
    """
    return _places().get(key)


def words_of(component: str) -> tuple[str, ...]:
    """Every part of the names of a component's modules in diffusers that is no number."""
    names = _table(component, "sd1")
    parts = {part for name in names for part in name.split(".")[:-1] if not part.isdecimal()}
    return tuple(sorted(parts))


def version_of(keys: Mapping[str, Iterable[str]]) -> Version:
    """Tell a model's version, having seen that nothing of it is missing.

    Args:
        keys: component -> diffusers' names of all its tensors; the text encoder must be there.

    Raises:
        UserError: it is neither version, such as a smaller model made from one of them.
    """
    names = {part: {_as_in_files(part, key) for key in given} for part, given in keys.items()}
    for version in VERSIONS:
        lacking = [
            (part, name)
            for part in keys
            for name in _table(part, version)
            if name.endswith(".weight") and "shortcut" not in name and name not in names[part]
        ]
        if not lacking:
            return version
    part, name = lacking[0]
    raise UserError(
        f"the {part} lacks '{name}', which Stable Diffusion 1.x and 2.x have",
        "Only these can be one file: keep the folder.",
    )


def _as_in_files(component: str, key: str) -> str:
    if component == "text_encoder":
        return key if key.startswith(TEXT_LEVEL) else TEXT_LEVEL + key
    if component == "vae":
        start, middle, end = key.partition(".attentions.0.")
        name, _, leaf = end.rpartition(".")
        return f"{start}{middle}{EARLY_VAE_ATTENTION.get(name, name)}.{leaf}" if middle else key
    return key


@cache
def _places() -> Mapping[str, Place]:
    places: dict[str, Place] = {}
    for version in VERSIONS:
        for component in PREFIXES:
            for name, original in _table(component, version).items():
                known = places.get(original.key, Place(component, (), original.is_pointwise))
                # Blocks come in their order; a component that both versions share comes twice.
                if name not in known.keys:
                    places[original.key] = known._replace(keys=(*known.keys, name))
    return places


@cache
def _table(component: str, version: Version) -> Mapping[str, Original]:
    """Diffusers' name -> place in the original, of every tensor that the component may have."""
    if component == "unet":
        table = _parameters(_unet())
    elif component == "vae":
        table = _parameters(_vae())
        for name in table:
            if ".attentions." in name and not name.endswith(("group_norm.weight", ".bias")):
                table[name] = table[name]._replace(is_pointwise=True)
    else:
        table = _clip() if version == "sd1" else _open_clip()
    return {n: place._replace(key=PREFIXES[component] + place.key) for n, place in table.items()}


def _parameters(modules: Pairs) -> dict[str, Original]:
    """A weight and a bias for each module; one that a module lacks is never asked for."""
    return {
        f"{module}.{leaf}": Original(f"{original}.{leaf}")
        for module, original in modules
        for leaf in ("weight", "bias")
    }


def _inside(module: str, original: str, names: Mapping[str, str]) -> Pairs:
    for name, original_name in names.items():
        yield f"{module}.{name}", f"{original}.{original_name}"


def _unet() -> Pairs:
    """The original numbers blocks through: each level takes one more number than it has layers."""
    yield "time_embedding.linear_1", "time_embed.0"
    yield "time_embedding.linear_2", "time_embed.2"
    yield "conv_in", "input_blocks.0.0"
    for level in range(LEVELS):
        first = (LAYERS + 1) * level
        down, up = f"down_blocks.{level}", f"up_blocks.{level}"
        # The lowest level has no attention: the last on the way down, the first on the way up.
        for layer in range(LAYERS):
            block = f"input_blocks.{first + layer + 1}"
            yield from _inside(f"{down}.resnets.{layer}", f"{block}.0", RESNET)
            if level < LEVELS - 1:
                yield from _inside(f"{down}.attentions.{layer}", f"{block}.1", TRANSFORMER)
        for layer in range(LAYERS + 1):
            block = f"output_blocks.{first + layer}"
            yield from _inside(f"{up}.resnets.{layer}", f"{block}.0", RESNET)
            if level > 0:
                yield from _inside(f"{up}.attentions.{layer}", f"{block}.1", TRANSFORMER)
        if level < LEVELS - 1:
            yield f"{down}.downsamplers.0.conv", f"input_blocks.{first + LAYERS + 1}.0.op"
            last = f"output_blocks.{first + LAYERS}"
            yield f"{up}.upsamplers.0.conv", f"{last}.{2 if level > 0 else 1}.conv"
    yield from _inside("mid_block.resnets.0", "middle_block.0", RESNET)
    yield from _inside("mid_block.attentions.0", "middle_block.1", TRANSFORMER)
    yield from _inside("mid_block.resnets.1", "middle_block.2", RESNET)
    yield from (("conv_norm_out", "out.0"), ("conv_out", "out.2"))


def _vae() -> Pairs:
    """The original counts the decoder's levels from the picture inwards, as the encoder's."""
    for level in range(LEVELS):
        down, up = f"encoder.down_blocks.{level}", f"decoder.up_blocks.{level}"
        into, out_of = f"encoder.down.{level}", f"decoder.up.{LEVELS - 1 - level}"
        for layer in range(LAYERS):
            yield from _inside(f"{down}.resnets.{layer}", f"{into}.block.{layer}", VAE_RESNET)
        for layer in range(LAYERS + 1):
            yield from _inside(f"{up}.resnets.{layer}", f"{out_of}.block.{layer}", VAE_RESNET)
        if level < LEVELS - 1:
            yield f"{down}.downsamplers.0.conv", f"{into}.downsample.conv"
            yield f"{up}.upsamplers.0.conv", f"{out_of}.upsample.conv"
    for half in ("encoder", "decoder"):
        middle = f"{half}.mid_block"
        yield from _inside(half, half, VAE_ENDS)
        yield from _inside(f"{middle}.resnets.0", f"{half}.mid.block_1", VAE_RESNET)
        yield from _inside(f"{middle}.attentions.0", f"{half}.mid.attn_1", VAE_ATTENTION)
        yield from _inside(f"{middle}.resnets.1", f"{half}.mid.block_2", VAE_RESNET)
    yield from ((name, name) for name in ("quant_conv", "post_quant_conv"))


def _clip() -> dict[str, Original]:
    """Version 1 holds OpenAI's encoder under the names of transformers."""
    names = [
        *("embeddings.token_embedding", "embeddings.position_embedding", "final_layer_norm"),
        *(f"encoder.layers.{n}.{name}" for n in range(TEXT_LAYERS["sd1"]) for name in CLIP_LAYER),
    ]
    table = _parameters((TEXT_LEVEL + n, f"transformer.{TEXT_LEVEL}{n}") for n in names)
    return table | {POSITIONS: Original(f"transformer.{POSITIONS}")}


def _open_clip() -> dict[str, Original]:
    """Version 2 holds OpenCLIP's encoder, in which one matrix makes queries, keys and values."""
    modules = [(f"{TEXT_LEVEL}final_layer_norm", "model.ln_final")]
    table = {
        "text_model.embeddings.token_embedding.weight": Original("model.token_embedding.weight"),
        "text_model.embeddings.position_embedding.weight": Original("model.positional_embedding"),
    }
    for number in range(TEXT_LAYERS["sd2"]):
        layer = f"{TEXT_LEVEL}encoder.layers.{number}"
        block = f"model.transformer.resblocks.{number}"
        modules += _inside(layer, block, OPEN_CLIP_LAYER)
        table |= {
            f"{layer}.self_attn.{name}_proj.{leaf}": Original(f"{block}.attn.in_proj_{leaf}", row)
            for row, name in enumerate("qkv")
            for leaf in ("weight", "bias")
        }
    return table | _parameters(iter(modules))
