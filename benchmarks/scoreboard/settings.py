"""The exact settings in the report, taken from the commands that the scored jobs were run with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .methods import LESSONS, METHODS, SUBJECT

Flags = dict[str, str]
OWN = ("output_dir", "seed")
"""What differs from job to job of one method."""


def flags_of(command: Sequence[str]) -> Flags:
    """Flag -> its words, of a command; a switch has none."""
    flags: Flags = {}
    name = ""
    for word in command[2:]:
        if word.startswith("--"):
            name = word.removeprefix("--")
            flags[name] = ""
        else:
            flags[name] = f"{flags[name]} {quoted(word)}".strip()
    return flags


def quoted(word: str) -> str:
    """The word as a shell takes it."""
    return f'"{word}"' if " " in word or "<" in word else word


def spelled(flags: Mapping[str, str]) -> str:
    """Flags as they stand on a command line."""
    return " ".join(f"--{name} {words}".strip() for name, words in flags.items())


def settings_lines(scores: Mapping[tuple[str, str], Sequence[Mapping[str, Any]]]) -> list[str]:
    """The settings that all have in common, then what each method adds, from one set of a kind."""
    rows: dict[str, tuple[str, Flags]] = {}
    mixed = []
    for (lesson, method), found in scores.items():
        variants = []
        for row in found:
            flags = flags_of(row["command"])
            variants.append({k: v for k, v in flags.items() if k not in OWN})
        if any(variant != variants[0] for variant in variants):
            mixed.append(f"{lesson}/{method}")
        kind = LESSONS[lesson].kind
        title = METHODS[method].label + (", subject" if kind == SUBJECT else ", style")
        if found and found[0]["command"]:
            rows.setdefault(title, (found[0]["command"][1], variants[0]))
    if not rows:
        return []
    every = [flags for _, flags in rows.values()]
    common = {k: v for k, v in every[0].items() if all(f.get(k) == v for f in every)}
    lines = ["", "## Settings", "", "`scumble train METHOD` with these settings in every job,", ""]
    lines += [f"    {spelled(common)}", "", "a `--seed`, an `--output_dir`, and:", ""]
    lines += ["| | METHOD | settings, here with the first set of its kind |", "|---|---|---|"]
    for title, (verb, flags) in rows.items():
        own = {k: v for k, v in flags.items() if k not in common}
        lines.append(f"| {title} | {verb} | `{spelled(own)}` |")
    lines += ["", "Where a set has captions beside its pictures, `--instance_prompt` is not used."]
    if mixed:
        lines += ["", f"Not all seeds have the same settings: {', '.join(mixed)}."]
    return lines
