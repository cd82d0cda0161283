"""Checks what is pinned and what is installed against known vulnerabilities, without a network.

The database is that of osv.dev for PyPI, one zip file of JSON files, fetched beforehand. Exits with
0 if nothing is known, 1 if something is, and 2 if that could not be found out.
"""

from __future__ import annotations

import argparse
import json
import sys
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import distributions
from pathlib import Path
from typing import Any, NamedTuple

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

PINS = Path(__file__).resolve().parents[1] / "constraints.txt"
DATABASE = "https://osv-vulnerabilities.storage.googleapis.com/PyPI/all.zip"
ONLINE = f"""\
With a network:

    pip install pip-audit && pip-audit -r {PINS.name} --no-deps --disable-pip

Without one: fetch the database where there is a network, carry it here, and name it:

    curl -O {DATABASE}
    python scripts/audit.py --database all.zip"""

Wanted = Mapping[str, set[str]]
"""Name of a package, in its canonical form -> its versions, as text."""


class AuditError(Exception):
    """Why it cannot be known whether anything is vulnerable."""


class Finding(NamedTuple):
    """An advisory that a version is affected by."""

    package: str
    version: str
    names: tuple[str, ...]
    fixed: tuple[str, ...]
    summary: str

    def line(self) -> str:
        """The finding in words."""
        fixed = (
            f"fixed in {', '.join(self.fixed)}" if self.fixed else "no version is said to fix it"
        )
        also = f" ({', '.join(self.names[1:])})" if self.names[1:] else ""
        where = f"https://osv.dev/vulnerability/{self.names[0]}"
        return (
            f"{self.package} {self.version}: {self.names[0]}{also}, {fixed}: {self.summary}\n"
            f"    {where}"
        )


def pinned(path: Path) -> dict[str, set[str]]:
    """What a file of constraints pins.

    Raises:
        AuditError: it cannot be read, or a line pins nothing: that one could not be checked.
    """
    found: dict[str, set[str]] = {}
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise AuditError(f"{path} cannot be read: {error}") from error
    for number, line in enumerate(lines, start=1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        try:
            requirement = Requirement(text)
            (specifier,) = requirement.specifier
        except (InvalidRequirement, ValueError) as error:
            raise AuditError(f"{path}, line {number} pins no version: {text}") from error
        if specifier.operator not in ("==", "===") or "*" in specifier.version:
            raise AuditError(f"{path}, line {number} pins no version: {text}")
        found.setdefault(canonicalize_name(requirement.name), set()).add(specifier.version)
    return found


def installed() -> dict[str, set[str]]:
    """What is installed beside this program."""
    found: dict[str, set[str]] = {}
    for one in distributions():
        if one.metadata["Name"]:
            found.setdefault(canonicalize_name(one.metadata["Name"]), set()).add(one.version)
    return found


def advisories(database: Path) -> Iterator[dict[str, Any]]:
    """Everything in a database.

    Raises:
        AuditError: it is damaged, or not there.
    """
    try:
        with zipfile.ZipFile(database) as archive:
            names = [name for name in archive.namelist() if name.endswith(".json")]
            for name in names:
                advisory = json.loads(archive.read(name))
                if not isinstance(advisory, dict) or "id" not in advisory:
                    raise AuditError(f"{database}: {name} is no advisory")
                yield advisory
    except (OSError, zipfile.BadZipFile, ValueError, RecursionError) as error:
        raise AuditError(f"{database} cannot be read as a database: {error}") from error
    if not names:
        raise AuditError(f"{database} holds no advisories")


def findings(advisory: Mapping[str, Any], wanted: Wanted) -> Iterator[Finding]:
    """What of the wanted packages an advisory is about; nothing if it was withdrawn."""
    if advisory.get("withdrawn"):
        return
    names = (advisory["id"], *sorted(advisory.get("aliases", ())))
    text = advisory.get("summary") or advisory.get("details") or "no summary"
    seen = set()
    for affected in advisory.get("affected", ()):
        about = affected.get("package", {})
        package = canonicalize_name(str(about.get("name", "")))
        if about.get("ecosystem") != "PyPI":
            continue
        for version in sorted(wanted.get(package, ())):
            if (package, version) not in seen and is_affected(version, affected):
                seen.add((package, version))
                fixed = tuple(fixes(affected))
                yield Finding(package, version, names, fixed, str(text).split("\n")[0][:100])


def is_affected(version: str, affected: Mapping[str, Any]) -> bool:
    """Whether a version is listed, or lies in one of the ranges.

    A version that cannot be compared counts as affected: better one question too many.
    """
    if version in affected.get("versions", ()):
        return True
    ranges = [r for r in affected.get("ranges", ()) if r.get("type") in ("ECOSYSTEM", "SEMVER")]
    try:
        own = Version(version)
        listed = {Version(text) for text in affected.get("versions", ()) if _is_version(text)}
        return own in listed or any(_is_inside(own, one.get("events", ())) for one in ranges)
    except InvalidVersion:
        return True


def _is_version(text: str) -> bool:
    try:
        Version(text)
    except InvalidVersion:
        return False
    return True


def _is_inside(version: Version, events: Iterable[Mapping[str, str]]) -> bool:
    """Follow the events of a range in the order of their versions, up to a version."""
    ordered = sorted(
        ((kind, text) for event in events for kind, text in event.items() if kind != "limit"),
        key=lambda event: (_least(event[1]), event[0] != "introduced"),
    )
    inside = False
    for kind, text in ordered:
        reached = version >= _least(text)
        if kind == "introduced" and reached:
            inside = True
        elif (kind == "fixed" and reached) or (kind == "last_affected" and version > _least(text)):
            inside = False
    return inside


def _least(text: str) -> Version:
    """A version of an event; "0" stands for one below all others."""
    return Version("0.dev0") if text == "0" else Version(text)


def fixes(affected: Mapping[str, Any]) -> Iterator[str]:
    """The versions that fix it, each once."""
    events = [event for one in affected.get("ranges", ()) for event in one.get("events", ())]
    kinds = {one.get("type") for one in affected.get("ranges", ())}
    if kinds - {"GIT"}:
        yield from dict.fromkeys(e["fixed"] for e in events if _is_version(e.get("fixed", "-")))


def audit(database: Path, wanted: Wanted, ignored: Sequence[str]) -> int:
    """Print what is known; returns the exit code."""
    newest, count, known, told = "", 0, 0, set()
    for advisory in advisories(database):
        count += 1
        newest = max(newest, str(advisory.get("modified", "")))
        for finding in findings(advisory, wanted):
            ids = frozenset(finding.names)
            # Two collections may tell of the same.
            if any(ids & other for name, other in told if name == finding[:2]):
                continue
            told.add((finding[:2], ids))
            if ids & set(ignored):
                print(f"passed over, as asked: {finding.line()}")
                continue
            known += 1
            print(finding.line())
    versions = sum(map(len, wanted.values()))
    print(
        f"{versions} versions of {len(wanted)} packages against {count} advisories, the newest "
        f"of {newest[:10] or 'an unknown day'}: {known or 'nothing'} found"
    )
    return 1 if known else 0


def main(words: Sequence[str] | None = None) -> int:
    """Run the check and return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, epilog=ONLINE
    )
    parser.add_argument("--database", type=Path, help="zip file of osv.dev's advisories for PyPI")
    parser.add_argument("--pins", type=Path, default=PINS, help="file of pins (constraints.txt)")
    parser.add_argument("--pins_only", action="store_true", help="leave out what is installed")
    parser.add_argument("--ignore", nargs="*", default=(), help="advisories that are known to you")
    options = parser.parse_args(words)
    if options.database is None:
        print(f"no --database was given: nothing was checked.\n\n{ONLINE}", file=sys.stderr)
        return 2
    try:
        wanted = pinned(options.pins)
        for name, versions in ({} if options.pins_only else installed()).items():
            wanted[name] = wanted.get(name, set()) | versions
        return audit(options.database, wanted, options.ignore)
    except AuditError as error:
        print(f"audit: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
