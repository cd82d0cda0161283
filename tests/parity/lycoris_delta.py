"""LyCORIS's own change of a layer, whatever the type, taken from its forward pass."""

from collections.abc import Mapping

import torch
from lycoris.modules import get_module
from torch import Tensor, nn

CORES = ("lora_mid.weight", "hada_t1", "lokr_t2")
RANKED = ("lora_down.weight", "hada_w1_b", "lokr_w2_b", "lokr_w1_b")
NOT_PARAMETERS = ("alpha", "on_input")


def lycoris_delta(layer: nn.Module, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor | None]:
    """What LyCORIS adds to weight and bias of `layer`, at strength 1.

    Its `get_diff_weight` would not do: for LoHa and LoKr it scales twice, unlike what was trained.

    Args:
        layer: in fp32.
        tensors: by the names in files, such as "hada_w1_a".
    """
    module = _module(layer, tensors)
    with torch.no_grad():
        for name, value in tensors.items():
            if name not in NOT_PARAMETERS:
                path = {"diff": "weight", "diff_b": "bias"}.get(name, name)
                module.get_parameter(path).copy_(value)
    seen = {}

    def record(x, weight=None, bias=None, **_):
        seen.update(weight=weight, bias=bias)
        return torch.zeros(())

    module.op = record
    with torch.no_grad():
        module(_input(layer))
    return seen["weight"], seen["bias"]


def _module(layer, tensors):
    kind, _ = get_module({f"x.{name}": tensor for name, tensor in tensors.items()}, "x")
    rank = next((tensors[name].shape[0] for name in RANKED if name in tensors), 1)
    alpha = float(tensors.get("alpha", rank))
    lengths = tensors.get("dora_scale")
    module = kind(
        "x",
        layer,
        lora_dim=rank,
        alpha=alpha,
        use_tucker=any(name in tensors for name in CORES),
        weight_decompose=lengths is not None,
        wd_on_out=lengths is None or lengths.shape[0] == layer.weight.shape[0],
        train_on_input=bool(tensors.get("on_input", 0)),
        bypass_mode=False,
    )
    if kind.name == "kron":  # the class would choose the factors' shapes by itself
        module.use_w1, module.use_w2 = "lokr_w1" in tensors, "lokr_w2" in tensors
        module.tucker = "lokr_t2" in tensors
        module.scale = 1.0 if module.use_w1 and module.use_w2 else alpha / rank
        for name in [name for name in tensors if name.startswith("lokr")]:
            setattr(module, name, nn.Parameter(tensors[name].clone()))
    return module


def _input(layer):
    if isinstance(layer, nn.Linear):
        return torch.zeros(1, layer.in_features)
    if isinstance(layer, nn.LayerNorm):
        return torch.zeros(1, *layer.normalized_shape)
    channels = layer.in_channels if isinstance(layer, nn.Conv2d) else layer.num_channels
    return torch.zeros(1, channels, 8, 8)
