"""Training methods: one file each. To add one, write its file and add its line here."""

from collections.abc import Callable

from scumble.training.methods import text_to_image
from scumble.training.phase import Phase
from scumble.training.workshop import Workshop

METHODS: dict[str, Callable[[Workshop], list[Phase]]] = {
    "text_to_image": text_to_image.phases,
}
"""Method name -> phases(workshop)."""
