"""Where two models in diffusers' layout differ: tensor by tensor, none loaded as a whole."""

from pathlib import Path

import torch

from scumble.formats.streaming import open_streamed

WEIGHTS = "*.safetensors"


def models_apart(first: Path, second: Path) -> tuple[str, float]:
    """The tensor in which two models differ most.

    Args:
        first: folder of a model.
        second: the one to compare it with.

    Returns:
        Its name and ||A - B|| / ||A||, infinity where only one of them has it; ("", 0.0) where
        every number is the same.

    Raises:
        UserError: a file is damaged.
    """
    names = sorted({p.relative_to(f) for f in (first, second) for p in f.rglob(WEIGHTS)})
    most, name = 0.0, ""
    for file in names:
        if not ((first / file).is_file() and (second / file).is_file()):
            return file.as_posix(), float("inf")
        for key, apart in _apart(first / file, second / file).items():
            if apart > most:
                most, name = apart, f"{file.parent.as_posix()}.{key}"
    return name, most


def _apart(first: Path, second: Path) -> dict[str, float]:
    found = {}
    with open_streamed([first]) as a, open_streamed([second]) as b:
        keys = sorted(a.entries.keys() | b.entries.keys())
        for key in keys:
            if a.entries.get(key) != b.entries.get(key):
                found[key] = float("inf")
                continue
            ours, theirs = a.tensor(key), b.tensor(key)
            if not torch.equal(ours, theirs):
                norm = ours.double().norm().clamp(min=1e-30)
                found[key] = float((ours.double() - theirs.double()).norm() / norm)
    return found
