"""Look at every picture before training, so that no bad one stops a run halfway."""

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal

from PIL import Image

from scumble.data.buckets import nearest_bucket
from scumble.data.captions import CaptionRules
from scumble.data.masks import BadMaskError, bad_masks, check_mask
from scumble.data.pictures import BadPictureError, Finding, decode, decode_mask
from scumble.data.sources import Example, Source
from scumble.data.wording import counted, listed
from scumble.errors import UserError

LOST = (Finding.UNREADABLE, Finding.TOO_LARGE)
"""What takes a picture out of the training: each is named, however many there are."""


@dataclass(frozen=True)
class Picture:
    """A picture known to be good, and its captions; the pixels are decoded on demand.

    Args:
        id: the example's.
        captions: at least one; "" stands for none.
        sha256: hex digest of the file's bytes.
        width_px: of the upright picture.
        height_px: of the upright picture.
        read: gives the bytes of the image file.
        mask_sha256: hex digest of the mask file's bytes; None where masks are not used.
        read_mask: gives the bytes of the mask file; None where masks are not used.
    """

    id: str
    captions: tuple[str, ...]
    sha256: str
    width_px: int
    height_px: int
    read: Callable[[], bytes] = field(repr=False)
    mask_sha256: str | None = None
    read_mask: Callable[[], bytes] | None = field(default=None, repr=False)

    def load(self) -> Image.Image:
        """Decode the picture: upright RGB, transparency over white, the first frame.

        Raises:
            UserError: the file is gone or has changed since it was scanned.
        """
        image, _ = decode(_unchanged(self.id, self.read, self.sha256))
        return image

    def load_mask(self) -> Image.Image:
        """Decode the picture's mask: upright, of the picture's size, in mode "L".

        Raises:
            UserError: the file is gone or has changed since it was scanned.
        """
        assert self.read_mask is not None, "only a scan with masks=True keeps them"
        return decode_mask(_unchanged(f"the mask of {self.id}", self.read_mask, self.mask_sha256))


def _unchanged(name: str, read: Callable[[], bytes], sha256: str | None) -> bytes:
    try:
        data = read()
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{name} can no longer be read: {reason}") from error
    if hashlib.sha256(data).hexdigest() != sha256:
        raise UserError(f"{name} has changed since the run began", "Start the run again.")
    return data


@dataclass
class ScanReport:
    """What a scan found, by kind and by name.

    Args:
        buckets: the (height_px, width_px) sizes pictures are shown at; empty to leave out which
            ones will be upscaled.
    """

    buckets: Sequence[tuple[int, int]] = ()
    found: int = 0
    used: int = 0
    skipped: int = 0
    names: dict[Finding, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict, repr=False)
    """Name of a good picture -> its (width_px, height_px)."""
    _first_with: dict[str, str] = field(default_factory=dict, repr=False)

    def add(self, finding: Finding, name: str) -> None:
        """File a name under a finding."""
        self.names.setdefault(finding, []).append(name)

    def add_picture(self, picture: Picture, findings: Sequence[Finding]) -> None:
        """File everything remarkable about a good picture.

        Args:
            picture: compared with those before it to find duplicates.
            findings: what decoding it brought up.
        """
        for finding in findings:
            self.add(finding, picture.id)
        self.sizes[picture.id] = picture.width_px, picture.height_px
        first = self._first_with.setdefault(picture.sha256, picture.id)
        if first != picture.id:
            self.add(Finding.DUPLICATE, f"{picture.id} (same as {first})")
        if self.buckets:
            bucket = nearest_bucket(picture.width_px, picture.height_px, self.buckets)
            if picture.height_px < bucket[0] or picture.width_px < bucket[1]:
                self.add(Finding.UPSCALED, picture.id)

    def lines(self) -> list[str]:
        """Word the report for people: the count first, then a line per kind of finding."""
        head = f"pictures: {self.found} found, {self.used} used, {self.skipped} skipped"
        kinds = [
            f"{len(names)} {finding}: {listed(names, len(names) if finding in LOST else 5)}"
            for finding in Finding
            if (names := self.names.get(finding))
        ]
        return [head, *kinds, *self.notes]


def scan(
    source: Source,
    report: ScanReport,
    *,
    on_bad_image: Literal["error", "skip"],
    on_missing_caption: Literal["error", "empty"] = "error",
    default_captions: Sequence[str] = (),
    own_captions: bool = True,
    masks: bool = False,
    workers: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Iterator[Picture]:
    """Decode every picture of a source once, in order, and yield the good ones.

    Errors come at the end of the pass with all names at once; a streaming source, whose pass may
    take days, raises at the first.

    Args:
        source: gone through once; the bytes of a picture live as long as the picture.
        report: filled on the way.
        on_bad_image: whether a picture that cannot be decoded is an error or passed over.
        on_missing_caption: whether a picture without a caption is an error or gets the empty one.
        default_captions: all of them go to each picture with no caption or an empty one.
        own_captions: False ignores the source's captions: every picture gets the default ones.
        masks: whether every picture must have a mask, which is checked as well.
        workers: threads that decode; 0 decodes in this one.
        progress: called with the number of pictures looked at so far.

    Raises:
        UserError: a bad picture or mask, a missing caption, no caption at all, or no picture left.
    """
    rules = CaptionRules(tuple(default_captions), own_captions, on_missing_caption)
    checks = _Checks(source.name, report, rules, on_bad_image, masks, source.streaming)
    try:
        for example, look in _looks(source, workers, masks):
            report.found += 1
            if progress is not None:
                progress(report.found)
            picture = checks.picture(example, look)
            if picture is not None:
                yield picture
    finally:  # Whoever has seen enough of a stream gets the notes too.
        report.notes += [*source.notes, *checks.notes()]
    checks.finish()


@dataclass(frozen=True)
class _Look:
    sha256: str
    width_px: int
    height_px: int
    findings: tuple[Finding, ...]
    mask: str | BadMaskError | None
    """The digest of its file, or what is wrong with it; None where masks are not used."""


@dataclass
class _Checks:
    """Sorts good pictures from bad ones and keeps what has to be said at the end."""

    source: str
    report: ScanReport
    rules: CaptionRules
    on_bad_image: Literal["error", "skip"]
    masks: bool
    stop_at_first: bool
    bad: list[str] = field(default_factory=list)
    mask_faults: list[str] = field(default_factory=list)
    unused_masks: int = 0

    def picture(self, example: Example, look: _Look | BadPictureError) -> Picture | None:
        if isinstance(look, BadPictureError):
            self._refuse(example, look)
            return None
        captions, finding = self.rules.apply(example.id, example.captions)
        if finding is not None:
            self.report.add(finding, example.id)
        mask = self._mask(example, look)
        if self.stop_at_first:
            self._complain()
        if not captions or (self.masks and mask is None):
            return None
        picture = Picture(
            example.id,
            captions,
            look.sha256,
            look.width_px,
            look.height_px,
            example.read,
            mask,
            example.read_mask if self.masks else None,
        )
        self.report.add_picture(picture, look.findings)
        self.report.used += 1
        return picture

    def notes(self) -> list[str]:
        notes = self.rules.notes()
        if self.unused_masks:
            notes.append(f"{counted(self.unused_masks, 'mask')} not used: --masked_loss uses them")
        return notes

    def finish(self) -> None:
        if self.bad and self.on_bad_image == "error":
            raise _bad_pictures(self.bad)
        if len(self.bad) == self.report.found:
            message = f"no picture is left to train on in {self.source}"
            raise UserError(message, "; ".join(self.bad))
        self.rules.check(self.source)
        self._complain()

    def _complain(self) -> None:
        if self.rules.missing:
            self.rules.check(self.source)
        if self.mask_faults:
            raise bad_masks(self.mask_faults)

    def _refuse(self, example: Example, error: BadPictureError) -> None:
        self.report.add(error.finding, f"{example.id} ({error})")
        self.bad.append(f"{example.id}: {error}")
        if self.on_bad_image == "skip":
            self.report.skipped += 1
        elif self.stop_at_first:
            raise _bad_pictures(self.bad)

    def _mask(self, example: Example, look: _Look) -> str | None:
        """The digest of a good mask."""
        if isinstance(look.mask, BadMaskError):
            self.mask_faults.append(f"{example.id}: {look.mask}")
            return None
        if example.read_mask is not None and not self.masks:
            self.unused_masks += 1
        return look.mask


def _looks(
    source: Source, workers: int, masks: bool
) -> Iterator[tuple[Example, _Look | BadPictureError]]:
    if workers < 1:
        for example in source:
            yield example, _look(example, masks)
        return
    with ThreadPoolExecutor(workers) as pool:
        ahead: deque[tuple[Example, Future[_Look | BadPictureError]]] = deque()
        for example in source:
            ahead.append((example, pool.submit(_look, example, masks)))
            # A short queue bounds the memory that a streaming source's bytes take.
            if len(ahead) > 2 * workers:
                example, future = ahead.popleft()
                yield example, future.result()
        for example, future in ahead:
            yield example, future.result()


def _look(example: Example, masks: bool) -> _Look | BadPictureError:
    try:
        data = example.read()
        image, findings = decode(data)
    except BadPictureError as error:
        return error
    except (OSError, ValueError) as error:
        return BadPictureError(Finding.UNREADABLE, getattr(error, "strerror", None) or str(error))
    mask: str | BadMaskError | None = None
    if masks:
        try:
            mask = check_mask(example.read_mask, image.width, image.height)
        except BadMaskError as error:
            mask = error
    return _Look(hashlib.sha256(data).hexdigest(), image.width, image.height, findings, mask)


def _bad_pictures(bad: list[str]) -> UserError:
    names = "".join(f"\n    {line}" for line in bad)
    hint = "Repair or remove them, or pass over them with --on_bad_image skip."
    return UserError(f"pictures that cannot be used: {len(bad)}{names}", hint)
