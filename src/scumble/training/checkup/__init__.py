"""What is looked at before the first step, so that no run ends otherwise than was meant.

A check is a function of the facts that yields findings. To add one, write it in the file of its
topic and add its line here.
"""

from collections.abc import Callable, Iterator
from itertools import chain

from scumble.training.checkup import base, captions, ignored, machine, pictures, steps, strength
from scumble.training.checkup.at_start import check_warmup
from scumble.training.checkup.facts import Facts
from scumble.training.checkup.finding import Finding

Check = Callable[[Facts], Iterator[Finding]]

CHECKS: tuple[Check, ...] = (
    pictures.found,
    pictures.enough,
    pictures.enlarged,
    pictures.cut,
    pictures.small_steps,
    captions.found,
    captions.all_equal,
    captions.without_trigger,
    captions.unused_prompt,
    captions.prompt_without_word,
    captions.sides,
    steps.planned,
    steps.too_few,
    steps.too_many,
    steps.warm_up,
    steps.crash,
    steps.disk,
    strength.strengths,
    strength.no_effect,
    strength.too_fast,
    strength.text_encoder,
    strength.noise,
    ignored.idle,
    ignored.idle_here,
    base.base,
    base.resolution,
    machine.machine,
    machine.unused_card,
    machine.threads,
    machine.load,
    machine.number_format,
    machine.narrow,
    machine.attention,
    machine.extras,
)
"""What each run looks at."""

SAID_BY_THE_RUN: tuple[Check, ...] = (
    pictures.remarked,
    captions.missing,
    captions.cut,
    base.memory,
    base.too_large,
)
"""What a run says in words of its own, picture by picture."""


def findings(facts: Facts) -> list[Finding]:
    """Everything that there is to say before a run, topic by topic."""
    found = list(chain.from_iterable(check(facts) for check in (*CHECKS, *SAID_BY_THE_RUN)))
    topics = list(dict.fromkeys(finding.topic for finding in found))
    return sorted(found, key=lambda finding: topics.index(finding.topic))


def warnings(facts: Facts) -> list[Finding]:
    """What a run says at its start: notes and dangers that it does not say otherwise."""
    found = chain.from_iterable(check(facts) for check in CHECKS)
    return [finding for finding in found if finding.level != "ok"]


__all__ = ["CHECKS", "SAID_BY_THE_RUN", "Facts", "Finding", "check_warmup", "findings", "warnings"]
