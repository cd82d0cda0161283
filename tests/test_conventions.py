"""What every file of the package promises its readers and users, each as a test."""

import ast
import inspect
import re
from collections.abc import Iterator
from dataclasses import fields
from types import FunctionType

import pytest

import scumble
from scumble.cli.train import ELSEWHERE, REFUSED
from scumble.config import METHOD_GROUPS, GenerateConfig, TrainConfig
from scumble.config.merging import BaseFields, ExtractFields, MergeFields, ResizeFields
from scumble.config.reproduce import ReproduceFields
from scumble.config.runs import RunsFields
from scumble.config.sharing import PushFields
from scumble.config.space import SpaceFields
from scumble.config.tools import ConvertFields, DiffFields, InspectFields, ReadFields, WriteFields
from scumble.config.train import field_names
from scumble.config.ui import UiConfig
from source_tree import Module, calls, modules, repository_files, text_of

DIFFUSERS_FLAGS = {
    "text_to_image": """
        --pretrained_model_name_or_path --revision --variant --dataset_name --dataset_config_name
        --train_data_dir --image_column --caption_column --validation_prompt --num_validation_images
        --validation_epochs --max_train_samples --output_dir --cache_dir --seed --resolution
        --center_crop --random_flip --train_batch_size --num_train_epochs --max_train_steps
        --gradient_accumulation_steps --gradient_checkpointing --learning_rate --scale_lr
        --lr_scheduler --lr_warmup_steps --snr_gamma --use_8bit_adam --allow_tf32
        --dataloader_num_workers --adam_beta1 --adam_beta2 --adam_weight_decay --adam_epsilon
        --max_grad_norm --push_to_hub --hub_token --prediction_type --hub_model_id --logging_dir
        --mixed_precision --report_to --local_rank --checkpointing_steps --checkpoints_total_limit
        --resume_from_checkpoint --enable_xformers_memory_efficient_attention --noise_offset --rank
        --image_interpolation_mode
    """,
    "dreambooth": """
        --pretrained_model_name_or_path --revision --variant --tokenizer_name --instance_data_dir
        --class_data_dir --instance_prompt --class_prompt --validation_prompt
        --num_validation_images --validation_epochs --with_prior_preservation --prior_loss_weight
        --num_class_images --output_dir --seed --resolution --center_crop --train_text_encoder
        --train_batch_size --sample_batch_size --num_train_epochs --max_train_steps
        --checkpointing_steps --checkpoints_total_limit --resume_from_checkpoint
        --gradient_accumulation_steps --gradient_checkpointing --learning_rate --scale_lr
        --lr_scheduler --lr_warmup_steps --lr_num_cycles --lr_power --dataloader_num_workers
        --use_8bit_adam --adam_beta1 --adam_beta2 --adam_weight_decay --adam_epsilon --max_grad_norm
        --push_to_hub --hub_token --hub_model_id --logging_dir --allow_tf32 --report_to
        --mixed_precision --prior_generation_precision --local_rank
        --enable_xformers_memory_efficient_attention --pre_compute_text_embeddings
        --tokenizer_max_length --text_encoder_use_attention_mask --validation_images
        --class_labels_conditioning --rank --lora_dropout --image_interpolation_mode
    """,
    "textual_inversion": """
        --save_steps --save_as_full_pipeline --num_vectors --pretrained_model_name_or_path
        --revision --variant --tokenizer_name --train_data_dir --placeholder_token
        --initializer_token --learnable_property --repeats --output_dir --seed --resolution
        --center_crop --train_batch_size --num_train_epochs --max_train_steps
        --gradient_accumulation_steps --gradient_checkpointing --learning_rate --scale_lr
        --lr_scheduler --lr_warmup_steps --lr_num_cycles --dataloader_num_workers --adam_beta1
        --adam_beta2 --adam_weight_decay --adam_epsilon --push_to_hub --hub_token --hub_model_id
        --logging_dir --mixed_precision --allow_tf32 --report_to --validation_prompt
        --num_validation_images --validation_steps --validation_epochs --local_rank
        --checkpointing_steps --checkpoints_total_limit --resume_from_checkpoint
        --enable_xformers_memory_efficient_attention --no_safe_serialization
    """,
}
"""Method -> every flag of diffusers' script of its kind: train_text_to_image_lora.py,
train_dreambooth_lora.py and textual_inversion.py."""

MACHINE_PATH = re.compile(
    r"(?<![\w.\\])(?:/(?:home|Users|root|work|mnt)/\w|[A-Z]:\\{1,2}Users\\)[^\s\"']*"
)


def undocumented(node: ast.Module | ast.ClassDef, inside: str) -> Iterator[str]:
    """Public functions, classes and methods that lack a docstring."""
    for child in node.body:
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        name = f"{inside}.{child.name}"
        if child.name.startswith("_"):
            continue
        if not ast.get_docstring(child):
            yield name
        if isinstance(child, ast.ClassDef):
            yield from undocumented(child, name)


@pytest.mark.parametrize("m", modules(), ids=lambda m: m.name)
def test_everything_public_has_a_docstring(m: Module) -> None:
    if m.text:
        assert ast.get_docstring(m.tree), f"{m.name} does not say what it is"
    assert list(undocumented(m.tree, m.name)) == []


@pytest.mark.parametrize("name", scumble.__all__)
def test_the_public_names_are_documented_in_full(name: str) -> None:
    thing = getattr(scumble, name)
    text = thing.__doc__ or ""
    assert len(text.splitlines()[0]) > 20, f"scumble.{name} does not say what it is for"
    if isinstance(thing, FunctionType):
        parameters = inspect.signature(thing).parameters
        missing = [p for p in parameters if not re.search(rf"^\s+\**{p}: ", text, re.M)]
        # One pipeline and nothing else needs no list of arguments.
        assert not missing or list(parameters) == ["pipeline"], f"{name}: {missing}"


def test_the_public_names_are_those_that_dir_shows() -> None:
    assert sorted(scumble.__all__) == scumble.__all__
    assert set(dir(scumble)) == {*scumble.__all__, "__version__"}
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = scumble.nothing


@pytest.mark.parametrize("m", modules(), ids=lambda m: m.name)
def test_nothing_unsafe_or_noisy(m: Module) -> None:
    for name, call in calls(m.tree):
        assert name != "print", f"{m.name}:{call.lineno} prints; console.say is for that"
        assert name not in ("eval", "exec", "pickle.load", "pickle.loads")
        if name == "torch.load":
            options = {word.arg: ast.unparse(word.value) for word in call.keywords}
            assert options.get("weights_only") == "True", f"{m.name}:{call.lineno}"


def test_no_file_holds_a_path_of_some_machine() -> None:
    found = {}
    for path in repository_files():
        if match := MACHINE_PATH.search(text_of(path) or ""):
            found[str(path)] = match[0]
    assert found == {}


@pytest.mark.parametrize("text", ["see /" + "home/ann/x", "C:" + r"\Users\ann", '"/' + 'root/x"'])
def test_a_machine_path_would_be_found(text: str) -> None:
    assert MACHINE_PATH.search(text)


def documented_fields(m: Module) -> Iterator[tuple[str, str, str | None]]:
    """(class, field, the string right below it) of every dataclass in a file."""
    for node in m.tree.body:
        if not isinstance(node, ast.ClassDef) or "dataclass" not in ast.unparse(node):
            continue
        for item, below in zip(node.body, [*node.body[1:], None], strict=True):
            if isinstance(item, ast.AnnAssign):
                has_text = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
                yield node.name, ast.unparse(item.target), below.value.value if has_text else None


def test_every_option_is_explained() -> None:
    explained = {}
    for m in modules():
        if m.name.startswith("config/"):
            for owner, name, text in documented_fields(m):
                explained[owner, name] = text
    groups = {group for groups in METHOD_GROUPS.values() for group in groups}
    verbs = (PushFields, ConvertFields, DiffFields, InspectFields, ReadFields, WriteFields)
    merging = (BaseFields, ExtractFields, MergeFields, ResizeFields)
    pages = (RunsFields, SpaceFields, UiConfig)
    for config in (*groups, *verbs, *merging, *pages, ReproduceFields, GenerateConfig):
        for item in fields(config):
            owners = (cls.__name__ for cls in config.__mro__)
            text = next(explained[o, item.name] for o in owners if (o, item.name) in explained)
            assert text, f"{config.__name__}.{item.name} has no docstring"
            assert text.rstrip().endswith("."), f"{config.__name__}.{item.name}: a whole sentence"


def test_every_option_of_a_run_has_a_group_in_the_help() -> None:
    names = {name for method in METHOD_GROUPS for name in field_names(method)}
    assert {item.name for item in fields(TrainConfig)} == {*names, "method"}


@pytest.mark.parametrize("method", METHOD_GROUPS)
def test_no_option_stands_in_two_groups_of_the_help(method: str) -> None:
    assert len(field_names(method)) == len(set(field_names(method)))


def script_flags(method: str) -> set[str]:
    return {flag.removeprefix("--") for flag in DIFFUSERS_FLAGS[method].split()}


@pytest.mark.parametrize("method", DIFFUSERS_FLAGS)
def test_the_flags_of_diffusers_script_are_all_there_or_said(method: str) -> None:
    said = ELSEWHERE.keys() | REFUSED.keys()
    assert script_flags(method) - set(field_names(method)) - said == set()


def test_the_script_of_the_2023_article_lacks_no_flag() -> None:
    assert script_flags("text_to_image") - set(field_names("text_to_image")) == set()


def test_only_flags_that_diffusers_has_and_we_have_not_are_left_out_or_refused() -> None:
    theirs = set().union(*(script_flags(method) for method in DIFFUSERS_FLAGS))
    ours = {item.name for item in fields(TrainConfig)}
    assert (ELSEWHERE.keys() | REFUSED.keys()) - theirs == set()
    assert (ELSEWHERE.keys() | REFUSED.keys()) & ours == set()
    assert ELSEWHERE.keys() & REFUSED.keys() == set()
