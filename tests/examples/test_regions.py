"""The script of regions: it runs as it stands, measures both halves, and draws every blend."""

from __future__ import annotations

import pytest
from PIL import Image


def test_it_measures_and_draws(example, tmp_path, capsys):
    script = example("regions")
    assert 0 <= script.main(tmp_path, steps=2, sampling=2, seeds=1) <= 1
    rows = capsys.readouterr().out.partition("seed  left")[2].splitlines()[1:2]
    assert [len(row.split()) for row in rows] == [5]
    with Image.open(tmp_path / "regions.png") as sheet:
        assert sheet.width > 128 and sheet.height > len(script.BLENDS) * 64


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:robot and penguin add up")  # "both everywhere" is there to show just that
def test_each_half_has_its_own_subject(example, tmp_path):
    assert example("regions").main(tmp_path) == 8
