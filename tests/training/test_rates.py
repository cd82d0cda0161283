"""Who learns how fast: components, layers, LoRA+."""

from typing import Any

import pytest
import torch

import scumble
from scumble.errors import UserError
from scumble.training.methods import METHODS
from scumble.training.opening import open_workshop
from scumble.training.phase import Phase
from scumble.training.runtime import prepare_runtime


def begin(config: scumble.TrainConfig) -> Phase:
    (phase,) = METHODS[config.method](open_workshop(config, prepare_runtime(config)))
    return phase


def rates(phase: Phase) -> dict[str, float]:
    """Parameter name -> its rate."""
    return {name: g.learning_rate for g in phase.groups for name in g.parameters}


def test_every_parameter_learns_at_one_rate(make_config: Any) -> None:
    phase = begin(make_config(train_text_encoder=True, lora_plus_ratio=4.0))
    found = rates(phase)
    assert found.keys() == phase.taught.named_parameters().keys()
    assert len(phase.parameters()) == len(found)


@pytest.mark.parametrize(("given", "rate"), [(None, 5e-4), (1e-5, 1e-5)])
def test_the_text_encoder_has_a_rate_of_its_own(
    make_config: Any, given: float | None, rate: float
) -> None:
    found = rates(begin(make_config(train_text_encoder=True, text_encoder_lr=given)))
    assert {found[name] for name in found if name.startswith("unet.")} == {1e-3}
    assert {found[name] for name in found if name.startswith("text_encoder.")} == {rate}


def test_lora_plus_speeds_up_what_starts_from_zero(make_config: Any) -> None:
    phase = begin(make_config(lora_plus_ratio=16.0))
    parameters = phase.taught.named_parameters()
    for name, rate in rates(phase).items():
        assert rate == pytest.approx(1e-3 * (1 if parameters[name].any() else 16))
        assert parameters[name].any() == name.endswith("down")


def test_layers_have_rates_of_their_own_and_the_last_match_decides(make_config: Any) -> None:
    wanted = ("down_blocks.*:5e-5", "attn2.to_k:2e-4")
    for name, rate in rates(begin(make_config(layer_learning_rates=wanted))).items():
        is_key = name.rpartition(".")[0].endswith("attn2.to_k")
        expected = 2e-4 if is_key else 5e-5 if name.startswith("unet.down_blocks") else 1e-3
        assert rate == expected, name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("to_k", "not a pattern and a rate"),
        ("to_k:fast", "not a pattern and a rate"),
        ("to_k:-1", "not a pattern and a rate"),
        ("to_kk:1e-4", "'to_kk' matches no layer"),
    ],
)
def test_a_rate_that_fits_nothing_is_an_error(make_config: Any, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        begin(make_config(layer_learning_rates=(text,)))


def test_the_text_encoder_has_targets_and_ranks_of_its_own(make_config: Any) -> None:
    options = {"text_encoder_rank": 3, "text_encoder_target_modules": ("q_proj", "v_proj:5")}
    phase = begin(make_config(train_text_encoder=True, rank=2, **options))
    ranks = {
        path.rpartition(".")[2]: adapter.rank
        for path, adapter in phase.taught.adapters["text_encoder"].adapters.items()
    }
    assert ranks == {"q_proj": 3, "v_proj": 5}
    assert {a.rank for a in phase.taught.adapters["unet"].adapters.values()} == {2}


def test_one_block_may_be_wider_than_the_rest(make_config: Any) -> None:
    phase = begin(make_config(rank=2, target_modules=("to_q", "mid_block.*.to_q:8")))
    for path, adapter in phase.taught.adapters["unet"].adapters.items():
        assert adapter.rank == (8 if path.startswith("mid_block") else 2)


def test_input_dropout_switches_inputs_off_in_training_alone(make_config: Any) -> None:
    phase = begin(make_config(lora_dropout=0.5))
    (layer, *_) = phase.taught.adapters["unet"].layers.values()
    adapter = layer.get("trained")
    with torch.no_grad():
        adapter.up.normal_()
    torch.manual_seed(0)
    x = torch.randn(2, 5, layer.spec.weight_shape[1])
    phase.begin([phase])
    seen = []
    for step in (0, 0, 1):
        phase.enter_step(step)
        seen.append(layer(x))
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])
    phase.at_rest()
    assert torch.equal(layer(x), layer.base(x) + adapter.branch(x, layer.base(x), layer.base))
