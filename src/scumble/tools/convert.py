"""An adapter file in the format of another program: `convert_adapter`."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from scumble.errors import UserError
from scumble.formats.files import FORMATS, write_adapter
from scumble.formats.sidecars import write_sidecars
from scumble.formats.weights import AdapterWeights, LearnedToken, ModuleWeights
from scumble.tools.output import output_file, refuse_existing
from scumble.tools.reading import DTYPES, Opened, dtype_name, open_adapter
from scumble.tools.report import Outcome
from scumble.tools.table import counted, size

if TYPE_CHECKING:
    from PIL.Image import Image

DESCRIBED = "kohya"
"""The format whose programs look for a description and a picture beside the file."""


def convert_adapter(
    path: str | Path,
    output: str | Path,
    format: str = "peft",
    *,
    dtype: str | None = None,
    trigger: str | None = None,
    preview: str | Path | None = None,
    force: bool = False,
    partial: bool = False,
    allow_pickle: bool = False,
) -> Outcome:
    """Write an adapter file again in another format, or in another number format.

    What it does stays the same: what the other format cannot hold is refused, never dropped. For
    A1111 and Forge (format "kohya") a description is written beside the file.

    Args:
        path: the file to read, or the folder that a training run wrote.
        output: the file to write, ending in `.safetensors`.
        format: "peft" for diffusers, "kohya" for A1111, Forge, ComfyUI and Civitai, "embedding" for
            learned words alone; "attn_procs" and "cloneofsimo" for programs of 2023.
        dtype: "fp32", "fp16" or "bf16", to which each number is rounded once; as it is if None.
        trigger: words that call the adapter, for programs that show them.
        preview: a picture to put beside a "kohya" file.
        force: replace what is there already.
        partial: convert what fits, and name the rest in the lines of the outcome.
        allow_pickle: read pickled files too (.bin, .pt); tensors alone are taken from them.

    Returns:
        The file written, and what to say of it.

    Raises:
        UserError: the file cannot be read, the format cannot hold it, a number is too large for the
            dtype, or the output exists or cannot be written; nothing is written then.
    """
    target = output_file(output, force=force)
    _check_options(format, dtype)
    picture = _beside(target, format, preview, force=force)
    opened = open_adapter(path, partial=partial, allow_pickle=allow_pickle)
    weights, lines = opened.weights, []
    if dtype is not None:
        weights, vanished = _cast(weights, DTYPES[dtype])
        if vanished:
            lines.append(f"{counted(vanished, 'number')} too small for {dtype}: now 0")
    if trigger is not None:
        weights = replace(weights, metadata=weights.metadata | {"trigger_phrase": trigger})
    lines += [f"left out: '{key}' {reason}" for key, reason in weights.left_out.items()]
    key_names = opened.family.key_names
    write_adapter(weights, target, key_names, format)
    if format == DESCRIBED:
        files = write_sidecars(target, weights, key_names, picture)
        lines += [f"beside it: {file.name}" for file in files]
    return Outcome(target, (_summary(opened, weights, target, format), *lines))


def _check_options(format: str, dtype: str | None) -> None:
    if format not in FORMATS:
        raise UserError(f"unknown adapter format '{format}'", f"Known: {', '.join(FORMATS)}.")
    if dtype is not None and dtype not in DTYPES:
        raise UserError(f"unknown number format '{dtype}'", f"Known: {', '.join(DTYPES)}.")


def _beside(
    target: Path, format: str, preview: str | Path | None, *, force: bool
) -> "Image | None":
    """Open the picture to go beside a file, whose place must be free."""
    if format == DESCRIBED:
        refuse_existing(target.with_suffix(".json"), force=force)
    if preview is None:
        return None
    if format != DESCRIBED:
        raise UserError(
            f"--preview goes with --format {DESCRIBED}, not with {format}",
            "No other program looks for a picture beside the file.",
        )
    refuse_existing(target.with_suffix(".preview.png"), force=force)
    from PIL import Image

    try:
        with Image.open(Path(preview).expanduser()) as opened:
            return opened.copy()
    except (OSError, Image.DecompressionBombError) as error:
        raise UserError(f"the preview {preview} cannot be read as a picture ({error})") from error


def _cast(weights: AdapterWeights, dtype: torch.dtype) -> tuple[AdapterWeights, int]:
    """Round every number once; also gives how many became 0.

    Raises:
        UserError: numbers are too large, naming where.
    """
    too_large = {
        name: count
        for name, tensor in _named_tensors(weights)
        if (count := int(_rounded(tensor, dtype).isinf().sum()))
    }
    if too_large:
        name, others = next(iter(too_large)), len(too_large) - 1
        places = f"'{name}'" + (f" and {others} more" if others else "")
        raise UserError(
            f"{counted(sum(too_large.values()), 'number')} too large for {dtype_name(dtype)}, "
            f"in {places}",
            f"Its limit is {torch.finfo(dtype).max:g}. fp32 and bf16 reach further.",
        )
    vanished = sum(
        int(((_rounded(tensor, dtype) == 0) & (tensor != 0)).sum())
        for _, tensor in _named_tensors(weights)
    )
    components = {
        component: {module: _cast_module(entry, dtype) for module, entry in modules.items()}
        for component, modules in weights.components.items()
    }
    tokens = {
        token: LearnedToken({e: _rounded(rows, dtype) for e, rows in entry.vectors.items()})
        for token, entry in weights.tokens.items()
    }
    return replace(weights, components=components, tokens=tokens), vanished


def _cast_module(entry: ModuleWeights, dtype: torch.dtype) -> ModuleWeights:
    return replace(entry, tensors={n: _rounded(t, dtype) for n, t in entry.tensors.items()})


def _rounded(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor in another number format; whole numbers, which mark something, stay."""
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _named_tensors(weights: AdapterWeights) -> Iterator[tuple[str, Tensor]]:
    for component, modules in weights.components.items():
        for module, entry in modules.items():
            for tensor in entry.tensors.values():
                yield f"{component}.{module}", tensor
    for token, learned in weights.tokens.items():
        for vectors in learned.vectors.values():
            yield token, vectors


def _summary(opened: Opened, weights: AdapterWeights, target: Path, format: str) -> str:
    layers = sum(map(len, weights.components.values()))
    counts = {"layer": layers, "learned word": len(weights.tokens)}
    held = " and ".join(counted(count, kind) for kind, count in counts.items() if count)
    return (
        f"read {opened.file} ({opened.format}, {_kind(opened.weights, opened.file)}), "
        f"wrote {target} ({format}, {_kind(weights, target)}): {held}"
    )


def _kind(weights: AdapterWeights, file: Path) -> str:
    dtypes = sorted({dtype_name(tensor.dtype) for _, tensor in _named_tensors(weights)})
    return f"{' and '.join(dtypes)}, {size(file.stat().st_size)}"
