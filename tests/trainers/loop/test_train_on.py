"""Training on: a finished run to more steps, and a new run from an adapter file."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

import studio
from studio.adapters import IA3, AdaLoRA, LoRA
from studio.errors import BadFile, DoesNotFit, PartialLoad
from studio.families import open_base
from studio.trainers import train
from studio.trainers.loop.run import sha256


@pytest.fixture
def settings(tmp_path):
    return {"batch_size": 2, "quiet": True, "cache": str(tmp_path / "cache"), "schedule": "constant", "warmup": 0}


@pytest.mark.parametrize("config", [LoRA(rank=2), IA3()], ids=["lora", "ia3"])
def test_a_finished_run_trains_on_from_its_own_tensors(dreambooth, settings, tmp_path, config):
    short = train(dreambooth, output=tmp_path / "run", steps=2, adapter=config, **settings)
    losses, before = short.losses, load_file(short.adapter)
    with pytest.raises(DoesNotFit, match=r"training.steps was 2 and is 4.*--continue with more steps trains on"):
        train(dreambooth, output=tmp_path / "run", steps=4, adapter=config, **settings)
    run = train(dreambooth, output=tmp_path / "run", steps=4, adapter=config, further=True, **settings)
    assert not run.already and len(run.losses) == 4 and run.losses[:2] == losses
    after = load_file(run.adapter)
    assert after.keys() == before.keys() and any(not torch.equal(after[key], before[key]) for key in after)
    assert "training on after 2 steps" in run.report.read_text(encoding="utf-8")
    again = train(dreambooth, output=tmp_path / "run", steps=4, adapter=config, further=True, **settings)
    assert again.already and again.losses == run.losses


def test_an_unfinished_run_that_trains_on_is_the_longer_run_to_the_bit(dreambooth, settings, tmp_path, monkeypatch):
    """Its moments are in the checkpoint; the rate is constant, so nothing else depends on the length."""
    from studio.trainers.image.diffusion import Diffusion

    def die(self, done):
        if done == 2:
            raise ZeroDivisionError

    config = LoRA(rank=2)
    whole = train(dreambooth, output=tmp_path / "whole", steps=4, adapter=config, **settings)
    with monkeypatch.context() as patch:
        patch.setattr(Diffusion, "after_step", die)
        with pytest.raises(ZeroDivisionError):
            train(dreambooth, output=tmp_path / "run", steps=3, adapter=config, checkpoint_every=1, **settings)
    run = train(dreambooth, output=tmp_path / "run", steps=4, adapter=config, further=True, **settings)
    assert run.adapter.read_bytes() == whole.adapter.read_bytes()


@pytest.mark.parametrize("config", [AdaLoRA(rank=2), LoRA(rank=2, init="pissa")], ids=["ranks given up", "two pairs"])
def test_an_adapter_whose_file_has_another_form_cannot_train_on(dreambooth, settings, tmp_path, config):
    given = {"output": tmp_path / "run", "adapter": config, **settings}
    run = train(dreambooth, steps=4, **given)
    before = run.adapter.read_bytes()
    with pytest.raises(DoesNotFit, match="another form than it was trained in.*with --from"):
        train(dreambooth, steps=6, further=True, **given)
    assert run.adapter.read_bytes() == before and train(dreambooth, steps=4, **given).already


def test_only_more_steps_are_trained_on(dreambooth, settings, tmp_path):
    train(dreambooth, output=tmp_path / "run", steps=3, adapter=LoRA(rank=2), **settings)
    for change in ({"steps": 2}, {"steps": 4, "seed": 1}, {"steps": 4, "adapter": LoRA(rank=3)}):
        with pytest.raises(DoesNotFit, match="holds a run with other settings"):
            train(dreambooth, output=tmp_path / "run", further=True, **{"adapter": LoRA(rank=2), **settings, **change})


def test_a_run_from_an_adapter_file_starts_where_that_one_ended(dreambooth, settings, tmp_path):
    first = train(dreambooth, output=tmp_path / "first", steps=2, adapter=LoRA(rank=2, alpha=6), **settings)
    settings |= {"steps": 1, "learning_rate": 1e-7}
    still = train(dreambooth, output=tmp_path / "second", adapter=first.adapter, **settings)
    before, after = load_file(first.adapter), load_file(still.adapter)
    assert before.keys() == after.keys()
    assert all(torch.allclose(after[key], before[key], atol=1e-6) for key in after)
    facts = studio.inspect(still.adapter)
    assert facts.facts["parents"] == sha256(first.adapter) and facts.rank == 2
    assert f'start = "{sha256(first.adapter)}"' in (still.folder / "run.toml").read_text()
    by_folder = train(dreambooth, output=tmp_path / "third", adapter=first.folder, **settings)
    assert by_folder.adapter.read_bytes() == still.adapter.read_bytes()


@pytest.mark.parametrize("format", ["kohya", "peft", "diffusers"])
def test_files_of_other_programs_are_trained_on(dreambooth, settings, tmp_path, tiny_base, format):
    pipe = open_base(tiny_base).pipe
    studio.attach(pipe.unet, LoRA(rank=3, alpha=5, targets="attention"))
    file = studio.save(pipe.unet, tmp_path / ("given" if format == "peft" else "given.safetensors"), format=format)
    run = train(dreambooth, output=tmp_path / "run", steps=1, adapter=file, learning_rate=1e-7, **settings)
    made = studio.inspect(run.adapter)
    assert made.rank == 3 and made.config.scale_at(made.sites[0]) == pytest.approx(5 / 3)


def test_what_cannot_be_trained_on_is_refused_before_a_base_is_opened(dreambooth, settings, tmp_path, monkeypatch):
    monkeypatch.setattr("studio.trainers.image_task.open_base", None)
    for given in ("nowhere.safetensors", tmp_path):
        with pytest.raises(BadFile):
            train(dreambooth, output=tmp_path / "run", steps=1, adapter=given, **settings)
    assert not (tmp_path / "run").exists()


def test_an_adapter_of_other_layers_is_refused(dreambooth, settings, tmp_path):
    net = torch.nn.Sequential(torch.nn.Linear(4, 4))
    studio.attach(net, LoRA(rank=2, targets=("0",)))
    file = studio.save(net, tmp_path / "other.safetensors")
    with pytest.raises((DoesNotFit, PartialLoad)):
        train(dreambooth, output=tmp_path / "run", steps=1, adapter=file, **settings)
    assert not (tmp_path / "run").exists()
