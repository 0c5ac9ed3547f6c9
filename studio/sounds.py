"""Sounds: WAV read by the standard library, other files by soundfile, and any rate made the one that a model hears."""

from __future__ import annotations

import io
import math
import wave
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy
from numpy.typing import NDArray

from studio.errors import BadFile
from studio.given import given_path, read_given
from studio.packages import need

__all__ = ["Sound", "read_sound", "resampled", "sound_of"]

Samples = NDArray[numpy.float32]
ZEROS: Final = 24  # zeros of the sinc on either side that a resampled value is made with
CHUNK: Final = 1 << 16  # values that are resampled together
STREAM: Final = 0x7FFF0000  # bytes; a header that was written before the length was known says at least that


@dataclass(frozen=True, eq=False)
class Sound:
    """A sound of one channel.

    Args:
        samples: float32 ``(N,)`` in [-1, 1].
        rate: samples a second.
    """

    samples: Samples
    rate: int

    @property
    def seconds(self) -> float:
        """How long it lasts."""
        return len(self.samples) / self.rate


def read_sound(file: str | Path) -> Sound:
    """Reads a sound; several channels are mixed into their mean.

    Args:
        file: WAV of whole numbers of 8, 16, 24 or 32 bits, or whatever soundfile reads.

    Raises:
        BadFile: it is not there, or no sound that can be read.
        MissingPackage: it is another file than that, and soundfile is not installed.
    """
    path = given_path(file, "sound")
    try:
        data = read_given(path, "sound-bytes")
    except FileNotFoundError:
        raise BadFile(f"there is no sound {file}; check the path") from None
    except OSError as problem:
        raise BadFile(f"the sound {file} cannot be read: {problem.strerror}") from None
    except BadFile as problem:
        raise BadFile(f"the sound {file} {problem}") from None
    return sound_of(data, str(file))


def sound_of(data: bytes, name: str) -> Sound:
    """Reads a sound from the bytes of its file; see :func:`read_sound`.

    Args:
        data: the bytes. name: what messages call it.

    Raises:
        BadFile: it is no sound that can be read. MissingPackage: as there.
    """
    wav = data[:4] == b"RIFF" and data[8:12] == b"WAVE"
    if not wav and Path(name).suffix.lower() == ".wav":
        raise BadFile(f"the sound {name} is damaged: it does not begin as a WAV file does; copy it again")
    found = _whole_numbers(data, name) if wav else None
    channels, rate = _by_soundfile(data, name) if found is None else found
    samples = channels.mean(1, dtype=numpy.float32)
    if not len(samples) or rate < 1:
        raise BadFile(f"the sound {name} has no samples")
    if not numpy.isfinite(samples).all():
        raise BadFile(f"the sound {name} has samples that are not finite")
    return Sound(samples, rate)


def _whole_numbers(data: bytes, name: str) -> tuple[Samples, int] | None:
    """Returns the channels ``(N, C)`` of a WAV file and its rate; None where its numbers are packed otherwise."""
    try:
        with wave.open(io.BytesIO(data)) as file:
            width, channels, rate = file.getsampwidth(), file.getnchannels(), file.getframerate()
            said = file.getnframes() * width * channels
            frames = file.readframes(file.getnframes())
    except wave.Error as problem:
        if str(problem).startswith("unknown"):
            return None
        raise BadFile(f"the sound {name} is damaged: {problem}; copy it again") from None
    except (EOFError, MemoryError, RuntimeError, ValueError, ZeroDivisionError) as problem:
        raise BadFile(f"the sound {name} is damaged: its header ends early; copy it again") from problem
    if len(frames) < said < STREAM:
        raise BadFile(f"the sound {name} is damaged: it ends after {len(frames)} of {said} bytes; copy it again")
    raw = numpy.frombuffer(frames, numpy.uint8)
    raw = raw[: len(raw) // (width * channels) * (width * channels)].reshape(-1, channels, width)
    if width == 1:
        return (raw[..., 0].astype(numpy.float32) - 128) / numpy.float32(128), rate
    numbers = sum(raw[..., place].astype(numpy.int64) << 8 * place for place in range(width))
    numbers -= (numbers >> 8 * width - 1) << 8 * width  # two's complement
    return (numbers / float(1 << 8 * width - 1)).astype(numpy.float32), rate


def _by_soundfile(data: bytes, name: str) -> tuple[Samples, int]:
    soundfile = need("soundfile", f"{name}: sounds that are no WAV file of whole numbers", extra="audio")
    try:
        channels, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    except Exception as problem:  # a decoder raises anything on hostile bytes
        raise BadFile(f"the sound {name} cannot be read: {str(problem).splitlines()[0][:200]}") from None
    return channels, int(rate)


def resampled(sound: Sound, rate: int) -> Samples:
    """Returns a sound at another rate: low-pass filtered and interpolated by a sinc in a Hann window.

    ``y[m] = Σ_n x[n] h(m · from/to − n)`` with ``h(t) = c sinc(c t) cos²(π c t / 2Z)`` for ``|c t| < Z``, of sum 1 over
    ``n``, and ``c = min(1, to/from)``: what the new rate cannot hold is left out. Its phase is linear.

    Args:
        sound: the sound. rate: samples a second.

    Returns:
        float32 ``(ceil(N · to/from),)``.

    Example:
        >>> [round(float(x), 6) for x in resampled(Sound(numpy.ones(400, numpy.float32), 8000), 16000)[398:402]]
        [1.0, 1.0, 1.0, 1.0]
    """
    if sound.rate == rate:
        return sound.samples
    common = math.gcd(sound.rate, rate)
    up, down = rate // common, sound.rate // common
    cut = min(1.0, up / down)
    half, count = math.ceil(ZEROS / cut), -(-len(sound.samples) * up // down)
    begins = numpy.arange(min(up, count)) * down % up / up  # where a new sample stands between two old ones
    places = (numpy.arange(1 - half, half + 1) - begins[:, None]) * cut
    table = numpy.sinc(places) * numpy.cos(numpy.pi / 2 * numpy.clip(places / ZEROS, -1, 1)) ** 2
    table = (table / table.sum(1, keepdims=True)).astype(numpy.float32)
    windows = numpy.lib.stride_tricks.sliding_window_view(numpy.pad(sound.samples, (half - 1, half)), 2 * half)
    made = numpy.empty(count, numpy.float32)
    for begin in range(0, count, CHUNK):
        new = numpy.arange(begin, min(begin + CHUNK, count))
        made[new] = numpy.einsum("mk,mk->m", windows[new * down // up], table[new % len(table)])
    return made
