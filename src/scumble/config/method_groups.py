"""The options that only some training methods have, which those are, and what they start from."""

from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from scumble.config.groups import (
    AdapterFields,
    DataFields,
    ModelFields,
    OptimizerFields,
    ReportFields,
    RunFields,
    ValidationFields,
)


@dataclass(kw_only=True)
class FrozenFields:
    """Frozen base"""

    memory: Literal["auto", "balanced", "low", "lowest", "off"] = "auto"
    """How much of the forward pass is kept for the way back. low computes a little of it twice, 6 %
    more arithmetic, and lowest 9 %; balanced nothing. auto takes the first of the three that fits.
    off leaves the model's own layers, which keep the most."""
    base_precision: Literal["int8", "fp8", "nf4"] | None = None
    """Store the frozen weights in 8 or 4 bits and compute in --mixed_precision: for cards of 2 to 6
    GB. int8 and fp8 halve the base, nf4 quarters it; each step is a little slower."""
    attention: Literal["auto", "sdpa", "xformers"] = "auto"
    """What computes attention: auto picks PyTorch's fastest kernel for each head's width, sdpa
    leaves the choice to PyTorch, xformers uses xFormers, which must be installed."""
    cuda_graph: bool = True
    """On an NVIDIA card, record the step once for each picture shape and play it back: several
    times faster at small batches."""
    compile: bool = False
    """Compile the denoiser with torch.compile on a GPU: a minute of waiting, which pays only in
    very long runs. Where it fails, training goes on without."""


@dataclass(kw_only=True)
class TextEncoderFields:
    """Text encoder"""

    train_text_encoder: bool = False
    """Put adapters on the text encoder too. Often helps a subject; captions are then encoded in
    every step."""
    text_encoder_lr: float | None = None
    """Its learning rate; half of --learning_rate if not given. Text encoders are spoilt quickly."""
    text_encoder_rank: int | None = None
    """Rank of its adapters; --rank if not given."""
    text_encoder_target_modules: tuple[str, ...] = ()
    """Its layers to adapt, as ends of module names, with :rank or :rank:alpha behind each if it
    should differ. The attention layers q_proj k_proj v_proj out_proj if not given."""


@dataclass(kw_only=True)
class SubjectFields:
    """Subject and prior"""

    instance_data_dir: str | None = None
    """Folder with a few pictures of the subject. Captions beside them replace --instance_prompt."""
    with_prior_preservation: bool = False
    """Keep what the model knows of the subject's class: a dog of yours must not become every
    dog."""
    prior_from: Literal["images", "base"] = "images"
    """What to hold the class to: pictures of it, drawn once by the base; or the base's own
    prediction in every step, which needs no pictures and no waiting."""
    class_prompt: str | None = None
    """Names the subject's class without the subject: a photo of a dog."""
    class_data_dir: str | None = None
    """Folder of class pictures. What lacks there is drawn with --class_prompt and kept for the next
    run; your own pictures of the class count too."""
    num_class_images: int = 100
    """How many class pictures there should be."""
    sample_batch_size: int = 4
    """How many class pictures are drawn at once."""
    prior_generation_precision: Literal["no", "fp32", "fp16", "bf16"] | None = None
    """Number format for drawing class pictures; that of the training if not given."""
    prior_loss_weight: float = 1.0
    """How much the class counts against the subject."""


@dataclass(kw_only=True)
class TokenFields:
    """New word"""

    placeholder_token: str | None = None
    """The new word, such as "<pip>". The model must not know it yet. Must be given."""
    initializer_token: str | None = None
    """A word that the model knows and that comes near, such as dog: where learning starts. Must be
    given."""
    num_vectors: int | None = None
    """How many vectors the word stands for: 1, and 2 for pivotal tuning. More hold more detail and
    take more of the prompt."""
    learnable_property: Literal["object", "style"] | None = None
    """Use ready captions about an object or a style. If not given: the pictures' own captions,
    which must contain the placeholder, and where there are none, those for an object."""
    repeats: int = 1
    """Makes an epoch so many passes over the pictures."""
    row_init_noise: float = 0.5
    """How far further vectors of the word start from the first, in units of the spread of the
    model's own vectors."""
    row_norm_pull: float = 100.0
    """Each step draws the length of a vector towards the mean length of the model's own, by this
    times the learning rate. It takes the place of weight decay; 0 lets the vector grow."""


@dataclass(kw_only=True)
class PivotFields:
    """Pivot"""

    pivot: float = 0.5
    """Share of the steps that learn the new word; the rest learns the adapter on top of it."""
    row_learning_rate: float = 5e-4
    """Learning rate of the new word's vectors."""
    row_learning_rate_after: float = 0.0
    """Their learning rate behind the pivot; 0 freezes them, bit for bit."""


_FIRST = (ModelFields, DataFields)
_ADAPTER = (AdapterFields, TextEncoderFields)
_LAST = (ValidationFields, ReportFields)
_RUN, _FROZEN = (OptimizerFields, RunFields), (OptimizerFields, RunFields, FrozenFields)

METHOD_GROUPS: dict[str, tuple[type, ...]] = {
    "text_to_image": (*_FIRST, *_ADAPTER, *_FROZEN, *_LAST),
    "dreambooth": (*_FIRST, SubjectFields, *_ADAPTER, *_FROZEN, *_LAST),
    "textual_inversion": (*_FIRST, TokenFields, *_FROZEN, *_LAST),
    "pivotal_tuning": (*_FIRST, TokenFields, PivotFields, *_ADAPTER, *_FROZEN, *_LAST),
    "full": (*_FIRST, *_RUN, *_LAST),
}
"""Method -> its groups of options, in the order that help shows them."""

METHOD_DEFAULTS: dict[str, dict[str, Any]] = {
    "text_to_image": {
        "learning_rate": 1e-4,
        "train_batch_size": 16,
        "num_train_epochs": 100,
        "validation_epochs": 1,
        "rank": 4,
    },
    "dreambooth": {
        "learning_rate": 1e-4,
        "train_batch_size": 1,
        "num_train_epochs": 100,
        "validation_epochs": 50,
        "rank": 4,
    },
    "textual_inversion": {
        "learning_rate": 5e-4,
        "train_batch_size": 1,
        "num_train_epochs": 300,
        "validation_epochs": 50,
        "num_vectors": 1,
    },
    "pivotal_tuning": {
        "learning_rate": 1e-4,
        "train_batch_size": 1,
        "num_train_epochs": 200,
        "validation_epochs": 50,
        "rank": 16,
        "num_vectors": 2,
    },
    "full": {
        "learning_rate": 1e-5,
        "train_batch_size": 16,
        "num_train_epochs": 100,
        "validation_epochs": 1,
    },
}
"""Method -> values of the options that are None above: what suits one method ruins another."""

T = TypeVar("T")


def given(value: T | None) -> T:
    """The value of an option whose default depends on the method: every configuration has one."""
    assert value is not None, "the configuration fills in the method's own"
    return value
