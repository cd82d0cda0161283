"""A base model as a folder in diffusers' layout, which every diffusers pipeline opens."""

import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from torch import Tensor

from scumble.errors import UserError
from scumble.families import single_file
from scumble.formats.streaming import open_streamed
from scumble.tools.base_configurations import CLASSES, write_configurations
from scumble.tools.base_facts import SCHEDULER
from scumble.tools.base_parts import WEIGHTS, base_root, component_names, files_beside
from scumble.tools.base_weights import BaseWeights, OutputFile
from scumble.tools.edits import Edit


def folder_files(
    weights: BaseWeights, edit: Edit, stack: ExitStack
) -> tuple[list[OutputFile], list[str]]:
    """Plan the files of weights of a base as a folder.

    Args:
        weights: of the base, a folder or one file.
        edit: what happens to each tensor.
        stack: keeps further files open.

    Returns:
        The files, and what the user should know of them.
    """
    base = weights.base
    if base.is_checkpoint:
        assumed = "" if base.prediction_type else single_file.assumption(base.location)
        said = [assumed] if assumed else []
        return [_renamed(weights, part, edit) for part in weights.places], said
    root = _root(weights)
    planned = [_same(weights, part, edit) for part in weights.places]
    for part in _other_components(weights, root):
        if paths := weights.base.weight_files(part):
            opened = stack.enter_context(open_streamed(paths))
            name = f"{part}/{_stem(paths)}.safetensors"
            planned.append(OutputFile(name, opened.entries, opened.tensor, opened.metadata))
    used = {path for part in root.iterdir() for path in weights.base.weight_files(part.name)}
    unused = [
        path.relative_to(root).as_posix()
        for path in sorted(root.rglob("*"))
        if path.name.endswith(WEIGHTS) and path not in used
    ]
    return planned, [f"left out: {', '.join(unused)}"] if unused else []


def write_beside(weights: BaseWeights, folder: Path) -> None:
    """Write everything but weights: configurations, tokenizer, scheduler, the list of components.

    Args:
        weights: of the base.
        folder: that exists.

    Raises:
        UserError: a single file's tokenizer is nowhere on this machine, or a link leads out of the
            base's folder.
    """
    if weights.base.is_checkpoint:
        write_configurations(weights, folder)
        return
    root = _root(weights)
    for relative in files_beside(root):
        target = folder / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / relative, target)
    if weights.base.prediction_type is not None:
        path = folder / "scheduler" / SCHEDULER
        settings = weights.base.config("scheduler", SCHEDULER)
        settings["prediction_type"] = weights.base.prediction_type
        path.write_text(json.dumps(settings, indent=2) + "\n", "utf-8")


def _root(weights: BaseWeights) -> Path:
    """The folder itself; of a base of the Hub, its place in the cache.

    Raises:
        UserError: a component is not there.
    """
    base = weights.base
    root = base_root(base)
    assert root is not None
    if not Path(base.location).is_dir():
        for part in component_names(root):
            if not (root / part).is_dir():
                raise UserError(
                    f"the {part} of {base.name} is not on this machine",
                    f"Fetch the base first: hf download {base.name}.",
                )
    return root


def _other_components(weights: BaseWeights, root: Path) -> list[str]:
    return [p for p in component_names(root) if p not in weights.places and (root / p).is_dir()]


def _stem(paths: Sequence[Path]) -> str:
    """What loaders call the file that holds all, without variant and number."""
    is_diffusers = paths[0].name.startswith("diffusion_pytorch_model")
    return "diffusion_pytorch_model" if is_diffusers else "model"


def _same(weights: BaseWeights, part: str, edit: Edit) -> OutputFile:
    """A component's file under the names that the base has, spelled as they are there."""
    names = {place.key: name for name, place in weights.places[part].items()}
    paths = weights.base.weight_files(part)
    entries = {place.key: edit.kind(place.entry) for place in weights.places[part].values()}
    tensor_of = _reader(weights, part, names, edit)
    metadata = weights.files[part].metadata
    return OutputFile(f"{part}/{_stem(paths)}.safetensors", entries, tensor_of, metadata)


def _renamed(weights: BaseWeights, part: str, edit: Edit) -> OutputFile:
    """A component's file out of an original checkpoint, under diffusers' names."""
    entries = {name: edit.kind(place.entry) for name, place in weights.places[part].items()}
    stem = "model" if CLASSES[part][0] == "transformers" else "diffusion_pytorch_model"
    tensor_of = _reader(weights, part, {name: name for name in entries}, edit)
    return OutputFile(f"{part}/{stem}.safetensors", entries, tensor_of, {})


def _reader(
    weights: BaseWeights, part: str, names: dict[str, str], edit: Edit
) -> Callable[[str], Tensor]:
    return lambda key: edit(part, names[key], weights.tensor(part, names[key]))
