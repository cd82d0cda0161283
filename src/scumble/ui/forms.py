"""Widgets made from the fields of the configuration, and settings made from the widgets."""

import ast
import inspect
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from functools import cache
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from scumble.config import METHOD_GROUPS, TrainConfig
from scumble.config.method_groups import METHOD_DEFAULTS
from scumble.config.train import field_names
from scumble.errors import UserError
from scumble.ui.folders import Folders

BASIC = (
    "pretrained_model_name_or_path",
    "placeholder_token",
    "initializer_token",
    "instance_prompt",
    "max_train_steps",
    "num_train_epochs",
    "learning_rate",
    "rank",
    "train_batch_size",
    "resolution",
    "validation_prompt",
    "validation_steps",
)
"""Fields that are seen at once, in this order; the others are one click away."""

CHOSEN_BY_THE_PAGE = (
    "train_data_dir",
    "instance_data_dir",
    "output_dir",
    "logging_dir",
    "cache_dir",
    "latent_cache_dir",
    "resume_from_checkpoint",
    "local_rank",
    "push_to_hub",
    "hub_model_id",
    "hub_private",
    "hub_token",
)
"""Fields without a widget: where things are, and what buttons do."""

FOLDERS = ("class_data_dir", "validation_data_dir")
MODELS = ("pretrained_model_name_or_path", "dataset_name")

LABELS = {
    "pretrained_model_name_or_path": "Base model",
    "placeholder_token": "New word",
    "initializer_token": "Word to start from",
    "instance_prompt": "Caption for pictures without one",
    "max_train_steps": "Steps",
    "num_train_epochs": "Epochs, if no steps are given",
    "train_batch_size": "Pictures per step",
    "validation_prompt": "Prompt of the samples",
    "validation_steps": "Draw samples every so many steps",
}
"""Names of fields in words, where they are not the flag's own."""


@dataclass(frozen=True)
class Entry:
    """A field as the form shows it.

    Args:
        name: of the flag.
        group: heading that it stands under.
        hint: its type.
        default: of the class; None where the method has its own.
        help: its documentation.
    """

    name: str
    group: str
    hint: Any
    default: Any
    help: str

    @property
    def label(self) -> str:
        """Its name in words."""
        return LABELS.get(self.name, self.name.replace("_", " ").capitalize())

    @property
    def kind(self) -> type:
        """bool, int, float, str or tuple, whether or not it may be left open."""
        inner = next(arg for arg in _alternatives(self.hint) if arg is not type(None))
        if get_origin(inner) is Literal:
            return str
        kind: type = get_origin(inner) or inner
        return kind

    @property
    def may_be_open(self) -> bool:
        """Whether no value is a value."""
        return type(None) in _alternatives(self.hint)

    @property
    def choices(self) -> tuple[str, ...]:
        """The only values there are, if there are only some."""
        if self.name == "adapter_type":
            return _adapter_types()
        literals = [arg for arg in _alternatives(self.hint) if get_origin(arg) is Literal]
        return get_args(literals[0]) if literals else ()


@cache
def entries() -> dict[str, Entry]:
    """Every field that has a widget, of any method, the basic ones first."""
    groups = dict.fromkeys(group for groups in METHOD_GROUPS.values() for group in groups)
    found = {
        item.name: Entry(
            item.name,
            (group.__doc__ or "").strip(),
            get_type_hints(group)[item.name],
            None if item.default is MISSING else item.default,
            _help_texts(group)[item.name],
        )
        for group in groups
        for item in fields(group)
        if item.name not in CHOSEN_BY_THE_PAGE
    }
    basic = {name: found.pop(name) for name in BASIC}
    return basic | found


def widget(entry: Entry, method: str) -> Any:
    """A Gradio component for a field, with what it starts from in a method."""
    import gradio

    shown = {
        "label": entry.label,
        "info": in_words(entry.help),
        "value": start_value(entry, method),
        "visible": entry.name in field_names(method),
        "elem_id": f"field-{entry.name}",
        "interactive": True,
    }
    if entry.kind is bool:
        return gradio.Checkbox(**shown)
    if entry.choices:
        open_choice = [("automatic", "")] if entry.may_be_open else []
        choices = [*open_choice, *((choice, choice) for choice in entry.choices)]
        return gradio.Dropdown(choices=choices, filterable=False, **shown)
    if entry.kind in (int, float):
        # Not gradio.Number: that cannot be left empty, and knows no 1e-4.
        return gradio.Textbox(max_lines=1, placeholder="automatic", **shown)
    return gradio.Textbox(max_lines=3, **shown)


def start_value(entry: Entry, method: str) -> Any:
    """What a widget shows before anybody has touched it."""
    value = METHOD_DEFAULTS[method].get(entry.name, entry.default)
    if entry.kind is tuple:
        return " ".join(value)
    if entry.kind is bool:
        return value
    return f"{value:g}" if isinstance(value, float) else str("" if value is None else value)


def train_config(
    method: str,
    values: Mapping[str, Any],
    folders: Folders,
    *,
    pictures: str | None,
    output_dir: str,
) -> TrainConfig:
    """The configuration that a filled form means.

    Args:
        method: of the training.
        values: what the widgets hold, by field name; those of other methods are left out.
        folders: that paths must be in.
        pictures: the folder of them; None where a data set is named.
        output_dir: of the run.

    Raises:
        UserError: a value that cannot be meant, named as the form names it.
    """
    own = field_names(method)
    settings: dict[str, Any] = {"output_dir": output_dir}
    if pictures is not None:
        settings[picture_field(method)] = pictures
    try:
        for name, entry in entries().items():
            if name in own:
                value = _setting(entry, values.get(name))
                settings[name] = _checked_place(name, value, folders)
        return TrainConfig(method=method, **settings)
    except UserError as error:
        raise FormError(error) from error


class FormError(UserError):
    """A value in the form that cannot be meant, in the form's words.

    Args:
        error: the same in the words of the command line.
    """

    def __init__(self, error: UserError) -> None:
        super().__init__(in_words(error.message), in_words(error.hint))
        self.fields = [n for n in re.findall(r"--(\w+)", str(error)) if n in entries()]


def picture_field(method: str) -> str:
    """The field that names the folder of pictures."""
    own = field_names(method)
    return "instance_data_dir" if "instance_data_dir" in own else "train_data_dir"


def in_words(text: str) -> str:
    """A text about flags in the words of the form."""

    def label(found: re.Match[str]) -> str:
        name = found[2]
        if name in ("train_data_dir", "instance_data_dir"):
            return "Pictures"
        is_name = name in entries() and (found[1] or "_" in name)
        return f"\u201c{entries()[name].label}\u201d" if is_name else found[0]

    return re.sub(r"(--)?\b([a-z]\w+)", label, text)


def _setting(entry: Entry, value: Any) -> Any:
    """A widget's value as the field's."""
    if isinstance(value, str):
        value = value.strip()
    if entry.kind is tuple:
        return tuple(str(value or "").split())
    if value is None or value == "":
        if entry.may_be_open:
            return None
        if entry.default is None:
            raise UserError(f"--{entry.name} is empty", "It must be given.")
        return entry.default
    try:
        return entry.kind(value)
    except (TypeError, ValueError, OverflowError):
        word = "whole" if entry.kind is int else "decimal"
        raise UserError(f"--{entry.name} must be a {word} number, not {value!r}") from None


def _checked_place(name: str, value: Any, folders: Folders) -> Any:
    if value is not None and name in FOLDERS:
        return str(folders.inside(value))
    if value is not None and name in MODELS:
        return folders.model(value)
    return value


def _alternatives(hint: Any) -> Sequence[Any]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _adapter_types() -> tuple[str, ...]:
    from scumble.adapters import ADAPTERS

    return tuple(name for name, kind in ADAPTERS.items() if kind.is_trainable)


@cache
def _help_texts(group: type) -> dict[str, str]:
    """The strings below the fields of a class, each as one line."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(group))).body
    assert isinstance(tree, ast.ClassDef)
    texts = {}
    for item, below in zip(tree.body, tree.body[1:], strict=False):
        match item, below:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(text))),
            ):
                texts[name] = in_one_line(text)
    return texts


def in_one_line(text: str) -> str:
    """A text without its line breaks."""
    return " ".join(text.split())
