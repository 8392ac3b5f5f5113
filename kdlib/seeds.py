"""Random streams: each is a function of (seed, name, epoch), so none depends on what ran before it."""

from __future__ import annotations

import hashlib

import torch


def derive_seed(seed: int, name: str, epoch: int = 0) -> int:
    """Return a 63-bit seed: the first bits of the SHA-256 of (seed, name, epoch)."""
    digest = hashlib.sha256(f"{seed}/{name}/{epoch}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(seed: int, name: str, epoch: int = 0) -> torch.Generator:
    """Return a generator with the seed of `derive_seed`.

    It is a CPU generator, so that a run on a GPU gets the same order and the same draws.
    """
    return torch.Generator().manual_seed(derive_seed(seed, name, epoch))
