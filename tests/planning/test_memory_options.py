"""What blocks that wait and gradients that are used at once take: by formula and on real tensors."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import studio
from reals import Reals
from studio.errors import BadConfig, DoesNotFit
from studio.families import open_base
from studio.families.blocks import resting, running_blocks
from studio.planning.blueprint import blueprint
from studio.planning.fakes import Fakes
from studio.planning.tracker import Tracker
from studio.trainers.forecast import fit, forecast
from studio.trainers.forecast.asked import Asked
from studio.trainers.forecast.fit import LEVERS
from studio.trainers.forecast.image import image_scene
from studio.trainers.forecast.language import language_scene
from studio.trainers.forecast.stage import play
from studio.trainers.loop.block_swap import BlockSwap
from tiny_pipelines import build

SETTINGS = {
    "unet": ("emoji", {"batch_size": 2, "blocks_to_swap": 12}),
    "unet, all blocks, checkpointing": (
        "emoji", {"batch_size": 1, "dtype": "fp32", "blocks_to_swap": -1, "gradient_checkpointing": True}),
    "unet, activations offloaded": ("emoji", {"batch_size": 2, "blocks_to_swap": 10, "offload_activations": True}),
    "mmdit, all blocks": ("sd3", {"batch_size": 2, "dtype": "fp32", "blocks_to_swap": -1}),
    "language, all blocks": ("facts", {"batch_size": 2, "length": 48, "dtype": "fp32", "blocks_to_swap": -1}),
    "language, checkpointing, accumulation": (
        "facts", {"batch_size": 2, "length": 48, "blocks_to_swap": 3, "gradient_checkpointing": True,
                  "accumulation": 2}),
    "unet, steps in the backward pass": (
        "emoji", {"batch_size": 1, "fused_backward_pass": True, "adapter": studio.LoRA(rank=32)}),
    "language, both": (
        "facts", {"batch_size": 1, "length": 32, "fused_backward_pass": True, "blocks_to_swap": -1,
                  "adapter": studio.LoRA(rank=32)}),
}  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("bases") / "sd3"
    build("sd3").save_pretrained(place)
    return {"sd3": place}


def played(base, asked, stuff):
    drawn, tracker = blueprint(base), Tracker()
    scene = image_scene(drawn, asked, stuff) if drawn.family else language_scene(drawn, asked)
    play(scene, asked, stuff, tracker)
    return tracker


def settings_of(base, settings):
    """-1 is all blocks."""
    if settings.get("blocks_to_swap") != -1:
        return Asked(**settings)
    drawn = blueprint(base)
    root = drawn.language or drawn.components[drawn.family.denoiser]
    return Asked(**{**settings, "blocks_to_swap": len(running_blocks(root))})


SLOW = ("unet, all blocks, checkpointing", "unet, activations offloaded", "language, checkpointing, accumulation")


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in SETTINGS])
def test_every_phase_holds_what_real_tensors_hold(name, folders):
    """The blocks are fetched for real, and counted; the forecast is within 3 % of every phase."""
    base, settings = SETTINGS[name]
    base = folders.get(base, base)
    asked = settings_of(base, settings)
    torch.manual_seed(0)
    real = played(base, dataclasses.replace(asked, task=forecast(base, asked).settings.get("task")), Reals())
    found = {phase.name: phase for phase in forecast(base, dataclasses.replace(asked, corrected=False)).phases}
    assert set(found) == set(real.peaks)
    for phase, truth in real.peaks.items():
        assert found[phase].total == pytest.approx(truth.total, rel=0.03), phase


@pytest.mark.slow
@pytest.mark.parametrize("name", ["unet", "language, both"])
def test_fakes_fetch_as_tensors_with_numbers_do(name):
    base, settings = SETTINGS[name]
    asked = settings_of(base, settings)
    without, real = (played(base, asked, stuff) for stuff in (Fakes(), Reals()))
    for phase, truth in real.peaks.items():
        assert without.peaks[phase].total == pytest.approx(truth.total, rel=0.03), phase


def test_what_waits_is_told_and_leaves_the_device():
    """All blocks of an open base, by its own tensors: that much less on the device, but for two blocks."""
    root = open_base("emoji").pipe.unet
    sizes = [sum(-(-one.tensor.nbytes // 512) * 512 for one in resting(block.module)) for block in running_blocks(root)]
    asked = {"batch_size": 1, "dtype": "fp32"}
    plain, swapped = studio.plan("emoji", **asked), studio.plan("emoji", blocks_to_swap=len(sizes), **asked)
    assert swapped.host["blocks"] == sum(sizes)
    (before,), (after,) = ([p.by["weights"] for p in one.phases if p.name == "backward"] for one in (plain, swapped))
    assert before - after == sum(sizes) - sum(sorted(sizes)[-2:])
    assert f"{len(sizes)} of {len(sizes)} blocks wait" in str(swapped)


def test_gradients_are_one_at_a_time():
    asked = {"batch_size": 1, "adapter": studio.LoRA(rank=32)}
    plain, fused = studio.plan("emoji", **asked), studio.plan("emoji", fused_backward_pass=True, **asked)
    held = [next(p for p in one.phases if p.name == "optimizer").by.get("gradients", 0) for one in (plain, fused)]
    assert held[0] > 0.9 * 4 * plain.trained and held[1] == 0
    assert next(p for p in fused.phases if p.name == "backward").by.get("gradients", 0) < 0.05 * held[0]


@pytest.mark.parametrize(
    "more, said",
    [({"blocks_to_swap": 999}, "unet has 17 blocks"), ({"blocks_to_swap": 4, "quantize": "nf4"}, "needs gradient_ch"),
     ({"blocks_to_swap": 4, "quantize": "int8", "gradient_checkpointing": True}, "cannot wait elsewhere")],
)  # fmt: skip
def test_what_a_run_refuses_a_plan_refuses(more, said):
    with pytest.raises(DoesNotFit, match=said):
        studio.plan("emoji", **more)
    for wrong in ({"fused_backward_pass": True, "accumulation": 2}, {"blocks_to_swap": 3, "whole": True}):
        with pytest.raises(BadConfig):
            studio.plan("emoji", **wrong)


def test_quantised_blocks_that_wait_are_as_large_as_the_formula_says():
    """Against the bytes of the tensors that wait of a base that is quantised for real."""
    base = open_base("emoji", dtype="bf16", quantize="fp8")
    held = BlockSwap(base.pipe.unet, 17, checkpointed=True).held
    asked = {"batch_size": 1, "quantize": "fp8", "gradient_checkpointing": True}
    plain, found = studio.plan("emoji", **asked), studio.plan("emoji", blocks_to_swap=17, **asked)
    assert found.host["blocks"] == pytest.approx(sum(tensor.nbytes for tensor in held), rel=0.03)
    assert found.peak < plain.peak - 0.5 * found.host["blocks"]


@pytest.mark.slow
def test_a_search_lets_blocks_wait_before_it_takes_bits_away():
    """Llama 3 8B in three quarters of what it takes: half of its blocks wait, and no weight loses bits."""
    asked = Asked(length=64, batch_size=1, gradient_checkpointing=True)
    plain = forecast("llama-3-8b", asked)
    found = fit("llama-3-8b", asked, plain.peak * 0.75 / 1e9)
    assert found.found[0].asked.blocks_to_swap == 16 and found.found[0].asked.quantize is None
    assert "--set blocks_to_swap=16" in found.found[0].options
    assert found.found[0].forecast.peak <= 0.75 * plain.peak
    assert {"blocks in the CPU's memory", "steps in the backward pass"} <= {lever.name for lever in LEVERS}


@pytest.mark.parametrize("more, stays", [({}, ()), ({"crop": "random"}, ("vae",)),
                                         ({"text_encoder": True}, ("text_encoder",)),
                                         ({"cached": False}, ("text_encoder", "vae"))])  # fmt: skip
def test_what_is_cached_leaves_the_device(more, stays):
    """As a run does it: encoders stay where one of them is trained, the autoencoder where each draw is encoded."""
    asked = Asked(task="dreambooth", batch_size=1, **more)
    assert set(image_scene(blueprint("emoji"), asked, Fakes()).resident) == set(stays)
