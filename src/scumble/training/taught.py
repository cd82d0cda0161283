"""What a run teaches: adapters, rows of new words, whole models. The one list of what may move."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import Tensor, nn

from scumble.adapters.inject import AdapterSet


@dataclass(frozen=True)
class Taught:
    """Parts of the live model that learn.

    Args:
        adapters: component name -> the adapters on it.
        rows: text encoder's component name -> new word -> its rows, shape (vectors, width).
        models: component name -> a model that learns as a whole.
    """

    adapters: Mapping[str, AdapterSet] = field(default_factory=dict)
    rows: Mapping[str, Mapping[str, nn.Parameter]] = field(default_factory=dict)
    models: Mapping[str, nn.Module] = field(default_factory=dict)

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """Every parameter by a name that stays the same from run to run."""
        named = {}
        for component, adapters in self.adapters.items():
            for name, parameter in adapters.named_parameters().items():
                named[f"{component}.{name}"] = parameter
        for component, tokens in self.rows.items():
            for token, rows in tokens.items():
                named[f"{component}.token {token}"] = rows
        for component, model in self.models.items():
            for name, parameter in model.named_parameters():
                named[f"{component}.{name}"] = parameter
        return named

    def named_state(self) -> dict[str, Tensor]:
        """`named_parameters`, and what does not learn and yet is needed to go on: PiSSA's start."""
        starts = {
            f"{component}.{path}.{name}": buffer
            for component, adapters in self.adapters.items()
            for path, adapter in adapters.adapters.items()
            for name, buffer in adapter.named_buffers()
        }
        return {**self.named_parameters(), **starts}

    def __or__(self, other: "Taught") -> "Taught":
        """Both together."""
        return Taught(
            {**self.adapters, **other.adapters},
            {**self.rows, **other.rows},
            {**self.models, **other.models},
        )

    def num_parameters(self) -> int:
        """How many numbers learn."""
        return sum(parameter.numel() for parameter in self.named_parameters().values())

    @contextmanager
    def adapters_off(self) -> Iterator[None]:
        """The frozen model as it was, for as long as the context lasts."""
        before = {name: adapters.strength for name, adapters in self.adapters.items()}
        for adapters in self.adapters.values():
            adapters.set_strength(0.0)
        try:
            yield
        finally:
            for name, adapters in self.adapters.items():
                adapters.set_strength(before[name])


def together(parts: Iterable[Taught]) -> Taught:
    """All of them as one."""
    whole = Taught()
    for part in parts:
        whole = whole | part
    return whole
