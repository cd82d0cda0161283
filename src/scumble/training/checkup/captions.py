"""Checks of the captions: there, different, short enough, and naming what is to be learnt."""

import re
from collections.abc import Iterator, Sequence

from scumble.data.pictures import Finding as Remark
from scumble.data.wording import counted, listed
from scumble.training.checkup.facts import Facts
from scumble.training.checkup.finding import Finding

TOPIC = "captions"
SIDES = re.compile(r"\b(left|right)\b", re.IGNORECASE)
FEW = 5
"""Among fewer pictures equal captions are no oversight."""


def found(facts: Facts) -> Iterator[Finding]:
    """How many there are."""
    captions = _all(facts)
    worded = [caption for caption in captions if caption]
    yield Finding(
        "ok",
        TOPIC,
        f"{counted(len(worded), 'caption')} for {counted(len(facts.pictures), 'picture')}, "
        f"{len(set(worded))} of them different, {len(captions) - len(worded)} empty",
    )


def missing(facts: Facts) -> Iterator[Finding]:
    """Pictures that are trained without one."""
    empty = [picture.id for picture in facts.pictures if "" in picture.captions]
    own = [*facts.report.names.get(Remark.NO_CAPTION, ())]
    if empty:
        kind = "no caption" if set(empty) & set(own) else "an empty caption"
        yield Finding(
            "note",
            TOPIC,
            f"{counted(len(empty), 'picture')} with {kind}: {listed(empty, 4)}",
            "They are learnt as what the model draws unasked. Caption them.",
        )


def cut(facts: Facts) -> Iterator[Finding]:
    """Captions of which the text encoder does not read the end."""
    long = [
        f"{picture.id} (by {facts.beyond[caption]} tokens)"
        for picture in facts.pictures
        for caption in picture.captions
        if facts.beyond.get(caption)
    ]
    if long:
        yield Finding(
            "note",
            TOPIC,
            f"{counted(len(long), 'caption')} cut at 75 tokens: {listed(long, 3)}",
            "Put what matters first, or shorten them.",
        )


def all_equal(facts: Facts) -> Iterator[Finding]:
    """Own captions that tell nothing apart."""
    captions = _all(facts)
    is_meant = facts.is_subject or len(facts.pictures) < FEW
    if not is_meant and len(set(captions)) == 1 and captions[0]:
        yield Finding(
            "note",
            TOPIC,
            f"all captions are the same: '{captions[0][:50]}'",
            "Whatever the pictures share and differ in is then learnt as one.",
        )


def without_trigger(facts: Facts) -> Iterator[Finding]:
    """Own captions that lack the word which is to call the subject."""
    trigger = _trigger(facts)
    if not trigger:
        return
    lacking = [
        picture.id
        for picture in facts.pictures
        if any(not trigger & _words(caption) for caption in picture.captions)
    ]
    if lacking:
        word = " or ".join(sorted(trigger))
        yield Finding(
            "note",
            TOPIC,
            f"{counted(len(lacking), 'caption')} without {word}: {listed(lacking, 4)}",
            "A prompt with that word will not call what these teach: put it into them.",
        )


def unused_prompt(facts: Facts) -> Iterator[Finding]:
    """One caption for all, in words that no picture is learnt by."""
    prompt = facts.config.instance_prompt
    if prompt is not None and prompt not in _all(facts):
        yield Finding(
            "note",
            TOPIC,
            f"--instance_prompt is learnt by no picture: '{prompt[:50]}'; each has its own caption",
            "Take the captions away, or put what is new of the prompt into them.",
        )


def prompt_without_word(facts: Facts) -> Iterator[Finding]:
    """Sample pictures that will not show what is learnt."""
    prompt, word = facts.config.validation_prompt, facts.config.placeholder_token
    words = {word} if word is not None else _trigger(facts)
    is_named = (
        prompt is None or not words or any(one in prompt.lower() or one in prompt for one in words)
    )
    if not is_named:
        yield Finding(
            "note",
            TOPIC,
            f"--validation_prompt does not contain {' or '.join(sorted(words))}: what is learnt "
            "will not show",
            "Put it in.",
        )


def sides(facts: Facts) -> Iterator[Finding]:
    """Captions that a mirrored picture contradicts."""
    named = [p.id for p in facts.pictures if any(map(SIDES.search, p.captions))]
    if facts.config.random_flip and named:
        yield Finding(
            "note",
            TOPIC,
            f"--random_flip, and {counted(len(named), 'caption')} with left or right: "
            f"{listed(named, 4)}",
            "Mirrored they say the opposite: leave one of them away.",
        )


def _all(facts: Facts) -> Sequence[str]:
    return [caption for picture in facts.pictures for caption in picture.captions]


def _trigger(facts: Facts) -> set[str]:
    """The words of the subject's prompt that its class does not have, such as sks."""
    prompt, of_class = facts.config.instance_prompt, facts.config.class_prompt
    if prompt is None or of_class is None:
        return set()
    return _words(prompt) - _words(of_class)


def _words(text: str) -> set[str]:
    return set(re.findall(r"[^\s,.;:!?]+", text.lower()))
