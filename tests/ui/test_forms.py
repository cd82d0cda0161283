"""The form: every option of every method has a widget, and what is filled in is what is meant."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from scumble.config import METHOD_GROUPS, TrainConfig
from scumble.config.train import field_names
from scumble.errors import UserError
from scumble.ui.folders import Folders
from scumble.ui.forms import (
    BASIC,
    CHOSEN_BY_THE_PAGE,
    FormError,
    entries,
    in_words,
    picture_field,
    start_value,
    train_config,
    widget,
)

NEEDED = {
    "pretrained_model_name_or_path": "scumble-tiny",
    "instance_prompt": "a photo of <pip>",
    "placeholder_token": "<pip>",
    "initializer_token": "dog",
}
"""What no form can know beforehand."""


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    """The folders of a page."""
    return Folders(tmp_path / "work", (tmp_path / "open",))


def filled(method: str, **changes: Any) -> dict[str, Any]:
    """What the widgets hold before anybody has touched more than is needed."""
    values = {name: start_value(entry, method) for name, entry in entries().items()}
    return values | NEEDED | changes


def config_of(method: str, folders: Folders, **changes: Any) -> TrainConfig:
    pictures = str(folders.pictures / "set")
    values = filled(method, **changes)
    return train_config(method, values, folders, pictures=pictures, output_dir="out")


@pytest.mark.parametrize("method", METHOD_GROUPS)
def test_an_untouched_form_means_the_defaults(method: str, folders: Folders) -> None:
    needed = {name: value for name, value in NEEDED.items() if name in field_names(method)}
    pictures = {picture_field(method): str(folders.pictures / "set")}
    plain = TrainConfig(method=method, output_dir="out", **pictures, **needed)
    assert config_of(method, folders) == plain


def test_every_option_has_a_widget_or_is_chosen_by_the_page() -> None:
    assert set(BASIC) <= set(entries())
    assert {*entries(), *CHOSEN_BY_THE_PAGE} >= {f.name for f in fields(TrainConfig)} - {"method"}
    for entry in entries().values():
        made = widget(entry, "text_to_image")
        assert made.info.rstrip().endswith("."), entry.name
        assert made.visible == (entry.name in field_names("text_to_image"))


def test_what_is_filled_in_is_what_is_trained(folders: Folders) -> None:
    config = config_of(
        "text_to_image",
        folders,
        max_train_steps=" 300 ",
        learning_rate="3e-4",
        adapter_type="dora",
        target_modules="to_q to_k:8",
        random_flip=True,
        mixed_precision="bf16",
        validation_prompt="  ",
    )
    assert (config.max_train_steps, config.learning_rate, config.adapter_type) == (
        300,
        3e-4,
        "dora",
    )
    assert (config.target_modules, config.random_flip) == (("to_q", "to_k:8"), True)
    assert (config.mixed_precision, config.validation_prompt) == ("bf16", None)


@pytest.mark.parametrize(
    ("changes", "message", "field"),
    [
        ({"rank": "0"}, "“Rank” must be at least 1", "rank"),
        ({"learning_rate": "fast"}, "“Learning rate” must be a decimal number", "learning_rate"),
        ({"max_train_steps": "1.5"}, "“Steps” must be a whole number", "max_train_steps"),
        ({"pretrained_model_name_or_path": " "}, "“Base model” is empty", BASIC[0]),
        ({"text_encoder_rank": "4"}, "“Text encoder rank” has no effect", "text_encoder_rank"),
        ({"max_train_steps": "nan"}, "“Steps” must be a whole number", "max_train_steps"),
    ],
)
def test_what_cannot_be_meant_is_said_in_the_words_of_the_form(
    changes: dict[str, str], message: str, field: str, folders: Folders
) -> None:
    with pytest.raises(FormError, match=message) as caught:
        config_of("text_to_image", folders, **changes)
    assert field in caught.value.fields
    assert "--" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("validation_data_dir", "/etc"),
        ("validation_data_dir", "{open}/../secret"),
        ("pretrained_model_name_or_path", "/etc/model"),
        ("pretrained_model_name_or_path", "../model"),
        ("pretrained_model_name_or_path", "~/model"),
        ("pretrained_model_name_or_path", "{link}"),
        ("dataset_name", "/etc"),
    ],
)
def test_no_field_leads_out_of_the_folders(
    name: str, value: str, folders: Folders, tmp_path: Path
) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "secret").mkdir()
    (tmp_path / "open" / "link").symlink_to(tmp_path / "secret")
    value = value.format(open=tmp_path / "open", link=tmp_path / "open" / "link")
    with pytest.raises(UserError, match="outside of the folders that this page may read"):
        config_of("text_to_image", folders, **{name: value})


def test_paths_in_the_folders_and_ids_of_the_hub_are_taken(
    folders: Folders, tmp_path: Path
) -> None:
    base = tmp_path / "open" / "base"
    config = config_of("text_to_image", folders, pretrained_model_name_or_path=str(base))
    assert config.pretrained_model_name_or_path == str(base)
    config = config_of("text_to_image", folders, pretrained_model_name_or_path="someone/model")
    assert config.pretrained_model_name_or_path == "someone/model"


def test_flags_in_a_text_become_labels() -> None:
    assert in_words("--rank and --train_data_dir FOLDER") == "“Rank” and Pictures FOLDER"
    assert in_words("overrides num_train_epochs; a rank") == (
        "overrides “Epochs, if no steps are given”; a rank"
    )
