"""Several adapters into one, or into a base model: deltas are added, never factors."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from scumble import console
from scumble.errors import UserError
from scumble.families import FAMILIES, BaseModel, locate
from scumble.formats import AdapterWeights, ModuleWeights
from scumble.tools.base_place import base_output
from scumble.tools.combine import Method, Recipe
from scumble.tools.into_adapter import merge_layer
from scumble.tools.into_base import Target, merge_into_base
from scumble.tools.number_formats import cast_adapter, dtype_named
from scumble.tools.output import output_file, write_output
from scumble.tools.provenance import merged_metadata, tokens_of
from scumble.tools.ranks import check_rank
from scumble.tools.report import Kept, Outcome, kept_lines
from scumble.tools.sources import Loaded, Source, layers_of, load
from scumble.tools.threads import one_thread

Given = Source | tuple[str | Path | AdapterWeights, float] | str | Path | AdapterWeights
"""An adapter to merge, with or without its strength."""

USED_BY = {"density": ("ties", "dare", "dare_ties"), "seed": ("dare", "dare_ties")}
"""Option -> the methods that it means something to."""


def merge_files(
    sources: Sequence[Given],
    output: str | Path,
    *,
    base: str | Path | BaseModel | None = None,
    rank: int | None = None,
    factors: Mapping[str, float] | None = None,
    method: Method = "sum",
    density: float | None = None,
    seed: int | None = None,
    dtype: str | None = None,
    format: str | None = None,
    allow_other_base: bool = False,
    partial: bool = False,
    allow_pickle: bool = False,
    force: bool = False,
) -> Outcome:
    """Merge adapters into one adapter, or into a base model, that does what they do together.

    Args:
        sources: files, folders of runs or weights already read; (source, strength) where it is
            not to act at 1.0; or a `Source`, which may have factors for parts of the model.
        output: the adapter file; with a base, one file (.safetensors) or a folder for diffusers.
        base: merge into this base: a folder, a single file, a Hub id, or "scumble-tiny".
        rank: of the merged adapter, at most; None is exact for LoRA: the sum of the ranks.
        factors: of every strength in parts of the model: {"text_encoder": 0.5, "mid_block": 0}.
        method: "sum", "ties", "dare" or "dare_ties"; all but the first thin changes out.
        density: share of each change that "ties" and "dare" keep; 0.5 if None.
        seed: of what "dare" drops; 0 if None.
        dtype: "fp32", "fp16" or "bf16"; None is fp32 for an adapter, and as it was for a base.
        format: of the merged adapter, such as "kohya"; "peft" if None.
        allow_other_base: merge adapters that were trained on different bases.
        partial: leave out, and name, what does not fit.
        allow_pickle: read pickled files too; tensors alone are taken from them.
        force: replace what is there.

    Raises:
        UserError: a source cannot be read or does not fit, or the place or an option is wrong.
    """
    recipe = _recipe(method, density, seed)
    check_rank(rank)
    number_format = dtype_named(dtype)
    given = [_as_source(source) for source in sources]
    found = base if base is None or isinstance(base, BaseModel) else locate(str(base))
    if found is None:
        path = output_file(output, format, force=force)
    else:
        _refuse_adapters_own(rank=rank, format=format, allow_other_base=allow_other_base or None)
        path = base_output(output, found, _files(given), force=force)
    loaded = load(given, factors or {}, partial=partial, allow_pickle=allow_pickle)
    lines = _left_out(loaded)
    if found is not None:
        target = Target(found, path, number_format, partial, force)
        return Outcome(path, (*lines, *merge_into_base(loaded, recipe, target)))
    merged, kept = _merged(loaded, recipe, rank, allow_other_base=allow_other_base)
    cast, small = cast_adapter(merged, number_format)
    lines += [*kept_lines(kept), *_whole_lines(merged.components), *small]
    lines += write_output(cast, path, next(iter(FAMILIES.values())).key_names, format or "peft")
    return Outcome(path, tuple(lines), tuple(kept))


def _recipe(method: Method, density: float | None, seed: int | None) -> Recipe:
    """How to combine; numbers that the method has no use for are refused."""
    recipe = Recipe(method, 0.5 if density is None else density, seed or 0)
    given = {"density": density, "seed": seed}
    for name, methods in USED_BY.items():
        if given[name] is not None and method not in methods:
            raise UserError(
                f"--{name} has no meaning for --method {method}",
                f"It belongs to: {', '.join(methods)}.",
            )
    return recipe


def _refuse_adapters_own(**given: object) -> None:
    """Refuse what only a merged adapter has."""
    for name, value in given.items():
        if value is not None:
            raise UserError(
                f"--{name} is for a merged adapter, not for a base", "Leave one of them away."
            )


def _files(sources: Sequence[Source]) -> list[str | Path]:
    return [s.adapter for s in sources if not isinstance(s.adapter, AdapterWeights)]


def _left_out(sources: Sequence[Loaded]) -> list[str]:
    return [
        f"{s.name}: left out: '{k}' {v}" for s in sources for k, v in s.weights.left_out.items()
    ]


def _as_source(given: Given) -> Source:
    if isinstance(given, Source):
        return given
    return Source(*given) if isinstance(given, tuple) else Source(given)


def _merged(
    sources: Sequence[Loaded], recipe: Recipe, rank: int | None, *, allow_other_base: bool
) -> tuple[AdapterWeights, list[Kept]]:
    layers, tokens = layers_of(sources), tokens_of(sources)
    metadata = merged_metadata(sources, recipe, allow_other_base=allow_other_base)
    components: dict[str, dict[str, ModuleWeights]] = {}
    kept = []
    with one_thread(), console.progress(len(layers), "merging", unit="layer") as bar:
        for (component, module), parts in layers.items():
            merged = merge_layer((component, module), parts, recipe, rank)
            components.setdefault(component, {})[module] = merged.entry
            kept += [] if merged.kept is None else [merged.kept]
            bar.update()
    return AdapterWeights(components, metadata, tokens), kept


def _whole_lines(components: Mapping[str, Mapping[str, ModuleWeights]]) -> list[str]:
    """Say which layers stay whole differences, which are as large as the base's own weights."""
    whole = [
        f"{component}.{module}"
        for component, modules in components.items()
        for module, entry in modules.items()
        if entry.type == "difference"
    ]
    if not whole:
        return []
    others = f" and {len(whole) - 1} more" if len(whole) > 1 else ""
    return [f"kept as a whole difference: {whole[0]}{others}"]
