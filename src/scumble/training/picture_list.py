"""Which pictures and captions a run was taught by: a list in its folder, digests in its files.

Nothing in it depends on where the pictures lie.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from scumble.data.wording import counted
from scumble.errors import UserError
from scumble.formats.container import write_atomically

LIST_NAME = "pictures.jsonl"
MOST_NAMED = 20
"""So many pictures are named; of more, how many there are."""


class Known(Protocol):
    """A picture that was scanned, encoded or not."""

    @property
    def id(self) -> str:
        """Its name in the data."""

    @property
    def sha256(self) -> str:
        """Of its file."""

    @property
    def mask_sha256(self) -> str | None:
        """Of its mask's file."""

    @property
    def captions(self) -> tuple[str, ...]:
        """One or more."""


class Entry(NamedTuple):
    """One picture of a list."""

    id: str
    sha256: str
    mask: str | None
    captions: tuple[str, ...]


PictureSets = Mapping[str, Sequence[Entry]]
"""What the pictures are for ("pictures", "held-out pictures", ...) -> the pictures in order."""


def listed_entries(pictures: Iterable[Known]) -> list[Entry]:
    """The list's entries for pictures."""
    return [Entry(p.id, p.sha256, p.mask_sha256, p.captions) for p in pictures]


def digests(sets: PictureSets) -> dict[str, dict[str, Any]]:
    """What tells sets of pictures from others, in a line each: how many, and two hashes."""
    return {
        name: {
            "count": len(entries),
            "pictures": _digest([entry.id, entry.sha256, entry.mask] for entry in entries),
            "captions": _digest([entry.id, entry.captions] for entry in entries),
        }
        for name, entries in sets.items()
    }


def _digest(parts: Iterable[Any]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(json.dumps(part).encode() + b"\n")
    return digest.hexdigest()[:32]


def write_list(sets: PictureSets, folder: Path) -> None:
    """Write the list into a run's folder, a picture in each line."""
    lines = [
        json.dumps({"set": name, **entry._asdict()}, ensure_ascii=False) + "\n"
        for name, entries in sets.items()
        for entry in entries
    ]
    write_atomically(folder / LIST_NAME, "".join(lines).encode("utf-8", "backslashreplace"))


def read_list(folder: Path) -> PictureSets | None:
    """Read it; None where there is none.

    Raises:
        UserError: it is damaged.
    """
    path = folder / LIST_NAME
    if not path.is_file():
        return None
    sets: dict[str, list[Entry]] = {}
    try:
        for line in path.read_text("utf-8").splitlines():
            one = json.loads(line)
            entry = Entry(one["id"], one["sha256"], one["mask"], tuple(one["captions"]))
            sets.setdefault(one["set"], []).append(entry)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is damaged ({error})", "Without it, differences are not named one by one."
        ) from error
    return sets


def named_differences(then: PictureSets, now: PictureSets) -> list[str]:
    """What is not as it was, a line for each picture."""
    lines = []
    for name in dict.fromkeys([*then, *now]):
        before = {entry.id: entry for entry in then.get(name, ())}
        after = {entry.id: entry for entry in now.get(name, ())}
        found = [_change(before.get(id), after.get(id)) for id in dict.fromkeys([*before, *after])]
        changes = [change for change in found if change]
        lines += [f"{name}: {change}" for change in changes[:MOST_NAMED]]
        if len(changes) > MOST_NAMED:
            lines.append(f"{name}: and {len(changes) - MOST_NAMED} more that are not as they were")
        if not changes and list(then.get(name, ())) != list(now.get(name, ())):
            lines.append(f"{name}: they come in another order")
    return lines


def _change(before: Entry | None, after: Entry | None) -> str:
    if before is None or after is None:
        known = after or before
        assert known is not None
        return f"{known.id} is {'new' if before is None else 'gone'}"
    changes = []
    if before.sha256 != after.sha256:
        changes.append("is another picture")
    if before.mask != after.mask:
        changes.append("has another mask")
    if before.captions != after.captions:
        changes.append(f"had the caption {_shown(before)} and has {_shown(after)} now")
    return f"{before.id} {', '.join(changes)}" if changes else ""


def _shown(entry: Entry) -> str:
    first, *others = entry.captions
    more = f" and {len(others)} more" if others else ""
    return f"'{first[:80]}{'...' if len(first) > 80 else ''}'{more}"


def counted_differences(
    then: Mapping[str, Mapping[str, Any]], now: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    """What is not as it was, where only digests are known."""
    lines = []
    for name in dict.fromkeys([*then, *now]):
        before, after = then.get(name, {}), now.get(name, {})
        counts = [counted(int(side.get("count", 0)), "picture") for side in (before, after)]
        if counts[0] != counts[1]:
            lines.append(f"{name}: {counts[0]} then, {counts[1]} now")
        elif before.get("pictures") != after.get("pictures"):
            lines.append(f"{name}: as many as then, and not the same ones or not in that order")
        elif before.get("captions") != after.get("captions"):
            lines.append(f"{name}: the same pictures with other captions")
    return lines
