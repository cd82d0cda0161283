"""Checks of the plan: how long, how often each picture is seen, and what a crash would cost."""

from collections.abc import Iterator

from scumble.data.wording import counted
from scumble.training.checkup.facts import Facts
from scumble.training.checkup.finding import Finding

TOPIC = "steps"
GIB = 2**30
FEW_STEPS = 200
LEAST_MOVED = 0.02
"""Steps times learning rate and scale: AdamW moves no number of an adapter farther than that."""
MOST_SEEN = {"adapters": 500, "rows": 2000, "weights": 200}
"""A picture that is seen more often is remembered rather than understood."""
LONG_RUN = 1000
MOST_OF_DISK = 0.8


def planned(facts: Facts) -> Iterator[Finding]:
    """How long the run is."""
    parts = ", then ".join(f"{s.steps:,} for the {s.name}" for s in facts.stretches)
    which = f" ({parts})" if len(facts.stretches) > 1 else ""
    size = min(facts.batch, max(facts.buckets.values()))
    yield Finding(
        "ok",
        TOPIC,
        f"{facts.steps:,} steps{which} of {counted(size, 'picture')}, {facts.steps_per_epoch:,} "
        f"per epoch: each picture is seen {facts.seen:,.1f} times",
    )


def too_few(facts: Facts) -> Iterator[Finding]:
    """A run that ends before anything can be learnt."""
    if facts.steps_per_epoch > facts.steps:
        yield Finding(
            "note",
            TOPIC,
            f"the run ends after {facts.seen:.0%} of the first epoch: not every picture is seen",
            f"Raise --max_train_steps to {facts.steps_per_epoch:,} or more.",
        )
    adapters = [rate for rate in facts.rates if rate.kind == "adapters" and rate.is_first]
    moved = max((rate.effective * rate.steps for rate in adapters), default=1.0)
    if facts.steps < FEW_STEPS and moved < LEAST_MOVED:
        yield Finding(
            "note",
            TOPIC,
            f"{counted(facts.steps, 'step')} at this learning rate will change little",
            "Some hundred steps are usual: raise --max_train_steps.",
        )


def too_many(facts: Facts) -> Iterator[Finding]:
    """A run that learns its pictures by heart, with nothing to notice it by."""
    kinds = {rate.kind for rate in facts.rates}
    most = max(MOST_SEEN[kind] for kind in kinds)
    if facts.seen > most and not facts.config.holds_out:
        yield Finding(
            "note",
            TOPIC,
            f"each picture is seen {facts.seen:,.0f} times, and after {most} it is copied",
            "Lower --max_train_steps, or let held-out pictures decide: --validation_share 0.1.",
        )


def warm_up(facts: Facts) -> Iterator[Finding]:
    """A learning rate that hardly ever is what it is said to be."""
    config = facts.config
    shortest = min(stretch.steps for stretch in facts.stretches)
    if config.lr_scheduler != "constant" and config.lr_warmup_steps > 0.5 * shortest:
        yield Finding(
            "note",
            TOPIC,
            f"the warm-up takes {config.lr_warmup_steps} of {shortest} steps",
            "A tenth is usual: lower --lr_warmup_steps.",
        )


def crash(facts: Facts) -> Iterator[Finding]:
    """A long run of which a crash would leave nothing."""
    every = facts.config.checkpointing_steps
    if every >= facts.steps >= LONG_RUN:
        yield Finding(
            "danger",
            TOPIC,
            f"no checkpoint before the end: a crash would cost all {facts.steps:,} steps",
            f"Say --checkpointing_steps {max(1, facts.steps // 10)}.",
        )


def disk(facts: Facts) -> Iterator[Finding]:
    """Checkpoints that do not fit on the disk."""
    config, room = facts.config, facts.room
    written = -(-facts.steps // config.checkpointing_steps)
    limit = config.checkpoints_total_limit
    # A new one stands before the oldest goes; and there may be the best.
    count = min(written, limit + 1 if limit else written) + config.holds_out
    need = count * room.checkpoint_bytes
    if need <= MOST_OF_DISK * room.disk_free_bytes:
        return
    yield Finding(
        "danger" if need > room.disk_free_bytes else "note",
        TOPIC,
        f"{counted(count, 'checkpoint')} of {_in_bytes(room.checkpoint_bytes)}, and "
        f"{_in_bytes(room.disk_free_bytes)} free where the run writes",
        ("Keep the newest alone: --checkpoints_total_limit 1; or name" if count > 2 else "Name")
        + " another --output_dir.",
    )


def _in_bytes(count: float) -> str:
    return f"{count / GIB:.2f} GiB" if count >= GIB / 10 else f"{count / 2**20:.1f} MiB"
