"""A forecast on tensors without numbers against the same stages on tensors with numbers, storage by storage."""

from __future__ import annotations

import pytest
import torch

import studio
from reals import Reals
from studio.families import components
from studio.planning.blueprint import blueprint
from studio.planning.fakes import Fakes
from studio.planning.tracker import Tracker
from studio.quantization import packing_of
from studio.trainers.forecast import forecast
from studio.trainers.forecast.asked import Asked
from studio.trainers.forecast.image import image_scene
from studio.trainers.forecast.language import language_scene
from studio.trainers.forecast.stage import play
from tiny_pipelines import build

SETTINGS = {
    "unet": ("emoji", {"batch_size": 4}),
    "unet, checkpointing": ("emoji", {"batch_size": 4, "gradient_checkpointing": True}),
    "unet, eager, text encoder and prior": (
        "emoji", {"batch_size": 2, "attention": "eager", "text_encoder": True, "prior": "images", "ema": 0.99}),
    "unet, dora on everything in bf16 products": (
        "emoji", {"batch_size": 2, "precision": "bf16", "dtype": "fp32", "adapter": studio.DoRA(targets="all-linear")}),
    "unet, whole weights, activations offloaded": (
        "emoji", {"batch_size": 2, "whole": True, "dtype": "fp32", "offload_activations": True}),
    "mmdit": ("sd3", {"batch_size": 2, "dtype": "fp32"}),
    "mmdit, checkpointing, own prior": (
        "sd3", {"batch_size": 2, "dtype": "fp32", "gradient_checkpointing": True, "prior": "self"}),
    "language": ("facts", {"batch_size": 4, "length": 48, "dtype": "fp32"}),
    "language, checkpointing, accumulation": (
        "facts", {"batch_size": 2, "length": 48, "gradient_checkpointing": True, "accumulation": 4}),
    "language, lokr, eager": (
        "facts", {"batch_size": 2, "length": 32, "attention": "eager", "adapter": studio.LoKr(targets="attention")}),
}  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("bases") / "sd3"
    build("sd3").save_pretrained(place)
    wide, pipe = place.with_name("wide sd3"), build("sd3")  # in the other one, codes and scales are less than a block
    sizes = {"num_attention_heads": 8, "attention_head_dim": 32, "caption_projection_dim": 256}
    pipe.transformer = type(pipe.transformer).from_config({**pipe.transformer.config, **sizes})
    pipe.save_pretrained(wide)
    return {"sd3": place, "wide sd3": wide}


def played(base, asked, stuff):
    drawn, tracker = blueprint(base), Tracker()
    scene = image_scene(drawn, asked, stuff) if drawn.family else language_scene(drawn, asked)
    play(scene, asked, stuff, tracker)
    return tracker


@pytest.mark.parametrize("name", SETTINGS)
def test_every_phase_holds_what_real_tensors_hold(name, folders):
    """Within 3 %, and each category of each phase within 3 % of the phase."""
    base, settings = SETTINGS[name]
    asked = Asked(**settings)
    torch.manual_seed(0)
    without, real = (played(folders.get(base, base), asked, stuff) for stuff in (Fakes(), Reals()))
    assert set(without.peaks) == set(real.peaks)
    for phase, truth in real.peaks.items():
        found = without.peaks[phase]
        assert found.total == pytest.approx(truth.total, rel=0.03), phase
        for category in {*found.by, *truth.by}:
            apart = abs(found.by.get(category, 0) - truth.by.get(category, 0))
            assert apart <= 0.03 * truth.total, (phase, category)
    assert without.flops == real.flops


QUANTISED = {
    "language, nf4": ("facts", {"quantize": "nf4", "batch_size": 4, "length": 48, "dtype": "fp32"}),
    "language, nf4, bf16 and checkpointing": (
        "facts", {"quantize": "nf4", "batch_size": 4, "length": 48, "dtype": "bf16", "gradient_checkpointing": True}),
    "language, int8": ("facts", {"quantize": "int8", "batch_size": 4, "length": 48, "dtype": "fp32"}),
    "unet, nf4": ("emoji", {"quantize": "nf4", "batch_size": 4, "dtype": "fp32", "previews": False}),
    "unet, int8, checkpointing": (
        "emoji", {"quantize": "int8", "batch_size": 4, "dtype": "fp32", "previews": False,
                  "gradient_checkpointing": True}),
    "mmdit, int8": ("wide sd3", {"quantize": "int8", "batch_size": 8, "dtype": "fp32", "previews": False}),
}  # fmt: skip


@pytest.mark.parametrize("name", QUANTISED)
def test_quantised_bases_hold_what_is_forecast(name, folders):
    """bitsandbytes' own codes and scales, and what its layers put together, against formulas: within 3 % a phase."""
    pytest.importorskip("bitsandbytes")
    base, settings = QUANTISED[name]
    base, asked = folders.get(base, base), Asked(corrected=False, **settings)
    torch.manual_seed(0)
    stuff, tracker, drawn = Reals(), Tracker(), blueprint(base)
    scene = image_scene(drawn, asked, stuff) if drawn.family else language_scene(drawn, asked)
    model = components(scene.lesson.model)[next(iter(scene.lesson.rates))]
    stuff.fill(model)
    studio.quantize(model, asked.quantize)
    packed = [(layer, packing_of(layer)) for layer in model.modules() if packing_of(layer)]
    tracker.own([one for layer, way in packed for one in way.tensors(layer).values()], "weights")
    play(scene, asked, stuff, tracker)
    found = forecast(base, asked)
    assert {phase.name for phase in found.phases} == set(tracker.peaks)
    for phase in found.phases:
        assert phase.total == pytest.approx(tracker.peaks[phase.name].total, rel=0.03), phase.name


def test_what_dies_is_no_longer_counted():
    """x, y = 2x and z = y², each 4 kB: at most all three; 8 kB when y is gone."""
    tracker = Tracker()
    with tracker, tracker.phase("step", "activations"):
        x = torch.ones(1024)
        y = 2 * x
        z = y * y
        del y
        assert tracker.now == 2 * 4096
    assert tracker.peaks["step"].total == 3 * 4096
    assert z[0] == 4


def test_a_view_is_no_second_storage_and_a_small_one_takes_a_block():
    tracker = Tracker()
    with tracker, tracker.phase("step", "activations"):
        x = torch.ones(4, 8)
        views = x.t(), x[1], x.view(32)
        assert tracker.now == 512
        tracker.own(views, "weights")
    assert tracker.held == {"activations": 0, "weights": 512}


def test_what_left_comes_back():
    tracker, x = Tracker(), torch.ones(1024)
    tracker.own([x], "weights")
    tracker.leave([x])
    assert tracker.now == 0
    tracker.own([x], "weights")
    assert tracker.now == 4096
    del x
    assert tracker.now == 0


def test_operations_of_a_product_are_counted():
    """2 m n k of a product, and twice as many for its two gradients."""
    weight = torch.ones(16, 32, requires_grad=True)
    x = torch.ones(8, 16, requires_grad=True)
    tracker = Tracker()
    with tracker:
        with tracker.phase("forward", "activations"):
            y = (x @ weight).sum()
        with tracker.phase("backward", "temporaries"):
            y.backward()
    assert tracker.flops == {"forward": 2 * 8 * 16 * 32, "backward": 2 * 2 * 8 * 16 * 32}
