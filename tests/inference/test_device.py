"""Which number format a precision means on a device."""

import pytest
import torch

from scumble.inference import device


@pytest.mark.parametrize(
    ("asked", "has_bf16", "dtype", "said"),
    [
        ("fp16", True, torch.bfloat16, "working in bf16, which this processor has"),
        ("fp16", False, torch.float32, "working in fp32"),
        ("bf16", True, torch.bfloat16, ""),
        ("bf16", False, torch.bfloat16, "lean, not fast"),
        ("no", True, torch.float32, ""),
    ],
)
def test_half_precision_on_a_processor_is_what_it_has(
    monkeypatch: pytest.MonkeyPatch, asked: str, has_bf16: bool, dtype: torch.dtype, said: str
) -> None:
    monkeypatch.setattr(device, "processor_has_bf16", lambda: has_bf16)
    chosen, note = device.weight_dtype(asked, torch.device("cpu"))
    assert chosen == dtype
    assert said in note
    assert bool(said) == bool(note)
