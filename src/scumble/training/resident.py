"""Encoded tensors where the training needs them: kept on the device as long as they fit."""

import torch
from torch import Tensor

from scumble.data.cache import TensorStore


class Resident:
    """A tensor store as the training reads it: on the device, each entry copied there once.

    Args:
        store: holds every entry.
        device: where entries are wanted. On a processor nothing is copied.
        room_bytes: for entries that stay on the device; the others are copied each time.
    """

    def __init__(self, store: TensorStore, device: torch.device, room_bytes: int = 0) -> None:
        self.store = store
        self.device = device
        self.room_bytes = room_bytes
        self._kept: dict[str, dict[str, Tensor]] = {}

    def require(self, key: str) -> dict[str, Tensor]:
        """Fetch an entry that was stored.

        Raises:
            UserError: it has been removed meanwhile.
        """
        if key in self._kept:
            return self._kept[key]
        entry = self.store.require(key)
        if self.device.type == "cpu":
            return entry
        moved = {name: to_device(tensor, self.device) for name, tensor in entry.items()}
        size = sum(tensor.nbytes for tensor in moved.values())
        if size <= self.room_bytes:
            self.room_bytes -= size
            self._kept[key] = moved
        return moved


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor of the host without waiting for the device."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
