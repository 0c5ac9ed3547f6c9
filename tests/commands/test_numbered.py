"""Numbered pictures: two commands that write into one folder at once keep all of theirs."""

from __future__ import annotations

import os

import pytest
from PIL import Image

from studio.atomic import atomic_path
from studio.commands.numbered import places, save_next
from studio.errors import Taken


def colours(folder):
    return [Image.open(file).getpixel((0, 0)) for file in sorted(folder.glob("*.png"))]


def test_two_commands_at_once_keep_all_pictures(tmp_path):
    red, blue = Image.new("RGB", (4, 4), "red"), Image.new("RGB", (4, 4), "blue")
    one, other = (places(tmp_path, 2, None, overwrite=False) for _ in range(2))
    assert one == other  # neither has written yet
    written = [
        save_next(picture, files[i], overwrite=False) for i in (0, 1) for picture, files in ((red, one), (blue, other))
    ]
    assert len(set(written)) == 4
    assert sorted(colours(tmp_path)) == [(0, 0, 255)] * 2 + [(255, 0, 0)] * 2
    assert [file.suffix for file in tmp_path.iterdir()] == [".png"] * 4
    save_next(blue, one[0], overwrite=True)
    assert colours(tmp_path)[0] == (0, 0, 255) and len(colours(tmp_path)) == 4


@pytest.mark.parametrize("links", [True, False])
def test_a_file_that_must_be_new_is_never_written_over(tmp_path, monkeypatch, links):
    if not links:  # as on FAT
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(1, "no links")))
    file = tmp_path / "new.txt"
    with atomic_path(file, fresh=True) as temporary:
        temporary.write_text("first")
    with pytest.raises(Taken, match="is there already"), atomic_path(file, fresh=True) as temporary:
        temporary.write_text("second")
    assert file.read_text() == "first" and [one.name for one in tmp_path.iterdir()] == ["new.txt"]
