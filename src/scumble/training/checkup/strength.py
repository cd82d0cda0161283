"""Checks of how fast things learn: learning rate times alpha / rank, against what is known to work.

The bands are wide: what lies outside of them has failed for nearly everybody.
"""

from collections.abc import Iterator
from typing import NamedTuple

from scumble.training.checkup.facts import Facts, Kind, Rate
from scumble.training.checkup.finding import Finding

TOPIC = "strength"


class Band(NamedTuple):
    """Effective learning rates, from what does nothing to what ruins.

    Args:
        nothing: below, nothing is learnt in a run of usual length.
        slow: below, more steps than usual are needed.
        fast: above, pictures turn garish in long runs.
        ruin: above, the model falls apart.
    """

    nothing: float
    slow: float
    fast: float
    ruin: float


BANDS: dict[Kind, Band] = {
    "adapters": Band(5e-6, 2e-5, 6e-4, 5e-3),
    "rows": Band(1e-5, 1e-4, 8e-3, 5e-2),
    "weights": Band(1e-8, 5e-7, 5e-5, 5e-4),
}
WELL_BEHAVED = {"lokr": 10.0}
"""Types of adapters that bear so many times the rate."""
OF_SMALL_BASES = 10.0
"""So do adapters on a small base."""
PATIENCE = 0.02
"""Below `nothing` a run may still learn if steps times rate come to so much."""


def strengths(facts: Facts) -> Iterator[Finding]:
    """What the rates come to that are as usual."""
    parts = []
    for rate in facts.rates:
        band = BANDS[rate.kind]
        is_slow = rate.is_first and rate.effective < band.slow
        if is_slow or rate.effective > _most(facts, rate, band.fast):
            continue  # the other checks say so
        what = f"{rate.kind} of {rate.name}" if len(facts.rates) > 1 else rate.kind
        scaled = f" x {rate.scale:.3g} = {rate.effective:.2g}" if rate.kind == "adapters" else ""
        usual = f"{band.slow:g} to {_most(facts, rate, band.fast):g}"
        parts.append(f"{what} {rate.rate:.3g}{scaled} (usual: {usual})")
    if parts:
        yield Finding("ok", TOPIC, "; ".join(parts))


def no_effect(facts: Facts) -> Iterator[Finding]:
    """What is so slow that the result will do nothing."""
    for rate in facts.rates:
        band = BANDS[rate.kind]
        if rate.effective >= band.slow or not rate.is_first:
            continue
        hopeless = rate.effective < band.nothing and rate.effective * rate.steps < PATIENCE
        said = "will have no effect" if hopeless else "learn slowly"
        yield Finding(
            "danger" if hopeless else "note",
            TOPIC,
            f"the {rate.kind} {said}: {_product(facts, rate)} = {rate.effective:.2g}",
            _raise(facts, rate, band),
        )


def too_fast(facts: Facts) -> Iterator[Finding]:
    """What learns so fast that the pictures suffer."""
    for rate in facts.rates:
        band = BANDS[rate.kind]
        fast, ruin = _most(facts, rate, band.fast), _most(facts, rate, band.ruin)
        if rate.effective <= fast:
            continue
        ruins = rate.effective > ruin
        said = "will ruin the model" if ruins else "learn fast: pictures may turn garish"
        yield Finding(
            "danger" if ruins else "note",
            TOPIC,
            f"the {rate.kind} of {rate.name} {said}: {_product(facts, rate)} = "
            f"{rate.effective:.2g}",
            _lower(facts, rate),
        )


def text_encoder(facts: Facts) -> Iterator[Finding]:
    """A text encoder that learns faster than the model it speaks to."""
    main = next((rate for rate in facts.rates if rate.is_first), None)
    for rate in facts.rates:
        if rate.is_first or main is None or rate.kind != "adapters":
            continue
        if rate.effective > main.effective:
            yield Finding(
                "note",
                TOPIC,
                f"the text encoder learns faster ({rate.effective:.1g}) than the model "
                f"({main.effective:.1g}): it forgets words first",
                "Half of --learning_rate is usual: lower --text_encoder_lr.",
            )


def noise(facts: Facts) -> Iterator[Finding]:
    """Options of the loss that ruin pictures when they are large."""
    config = facts.config
    if config.noise_offset > 0.2:
        yield Finding(
            "note",
            TOPIC,
            f"--noise_offset {config.noise_offset:g} makes pictures glaring or black",
            "About 0.1 is usual.",
        )
    if config.caption_dropout > 0.5:
        yield Finding(
            "note",
            TOPIC,
            f"--caption_dropout {config.caption_dropout:g}: most steps see no caption",
            "About 0.1 is usual.",
        )


def _most(facts: Facts, rate: Rate, bound: float) -> float:
    if rate.kind != "adapters":
        return bound
    small = OF_SMALL_BASES if facts.base.is_small else 1.0
    return bound * max(small, WELL_BEHAVED.get(facts.config.adapter_type, 1.0))


def _product(facts: Facts, rate: Rate) -> str:
    config = facts.config
    if rate.kind != "adapters":
        return "the learning rate"
    root = "root of the rank" if config.use_rslora else "rank"
    alpha = f"{config.alpha:g}" if config.alpha else "alpha"
    return f"learning rate {rate.rate:.2g} x {alpha} / {root} ({config.rank})"


def _raise(facts: Facts, rate: Rate, band: Band) -> str:
    if rate.kind == "adapters" and rate.scale < 0.5:
        return f"Leave --alpha away: it is the rank then, and the product {rate.rate:.2g}."
    name = "--row_learning_rate" if _is_pivotal(facts, rate) else "--learning_rate"
    return f"Raise {name} to {band.slow / rate.scale:.1g} or more."


def _lower(facts: Facts, rate: Rate) -> str:
    config = facts.config
    if rate.kind == "adapters" and rate.scale > 2:
        return "Lower --alpha; equal to the rank it scales by 1."
    if config.scale_lr:
        return "--scale_lr multiplied it by the batch: leave that away, or lower --learning_rate."
    if config.lora_plus_ratio > 1 and rate.kind == "adapters":
        return "--lora_plus_ratio multiplied it: lower --learning_rate with it."
    if _is_pivotal(facts, rate):
        return "Lower --row_learning_rate."
    name = "--learning_rate" if rate.is_first else "--text_encoder_lr"
    most = _most(facts, rate, BANDS[rate.kind].fast) / rate.scale
    return f"Lower {name} to {most:.1g} or less."


def _is_pivotal(facts: Facts, rate: Rate) -> bool:
    return rate.kind == "rows" and facts.config.teaches_adapters
