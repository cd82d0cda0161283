"""The format of kohya's scripts and LyCORIS, which A1111, Forge, ComfyUI and Civitai speak.

`<prefix><module, dots as underscores>.<tensor>`; the change of a weight is scaled by alpha / rank,
where `alpha` is a tensor beside the others. What is said of the adapter stands in the metadata.
"""

import torch
from torch import Tensor

from scumble.adapters import ADAPTERS
from scumble.errors import UserError
from scumble.formats.assemble import ALPHA, Parts, number_of, tensor_names
from scumble.formats.bundle import TOKEN_PREFIX, add_token, bundled
from scumble.formats.container import DTYPES, Content
from scumble.formats.key_names import KeyNames
from scumble.formats.kohya_metadata import kohya_metadata
from scumble.formats.origins import looks_like
from scumble.formats.weights import AdapterWeights, LearnedToken, ModuleWeights

SCALAR = "scalar"
"""Tensor of early LyCORIS files, one number that the change is multiplied by."""

SCALED = ("lora_up.weight", "hada_w1_a", "lokr_w1", "lokr_w1_a")
"""Tensors that such a scalar may be multiplied into: each appears once in its change."""


def recognises(content: Content, key_names: KeyNames) -> bool:
    """Whether a file is of this format: a key has one of the prefixes."""
    starts = tuple(prefix for group in key_names.prefixes.values() for prefix in group)
    return any(key.startswith(starts) and "." in key for key in content.tensors)


def read(content: Content, key_names: KeyNames) -> AdapterWeights:
    """Read a file of kohya's scripts, LyCORIS, or any program that spells keys as they do.

    Raises:
        UserError: a layer's tensors are damaged.
    """
    parts = Parts()
    tokens: dict[str, LearnedToken] = {}
    known = tensor_names()
    for key, tensor in content.tensors.items():
        if key.startswith(TOKEN_PREFIX):
            add_token(tokens, parts, key, tensor, key_names)
            continue
        stem, _, name = key.partition(".")
        component, module = _place(stem, key_names)
        scalar = content.tensors.get(f"{stem}.{SCALAR}")
        if not component:
            parts.leave(key, f"names no module of this family{looks_like(key)}")
        elif name in known:
            if scalar is not None and name in SCALED and tensor.dtype in DTYPES:
                tensor = tensor * number_of(scalar, SCALAR, module)
            parts.add(component, module, name, key, tensor)
        elif name != SCALAR or not any(f"{stem}.{part}" in content.tensors for part in SCALED):
            parts.leave(key, f"is not a tensor of any known adapter type{looks_like(key)}")
    return AdapterWeights(parts.modules(), dict(content.metadata), tokens, parts.left_out)


def _place(stem: str, key_names: KeyNames) -> tuple[str, str]:
    """Component and module path of a key; empty where no component has such a module."""
    for component, prefixes in key_names.prefixes.items():
        for prefix in prefixes:
            if stem.startswith(prefix):
                path = key_names.from_underscores(component, stem.removeprefix(prefix))
                if key_names.may_hold(component, path):
                    return component, key_names.to_file(component, path)
    return "", ""


def write(weights: AdapterWeights, key_names: KeyNames) -> Content:
    """Lay out a file that A1111, Forge and ComfyUI show with all that is known of it.

    Raises:
        UserError: a component or a token's name that the format cannot spell.
    """
    for token in weights.tokens:
        if "." in token:
            raise UserError(
                f"the token '{token}' has a dot, at which A1111 would cut its name",
                "The format 'peft' keeps any token.",
            )
    tensors = bundled(weights.tokens, key_names)
    for component, modules in weights.components.items():
        if modules and component not in key_names.prefixes:
            raise UserError(f"the format 'kohya' has no name for the component '{component}'")
        for module, entry in modules.items():
            stem = key_names.prefixes[component][0] + module.replace(".", "_")
            adapter = ADAPTERS[entry.type]
            for parameter, tensor in entry.tensors.items():
                tensors[f"{stem}.{adapter.file_names[parameter]}"] = tensor
            if adapter.has_rank or entry.alpha != entry.rank:
                tensors[f"{stem}.{ALPHA}"] = _alpha(entry)
    tensors = {key: tensor.contiguous() for key, tensor in tensors.items()}
    return Content(tensors, kohya_metadata(weights, tensors, key_names))


def _alpha(entry: ModuleWeights) -> Tensor:
    """Alpha in the number format of the other tensors, or in the next that holds it exactly."""
    own = next(iter(entry.tensors.values())).dtype
    held = (torch.tensor(entry.alpha, dtype=dtype) for dtype in (own, torch.float32))
    exact = (tensor for tensor in held if float(tensor) == entry.alpha)
    return next(exact, torch.tensor(entry.alpha, dtype=torch.float64))
