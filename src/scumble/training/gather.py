"""From the user's pictures to encoded data: scan, report, encode, let the encoders go."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from operator import length_hint
from pathlib import Path

from scumble import console
from scumble.config import TrainConfig
from scumble.data.cache import content_key
from scumble.data.scan import Picture, ScanReport, scan
from scumble.data.sources import image_folder
from scumble.data.wording import listed
from scumble.errors import UserError
from scumble.training.class_pictures import draw_class_pictures
from scumble.training.encoders import Encoders
from scumble.training.find import Found, find_pictures, say_report
from scumble.training.picture_list import Known, listed_entries
from scumble.training.precompute import EncodedData, PictureEncoder
from scumble.training.processes import Processes
from scumble.training.resident import Resident


@dataclass(frozen=True)
class Gathered:
    """The pictures of a run in encoded form.

    Args:
        train: to learn.
        held_out: to measure on; None where nothing is held out.
        class_pictures: to hold the class to; None where no prior is preserved with pictures.
        report: what was found while checking `train`.
    """

    train: EncodedData
    held_out: EncodedData | None = None
    class_pictures: EncodedData | None = None
    report: ScanReport = field(default_factory=ScanReport)

    def captions(self) -> set[str]:
        """Every caption that occurs."""
        parts = (self.train, self.held_out, self.class_pictures)
        return {caption for part in parts if part is not None for caption in part.captions()}

    def digest(self) -> str:
        """Fingerprint of all pictures and captions."""
        parts = (self.train, self.held_out, self.class_pictures)
        return "/".join(part.digest() for part in parts if part is not None)


def gather_data(
    config: TrainConfig,
    encoders: Encoders,
    resident: Resident,
    choose: Callable[[Found], Found] = lambda found: found,
) -> Gathered:
    """Check every picture and caption, and encode the pictures.

    Local pictures are all checked, and the report said, before the first is encoded. A stream is
    checked and encoded in one pass. `choose` may leave out some of what was found.

    Raises:
        UserError: bad pictures, missing captions, an impossible resolution, a broken base.
    """
    found = choose(find_pictures(config, encoders.family, encoders.components))
    held_out, processes = found.held_out, encoders.runtime.processes
    if not found.streaming:
        _check_alike([*found.train, *held_out], processes)
    class_pictures = found.class_pictures
    if class_pictures is None:
        class_pictures = _class_pictures(config, encoders, found)
    encoder = PictureEncoder(config, encoders, resident)
    _check_alike(class_pictures, processes)
    processes.agree({f"the base's {encoder.vae}": content_key(encoder.vae_key)[:16]})
    train = encoder.encode(found.train, found.sizes, length_hint(found.train, 0) or None)
    if found.streaming:
        say_report(found.report)
        _check_alike(train.examples, processes)
    # Any class picture may stand beside any other: they all are of one size.
    square = [size for size in found.sizes if size[0] == size[1]]
    gathered = Gathered(
        train,
        encoder.encode(held_out, found.sizes, len(held_out)) if held_out else None,
        encoder.encode(class_pictures, square, len(class_pictures)) if class_pictures else None,
        found.report,
    )
    encoders.release(encoder.vae)
    return gathered


def _check_alike(pictures: Iterable[Known], processes: Processes) -> None:
    """Make sure that all processes have the same pictures and captions.

    Raises:
        UserError: naming what differs.
    """
    entries = listed_entries(pictures) if processes.count > 1 else []
    if len(set(processes.together(lambda: content_key(repr(entries))))) > 1:
        facts: dict[str, str] = {}
        for entry in entries:
            facts[f"the picture {entry.id}"] = entry.sha256[:16]
            facts[f"the mask of {entry.id}"] = (entry.mask or "none")[:16]
            facts[f"the caption of {entry.id}"] = " | ".join(entry.captions)
        processes.agree(facts)
        processes.agree({"the order of the pictures": [entry.id for entry in entries]})


def _class_pictures(config: TrainConfig, encoders: Encoders, found: Found) -> list[Picture]:
    """The pictures of the class, each with the class prompt; what lacks is drawn first.

    Raises:
        UserError: pictures of the subject are among them.
    """
    if not config.with_prior_preservation or config.prior_from != "images":
        return []
    assert config.class_data_dir is not None, "the configuration has checked it"
    folder = Path(config.class_data_dir).expanduser()
    unused = draw_class_pictures(
        config, encoders.family, encoders.components, encoders.runtime, folder
    )
    console.say(f"class pictures: {folder}")
    report = ScanReport(buckets=found.sizes)
    scanned = scan(
        image_folder(folder),
        report,
        on_bad_image=config.on_bad_image,
        default_captions=(config.class_prompt or "",),
        own_captions=False,
    )
    pictures = [picture for picture in scanned if picture.id not in unused]
    say_report(report)
    if unused:
        console.say(f"drawn for a larger number and not used: {listed(sorted(unused))}")
    subject = [] if found.streaming else found.train
    own = {picture.sha256 for picture in subject}
    both = [picture.id for picture in pictures if picture.sha256 in own]
    if both:
        raise UserError(
            f"pictures of the subject are among those of its class in {folder}: {listed(both)}",
            "They would teach that the class looks like the subject. Name another "
            "--class_data_dir.",
        )
    return pictures
