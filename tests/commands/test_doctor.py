"""The doctor says what is there, what is missing and what to do, and never raises."""

from __future__ import annotations

import sys

import torch

from studio import doctor
from studio.doctor import diagnose
from studio.packages import EXTRAS


def by_name(rows):
    return {row.name: row for row in rows}


def test_versions_and_devices_are_those_of_this_machine(tmp_path):
    rows = by_name(diagnose(tmp_path, open_the_base=False))
    assert rows["python"].text.startswith(sys.version.split()[0])
    assert rows["torch"].text == torch.__version__ and rows["torch"].state == "ok"
    assert "fp32" in rows["cpu"].text and rows[str(tmp_path)].state == "ok"
    assert {"quant", "llm", "metrics", "heic"} <= set(rows)


def test_a_missing_extra_says_the_command_and_the_gain(tmp_path, monkeypatch):
    versions = {"bitsandbytes": "0.50.2"}
    monkeypatch.setattr(doctor, "version_of", lambda package: versions.get(package))
    row = by_name(diagnose(tmp_path, open_the_base=False))["quant"]
    assert row.state == "missing"
    assert row.text == f"{EXTRAS['quant'].command} adds {EXTRAS['quant'].adds} (there: bitsandbytes 0.50.2)"
    assert by_name(diagnose(tmp_path, open_the_base=False))["torch"].state == "problem"


def test_a_folder_that_does_not_exist_yet_is_judged_by_its_parent(tmp_path):
    row = by_name(diagnose(tmp_path / "runs" / "new", open_the_base=False))[str(tmp_path / "runs" / "new")]
    assert row.state == "ok" and row.text.endswith("GiB free") and not (tmp_path / "runs").exists()


def test_the_embedded_bases_are_opened(tmp_path):
    for row, name in zip(diagnose(tmp_path)[-2:], ("emoji", "facts"), strict=True):
        assert (row.group, row.name, row.state) == ("base", name, "ok"), row.text
    assert "64x64 pixels" in diagnose(tmp_path)[-2].text


def test_a_base_that_cannot_be_opened_is_a_problem_not_a_crash(tmp_path, monkeypatch):
    import studio.families

    def broken(name):
        raise OSError("weights are missing")

    monkeypatch.setattr(studio.families, "open_base", broken)
    row = diagnose(tmp_path)[-2]
    assert row.state == "problem" and row.text == "cannot be opened: OSError: weights are missing"
