"""One trial of an attack: something is done under watch, and ends well or is a fault."""

from __future__ import annotations

import contextlib
import resource
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from studio.errors import StudioError

__all__ = ["CPU", "MEMORY", "Trial", "attempt"]

CPU: Final = 20.0
"""Seconds of processor time after which a trial hangs."""
MEMORY: Final = 1_500_000_000
"""Bytes of memory that a trial may take at most, beside what the process has when it begins."""
_WALL: Final = 90.0


@dataclass(frozen=True)
class Trial:
    """What came of one trial.

    Attributes:
        name: what was done. fault: what is wrong with how it ended, "" if nothing.
        seconds: processor time. memory: the most bytes that the process had meanwhile, beside what it had before.
    """

    name: str
    fault: str
    seconds: float
    memory: int


class _Hang(BaseException):
    """Time is over; no handler of the studio's catches it."""


def attempt(name: str, action: Callable[[], str]) -> Trial:
    """Runs one trial in this process.

    Args:
        name: what is done.
        action: does it, and returns what is wrong with the outcome or ``""``; an error of the studio's is a right
            outcome too, any other error is a fault.
    """
    begin = time.process_time()
    _forget_peak()
    held = _peak()
    try:
        with _bounded():
            fault = action()
    except StudioError as error:
        fault = "" if str(error).strip() else f"an empty {type(error).__name__}"
    except _Hang:
        fault = f"it hung: more than {CPU:.0f} s"
    except MemoryError:
        fault = "it wanted more memory than there may be"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        place = traceback.extract_tb(error.__traceback__)[-1]
        fault = f"{type(error).__name__}: {str(error)[:100]!a} ({Path(place.filename).name}:{place.lineno})"
    seconds, memory = time.process_time() - begin, max(0, _peak() - held)
    if not fault and seconds > CPU:
        fault = f"it took {seconds:.0f} s"
    if not fault and memory > MEMORY:
        fault = f"it took {memory / 1e9:.1f} GB"
    return Trial(name, fault, seconds, memory)


@contextlib.contextmanager
def _bounded() -> Iterator[None]:
    """Ends what takes too long, and what wants too much memory at once."""

    def over(*_: Any) -> None:
        raise _Hang

    before = [signal.signal(number, over) for number in (signal.SIGPROF, signal.SIGALRM)]
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (8 << 30 if hard < 0 else min(8 << 30, hard), hard))
    signal.setitimer(signal.ITIMER_PROF, CPU)
    signal.setitimer(signal.ITIMER_REAL, _WALL)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
        for number, handler in zip((signal.SIGPROF, signal.SIGALRM), before, strict=True):
            signal.signal(number, handler)


def _forget_peak() -> None:
    """Begins to count the peak of memory anew, where the system can."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak() -> int:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
