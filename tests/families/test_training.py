"""Training on every image family: each step's loss is the family's formula, and a killed run ends in the same bytes."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import pytest
import torch
from PIL import Image

from studio.adapters import LoRA, detach, state
from studio.datasets.picture import fit_image, open_image, to_pixels
from studio.errors import DoesNotFit
from studio.families import FAMILIES, Shot, open_base
from studio.files import load
from studio.trainers import DreamBooth, Plan, Style, train
from tiny_pipelines import BUILDERS, FAMILY, build

PROMPT, CLASS = "a photo of sks dog", "a photo of dog"
SIDE = 64
STEPS = 3


@dataclass(frozen=True)
class Setting:
    """One way of training.

    Args:
        task: ``"style"`` or a prior of DreamBooth.
        batch: samples per step.
        text: whether the text encoders that are trained with pictures are.
        checkpointing: gradient checkpointing.
        density: of the times.
    """

    task: str
    batch: int = 1
    text: bool = False
    checkpointing: bool = False
    density: str | None = None


SETTINGS = (
    Setting("none", batch=3),
    Setting("self", text=True, checkpointing=True),
    Setting("generate", batch=3),
    Setting("images", density="logit-normal"),
    Setting("style", batch=3, text=True),
)
# class pictures are drawn with the base's own steps, which takes a while
CASES = [
    pytest.param(
        kind, setting, id=f"{kind}-{setting.task}",
        marks=pytest.mark.slow if setting.task == "generate" and kind not in ("sdxl", "flux1-schnell") else (),
    )
    for kind in BUILDERS
    for setting in SETTINGS
]  # fmt: skip
READ_WITH_PICTURES = [kind for kind in BUILDERS if any(one.trained for one in FAMILIES[FAMILY[kind]].encoders)]


def task_of(setting: Setting, base, photos):
    common = {"base": base, "preview_prompts": (), "resolution": SIDE, "density": setting.density}
    if setting.text:
        common["text_encoder"] = True
    if setting.task == "style":
        return Style(**common, images=photos, trigger="sks style")
    prior = {} if setting.task == "none" else {"class_prompt": CLASS}
    if setting.task == "images":
        prior["class_images"] = photos
    return DreamBooth(
        **common, **prior, instance_images=photos, instance_prompt=PROMPT, prior=setting.task, class_count=2
    )  # fmt: skip


def objective_of(base, lesson):
    """α, σ and weight of a time, from u in [0, 1), in float64: the formulas of studio/families/process.py by hand."""
    config, predicts = base.pipe.scheduler.config, lesson.objective.process.prediction
    density, k, weighting = lesson.objective.density, lesson.objective.shift, lesson.objective.weighting

    def at(u: float):
        if density == "logit-normal":
            u = 1 / (1 + math.exp(-math.sqrt(2) * float(torch.erfinv(torch.tensor(2 * u - 1, dtype=torch.float64)))))
        if predicts == "flow_prediction":
            s = k * u / (1 + (k - 1) * u)
            weight = {"none": 1.0, "picture": s**2}[weighting]
            return 1000 * s, 1 - s, s, weight
        t = int(u * config.num_train_timesteps)
        alpha = float(base.pipe.scheduler.alphas_cumprod[t].double())
        snr = alpha / (1 - alpha)
        factor = {"epsilon": snr, "v_prediction": snr + 1}[predicts]
        weight = {"min-snr": min(snr, 5.0), "min-snr-offset": 1.5 * (0.3 + min(snr, 3.0))}[weighting] / factor
        return t, math.sqrt(alpha), math.sqrt(1 - alpha), weight

    def target(x, n, alpha, sigma):
        return {"epsilon": n, "v_prediction": alpha * n - sigma * x, "flow_prediction": n - x}[predicts]

    return at, target


@pytest.mark.parametrize(("kind", "setting"), CASES)
def test_losses_are_the_formula(kind, setting, photos, tmp_path):
    if setting.text and kind not in READ_WITH_PICTURES:
        with pytest.raises(DoesNotFit, match="is not trained with its pictures"):
            task_of(setting, build(kind), photos).open(LoRA(rank=2), Plan(), lambda line: None)
        return
    base = open_base(build(kind))
    task = task_of(setting, base, photos)
    settings = {
        "steps": STEPS, "seed": 3, "learning_rate": 1e-2, "batch_size": setting.batch, "warmup": 0,
        "gradient_checkpointing": setting.checkpointing, "checkpoint_every": 1, "quiet": True,
        "cache": str(tmp_path / "cache"), "adapter": LoRA(rank=2, targets="attention"), "device": "cpu",
    }  # fmt: skip
    run = train(task, output=tmp_path / "run", **settings)

    lesson = task.open(LoRA(rank=2), Plan(seed=3, batch_size=setting.batch, cache=str(tmp_path / "cache")), print)
    for step in range(STEPS):
        numbers = range(step * setting.batch, (step + 1) * setting.batch)
        if step:
            load(base.pipe, run.folder / "checkpoints" / f"step-{step:06d}.safetensors", name="now")
        value = expected(base, lesson, setting, numbers)
        assert run.losses[step] == pytest.approx(value, rel=2e-4), step
        if step:
            detach(base.pipe, "now")


def expected(base, lesson, setting, numbers) -> float:
    import studio

    encode = base.family.encode_text

    def conditioning(texts, live):
        if live and setting.text:
            return encode(base.pipe, texts, False)
        with studio.blended(base.pipe, {}):
            return encode(base.pipe, texts, False)

    def errors(source, draws, numbers, texts, own):
        total = []
        for n, text in zip(numbers, texts, strict=True):
            total.append(row(base, lesson, source, draws, n, text, own, conditioning))
        return sum(total) / len(total)

    captions = [lesson.captions_of[i] for i in lesson.latents.indices(lesson.draws, numbers)]
    value = errors(lesson.latents, lesson.draws, numbers, captions, False)
    if lesson.prior is None:
        return value
    prior = lesson.prior
    also = list(prior.numbers(numbers))
    return value + prior.weight * errors(prior.latents, prior.draws, also, prior.texts(also), prior.own)


def row(base, lesson, source, draws, n, text, own, conditioning) -> float:
    """One row's weighted squared error, in float64 but for what the networks compute."""
    import studio

    family, pipe = base.family, base.pipe
    at, target_of = objective_of(base, lesson)
    picture = open_image(source.items[source.indices(draws, [n])[0]])
    with torch.no_grad():
        x = family.encode_image(pipe, to_pixels(fit_image(picture, SIDE, SIDE))[None], None).float()
    noise = draws.noise([n], x.shape[1:])
    t, alpha, sigma, weight = at(draws.uniform(n, "timestep"))
    noisy = (alpha * x.double() + sigma * noise.double()).float()
    kept = min(picture.size) / SIDE
    corner = tuple(round((side / kept - SIDE) / 2) for side in picture.size[::-1])
    shot = Shot(size=(SIDE, SIDE), original=picture.size[::-1], crop=corner, embedded=base.defaults.trained)
    time = torch.tensor([t]) if isinstance(t, int) else torch.tensor([t], dtype=torch.float32)

    def predicted(live: bool):
        with torch.no_grad():
            told = family.condition(pipe, conditioning([text], live), [shot])
            return family.predict(pipe, noisy, time, told).double()

    target = target_of(x.double(), noise.double(), alpha, sigma)
    if own:
        with studio.blended(pipe, {}):
            target = predicted(False)
    return weight * float((predicted(True) - target).square().mean())


@pytest.mark.parametrize("kind", BUILDERS)
def test_gradients_reach_what_was_asked_and_checkpointing_changes_none(kind, photos, tmp_path):
    task = task_of(Setting("none"), open_base(build(kind)), photos)
    grads = []
    for checkpointing in (False, True):
        plan = Plan(seed=1, batch_size=2, gradient_checkpointing=checkpointing, cache=str(tmp_path), device="cpu")
        grads.append(gradients(task, plan))
    assert grads[0] and grads[0].keys() == grads[1].keys()
    for name, gradient in grads[0].items():
        torch.testing.assert_close(grads[1][name], gradient, rtol=1e-4, atol=1e-7)


def gradients(task, plan):
    import studio

    lesson = task.open(LoRA(rank=2, targets="attention", init="gaussian"), plan, lambda line: None)
    studio.attach(lesson.model, LoRA(rank=2, targets="attention"), name="new", seed=0)
    tensors = state(lesson.model, "new")
    for tensor in tensors.values():  # both factors, so that both get a gradient
        torch.nn.init.normal_(tensor, std=0.1, generator=torch.Generator().manual_seed(tensor.numel()))
    lesson.prepare(lambda line: None)
    lesson.loss([0, 1]).total.backward()
    found = {name: tensor.grad.clone() for name, tensor in tensors.items()}
    studio.detach(lesson.model)
    assert all(parameter.grad is None for part in studio.families.components(lesson.model).values()
               for parameter in part.parameters())  # fmt: skip
    return found


class Killed(Exception):
    """Stands for a process that ends here, without any of our code running after it."""


@pytest.mark.parametrize("kind", BUILDERS)
def test_a_killed_run_ends_in_the_same_bytes_and_its_previews_are_what_generate_draws(
    kind, photos, tmp_path, monkeypatch
):
    from studio.pipelines import ImagePipeline
    from studio.trainers.image.diffusion import Diffusion

    base = open_base(build(kind))
    shown = {"preview_prompts": (PROMPT,), "preview_seeds": (3,), "preview_steps": 2}
    task = dataclasses.replace(task_of(Setting("none"), base, photos), **shown)
    settings = {
        "steps": STEPS, "seed": 3, "learning_rate": 1e-2, "batch_size": 2, "checkpoint_every": 1, "quiet": True,
        "cache": str(tmp_path / "cache"), "adapter": LoRA(rank=2, targets="attention"), "device": "cpu",
    }  # fmt: skip
    whole = train(task, output=tmp_path / "whole", **settings)
    after_step = Diffusion.after_step

    def die(self, done):
        after_step(self, done)
        if done == 2:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Diffusion, "after_step", die)
        with pytest.raises(Killed):
            train(task, output=tmp_path / "run", **settings)
    resumed = train(task, output=tmp_path / "run", **settings)
    assert resumed.adapter.read_bytes() == whole.adapter.read_bytes()
    pipe = ImagePipeline(base)
    pipe.load(whole.adapter, trainable=True)
    (made,) = pipe.generate(PROMPT, seeds=[3], steps=2, width=SIDE, height=SIDE)
    with Image.open(whole.folder / "previews" / f"step-{STEPS:06d}-00.png") as preview:
        assert preview.tobytes() == made.tobytes()
