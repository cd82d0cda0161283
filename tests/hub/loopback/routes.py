"""The Hub's REST interface for models: which request means what."""

import base64
import hashlib
import json
import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote

import yaml

from loopback.exchange import Answer, RefusedError, Request, require_writer
from loopback.repository import LARGE, Entry, Repository, StaleError, pointer_to

if TYPE_CHECKING:
    from loopback.server import Hub

Handler = Callable[..., Answer]
ROUTES: list[tuple[str, re.Pattern[str], Handler]] = []
HEADER = re.compile(r"\s*---\r?\n(.*?)\r?\n---", re.S)
NAME, MODEL = r"(?P<name>[^/]+/[^/]+)", r"/api/models/(?P<name>[^/]+/[^/]+)"


def route(methods: str, pattern: str) -> Callable[[Handler], Handler]:
    """Register a handler; named groups become its arguments, `name` the repository's name."""

    def register(handler: Handler) -> Handler:
        ROUTES.extend((method, re.compile(pattern), handler) for method in methods.split())
        return handler

    return register


def find(request: Request) -> tuple[Handler, dict[str, str]] | None:
    for method, pattern, handler in ROUTES:
        match = pattern.fullmatch(request.path)
        if match and method == request.method:
            return handler, {key: unquote(value or "") for key, value in match.groupdict().items()}
    return None


@route("GET", "/api/whoami-v2")
def whoami(hub: "Hub", request: Request) -> Answer:
    account = request.account
    if account is None:
        raise RefusedError(401, "Invalid username or password.")
    token = {"displayName": "a test's", "role": account.role}
    auth = {"type": "access_token", "accessToken": token}
    return Answer.of({"type": "user", "name": account.name, "orgs": [], "auth": auth})


@route("GET", "/api/agent-harnesses")
def agent_harnesses(hub: "Hub", request: Request) -> Answer:
    return Answer.of({})


@route("POST", "/api/validate-yaml")
def validate_yaml(hub: "Hub", request: Request) -> Answer:
    try:
        card_data(request.json()["content"])
    except yaml.YAMLError as error:
        return Answer.of({"errors": [{"message": str(error)}], "warnings": []}, 400)
    return Answer.of({"errors": [], "warnings": []})


@route("POST", "/api/repos/create")
def create(hub: "Hub", request: Request) -> Answer:
    wanted = request.json()
    own = request.account.name if request.account else ""
    namespace = wanted.get("organization") or own
    require_writer(request.account, namespace)
    name = f"{namespace}/{wanted['name']}"
    url = f"{hub.url}/{name}"
    if name in hub.repositories:
        return Answer.of({"error": "You already created this model repo", "url": url}, 409)
    hub.add(name, private=wanted.get("visibility") == "private" or bool(wanted.get("private")))
    return Answer.of({"url": url, "name": name})


@route("DELETE", "/api/repos/delete")
def delete(hub: "Hub", request: Request) -> Answer:
    wanted = request.json()
    name = f"{wanted['organization']}/{wanted['name']}"
    hub.writable(name, request.account)
    del hub.repositories[name]
    return Answer.of({})


@route("GET", MODEL + r"(/revision/(?P<revision>[^/]+))?")
def info(hub: "Hub", request: Request, name: str, revision: str) -> Answer:
    repository = hub.readable(name, request.account, contents=False)
    commit = commit_of(repository, revision or "main")
    entries = repository.entries(commit)
    readme = next((e for e in entries if e.path == "README.md"), None)
    card = card_data(repository.content(readme.blob).decode()) if readme else None
    facts = {"id": name, "modelId": name, "sha": commit, "private": repository.private}
    facts |= {"gated": "auto" if repository.gated else False, "cardData": card}
    facts |= {"tags": (card or {}).get("tags", []), "downloads": 0, "likes": 0}
    return Answer.of(facts | {"siblings": [{"rfilename": e.path} for e in entries]})


@route("GET", MODEL + r"/tree/(?P<revision>[^/]+)(/(?P<folder>.+))?")
def tree(hub: "Hub", request: Request, name: str, revision: str, folder: str) -> Answer:
    repository = hub.readable(name, request.account)
    entries = repository.entries(commit_of(repository, revision))
    found = [e for e in entries if not folder or e.path.startswith(f"{folder}/")]
    if folder and not found:
        raise RefusedError(404, f"{folder} does not exist", "EntryNotFound")
    return Answer.of([described(entry) for entry in found])


@route("POST", MODEL + r"/paths-info/(?P<revision>[^/]+)")
def paths_info(hub: "Hub", request: Request, name: str, revision: str) -> Answer:
    repository = hub.readable(name, request.account)
    wanted = parse_qs(request.body.decode())["paths"]
    entries = repository.entries(commit_of(repository, revision))
    return Answer.of([described(entry) for entry in entries if entry.path in wanted])


@route("POST", MODEL + r"/(?P<kind>branch|tag)/(?P<revision>[^/]+)")
def mark(hub: "Hub", request: Request, name: str, kind: str, revision: str) -> Answer:
    repository = hub.writable(name, request.account)
    if kind == "branch":
        repository.git("branch", revision, "main")
    else:
        repository.git("tag", request.json()["tag"], commit_of(repository, revision))
    return Answer.of({})


@route("POST", MODEL + r"/preupload/(?P<revision>[^/]+)")
def preupload(hub: "Hub", request: Request, name: str, revision: str) -> Answer:
    repository = hub.writable(name, request.account)
    entries = repository.entries(commit_of(repository, revision))
    have = {entry.path: entry.sha256 or entry.blob for entry in entries}
    files = []
    for file in request.json()["files"]:
        is_large = file["path"].endswith(LARGE) or file["size"] > 10_000_000
        mode = "lfs" if is_large else "regular"
        answer = {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}
        files.append(answer | {"oid": have.get(file["path"])})
    return Answer.of({"files": files})


@route("POST", MODEL + r"/commit/(?P<revision>[^/]+)")
def commit(hub: "Hub", request: Request, name: str, revision: str) -> Answer:
    repository = hub.writable(name, request.account)
    added: dict[str, bytes] = {}
    removed: list[str] = []
    header: dict[str, Any] = {}
    for line in request.body.splitlines():
        kind, value = json.loads(line)["key"], json.loads(line)["value"]
        if kind == "header":
            header = value
        elif kind == "file":
            added[value["path"]] = base64.b64decode(value["content"])
        elif kind == "lfsFile":
            hub.large_file(repository, value["oid"], value["size"])
            added[value["path"]] = pointer_to(value["oid"], value["size"])
        elif kind in ("deletedFile", "deletedFolder"):
            removed.append(value["path"])
        else:
            raise RefusedError(501, f"commits cannot hold {kind} here")
    message = "\n\n".join(filter(None, (header["summary"], header.get("description"))))
    try:
        made = repository.commit(added, removed, message, header.get("parentCommit"), revision)
    except StaleError as error:
        raise RefusedError(412, "A commit has happened since. Please refresh.") from error
    return Answer.of({"commitOid": made, "commitUrl": f"{hub.url}/{name}/commit/{made}"})


@route("GET", MODEL + r"/xet-(?P<kind>read|write)-token/(?P<revision>[^/]+)")
def xet_token(hub: "Hub", request: Request, name: str, kind: str, revision: str) -> Answer:
    allowed = hub.writable if kind == "write" else hub.readable
    allowed(name, request.account)
    until, token = int(time.time()) + 3600, hub.xet_tokens[kind]
    headers = {"X_Xet_Cas_Url": hub.cas_url, "X_Xet_Access_Token": token}
    content = {"casUrl": hub.cas_url, "accessToken": token, "exp": until}
    return Answer.of(content, X_Xet_Token_Expiration=str(until), **headers)


@route("GET HEAD", f"/{NAME}/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
def resolve(hub: "Hub", request: Request, name: str, revision: str, path: str) -> Answer:
    repository = hub.readable(name, request.account)
    made = commit_of(repository, revision)
    entry = next((e for e in repository.entries(made) if e.path == path), None)
    if entry is None:
        raise RefusedError(404, "Entry not found", "EntryNotFound", X_Repo_Commit=made)
    headers = {"X-Repo-Commit": made, "Accept-Ranges": "bytes"}
    if entry.sha256 is None:
        headers["ETag"] = f'"{entry.blob}"'
        return Answer(body=repository.content(entry.blob), headers=headers)
    headers |= {"ETag": f'"{entry.sha256}"', "X-Linked-Etag": f'"{entry.sha256}"'}
    headers["X-Linked-Size"] = str(entry.size)
    if file := hub.store.by_sha256.get(entry.sha256):
        token_url = f"{hub.url}/api/models/{name}/xet-read-token/{made}"
        headers |= {"X-Xet-Hash": file, "Link": f'<{token_url}>; rel="xet-auth"'}
    return Answer(body=hub.large_file(repository, entry.sha256, entry.size), headers=headers)


@route("POST", f"/{NAME}\\.git/info/lfs/objects/batch")
def lfs_batch(hub: "Hub", request: Request, name: str) -> Answer:
    wanted = request.json()
    uploads = wanted["operation"] == "upload"
    allowed = hub.writable if uploads else hub.readable
    repository = allowed(name, request.account)
    objects = []
    for item in wanted["objects"]:
        place = {"href": f"{hub.url}/{name}/lfs/{item['oid']}"}
        actions: dict[str, Any] = {}
        if not uploads:
            actions = {"download": place}
        elif not repository.large_file(item["oid"]).exists():
            actions = {"upload": place, "verify": {"href": place["href"] + "/verify"}}
        known = {"oid": item["oid"], "size": item["size"]}
        objects.append({**known, "actions": actions} if actions else known)
    kind = "application/vnd.git-lfs+json"
    return Answer.of({"transfer": "basic", "objects": objects}, Content_Type=kind)


@route("GET PUT POST", f"/{NAME}/lfs/(?P<sha256>[0-9a-f]{{64}})(/verify)?")
def lfs_object(hub: "Hub", request: Request, name: str, sha256: str) -> Answer:
    """A signed address on the real Hub: who holds it may use it."""
    place = hub.repositories[name].large_file(sha256)
    if request.method == "PUT":
        if hashlib.sha256(request.body).hexdigest() != sha256:
            raise RefusedError(422, "these are other bytes")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(request.body)
        return Answer()
    if request.method == "POST":
        size = request.json()["size"]
        return Answer(200 if place.exists() and place.stat().st_size == size else 422)
    return Answer(body=place)


def commit_of(repository: Repository, revision: str) -> str:
    made = repository.resolve(revision)
    if made is None:
        raise RefusedError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
    return made


def described(entry: Entry) -> dict[str, Any]:
    facts = {"type": "file", "oid": entry.blob, "size": entry.size, "path": entry.path}
    if entry.sha256 is not None:
        facts["lfs"] = {"oid": entry.sha256, "size": entry.size, "pointerSize": 130}
    return facts


def card_data(text: str) -> dict[str, Any] | None:
    header = HEADER.match(text)
    return yaml.safe_load(header[1]) if header else None
