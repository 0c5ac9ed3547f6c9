"""The script that sweeps a strength: it runs as it stands, measures every strength, and draws them all."""

from __future__ import annotations

from PIL import Image


def test_it_measures_and_draws(example, tmp_path, capsys):
    script = example("strength_sweep")
    script.main(tmp_path, steps=2, sampling=2)
    rows = capsys.readouterr().out.partition("strength  subject")[2].splitlines()[1:8]
    assert [float(row.split()[0]) for row in rows] == list(script.STRENGTHS)
    assert float(rows[0].split()[1]) == 0.0  # what is drawn without it
    with Image.open(tmp_path / "sweep.png") as sheet:
        assert sheet.width > 7 * 64 and sheet.height > 3 * 64
