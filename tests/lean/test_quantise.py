"""A quantised denoiser computes and learns as one that holds the same numbers plainly."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from scumble.adapters import ADAPTERS
from scumble.adapters.inject import AdapterSet, Target, eject, inject
from scumble.errors import UserError
from scumble.lean.count import count_step, on_meta, parameters_of
from scumble.lean.install import put_on
from scumble.lean.levels import LEVELS
from scumble.lean.quantise import quantise, stored_bytes
from scumble.lean.quantised import QuantisedWeight
from scumble.lean.schemes import SCHEMES

SMALL = 64
"""Smallest weight to quantise in a denoiser this small."""

TARGETS = [Target(name, 4, 4) for name in ("to_q", "to_k", "to_v", "to_out.0", "conv1")]

schemes = pytest.mark.parametrize("scheme", SCHEMES)
Build = Callable[..., Any]


def adapted(model: nn.Module) -> AdapterSet:
    """Put on adapters that change something, the same ones every time."""
    adapters = inject(model, "a", ADAPTERS["lora"], TARGETS)
    generator = torch.Generator().manual_seed(3)
    for parameter in adapters.parameters():
        parameter.data.normal_(std=0.05, generator=generator)
    return adapters


def with_plain_numbers(model: Any, like: Any) -> Any:
    """Give a model the numbers that the quantised one stands for."""
    for plain, quantised in zip(model.parameters(), like.parameters(), strict=True):
        if isinstance(quantised, QuantisedWeight):
            plain.data = quantised.dequantized()
    return model


def inputs(model: Any, device: str = "cpu") -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(2, 4, 8, 8, generator=generator)
    context = torch.randn(2, 5, model.config.cross_attention_dim, generator=generator)
    given = {"sample": x, "timestep": torch.tensor([3, 700]), "encoder_hidden_states": context}
    return {name: tensor.to(device) for name, tensor in given.items()}


def loss_of(model: Any, device: str = "cpu") -> Tensor:
    loss: Tensor = model(**inputs(model, device)).sample.square().mean()
    return loss


def gradients(model: Any, adapters: AdapterSet) -> dict[str, Tensor]:
    loss_of(model).backward()
    found = {name: p.grad for name, p in adapters.named_parameters().items()}
    assert all(grad is not None and grad.abs().sum() > 0 for grad in found.values())
    return found  # type: ignore[return-value]


@schemes
@pytest.mark.parametrize("level", [None, "balanced", "lowest"])
@pytest.mark.parametrize("order", ["adapters first", "adapters after"])
def test_adapters_learn_as_on_the_same_numbers(
    tiny_unet: Build, scheme: str, level: str | None, order: str
) -> None:
    model = tiny_unet()
    adapters = adapted(model) if order == "adapters first" else None
    record = quantise(model, scheme, smallest=SMALL)
    plain = with_plain_numbers(tiny_unet(), model) if adapters is None else tiny_unet()
    adapters = adapters or adapted(model)
    plain_adapters = adapted(plain)
    with_plain_numbers(plain, model)
    assert len(record.layers) > 40
    if level:
        put_on(model, LEVELS[level])
    expected = gradients(plain, plain_adapters)
    for name, found in gradients(model, adapters).items():
        torch.testing.assert_close(found, expected[name], rtol=1e-4, atol=1e-7)


@schemes
def test_gradient_checkpointing_and_taking_off_work(tiny_unet: Build, scheme: str) -> None:
    model, plain = tiny_unet().train(), tiny_unet().train()
    quantise(model, scheme, smallest=SMALL)
    with_plain_numbers(plain, model)
    lean = put_on(model, LEVELS["low"])
    lean.take_off()
    model.enable_gradient_checkpointing()
    expected = gradients(plain, adapted(plain))
    for name, found in gradients(model, adapted(model)).items():
        torch.testing.assert_close(found, expected[name], rtol=1e-4, atol=1e-7)
    eject(model)
    assert isinstance(model.down_blocks[0].attentions[0].proj_in.weight, QuantisedWeight)


@schemes
def test_memory_is_foretold_exactly(tiny_unet: Build, scheme: str) -> None:
    real, foretold = tiny_unet().bfloat16(), tiny_unet().bfloat16().to("meta")
    record = quantise(real, scheme, smallest=SMALL)
    assert record == quantise(foretold, scheme, smallest=SMALL)
    assert record.bytes_after == stored_bytes(real) == stored_bytes(foretold)
    copied = on_meta(real)
    assert stored_bytes(copied) == record.bytes_after
    assert all(p.is_meta for p in copied.parameters())
    parts = [
        (p.codes, p.scales) if isinstance(p, QuantisedWeight) else (p,) for p in real.parameters()
    ]
    memory = sum(part.untyped_storage().nbytes() for pair in parts for part in pair)
    assert record.bytes_after == memory
    assert record.bytes_after < record.bytes_before


class Made(TorchDispatchMode):
    """Remembers the memory of every tensor that an operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and not isinstance(tensor, QuantisedWeight):
                storage = tensor.untyped_storage()
                self.sizes[StorageWeakRef(storage)] = storage.nbytes()
        return result

    def alive(self, there: list[Tensor]) -> int:
        """Bytes that are still in use, besides those of the given tensors."""
        known = {StorageWeakRef(tensor.untyped_storage()) for tensor in there}
        found = {ref: n for ref, n in self.sizes.items() if not ref.expired()}
        return sum(n for ref, n in found.items() if ref not in known)


@schemes
@pytest.mark.parametrize("level", [None, *LEVELS])
def test_no_plain_copy_lives_until_the_way_back(
    tiny_unet: Build, scheme: str, level: str | None
) -> None:
    kept = []
    for quantised in (False, True):
        model = tiny_unet()
        if quantised:
            quantise(model, scheme, smallest=SMALL)
        if level:
            put_on(model, LEVELS[level])
        inject(model, "a", ADAPTERS["lora"], TARGETS[:4])
        with Made() as made:
            loss = loss_of(model)
        kept.append(made.alive(parameters_of(model)))
        loss.backward()
    assert kept[1] <= kept[0]


def test_a_count_on_meta_takes_it_as_it_is(tiny_unet: Build) -> None:
    counts = []
    for scheme in ("", *SCHEMES):
        model = tiny_unet().to("meta")
        if scheme:
            quantise(model, scheme, smallest=SMALL)
        put_on(model, LEVELS["balanced"])
        inject(model, "a", ADAPTERS["lora"], TARGETS[:4])
        there = [*parameters_of(model), *inputs(model, "meta").values()]
        counts.append(count_step(lambda model=model: loss_of(model, "meta"), there))
    assert len({count.flops for count in counts}) == 1
    assert len({count.saved_bytes for count in counts}) == 1


@schemes
def test_the_built_in_base_is_walked_whole(tiny_folder: Path, scheme: str) -> None:
    from diffusers import UNet2DConditionModel

    model: Any = UNet2DConditionModel.from_pretrained(tiny_folder / "unet").requires_grad_(False)
    with torch.no_grad():
        before = model(**inputs(model)).sample
    record = quantise(model, scheme)
    kinds = (nn.Linear, nn.Conv2d)
    layers = {path for path, layer in model.named_modules() if isinstance(layer, kinds)}
    assert {*record.layers, *record.left_alone} == layers
    convolutions = [p for p in record.layers if isinstance(model.get_submodule(p), nn.Conv2d)]
    assert len(convolutions) > 20
    assert len(record.layers) - len(convolutions) > 50
    assert {"conv_in", "conv_out", "time_embedding.linear_1"} <= record.left_alone.keys()
    share = {"int8": 0.29, "fp8": 0.29, "nf4": 0.18}[scheme]
    assert record.bytes_after < share * record.bytes_before
    put_on(model, LEVELS["balanced"])
    with torch.no_grad():
        after = model(**inputs(model)).sample
    error = (after - before).norm() / before.norm()
    assert error < {"int8": 0.02, "fp8": 0.06, "nf4": 0.2}[scheme]


def test_merging_is_refused(tiny_unet: Build) -> None:
    model = tiny_unet()
    quantise(model, "int8", smallest=SMALL)
    layer = next(iter(adapted(model).layers.values()))
    before = layer.weight.dequantized()
    with pytest.raises(UserError, match="Merge adapters into the base as it was before"):
        layer.merge()
    assert torch.equal(layer.weight.dequantized(), before)


def test_saving_and_loading_are_refused(tiny_unet: Build, tmp_path: Path) -> None:
    model = tiny_unet()
    quantise(model, "nf4", smallest=SMALL)
    with pytest.raises(UserError, match="stored as nf4 cannot be saved"):
        model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="stored as nf4 cannot be saved"):
        model.state_dict()
    with pytest.raises(RuntimeError, match="nothing can be written into a weight"):
        model.load_state_dict(tiny_unet().state_dict())


def test_what_cannot_be_quantised_is_left_and_said(tiny_unet: Build) -> None:
    model = tiny_unet()
    block = model.mid_block.resnets[0]
    block.conv1.requires_grad_(True)
    block.conv2.double()
    reasons = quantise(model, "int8", smallest=SMALL).left_alone
    assert reasons["mid_block.resnets.0.conv1"] == "learns"
    assert reasons["mid_block.resnets.0.conv2"] == "is of torch.float64"
    assert reasons["conv_in"] == "everything passes through it"
    again = quantise(model, "fp8", smallest=SMALL)
    assert again.layers == []
    assert again.left_alone["mid_block.resnets.1.conv1"] == "quantised already"
    small = quantise(tiny_unet(), "int8", smallest=10**9)
    assert small.left_alone["mid_block.resnets.0.conv1"] == "small"
    assert small.bytes_after == small.bytes_before


def test_wrong_requests_end_in_one_clear_line(tiny_unet: Build) -> None:
    model = tiny_unet()
    with pytest.raises(UserError, match=r"there is no precision 'int3'\n.*int8, fp8, nf4"):
        quantise(model, "int3")
    for layer in adapted(model).layers.values():
        layer.merge()
    with pytest.raises(UserError, match="adapters are merged"):
        quantise(model, "int8")
    lean = tiny_unet()
    put_on(lean, LEVELS["low"])
    with pytest.raises(ValueError, match="first, then put lean forwards on"):
        quantise(lean, "int8")


def test_weights_can_be_quantised_where_they_are_to_be(tiny_unet: Build) -> None:
    model = tiny_unet()
    record = quantise(model, "int8", device=torch.device("meta"), smallest=SMALL)
    for path, layer in model.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            assert layer.weight.is_meta == (path in record.layers)
