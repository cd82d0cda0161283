"""What the machine is: device, cores, threads, libraries."""

import os
import platform
import shutil
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch

from scumble.config import TrainConfig
from scumble.inference.device import processor_has_bf16
from scumble.training.checkup.facts import Machine
from scumble.training.runtime import Runtime

CARDS = Path("/proc/driver/nvidia/gpus")
WSL = Path("/dev/dxg")


def surroundings(config: TrainConfig, runtime: Runtime) -> Machine:
    """Look at the machine that a run will work on."""
    device = runtime.device
    is_card = device.type == "cuda"
    ampere = is_card and torch.cuda.get_device_capability(device) >= (8, 0)
    switches = torch.backends.cuda
    return Machine(
        device=device.type,
        name=torch.cuda.get_device_name(device) if is_card else _processor(device),
        dtype=str(runtime.dtype).removeprefix("torch."),
        cores=max(1.0, usable_cores() / runtime.sharers),
        threads=torch.get_num_threads(),
        threads_set=any(name in os.environ for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")),
        load=os.getloadavg()[0] / runtime.sharers if hasattr(os, "getloadavg") else 0.0,
        unused_card=_unused_card(),
        has_bf16=ampere if is_card else device.type == "cpu" and processor_has_bf16(),
        tf32=switches.matmul.allow_tf32 if ampere else None,
        fused_attention=switches.flash_sdp_enabled() or switches.mem_efficient_sdp_enabled(),
        versions={name: version(name) for name in ("torch", "diffusers", "transformers")},
        lacking=_lacking(config),
    )


def usable_cores(root: Path = Path("/sys/fs/cgroup")) -> float:
    """How many cores this process may use: its affinity, and its container's quota."""
    count = float(os.cpu_count() or 1)
    if hasattr(os, "sched_getaffinity"):
        count = float(len(os.sched_getaffinity(0)))
    try:
        quota, period = (root / "cpu.max").read_text().split()
        return min(count, int(quota) / int(period))
    except (OSError, ValueError):  # no container, or one without a limit
        return count


def disk_free_bytes(folder: Path) -> int:
    """Free space where a folder is, or will be."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(existing).free


def _unused_card() -> str:
    if torch.cuda.is_available() or not _has_card():
        return ""
    if torch.version.cuda is None:
        return f"this build of PyTorch ({torch.__version__}) has no CUDA"
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return "CUDA_VISIBLE_DEVICES hides it"
    return (
        f"PyTorch's CUDA {torch.version.cuda} and the driver do not go together, or this process "
        "was not given the card"
    )


def _has_card() -> bool:
    """Whether there is an NVIDIA card; its programs may be installed where there is none."""
    if sys.platform == "linux" and not WSL.exists():
        return any(CARDS.glob("*"))
    return shutil.which("nvidia-smi") is not None


def _processor(device: torch.device) -> str:
    if device.type == "mps":
        return "Apple GPU"
    return f"processor ({platform.machine() or 'unknown'})"


def _lacking(config: TrainConfig) -> list[str]:
    wanted = {
        "bitsandbytes": config.use_8bit_adam or config.base_precision == "nf4",
        "xformers": config.attention_kind == "xformers",
    }
    return [name for name, is_wanted in wanted.items() if is_wanted and find_spec(name) is None]
