"""Combinations: what the live blend does, in one adapter; and the rules of the field, each against its formula."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn

import studio
from benchmarks.merges import errors
from studio.adapters import COMBINES, METHODS, adapters, blended
from studio.adapters.combining.knots import knots
from studio.adapters.combining.numbers import ties
from studio.adapters.combining.pairs import of_rank, rounded_to, stacked
from studio.adapters.combining.sparse import breadcrumbs, della
from studio.adapters.combining.sphere import karcher, model_stock, slerp
from studio.errors import BadConfig, DoesNotFit, UnknownName

BAKING = [
    name
    for name, config in METHODS.items()
    if config.adapter.bakes and "model" not in config.adapter.kinds and "linear" in config.adapter.kinds
]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.lin, self.out = nn.Conv2d(8, 32, 3, padding=1), nn.Linear(32, 48), nn.Linear(48, 32, bias=False)

    def forward(self, x):
        return self.out(torch.tanh(self.lin(torch.tanh(self.conv(x)).flatten(2).mT)))


def sample():
    return torch.randn(2, 8, 4, 4, generator=torch.Generator().manual_seed(5))


def put(net, name, config, seed):
    studio.attach(net, config, name=name, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for tensor in studio.state(net, name).values():
        if tensor.requires_grad:
            tensor.data += 0.1 * torch.randn(tensor.shape, generator=generator)


def three(*configs):
    net = Net()
    for seed, (name, config) in enumerate(zip("abc", configs, strict=False)):
        put(net, name, config, seed)
    return net


def loras(*ranks, targets=("lin", "out")):
    return [
        studio.LoRA(rank=rank, alpha=alpha, targets=targets) for rank, alpha in zip(ranks, (4, 2, 32), strict=False)
    ]


BLEND = {"a": 0.7, "b": -0.4, "c": 1.2}


def live(net, blend):
    with blended(net, blend):
        return net(sample())


def deltas(net, name):
    """Path -> ΔW in float64."""
    found = {}
    for path in adapters(net)[name].sites:
        module = net.get_submodule(path)
        adapter = module.adapters.get(name)
        found[path] = adapter.delta(module.weight.double(), None).weight.detach().double().flatten(1)
    return found


# -- exact ---------------------------------------------------------------------------------------------------------


def test_three_loras_are_one_of_the_sum_of_their_ranks(tmp_path):
    net = three(*loras(4, 8, 16))
    expected = live(net, BLEND)
    report = studio.combine(net, BLEND, name="all")
    assert (report.method, dict(report.ranks), report.error) == ("lora", {28: 2}, 0.0)
    assert adapters(net)["all"].strength == 0.0
    assert torch.allclose(live(net, "all"), expected, atol=1e-5)
    studio.save(net, tmp_path / "all.safetensors", name="all")
    other = Net()
    studio.load(other, tmp_path / "all.safetensors")
    assert torch.allclose(other(sample()), expected, atol=1e-5)
    told = json.loads(studio.adapters(other)["all"].metadata["combined"])
    assert told["rule"] == "exact" and list(told["parents"]) == ["a", "b", "c"]


@pytest.mark.parametrize("rank", [1, 6, 12])
def test_below_that_the_error_is_that_of_the_best_approximation(rank):
    net = three(*loras(4, 8, 16))
    parts = {name: deltas(net, name) for name in "abc"}
    lacking = whole = 0.0
    for path in parts["a"]:
        values = torch.linalg.svdvals(sum(BLEND[name] * parts[name][path] for name in "abc"))
        lacking, whole = lacking + values[rank:].square().sum().item(), whole + values.square().sum().item()
    report = studio.combine(net, BLEND, rank=rank, name="few")
    assert report.error == pytest.approx(math.sqrt(lacking / whole), rel=1e-5)
    found, expected = deltas(net, "few"), {path: sum(BLEND[n] * parts[n][path] for n in "abc") for path in parts["a"]}
    apart = math.sqrt(sum((found[path] - expected[path]).square().sum().item() for path in found) / whole)
    assert apart == pytest.approx(report.error, rel=1e-4)
    assert f"{report.error:.2%}" in str(report)


@pytest.mark.parametrize("method", BAKING)
def test_a_method_of_any_kind_and_a_lora(method):
    """The sum of the changes, each of the base's own weight; on a convolution too, where the method has them."""
    net = Net()
    layers = ("lin", "out") if "conv" not in METHODS[method].adapter.kinds else ("conv", "lin", "out")
    put(net, "a", METHODS[method].example(targets=layers), 1)
    put(net, "b", studio.LoRA(rank=3, use_bias=method != "embedding", targets=("lin", "out")), 2)
    blend = {"a": 0.6, "b": 0.9}
    expected = live(net, blend)
    report = studio.combine(net, blend)
    assert torch.allclose(live(net, "both"), expected, atol=2e-5), (live(net, "both") - expected).abs().max()
    assert report.sites == len(layers)


def test_a_lora_a_lokr_and_a_dora_are_a_full_difference_or_of_a_rank():
    net = three(
        studio.LoRA(rank=4, targets=("lin", "out")), studio.LoKr(rank=2, targets=("conv", "lin")),
        studio.DoRA(rank=4, targets=("lin", "out")),
    )  # fmt: skip
    expected = live(net, BLEND)
    assert studio.combine(net, BLEND, name="full").method == "full"
    assert torch.allclose(live(net, "full"), expected, atol=1e-5)
    low = studio.combine(net, BLEND, rank=5, name="low")
    assert low.method == "lora" and 0 < low.error < 1
    assert studio.combine(net, BLEND, rank=72, name="most").error < 1e-6
    assert torch.allclose(live(net, "most"), expected, atol=1e-4)


def test_strengths_per_block_and_component_are_worked_in():
    net = three(*loras(4, 8))
    blend = {"a": studio.Strength(0.5, blocks={"lin": 2.0, "out": 0.0}), "b": 1.0}
    expected = live(net, blend)
    assert dict(studio.combine(net, blend).ranks) == {12: 1, 8: 1}
    assert torch.allclose(live(net, "both"), expected, atol=1e-5)


def test_a_rank_above_the_layers_is_theirs():
    net = three(*loras(20, 20))
    expected = live(net, {"a": 1.0, "b": 1.0})
    report = studio.combine(net, {"a": 1.0, "b": 1.0}, name="ab")
    assert dict(report.ranks) == {32: 2} and report.error < 1e-6
    assert torch.allclose(live(net, "ab"), expected, atol=1e-5)


# -- the other rules -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", list(COMBINES))
def test_each_rule_makes_an_adapter_that_acts_and_is_drawn_anew_alike(rule):
    outputs = []
    for _ in range(2):
        net = three(*loras(4, 4))
        report = studio.combine(net, {"a": 0.5, "b": 0.5}, method=rule)
        assert report.rule == rule
        outputs.append(live(net, "both"))
    assert torch.equal(*outputs) and not torch.allclose(outputs[0], live(net, {}), atol=1e-4)


@pytest.mark.parametrize("rule", [name for name, rule in COMBINES.items() if rule.dense is not None])
def test_rules_by_numbers_are_applied_to_the_changes_themselves(rule):
    """Not to the factors, which would mix them crosswise: one alone at strength 1, all of it kept, is itself."""
    net = three(*loras(4, 4))
    if rule in ("ties", "magnitude_prune"):
        studio.combine(net, {"a": 1.0}, method=rule, density=1.0)
        assert torch.allclose(live(net, "both"), live(net, "a"), atol=1e-5)
        return
    extra = (
        {"gamma": 0.0, "density": 1.0} if rule == "breadcrumbs" else {"density": 0.999999 if "dare" in rule else 0.6}
    )
    studio.combine(net, {"a": 1.0}, method=rule, **extra)
    own, made = deltas(net, "a"), deltas(net, "both")
    for path in own:
        kept = made[path] != 0
        if rule != "della":
            assert torch.allclose(made[path][kept], own[path][kept], rtol=1e-4, atol=1e-7)
        else:  # divided by the chance to be kept
            ratio = made[path][kept] / own[path][kept]
            assert ratio.min() >= 1 / 0.7 - 1e-3 and ratio.max() <= 1 / 0.5 + 1e-3


def test_the_numbers_of_the_papers():
    x, y = torch.tensor([3.0, -1.0, 0.5, 2.0]), torch.tensor([-1.0, -4.0, 0.2, 3.0])
    assert ties([x, y], [1.0, 1.0], 0.5).tolist() == [3.0, -4.0, 0.0, 2.5]
    ones = torch.tensor([[1.0, 0.0], [0.0, 4.0]], dtype=torch.float64)
    assert slerp(ones, [0.5, 0.5]) == pytest.approx([math.sqrt(0.5)] * 2)  # (1,0), (0,2) -> (.7071, 1.4142)
    assert slerp(torch.ones(2, 2, dtype=torch.float64), [0.3, 0.9]) == [0.3, 0.9]  # parallel: the plain sum
    t = torch.tensor([[1.0, 1.0], [1.0, 2.0]], dtype=torch.float64)
    assert [2 * c for c in model_stock(t, [1.0, 1.0])] == pytest.approx([0.8284] * 2, abs=1e-4)
    assert model_stock(torch.eye(2, dtype=torch.float64), [1.0, 1.0]) == [0.0, 0.0]
    assert model_stock(torch.ones(3, 3, dtype=torch.float64), [1.0] * 3) == pytest.approx([1 / 3] * 3)
    # a part of the largest that is less than one number is none, and what is left is not nothing
    assert breadcrumbs([x], [1.0], density=0.5, gamma=0.01).tolist() == [3.0, 0.0, 0.0, 2.0]
    column = della([torch.ones(5, 1)], [1.0], 0.5, 0.1, torch.Generator().manual_seed(0))
    assert column.isfinite().all()


def test_della_keeps_the_mean():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 6, generator=generator).double()
    mean = sum(della([x], [1.0], 0.5, 0.2, generator) for _ in range(20000)) / 20000
    assert (mean - x).abs().max() < 0.05


def test_the_mean_on_the_sphere_is_where_the_arcs_pull_evenly():
    generator = torch.Generator().manual_seed(0)
    d = torch.randn(3, 10, generator=generator).double() + 1
    weights = [0.2, 0.5, 0.3]
    mean = sum(c * one for c, one in zip(karcher(d @ d.mT, weights), d, strict=True))
    length = sum(w * one.norm() for w, one in zip(weights, d, strict=True))
    assert mean.norm() == pytest.approx(length.item(), rel=1e-9)
    unit, pull = mean / mean.norm(), torch.zeros(10, dtype=torch.float64)
    for weight, one in zip(weights, d, strict=True):
        u = one / one.norm()
        angle = (u @ unit).acos()
        pull += weight * angle * (u - (u @ unit) * unit) / angle.sin()
    assert pull.norm() < 1e-9
    two = d[:2]
    half = sum(c * one for c, one in zip(karcher(two @ two.mT, [0.5, 0.5]), two, strict=True))
    first, second = (one / one.norm() for one in two)
    assert torch.allclose(half / half.norm(), (first + second) / (first + second).norm(), atol=1e-9)


def test_knots_is_the_svd_of_all_beside_each_other():
    generator = torch.Generator().manual_seed(0)
    pairs = [(torch.randn(r, 9, generator=generator), torch.randn(12, r, generator=generator)) for r in (2, 3)]
    down, up = knots(pairs, [0.5, 2.0], density=0.4)
    side = torch.cat([w * (u @ d).double() for w, (d, u) in zip([0.5, 2.0], pairs, strict=True)], dim=1)
    u, s, vh = torch.linalg.svd(side, full_matrices=False)
    kept = s > 1e-7 * s[0]
    shared = (s[kept, None] * vh[kept]).chunk(2, dim=1)
    expected = u[:, kept] @ ties(list(shared), [1.0, 1.0], 0.4)
    assert len(down) == 5 and torch.allclose(up @ down, expected, atol=1e-9)


def test_pairs_by_qr_are_those_of_the_whole_matrix():
    generator = torch.Generator().manual_seed(0)
    pairs = [(torch.randn(r, 20, generator=generator), torch.randn(15, r, generator=generator)) for r in (2, 4, 3)]
    pair = stacked(pairs, [0.5, -1.0, 2.0])
    whole = pair[1] @ pair[0]
    expected = sum(c * (up @ down).double() for c, (down, up) in zip([0.5, -1.0, 2.0], pairs, strict=True))
    assert torch.allclose(whole, expected, atol=1e-5)
    for rank in (1, 5, 9):
        (down, up), lacking, size = of_rank(pair, rank)
        (other_down, other_up), other_lacking, other_size = rounded_to(whole, rank)
        assert torch.allclose(up @ down, other_up @ other_down, atol=1e-9)
        assert (lacking, size) == pytest.approx((other_lacking, other_size), abs=1e-9)


def test_other_tools_are_off_and_ours_is_not():
    """docs/files.md has the table."""
    found = errors()
    assert found.pop("studio") < 1e-6
    assert all(error > 0.1 for error in found.values())


# -- refusals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("blend", "options", "error", "message"),
    [
        ({"a": 1.0, "z": 1.0}, {}, UnknownName, "no adapter is named 'z'"),
        ({"a": 1.0}, {"method": "tise"}, UnknownName, "ties"),
        ({}, {}, BadConfig, "a table of adapters and strengths"),
        ("a", {}, BadConfig, "a table of adapters and strengths"),
        ({"a": 1.0}, {"rank": 0}, BadConfig, "rank=0"),
        ({"a": 1.0}, {"density": 0.5}, BadConfig, "density=0.5 has no effect on exact"),
        ({"a": 1.0}, {"method": "ties", "density": 1.5}, BadConfig, "density=1.5"),
        ({"a": 1.0}, {"method": "ties", "signs": "most"}, BadConfig, "'most'"),
        ({"a": 1.0}, {"method": "della", "density": 0.95}, BadConfig, "density - epsilon"),
        ({"a": 1.0}, {"method": "slerp"}, BadConfig, "one other"),
        ({"a": [0.1, 0.2]}, {}, DoesNotFit, "differs by sample"),
        ({"a": studio.Strength(schedule=[(0, 0), (1, 1)])}, {}, DoesNotFit, "differs by moment"),
        ({"a": 0.0}, {}, DoesNotFit, "0 at every layer"),
        ({"a": 1.0}, {"name": "a"}, DoesNotFit, "'a'"),
        ({"a": 1.0, "c": 1.0}, {}, DoesNotFit, "computes with activations"),
        ({"a": 1.0, "b": 1.0}, {"method": "cat"}, DoesNotFit, "is for factor pairs"),
    ],
)
def test_what_cannot_be_combined_is_refused_and_nothing_is_left(blend, options, error, message):
    net = three(
        studio.LoRA(rank=4, targets=("lin",)), studio.DoRA(rank=4, targets=("lin",)),
        studio.Bottleneck(size=3, targets=("lin",)),
    )  # fmt: skip
    before = {name: info.strength for name, info in adapters(net).items()}
    with pytest.raises(error, match=message):
        studio.combine(net, blend, **options)
    assert {name: info.strength for name, info in adapters(net).items()} == before
