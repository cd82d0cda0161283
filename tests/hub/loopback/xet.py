"""The store behind Xet uploads: chunks packed into xorbs, and shards that say how files are built.

Formats are those of the xet-core client: a shard begins with a 48-byte header, then for each file a
48-byte head, 48-byte terms, and optional blocks of verification and of the file's sha256.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from loopback.exchange import Answer, RefusedError, Request

BLOCK = 48
HAS_VERIFICATION, HAS_SHA256 = 1 << 31, 1 << 30


class Term(NamedTuple):
    """A run of chunks of one xorb."""

    xorb: str
    length: int
    first: int
    end: int


def hash_text(raw: bytes) -> str:
    """A hash as this client prints it: four little-endian numbers."""
    return "".join(f"{part:016x}" for part in struct.unpack("<4Q", raw))


def files_of(shard: bytes) -> Iterator[tuple[str, str | None, list[Term]]]:
    """Hash, sha256 and terms of every file that a shard describes."""
    at = BLOCK
    while (raw := shard[at : at + 32]) != b"\xff" * 32:
        flags, count = struct.unpack("<II", shard[at + 32 : at + 40])
        at += BLOCK
        terms = []
        for start in range(at, at + BLOCK * count, BLOCK):
            numbers = struct.unpack("<III", shard[start + 36 : start + BLOCK])
            terms.append(Term(hash_text(shard[start : start + 32]), *numbers))
        at += BLOCK * count * (2 if flags & HAS_VERIFICATION else 1)
        sha256 = hash_text(shard[at : at + 32]) if flags & HAS_SHA256 else None
        at += BLOCK if flags & HAS_SHA256 else 0
        yield hash_text(raw), sha256, terms


def chunk_starts(xorb: bytes) -> list[int]:
    """Where each chunk of a xorb begins, and where the last ends. Bytes 1-3 hold its length."""
    starts = [0]
    while (at := starts[-1]) + 8 <= len(xorb) and not xorb.startswith(b"XETBLOB", at):
        starts.append(at + 8 + int.from_bytes(xorb[at + 1 : at + 4], "little"))
    return starts


class Store:
    """Answers the requests under /cas. Newer ones are 404: the client then falls back."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.url = url
        self.files: dict[str, list[Term]] = {}
        self.by_sha256: dict[str, str] = {}
        folder.mkdir(parents=True)

    def answer(self, request: Request, parts: list[str], may_write: bool) -> Answer:
        match request.method, parts:
            case "POST", ["v1", "xorbs", _, name] if may_write:
                is_new = not (self.folder / name).exists()
                (self.folder / name).write_bytes(request.body)
                return Answer.of({"was_inserted": is_new})
            case "POST", ["v1", "shards"] if may_write:
                return self._take_shard(request.body)
            case "POST", ["v1", "xorbs" | "shards", *_]:
                raise RefusedError(403, "this token may not write")
            case "GET", ["v1", "reconstructions", name] if name in self.files:
                return Answer.of(self._reconstruction(self.files[name]))
            case "GET", ["data", name]:
                return Answer(body=self.folder / name)
        return Answer(404)

    def _take_shard(self, shard: bytes) -> Answer:
        for file, sha256, terms in files_of(shard):
            if not all((self.folder / term.xorb).exists() for term in terms):
                raise RefusedError(400, "the shard names a xorb that is not here")
            self.files[file] = terms
            if sha256 is not None:
                self.by_sha256[sha256] = file
        return Answer.of({"result": 1})

    def _reconstruction(self, terms: list[Term]) -> dict[str, object]:
        fetch: dict[str, list[object]] = {}
        for term in terms:
            starts = chunk_starts((self.folder / term.xorb).read_bytes())
            source = {
                "range": {"start": term.first, "end": term.end},
                "url": f"{self.url}/data/{term.xorb}",
                "url_range": {"start": starts[term.first], "end": starts[term.end] - 1},
            }
            known = fetch.setdefault(term.xorb, [])
            known += [] if source in known else [source]
        described = [
            {
                "hash": term.xorb,
                "unpacked_length": term.length,
                "range": {"start": term.first, "end": term.end},
            }
            for term in terms
        ]
        return {"offset_into_first_range": 0, "terms": described, "fetch_info": fetch}
