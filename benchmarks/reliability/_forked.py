"""A command of the studio in a fork of this process, which has imported everything: it can be killed as a real one."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import resource
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.reliability.trial import CPU

__all__ = ["End", "command", "ran"]

HEARD: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_WALL: Final = 600.0
_MODULES: Final = "\nmodules: "


@dataclass(frozen=True)
class End:
    """How a process ended.

    Attributes:
        code: its exit code, or minus the signal that ended it. said: what it wrote to stderr.
        seconds: processor time. memory: the most bytes that it had, beside what it had when it began.
    """

    code: int
    said: str
    seconds: float
    memory: int

    @property
    def unsaid(self) -> str:
        """What no process may say or do, ``""`` if nothing."""
        if "Traceback" in self.said or "Exception ignored" in self.said:
            return f"a traceback: {self.said[-300:]!a}"
        return f"it hung: {self.said[-200:]!a}" if -self.code in (signal.SIGXCPU, signal.SIGALRM) else ""


def command(*words: str | Path) -> Callable[[], None]:
    """What runs a command line in the fork."""
    from studio.cli import main

    return lambda: main([str(word) for word in words], prog_name="studio")


def ran(
    action: Callable[[], object],
    *,
    prepare: Callable[[], None] = lambda: None,
    meddle: Callable[[int], None] = lambda pid: None,
    environment: Mapping[str, str] | None = None,
    learn: bool = False,
) -> End:
    """Runs something in a fork of this process until it ends.

    Args:
        action: what is done there.
        prepare: what is done there before.
        meddle: what is done here meanwhile, to the process of that number.
        environment: what is set there.
        learn: import here what was imported there, so that later forks need not.
    """
    end, begin = os.pipe()
    held = _resident()
    sys.stdout.flush(), sys.stderr.flush()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # later Pythons: of forks beside threads
        pid = os.fork()
    if not pid:
        if learn:
            action = _telling(action)
        _be(action, prepare, environment or {}, begin)
    os.close(begin)
    os.set_blocking(end, False)
    try:
        meddle(pid)
        status, used, heard = _await(pid, end)
    finally:
        os.close(end)
    said = heard.decode(errors="replace")
    if learn and said:
        said, _, names = said.rpartition(_MODULES)
        _import(names.split())
    return End(
        os.waitstatus_to_exitcode(status), said, used.ru_utime + used.ru_stime,
        max(0, used.ru_maxrss * 1024 - held),
    )  # fmt: skip


def _telling(action: Callable[[], object]) -> Callable[[], None]:
    """The same, which ends with the names of all modules on stderr."""

    def told() -> None:
        try:
            action()
        finally:
            sys.stderr.write(f"{_MODULES}{' '.join(sys.modules)}")

    return told


def _import(names: Iterable[str]) -> None:
    for name in names:
        with contextlib.suppress(Exception), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module(name)


def _await(pid: int, end: int) -> tuple[int, resource.struct_rusage, bytes]:
    """Waits for the end, and hears meanwhile; what has stopped is killed, what takes too long is told so."""
    until, heard = time.monotonic() + _WALL, b""
    while True:
        found, status, used = os.wait4(pid, os.WNOHANG | os.WUNTRACED)
        with contextlib.suppress(BlockingIOError):  # nothing new; someone whom it started may still live
            while more := os.read(end, 1 << 16):
                heard += more
        if found and not os.WIFSTOPPED(status):
            return status, used, heard
        if found:
            os.kill(pid, signal.SIGKILL)
        elif time.monotonic() > until:
            os.kill(pid, signal.SIGALRM)
            until += 5
        time.sleep(0.003)


def _be(action: Callable[[], object], prepare: Callable[[], None], environment: Mapping[str, str], said: int) -> None:
    """Is the fork: it has its own streams and signals, and never comes back."""
    code = 1
    try:
        os.dup2(os.open(os.devnull, os.O_RDWR), 1)
        os.dup2(said, 2)
        sys.stdout, sys.stderr = (
            io.TextIOWrapper(io.FileIO(number, "wb", closefd=False), line_buffering=True) for number in (1, 2)
        )
        for number in HEARD:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CPU, (int(CPU), int(CPU) + 1))
        warnings.simplefilter("ignore")
        os.environ.update(environment)
        prepare()
        action()
        code = 0
    except SystemExit as asked:
        code = asked.code if isinstance(asked.code, int) else 0
    except BaseException:
        with contextlib.suppress(BaseException):
            traceback.print_exc()
    finally:
        os._exit(code)


def _resident() -> int:
    with contextlib.suppress(OSError, IndexError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    return 0
