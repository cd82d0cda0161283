"""The pictures of a run, found and checked: nothing is encoded or drawn yet."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import length_hint
from pathlib import Path

import torch

from scumble import console
from scumble.config import TrainConfig
from scumble.data.buckets import bucket_sizes
from scumble.data.scan import Picture, ScanReport, scan
from scumble.data.sources import Source, huggingface_dataset, image_folder
from scumble.data.templates import TEMPLATES
from scumble.data.wording import counted, listed
from scumble.errors import UserError
from scumble.families import Components, Family
from scumble.randomness import generator


@dataclass(frozen=True)
class Found:
    """What there is to learn from, and what it is measured on.

    Args:
        sizes: the (height, width) in pixels that pictures are trained at.
        train: to learn; of a stream each is looked at as it is asked for.
        held_out: to measure on.
        report: of `train`; that of a stream is whole once all have been asked for.
        streaming: whether `train` can be gone through only once.
        class_pictures: to hold the class to, instead of those that are drawn of it.
    """

    sizes: Sequence[tuple[int, int]]
    train: Iterable[Picture]
    held_out: Sequence[Picture]
    report: ScanReport
    streaming: bool
    class_pictures: Sequence[Picture] | None = None


def find_pictures(config: TrainConfig, family: Family, components: Components) -> Found:
    """Check every picture and caption, and say what was found. A stream is only opened.

    Raises:
        UserError: bad pictures, missing captions, an impossible resolution.
    """
    sizes = training_sizes(config, family, components)
    source = open_source(config)
    report = ScanReport(buckets=sizes)
    found = _require_word(_scan(source, report, config), config)
    pictures: Iterable[Picture] = found
    held_out: list[Picture] = []
    if not source.streaming:
        kept = _few(list(found), config)
        say_report(report)
        pictures, held_out = _hold_out(kept, config)
    if config.validation_data_dir is not None:
        held_out = _scan_folder(config.validation_data_dir, config, sizes)
        _say_overlap(pictures, held_out)
    return Found(sizes, pictures, held_out, report, source.streaming)


def open_source(config: TrainConfig) -> Source:
    """Open the folder or data set that the configuration names.

    Raises:
        UserError: it does not exist or holds no pictures.
    """
    if config.picture_folder is not None:
        return image_folder(Path(config.picture_folder).expanduser(), config.caption_column)
    assert config.dataset_name is not None
    return huggingface_dataset(
        config.dataset_name,
        config_name=config.dataset_config_name,
        image_column=config.image_column,
        caption_column=config.caption_column,
        needs_captions=not ready_captions(config),
        cache_dir=config.cache_dir,
        streaming=config.streaming,
    )


def training_sizes(
    config: TrainConfig, family: Family, components: Components
) -> list[tuple[int, int]]:
    """The (height, width) in pixels that pictures are trained at.

    Raises:
        UserError: the resolution does not suit the base.
    """
    geometry = family.geometry(components.base)
    resolution = config.resolution or geometry.native_px
    if config.aspect_ratio_buckets:
        return bucket_sizes(resolution, geometry.step_px)
    if resolution % geometry.size_multiple_px:
        raise UserError(
            f"--resolution must be a multiple of {geometry.size_multiple_px} for this base, "
            f"not {resolution}",
            f"The base was trained at {geometry.native_px}.",
        )
    return [(resolution, resolution)]


def ready_captions(config: TrainConfig) -> tuple[str, ...]:
    """Captions for pictures that have none of their own."""
    if config.placeholder_token is not None and config.instance_prompt is None:
        templates = TEMPLATES[config.learnable_property or "object"]
        return tuple(template.format(config.placeholder_token) for template in templates)
    return () if config.instance_prompt is None else (config.instance_prompt,)


def _scan(source: Source, report: ScanReport, config: TrainConfig) -> Iterator[Picture]:
    total = length_hint(source) or None
    with console.progress(total, "checking pictures", unit="picture") as bar:
        for picture in scan(
            source,
            report,
            on_bad_image=config.on_bad_image,
            on_missing_caption=config.on_missing_caption,
            default_captions=ready_captions(config),
            own_captions=config.learnable_property is None,
            masks=config.masked_loss,
            workers=config.dataloader_num_workers,
            progress=lambda looked_at: bar.update(looked_at - bar.n),
        ):
            yield picture
            if source.streaming and report.used == config.max_train_samples:
                return


def _require_word(pictures: Iterable[Picture], config: TrainConfig) -> Iterator[Picture]:
    """Refuse captions that would teach the new word nothing, all at once.

    Raises:
        UserError: naming the pictures.
    """
    word = config.placeholder_token
    lacking = []
    for picture in pictures:
        if word is not None and any(word not in caption for caption in picture.captions):
            lacking.append(picture.id)
        yield picture
    if lacking:
        raise UserError(
            f"{counted(len(lacking), 'caption')} without {word}: {listed(lacking, limit=20)}",
            "Put the new word into every caption, or use ready captions about it: "
            "--learnable_property object (or style).",
        )


def _scan_folder(
    folder: str, config: TrainConfig, sizes: Sequence[tuple[int, int]]
) -> list[Picture]:
    console.say(f"to measure on: {folder}")
    report = ScanReport(buckets=sizes)
    source = image_folder(Path(folder).expanduser(), config.caption_column)
    pictures = list(_require_word(_scan(source, report, config), config))
    say_report(report)
    return pictures


def _say_overlap(train: Iterable[Picture], held_out: Sequence[Picture]) -> None:
    if isinstance(train, list):
        learnt = {picture.sha256 for picture in train}
        both = [picture.id for picture in held_out if picture.sha256 in learnt]
        if both:
            console.say(
                f"{counted(len(both), 'picture')} to measure on that are learnt too, so that the "
                f"measurement flatters: {listed(both)}"
            )


def _few(pictures: list[Picture], config: TrainConfig) -> list[Picture]:
    limit = config.max_train_samples
    if limit is None or limit >= len(pictures):
        return pictures
    order = torch.randperm(len(pictures), generator=generator(config.seed, "max_train_samples"))
    console.say(f"--max_train_samples: using {limit} of {len(pictures)} pictures")
    return [pictures[index] for index in sorted(order[:limit].tolist())]


def _hold_out(pictures: list[Picture], config: TrainConfig) -> tuple[list[Picture], list[Picture]]:
    """Part the pictures into those to learn and those to measure on.

    Raises:
        UserError: one of the two would be empty.
    """
    if not config.validation_share:
        return pictures, []
    count = round(len(pictures) * config.validation_share)
    if not 0 < count < len(pictures):
        raise UserError(
            f"--validation_share {config.validation_share} of {len(pictures)} pictures holds "
            f"{count} back",
            "Hold more back, or name other pictures to measure on: --validation_data_dir.",
        )
    order = torch.randperm(len(pictures), generator=generator(config.seed, "held out")).tolist()
    chosen = set(order[:count])
    console.say(f"--validation_share: {count} of {len(pictures)} pictures are only measured on")
    train = [picture for index, picture in enumerate(pictures) if index not in chosen]
    return train, [pictures[index] for index in sorted(chosen)]


def say_report(report: ScanReport) -> None:
    """Print what was found, by kind and by name."""
    for line in report.lines():
        console.say(line)
