"""What asks a process to end: Ctrl-C, SIGTERM, and SIGHUP of a terminal that was closed."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable
from typing import Any, Final

__all__ = ["hear"]

ASKING: Final = tuple(
    signal.Signals[name] for name in ("SIGINT", "SIGTERM", "SIGHUP") if name in signal.Signals.__members__
)


def hear(asked: Callable[[signal.Signals], None]) -> Callable[[], None]:
    """Lets ``asked`` be called when someone asks this process to end, until what is returned is called.

    A signal that the process was started to ignore (``nohup``, or ``&`` in a script) stays ignored. Signals reach the
    main thread only; in another thread nothing is changed.

    Args:
        asked: takes the signal, between any two lines of the program.

    Example:
        >>> heard = []
        >>> forget = hear(heard.append)
        >>> signal.raise_signal(signal.SIGTERM)
        >>> forget(), heard
        (None, [<Signals.SIGTERM: 15>])
    """
    if threading.current_thread() is not threading.main_thread():
        return lambda: None
    shown = [number for number in (1, 2) if _is_terminal(number)]

    def take(number: int, frame: Any) -> None:
        if signal.Signals(number).name == "SIGHUP":
            _leave(shown)
        asked(signal.Signals(number))

    handled = [number for number in ASKING if signal.getsignal(number) not in (signal.SIG_IGN, None)]
    before = {number: signal.signal(number, take) for number in handled}

    def forget() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    return forget


def _is_terminal(number: int) -> bool:
    try:
        return os.isatty(number)
    except OSError:
        return False


def _leave(shown: list[int]) -> None:
    """Lets what is still said go nowhere: whoever writes to a terminal that was closed gets an error."""
    with contextlib.suppress(OSError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for number in shown:
            os.dup2(nowhere, number)
        os.close(nowhere)
