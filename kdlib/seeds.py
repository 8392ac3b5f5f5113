"""Random streams: each is a function of (seed, name, epoch), so none depends on what ran before it."""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import SupportsIndex

import numpy as np
import torch
from torch import Tensor

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


class _OfNumPy:
    """NumPy's global generator, with the methods of a generator of torch."""

    def manual_seed(self, seed: int) -> None:
        """Seed it with the last 32 bits of a seed: it takes no more."""
        np.random.seed(seed % 2**32)

    def get_state(self) -> Tensor:
        """Return the state; float64 holds its words of 32 bits as they are."""
        whole = np.random.get_state(legacy=False)
        words, position = whole["state"]["key"].tolist(), whole["state"]["pos"]
        return torch.tensor([*words, position, whole["has_gauss"], whole["gauss"]], dtype=torch.float64, device="cpu")

    def set_state(self, state: Tensor) -> None:
        """Set the state that `get_state` returned."""
        *words, position, is_kept, kept = state.tolist()
        np.random.set_state(("MT19937", np.array(words, dtype=np.uint32), int(position), int(is_kept), kept))


class _OfPython:
    """Python's global generator, with the methods of a generator of torch."""

    def manual_seed(self, seed: int) -> None:
        """Seed it."""
        random.seed(seed)

    def get_state(self) -> Tensor:
        """Return the state; NaN stands for no kept number, and float64 holds words of 32 bits as they are."""
        _, words, kept = random.getstate()
        return torch.tensor([*words, math.nan if kept is None else kept], dtype=torch.float64, device="cpu")

    def set_state(self, state: Tensor) -> None:
        """Set the state that `get_state` returned."""
        *words, kept = state.tolist()
        random.setstate((3, tuple(map(int, words)), None if math.isnan(kept) else kept))


OTHERS: list[_OfNumPy | _OfPython] = [_OfNumPy(), _OfPython()]  # the global generators that are not torch's


def seed_globally(seed: int) -> None:
    """Seed the global generators of torch, NumPy and Python."""
    if not hasattr(torch, "accelerator") or torch.accelerator.current_accelerator() is not None:
        torch.manual_seed(seed)
    else:  # it would note the place of its call for a device that is not there, which takes a millisecond
        torch.default_generator.manual_seed(seed)
    for each in OTHERS:
        each.manual_seed(seed)


@contextmanager
def global_generators_put_back() -> Iterator[None]:
    """Put the global generators of torch, NumPy and Python back afterwards.

    A training that is done seeds nothing, so whatever the caller draws next must not depend on whether it was trained.
    """
    state, others = torch.get_rng_state(), [each.get_state() for each in OTHERS]
    on_cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        torch.set_rng_state(state)
        if on_cuda:
            torch.cuda.set_rng_state_all(on_cuda)
        for each, before in zip(OTHERS, others, strict=True):
            each.set_state(before)


@contextmanager
def seeded(seed: SupportsIndex) -> Iterator[None]:
    """Seed the global generators of torch, NumPy and Python; put them back afterwards.

    A layer that torch makes draws its first weights from there, so they must not depend on what ran before.
    """
    with global_generators_put_back():
        seed_globally(derive_seed(seed, "global"))
        yield
