"""What differs between two adapter files: `diff_adapters`."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from scumble import console
from scumble.adapters import ADAPTERS
from scumble.errors import UserError
from scumble.formats.weights import AdapterWeights, ModuleWeights
from scumble.tools.changes import distance, norm_of
from scumble.tools.number_formats import dtype_name
from scumble.tools.reading import Opened, open_adapter

Side = Literal["first", "second"]


@dataclass(frozen=True)
class ModuleDifference:
    """One layer in two files.

    Args:
        component: of the model.
        module: path as files spell it.
        only_in: the file that alone has it; None where both do.
        changed: "type", "rank", "alpha", "dtype" or "shape" -> what it is in either file.
        distance: of the two changes, ||A - B|| / ||A||; infinity where A changes nothing; None
            where only one file has the layer, or only the base's weight would tell. Of two alike
            types that need the base, the same of their tensors.
        is_equal: whether both do the same, as far as the tolerance goes.
    """

    component: str
    module: str
    only_in: Side | None
    changed: dict[str, tuple[str, str]]
    distance: float | None
    is_equal: bool


@dataclass(frozen=True)
class TokenDifference:
    """A learned word in two files.

    Args:
        token: the word.
        encoder: text encoder that it is for.
        only_in: the file that alone has it; None where both do.
        changed: "vectors", "width" or "dtype" -> what it is in either file.
        distance: largest difference of two numbers; None where the shapes differ.
        is_equal: whether both do the same, as far as the tolerance goes.
    """

    token: str
    encoder: str
    only_in: Side | None
    changed: dict[str, tuple[str, str]]
    distance: float | None
    is_equal: bool


@dataclass(frozen=True)
class Difference:
    """What `diff_adapters` found.

    Args:
        first: file.
        second: file.
        formats: of the two.
        same_bytes: whether the files are the same, byte by byte.
        modules: every layer of either file.
        tokens: every learned word of either file.
        metadata: key -> its text in either file, None where it lacks; keys that agree are left out.
    """

    first: Path
    second: Path
    formats: tuple[str, str]
    same_bytes: bool
    modules: list[ModuleDifference]
    tokens: list[TokenDifference]
    metadata: dict[str, tuple[str | None, str | None]]

    @property
    def is_equal(self) -> bool:
        """Whether both do the same to a model, whatever else differs."""
        return all(m.is_equal for m in self.modules) and all(t.is_equal for t in self.tokens)

    def text(self) -> str:
        """A page for the terminal."""
        from scumble.tools.diff_text import render

        return render(self)

    def to_dict(self) -> dict[str, Any]:
        """The same for programs, ready for JSON.

        Keys: first, second, formats, same_bytes, is_equal, modules (a list of component, module,
        only_in, changed, distance, is_equal), tokens (a list of token, encoder, only_in, changed,
        distance, is_equal), metadata. What is not known is null, infinity too. Keys may be added,
        none will go.
        """
        whole = asdict(self) | {"first": str(self.first), "second": str(self.second)}
        for entry in (*whole["modules"], *whole["tokens"]):
            if entry["distance"] is not None and math.isinf(entry["distance"]):
                entry["distance"] = None
        return whole | {"is_equal": self.is_equal}


def diff_adapters(
    first: str | Path,
    second: str | Path,
    *,
    tolerance: float = 0.0,
    partial: bool = False,
    allow_pickle: bool = False,
) -> Difference:
    """Compare two adapter files by what they do: by the changes they make, not by their factors.

    Args:
        first: an adapter file, or the folder of a training run.
        second: the one to compare it with.
        tolerance: largest relative difference of a change that counts as none; of learned words,
            the largest difference of a number.
        partial: compare what can be read of them.
        allow_pickle: read pickled files too (.bin, .pt); tensors alone are taken from them.

    Returns:
        What differs; `is_equal` sums it up, `text()` is a page, `to_dict()` for programs.

    Raises:
        UserError: one of them cannot be read.
    """
    if not (math.isfinite(tolerance) and tolerance >= 0):
        raise UserError(f"the tolerance is {tolerance}", "Give a number from 0 up, as in 1e-6.")
    options = {"partial": partial, "allow_pickle": allow_pickle}
    a, b = open_adapter(first, **options), open_adapter(second, **options)
    return Difference(
        first=a.file,
        second=b.file,
        formats=(a.format, b.format),
        same_bytes=_same_bytes(a.file, b.file),
        modules=_modules(a, b, tolerance),
        tokens=_tokens(a.weights, b.weights, tolerance),
        metadata=_metadata(a.content.metadata, b.content.metadata),
    )


def _modules(a: Opened, b: Opened, tolerance: float) -> list[ModuleDifference]:
    ours, theirs = _flat(a.weights), _flat(b.weights)
    places = list(ours | theirs)
    found = []
    with console.progress(len(places), "comparing", unit="layer") as bar:
        for place in places:
            found.append(_module(place, ours.get(place), theirs.get(place), tolerance))
            bar.update()
    return found


def _module(
    place: tuple[str, str], a: ModuleWeights | None, b: ModuleWeights | None, tolerance: float
) -> ModuleDifference:
    if a is None or b is None:
        side: Side = "second" if a is None else "first"
        alone = a or b
        # What changes nothing does what is not there does.
        is_idle = alone is not None and norm_of(alone) == 0
        return ModuleDifference(*place, side, {}, None, is_equal=is_idle)
    try:
        apart = distance(a, b)
    except UserError as error:
        raise UserError(f"'{'.'.join(place)}': {error.message}", error.hint) from error
    is_equal = apart is not None and apart <= tolerance
    changed = _changed(_described(a), _described(b))
    return ModuleDifference(*place, None, changed, apart, is_equal)


def _tokens(a: AdapterWeights, b: AdapterWeights, tolerance: float) -> list[TokenDifference]:
    ours, theirs = _vectors(a), _vectors(b)
    return [_token(place, ours.get(place), theirs.get(place), tolerance) for place in ours | theirs]


def _token(
    place: tuple[str, str], a: Tensor | None, b: Tensor | None, tolerance: float
) -> TokenDifference:
    if a is None or b is None:
        side: Side = "second" if a is None else "first"
        return TokenDifference(*place, side, {}, None, is_equal=False)
    apart = float((a.double() - b.double()).abs().max()) if a.shape == b.shape else None
    is_equal = apart is not None and apart <= tolerance
    names = ("vectors", "width", "dtype")
    values = [(str(len(t)), str(t.shape[1]), dtype_name(t.dtype)) for t in (a, b)]
    changed = _changed(*(dict(zip(names, value, strict=True)) for value in values))
    return TokenDifference(*place, None, changed, apart, is_equal)


def _described(entry: ModuleWeights) -> dict[str, str]:
    kind = ADAPTERS[entry.type]
    tensors = {kind.file_names[name]: tensor for name, tensor in entry.tensors.items()}
    shapes = {name: "x".join(map(str, tensor.shape)) for name, tensor in tensors.items()}
    numbers = {"rank": str(entry.rank), "alpha": f"{entry.alpha:g}"} if kind.has_rank else {}
    dtypes = {dtype_name(tensor.dtype) for tensor in tensors.values()}
    return {
        "type": entry.type,
        **numbers,
        "dtype": " ".join(sorted(dtypes)),
        "shape": ", ".join(f"{name} {shape}" for name, shape in shapes.items()),
    }


def _changed(a: Mapping[str, str], b: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    both = {name: (a.get(name, "-"), b.get(name, "-")) for name in {**a, **b}}
    return {name: pair for name, pair in both.items() if pair[0] != pair[1]}


def _metadata(
    a: Mapping[str, str], b: Mapping[str, str]
) -> dict[str, tuple[str | None, str | None]]:
    both = {key: (a.get(key), b.get(key)) for key in sorted({**a, **b})}
    return {key: pair for key, pair in both.items() if pair[0] != pair[1]}


def _flat(weights: AdapterWeights) -> dict[tuple[str, str], ModuleWeights]:
    return {
        (c, m): entry for c, modules in weights.components.items() for m, entry in modules.items()
    }


def _vectors(weights: AdapterWeights) -> dict[tuple[str, str], Tensor]:
    return {
        (t, e): rows for t, entry in weights.tokens.items() for e, rows in entry.vectors.items()
    }


def _same_bytes(first: Path, second: Path) -> bool:
    if first.stat().st_size != second.stat().st_size:
        return False
    with first.open("rb") as ours, second.open("rb") as theirs:
        while chunk := ours.read(1 << 20):
            if chunk != theirs.read(1 << 20):
                return False
    return True
