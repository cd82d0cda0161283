"""How a family's modules are called in files, where that differs from the live model."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple

from torch import nn


class BaseVersion(NamedTuple):
    """What other programs call one version of a family's base models.

    Args:
        label: in the menus of user interfaces, such as "SD1".
        marks: metadata by which trainers tell it.
        architecture: the ModelSpec's name of it; empty where the version alone does not decide it.
        native_px: edge of the pictures that it was made for, or 0.
    """

    label: str
    marks: Mapping[str, str]
    architecture: str = ""
    native_px: int = 0


@dataclass(frozen=True)
class KeyNames:
    """The names of one family's components and modules in adapter files.

    Args:
        components: component names that adapters of the family may change.
        levels: component -> a level of module names that files always have and that some versions
            of the live model lack (CLIP's "text_model." went away in transformers 5).
        tokens: text encoder -> how bundles spell its vectors of a learned token.
        prefixes: component -> beginning of its keys in files that join module names by
            underscores; the first one is written, all are read.
        words: component -> every part of its module names that is no number.
        order: component -> its modules as files number them that have no names.
        text_layers: component -> ends of the names of Linear layers that take in text, whose width
            tells versions of the base apart.
        versions: width of the text -> what the base predicts ("epsilon", "v_prediction"; "" where
            that is not known) -> the version.
    """

    components: tuple[str, ...]
    levels: Mapping[str, str]
    tokens: Mapping[str, str] = field(default_factory=dict)
    prefixes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    words: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    order: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    text_layers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    versions: Mapping[int, Mapping[str, BaseVersion]] = field(default_factory=dict)

    def to_file(self, component: str, path: str) -> str:
        """Spell a live module path as files do."""
        level = self.levels.get(component, "")
        return path if path.startswith(level) else level + path

    def to_live(self, component: str, path: str, model: nn.Module) -> str:
        """Spell a file's module path as the live model does."""
        level = self.levels.get(component, "")
        has_level = bool(level) and hasattr(model, level.rstrip("."))
        full = path if path.startswith(level) else level + path
        return full if has_level or not level else full.removeprefix(level)

    def from_underscores(self, component: str, flat: str) -> str:
        """Find the dots of a module path whose parts were joined by underscores.

        Words of the component keep their own underscores; every other underscore was a dot.

        Args:
            component: that the module belongs to.
            flat: such as "mid_block_attentions_0_proj_in".
        """
        return _with_dots(flat, self.words.get(component, ()))

    def may_hold(self, component: str, path: str) -> bool:
        """Whether a path consists of words that the component's module names consist of."""
        words = self.words.get(component, ())
        return all(part.isdecimal() or part in words for part in path.split("."))


@cache
def _with_dots(flat: str, words: tuple[str, ...]) -> str:
    parts: list[str] = []
    rest = flat
    while rest:
        found = [word for word in words if rest == word or rest.startswith(f"{word}_")]
        part = max(found, key=len) if found else rest.partition("_")[0]
        parts.append(part)
        rest = rest.removeprefix(part).removeprefix("_")
    return ".".join(parts)
