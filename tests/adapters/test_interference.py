"""What adapters do to each other: the numbers against deltas in float64 that baking writes into the weights."""

from __future__ import annotations

import itertools
import json
import math

import pytest
import torch
from torch import Tensor, nn

import studio
from studio.adapters.interference import BURNS, FIGHTS
from studio.adapters.overlap import block_of
from studio.errors import DoesNotFit, NoEffect, UnknownName
from tiny import llama
from tiny_pipelines import BUILDERS, build

METHODS = studio.METHODS
CHANGING = [name for name in METHODS if METHODS[name].adapter.bakes]
STILL = [name for name in METHODS if not METHODS[name].adapter.bakes]
LAYERS = {"linear": "line", "conv": "conv", "embedding": "table", "norm": "norm", "experts": "experts"}


class Net(nn.Module):
    """One of each kind of layer that a method may change, of eight inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.line, self.conv = nn.Linear(8, 12), nn.Conv2d(8, 8, 3)
        self.table, self.norm = nn.Embedding(12, 8), nn.LayerNorm(8)
        self.experts = nn.Parameter(torch.randn(2, 8, 8))


def net(dtype: torch.dtype = torch.float64) -> Net:
    torch.manual_seed(0)
    model = Net().to(dtype)
    nn.init.normal_(model.norm.bias)
    return model


def paths(method: str) -> list[str]:
    return [path for kind, path in LAYERS.items() if kind in METHODS[method].adapter.kinds]


def put(model: nn.Module, method: str, name: str, seed: int, *where: str) -> None:
    """Attaches an adapter and moves it away from its start, as training would."""
    targets = tuple(f"re:{path}" for path in where or paths(method))
    chosen = {} if "model" in METHODS[method].adapter.kinds else {"targets": targets}
    feeding = {"feedforward": targets} if method == "ia3" and "line" in where else {}
    studio.attach(model, METHODS[method].example(**chosen, **feeding), name=name)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in studio.state(model, name).values():
            if tensor.is_floating_point() and tensor.requires_grad:
                tensor += 0.3 * torch.randn(tensor.shape, generator=generator).to(tensor)
    model.double()  # adapters are fp32 by themselves


def values(model: nn.Module, path: str) -> Tensor:
    """All numbers of a layer as one vector."""
    part = dict(model.named_modules()).get(path)
    held = {"": model._parameters[path]} if part is None else part._parameters
    return torch.cat([tensor.detach().flatten() for tensor in held.values() if tensor is not None])


def change(model: nn.Module, blend: dict[str, float], path: str) -> Tensor:
    """What a blend changes at a layer, from the weights that baking writes."""
    before = values(model, path).clone()
    studio.bake(model, blend)
    after = values(model, path).clone()
    studio.unbake(model)
    return after - before


@pytest.mark.parametrize("method", CHANGING)
def test_norms_and_cosines_are_those_of_the_deltas(method):
    model = net()
    put(model, method, "dog", 1)
    put(model, method, "ink", 2)
    strengths = {"dog": 0.8, "ink": -0.5}
    sites = {site.place: site for site in studio.blend_report(model, strengths).sites}
    assert set(sites) == set(paths(method))
    for path, site in sites.items():
        dog, ink = (change(model, {name: strength}, path) for name, strength in strengths.items())
        assert site.norms == pytest.approx({"dog": float(dog.norm()), "ink": float(ink.norm())}, rel=1e-9)
        expected = float(dog @ ink / (dog.norm() * ink.norm()))
        assert site.cosines[("dog", "ink")] == pytest.approx(expected, abs=1e-9)
        assert site.total == pytest.approx(float(change(model, strengths, path).norm()), rel=1e-9)
        assert site.base == pytest.approx(float(values(model, path).norm()), rel=1e-6)
        assert site.kept == pytest.approx(float((dog + ink).norm() / (dog.norm() + ink.norm())), rel=1e-9)
        strongest = max(dog.norm() / 0.8, ink.norm() / 0.5)  # at strength 1
        assert site.growth == pytest.approx(float((dog + ink).norm() / strongest), rel=1e-9)


@pytest.mark.parametrize(
    ("first", "second"), list(itertools.combinations(("lora", "loha", "dora", "bitfit", "oft"), 2))
)
def test_methods_are_compared_with_each_other(first, second):
    model = net()
    put(model, first, "dog", 1, "line")
    put(model, second, "ink", 2, "line")
    (site,) = studio.blend_report(model, {"dog": 1.0, "ink": 1.0}).sites
    dog, ink = change(model, {"dog": 1.0}, "line"), change(model, {"ink": 1.0}, "line")
    assert site.cosines[("dog", "ink")] == pytest.approx(float(dog @ ink / (dog.norm() * ink.norm())), abs=1e-9)
    assert site.total == pytest.approx(float((dog + ink).norm()), rel=1e-9)


def test_a_pair_is_never_multiplied_out(monkeypatch):
    from studio.adapters.contract.ranked import FactorAdapter

    model = net()
    put(model, "lora", "dog", 1, "line", "conv", "experts")
    put(model, "lora", "ink", 2, "line", "conv", "experts")
    monkeypatch.setattr(FactorAdapter, "delta", lambda *_: pytest.fail("a pair was multiplied out"))
    assert len(studio.blend_report(model).sites) == 3


@pytest.mark.parametrize("method", STILL)
def test_methods_without_a_weight_change_are_named(method):
    model = llama()
    targets = () if "model" in METHODS[method].adapter.kinds else ("re:model.layers.0.mlp",)
    studio.attach(model, METHODS[method].example(**({"targets": targets} if targets else {})), name="soft")
    with pytest.raises(NoEffect, match=f"soft \\({method}\\) changes no weight"):
        studio.blend_report(model, "soft")
    put(model, "lora", "dog", 1, "model.layers.0.self_attn.q_proj")
    report = studio.blend_report(model, {"soft": 1.0, "dog": 1.0})
    assert report.silent == {"soft": method} and report.whole.names == ("dog",)
    assert any(f"soft ({method}) changes no weight" in line for line in report.advice)


def twice(model: nn.Module, sign: float) -> None:
    """Two adapters of the same change, or of the opposite one."""
    put(model, "lora", "dog", 1, "line")
    put(model, "lora", "ink", 1, "line")
    with torch.no_grad():
        studio.state(model, "ink")["line.up"].mul_(sign)


def test_the_same_twice_burns():
    model = net()
    twice(model, 1.0)
    report = studio.blend_report(model, {"dog": 1.0, "ink": 1.0})
    assert report.whole.growth == pytest.approx(2.0) and report.whole.kept == pytest.approx(1.0)
    assert report.whole.cosines[("dog", "ink")] == pytest.approx(1.0)
    assert "add up" in report.advice[0] and "2.00 times" in report.advice[0]


def test_opposites_fight():
    model = net()
    twice(model, -1.0)
    report = studio.blend_report(model, {"dog": 1.0, "ink": 0.5})
    assert report.whole.cosines[("dog", "ink")] == pytest.approx(-1.0)
    assert report.whole.kept == pytest.approx(1 / 3) and report.whole.growth == pytest.approx(0.5)
    assert "undo each other" in report.advice[0] and "line" in report.advice[0]


def test_strengths_by_block_count():
    model = net()
    put(model, "lora", "dog", 1, "line", "conv")
    put(model, "lora", "ink", 2, "line", "conv")
    report = studio.blend_report(model, {"dog": studio.Strength(2.0, blocks={"line": 0.0}), "ink": 1.0})
    assert {site.place: set(site.norms) for site in report.sites} == {"line": {"ink"}, "conv": {"dog", "ink"}}
    whole = math.hypot(*(float(change(model, {"ink": 1.0}, path).norm()) for path in ("line", "conv")))
    assert report.whole.norms["ink"] == pytest.approx(whole, rel=1e-9)


def test_it_changes_nothing_and_is_plain_json(capsys):
    model = net()
    put(model, "lora", "dog", 1)
    put(model, "dora", "ink", 2, "line")
    studio.blend(model, {"ink": 0.25})
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    report = studio.blend_report(model, {"dog": 1.0, "ink": 1.0})
    assert studio.adapters(model)["ink"].strength == 0.25 and studio.adapters(model)["dog"].strength == 0.0
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())
    told = json.loads(json.dumps(report.facts()))
    assert [site["place"] for site in told["sites"]] == ["line", "conv", "table", "experts"]
    table = str(report).splitlines()
    assert table[0].split() == ["block", "layers", "dog", "ink", "dog·ink", "together", "growth", "kept"]
    assert len(table) == 1 + 4 + 1 + 1 + len(report.advice)


def test_blocks_of_a_pipeline(tiny_base):
    from studio.pipelines import ImagePipeline

    pipe = ImagePipeline.open(tiny_base)
    for seed, name in enumerate(("dog", "ink")):
        studio.attach(pipe, studio.LoRA(rank=2, init="gaussian"), name=name, seed=seed)
        with torch.no_grad():
            for tensor in studio.state(pipe, name).values():
                tensor += 0.1 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(seed))
    report = studio.blend_report(pipe, {"dog": 1.0, "ink": 1.0})
    assert {block_of(site.place) for site in report.sites} == {block.place for block in report.blocks}
    assert sum(block.sites for block in report.blocks) == len(report.sites) == report.whole.sites
    assert report.whole.total**2 == pytest.approx(sum(block.total**2 for block in report.blocks))


def test_what_is_refused():
    model = net()
    with pytest.raises(NoEffect, match="no adapter of the blend acts"):
        studio.blend_report(model)
    put(model, "lora", "dog", 1, "line")
    with pytest.raises(UnknownName, match="did you mean 'dog'"):
        studio.blend_report(model, {"dig": 1.0})
    with pytest.raises(NoEffect, match="no adapter of the blend acts"):
        studio.blend_report(model, {"dog": 0.0})
    with pytest.raises(DoesNotFit, match="differs by sample"):
        studio.blend_report(model, {"dog": [0.0, 1.0]})
    studio.bake(model)
    with pytest.raises(DoesNotFit, match="call unbake first"):
        studio.blend_report(model)


@pytest.mark.parametrize("method", CHANGING)
def test_normalized_goes_as_far_as_the_strongest(method):
    model = net()
    put(model, method, "dog", 1)
    put(model, method, "ink", 1)
    raw = studio.blend_report(model, {"dog": 1.0, "ink": 0.8})
    assert all(block.growth > 1.3 for block in raw.blocks)
    blend = studio.normalized(model, {"dog": 1.0, "ink": 0.8})
    lowered = studio.blend_report(model, blend)
    for before, after in zip(raw.blocks, lowered.blocks, strict=True):
        assert after.total == pytest.approx(max(before.norms.values()))
        assert after.norms["ink"] / after.norms["dog"] == pytest.approx(before.norms["ink"] / before.norms["dog"])
    assert studio.normalized(model, blend) == blend


def test_normalized_leaves_alone_what_does_not_add_up():
    model = net()
    put(model, "lora", "dog", 1, "line")
    put(model, "lora", "ink", 2, "conv")
    put(model, "lora", "sun", 2, "conv")
    blend = studio.normalized(model, {"dog": 1.5, "ink": studio.Strength(0.5, blocks={"conv": 2.0}), "sun": 1.0})
    assert blend["dog"] == studio.Strength(1.5)
    assert blend["ink"].at("", "conv") == pytest.approx(0.5) and blend["sun"].at("", "conv") == pytest.approx(0.5)
    apart = {"ink": studio.Strength(), "sun": studio.Strength(-1.0)}
    assert studio.normalized(model, apart) == apart
    assert studio.normalized(model, {"ink": 0.5, "sun": 0.5})["sun"].at("", "conv") == 0.5
    assert studio.normalized(model, {"ink": 2.0, "sun": 1.0})["ink"].at("", "conv") == pytest.approx(4 / 3)
    studio.blend(model, blend)  # the factors are of blocks that each is in
    assert studio.normalized(model) == blend


def test_the_limits_mean_what_they_say():
    """Two that are as strong: what is lost of each at FIGHTS, and how far they go at BURNS."""
    assert math.sqrt(2 + 2 * FIGHTS) / math.sqrt(2) == pytest.approx(0.8, abs=0.01)
    assert 1.0 < BURNS <= math.sqrt(2)
    assert math.isclose(math.sqrt(2 + 2 * (BURNS**2 / 2 - 1)), BURNS)


SLOW = {
    "sana",
    "flux2",
    "flux2-klein",
    "chroma",
    "flux1",
    "flux1-schnell",
    "pixart-sigma",
    "qwen-image",
    "sd3",
    "lumina2",
}


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.slow if kind in SLOW else ()) for kind in BUILDERS]
)
def test_every_family_has_blocks_and_can_be_held(kind):
    pipe = build(kind)
    for name, seed in (("dog", 1), ("ink", 2)):
        studio.attach(pipe, studio.LoRA(rank=2), name=name)
        for number, tensor in enumerate(studio.state(pipe, name).values()):
            common = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(number))
            own = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(1000 * seed + number))
            tensor.data = 0.1 * (common + 0.3 * own)
    both = {"dog": 1.0, "ink": 1.0}
    report = studio.blend_report(pipe, both)
    assert 1 < len(report.blocks) < len(report.sites) and report.whole.growth > 1.3
    held = studio.normalized(pipe, both)
    with studio.blended(pipe, held):
        after = studio.blend_report(pipe)
    assert all(block.growth == pytest.approx(1.0, abs=1e-3) for block in after.blocks)
    strongest = [max(block.norms.values()) for block in report.blocks]
    assert [block.total for block in after.blocks] == pytest.approx(strongest, rel=1e-3)
