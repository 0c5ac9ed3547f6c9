"""Sounds: WAV of every width, resampling against the tone itself, and what is refused."""

from __future__ import annotations

import struct
import wave

import numpy
import pytest

from studio.errors import BadFile, MissingPackage
from studio.sounds import Sound, read_sound, resampled, sound_of
from tiny import write_wav


def write(file, frames, *, width=2, channels=1, rate=8000):
    with wave.open(str(file), "wb") as written:
        written.setparams((channels, width, rate, 0, "NONE", "not compressed"))
        written.writeframes(frames)
    return file


def tone(hertz, rate, count):
    return numpy.sin(2 * numpy.pi * hertz * numpy.arange(count) / rate)


@pytest.mark.parametrize(
    ("width", "frames"),
    [
        (1, bytes([128, 192, 0, 64])),
        (2, struct.pack("<4h", 0, 1 << 14, -(1 << 15), -(1 << 14))),
        (3, b"".join((n & 0xFFFFFF).to_bytes(3, "little") for n in (0, 1 << 22, -(1 << 23), -(1 << 22)))),
        (4, struct.pack("<4i", 0, 1 << 30, -(1 << 31), -(1 << 30))),
    ],
)
def test_whole_numbers_of_every_width(tmp_path, width, frames):
    sound = read_sound(write(tmp_path / "a.wav", frames, width=width))
    assert sound.samples.tolist() == [0.0, 0.5, -1.0, -0.5] and sound.samples.dtype == numpy.float32
    assert sound.rate == 8000 and sound.seconds == 4 / 8000
    stereo = read_sound(write(tmp_path / "b.wav", frames, width=width, channels=2))
    assert stereo.samples.tolist() == [0.25, -0.75]


@pytest.mark.parametrize(
    ("given", "rate"), [(8000, 16000), (44100, 16000), (48000, 16000), (16000, 22050), (7919, 16000)]
)
def test_a_tone_is_the_same_tone_at_another_rate(given, rate):
    for hertz in (50, 440, 2500):
        made = resampled(Sound(tone(hertz, given, given // 2).astype(numpy.float32), given), rate)
        wanted = tone(hertz, rate, len(made))
        assert len(made) == -(-(given // 2) * rate // given)
        inner = slice(rate // 100, -rate // 100)  # the ends know silence on their other side
        assert numpy.abs(made[inner] - wanted[inner]).max() < 2e-3


def test_what_the_new_rate_cannot_hold_is_left_out():
    high = Sound(tone(11_000, 48_000, 24_000).astype(numpy.float32), 48_000)
    assert numpy.abs(resampled(high, 16_000)[200:-200]).max() < 1e-3
    assert resampled(high, 48_000) is high.samples


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda data: data[:20], "the sound {file} is damaged: its header ends early; copy it again"),
        (lambda data: data[:100], "the sound {file} is damaged: it ends after 56 of 160 bytes; copy it again"),
        (lambda data: data[:44], "the sound {file} is damaged: it ends after 0 of 160 bytes; copy it again"),
        (lambda data: b"hello", "the sound {file} is damaged: it does not begin as a WAV file does; copy it again"),
        (lambda data: b"", "the sound {file} is damaged: it does not begin as a WAV file does; copy it again"),
    ],
)
def test_damaged_files_are_named(tmp_path, spoil, message):
    file = write_wav(tmp_path / "a.wav", 440, rate=8000, seconds=0.01)
    file.write_bytes(spoil(file.read_bytes()))
    with pytest.raises(BadFile) as caught:
        read_sound(file)
    assert str(caught.value) == message.format(file=file)


def test_what_is_no_sound_is_refused(tmp_path):
    with pytest.raises(BadFile) as caught:
        read_sound(tmp_path / "none.wav")
    assert str(caught.value) == f"there is no sound {tmp_path / 'none.wav'}; check the path"
    with pytest.raises(BadFile, match="has no samples"):
        read_sound(write(tmp_path / "empty.wav", b""))
    with pytest.raises(BadFile, match="is a folder, not a file: only regular files are read"):
        read_sound(tmp_path)


def test_a_header_that_was_written_before_the_length_was_known(tmp_path):
    data = bytearray(write_wav(tmp_path / "a.wav", 440, rate=8000, seconds=0.01).read_bytes())
    data[4:8] = data[40:44] = struct.pack("<I", 0x7FFFFFF0)
    assert len(sound_of(bytes(data), "stream").samples) == 80


def test_other_files_need_a_package_that_is_named(tmp_path):
    try:
        import soundfile
    except ModuleNotFoundError:
        with pytest.raises(MissingPackage) as caught:
            sound_of(b"fLaC", "a.flac")
        assert str(caught.value) == (
            "a.flac: sounds that are no WAV file of whole numbers need soundfile: pip install soundfile"
        )
        return
    samples = tone(440, 8000, 800)
    soundfile.write(tmp_path / "a.flac", samples, 8000)
    soundfile.write(tmp_path / "a.wav", samples, 8000, subtype="FLOAT")
    for name in ("a.flac", "a.wav"):
        assert numpy.abs(read_sound(tmp_path / name).samples - samples).max() < 1e-4
    (tmp_path / "b.flac").write_bytes(b"fLaC")
    with pytest.raises(BadFile, match=r"the sound .*b\.flac cannot be read"):
        read_sound(tmp_path / "b.flac")
