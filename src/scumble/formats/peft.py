"""The format of diffusers and PEFT: `pytorch_lora_weights.safetensors`, our default.

`<component>.<module>.<parameter>`; the change of a weight is (alpha / rank) up @ down, with alpha =
rank unless the file's metadata says otherwise. Learned tokens stand beside it as A1111 bundles
them: `bundle_emb.<token>.string_to_param.*`.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

import torch

from scumble.adapters import ADAPTERS
from scumble.errors import UserError
from scumble.formats.assemble import Parts, tensor_names
from scumble.formats.bundle import TOKEN_PREFIX, add_token, bundled
from scumble.formats.container import SETTINGS_NAME, Content
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

ATTENTION = re.compile(r"\.(to_q|to_k|to_v|to_out\.0|[qkv]_proj|out_proj)$")


def recognises(content: Content, key_names: KeyNames) -> bool:
    """Whether a file is of this format: a key starts as one of its own."""
    starts = (*(f"{name}." for name in key_names.components), BARE_PREFIX, TOKEN_PREFIX)
    return any(key.startswith(starts) for key in content.tensors)


def read(content: Content, key_names: KeyNames) -> AdapterWeights:
    """Read a file in any spelling that diffusers and PEFT have used.

    Raises:
        UserError: damaged settings, or a DoRA without its magnitudes.
    """
    config = _configuration(content, key_names)
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
            parts.add(component, key_names.to_file(component, module), name, key, tensor)
    components = parts.modules(
        lambda component, module, rank: _alpha(config.get(component, {}), module, rank)
    )
    for component, modules in components.items():
        if config.get(component, {}).get("use_dora"):
            for module, entry in modules.items():
                if entry.type == "lora":
                    raise UserError(f"'{module}' is a DoRA without its magnitudes")
    settings = (CONFIG_KEY, SETTINGS_NAME)
    kept = {k: v for k, v in content.metadata.items() if k not in settings}
    return AdapterWeights(components, kept, tokens, parts.left_out)


def write(weights: AdapterWeights, key_names: KeyNames) -> Content:
    """Lay out a file that unmodified diffusers reads completely.

    LoRA on attention alone is spelled as diffusers' scripts spell it. One that reaches further is
    spelled as PEFT does, because diffusers' converter loses the attention part of the other form.
    For a text encoder it knows no other than these two. It refuses a file with learned tokens.
    """
    tensors = bundled(weights.tokens, key_names)
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
    return Content(tensors, metadata)


def _spell(type_name: str, parameter: str, spelling: int) -> str:
    name = ADAPTERS[type_name].file_names[parameter]
    return LORA_SPELLINGS[name][spelling] if name in LORA_SPELLINGS else name


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
    for spelling, name in (names | tensor_names()).items():
        if rest.endswith("." + spelling):
            return rest.removesuffix("." + spelling), name
    return rest, ""


def _configuration(content: Content, key_names: KeyNames) -> dict[str, dict[str, Any]]:
    """Ranks and alphas by component, from the metadata or PEFT's adapter_config.json beside it."""
    metadata = content.metadata
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
        if SETTINGS_NAME in metadata:
            return {key_names.components[0]: dict(json.loads(metadata[SETTINGS_NAME]))}
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"the adapter settings are damaged ({error})") from error
    return {}


def _alpha(config: Mapping[str, Any], module: str, rank: int) -> float:
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
        raise UserError(f"the adapter settings are damaged ({error})") from error


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
