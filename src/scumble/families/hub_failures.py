"""What went wrong with the Hub, as one line that says what to do."""

import errno
import os
import re

from scumble.errors import UserError, first_line

LOG_IN = "Log in with `hf auth login`, or put a token of huggingface.co into HF_TOKEN"

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG, errno.ENOTDIR)
"""Why a cache cannot be written."""


def explain(error: BaseException, repo_id: str, what: str = "") -> UserError:
    """The user's side of an exception of huggingface_hub.

    Args:
        error: of any kind.
        repo_id: that was asked for.
        what: the file or revision that was asked for, if any.
    """
    from huggingface_hub import errors

    wanted = f"{what} of '{repo_id}'" if what else f"'{repo_id}'"
    if is_offline(error):
        return UserError(
            f"{wanted} is not on this machine, and the Hub cannot be reached",
            "Check the network and HF_HUB_OFFLINE. What was fetched once is found without either.",
        )
    if isinstance(error, errors.GatedRepoError):
        hint = f"Ask for access at https://huggingface.co/{repo_id}. {LOG_IN}."
        return UserError(f"'{repo_id}' is gated: its owner decides who may read it", hint)
    if isinstance(error, errors.RepositoryNotFoundError):
        hint = f"Check the spelling. If it is private: {LOG_IN[0].lower()}{LOG_IN[1:]}."
        return UserError(f"there is no '{repo_id}' on the Hub, nor at this path", hint)
    if isinstance(error, errors.RevisionNotFoundError):
        hint = "Name a branch, tag or commit of it."
        return UserError(f"'{repo_id}' has no such revision{f': {what}' if what else ''}", hint)
    if isinstance(error, errors.EntryNotFoundError):
        return UserError(f"there is no {wanted}", "Look into its list of files on the Hub.")
    if isinstance(error, errors.HfHubHTTPError):
        return _refused(error.response.status_code, repo_id, first_line(error))
    if full := _no_room(error):
        from huggingface_hub import constants

        return UserError(
            f"cannot keep {wanted} in {constants.HF_HUB_CACHE}: {full}",
            "Make room there, or name another place with HF_HOME.",
        )
    return UserError(f"cannot get {wanted}: {first_line(error)}", "Try again.")


def is_offline(error: BaseException) -> bool:
    """Whether it means that the Hub cannot be reached, or is not to be."""
    from huggingface_hub import errors

    if isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
        return True
    names = {kind.__name__ for kind in type(error).__mro__}
    return isinstance(error, ConnectionError) or bool(names & {"TransportError", "NetworkError"})


def _refused(status: int, repo_id: str, reason: str) -> UserError:
    if status == 401:
        return UserError("the Hub does not know the token", f"{LOG_IN}.")
    if status == 403:
        return UserError(
            f"the token does not give access to '{repo_id}'",
            "To push, it must be of the kind that writes, and yours or your organisation's.",
        )
    return UserError(f"the Hub answers {status} for '{repo_id}': {reason}", "Try again later.")


def _no_room(error: BaseException | None) -> str:
    """What keeps a file from being written, in the system's words; empty if that is not it."""
    while error is not None:
        number = error.errno if isinstance(error, OSError) else None
        if number is None and (match := re.search(r"\(os error (\d+)\)", str(error))):
            number = int(match[1])  # as the part of the client says it that is written in Rust
        if number in NO_ROOM:
            return os.strerror(number)
        error = error.__cause__ or error.__context__
    return ""
