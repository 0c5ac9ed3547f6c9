"""The command line: ``studio COMMAND``. One file per command in :mod:`studio.commands`, imported when it is called.

Exit codes: 0 done; 2 the request was wrong; 3 refused because the result would be silently wrong; 130 interrupted, with
the state saved; 1 something failed while it ran; 75 another process of the same training has ended. All but 1 print one
sentence; what nobody expected shows its traceback.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import io
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, Final

import click

import studio
from studio.errors import StudioError, UsageError, nearest
from studio.launched import is_main
from studio.shown import shown
from studio.signals import hear

__all__ = ["COMMANDS", "main"]

COMMANDS: Final = (
    "demo", "dreambooth", "style", "tune", "plan", "generate", "render", "complete", "chat", "blend-check", "combine",
    "convert", "resize", "extract", "bake", "export", "inspect", "check", "launch", "families", "methods", "doctor",
)  # fmt: skip
"""The commands in the order of the help: modules of :mod:`studio.commands`, with ``_`` for ``-``."""

INTERRUPTED: Final = 130
PATIENCE: Final = 3.0  # seconds for which the further processes of a training wait before they fail
LONGEST: Final = 1_200  # characters of a sentence
_NO_MEMORY: Final = ("out of memory", "can't allocate memory", "not enough memory")

# what a user can mend; any other OSError is a mistake of ours and keeps its traceback
_MENDABLE = {
    errno.ENOSPC: "no space left on the device: free some, or choose another folder",
    errno.EDQUOT: "no space left in your quota: free some, or choose another folder",
    errno.EFBIG: "the file would be larger than the system allows: choose another folder",
    errno.EACCES: "permission denied: change the permissions, or choose another place",
    errno.EPERM: "permission denied: change the permissions, or choose another place",
    errno.EROFS: "the file system is read-only: choose another place",
    errno.ENOTDIR: "a part of that path is a file, not a folder: choose another path",
    errno.EISDIR: "that is a folder: name a file",
    errno.ENAMETOOLONG: "the name is too long for the file system: choose a shorter one",
    errno.EIO: "the device reports an input/output error: choose another one",
    errno.EMFILE: "too many files are open: raise the limit (ulimit -n)",
}


class Commands(click.Group):
    """The commands, each imported when it is asked for; the only place where errors become exit codes."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module = name.replace("-", "_")
        return getattr(importlib.import_module(f"studio.commands.{module}"), module)

    def resolve_command(
        self, context: click.Context, arguments: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = arguments[0]
        if name not in COMMANDS and not name.startswith("-"):
            close = nearest(name, COMMANDS, 1)[0]
            known = ", ".join(COMMANDS)
            raise UsageError(f"studio has no command {name!r}; did you mean {close!r}? (commands: {known})")
        return super().resolve_command(context, arguments)

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Runs the command line; with ``standalone_mode`` it ends the process with the exit code."""
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
        try:
            with _quiet_interruption():
                code = super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
        except click.exceptions.NoArgsIsHelpError as asked:
            click.echo(asked.format_message())
            code = 0
        except click.UsageError as error:
            of = error.ctx.command_path if error.ctx else "studio"
            code = _complain(f"{error.format_message().rstrip('.')} (examples: {of} --help)", error.exit_code)
        except click.ClickException as error:
            code = _complain(error.format_message(), error.exit_code)
        except StudioError as error:
            code = _complain(str(error), error.exit_code)
        except (click.Abort, KeyboardInterrupt):
            click.echo("interrupted", err=True)
            code = INTERRUPTED
        except (MemoryError, OSError, RuntimeError) as error:
            code = _machine(error)
        if code and not is_main():
            time.sleep(PATIENCE)  # what is wrong in all processes is said by the first one
        sys.exit(code if isinstance(code, int) else 0)


@contextlib.contextmanager
def _quiet_interruption() -> Iterator[None]:
    """Lets the first Ctrl-C, SIGTERM or SIGHUP end what goes on in order, and the second at once, without a word.

    What was being written stays as it was, whenever that is: files are renamed into their places.
    """
    asked: list[int] = []

    def interrupt(number: int) -> None:
        if asked:
            os._exit(INTERRUPTED)
        asked.append(number)
        raise KeyboardInterrupt

    def lost(problem: Any) -> None:
        """Asks again for what came while an object was destroyed, where Python drops it with a traceback."""
        if not isinstance(problem.exc_value, KeyboardInterrupt):
            before(problem)
        elif asked:
            asked.clear()
            threading.Timer(0.01, _interrupt_main).start()

    forget, before, sys.unraisablehook = hear(interrupt), sys.unraisablehook, lost
    try:
        yield
    except (click.Abort, KeyboardInterrupt):  # of a training too, which hears the first one itself
        asked.append(0)
        raise
    finally:
        if not asked:  # else it stays until the process has ended
            sys.unraisablehook = before
            forget()


def _interrupt_main() -> None:
    if sys.platform == "win32":
        signal.raise_signal(signal.SIGINT)
    else:  # which also ends what the main thread waits for
        os.kill(os.getpid(), signal.SIGINT)


def _complain(sentence: str, code: int) -> int:
    """Prints a sentence to stderr, on one line, and returns the exit code."""
    click.echo(f"{click.style('error:', fg='red', bold=True)} {_short(shown(' '.join(sentence.split())))}", err=True)
    return code


def _short(sentence: str) -> str:
    """Leaves out the middle of a sentence that quotes a long word, so that what to do can still be read."""
    return sentence if len(sentence) <= LONGEST else f"{sentence[: LONGEST // 2]} … {sentence[-LONGEST // 3 :]}"


def _machine(error: Exception) -> int:
    """Says what the machine could not do; any other error is a mistake of ours and keeps its traceback."""
    if isinstance(error, BrokenPipeError):  # whoever read the output has gone; nothing can be told to him
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return StudioError.exit_code
    if isinstance(error, OSError) and error.errno in _MENDABLE:
        return _complain(f"{error.filename or 'cannot write'}: {_MENDABLE[error.errno]}", UsageError.exit_code)
    if isinstance(error, MemoryError) or any(words in str(error) for words in _NO_MEMORY):
        sentence = "there is not enough memory for that: take a smaller --batch-size or --resolution, or --dtype bf16"
        return _complain(sentence, StudioError.exit_code)
    raise error


@click.command(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Each command's --help ends with an example; 'studio demo' shows the whole job in about two minutes.",
)
@click.version_option(studio.__version__, "-V", "--version", prog_name="studio", message="%(prog)s %(version)s")
def main() -> None:
    """Adapters for image and language models: samples in, adapter out."""
    for stream in (sys.stdout, sys.stderr):  # a terminal that lacks a character shows its number
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    # libraries look at these when they are imported; of the network, only hub ids are asked (studio.families.opening)
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # their remarks are for programmers; what a user must know, the studio says itself
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    # where DeepSpeed is installed, transformers imports it to save a model, and it writes to where results go
    logging.getLogger("DeepSpeed").addFilter(lambda record: record.levelno > logging.WARNING)


if __name__ == "__main__":
    main(prog_name="studio")
