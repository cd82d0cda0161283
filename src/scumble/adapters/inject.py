"""Attach adapters by walking a built model, and take them off leaving it as it was."""

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import inf

import torch
from torch import Tensor, nn

from scumble.adapters.base import Adapter, LayerSpec
from scumble.adapters.layer import Adaptable, AdaptedLayer
from scumble.errors import UserError
from scumble.randomness import generator

Builder = Callable[[LayerSpec, Tensor], Adapter]
"""(the layer's description, its frozen weight) -> the adapter for it."""


@dataclass(frozen=True)
class Target:
    """Which layers to adapt, and how wide.

    Args:
        pattern: the end of a module path, whole names only: "to_q", "attn2.to_k",
            "down_blocks.*.to_v"; `*` stands for anything. The last of several patterns that match
            a layer decides.
        rank: bottleneck width.
        alpha: scale numerator.
    """

    pattern: str
    rank: int
    alpha: float

    @classmethod
    def parse(cls, text: str, rank: int, alpha: float | None) -> "Target":
        """Read "pattern", "pattern:rank" or "pattern:rank:alpha".

        Args:
            text: as the user wrote it.
            rank: where the text has none.
            alpha: where the text has none; None means the target's own rank.

        Raises:
            UserError: rank or alpha is no number above 0.
        """
        pattern, *numbers = text.split(":")
        try:
            if len(numbers) > 2:
                raise ValueError(text)
            if numbers:
                rank = int(numbers[0])
            value = float(numbers[1]) if len(numbers) == 2 else alpha
        except ValueError:
            rank = 0
            value = None
        value = float(rank) if value is None else value
        if not pattern or rank < 1 or not 0 < value < inf:
            raise UserError(
                f"the target '{text}' is not a pattern, pattern:rank or pattern:rank:alpha",
                "For example: to_q attn2.to_k:8 ff.net.0.proj:8:4.",
            )
        return cls(pattern, rank, value)


class AdapterSet:
    """All layers of one model that carry the adapter of one name.

    Args:
        model: the model that was walked.
        name: the adapter's name.
        layers: module path -> wrapped layer.
    """

    def __init__(self, model: nn.Module, name: str, layers: dict[str, AdaptedLayer]) -> None:
        self.model = model
        self.name = name
        self.layers = layers

    @property
    def adapters(self) -> dict[str, Adapter]:
        """Module path -> the adapter there."""
        return {path: layer.get(self.name) for path, layer in self.layers.items()}

    def parameters(self) -> list[nn.Parameter]:
        """Every trainable parameter, in the order of the module paths."""
        return [p for adapter in self.adapters.values() for p in adapter.parameters()]

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """Every trainable parameter by module path and name."""
        return {
            f"{path}.{name}": parameter
            for path, adapter in self.adapters.items()
            for name, parameter in adapter.named_parameters()
        }

    @property
    def strength(self) -> float:
        """How strongly this adapter acts."""
        return next((layer.strengths[self.name] for layer in self.layers.values()), 0.0)

    def set_strength(self, strength: float) -> None:
        """Set how strongly this adapter acts on every layer."""
        for layer in self.layers.values():
            layer.strengths[self.name] = strength

    def drop_inputs(self, probability: float) -> None:
        """Switch each input off with `probability`, drawn by torch's own generator."""
        for adapter in self.adapters.values():
            adapter.input_dropout = probability

    def drop_ranks(self, probability: float, draw: torch.Generator) -> None:
        """Switch each rank of each layer off with `probability`, and scale up what stays.

        Args:
            probability: 0 keeps everything.
            draw: the step's own generator.
        """
        for adapter in self.adapters.values():
            if not probability:
                adapter.rank_mask = None
                continue
            kept = torch.rand(adapter.rank, generator=draw) >= probability
            device = next(adapter.parameters()).device
            adapter.rank_mask = (kept.float() / (1 - probability)).to(device)

    def eject(self) -> None:
        """Take this adapter off the model again."""
        eject(self.model, self.name)


def adaptable_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Walk a model's layers that could carry an adapter or do, as (module path, layer)."""
    inside = ""
    for path, module in model.named_modules():
        if inside and path.startswith(inside):
            continue
        if isinstance(module, AdaptedLayer):
            inside = path + "."
            yield path, module
        elif isinstance(module, Adaptable):
            yield path, module


def adapted_layers(model: nn.Module) -> dict[str, AdaptedLayer]:
    """The wrapped layers of a model by module path."""
    return {path: m for path, m in model.named_modules() if isinstance(m, AdaptedLayer)}


def matches(path: str, pattern: str) -> bool:
    """Whether a module path ends with a pattern, whole names only."""
    return fnmatchcase(path, pattern) or fnmatchcase(path, f"*.{pattern}")


def find_targets(model: nn.Module, targets: Sequence[Target]) -> dict[str, Target]:
    """Choose the layers to adapt.

    Returns:
        Module path -> the target that decides its rank and alpha.

    Raises:
        UserError: a pattern matches nothing, naming it and the names that come close.
    """
    norms = nn.GroupNorm | nn.LayerNorm
    paths = [path for path, layer in adaptable_layers(model) if not isinstance(layer, norms)]
    for target in targets:
        if not any(matches(path, target.pattern) for path in paths):
            names = {part for path in paths for part in path.split(".") if not part.isdigit()}
            close = difflib.get_close_matches(target.pattern, sorted(names), n=3, cutoff=0.4)
            known = ", ".join(close or sorted(names)[:8])
            raise UserError(
                f"the target '{target.pattern}' matches no Linear or Conv2d of the model",
                f"Names that occur there: {known}.",
            )
    found: dict[str, Target] = {}
    for path in paths:
        for target in targets:
            if matches(path, target.pattern):
                found[path] = target
    return found


def attach(
    model: nn.Module,
    name: str,
    build: Mapping[str, Builder],
    strength: float = 1.0,
) -> AdapterSet:
    """Wrap the layers at the given paths and put an adapter on each; all of them or none.

    Args:
        model: the built model; its own layers stay the same objects inside the wrappers.
        name: the adapter's name, free on this model.
        build: module path -> builder of the adapter for the layer there.
        strength: initial strength of every adapter.

    Raises:
        UserError: the name is taken, or an adapter does not fit its layer (named).
    """
    if any(name in layer.names for layer in adapted_layers(model).values()):
        raise UserError(f"an adapter named '{name}' is already loaded", "Give it another name.")
    layers = dict(adaptable_layers(model))
    ready: dict[str, Adapter] = {}
    for path, build_adapter in build.items():
        layer = layers[path]
        assert isinstance(layer, AdaptedLayer | Adaptable)
        spec = layer.spec if isinstance(layer, AdaptedLayer) else LayerSpec.of(layer)
        try:
            ready[path] = build_adapter(spec, layer.weight)
        except UserError as error:
            raise UserError(f"{path}: {error.message}", error.hint) from error
    wrapped: dict[str, AdaptedLayer] = {}
    for path, adapter in ready.items():
        layer = layers[path]
        assert isinstance(layer, AdaptedLayer | Adaptable)
        if not isinstance(layer, AdaptedLayer):
            layer = AdaptedLayer(layer)
            layer.train(layer.base.training)
            _replace(model, path, layer)
        layer.add(name, adapter, strength)
        wrapped[path] = layer
    return AdapterSet(model, name, wrapped)


def inject(
    model: nn.Module,
    name: str,
    adapter_type: Callable[[LayerSpec, int, float], Adapter],
    targets: Sequence[Target],
    *,
    init: str = "gaussian",
    seed: int = 0,
) -> AdapterSet:
    """Put fresh adapters, which change nothing yet, on every layer that a target matches.

    Args:
        model: the built model.
        name: the adapter's name.
        adapter_type: a class of the registry, or what else makes an adapter of a layer's
            description, rank and alpha.
        targets: patterns with rank and alpha.
        init: "gaussian" or "kaiming".
        seed: each layer draws from (seed, its path), so the order of the walk does not matter.

    Raises:
        UserError: a pattern matches nothing.
    """

    def builder(path: str, target: Target) -> Builder:
        def build(spec: LayerSpec, weight: Tensor) -> Adapter:
            adapter = adapter_type(spec, target.rank, target.alpha).to(weight.device)
            adapter.initialise(init, generator(seed, f"adapter init {path}"), weight)
            return adapter

        return build

    found = find_targets(model, targets)
    return attach(model, name, {path: builder(path, target) for path, target in found.items()})


def eject(model: nn.Module, *names: str) -> None:
    """Take adapters off; a layer that carries none any more is the model's own object again.

    Args:
        model: the model.
        names: which adapters; none given takes all off.
    """
    for path, layer in adapted_layers(model).items():
        for name in [n for n in layer.names if not names or n in names]:
            layer.remove(name)
        if not layer.names:
            _replace(model, path, layer.base)


def _replace(model: nn.Module, path: str, module: nn.Module) -> None:
    parent_path, _, child = path.rpartition(".")
    setattr(model.get_submodule(parent_path), child, module)
