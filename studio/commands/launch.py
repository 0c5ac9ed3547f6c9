"""``studio launch``: one training in several processes on this machine."""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

import click

from studio.commands.options import example
from studio.errors import BadConfig, UsageError, nearest

__all__ = ["launch"]

TRAININGS: Final = ("dreambooth", "style", "tune")
LOST: Final = 75  # exit code of a process that another one has left alone


@click.command(
    short_help="Run a training in several processes.",
    epilog=example(
        'studio launch 2 -- dreambooth emoji photos/ --instance-prompt "a photo of sks robot" -o runs/robot',
        "studio launch 8 -- tune causal-lm model/ chats.jsonl --sharding full -o runs/chats",
    ),
    context_settings={"ignore_unknown_options": True},
)
@click.argument("processes", type=int)
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="-- COMMAND...")
@click.pass_context
def launch(context: click.Context, processes: int, command: tuple[str, ...]) -> None:
    """Run a training in several processes on this machine: one per device, or as many as there are cores for.

    COMMAND is what trains: dreambooth, style, tune. The processes share each step's samples (--batch-size is of all of
    them together) and learn what one process would; the first one writes. With one that fails, all end, and the same
    command goes on from the last checkpoint, with as many processes as you like.
    """
    words = command[1:] if command[:1] == ("studio",) else command
    _check(processes, words)
    context.exit(_run(processes, words))


def _check(processes: int, words: tuple[str, ...]) -> None:
    """Checks what is asked for.

    Raises:
        BadConfig: no process. UsageError: a command that does not train.
    """
    if processes < 1:
        raise BadConfig(f"launch {processes}: at least one process")
    if not words:
        raise UsageError(f"launch {processes}: say what, studio launch {processes} -- dreambooth ...")
    if words[0] not in TRAININGS:
        close = nearest(words[0], TRAININGS, 1)[0]
        raise UsageError(
            f"launch starts trainings ({', '.join(TRAININGS)}), and {words[0]!r} is none; did you mean {close!r}?"
        )
    if "WORLD_SIZE" in os.environ:
        raise UsageError("launch was started by a launcher itself: give that one the command without launch")


def _run(processes: int, words: tuple[str, ...]) -> int:
    """Starts the processes by torch's launcher and waits for them; returns the exit code."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # two threads beside another busy process wait for each other; accelerators do the work elsewhere
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # it tells what is told here
    with tempfile.TemporaryDirectory(prefix="studio-launch-") as folder:
        logs = DefaultLogsSpecs(log_dir=folder, redirects={rank: Std.ALL for rank in range(1, processes)})
        config = LaunchConfig(
            min_nodes=1, max_nodes=1, nproc_per_node=processes, run_id="studio", rdzv_backend="c10d",
            rdzv_endpoint="localhost:0", max_restarts=0, monitor_interval=0.2, start_method="spawn", logs_specs=logs,
        )  # fmt: skip
        try:
            elastic_launch(config, sys.executable)("-m", "studio", *words)
        except ChildFailedError as error:
            return _failed(error, Path(folder))
        except SignalException:
            return 130
    return 0


def _failed(error: Any, folder: Path) -> int:
    """Says what has ended the run, where it was not the first process, which says it itself; returns the exit code.

    The process that failed first is the one that was not ended by its loss, nor by the launcher.
    """
    codes = {rank: int(failure.exitcode) for rank, failure in sorted(error.failures.items())}
    causes = [rank for rank, code in codes.items() if code not in (LOST, -signal.SIGTERM)] or list(codes)
    first = causes[0]
    if codes[first] < 0:
        click.echo(
            f"process {first} was killed (signal {-codes[first]}); the same command goes on from the last checkpoint",
            err=True,
        )
        return 1
    if first:
        click.echo(f"process {first}: {_last_words(folder, first)}", err=True)
    return codes[first]


def _last_words(folder: Path, rank: int) -> str:
    """What a process wrote to stderr last: its sentence, or its traceback."""
    for file in folder.glob(f"**/{rank}/stderr.log"):
        lines = [line for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        traced = [number for number, line in enumerate(lines) if line.startswith("Traceback")]
        return "\n".join(lines[traced[-1] :] if traced else lines[-1:])
    return "it said nothing"
