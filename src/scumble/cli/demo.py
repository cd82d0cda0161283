"""`scumble demo`: the main job on the built-in base, from pictures to a before/after picture."""

from collections.abc import Sequence


def main(arguments: Sequence[str]) -> None:
    """Run the demo."""
    raise NotImplementedError
