"""Flags, configuration files, and what happens when they are wrong."""

from dataclasses import fields
from pathlib import Path

import pytest

from scumble.cli import train as train_verb
from scumble.cli.flags import parse_flags
from scumble.cli.main import run
from scumble.config import METHOD_GROUPS, TrainConfig
from scumble.config.checks import AT_LEAST_ONE, NOT_NEGATIVE, POSITIVE, SHARES
from scumble.config.files import read_config_file
from scumble.config.generate import GenerateConfig
from scumble.config.method_groups import METHOD_DEFAULTS
from scumble.config.sharing import LOCAL_PATHS
from scumble.config.train import WORD_LISTS, describe, field_names
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
    method = "text_to_image"
    groups, defaults = METHOD_GROUPS[method], METHOD_DEFAULTS[method]
    return parse_flags(groups, words, f"scumble train {method}", "test", defaults)


def test_the_articles_flags_mean_what_they_say():
    settings = parse(*ARTICLE)
    assert settings["center_crop"] is True
    assert settings["random_flip"] is True
    assert settings["learning_rate"] == 1e-4
    assert settings["max_grad_norm"] == 1
    assert settings["gradient_accumulation_steps"] == 4
    assert settings["push_to_hub"] is True
    assert settings["validation_prompt"] == "Totoro"


def test_the_articles_run_pushes_to_the_repository_that_it_names():
    config = TrainConfig(**parse(*ARTICLE))
    assert (config.push_to_hub, config.hub_model_id, config.hub_private) == (
        True,
        "pokemon-lora",
        False,
    )


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
        ("rank = 'four'", "bad.toml: 'rank' must be a whole number, not 'four'"),
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


TOLD_BY_HAND = {
    "dreambooth": {"class_prompt": "a dog"},
    "textual_inversion": {"placeholder_token": "<pip>", "initializer_token": "dog"},
    "pivotal_tuning": {"placeholder_token": "<pip>", "initializer_token": "dog"},
}
"""Method -> what only the user can say, and a ready configuration leaves open."""


def test_every_ready_configuration_is_valid():
    files = sorted((ROOT / "configs").iterdir())
    files.append(ROOT / "src" / "scumble" / "assets" / "demo.toml")
    assert len(files) >= 3
    for file in files:
        # The file's name begins with the method that it is for.
        named = (method for method in METHOD_GROUPS if file.stem.startswith(method))
        method = next(named, "text_to_image")
        settings = read_config_file(file, field_names(method))
        if not {"instance_data_dir", "dataset_name"} & set(settings):
            settings["train_data_dir"] = "pictures"
        config = TrainConfig(method=method, **(TOLD_BY_HAND.get(method, {}) | settings))
        assert config.changed()
        assert settings.items() <= config.to_dict().items()


def good(**changes: object) -> TrainConfig:
    settings = {"pretrained_model_name_or_path": "b", "train_data_dir": "p"}
    return TrainConfig(**(settings | changes))


def with_value(name: str, value: float) -> TrainConfig:
    """A configuration of the first method that has the option, with this value of it."""
    method = next(method for method in METHOD_GROUPS if name in field_names(method))
    return good(method=method, **{name: value})


@pytest.mark.parametrize("name", AT_LEAST_ONE)
def test_counts_below_one_are_refused_by_name(name):
    with pytest.raises(UserError, match=f"--{name} must be at least 1, not 0"):
        with_value(name, 0)


@pytest.mark.parametrize("name", [*NOT_NEGATIVE, *POSITIVE, *SHARES])
def test_negative_values_are_refused_by_name(name):
    with pytest.raises(UserError, match=f"--{name} must be .*, not -0.5"):
        with_value(name, -0.5)


@pytest.mark.parametrize("name", POSITIVE)
def test_nothing_is_not_above_nothing(name):
    with pytest.raises(UserError, match=f"--{name} must be above 0, not 0"):
        with_value(name, 0.0)


@pytest.mark.parametrize("name", SHARES)
def test_shares_end_below_one(name):
    with pytest.raises(UserError, match=f"--{name} must be from 0 to below 1, not 1"):
        with_value(name, 1.0)


def test_pictures_must_come_from_exactly_one_place():
    for changes in ({"train_data_dir": None}, {"dataset_name": "d"}):
        with pytest.raises(UserError, match="--train_data_dir and --dataset_name"):
            good(**changes)


def test_the_users_home_may_be_written_short(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert good(output_dir="~/run").output_dir == str(tmp_path / "run")
    assert GenerateConfig(prompt=("a",), adapter=("b",), output="~/a").output == str(tmp_path / "a")


def test_the_token_is_never_part_of_the_settings():
    config = good(hub_token="secret")
    for settings in (config.to_dict(), config.changed(), config.public(), describe(config)):
        assert "secret" not in str(settings)


@pytest.mark.parametrize("folder", ["train_data_dir", "instance_data_dir"])
def test_no_path_of_this_machine_is_shared(tmp_path, folder):
    subject = {
        "method": "dreambooth",
        "with_prior_preservation": True,
        "class_prompt": "a dog",
        "train_data_dir": None,
    }
    others = set(LOCAL_PATHS) - {"train_data_dir", "instance_data_dir", "logging_dir"}
    config = good(**subject | {name: str(tmp_path / name) for name in (folder, *others)})
    assert config.changed()[folder] == str(tmp_path / folder)
    assert str(tmp_path) not in str(config.public())


def test_every_folder_is_known_to_be_a_path_of_this_machine():
    folders = {item.name for item in fields(TrainConfig) if item.name.endswith("_dir")}
    assert folders <= set(LOCAL_PATHS)


def test_a_data_set_on_this_machine_is_shared_by_its_name(tmp_path):
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


@pytest.mark.parametrize("name", WORD_LISTS)
def test_words_may_be_set_apart_by_commas(name):
    config = good(train_text_encoder=True, **{name: ("to_q,to_k:8", "to_v")})
    assert getattr(config, name) == ("to_q", "to_k:8", "to_v")


def test_every_method_has_a_verb_options_and_defaults():
    for table in (train_verb.METHODS, METHOD_GROUPS, METHOD_DEFAULTS):
        assert set(table) == set(METHODS)


def test_changed_lists_what_differs():
    changed = good(rank=8).changed()
    assert changed["rank"] == 8
    assert "learning_rate" not in changed


def test_no_two_groups_share_a_name():
    groups = {group for groups in METHOD_GROUPS.values() for group in groups}
    names = [item.name for group in groups for item in fields(group)]
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


@pytest.mark.parametrize("method", METHOD_GROUPS)
def test_help_explains_every_flag(method, capsys):
    with pytest.raises(SystemExit) as stop:
        run(["train", method, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert all(f"--{name}" in text or f"--no_{name}" in text for name in field_names(method))


def test_help_on_training_lists_every_method(capsys):
    assert run(["train", "--help"]) == 0
    text = capsys.readouterr().out
    assert all(
        f"{name} " in text and purpose in text for name, purpose in train_verb.METHODS.items()
    )
