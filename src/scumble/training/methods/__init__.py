"""Training methods: one file each. To add one, write its file and add its line here."""

from collections.abc import Callable

from scumble.training.methods import (
    dreambooth,
    full,
    pivotal_tuning,
    text_to_image,
    textual_inversion,
)
from scumble.training.phase import Phase
from scumble.training.workshop import Workshop

METHODS: dict[str, Callable[[Workshop], list[Phase]]] = {
    "text_to_image": text_to_image.phases,
    "dreambooth": dreambooth.phases,
    "textual_inversion": textual_inversion.phases,
    "pivotal_tuning": pivotal_tuning.phases,
    "full": full.phases,
}
"""Method name -> phases(workshop)."""
