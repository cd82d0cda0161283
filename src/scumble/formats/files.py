"""Read and write adapter files of any format."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from scumble import console
from scumble.errors import UserError
from scumble.formats import attn_procs, cloneofsimo, embedding, kohya, peft
from scumble.formats.container import (
    Content,
    container_bytes,
    read_content,
    settings_beside,
    user_path,
    write_atomically,
)
from scumble.formats.key_names import KeyNames
from scumble.formats.origins import looks_like
from scumble.formats.pickled import is_pickled, refusal
from scumble.formats.soundness import check_encoders, check_equal, check_sound
from scumble.formats.weights import AdapterWeights
from scumble.formats.witnesses import doubt

BUNDLE_NAME = "scumble_adapter.safetensors"
"""Adapter and learned tokens in one file that says all of itself."""
WEIGHT_NAME = "pytorch_lora_weights.safetensors"
"""The file name that diffusers looks for in a folder."""
EMBEDS_NAME = "learned_embeds.safetensors"
"""The file name that diffusers looks for in a folder of a learned token."""

FILE_NAMES = (BUNDLE_NAME, WEIGHT_NAME, "adapter_model.safetensors", EMBEDS_NAME)
"""What a folder is searched for, in this order: the fullest first."""

PICKLED_NAMES = ("pytorch_lora_weights.bin", "adapter_model.bin", "learned_embeds.bin")
"""What they were called before; a folder is searched for these last."""

PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


class Format(NamedTuple):
    """One file format: its functions.

    Args:
        recognises: whether a file is of this format, by what is in it.
        read: understands a file, and lists what it could not place.
        write: lays a file out.
    """

    recognises: Callable[[Content, KeyNames], bool]
    read: Callable[[Content, KeyNames], AdapterWeights]
    write: Callable[[AdapterWeights, KeyNames], Content]


FORMATS: dict[str, Format] = {
    "attn_procs": Format(attn_procs.recognises, attn_procs.read, attn_procs.write),
    "cloneofsimo": Format(cloneofsimo.recognises, cloneofsimo.read, cloneofsimo.write),
    "kohya": Format(kohya.recognises, kohya.read, kohya.write),
    "peft": Format(peft.recognises, peft.read, peft.write),
    "embedding": Format(embedding.recognises, embedding.read, embedding.write),
}
"""Format name -> its functions; the first that recognises a file reads it."""


def adapter_file(source: str | Path, *, allow_pickle: bool = False) -> Path:
    """Find the adapter file that a path means: the file itself, or the one inside a folder.

    It is said where it is not as the run wrote it that it lies in.

    Args:
        source: the file or folder.
        allow_pickle: a pickled file will do too, if a folder has no other.

    Raises:
        UserError: nothing is there, or something pickled that is not to be opened.
    """
    path = user_path(source)
    path = _inside(path) if path.is_dir() else path
    if not path.is_file():
        raise UserError(
            f"there is no adapter at {path}",
            "Give the .safetensors file, or the folder that a training run wrote.",
        )
    if not allow_pickle and is_pickled(path):
        raise refusal(path)
    if line := doubt(path):
        console.warn(line)
    return path


def _inside(folder: Path) -> Path:
    for names, suffixes in ((FILE_NAMES, (".safetensors",)), (PICKLED_NAMES, PICKLED)):
        known = [folder / name for name in names if (folder / name).is_file()]
        others = sorted(path for path in folder.iterdir() if path.suffix.lower() in suffixes)
        if known or len(others) == 1:
            return (known or others)[0]
        if others:
            raise UserError(
                f"the folder {folder} holds several {' or '.join(suffixes)} files", _hint(folder)
            )
    raise UserError(f"the folder {folder} holds no .safetensors file", _hint(folder))


def _hint(folder: Path) -> str:
    """What else a folder without one adapter may be."""
    for model in (folder, folder / "model"):
        if (model / "model_index.json").is_file():
            return f"It holds a whole model: --pretrained_model_name_or_path {model}."
    steps = {
        int(path.name.partition("-")[2]): path
        for path in folder.glob("checkpoint-*")
        if path.name.partition("-")[2].isdecimal()
    }
    if steps:
        return f"The run in it is not finished; its newest checkpoint is {steps[max(steps)]}."
    return "Name the adapter file itself."


def read_adapter(
    path: str | Path,
    key_names: KeyNames,
    *,
    allow_pickle: bool = False,
    partial: bool = False,
    outline: bool = False,
) -> AdapterWeights:
    """Read an adapter file.

    Args:
        path: the file, or the folder that a training run wrote.
        key_names: the names of the family that the adapter belongs to.
        allow_pickle: read pickled files too; tensors alone are taken from them.
        partial: read what can be placed, and list the rest in `left_out`.
        outline: leave the numbers unread: shapes, ranks and alphas alone.

    Raises:
        UserError: the file is missing, damaged, of an unknown format, or holds a key that is no
            adapter tensor; nothing is returned half-read.
    """
    file = adapter_file(path, allow_pickle=allow_pickle)
    content = read_content(file, outline=outline, allow_pickle=allow_pickle)
    return adapter_in(content, file, key_names, partial=partial)


def adapter_in(
    content: Content, file: Path, key_names: KeyNames, *, partial: bool = False
) -> AdapterWeights:
    """Understand what was read of an adapter file.

    Args:
        content: of the file, or its outline.
        file: that it was read from.
        key_names: the names of the family that the adapter belongs to.
        partial: take what can be placed, and list the rest in `left_out`.

    Raises:
        UserError: it is of an unknown format, or holds a key that is no adapter tensor.
    """
    if not content.tensors:
        raise UserError(f"{file} holds no adapter: it has no tensors")
    if peft.has_settings_beside(content):
        content = replace(content, settings=settings_beside(file))
    try:
        weights = FORMATS[format_of(content, key_names)].read(content, key_names)
        check_sound(weights)
    except UserError as error:
        raise UserError(f"{file.name}: {error.message}", error.hint) from error
    if weights.left_out and not partial:
        raise _misfit(file, weights.left_out)
    if weights.is_empty:
        raise UserError(f"{file}: none of its tensors fits anything", "Nothing was loaded.")
    return weights


def format_of(content: Content, key_names: KeyNames) -> str:
    """The name of the format that a file is of, found by what is in it.

    Raises:
        UserError: it is of none.
    """
    for name, entry in FORMATS.items():
        if entry.recognises(content, key_names):
            return name
    starts = tuple(f"{name}." for name in key_names.components)
    odd = next((key for key in content.tensors if not key.startswith(starts)), "")
    raise UserError(
        f"the key '{odd}' names none of the components {', '.join(key_names.components)}"
        f"{looks_like(odd)}",
        "The file is of another format, or for another family of models. Nothing was loaded.",
    )


def _misfit(file: Path, left_out: dict[str, str]) -> UserError:
    key, reason = next(iter(left_out.items()))
    others = f", and so for {len(left_out) - 1} more keys" if len(left_out) > 1 else ""
    return UserError(
        f"{file.name}: the key '{key}' {reason}{others}",
        "Nothing was loaded. --partial loads what fits and lists the rest.",
    )


def write_adapter(
    weights: AdapterWeights, path: str | Path, key_names: KeyNames, format: str = "peft"
) -> Path:
    """Write an adapter file, read it back, and only then put it in place.

    Equal weights and metadata give equal bytes.

    Args:
        weights: what to write.
        path: the file to write; an older one is replaced.
        key_names: the names of the family that the adapter belongs to.
        format: a name of `FORMATS`.

    Returns:
        The path written.

    Raises:
        UserError: unknown format, one that cannot hold these weights, NaN or infinite values, or
            the folder cannot be written.
    """
    if format not in FORMATS:
        raise UserError(f"unknown adapter format '{format}'", f"Known: {', '.join(FORMATS)}.")
    if weights.is_empty:
        raise UserError("there is nothing to write: the adapter has no tensors")
    check_sound(weights)
    check_encoders(weights, key_names)
    weights = _in_file_names(weights, key_names)
    entry = FORMATS[format]

    def check(written: Path) -> None:
        check_equal(weights, entry.read(read_content(written), key_names))

    write_atomically(Path(path), container_bytes(entry.write(weights, key_names)), check)
    return Path(path)


def _in_file_names(weights: AdapterWeights, key_names: KeyNames) -> AdapterWeights:
    """Spell module paths that came from a live model as files do."""
    components = {
        component: {key_names.to_file(component, path): entry for path, entry in modules.items()}
        for component, modules in weights.components.items()
    }
    return AdapterWeights(components, weights.metadata, weights.tokens)
