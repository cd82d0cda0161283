"""How every tool reads an adapter file, and what it says of files that are no adapters."""

from pathlib import Path
from typing import NamedTuple

from scumble.errors import UserError
from scumble.families import FAMILIES, Family
from scumble.formats.container import Content, read_content
from scumble.formats.files import adapter_file, adapter_in, format_of
from scumble.formats.origins import likely_origin
from scumble.formats.pickled import is_pickled
from scumble.formats.weights import AdapterWeights
from scumble.hub.pull import local_adapter

MODELS = {
    "model.diffusion_model.": "a whole base model in one file",
    "control_model.": "a ControlNet",
    "controlnet_cond_embedding.": "a ControlNet",
    "conv_norm_out.": "the denoiser of a base model",
    "text_model.embeddings.": "the text encoder of a base model",
    "embeddings.token_embedding.": "the text encoder of a base model",
    "encoder.mid_block.": "the VAE of a base model",
    "encoder.mid.": "the VAE of a base model",
    "first_stage_model.": "the VAE of a base model",
}
"""How keys begin in files of other kinds -> what those are. The first one found decides."""


class Opened(NamedTuple):
    """An adapter file that was read."""

    file: Path
    family: Family
    format: str
    content: Content
    """Keys, shapes and metadata as they are in the file; whether with numbers is left open."""
    weights: AdapterWeights


def open_adapter(
    path: str | Path, *, partial: bool = False, allow_pickle: bool = False, outline: bool = False
) -> Opened:
    """Read an adapter file of any format.

    Args:
        path: the file, the folder that a training run wrote, or a Hub id such as user/name.
        partial: read what can be placed, and list the rest in `left_out` of the weights.
        allow_pickle: read pickled files too; tensors alone are taken from them.
        outline: leave the numbers unread.

    Raises:
        UserError: it cannot be read, or is a model and no adapter.
    """
    family = next(iter(FAMILIES.values()))
    file = adapter_file(local_adapter(path), allow_pickle=allow_pickle)
    # Of safetensors a first look is cheap, even where the file is a whole model.
    looks_first = outline or not is_pickled(file)
    content = read_content(file, outline=looks_first, allow_pickle=allow_pickle)
    _refuse_models(file, content)
    whole = read_content(file) if looks_first and not outline else content
    try:
        weights = adapter_in(whole, file, family.key_names, partial=partial)
    except UserError as error:
        raise _with_origin(error, content) from error
    return Opened(file, family, format_of(content, family.key_names), content, weights)


def _refuse_models(file: Path, content: Content) -> None:
    for start, kind in MODELS.items():
        if any(key.startswith(start) for key in content.tensors):
            raise UserError(
                f"{file} is {kind}, not an adapter",
                f"scumble generate --pretrained_model_name_or_path {file} draws with it."
                if kind.startswith("a whole")
                else "Adapters lie in files or folders of their own.",
            )


def _with_origin(error: UserError, content: Content) -> UserError:
    """An error with what the file looks like, where it does not say so itself."""
    origin = next((what for key in content.tensors if (what := likely_origin(key))), "")
    if not origin or origin in error.message:
        return error
    return UserError(f"{error.message}: it looks like {origin}", error.hint)
