"""Training on bases that are kept in few bits: resuming, checkpointing, norms, optimizers, and what files say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tomllib
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

import studio
from packings import prepare
from studio.adapters import LoRA
from studio.cli import main
from studio.errors import BadConfig, DoesNotFit, UnknownName
from studio.families import open_base
from studio.families.language import open_language_base
from studio.pipelines import ImagePipeline
from studio.quantization.counting import packed_layers
from studio.trainers import CausalLM, DreamBooth, Plan, train
from studio.trainers.image.diffusion import Diffusion
from studio.trainers.loop.exact_norms import ExactNorms
from studio.trainers.loop.optimizer import OPTIMIZERS

OF_BITSANDBYTES = ("adamw-8bit", "paged-adamw", "paged-adamw-8bit")


def task_on(base, photos, how="fp8", **more):
    return DreamBooth(
        base=base, instance_images=photos, instance_prompt="a photo of sks robot", preview_prompts=(), quantize=how,
        **more,
    )  # fmt: skip


@pytest.fixture
def settings(tmp_path):
    return {
        "steps": 4, "batch_size": 2, "quiet": True, "cache": str(tmp_path / "cache"), "checkpoint_every": 2,
        "adapter": LoRA(rank=2),
    }  # fmt: skip


class Killed(Exception):
    """Stands for a process that ends here."""


def die_at(monkeypatch, step):
    whole = Diffusion.after_step

    def after_step(self, done):
        whole(self, done)
        if done == step:
            raise Killed

    monkeypatch.setattr(Diffusion, "after_step", after_step)


@pytest.mark.parametrize(
    ("how", "optimizer"),
    [("fp8", "adamw"), ("fp8,text_encoder=fp8", "adamw"), ("nf4", "adamw-8bit"), ("int8", "paged-adamw-8bit")],
)
def test_a_killed_run_on_a_quantised_base_goes_on_bit_for_bit(
    tiny_base, photos, settings, tmp_path, monkeypatch, how, optimizer
):
    prepare("nf4" if "adamw-" in optimizer else "fp8")
    settings["optimizer"] = optimizer
    whole = train(task_on(tiny_base, photos, how), output=tmp_path / "whole", **settings)
    with monkeypatch.context() as patch:
        die_at(patch, 3)
        with pytest.raises(Killed):
            train(task_on(tiny_base, photos, how), output=tmp_path / "run", **settings)
    again = train(task_on(tiny_base, photos, how), output=tmp_path / "run", **settings)
    assert again.adapter.read_bytes() == whole.adapter.read_bytes() and again.losses == whole.losses
    said = tomllib.loads((tmp_path / "whole" / "run.toml").read_text())
    assert said["task"]["quantize"] == how and said["inputs"]["base_hash"] == open_base(tiny_base).hash


def test_a_run_that_is_quantised_otherwise_is_another_run(tiny_base, photos, settings, tmp_path):
    train(task_on(tiny_base, photos), output=tmp_path / "run", **settings)
    with pytest.raises(DoesNotFit, match="quantize"):
        train(task_on(tiny_base, photos, None), output=tmp_path / "run", **settings)
    with pytest.raises(UnknownName, match="no way to quantise is named 'fp9'; did you mean"):
        train(task_on(tiny_base, photos, "fp9"), output=tmp_path / "other", **settings)


def test_gradient_checkpointing_changes_nothing(tiny_base, photos, settings, tmp_path):
    plain = train(task_on(tiny_base, photos), output=tmp_path / "a", **settings)
    spared = train(task_on(tiny_base, photos), output=tmp_path / "b", gradient_checkpointing=True, **settings)
    first, second = (load_file(run.adapter) for run in (plain, spared))
    for key, tensor in first.items():
        torch.testing.assert_close(second[key], tensor, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("optimizer", OF_BITSANDBYTES)
def test_the_optimizers_of_bitsandbytes_go_where_adamw_goes(tiny_base, photos, settings, tmp_path, optimizer):
    prepare("nf4")
    plain = train(task_on(tiny_base, photos), output=tmp_path / "a", **settings)
    other = train(task_on(tiny_base, photos), output=tmp_path / "b", optimizer=optimizer, **settings)
    assert optimizer in OPTIMIZERS and other.losses[0] == plain.losses[0]
    for mine, wanted in zip(other.losses, plain.losses, strict=True):
        assert mine == pytest.approx(wanted, rel=0.02)


def test_moments_of_8_bits_cannot_grow():
    with pytest.raises(BadConfig, match="the moments of adamw-8bit are in blocks that cannot grow"):
        Plan(optimizer="adamw-8bit", grow={"2": 4})


def test_norms_compute_in_fp32_and_come_back() -> None:
    base = open_language_base("facts", dtype="bf16", quantize="fp8")
    norms = [one for one in base.model.modules() if "Norm" in type(one).__name__]
    before = [(one.weight, dict(vars(one))) for one in norms]
    ids = torch.arange(8)[None]
    wanted = base.model(ids).logits
    exact = ExactNorms([base.model])
    assert exact.count == len(norms) > 2 and {one.weight.dtype for one in norms} == {torch.float32}
    made = base.model(ids).logits
    assert (
        made.dtype == torch.bfloat16
        and float((made - wanted).detach().float().norm() / wanted.float().norm().detach()) < 0.05
    )
    exact.give_back()
    assert all(one.weight is weight for one, (weight, _) in zip(norms, before, strict=True))
    assert not any(one._forward_hooks or one._forward_pre_hooks for one in norms)
    assert torch.equal(base.model(ids).logits, wanted)
    assert ExactNorms([open_language_base("facts", dtype="bf16").model]).count == 0  # nothing is quantised


def test_a_quantised_language_model_is_tuned(tiny_language, tmp_path):
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"Capital of {s}?", "completion": "x"}) + "\n" for s in "ABCD"))
    run = train(
        CausalLM(base=tiny_language, data=data, quantize="fp8", preview_prompts=()), output=tmp_path / "run",
        adapter=LoRA(rank=2), steps=2, batch_size=2, quiet=True,
    )  # fmt: skip
    base = open_language_base(tiny_language, quantize="fp8")
    assert studio.load(base.model, run.adapter).sites and next(packed_layers(base.model), None) is not None


def test_a_picture_says_that_its_base_was_quantised_and_is_made_again(tiny_base):
    pipe = ImagePipeline.open(tiny_base, quantize="fp8,text_encoder=fp8")
    picture = pipe.generate("a robot", steps=2)[0]
    said = json.loads(picture.info["studio"])["base"]
    assert said["quantize"] == "text_encoder=fp8,unet=fp8" and said["hash"] in (None, open_base(tiny_base).hash)
    plain = ImagePipeline.open(tiny_base)
    assert plain.generate("a robot", steps=2)[0].tobytes() != picture.tobytes()
    assert plain.base.fingerprint != pipe.base.fingerprint and plain.base.hash == pipe.base.hash


def test_the_command_line_quantises_and_says_what_it_has_done(tmp_path: Path) -> None:
    how = ["--quantize", "fp8,text_encoder=grid8"]
    made = CliRunner().invoke(main, ["generate", "emoji", "a robot", *how, "--steps", "2", "-o", str(tmp_path)])
    assert made.exit_code == 0, made.output
    assert "unet: 80 layers in fp8" in made.output and "text_encoder: 18 layers in grid8" in made.output
    wrong = CliRunner().invoke(main, ["complete", "facts", "Capital of Peru?", "--quantize", "unet=fp8"])
    assert wrong.exit_code == 2 and "names a component, and the model has none" in wrong.output


def test_a_whole_model_from_a_quantised_base_is_dense(tiny_base, tmp_path) -> None:
    pipe = ImagePipeline.open(tiny_base, quantize="fp8")
    studio.attach(pipe.pipe, LoRA(rank=2, init="orthogonal"))
    from studio.pipelines.whole_model import write_whole_model

    folder, apart = write_whole_model(pipe.base, tmp_path / "whole")
    assert apart <= 1 / 255 and next(packed_layers(open_base(folder).pipe.unet), None) is None
    assert next(packed_layers(pipe.pipe.unet), None) is not None
