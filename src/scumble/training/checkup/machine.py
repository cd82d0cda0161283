"""Checks of the machine: what makes it slower than it is, and what it lacks."""

from collections.abc import Iterator

from scumble.data.wording import counted
from scumble.training.checkup.facts import Facts
from scumble.training.checkup.finding import Finding

TOPIC = "machine"
BUSY = 1.5
"""A run itself keeps all cores busy; more than this is the work of others."""


def machine(facts: Facts) -> Iterator[Finding]:
    """What computes, with which libraries."""
    it = facts.machine
    versions = ", ".join(f"{name} {version}" for name, version in it.versions.items())
    threads = (
        f", {counted(it.threads, 'thread')}; cores: {it.cores:g}" if it.device == "cpu" else ""
    )
    yield Finding("ok", TOPIC, f"{it.name}{threads}, frozen weights in {it.dtype}; {versions}")


def unused_card(facts: Facts) -> Iterator[Finding]:
    """A processor that does a card's work."""
    reason = facts.machine.unused_card
    if facts.machine.device == "cpu" and reason:
        hidden = "CUDA_VISIBLE_DEVICES" in reason
        build = "Install the build of PyTorch for your driver: pytorch.org/get-started."
        yield Finding(
            "danger",
            TOPIC,
            f"there is an NVIDIA card, and it is not used: {reason}",
            "Unset it." if hidden else build,
        )


def threads(facts: Facts) -> Iterator[Finding]:
    """A processor of which a part idles, or that is shared out among too many threads."""
    it = facts.machine
    if it.device != "cpu":
        return
    # Of two threads of a core PyTorch by itself uses one. Small models gain nothing from more.
    is_few = it.threads < it.cores / 2 or (it.threads_set and it.threads < it.cores)
    if is_few and not facts.base.is_small:
        yield Finding(
            "note",
            TOPIC,
            f"PyTorch uses {it.threads} of {it.cores:g} cores",
            f"Set OMP_NUM_THREADS={int(it.cores)}, or do not set it.",
        )
    elif it.threads > it.cores * 1.5:
        yield Finding(
            "note",
            TOPIC,
            f"{it.threads} threads share the {it.cores:g} cores that this container may use",
            f"Set OMP_NUM_THREADS={max(1, int(it.cores))}.",
        )


def load(facts: Facts) -> Iterator[Finding]:
    """Other programs that are at work."""
    it = facts.machine
    if it.device == "cpu" and it.load > BUSY * it.cores:
        yield Finding(
            "note",
            TOPIC,
            f"{it.load:.1f} programs at once want the {it.cores:g} cores (load of the last minute)",
            "Times here hold for such company; alone the run is faster.",
        )


def number_format(facts: Facts) -> Iterator[Finding]:
    """fp32 where the device has something faster."""
    it, config = facts.machine, facts.config
    if it.dtype != "float32" or facts.base.is_small:
        return
    if it.has_bf16 and not config.teaches_every_weight:
        yield Finding(
            "note",
            TOPIC,
            "the frozen base is in fp32, and this device has bf16: half the memory, and faster",
            "Say --mixed_precision bf16.",
        )
    elif it.tf32 is False:
        yield Finding(
            "note",
            TOPIC,
            "fp32 products are computed the slow way",
            "--allow_tf32 makes them several times faster on this card.",
        )


def narrow(facts: Facts) -> Iterator[Finding]:
    """fp16, which overflows, where bf16 would not."""
    it = facts.machine
    if it.dtype == "float16" and it.has_bf16:
        yield Finding(
            "note",
            TOPIC,
            "fp16 overflows now and then (the loss scale leaves those steps out), and this card "
            "has bf16",
            "Say --mixed_precision bf16.",
        )


def attention(facts: Facts) -> Iterator[Finding]:
    """Attention that writes out every weight."""
    if facts.machine.device == "cuda" and not facts.machine.fused_attention:
        yield Finding(
            "note",
            TOPIC,
            "PyTorch's fused kernels for attention are switched off: it is slow and large",
            "Do not switch them off, or say --attention xformers.",
        )


def extras(facts: Facts) -> Iterator[Finding]:
    """Libraries that an option needs."""
    for extra in facts.machine.lacking:
        yield Finding(
            "danger",
            TOPIC,
            f"{extra} is not installed, and an option needs it",
            f"Run: pip install 'scumble[{extra}]', or leave the option away.",
        )
