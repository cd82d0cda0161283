"""A base model as one file, under the names of original checkpoints."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from scumble.families.original_names import Version, from_original, to_original, version_of
from scumble.formats.streaming import Entry
from scumble.tools.base_facts import not_in_one_file, prediction_metadata, spec_metadata
from scumble.tools.base_parts import base_root
from scumble.tools.base_weights import BaseWeights, OutputFile
from scumble.tools.edits import Edit

AVERAGED = "model_ema."
"""How keys of averaged weights begin, a second copy that training goes on from."""


class Stacked(NamedTuple):
    """A tensor of the file.

    Args:
        entry: what it is like there.
        parts: (component, name) of diffusers' tensors that it is, on top of each other; none where
            it is only copied.
    """

    entry: Entry
    parts: tuple[tuple[str, str], ...]


def checkpoint_file(weights: BaseWeights, edit: Edit) -> tuple[OutputFile, list[str]]:
    """Plan a base as one file.

    Args:
        weights: of the base, a folder or itself one file.
        edit: what happens to each tensor.

    Returns:
        The file, and what the user should know of it.

    Raises:
        UserError: the base is not of a kind that one file can hold.
    """
    base = weights.base
    root = base_root(base)
    if root is None:
        laid_out, metadata, lines = _as_it_is(weights), _own_metadata(weights), []
    else:
        version = version_of(weights.places)
        laid_out, metadata = _from_folder(weights, version), spec_metadata(weights)
        lines = not_in_one_file(weights, root, version)
    entries = {key: _kind(edit, stacked) for key, stacked in laid_out.items()}
    first = next(iter(weights.files.values()))
    if any(key.startswith(AVERAGED) for key in first.entries):
        lines.append("left out: averaged weights (model_ema), which the adapters were not added to")
    tensor_of = _reader(weights, laid_out, edit)
    return OutputFile("", entries, tensor_of, metadata), lines


def _own_metadata(weights: BaseWeights) -> dict[str, str]:
    """What the file says of itself, and what the user says that it predicts."""
    metadata = next(iter(weights.files.values())).metadata
    is_told = weights.base.prediction_type is not None
    return {**metadata, **(prediction_metadata(weights.base) if is_told else {})}


def _as_it_is(weights: BaseWeights) -> dict[str, Stacked]:
    laid_out = {}
    for key, entry in next(iter(weights.files.values())).entries.items():
        if key.startswith(AVERAGED):
            continue
        found = from_original(key)
        names = () if found is None else found.keys
        parts = [(found.component, n) for n in names if found is not None]
        known = [part for part in parts if part[1] in weights.places[part[0]]]
        laid_out[key] = Stacked(entry, tuple(known))
    return laid_out


def _from_folder(weights: BaseWeights, version: Version) -> dict[str, Stacked]:
    blocks: dict[str, dict[int, tuple[str, str]]] = {}
    entries: dict[str, Entry] = {}
    for component, places in weights.places.items():
        for name, place in places.items():
            original = to_original(component, name, version)
            if original is None:
                continue
            blocks.setdefault(original.key, {})[original.block or 0] = (component, name)
            entries[original.key] = Entry(place.entry.dtype, original.shape(place.entry.shape))
    laid_out = {}
    for key, (dtype, (rows, *rest)) in entries.items():
        parts = tuple(blocks[key][number] for number in sorted(blocks[key]))
        laid_out[key] = Stacked(Entry(dtype, (rows * len(parts), *rest)), parts)
    return laid_out


def _kind(edit: Edit, stacked: Stacked) -> Entry:
    return edit.kind(stacked.entry) if stacked.parts else stacked.entry


def _reader(
    weights: BaseWeights, laid_out: dict[str, Stacked], edit: Edit
) -> Callable[[str], Tensor]:
    first = next(iter(weights.files.values()))

    def tensor_of(key: str) -> Tensor:
        stacked = laid_out[key]
        if not stacked.parts:
            return first.tensor(key)
        rows = [edit(part, name, weights.tensor(part, name)) for part, name in stacked.parts]
        whole = rows[0] if len(rows) == 1 else torch.cat(rows)
        return whole.reshape(stacked.entry.shape)

    return tensor_of
