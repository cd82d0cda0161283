"""Which captions a picture has, and with which of them it is shown at one step."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from scumble.data.pictures import Finding
from scumble.data.wording import counted, listed
from scumble.errors import UserError

_HOW_TO_CAPTION = (
    "Captions come from a text file beside each picture (cat.png and cat.txt), from the caption "
    "column of a metadata.jsonl or data set (--caption_column), or from one caption for all "
    "(--instance_prompt)."
)


def caption_for(
    captions: Sequence[str],
    generator: torch.Generator,
    dropout: float,
    *,
    shuffle: bool = False,
    keep_tokens: int = 0,
) -> str:
    """Choose one caption, and now and then none, which teaches classifier-free guidance.

    Choice and dropout are always drawn, and before the order is: turning dropout or shuffling on
    changes no choice of caption, and shuffling changes no dropout.

    Args:
        captions: one or more; each is equally likely.
        generator: of this step and position in the batch.
        dropout: probability of the empty caption, in [0, 1].
        shuffle: whether the parts between commas are put in another order. Blank ones are left out.
        keep_tokens: so many parts stay in front, in their order.
    """
    choice = int(torch.randint(len(captions), (), generator=generator))
    dropped = float(torch.rand((), generator=generator)) < dropout
    if dropped:
        return ""
    return _shuffled(captions[choice], generator, keep_tokens) if shuffle else captions[choice]


def _shuffled(caption: str, generator: torch.Generator, keep_tokens: int) -> str:
    parts = [part.strip() for part in caption.split(",") if part.strip()]
    kept, free = parts[:keep_tokens], parts[keep_tokens:]
    order = torch.randperm(len(free), generator=generator).tolist()
    return ", ".join(kept + [free[index] for index in order])


@dataclass
class CaptionRules:
    """Gives pictures their own captions or the default ones, and keeps count of it.

    Args:
        default: for pictures with no caption or an empty one.
        use_own: False gives all pictures the default ones.
        on_missing: whether a picture without a caption is an error or gets the empty one.

    Raises:
        UserError: there can be no caption at all.
    """

    default: tuple[str, ...]
    use_own: bool
    on_missing: Literal["error", "empty"]
    missing: list[str] = field(default_factory=list)
    _with_own: int = 0
    _with_default: int = 0
    _ignored: int = 0

    def __post_init__(self) -> None:
        if not self.use_own and not self.default:
            message = "the pictures' own captions are ignored, and there is no other one"
            raise UserError(message, "Give one for all of them with --instance_prompt.")

    def apply(self, name: str, own: Sequence[str]) -> tuple[tuple[str, ...], Finding | None]:
        """Decide on the captions of a picture.

        Args:
            name: of the picture; joins `missing` if it has to have a caption and has none.
            own: its captions as the source has them.

        Returns:
            Its captions, none if they are missing, and what is remarkable about its own.
        """
        worded = tuple(caption for caption in own if caption.strip())
        if not self.use_own:
            self._ignored += len(worded)
            return self.default, None
        finding = None
        if not own:
            finding = Finding.NO_CAPTION
        elif len(worded) < len(own):
            finding = Finding.EMPTY_CAPTION
        if worded:
            self._with_own += 1
            return worded, finding
        if self.default:
            self._with_default += 1
            return self.default, finding
        # An empty text file may be meant; no text file at all is an oversight.
        if not own and self.on_missing == "error":
            self.missing.append(name)
            return (), finding
        return ("",), finding

    def notes(self) -> list[str]:
        """Say where captions came from, if there was a choice."""
        one = len(self.default) == 1
        defaults = "the one caption for all" if one else f"{len(self.default)} ready captions"
        if self._ignored:
            ignored = counted(self._ignored, "caption")
            return [f"{ignored} found but ignored: all pictures use {defaults}"]
        if self.default and self._with_own:
            pictures = counted(self._with_default, "picture")
            return [f"{defaults}: used by {pictures}, own captions by {self._with_own}"]
        return []

    def check(self, source: str) -> None:
        """Look back on the pictures so far.

        Args:
            source: the name of where they come from.

        Raises:
            UserError: some miss a caption, or none has one.
        """
        if not (self._with_own or self.default):
            raise UserError(f"no picture has a caption in {source}", _HOW_TO_CAPTION)
        if self.missing:
            names = listed(self.missing, limit=20)
            hint = f"{_HOW_TO_CAPTION} Or train these without one: --on_missing_caption empty."
            raise UserError(f"{len(self.missing)} pictures have no caption: {names}", hint)
