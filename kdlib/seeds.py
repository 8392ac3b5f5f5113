"""Random streams: each is a function of (seed, name, epoch), so none depends on what ran before it."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import SupportsIndex

import numpy as np
import torch

from kdlib.checks import whole_number


def derive_seed(seed: SupportsIndex, name: str, epoch: SupportsIndex = 0) -> int:
    """Return a 63-bit seed: the first bits of the SHA-256 of (seed, name, epoch), two of them whole numbers."""
    # As whole numbers of Python: others would be written otherwise than 3, and so be other seeds.
    seed, epoch = whole_number("seed", seed), whole_number("epoch", epoch)
    digest = hashlib.sha256(f"{seed}/{name}/{epoch}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(seed: SupportsIndex, name: str, epoch: SupportsIndex = 0) -> torch.Generator:
    """Return a generator with the seed of `derive_seed`.

    It is a CPU generator, so that a run on a GPU gets the same order and the same draws.
    """
    return torch.Generator().manual_seed(derive_seed(seed, name, epoch))


@contextmanager
def torch_generators_put_back() -> Iterator[None]:
    """Put torch's global generators back afterwards.

    A training that is done seeds nothing, so whatever the caller draws next must not depend on whether it was trained.
    """
    state = torch.get_rng_state()
    on_cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        torch.set_rng_state(state)
        if on_cuda:
            torch.cuda.set_rng_state_all(on_cuda)


@contextmanager
def seeded(seed: SupportsIndex) -> Iterator[None]:
    """Seed the global generators of torch, NumPy and Python; put them back afterwards.

    A layer that torch makes draws its first weights from there, so they must not depend on what ran before.
    """
    of_numpy, of_python, derived = np.random.get_state(), random.getstate(), derive_seed(seed, "global")
    with torch_generators_put_back():
        torch.manual_seed(derived)
        np.random.seed(derived % 2**32)
        random.seed(derived)
        try:
            yield
        finally:
            np.random.set_state(of_numpy)
            random.setstate(of_python)
