"""Whether an adapter fits a pipeline's models, layer by layer, before anything is attached."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from scumble import console
from scumble.adapters import ADAPTERS, Adapter, LayerSpec, inject
from scumble.adapters.layer import AdaptedLayer
from scumble.errors import UserError
from scumble.families import Family
from scumble.families.fingerprint import FINGERPRINT, live_fingerprint
from scumble.formats import AdapterWeights, ModuleWeights
from scumble.formats.layer_shapes import require_fit


def plan(
    family: Family,
    models: Mapping[str, nn.Module | None],
    weights: AdapterWeights,
    name: str,
    *,
    partial: bool = False,
) -> dict[str, dict[str, inject.Builder]]:
    """Component -> live module path -> builder of its adapter.

    Args:
        family: of the models.
        models: component name -> live model, or None where the pipeline lacks it.
        weights: of the adapter.
        name: of the adapter, for messages.
        partial: leave out and name what does not fit, instead of refusing all.

    Raises:
        UserError: a layer does not fit; all of them where `partial` is asked for.
    """
    plans: dict[str, dict[str, inject.Builder]] = {}
    misfits = dict(weights.left_out)
    for component, modules in weights.components.items():
        model = models[component]
        if model is None:
            misfits[component] = "is changed by it, and this pipeline lacks it"
            continue
        layers = dict(inject.adaptable_layers(model))
        for path, entry in modules.items():
            live = family.key_names.to_live(component, path, model)
            adapter = _fitted(layers.get(live), entry)
            if isinstance(adapter, str):
                misfits[f"{component}.{path}"] = adapter
            else:
                plans.setdefault(component, {})[live] = _built(adapter)
    if misfits and (not partial or not (plans or weights.tokens)):
        raise _misfit(name, misfits, weights)
    for path, reason in misfits.items():
        console.say(f"{name}: left out: '{path}' {reason}")
    return plans


def doubts(family: Family, pipeline: Any, weights: AdapterWeights, name: str) -> list[str]:
    """What speaks against this base without forbidding it: other weights in the same layers."""
    known = weights.metadata.get(FINGERPRINT)
    here = live_fingerprint(getattr(pipeline, family.components[0]))
    if known is None or here is None or known == here:
        return []
    trained_on = weights.metadata.get("base_model", "another base")
    return [
        f"{name}: trained on {trained_on}, whose weights are not those of this base. It fits, but "
        "may draw something else than it learned."
    ]


def _fitted(layer: nn.Module | None, entry: ModuleWeights) -> Adapter | str:
    """The adapter for a layer, or why there can be none."""
    if layer is None:
        return "is a layer that this base lacks"
    spec = layer.spec if isinstance(layer, AdaptedLayer) else LayerSpec.of(layer)
    try:
        require_fit(entry, spec)
        return ADAPTERS[entry.type].from_tensors(spec, entry.tensors, entry.alpha)
    except UserError as error:
        return f"does not fit: {error.message}"


def _built(adapter: Adapter) -> inject.Builder:
    return lambda _spec, _weight: adapter


def _misfit(name: str, misfits: Mapping[str, str], weights: AdapterWeights) -> UserError:
    path, reason = next(iter(misfits.items()))
    others = f", and {len(misfits) - 1} more" if len(misfits) > 1 else ""
    base = weights.metadata.get("base_model")
    trained_on = f"trained on {base}" if base else "made for another base model"
    return UserError(
        f"the adapter '{name}' does not fit this base: '{path}' {reason}{others}",
        f"It was {trained_on}. Nothing was loaded; --partial (partial=True) loads what fits.",
    )
