"""Calls of the system that fail from a moment on, in this process: Linux refuses them itself, whoever makes them."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Sequence
from typing import Final

__all__ = ["CALLS", "refuse"]

# by what they do to files: numbers of the system's calls on x86-64 and on ARM
_NUMBERS: Final = {
    "x86_64": {
        "open": (2, 85, 257), "write": (1, 18, 20, 296), "fsync": (74, 75), "rename": (82, 264, 316),
        "remove": (84, 87, 263), "mkdir": (83, 258), "room": (77, 285),
    },
    "aarch64": {
        "open": (56,), "write": (64, 66, 68, 70), "fsync": (82, 83), "rename": (38, 276), "remove": (35,),
        "mkdir": (34,), "room": (46, 47),
    },
}  # fmt: skip
CALLS: Final = tuple(_NUMBERS["x86_64"])
_OPENAT: Final = (257, 56)
_NUMBER, _FIRST = 0, 16  # where the call's number and its first argument stand, eight bytes each
_LOAD, _IF_EQUAL, _IF_MORE, _IF_ANY, _RETURN = 0x20, 0x15, 0x25, 0x45, 0x06
_ALLOW, _FAIL = 0x7FFF0000, 0x00050000
_NO_NEW_PRIVILEGES, _SECCOMP, _FILTER = 38, 22, 2
_STREAMS: Final = 2  # what stdin, stdout and stderr are, at most


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def refuse(calls: Sequence[str], error: int) -> None:
    """Lets calls fail with an error number from now on, in this thread and for good; reading goes on.

    Args:
        calls: of :data:`CALLS`: ``"open"`` is opening to write or to make, ``"write"`` spares stdout and stderr.
        error: the number, as in :mod:`errno`.

    Raises:
        OSError: this system cannot do that.
    """
    numbers = _NUMBERS.get(platform.machine())
    if numbers is None:
        raise OSError(errno.ENOSYS, "its calls are not known here")
    program = b"".join(_refusal(call, number, error) for call in calls for number in numbers[call])
    program += _step(_RETURN, _ALLOW)
    kept = ctypes.create_string_buffer(program, len(program))
    given = _Program(len(program) // 8, ctypes.addressof(kept))
    system = ctypes.CDLL(None, use_errno=True)
    if system.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) or system.prctl(_SECCOMP, _FILTER, ctypes.byref(given)):
        raise OSError(ctypes.get_errno(), "no call can be refused here")


def _refusal(call: str, number: int, error: int) -> bytes:
    fails = _step(_RETURN, _FAIL | error)
    if call == "write":
        fails = _step(_LOAD, _FIRST) + _step(_IF_MORE, _STREAMS, 0, 1) + fails
    elif call == "open" and number != 85:  # which always makes the file
        flags = _FIRST + 8 * (2 if number in _OPENAT else 1)
        fails = _step(_LOAD, flags) + _step(_IF_ANY, os.O_WRONLY | os.O_RDWR | os.O_CREAT, 0, 1) + fails
    return _step(_LOAD, _NUMBER) + _step(_IF_EQUAL, number, 0, len(fails) // 8) + fails


def _step(code: int, value: int, then: int = 0, otherwise: int = 0) -> bytes:
    return struct.pack("HBBI", code, then, otherwise, value)
