"""One repository: a real git repository with git-lfs's own store of large files beside it."""

import os
import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

POINTER = re.compile(
    rb"version https://git-lfs.github.com/spec/v1\noid sha256:([0-9a-f]{64})\nsize (\d+)\n"
)
LARGE = (".safetensors", ".bin", ".pt", ".png", ".jpg", ".webp")
"""Files that go to git-lfs, whatever their size."""

IDENTITY = {
    f"GIT_{who}_{what}": value
    for who in ("AUTHOR", "COMMITTER")
    for what, value in (("NAME", "hub"), ("EMAIL", "hub@localhost"))
}
ENVIRONMENT = {**os.environ, **IDENTITY, "GIT_CONFIG_GLOBAL": os.devnull}


@dataclass(frozen=True)
class Entry:
    """A file of a commit; `sha256` is that of a large one, whose blob is a pointer."""

    path: str
    blob: str
    size: int
    sha256: str | None = None


class StaleError(Exception):
    """A commit was to follow one that is no longer the newest."""


class Repository:
    """Reads and writes through git alone. `private` and `gated` decide who may read."""

    def __init__(self, folder: Path, private: bool) -> None:
        self.folder = folder
        self.private = private
        self.gated = False
        folder.mkdir(parents=True)
        self.git("init", "-q", "-b", "main")
        rules = "".join(f"*{end} filter=lfs diff=lfs merge=lfs -text\n" for end in LARGE)
        self.commit({".gitattributes": rules.encode()}, [], "initial commit")

    def git(self, *words: str, data: bytes = b"", index: str = "") -> bytes:
        env = ENVIRONMENT | ({"GIT_INDEX_FILE": index} if index else {})
        command = ["git", *words]
        return subprocess.run(
            command, cwd=self.folder, input=data, env=env, check=True, capture_output=True
        ).stdout

    def resolve(self, revision: str) -> str | None:
        """The commit that a branch, tag or abbreviation means."""
        command = ["git", "rev-parse", "-q", "--verify", f"{revision}^{{commit}}"]
        run = subprocess.run(command, cwd=self.folder, capture_output=True, text=True)
        return run.stdout.strip() or None

    def large_file(self, sha256: str) -> Path:
        """Where git-lfs keeps a large file."""
        return self.folder / ".git/lfs/objects" / sha256[:2] / sha256[2:4] / sha256

    def commit(
        self,
        added: Mapping[str, bytes],
        removed: Sequence[str],
        message: str,
        parent: str | None = None,
        branch: str = "main",
    ) -> str:
        """Add a commit to a branch.

        Raises:
            StaleError: `parent` is not what the branch ends with.
        """
        head = self.resolve(f"refs/heads/{branch}")
        if parent is not None and parent != head:
            raise StaleError
        with tempfile.TemporaryDirectory() as folder:
            index = f"{folder}/index"
            if head:
                self.git("read-tree", head, index=index)
            for path in removed:
                self.git("rm", "-r", "-q", "--cached", path, index=index)
            for path, content in added.items():
                blob = self.git("hash-object", "-w", "--stdin", data=content).decode().strip()
                place = f"100644,{blob},{path}"
                self.git("update-index", "--add", "--cacheinfo", place, index=index)
            tree = self.git("write-tree", index=index).decode().strip()
        parents = ["-p", head] if head else []
        made = self.git("commit-tree", tree, *parents, "-m", message).decode().strip()
        self.git("update-ref", f"refs/heads/{branch}", made)
        return made

    def entries(self, commit: str) -> list[Entry]:
        """The files of a commit."""
        found = []
        for line in self.git("ls-tree", "-r", "-l", "-z", commit).decode().split("\0")[:-1]:
            facts, path = line.split("\t", 1)
            blob, size = facts.split()[2:]
            pointer = POINTER.fullmatch(self.content(blob)) if int(size) < 200 else None
            if pointer:
                found.append(Entry(path, blob, int(pointer[2]), pointer[1].decode()))
            else:
                found.append(Entry(path, blob, int(size)))
        return found

    def content(self, blob: str) -> bytes:
        return self.git("cat-file", "blob", blob)


def pointer_to(sha256: str, size: int) -> bytes:
    """What git stores instead of a large file."""
    lines = ("version https://git-lfs.github.com/spec/v1", f"oid sha256:{sha256}", f"size {size}")
    return "".join(f"{line}\n" for line in lines).encode()
