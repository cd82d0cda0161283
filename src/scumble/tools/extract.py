"""What fine-tuning changed of a whole model, as an adapter: an SVD of each layer's difference."""

import json
from collections.abc import Sequence
from pathlib import Path

from scumble.errors import UserError
from scumble.families import BaseModel, locate
from scumble.families.fingerprint import FINGERPRINT, fingerprint
from scumble.formats import AdapterWeights
from scumble.tools.base_facts import prediction_metadata
from scumble.tools.base_weights import open_base
from scumble.tools.compare import Choice, Found, compare, require_alike, require_targets
from scumble.tools.number_formats import cast_adapter, dtype_named
from scumble.tools.output import output_file, write_output
from scumble.tools.ranks import check_rank
from scumble.tools.report import Outcome, kept_lines, percent
from scumble.tools.table import counted


def extract_adapter(
    base: str | Path | BaseModel,
    tuned: str | Path | BaseModel,
    output: str | Path,
    rank: int,
    *,
    energy: float | None = None,
    targets: Sequence[str] = (),
    with_norms: bool = False,
    dtype: str | None = "fp32",
    format: str = "peft",
    force: bool = False,
) -> Outcome:
    """Write a LoRA that does what fine-tuning a whole model did, as far as the rank allows.

    Both models are read tensor by tensor. Layers that do not differ are left out, and whatever
    differs and is not in the LoRA is named.

    Args:
        base: the model that was fine-tuned: a folder, a single file, a Hub id, or "scumble-tiny".
        tuned: what became of it.
        output: the file to write, ending in `.safetensors`.
        rank: of each layer, at most.
        energy: share of each layer's difference to keep, above 0 and up to 1; None keeps what the
            rank can hold.
        targets: ends of module paths; empty for every linear layer and convolution of the parts
            that adapters can change.
        with_norms: write whole differences of norms, too.
        dtype: "fp32", "fp16" or "bf16".
        format: "peft" or "kohya".
        force: replace what is there.

    Returns:
        The file, and layer by layer what was kept.

    Raises:
        UserError: a model cannot be read, the two are not of one architecture, or do not differ.
    """
    check_rank(rank, energy)
    number_format = dtype_named(dtype)
    path = output_file(output, format, force=force)
    choice = Choice(rank, energy, tuple(targets), with_norms)
    first, second = (m if isinstance(m, BaseModel) else locate(str(m)) for m in (base, tuned))
    with open_base(first) as ours, open_base(second) as theirs:
        require_alike(ours, theirs)
        require_targets(ours, choice)
        found = compare(ours, theirs, choice)
        key_names, denoiser = ours.family.key_names, ours.family.components[0]
    if not found.components:
        raise UserError(
            f"{first.name} and {second.name} do not differ in what is to be extracted",
            _missed_line(found) or "Are they the models that you mean?",
        )
    made = AdapterWeights(found.components, _metadata(first, second, denoiser))
    cast, small = cast_adapter(made, number_format)
    beside = write_output(cast, path, key_names, format)
    lines = (*kept_lines(found.kept), *_lines(found), *small, *beside)
    return Outcome(path, lines, tuple(found.kept))


def _metadata(base: BaseModel, tuned: BaseModel, denoiser: str) -> dict[str, str]:
    note = {"base": base.public_name, "tuned": tuned.public_name}
    metadata = {"base_model": base.public_name, "extracted_from": json.dumps(note)}
    metadata |= prediction_metadata(base)
    mark = fingerprint(base, denoiser)
    return metadata if mark is None else metadata | {FINGERPRINT: mark}


def _lines(found: Found) -> list[str]:
    equal = f"{counted(found.num_equal, 'layer')} without any difference left out"
    return [line for line in (equal if found.num_equal else "", _missed_line(found)) if line]


def _missed_line(found: Found) -> str:
    if not found.missed:
        return ""
    total = sum(found.missed.values()) + sum(layer.energy for layer in found.kept)
    largest = sorted(found.missed, key=lambda name: -found.missed[name])
    named = ", ".join(f"{n} ({percent(found.missed[n] / total)})" for n in largest[:3])
    others = f" and {len(largest) - 3} more" if len(largest) > 3 else ""
    share = percent(sum(found.missed.values()) / total)
    return f"not in the adapter, {share} of the whole difference: {named}{others}"
