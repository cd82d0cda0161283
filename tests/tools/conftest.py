"""The layouts of original checkpoints, for tests of tools that write them."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "families"))
