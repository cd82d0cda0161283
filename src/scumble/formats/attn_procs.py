"""Attention processors of diffusers 0.12 to 0.20: `pytorch_lora_weights.bin`, later .safetensors.

`[unet.]<attention>.processor.to_q_lora.{down,up}.weight` and so for to_k, to_v and to_out, plain
LoRA whose scale is 1. The first releases name no component. Text encoders were spelled in three
ways, all of which are read: by layer and part, by attention, and by layer alone.

Written is what diffusers 0.16 and 0.17 read, and today's too.
"""

import re
from collections.abc import Mapping

from scumble.errors import UserError
from scumble.formats.assemble import Parts
from scumble.formats.container import Content
from scumble.formats.key_names import KeyNames
from scumble.formats.plain_lora import HINT, require_plain_lora
from scumble.formats.weights import AdapterWeights

KEY = re.compile(r"(?P<owner>.+)\.to_(?P<part>q|k|v|out)_lora\.(?P<side>down|up)\.weight")
LATER_KEY = re.compile(r"(?P<module>.+)\.lora(?:_linear_layer)?\.(?P<side>down|up)\.weight")
"""How the last of these releases spelled all that is no attention of the UNet."""

CUSTOM = "_custom_diffusion."
"""In keys of another way to teach attention, which has processors as well."""

PARTS = ("q", "k", "v", "out")


def recognises(content: Content, key_names: KeyNames) -> bool:  # noqa: ARG001
    """Whether a key is that of an attention processor."""
    return any(KEY.fullmatch(key) or CUSTOM in key for key in content.tensors)


def read(content: Content, key_names: KeyNames) -> AdapterWeights:
    """Read the file of any release; keys without a component belong to the first one."""
    parts = Parts()
    for key, tensor in content.tensors.items():
        component = next((c for c in key_names.components if key.startswith(f"{c}.")), None)
        rest = key if component is None else key.removeprefix(f"{component}.")
        component = component or key_names.components[0]
        if CUSTOM in key:
            parts.leave(key, "is of Custom Diffusion, which is no LoRA and is not read")
            continue
        match = KEY.fullmatch(rest) or LATER_KEY.fullmatch(rest)
        if match is None:
            parts.leave(key, "is neither that of an attention processor nor of a LoRA beside them")
            continue
        module = (
            match["module"] if match.re is LATER_KEY else _module(match["owner"], match["part"])
        )
        if module is not None:
            name = f"lora_{match['side']}.weight"
            parts.add(component, key_names.to_file(component, module), name, key, tensor)
        elif match["side"] == "up" and not tensor.is_meta and bool(tensor.any()):
            reason = f"belongs to a part other than '{match['owner']}', which never used it"
            for side in (key, f"{key.removesuffix('up.weight')}down.weight"):
                if side in content.tensors:
                    parts.leave(side, reason)
    return AdapterWeights(parts.modules(), dict(content.metadata), left_out=parts.left_out)


def _module(owner: str, part: str) -> str | None:
    """The layer that a processor's part acts on; None where diffusers never used it.

    diffusers 0.15 gave every layer of a text encoder's attention all four parts and used one.
    """
    stem, _, last = owner.rpartition(".")
    if last == "processor":
        return f"{stem}.to_{part}" + ".0" * (part == "out")
    if last.endswith("_proj"):
        return owner if last == f"{part}_proj" else None
    return f"{owner}.{part}_proj"


def write(weights: AdapterWeights, key_names: KeyNames) -> Content:
    """Lay out a file in the spelling that names the components.

    Raises:
        UserError: the weights hold anything but plain LoRA on whole attentions.
    """
    if weights.tokens:
        raise UserError("the format 'attn_procs' holds no learned tokens", HINT)
    require_plain_lora(weights, "attn_procs")
    tensors = {}
    ranks: dict[str, dict[str, int]] = {}
    for component, modules in weights.components.items():
        is_denoiser = component == key_names.components[0]
        pattern = r"(.+\.attn\d)\.to_(q|k|v|out)(?:\.0)?" if is_denoiser else r"(.+)\.(\w+)_proj"
        for module, entry in modules.items():
            match = re.fullmatch(pattern, module)
            if match is None or match[2] not in PARTS:
                raise UserError(
                    f"the format 'attn_procs' holds attention alone, and '{module}' is none", HINT
                )
            owner = f"{component}.{match[1]}" + ".processor" * is_denoiser
            ranks.setdefault(owner, {})[match[2]] = entry.rank
            for side in ("down", "up"):
                tensors[f"{owner}.to_{match[2]}_lora.{side}.weight"] = entry.tensors[side]
    _require_whole(ranks)
    return Content(tensors, weights.metadata)


def _require_whole(ranks: Mapping[str, Mapping[str, int]]) -> None:
    for owner, found in ranks.items():
        if set(found) != set(PARTS) or len(set(found.values())) > 1:
            raise UserError(
                "the format 'attn_procs' needs all four parts of an attention at one rank, and "
                f"'{owner}' has {', '.join(f'{part} at {rank}' for part, rank in found.items())}",
                HINT,
            )
