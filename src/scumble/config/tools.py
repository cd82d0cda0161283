"""The options of the verbs that work on adapter files; a docstring below is a field's help text."""

from dataclasses import dataclass
from typing import Literal


@dataclass(kw_only=True)
class PickleFields:
    """How to open"""

    allow_pickle: bool = False
    """Open pickled files too (.bin, .pt), taking nothing but tensors from them. For files of a
    source that you trust."""


@dataclass(kw_only=True)
class ReadFields(PickleFields):
    """How to read"""

    partial: bool = False
    """Take what fits and list the keys that do not, instead of refusing the file."""


@dataclass(kw_only=True)
class WriteFields:
    """Where to write"""

    output: str
    """The file to write, ending in .safetensors; missing folders are made."""
    force: bool = False
    """Replace a file that is there already."""


@dataclass(kw_only=True)
class InspectFields:
    """What to show"""

    file: str
    """An adapter file, the output folder of a training run, or a Hub id such as user/name."""
    modules: bool = False
    """List every adapted layer, not only groups of them."""
    norms: bool = False
    """Measure how much each layer is changed, which reads the whole file."""
    hash: bool = False
    """Compute the checksums by which model sites know the file, which reads the whole file."""
    json: bool = False
    """Print one JSON object instead of a table."""


@dataclass(kw_only=True)
class DiffFields:
    """What to compare"""

    first: str
    """An adapter file, the output folder of a training run, or a Hub id such as user/name."""
    second: str
    """The one to compare it with."""
    tolerance: float = 0.0
    """Largest relative difference of a layer's change that counts as none: 1e-6 forgives the
    rounding of fp32, 1e-3 that of fp16."""
    json: bool = False
    """Print one JSON object instead of a table."""


@dataclass(kw_only=True)
class ConvertFields:
    """What to convert"""

    file: str
    """An adapter file, the output folder of a training run, or a Hub id such as user/name."""
    format: Literal["peft", "kohya", "attn_procs", "cloneofsimo", "embedding"]
    """peft is for diffusers, kohya for A1111, Forge, ComfyUI and Civitai, embedding for learned
    words alone, attn_procs and cloneofsimo for programs of 2023."""
    dtype: Literal["fp32", "fp16", "bf16"] | None = None
    """Number format of what is written; as it was if not given."""
    trigger: str | None = None
    """Words that call the adapter, written into the file for programs that show them."""
    preview: str | None = None
    """A picture that model lists show beside the file; with kohya only."""
