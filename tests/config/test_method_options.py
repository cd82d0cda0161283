"""What each training method may be told: its own options, its defaults, no contradictions."""

import ast
import inspect
import re
from dataclasses import MISSING, fields
from typing import Any

import pytest

from scumble.cli.main import run
from scumble.cli.train import ELSEWHERE, REFUSED
from scumble.config import METHOD_GROUPS, TrainConfig, checks
from scumble.config.checks import NEEDS
from scumble.config.method_groups import METHOD_DEFAULTS
from scumble.config.train import describe, field_names
from scumble.errors import UserError

WORD = {"placeholder_token": "<pip>", "initializer_token": "dog"}
REQUIRED: dict[str, dict[str, Any]] = {
    "text_to_image": {"train_data_dir": "p"},
    "dreambooth": {"instance_data_dir": "p"},
    "textual_inversion": {"train_data_dir": "p", **WORD},
    "pivotal_tuning": {"train_data_dir": "p", **WORD},
    "full": {"train_data_dir": "p"},
}
"""Method -> the least that it must be told."""

PRIOR = {"with_prior_preservation": True, "class_prompt": "a dog", "class_data_dir": "c"}
BASE_PRIOR = {"with_prior_preservation": True, "class_prompt": "a dog", "prior_from": "base"}
PRIOR_ALONE: dict[str, Any] = {
    "class_prompt": "a dog",
    "prior_from": "base",
    "prior_loss_weight": 2.0,
    "class_data_dir": "c",
    "num_class_images": 7,
    "sample_batch_size": 2,
    "prior_generation_precision": "fp16",
}
"""Option -> a value of it that does nothing without --with_prior_preservation."""
STREAM = {"train_data_dir": None, "dataset_name": "d", "streaming": True}
IDLE_ALONE: dict[str, tuple[Any, str]] = {
    "unmasked_weight": (0.1, "masked_loss"),
    "keep_tokens": (1, "shuffle_caption"),
    "text_encoder_lr": (1e-5, "train_text_encoder"),
    "text_encoder_rank": (2, "train_text_encoder"),
    "text_encoder_target_modules": (("q_proj",), "train_text_encoder"),
    "hub_model_id": ("a/b", "push_to_hub"),
    "hub_private": (True, "push_to_hub"),
}
"""Option -> a value of it, and the option without which it does nothing."""

CONTRADICTIONS: list[tuple[str, dict[str, Any], str]] = [
    (
        "text_to_image",
        {"train_data_dir": None},
        "exactly one of --train_data_dir and --dataset_name",
    ),
    (
        "text_to_image",
        {"attention": "sdpa", "enable_xformers_memory_efficient_attention": True},
        "exclude each other",
    ),
    ("full", {"dataset_name": "d"}, "exactly one of --train_data_dir and --dataset_name"),
    (
        "dreambooth",
        {"instance_data_dir": None},
        "exactly one of --train_data_dir and --dataset_name and --instance_data_dir",
    ),
    ("dreambooth", {"train_data_dir": "p"}, "exactly one of"),
    ("text_to_image", {"streaming": True}, "--streaming reads a data set"),
    (
        "text_to_image",
        {"train_data_dir": None, "dataset_name": "d", "masked_loss": True},
        "--masked_loss needs masks beside pictures",
    ),
    (
        "text_to_image",
        {**STREAM, "validation_share": 0.1},
        "--validation_share needs to know all pictures, which --streaming does not",
    ),
    (
        "text_to_image",
        {"validation_share": 0.1, "validation_data_dir": "v"},
        "--validation_share and --validation_data_dir both name pictures",
    ),
    *(
        ("text_to_image", {name: value}, f"--{name} has no effect without --{needed}")
        for name, (value, needed) in IDLE_ALONE.items()
    ),
    ("text_to_image", {"early_stop": 3}, "--early_stop has nothing to decide by"),
    (
        "textual_inversion",
        {"adam_weight_decay": 0.1},
        "--adam_weight_decay has no effect with --row_norm_pull",
    ),
    (
        "text_to_image",
        {"validation_steps": 10},
        "--validation_steps has no effect without anything to validate",
    ),
    *(
        ("dreambooth", {name: value}, f"--{name} has no effect without --with_prior_preservation")
        for name, value in PRIOR_ALONE.items()
    ),
    ("dreambooth", {**PRIOR, "class_prompt": None}, "needs the class in words"),
    ("dreambooth", {**PRIOR, "class_data_dir": None}, "needs a folder for the class pictures"),
    (
        "dreambooth",
        {**BASE_PRIOR, "instance_prompt": "a dog"},
        "--class_prompt and --instance_prompt are the same",
    ),
    *(
        (
            "dreambooth",
            {**BASE_PRIOR, name: PRIOR_ALONE[name]},
            f"--{name} has no effect with --prior_from base",
        )
        for name in ("class_data_dir", "num_class_images", "sample_batch_size")
    ),
    (
        "textual_inversion",
        {"learnable_property": "style", "instance_prompt": "a <pip>"},
        "--learnable_property and --instance_prompt both say",
    ),
    *(
        (method, changes, text)
        for method in ("textual_inversion", "pivotal_tuning")
        for changes, text in (
            ({"placeholder_token": None}, "there is no new word to learn"),
            ({"initializer_token": None}, "the new word needs a word to start from"),
        )
    ),
    *(
        ("text_to_image", {"decompose_factor": factor}, "--decompose_factor must be -1 or at least")
        for factor in (0, -2)
    ),
    (
        "text_to_image",
        {"adapter_type": "lokr", "adapter_init": "pissa"},
        "--adapter_init pissa has no meaning for --adapter_type lokr",
    ),
    (
        "text_to_image",
        {"adapter_init": "pissa", "lora_plus_ratio": 8.0},
        "--lora_plus_ratio has no effect with --adapter_init pissa",
    ),
    (
        "text_to_image",
        {"deterministic": True, "attention": "xformers"},
        "xFormers' attention does not give the same bits twice",
    ),
    (
        "text_to_image",
        {"deterministic": True, "compile": True},
        "--compile chooses kernels by their speed",
    ),
]
"""(method, what contradicts in it, what the error must say)."""

HARMLESS: list[tuple[str, dict[str, Any]]] = [
    *((method, {}) for method in METHOD_GROUPS),
    ("text_to_image", {"train_data_dir": None, "dataset_name": "d"}),
    ("dreambooth", {"instance_data_dir": None, "train_data_dir": "p"}),
    ("dreambooth", {"instance_data_dir": None, "dataset_name": "d"}),
    ("text_to_image", STREAM),
    ("text_to_image", {**STREAM, "validation_data_dir": "v"}),
    ("text_to_image", {"masked_loss": True, "validation_share": 0.1}),
    *(
        ("text_to_image", {name: value, needed: True})
        for name, (value, needed) in IDLE_ALONE.items()
    ),
    ("text_to_image", {"early_stop": 3, "validation_share": 0.1}),
    ("text_to_image", {"early_stop": 3, "validation_data_dir": "v"}),
    ("text_to_image", {"validation_steps": 10, "validation_prompt": "a dog"}),
    ("text_to_image", {"validation_steps": 10, "validation_share": 0.1}),
    ("dreambooth", PRIOR),
    ("dreambooth", BASE_PRIOR),
    ("dreambooth", {**PRIOR, "num_class_images": 7}),
    ("dreambooth", {**BASE_PRIOR, "prior_loss_weight": 2.0}),
    ("textual_inversion", {"learnable_property": "style"}),
    ("textual_inversion", {"adam_weight_decay": 0.1, "row_norm_pull": 0.0}),
    ("textual_inversion", {"instance_prompt": "a <pip>"}),
    ("text_to_image", {"adapter_type": "lokr", "decompose_factor": 8}),
    ("text_to_image", {"adapter_init": "pissa"}),
    ("text_to_image", {"lora_plus_ratio": 8.0}),
    ("full", {"mixed_precision": "bf16"}),  # the machine decides what that means
    ("text_to_image", {"mixed_precision": "bf16"}),
]
"""(method, what stands beside it and may): each contradiction has a neighbour that is none."""


def configure(method: str, **changes: Any) -> TrainConfig:
    settings = {"method": method, "pretrained_model_name_or_path": "b", **REQUIRED[method]}
    return TrainConfig(**(settings | changes))


def flags(method: str, *words: str) -> list[str]:
    """The command line of a method's least settings, with further words."""
    settings = {"pretrained_model_name_or_path": "b", **REQUIRED[method]}
    pairs = [word for name, value in settings.items() for word in (f"--{name}", value)]
    return ["train", method, *pairs, *words]


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[TrainConfig]:
    """Collect the configurations that would be trained, instead of training them."""
    configs: list[TrainConfig] = []
    monkeypatch.setattr("scumble.training.run.train", configs.append)
    return configs


def error_of(method: str, changes: dict[str, Any]) -> UserError:
    with pytest.raises(UserError) as caught:
        configure(method, **changes)
    return caught.value


def name_of_case(case: object) -> str:
    return "-".join(case) if isinstance(case, dict) else str(case)


@pytest.mark.parametrize(("method", "changes", "text"), CONTRADICTIONS, ids=name_of_case)
def test_a_contradiction_is_one_clear_error(method, changes, text):
    error = error_of(method, changes)
    assert text in error.message
    assert "\n" not in error.message
    assert re.search(r"--\w+", str(error)), "it names no option"


@pytest.mark.parametrize(("method", "changes"), HARMLESS, ids=name_of_case)
def test_what_does_not_contradict_is_left_alone(method, changes):
    config = configure(method, **changes)
    assert all(getattr(config, name) == value for name, value in changes.items())


def possible_messages() -> list[str]:
    """A pattern for each message in the source: whatever is put in may be anything."""
    patterns = []
    for node in ast.walk(ast.parse(inspect.getsource(checks))):
        if isinstance(node, ast.Yield):
            assert isinstance(node.value, ast.Tuple)
            message = node.value.elts[0]
            parts = message.values if isinstance(message, ast.JoinedStr) else [message]
            texts = [p.value if isinstance(p, ast.Constant) else None for p in parts]
            patterns.append("".join(".+" if t is None else re.escape(t) for t in texts))
    return patterns


def test_every_contradiction_is_tried():
    said = [error_of(method, changes).message for method, changes, _ in CONTRADICTIONS]
    patterns = possible_messages()
    assert len(patterns) > 10
    never = [p for p in patterns if not any(re.fullmatch(p, message) for message in said)]
    assert never == []
    assert set(NEEDS) == {(name, needed) for name, (_, needed) in IDLE_ALONE.items()}


def foreign_options(method: str) -> list[str]:
    """Options that only other methods have."""
    own = {"method", *field_names(method)}
    return [item.name for item in fields(TrainConfig) if item.name not in own]


def other_value(name: str) -> Any:
    """Some value of an option that is not its default."""
    (default,) = (item.default for item in fields(TrainConfig) if item.name == name)
    assert default is not MISSING
    if isinstance(default, bool):
        return not default
    if isinstance(default, tuple):
        return ("to_q",)
    return "other" if default is None or isinstance(default, str) else default + 1


@pytest.mark.parametrize("method", METHOD_GROUPS)
def test_an_option_of_another_method_is_refused_naming_those_that_have_it(method):
    assert foreign_options(method)
    for name in foreign_options(method):
        error = error_of(method, {name: other_value(name)})
        assert error.message == f"--{name} has no meaning for {method}"
        having = [other for other in METHOD_GROUPS if name in field_names(other)]
        assert having
        assert error.hint == f"It belongs to: {', '.join(having)}."


def test_an_option_of_another_method_is_no_flag_and_no_key(capsys, tmp_path, trained):
    file = tmp_path / "run.toml"
    file.write_text("num_vectors = 2\n")
    assert run(flags("text_to_image", "--num_vectors", "2")) == 1
    said = capsys.readouterr().err
    assert "--num_vectors has no meaning for text_to_image" in said
    assert "textual_inversion, pivotal_tuning" in said
    assert run(flags("text_to_image", "--config", str(file))) == 1
    assert "unknown key 'num_vectors'" in capsys.readouterr().err
    assert trained == []
    assert run(flags("textual_inversion", "--config", str(file))) == 0
    assert trained[0].num_vectors == 2


@pytest.mark.parametrize("method", METHOD_GROUPS)
def test_only_a_methods_own_options_are_written_down(method):
    config = configure(method)
    secret = {"hub_token"}
    assert set(config.to_dict()) == {"method", *field_names(method)} - secret
    text = " ".join(describe(config))
    shown = {pair.partition("=")[0] for pair in text.split() if "=" in pair}
    assert shown == set(field_names(method)) - secret


def test_an_unknown_method_lists_the_known_ones():
    with pytest.raises(UserError, match="text2image") as caught:
        TrainConfig(method="text2image", pretrained_model_name_or_path="b", train_data_dir="p")
    assert all(method in caught.value.hint for method in METHOD_GROUPS)


def test_no_method_forgets_a_default_that_depends_on_the_method():
    names = {name for values in METHOD_DEFAULTS.values() for name in values}
    defaults = {item.name: item.default for item in fields(TrainConfig)}
    assert {defaults[name] for name in names} == {None}
    for method, values in METHOD_DEFAULTS.items():
        assert set(values) == names & set(field_names(method))


def test_the_learning_rates_are_those_that_the_help_names():
    rates = {method: values["learning_rate"] for method, values in METHOD_DEFAULTS.items()}
    assert rates.pop("textual_inversion") == 5e-4
    assert rates.pop("full") == 1e-5
    assert set(rates.values()) == {1e-4}


@pytest.mark.parametrize("method", METHOD_GROUPS)
def test_a_methods_defaults_hold(method, trained):
    defaults = METHOD_DEFAULTS[method]
    assert run(flags(method)) == 0
    for config in (configure(method), *trained):
        assert config.method == method
        assert {name: getattr(config, name) for name in defaults} == defaults
    assert configure(method).to_dict() == trained[0].to_dict()


@pytest.mark.parametrize("method", METHOD_GROUPS)
def test_a_methods_defaults_are_no_changes(method):
    named = {"pretrained_model_name_or_path", *REQUIRED[method]}
    assert set(configure(method).changed()) - {"method"} == named
    assert "learning_rate" in configure(method, learning_rate=0.25).changed()


@pytest.mark.parametrize("method", METHOD_GROUPS)
def test_what_is_given_comes_before_the_methods_defaults(method, trained, tmp_path):
    file = tmp_path / "run.toml"
    file.write_text("learning_rate = 0.25\ntrain_batch_size = 7\n")
    assert configure(method, learning_rate=0.25).learning_rate == 0.25
    assert run(flags(method, "--config", str(file), "--learning_rate", "0.125")) == 0
    assert (trained[0].learning_rate, trained[0].train_batch_size) == (0.125, 7)


@pytest.mark.parametrize("method", METHOD_GROUPS)
def test_help_shows_the_methods_defaults(method, capsys):
    with pytest.raises(SystemExit):
        run(["train", method, "--help"])
    words = " ".join(re.sub(r"[│╭╮╰╯─]", " ", capsys.readouterr().out).split())
    for name, value in METHOD_DEFAULTS[method].items():
        _, _, after = words.partition(f" --{name} {{None}}|")
        own, _, _ = after.partition(" --")
        (shown,) = re.findall(r"\(default: (\S+)\)", own)
        assert float(shown) == value, name


@pytest.mark.parametrize("name", ELSEWHERE)
def test_a_flag_that_needs_no_counterpart_is_said_and_left_out(name, trained, capsys):
    takes_value, reason = ELSEWHERE[name]
    spellings = [[f"--{name}", "500"], [f"--{name}=500"]] if takes_value else [[f"--{name}"]]
    spellings += [[word.replace("_", "-") for word in words] for words in spellings]
    for words in spellings:
        assert run(flags("dreambooth", *words, "--rank", "3")) == 0
        assert f"--{name} is not needed: {reason}" in capsys.readouterr().out
    assert len(trained) == len(spellings)
    # What stands behind it is neither swallowed nor read as something else.
    assert all(config == configure("dreambooth", rank=3) for config in trained)


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("form", ["--{}", "--{}=3"])
def test_a_flag_that_would_change_the_result_is_an_error(name, form, trained, capsys):
    assert run(flags("textual_inversion", form.format(name))) == 1
    assert f"--{name} is not available: {REFUSED[name]}" in capsys.readouterr().err
    assert trained == []
