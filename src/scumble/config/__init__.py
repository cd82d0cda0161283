"""Every option of scumble, once: flags, file keys, defaults and help come from these classes."""

from scumble.config.generate import GenerateConfig
from scumble.config.method_groups import METHOD_GROUPS, given
from scumble.config.train import TrainConfig

__all__ = ["METHOD_GROUPS", "GenerateConfig", "TrainConfig", "given"]
