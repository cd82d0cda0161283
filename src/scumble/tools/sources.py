"""The adapters that a merge takes: which they are, and how strongly each acts on each layer."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from scumble.errors import UserError
from scumble.families import FAMILIES
from scumble.formats import AdapterWeights
from scumble.formats.container import user_path
from scumble.tools.combine import Part
from scumble.tools.reading import open_adapter


@dataclass(frozen=True)
class Source:
    """An adapter to merge.

    Args:
        adapter: its file, the folder of a training run, or weights already read.
        strength: 1.0 adds it as trained, 0.5 half as much, negative the other way.
        factors: pattern of a part -> what the strength is multiplied by there, as in
            {"text_encoder": 0.5, "mid_block": 0}. A pattern is one or more whole names of a module
            path, which begins with the component; `*` stands for anything. The last of several
            that match decides.
    """

    adapter: str | Path | AdapterWeights
    strength: float = 1.0
    factors: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> "Source":
        """Read "path", "path:0.7", or "path:0.7,text_encoder=0.5,mid_block=0".

        A path that has a colon of its own stays whole, and so does one that is there.

        Raises:
            UserError: a factor is no number.
        """
        if user_path(text).exists():
            return cls(text)
        path, _, settings = text.rpartition(":")
        first, *pairs = settings.split(",")
        try:
            strength = float(first)
        except ValueError:
            if not path or "=" not in first or "/" in first or "\\" in first:
                return cls(text)
            strength, pairs = 1.0, [first, *pairs]
        return cls(path, strength, parse_factors(pairs)) if path else cls(text)


@dataclass(frozen=True)
class Loaded:
    """A source that was read.

    Args:
        name: of the file, without its folder.
        weights: what is in it.
        strength: as of `Source`.
        factors: those of the source, and those of all.
    """

    name: str
    weights: AdapterWeights
    strength: float
    factors: tuple[Mapping[str, float], ...]


def parse_factors(pairs: Sequence[str]) -> dict[str, float]:
    """Read pairs such as "mid_block=0.5", the one that decides last.

    Raises:
        UserError: one is not of that form.
    """
    factors: dict[str, float] = {}
    for pair in pairs:
        pattern, _, number = (part.strip() for part in pair.rpartition("="))
        factors.pop(pattern, None)  # a dict would leave it where it first stood
        try:
            factors[pattern] = float(number)
        except ValueError:
            pattern = ""
        if not pattern or not math.isfinite(factors[pattern]):
            hint = "For example: mid_block=0.5 'down_blocks.*.attn2=1.2' text_encoder=0."
            raise UserError(f"'{pair}' is not pattern=factor", hint)
    return factors


def load(
    sources: Sequence[Source],
    factors: Mapping[str, float],
    *,
    partial: bool = False,
    allow_pickle: bool = False,
) -> list[Loaded]:
    """Read all sources.

    Args:
        sources: at least one.
        factors: pattern -> factor, for all of them.
        partial: take what fits of each file.
        allow_pickle: read pickled files too.

    Raises:
        UserError: none is given, a file cannot be read, a strength is no number, or a pattern
            matches nothing.
    """
    if not sources:
        raise UserError("there is nothing to merge", "Name one or more adapter files.")
    options = {"partial": partial, "allow_pickle": allow_pickle}
    loaded = []
    for number, source in enumerate(sources):
        if not math.isfinite(source.strength):
            raise UserError(f"the strength {source.strength} is no number", "As in: style:0.7")
        if isinstance(source.adapter, AdapterWeights):
            name, weights = f"adapter {number + 1}", source.adapter
        else:
            name = Path(source.adapter).name
            weights = open_adapter(source.adapter, **options).weights
        loaded.append(Loaded(name, weights, source.strength, (source.factors, factors)))
        _require_matches(source.factors, loaded[-1:], name)
    _require_matches(factors, loaded, "the adapters")
    return loaded


def layers_of(sources: Sequence[Loaded]) -> dict[tuple[str, str], list[Part]]:
    """Gather what acts on each layer.

    Returns:
        (component, module path) -> the parts whose strength there is not 0.

    Raises:
        UserError: nothing acts at all, and no source has learned words.
    """
    layers: dict[tuple[str, str], list[Part]] = {}
    for number, source in enumerate(sources):
        for component, modules in source.weights.components.items():
            for path, entry in modules.items():
                strength = source.strength
                for factors in source.factors:
                    strength *= _factor(f"{component}.{path}", factors)
                if strength:
                    part = Part(number, strength, entry)
                    layers.setdefault((component, path), []).append(part)
    if not layers and not any(source.weights.tokens for source in sources):
        raise UserError("nothing is left to merge: every strength is 0")
    return layers


def _require_matches(factors: Mapping[str, float], sources: Sequence[Loaded], where: str) -> None:
    paths = [
        f"{component}.{path}"
        for source in sources
        for component, modules in source.weights.components.items()
        for path in modules
    ]
    # A component's own name is no slip of the pen, where an adapter leaves it alone.
    components = next(iter(FAMILIES.values())).key_names.components
    for pattern in sorted(factors.keys() - set(components)):
        if not any(_matches(path, pattern) for path in paths):
            raise UserError(
                f"the pattern '{pattern}' matches no layer of {where}",
                f"Layers are called as in {paths[0]}." if paths else "It changes no layers.",
            )


def _factor(path: str, factors: Mapping[str, float]) -> float:
    found = [factor for pattern, factor in factors.items() if _matches(path, pattern)]
    return found[-1] if found else 1.0


def _matches(path: str, pattern: str) -> bool:
    """Whether whole names of a path, wherever they stand in it, fit a pattern."""
    return fnmatchcase(f".{path}.", f"*.{pattern}.*")
