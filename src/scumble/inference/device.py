"""Which device and which number format to work in."""

import torch


def default_device() -> torch.device:
    """The best device at hand: CUDA, then Apple's MPS, then the processor."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def processor_has_bf16() -> bool:
    """Whether the processor computes in bf16 itself."""
    if not torch.backends.mkldnn.is_available():
        return False
    supported: bool = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return supported


def weight_dtype(mixed_precision: str, device: torch.device) -> tuple[torch.dtype, str]:
    """The dtype of frozen weights that a precision means on a device.

    Args:
        mixed_precision: "no", "fp16" or "bf16".
        device: where the work is done.

    Returns:
        The dtype, and a line for the user where the device does not have what was asked for.
    """
    if device.type == "cpu" and mixed_precision != "no":
        if mixed_precision == "fp16" and not processor_has_bf16():
            return torch.float32, "fp16 needs a GPU: working in fp32 on the processor instead."
        if mixed_precision == "fp16":
            return torch.bfloat16, "fp16 needs a GPU: working in bf16, which this processor has."
        note = "" if processor_has_bf16() else "this processor has no bf16: it is lean, not fast."
        return torch.bfloat16, note
    if mixed_precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        return torch.float16, "this GPU has no bf16: working in fp16 instead."
    dtypes = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    return dtypes[mixed_precision], ""
