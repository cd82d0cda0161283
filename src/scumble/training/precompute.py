"""Encode pictures and captions once, before training: the loop needs no VAE and no encoder."""

import hashlib
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from scumble import console
from scumble.config import TrainConfig
from scumble.data.buckets import nearest_bucket
from scumble.data.cache import TensorStore, content_key, module_digest
from scumble.data.scan import Picture
from scumble.data.transforms import Crop, crops_of, pixels
from scumble.families import Components, Conditioning, Family, Posterior
from scumble.training.runtime import Runtime


@dataclass(frozen=True)
class EncodedExample:
    """One picture, ready to train on.

    Args:
        id: its name in the data.
        captions: one or more.
        bucket: (height, width) in pixels.
        latent_keys: store keys of its crops and flips.
    """

    id: str
    captions: tuple[str, ...]
    bucket: tuple[int, int]
    latent_keys: tuple[str, ...]


@dataclass(frozen=True)
class EncodedData:
    """All pictures and captions of a run in encoded form.

    Args:
        examples: in the order of the data.
        store: holds the tensors.
        text_keys: caption -> store key.
    """

    examples: list[EncodedExample]
    store: TensorStore
    text_keys: dict[str, str]

    def posterior(self, example: int, draw: torch.Generator) -> Posterior:
        """The latent posterior of one of an example's crops and flips, chosen by `draw`."""
        keys = self.examples[example].latent_keys
        entry = self._get(keys[int(torch.randint(len(keys), (), generator=draw))])
        return Posterior(entry["mean"], entry["std"])

    def text(self, caption: str) -> Conditioning:
        """The conditioning of a caption, without a batch dimension."""
        return self._get(self.text_keys[caption])

    def digest(self) -> str:
        """Fingerprint of the data as encoded: pictures, crops, captions and encoders."""
        parts = [f"{e.id}\0{e.captions}\0{e.latent_keys}" for e in self.examples]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def _get(self, key: str) -> dict[str, Tensor]:
        entry = self.store.get(key)
        assert entry is not None, "an encoded entry was removed while training"
        return entry


class Encoder:
    """Fills a store with what the frozen VAE and text encoder make of pictures and captions.

    Args:
        config: sizes, crops and cache settings.
        family: how to encode.
        components: with VAE, text encoder and tokenizer loaded.
        runtime: the device to encode on.
        sizes: the bucket sizes in use.
    """

    def __init__(
        self,
        config: TrainConfig,
        family: Family,
        components: Components,
        runtime: Runtime,
        sizes: Sequence[tuple[int, int]],
    ) -> None:
        self.config = config
        self.family = family
        self.components = components
        self.sizes = sizes
        self.store = TensorStore(cache_folder(config))
        self.vae_key = _model_key(components["vae"])
        self.text_key = _model_key(components["text_encoder"]) + _tokenizer_key(components)
        for name in family.components:
            if name in components:
                components[name].to(runtime.device)

    def encode(self, pictures: Iterable[Picture], total: int | None) -> EncodedData:
        """Encode every picture in all its crops, and every caption.

        Args:
            pictures: good ones; each is decoded only if some crop of it is not in the store.
            total: how many there are, for the progress bar; None if not known.

        Raises:
            UserError: an encoding is NaN, or the store cannot be written.
        """
        examples, reused = [], 0
        with console.progress(total, "encoding pictures", unit="picture") as bar:
            for picture in pictures:
                example, was_stored = self._picture(picture)
                examples.append(example)
                reused += was_stored
                bar.update()
        if reused:
            console.say(f"{reused} of {len(examples)} pictures were already in the cache.")
        for note in self.store.repaired:
            console.say(f"damaged cache entry made anew: {note}")
        captions = {caption for example in examples for caption in example.captions} | {""}
        return EncodedData(examples, self.store, self._captions(sorted(captions)))

    def _picture(self, picture: Picture) -> tuple[EncodedExample, bool]:
        bucket = nearest_bucket(picture.width_px, picture.height_px, self.sizes)
        crops = crops_of(
            picture.width_px,
            picture.height_px,
            bucket,
            center_crop=self.config.center_crop,
            random_flip=self.config.random_flip,
        )
        mode = self.config.image_interpolation_mode
        keys = [content_key("latents", picture.sha256, c.key, mode, self.vae_key) for c in crops]
        missing = [(k, c) for k, c in zip(keys, crops, strict=True) if k not in self.store]
        if missing:
            self._encode_crops(picture, missing)
        example = EncodedExample(picture.id, picture.captions, bucket, tuple(keys))
        return example, not missing

    def _encode_crops(self, picture: Picture, missing: Sequence[tuple[str, Crop]]) -> None:
        image = picture.load()
        for key, crop in missing:
            pixels_CHW = pixels(image, crop, self.config.image_interpolation_mode)
            posterior = self.family.encode_pixels(self.components, pixels_CHW[None])
            entry = {"mean": posterior.mean[0], "std": posterior.std[0]}
            self.store.put(key, entry, picture.id)

    def _captions(self, captions: Sequence[str]) -> dict[str, str]:
        keys = {caption: content_key("text", caption, self.text_key) for caption in captions}
        missing = [caption for caption, key in keys.items() if key not in self.store]
        self._report_long(captions)
        if not missing:
            return keys
        with console.progress(len(missing), "encoding captions", unit="caption") as bar:
            for caption in missing:
                batch = self.family.encode_prompts(self.components, [caption])
                entry = {name: tensor[0] for name, tensor in batch.items()}
                self.store.put(keys[caption], entry, f"the caption '{caption[:60]}'")
                bar.update()
        return keys

    def _report_long(self, captions: Sequence[str]) -> None:
        tokenizer = self.components["tokenizer"]
        limit = tokenizer.model_max_length
        for caption in captions:
            count = len(tokenizer(caption, verbose=False).input_ids)
            if count > limit:
                console.say(
                    f"caption cut: {count - limit} of its tokens are beyond the encoder's "
                    f"{limit - 2}: '{caption[:70]}...'"
                )


def cache_folder(config: TrainConfig) -> Path | None:
    """Where encoded tensors are kept; None means in memory only."""
    if not config.cache_latents:
        return None
    if config.latent_cache_dir is not None:
        return Path(config.latent_cache_dir).expanduser()
    if sys.platform == "win32":
        root = Path(os.environ.get("LOCALAPPDATA", Path.home()))
    elif sys.platform == "darwin":
        root = Path.home() / "Library" / "Caches"
    else:
        root = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return root / "scumble"


def encoder_dtype(dtype: torch.dtype) -> torch.dtype:
    """The format to encode in: the run's own, except that fp16 is too narrow for some VAEs."""
    return torch.float32 if dtype == torch.float16 else dtype


def _model_key(module: torch.nn.Module) -> str:
    config = getattr(module, "config", None)
    scaling = getattr(config, "scaling_factor", None)
    return f"{module_digest(module)}/{next(module.parameters()).dtype}/{scaling}"


def _tokenizer_key(components: Components) -> str:
    tokenizer = components["tokenizer"]
    vocabulary = repr(sorted(tokenizer.get_vocab().items()))
    text = f"{tokenizer.model_max_length}/{tokenizer.pad_token}/{vocabulary}"
    return hashlib.sha256(text.encode()).hexdigest()
