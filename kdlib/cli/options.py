"""Options that several commands share."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NoReturn

from kdlib.cli import values
from kdlib.terminal import printable

__all__ = ["Parser", "common", "sessions", "store"]


class Parser(argparse.ArgumentParser):
    """Its errors repeat arguments, which may be names of files."""

    def error(self, message: str) -> NoReturn:
        """End the process with the error, as printable text."""
        super().error(printable(message))


def store() -> Parser:
    """The option of commands that read or write a store."""
    options = Parser(add_help=False)
    options.add_argument(
        "--store", type=values.folder, default=Path(".kd"), metavar="DIR", help="where runs are kept (default: .kd)"
    )
    return options


def sessions() -> Parser:
    """The options of commands that train and judge."""
    options = Parser(add_help=False)
    options.add_argument(
        "--minutes",
        type=values.minutes,
        metavar="M",
        help="stop training after so many minutes, at checkpoints, with status 3; the last line continues",
    )
    options.add_argument(
        "--ray", type=values.word, metavar="ADDRESS", help="train on a Ray cluster: its address, auto or local"
    )
    options.add_argument(
        "--print", action="store_true", help="print the whole Markdown tables before the summary of the session"
    )
    options.add_argument(
        "--order",
        choices=("seeds", "arms"),
        default="seeds",
        help="begin all arms of a seed before the next seed (default), or all seeds of an arm before the next arm",
    )
    return options


def common() -> Parser:
    """The options of commands that load data and compute."""
    options = Parser(add_help=False)
    options.add_argument("--data", type=values.folder, metavar="DIR", help="folder that holds the data sets' folders")
    options.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="another value of a field that chooses the data (its tables are kept apart)",
    )
    options.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    options.add_argument("--threads", type=values.count, default=1, help="threads of a training process (default: 1)")
    options.add_argument(
        "--workers",
        type=values.count,
        help="training processes side by side, spread over the visible cards of a GPU machine (default on a CPU: the "
        "cores divided by --threads; with --ray: as many as fit)",
    )
    options.add_argument(
        "--replicas",
        type=values.count,
        default=1,
        metavar="N",
        help="train up to N students of one kind side by side, for a GPU (default: 1); the number "
        "is part of a run's identity",
    )
    options.add_argument(
        "--convolutions",
        default="grouped",
        metavar="WAY",
        help="of students side by side: grouped (default) or products (kd gpu-check measures both); part of "
        "a run's identity",
    )
    options.add_argument(
        "--no-graphs",
        dest="graphs",
        action="store_false",
        help="on a CUDA device, launch each operation of a step by itself instead of replaying recorded steps",
    )
    return options
