"""What an adapter file is and what is in it, without a model: `inspect_adapter`."""

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from scumble import console
from scumble.adapters import ADAPTERS
from scumble.formats.base_version import base_version, text_width
from scumble.formats.weights import AdapterWeights, ModuleWeights
from scumble.tools.changes import norm_of
from scumble.tools.notes import Notes, notes_of
from scumble.tools.number_formats import dtype_name
from scumble.tools.reading import open_adapter

CHUNK = 1 << 20


@dataclass(frozen=True)
class InspectedModule:
    """The adapter of one layer.

    Args:
        component: of the model.
        module: path as files spell it.
        type: adapter type.
        rank: width of the bottleneck; None for types without one.
        alpha: numerator of the scale; None for types without one.
        dtype: of its tensors.
        parameters: how many numbers it has.
        bytes: what they take in the file.
        norm: Frobenius norm of what it changes; None where that was not measured or needs the base.
    """

    component: str
    module: str
    type: str
    rank: int | None
    alpha: float | None
    dtype: str
    parameters: int
    bytes: int
    norm: float | None = None


@dataclass(frozen=True)
class InspectedToken:
    """The vectors of a learned token for one text encoder."""

    token: str
    encoder: str
    vectors: int
    width: int
    dtype: str


@dataclass(frozen=True)
class Inspection:
    """What `inspect_adapter` found.

    Args:
        file: that was read.
        bytes: its size.
        tensors: how many it has.
        format: name of its format.
        family: of models that it is for.
        version: of the family, as user interfaces call it; None where the file leaves that open.
        text_width: of the base's text encoder, which tells versions apart.
        notes: what the file says of itself.
        modules: adapted layers, by component.
        tokens: learned words.
        left_out: key that fits nothing -> why.
        metadata: as in the file.
        measured: whether norms were asked for.
        hashes: name -> hexadecimal digits, if asked for.
    """

    file: Path
    bytes: int
    tensors: int
    format: str
    family: str
    version: str | None
    text_width: int | None
    notes: Notes
    modules: list[InspectedModule]
    tokens: list[InspectedToken]
    left_out: dict[str, str]
    metadata: dict[str, str]
    measured: bool
    hashes: dict[str, str]

    def text(self, *, modules: bool = False) -> str:
        """A page for the terminal.

        Args:
            modules: list every layer.
        """
        from scumble.tools.inspect_text import render

        return render(self, every_module=modules)

    def to_dict(self) -> dict[str, Any]:
        """The same for programs, ready for JSON.

        Keys: file, bytes, tensors, format, family, version, text_width, base_model, trigger_words,
        training, folders, tags, modules (a list of component, module, type, rank, alpha, dtype,
        parameters, bytes, norm), tokens (a list of token, encoder, vectors, width, dtype),
        left_out, metadata, hashes. What is not known is null. Keys may be added, none will go.
        """
        whole = asdict(self) | {"file": str(self.file)}
        del whole["measured"]
        notes: dict[str, Any] = whole.pop("notes")
        return whole | notes


def inspect_adapter(
    path: str | Path, *, norms: bool = False, hashes: bool = False, allow_pickle: bool = False
) -> Inspection:
    """Find out what an adapter file is and what is in it.

    Without norms and hashes no tensor is read, so that the size of the file does not matter.

    Args:
        path: the file, or the folder that a training run wrote.
        norms: measure how much each layer is changed.
        hashes: compute checksums: "sha256" of the file, and "autov3" of its tensors alone, which
            stays the same when its metadata is edited.
        allow_pickle: read pickled files too (.bin, .pt); tensors alone are taken from them.

    Returns:
        What was found; `text()` is a page, `to_dict()` for programs. Keys that fit nothing are in
        `left_out`.

    Raises:
        UserError: the file is missing, damaged, or nothing in it belongs to an adapter.
    """
    opened = open_adapter(path, partial=True, allow_pickle=allow_pickle, outline=not norms)
    weights = opened.weights
    version = base_version(weights, opened.family.key_names)
    return Inspection(
        file=opened.file,
        bytes=opened.file.stat().st_size,
        tensors=len(opened.content.tensors),
        format=opened.format,
        family=opened.family.name,
        version=version.label if version else None,
        text_width=text_width(weights, opened.family.key_names) or None,
        notes=notes_of(opened.file, opened.content.metadata),
        modules=_modules(weights, opened.family.key_names.components, norms),
        tokens=[
            InspectedToken(token, encoder, len(rows), rows.shape[1], dtype_name(rows.dtype))
            for token, entry in weights.tokens.items()
            for encoder, rows in entry.vectors.items()
        ],
        left_out=weights.left_out,
        metadata=dict(opened.content.metadata),
        measured=norms,
        hashes=_hashes(opened.file) if hashes else {},
    )


def _modules(
    weights: AdapterWeights, components: Sequence[str], norms: bool
) -> list[InspectedModule]:
    named = [
        (component, module, entry)
        for component in components
        for module, entry in weights.components.get(component, {}).items()
    ]
    if not norms:
        return [_inspected(*item, norm=None) for item in named]
    found = []
    with console.progress(len(named), "measuring", unit="layer") as bar:
        for component, module, entry in named:
            found.append(_inspected(component, module, entry, norm_of(entry)))
            bar.update()
    return found


def _inspected(
    component: str, module: str, entry: ModuleWeights, norm: float | None
) -> InspectedModule:
    tensors: list[Tensor] = list(entry.tensors.values())
    has_rank = ADAPTERS[entry.type].is_ranked(entry.tensors.keys())
    return InspectedModule(
        component=component,
        module=module,
        type=entry.type,
        rank=entry.rank if has_rank else None,
        alpha=entry.alpha if has_rank else None,
        dtype=" ".join(sorted({dtype_name(tensor.dtype) for tensor in tensors})),
        parameters=sum(tensor.numel() for tensor in tensors),
        bytes=sum(tensor.numel() * tensor.element_size() for tensor in tensors),
        norm=norm,
    )


def _hashes(file: Path) -> dict[str, str]:
    whole, tensors = hashlib.sha256(), hashlib.sha256()
    with file.open("rb") as stream:
        head = stream.read(8)
        whole.update(head)
        header = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
        is_safetensors = header <= file.stat().st_size - 8
        if is_safetensors:
            whole.update(stream.read(header))
        while chunk := stream.read(CHUNK):
            whole.update(chunk)
            tensors.update(chunk)
    found = {"sha256": whole.hexdigest()}
    return found | ({"autov3": tensors.hexdigest()} if is_safetensors else {})
