"""Pictures of a subject's class, drawn once by the frozen base and kept for every later run."""

import hashlib
import io
import json
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image

from scumble import console
from scumble.config import TrainConfig
from scumble.data.sources import image_folder
from scumble.drafts import sweep
from scumble.errors import UserError
from scumble.families import Components, Family
from scumble.formats.container import require_writable, write_atomically
from scumble.inference.device import weight_dtype
from scumble.inference.generator import Sampling, build_pipeline, draw_together
from scumble.training.runtime import Runtime

MANIFEST = "class_pictures.json"
DRAWN = re.compile(r"drawn_\d{5}\.png")


SAMPLING = Sampling()
"""The same whatever a run's sample pictures are drawn with: runs share class pictures."""


def draw_class_pictures(
    config: TrainConfig,
    family: Family,
    components: Components,
    runtime: Runtime,
    folder: Path,
) -> set[str]:
    """Draw what lacks of the class pictures, and write down which they are.

    A picture of a number depends on the prompt, the base and the number alone, so an interrupted
    run goes on where it was. Pictures that are not drawn here are the user's own, and count.

    Returns:
        Names of drawn pictures in the folder beyond the number asked for: they are not to be used.

    Raises:
        UserError: the folder holds drawn pictures of another prompt or base, or cannot be written.
    """
    processes = runtime.processes
    own, drawn_before = processes.safely(lambda: _pictures(folder))
    processes.agree({"the number of your own class pictures": len(own)})
    wanted = [_name(number) for number in range(max(0, config.num_class_images - len(own)))]
    artist = _Artist(config, family, components, runtime)

    def begin() -> dict[str, str]:
        require_writable(folder, "--class_data_dir")
        sweep(folder.glob(".*.tmp"))
        if own:
            console.say(f"class pictures: {len(own)} of your own in {folder}")
        return _drawn(folder, artist.origin)

    _complete(artist, folder, wanted, processes.from_main(begin))
    return set(drawn_before) - set(wanted)


def _complete(
    artist: "_Artist", folder: Path, wanted: Sequence[str], drawn: dict[str, str]
) -> None:
    """Have the pictures on each machine; several processes each draw some of what lacks."""
    processes = artist.runtime.processes
    kept = _Kept(folder, artist.origin, processes.leads_machine)
    intact = {name for name, digest in drawn.items() if _digest(folder / name) == digest}
    kept.digests |= {name: drawn[name] for name in intact}
    lacking = processes.together(lambda: [name for name in wanted if name not in intact])
    missing = lacking[0]
    elsewhere = sorted({name for names in lacking for name in names} - set(missing))
    if elsewhere:
        kept.add(processes.from_main(lambda: {n: (folder / n).read_bytes() for n in elsewhere}))
    if not missing:
        return
    for name in missing:
        if name in drawn:
            console.say(f"class pictures: {name} is gone or changed and is drawn anew")
    console.say(f"drawing {len(missing)} pictures of '{artist.config.class_prompt}' into {folder}")
    try:
        _draw(artist, missing, kept)
    except KeyboardInterrupt:
        done = sum(1 for name in wanted if name in kept.digests)
        console.say(
            f"{done} of {len(wanted)} class pictures are drawn and kept in {folder}; the same "
            "command goes on"
        )
        raise
    artist.leave()


def _draw(artist: "_Artist", names: Sequence[str], kept: "_Kept") -> None:
    """Draw pictures batch by batch, each process another batch; the same batches however many."""
    processes, size = artist.runtime.processes, artist.config.sample_batch_size
    batches = [names[start : start + size] for start in range(0, len(names), size)]
    with console.progress(len(names), "drawing the class", unit="picture") as bar:
        for first in range(0, len(batches), processes.count):
            own = batches[first + processes.rank : first + processes.rank + 1]
            drawn = processes.together(partial(artist.draw, own[0] if own else []))
            pictures = {name: content for part in drawn for name, content in part.items()}
            processes.safely(partial(kept.add, pictures))
            bar.update(len(pictures))


class _Artist:
    """The frozen base as it draws its class; loaded for the first picture.

    Args:
        config: names the class.
        family: how to load and draw.
        components: of the base, which is not changed.
        runtime: where to draw.
    """

    def __init__(
        self, config: TrainConfig, family: Family, components: Components, runtime: Runtime
    ) -> None:
        self.config = config
        self.family = family
        self.base = components.base
        self.runtime = runtime
        self._pipeline: Any = None

    @property
    def origin(self) -> dict[str, Any]:
        """What the pictures depend on."""
        return {
            "class_prompt": self.config.class_prompt,
            "base": self.base.reference,
            "revision": self.base.revision,
            "variant": self.base.variant,
            "prediction_type": self.base.prediction_type,
        }

    def draw(self, names: Sequence[str]) -> dict[str, bytes]:
        """Draw pictures as one batch; their files' contents."""
        if not names:
            return {}
        prompts = [self.config.class_prompt or ""] * len(names)
        images = draw_together(self._ready(), prompts, [_seed(n) for n in names], SAMPLING)
        return {name: _png(image) for name, image in zip(names, images, strict=True)}

    def leave(self) -> None:
        """Give the memory back."""
        self._pipeline = None
        if self.runtime.device.type == "cuda":
            torch.cuda.empty_cache()

    def _ready(self) -> Any:
        if self._pipeline is None:
            parts = Components(self.base)
            self.family.load(parts, self.family.components, _dtype(self.config, self.runtime))
            self._pipeline = build_pipeline(self.family, parts).to(self.runtime.device)
            self._pipeline.set_progress_bar_config(disable=True)
        return self._pipeline


class _Kept:
    """The drawn pictures of a folder, with their list.

    Args:
        folder: of the pictures.
        origin: what they depend on.
        writes: whether this process is the one of its machine that writes there.
    """

    def __init__(self, folder: Path, origin: dict[str, Any], writes: bool) -> None:
        self.folder = folder
        self.origin = origin
        self.writes = writes
        self.digests: dict[str, str] = {}

    def add(self, pictures: dict[str, bytes]) -> None:
        """Keep pictures that are not there, or are others there."""
        new = {name: hashlib.sha256(content).hexdigest() for name, content in pictures.items()}
        for name, content in pictures.items():
            if self.writes and self.digests.get(name) != new[name]:
                write_atomically(self.folder / name, content)
        self.digests |= new
        if self.writes:
            _write_manifest(self.folder, self.origin, self.digests)


def _png(image: Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def _drawn(folder: Path, origin: dict[str, Any]) -> dict[str, str]:
    """Name -> sha256 of the pictures that were drawn here before."""
    path = folder / MANIFEST
    if not path.is_file():
        return {}
    try:
        manifest = json.loads(path.read_text("utf-8"))
        then, pictures = dict(manifest["origin"]), dict(manifest["pictures"])
        if not all(map(DRAWN.fullmatch, pictures)):
            raise ValueError("it names other files than drawn pictures")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"{path} is damaged ({error})", "Name an empty --class_data_dir."
        ) from error
    for name, value in origin.items():
        if then.get(name) != value:
            raise UserError(
                f"the class pictures in {folder} were drawn with {name} {then.get(name)!r}, "
                f"not {value!r}",
                "Name another --class_data_dir; nothing was changed there.",
            )
    return pictures


def _pictures(folder: Path) -> tuple[list[str], list[str]]:
    """Names of the user's own pictures in the folder, and of those that bear a drawn one's name."""
    if not folder.is_dir():
        return [], []
    try:
        names = [example.id for example in image_folder(folder)]
    except UserError:
        return [], []  # no pictures yet; what else is there is said when the folder is scanned
    drawn = [name for name in names if DRAWN.fullmatch(name)]
    return [name for name in names if name not in drawn], drawn


def _write_manifest(folder: Path, origin: dict[str, Any], pictures: dict[str, str]) -> None:
    content = {"origin": origin, "pictures": dict(sorted(pictures.items()))}
    write_atomically(folder / MANIFEST, (json.dumps(content, indent=2) + "\n").encode())


def _name(number: int) -> str:
    return f"drawn_{number:05d}.png"


def _seed(name: str) -> int:
    digest = hashlib.sha256(f"class picture {name}".encode()).digest()
    return int.from_bytes(digest[:4], "big")


def _digest(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def _dtype(config: TrainConfig, runtime: Runtime) -> torch.dtype:
    precision = config.prior_generation_precision
    if precision is None:
        return runtime.dtype
    dtype, note = weight_dtype("no" if precision == "fp32" else precision, runtime.device)
    if note:
        console.say(note)
    return dtype
