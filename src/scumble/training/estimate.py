"""How long everything beside the steps of a run will take, from the time of its pieces."""

from pathlib import Path

import torch

from scumble.config import given
from scumble.data.cache import TensorStore
from scumble.data.sources import image_folder
from scumble.data.transforms import pixels
from scumble.errors import UserError
from scumble.families import Components, text_encoders
from scumble.inference.generator import Sampling
from scumble.training.ceiling import fastest_s
from scumble.training.checkup.facts import Facts
from scumble.training.encoders import encoders_of
from scumble.training.few_pictures import FewPictures
from scumble.training.held_out import NOISE_LEVELS
from scumble.training.precompute import PictureEncoder
from scumble.training.resident import Resident
from scumble.training.workshop import Workshop

OF_ENCODING = 2.0
"""Decoding a picture takes about twice what encoding it takes."""


@torch.no_grad()
def encoding_s(workshop: Workshop, few: FewPictures) -> tuple[float, float]:
    """Seconds to encode all pictures and captions that are not in the cache yet.

    Returns:
        These seconds, and those of one view of one picture.
    """
    config, runtime = workshop.config, workshop.runtime
    encoders = encoders_of(config, workshop.family, Components(workshop.components.base), runtime)
    store = TensorStore(config.cache_folder)
    encoder = PictureEncoder(config, encoders, Resident(store, runtime.device))
    examples = [encoder.example(picture, few.sizes) for picture in few.all]
    lacking = [example for example in examples if example.latent_keys[0] not in store]
    views = sum(len(example.latent_keys) for example in lacking)
    encoders.load(encoder.vae)
    view_s = fastest_s(lambda: _encode(encoder, few), runtime.device)
    captions = {caption for example in lacking for caption in example.captions}
    caption_s = 0.0
    if captions and not config.encodes_in_every_step:
        for name in text_encoders(workshop.family):
            encoders.load(name)
        family, parts = workshop.family, encoders.components
        some = [next(iter(captions))]
        caption_s = fastest_s(lambda: family.encode_prompts(parts, some), runtime.device)
    return views * view_s + len(captions) * caption_s, view_s


def drawing_s(facts: Facts, question_s: float, view_s: float, held_out: int) -> float:
    """Seconds for sample pictures and measurements, over the whole run.

    Args:
        facts: of the run.
        question_s: for one picture through the denoiser.
        view_s: for one picture through the encoder.
        held_out: pictures to measure on.
    """
    config = facts.config
    if config.validation_steps is not None:
        moments = facts.steps // config.validation_steps
    else:
        moments = int(facts.seen) // given(config.validation_epochs)
    drawn = moments * config.num_validation_images * (config.validation_prompt is not None)
    drawn += 2 * config.num_validation_images * config.before_after
    picture_s = _picture_s(facts, question_s, view_s, config.num_inference_steps)
    return drawn * picture_s + (moments + 1) * held_out * NOISE_LEVELS * question_s


def class_s(facts: Facts, question_s: float, view_s: float) -> float:
    """Seconds to draw the pictures of the class that lack."""
    config = facts.config
    if not config.with_prior_preservation or config.class_data_dir is None:
        return 0.0
    try:
        there = sum(1 for _ in image_folder(Path(config.class_data_dir).expanduser()))
    except UserError:
        there = 0
    lacking = max(0, config.num_class_images - there)
    one_s = _picture_s(facts, question_s, view_s, Sampling().num_inference_steps)
    return lacking * (one_s + view_s)


def _picture_s(facts: Facts, question_s: float, view_s: float, steps: int) -> float:
    """Seconds to draw one picture at the base's own size; guidance asks twice."""
    height, width = facts.buckets.most_common(1)[0][0]
    larger = facts.base.native_px**2 / (height * width)
    return (2 * steps * question_s + OF_ENCODING * view_s) * larger


def _encode(encoder: PictureEncoder, few: FewPictures) -> None:
    picture, mode = few.all[0], encoder.config.image_interpolation_mode
    (crop, *_) = encoder.example(picture, few.sizes).crops
    pixels_CHW = pixels(picture.load(), crop, mode)
    encoder.encoders.family.encode_pixels(encoder.encoders.components, pixels_CHW[None])
