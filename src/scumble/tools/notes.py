"""What an adapter file says of itself: its base, the words that call it, how it was trained."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from scumble.formats.training_facts import SAME, training_facts

TOP_TAGS = 12

BASES = ("base_model", "ss_sd_model_name")
PHRASES = ("trigger_phrase", "modelspec.trigger_phrase")
"""Metadata keys, the surest first."""

SAID_OTHERWISE = {
    "title": "modelspec.title",
    "author": "modelspec.author",
    "architecture": "modelspec.architecture",
    "description": "modelspec.description",
    "license": "modelspec.license",
    "program": "modelspec.implementation",
    "base_version": "ss_base_model_version",
    "network": "ss_network_module",
    "network_args": "ss_network_args",
    "rank": "ss_network_dim",
    "alpha": "ss_network_alpha",
    "resolution": "ss_resolution",
    "unet_lr": "ss_unet_lr",
    "initializer_token": "initializer_token",
    "merged_from": "merged_from",
}
"""Setting -> metadata key, for what our own `training` entry does not hold."""

OFF = ("False", "0", "0.0")
"""Values of settings that were not used."""

PLAIN = str | int | float
"""What a setting may be; the rest of what a file says has places of its own."""

DATES = ("started_at", "finished_at")


@dataclass(frozen=True)
class Notes:
    """What a file says of itself.

    Args:
        base_model: that it was trained on.
        trigger_words: phrases that call what it learned.
        training: setting -> value; what was off or not set is left out.
        folders: of training pictures -> what is in each.
        tags: the most frequent parts of captions -> how many captions have them.
    """

    base_model: str | None
    trigger_words: tuple[str, ...]
    training: dict[str, str]
    folders: dict[str, str]
    tags: dict[str, int]


def notes_of(file: Path, metadata: Mapping[str, str]) -> Notes:
    """Gather what a file says, and the description that lies beside it for user interfaces.

    Args:
        file: the adapter file.
        metadata: of it.

    Raises:
        UserError: what it says of its training is damaged.
    """
    facts = training_facts(metadata)
    base = next((metadata[key] for key in BASES if _says(metadata.get(key))), None)
    beside = _described(file.with_suffix(".json"))
    phrases = [*(metadata.get(key) for key in PHRASES), beside.get("activation text")]
    folders = facts.get("folders") or _parsed(metadata.get("ss_dataset_dirs"))
    tags = facts.get("tags") or _parsed(metadata.get("ss_tag_frequency"))
    return Notes(
        base_model=base,
        trigger_words=tuple(dict.fromkeys(str(phrase) for phrase in phrases if _says(phrase))),
        training=_training(facts, metadata),
        folders=dict(_folders(folders)),
        tags=_most_frequent(tags),
    )


def _training(facts: Mapping[str, Any], metadata: Mapping[str, str]) -> dict[str, str]:
    theirs = {name: metadata.get(key) for name, key in (SAID_OTHERWISE | SAME).items()}
    known = theirs | {name: fact for name, fact in facts.items() if isinstance(fact, PLAIN)}
    for name in DATES:
        known[name] = _day(known.get(name))
    told = {name: str(value) for name, value in known.items() if _says(value)}
    return {name: value for name, value in told.items() if value not in OFF or name == "seed"}


def _folders(folders: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, facts in folders.items():
        if isinstance(facts, Mapping):
            pictures, repeats = facts.get("img_count"), facts.get("n_repeats")
            yield str(name), f"{pictures} pictures, repeats {repeats}"


def _most_frequent(tags: Mapping[str, Any]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for folder in tags.values():
        for tag, count in folder.items() if isinstance(folder, Mapping) else ():
            if isinstance(count, int):
                counts[str(tag).strip()] += count
    return dict(counts.most_common(TOP_TAGS))


def _says(value: Any) -> bool:
    """Whether a value says anything: trainers write "None" for what was not set."""
    return value not in (None, "", "None", "null", "{}")


def _day(seconds: Any) -> str | None:
    try:
        return datetime.fromtimestamp(float(seconds), UTC).strftime("%Y-%m-%d %H:%M UTC")
    except (TypeError, ValueError, OverflowError, OSError):
        return None


def _described(path: Path) -> dict[str, Any]:
    try:
        return _parsed(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}


def _parsed(text: str | None) -> dict[str, Any]:
    """The JSON object in a text; what is damaged says nothing."""
    try:
        content = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
