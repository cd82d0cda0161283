"""Several named adapters on one model: strengths, merging, unmerging."""

from collections.abc import Mapping

from torch import nn

from scumble.adapters.inject import adapted_layers


def adapter_names(model: nn.Module) -> list[str]:
    """Names of the adapters on a model, in the order they were added."""
    layers = adapted_layers(model).values()
    return list(dict.fromkeys(name for layer in layers for name in layer.names))


def set_strengths(model: nn.Module, strengths: Mapping[str, float]) -> None:
    """Set how strongly adapters act; names that this model does not carry are left out.

    A merged model is merged anew, so that what was set is what is drawn.
    """
    for layer in adapted_layers(model).values():
        was_merged = layer.is_merged
        layer.unmerge()
        for name in layer.names:
            layer.strengths[name] = strengths.get(name, layer.strengths[name])
        if was_merged:
            layer.merge()


def merge(model: nn.Module) -> None:
    """Write every adapter into its layer's weight; inference then costs nothing extra."""
    for layer in adapted_layers(model).values():
        layer.merge()


def unmerge(model: nn.Module) -> None:
    """Undo `merge`, restoring every weight bit for bit."""
    for layer in adapted_layers(model).values():
        layer.unmerge()
