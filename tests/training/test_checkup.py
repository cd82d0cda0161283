"""Each check before a run: a case in which it speaks, and one in which it is silent."""

import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from scumble.config import TrainConfig
from scumble.data.pictures import Finding as Remark
from scumble.data.scan import ScanReport
from scumble.training.checkup import (
    CHECKS,
    SAID_BY_THE_RUN,
    findings,
    pace,
    surroundings,
    warnings,
)
from scumble.training.checkup import machine as machine_checks
from scumble.training.checkup.facts import (
    BaseFacts,
    Facts,
    Machine,
    Rate,
    Room,
    Shown,
    Stretch,
)
from scumble.training.checkup.finding import Finding, worst
from scumble.training.checkup.surroundings import usable_cores

GIB = 2**30


def config(**changes: Any) -> TrainConfig:
    """Settings that nothing is to be said of."""
    settings = {"pretrained_model_name_or_path": "b", "train_data_dir": "p", "max_train_steps": 900}
    return TrainConfig(**(settings | changes))


def shown(count: int = 20, **changes: Any) -> list[Shown]:
    pictures = [Shown(f"{n}.png", 512, 512, (512, 512), (f"a thing, {n}",)) for n in range(count)]
    return [replace(picture, **changes) for picture in pictures]


FACTS = Facts(
    config=config(),
    pictures=shown(),
    report=ScanReport(found=20, used=20),
    batch=4,
    steps_per_epoch=5,
    stretches=[Stretch("text_to_image", 900)],
    rates=[Rate("adapters", "unet", 1e-4, 1.0, 900)],
    base=BaseFacts("b", "stable_diffusion", "epsilon", 512, 860_000_000),
    room=Room("balanced", 3 * GIB, GIB, 8 * GIB, 40 << 20, 100 * GIB),
    machine=Machine("cpu", "processor", "bfloat16", cores=8, threads=8, has_bf16=True),
)


def given(**changes: Any) -> Facts:
    return replace(FACTS, **changes)


def rate(**changes: Any) -> Facts:
    return given(rates=[replace(FACTS.rates[0], **changes)])


def room(**changes: Any) -> Facts:
    return given(room=replace(FACTS.room, **changes))


def machine(**changes: Any) -> Facts:
    return given(machine=replace(FACTS.machine, **changes))


def subject(**changes: Any) -> Facts:
    settings = {"train_data_dir": None, "instance_data_dir": "p", "method": "dreambooth"}
    settings |= {"instance_prompt": "a photo of sks dog", "class_prompt": "a photo of a dog"}
    settings |= {"with_prior_preservation": True, "prior_from": "base"}
    return given(config=config(**(settings | changes)), pictures=shown(captions=("a sks dog",)))


def idle(**changes: Any) -> Facts:
    return given(config=config(**changes))


def two_parts(text_rate: float) -> Facts:
    more = Rate("adapters", "text_encoder", text_rate, 1.0, 900, is_first=False)
    return given(rates=[*FACTS.rates, more])


CUDA = {"device": "cuda", "name": "a card", "tf32": True}
DUPLICATES = ScanReport(found=2, used=2, names={Remark.DUPLICATE: ["b (same as a)"]})
NOTED = ScanReport(found=2, used=2, notes=["3 masks not used"])
UNIFORM = shown(captions=("a thing",))
FLIPPED = {"pictures": shown(captions=("a hand at the left",))}
MANY_BUCKETS = [*shown(3), *shown(2, bucket=(448, 576))]

SPEAKING: dict[str, tuple[str, Facts, str]] = {
    "duplicates": ("note", given(report=DUPLICATES), r"1 exact duplicates: b \(same as a\)"),
    "of the source": ("note", given(report=NOTED), "3 masks not used"),
    "few": ("note", given(pictures=shown(4)), "4 pictures: what they have by chance"),
    "blurred": ("note", given(pictures=shown(width_px=200)), "20 pictures enlarged .*2.6 times"),
    "cut away": ("note", given(pictures=shown(width_px=1024)), "50% of the pictures is cut away"),
    "small steps": ("note", given(pictures=MANY_BUCKETS), "would take 4 .* there are 3 of a size"),
    "empty caption": ("note", given(pictures=shown(captions=("",))), "20 pictures with an empty"),
    "caption cut": ("note", given(beyond={"a thing, 3": 9}), r"1 caption cut .* 3.png \(by 9"),
    "equal captions": ("note", given(pictures=UNIFORM), "all captions are the same: 'a thing'"),
    "no trigger": ("note", replace(subject(), pictures=shown(9)), "9 captions without sks"),
    "unused prompt": ("note", subject(), "by no picture: 'a photo of sks dog'"),
    "prompt": ("note", subject(validation_prompt="a dog"), "does not contain sks"),
    "sides": ("note", replace(idle(random_flip=True), **FLIPPED), "20 captions with left or right"),
    "part of an epoch": ("note", given(steps_per_epoch=1800), "ends after 50% of the first epoch"),
    "few steps": (
        "note",
        replace(rate(steps=50), stretches=[Stretch("a", 50)]),
        "50 steps at this learning rate will change little",
    ),
    "by heart": ("note", given(steps_per_epoch=1), "seen 900 times, and after 500"),
    "warm-up": (
        "note",
        idle(lr_scheduler="cosine", lr_warmup_steps=600),
        "the warm-up takes 600 of 900 steps",
    ),
    "no checkpoint": (
        "danger",
        replace(idle(checkpointing_steps=5000), stretches=[Stretch("a", 4000)]),
        "a crash would cost all 4,000 steps .*--checkpointing_steps 400",
    ),
    "full disk": (
        "danger",
        room(disk_free_bytes=60 << 20),
        "2 checkpoints of 40.0 MiB, and 60.0 M",
    ),
    "fullish disk": ("note", room(disk_free_bytes=90 << 20), r"\(Name another --output_dir"),
    "many checkpoints": (
        "danger",
        replace(room(disk_free_bytes=90 << 20), config=config(checkpointing_steps=100)),
        "9 checkpoints .*--checkpoints_total_limit 1; or name",
    ),
    "alpha 1, rank 32": (
        "danger",
        replace(rate(scale=1 / 32), config=config(alpha=1, rank=32)),
        r"no effect: learning rate 0.0001 x 1 / rank \(32\) = 3.1e-06 .*Leave --alpha away",
    ),
    "slow": ("note", rate(rate=1e-5), "learn slowly.*Raise --learning_rate to 2e-05"),
    "fast": ("note", rate(rate=2e-3), "learn fast.*Lower --learning_rate to 0.0006"),
    "ruin": ("danger", rate(rate=1.0), "will ruin the model"),
    "rows": ("danger", rate(kind="rows", rate=1.0), "the rows of unet will ruin"),
    "every weight": ("danger", rate(kind="weights", rate=1e-2), "the weights of unet will ruin"),
    "text encoder": ("note", two_parts(2e-4), r"faster \(0.0002\) than the model \(0.0001\)"),
    "noise offset": ("note", idle(noise_offset=0.9), "glaring or black"),
    "dropout": ("note", idle(caption_dropout=0.8), "most steps see no caption"),
    "idle": ("note", idle(lr_power=2.0), "--lr_power 2.0 has no effect, because of the --lr_sch"),
    "two ends": ("note", idle(num_train_epochs=7), "--num_train_epochs 7 has no effect"),
    "for a card": ("note", idle(allow_tf32=True), "--allow_tf32 has no effect on processor"),
    "too small": ("note", given(pictures=shown(bucket=(256, 256))), "taught at 256 px and drawn"),
    "too large": ("note", given(pictures=shown(bucket=(1024, 1024))), "it repeats things there"),
    "no memory": ("danger", room(more_bytes=9 * GIB), "needs more than there is.*Try --mixed_prec"),
    "little memory": ("note", room(more_bytes=int(7.9 * GIB)), "hardly anything is left"),
    "card unused": ("danger", machine(unused_card="no CUDA"), "is not used: no CUDA"),
    "throttled": ("note", machine(threads=1), "uses 1 of 8 cores.*OMP_NUM_THREADS=8"),
    "quota": ("note", machine(cores=2), "8 threads share the 2 cores"),
    "company": ("note", machine(load=30.0), "30.0 programs at once"),
    "fp32": ("note", machine(dtype="float32"), "Say --mixed_precision bf16"),
    "no tf32": (
        "note",
        machine(**CUDA | {"dtype": "float32", "has_bf16": False, "tf32": False}),
        "--allow_tf32 makes",
    ),
    "fp16": ("note", machine(**CUDA | {"dtype": "float16"}), "fp16 overflows"),
    "attention": ("note", machine(**CUDA | {"fused_attention": False}), "slow and large"),
    "extra": ("danger", machine(lacking=["bitsandbytes"]), r"pip install 'scumble\[bitsandbytes"),
}
"""What is wrong -> level, facts, and what is said of it."""


@pytest.mark.parametrize("case", SPEAKING)
def test_a_check_speaks_where_it_should(case: str) -> None:
    level, facts, words = SPEAKING[case]
    found = [finding.line() for finding in findings(facts) if finding.level == level]
    assert any(re.search(words, line) for line in found), found


def test_what_is_far_from_usual_is_not_called_well() -> None:
    for rates in (rate(rate=1.0), rate(rate=1e-9)):
        assert {f.level for f in findings(rates) if f.topic == "strength"} == {"danger"}


def test_nothing_is_said_of_a_sound_run() -> None:
    assert warnings(FACTS) == []
    assert worst(findings(FACTS)) == "ok"
    topics = [finding.topic for finding in findings(FACTS)]
    known = ["pictures", "captions", "steps", "strength", "base", "machine", "memory"]
    assert topics == known, "one line for each"


def test_every_check_has_a_case() -> None:
    speaking: set[Callable[..., Any]] = set()
    for _, facts, _ in SPEAKING.values():
        for check in (*CHECKS, *SAID_BY_THE_RUN):
            levels = {finding.level for finding in check(facts)}
            speaking |= {check} if levels - {"ok"} else set()
    silent = {check for check in (*CHECKS, *SAID_BY_THE_RUN) if check not in speaking}
    assert all({f.level for f in check(FACTS)} == {"ok"} for check in silent), silent


def test_lokr_bears_ten_times_the_rate() -> None:
    fast = rate(rate=2e-3)
    lokr = replace(fast, config=config(adapter_type="lokr"))
    assert warnings(fast) != []
    assert warnings(lokr) == []


def test_a_small_base_bears_ten_times_the_rate_and_needs_one_core() -> None:
    wanting = {
        "rates": rate(rate=3e-3).rates,
        "machine": machine(threads=1, threads_set=True).machine,
    }
    assert len(warnings(given(**wanting))) == 2
    tiny = replace(FACTS.base, parameters=5_000_000)
    assert warnings(given(**wanting, base=tiny)) == []


def test_no_effect_is_a_matter_of_steps_too() -> None:
    patient = rate(scale=1 / 32, steps=20_000)
    assert worst(warnings(patient)) == "note"


def test_many_views_are_no_trouble_where_held_out_pictures_decide() -> None:
    by_heart = given(steps_per_epoch=1)
    assert warnings(by_heart) != []
    assert warnings(replace(by_heart, config=config(validation_share=0.1))) == []


def measured(step_s: float, launches: int = 1000, **changes: Any) -> pace.Pace:
    speed = pace.Speed(step_s, 1e12, 1e8, launches, 1e12, 1e10, 6e-6)
    whole = pace.Pace(
        [("training", 900 * step_s), ("encoding", 70.0)], step_s, step_s / 2, 0.0, speed
    )
    return replace(whole, **changes)


def said(found: Any) -> list[Finding]:
    return list(found)


@pytest.mark.parametrize(
    ("step_s", "launches", "level", "words"),
    [
        (2.0, 1000, "ok", "normal: 500 GFLOP/s = 50% of the 1 TFLOP/s"),
        (20.0, 1000, "note", "slow: 50 GFLOP/s = 5%"),
        (20.0, 3_000_000, "ok", "normal for its size"),
    ],
)
def test_is_my_speed_normal(step_s: float, launches: int, level: str, words: str) -> None:
    (finding,) = said(pace.speed(measured(step_s, launches)))
    assert (finding.level, finding.text.startswith(words)) == (level, True), finding


def test_the_time_is_said_in_words_with_what_it_goes_into() -> None:
    (finding,) = said(pace.duration(measured(4.0)))
    assert finding.text == "about 1 h 1 min: 1 h training, 1 min encoding (4.0 s per full step)"
    times = [pace.in_words(seconds) for seconds in (0.02, 4, 45, 600, 7200, 4800, 400_000)]
    assert times == ["20 ms", "4.0 s", "45 s", "10 min", "2 h", "1 h 20 min", "4 days 15 h"]


def test_drawing_and_crashes_are_weighed_against_the_time() -> None:
    assert said(pace.mostly_drawing(FACTS, measured(1.0))) == []
    (drawing,) = said(pace.mostly_drawing(FACTS, measured(1.0, drawing_s=800.0)))
    assert "82% of the time goes into pictures" in drawing.text
    assert "--num_validation_images 1" in drawing.hint
    often = given(config=config(validation_prompt="a thing", validation_steps=5))
    (drawing,) = said(pace.mostly_drawing(often, measured(1.0, drawing_s=800.0)))
    assert "raise --validation_steps" in drawing.hint
    assert said(pace.between_checkpoints(FACTS, measured(1.0))) == []
    (crash,) = said(pace.between_checkpoints(FACTS, measured(14.4)))
    assert crash.text == "a crash would cost up to 1 h: 500 steps between checkpoints"
    assert crash.hint == "Say --checkpointing_steps 125."


@pytest.mark.parametrize(("quota", "cores"), [("150000 100000", 1.5), ("max 100000", None)])
def test_the_cores_of_a_container_are_its_quota(
    tmp_path: Path, quota: str, cores: float | None
) -> None:
    (tmp_path / "cpu.max").write_text(quota)
    everything = usable_cores(tmp_path / "absent")
    assert usable_cores(tmp_path) == min(everything, cores or everything)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the driver's programs tell")
def test_a_card_is_one_and_not_only_its_programs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(surroundings, "CARDS", tmp_path)
    monkeypatch.setattr(surroundings, "WSL", tmp_path / "absent")
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    assert surroundings._unused_card() == ""
    (tmp_path / "0000:01:00.0").mkdir()
    assert "was not given the card" in surroundings._unused_card()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    reason = surroundings._unused_card()
    facts = replace(FACTS, machine=replace(FACTS.machine, unused_card=reason))
    assert [found.hint for found in machine_checks.unused_card(facts)] == ["Unset it."]
