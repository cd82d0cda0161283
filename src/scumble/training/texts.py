"""What the denoiser is told of a caption: encoded once before training, or anew in every step."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import torch

from scumble import console
from scumble.adapters.tokens import expand
from scumble.data.cache import content_key
from scumble.families import Components, Conditioning, Family, text_encoders
from scumble.training.precompute import model_key
from scumble.training.resident import Resident


class Texts(Protocol):
    """Captions in, conditioning out."""

    ready: bool
    """Whether captions are encoded beforehand, so that asking again gives the same."""

    def __call__(self, captions: Sequence[str]) -> Conditioning:
        """The conditioning of the captions, in the order given, on the device."""


class EncodedTexts:
    """Captions that are encoded before training, so that the text encoders can be let go.

    Args:
        resident: keeps what is encoded.
        dtype: of the training.
    """

    ready = True

    def __init__(self, resident: Resident, dtype: torch.dtype) -> None:
        self.resident = resident
        self.dtype = dtype
        self.keys: dict[str, str] = {}

    def __call__(self, captions: Sequence[str]) -> Conditioning:
        """Fetch what was encoded."""
        states = [self.resident.require(self.keys[caption]) for caption in captions]
        return {
            name: torch.stack([state[name] for state in states]).to(self.dtype)
            for name in states[0]
        }

    @torch.no_grad()
    def encode(self, captions: Iterable[str], family: Family, components: Components) -> None:
        """Encode captions that are not in the store yet.

        Args:
            captions: all that the training may ask for.
            family: how to encode.
            components: with text encoders and tokenizers loaded.

        Raises:
            UserError: an encoding is NaN, or the store cannot be written.
        """
        encoders = "/".join(
            model_key(components[encoder]) + _tokenizer_key(components[tokenizer])
            for encoder, tokenizer in text_encoders(family).items()
        )
        store = self.resident.store
        wanted = sorted(set(captions))
        self.keys |= {caption: content_key("text", caption, encoders) for caption in wanted}
        missing = [caption for caption in wanted if self.keys[caption] not in store]
        report_long(wanted, family, components, {})
        if not missing:
            return
        with console.progress(len(missing), "encoding captions", unit="caption") as bar:
            for caption in missing:
                batch = family.encode_prompts(components, [caption])
                entry = {name: tensor[0] for name, tensor in batch.items()}
                store.put(self.keys[caption], entry, f"the caption '{caption[:60]}'")
                bar.update()


class LiveTexts:
    """Captions that are encoded anew in every step, because the encoder or its words learn.

    Args:
        family: how to encode.
        components: with text encoders and tokenizers loaded.
        tokens: new word -> how many vectors it stands for.
    """

    ready = False

    def __init__(self, family: Family, components: Components, tokens: Mapping[str, int]) -> None:
        self.family = family
        self.components = components
        self.tokens = tokens

    def __call__(self, captions: Sequence[str]) -> Conditioning:
        """Encode, with gradients for what learns."""
        prompts = [expand(caption, self.tokens) for caption in captions]
        return self.family.encode_prompts(self.components, prompts)


def report_long(
    captions: Iterable[str], family: Family, components: Components, tokens: Mapping[str, int]
) -> None:
    """Say which captions are longer than a text encoder reads.

    Args:
        captions: without their new words expanded.
        family: names the tokenizers.
        components: with the tokenizers loaded, which know the new words.
        tokens: new word -> how many vectors it stands for.
    """
    for name in text_encoders(family).values():
        tokenizer = components[name]
        limit = tokenizer.model_max_length
        for caption in sorted(captions):
            count = len(tokenizer(expand(caption, tokens), verbose=False).input_ids)
            if count > limit:
                console.say(
                    f"caption cut: {count - limit} of its tokens are beyond the encoder's "
                    f"{limit - 2}: '{caption[:70]}...'"
                )


def _tokenizer_key(tokenizer: object) -> str:
    vocabulary = repr(sorted(tokenizer.get_vocab().items()))  # type: ignore[attr-defined]
    text = f"{tokenizer.model_max_length}/{tokenizer.pad_token}/{vocabulary}"  # type: ignore[attr-defined]
    return hashlib.sha256(text.encode()).hexdigest()
