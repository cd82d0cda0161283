"""What can be attached to a frozen model: one parametrisation per file, one generic wrapper."""

from scumble.adapters.base import Adapter, LayerSpec
from scumble.adapters.difference import Difference, NormDifference
from scumble.adapters.dora import decomposed
from scumble.adapters.ia3 import IA3
from scumble.adapters.loha import LoHa
from scumble.adapters.lokr import LoKr
from scumble.adapters.lora import LoRA

ADAPTERS: dict[str, type[Adapter]] = {
    "lora": LoRA,
    "dora": decomposed(LoRA),
    "loha": LoHa,
    "lokr": LoKr,
    "dora_loha": decomposed(LoHa, is_trainable=False),
    "dora_lokr": decomposed(LoKr, is_trainable=False),
    "ia3": IA3,
    "difference": Difference,
    "norm_difference": NormDifference,
}
"""Adapter type -> class. To add a type, write its file and add its line here."""

__all__ = ["ADAPTERS", "Adapter", "LayerSpec", "LoRA"]
