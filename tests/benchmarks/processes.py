"""Training loops in separate processes, which train when they are told to."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection

import torch
from torch import Tensor

Train = Callable[[int], dict[str, Tensor]]  # trains so many epochs more; gives the parameters


def serve(orders: Connection, loop: Callable[[], Train], threads: int) -> None:
    torch.set_num_threads(threads)
    train = loop()
    while count := orders.recv():
        orders.send({name: value.numpy() for name, value in train(count).items()})


@contextmanager
def worker(loop: Callable[[], Train], threads: int) -> Iterator[Connection]:
    """A process that trains when told to, so that its start does not count."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=serve, args=(there, loop, threads), daemon=True)
    process.start()
    there.close()  # else a worker that died would be waited for without end
    try:
        yield here
        here.send(0)
    finally:
        process.join(10)
        process.kill()


def together(workers: list[Connection], count: int) -> list[dict[str, Tensor]]:
    for each in workers:
        each.send(count)
    return [{name: torch.from_numpy(value) for name, value in each.recv().items()} for each in workers]
