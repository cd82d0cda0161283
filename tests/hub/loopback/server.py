"""The Hub itself: what it has, who may see it, and who answers a request."""

import hashlib
import re
import secrets
import subprocess
import threading
import time
from pathlib import Path

from loopback.exchange import Account, Answer, RefusedError, Request, require_writer
from loopback.http import Server
from loopback.repository import ENVIRONMENT, Repository
from loopback.routes import find
from loopback.xet import Store

GIT = re.compile(r"/(?P<name>[^/]+/[^/]+?)(\.git)?/(info/refs|git-upload-pack)")


class Hub:
    """Everything the Hub knows. `cuts` is how many uploads of large files break off."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.repositories: dict[str, Repository] = {}
        self.requests: list[str] = []
        self.unknown: list[str] = []
        self.cuts = 0
        self.xet_tokens = {kind: secrets.token_hex(8) for kind in ("read", "write")}
        self.server = Server(self)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.cas_url = f"{self.url}/cas"
        self.store = Store(folder / "cas", self.cas_url)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def add(self, name: str, *, private: bool = False) -> Repository:
        self.repositories[name] = Repository(self.folder / name, private)
        return self.repositories[name]

    def readable(self, name: str, account: Account | None, *, contents: bool = True) -> Repository:
        """A repository that somebody may see, and read unless only its `contents` are gated.

        Raises:
            RefusedError: 401 or 404 as if it did not exist; 403 where it is gated.
        """
        repository = self.repositories.get(name)
        is_owner = account is not None and account.name == name.partition("/")[0]
        if repository is None or (repository.private and not is_owner):
            raise RefusedError(404 if account else 401, "Repository not found", "RepoNotFound")
        if repository.gated and contents and not is_owner:
            raise RefusedError(403, f"Access to model {name} is restricted", "GatedRepo")
        return repository

    def writable(self, name: str, account: Account | None) -> Repository:
        repository = self.readable(name, account)
        require_writer(account, name.partition("/")[0])
        return repository

    def large_file(self, repository: Repository, sha256: str, size: int) -> Path:
        """A large file as git-lfs keeps it, put together from its chunks where it came as such.

        Raises:
            RefusedError: it was never uploaded.
        """
        place = repository.large_file(sha256)
        if place.exists():
            return place
        if sha256 not in self.store.by_sha256:
            raise RefusedError(400, f"the large file {sha256} was never uploaded")
        import hf_xet

        place.parent.mkdir(parents=True, exist_ok=True)
        access = {"token": self.xet_tokens["read"], "token_expiry_unix_secs": int(time.time()) + 99}
        session = hf_xet.XetSession()
        with session.new_file_download_group(endpoint=self.cas_url, **access) as group:
            wanted = hf_xet.XetFileInfo(self.store.by_sha256[sha256], size)
            group.start_download_file(wanted, str(place))
        assert hashlib.sha256(place.read_bytes()).hexdigest() == sha256
        return place

    def answer(self, request: Request) -> Answer:
        """The answer to a request; what nobody answers is noted."""
        self.requests.append(f"{request.method} {request.path}")
        if request.path.startswith("/cas/"):
            given = request.headers.get("Authorization", "").removeprefix("Bearer ")
            parts = request.path.split("/")[2:]
            if parts[0] != "data" and given not in self.xet_tokens.values():
                raise RefusedError(401, "no such Xet token")
            return self.store.answer(request, parts, given == self.xet_tokens["write"])
        if match := GIT.fullmatch(request.path):
            return self._git(request, self.readable(match["name"], request.account), match[3])
        if (found := find(request)) is None:
            self.unknown.append(f"{request.method} {request.path}")
            raise RefusedError(501, f"{request.method} {request.path} is not there")
        handler, arguments = found
        return handler(self, request, **arguments)

    def _git(self, request: Request, repository: Repository, path: str) -> Answer:
        """What git's own server answers to `git clone`."""
        variables = {
            "GIT_PROJECT_ROOT": str(repository.folder / ".git"),
            "GIT_HTTP_EXPORT_ALL": "1",
            "PATH_INFO": f"/{path}",
            "REQUEST_METHOD": request.method,
            "QUERY_STRING": request.query,
            "CONTENT_TYPE": request.headers.get("Content-Type", ""),
            "GIT_PROTOCOL": request.headers.get("Git-Protocol", ""),
            "HTTP_CONTENT_ENCODING": request.headers.get("Content-Encoding", ""),
        }
        command, env = ["git", "http-backend"], ENVIRONMENT | variables
        output = subprocess.run(command, input=request.body, env=env, capture_output=True).stdout
        head, _, body = output.partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
        return Answer(int(headers.pop("Status", "200").split()[0]), body, headers)
