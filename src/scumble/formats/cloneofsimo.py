"""The format of cloneofsimo's `lora`: layers have numbers and no names.

`unet:0:up`, `unet:0:down`, ...; the metadata say for which classes of modules, and `<s1>` is a
learned token. Older files are pickled lists [up, down, up, down, ...] of one component, and do
not say which. Plain LoRA whose scale is 1. What a number means is the family's order of layers;
shapes are checked against it, because nothing else in a file would show a mistake.
"""

import json
import re
from collections.abc import Mapping, Sequence

from torch import Tensor

from scumble.errors import UserError
from scumble.formats.assemble import Parts
from scumble.formats.container import Content
from scumble.formats.key_names import KeyNames
from scumble.formats.numbered_shapes import check_shapes
from scumble.formats.plain_lora import HINT, require_plain_lora
from scumble.formats.weights import AdapterWeights, LearnedToken, ModuleWeights

PLACE = r"0|[1-9]\d{0,5}"
KEY = re.compile(rf"(?P<component>\w+):(?P<index>{PLACE}):(?P<side>up|down)")
EMBED = "<embed>"

CLASSES = {
    "CrossAttention": r"\.attn\d\.",
    "Attention": r"\.attn\d\.",
    "GEGLU": r"\.ff\.",
    "ResnetBlock2D": r"\.resnets\.",
    "CLIPAttention": r"\.self_attn\.",
}
"""Class of modules whose layers are adapted -> how those layers are called."""

USUAL = (
    ("CrossAttention", "Attention", "GEGLU"),
    ("CrossAttention", "Attention"),
    ("CrossAttention", "Attention", "GEGLU", "ResnetBlock2D"),
    ("CLIPAttention",),
)
"""Classes of files that do not say theirs: told apart by how many layers there are."""

Pairs = dict[int, dict[str, Tensor]]
"""Number of a layer -> "up" and "down"."""


def recognises(content: Content, key_names: KeyNames) -> bool:
    """Whether keys are numbered: with a component's name, or as a list's places are."""
    components = tuple(f"{name}:" for name in key_names.order)
    numbered = [key for key in content.tensors if KEY.fullmatch(key) and key.startswith(components)]
    return bool(numbered) or all(re.fullmatch(PLACE, key) for key in content.tensors)


def read(content: Content, key_names: KeyNames) -> AdapterWeights:
    """Read a file of one or several components.

    Raises:
        UserError: a number is missing, there are not as many layers as the family has, or their
            shapes are not those of the layers that the numbers mean.
    """
    parts = Parts()
    pairs, tokens = _gathered(content, key_names, parts)
    for said, numbered in pairs.items():
        component, modules = _modules(said, numbered, content.metadata.get(said), key_names)
        check_shapes(dict(zip(modules, (numbered[i] for i in sorted(numbered)), strict=True)))
        for index, module in enumerate(modules):
            for side, tensor in numbered[index].items():
                key = f"{said}:{index}:{side}" if said else str(2 * index + (side == "down"))
                parts.add(component, module, f"lora_{side}.weight", key, tensor)
    kept = {
        key: value
        for key, value in content.metadata.items()
        if key not in key_names.order and value != EMBED and not key.endswith(":rank")
    }
    return AdapterWeights(parts.modules(), kept, tokens, parts.left_out)


def _gathered(
    content: Content, key_names: KeyNames, parts: Parts
) -> tuple[dict[str, Pairs], dict[str, LearnedToken]]:
    """What a file has for each component, "" where it does not say which, and its tokens."""
    pairs: dict[str, Pairs] = {}
    tokens: dict[str, LearnedToken] = {}
    for key, tensor in content.tensors.items():
        match = KEY.fullmatch(key)
        if match is not None and match["component"] in key_names.order:
            pairs.setdefault(match["component"], {}).setdefault(int(match["index"]), {})[
                match["side"]
            ] = tensor
        elif re.fullmatch(PLACE, key):
            index, is_down = divmod(int(key), 2)
            pairs.setdefault("", {}).setdefault(index, {})["down" if is_down else "up"] = tensor
        elif content.metadata.get(key) == EMBED and key_names.tokens:
            vectors = tensor[None] if tensor.ndim == 1 else tensor
            tokens[key] = LearnedToken({next(iter(key_names.tokens)): vectors})
        else:
            parts.leave(key, "is neither a numbered layer nor marked as a learned token")
    return pairs, tokens


def _modules(
    said: str, numbered: Pairs, classes: str | None, key_names: KeyNames
) -> tuple[str, Sequence[str]]:
    """The component of a file's part and the layers that its numbers mean, in order."""
    count = max(numbered) + 1
    for index in range(count):
        if numbered.get(index, {}).keys() != {"up", "down"}:
            raise UserError(f"the layer number {index} of {count} lacks its up or its down")
    known = USUAL if classes is None else (_classes(classes),)
    components = [said] if said else list(key_names.order)
    possible: list[int] = []
    for component in components:
        for names in known:
            modules = _of_classes(key_names.order[component], names)
            if component in key_names.tokens:
                modules = _whole_layers(modules, count)
            if modules and len(modules) == count:
                return component, modules
            possible += [len(modules)] if modules else []
    raise UserError(
        f"it has {count} layers{f' of the {said}' if said else ''}, which have no names but "
        f"numbers, and models of this family have {' or '.join(map(str, possible))}",
        "It is of another family of models, or adapts other layers. Nothing was loaded.",
    )


def _classes(text: str) -> tuple[str, ...]:
    try:
        names = tuple(map(str, json.loads(text)))
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"its list of adapted classes is damaged ({error})") from error
    for name in names:
        if name not in CLASSES:
            raise UserError(
                f"it adapts the layers of '{name}', whose order is not known",
                f"Known: {', '.join(CLASSES)}.",
            )
    return names


def _of_classes(order: Sequence[str], classes: Sequence[str]) -> list[str]:
    patterns = [re.compile(CLASSES[name]) for name in classes]
    return [path for path in order if any(pattern.search(path) for pattern in patterns)]


def _whole_layers(modules: list[str], count: int) -> list[str]:
    """The first layers of a text encoder, which may be shorter than the family's longest."""
    cuts_one = count < len(modules) and _owner(modules[count]) == _owner(modules[count - 1])
    return modules if cuts_one else modules[:count]


def _owner(module: str) -> str:
    return module.rpartition(".")[0]


def write(weights: AdapterWeights, key_names: KeyNames) -> Content:
    """Lay out a safetensors file, where every layer of each adapted kind is there.

    Raises:
        UserError: the weights hold more than plain LoRA, layers that have no numbers, not all of
            them, or tokens of several vectors.
    """
    require_plain_lora(weights, "cloneofsimo")
    tensors: dict[str, Tensor] = {}
    metadata = dict(weights.metadata)
    for component, adapted in weights.components.items():
        order = key_names.order.get(component, ())
        classes = [
            name for name, pattern in CLASSES.items() if any(re.search(pattern, m) for m in adapted)
        ]
        _require_numbered(component, adapted, _of_classes(order, classes), key_names)
        metadata[component] = json.dumps(classes)
        for index, module in enumerate(m for m in order if m in adapted):
            metadata[f"{component}:{index}:rank"] = str(adapted[module].rank)
            for side, tensor in adapted[module].tensors.items():
                tensors[f"{component}:{index}:{side}"] = tensor
    for token, learned in weights.tokens.items():
        vectors = next(iter(learned.vectors.values()))
        if len(learned.vectors) > 1 or len(vectors) > 1:
            raise UserError(f"the format 'cloneofsimo' has one vector a token, not '{token}'", HINT)
        tensors[token], metadata[token] = vectors[0], EMBED
    return Content(tensors, metadata)


def _require_numbered(
    component: str,
    adapted: Mapping[str, ModuleWeights],
    modules: list[str],
    key_names: KeyNames,
) -> None:
    if component in key_names.tokens:
        modules = _whole_layers(modules, len(adapted))
    for module in adapted:
        if module not in modules:
            raise UserError(f"the format 'cloneofsimo' has no number for '{module}'", HINT)
    for module in modules:
        if module not in adapted:
            raise UserError(
                "the format 'cloneofsimo' counts layers and can leave out none of a kind; this "
                f"adapter has no '{component}.{module}'",
                HINT,
            )
