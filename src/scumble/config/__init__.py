"""Every option of scumble, once: flags, file keys, defaults and help come from these classes."""

from scumble.config.generate import GenerateConfig
from scumble.config.train import GROUPS, TrainConfig

__all__ = ["GROUPS", "GenerateConfig", "TrainConfig"]
