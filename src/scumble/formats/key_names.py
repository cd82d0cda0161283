"""How a family's modules are called in files, where that differs from the live model."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache

from torch import nn


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
        words: parts of module names that contain an underscore themselves.
        order: component -> its modules as files number them that have no names.
    """

    components: tuple[str, ...]
    levels: Mapping[str, str]
    tokens: Mapping[str, str] = field(default_factory=dict)
    prefixes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    words: tuple[str, ...] = ()
    order: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

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

    def from_underscores(self, flat: str) -> str:
        """Find the dots of a module path whose parts were joined by underscores.

        Words of the family keep their own underscores; every other underscore was a dot.

        Args:
            flat: such as "mid_block_attentions_0_proj_in".
        """
        return _with_dots(flat, self.words)


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
