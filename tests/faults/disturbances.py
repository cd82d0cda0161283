"""The ways in which a run is disturbed, what it may end with then, and how the place is put right.

Whatever it is, resuming must bring the run to the very end that it has undisturbed.
"""

import os
import random
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipes import Workplace

DISK_MIB = 512
FUTURE = 4_000_000_000
"""In the year 2096."""


def nothing(_place: Workplace, _draw: random.Random) -> Any:
    """Do nothing, with no options."""
    return {}


@dataclass(frozen=True)
class Disturbance:
    """One way.

    Args:
        act: of the run's process, or a signal.
        codes: that the run may end with.
        statuses: that the record may have then.
        says: one of these is in what the run says, if it ends by itself.
        options: of the act.
        prepare: the workplace.
        repair: the workplace, behind the end.
        late: whether signals may come some time after the moment.
        again: whether it happens more than once to a run.
    """

    act: str
    codes: tuple[int, ...]
    statuses: tuple[str, ...]
    says: tuple[str, ...] = ()
    options: Callable[[Workplace, random.Random], dict[str, Any]] = nothing
    prepare: Callable[[Workplace, random.Random], Any] = nothing
    repair: Callable[[Workplace, random.Random], Any] = nothing
    late: bool = False
    again: bool = True


def mount(place: Workplace, _draw: random.Random) -> None:
    """Give the workplace a small disk of its own."""
    place.folder.mkdir(parents=True)
    options = ["-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", str(place.folder)]
    subprocess.run(["mount", *options], check=True, capture_output=True)


def unmount(place: Workplace) -> None:
    """Take the small disk away."""
    if place.folder.is_mount():
        subprocess.run(["umount", str(place.folder)], check=True)


def can_mount(folder: Path) -> bool:
    """Whether small disks can be made here."""
    tried = Workplace(folder / "tried", "full")
    try:
        mount(tried, random.Random())
    except (OSError, subprocess.CalledProcessError):
        return False
    unmount(tried)
    return True


def make_room(place: Workplace, _draw: random.Random) -> None:
    """Remove what filled the disk."""
    (place.folder / "filler").unlink(missing_ok=True)


def unprotect(place: Workplace, _draw: random.Random) -> None:
    """Have the disk take things again."""
    subprocess.run(["mount", "-o", "remount,rw", str(place.folder)], check=True)


def damage(place: Workplace, draw: random.Random) -> str:
    """Flip a bit of a file that a run left, cut it short or remove it; says what was done."""
    roots = [root for root in (place.out, place.cache) if root.is_dir()]
    found = [p for root in roots for p in root.rglob("*") if p.is_file() and p.stat().st_size]
    # Each kind is as likely as any other, however many files there are of it.
    kinds: dict[str, list[Path]] = {}
    for path in sorted(found):
        kinds.setdefault(f"{path.parent.name.partition('-')[0][:10]} {path.name[-9:]}", []).append(
            path
        )
    if not kinds:
        return "nothing to damage"
    path = draw.choice(kinds[draw.choice(sorted(kinds))])
    content = bytearray(path.read_bytes())
    place_of_it = draw.randrange(len(content))
    match draw.choice(("flipped", "cut", "removed")):
        case "flipped":
            content[place_of_it] ^= 1 << draw.randrange(8)
            path.write_bytes(content)
            return f"a bit of byte {place_of_it} of {path} flipped"
        case "cut":
            path.write_bytes(content[:place_of_it])
            return f"{path} cut to {place_of_it} bytes"
    path.unlink()
    return f"{path} removed"


def date_forward(place: Workplace, _draw: random.Random) -> None:
    """Have every file come from the future."""
    for path in place.folder.rglob("*"):
        os.utime(path, (FUTURE, FUTURE))


def _clock(_place: Workplace, draw: random.Random) -> dict[str, Any]:
    return {"seed": draw.randrange(1000)}


def _room(place: Workplace, draw: random.Random) -> dict[str, Any]:
    return {"folder": str(place.folder), "leave": draw.choice((0, draw.randrange(200_000)))}


def _folder(place: Workplace, _draw: random.Random) -> dict[str, Any]:
    return {"folder": str(place.folder)}


def _size(_place: Workplace, draw: random.Random) -> dict[str, Any]:
    # What the run says goes into a file too, of some kilobytes.
    return {"size": draw.randrange(16_000, 60_000)}


def _loss(place: Workplace, draw: random.Random) -> dict[str, Any]:
    pictures = [str(path) for path in sorted((place.folder / "pictures").iterdir())]
    return {"names": draw.choice((pictures, [str(place.cache)], [draw.choice(pictures)]))}


def _rubbish(place: Workplace, draw: random.Random) -> dict[str, Any]:
    folder, pattern = draw.choice((("pictures", "*.*"), ("pictures", "*.txt"), ("cache", "*.*")))
    return {"folder": str(place.folder / folder), "pattern": pattern, "seed": draw.randrange(99)}


def redraw(place: Workplace, _draw: random.Random) -> None:
    """Have the pictures again."""
    shutil.rmtree(place.folder / "pictures", ignore_errors=True)
    place.prepare()


_ENDED = ("interrupted", "finished")
_GO_ON = ("Go on with the same command", "interrupted")
_WRITE = (
    "Read-only file system",
    "cannot write",
    "cannot be used",
    "No space left",
    "File too large",
    "cannot be written",
)
_FAILED = ("failed", "running", *_ENDED)

ON_OWN_DISK = ("disk full", "disk read-only")
"""Ways that need a small disk, which only root can mount."""

DISTURBANCES = {
    "kill": Disturbance("SIGKILL", (-9,), _ENDED, late=True),
    "interrupt": Disturbance("SIGINT", (130,), ("stopped", *_ENDED), _GO_ON, late=True),
    "terminate": Disturbance("SIGTERM", (130,), ("stopped", *_ENDED), _GO_ON, late=True),
    "stop twice": Disturbance("stop_twice", (130,), ("stopped", *_ENDED), _GO_ON),
    "disk full": Disturbance("fill", (0, 1), _FAILED, _WRITE, _room, mount, make_room),
    "disk read-only": Disturbance("protect", (0, 1), _FAILED, _WRITE, _folder, mount, unprotect),
    "file too large": Disturbance("limit_files", (0, 1), _FAILED, _WRITE, _size),
    "clock": Disturbance("shake_clock", (0,), _ENDED, options=_clock, repair=date_forward),
    "loss": Disturbance(
        "lose",
        (0, 1),
        _FAILED,
        ("no longer", "cannot be used", "no folder", "no picture", "gone", "Every"),
        _loss,
        repair=redraw,
    ),
    "rubbish": Disturbance(
        "spoil",
        (0, 1),
        _FAILED,
        ("changed", "picture", "caption", "UTF-8"),
        _rubbish,
        repair=redraw,
    ),
}
"""Name -> way of being disturbed."""
