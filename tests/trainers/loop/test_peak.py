"""What a run holds at most: measured, written down beside the forecast, and kept for the next forecast."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

import studio
from studio.config import read_toml
from studio.device import allocated
from studio.errors import DoesNotFit
from studio.planning.forecast import Forecast, Phase
from studio.planning.measured import Measured, recall
from studio.trainers import DreamBooth, train
from studio.trainers.forecast import plan
from studio.trainers.loop.peak import WORTH, Meter, taken

PICTURES = studio.families.BASES["emoji"].parent / "instances" / "robot"
MIB = 2**20


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("STUDIO_CACHE", str(tmp_path / "cache"))


def trained(folder, **settings):
    task = DreamBooth(base="emoji", instance_images=PICTURES, instance_prompt="a photo of sks robot", prior="none",
                      preview_prompts=())  # fmt: skip
    return train(task, output=folder, steps=2, batch_size=1, quiet=True, **settings)


@pytest.mark.skipif(allocated(torch.device("cpu")) is None, reason="this system does not tell")
def test_the_peak_is_what_modules_take_and_what_came_on_top():
    """64 MiB of weights, tied once more, and 256 MiB that came and went; a system counts pages by the dozen."""
    layer = nn.Linear(4096, 4096, bias=False)
    tied = nn.Linear(4096, 4096, bias=False)
    tied.weight = layer.weight
    before = torch.ones(300 * MIB // 4)  # which is not the run's
    meter = Meter([layer, tied])
    assert meter.held == 64 * MIB
    block = torch.ones(256 * MIB // 4)
    del block
    assert -2 * MIB < meter.peak - (64 + 256) * MIB < 32 * MIB
    assert Meter([layer]).peak < 64 * MIB + 32 * MIB, "a new one begins anew"
    del before


def test_a_run_whose_fit_was_asked_stands_beside_its_forecast(tmp_path):
    """In ``result.toml``, and in the report as bars and a table."""
    run = trained(tmp_path / "run", fit="2GB")
    memory = read_toml(run.folder / "result.toml")["memory"]
    same = plan("emoji", batch_size=1, dtype="fp32", prior="none", previews=False)
    assert memory["forecast"] == same.counted
    page = run.report.read_text(encoding="utf-8")
    cells = re.findall(r"<tr><td>(\w+)</td>", page[page.index("<h2>Memory") :])
    assert cells[: len(same.phases)] == [phase.name for phase in same.phases]
    assert 'alt="what each phase holds by the forecast, and what was measured"' in page
    if allocated(torch.device("cpu")) is not None:
        assert memory["peak"] > 0 and "measured" in page


def test_a_short_run_makes_no_forecast(tmp_path):
    run = trained(tmp_path / "run")
    assert "forecast" not in read_toml(run.folder / "result.toml")["memory"]
    assert "<h2>Memory" not in run.report.read_text(encoding="utf-8")
    assert recall("cpu") == []


class _Run:
    """As much of a training as is looked at: a meter that has run long, and a lesson with a forecast."""

    def __init__(self, foresee):
        self.meter = Meter([nn.Linear(8, 8)])
        self.meter._begin -= WORTH
        self.foresee, self.plan, self.said = foresee, studio.trainers.Plan(), []

    def taken(self):
        return taken(self.meter, self, self.said.append)


def test_large_runs_are_kept_for_the_next_forecast_and_small_ones_on_a_cpu_are_not():
    for size in (10**8, 2 * 10**9):
        run = _Run(lambda size=size: Forecast("base", {}, (Phase("forward", {"weights": size}),)))
        assert run.taken().forecast.counted == size and run.said == []
    measured = run.taken().measured
    if measured is not None:
        assert {(one.device, one.forecast, one.base) for one in recall("cpu")} == {("cpu", 2 * 10**9, "base")}
        assert isinstance(recall("cpu")[0], Measured)


@pytest.mark.parametrize("problem", [DoesNotFit("no forecast is made of it"), ZeroDivisionError("by zero")], ids=repr)
def test_what_a_forecast_comes_upon_costs_the_run_nothing(problem):
    def foresee():
        raise problem

    run = _Run(foresee)
    assert run.taken().forecast is None
    assert str(problem) in run.said[0] and len(run.said) == 1
