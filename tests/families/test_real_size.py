"""Models of public size, on the meta device: how many layers the presets name, against the counts of the tools."""

from __future__ import annotations

import functools

import pytest

from studio.adapters.targets.find import find_targets
from studio.adapters.targets.silent import heard
from studio.families import FAMILIES, family_of
from tiny_pipelines.real import REAL, real

# model -> family, layers that the training script of diffusers adapts (of PixArt there is none: its attentions), and
# how many of those no picture depends on
SCRIPTS = {
    "sd1 unet": ("sd1", "attention", 128, 0),
    "sd2 unet": ("sd2", "attention", 128, 0),
    "sdxl unet": ("sdxl", "attention", 560, 0),
    "sd3-medium": ("sd3", "subject", 191, 1),
    "sd3.5-medium": ("sd3", "subject", 191, 1),
    "sd3.5-large": ("sd3", "subject", 303, 1),
    "flux.1-dev": ("flux1", "subject", 342, 0),
    "flux.1-schnell": ("flux1", "subject", 342, 0),
    "flux.2-dev": ("flux2", "subject", 128, 0),
    "flux.2-klein-9b": ("flux2", "subject", 80, 0),
    "flux.2-klein-4b": ("flux2", "subject", 60, 0),
    "qwen-image": ("qwen-image", "subject", 240, 0),
    "z-image": ("z-image", "subject", 136, 0),
    "sana-1.6b": ("sana", "subject", 120, 0),
    "sana-0.6b": ("sana", "subject", 168, 0),
    "pixart-sigma-1024": ("pixart-sigma", "subject", 224, 0),
    "lumina-image-2": ("lumina2", "subject", 120, 0),
    "chroma1": ("chroma", "subject", 342, 0),
}
# blocks x projections, the feed-forwards besides: families.md's table of real sizes
ATTENTION_AND_MLP = {
    "sd1 unet": 128 + 32, "sdxl unet": 560 + 140, "sd3-medium": 191 + 94, "sd3.5-medium": 191 + 52 + 94,
    "flux.1-dev": 266 + 76 + 76, "flux.2-dev": 8 * 8 + 48 * 2 + 32, "qwen-image": 480 + 240, "z-image": 136 + 102,
    "sana-1.6b": 160 + 40, "pixart-sigma-1024": 224 + 56, "lumina-image-2": 120 + 90, "chroma1": 266 + 76 + 76,
}  # fmt: skip
build = functools.lru_cache(maxsize=None)(real)


@pytest.mark.parametrize("name", SCRIPTS)
def test_presets_name_what_the_training_scripts_adapt(name):
    family, preset, count, silent = SCRIPTS[name]
    model = build(name)
    assert family_of(model) is FAMILIES[family]
    paths = find_targets({"": model}, preset)
    assert len(paths[""]) == count
    left, notes = heard({"": model}, preset, paths)
    assert len(left[""]) == count - silent and len(notes) == (silent > 0)


@pytest.mark.parametrize("name", ATTENTION_AND_MLP)
def test_attention_and_feedforwards(name):
    assert len(find_targets({"": build(name)}, "attention+mlp")[""]) == ATTENTION_AND_MLP[name]


def test_every_real_denoiser_is_counted():
    assert set(SCRIPTS) == {name for name, part in REAL.items() if part.library == "diffusers"}
