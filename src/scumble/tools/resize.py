"""An adapter of another rank: the best of its kind, by SVD of its thin factors."""

from pathlib import Path

import torch

from scumble import console
from scumble.adapters.low_rank import Spectrum, compress, product_norm, truncated_svd
from scumble.errors import UserError
from scumble.formats import AdapterWeights, ModuleWeights
from scumble.formats.layer_shapes import weight_shape
from scumble.tools.deltas import (
    adapter_of,
    factors_of,
    full_shape,
    lora_of,
    require_independent,
)
from scumble.tools.number_formats import cast_adapter, dtype_named
from scumble.tools.output import output_file, write_output
from scumble.tools.ranks import check_rank
from scumble.tools.reading import open_adapter
from scumble.tools.report import Kept, Outcome, kept_lines
from scumble.tools.table import counted
from scumble.tools.threads import one_thread

WRITABLE = ("peft", "kohya")
"""Formats that are kept; a file of another one is written as the first of these."""

STALE = ("sshs_", "modelspec.hash", "ss_network_dim", "ss_network_alpha", "ss_network_args")
"""How metadata begins that was true of the old ranks alone; writers that have it make it anew."""


def resize_adapter(
    source: str | Path,
    output: str | Path,
    rank: int,
    *,
    energy: float | None = None,
    dtype: str | None = None,
    format: str | None = None,
    partial: bool = False,
    allow_pickle: bool = False,
    force: bool = False,
) -> Outcome:
    """Write an adapter again with another rank, keeping as much of each layer's change as it can.

    Layers that have no more than the rank stay as they are, bit for bit; alpha / rank of each layer
    stays too. LoHa, LoKr and whole differences of weights become LoRA.

    Args:
        source: the file, or the folder of a training run.
        output: the file to write, ending in `.safetensors`.
        rank: of each layer, at most.
        energy: share of each layer's change to keep, above 0 and up to 1; None keeps what the rank
            can hold.
        dtype: "fp32", "fp16" or "bf16"; None is as it was, and so for the format.
        format: "peft" or "kohya"; a file of another one becomes "peft".
        partial: leave out and name what fits nothing.
        allow_pickle: read pickled files too; tensors alone are taken from them.
        force: replace what is there.

    Returns:
        The file, and layer by layer what was kept.

    Raises:
        UserError: the file cannot be read, or a layer's change depends on the base's weights.
    """
    check_rank(rank, energy)
    number_format = dtype_named(dtype)
    path = output_file(output, format, force=force)
    opened = open_adapter(source, partial=partial, allow_pickle=allow_pickle)
    weights = opened.weights
    own = opened.format if opened.format in WRITABLE else WRITABLE[0]
    output_file(path, format or own, force=force)  # what goes beside it is known only now
    if not any(weights.components.values()):
        raise UserError(f"{source} changes no layers: it has nothing to resize")
    components, kept, untouched = _resized(weights, rank, energy)
    lines = [f"left out: '{key}' {reason}" for key, reason in weights.left_out.items()]
    if untouched:
        same = counted(untouched, "layer")
        lines.append(f"{same} of rank {rank} or less, or of none, stay as they were")
    metadata = {k: v for k, v in weights.metadata.items() if not k.startswith(STALE)}
    resized = AdapterWeights(components, metadata, weights.tokens)
    made, small = cast_adapter(resized, number_format or _own_dtypes(weights, resized))
    beside = write_output(made, path, opened.family.key_names, format or own)
    return Outcome(path, (*kept_lines(kept), *lines, *small, *beside), tuple(kept))


def _own_dtypes(before: AdapterWeights, after: AdapterWeights) -> dict[str, torch.dtype]:
    """What the layers that were made anew had."""
    return {
        f"{component}.{module}": next(iter(entry.tensors.values())).dtype
        for component, modules in before.components.items()
        for module, entry in modules.items()
        if after.components[component][module] is not entry
    }


def _resized(
    weights: AdapterWeights, rank: int, energy: float | None
) -> tuple[dict[str, dict[str, ModuleWeights]], list[Kept], int]:
    """All layers, what was kept of each, and how many are as they were."""
    components: dict[str, dict[str, ModuleWeights]] = {}
    kept: list[Kept] = []
    untouched = 0
    total = sum(map(len, weights.components.values()))
    with one_thread(), console.progress(total, "resizing", unit="layer") as bar:
        for component, modules in weights.components.items():
            for module, entry in modules.items():
                resized, found = resize_layer((component, module), entry, rank, energy)
                components.setdefault(component, {})[module] = resized
                kept += [] if found is None else [found]
                untouched += resized is entry
                bar.update()
    return components, kept, untouched


@torch.no_grad()
def resize_layer(
    layer: tuple[str, str], entry: ModuleWeights, rank: int, energy: float | None
) -> tuple[ModuleWeights, Kept | None]:
    """Lower the rank of one layer's change.

    Args:
        layer: its component and module path.
        entry: what acts there.
        rank: at most.
        energy: share of the change to keep; None keeps what the rank can hold.

    Returns:
        The very entry where nothing is to be lowered, or one in fp32; and what was kept, None where
        it has no rank.

    Raises:
        UserError: the change depends on the base's weights. The layer is named.
    """
    name = ".".join(layer)
    try:
        require_independent(entry)
        factors = factors_of(entry)
        shape = full_shape(layer[1], weight_shape(entry) or ())
        if factors is None and len(shape) == 1:
            return entry, None
        if factors is not None and factors.rank <= rank and energy is None:
            return entry, Kept(*layer, factors.rank, product_norm(factors) ** 2, 1.0)
        spectrum = _formed(entry, shape, rank) if factors is None else compress(factors)
        if spectrum is None:
            return entry, None
        chosen = min(rank, spectrum.rank_for(1 if energy is None else energy))
        scale = entry.alpha / entry.rank if factors is not None else 1.0
        made = lora_of(spectrum.factors(chosen), shape, scale=scale or 1.0)
    except UserError as error:
        raise UserError(f"{name}: {error.message}", error.hint) from error
    return made, Kept.of(*layer, spectrum, chosen)


def _formed(entry: ModuleWeights, shape: tuple[int, ...], rank: int) -> Spectrum | None:
    """The spectrum of a change that is no product; None where it changes a bias, too."""
    adapter = adapter_of(entry, shape)
    if adapter.bias_delta() is not None:
        return None
    return truncated_svd(adapter.delta().flatten(1), rank)
