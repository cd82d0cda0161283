"""Where two models of one architecture differ, tensor by tensor."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from scumble import console
from scumble.adapters.inject import matches
from scumble.adapters.low_rank import truncated_svd
from scumble.errors import UserError
from scumble.formats import ModuleWeights
from scumble.randomness import generator
from scumble.tools.base_weights import BaseWeights
from scumble.tools.deltas import lora_of
from scumble.tools.report import Kept
from scumble.tools.threads import one_thread


@dataclass
class Found:
    """What two models differ in.

    Args:
        components: the adapter's layers.
        kept: how much of each layer's difference they hold.
        missed: name of a tensor that differs and that the adapter does not hold -> squared norm.
        num_equal: layers that do not differ at all.
    """

    components: dict[str, dict[str, ModuleWeights]] = field(default_factory=dict)
    kept: list[Kept] = field(default_factory=list)
    missed: dict[str, float] = field(default_factory=dict)
    num_equal: int = 0


@dataclass(frozen=True)
class Choice:
    """What to extract.

    Args:
        rank: of each layer, at most.
        energy: share of each layer's difference to keep; None keeps what the rank can hold.
        targets: ends of module paths; empty for all that can be adapted.
        with_norms: whole differences of norms, too.
    """

    rank: int
    energy: float | None
    targets: tuple[str, ...]
    with_norms: bool

    def wants(self, module: str) -> bool:
        """Whether a layer is to be extracted."""
        return not self.targets or any(matches(module, target) for target in self.targets)


def require_alike(ours: BaseWeights, theirs: BaseWeights) -> None:
    """Refuse two models that do not have the same tensors.

    Raises:
        UserError: naming the first one.
    """
    for component, places in ours.places.items():
        others = theirs.places.get(component, {})
        for name in sorted(places.keys() | others.keys()):
            if _is_counted(name):
                continue
            one, two = ours.shape(component, name), theirs.shape(component, name)
            if one != two:
                raise UserError(
                    f"{ours.base.name} and {theirs.base.name} are not of the same architecture: "
                    f"{component}.{name} is {one or 'not there'} and {two or 'not there'}",
                    "Name the base that the other was trained from.",
                )


def require_targets(ours: BaseWeights, choice: Choice) -> None:
    """Refuse targets that match nothing.

    Raises:
        UserError: naming the first one.
    """
    layers = [
        name.removesuffix(".weight")
        for component in ours.family.key_names.components
        for name in ours.places[component]
        if _is_layer(name, ours.shape(component, name) or ())
    ]
    for target in choice.targets:
        if not any(matches(layer, target) for layer in layers):
            raise UserError(
                f"the target '{target}' matches no linear layer or convolution",
                f"Layers are called as in {layers[0]}.",
            )


def compare(ours: BaseWeights, theirs: BaseWeights, choice: Choice) -> Found:
    """Extract what differs, tensor by tensor.

    Args:
        ours: the base.
        theirs: what became of it, of the same architecture.
        choice: what to extract.

    Raises:
        UserError: a tensor holds NaN or infinite values.
    """
    found = Found()
    names = [
        (component, name)
        for component, places in ours.places.items()
        for name in places
        if not _is_counted(name)
    ]
    total = sum(ours.places[component][name].entry.nbytes for component, name in names)
    read = 0
    with one_thread(), console.progress(total // 10**6, "comparing", unit="MB") as bar:
        for component, name in names:
            before, after = (m.tensor(component, name).float() for m in (ours, theirs))
            difference = after - before
            if not bool(difference.isfinite().all()):
                raise UserError(f"'{component}.{name}' holds NaN or infinite values")
            can_adapt = component in ours.family.key_names.components
            _place(found, component, name, difference, choice if can_adapt else None)
            read += ours.places[component][name].entry.nbytes
            bar.update(read // 10**6 - bar.n)
    return found


def _place(
    found: Found, component: str, name: str, difference: Tensor, choice: Choice | None
) -> None:
    """Put the difference of one tensor where it belongs: the adapter, or what it misses."""
    module, _, leaf = name.rpartition(".")
    is_layer = _is_layer(name, difference.shape)
    if not bool(difference.any()):
        found.num_equal += is_layer
        return
    modules = found.components.get(component, {})
    if choice is None or not choice.wants(module):
        pass
    elif is_layer:
        draw = generator(0, f"extract {component}.{module}")
        spectrum = truncated_svd(difference.flatten(1), choice.rank, draw)
        rank = min(choice.rank, spectrum.rank_for(1 if choice.energy is None else choice.energy))
        modules[module] = lora_of(spectrum.factors(rank), difference.shape)
        found.components[component] = modules
        found.kept.append(Kept.of(component, module, spectrum, rank))
        return
    elif choice.with_norms and "norm" in module.rpartition(".")[2]:
        known = modules[module].tensors if module in modules else {}
        own = {"diff" if leaf == "weight" else "diff_b": difference}
        whole = {"diff": torch.zeros_like(difference), **known, **own}
        modules[module] = ModuleWeights("norm_difference", whole, 1.0)
        found.components[component] = modules
        return
    found.missed[f"{component}.{name}"] = float(difference.double().square().sum())


def _is_layer(name: str, shape: Sequence[int]) -> bool:
    """Whether a tensor is the weight of a linear layer or convolution, not of an embedding."""
    module, _, leaf = name.rpartition(".")
    return leaf == "weight" and len(shape) in (2, 4) and not module.endswith("_embedding")


def _is_counted(name: str) -> bool:
    """Whether it is a buffer that programs fill by counting."""
    return name.endswith("position_ids")
