"""Regions on every image family: a whole mask is no mask, contexts stand alone, and nothing is left behind."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

import studio
from studio.adapters import Strength
from studio.errors import BadConfig, DoesNotFit
from studio.families import open_base
from studio.families.biasing import biased
from studio.families.places import Places
from studio.pipelines import ImagePipeline
from studio.pipelines.request import Request
from studio.pipelines.sample import draw, sample
from tiny_pipelines import BUILDERS, PROMPT, build

SIZE = {"width": 128, "height": 64}
ONES = torch.ones(64, 128)
LEFT = torch.cat([torch.ones(64, 64), torch.zeros(64, 64)], 1)
SOFT = torch.linspace(1, 0, 128).expand(64, 128)
CROSSED = ("sd1", "sd2", "sdxl", "sana", "pixart-sigma")


@pytest.fixture(scope="module", params=list(BUILDERS))
def base(request) -> Any:
    """A base with one change under two names, on its text encoders too."""
    opened = open_base(build(request.param))
    for name in ("a", "b"):
        changed(opened.pipe, name, studio.LoRA(rank=2, targets="all-linear"))
    return opened


def changed(model: Any, name: str, config: Any) -> None:
    """Attaches an adapter, and changes all its tensors, by equal numbers in each of equal layers."""
    studio.attach(model, config, name=name)
    numbers = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for tensor in studio.state(model, name).values():
            tensor.add_(torch.randn(tensor.shape, generator=numbers) * 0.05)


def request_of(base: Any, blend: Any, seed: int = 1) -> Request:
    own = base.defaults
    return Request(
        prompt=PROMPT, negative="a cat", seed=seed, steps=2, guidance=own.guidance, embedded=own.embedded,
        blend={name: one if isinstance(one, Strength) else Strength(one) for name, one in blend.items()}, **SIZE,
    )  # fmt: skip


def pixels(base: Any, **blend: Any) -> torch.Tensor:
    return draw(base, [request_of(base, blend)], rows=1)[0]


def far(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max())


def held(pipe: Any) -> list[object]:
    """All that could be left behind on the denoiser: hooks, processors, functions in place of a module's own."""
    denoiser = studio.families.components(pipe)[studio.families.family_of(pipe).denoiser]
    found: list[object] = []
    for module in denoiser.modules():
        found += [id(getattr(module, "processor", None)), sorted(vars(module)), len(module._forward_pre_hooks)]
        found += [len(module._forward_hooks), len(module._forward_hooks_always_called)]
    return found


def test_a_whole_mask_is_no_mask_and_nothing_stays(base):
    before, none, whole = held(base.pipe), pixels(base), pixels(base, a=0.8)
    effect = far(none, whole)
    assert far(pixels(base, a=Strength(0.8, mask=ONES)), whole) < 2e-4 * max(effect, 0.1)
    half = pixels(base, a=Strength(0.8, mask=LEFT))
    assert effect / 50 < far(half, none) and effect / 50 < far(half, whole)
    assert held(base.pipe) == before and torch.equal(pixels(base), none)


def unrestricted(plain: Any) -> Any:
    """Lets words ask the whole picture, as they do without regions."""

    def bias(self: Places, kind: Any, path: str, queries: int, keys: int, weights: torch.Tensor) -> torch.Tensor:
        found = plain(self, kind, path, queries, keys, weights)
        if kind != "joined":
            return found
        grid = self.streams.grids(self.cells)[0]
        place = self._filled(self._rows("joint", grid), keys, path, grid)
        return found.masked_fill((place < grid[0] * grid[1])[:, None, None, :], 0.0)

    return bias


def test_each_context_stands_where_it_would_alone(base, monkeypatch):
    monkeypatch.setattr(Places, "bias", unrestricted(Places.bias))
    none, whole = pixels(base), pixels(base, a=0.8)
    for mask in (LEFT, SOFT):
        halves = pixels(base, a=Strength(0.8, mask=mask), b=Strength(0.8, mask=1 - mask))
        tolerance = 2e-4 if mask is LEFT or base.family.name in CROSSED else 1.0
        assert far(halves, whole) < tolerance * max(far(none, whole), 0.1)


def test_a_picture_is_the_same_one_by_one_as_in_a_batch(base):
    blend = {"a": Strength(0.8, mask=LEFT), "b": Strength(-0.5, mask=SOFT)}
    one, other = (request_of(base, blend, seed) for seed in (1, 2))
    batch, turned = draw(base, [one, other], rows=2)[0], draw(base, [other], rows=2)[0]
    assert torch.equal(turned[0], batch[1])
    assert far(draw(base, [one], rows=1)[0][0], batch[0]) < 1e-4


def test_after_an_error_nothing_stays(base, monkeypatch):
    before, none = held(base.pipe), pixels(base)

    def broken(*arguments: Any) -> Any:
        found = base.family.predict(*arguments)
        raise RuntimeError("in the middle" if torch.isfinite(found).all() else "")

    failing = replace(base, family=replace(base.family, predict=broken))
    with pytest.raises(RuntimeError, match="in the middle"):
        pixels(failing, a=Strength(mask=LEFT))
    assert held(base.pipe) == before and torch.equal(pixels(base), none)


METHODS = ("lora", "lntuning", "ia3")
BARE = {"z-image": ("*_pad_token",), "sana": ("*scale_shift_table",), "pixart-sigma": ("*scale_shift_table",)}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "kind", [kind if kind == "sd1" else pytest.param(kind, marks=pytest.mark.slow) for kind in BUILDERS]
)
def test_every_layer_of_the_denoiser_is_known(kind, method):
    opened = open_base(build(kind))
    config = studio.METHODS[method](targets=("re:.*",), exclude=BARE.get(kind, ()))
    if method == "lora":
        config = replace(config, rank=2)
    changed(opened.pipe.components[opened.family.denoiser], "a", config)
    none, whole = pixels(opened), pixels(opened, a=0.8)
    assert far(pixels(opened, a=Strength(0.8, mask=ONES)), whole) < 2e-4 * far(none, whole)


def test_words_are_read_by_region():
    """A change of the text encoder alone reaches its region, and no more of the picture than attention carries."""
    opened = open_base(build("sd1"))
    changed(opened.pipe.text_encoder, "a", studio.LoRA(rank=2, targets="all-linear"))
    asked, plain = [], opened.family.predict

    def noting(pipe: Any, noisy: Any, timesteps: Any, conditioning: Any) -> Any:
        asked.append(conditioning)
        return plain(pipe, noisy, timesteps, conditioning)

    opened = replace(opened, family=replace(opened.family, predict=noting))
    pixels(opened), pixels(opened, a=0.8), pixels(opened, a=Strength(0.8, mask=LEFT))
    none, whole, both = (found.tokens for found in asked[::2])
    assert asked[-1].parts == 2 and not torch.allclose(none, whole, atol=1e-3)
    assert torch.equal(both, torch.cat([none, whole], 1))


def test_scores_are_weighed_by_masks():
    """``Σ_r w_r Σ_k exp(q k_r) v_r / Σ_r w_r Σ_k exp(q k_r)``, words of no weight not at all."""
    numbers = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, count, 8, generator=numbers, dtype=torch.float64) for count in (6, 8, 8))
    weights = torch.rand(2, 6, generator=numbers, dtype=torch.float64)
    weights[1, :2] = 0
    raised = (q @ k.transpose(2, 3) / 8**0.5).exp() * weights.t().repeat_interleave(4, 1)
    expected = (raised / raised.sum(-1, keepdim=True)) @ v

    class Asking(torch.nn.Module):
        def forward(self) -> torch.Tensor:
            return torch.nn.functional.scaled_dot_product_attention(q, k, v)

    module = Asking()
    bias = weights.t().repeat_interleave(4, 1).log()[None, None]
    with biased({"it": module}, lambda path, queries, keys: bias):
        assert torch.allclose(module(), expected)
    assert not torch.allclose(module(), expected)


# -- what cannot be ----------------------------------------------------------------------------------------------------


@pytest.fixture
def small() -> Any:
    opened = open_base(build("sd1"))
    changed(opened.pipe, "a", studio.LoRA(rank=2))
    return opened


def test_a_mask_of_another_shape_is_refused(small):
    with pytest.raises(BadConfig, match="the mask of 'a' has 64 x 64 pixels and the picture 128 x 64"):
        list(sample(small, [request_of(small, {"a": Strength(mask=torch.ones(64, 64))})]))
    assert list(sample(small, [request_of(small, {"a": Strength(mask=torch.ones(100, 201))})]))


def test_other_attention_processors_are_refused(small):
    from diffusers.models.attention_processor import AttnProcessor

    none, before = pixels(small), small.pipe.unet.attn_processors
    small.pipe.unet.set_attn_processor(AttnProcessor())
    with pytest.raises(DoesNotFit, match="another attention processor"):
        pixels(small, a=Strength(mask=LEFT))
    small.pipe.unet.set_attn_processor(before)
    assert torch.equal(pixels(small), none)


def test_a_compiled_denoiser_is_refused(small):
    small.pipe.unet.compile(backend="eager")
    with pytest.raises(DoesNotFit, match="compiled"):
        pixels(small, a=Strength(mask=LEFT))


def test_regions_go_with_each_way_to_compute_attention(small):
    plain = pixels(small, a=Strength(mask=LEFT))
    assert far(pixels(small.sparing(attention="sliced"), a=Strength(mask=LEFT)), plain) < 1e-4


def test_the_current_blend_and_pictures_without_masks_share_a_call(small):
    pipe = ImagePipeline(small)
    studio.blend(small.pipe, {"a": Strength(mask=LEFT)})
    asked = {"seeds": [0], "steps": 2, "batch_size": 2, **SIZE}
    (current,) = pipe.generate(PROMPT, **asked)
    (masked, plain, other) = pipe.generate(
        [PROMPT] * 3, blend=[{"a": Strength(mask=LEFT)}, {"a": 1.0}, {"a": Strength(mask=1 - LEFT)}], **asked
    )
    assert current.tobytes() == masked.tobytes()
    assert len({image.tobytes() for image in (masked, plain, other)}) == 3
    assert pipe.generate(PROMPT, blend={"a": 1.0}, **asked)[0].tobytes() == plain.tobytes()
