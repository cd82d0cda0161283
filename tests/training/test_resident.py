"""What is read in every step stays on the device, as far as there is room."""

from pathlib import Path

import pytest
import torch

from scumble.data.cache import TensorStore
from scumble.errors import UserError
from scumble.training.resident import Resident

SIZE = 400


@pytest.fixture
def store(tmp_path: Path) -> TensorStore:
    store = TensorStore(tmp_path)
    for number in range(3):
        store.put(f"{number}" * 64, {"values": torch.full((100,), float(number))}, "test")
    return store


def test_as_much_stays_as_there_is_room_for(store: TensorStore) -> None:
    """A device without values stands for one that is not the host."""
    resident = Resident(store, torch.device("meta"), room_bytes=2 * SIZE)
    first = [resident.require(f"{number}" * 64)["values"] for number in range(3)]
    again = [resident.require(f"{number}" * 64)["values"] for number in range(3)]
    assert {tensor.device.type for tensor in first} == {"meta"}
    assert [a is b for a, b in zip(first, again, strict=True)] == [True, True, False]
    assert resident.room_bytes == 0


def test_on_a_processor_nothing_is_copied(store: TensorStore) -> None:
    resident = Resident(store, torch.device("cpu"), room_bytes=10 * SIZE)
    tensor = resident.require("1" * 64)["values"]
    assert tensor.data_ptr() == store.require("1" * 64)["values"].data_ptr()
    assert resident.room_bytes == 10 * SIZE


def test_what_is_missing_is_said(store: TensorStore) -> None:
    with pytest.raises(UserError):
        Resident(store, torch.device("meta")).require("9" * 64)
