"""Look at every picture before training, so that no bad one stops a run halfway."""

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal

from PIL import Image

from scumble.data.buckets import nearest_bucket
from scumble.data.pictures import BadPictureError, Finding, decode
from scumble.data.sources import Example, Source
from scumble.data.wording import listed
from scumble.errors import UserError

_HOW_TO_CAPTION = (
    "Captions come from a text file beside each picture (cat.png and cat.txt), from the caption "
    "column of a metadata.jsonl or data set (--caption_column), or from one caption for all "
    "(--instance_prompt)."
)


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
    """

    id: str
    captions: tuple[str, ...]
    sha256: str
    width_px: int
    height_px: int
    read: Callable[[], bytes] = field(repr=False)

    def load(self) -> Image.Image:
        """Decode the picture: upright RGB, transparency over white, the first frame.

        Raises:
            UserError: the file is gone or has changed since it was scanned.
        """
        try:
            data = self.read()
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"{self.id} can no longer be read: {reason}") from error
        if hashlib.sha256(data).hexdigest() != self.sha256:
            raise UserError(f"{self.id} has changed since the run began", "Start the run again.")
        image, _ = decode(data)
        return image


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
            f"{len(self.names[finding])} {finding}: {listed(self.names[finding])}"
            for finding in Finding
            if finding in self.names
        ]
        return [head, *kinds, *self.notes]


def scan(
    source: Source,
    report: ScanReport,
    *,
    on_bad_image: Literal["error", "skip"],
    on_missing_caption: Literal["error", "empty"] = "error",
    default_caption: str | None = None,
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
        default_caption: for pictures with no caption or an empty one.
        workers: threads that decode; 0 decodes in this one.
        progress: called with the number of pictures looked at so far.

    Raises:
        UserError: a bad picture, a missing caption, no caption at all, or no picture left.
    """
    checks = _Checks(report, on_bad_image, on_missing_caption, default_caption, source.streaming)
    for example, look in _looks(source, workers):
        report.found += 1
        if progress is not None:
            progress(report.found)
        picture = checks.picture(example, look)
        if picture is not None:
            yield picture
    report.notes.extend(source.notes)
    checks.finish(source.name)


@dataclass(frozen=True)
class _Look:
    sha256: str
    width_px: int
    height_px: int
    findings: tuple[Finding, ...]


@dataclass
class _Checks:
    """Sorts good pictures from bad ones and keeps what has to be said at the end."""

    report: ScanReport
    on_bad_image: Literal["error", "skip"]
    on_missing_caption: Literal["error", "empty"]
    default_caption: str | None
    stop_at_first: bool
    any_caption: bool = False
    bad: list[str] = field(default_factory=list)
    uncaptioned: list[str] = field(default_factory=list)

    def picture(self, example: Example, look: _Look | BadPictureError) -> Picture | None:
        if isinstance(look, BadPictureError):
            self._refuse(example, look)
            return None
        captions = self._captions(example)
        self.any_caption = self.any_caption or any(captions) or self.default_caption is not None
        if not captions and self.on_missing_caption == "error":
            self.uncaptioned.append(example.id)
            if self.stop_at_first:
                raise _missing_captions(self.uncaptioned, self.any_caption)
            return None
        captions = captions or ("",)
        picture = Picture(
            example.id, captions, look.sha256, look.width_px, look.height_px, example.read
        )
        self.report.add_picture(picture, look.findings)
        self.report.used += 1
        return picture

    def finish(self, name: str) -> None:
        if self.bad and self.on_bad_image == "error":
            raise _bad_pictures(self.bad)
        if not self.report.used and not self.uncaptioned:
            message = f"no picture is left to train on in {name}"
            raise UserError(message, "; ".join(self.bad))
        if self.uncaptioned or not self.any_caption:
            raise _missing_captions(self.uncaptioned, self.any_caption)

    def _refuse(self, example: Example, error: BadPictureError) -> None:
        self.report.add(error.finding, f"{example.id} ({error})")
        self.bad.append(f"{example.id}: {error}")
        if self.on_bad_image == "skip":
            self.report.skipped += 1
        elif self.stop_at_first:
            raise _bad_pictures(self.bad)

    def _captions(self, example: Example) -> tuple[str, ...]:
        worded = tuple(caption for caption in example.captions if caption.strip())
        if not example.captions:
            self.report.add(Finding.NO_CAPTION, example.id)
        elif len(worded) < len(example.captions):
            self.report.add(Finding.EMPTY_CAPTION, example.id)
        if worded:
            return worded
        if self.default_caption is not None:
            return (self.default_caption,)
        # An empty text file may be meant; no text file at all is an oversight.
        return ("",) if example.captions else ()


def _looks(source: Source, workers: int) -> Iterator[tuple[Example, _Look | BadPictureError]]:
    if workers < 1:
        for example in source:
            yield example, _look(example)
        return
    with ThreadPoolExecutor(workers) as pool:
        ahead: deque[tuple[Example, Future[_Look | BadPictureError]]] = deque()
        for example in source:
            ahead.append((example, pool.submit(_look, example)))
            # A short queue bounds the memory that a streaming source's bytes take.
            if len(ahead) > 2 * workers:
                example, future = ahead.popleft()
                yield example, future.result()
        for example, future in ahead:
            yield example, future.result()


def _look(example: Example) -> _Look | BadPictureError:
    try:
        data = example.read()
        image, findings = decode(data)
    except BadPictureError as error:
        return error
    except (OSError, ValueError) as error:
        return BadPictureError(Finding.UNREADABLE, getattr(error, "strerror", None) or str(error))
    return _Look(hashlib.sha256(data).hexdigest(), image.width, image.height, findings)


def _bad_pictures(bad: list[str]) -> UserError:
    names = "".join(f"\n    {line}" for line in bad)
    hint = "Repair or remove them, or pass over them with --on_bad_image skip."
    return UserError(f"pictures that cannot be used: {len(bad)}{names}", hint)


def _missing_captions(names: list[str], any_caption: bool) -> UserError:
    if not any_caption:
        return UserError("no picture has a caption", _HOW_TO_CAPTION)
    hint = f"{_HOW_TO_CAPTION} Or train these without one: --on_missing_caption empty."
    return UserError(f"{len(names)} pictures have no caption: {listed(names, limit=20)}", hint)
