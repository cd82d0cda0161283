"""What a lean denoiser keeps between forward and backward, by exact count."""

import gc
import json
import subprocess
import sys
import weakref
from importlib.resources import files

import pytest
import torch
from diffusers import UNet2DConditionModel
from lean_steps import DEFAULT, UNETS, adapt, each_level, inputs, lean
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._pytree import tree_leaves

from scumble.adapters.blend import merge
from scumble.lean.count import count_step, on_meta, parameters_of
from scumble.lean.levels import LEVELS

LEVEL = pytest.mark.parametrize("level", LEVELS)
MEGABYTES = {"balanced": 480, "low": 295, "lowest": 200}
"""Level -> most that is kept of SD 1.5 at 512 pixels, one picture, bf16, rank 4."""


def full_size():
    """SD 1.5 in shapes alone, its adapters as fp32 masters."""
    config = files("scumble") / "assets" / "single_file" / "sd1" / "unet.json"
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(json.loads(config.read_text()))
        unet = unet.to(torch.bfloat16).eval().requires_grad_(False)
        adapt(unet)
    return unet.to("meta")


def kept_at_full_size(unet):
    with torch.device("meta"):
        noisy = torch.empty(1, 4, 64, 64, dtype=torch.bfloat16)
        times = torch.zeros(1, dtype=torch.long)
        states = torch.empty(1, 77, 768, dtype=torch.bfloat16)

    def loss():
        return unet(noisy, times, states).sample.float().square().mean()

    return count_step(loss, [noisy, times, states, *parameters_of(unet)]).saved_bytes


@LEVEL
def test_full_size(level):
    unet = full_size()
    with lean(unet, level) as model:
        assert not model.left_alone
        assert kept_at_full_size(unet) <= MEGABYTES[level] * 1e6


def small(build, dtype, kind="like SD 1.x"):
    """A denoiser whose frozen weights are in `dtype`, and inputs of a step."""
    unet = build(**UNETS[kind]).to(dtype)
    adapt(unet)
    return unet, {name: t.detach() for name, t in inputs(unet, (16, 16), dtype).items()}


def saved_bytes(unet, given):
    def loss():
        return unet(**given).sample.float().square().mean()

    return count_step(loss, [*given.values(), *parameters_of(unet)]).saved_bytes


def rows_of_layer_norms(unet, given):
    """How many rows all LayerNorms of a step normalise together."""
    rows = []
    handles = [
        module.register_forward_hook(lambda _m, given, _out: rows.append(given[0][..., 0].numel()))
        for module in unet.modules()
        if isinstance(module, nn.LayerNorm)
    ]
    with torch.no_grad():
        unet(**given)
    for handle in handles:
        handle.remove()
    return sum(rows)


@pytest.mark.parametrize(
    ("dtype", "kind"), [(torch.float32, "like SD 1.x"), (torch.bfloat16, "like SDXL")]
)
def test_the_count_is_that_of_a_real_step(tiny_unet, dtype, kind):
    unet, given = small(tiny_unet, dtype, kind)
    # On a processor LayerNorm's mean and deviation are in the format of its input, else in fp32.
    saved = 2 * (4 - dtype.itemsize) * rows_of_layer_norms(unet, given)
    for level in LEVELS:
        with lean(unet, level):
            real = saved_bytes(unet, given)
            twin = on_meta(unet)
        counted = saved_bytes(twin, {name: t.to("meta") for name, t in given.items()})
        assert counted == real + saved


def test_each_level_keeps_less(tiny_unet):
    unet, given = small(tiny_unet, torch.float32)
    kept = [saved_bytes(unet, given)]
    for level in LEVELS:
        with lean(unet, level):
            kept.append(saved_bytes(unet, given))
    assert sorted(kept, reverse=True) == kept
    assert len(set(kept)) == len(kept)


def test_a_text_encoder_that_learns_adds_nothing(tiny_unet):
    unet, given = small(tiny_unet, torch.float32)
    for _ in each_level(unet):
        kept = saved_bytes(unet, given)
        learning = given | {"encoder_hidden_states": given["encoder_hidden_states"].clone()}
        learning["encoder_hidden_states"].requires_grad_(True)
        assert saved_bytes(unet, learning) == kept
        assert learning["encoder_hidden_states"].grad is not None


def kept_aside(unet, given):
    """Bytes that nodes of the graph hold other than as saved tensors, weights left out."""
    known = {p.untyped_storage()._cdata for p in parameters_of(unet)}
    nodes, seen, held = [unet(**given).sample.grad_fn], set(), 0
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        nodes += [following for following, _ in node.next_functions]
        for tensor in tree_leaves(getattr(node, "__dict__", {})):
            storage = tensor.untyped_storage() if isinstance(tensor, torch.Tensor) else None
            if storage is not None and storage._cdata not in known:
                known.add(storage._cdata)
                held += storage.nbytes()
    assert len(seen) > 100
    return held


@LEVEL
@pytest.mark.parametrize("targets", [DEFAULT, ("to_k",)], ids=["default", "keys"])
def test_nothing_is_kept_aside(tiny_unet, level, targets):
    unet = tiny_unet()
    adapt(unet, targets)
    given = inputs(unet)
    with lean(unet, level):
        assert kept_aside(unet, given) == 0
        merge(unet)
        assert kept_aside(unet, given) == 0
        unet.to(torch.bfloat16).float()  # each weight in memory of its own again
        assert kept_aside(unet, given) == 0


@LEVEL
@pytest.mark.parametrize("goes_back", [True, False], ids=["there and back", "there only"])
def test_all_is_let_go_without_the_garbage_collector(tiny_unet, level, goes_back):
    unet, given = small(tiny_unet, torch.float32)
    kept = []

    def pack(tensor):
        held = tensor.detach()  # the tensor itself would be a cycle where a node keeps its output
        kept.append(weakref.ref(held))
        return held

    gc.collect()
    gc.disable()
    try:
        with lean(unet, level):
            with saved_tensors_hooks(pack, lambda tensor: tensor):
                loss = unet(**given).sample.square().mean()
            assert any(ref() is not None for ref in kept)
            if goes_back:
                loss.backward()
            del loss
            alive = [t for ref in kept if (t := ref()) is not None]
    finally:
        gc.enable()
    assert len(kept) > 100
    assert alive == []


HELD = """
import json, psutil, torch
from importlib.resources import files
from diffusers import UNet2DConditionModel
from scumble.lean.install import put_on
from scumble.lean.levels import LEVELS
text = (files("scumble") / "assets" / "single_file" / "sd1" / "unet.json").read_text()
torch.zeros(7 * 2**20)  # freed, it lets glibc keep all that is not larger
with torch.device("meta"):
    unet = UNet2DConditionModel.from_config(json.loads(text) | {"layers_per_block": 1})
unet = unet.to(torch.bfloat16).to_empty(device="cpu").requires_grad_(False).eval()
for weight in unet.parameters():
    weight.data.zero_()
before = psutil.Process().memory_info().rss
put_on(unet, LEVELS["balanced"])
print(psutil.Process().memory_info().rss - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the system decides")
def test_weights_that_are_laid_out_anew_leave_nothing_behind():
    found = subprocess.run([sys.executable, "-c", HELD], capture_output=True, text=True, check=True)
    assert int(found.stdout.split()[-1]) < 16 * 2**20
