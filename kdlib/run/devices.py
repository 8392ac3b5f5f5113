"""The device of a session, and which card each of its processes gets: several share one if there are too few.

None of this has run on a machine with several cards yet.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import torch

from kdlib.errors import KDError

__all__ = ["cards_of", "device_of", "kind_of", "next_card", "share_of_card"]

LEAST_BYTES = 2 * 2**30  # of a card, for one training process: CUDA itself, and a small student


def kind_of(name: str) -> str:
    """Return the name of a device that this or another machine may have; KDError for another name."""
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise KDError(f"--device {name}: expected cpu, cuda, or cuda:N")
    return name


def device_of(name: str) -> str:
    """Return the device of that name; KDError if this machine has none."""
    if kind_of(name) == "cpu":
        return name
    count, number = torch.cuda.device_count(), int(name.partition(":")[2] or 0)
    if number >= count:
        found = f"{count}" if count else f"none that torch {torch.__version__} can use"
        raise KDError(
            f"--device {name}: expected CUDA device {number}, found {found}; leave --device out to train on the CPU"
        )
    return name


def cards_of(device: str, workers: int) -> list[str]:
    """Return the devices that training processes spread over: all visible cards for "cuda", else the device itself.

    CUDA_VISIBLE_DEVICES decides which cards are visible. KDError if the cards have too little memory for so many.
    """
    if device != "cuda":
        return [device]
    memory = [torch.cuda.get_device_properties(card).total_memory for card in range(torch.cuda.device_count())]
    refuse_too_many(workers, memory)
    return [f"cuda:{card}" for card in range(len(memory))]


def refuse_too_many(workers: int, memory: Sequence[int]) -> None:
    """Raise KDError if not all cards have LEAST_BYTES for each of their processes."""
    on_each = [math.ceil((workers - card) / len(memory)) for card in range(len(memory))]
    if any(count * LEAST_BYTES > size for count, size in zip(on_each, memory, strict=True)):
        most = len(memory) * min(size // LEAST_BYTES for size in memory)
        raise KDError(
            f"--workers {workers}: expected at most {most}, so that each has {LEAST_BYTES / 2**30:.0f} GiB of a card "
            f"(there are {len(memory)}, the smallest of {min(memory) / 2**30:.0f} GiB); use fewer, or --replicas"
        )


def next_card(cards: Sequence[str], used: Sequence[str]) -> str:
    """Return the card for one more process: the first of those that the fewest processes use."""
    return min(cards, key=used.count)


def share_of_card(workers: int | None, cards: float) -> float:
    """Return the part of a card that a task asks for: one, unless there are to be more tasks than cards."""
    if workers is None or not 0 < cards < workers:
        return 1.0
    return 1.0 / math.ceil(workers / cards)
