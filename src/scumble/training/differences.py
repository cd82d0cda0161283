"""What is not as it was when something was trained: pictures, base, settings, versions, machine."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from scumble import console
from scumble.config import TrainConfig
from scumble.config.sharing import LOCAL_PATHS
from scumble.data.scan import ScanReport, scan
from scumble.data.sources import image_folder
from scumble.families import Components, family_of
from scumble.training.blueprint import HUB_OR_PATH, deciding, machine
from scumble.training.encoders import Encoders, base_marks, encoders_of
from scumble.training.find import find_pictures
from scumble.training.opening import base_of_run
from scumble.training.original import Original
from scumble.training.picture_list import (
    PictureSets,
    counted_differences,
    digests,
    listed_entries,
    named_differences,
)
from scumble.training.record import versions
from scumble.training.runtime import Runtime, prepare_runtime

PART_OF_THE_TRAINING = ("dtype", "processes")
"""Facts of the machine that change more than the last digits."""
CLASS = "class pictures"


class Differences(NamedTuple):
    """What is not as it was, a line each.

    Args:
        of_training: another result is to be expected.
        of_rounding: the last digits may become others.
    """

    of_training: list[str]
    of_rounding: list[str]


def find_differences(original: Original, config: TrainConfig) -> Differences:
    """Compare what is here with what a run was made of; nothing is trained.

    Raises:
        UserError: the pictures or the base cannot be used.
    """
    console.say("comparing with what it was made of:")
    runtime = prepare_runtime(config)
    base = base_of_run(config)
    encoders = encoders_of(config, family_of(base), Components(base), runtime)
    plan, marks = original.plan, base_marks(encoders, live=config.encodes_in_every_step)
    taught = [
        *(f"the run was gone on with after a change: {line}" for line in plan.get("changes", [])),
        *(f"this version does not have {setting}" for setting in original.unknown),
        *_settings(original, config),
        *_base(plan.get("base", {}), marks, base.public_name),
    ]
    rounded = _facts("version of ", plan.get("versions", {}), versions())
    for name, line in _machine(plan.get("machine", {}), runtime):
        (taught if name in PART_OF_THE_TRAINING else rounded).append(line)
    pictures, notes = _pictures(original, config, encoders)
    taught, rounded = [*taught, *pictures], [*rounded, *notes]
    if runtime.device.type == "cuda" and not config.deterministic:
        rounded.append("a GPU computes without --deterministic")
    if not plan:
        taught.append(
            "the run is older than the marks of pictures and base: those are not compared"
        )
    return Differences(taught, rounded)


def _settings(original: Original, config: TrainConfig) -> Iterator[str]:
    now, then = deciding(config.to_dict()), original.settings
    for name in dict.fromkeys([*then, *now]):
        was, is_now = then.get(name), now.get(name)
        was = list(was) if isinstance(was, tuple) else was
        # What a path or a name leads to is compared, not how it is written.
        if (was or is_now) and was != is_now and name not in (*LOCAL_PATHS, *HUB_OR_PATH):
            yield f"--{name} was {was} and is {is_now}"


def _base(then: Mapping[str, str], now: Mapping[str, str], called: str) -> list[str]:
    names = f"{then.get('name')} then, {called} now"
    return [
        f"the base's {name} has other weights: {names} (marks {then[name]} and {mark})"
        for name, mark in now.items()
        if then.get(name, mark) != mark
    ]


def _facts(what: str, then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return [
        f"{what}{name}: {value} then, {now.get(name, 'none')} now"
        for name, value in then.items()
        if now.get(name) != value
    ]


def _machine(then: Mapping[str, Any], runtime: Runtime) -> Iterator[tuple[str, str]]:
    now = machine(runtime)
    if "threads" in then and "threads" in now and then["threads"] != now["threads"]:
        torch.set_num_threads(int(then["threads"]))
        console.say(f"computing with {then['threads']} threads, as it was")
        now = machine(runtime)
    for name, value in then.items():
        if now.get(name) != value:
            yield name, f"{name}: {value} then, {now.get(name, 'none')} now"


def _pictures(
    original: Original, config: TrainConfig, encoders: Encoders
) -> tuple[list[str], list[str]]:
    found = find_pictures(config, encoders.family, encoders.components)
    if found.streaming:
        return [], ["a stream of pictures is seen only while it is trained"]
    now = {"pictures": listed_entries(found.train)}
    if found.held_out:
        now["held-out pictures"] = listed_entries(found.held_out)
    counts = {name: len(entries) for name, entries in (original.pictures or {}).items()}
    counts = counts or {n: s["count"] for n, s in original.plan.get("pictures", {}).items()}
    there = _class_pictures(config)
    notes = []
    if len(there) < counts.get(CLASS, 0):
        notes.append(f"{CLASS}: {len(there)} of {counts[CLASS]} are there, the rest is drawn anew")
    elif CLASS in counts:
        now[CLASS] = there[: counts[CLASS]]
    then = _without(original.pictures, now), _without(original.plan.get("pictures"), now)
    if then[0] is not None:
        return named_differences(then[0], now), notes
    return counted_differences(then[1] or digests(now), digests(now)), notes


def _without(sets: Mapping[str, Any] | None, now: PictureSets) -> dict[str, Any] | None:
    """Those sets that can be compared."""
    if sets is None:
        return None
    return {name: value for name, value in sets.items() if name in now or name != CLASS}


def _class_pictures(config: TrainConfig) -> list[Any]:
    folder = config.class_data_dir and Path(config.class_data_dir).expanduser()
    if not folder or not folder.is_dir() or not any(folder.iterdir()):
        return []
    scanned = scan(
        image_folder(folder),
        ScanReport(),
        on_bad_image="skip",
        default_captions=(config.class_prompt or "",),
        own_captions=False,
    )
    return listed_entries(scanned)
