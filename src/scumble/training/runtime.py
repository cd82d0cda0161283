"""Where a run works: device, number format, processes, memory."""

import os
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch

from scumble import console
from scumble.config import TrainConfig
from scumble.errors import UserError
from scumble.inference.device import weight_dtype
from scumble.training.trackers import Trackers, choose_trackers


@dataclass(frozen=True)
class Runtime:
    """The machine as one process of a run sees it.

    Args:
        accelerator: accelerate's view of devices and processes.
        dtype: of the frozen weights.
        trackers: that the run reports to.
    """

    accelerator: Any
    dtype: torch.dtype
    trackers: Trackers = field(default_factory=Trackers)

    @property
    def device(self) -> torch.device:
        """The device that this process trains on."""
        device: torch.device = self.accelerator.device
        return device

    @property
    def rank(self) -> int:
        """Number of this process."""
        return int(self.accelerator.process_index)

    @property
    def num_processes(self) -> int:
        """How many processes train together."""
        return int(self.accelerator.num_processes)

    @property
    def is_main(self) -> bool:
        """Whether this process writes files."""
        return bool(self.accelerator.is_main_process)

    def from_main(self, value: float) -> float:
        """The main process's value, on every process: what follows from it is the same then."""
        from accelerate.utils import broadcast

        number = torch.tensor(value, dtype=torch.float32, device=self.device)
        return float(broadcast(number)) if self.num_processes > 1 else value

    def memory_bytes(self) -> int:
        """Memory in use now: of the GPU where there is one, else of the process."""
        if self.device.type == "cuda":
            return torch.cuda.memory_allocated(self.device)
        import psutil

        return int(psutil.Process().memory_info().rss)

    def peak_memory_mib(self) -> float:
        """Most memory used so far: of the GPU where there is one, else of the process."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 2**20
        return _peak_process_memory_mib()


def prepare_runtime(config: TrainConfig) -> Runtime:
    """Find the device, the number format and the other processes.

    Raises:
        UserError: a launcher started several processes that did not find each other, or a library
            that was asked for is not installed or logged in.
    """
    from accelerate import Accelerator
    from accelerate.utils import InitProcessGroupKwargs, ProjectConfiguration

    trackers = Trackers(choose_trackers(config.report_to))
    project = ProjectConfiguration(
        project_dir=config.output_dir,
        logging_dir=os.path.join(config.output_dir, config.logging_dir),
    )
    # No autocast: the frozen weights are in the wanted format, adapters stay fp32.
    accelerator = Accelerator(
        mixed_precision="no",
        project_config=project,
        # Others may have to wait while the main process draws or encodes.
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=12))],
    )
    expected = int(os.environ.get("WORLD_SIZE", "1"))
    if expected != accelerator.num_processes:
        raise UserError(
            f"the launcher started {expected} processes, but each would train on its own",
            "On a machine without GPUs set ACCELERATE_USE_CPU=true for torchrun.",
        )
    precision = config.mixed_precision or os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision not in ("no", "fp16", "bf16"):
        raise UserError(f"mixed precision '{precision}' is not known", "Use no, fp16 or bf16.")
    dtype, note = weight_dtype(precision, accelerator.device)
    if note:
        console.say(note)
    if config.teaches_every_weight and dtype != torch.float32:
        raise UserError(
            f"full fine-tuning needs every weight in fp32, not {precision}",
            "Say --mixed_precision no, here or to accelerate launch.",
        )
    if config.allow_tf32:
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
    return Runtime(accelerator, dtype, trackers)


def _peak_process_memory_mib() -> float:
    try:
        import resource
    except ImportError:
        # Windows has no resource module; psutil comes with accelerate.
        import psutil

        return float(psutil.Process().memory_info().peak_wset) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    import sys

    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
