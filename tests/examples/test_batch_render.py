"""The script that renders a list: it runs as it stands, and its second call finds everything done."""

from __future__ import annotations

from PIL import Image


def test_it_draws_its_grid_once(example, tmp_path, capsys):
    script = example("batch_render")
    script.main(tmp_path, steps=1, sampling=1)
    assert "18 pictures, 0 of them there already" in capsys.readouterr().out
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 6 * 64 and sheet.height >= 3 * 64
    script.main(tmp_path, steps=1, sampling=1)
    assert "18 pictures, 18 of them there already" in capsys.readouterr().out
