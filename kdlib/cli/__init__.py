"""The one command line: `kd`, `python -m kdlib`, and `python -m replications.<name>.experiment`."""

from __future__ import annotations

import argparse
import io
import os
import select
import sys
from collections.abc import Sequence
from pathlib import Path

from kdlib.cli.again import how_to_go_on, name_of
from kdlib.cli.stopping import INTERRUPTED, STOPPED, Stopped, Stopping
from kdlib.errors import KDError, MissingPackage, error_in_user_code

__all__ = ["main", "run_experiment"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status.

    0: good. 1: a run failed, numbers are outside their bands by more than chance, or a verdict changed. 2: a mistake
    that the user can correct. 3: the time is up, or SIGTERM or SIGUSR1 has come. 130: Ctrl-C. After 3 and 130, the last
    line is the command that continues a `run` or `record`.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    for stream in ("stdout", "stderr"):  # None if it is closed, as under some schedulers
        if getattr(sys, stream) is None:
            setattr(sys, stream, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    os.umask(os.umask(0o077) & 0o077)  # one that takes rights from their owner makes folders that he cannot use
    with Stopping(lambda status: f"\nStopped.{how_to_go_on(given)}\n") as stopping:
        try:
            options = _parsed(given)
        except MissingPackage as error:  # one error for all of them: perhaps only the library is installed
            sys.stderr.write(  # `say` needs one of them
                f"kd: expected all packages of the extra suite, found none for the module {error.name}; install them "
                "with: python -m pip install 'kdlib[suite]'\n"
            )
            return 2
        stopping.ready = True
        try:
            return _status(options, given)
        except KeyboardInterrupt as stop:
            from kdlib.cli.say import say_page

            status = STOPPED if isinstance(stop, Stopped) else stopping.status
            say_page(f"\nStopped.{how_to_go_on(given)}", error=status == INTERRUPTED)
            return status


def _status(options: argparse.Namespace, given: Sequence[str]) -> int:
    if isinstance(sys.stdout, io.TextIOWrapper):  # not every terminal has the dashes of the tables
        sys.stdout.reconfigure(errors="backslashreplace")
    from kdlib.cli.say import lost, say, say_page  # imports torch

    here = str(Path.cwd())
    if here not in sys.path:  # `kd` as a script: the replications are in the folder it is called from
        sys.path.insert(0, here)
    try:
        status: int = options.command(options)
        if status == STOPPED:
            say_page("Stopped." + how_to_go_on(given))
        return status or (2 if lost else 0)
    except KDError as error:
        say(f"kd: {error}", error=True)
        return 2
    except SystemExit as stop:  # of a replication's code: a command must not end so without a word, as if all was well
        say(f"kd: {error_in_user_code('a replication', stop, 'code that returns')}", error=True)
        return 2
    except BrokenPipeError as error:
        if not _nobody_reads():
            say(f"kd: a process that this one talks to is gone ({error}); run the same command again", error=True)
            return 2
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # `kd runs list | head`: as a process that SIGPIPE ends


def _nobody_reads() -> bool:
    """Whether the reader of standard output or of the errors is gone."""
    if not hasattr(select, "poll"):  # Windows
        return True
    poll = select.poll()
    for stream in (sys.stdout, sys.stderr):
        poll.register(stream.fileno(), 0)  # a lost reader is reported anyway
    return bool(poll.poll(0))


def run_experiment(module: str) -> None:
    """Do `kd run` for an experiment that is run as a module: `python -m replications.<name>.experiment ...`."""
    sys.exit(main(["run", module.split(".")[1], *sys.argv[1:]]))


def _parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options of a command line, itself included. Names may follow options, which argparse refuses."""
    parser = _parser()
    options, left = parser.parse_known_args(arguments)
    if left:
        if not hasattr(options, "names") or any(text.startswith("-") for text in left):
            parser.error(f"unrecognized arguments: {' '.join(left)}")
        options.names += left
    options.given = list(arguments)
    return options


def _parser() -> argparse.ArgumentParser:
    # Commands are imported when they run: `kd runs list` should not wait for pandas.
    from kdlib import __version__
    from kdlib.cli import commands as kd
    from kdlib.cli import data, export, listing, options, runs, values
    from kdlib.cli.check_resume import check_resume
    from kdlib.cli.gpu_check import gpu_check
    from kdlib.cli.new import new
    from kdlib.run.experiment import DEFAULT

    parser = options.Parser(prog="kd", description="Replications of knowledge-distillation results.")
    parser.add_argument("--version", action="version", version=f"kdlib {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, function: object, about: str, *parents: options.Parser) -> options.Parser:
        # Whole names of options only: the command that goes on is made from those that were given.
        added = commands.add_parser(name, help=about, description=about, parents=parents, allow_abbrev=False)
        added.set_defaults(command=function)
        return added

    common, store, limits = options.common(), options.store(), options.sessions()
    one = command(
        "run", kd.run, "Run a replication: train what the store lacks, judge, write tables.", common, store, limits
    )
    one.add_argument("name", type=name_of, help="the replication's folder name")
    one.add_argument("--profile", default=DEFAULT, help="smoke, quick (default) or full")
    seeds = one.add_mutually_exclusive_group()
    seeds.add_argument("--seeds", type=values.seeds, help="run seeds 0 .. N-1 (default: the profile's number)")
    seeds.add_argument("--seed", type=values.seed, help="run this one seed only")
    one.add_argument(
        "--arms",
        "--arm",
        type=values.names,
        action="extend",
        default=[],
        help="comma-separated arms, in the order in which they are begun; what they need is run too",
    )
    one.add_argument(
        "--require-real",
        action="store_true",
        help="stop with status 2 instead of running profile smoke, if the real data are not available",
    )
    one.add_argument("--dry-run", action="store_true", help="list the runs, minutes and disk; train nothing")
    one.add_argument(
        "--out", type=values.folder, metavar="DIR", help="write tables to DIR/NAME (default: results/NAME/local)"
    )

    check = command(
        "check",
        kd.check,
        "Train each replication's check arms in an empty store and compare them with the bands.",
        common,
    )
    check.add_argument("names", nargs="*", metavar="NAME", help="replications (default: all)")

    record = command(
        "record",
        kd.record,
        "Run (5 seeds or more, unless told otherwise) and write runs.jsonl, bands.toml and the committed tables.",
        common,
        store,
        limits,
    )
    record.add_argument("name", type=name_of)
    record.add_argument("--profile", default=DEFAULT)
    seeds = record.add_mutually_exclusive_group()
    seeds.add_argument("--seeds", type=values.seeds)
    seeds.add_argument("--seed", type=values.seed, help="record this one seed only, next to those already recorded")
    record.add_argument("--arms", "--arm", type=values.names, action="extend", default=[])

    tables = command("tables", kd.tables, "Make the committed tables again from results/*/runs.jsonl.")
    tables.add_argument("names", nargs="*", metavar="NAME")
    listed = command("list", listing.show_list, "List the replications; of those named also hours, needs and claims.")
    listed.add_argument("names", nargs="*", metavar="NAME")
    command("new", new, "Write the folder of a new replication, from a template that runs.").add_argument("name")

    stored = command(
        "runs", runs.runs, "List, show, verify or prune stored runs, or export them to a folder and import them.", store
    )
    stored.add_argument("action", choices=("list", "show", "verify", "prune", "export", "import"))
    stored.add_argument(
        "names", nargs="*", metavar="run", help="beginnings of run ids; of export and import: the one folder"
    )
    stored.add_argument(
        "--runs",
        type=values.names,
        action="extend",
        default=[],
        metavar="RUN,...",
        help="export: only runs with these beginnings of their ids",
    )
    stored.add_argument(
        "--profile", type=values.word, help="export: only finished runs of this profile, and all begun runs"
    )
    stored.add_argument("--pruned", action="store_true", help="export: leave out the weights of finished runs")
    explain = command(
        "explain",
        runs.explain,
        "Say what a run is, what made it, and whether its source files have changed since.",
        store,
    )
    explain.add_argument("run")

    exported = command("export", export.export, "Write the network of a stored run as an ONNX file.", store)
    exported.add_argument("run", help="beginning of the run's id")
    exported.add_argument("file", type=values.file, help="the file to write, for example model.onnx")
    exported.add_argument("--snapshot", help="which weights of the run (default: those of the arm in `kd runs list`)")
    exported.add_argument("--data", type=values.folder, metavar="DIR", help="folder that holds the data sets' folders")

    priced = command("cost", export.cost, "Measure the size and speed of a replication's networks.", common, store)
    priced.add_argument("name", type=name_of, help="the replication's folder name")
    priced.add_argument("--profile", default=DEFAULT, help="which profile's arms and stored runs (default: quick)")

    look = command("gpu-check", gpu_check, "Say whether a device computes right, and how fast students are on it.")
    look.add_argument("--device", default="cuda", help="cuda (default), cuda:N or cpu")

    stops = command(
        "check-resume",
        check_resume,
        "Run a training script that uses kdlib, stop it again and again, and say whether it ends in the same state as "
        "without a stop. Its checkpoints go into a temporary folder; whatever else it writes, it writes several times.",
    )
    stops.add_argument(
        "--epochs", type=values.count, default=3, metavar="N", help="epochs of each training at most (default: 3)"
    )
    stops.add_argument("script", metavar="SCRIPT", help="a file train.py, or the name of a module, such as my.train")
    stops.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="what the script gets")

    held = command("data", data.data, "List, fetch, verify or locate data sets.")
    held.add_argument("action", choices=("list", "fetch", "verify", "where"))
    held.add_argument("names", nargs="*", metavar="NAME")
    held.add_argument("--data", type=values.folder, metavar="DIR", help="folder that holds the data sets' folders")
    return parser
