"""Results on the Hub: who may push where, what has changed, and whether it arrived whole."""

import re
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scumble import console
from scumble.errors import UserError, first_line
from scumble.families.hub_failures import LOG_IN, explain, is_offline
from scumble.hub.parcel import Item, pack

if TYPE_CHECKING:
    from huggingface_hub import HfApi


def push_folder(
    folder: str | Path,
    repo_id: str | None = None,
    *,
    private: bool = False,
    token: str | None = None,
    message: str = "Push with scumble",
) -> str:
    """Push a folder's adapters, card, sample pictures and settings; checkpoints and logs stay.

    May be repeated at any time: what the repository has already is not sent again, and what
    arrived before a connection broke counts.

    Args:
        folder: the output folder of a training run, or another with adapter files in it.
        repo_id: user/name, or a name below one's own; the folder's name if not given.
        private: make the repository visible to its owner alone.
        token: of the Hub; the login's or the environment's if not given.
        message: for the repository's history.

    Returns:
        The repository's address.

    Raises:
        UserError: nothing to push, no right to, or the Hub is out of reach; nothing here changes.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.utils.tqdm import disable_progress_bars

    folder = Path(folder)
    name = repo_id or default_name(folder)
    target = check_access(name, token)
    if target is None:
        raise UserError(
            "the Hub cannot be reached: nothing was pushed",
            f"Check the network and HF_HUB_OFFLINE, then: {command(folder, name, private)}",
        )
    items, left = pack(folder, target)
    if left:
        console.say(f"not pushed, as it is of use here alone: {', '.join(left)}")
    api = HfApi(token=token)
    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        url = str(api.create_repo(target, private=private, exist_ok=True))
        return _send(api, target, url, items, private=private, message=message)
    except UserError:
        raise
    except Exception as error:
        raise _broken(error, target, command(folder, target, private)) from error


def check_access(repo_id: str, token: str | None = None) -> str | None:
    """Ask the Hub whether one may push somewhere, before anything is done for it.

    Args:
        repo_id: user/name, or a name below one's own.
        token: of the Hub; the login's or the environment's if not given.

    Returns:
        The repository's whole name; None where the Hub cannot be reached now.

    Raises:
        UserError: no repository can be called so, nobody is logged in, or the token is unknown, may
            only read, or belongs to somebody else.
    """
    from huggingface_hub import HfApi, errors
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(repo_id)
        who = HfApi(token=token).whoami()
    except errors.HFValidationError as error:
        hint = "Letters, digits, - _ and . may be in it: user/name."
        raise UserError(f"no repository can be called '{repo_id}'", hint) from error
    except errors.LocalTokenNotFoundError as error:
        raise UserError("nobody is logged in to the Hub", f"{LOG_IN}.") from error
    except Exception as error:
        if is_offline(error):
            return None
        raise explain(error, repo_id) from error
    return _target(repo_id, who)


def default_name(folder: Path) -> str:
    """What a repository is called after its folder."""
    name = re.sub(r"[^\w.-]+|--+|\.\.+", "-", folder.resolve().name, flags=re.ASCII).strip("-.")
    return name or "adapter"


def command(folder: Path, repo_id: str, private: bool) -> str:
    """What does the same push on the command line."""
    words = ["scumble", "push", str(folder), repo_id, *["--private"] * private]
    return shlex.join(words)


def _target(repo_id: str, who: Mapping[str, Any]) -> str:
    owner, _, name = repo_id.rpartition("/")
    owner = owner or who["name"]
    role = who.get("auth", {}).get("accessToken", {}).get("role")
    if role == "read":
        hint = "Make one that writes at https://huggingface.co/settings/tokens."
        raise UserError("the token of the Hub may only read", hint)
    own = [who["name"], *(org["name"] for org in who.get("orgs", []))]
    if owner not in own:
        hint = f"Yours are: {', '.join(f'{place}/{name}' for place in own)}."
        raise UserError(f"the token may not push to '{owner}/{name}'", hint)
    return f"{owner}/{name}"


def _send(
    api: "HfApi", target: str, url: str, items: Mapping[str, Item], *, private: bool, message: str
) -> str:
    """Send what differs, then compare everything."""
    from huggingface_hub import CommitOperationAdd

    if private and not api.model_info(target).private:
        hint = "Make it private in its settings first, or push to another one."
        raise UserError(f"'{target}' is public already: nothing was pushed", hint)
    changed = _differing(api, target, items, "main")
    if not changed:
        console.say(f"{url} has all of it already")
        return url
    added = [
        CommitOperationAdd(
            name, content if isinstance(content := items[name].content, bytes) else str(content)
        )
        for name in changed
    ]
    made = api.create_commit(target, added, commit_message=message)
    if lost := _differing(api, target, items, made.oid):
        raise UserError(
            f"{', '.join(lost)} did not arrive whole at {url}", "Push again: the rest is there."
        )
    size = sum(items[name].size for name in changed)
    same = len(items) - len(changed)
    kept = f", {same} had not changed" if same else ""
    files = "1 file" if len(changed) == 1 else f"{len(changed)} files"
    console.say(f"pushed to {url}: {files}, {size / 1e6:.2f} MB{kept}")
    return url


def _differing(api: "HfApi", target: str, items: Mapping[str, Item], revision: str) -> list[str]:
    """The files that the repository lacks, or has otherwise."""
    from huggingface_hub.hf_api import RepoFile

    there = {}
    for entry in api.get_paths_info(target, list(items), revision=revision):
        if isinstance(entry, RepoFile):
            there[entry.path] = entry.lfs.sha256 if entry.lfs else entry.blob_id
    return [
        name for name, item in items.items() if there.get(name) not in (item.sha256(), item.blob())
    ]


def _broken(error: Exception, target: str, command: str) -> UserError:
    """Why a push failed, and how to go on with it."""
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(error, HfHubHTTPError) and not is_offline(error):
        known = explain(error, target)
        reason, hint = known.message, known.hint
    else:
        reason, hint = f"the upload to '{target}' broke off: {first_line(error)}", ""
    again = f"What arrived is kept. Go on with: {command}"
    return UserError(reason, f"{hint}\n  {again}" if hint else again)
