"""Fitting in memory: attention, offloading, tiling and slicing change no picture, and are given back."""

from __future__ import annotations

import sys
import types

import pytest
import torch
import torch.nn.functional as F

import studio
from studio.errors import DoesNotFit, UnknownName
from studio.families import components, open_base
from studio.families.attention import ATTENTIONS, attending
from studio.families.offloading import OFFLOADS, offload, offloaded
from studio.families.tiling import in_parts
from studio.pipelines import ImagePipeline, regenerate
from studio.pipelines.request import Request
from studio.pipelines.sample import draw
from tiny_pipelines import BUILDERS, PROMPT, build, modules

CPU = torch.device("cpu")
WAYS = [way for way in OFFLOADS if way != "none"]
KINDS = [pytest.param(kind, marks=() if kind in ("sd1", "flux1", "z-image") else pytest.mark.slow) for kind in BUILDERS]


def pixels(base, rows: int = 1, width: int = 96) -> torch.Tensor:
    own = base.defaults
    request = Request(
        prompt=PROMPT, seed=1, steps=2, width=width, height=64, guidance=own.guidance, embedded=own.embedded
    )  # fmt: skip
    return draw(base, [request] * rows, rows=rows)[0]


def facts(pipe) -> dict[str, object]:
    """What a module is beside its numbers: its class, and what is set on the object."""
    return {
        f"{name}.{path}": (
            type(module),
            set(vars(module)),
            list(module._forward_hooks),
            list(module._forward_pre_hooks),
        )
        for name, part in modules(pipe).items()
        for path, module in part.named_modules()
    }


def bits(pipe) -> dict[str, torch.Tensor]:
    return {
        f"{name}.{key}": tensor.clone()
        for name, part in modules(pipe).items()
        for key, tensor in part.state_dict().items()
    }


def shaken(pipe, name: str = "new") -> None:
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in studio.state(pipe, name).values():
            tensor.add_(torch.randn(tensor.shape, generator=draws) * 0.1)


@pytest.fixture
def xformers(monkeypatch):
    """xFormers' one function, on the CPU and with shapes as it wants them."""
    calls = []

    def memory_efficient_attention(query, key, value, attn_bias=None, p=0.0, scale=None):
        calls.append(query.shape)
        assert key.shape == value.shape and key.shape[2] == query.shape[2], "(B, L, H, D), with all heads"
        assert attn_bias is None or attn_bias.shape == (len(query), query.shape[2], query.shape[1], key.shape[1])
        turned = (tensor.transpose(1, 2) for tensor in (query, key, value))
        return F.scaled_dot_product_attention(*turned, attn_mask=attn_bias, dropout_p=p, scale=scale).transpose(1, 2)

    ops = types.ModuleType("xformers.ops")
    ops.memory_efficient_attention = memory_efficient_attention
    monkeypatch.setitem(sys.modules, "xformers", types.ModuleType("xformers"))
    monkeypatch.setitem(sys.modules, "xformers.ops", ops)
    way = ATTENTIONS["xformers"]
    monkeypatch.setitem(ATTENTIONS._entries, "xformers", type(way)(way.what, way.compute))
    return calls


@pytest.mark.parametrize("kind", KINDS)
def test_attention_in_other_ways_draws_the_same_and_leaves_nothing(kind, xformers):
    base = open_base(build(kind))
    studio.attach(base.pipe, studio.LoRA(rank=2, targets="attention"), name="new")
    shaken(base.pipe)
    wanted, before = pixels(base), facts(base.pipe)
    for name in ATTENTIONS:
        torch.testing.assert_close(pixels(base.sparing(attention=name)), wanted, rtol=0, atol=2e-5)
        assert facts(base.pipe) == before
    assert xformers
    assert torch.equal(pixels(base), wanted)
    with studio.blended(base.pipe, {}):
        assert not torch.equal(pixels(base.sparing(attention="sliced")), wanted), "the adapter acted in it"


@pytest.mark.parametrize("name", list(ATTENTIONS))
@pytest.mark.parametrize("mask", ["none", "bool", "numbers"])
@pytest.mark.parametrize("heads", [1, 2, 4])
def test_attention_is_its_formula(name, mask, heads, xformers):
    draws = torch.Generator().manual_seed(0)
    query = torch.randn(2, 4, 5, 8, generator=draws)
    key, value = (torch.randn(2, heads, 7, 8, generator=draws) for _ in range(2))
    masks = {"none": None, "bool": torch.rand(2, 1, 1, 7, generator=draws) > 0.3, "numbers": torch.randn(5, 7)}
    added = masks[mask]
    scores = query @ key.repeat_interleave(4 // heads, 1).mT * 0.3
    if added is not None:
        scores = scores.masked_fill(~added, float("-inf")) if added.dtype is torch.bool else scores + added
    wanted = scores.softmax(-1) @ value.repeat_interleave(4 // heads, 1)
    if name == "flash" and heads != 4:
        pytest.skip("torch's flash kernel of the CPU takes no shared heads")
    with attending(name, CPU):
        y = F.scaled_dot_product_attention(query, key, value, attn_mask=added, scale=0.3, enable_gqa=heads != 4)
    torch.testing.assert_close(y, wanted, rtol=0, atol=1e-5)


def test_attention_of_one_call_is_that_of_the_call_alone():
    pipe = ImagePipeline.open(build("sd1"), attention="sliced")
    assert pipe.base.saving.attention == "sliced"
    asked = {"steps": 2, "width": 64, "height": 64}
    (sliced,) = pipe.generate(PROMPT, **asked)
    (own,) = pipe.generate(PROMPT, attention="sdpa", **asked)
    assert pipe.base.saving.attention == "sliced"
    assert max(abs(a - b) for a, b in zip(sliced.tobytes(), own.tobytes(), strict=True)) <= 1
    assert '"attention"' in sliced.info["studio"] and '"attention"' not in own.info["studio"]
    for picture in (sliced, own):
        again = regenerate(picture, pipe=pipe)
        assert again.tobytes() == picture.tobytes() and again.info == picture.info
    assert pipe.base.saving.attention == "sliced"


def test_attention_that_cannot_be_had_is_refused():
    pipe = ImagePipeline.open(build("sd1"))
    with pytest.raises(UnknownName, match="did you mean 'xformers'"):
        pipe.generate(PROMPT, attention="xformer", steps=1)
    with pytest.raises(DoesNotFit, match="attention='xformers' needs a GPU, where 'pip install xformers' brings it"):
        pipe.generate(PROMPT, attention="xformers", steps=1)
    query, wide = torch.randn(1, 1, 3, 8), torch.randn(1, 1, 3, 16)
    with pytest.raises(DoesNotFit, match="heads of 8 numbers in float32 on cpu; "), attending("flash", CPU):
        F.scaled_dot_product_attention(query, query, wide)


def test_attention_without_an_effect_is_refused():
    """Diffusers' processors of before torch's attention compute it themselves."""
    from diffusers.models.attention_processor import AttnProcessor

    pipe = ImagePipeline.open(build("sd1"))
    pipe.pipe.unet.set_attn_processor(AttnProcessor())
    with pytest.raises(DoesNotFit, match="attention='sliced' had no effect"):
        pipe.generate(PROMPT, attention="sliced", steps=1, width=64, height=64)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_an_offloaded_base_draws_the_same_and_is_given_back(kind, way):
    """With adapters that came before and after; put as on an accelerator, which is here the CPU."""
    base = open_base(build(kind))
    bare = pixels(base)  # transformers puts hooks of its own at the first call
    before, own = bits(base.pipe), facts(base.pipe)
    studio.attach(base.pipe, studio.LoRA(rank=2, targets="attention"), name="early")
    shaken(base.pipe, "early")
    early = pixels(base)

    OFFLOADS[way].put(base.pipe, CPU)
    assert all(offloaded(part) for part in components(base.pipe).values())
    assert torch.equal(pixels(base), early)
    studio.attach(base.pipe, studio.LoRA(rank=2, targets="attention"), name="late")
    with torch.no_grad():
        for tensor in studio.state(base.pipe, "late").values():
            if tensor.device.type != "meta":
                tensor.add_(0.1)
    studio.blend(base.pipe, {"early": 1.0, "late": 1.0})
    assert (pixels(base) - early).abs().max() > 1e-6
    studio.detach(base.pipe, "late")
    assert torch.equal(pixels(base), early)

    offload(base.pipe, "none", CPU)
    assert torch.equal(pixels(base), early)
    studio.detach(base.pipe)
    assert facts(base.pipe) == own
    after = bits(base.pipe)
    assert after.keys() == before.keys() and all(torch.equal(after[key], before[key]) for key in before)
    assert torch.equal(pixels(base), bare)


def test_a_pipeline_is_opened_offloaded(tmp_path):
    plain = ImagePipeline.open("emoji")
    pipe = ImagePipeline.open("emoji", offload="group", device="cpu")
    asked = {"seeds": 2, "steps": 3}
    (wanted,), (image,) = plain.generate("rocket", **asked), pipe.generate("rocket", **asked)
    assert image.tobytes() == wanted.tobytes() and image.info == wanted.info
    studio.attach(plain.pipe, studio.LoRA(rank=2), name="new")
    shaken(plain.pipe)
    pipe.load(studio.save(plain.pipe, tmp_path / "new.safetensors", name="new"), trainable=True)
    assert pipe.generate("rocket", **asked)[0].tobytes() == plain.generate("rocket", **asked)[0].tobytes()
    again = ImagePipeline.open(pipe.base, offload="none")
    assert not offloaded(again.pipe.unet)
    assert again.generate("rocket", **asked)[0].tobytes() == plain.generate("rocket", **asked)[0].tobytes()


def test_offloading_that_cannot_be_had_is_refused():
    for way in ("model", "sequential"):
        with pytest.raises(DoesNotFit, match=f"offload='{way}' keeps weights in the CPU's memory"):
            ImagePipeline.open("emoji", offload=way, device="cpu")
    with pytest.raises(UnknownName, match="did you mean 'group'"):
        ImagePipeline.open("emoji", offload="groups", device="cpu")
    base = open_base(build("sd1"), offload="group", device="cpu")
    with pytest.raises(DoesNotFit, match="is offloaded: it is neither moved nor trained so"):
        open_base(base, device="cpu")
    assert open_base(base, dtype="bf16", offload="group", device="cpu").pipe.unet.dtype is torch.bfloat16
    assert open_base(base, offload="none").pipe.unet.dtype is torch.bfloat16


@pytest.mark.parametrize("kind", KINDS)
def test_the_autoencoder_takes_pictures_in_parts(kind):
    base = open_base(build(kind))
    wanted, before = (
        pixels(base, rows=2),
        {name: value for name, value in vars(base.pipe.vae).items() if "use_" in name},
    )
    torch.testing.assert_close(pixels(base.sparing(vae_slicing=True), rows=2), wanted, rtol=0, atol=2e-5)
    tiled = base.sparing(vae_tiling=True)
    assert torch.equal(pixels(tiled, width=64), pixels(base, width=64)), "one tile is the picture"
    assert {name: value for name, value in vars(base.pipe.vae).items() if "use_" in name} == before


def test_tiles_are_computed_and_cost_little():
    base = open_base("emoji")
    latents = torch.randn(1, base.family.channels(base.pipe), 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = base.family.decode(base.pipe, latents)
        with in_parts(base.pipe.vae, tiling=True, slicing=False):
            tiled = base.family.decode(base.pipe, latents)
    assert tiled.shape == whole.shape and not torch.equal(tiled, whole)
    assert (tiled - whole).abs().mean() < 0.15, "of noise, whose tiles are normed one by one"


def test_an_autoencoder_without_tiles_is_refused():
    with (
        pytest.raises(DoesNotFit, match="vae_tiling: the Linear of this base knows no tiling"),
        in_parts(torch.nn.Linear(1, 1), tiling=True, slicing=False),
    ):
        pass
