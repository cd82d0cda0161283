"""Read and write adapter files of any format."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from scumble.errors import UserError
from scumble.formats import peft
from scumble.formats.container import write_atomically
from scumble.formats.key_names import KeyNames
from scumble.formats.weights import AdapterWeights

WEIGHT_NAME = "pytorch_lora_weights.safetensors"
"""The file name that diffusers looks for in a folder."""


class Format(NamedTuple):
    """One file format: its two functions."""

    read: Callable[[Path, KeyNames], AdapterWeights]
    write: Callable[[AdapterWeights, Path, KeyNames], None]


FORMATS: dict[str, Format] = {"peft": Format(peft.read, peft.write)}
"""Format name -> its reader and writer."""


def adapter_file(source: str | Path) -> Path:
    """Find the adapter file that a path means: the file itself, or the one inside a folder.

    Raises:
        UserError: nothing is there.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        names = [WEIGHT_NAME, "adapter_model.safetensors"]
        files = [path / name for name in names if (path / name).is_file()]
        files = files or sorted(path.glob("*.safetensors"))
        if len(files) == 1 or (files and files[0].name in names):
            return files[0]
        found = "several .safetensors files" if files else "no .safetensors file"
        raise UserError(f"the folder {path} holds {found}", "Name the adapter file itself.")
    if not path.is_file():
        raise UserError(
            f"there is no adapter at {path}",
            "Give the .safetensors file, or the folder that a training run wrote.",
        )
    return path


def read_adapter(path: str | Path, key_names: KeyNames) -> AdapterWeights:
    """Read an adapter file.

    Args:
        path: the file, or the folder that a training run wrote.
        key_names: the names of the family that the adapter belongs to.

    Raises:
        UserError: the file is missing, damaged, of an unknown format, or holds a key that is no
            adapter tensor; nothing is returned half-read.
    """
    weights = peft.read(adapter_file(path), key_names)
    if not any(weights.components.values()):
        raise UserError(f"{path} holds no adapter: it has no tensors")
    _check_sound(weights, str(path))
    return weights


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
        UserError: unknown format, NaN or infinite values, or the folder cannot be written.
    """
    if format not in FORMATS:
        raise UserError(f"unknown adapter format '{format}'", f"Known: {', '.join(FORMATS)}.")
    _check_sound(weights, "the adapter")
    weights = _in_file_names(weights, key_names)
    path = Path(path)
    draft = path.with_name(f".{path.stem}.draft{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        FORMATS[format].write(weights, draft, key_names)
        _check_equal(weights, FORMATS[format].read(draft, key_names))
        write_atomically(path, draft.read_bytes())
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}", "Is the disk full?") from error
    finally:
        draft.unlink(missing_ok=True)
    return path


def _in_file_names(weights: AdapterWeights, key_names: KeyNames) -> AdapterWeights:
    """Spell module paths that came from a live model as files do."""
    components = {
        component: {key_names.to_file(component, path): entry for path, entry in modules.items()}
        for component, modules in weights.components.items()
    }
    return AdapterWeights(components, weights.metadata)


def _check_sound(weights: AdapterWeights, name: str) -> None:
    for component, modules in weights.components.items():
        for module, entry in modules.items():
            if entry.rank < 1:
                raise UserError(f"{name}: {component}.{module} has no rank: its tensors are empty")
            for tensor in entry.tensors.values():
                if not torch.isfinite(tensor).all():
                    raise UserError(f"{name}: {component}.{module} holds NaN or infinite values")


def _check_equal(wanted: AdapterWeights, got: AdapterWeights) -> None:
    for component, modules in wanted.components.items():
        for module, entry in modules.items():
            back = got.components.get(component, {}).get(module)
            same = (
                back is not None
                and back.alpha == entry.alpha
                and back.tensors.keys() == entry.tensors.keys()
                and all(torch.equal(back.tensors[k], t) for k, t in entry.tensors.items())
            )
            if not same:
                raise UserError(f"{component}.{module} did not come back from the file as written")
