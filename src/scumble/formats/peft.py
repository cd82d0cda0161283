"""The format of diffusers and PEFT: `pytorch_lora_weights.safetensors`, our default.

`<component>.<module>.<parameter>`; the change of a weight is (alpha / rank) up @ down, with alpha =
rank unless the file's metadata says otherwise.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scumble.adapters import ADAPTERS
from scumble.errors import UserError
from scumble.formats.container import container_bytes, read_container
from scumble.formats.key_names import KeyNames
from scumble.formats.weights import AdapterWeights, ModuleWeights

CONFIG_KEY = "lora_adapter_metadata"
"""Metadata entry in which diffusers keeps ranks and alphas, as JSON with flat keys."""

BARE_PREFIX = "base_model.model."
"""What PEFT's own save_pretrained puts before every key; it names no component."""

LORA_SPELLINGS = {
    "down": ("lora.down.weight", "lora_A.weight", "lora_linear_layer.down.weight"),
    "up": ("lora.up.weight", "lora_B.weight", "lora_linear_layer.up.weight"),
}
"""Parameter -> its spellings in files: attention of the denoiser, PEFT's own, attention of text
encoders."""

ATTENTION = re.compile(r"\.(to_q|to_k|to_v|to_out\.0|[qkv]_proj|out_proj)$")


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
    types: dict[str, str] = {}
    alphas: dict[str, float] = {}
    for key, tensor in tensors.items():
        component, rest = _component(key, key_names)
        module, type_name, parameter = _parameter(rest, key)
        module = key_names.to_file(component, module)
        if parameter == "alpha":
            alphas[f"{component}.{module}"] = float(tensor)
            continue
        if types.setdefault(f"{component}.{module}", type_name) != type_name:
            raise UserError(f"'{module}' carries tensors of two adapter types in {path.name}")
        found.setdefault(component, {}).setdefault(module, {})[parameter] = tensor
    components: dict[str, dict[str, ModuleWeights]] = {}
    for component, modules in found.items():
        components[component] = {}
        for module, parameters in modules.items():
            type_name = types[f"{component}.{module}"]
            _require_all(parameters, type_name, module, path)
            rank = ADAPTERS[type_name].rank_of(parameters)
            alpha = alphas.get(f"{component}.{module}")
            if alpha is None:
                alpha = _alpha(config.get(component, {}), module, rank, path)
            components[component][module] = ModuleWeights(type_name, parameters, alpha)
    kept = {k: v for k, v in metadata.items() if k not in (CONFIG_KEY, "format")}
    return AdapterWeights(components, kept)


def write(weights: AdapterWeights, path: Path, key_names: KeyNames) -> None:
    """Write a file that unmodified diffusers reads completely.

    LoRA on attention alone is spelled as diffusers' scripts spell it. One that reaches further is
    spelled as PEFT does, because diffusers' converter loses the attention part of the other form.
    For a text encoder it knows no other than these two.
    """
    tensors: dict[str, Tensor] = {}
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
    if type_name == "lora":
        return LORA_SPELLINGS[parameter][spelling]
    return ADAPTERS[type_name].file_names[parameter]


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


def _parameter(rest: str, key: str) -> tuple[str, str, str]:
    """Split "<module>.<tensor name>" into module, adapter type and parameter."""
    for parameter, spellings in LORA_SPELLINGS.items():
        for name in spellings:
            if rest.endswith("." + name):
                return rest.removesuffix("." + name), "lora", parameter
    for type_name, adapter in ADAPTERS.items():
        for parameter, name in adapter.file_names.items():
            if rest.endswith("." + name):
                return rest.removesuffix("." + name), type_name, parameter
    if rest.endswith(".alpha"):
        return rest.removesuffix(".alpha"), "", "alpha"
    raise UserError(
        f"the key '{key}' is not a tensor of any known adapter type ({', '.join(ADAPTERS)})",
        "Nothing was loaded.",
    )


def _require_all(tensors: Mapping[str, Tensor], type_name: str, module: str, path: Path) -> None:
    missing = set(ADAPTERS[type_name].file_names) - set(tensors)
    if missing:
        raise UserError(f"{path.name}: '{module}' lacks its {' and '.join(sorted(missing))} tensor")


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
