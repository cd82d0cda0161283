"""Read and write adapter files of any format."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from scumble.errors import UserError
from scumble.formats import embedding, peft
from scumble.formats.container import DTYPES, read_header, write_atomically
from scumble.formats.key_names import KeyNames
from scumble.formats.weights import AdapterWeights

BUNDLE_NAME = "scumble_adapter.safetensors"
"""Adapter and learned tokens in one file that says all of itself."""
WEIGHT_NAME = "pytorch_lora_weights.safetensors"
"""The file name that diffusers looks for in a folder."""
EMBEDS_NAME = "learned_embeds.safetensors"
"""The file name that diffusers looks for in a folder of a learned token."""

FILE_NAMES = (BUNDLE_NAME, WEIGHT_NAME, "adapter_model.safetensors", EMBEDS_NAME)
"""What a folder is searched for, in this order: the fullest first."""

PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


class Format(NamedTuple):
    """One file format: its functions.

    Args:
        recognises: whether a file is of this format, by its tensors' shapes and its metadata.
        read: reads a file.
        write: writes a file.
    """

    recognises: Callable[[Mapping[str, tuple[int, ...]], Mapping[str, str], KeyNames], bool]
    read: Callable[[Path, KeyNames], AdapterWeights]
    write: Callable[[AdapterWeights, Path, KeyNames], None]


FORMATS: dict[str, Format] = {
    "peft": Format(peft.recognises, peft.read, peft.write),
    "embedding": Format(embedding.recognises, embedding.read, embedding.write),
}
"""Format name -> its functions; the first that recognises a file reads it."""


def adapter_file(source: str | Path) -> Path:
    """Find the adapter file that a path means: the file itself, or the one inside a folder.

    Raises:
        UserError: nothing is there.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        files = [path / name for name in FILE_NAMES if (path / name).is_file()]
        files = files or sorted(path.glob("*.safetensors"))
        if len(files) == 1 or (files and files[0].name in FILE_NAMES):
            return files[0]
        for other in sorted(path.iterdir()) if not files else ():
            _refuse_pickled(other)
        found = "several .safetensors files" if files else "no .safetensors file"
        raise UserError(f"the folder {path} holds {found}", _hint(path))
    if not path.is_file():
        raise UserError(
            f"there is no adapter at {path}",
            "Give the .safetensors file, or the folder that a training run wrote.",
        )
    _refuse_pickled(path)
    return path


def _hint(folder: Path) -> str:
    """What else a folder without one adapter may be."""
    for model in (folder, folder / "model"):
        if (model / "model_index.json").is_file():
            return f"It holds a whole model: --pretrained_model_name_or_path {model}."
    steps = {
        int(path.name.partition("-")[2]): path
        for path in folder.glob("checkpoint-*")
        if path.name.partition("-")[2].isdigit()
    }
    if steps:
        return f"The run in it is not finished; its newest checkpoint is {steps[max(steps)]}."
    return "Name the adapter file itself."


def read_adapter(path: str | Path, key_names: KeyNames) -> AdapterWeights:
    """Read an adapter file.

    Args:
        path: the file, or the folder that a training run wrote.
        key_names: the names of the family that the adapter belongs to.

    Raises:
        UserError: the file is missing, damaged, of an unknown format, or holds a key that is no
            adapter tensor; nothing is returned half-read.
    """
    file = adapter_file(path)
    shapes, metadata = read_header(file)
    for entry in FORMATS.values():
        if entry.recognises(shapes, metadata, key_names):
            break
    else:
        raise _unknown_format(file, shapes, key_names)
    weights = entry.read(file, key_names)
    if weights.is_empty:
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
        UserError: unknown format, one that cannot hold these weights, NaN or infinite values, or
            the folder cannot be written.
    """
    if format not in FORMATS:
        raise UserError(f"unknown adapter format '{format}'", f"Known: {', '.join(FORMATS)}.")
    _check_sound(weights, "the adapter")
    _check_encoders(weights, key_names)
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
    return AdapterWeights(components, weights.metadata, weights.tokens)


def _refuse_pickled(path: Path) -> None:
    if path.suffix.lower() in PICKLED:
        raise UserError(
            f"{path} is a pickled file, which is not read: opening one can run what is in it",
            "Get it as .safetensors, or convert it where you trust it.",
        )


def _unknown_format(path: Path, keys: Iterable[str], key_names: KeyNames) -> UserError:
    starts = tuple(f"{name}." for name in key_names.components)
    odd = next((key for key in keys if not key.startswith(starts)), "")
    return UserError(
        f"{path.name}: the key '{odd}' names none of the components "
        f"{', '.join(key_names.components)}",
        "The file is of another format, or for another family of models. Nothing was loaded.",
    )


def _check_encoders(weights: AdapterWeights, key_names: KeyNames) -> None:
    for token, entry in weights.tokens.items():
        for encoder in entry.vectors.keys() - key_names.tokens.keys():
            raise UserError(f"'{token}' has vectors for '{encoder}', which the family lacks")


def _check_sound(weights: AdapterWeights, name: str) -> None:
    for component, modules in weights.components.items():
        for module, entry in modules.items():
            if entry.rank < 1:
                raise UserError(f"{name}: {component}.{module} has no rank: its tensors are empty")
            for tensor in entry.tensors.values():
                if not torch.isfinite(tensor).all():
                    raise UserError(f"{name}: {component}.{module} holds NaN or infinite values")
    for token, learned in weights.tokens.items():
        if not token or not learned.vectors:
            raise UserError(f"{name}: the token '{token}' has no {'vectors' if token else 'name'}")
        for vectors in learned.vectors.values():
            _check_vectors(vectors, f"{name}: the token '{token}'")


def _check_vectors(vectors: Tensor, name: str) -> None:
    if vectors.ndim != 2 or not vectors.numel():
        raise UserError(f"{name} has shape {tuple(vectors.shape)}, not that of vectors")
    if vectors.dtype not in DTYPES:
        raise UserError(f"{name} holds {vectors.dtype}, which is not supported")
    if not torch.isfinite(vectors).all():
        raise UserError(f"{name} holds NaN or infinite values")


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
    for token, learned in wanted.tokens.items():
        vectors = got.tokens[token].vectors if token in got.tokens else {}
        if vectors.keys() != learned.vectors.keys() or not all(
            torch.equal(vectors[encoder], tensor) for encoder, tensor in learned.vectors.items()
        ):
            raise UserError(f"the token '{token}' did not come back from the file as written")
