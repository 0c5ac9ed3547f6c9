"""The loop and its guards, on a tiny base with real files."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch
from PIL import Image

import studio
from studio.adapters import IA3, DoRA, LoKr, LoRA
from studio.datasets.check import check_folder
from studio.datasets.trigger import Trigger
from studio.errors import BadConfig, BadFile, DoesNotFit, NoTargets, NothingTrained
from studio.families import FAMILIES, components, open_base
from studio.trainers import DreamBooth, NotFinite, Plan, Style, train
from studio.trainers.loop.guard import check_moved, check_trainable
from studio.trainers.loop.run import sha256

PROMPT, CLASS = "a photo of sks robot", "a photo of robot"


@pytest.fixture
def dreambooth(tiny_base, photos):
    """Makes a small DreamBooth task."""

    def make(**fields):
        given = {"base": tiny_base, "instance_images": photos, "instance_prompt": PROMPT, "preview_prompts": ()}
        return DreamBooth(**{**given, "prior": "none", **fields})

    return make


@pytest.fixture
def settings(tmp_path):
    """Settings of a short run."""
    return {"steps": 3, "batch_size": 2, "quiet": True, "cache": str(tmp_path / "cache"), "adapter": LoRA(rank=2)}


@pytest.mark.parametrize("config", [LoRA(rank=2), DoRA(rank=2), IA3(), LoKr(rank=2)], ids=lambda config: config.method)
def test_train_makes_an_adapter_that_loads_and_acts(dreambooth, settings, tmp_path, tiny_base, config):
    run = train(dreambooth(), output=tmp_path / "run", **{**settings, "adapter": config, "learning_rate": 1e-2})
    assert len(run.losses) == 3 and all(map(math.isfinite, run.losses)) and not run.already
    pipe = open_base(tiny_base).pipe
    x, t = torch.randn(1, 4, 8, 8), torch.tensor([500])
    with torch.no_grad():
        before = pipe.unet(x, t, torch.ones(1, 4, 16)).sample
        report = studio.load(pipe, run.adapter)
        after = pipe.unet(x, t, torch.ones(1, 4, 16)).sample
    assert report.name == "sks-robot" and not report.ignored
    assert not torch.equal(before, after)


def test_run_folder_says_what_was_done(dreambooth, settings, tmp_path):
    run = train(dreambooth(class_prompt=CLASS, prior="self"), output=tmp_path / "run", checkpoint_every=2, **settings)
    text = (run.folder / "run.toml").read_text()
    assert 'method = "lora"' in text and "base_hash" in text and 'prior = "self"' in text
    lines = [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert lines[0]["loss"] == pytest.approx(lines[0]["instance"] + lines[0]["prior"], rel=1e-6)
    page = run.report.read_text()
    assert "<svg" in page and sha256(run.adapter) in page and "update norm" in page
    assert (run.folder / "checkpoints" / "step-000002.safetensors").is_file()
    assert not list(run.folder.glob("checkpoints/*.state")) and not list(run.folder.rglob("*.tmp"))
    assert not (run.folder / ".lock").exists()


def test_two_runs_are_byte_identical_and_seeds_differ(dreambooth, settings, tmp_path):
    task = dreambooth(text_encoder=True, class_prompt=CLASS, prior="self")
    first, second, other = (
        train(task, output=tmp_path / name, seed=seed, **settings) for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert first.adapter.read_bytes() == second.adapter.read_bytes() != other.adapter.read_bytes()


def test_caches_and_previews_change_nothing(dreambooth, settings, tmp_path):
    plain = train(dreambooth(flip=True), output=tmp_path / "a", **settings)
    warm = train(  # the second time latents and embeddings come from disk
        dreambooth(flip=True, preview_prompts=(PROMPT,), preview_steps=2), output=tmp_path / "b", preview_every=1,
        checkpoint_every=1, **settings,
    )  # fmt: skip
    assert plain.adapter.read_bytes() == warm.adapter.read_bytes()


def test_accumulation_equals_a_larger_batch(dreambooth, settings, tmp_path):
    shape = {**settings, "steps": 2, "clip": 0.0}
    task = dreambooth(class_prompt=CLASS, prior="self")
    whole = train(task, output=tmp_path / "a", **{**shape, "batch_size": 4})
    parts = train(task, output=tmp_path / "b", **{**shape, "batch_size": 2, "accumulation": 2})
    assert parts.losses[0] == pytest.approx(whole.losses[0], rel=1e-5)
    assert parts.losses[1] == pytest.approx(whole.losses[1], rel=1e-3)  # one AdamW step magnifies last bits


def test_gradient_checkpointing_gives_the_same_losses(dreambooth, settings, tmp_path):
    task = dreambooth(text_encoder=True)
    plain = train(task, output=tmp_path / "a", **settings)
    checkpointed = train(task, output=tmp_path / "b", gradient_checkpointing=True, **settings)
    assert checkpointed.losses == pytest.approx(plain.losses, rel=1e-5)


@pytest.mark.parametrize("checkpointed", [False, True])
def test_activations_that_wait_elsewhere_change_no_bit(dreambooth, settings, tmp_path, checkpointed):
    runs = [
        train(dreambooth(), output=tmp_path / str(away), offload_activations=away, gradient_checkpointing=checkpointed,
              **settings)
        for away in (False, True)
    ]  # fmt: skip
    assert runs[0].adapter.read_bytes() == runs[1].adapter.read_bytes()


def test_bf16_trains_fp32_tensors(dreambooth, settings, tmp_path):
    run = train(dreambooth(), output=tmp_path / "a", precision="bf16", **settings)
    assert all(map(math.isfinite, run.losses))
    fp32 = train(dreambooth(), output=tmp_path / "b", **settings)
    assert run.losses != fp32.losses and run.losses == pytest.approx(fp32.losses, rel=0.05)


def test_average_is_what_is_saved(dreambooth, settings, tmp_path):
    live = train(dreambooth(), output=tmp_path / "a", **settings)
    average = train(dreambooth(), output=tmp_path / "b", ema=0.9, **settings)
    assert average.losses == live.losses  # the average acts on nothing while training
    assert average.adapter.read_bytes() != live.adapter.read_bytes()


def test_text_encoder_has_its_own_rate(dreambooth, settings, tmp_path):
    base = open_base(dreambooth().base)
    task = dreambooth(base=base.pipe, text_encoder=True, text_encoder_learning_rate=1e-5)
    lesson = task.open(LoRA(rank=2), Plan(learning_rate=1e-3), lambda line: None)
    assert lesson.rates == {"unet": 1e-3, "text_encoder": 1e-5}
    run = train(task, output=tmp_path / "a", **settings)
    sites = {key.partition(".")[0] for key in studio.inspect(run.adapter).tensors}
    assert sites == {"unet", "text_encoder"}


def test_a_pipeline_object_comes_back_as_it_was(dreambooth, settings, tmp_path):
    pipe = open_base(dreambooth().base).pipe
    parts = components(pipe)
    before = {name: {key: value.clone() for key, value in part.state_dict().items()} for name, part in parts.items()}
    required = [parameter.requires_grad for part in parts.values() for parameter in part.parameters()]
    train(dreambooth(base=pipe, text_encoder=False), output=tmp_path / "a", gradient_checkpointing=True, **settings)
    for name, part in parts.items():
        assert list(part.state_dict()) == list(before[name])
        assert all(torch.equal(value, before[name][key]) for key, value in part.state_dict().items())
        assert not part.training
    assert required == [parameter.requires_grad for part in parts.values() for parameter in part.parameters()]
    assert not pipe.unet.is_gradient_checkpointing


def test_style_puts_the_trigger_in_front_of_captions(tiny_base, photos, settings, tmp_path):
    for number in range(4):
        (photos / f"photo{number}.txt").write_text(f"thing {number}")
    task = Style(base=tiny_base, images=photos, trigger="ink style", preview_prompts=(), caption_dropout=0.2)
    lesson = task.open(None, Plan(), lambda line: None)
    assert lesson.captions_of[0] == "ink style, thing 0" and lesson.captions_of[4] == "ink style"
    run = train(task, output=tmp_path / "run", **settings)
    facts = studio.inspect(run.adapter).metadata
    assert facts["modelspec.trigger_phrase"] == "ink style"


def test_nothing_trainable_is_refused_before_step_1(dreambooth, settings, tmp_path):
    config = LoRA(rank=2, targets=("unet.*.to_q",))
    with pytest.raises(NothingTrained, match="nothing would be trained in text_encoder"):
        train(dreambooth(text_encoder=True), output=tmp_path / "run", **{**settings, "adapter": config})
    assert not (tmp_path / "run").exists()


def test_a_target_that_matches_nothing_leaves_nothing_behind(dreambooth, settings, tmp_path):
    with pytest.raises(NoTargets, match="nearest"):
        train(dreambooth(), output=tmp_path / "run", **{**settings, "adapter": LoRA(rank=2, targets=("to_qq",))})
    assert not (tmp_path / "run").exists()


def test_tensors_that_do_not_move_are_named():
    weight = torch.nn.Parameter(torch.ones(2))
    start = {"unet.to_q.up": torch.ones(2)}
    with pytest.raises(NothingTrained, match=r"no gradient has reached unet.to_q.up"):
        check_moved(start, {"unet.to_q.up": weight}, 2)
    weight.grad = torch.zeros(2)
    with pytest.raises(NothingTrained, match=r"nothing has changed in unet.to_q"):
        check_moved(start, {"unet.to_q.up": weight}, 2)
    with torch.no_grad():
        weight += 1
    check_moved(start, {"unet.to_q.up": weight}, 2)
    with pytest.raises(NothingTrained, match="text_encoder"):
        check_trainable({"unet.to_q.up": weight}, ["unet", "text_encoder"])


def test_a_site_that_gets_no_gradient_stops_the_run(dreambooth, settings, tmp_path, monkeypatch):
    """A layer whose output is thrown away is called, so only its gradient tells."""
    task = dreambooth(base=open_base(dreambooth().base).pipe)
    unet = task.base.unet
    layer = unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1.to_out[0]
    layer.register_forward_hook(lambda module, given, output: output.detach())
    with pytest.raises(NothingTrained, match=r"attn1\.to_out\.0"):
        train(task, output=tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()


def test_nan_stops_with_the_modules_name_and_keeps_the_checkpoint(dreambooth, settings, tmp_path):
    pipe = open_base(dreambooth().base).pipe
    calls = []

    def break_it(module, given, output):
        calls.append(1)
        return output * float("nan") if len(calls) > 3 else output

    pipe.unet.mid_block.resnets[0].conv2.register_forward_hook(break_it)
    message = r"step 4: the loss is nan.*unet\.mid_block\.resnets\.0\.conv2.*step 2"
    with pytest.raises(NotFinite, match=message) as caught:
        train(dreambooth(base=pipe), output=tmp_path / "run", checkpoint_every=2, **{**settings, "steps": 6})
    assert caught.value.exit_code == 1
    assert (tmp_path / "run" / "checkpoints" / "step-000002.state").is_file()
    assert not (tmp_path / "run" / "adapter.safetensors").exists()


def test_nan_in_the_data_is_named_as_such(dreambooth, settings, tmp_path):
    pipe = open_base(dreambooth().base).pipe
    with torch.no_grad():
        pipe.vae.encoder.conv_in.weight.fill_(float("nan"))
    with pytest.raises(NotFinite, match=r"what goes into unet\.conv_in; there is no checkpoint yet"):
        train(dreambooth(base=pipe), output=tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"instance_prompt": " "}, "instance_prompt is empty"),
        ({"class_prompt": PROMPT}, "nothing tells the subject"),
        ({"prior": "self", "instance_prompt": "a photo of sks"}, "needs a class_prompt"),
        ({"prior": "images", "class_prompt": CLASS}, "needs class_images"),
        ({"prior": "own"}, "did you mean"),
        ({"prior": "none", "class_prompt": CLASS, "class_images": "x"}, "would not use them"),
        ({"text_encoder": False, "text_encoder_learning_rate": 1e-3}, "drop one"),
        ({"crop": "middle"}, "crop"),
    ],
)
def test_contradicting_fields_are_refused(dreambooth, fields, message):
    with pytest.raises(BadConfig, match=message):
        dreambooth(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"steps": 0}, "steps=0"), ({"learning_rate": 0.0}, "learning_rate=0"), ({"seed": -1}, "seed=-1"),
        ({"ema": 1.0}, "ema=1"), ({"schedule": "linear"}, "schedule"), ({"precision": "fp8"}, "precision"),
        ({"batch_size": 1.5}, "batch_size"), ({"clip": float("inf")}, "clip=inf"),
    ],
)  # fmt: skip
def test_impossible_plans_are_refused(fields, message):
    with pytest.raises(BadConfig, match=message):
        Plan(**fields)


def test_bad_data_and_prompts_are_one_sentence(dreambooth, settings, tmp_path):
    with pytest.raises(BadFile, match="there is no image folder"):
        train(dreambooth(instance_images=tmp_path / "none"), output=tmp_path / "run", **settings)
    with pytest.raises(DoesNotFit, match="lacks the trigger 'sks robot'"):
        train(dreambooth(preview_prompts=("a photo of robot",)), output=tmp_path / "run", **settings)
    with pytest.raises(DoesNotFit, match="multiples of 8; use 96 x 104"):
        train(dreambooth(resolution=(99, 101)), output=tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()


def test_captions_that_lack_the_trigger_get_the_instance_prompt(dreambooth, photos):
    (photos / "photo0.txt").write_text("red background")
    (photos / "photo1.txt").write_text("the sks robot in rain")
    lesson = dreambooth().open(None, Plan(), lambda line: None)
    assert lesson.captions_of[:3] == ["a photo of sks robot, red background", "the sks robot in rain", PROMPT]
    assert dreambooth(captions=False).open(None, Plan(), lambda line: None).captions_of == [PROMPT] * 5


def test_check_reads_the_captions_that_are_trained(dreambooth, tiny_base, photos):
    for number, caption in enumerate(["red background", "a sks robot.", "Sks, robot in rain", "ink Style", "x"]):
        (photos / f"photo{number}.txt").write_text(caption)
    subject = dreambooth().open(None, Plan(), lambda line: None)
    assert check_folder(photos, instance_prompt=PROMPT).sent == tuple(subject.captions_of[:3])
    assert subject.origin["trigger"] == Trigger.of_subject(PROMPT).words
    style = Style(base=tiny_base, images=photos, trigger="ink style").open(None, Plan(), lambda line: None)
    assert check_folder(photos, trigger="ink style").sent == tuple(style.captions_of[:3])
    assert style.previews.prompts == tuple(style.captions_of[:2])


def test_photos_that_are_not_square_are_cropped_and_said(dreambooth, photos, picture):
    picture(9, (200, 64)).save(photos / "wide.png")
    lesson = dreambooth().open(None, Plan(), lambda line: None)
    assert any("wide.png (200 x 64): 68% lies outside 64 x 64" in note for note in lesson.notes)


def test_prior_from_class_pictures(dreambooth, settings, tmp_path, picture):
    classes = tmp_path / "classes"
    classes.mkdir()
    for number in range(3):
        picture(50 + number, (80, 64)).save(classes / f"class{number}.png")
    given = dreambooth(class_prompt=CLASS, class_images=classes, prior=None, prior_weight=0.5)
    run = train(given, output=tmp_path / "a", **settings)
    lines = [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]
    assert all(line["loss"] == pytest.approx(line["instance"] + 0.5 * line["prior"], rel=1e-6) for line in lines)
    assert 'prior = "images"' in (run.folder / "run.toml").read_text()


def test_prior_from_generated_pictures_makes_them_once(dreambooth, settings, tmp_path, monkeypatch):
    from studio.pipelines import ImagePipeline

    task = dreambooth(class_prompt=(CLASS, f"{CLASS} on the moon"), prior="generate", class_count=3)
    made, generate = [], ImagePipeline.generate
    monkeypatch.setattr(
        ImagePipeline, "generate", lambda self, prompt, **rest: made.append(prompt) or generate(self, prompt, **rest)
    )
    first = train(task, output=tmp_path / "a", **settings)
    second = train(task, output=tmp_path / "b", **settings)
    assert made == [CLASS, f"{CLASS} on the moon", CLASS]
    assert first.adapter.read_bytes() == second.adapter.read_bytes()


def test_self_prior_holds_the_base(dreambooth, settings, tmp_path):
    """With the adapter at its start the base's own prediction is met exactly, and λ keeps it near afterwards."""
    long = {**settings, "steps": 25, "learning_rate": 1e-2}
    losses = {}
    for weight in (0.0, 10.0):
        task = dreambooth(class_prompt=CLASS, prior="self", prior_rows=2, prior_weight=weight)
        run = train(task, output=tmp_path / str(weight), **long)
        losses[weight] = [json.loads(line)["prior"] for line in (run.folder / "log.jsonl").read_text().splitlines()]
    assert losses[0.0][0] == losses[10.0][0] == pytest.approx(0, abs=1e-10)
    assert sum(losses[10.0][-10:]) < 0.5 * sum(losses[0.0][-10:])


def test_prior_rows_draw_the_same_however_they_are_split(dreambooth, settings, tmp_path):
    task = dreambooth(class_prompt=CLASS, prior="self")
    lesson = task.open(LoRA(rank=2), Plan(batch_size=4), lambda line: None)
    lesson.prior.rows = 2
    assert lesson.prior.numbers(range(8, 12)) == range(4, 6)
    assert [*lesson.prior.numbers(range(8, 10)), *lesson.prior.numbers(range(10, 12))] == [4, 5]


def test_three_facts_suffice(tiny_base, photos):
    """Base, images, instance prompt: everything else is decided, and says so in the run's settings."""
    task = DreamBooth(base=tiny_base, instance_images=photos, instance_prompt=PROMPT)
    lesson = task.open(None, Plan(), lambda line: None)
    assert None not in (lesson.plan.steps, lesson.plan.learning_rate, lesson.plan.batch_size, lesson.plan.warmup)
    assert lesson.settings["prior"] == "none"
    named = dataclasses.replace(task, class_prompt=CLASS).open(None, Plan(), lambda line: None)
    assert named.settings["prior"] == "self" and named.settings["class_prompt"] == [CLASS]
    assert lesson.previews.prompts == (PROMPT,)
    full = FAMILIES["sd1"].recipes["dreambooth"]
    assert full.prior == "given" and full.learning_rate == 1e-4


def test_a_preview_is_what_generate_makes_from_the_checkpoint(dreambooth, settings, tmp_path, tiny_base):
    from studio.pipelines import ImagePipeline

    prompt = f"{PROMPT} on the moon"
    shown = {"preview_prompts": (prompt,), "preview_seeds": (3, 4), "preview_steps": 3, "preview_guidance": 2.0}
    task = dreambooth(**shown, text_encoder=True)
    run = train(task, output=tmp_path / "run", preview_every=2, checkpoint_every=2, **settings)
    pipe = ImagePipeline.open(tiny_base)
    for step, file in ((0, None), (2, run.folder / "checkpoints" / "step-000002.safetensors"), (3, run.adapter)):
        if file is not None:
            pipe.load(file, name="now")
        made = pipe.generate(prompt, seeds=[3, 4], steps=3, guidance=2.0)
        for index, image in enumerate(made):
            with Image.open(run.folder / "previews" / f"step-{step:06d}-{index:02d}.png") as preview:
                assert preview.tobytes() == image.tobytes(), (step, index)
        if file is not None:
            pipe.unload("now")


def test_tensorboard_on_request(dreambooth, settings, tmp_path):
    pytest.importorskip("tensorboard")
    run = train(dreambooth(), output=tmp_path / "run", tensorboard=True, **settings)
    assert list((run.folder / "tensorboard").glob("events*"))
