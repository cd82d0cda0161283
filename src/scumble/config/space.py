"""The options of `scumble space`; the docstring under a field is its help text everywhere."""

from dataclasses import dataclass


@dataclass(kw_only=True)
class SpaceFields:
    """What to show"""

    adapter: str
    """An adapter file, or the output folder of a training run."""
    output: str
    """The folder to make: new, or empty."""
    base: str | None = None
    """The base model, by a name that the Space can reach: a Hub id. What the adapter says if not
    given."""
    title: str | None = None
    """Title of the Space; the adapter's name if not given."""
    prompt: tuple[str, ...] = ()
    """Prompts that visitors may begin with; those of the run's samples, or the trigger words, if
    not given."""
