"""The script of several adapters: it runs as it stands, and every row of its sheet is another."""

from __future__ import annotations

from PIL import Image


def test_it_tells_and_draws(example, tmp_path, capsys):
    script = example("several_adapters")
    script.main(tmp_path, steps=2, sampling=2)
    told = capsys.readouterr().out
    assert "robot·style" in told and "unet.mid_block" in told
    with Image.open(tmp_path / "several.png") as sheet:
        assert sheet.width > 4 * 64 and sheet.height > 7 * 64
