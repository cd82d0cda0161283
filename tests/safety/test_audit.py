"""The check of what is pinned and installed against known vulnerabilities."""

from __future__ import annotations

import importlib.util
import json
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "audit.py"
spec = importlib.util.spec_from_file_location("audit", SCRIPT)
assert spec is not None
assert spec.loader is not None
audit = importlib.util.module_from_spec(spec)
sys.modules["audit"] = audit
spec.loader.exec_module(audit)

Check = Callable[..., tuple[int, str]]


def advisory(identity: str, package: str, *events: dict[str, str], **more: Any) -> dict[str, Any]:
    affected: dict[str, Any] = {"package": {"ecosystem": "PyPI", "name": package}}
    if events:
        affected["ranges"] = [{"type": "ECOSYSTEM", "events": list(events)}]
    if "versions" in more:
        affected["versions"] = more.pop("versions")
    found = {"id": identity, "modified": "2026-01-02T03:04:05Z", "summary": f"{identity} told"}
    return {**found, "affected": [affected], **more}


@pytest.fixture
def check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Check:
    """Runs the check of some pins against some advisories: exit code, and what it says."""

    def run(pins: str, *entries: dict[str, Any], words: tuple[str, ...] = ()) -> tuple[int, str]:
        (tmp_path / "pins.txt").write_text(pins)
        with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
            for number, entry in enumerate(entries):
                archive.writestr(f"{number}.json", json.dumps(entry))
        files = ["--database", str(tmp_path / "all.zip"), "--pins", str(tmp_path / "pins.txt")]
        code = audit.main([*files, "--pins_only", *words])
        return code, "".join(capsys.readouterr())

    return run


SINCE = {"introduced": "0"}


@pytest.mark.parametrize(
    ("version", "events", "affected"),
    [
        ("1.0", [SINCE, {"fixed": "1.1"}], True),
        ("1.1", [SINCE, {"fixed": "1.1"}], False),
        ("1.1rc1", [SINCE, {"fixed": "1.1"}], True),
        ("0.9", [{"introduced": "1.0"}], False),
        ("1.0", [{"introduced": "1.0"}], True),
        ("10.0", [{"introduced": "9.0"}, {"fixed": "11"}], True),
        ("2.0", [{"introduced": "1.0"}, {"last_affected": "2.0"}], True),
        ("2.0.1", [{"introduced": "1.0"}, {"last_affected": "2.0"}], False),
        # Out of order, and with a hole in the middle.
        ("1.5", [{"fixed": "1.4"}, SINCE, {"introduced": "2.0"}, {"fixed": "2.2"}], False),
        ("2.1", [{"fixed": "1.4"}, SINCE, {"introduced": "2.0"}, {"fixed": "2.2"}], True),
        ("2.2", [{"fixed": "1.4"}, SINCE, {"introduced": "2.0"}, {"fixed": "2.2"}], False),
        ("0.dev0", [SINCE, {"fixed": "1"}], True),
        ("not-a-version", [SINCE, {"fixed": "1"}], True),
    ],
)
def test_ranges(version: str, events: list[dict[str, str]], affected: bool) -> None:
    entry = advisory("X-1", "some-thing", *events)
    found = list(audit.findings(entry, {"some-thing": {version}}))
    assert bool(found) is affected


def test_an_affected_version_is_named_with_what_fixes_it(check: Check) -> None:
    entry = advisory("GHSA-1", "Some.Thing", SINCE, {"fixed": "1.2"}, aliases=["CVE-2026-1"])
    code, said = check("# pins\nsome_thing==1.1  # why\nother==1\n", entry)
    assert code == 1
    assert "some-thing 1.1: GHSA-1 (CVE-2026-1), fixed in 1.2: GHSA-1 told" in said
    assert (
        "2 versions of 2 packages against 1 advisories, the newest of 2026-01-02: 1 found" in said
    )


def test_versions_that_are_listed(check: Check) -> None:
    entry = advisory("PYSEC-1", "a", versions=["1.0", "1.1", "odd"])
    assert check("a==1.1.0\n", entry)[0] == 1
    code, said = check("a==1.2\n", entry)
    assert (code, "nothing found" in said) == (0, True)


def test_what_does_not_count(check: Check) -> None:
    git = advisory("X-3", "a")
    git["affected"][0]["ranges"] = [{"type": "GIT", "events": [SINCE, {"fixed": "abc"}]}]
    elsewhere = advisory("X-4", "a", SINCE)
    elsewhere["affected"][0]["package"]["ecosystem"] = "npm"
    withdrawn = advisory("X-2", "a", SINCE, withdrawn="2026-01-01T00:00:00Z")
    assert check("a==1\n", withdrawn, git, elsewhere, advisory("X-5", "b", SINCE))[0] == 0


def test_one_hole_under_two_names_is_told_once(check: Check) -> None:
    one = advisory("GHSA-1", "a", SINCE, aliases=["CVE-1"])
    other = advisory("PYSEC-1", "a", SINCE, aliases=["CVE-1", "GHSA-1"])
    code, said = check("a==1\n", one, other)
    assert (code, said.count("a 1: "), "1 found" in said) == (1, 1, True)


def test_what_is_known_may_be_passed_over_by_name(check: Check) -> None:
    entry = advisory("GHSA-1", "a", SINCE, aliases=["CVE-1"])
    code, said = check("a==1\n", entry, words=("--ignore", "CVE-1"))
    assert (code, "passed over, as asked: a 1: GHSA-1" in said) == (0, True)


@pytest.mark.parametrize("pins", ["a>=1\n", "a\n", "a==1.*\n", "-r other.txt\n", "a==1,>0\n"])
def test_what_cannot_be_checked_is_no_success(pins: str, check: Check) -> None:
    code, said = check(pins, advisory("X-1", "b", SINCE))
    assert (code, "line 1 pins no version" in said) == (2, True)


def test_a_database_that_is_none(check: Check, tmp_path: Path) -> None:
    assert check("a==1\n")[0] == 2
    assert check("a==1\n", {"no": "id"})[0] == 2
    (tmp_path / "all.zip").write_bytes(b"no zip")
    assert audit.main(["--database", str(tmp_path / "all.zip")]) == 2
    assert audit.main(["--database", str(tmp_path / "none.zip")]) == 2


def test_without_a_database_it_says_how(capsys: pytest.CaptureFixture[str]) -> None:
    assert audit.main([]) == 2
    said = capsys.readouterr().err
    assert "nothing was checked" in said
    assert "pip-audit -r constraints.txt" in said


def test_our_own_pins_and_what_is_installed_can_be_read() -> None:
    assert len(audit.pinned(audit.PINS)) > 50
    assert audit.installed().keys() > {"torch", "scumble", "pytest"}
