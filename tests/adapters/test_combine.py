"""Combinations: what the live blend does, in one adapter; and the rules of the field, each against its formula."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn

import studio
from benchmarks.merges import errors
from studio.adapters import COMBINES, METHODS, adapters, blended, install
from studio.adapters.combination import digest
from studio.adapters.combining.knots import knots
from studio.adapters.combining.numbers import ties
from studio.adapters.combining.orthogonal import orthogonal
from studio.adapters.combining.pairs import of_rank, rounded_to, stacked
from studio.adapters.combining.sparse import breadcrumbs, della
from studio.adapters.combining.sphere import karcher, model_stock, slerp
from studio.adapters.combining.ziplora import column_weights, ziplora
from studio.adapters.contract.change import change_of
from studio.adapters.sites.kinds import site_for
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


def test_two_that_are_one_at_a_half_each_are_that_one():
    """check 38: stacked at rank 2r, by QR and SVD at rank r; PEFT's linear, by its name, gives twice of it."""
    net = three(*loras(4))
    tensors = {}
    for key, tensor in studio.state(net, "a").items():
        path, _, part = key.rpartition(".")
        tensors.setdefault(path, {})[part] = tensor.detach().clone()
    install(net, adapters(net)["a"].config, tensors, name="b")
    own, halves = deltas(net, "a"), {"a": 0.5, "b": 0.5}
    for name, options, ratio in (
        ("twice", {}, 1.0), ("once", {"rank": 4}, 1.0), ("peft", {"method": "peft-linear"}, 2.0),
    ):  # fmt: skip
        report = studio.combine(net, halves, name=name, **options)
        made = deltas(net, name)
        for path in own:
            assert (made[path] - ratio * own[path]).norm() < 1e-6 * own[path].norm(), (name, path)
        assert dict(report.ranks) == {8 if name == "twice" else 4: 2} and report.error < 1e-6
        assert report.cosines["a", "b"] == pytest.approx(1.0) and report.kept == pytest.approx(1.0)
        assert "do much the same" in report.suggestions[0]


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
    assert [parent["strength"] for parent in told["parents"].values()] == [0.7, -0.4, 1.2]
    for name, parent in told["parents"].items():
        assert parent["sha256"] == digest(studio.state(net, name))


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
    told = json.loads(adapters(net)["both"].metadata["combined"])["parents"]
    assert told["a"]["blocks"] == {"lin": 2.0, "out": 0.0} and "blocks" not in told["b"]


@pytest.mark.parametrize("rule", [name for name in COMBINES if name not in ("knots", "della")])
def test_every_rule_heeds_strengths_per_block(rule):
    """What acts at strength 0 in a block is not there, so that adapters in blocks of their own stay what they are."""
    net = three(*loras(4, 4))
    blend = {"a": studio.Strength(1.0, blocks={"out": 0.0}), "b": studio.Strength(1.0, blocks={"lin": 0.0})}
    whole = {"density": 1.0, "gamma": 0.0}
    report = studio.combine(
        net, blend, method=rule, **{one: whole[one] for one in COMBINES[rule].takes if one in whole}
    )
    assert report.sites == 2 and report.kept == pytest.approx(report.conflict.whole.kept)
    own = {"lin": deltas(net, "a")["lin"], "out": deltas(net, "b")["out"]}
    made = deltas(net, "both")
    for path in own:
        assert (made[path] - own[path]).norm() < 1e-5 * own[path].norm(), path


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


@pytest.mark.parametrize("rule", [name for name, rule in COMBINES.items() if rule.dense and not rule.compresses])
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
    """check 39: TIES as PEFT has it, SLERP, Model Stock, breadcrumbs of less than one number, DELLA on one column."""
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


def random_pairs(*ranks, rows=12, cols=9):
    generator = torch.Generator().manual_seed(3)
    one = [(torch.randn(r, cols, generator=generator), torch.randn(rows, r, generator=generator)) for r in ranks]
    return [(down.double(), up.double()) for down, up in one]


def product(pair):
    return pair[1] @ pair[0]


@pytest.mark.parametrize("sides", ["outputs", "inputs", "both"])
def test_orthogonal_is_the_projection_of_the_whole_matrix(sides):
    """``(1 − Q Qᵀ) D_i (1 − P Pᵀ)`` with the spaces of those before, in float64 on dense matrices."""
    pairs = random_pairs(2, 3, 2)
    made = orthogonal(pairs, sides)
    eye_rows, eye_cols = torch.eye(12, dtype=torch.float64), torch.eye(9, dtype=torch.float64)
    for i, pair in enumerate(pairs):
        left, right = eye_rows, eye_cols
        if i and sides != "inputs":
            q, _ = torch.linalg.qr(torch.cat([up for _, up in pairs[:i]], dim=1))
            left = eye_rows - q @ q.mT
        if i and sides != "outputs":
            p, _ = torch.linalg.qr(torch.cat([down for down, _ in pairs[:i]]).mT)
            right = eye_cols - p @ p.mT
        assert torch.allclose(product(made[i]), left @ product(pair) @ right, atol=1e-12)
    for i in range(3):
        for j in range(i):
            assert abs((product(made[i]) * product(made[j])).sum()) < 1e-12


def test_an_orthogonal_sum_says_what_is_left_of_each():
    net = three(*loras(4, 4, 2))
    before = {name: deltas(net, name) for name in "abc"}
    report = studio.combine(net, BLEND, method="orthogonal", sides="both")
    assert (
        report.left["a"] == 1.0 and 0 < report.left["c"] < 1 and f"{report.left['b']:.2%} of b is left" in str(report)
    )
    q = {path: torch.linalg.svd(one, full_matrices=False) for path, one in before["a"].items()}
    lost = whole = 0.0
    for path, (u, s, vh) in q.items():
        u, vh, own = u[:, s > 1e-4], vh[s > 1e-4], before["b"][path]
        rest = own - u @ (u.mT @ own)
        rest = rest - (rest @ vh.mT) @ vh
        lost, whole = lost + rest.square().sum().item(), whole + own.square().sum().item()
    assert report.left["b"] == pytest.approx(math.sqrt(lost / whole), rel=1e-6)


def test_what_lies_in_the_space_of_the_first_is_gone():
    first = random_pairs(3)[0]
    inside = torch.randn(2, 9).double(), first[1] @ torch.randn(3, 2).double()
    _, second, third = orthogonal([first, inside, first])
    assert product(second).norm() < 1e-12 * product(inside).norm() and product(third).norm() < 1e-9


@pytest.mark.parametrize("penalty", [0.0, 0.5, 1.0, 2.0, 5.0])
def test_ziploras_fold_is_its_formula_and_its_objective_is_below_the_plain_sums(penalty):
    pairs, weights = random_pairs(2, 3), [0.8, -0.6]
    pairs[1] = pairs[1][0], pairs[1][1] + 2 * pairs[0][1][:, :1]  # so that columns meet
    numbers = column_weights(pairs, weights, penalty)
    made = ziplora(pairs, weights, penalty)
    for pair, (down, up), own in zip(made, pairs, numbers, strict=True):
        assert torch.allclose(product(pair), up @ down @ own.diag(), atol=1e-12)
    d = [w * product(pair) for w, pair in zip(weights, pairs, strict=True)]

    def loss(m):
        kept = sum((one @ own.diag() - one).square().sum() for one, own in zip(d, m, strict=True))
        return kept + penalty * ((d[0] @ m[0].diag()) * (d[1] @ m[1].diag())).sum(0).abs().sum()

    plain = torch.ones_like(numbers)
    assert loss(numbers) <= loss(plain) and (penalty == 0) == torch.equal(numbers, plain)
    if 0 < penalty < 2:  # nothing around it is lower
        generator = torch.Generator().manual_seed(0)
        for _ in range(200):
            other = (numbers + 0.05 * torch.randn(numbers.shape, generator=generator)).clamp(min=0)
            assert loss(other) >= loss(numbers) - 1e-12


def test_ziplora_leaves_alone_what_does_not_meet_and_one_of_two_that_are_equal():
    down, up = torch.eye(2, 4).double(), torch.eye(3, 2).double()
    far = torch.eye(4).double()[2:], torch.eye(3, 2).double()
    assert torch.equal(column_weights([(down, up), far], [1.0, 1.0], 1.0), torch.ones(2, 4, dtype=torch.float64))
    both = ziplora([(down, up), (down, up)], [1.0, 1.0], penalty=2.0)
    assert torch.allclose(sum(map(product, both)), product((down, up)))


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
        ({"a": 1.0}, {"method": "ties", "density": "half"}, BadConfig, "density='half': it is a finite number"),
        ({"a": 1.0}, {"method": "dare_ties", "seed": -1}, BadConfig, "seed=-1: a seed is a whole number"),
        ({"a": 1.0}, {"method": "peft-dare_ties", "seed": 2**63}, BadConfig, "from 0 to 2\\*\\*63"),
        ({"a": 1.0}, {"method": "peft-dare_ties", "seed": "one"}, BadConfig, "seed='one'"),
        ({"a": 1.0}, {"method": "ties", "signs": "most"}, BadConfig, "'most'"),
        ({"a": 1.0}, {"method": "della", "density": 0.95}, BadConfig, "density - epsilon"),
        ({"a": 1.0}, {"method": "slerp"}, BadConfig, "one other"),
        ({"a": 1.0}, {"method": "orthogonal", "sides": "left"}, BadConfig, "sides='left'"),
        ({"a": 1.0}, {"method": "ziplora", "penalty": -1.0}, BadConfig, "penalty=-1.0"),
        ({"a": 1.0}, {"method": "orthogonal", "penalty": 1.0}, BadConfig, "penalty=1.0 has no effect on orthogonal"),
        ({"a": [0.1, 0.2]}, {}, DoesNotFit, "differs by sample"),
        ({"a": studio.Strength(schedule=[(0, 0), (1, 1)])}, {}, DoesNotFit, "differs by moment"),
        ({"a": 0.0}, {}, DoesNotFit, "0 at every layer"),
        ({"a": 1.0}, {"name": "a"}, DoesNotFit, "'a'"),
        ({"a": 1.0, "c": 1.0}, {}, DoesNotFit, "computes with activations"),
        ({"a": 1.0, "b": 1.0}, {"method": "cat"}, DoesNotFit, "is for factor pairs"),
        ({"a": 1.0, "b": 1.0}, {"method": "ziplora"}, DoesNotFit, "is for factor pairs .*, and dora is none"),
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


def test_adapters_that_change_nothing_have_nothing_to_disturb():
    net = torch.nn.Sequential(torch.nn.Linear(8, 8))
    for name in ("a", "b"):
        studio.attach(net, studio.LoRA(rank=2, targets=("0",)), name=name)
    (said,) = studio.combine(net, {"a": 1.0, "b": 1.0}).suggestions
    assert said.startswith("no adapter changes anything")


def test_slerp_is_suggested_for_two_alone():
    """It refuses three, so that nobody is sent there."""
    net = torch.nn.Sequential(torch.nn.Linear(8, 8))
    for name in ("a", "b", "c"):
        studio.attach(net, studio.BitFit(targets=("0",)), name=name)
        studio.state(net, name)["0.bias"].data.fill_(1.0)
    two = studio.combine(net, {"a": 1.0, "b": 1.0}, name="two").suggestions
    three = studio.combine(net, {"a": 1.0, "b": 1.0, "c": 1.0}, name="three").suggestions
    assert "--method slerp or karcher" in two[0]
    assert three[0].endswith("--method karcher") and "slerp" not in " ".join(three)


# -- without the base's weights ------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", BAKING)
def test_a_change_needs_the_weight_or_is_what_it_is(method):
    """Off the base, a change that comes out is the one on the base, and the others are refused by name."""
    net = Net()
    kinds = METHODS[method].adapter.kinds
    put(net, "a", METHODS[method].example(targets=("lin", "conv") if "conv" in kinds else ("lin",)), 1)
    found = 0
    for path in adapters(net)["a"].sites:
        module = net.get_submodule(path)
        adapter = module.adapters.get("a")
        expected = adapter.delta(module.weight, module.bias)
        plain = nn.Conv2d if isinstance(module, nn.Conv2d) else nn.Linear
        bare = site_for(path, plain(*_sizes(module), device="meta"), (adapter.site.kind,))
        try:
            made = change_of(bare, adapter)
        except DoesNotFit as refusal:
            assert method in str(refusal) and "--base" in str(refusal)
            continue
        found += 1
        for one, other in zip(made, expected, strict=True):
            assert (one is None) == (other is None) and (one is None or torch.equal(one, other))
    assert bool(found) == (method not in WITH_WEIGHT)


WITH_WEIGHT = {"dora", "oft", "boft", "hra", "ia3", "glora", "road", "lntuning", "tokenembedding"}


def _sizes(module):
    if isinstance(module, nn.Conv2d):
        return module.in_channels, module.out_channels, module.kernel_size, module.stride, module.padding
    return module.in_features, module.out_features


# -- PEFT's own numbers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", [name for name in COMBINES if name.startswith("peft-") and "dare" not in name])
@pytest.mark.parametrize("weights", [(0.7, 0.4), (0.7, -0.4)])
def test_pefts_numbers_are_pefts(rule, weights):
    """Against ``add_weighted_adapter`` of the installed peft."""
    from peft import LoraConfig, get_peft_model

    net = three(*(studio.LoRA(rank=4, alpha=alpha, targets=("lin", "out")) for alpha in (4, 2)))
    peft = get_peft_model(Net(), LoraConfig(r=4, lora_alpha=4, target_modules=["lin", "out"]), adapter_name="a")
    peft.add_adapter("b", LoraConfig(r=4, lora_alpha=2, target_modules=["lin", "out"]))
    for name in "ab":
        for path in ("lin", "out"):
            layer = peft.base_model.model.get_submodule(path)
            layer.lora_A[name].weight.data = studio.state(net, name)[f"{path}.down"].detach().clone()
            layer.lora_B[name].weight.data = studio.state(net, name)[f"{path}.up"].detach().clone()
    takes, options = COMBINES[rule].takes, {}
    if "density" in takes:
        options["density"] = 0.6
    peft.add_weighted_adapter(["a", "b"], list(weights), "both", combination_type=rule.removeprefix("peft-"), **options)
    studio.combine(net, dict(zip("ab", weights, strict=True)), method=rule, **options)
    made = deltas(net, "both")
    for path in ("lin", "out"):
        theirs = peft.base_model.model.get_submodule(path).get_delta_weight("both").double()
        assert (made[path] - theirs).norm() < 1e-5 * theirs.norm(), path


@pytest.mark.parametrize("kind", ["dare_linear", "dare_ties"])
def test_pefts_draws_are_pefts(kind):
    """Its own functions, drawing from torch's generator layer by layer, first ``lora_A`` and then ``lora_B``."""
    from peft.utils import merge_utils

    net = three(*loras(4, 4))
    studio.combine(net, {"a": 0.7, "b": -0.4}, method=f"peft-{kind}", density=0.6, seed=11)
    studio.combine(net, {"a": 0.7, "b": -0.4}, method=f"peft-{kind}_svd", density=0.6, seed=11, rank=32, name="svd")
    made, by_svd = deltas(net, "both"), deltas(net, "svd")
    tensors, rule = [studio.state(net, name) for name in "ab"], getattr(merge_utils, kind)
    scales = torch.tensor([0.7 * 4 / 4, -0.4 * 2 / 4])
    torch.manual_seed(11)
    for path in made:
        down, up = (
            rule([one[f"{path}.{part}"].detach() for one in tensors], number, 0.6)
            for part, number in (("down", scales.abs().sqrt() * scales.sign()), ("up", scales.abs().sqrt()))
        )
        assert (made[path] - (up @ down).double()).norm() < 1e-5 * made[path].norm()
    torch.manual_seed(11)
    for path in made:
        changes = [deltas(net, name)[path].float() for name in "ab"]
        theirs = rule(changes, torch.tensor([0.7, -0.4]), 0.6).double()
        assert (by_svd[path] - theirs).norm() < 1e-5 * theirs.norm()


def test_pefts_names_say_that_they_mix_crosswise():
    for name, rule in COMBINES.items():
        if rule.factors is not None:
            assert name.startswith("peft-") and "crosswise" in rule.title
