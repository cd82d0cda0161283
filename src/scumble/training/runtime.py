"""Where a run works: device, number format, processes, memory."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from scumble import console
from scumble.config import TrainConfig
from scumble.config.sharing import shareable
from scumble.errors import UserError
from scumble.inference.device import weight_dtype
from scumble.training.events import Events
from scumble.training.launch import connect, launched
from scumble.training.processes import Processes
from scumble.training.trackers import Trackers, choose_trackers
from scumble.training.watermark import Watermark


@dataclass(frozen=True)
class Runtime:
    """The machine as one process of a run sees it.

    Args:
        accelerator: accelerate's view of devices and processes.
        dtype: of the frozen weights.
        trackers: that the run reports to.
        events: of the run's folder.
        processes: that train together.
    """

    accelerator: Any
    dtype: torch.dtype
    trackers: Trackers = field(default_factory=Trackers)
    events: Events = field(default_factory=Events)
    processes: Processes = field(default_factory=Processes)

    @cached_property
    def memory(self) -> Watermark:
        """The most memory used, by stage."""
        return Watermark(self.device, _peak_process_memory_mib)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """A stage of the run: its peak of memory is kept, and its end noted."""
        with self.memory.stage(name):
            yield
        self.events.note("stage", name=name, peak_mib=self.memory.by_stage()[name])

    @property
    def device(self) -> torch.device:
        """The device that this process trains on."""
        device: torch.device = self.accelerator.device
        return device

    @property
    def rank(self) -> int:
        """Number of this process."""
        return self.processes.rank

    @property
    def num_processes(self) -> int:
        """How many processes train together."""
        return self.processes.count

    @property
    def is_main(self) -> bool:
        """Whether this process writes files."""
        return self.processes.is_main

    @property
    def sharers(self) -> int:
        """How many processes use the device's memory; each GPU has one."""
        return self.processes.local_count if self.device.type == "cpu" else 1

    def memory_bytes(self) -> int:
        """Memory in use now: of the GPU where there is one, else of the process."""
        if self.device.type == "cuda":
            return torch.cuda.memory_allocated(self.device)
        import psutil

        return int(psutil.Process().memory_info().rss)

    def peak_memory_mib(self) -> float:
        """Most memory used so far: of the GPU where there is one, else of the process."""
        return self.memory.peak_mib()


def prepare_runtime(config: TrainConfig) -> Runtime:
    """Find the device, the number format and the other processes.

    Raises:
        UserError: a launcher started several processes that did not find each other, or a library
            that was asked for is not installed or logged in.
    """
    processes = launched()
    on_gpu = _has_gpu(processes)
    connect(processes, on_gpu)
    return processes.safely(lambda: _prepare(config, processes, on_gpu))


def check_alike(config: TrainConfig, processes: Processes) -> None:
    """Make sure that all processes were given the same settings; paths may differ.

    Raises:
        UserError: naming the setting.
    """
    own = {"pretrained_model_name_or_path", "dataset_name", "dataloader_num_workers"}
    settings = shareable(config.to_dict())
    processes.agree({f"--{name}": value for name, value in settings.items() if name not in own})


def _has_gpu(processes: Processes) -> bool:
    """Whether this process has a GPU; of several on a machine each has its own.

    Raises:
        UserError: there are fewer GPUs than processes.
    """
    from accelerate.utils import parse_flag_from_env

    if not torch.cuda.is_available() or parse_flag_from_env("ACCELERATE_USE_CPU"):
        return False
    count = torch.cuda.device_count()
    if processes.count > 1 and processes.local_rank >= count:
        raise UserError(
            f"process {processes.rank} has no GPU: the launcher started "
            f"{processes.local_count} processes on a machine with {count}",
            f"Start no more than --nproc_per_node {count}.",
        )
    return True


def _prepare(config: TrainConfig, processes: Processes, on_gpu: bool) -> Runtime:
    from accelerate import Accelerator
    from accelerate.utils import ProjectConfiguration

    # Only the main process reports and writes files.
    trackers = Trackers(choose_trackers(config.report_to) if processes.is_main else ())
    project = ProjectConfiguration(
        project_dir=config.output_dir,
        logging_dir=os.path.join(config.output_dir, config.logging_dir),
    )
    # No autocast: the frozen weights are in the wanted format, adapters stay fp32.
    accelerator = Accelerator(
        mixed_precision="no",
        project_config=project,
        cpu=processes.count > 1 and not on_gpu,
    )
    if processes.count != accelerator.num_processes:
        raise UserError(
            f"the launcher started {processes.count} processes, but accelerate knows of "
            f"{accelerator.num_processes}: each would train on its own",
            "Start them with torchrun --nproc_per_node N -m scumble train ...",
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
    events = Events(Path(config.output_dir) if processes.is_main else None, processes.rank)
    return Runtime(accelerator, dtype, trackers, events, processes)


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
