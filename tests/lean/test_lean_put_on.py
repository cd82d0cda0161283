"""Lean forwards come off without a trace, and live with what is done to a model meanwhile."""

import copy
import pickle

import pytest
import torch
from diffusers import UNet2DConditionModel
from lean_steps import DEFAULT, EVERYWHERE, UNETS, adapt, assert_near, draw, lean, run

from scumble.adapters.blend import merge, unmerge
from scumble.adapters.difference import NormDifference
from scumble.adapters.inject import attach
from scumble.lean.forwards import LeanForward
from scumble.lean.install import put_on
from scumble.lean.levels import LEVELS

LEVEL = pytest.mark.parametrize("level", LEVELS)
UNET = pytest.mark.parametrize("kind", UNETS)


def traces(unet):
    """Everything of a model that lean could have changed: objects, values and layouts."""
    modules = {
        name: (module, type(module), set(vars(module))) for name, module in unet.named_modules()
    }
    parameters = {
        name: (p, p.requires_grad, p.stride(), p.storage_offset(), p.detach().clone())
        for name, p in unet.named_parameters()
    }
    processors = {name: id(processor) for name, processor in unet.attn_processors.items()}
    return modules, parameters, processors


def assert_same_traces(unet, before):
    modules, parameters, processors = before
    now = traces(unet)
    assert list(now[0]) == list(modules)
    for name, (module, kind, attributes) in modules.items():
        assert now[0][name][0] is module
        assert now[0][name][1:] == (kind, attributes), name
    assert list(now[1]) == list(parameters)
    for name, (parameter, *facts, values) in parameters.items():
        assert now[1][name][0] is parameter
        assert now[1][name][1:4] == tuple(facts), name
        assert torch.equal(now[1][name][4], values)
        # Memory of its own, not a part of somebody else's.
        assert parameter.untyped_storage().nbytes() == parameter.nbytes
    assert now[2] == processors


@LEVEL
@UNET
@pytest.mark.parametrize("targets", [None, DEFAULT, EVERYWHERE], ids=["bare", "default", "all"])
def test_off_again_without_a_trace(tiny_unet, kind, targets, level):
    unet = tiny_unet(**UNETS[kind]).double()
    if targets:
        adapt(unet, targets)
    before, plain = traces(unet), run(unet)
    state = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    lean_model = put_on(unet, LEVELS[level])
    assert any("forward" in vars(module) for module in unet.modules())
    assert list(unet.state_dict()) == list(state)
    assert all(torch.equal(t, state[name]) for name, t in unet.state_dict().items())
    run(unet)
    lean_model.take_off()
    assert_same_traces(unet, before)
    assert all(torch.equal(a, b) for a, b in zip(run(unet), plain, strict=True))
    lean_model.take_off()  # nothing more to do
    assert_same_traces(unet, before)


def test_weights_of_one_input_lie_behind_one_another_while_on(tiny_unet):
    unet = tiny_unet().double()
    block = unet.mid_block.attentions[0].transformer_blocks[0]
    with lean(unet):
        for layers in (
            (block.attn1.to_q, block.attn1.to_k, block.attn1.to_v),
            (block.attn2.to_k, block.attn2.to_v),
        ):
            assert len({layer.weight.untyped_storage().data_ptr() for layer in layers}) == 1
        conv = unet.mid_block.resnets[0].conv1
        assert conv.weight.is_contiguous(memory_format=torch.channels_last)


def test_on_off_and_on_at_another_level(tiny_unet):
    unet = tiny_unet().double()
    adapt(unet)
    plain = run(unet)
    for level in [*LEVELS, *LEVELS]:
        with lean(unet, level):
            assert_near(run(unet), plain)


def test_put_on_twice_the_second_does_nothing(tiny_unet):
    unet = tiny_unet().double()
    adapt(unet)
    before, plain = traces(unet), run(unet)
    with lean(unet, "balanced") as first, lean(unet, "lowest") as second:
        assert not first.left_alone
        assert second.left_alone
        assert_near(run(unet), plain)
        second.take_off()
        assert isinstance(unet.conv_in.forward, LeanForward)
    assert_same_traces(unet, before)


def test_two_models_at_once(tiny_unet):
    first, second = tiny_unet().double(), tiny_unet(**UNETS["like SD 2.x"]).double()
    adapt(first), adapt(second)
    plain = run(first), run(second)
    with lean(first, "lowest"), lean(second, "low"):
        assert_near(run(first), plain[0])
        assert_near(run(second), plain[1])
    assert torch.equal(run(first).output, plain[0].output)


@LEVEL
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_is_lean_and_stands_alone(tiny_unet, level, copied):
    unet = tiny_unet().double()
    adapt(unet)
    plain = run(unet)
    with lean(unet, level):
        twin = copied(unet)
    for parameter in unet.parameters():
        parameter.data.zero_()
    own = set(twin.modules())
    forwards = [m.forward for m in twin.modules() if isinstance(m.forward, LeanForward)]
    assert forwards
    assert all(f.module in own and f.plain.__self__ is f.module for f in forwards)
    assert_near(run(twin), plain)


NORMS = {
    "resnet": "down_blocks.0.resnets.0.norm1",
    "resnet after the skip connection": "up_blocks.0.resnets.0.norm1",
    "resnet's second": "mid_block.resnets.0.norm2",
    "map": "mid_block.attentions.0.norm",
    "attention": "mid_block.attentions.0.transformer_blocks.0.norm1",
    "attention to text": "mid_block.attentions.0.transformer_blocks.0.norm2",
    "feed forward": "mid_block.attentions.0.transformer_blocks.0.norm3",
    "last": "conv_norm_out",
}


def change_norm(unet, path):
    def build(spec, _):
        draw = torch.Generator().manual_seed(0)
        tensors = {name: torch.randn(spec.weight_shape, generator=draw) for name in ("w", "b")}
        tensors = {"diff": tensors["w"], "diff_b": tensors["b"]}
        return NormDifference.from_tensors(spec, tensors, 1.0)

    attach(unet, "n", {path: build})
    unet.double().requires_grad_(False)


@LEVEL
@pytest.mark.parametrize("path", NORMS.values(), ids=NORMS)
def test_a_norm_is_changed_while_on(tiny_unet, path, level):
    unet, twin = tiny_unet().double(), tiny_unet().double()
    bare = run(twin)
    change_norm(twin, path)
    plain = run(twin)
    assert (plain.output - bare.output).abs().max() > 1e-3
    with lean(unet, level):
        change_norm(unet, path)
        assert_near(run(unet), plain)
        merge(unet)
        merge(twin)
        assert_near(run(unet), run(twin))
    assert_near(run(unet), run(twin))


def test_saved_while_on(tiny_unet, tmp_path):
    unet = tiny_unet()
    adapt(unet)
    state = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    with lean(unet):
        unet.save_pretrained(tmp_path)
    again = UNet2DConditionModel.from_pretrained(tmp_path).state_dict()
    assert list(again) == list(state)
    assert all(torch.equal(tensor, state[name]) for name, tensor in again.items())


def test_loaded_while_on(tiny_unet):
    unet, other = tiny_unet().double(), tiny_unet().double()
    for parameter in other.parameters():
        parameter.data.mul_(1.1)
    with lean(unet):
        unet.load_state_dict(other.state_dict())
        ours = run(unet)
    assert_near(ours, run(other))
    assert all(torch.equal(a, b) for a, b in zip(run(unet), run(other), strict=True))


@LEVEL
def test_adapters_come_and_go_while_on(tiny_unet, level):
    unet = tiny_unet().double()
    bare = run(unet)
    with lean(unet, level):
        adapters = adapt(unet, EVERYWHERE)
        ours = run(unet)
        adapters.eject()
        assert_near(run(unet), bare)
        second = adapt(unet, ("to_q", "attn1.to_v"), "second")
        second.eject()
        adapt(unet, EVERYWHERE)
    assert_near(ours, run(unet))


def test_taken_off_while_adapters_are_merged(tiny_unet):
    unet = tiny_unet().double()
    adapters = adapt(unet)
    before = traces(unet)
    with lean(unet):
        merge(unet)
        drawn = draw(unet)
    torch.testing.assert_close(drawn, draw(unet))
    unmerge(unet)
    assert_same_traces(unet, before)
    adapters.eject()


def test_merging_touches_no_neighbour(tiny_unet):
    unet = tiny_unet().double()
    adapt(unet, ("to_k",))
    before = traces(unet)
    with lean(unet):
        merge(unet)
        for name, parameter in unet.named_parameters():
            is_merged = name.endswith("to_k.base.weight")
            assert torch.equal(parameter, before[1][name][4]) != is_merged, name
        unmerge(unet)
    assert_same_traces(unet, before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_moved_to_another_dtype_while_on(tiny_unet, dtype):
    unet = tiny_unet()
    adapt(unet)
    with lean(unet):
        unet.to(dtype)
        ours = run(unet)
    plain = run(unet)
    most = 1e-13 if dtype == torch.float64 else 5e-2
    assert_near(ours, plain, most, most)
    assert_same_traces(unet, traces(unet))


def test_moved_to_another_device_while_on(tiny_unet):
    unet = tiny_unet()
    adapt(unet)
    with lean(unet):
        unet.to("meta")
        given = [torch.empty(2, *shape, device="meta") for shape in ((4, 8, 8), (7, 12))]
        unet(given[0], torch.zeros(2, device="meta"), given[1]).sample.sum().backward()
    assert all(p.grad is not None for p in unet.parameters() if p.requires_grad)
