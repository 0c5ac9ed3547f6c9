"""Layers that no picture depends on: exactly those that a row names, by the gradients of a picture."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import nn

import studio
from studio.adapters.contract.pattern import matches
from studio.adapters.targets.silent import silent_layers
from studio.errors import UnsupportedLayer
from studio.families import FAMILIES, components
from tiny_pipelines import BUILDERS, CALL, FAMILY, build

KINDS = list(BUILDERS)


def unheard(pipe, kind) -> dict[str, set[str]]:
    """Linear layers and convolutions that are not called, or whose weight gets no gradient, of diffusers' picture."""
    parts = components(pipe)
    calls: Counter[str] = Counter()
    layers = {
        f"{name}.{path}": layer
        for name, part in parts.items()
        for path, layer in part.named_modules()
        if isinstance(layer, (nn.Linear, nn.Conv2d))
    }
    hooks = [layer.register_forward_hook(lambda *_, n=name: calls.update([n])) for name, layer in layers.items()]
    for layer in layers.values():
        layer.weight.requires_grad_(True).grad = None
    # at 64 pixels the deepest level of the tiny U-Nets is one cell, whose attention asks nothing
    side = {"height": 128, "width": 128} if kind in ("sd1", "sd2") else {}
    call = CALL[kind] | side | {"output_type": "latent", "num_inference_steps": 2}
    latents = type(pipe).__call__.__wrapped__(pipe, **call, generator=torch.Generator().manual_seed(1))[0]
    latents = latents if isinstance(latents, torch.Tensor) else torch.stack(list(latents))
    latents.float().square().mean().backward()
    for hook in hooks:
        hook.remove()
    dead = [
        name for name, layer in layers.items()
        if not calls[name] or layer.weight.grad is None or not layer.weight.grad.any()
    ]  # fmt: skip
    return {name: {path.removeprefix(f"{name}.") for path in dead if path.startswith(f"{name}.")} for name in parts}


@pytest.mark.parametrize("kind", KINDS)
def test_the_silent_layers_are_those_without_a_gradient(kind):
    pipe = build(kind)
    said = silent_layers(components(pipe))
    for name, dead in unheard(pipe, kind).items():
        layers = dict(components(pipe)[name].named_modules())
        named = {path for path in said.get(name, {}) if isinstance(layers[path], (nn.Linear, nn.Conv2d))}
        tied = {path for path in named | dead if path == "lm_head"}  # its weight is the embedding's, which is used
        assert named - tied == dead - tied, name


@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if FAMILY[kind] in ("sdxl", "sd3", "flux2", "qwen-image", "z-image")]
)
def test_a_preset_leaves_them_out_and_a_name_is_refused(kind):
    pipe = build(kind)
    silent = silent_layers(components(pipe))
    component = next(name for name, paths in silent.items() if paths)
    report = studio.attach(pipe, studio.LoRA(rank=2, targets="attention"), components=[component])
    assert not set(report.sites) & {f"{component}.{path}" for path in silent[component]}
    studio.detach(pipe)
    layers = dict(components(pipe)[component].named_modules())
    path = next(path for path in silent[component] if isinstance(layers[path], nn.Linear) and path != "lm_head")
    with pytest.raises(UnsupportedLayer, match="no picture depends on"):
        studio.attach(pipe, studio.LoRA(rank=2, targets=(f"{component}.{path}",)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("preset", ["attention", "attention+mlp", "all-linear", "subject", "style"])
def test_every_preset_names_layers_of_every_component(kind, preset):
    pipe = build(kind)
    family = FAMILIES[FAMILY[kind]]
    report = studio.attach(pipe, studio.LoRA(rank=2, targets=preset))
    assert report.sites and {site.partition(".")[0] for site in report.sites} == {family.denoiser}
    studio.detach(pipe)
    for component, wanted in family.presets.get(preset, {}).items():
        paths = [path for path, _ in components(pipe)[component].named_modules()]
        if FAMILY[kind] not in ("sd1", "sd2", "sdxl", "sd3"):  # whose patterns cover several sizes and versions
            for pattern in wanted:
                assert any(matches(pattern, path) for path in paths), (component, pattern)
