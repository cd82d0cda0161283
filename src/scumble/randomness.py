"""Stateless randomness: every draw comes from a generator named by what it is for.

A generator seeded by (seed, purpose, indices) needs no state to be saved: a resumed run draws the
same numbers, worker and process counts change nothing, and one step can be replayed alone.
"""

import hashlib

import torch


def generator(seed: int, purpose: str, *indices: int) -> torch.Generator:
    """Build the CPU generator of one purpose at one place of a run.

    Args:
        seed: the run's seed.
        purpose: what is drawn, such as "noise" or "example order".
        indices: where, such as (step, position in the batch).

    Returns:
        A freshly seeded generator; equal arguments give equal draws on every machine.
    """
    name = "/".join([str(seed), purpose, *map(str, indices)])
    digest = hashlib.sha256(name.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
