"""Encode pictures once, before training: the loop needs no VAE."""

import hashlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from PIL.Image import Image
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
from scumble.training.share_out import Piece, fill


@dataclass(frozen=True)
class EncodedExample:
    """One picture, ready to train on.

    Args:
        id: its name in the data.
        captions: one or more.
        bucket: (height, width) in pixels.
        latent_keys: store keys of its crops and flips.
        mask_keys: store keys of its mask in the same crops and flips; empty without a mask.
        crops: what each of those shows.
        sha256: of the picture's file.
        mask_sha256: of the mask's file; None without a mask.
    """

    id: str
    captions: tuple[str, ...]
    bucket: tuple[int, int]
    latent_keys: tuple[str, ...]
    mask_keys: tuple[str, ...] = ()
    crops: tuple[Crop, ...] = ()
    sha256: str = ""
    mask_sha256: str | None = None


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
        view = self.view(example, draw)
        entry = self.resident.require(self.examples[example].latent_keys[view])
        masks = self.examples[example].mask_keys
        mask = self.resident.require(masks[view])["mask"] if masks else None
        return Latents(Posterior(entry["mean"], entry["std"]), mask)

    def view(self, example: int, draw: torch.Generator) -> int:
        """Which of an example's crops and flips `draw` chooses."""
        count = len(self.examples[example].latent_keys)
        return int(torch.randint(count, (), generator=draw))

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
        examples: list[EncodedExample] = []

        def pieces() -> Iterator[Piece]:
            for picture in pictures:
                example = self.example(picture, sizes)
                examples.append(example)
                make = partial(self._encode, picture, example)
                yield Piece(picture.id, example.latent_keys + example.mask_keys, make)

        with console.progress(total, "encoding pictures", unit="picture") as bar:
            made = fill(self.store, pieces(), self.encoders.runtime.processes, bar.update)
        if made < len(examples):
            reused = len(examples) - made
            console.say(f"{reused} of {len(examples)} pictures were already in the cache.")
        for note in self.store.repaired:
            console.say(f"damaged cache entry made anew: {note}")
        self.store.repaired.clear()
        return EncodedData(examples, self.resident)

    def example(self, picture: Picture, sizes: Sequence[tuple[int, int]]) -> EncodedExample:
        """What a picture becomes; nothing is encoded yet."""
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
        mask, masks = picture.mask_sha256, []
        if mask is not None and self.config.masked_loss:
            masks = [content_key("mask", mask, latent_key) for latent_key in keys]
        return EncodedExample(
            picture.id,
            picture.captions,
            bucket,
            tuple(keys),
            tuple(masks),
            crops,
            picture.sha256,
            mask,
        )

    def _encode(self, picture: Picture, example: EncodedExample, wanted: Collection[str]) -> None:
        """Put entries of a picture into the store."""
        image = mask = None
        masks = example.mask_keys or (None,) * len(example.crops)
        for crop, key, mask_key in zip(example.crops, example.latent_keys, masks, strict=True):
            # Another process may have the latents of a mask that nobody has.
            if key in wanted or (mask_key in wanted and key not in self.store):
                image = image or picture.load()
                self._encode_crop(image, crop, key, picture.id)
            if mask_key is not None and mask_key in wanted:
                mask = mask or picture.load_mask()
                shape = self.store.require(key)["mean"].shape
                weights_1HW = mask_weights(mask, crop, (shape[-2], shape[-1]))
                self.store.put(mask_key, {"mask": weights_1HW}, f"the mask of {picture.id}")

    def _encode_crop(self, image: Image, crop: Crop, key: str, label: str) -> None:
        self.encoders.load(self.vae)
        pixels_CHW = pixels(image, crop, self.config.image_interpolation_mode)
        posterior = self.encoders.family.encode_pixels(self.encoders.components, pixels_CHW[None])
        self.store.put(key, {"mean": posterior.mean[0], "std": posterior.std[0]}, label)
