"""Adapters into a base model for good: a new base, written tensor by tensor.

The base may be a folder or one file, and so may the result; a base of any size passes through the
memory of its largest tensor.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import torch

from scumble.errors import UserError
from scumble.families import BaseModel
from scumble.families.fingerprint import FINGERPRINT, fingerprint
from scumble.formats import AdapterWeights, LearnedToken, write_adapter
from scumble.formats.files import EMBEDS_NAME
from scumble.hub.card import CARD_NAME
from scumble.tools.base_checkpoint import checkpoint_file
from scumble.tools.base_files import write_files
from scumble.tools.base_folder import folder_files, write_beside
from scumble.tools.base_weights import BaseWeights, open_base
from scumble.tools.combine import Part, Recipe
from scumble.tools.deltas import adapter_of
from scumble.tools.edits import Edit
from scumble.tools.output import refuse_existing
from scumble.tools.provenance import merged_card, merged_from, tokens_of
from scumble.tools.replaced import replaced
from scumble.tools.sources import Loaded, layers_of
from scumble.tools.table import counted

Layers = Mapping[tuple[str, str], Sequence[Part]]


class Target(NamedTuple):
    """The base that adapters are added to, and where the new one goes.

    Args:
        base: that was found.
        path: as `base_output` gives it.
        dtype: of what is written; None keeps the base's.
        partial: leave out and name what does not fit the base.
        force: an older file of learned words may be replaced.
    """

    base: BaseModel
    path: Path
    dtype: torch.dtype | None = None
    partial: bool = False
    force: bool = False


def merge_into_base(sources: Sequence[Loaded], recipe: Recipe, target: Target) -> list[str]:
    """Write a base with adapters in its weights, and learned words, which it cannot hold, beside.

    Args:
        sources: the adapters.
        recipe: how several changes of a layer become one.
        target: the base, and where the new one goes.

    Returns:
        What the user should know of it.

    Raises:
        UserError: a layer does not fit the base, or values leave the range of the number format.
    """
    layers, tokens = layers_of(sources), tokens_of(sources)
    path = target.path
    is_file = path.suffix.lower() == ".safetensors"
    words = path.with_name(f"{path.stem}_{EMBEDS_NAME}") if is_file else path / EMBEDS_NAME
    if tokens and is_file:
        refuse_existing(words, force=target.force)
    with open_base(target.base) as weights, ExitStack() as stack:
        lines = _doubts(weights, sources)
        fitting, shapes, left_out = _fitted(weights, layers, sources, partial=target.partial)
        lines += [f"left out: '{name}' {reason}" for name, reason in left_out.items()]
        edit = Edit(fitting, shapes, recipe, target.dtype)
        note = {"merged_from": merged_from(sources, recipe)}
        if is_file:
            planned, said = checkpoint_file(weights, edit)
            with replaced(path) as file:
                write_files([planned], file, note)
            _write_tokens(weights, tokens, words)
        else:
            files, said = folder_files(weights, edit, stack)
            with replaced(path) as folder:
                folder.mkdir()
                write_beside(weights, folder)
                card = merged_card(path.name, target.base, sources)
                (folder / CARD_NAME).write_text(card, "utf-8")
                write_files(files, folder, note)
                _write_tokens(weights, tokens, folder / words.name)
    if tokens:
        named = ", ".join(tokens)
        said.append(f"a base cannot hold learned words ({named}): draw with --adapter {words}")
    return [f"{counted(len(fitting), 'layer')} of {target.base.name} changed", *lines, *said]


def _doubts(weights: BaseWeights, sources: Sequence[Loaded]) -> list[str]:
    here = fingerprint(weights.base, weights.family.components[0])
    return [
        f"{source.name} was trained on {source.weights.metadata.get('base_model', 'another base')},"
        " whose weights are not those of this base: it fits, but may draw something else"
        for source in sources
        if here is not None and source.weights.metadata.get(FINGERPRINT, here) != here
    ]


def _fitted(
    weights: BaseWeights, layers: Layers, sources: Sequence[Loaded], *, partial: bool
) -> tuple[Layers, dict[tuple[str, str], tuple[int, ...]], dict[str, str]]:
    """Layers and their shapes, without those that the base lacks; and why those do not fit."""
    shapes: dict[tuple[str, str], tuple[int, ...]] = {}
    misfits: dict[str, str] = {}
    for (component, module), parts in layers.items():
        name = f"{component}.{module}"
        shape = weights.shape(component, f"{module}.weight")
        if shape is None:
            misfits[name] = f"({sources[parts[0].number].name}) is a layer that this base lacks"
            continue
        has_bias = weights.shape(component, f"{module}.bias") is not None
        try:
            for part in parts:
                adapter_of(part.entry, shape, has_bias=has_bias)
        except UserError as error:
            misfits[name] = f"({sources[part.number].name}) does not fit: {error.message}"
            continue
        shapes[component, module] = shape
    if misfits and (not partial or not shapes):
        name, reason = next(iter(misfits.items()))
        others = f", and {len(misfits) - 1} more" if len(misfits) > 1 else ""
        raise UserError(
            f"the adapters do not fit {weights.base.name}: '{name}' {reason}{others}",
            "Nothing was written; --partial merges what fits.",
        )
    return {key: layers[key] for key in shapes}, shapes, misfits


def _write_tokens(weights: BaseWeights, tokens: Mapping[str, LearnedToken], path: Path) -> None:
    if tokens:
        learned = AdapterWeights({}, {}, dict(tokens))
        write_adapter(learned, path, weights.family.key_names, "embedding")
