"""What docs/render.md shows can be copied: every list is read and drawn, and every field of a job is in its table."""

from __future__ import annotations

import re
import sys
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner

import studio
from studio.cli import main
from studio.pipelines import ImagePipeline
from studio.pipelines.rendering import names
from studio.pipelines.rendering.job import FIELDS
from studio.pipelines.rendering.listing import Listing, read_jobs


@pytest.fixture(scope="module")
def page(root):
    return (root / "docs" / "render.md").read_text(encoding="utf-8")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two adapters that act, in the folder that is the current one."""
    pipe = ImagePipeline.open("emoji")
    for seed, name in enumerate(("robot", "ink")):
        studio.attach(pipe.pipe, studio.LoRA(rank=2), name=name, seed=seed)
        with torch.no_grad():
            for key, tensor in studio.state(pipe.pipe, name).items():
                if key.endswith(".up"):
                    tensor.fill_(0.01)
        studio.save(pipe.pipe, tmp_path / f"{name}.safetensors", name=name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def quick(listing):
    """The same list with one step for each picture."""
    return Listing([replace(job, steps=1) for job in listing.jobs], listing.bad)


def block(page, language):
    return re.search(rf"^```{language}\n(.*?)^```$", page, re.M | re.S)[1]


@pytest.mark.parametrize(("form", "jobs"), [("yaml", 17), ("csv", 4), ("jsonl", 5)])
def test_each_form_of_a_list_can_be_copied(page, folder, monkeypatch, form, jobs):
    (folder / f"jobs.{form}").write_text(block(page, form))
    found = read_jobs(folder / f"jobs.{form}", base="emoji")
    assert (len(found.jobs), found.bad) == (jobs, [])
    words = ["render", f"jobs.{form}", "--base", "emoji", "-o", "out", "--device", "cpu", "--batch-size", "4"]
    monkeypatch.setattr(
        sys.modules["studio.pipelines.rendering.render"],
        "read_jobs",
        lambda jobs, **given: quick(read_jobs(jobs, **given)),
    )
    result = CliRunner().invoke(main, words, prog_name="studio")
    assert result.exit_code == 0, result.stderr
    assert len(list((folder / "out").glob("*.png"))) == jobs


def test_the_call_from_python_can_be_copied(page, folder, capsys):
    exec(compile(block(page, "python"), "render.md", "exec"), {})  # noqa: S102
    assert capsys.readouterr().out == "4 4 0 []\n"


def test_the_page_has_every_field(page):
    told = set(re.findall(r"`([\w:*]+)`", page))
    assert {*FIELDS, "seeds", "adapters", "axes", "strength:NAME"} <= told
    assert set(names.FIELDS) <= told
