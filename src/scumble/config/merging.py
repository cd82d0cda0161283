"""The options of the verbs that compute new adapters or bases out of given ones."""

from dataclasses import dataclass
from typing import Literal

FORMATS = Literal["peft", "kohya"]
"""What such adapters are written as."""


@dataclass(kw_only=True)
class BaseFields:
    """Which base"""

    base: str | None = None
    """Merge into this base model instead of into one adapter: a folder in diffusers' layout, a
    .safetensors or .ckpt file, a Hub id that is on this machine, or scumble-tiny."""
    revision: str | None = None
    """Branch, tag or commit of the base on the Hub."""
    variant: str | None = None
    """Weight variant of the base to read, such as fp16."""
    prediction_type: Literal["epsilon", "v_prediction"] | None = None
    """What the base predicts. Set it only where the base's own scheduler setting is wrong or, with
    a Stable Diffusion 2 checkpoint in one file, missing."""
    cache_dir: str | None = None
    """Where downloaded models are kept."""


@dataclass(kw_only=True)
class MergeFields:
    """What to merge"""

    sources: tuple[str, ...]
    """Adapter files or folders of training runs, each with its strength behind a colon if that is
    not 1, as in style:0.7, and factors of it for parts of the model behind commas, as in
    style:0.7,text_encoder=0.5,mid_block=0. Strengths may be negative."""
    output: str
    """The adapter file to write, ending in .safetensors. With --base the new base: one file if it
    ends in .safetensors, otherwise a folder in diffusers' layout."""
    force: bool = False
    """Replace a file, or a folder with a base model, that is there already."""
    rank: int | None = None
    """Rank of the merged adapter, at most; what it keeps is said. Exact if not given: as wide as
    the adapters together."""
    block_weights: tuple[str, ...] = ()
    """Factors of every adapter's strength for parts of the model, as in mid_block=0.5
    'down_blocks.*.attn2=1.2'. A part is one or more whole names of a module path, * stands for
    anything, and the last that fits a layer counts."""
    method: Literal["sum", "ties", "dare", "dare_ties"] = "sum"
    """sum adds changes up. Where adapters disturb each other, ties keeps the largest entries of
    each change and lets the majority decide on signs; dare drops entries at random; dare_ties does
    both. Their result is written at --rank, if given, or as wide as the adapters together."""
    density: float | None = None
    """Share of each change that ties and dare keep, 0.5 if not given; lower where many adapters
    meet."""
    seed: int | None = None
    """Of what dare drops; 0 if not given."""
    dtype: Literal["fp32", "fp16", "bf16"] | None = None
    """Number format of what is written; fp32 for an adapter and the base's own for a base if not
    given. Sums are always taken in fp32 and rounded once."""
    format: FORMATS | None = None
    """Of a merged adapter: peft, which is for diffusers, if not given; kohya is for A1111, Forge,
    ComfyUI and Civitai."""
    allow_other_base: bool = False
    """Merge adapters that were trained on different base models into one adapter."""


@dataclass(kw_only=True)
class ResizeFields:
    """What to resize"""

    file: str
    """An adapter file, or the output folder of a training run."""
    rank: int
    """The new rank of each layer, at most; a layer that has less keeps what it has."""
    energy: float | None = None
    """Give each layer the smallest rank that keeps this share of its change, as in 0.99, and never
    more than --rank."""
    dtype: Literal["fp32", "fp16", "bf16"] | None = None
    """Number format of what is written; as it was if not given."""
    format: FORMATS | None = None
    """peft is for diffusers, kohya for A1111, Forge, ComfyUI and Civitai; as it was if not given,
    where that is one of them."""


@dataclass(kw_only=True)
class ExtractFields:
    """What to extract"""

    base: str
    """The model that was fine-tuned: a folder in diffusers' layout, a .safetensors or .ckpt file,
    a Hub id that is on this machine, or scumble-tiny."""
    tuned: str
    """What became of it, in any of these forms."""
    rank: int
    """Rank of each layer, at most. 32 to 128 are usual; the report says what it keeps."""
    energy: float | None = None
    """Give each layer the smallest rank that keeps this share of its difference, as in 0.99, and
    never more than --rank."""
    targets: tuple[str, ...] = ()
    """Ends of module paths to extract, such as attn2.to_k; every linear layer and convolution that
    adapters can change if not given."""
    with_norms: bool = False
    """Put the differences of norms into the file too, which not every program reads."""
    revision: str | None = None
    """Branch, tag or commit of both models on the Hub."""
    variant: str | None = None
    """Weight variant of both models to read, such as fp16."""
    prediction_type: Literal["epsilon", "v_prediction"] | None = None
    """What both models predict. Set it only where the base's own scheduler setting is wrong or,
    with a Stable Diffusion 2 checkpoint in one file, missing."""
    cache_dir: str | None = None
    """Where downloaded models are kept."""
    dtype: Literal["fp32", "fp16", "bf16"] = "fp32"
    """Number format of what is written."""
    format: FORMATS = "peft"
    """peft is for diffusers, kohya for A1111, Forge, ComfyUI and Civitai."""
