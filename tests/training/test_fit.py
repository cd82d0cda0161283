"""The memory of a run is foretold, the level that fits is chosen, and there is always a way out."""

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import scumble
from scumble.errors import UserError
from scumble.lean.attention import LeanAttention
from scumble.lean.levels import LEVELS
from scumble.training import fit as fit_module
from scumble.training import forecast as forecast_module
from scumble.training.fit import fit, memory_explained, way_out
from scumble.training.forecast import foretell, free_bytes
from scumble.training.methods import METHODS
from scumble.training.opening import open_workshop
from scumble.training.runtime import prepare_runtime

LIVE = {"train_text_encoder": True}
WORD = {"placeholder_token": "<pip>", "initializer_token": "circle"}
PIVOT = WORD | {"method": "pivotal_tuning", "learnable_property": "object", "max_train_steps": 4}


def begun(config: Any) -> Any:
    workshop = open_workshop(config, prepare_runtime(config))
    return workshop, METHODS[config.method](workshop)


def level_of(workshop: Any) -> str:
    processors = workshop.components["unet"].attn_processors.values()
    levels = {p.level.name for p in processors if isinstance(p, LeanAttention)}
    return ",".join(levels) or "off"


@pytest.mark.parametrize("options", [{}, LIVE, PIVOT, {"mixed_precision": "bf16"}])
def test_leaner_levels_are_foretold_to_keep_less(make_config: Any, options: Any) -> None:
    workshop, phases = begun(make_config(**options))
    kept = [foretell(workshop, phases, level).step.saved_bytes for level in ("off", *LEVELS)]
    assert kept == sorted(kept, reverse=True)
    assert kept[-1] < 0.6 * kept[0]
    assert level_of(workshop) == "off"


@pytest.mark.parametrize(
    ("options", "turned"),
    [({}, True), ({"memory": "off"}, False), ({"method": "full", "learning_rate": 1e-4}, False)],
)
def test_convolutions_are_read_as_they_will_be_used(
    make_config: Any, options: Any, turned: bool
) -> None:
    config = make_config(**options)
    unet = open_workshop(config, prepare_runtime(config)).components["unet"]
    layout = torch.channels_last if turned else torch.contiguous_format
    weights = [m.weight for m in unet.modules() if isinstance(m, torch.nn.Conv2d)]
    assert all(weight.is_contiguous(memory_format=layout) for weight in weights)


def test_a_base_that_predicts_noise_is_foretold_too(
    make_config: Any, tiny_folder: Path, tmp_path: Path
) -> None:
    base = Path(shutil.copytree(tiny_folder, tmp_path / "base"))
    path = base / "scheduler" / "scheduler_config.json"
    changes = {"prediction_type": "epsilon", "rescale_betas_zero_snr": False}
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    config = make_config(pretrained_model_name_or_path=str(base), snr_gamma=5.0)
    workshop, phases = begun(config)
    assert workshop.objective.prediction == "epsilon"
    assert foretell(workshop, phases, "low").step.saved_bytes > 0


def test_what_is_foretold_is_what_a_step_keeps(make_config: Any) -> None:
    """The count on shapes alone equals the bytes that autograd keeps of a real step."""
    workshop, phases = begun(make_config(train_batch_size=3, memory="low"))
    _, forecast = fit(workshop, phases)
    (phase,) = phases
    phase.begin(phases)
    loss = phase.losses["pictures"]
    samples = loss.samples(phase.plan.step(0), range(3))
    known = {p.untyped_storage().data_ptr() for p in workshop.components["unet"].parameters()}
    known |= {t.untyped_storage().data_ptr() for t in (*samples.conditioning.values(), samples[2])}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss(samples)
    total = sum(storage.nbytes() for storage in kept.values())
    assert total == pytest.approx(forecast.step.saved_bytes, rel=0.01)


def test_the_fastest_level_that_fits_is_chosen(
    make_config: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    workshop, phases = begun(make_config())
    needs = {level: foretell(workshop, phases, level).more_bytes for level in LEVELS}
    for level, need in needs.items():
        workshop, phases = begun(make_config())
        room = int(need / fit_module.SHARE) + 1
        monkeypatch.setattr(fit_module, "free_bytes", lambda _, room=room: room)
        fit(workshop, phases)
        assert level_of(workshop) == level
        assert f"memory: {level}," in capsys.readouterr().out


def test_too_little_memory_is_said_before_the_first_step(
    make_config: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fit_module, "free_bytes", lambda _: 1000)
    workshop, phases = begun(make_config(mixed_precision="bf16"))
    fit(workshop, phases)
    assert level_of(workshop) == "lowest"
    said = capsys.readouterr().out
    assert "more than there is: try --train_batch_size 1 --gradient_accumulation_steps 2" in said


def test_off_leaves_the_model_as_it_is(make_config: Any) -> None:
    workshop, phases = begun(make_config(memory="off"))
    fit(workshop, phases)
    assert level_of(workshop) == "off"
    assert not any("forward" in vars(m) for m in workshop.components["unet"].modules())


def test_every_level_teaches_the_same(make_config: Any, tmp_path: Path) -> None:
    """Levels differ in what is kept, not in what is computed: not in a single bit."""
    files = []
    for level in ("off", *LEVELS):
        config = make_config(memory=level, output_dir=str(tmp_path / level), max_train_steps=3)
        result = scumble.train(config)
        files.append(result.adapter.read_bytes())
        losses = [json.loads(line)["loss"] for line in (tmp_path / level / "log.jsonl").open("r")]
        assert losses == pytest.approx(
            [json.loads(line)["loss"] for line in (tmp_path / "off" / "log.jsonl").open("r")],
            rel=1e-5,
        )
    assert files[1] == files[2] == files[3]


def test_what_was_counted_is_remembered_and_never_stale(
    make_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = []
    count = forecast_module._count

    def noted(*args: Any) -> Any:
        counted.append(args[-1])
        return count(*args)

    monkeypatch.setattr(forecast_module, "_count", noted)
    make_config = partial(make_config, latent_cache_dir=str(tmp_path / "own"))
    first = foretell(*begun(make_config()), "low").step
    assert counted == ["low"]
    alike = make_config(max_train_steps=9, seed=1, learning_rate=0.1, random_flip=True)
    assert foretell(*begun(alike), "low").step == first
    assert counted == ["low"]
    others: list[dict[str, Any]] = [
        {"rank": 2},
        {"mixed_precision": "bf16"},
        {"train_batch_size": 3},
        {"gradient_checkpointing": True},
        {"resolution": 32},
    ]
    for number, options in enumerate(others, 2):
        foretell(*begun(make_config(**options)), "low")
        assert len(counted) == number
    foretell(*begun(make_config(cache_latents=False)), "low")
    foretell(*begun(make_config(cache_latents=False)), "low")
    assert len(counted) == len(others) + 3


def test_the_record_holds_what_was_foretold_and_what_it_was(
    make_config: Any, tmp_path: Path
) -> None:
    scumble.train(make_config())
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["foretold_peak_mib"] > 100
    assert record["peak_memory_mib"] > 100


@pytest.mark.parametrize(
    ("options", "level", "hint"),
    [
        ({}, "balanced", "--mixed_precision bf16"),
        ({"mixed_precision": "bf16"}, "balanced", "--memory low"),
        ({"mixed_precision": "bf16"}, "low", "--memory lowest"),
        ({"mixed_precision": "bf16", "train_batch_size": 5}, "lowest", "--train_batch_size 2"),
        ({"mixed_precision": "fp16", "train_batch_size": 1}, "lowest", "--base_precision int8"),
        (
            {"mixed_precision": "fp16", "train_batch_size": 1, "base_precision": "fp8"},
            "lowest",
            "--base_precision nf4",
        ),
        (
            {"mixed_precision": "fp16", "train_batch_size": 1, "base_precision": "nf4"},
            "lowest",
            "--gradient_checkpointing",
        ),
        (
            {
                "mixed_precision": "fp16",
                "train_batch_size": 1,
                "base_precision": "nf4",
                "gradient_checkpointing": True,
            },
            "lowest",
            "lower --resolution",
        ),
    ],
)
def test_there_is_always_a_next_thing_to_try(
    make_config: Any, options: Any, level: str, hint: str
) -> None:
    assert hint in way_out(make_config(**options), level)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 99 bytes"),
    ],
)
def test_an_error_of_memory_names_the_next_thing_to_try(make_config: Any, error: Any) -> None:
    with (
        pytest.raises(UserError, match="out of memory") as caught,
        memory_explained(make_config(mixed_precision="bf16")),
    ):
        raise error
    assert "--memory low" in str(caught.value)


def test_the_way_out_starts_from_the_level_that_was_chosen(make_config: Any) -> None:
    config = make_config(mixed_precision="bf16", train_batch_size=4)

    def run_out() -> None:
        with memory_explained(config) as levels:
            levels.append("lowest")
            raise MemoryError

    with pytest.raises(UserError, match="out of memory") as caught:
        run_out()
    assert "--train_batch_size 2" in str(caught.value)


def test_where_every_weight_learns_no_level_is_advised(make_config: Any) -> None:
    assert "--memory" not in way_out(make_config(method="full"), "off")


def test_other_errors_stay_what_they_are(make_config: Any) -> None:
    with pytest.raises(RuntimeError, match="shape"), memory_explained(make_config()):
        raise RuntimeError("shape mismatch")


def test_a_container_counts_its_own_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("400000\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 100000\n")
    limited = forecast_module._container_bytes(tmp_path)
    assert limited == 700000
    assert forecast_module._container_bytes(tmp_path / "none") > 1 << 60
    monkeypatch.setattr(forecast_module, "_container_bytes", lambda: limited)
    assert free_bytes(torch.device("cpu")) == limited


def test_xformers_that_is_missing_is_said_at_once(
    make_config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "xformers.ops", None)
    with pytest.raises(UserError, match="xFormers cannot be used"):
        scumble.train(make_config(attention="xformers"))


@pytest.mark.parametrize("scheme", ["int8", "fp8", "nf4"])
def test_a_quantised_base_is_taught(
    make_config: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], scheme: str
) -> None:
    scumble.train(make_config(base_precision=scheme, output_dir=str(tmp_path / scheme)))
    assert f"frozen weights stored as {scheme}" in capsys.readouterr().out
    scumble.train(make_config(output_dir=str(tmp_path / "plain")))

    def last(name: str) -> float:
        return float(json.loads((tmp_path / name / "log.jsonl").open().readlines()[-1])["loss"])

    assert last(scheme) == pytest.approx(last("plain"), rel=0.1)
    assert last(scheme) != last("plain")
