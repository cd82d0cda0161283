"""Secrets are hidden from whatever is said or written: tokens, keys, passwords in addresses."""

import os
import re
from collections.abc import Iterable

HIDDEN = "***"
SHORTEST = 8
"""A shorter word is no secret: hiding it would spoil ordinary text."""

PATTERNS = (
    r"\b(?:hf_(?:oauth_|jwt_)?|api_org_)(?=[\w.=-]*\d|[A-Za-z]{24})[\w.=-]{24,}",
    r"\bwandb_v\d_\w{16,}",
    # Addresses with a user or password in front of the machine's name, or a signature behind it.
    r"(?<=://)[^/\s@\"'<>]+(?=@)",
    r"(?i)(?<=[?&])(?:[\w-]*token|api_?key|[\w-]*signature|sig|password|secret)="
    r"(?P<value>[^&\s\"'<>]+)",
    r"(?i)\b(?:proxy-)?authorization[\"']?\s*[:=]\s*[\"']?(?:\w+ )?(?P<value>[^\s\"',]+)",
    r"(?i)\bbearer (?P<value>(?=\S*[\d_])[\w.~+/=-]{8,})",
    r"(?i)\b(?:hub[_-]token|api[_-]key|access[_-]token|password)[\"']?\s*[:=]\s*[\"']?"
    r"(?P<value>[^\s\"',}&]{8,})",
)
"""What is a secret by its looks: the group `value`, or all of it."""
_LOOKS = [re.compile(pattern) for pattern in PATTERNS]

_ENVIRONMENT = re.compile(
    r"(?i).*_TOKEN|.*_API_KEY|.*_PASSWORD|.*_SECRET|.*_SECRET_(?:ACCESS_)?KEY|SCUMBLE_UI_AUTH"
)
"""Names of environment variables that hold secrets."""

_given: set[str] = set()


def keep_secret(value: object) -> None:
    """Hide a value from now on, whatever it looks like.

    Args:
        value: a token, a password, user:password, or several; None is nothing.
    """
    for one in value if isinstance(value, list | tuple) else (value,):
        if one is not None:
            _given.update(_parts(str(one)))


def keep_secrets_of(words: Iterable[str], names: Iterable[str]) -> None:
    """Hide what a command line gives for some flags, be it right or not.

    Args:
        words: of the command line.
        names: of the flags, without dashes in front.
    """
    wanted, follows = set(names), False
    for word in words:
        flag, equals, value = word.partition("=")
        if follows or (flag.startswith("--") and flag[2:].replace("-", "_") in wanted and equals):
            keep_secret(word if follows else value)
        follows = word.startswith("--") and word[2:].replace("-", "_") in wanted


def redacted(text: str) -> str:
    """A text with `***` in the place of every secret: those given, and what looks like one."""
    for secret in sorted(_given | _of_environment(), key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    for pattern in _LOOKS:
        text = pattern.sub(_without_value, text)
    return text


def _without_value(found: re.Match[str]) -> str:
    if "value" not in found.re.groupindex:
        return HIDDEN
    start, end = (place - found.start() for place in found.span("value"))
    return f"{found[0][:start]}{HIDDEN}{found[0][end:]}"


def _of_environment() -> set[str]:
    named = (value for name, value in os.environ.items() if _ENVIRONMENT.fullmatch(name))
    return {part for value in named for part in _parts(value)}


def _parts(value: str) -> set[str]:
    """A secret as a whole, and its password alone; not the path of a file that holds one."""
    value = value.strip()
    parts = {value, value.partition(":")[2]}
    return {part for part in parts if len(part) >= SHORTEST and not part.startswith(("/", "//"))}
