"""The format of diffusers and PEFT: `pytorch_lora_weights.safetensors`, our default.

`<component>.<module>.<parameter>`; the change of a weight is (alpha / rank) up @ down, with alpha =
rank unless the file's metadata says otherwise. Learned tokens stand beside it as A1111 bundles
them: `bundle_emb.<token>.string_to_param.*`.
"""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scumble.adapters import ADAPTERS
from scumble.errors import UserError
from scumble.formats.container import DTYPES, container_bytes, read_container
from scumble.formats.key_names import KeyNames
from scumble.formats.weights import AdapterWeights, LearnedToken, ModuleWeights

CONFIG_KEY = "lora_adapter_metadata"
"""Metadata entry in which diffusers keeps ranks and alphas, as JSON with flat keys."""

BARE_PREFIX = "base_model.model."
"""What PEFT's own save_pretrained puts before every key; it names no component."""

LORA_SPELLINGS = {
    "lora_down.weight": ("lora.down.weight", "lora_A.weight", "lora_linear_layer.down.weight"),
    "lora_up.weight": ("lora.up.weight", "lora_B.weight", "lora_linear_layer.up.weight"),
}
"""Tensor name of an adapter type -> its spellings here: attention of the denoiser, PEFT's own,
attention of text encoders."""

TOKEN_PREFIX = "bundle_emb."
"""What A1111 puts before the vectors of a learned token inside an adapter file."""

ATTENTION = re.compile(r"\.(to_q|to_k|to_v|to_out\.0|[qkv]_proj|out_proj)$")


def recognises(
    shapes: Mapping[str, tuple[int, ...]],
    metadata: Mapping[str, str],  # noqa: ARG001
    key_names: KeyNames,
) -> bool:
    """Whether a file with these tensors is of this format: every key starts as one of its own."""
    starts = (*(f"{name}." for name in key_names.components), BARE_PREFIX, TOKEN_PREFIX)
    return all(key.startswith(starts) for key in shapes)


def read(path: Path, key_names: KeyNames) -> AdapterWeights:
    """Read a file in any spelling that diffusers and PEFT have used.

    Args:
        path: a `.safetensors` file.
        key_names: the family's names.

    Raises:
        UserError: a key that is no adapter tensor, naming it; or a file of another kind.
    """
    tensors, metadata = read_container(path)
    config = _configuration(path, metadata, key_names)
    found: dict[str, dict[str, dict[str, Tensor]]] = {}
    tokens: dict[str, LearnedToken] = {}
    for key, tensor in tensors.items():
        if key.startswith(TOKEN_PREFIX):
            token, encoder = _token(key, key_names)
            tokens.setdefault(token, LearnedToken({})).vectors[encoder] = tensor
            continue
        component, rest = _component(key, key_names)
        module, name = _split(rest, key)
        parts = found.setdefault(component, {}).setdefault(key_names.to_file(component, module), {})
        if name in parts:
            raise UserError(f"{path.name}: '{module}' has its {name} twice, in two spellings")
        if tensor.dtype not in DTYPES:
            raise UserError(f"{path.name}: '{key}' holds {tensor.dtype}, which is not supported")
        parts[name] = tensor
    components = {
        component: {
            module: _module_weights(module, parts, config.get(component, {}), path)
            for module, parts in modules.items()
        }
        for component, modules in found.items()
    }
    kept = {k: v for k, v in metadata.items() if k not in (CONFIG_KEY, "format")}
    return AdapterWeights(components, kept, tokens)


def write(weights: AdapterWeights, path: Path, key_names: KeyNames) -> None:
    """Write a file that unmodified diffusers reads completely.

    LoRA on attention alone is spelled as diffusers' scripts spell it. One that reaches further is
    spelled as PEFT does, because diffusers' converter loses the attention part of the other form.
    For a text encoder it knows no other than these two. It refuses a file with learned tokens.
    """
    tensors = {
        f"{TOKEN_PREFIX}{token}.{key_names.tokens[encoder]}": vectors
        for token, entry in weights.tokens.items()
        for encoder, vectors in entry.vectors.items()
    }
    config: dict[str, Any] = {}
    # diffusers takes settings of one component for settings of all: describe every one, or none.
    describe = any(_needs_settings(modules) for modules in weights.components.values())
    for component, modules in weights.components.items():
        attention = 0 if component == key_names.components[0] else 2
        spelling = attention if all(ATTENTION.search(path) for path in modules) else 1
        for module, entry in modules.items():
            stem = f"{component}.{module}"
            for parameter, tensor in entry.tensors.items():
                tensors[f"{stem}.{_spell(entry.type, parameter, spelling)}"] = tensor
            if entry.type != "lora":
                tensors[f"{stem}.alpha"] = torch.tensor(float(entry.alpha))
        lora = {m: e for m, e in modules.items() if e.type == "lora"}
        if describe and lora:
            config |= _describe(component, lora, key_names)
    metadata = dict(weights.metadata)
    if config:
        metadata[CONFIG_KEY] = json.dumps(config, sort_keys=True)
    path.write_bytes(container_bytes(tensors, metadata))


def _spell(type_name: str, parameter: str, spelling: int) -> str:
    name = ADAPTERS[type_name].file_names[parameter]
    return LORA_SPELLINGS[name][spelling] if name in LORA_SPELLINGS else name


def _component(key: str, key_names: KeyNames) -> tuple[str, str]:
    for component in key_names.components:
        if key.startswith(component + "."):
            return component, key.removeprefix(component + ".")
    if key.startswith(BARE_PREFIX):
        return key_names.components[0], key.removeprefix(BARE_PREFIX)
    raise UserError(
        f"the key '{key}' names none of the components {', '.join(key_names.components)}",
        "The file is of another format, or for another family of models.",
    )


def _token(key: str, key_names: KeyNames) -> tuple[str, str]:
    """Split the key of a learned token into the token, which may have dots, and its encoder."""
    rest = key.removeprefix(TOKEN_PREFIX)
    for encoder, spelling in key_names.tokens.items():
        token = rest.removesuffix(f".{spelling}")
        if token and token != rest:
            return token, encoder
    raise UserError(
        f"the key '{key}' is not a learned token of this family of models",
        f"Its end would be {' or '.join(key_names.tokens.values())}. Nothing was loaded.",
    )


def _split(rest: str, key: str) -> tuple[str, str]:
    """Split "<module>.<tensor>" into module and the tensor's name in the adapter types."""
    names = {spelling: name for name, group in LORA_SPELLINGS.items() for spelling in group}
    for adapter in ADAPTERS.values():
        names |= {name: name for name in adapter.file_names.values()}
    names["alpha"] = "alpha"
    for spelling, name in names.items():
        if rest.endswith("." + spelling):
            return rest.removesuffix("." + spelling), name
    raise UserError(
        f"the key '{key}' is not a tensor of any known adapter type ({', '.join(ADAPTERS)})",
        "Nothing was loaded.",
    )


def _module_weights(
    module: str, parts: Mapping[str, Tensor], config: Mapping[str, Any], path: Path
) -> ModuleWeights:
    """Tell the adapter type from the tensors that one layer has, and find its alpha."""
    type_name, parameters = _type_of(module, parts, path)
    if config.get("use_dora") and type_name == "lora":
        raise UserError(f"{path.name}: '{module}' is a DoRA without its magnitudes")
    rank = ADAPTERS[type_name].rank_of(parameters)
    if "alpha" not in parts:
        alpha = _alpha(config, module, rank, path)
    elif parts["alpha"].numel() == 1:
        alpha = float(parts["alpha"])
    else:
        raise UserError(f"{path.name}: the alpha of '{module}' is not one number")
    if not math.isfinite(alpha):
        raise UserError(f"{path.name}: the alpha of '{module}' is {alpha}")
    return ModuleWeights(type_name, parameters, alpha)


def _type_of(module: str, parts: Mapping[str, Tensor], path: Path) -> tuple[str, dict[str, Tensor]]:
    names = parts.keys() - {"alpha"}
    for type_name, adapter in ADAPTERS.items():
        parameters = {p: parts[name] for p, name in adapter.file_names.items() if name in parts}
        if len(parameters) == len(names) and adapter.is_complete(parameters.keys()):
            return type_name, parameters
    known = {name for adapter in ADAPTERS.values() for name in adapter.file_names.values()}
    lacking = sorted(known - names) if names else ["tensors"]
    raise UserError(f"{path.name}: '{module}' lacks its {' or '.join(lacking)}")


def _configuration(
    path: Path, metadata: Mapping[str, str], key_names: KeyNames
) -> dict[str, dict[str, Any]]:
    """Ranks and alphas by component, from the metadata or PEFT's adapter_config.json beside it."""
    beside = path.with_name("adapter_config.json")
    try:
        if CONFIG_KEY in metadata:
            flat = json.loads(metadata[CONFIG_KEY])
            return {
                component: {
                    key.removeprefix(component + "."): value
                    for key, value in flat.items()
                    if key.startswith(component + ".")
                }
                for component in key_names.components
            }
        if beside.is_file():
            return {key_names.components[0]: json.loads(beside.read_text("utf-8"))}
    except (ValueError, AttributeError) as error:
        raise UserError(f"the adapter settings in {path} are damaged ({error})") from error
    return {}


def _alpha(config: Mapping[str, Any], module: str, rank: int, path: Path) -> float:
    try:
        alpha = config.get("lora_alpha", rank)
        for pattern, value in (config.get("alpha_pattern") or {}).items():
            # PEFT's own rule: a regular expression for the end of the path, whole names only.
            if re.match(rf"(.*\.)?({pattern})$", module):
                alpha = value
                break
        # rank-stabilised LoRA scales by alpha / sqrt(rank) (arXiv:2312.03732).
        return float(alpha) * (rank**0.5 if config.get("use_rslora") else 1.0)
    except (ValueError, TypeError, AttributeError, re.error) as error:
        raise UserError(f"the adapter settings of {path} are damaged ({error})") from error


def _needs_settings(modules: Mapping[str, ModuleWeights]) -> bool:
    """Whether alpha is not rank somewhere, or ranks differ, which older diffusers cannot guess."""
    lora = [entry for entry in modules.values() if entry.type == "lora"]
    return len({entry.rank for entry in lora} | {entry.alpha for entry in lora}) > 1


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
    return {f"{component}.{key}": value for key, value in config.items()}
