"""Adapters of the Hub as files of this machine: an id is found, fetched once, and then cached."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from scumble import console
from scumble.errors import UserError
from scumble.families.hub_failures import explain, is_offline
from scumble.formats.container import user_path
from scumble.formats.files import FILE_NAMES, PICKLED, PICKLED_NAMES

BESIDE = ("README.md", "adapter_config.json")
"""What is fetched with an adapter: its card names the base, PEFT's settings complete its file."""

HUB_NAME = re.compile(
    r"(?P<repo_id>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>[\w./-]+))?(:(?P<file>[^:]+))?"
)


class HubName(NamedTuple):
    """What an id names: user/name, user/name@revision, or either with :file behind it."""

    repo_id: str
    revision: str | None
    file: str | None


def hub_name(source: str | Path) -> HubName | None:
    """Take an id apart; None for what is a path of this machine, or looks like one."""
    match = HUB_NAME.fullmatch(source) if isinstance(source, str) else None
    if match is None or match["repo_id"].endswith((".safetensors", *PICKLED)):
        return None
    if user_path(source).exists():
        return None
    return HubName(match["repo_id"], match["revision"], match["file"])


def local_adapter(
    source: str | Path,
    *,
    weight_name: str | None = None,
    revision: str | None = None,
    token: str | None = None,
) -> Path:
    """Find an adapter: what is at a path, or what the Hub has by that name, fetched once.

    Without a network, or with HF_HUB_OFFLINE, what was fetched before is used.

    Args:
        source: a file or folder, which comes first; else a Hub id such as user/name, with
            @revision and :file behind it where they are not given apart.
        weight_name: the file to take of several.
        revision: branch, tag or commit on the Hub.
        token: of the Hub; the login's or the environment's if not given.

    Returns:
        A path that exists, or a path of this machine for the reader to refuse.

    Raises:
        UserError: the Hub does not have it, or does not give it, or it has several files.
    """
    name = hub_name(source)
    if name is None:
        path = user_path(source)
        return path / weight_name if weight_name and path.is_dir() else path
    wanted = HubName(name.repo_id, revision or name.revision, weight_name or name.file)
    for part in (wanted.revision, wanted.file):
        if part is not None and {"..", ""} & set(re.split(r"[/\\]", part)):
            raise UserError(f"'{part}' leads out of '{name.repo_id}'", "Name a file in it.")
    try:
        return _fetch(wanted, token)
    except UserError:
        raise
    except Exception as error:
        if is_offline(error) and (kept := _cached(wanted)) is not None:
            console.say(f"the Hub is out of reach: {name.repo_id} comes from this machine's cache")
            return kept
        from huggingface_hub.errors import RevisionNotFoundError

        what = wanted.revision if isinstance(error, RevisionNotFoundError) else wanted.file
        raise explain(error, name.repo_id, what or "") from error


def _fetch(wanted: HubName, token: str | None) -> Path:
    from huggingface_hub import HfApi, hf_hub_download

    info = HfApi(token=token).model_info(wanted.repo_id, revision=wanted.revision)
    names = [item.rfilename for item in info.siblings or []]
    chosen = wanted.file or choose(names, wanted.repo_id)
    for name in (*(name for name in BESIDE if name in names), chosen):
        path = hf_hub_download(wanted.repo_id, name, revision=wanted.revision, token=token)
    return Path(path)


def _cached(wanted: HubName) -> Path | None:
    """The same from what was fetched before; None if that is not there."""
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.file_download import repo_folder_name

    kept = Path(HF_HUB_CACHE) / repo_folder_name(repo_id=wanted.repo_id, repo_type="model")
    revision = wanted.revision or "main"
    try:
        commit = (kept / "refs" / revision).read_text("utf-8").strip()
    except OSError:
        commit = revision
    folder = kept / "snapshots" / commit
    if not folder.is_dir():
        return None
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    if wanted.file is None and not any(name.endswith((".safetensors", *PICKLED)) for name in names):
        return None
    path = folder / (wanted.file or choose(names, wanted.repo_id))
    return path if path.is_file() else None


def choose(names: Sequence[str], repo_id: str) -> str:
    """The adapter's file among those of a repository: the fullest known one, or the only one.

    Raises:
        UserError: there is none, or there are several.
    """
    if "model_index.json" in names:
        hint = f"Draw with it: --pretrained_model_name_or_path {repo_id}"
        raise UserError(f"'{repo_id}' is a whole model, not an adapter", hint)
    for known, suffixes in ((FILE_NAMES, (".safetensors",)), (PICKLED_NAMES, PICKLED)):
        found = [name for name in known if name in names]
        others = [name for name in names if name.endswith(suffixes) and "/" not in name]
        if found or len(others) == 1:
            return (found or others)[0]
        if others:
            shown = ", ".join(sorted(others)[:8]) + (", ..." if len(others) > 8 else "")
            hint = f"Name one: {repo_id}:{sorted(others)[0]}"
            raise UserError(f"'{repo_id}' has several files that may be meant: {shown}", hint)
    raise UserError(f"'{repo_id}' has no adapter file", f"It has: {', '.join(names) or 'nothing'}.")
