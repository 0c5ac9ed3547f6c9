"""What was measured on this machine: it is kept whatever happens to the file, and corrects what is alike."""

from __future__ import annotations

import subprocess
import sys

import pytest

from studio.planning import measured
from studio.planning.measured import Correction, Measured, correction, recall, remember

GB = 10**9


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("STUDIO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / measured.FILE


def test_the_factor_is_the_median_of_runs_that_are_alike(store):
    """Of 1.02, 1.04 and 1.3 it is 1.04; another device, another size and what cannot be are left aside."""
    for times in (1.02, 1.3, 1.04):
        remember(Measured("gpu", round(8 * GB * times), 8 * GB, "sdxl"))
    remember(Measured("other gpu", 16 * GB, 8 * GB))
    remember(Measured("gpu", 2 * GB, GB))
    remember(Measured("gpu", 80 * GB, 8 * GB))
    found = correction(10 * GB, "gpu")
    assert found.factor == pytest.approx(1.04) and found.runs == 3
    assert correction(100 * GB, "gpu") == Correction()


def test_no_file_and_no_folder_correct_nothing(store):
    assert recall("gpu") == [] and correction(GB, "gpu") == Correction()


@pytest.mark.parametrize("damage", [
    b"\xff\xfe\x00{", b'{"device": "gpu", "measured"', b"[" * 100_000,
    b'{"device": "gpu", "measured": -1, "forecast": 1, "base": ""}',
    b'{"device": "gpu", "measured": 1e999, "forecast": 1, "base": ""}', b'["gpu", 1, 1]', b"null",
    b'{"device": "gpu", "measured": 5, "forecast": 0, "base": ""}',
], ids=lambda damage: damage[:40].decode("latin1"))  # fmt: skip
def test_damaged_lines_are_passed_over(store, damage):
    """Also half a line, without an end, that a killed process leaves: the next run begins a line of its own."""
    store.parent.mkdir()
    store.write_bytes(damage)
    remember(Measured("gpu", 11, 10))
    assert recall("gpu") == [Measured("gpu", 11, 10)]


def test_a_folder_in_its_place_is_no_file(store):
    store.mkdir(parents=True)
    assert recall("gpu") == []


def test_several_processes_write_at_once(store):
    code = (
        "import sys; from studio.planning.measured import Measured, remember\n"
        "for n in range(40): remember(Measured(sys.argv[1], n + 1, 1))"
    )
    started = [subprocess.Popen([sys.executable, "-c", code, name]) for name in "abc"]
    assert [one.wait(timeout=120) for one in started] == [0, 0, 0]
    for name in "abc":
        assert [run.measured for run in recall(name)] == [*range(1, 41)]


def test_the_file_stays_small_and_keeps_the_newest(store):
    for number in range(2 * measured.KEPT + 5):
        remember(Measured("gpu", number + 1, 1))
    runs = recall("gpu")
    assert len(runs) < 2 * measured.KEPT and runs[-1].measured == 2 * measured.KEPT + 5
