"""The format of diffusers and PEFT: `pytorch_lora_weights.safetensors`, our default.

`<component>.<module>.<parameter>`; the change of a weight is (alpha / rank) up @ down, with alpha =
rank unless the file's metadata says otherwise. Learned tokens stand beside it as A1111 bundles
them: `bundle_emb.<token>.string_to_param.*`.
"""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from scumble.adapters import ADAPTERS
from scumble.errors import UserError
from scumble.formats.assemble import ALPHA, Parts, tensor_names
from scumble.formats.bundle import TOKEN_PREFIX, add_token, bundled
from scumble.formats.container import Content
from scumble.formats.key_names import KeyNames
from scumble.formats.peft_patterns import LayerTable
from scumble.formats.weights import AdapterWeights, LearnedToken, ModuleWeights

CONFIG_KEY = "lora_adapter_metadata"
"""Metadata entry in which diffusers keeps ranks and alphas, as JSON with flat keys."""

BARE_PREFIX = "base_model.model."
"""What PEFT's own save_pretrained puts before every key; it names no component."""

LORA_SPELLINGS = {
    "lora_down.weight": ("lora.down.weight", "lora_A.weight", "lora_linear_layer.down.weight"),
    "lora_up.weight": ("lora.up.weight", "lora_B.weight", "lora_linear_layer.up.weight"),
    "dora_scale": ("lora_magnitude_vector",) * 3,
}
"""Tensor name of the types below -> its spellings here: attention of the denoiser, PEFT's own,
attention of text encoders."""

SPELLED = ("lora", "dora")
"""Adapter types that PEFT describes by settings; others keep their tensors' own names, and alpha
among them."""

LENGTHS = ("lora_magnitude_vector", "lora_magnitude_vector.weight")
"""What PEFT calls DoRA's lengths in files, and in a live model: transformers, which loads what is
for text encoders, knows the latter alone."""

BASE_CHANGING = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Ways to start by which PEFT takes parts out of the base's own weights and into the adapter."""

PATTERNS = ("rank_pattern", "alpha_pattern")
"""Tables among PEFT's settings."""

ATTENTION = re.compile(r"\.(to_q|to_k|to_v|to_out\.0|[qkv]_proj|out_proj)$")


def recognises(content: Content, key_names: KeyNames) -> bool:
    """Whether a file is of this format: a key starts as one of its own."""
    starts = (*(f"{name}." for name in key_names.components), BARE_PREFIX, TOKEN_PREFIX)
    return any(key.startswith(starts) for key in content.tensors)


def has_settings_beside(content: Content) -> bool:
    """Whether a file is one of PEFT's own, which say in a file beside them what they mean."""
    return any(key.startswith(BARE_PREFIX) for key in content.tensors)


def read(content: Content, key_names: KeyNames) -> AdapterWeights:
    """Read a file in any spelling that diffusers and PEFT have used.

    Raises:
        UserError: damaged settings, a DoRA without its magnitudes, or an adapter of a base that
            PEFT had changed.
    """
    config = _configuration(content, key_names)
    _require_same_base(config)
    parts = Parts()
    tokens: dict[str, LearnedToken] = {}
    for key, tensor in content.tensors.items():
        if key.startswith(TOKEN_PREFIX):
            add_token(tokens, parts, key, tensor, key_names)
            continue
        component, rest = _component(key, key_names)
        module, name = _split(rest)
        if not component:
            parts.leave(key, f"names none of the components {', '.join(key_names.components)}")
        elif not name:
            parts.leave(key, "is not a tensor of any known adapter type")
        else:
            tensor = _from_peft(tensor) if key.endswith(LENGTHS) else tensor
            parts.add(component, key_names.to_file(component, module), name, key, tensor)
    components = parts.modules(
        lambda component, module, rank: _alpha(config.get(component, {}), module, rank)
    )
    for component, modules in components.items():
        for module, entry in modules.items():
            _settle(entry, config.get(component, {}), module)
    kept = {k: v for k, v in content.metadata.items() if k != CONFIG_KEY}
    return AdapterWeights(components, kept, tokens, parts.left_out)


def write(weights: AdapterWeights, key_names: KeyNames) -> Content:
    """Lay out a file that unmodified diffusers reads completely.

    LoRA on attention alone is spelled as diffusers' scripts spell it. One that reaches further is
    spelled as PEFT does, because diffusers' converter loses the attention part of the other form.
    For a text encoder it knows no other than these two. It refuses a file with learned tokens, and
    adapter types but LoRA and DoRA.

    Raises:
        UserError: a DoRA in a form that PEFT does not have.
    """
    tensors = bundled(weights.tokens, key_names)
    config: dict[str, Any] = {}
    # diffusers takes settings of one component for settings of all: describe every one, or none.
    describe = any(_needs_settings(modules) for modules in weights.components.values())
    for component, modules in weights.components.items():
        is_denoiser = component == key_names.components[0]
        attention = 0 if is_denoiser else 2
        spelling = attention if all(ATTENTION.search(path) for path in modules) else 1
        described = {m: e for m, e in modules.items() if e.type in SPELLED}
        for module, entry in modules.items():
            for name, tensor in _laid_out(entry, module, spelling):
                name = LENGTHS[1] if name == LENGTHS[0] and not is_denoiser else name
                tensors[f"{component}.{module}.{name}"] = tensor
        if len({entry.type for entry in described.values()}) > 1:
            raise UserError(
                f"some layers of the {component} are LoRA and some DoRA, which PEFT cannot mix",
                "The format 'kohya' holds them.",
            )
        if describe and described:
            config |= _describe(component, described, key_names)
    metadata = dict(weights.metadata)
    if config:
        metadata[CONFIG_KEY] = json.dumps(config, sort_keys=True)
    return Content(tensors, metadata)


def _laid_out(entry: ModuleWeights, module: str, spelling: int) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a layer as the file spells and shapes them."""
    names = ADAPTERS[entry.type].file_names
    for parameter, tensor in entry.tensors.items():
        name = names[parameter]
        if entry.type not in SPELLED or name not in LORA_SPELLINGS:
            yield name, tensor
            continue
        spelled = LORA_SPELLINGS[name][spelling]
        if spelled in LENGTHS:
            outputs = entry.tensors["up"].shape[0]
            tensor = _to_peft(tensor, outputs, module)
        yield spelled, tensor
    if entry.type not in SPELLED and (ADAPTERS[entry.type].has_rank or entry.alpha != entry.rank):
        rounded = torch.tensor(entry.alpha, dtype=torch.float32)
        exact = torch.tensor(entry.alpha, dtype=torch.float64)
        yield ALPHA, rounded if float(rounded) == entry.alpha else exact


def _to_peft(lengths: Tensor, outputs: int, module: str) -> Tensor:
    """Lengths (O, 1) as (O,), and those of a convolution (O, 1, 1, 1) as (1, O, 1, 1)."""
    if lengths.shape[:2] != (outputs, 1):
        raise UserError(
            f"the DoRA of '{module}' has a length for each input, and PEFT's for each output",
            "The format 'kohya' holds it.",
        )
    return lengths[:, 0] if lengths.ndim == 2 else lengths.transpose(0, 1)


def _from_peft(lengths: Tensor) -> Tensor:
    """The opposite of `_to_peft`."""
    if lengths.ndim == 1:
        return lengths[:, None]
    return lengths.transpose(0, 1) if lengths.ndim == 4 else lengths


def _settle(entry: ModuleWeights, config: Mapping[str, Any], module: str) -> None:
    """Make sure that an entry means by itself what PEFT's settings say of it."""
    if config.get("use_dora") and entry.type == "lora":
        raise UserError(f"'{module}' is a DoRA without its magnitudes")
    if config.get("peft_type") == "LOKR" and entry.tensors.keys() == {"w1", "w2"}:
        # PEFT scales two whole factors too, whose scale is 1 everywhere else.
        rank = _pattern(config, "rank_pattern", module, config.get("r", 1))
        if rank < 1:
            raise UserError(f"the adapter settings are damaged (rank {rank:g})")
        entry.tensors["w1"] = entry.tensors["w1"] * (entry.alpha / rank)


def _component(key: str, key_names: KeyNames) -> tuple[str, str]:
    for component in key_names.components:
        if key.startswith(component + "."):
            return component, key.removeprefix(component + ".")
    if key.startswith(BARE_PREFIX):
        return key_names.components[0], key.removeprefix(BARE_PREFIX)
    return "", key


def _split(rest: str) -> tuple[str, str]:
    """Split "<module>.<tensor>" into module and the tensor's name in the adapter types."""
    names = {spelling: name for name, group in LORA_SPELLINGS.items() for spelling in group}
    names |= dict.fromkeys(LENGTHS, "dora_scale") | tensor_names()
    # The longest first: "weight" alone is a name as well.
    for spelling, name in sorted(names.items(), key=lambda item: -len(item[0])):
        if rest.endswith("." + spelling):
            return rest.removesuffix("." + spelling), name
    return rest, ""


def _configuration(content: Content, key_names: KeyNames) -> dict[str, dict[str, Any]]:
    """Ranks and alphas by component, from the metadata or PEFT's settings beside its own file."""
    metadata = content.metadata
    config: dict[str, dict[str, Any]] = {}
    with _refusing_damage():
        if CONFIG_KEY in metadata:
            for key, value in json.loads(metadata[CONFIG_KEY]).items():
                component, _, name = key.partition(".")
                config.setdefault(component, {})[name] = value
        elif content.settings:
            config[key_names.components[0]] = dict(json.loads(content.settings))
        for settings in config.values():
            for name in PATTERNS:
                settings[name] = LayerTable(settings.get(name) or {})
    return config


def _require_same_base(config: Mapping[str, Mapping[str, Any]]) -> None:
    for settings in config.values():
        start = str(settings.get("init_lora_weights", "")).lower()
        if start.startswith(BASE_CHANGING):
            raise UserError(
                f"it started as '{start}', for which PEFT changed the base: on the base as it is, "
                "its tensors mean something else",
                "PEFT makes a plain LoRA of it: save_pretrained(folder, "
                "path_initial_model_for_weight_conversion=the adapter as it was before training).",
            )


def _alpha(config: Mapping[str, Any], module: str, rank: int) -> float:
    given = config.get("lora_alpha", config.get("alpha", rank))
    # rank-stabilised LoRA scales by alpha / sqrt(rank) (arXiv:2312.03732).
    stabilised = rank**0.5 if config.get("use_rslora") else 1.0
    return _pattern(config, "alpha_pattern", module, given) * stabilised


def _pattern(config: Mapping[str, Any], name: str, module: str, otherwise: Any) -> float:
    """What one of PEFT's tables says of a module."""
    table = config.get(name)
    with _refusing_damage():
        found = None if table is None else table.of(module)
        return float(otherwise) if found is None else found


@contextmanager
def _refusing_damage() -> Iterator[None]:
    try:
        yield
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise UserError(f"the adapter settings are damaged ({error})") from error


def _needs_settings(modules: Mapping[str, ModuleWeights]) -> bool:
    """Whether alpha is not rank somewhere, or ranks differ, which older diffusers cannot guess."""
    entries = [entry for entry in modules.values() if entry.type in SPELLED]
    return len({entry.rank for entry in entries} | {entry.alpha for entry in entries}) > 1


def _describe(
    component: str, modules: Mapping[str, ModuleWeights], key_names: KeyNames
) -> dict[str, Any]:
    """The flat configuration of one component, with PEFT's field names."""
    level = key_names.levels.get(component, "")
    by_name = {path.removeprefix(level): entry for path, entry in modules.items()}
    # Equal adapters must give equal bytes, in whatever order their layers come.
    first = by_name[min(by_name)]
    config = {
        "r": first.rank,
        "lora_alpha": first.alpha,
        "target_modules": sorted(by_name),
        "rank_pattern": {p: e.rank for p, e in by_name.items() if e.rank != first.rank},
        "alpha_pattern": {p: e.alpha for p, e in by_name.items() if e.alpha != first.alpha},
    }
    if first.type == "dora":
        config["use_dora"] = True
    return {f"{component}.{key}": value for key, value in config.items()}
