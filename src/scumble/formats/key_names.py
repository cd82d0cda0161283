"""How a family's modules are called in files, where that differs from the live model."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn


@dataclass(frozen=True)
class KeyNames:
    """The names of one family's components and modules in adapter files.

    Args:
        components: component names that adapters of the family may change.
        levels: component -> a level of module names that files always have and that some versions
            of the live model lack (CLIP's "text_model." went away in transformers 5).
        tokens: text encoder -> how bundles spell its vectors of a learned token.
    """

    components: tuple[str, ...]
    levels: Mapping[str, str]
    tokens: Mapping[str, str] = field(default_factory=dict)

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
