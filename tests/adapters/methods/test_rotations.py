"""OFT, BOFT and HRA: what is special about them; the oracles are PEFT, and LyCORIS' formulas in plain torch."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import studio
from studio.adapters.contract.rotation import cayley, packed, packed_size, skew, turn_blocks
from studio.errors import BadConfig, DoesNotFit, PartialLoad

X = torch.linspace(-1, 1, 48).view(3, 16)


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 8))


def shake(model: nn.Module, scale: float = 0.3) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in studio.state(model).values():
            tensor += scale * torch.randn(tensor.shape, generator=generator)


def relative(got: Tensor, wanted: Tensor) -> float:
    return float((got - wanted).detach().norm() / wanted.detach().norm())


def moved_weight(model: nn.Module, path: int = 0) -> Tensor:
    studio.bake(model)
    weight = model[path].weight.detach().clone()
    studio.unbake(model)
    return weight


# -- the parts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [2, 3, 8])
def test_cayley_gives_rotations_and_its_series_comes_near(size) -> None:
    entries = 0.02 * torch.linspace(-1, 1, 2 * size * (size - 1), dtype=torch.float64).view(4, -1)
    q, eye = skew(entries, size), torch.eye(size, dtype=torch.float64)
    assert torch.equal(q, -q.mT) and torch.equal(packed(q) / 2, entries) and packed_size(entries.shape[1]) == size
    r = cayley(q) + eye
    assert torch.allclose(r @ r.mT, eye.expand_as(r), atol=1e-13) and bool((torch.linalg.det(r) > 0).all())
    errors = [float((cayley(q, terms) - cayley(q)).abs().max()) for terms in range(2, 9)]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 1e-5


@pytest.mark.parametrize(("count", "size"), [(6, 4), (7, 2), (2, 33), (12, 3)])
def test_turning_blocks_is_a_block_diagonal_product(count, size) -> None:
    blocks, v = torch.randn(count, size, size, dtype=torch.float64), torch.randn(5, count * size, dtype=torch.float64)
    assert torch.allclose(turn_blocks(v, blocks), v @ torch.block_diag(*blocks))
    assert torch.allclose(turn_blocks(v, blocks[:1]), v @ torch.block_diag(*[blocks[0]] * count))
    turned = v.t().contiguous().t()  # not in the order of memory
    assert torch.allclose(turn_blocks(turned, blocks), v @ torch.block_diag(*blocks))


@pytest.mark.parametrize(
    "config",
    [
        studio.OFT(block_size=4, targets=("0",)),
        studio.BOFT(block_size=4, factors=3, targets=("0",)),
        studio.HRA(rank=4, targets=("0",)),
        studio.HRA(rank=3, orthogonal=True, targets=("0",)),
    ],
    ids=["oft", "boft", "hra", "hra-orthogonal"],
)
def test_the_angles_between_the_rows_stay(config) -> None:
    model = net().double()
    weight = model[0].weight.detach().clone()
    studio.attach(model, config)
    model.double()
    shake(model)
    with torch.no_grad():
        studio.state(model).get("0.gain", torch.ones(1)).fill_(1.0)
    turned = moved_weight(model)
    assert relative(turned, weight) > 0.1
    assert torch.allclose(turned @ turned.t(), weight @ weight.t(), atol=1e-12)


def test_a_layer_with_oft_alone_is_computed_once() -> None:
    model = net()
    studio.attach(model, studio.OFT(block_size=4, targets=("0",)))
    shake(model)
    calls = []
    original = torch.nn.functional.linear

    def counted(*args: object) -> Tensor:
        calls.append(1)
        return original(*args)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "linear", counted)
        alone = model[0](X)
        assert len(calls) == 1
        studio.attach(model, studio.IA3(targets=("0",)), name="gains")  # needs the base's own output
        calls.clear()
        both = model[0](X)
        assert len(calls) == 2
    assert torch.allclose(alone, both, atol=1e-6)


def test_two_rotations_add_their_changes() -> None:
    model, base = net(), net()
    changes = []
    for index, strength in enumerate((0.7, -0.4)):
        studio.attach(model, studio.OFT(block_size=4, targets=("0",)), name=f"a{index}")
        with torch.no_grad():
            studio.state(model, f"a{index}")["0.skew"].normal_(generator=torch.Generator().manual_seed(index))
        with studio.blended(model, {f"a{index}": 1.0}):
            changes.append(strength * (model[0](X) - base[0](X)))
    with studio.blended(model, {"a0": 0.7, "a1": -0.4}):
        assert torch.allclose(model[0](X), base[0](X) + changes[0] + changes[1], atol=1e-5)


def test_butterfly_of_all_factors_is_dense() -> None:
    """As in the paper's figure 2: log2 of the blocks, plus one, factors of 2 x 2 blocks reach every entry."""
    model = net()
    studio.attach(model, studio.BOFT(block_size=2, factors=4, targets=("0",)))
    shake(model)
    studio.state(model)["0.gain"].data.fill_(1.0)
    model[0].weight.data.copy_(torch.eye(16)[:12])
    assert bool((moved_weight(model).abs() > 1e-9).all())


def test_constrained_oft_stays_within_its_bound() -> None:
    model = net()
    studio.attach(model, studio.OFT(block_size=4, eps=0.1, targets=("0", "2")))
    shake(model)
    studio.adapters(model)
    from studio.adapters.training import on_step

    on_step(model, step=1, steps=2)
    for tensor in studio.state(model).values():
        norms = torch.linalg.matrix_norm(skew(tensor, 4))
        assert torch.allclose(norms, torch.full_like(norms, 0.1 / len(norms) ** 0.5))


@pytest.mark.parametrize(
    "config",
    [
        studio.OFT(block_size=4, dropout=0.5, targets=("0",)),
        studio.OFT(block_size=4, dropout=0.5, outputs=True, targets=("0",)),
        studio.BOFT(block_size=4, factors=2, dropout=0.5, targets=("0",)),
        studio.LoHa(rank=2, rank_dropout=0.5, targets=("0",)),
        studio.LoHa(rank=2, module_dropout=0.5, targets=("0",)),
        studio.LoKr(rank=2, rank_dropout=0.5, rank_dropout_scale=False, targets=("0",)),
        studio.LoKr(rank=2, module_dropout=0.5, targets=("0",)),
        studio.MoRA(rank=2, dropout=0.5, targets=("0",)),
    ],
    ids=["oft", "oft-outputs", "boft", "loha-rank", "loha-module", "lokr-rank", "lokr-module", "mora"],
)
def test_dropout_acts_in_training_alone(config) -> None:
    model = net().eval()
    studio.attach(model, config)
    shake(model)
    wanted = model[0](X)
    assert torch.equal(model[0](X), wanted)
    model.train()
    torch.manual_seed(0)
    drawn = [model[0](X) for _ in range(12)]
    assert not all(torch.equal(one, drawn[0]) for one in drawn)
    drawn[0].sum().backward()
    model.eval()
    assert torch.equal(model[0](X), wanted)


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (studio.OFT(block_size=5, targets=("0",)), r"16 inputs of 0.*2, 4, 8, 16: give one of them.*block_pattern"),
        (studio.OFT(block_size=5, outputs=True, targets=("0",)), r"12 outputs of 0.*2, 3, 4, 6, 12"),
        (studio.BOFT(block_size=8, factors=3, targets=("0",)), r"multiple of 4 of them.*2, 4: give"),
        (studio.BOFT(block_size=3, factors=2, targets=("2",)), r"even block size, or factors=1"),
        (studio.BOFT(block_size=2, factors=6, targets=("0",)), r"none does"),
        (studio.HRA(rank=3, targets=("0",)), r"undo each other in pairs; use rank=4, or rank=2"),
        (studio.HRA(rank=18, targets=("0",)), r"rank of at most 16"),
    ],
)
def test_sizes_that_do_not_divide_are_refused_with_those_that_do(config, says) -> None:
    model = net()
    with pytest.raises(BadConfig, match=says):
        studio.attach(model, config)
    assert studio.adapters(model) == {}


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("oft", {"block_size": 1}), ("oft", {"terms": 1}), ("oft", {"eps": 0.0}), ("oft", {"dropout": 1.0}),
        ("oft", {"block_pattern": {"a": 0}}), ("boft", {"factors": 0}), ("boft", {"block_size": 2.5}),
        ("hra", {"rank": 0}), ("mora", {"type": 2}), ("mora", {"rank": 0}), ("loha", {"rank_dropout": 1.0}),
        ("lokr", {"module_dropout": -0.1}), ("lokr", {"rank_dropout": float("nan")}),
    ],
)  # fmt: skip
def test_impossible_settings(method, settings) -> None:
    with pytest.raises(BadConfig, match=next(iter(settings))):
        studio.METHODS[method](**settings)


def test_a_pattern_gives_a_layer_its_own_blocks() -> None:
    model = net()
    studio.attach(model, studio.OFT(block_size=8, block_pattern={"2": 6}, targets=("0", "2")))
    assert {key: tuple(t.shape) for key, t in studio.state(model).items()} == {"0.skew": (2, 28), "2.skew": (2, 15)}


# -- PEFT --------------------------------------------------------------------------------------------------------------


class Butterfly:
    """PEFT's CUDA kernel, which puts blocks ``(m, k, b, b)`` on the diagonals of ``(m, n, n)``, in torch."""

    @staticmethod
    def forward(blocks: Tensor) -> list[Tensor]:
        return [torch.stack([torch.block_diag(*part) for part in blocks])]

    @staticmethod
    def backward(gradient: Tensor, blocks: Tensor) -> list[Tensor]:
        size = blocks.shape[-1]
        places = range(blocks.shape[1])
        cut = [gradient[:, p * size : (p + 1) * size, p * size : (p + 1) * size] for p in places]
        return [torch.stack(cut, dim=1)]


@pytest.fixture
def peft(monkeypatch):
    found = pytest.importorskip("peft")
    import peft.tuners.boft.layer as layer

    monkeypatch.setattr(layer, "get_fbd_cuda", lambda: Butterfly)
    return found


class Picture(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lin, self.conv = nn.Linear(16, 12), nn.Conv2d(4, 6, 2, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.lin(x).flatten(), self.conv(x[:2].reshape(1, 4, 2, 4)).flatten()])


@pytest.mark.parametrize("fields", [{}, {"boft_n_butterfly_factor": 2}, {"boft_block_size": 0, "boft_block_num": 4}])
def test_boft_in_both_directions(tmp_path, peft, fields) -> None:
    config = peft.BOFTConfig(**{"boft_block_size": 4, **fields}, target_modules=["lin", "conv"])
    theirs = peft.get_peft_model(Picture(), config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter += 0.5 * torch.randn_like(parameter)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = Picture()
    report = studio.load(ours, tmp_path / "theirs")
    assert report.ignored == {} and report.notes == () and relative(ours(X), Picture()(X)) > 0.05
    assert relative(ours(X), theirs(X)) <= 1e-5
    again = peft.PeftModel.from_pretrained(Picture(), studio.save(ours, tmp_path / "ours", format="peft")).eval()
    assert relative(again(X), theirs(X)) <= 1e-5


def edited(folder, **fields) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"peft_version": "0.17.1"}, "before 0.18"),
        ({"peft_version": None}, "before 0.18"),
        ({"num_cayley_neumann_terms": 1}, "no rotation at all"),
    ],
)
def test_series_that_are_not_read(tmp_path, peft, fields, says) -> None:
    config = peft.OFTConfig(oft_block_size=4, target_modules=["lin"])
    peft.get_peft_model(Picture(), config).save_pretrained(tmp_path)
    edited(tmp_path, **fields)
    with pytest.raises(DoesNotFit, match=says):
        studio.load(Picture(), tmp_path)


@pytest.mark.parametrize(
    ("name", "fields", "layer", "says"),
    [
        ("OFTConfig", {"oft_block_size": 4}, nn.Conv2d(4, 6, 2), "overlapping patches"),
        ("BOFTConfig", {"boft_block_size": 4}, nn.Conv2d(4, 6, 2, stride=(1, 2)), "one kernel size, stride"),
        ("HRAConfig", {"r": 2}, nn.Conv2d(4, 6, 2, dilation=2), "neither dilation"),
    ],
)
def test_layers_on_which_peft_computes_something_else_are_refused(tmp_path, peft, name, fields, layer, says) -> None:
    model = nn.Sequential(layer)
    theirs = peft.get_peft_model(model, getattr(peft, name)(**fields, target_modules=["0"]))
    theirs.save_pretrained(tmp_path / "theirs")
    fresh = nn.Sequential(layer)
    with pytest.raises(DoesNotFit, match=says):
        studio.load(fresh, tmp_path / "theirs")
    method = name.removesuffix("Config").lower()
    settings = {"oft": {"block_size": 4}, "boft": {"block_size": 4}}.get(method, {"rank": 2})
    studio.attach(fresh, studio.METHODS[method](targets=("0",), **settings))
    with pytest.raises(DoesNotFit, match=says):
        studio.save(fresh, tmp_path / "ours", format="peft")


def test_a_config_of_the_authors_mora_is_refused(tmp_path, peft) -> None:
    theirs = peft.get_peft_model(Picture(), peft.LoraConfig(r=4, target_modules=["lin"]))
    theirs.save_pretrained(tmp_path)
    edited(tmp_path, use_mora=True)
    with pytest.raises(DoesNotFit, match="use_mora=True"):
        studio.load(Picture(), tmp_path)


def test_loha_of_peft_on_a_conv1d_with_a_core(tmp_path, peft) -> None:
    torch.manual_seed(0)
    model, base = nn.Sequential(nn.Conv1d(4, 6, 3)), nn.Sequential(nn.Conv1d(4, 6, 3))
    base.load_state_dict(model.state_dict())
    config = peft.LoHaConfig(r=2, alpha=3, use_effective_conv2d=True, init_weights=False, target_modules=["0"])
    theirs = peft.get_peft_model(model, config)
    theirs.save_pretrained(tmp_path / "theirs")
    x = torch.randn(2, 4, 7)
    before = base(x)
    studio.load(base, tmp_path / "theirs")
    assert relative(base(x), theirs(x)) <= 1e-5 and relative(base(x), before) > 1e-3
    folder = studio.save(base, tmp_path / "ours", format="peft")
    studio.detach(base)
    assert relative(peft.PeftModel.from_pretrained(base, folder)(x), theirs(x)) <= 1e-5


@pytest.mark.parametrize("core", [torch.ones(2), torch.ones(2, 2), torch.ones(2, 2, 4, 1), torch.ones(0)], ids=str)
@pytest.mark.parametrize("name", ["LoHaConfig", "LoKrConfig"])
def test_a_core_of_another_shape_is_refused(tmp_path, peft, name, core) -> None:
    model = nn.Sequential(nn.Conv1d(8, 6, 3))
    config = getattr(peft, name)(r=1, use_effective_conv2d=True, target_modules=["0"])
    peft.get_peft_model(model, config).save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    assert any("_t" in key for key in tensors)
    save_file({key: core.clone() if "_t" in key else tensor for key, tensor in tensors.items()}, file)
    fresh = nn.Sequential(nn.Conv1d(8, 6, 3))
    with pytest.raises((DoesNotFit, PartialLoad), match="0"):
        studio.load(fresh, tmp_path)
    assert studio.adapters(fresh) == {}


# -- LyCORIS -----------------------------------------------------------------------------------------------------------


def lycoris_rotation(blocks: Tensor, bound: float = 0.0) -> Tensor:
    q = (blocks - blocks.mT).double()
    if 0 < bound < q.norm():
        q = q * bound / q.norm()
    eye = torch.eye(blocks.shape[-1], dtype=q.dtype)
    return (eye + q) @ torch.linalg.inv(eye - q)


@pytest.mark.parametrize(("alpha", "rescaled"), [(0.0, False), (0.01, True)])
def test_diag_oft_of_lycoris(tmp_path, alpha, rescaled) -> None:
    """``W' = rescale · Rᵀ W`` with blocks ``R`` over the rows; ``alpha · out`` bounds ``‖Q‖`` of all blocks."""
    model, blocks = net(), torch.randn(3, 4, 4)
    parts = {"lycoris_0.oft_blocks": blocks, "lycoris_0.alpha": torch.tensor(alpha)}
    gain = 1 + torch.rand(12, 1)
    if rescaled:
        parts["lycoris_0.rescale"] = gain
    save_file(parts, tmp_path / "a.safetensors")
    wanted = torch.block_diag(*lycoris_rotation(blocks, alpha * 12)).t() @ model[0].weight.detach().double()
    wanted = wanted * gain if rescaled else wanted
    report = studio.load(model, tmp_path / "a.safetensors")
    assert report.method == "oft" and report.ignored == {}
    assert relative(moved_weight(model).double(), wanted) <= 1e-6
    file = studio.save(model, tmp_path / "b.safetensors", format="kohya")
    other = net()
    studio.load(other, file)
    assert relative(moved_weight(other), moved_weight(model)) <= 1e-6


def test_boft_of_lycoris(tmp_path) -> None:
    """Stage i turns rows in runs of ``b · 2^i``, whose two halves take turns: blocks of ``b`` of that order."""
    model, blocks = nn.Sequential(nn.Linear(5, 16, bias=False)), torch.randn(3, 4, 4, 4)
    x = torch.randn(3, 5)
    save_file({"lycoris_0.oft_blocks": blocks, "lycoris_0.alpha": torch.tensor(0.0)}, tmp_path / "a.safetensors")
    wanted = model[0].weight.detach().double()
    for stage, r in enumerate(lycoris_rotation(blocks)):
        run = 4 * 2**stage
        order = [s + side * run // 2 + k for s in range(0, 16, run) for k in range(run // 2) for side in (0, 1)]
        wanted[order] = torch.block_diag(*r) @ wanted[order]
    report = studio.load(model, tmp_path / "a.safetensors")
    assert report.method == "boft" and report.ignored == {}
    assert relative(model(x).double(), x.double() @ wanted.t()) <= 1e-5
    file = studio.save(model, tmp_path / "b.safetensors", format="kohya")
    before = model(x)
    studio.detach(model)
    studio.load(model, file)
    assert relative(model(x), before) <= 1e-6


def test_loha_of_lycoris(tmp_path) -> None:
    model, rank = nn.Sequential(nn.Conv2d(3, 6, 2, bias=False)), 2
    cores = {f"hada_t{n}": torch.randn(rank, rank, 2, 2) for n in "12"}
    sides = {f"hada_w{n}_{s}": torch.randn(rank, size) for n in "12" for s, size in (("a", 6), ("b", 3))}
    parts = {f"lycoris_0.{name}": tensor for name, tensor in {**cores, **sides, "alpha": torch.tensor(1.0)}.items()}
    save_file(parts, tmp_path / "a.safetensors")

    def product(n: str) -> Tensor:
        return torch.einsum("ijhw,ip,jq->pqhw", cores[f"hada_t{n}"], sides[f"hada_w{n}_a"], sides[f"hada_w{n}_b"])

    wanted = model[0].weight.detach() + 0.5 * product("1") * product("2")
    report = studio.load(model, tmp_path / "a.safetensors")
    assert report.method == "loha" and studio.adapters(model)["default"].config.tucker
    assert relative(moved_weight(model), wanted) <= 1e-6


def test_blocks_that_do_not_fit_are_named(tmp_path) -> None:
    parts = {"lycoris_0.oft_blocks": torch.randn(3, 4, 4), "lycoris_2.oft_blocks": torch.randn(3, 4, 4)}
    save_file(parts, tmp_path / "a.safetensors")
    with pytest.raises(PartialLoad, match="3 blocks of 4 x 4 do not cover the 8 outputs"):
        studio.load(net(), tmp_path / "a.safetensors")
