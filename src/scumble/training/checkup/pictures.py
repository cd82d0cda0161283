"""Checks of the pictures: which there are, how much of them is seen, whether they suffice."""

from collections.abc import Iterator

from scumble.data.pictures import Finding as Remark
from scumble.data.wording import counted, listed
from scumble.training.checkup.facts import Facts
from scumble.training.checkup.finding import Finding

TOPIC = "pictures"
MOST_CUT = 0.25
"""So large a share may be cut off pictures on average; squares of 3:2 pictures lose a third."""
MOST_ENLARGED = 1.5
"""So many times a picture can be enlarged before its blur is learnt with it."""
MOST_SIZES = 4
"""So many sizes are listed."""

REMARKS = {
    Remark.UNREADABLE: "Repair or replace them.",
    Remark.TOO_LARGE: "Shrink them.",
    Remark.DUPLICATE: "They count twice: remove them unless that is meant.",
}
"""What a scan remarks on and somebody should act on -> what to do."""


def found(facts: Facts) -> Iterator[Finding]:
    """What there is, and at which sizes it is shown."""
    report = facts.report
    sizes = facts.buckets.most_common()
    shown = ", ".join(f"{w}x{h} ({count})" for (h, w), count in sizes[:MOST_SIZES])
    rest = sum(count for _, count in sizes[MOST_SIZES:])
    more = f" and {rest} at {counted(len(sizes) - MOST_SIZES, 'other size')}" if rest else ""
    cut = sum(picture.cut_away for picture in facts.pictures) / len(facts.pictures)
    yield Finding(
        "ok",
        TOPIC,
        f"{report.found} found, {report.used} usable, {report.skipped} skipped, "
        f"{len(facts.pictures)} to learn; {shown}{more}; {cut:.0%} cut away",
    )


def remarked(facts: Facts) -> Iterator[Finding]:
    """What the scan found that somebody should act on, and what it had to say of the source."""
    for remark, hint in REMARKS.items():
        names = facts.report.names.get(remark)
        if names:
            yield Finding("note", TOPIC, f"{len(names)} {remark}: {listed(names, 3)}", hint)
    for note in facts.report.notes:
        yield Finding("note", TOPIC, note)


def enough(facts: Facts) -> Iterator[Finding]:
    """Whether there are enough to tell what they share from what each has by chance."""
    every_weight = facts.config.teaches_every_weight
    wanted = 3 if facts.is_subject else 50 if every_weight else 8
    count = len(facts.pictures)
    if count < wanted:
        yield Finding(
            "note",
            TOPIC,
            f"{counted(count, 'picture')}: what they have by chance is learnt with what is meant",
            f"{wanted} or more, that differ in all but that, teach more safely.",
        )


def enlarged(facts: Facts) -> Iterator[Finding]:
    """Pictures that are blurred by enlarging them."""
    blurred = [picture for picture in facts.pictures if picture.enlarged > MOST_ENLARGED]
    if blurred:
        blurred.sort(key=lambda picture: -picture.enlarged)
        names = [f"{picture.id} ({picture.enlarged:.1f} times)" for picture in blurred]
        yield Finding(
            "note",
            TOPIC,
            f"{counted(len(names), 'picture')} enlarged until blurred: {listed(names, 3)}",
            "Use larger ones, leave them out, or lower --resolution.",
        )


def cut(facts: Facts) -> Iterator[Finding]:
    """Pictures of which much is never seen."""
    pictures = sorted(facts.pictures, key=lambda picture: -picture.cut_away)
    mean = sum(picture.cut_away for picture in pictures) / len(pictures)
    if mean <= MOST_CUT:
        return
    first = pictures[0]
    way = "Cut them yourself, so that what matters stays."
    if not facts.config.aspect_ratio_buckets:
        way = "--aspect_ratio_buckets trains each close to its own shape."
    yield Finding(
        "note",
        TOPIC,
        f"{mean:.0%} of the pictures is cut away in each view, {first.cut_away:.0%} of {first.id}",
        way,
    )


def small_steps(facts: Facts) -> Iterator[Finding]:
    """A batch that no size has enough pictures for."""
    largest = max(facts.buckets.values())
    if facts.batch > largest:
        of = "of a size" if len(facts.buckets) > 1 else "in all"
        yield Finding(
            "note",
            TOPIC,
            f"a step would take {facts.batch} pictures, and there are {largest} {of}: it takes "
            f"{largest}",
            f"Say --train_batch_size {largest} or less, to know what you have.",
        )
