"""From the user's pictures to encoded data: scan, report, encode, let the encoders go."""

from collections.abc import Iterator
from operator import length_hint
from pathlib import Path

import torch

from scumble import console
from scumble.config import TrainConfig
from scumble.data.buckets import bucket_sizes
from scumble.data.scan import Picture, ScanReport, scan
from scumble.data.sources import Source, huggingface_dataset, image_folder
from scumble.errors import UserError
from scumble.families import Components, Family
from scumble.randomness import generator
from scumble.training.precompute import EncodedData, Encoder, encoder_dtype
from scumble.training.runtime import Runtime


def gather_data(
    config: TrainConfig, family: Family, components: Components, runtime: Runtime
) -> EncodedData:
    """Check every picture and caption, and encode them.

    Local pictures are all checked, and the report said, before the first is encoded. A stream is
    checked and encoded in one pass.

    Raises:
        UserError: bad pictures, missing captions, an impossible resolution, a broken base.
    """
    source = open_source(config)
    sizes = training_sizes(config, family, components)
    report = ScanReport(buckets=sizes)
    found = _scan(source, report, config)
    pictures: list[Picture] | Iterator[Picture] = found
    if not source.streaming:
        pictures = _few(list(found), config)
        _say(report)
    encoders = family.components[1:]
    family.load(components, encoders, encoder_dtype(runtime.dtype))
    encoder = Encoder(config, family, components, runtime, sizes)
    total = None if source.streaming else len(list(pictures))
    data = encoder.encode(pictures, total)
    if source.streaming:
        _say(report)
    components.release(*encoders)
    if runtime.device.type == "cuda":
        torch.cuda.empty_cache()
    return data


def open_source(config: TrainConfig) -> Source:
    """Open the folder or data set that the configuration names.

    Raises:
        UserError: it does not exist or holds no pictures.
    """
    if config.train_data_dir is not None:
        return image_folder(Path(config.train_data_dir).expanduser(), config.caption_column)
    assert config.dataset_name is not None
    return huggingface_dataset(
        config.dataset_name,
        config_name=config.dataset_config_name,
        image_column=config.image_column,
        caption_column=config.caption_column,
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


def _scan(source: Source, report: ScanReport, config: TrainConfig) -> Iterator[Picture]:
    total = length_hint(source) or None
    with console.progress(total, "checking pictures", unit="picture") as bar:
        for picture in scan(
            source,
            report,
            on_bad_image=config.on_bad_image,
            on_missing_caption=config.on_missing_caption,
            default_caption=config.instance_prompt,
            workers=config.dataloader_num_workers,
            progress=lambda looked_at: bar.update(looked_at - bar.n),
        ):
            yield picture
            if source.streaming and report.used == config.max_train_samples:
                return


def _few(pictures: list[Picture], config: TrainConfig) -> list[Picture]:
    limit = config.max_train_samples
    if limit is None or limit >= len(pictures):
        return pictures
    order = torch.randperm(len(pictures), generator=generator(config.seed, "max_train_samples"))
    console.say(f"--max_train_samples: using {limit} of {len(pictures)} pictures")
    return [pictures[index] for index in sorted(order[:limit].tolist())]


def _say(report: ScanReport) -> None:
    for line in report.lines():
        console.say(line)
