"""Encode pictures once, before training: the loop needs no VAE."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from scumble import console
from scumble.config import TrainConfig
from scumble.data.buckets import nearest_bucket
from scumble.data.cache import content_key
from scumble.data.scan import Picture
from scumble.data.transforms import Crop, crops_of, mask_weights, pixels
from scumble.families import Posterior
from scumble.training.encoders import Encoders
from scumble.training.resident import Resident


@dataclass(frozen=True)
class EncodedExample:
    """One picture, ready to train on.

    Args:
        id: its name in the data.
        captions: one or more.
        bucket: (height, width) in pixels.
        latent_keys: store keys of its crops and flips.
        mask_keys: store keys of its mask in the same crops and flips; empty without a mask.
    """

    id: str
    captions: tuple[str, ...]
    bucket: tuple[int, int]
    latent_keys: tuple[str, ...]
    mask_keys: tuple[str, ...] = ()


class Latents(NamedTuple):
    """One view of an encoded picture.

    Args:
        posterior: of its latents.
        mask: how much each place counts, shape (1, H, W); None where all count alike.
    """

    posterior: Posterior
    mask: Tensor | None


@dataclass(frozen=True)
class EncodedData:
    """All pictures of a data set in encoded form, with their captions.

    Args:
        examples: in the order of the data.
        resident: holds the tensors.
    """

    examples: list[EncodedExample]
    resident: Resident

    def latents(self, example: int, draw: torch.Generator) -> Latents:
        """One of an example's crops and flips, chosen by `draw`."""
        keys = self.examples[example].latent_keys
        view = int(torch.randint(len(keys), (), generator=draw))
        entry = self.resident.require(keys[view])
        masks = self.examples[example].mask_keys
        mask = self.resident.require(masks[view])["mask"] if masks else None
        return Latents(Posterior(entry["mean"], entry["std"]), mask)

    def captions(self) -> set[str]:
        """Every caption that occurs."""
        return {caption for example in self.examples for caption in example.captions}

    def digest(self) -> str:
        """Fingerprint of the data as encoded: pictures, crops, masks, captions and encoder."""
        parts = [f"{e.id}\0{e.captions}\0{e.latent_keys}\0{e.mask_keys}" for e in self.examples]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


class PictureEncoder:
    """Fills a store with what the frozen VAE makes of pictures.

    Args:
        config: crops and cache settings.
        encoders: the VAE is among them; it is loaded for the first picture that is not stored.
        resident: whose store is to be filled.
    """

    def __init__(self, config: TrainConfig, encoders: Encoders, resident: Resident) -> None:
        self.config = config
        self.encoders = encoders
        self.resident = resident
        self.store = resident.store
        self.vae = encoders.family.components[-1]
        self.vae_key = encoders.key(self.vae)

    @torch.no_grad()
    def encode(
        self,
        pictures: Iterable[Picture],
        sizes: Sequence[tuple[int, int]],
        total: int | None = None,
    ) -> EncodedData:
        """Encode every picture in all its crops.

        Args:
            pictures: good ones; each is decoded only if some crop of it is not in the store.
            sizes: the bucket sizes in use.
            total: how many there are, for the progress bar; None if not known.

        Raises:
            UserError: an encoding is NaN, or the store cannot be written.
        """
        examples, reused = [], 0
        with console.progress(total, "encoding pictures", unit="picture") as bar:
            for picture in pictures:
                example, was_stored = self._picture(picture, sizes)
                examples.append(example)
                reused += was_stored
                bar.update()
        if reused:
            console.say(f"{reused} of {len(examples)} pictures were already in the cache.")
        for note in self.store.repaired:
            console.say(f"damaged cache entry made anew: {note}")
        self.store.repaired.clear()
        return EncodedData(examples, self.resident)

    def _picture(
        self, picture: Picture, sizes: Sequence[tuple[int, int]]
    ) -> tuple[EncodedExample, bool]:
        bucket = nearest_bucket(picture.width_px, picture.height_px, sizes)
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
        masks = self._masks(picture, crops, keys)
        example = EncodedExample(picture.id, picture.captions, bucket, tuple(keys), masks)
        return example, not missing

    def _encode_crops(self, picture: Picture, missing: Sequence[tuple[str, Crop]]) -> None:
        self.encoders.load(self.vae)
        family, components = self.encoders.family, self.encoders.components
        image = picture.load()
        for key, crop in missing:
            pixels_CHW = pixels(image, crop, self.config.image_interpolation_mode)
            posterior = family.encode_pixels(components, pixels_CHW[None])
            entry = {"mean": posterior.mean[0], "std": posterior.std[0]}
            self.store.put(key, entry, picture.id)

    def _masks(
        self, picture: Picture, crops: Sequence[Crop], latent_keys: Sequence[str]
    ) -> tuple[str, ...]:
        if picture.mask_sha256 is None or not self.config.masked_loss:
            return ()
        mask, keys = None, []
        for crop, latent_key in zip(crops, latent_keys, strict=True):
            key = content_key("mask", picture.mask_sha256, latent_key)
            if key not in self.store:
                mask = mask or picture.load_mask()
                shape = self.store.require(latent_key)["mean"].shape
                weights_1HW = mask_weights(mask, crop, (shape[-2], shape[-1]))
                self.store.put(key, {"mask": weights_1HW}, f"the mask of {picture.id}")
            keys.append(key)
        return tuple(keys)
