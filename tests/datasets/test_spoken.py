"""Sounds with transcripts: the forms of a record, where paths begin, and what is refused, each by its place."""

from __future__ import annotations

import json

import pytest

from studio.datasets.samples import read_samples
from studio.datasets.spoken import spoken_of
from studio.errors import BadFile
from studio.sounds import read_sound
from tiny import write_wav


@pytest.fixture
def clip(tmp_path):
    (tmp_path / "clips").mkdir()
    return write_wav(tmp_path / "clips" / "a.wav", 440, seconds=0.01)


def lines(folder, *entries):
    file = folder / "data.jsonl"
    file.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return file


def test_paths_begin_at_the_file_that_names_them(tmp_path, clip):
    entries = [{"audio": "clips/a.wav", "text": "seven"}, {"audio": str(clip), "transcription": "eight"}]
    found = read_samples(lines(tmp_path, *entries), spoken_of)
    assert [(one.name, one.text) for one in found.items] == [(str(clip), "seven"), (str(clip), "eight")]
    assert found.items[0].given == found.items[1].given and found.items[0].digest != found.items[1].digest
    (tmp_path / "data.csv").write_text("path,sentence\nclips/a.wav,seven\n")
    table = read_samples(tmp_path / "data.csv", spoken_of)
    assert table.items[0].content == found.items[0].content


def test_a_folder_of_sounds_with_texts_beside_them(tmp_path, clip):
    clip.with_suffix(".txt").write_text("seven\n")
    (sample,) = read_samples(clip.parent, spoken_of).items
    assert (sample.name, sample.text) == (str(clip), "seven")
    assert sample.sound().seconds == 0.01


def test_data_sets_bring_their_sounds(clip):
    sound = read_sound(clip)
    entries = [
        {"audio": {"bytes": clip.read_bytes(), "path": "a.wav"}, "text": "seven"},
        {"audio": {"array": sound.samples, "sampling_rate": 16_000, "path": None}, "text": "seven"},
        {"audio": str(clip), "text": "seven", "path": "somewhere"},
    ]
    found = read_samples(entries, spoken_of)
    assert len({one.digest for one in found.items}) == 1 and found.unused == {"path": 1}
    for array in ([[1.0], [1.0, 2.0]], [float("nan")], ["a"], []):
        with pytest.raises(BadFile, match="^data, entry 1: audio must be the path of a sound, not "):
            read_samples([{"audio": {"array": array, "sampling_rate": 16_000}, "text": "seven"}], spoken_of)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            {"audoi": "a.wav", "text": "b"},
            "a sample has audio and text; found: 'audoi', 'text'; did you mean 'audio' by 'audoi'?",
        ),
        ({"audio": "clips/a.wav"}, "a sample has audio and text; found: 'audio'"),
        ({"audio": "clips/a.wav", "text": " "}, "the sample has no answer: text is empty"),
        ({"audio": 5, "text": "b"}, "audio must be the path of a sound, not 5"),
        ({"audio": "", "text": "b"}, "audio must be the path of a sound, not \"\""),
        ({"audio": {"path": "a.wav"}, "text": "b"}, "audio must be the path of a sound, not {\"path\": \"a.wav\"}"),
        ({"path": "a.wav", "file_name": "a.wav", "text": "b"}, "it has 'file_name' and 'path'; which one is meant?"),
    ],
)  # fmt: skip
def test_what_is_no_sample_is_refused(tmp_path, clip, entry, message):
    file = lines(tmp_path, entry)
    with pytest.raises(BadFile) as caught:
        read_samples(file, spoken_of)
    assert str(caught.value) == f"{file}, line 1: {message}"
