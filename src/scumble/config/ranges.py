"""What settings of training and drawing alike may be."""

import re
from typing import Any

from scumble.errors import UserError

LARGEST = 2**31 - 1
"""Of whole numbers for which nothing else is said: larger ones break libraries."""

CEILINGS = {
    "num_inference_steps": 1000,  # a model has no more noise levels
    "resolution": 8192,
    "height": 8192,
    "width": 8192,
    "num_vectors": 1000,
    "dataloader_num_workers": 1024,
}
"""Setting -> its largest value that can be meant."""

NO_CHARACTER = re.compile("[\0\ud800-\udfff]")
"""What no text contains that can be written down: NUL, and bytes that are no UTF-8."""


def check_value(name: str, value: Any) -> None:
    """Refuse numbers too large to be meant, and texts that are none.

    Raises:
        UserError: naming the flag.
    """
    texts = value if isinstance(value, tuple) else (value,)
    for text in texts:
        if isinstance(text, str) and NO_CHARACTER.search(text):
            message = f"--{name} is no text that can be written down: {text[:200]!a}"
            raise UserError(message, "Give it in UTF-8; a file or folder may have to be renamed.")
    most = CEILINGS.get(name, LARGEST)
    if isinstance(value, int) and name != "seed" and value > most:
        raise UserError(f"--{name} must be at most {most}, not {value}")


def check_seed(seed: int) -> None:
    """Refuse a seed that a generator cannot take.

    Raises:
        UserError: it is negative or needs more than 63 bits.
    """
    if not 0 <= seed < 2**63:
        raise UserError(f"--seed must be from 0 to {2**63 - 1}, not {seed}")
