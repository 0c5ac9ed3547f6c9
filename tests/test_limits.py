"""What somebody else wrote is read with bounds, and printed without anything that a terminal acts on."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from studio.errors import BadConfig, BadFile
from studio.given import check_regular, parse_json, read_given
from studio.limits import LIMITS, limit, within
from studio.shown import shown


def test_a_limit_is_the_tables_or_the_variables(monkeypatch):
    assert {name: limit(name) for name in LIMITS} == {name: row.most for name, row in LIMITS.items()}
    monkeypatch.setenv("STUDIO_LIMITS", "repeats=7, side=9")
    assert (limit("repeats"), limit("side"), limit("rows")) == (7, 9, LIMITS["rows"].most)
    within("repeats", 7, "it has")
    with pytest.raises(BadFile, match="^it has 8 repeats .* at most 7 "):
        within("repeats", 8, "it has")


@pytest.mark.parametrize("words", ["repeat=7", "repeats=0", "repeats=-1", "repeats=1e4", "repeats", "repeats=٣"])
def test_a_word_that_would_be_ignored_is_refused(words, monkeypatch):
    monkeypatch.setenv("STUDIO_LIMITS", words)
    with pytest.raises(BadConfig, match="STUDIO_LIMITS"):
        limit("side")


def test_regular_files_alone_are_read(tmp_path):
    (tmp_path / "file").write_bytes(b"12345")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link to pipe").symlink_to(tmp_path / "pipe")
    (tmp_path / "endless").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(tmp_path / "socket"))
    assert read_given(tmp_path / "file", "caption-bytes") == read_given(tmp_path / "link", "caption-bytes") == b"12345"
    kinds = {"pipe": "a pipe", "link to pipe": "a pipe", "endless": "a device", "socket": "a socket", ".": "a folder"}
    for name, kind in kinds.items():
        for ask in (check_regular, lambda file: read_given(file, "caption-bytes")):
            with pytest.raises(BadFile, match=f"^is {kind}"):
                ask(tmp_path / name)


def test_a_large_file_is_refused_before_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setenv("STUDIO_LIMITS", "caption-bytes=4")
    (tmp_path / "long").write_bytes(b"12345")
    with pytest.raises(BadFile, match="^has 5 bytes of a caption file; at most 4 "):
        read_given(tmp_path / "long", "caption-bytes")
    with pytest.raises(BadFile, match="^has 5 bytes"):  # its size is said to be 0
        read_given(Path("/proc/self/status"), "caption-bytes")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 100_000, "levels of JSON"),
        ("[" * 101 + "]" * 101, "levels of JSON"),
        ('{"a":' * 5_000 + "1" + "}" * 5_000, "levels of JSON"),
        ('"\\ud800"', "half a surrogate pair"),
        ('{"\\udfff": 1}', "half a surrogate pair"),
        ('[["\\ud83d x"]]', "half a surrogate pair"),
        ("9" * 5_000, "limit"),
        ("{", "Expecting"),
    ],
)
def test_json_that_cannot_be_used(text, words):
    with pytest.raises(ValueError, match=words):
        parse_json(text)


def test_json_that_can():
    assert parse_json("[" * 100 + "]" * 100)
    assert parse_json('{"text": "\\ud83d\\ude00", "more": [1.5, null]}') == {"text": "😀", "more": [1.5, None]}


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("a\0b\x7f\x9b31m", r"a\x00b\x7f\x9b31m"),
        ("caf\udce9.png", r"caf\xe9.png"),
        ("\ud800", r"\ud800"),
        ("two\nlines\r\t", r"two\nlines\r\t"),
        ("left\u202eright\u2028", r"left\u202eright\u2028"),
        ("👩‍🚀 grün 写真", "👩‍🚀 grün 写真"),
    ],
)
def test_what_is_printed(text, printed):
    assert shown(text) == shown(shown(text)) == printed
    assert shown(text).encode()


def test_a_text_of_several_lines_keeps_them():
    assert shown("one\n\ttwo\x1b", lines=True) == "one\n\ttwo\\x1b"
