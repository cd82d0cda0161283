"""What the denoiser is told of a caption: encoded once before training, or anew in every step."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch

from scumble import console
from scumble.adapters.tokens import expand
from scumble.data.cache import content_key
from scumble.families import Components, Conditioning, Family, text_encoders
from scumble.training.encoders import Encoders
from scumble.training.resident import Resident
from scumble.training.share_out import Piece, fill

BEYOND = "tokens_beyond"
"""Name in the store of the number of tokens that were cut off a caption."""


class Texts(Protocol):
    """Captions in, conditioning out."""

    ready: bool
    """Whether captions are encoded beforehand, so that asking again gives the same."""

    def __call__(self, captions: Sequence[str]) -> Conditioning:
        """The conditioning of the captions, in the order given, on the device."""

    def on(self, components: Components) -> "Texts":
        """The same captions, encoded by other components where they are encoded at all."""


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
            if name != BEYOND
        }

    def on(self, components: Components) -> "EncodedTexts":
        """The same: nothing is encoded any more."""
        del components
        return self

    @torch.no_grad()
    def encode(self, captions: Iterable[str], encoders: Encoders) -> None:
        """Encode captions that are not in the store yet.

        Args:
            captions: all that the training may ask for.
            encoders: the text encoders are loaded if some caption is not in the store.

        Raises:
            UserError: an encoding is NaN, or the store cannot be written.
        """
        names = text_encoders(encoders.family)
        about = "/".join(encoders.key(name) for name in names)
        encoders.runtime.processes.agree({"the base's text encoder": content_key(about)[:16]})
        store = self.resident.store
        wanted = sorted(set(captions))
        self.keys |= {caption: content_key("caption", caption, about) for caption in wanted}
        pieces = [self._piece(caption, encoders) for caption in wanted]
        with console.progress(len(pieces), "encoding captions", unit="caption") as bar:
            fill(store, pieces, encoders.runtime.processes, bar.update)
        for caption in wanted:
            _report(caption, int(store.require(self.keys[caption])[BEYOND][0]))

    def _piece(self, caption: str, encoders: Encoders) -> Piece:
        def make(_keys: Collection[str]) -> None:
            self._encode(caption, encoders)

        return Piece(_label(caption), (self.keys[caption],), make)

    def _encode(self, caption: str, encoders: Encoders) -> None:
        family, components = encoders.family, encoders.components
        for name in text_encoders(family):
            encoders.load(name)
        batch = family.encode_prompts(components, [caption])
        entry = {name: tensor[0] for name, tensor in batch.items()}
        beyond = max(
            tokens_beyond(caption, components[tokenizer], {})
            for tokenizer in text_encoders(family).values()
        )
        entry[BEYOND] = torch.tensor([beyond])
        self.resident.store.put(self.keys[caption], entry, _label(caption))


def _label(caption: str) -> str:
    return f"the caption '{caption[:60]}'"


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

    def on(self, components: Components) -> "LiveTexts":
        """Encoded by the text encoders of other components."""
        return LiveTexts(self.family, components, self.tokens)


def tokens_beyond(caption: str, tokenizer: Any, tokens: Mapping[str, int]) -> int:
    """How many tokens of a caption are more than its text encoder reads."""
    count = len(tokenizer(expand(caption, tokens), verbose=False).input_ids)
    return max(0, count - int(tokenizer.model_max_length))


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
        for caption in sorted(captions):
            _report(caption, tokens_beyond(caption, components[name], tokens))


def _report(caption: str, beyond: int) -> None:
    if beyond:
        console.say(
            f"caption cut: its last {beyond} tokens are more than the text encoder reads: "
            f"'{caption[:70]}...'"
        )
