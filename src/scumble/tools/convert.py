"""An adapter file in the format of another program: `convert_adapter`."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from scumble.errors import UserError
from scumble.formats.container import user_path
from scumble.formats.weights import AdapterWeights
from scumble.tools.number_formats import cast_adapter, dtype_name, dtype_named, named_tensors
from scumble.tools.output import DESCRIBED, output_file, refuse_existing, write_output
from scumble.tools.reading import Opened, open_adapter
from scumble.tools.report import Outcome
from scumble.tools.table import counted, size

if TYPE_CHECKING:
    from PIL.Image import Image


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
    number_format = dtype_named(dtype)
    target = output_file(output, format, force=force)
    picture = _beside(target, format, preview, force=force)
    opened = open_adapter(path, partial=partial, allow_pickle=allow_pickle)
    weights, lines = cast_adapter(opened.weights, number_format)
    if trigger is not None:
        weights = replace(weights, metadata=weights.metadata | {"trigger_phrase": trigger})
    lines += [f"left out: '{key}' {reason}" for key, reason in weights.left_out.items()]
    lines += write_output(weights, target, opened.family.key_names, format, picture)
    return Outcome(target, (_summary(opened, weights, target, format), *lines))


def _beside(
    target: Path, format: str, preview: str | Path | None, *, force: bool
) -> "Image | None":
    """Open the picture to go beside a file, whose place must be free."""
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
        with Image.open(user_path(preview)) as opened:
            return opened.copy()
    except (OSError, Image.DecompressionBombError) as error:
        raise UserError(f"the preview {preview} cannot be read as a picture ({error})") from error


def _summary(opened: Opened, weights: AdapterWeights, target: Path, format: str) -> str:
    layers = sum(map(len, weights.components.values()))
    counts = {"layer": layers, "learned word": len(weights.tokens)}
    held = " and ".join(counted(count, kind) for kind, count in counts.items() if count)
    return (
        f"read {opened.file} ({opened.format}, {_kind(opened.weights, opened.file)}), "
        f"wrote {target} ({format}, {_kind(weights, target)}): {held}"
    )


def _kind(weights: AdapterWeights, file: Path) -> str:
    dtypes = sorted({dtype_name(tensor.dtype) for _, tensor in named_tensors(weights)})
    return f"{' and '.join(dtypes)}, {size(file.stat().st_size)}"
