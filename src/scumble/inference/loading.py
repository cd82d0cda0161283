"""Adapters on top of an unmodified diffusers pipeline: load, blend, merge, and take off again."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from scumble import console, formats
from scumble.adapters import blend, inject
from scumble.errors import UserError
from scumble.families import FAMILIES, Family
from scumble.formats import AdapterWeights
from scumble.hub.pull import local_adapter
from scumble.inference import fitting, tokens

DEFAULT_FAMILY = "stable_diffusion"


def read_adapter(
    path: str | Path,
    *,
    weight_name: str | None = None,
    revision: str | None = None,
    family: str = DEFAULT_FAMILY,
    allow_pickle: bool = False,
    partial: bool = False,
) -> AdapterWeights:
    """Read an adapter file of any format without a model.

    Args:
        path: the file, the folder that a training run wrote, or a Hub id such as user/name.
        weight_name: the file to take, where a folder or the Hub has several.
        revision: branch, tag or commit on the Hub.
        family: the family that the adapter belongs to.
        allow_pickle: read pickled files too (.bin, .pt); tensors alone are taken from them.
        partial: read what can be placed, and list the rest in `left_out`.

    Returns:
        Its tensors by component and module, and its metadata.

    Raises:
        UserError: missing, damaged or unknown; nothing is returned half-read.
    """
    key_names = FAMILIES[family].key_names
    path = local_adapter(path, weight_name=weight_name, revision=revision)
    return formats.read_adapter(path, key_names, allow_pickle=allow_pickle, partial=partial)


def write_adapter(
    weights: AdapterWeights,
    path: str | Path,
    format: str = "peft",
    *,
    family: str = DEFAULT_FAMILY,
) -> Path:
    """Write an adapter file, read it back, and only then put it in place.

    Args:
        weights: what to write.
        path: the file; an older one is replaced.
        format: "peft" is what diffusers and PEFT read, as long as there are no learned tokens;
            "kohya" what A1111, Forge, ComfyUI and Civitai read; "embedding" holds learned tokens
            alone. docs/explanation/formats.md has them all.
        family: the family that the adapter belongs to.

    Returns:
        The path written.

    Raises:
        UserError: NaN or infinite values, an unknown format, or a folder that cannot be written.
    """
    return formats.write_adapter(weights, path, FAMILIES[family].key_names, format)


def load_adapter(
    pipeline: Any,
    source: str | Path | AdapterWeights,
    *,
    name: str | None = None,
    strength: float = 1.0,
    weight_name: str | None = None,
    revision: str | None = None,
    allow_pickle: bool = False,
    partial: bool = False,
) -> str:
    """Load an adapter on top of a diffusers pipeline, whose own weights stay as they are.

    Where it brings learned tokens, the pipeline gets a copy of its tokenizer that knows them.

    Args:
        pipeline: for example a StableDiffusionPipeline.
        source: a file, a training run's folder, a Hub id (user/name), or weights already read.
        name: to set its strength or unload it by; made from the source if not given.
        strength: 1.0 acts as trained, 0.5 half as much, negative the other way. Learned tokens
            have none: they act where a prompt has them.
        weight_name: the file to take, where a folder or the Hub has several.
        revision: branch, tag or commit on the Hub.
        allow_pickle: read pickled files too (.bin, .pt); tensors alone are taken from them.
        partial: load what fits, and say what was left out.

    Returns:
        The adapter's name.

    Raises:
        UserError: the file cannot be read, or does not fit this pipeline's model, or brings a
            token that is there already; nothing is attached then.
    """
    family = pipeline_family(pipeline)
    if isinstance(source, AdapterWeights):
        weights, name = source, name or "adapter"
    else:
        options = {"allow_pickle": allow_pickle, "partial": partial}
        path = local_adapter(source, weight_name=weight_name, revision=revision)
        weights = formats.read_adapter(path, family.key_names, **options)
        name = name or _name_of(Path(source))
    if name in _loaded_names(pipeline):
        raise UserError(f"an adapter named '{name}' is already loaded", "Give it another name.")
    if weights.is_empty:
        raise UserError(f"the adapter '{name}' has no tensors", "Nothing was loaded.")
    models: dict[str, Any] = {c: getattr(pipeline, c, None) for c in weights.components}
    plans = fitting.plan(family, models, weights, name, partial=partial)
    for line in fitting.doubts(family, pipeline, weights, name):
        console.say(line)
    attached: list[nn.Module] = []
    try:
        for component, plan in plans.items():
            inject.attach(models[component], name, plan, strength)
            attached.append(models[component])
        tokens.load_tokens(pipeline, family, name, weights.tokens)
    except BaseException:
        for model in attached:
            inject.eject(model, name)
        raise
    return name


def set_strengths(pipeline: Any, strengths: Mapping[str, float]) -> None:
    """Set how strongly loaded adapters act; their learned tokens stay as they are.

    Args:
        pipeline: the pipeline that carries them.
        strengths: adapter name -> strength; adapters that are not named keep theirs.

    Raises:
        UserError: a name that is not loaded.
    """
    _require_loaded(pipeline, strengths)
    for model in _models(pipeline):
        blend.set_strengths(model, strengths)


def unload_adapters(pipeline: Any, *names: str) -> None:
    """Take adapters off; the pipeline's outputs are then what they were, bit for bit.

    Args:
        pipeline: the pipeline that carries them.
        names: which ones; none given takes all off.

    Raises:
        UserError: a name that is not loaded.
    """
    _require_loaded(pipeline, names)
    for model in _models(pipeline):
        inject.eject(model, *names)
    chosen = names or tuple(_loaded_names(pipeline))
    tokens.unload_tokens(pipeline, pipeline_family(pipeline), chosen)


def merge_adapters(pipeline: Any) -> None:
    """Write the loaded adapters into the weights, at their strengths: no extra cost per picture."""
    for model in _models(pipeline):
        blend.merge(model)


def unmerge_adapters(pipeline: Any) -> None:
    """Undo `merge_adapters`, restoring every weight bit for bit."""
    for model in _models(pipeline):
        blend.unmerge(model)


def pipeline_family(pipeline: Any) -> Family:
    """The family that a pipeline belongs to; its image-to-image and inpainting forms count too.

    Raises:
        UserError: none of the known ones.
    """
    name = type(pipeline).__name__.replace("Img2Img", "").replace("Inpaint", "")
    for family in FAMILIES.values():
        if name in family.pipeline_classes:
            return family
    raise UserError(f"adapters cannot be loaded on a {type(pipeline).__name__} yet")


def _name_of(path: Path) -> str:
    return path.resolve().name if path.is_dir() else path.stem


def _models(pipeline: Any) -> list[nn.Module]:
    parts = (getattr(pipeline, name, None) for name in pipeline_family(pipeline).components)
    return [part for part in parts if part is not None]


def _loaded_names(pipeline: Any) -> list[str]:
    names = [name for model in _models(pipeline) for name in blend.adapter_names(model)]
    names += tokens.loaded_tokens(pipeline, pipeline_family(pipeline))
    return list(dict.fromkeys(names))


def _require_loaded(pipeline: Any, names: Mapping[str, float] | tuple[str, ...]) -> None:
    loaded = _loaded_names(pipeline)
    for name in names:
        if name not in loaded:
            known = ", ".join(loaded) or "none"
            raise UserError(f"no adapter named '{name}' is loaded", f"Loaded: {known}.")
