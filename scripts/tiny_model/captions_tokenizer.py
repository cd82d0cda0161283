"""A CLIP tokenizer whose vocabulary is small: bytes, plus one token for each word of the domain."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

from transformers import CLIPTokenizer

from .outlines import CREATURE, SHAPES
from .scenes import PALETTE

MAX_TOKENS = 32
PLACEHOLDERS = ("sks", "ohwx", "zwx", "qvl", "blorp", "zarb", "wug", "vek")
GRAMMAR = (
    "a an the of in on at with and picture drawing painting photo style small big left right top "
    "bottom background , ."
)
STYLE_WORDS = "neon ink night paper pencil pixel watercolor chalk sketch art cat dog robot cute"
START, END = "<|startoftext|>", "<|endoftext|>"


def byte_alphabet() -> list[str]:
    """The printable stand-ins that byte-level BPE gives to all 256 bytes, in byte order."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    alphabet, spare = [], 256
    for byte in range(256):
        if byte in printable:
            alphabet.append(chr(byte))
        else:
            alphabet.append(chr(spare))
            spare += 1
    return alphabet


def split_word(word: str, ranks: dict[tuple[str, str], int]) -> list[str]:
    """Byte-pair encoding of one lower-case word."""
    pieces = [*word[:-1], word[-1] + "</w>"]
    while len(pieces) > 1:
        pairs = [(ranks.get(pair, 1 << 30), i) for i, pair in enumerate(pairwise(pieces))]
        rank, i = min(pairs)
        if rank == 1 << 30:
            break
        pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]
    return pieces


def merges_for(words: list[str]) -> list[tuple[str, str]]:
    """Merges that make every word one token.

    A new merge ranks after all older ones, so it can never change how an earlier word merges.
    """
    merges: list[tuple[str, str]] = []
    ranks: dict[tuple[str, str], int] = {}
    for word in words:
        while len(pieces := split_word(word, ranks)) > 1:
            merge = (pieces[0], pieces[1])
            ranks[merge] = len(merges)
            merges.append(merge)
    return merges


def build_vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Token ids and merges, in the layout of CLIP's own vocabulary files."""
    words = [*GRAMMAR.split(), *PALETTE, *SHAPES, CREATURE, *STYLE_WORDS.split(), *PLACEHOLDERS]
    merges = merges_for(words)
    alphabet = byte_alphabet()
    tokens = [*alphabet, *(char + "</w>" for char in alphabet)]
    tokens += [first + second for first, second in merges]
    tokens = [*dict.fromkeys(tokens), START, END]
    return {token: i for i, token in enumerate(tokens)}, merges


def build_tokenizer() -> CLIPTokenizer:
    """The tokenizer of the real class."""
    vocab, merges = build_vocabulary()
    return CLIPTokenizer(
        vocab=vocab,
        merges=merges,
        unk_token=END,
        bos_token=START,
        eos_token=END,
        pad_token=END,
        model_max_length=MAX_TOKENS,
    )


def save_tokenizer(folder: Path) -> None:
    """Write tokenizer.json and also the two files that older readers look for."""
    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(folder)
    vocab, merges = build_vocabulary()
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(f"{first} {second}" for first, second in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
