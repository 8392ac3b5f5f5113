"""Every random stream is a function of (seed, name, epoch), so no stream depends on what ran before it."""

from __future__ import annotations

import hashlib

import torch


def derive_seed(seed: int, name: str, epoch: int = 0) -> int:
    """A 63-bit seed from (seed, name, epoch) by SHA-256."""
    digest = hashlib.sha256(f"{seed}/{name}/{epoch}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(seed: int, name: str, epoch: int = 0) -> torch.Generator:
    """A CPU generator seeded by `derive_seed`; CPU, so that a GPU run sees the same order and the same draws."""
    return torch.Generator().manual_seed(derive_seed(seed, name, epoch))
