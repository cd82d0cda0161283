"""Flags, configuration files, and what happens when they are wrong."""

from dataclasses import fields
from pathlib import Path

import pytest

from scumble.cli import train as train_verb
from scumble.cli.flags import parse_flags
from scumble.cli.main import run
from scumble.config import GROUPS, TrainConfig
from scumble.config.files import read_config_file
from scumble.config.train import (
    AT_LEAST_ONE,
    LOCAL_PATHS,
    NOT_NEGATIVE,
    POSITIVE,
    SHARES,
    describe,
    field_names,
)
from scumble.errors import UserError
from scumble.training.methods import METHODS

ROOT = Path(__file__).parents[2]
ARTICLE = [
    "--pretrained_model_name_or_path=runwayml/stable-diffusion-v1-5",
    "--dataset_name=lambdalabs/pokemon-blip-captions",
    "--dataloader_num_workers=8",
    "--resolution=512",
    "--center_crop",
    "--random_flip",
    "--train_batch_size=1",
    "--gradient_accumulation_steps=4",
    "--max_train_steps=15000",
    "--learning_rate=1e-04",
    "--max_grad_norm=1",
    "--lr_scheduler=cosine",
    "--lr_warmup_steps=0",
    "--output_dir=/sddata/finetune/lora/pokemon",
    "--push_to_hub",
    "--hub_model_id=pokemon-lora",
    "--report_to=wandb",
    "--checkpointing_steps=500",
    "--validation_prompt=Totoro",
    "--seed=1337",
]


def parse(*words: str) -> dict:
    return parse_flags(GROUPS, words, "scumble train text_to_image", "test")


def test_the_articles_flags_mean_what_they_say():
    settings = parse(*ARTICLE)
    assert settings["center_crop"] is True
    assert settings["random_flip"] is True
    assert settings["learning_rate"] == 1e-4
    assert settings["max_grad_norm"] == 1
    assert settings["gradient_accumulation_steps"] == 4
    assert settings["push_to_hub"] is True
    assert settings["validation_prompt"] == "Totoro"


def test_pushing_is_refused_by_name_and_not_ignored():
    with pytest.raises(UserError, match="--push_to_hub"):
        TrainConfig(**parse(*ARTICLE))


def test_dashes_work_as_well():
    assert parse("--pretrained-model-name-or-path", "b", "--train-data-dir", "f")["train_data_dir"]


def test_several_targets_follow_one_flag():
    words = ["--pretrained_model_name_or_path", "b", "--target_modules", "to_q", "to_k:8:4"]
    assert parse(*words)["target_modules"] == ("to_q", "to_k:8:4")


def test_the_command_line_overrides_the_file(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text(
        'pretrained_model_name_or_path = "base"\nrandom_flip = true\n'
        "[steps]\nlearning_rate = 1e-3\n"
    )
    settings = parse("--config", str(file), "--learning_rate", "5e-4", "--no_random_flip")
    assert settings["pretrained_model_name_or_path"] == "base"
    assert settings["learning_rate"] == 5e-4
    assert settings["random_flip"] is False
    assert parse(f"--config={file}")["learning_rate"] == 1e-3


def test_yaml_reads_alike(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("pretrained_model_name_or_path: base\ntarget_modules: [to_q, to_k]\n")
    assert parse("--config", str(file))["target_modules"] == ("to_q", "to_k")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rat = 1e-3", "Did you mean 'learning_rate'"),
        ("rank = 'four'", "'rank' in the configuration file must be int"),
        ("random_flip = 3", "'random_flip'"),
        ("rank = 4\n[adapter]\nrank = 8", "'rank' stands twice"),
        ("rank = ", "malformed"),
        ("lr_scheduler = 'cosin'", "'lr_scheduler'"),
    ],
)
def test_a_bad_file_is_one_clear_error(tmp_path, text, message):
    file = tmp_path / "bad.toml"
    file.write_text('pretrained_model_name_or_path = "b"\n' + text)
    with pytest.raises(UserError) as caught:
        parse("--config", str(file))
    assert message in str(caught.value)


def test_a_missing_file_is_named():
    with pytest.raises(UserError, match=r"nowhere\.toml"):
        parse("--config", "nowhere.toml")


def test_every_ready_configuration_is_valid():
    files = sorted((ROOT / "configs").iterdir())
    files.append(ROOT / "src" / "scumble" / "assets" / "demo.toml")
    assert len(files) >= 3
    for file in files:
        settings = read_config_file(file, field_names())
        config = TrainConfig(**settings, train_data_dir="pictures")
        assert config.changed()


def good(**changes: object) -> TrainConfig:
    settings = {"pretrained_model_name_or_path": "b", "train_data_dir": "p"}
    return TrainConfig(**(settings | changes))


@pytest.mark.parametrize("name", AT_LEAST_ONE)
def test_counts_below_one_are_refused_by_name(name):
    with pytest.raises(UserError, match=f"--{name} must be at least 1, not 0"):
        good(**{name: 0})


@pytest.mark.parametrize("name", [*NOT_NEGATIVE, *POSITIVE, *SHARES])
def test_negative_values_are_refused_by_name(name):
    with pytest.raises(UserError, match=f"--{name}"):
        good(**{name: -0.5})


@pytest.mark.parametrize("name", SHARES)
def test_shares_end_below_one(name):
    with pytest.raises(UserError, match=f"--{name}"):
        good(**{name: 1.0})


def test_pictures_must_come_from_exactly_one_place():
    for changes in ({"train_data_dir": None}, {"dataset_name": "d"}):
        with pytest.raises(UserError, match="--train_data_dir and --dataset_name"):
            good(**changes)


def test_the_token_is_never_part_of_the_settings():
    config = good(hub_token="secret")
    for settings in (config.to_dict(), config.changed(), config.public(), describe(config)):
        assert "secret" not in str(settings)


def test_no_path_of_this_machine_is_shared(tmp_path):
    paths = dict.fromkeys(LOCAL_PATHS, str(tmp_path))
    assert str(tmp_path) not in str(good(**paths).public())
    dataset = good(train_data_dir=None, dataset_name=str(tmp_path)).public()["dataset_name"]
    assert dataset == tmp_path.name


@pytest.mark.parametrize(
    ("changes", "flag"),
    [
        ({"seed": -1}, "--seed"),
        ({"seed": 10**20}, "--seed"),
        ({"learning_rate": float("inf")}, "--learning_rate"),
        ({"guidance_scale": float("nan")}, "--guidance_scale"),
        ({"num_inference_steps": 2000}, "--num_inference_steps"),
        ({"adam_beta1": 2.0}, "--adam_beta1"),
        ({"hub_model_id": "me/mine"}, "--hub_model_id"),
    ],
)
def test_values_that_cannot_be_meant_are_refused_by_name(changes, flag):
    with pytest.raises(UserError, match=flag):
        good(**changes)


def test_targets_may_be_set_apart_by_commas():
    assert good(target_modules=("to_q,to_k:8", "to_v")).target_modules == ("to_q", "to_k:8", "to_v")


def test_every_method_has_a_verb_and_every_verb_a_method():
    assert set(train_verb.METHODS) == set(METHODS)


def test_changed_lists_what_differs():
    changed = good(rank=8).changed()
    assert changed["rank"] == 8
    assert "learning_rate" not in changed


def test_no_two_groups_share_a_name():
    names = [item.name for group in GROUPS for item in fields(group)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("words", "code", "hint"),
    [
        (["trian"], 2, "Did you mean 'train'"),
        (["train", "text_to_imge"], 1, "Did you mean 'text_to_image'"),
        (["train", "text_to_image", "--train_data_dir", "x"], 2, "pretrained_model_name_or_path"),
        (["train"], 1, "name a method"),
        ([], 2, "usage"),
    ],
)
def test_a_typo_ends_with_a_hint_and_a_code(words, code, hint, capsys):
    try:
        result = run(words)
    except SystemExit as stop:
        result = stop.code
    output = capsys.readouterr()
    assert result == code
    assert hint in output.err + output.out


def test_a_misspelt_flag_suggests_the_right_one(capsys):
    words = ["--pretrained_model_name_or_path", "b", "--learning_rat", "1"]
    with pytest.raises(SystemExit) as stop:
        run(["train", "text_to_image", *words])
    assert stop.value.code == 2
    assert "learning_rate" in capsys.readouterr().err


def test_help_explains_every_flag(capsys):
    with pytest.raises(SystemExit) as stop:
        run(["train", "text_to_image", "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert all(f"--{name}" in text or f"--no_{name}" in text for name in field_names())
