"""What goes between the server and its handlers: requests, answers, refusals, and who asks."""

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Account:
    """Who a token stands for. Role "read" may not write."""

    name: str
    role: str


ACCOUNTS = {
    "hf_alice_writes": Account("alice", "write"),
    "hf_alice_reads": Account("alice", "read"),
    "hf_bob_writes": Account("bob", "write"),
}


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: bytes
    account: Account | None

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Answer:
    """A status, headers, and a body that is bytes or a file."""

    status: int = 200
    body: bytes | Path = b""
    headers: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, content: Any, status: int = 200, **headers: str) -> "Answer":
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        named.setdefault("Content-Type", "application/json")
        return cls(status, json.dumps(content).encode(), named)


class RefusedError(Exception):
    """What the Hub says no with; clients read the code from a header."""

    def __init__(self, status: int, message: str, code: str = "", **headers: str) -> None:
        super().__init__(message)
        named = {"X_Error_Message": message, **({"X_Error_Code": code} if code else {}), **headers}
        self.answer = Answer.of({"error": message}, status, **named)


def account_of(authorization: str) -> Account | None:
    """The account behind a header, of a Hub client or of git; None for nobody.

    Raises:
        RefusedError: there is no such token.
    """
    kind, _, value = authorization.partition(" ")
    if not value:
        return None
    token = base64.b64decode(value).decode().partition(":")[2] if kind == "Basic" else value
    if token not in ACCOUNTS:
        raise RefusedError(401, "Invalid credentials in Authorization header")
    return ACCOUNTS[token]


def require_writer(account: Account | None, namespace: str) -> None:
    """Refuse whoever may not write into a namespace.

    Raises:
        RefusedError: 401 for nobody, 403 for the wrong one.
    """
    if account is None:
        raise RefusedError(401, "Invalid username or password.")
    if account.role != "write" or account.name != namespace:
        raise RefusedError(
            403, f"You don't have the rights to write under the namespace {namespace}"
        )
