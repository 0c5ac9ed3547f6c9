"""What the tensors of a file change, by the formula of each kind written out in float64."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.functional import conv2d

import studio
from studio.adapters import adapters

NAME = "lycoris_layer"


class One(nn.Module):
    """One layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer


def drawn(*shapes: tuple[int, ...], seed: int = 0) -> list[torch.Tensor]:
    draws = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=draws) for shape in shapes]


def linear(rows: int, cols: int) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(cols, rows, bias=False)


def change(layer: nn.Module, tensors: dict[str, torch.Tensor], folder, **options) -> torch.Tensor:
    """What a file of these parts adds to a layer's weight, computed by the layer in float64."""
    save_file({f"{NAME}.{part}": tensor.contiguous() for part, tensor in tensors.items()}, folder / "a.safetensors")
    net = One(layer).double()
    report = studio.load(net, folder / "a.safetensors", **options)
    assert not report.ignored and set(report.applied) == {f"{NAME}.{part}" for part in tensors}
    weight = net.layer.weight
    adapter = next(iter(net.layer._modules["adapters"].values())).double()
    return adapter.delta(weight.detach(), None).weight.detach()


def apart(found: torch.Tensor, wanted: torch.Tensor) -> float:
    assert found.shape == wanted.shape and found.dtype == torch.float64
    return float((found - wanted).norm() / wanted.norm())


def convolution() -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(8, 16, 3, padding=1, bias=False)


def test_a_convolutions_pair_is_two_convolutions(tmp_path):
    """Check 13: down (4, 8, 3, 3) and up (16, 4, 1, 1) are ΔW (16, 8, 3, 3), as running one behind the other shows."""
    down, up = drawn((4, 8, 3, 3), (16, 4, 1, 1))
    found = change(convolution(), {"lora_down.weight": down, "lora_up.weight": up}, tmp_path)
    assert found.shape == (16, 8, 3, 3)
    x = torch.randn(2, 8, 9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert apart(conv2d(x, found, padding=1), conv2d(conv2d(x, down.double(), padding=1), up.double())) < 1e-12


def test_a_core_is_three_convolutions(tmp_path):
    """Check 14: ΔW[p,q,h,w] = s Σ_ij up[p,i] core[i,j,h,w] down[j,q], as running one behind the other shows."""
    down, core, up = drawn((4, 8, 1, 1), (4, 4, 3, 3), (16, 4, 1, 1))
    parts = {"lora_down.weight": down, "lora_mid.weight": core, "lora_up.weight": up, "alpha": torch.tensor(2.0)}
    found = change(convolution(), parts, tmp_path)
    ups, downs = up.double()[:, :, 0, 0], down.double()[:, :, 0, 0]
    wanted = 0.5 * torch.einsum("pi,ijhw,jq->pqhw", ups, core.double(), downs)
    assert apart(found, wanted) < 1e-6  # the core is worked into down, which is fp32
    x = torch.randn(2, 8, 9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    nested = 0.5 * conv2d(conv2d(conv2d(x, down.double()), core.double(), padding=1), up.double())
    assert apart(conv2d(x, wanted, padding=1), nested) < 1e-12


def test_loha_is_a_pair_of_the_square_of_its_rank(tmp_path):
    """Check 15: (w1a w1b) ⊙ (w2a w2b) = F G with F[p,(i,j)] = w1a[p,i] w2a[p,j], G[(i,j),q] = w1b[i,q] w2b[j,q]."""
    w1a, w1b, w2a, w2b = drawn((12, 4), (4, 10), (12, 4), (4, 10))
    parts = {"hada_w1_a": w1a, "hada_w1_b": w1b, "hada_w2_a": w2a, "hada_w2_b": w2b, "alpha": torch.tensor(2.0)}
    found = change(linear(12, 10), parts, tmp_path)
    left = torch.einsum("pi,pj->pij", w1a.double(), w2a.double()).reshape(12, 16)
    right = torch.einsum("iq,jq->ijq", w1b.double(), w2b.double()).reshape(16, 10)
    assert apart(found, 0.5 * left @ right) < 1e-12
    assert torch.linalg.matrix_rank(found) == 10  # of at most 16, here all that the layer has


def test_lokr_is_a_kronecker_product_and_a_pair(tmp_path):
    """Check 16: kron(w1, w2a w2b) = kron(w1, w2a) kron(I, w2b), of rank b · r."""
    w1, w2a, w2b = drawn((3, 2), (4, 2), (2, 5))
    found = change(
        linear(12, 10), {"lokr_w1": w1, "lokr_w2_a": w2a, "lokr_w2_b": w2b, "alpha": torch.tensor(1.0)}, tmp_path
    )
    pair = torch.kron(w1.double(), w2a.double()) @ torch.kron(torch.eye(2, dtype=torch.float64), w2b.double())
    assert apart(found, 0.5 * pair) < 1e-12


@pytest.mark.parametrize("left", [(2, 2), (8, 8)], ids=["LyCORIS", "PEFT"])
def test_lokrs_parts_are_taken_as_they_are(left, tmp_path):
    """Check 16: 16 by the factor 8 is 2 · 8 for LyCORIS and 8 · 2 for PEFT; the tensors say which."""
    w1, w2 = drawn(left, (16 // left[0], 16 // left[1]))
    found = change(linear(16, 16), {"lokr_w1": w1, "lokr_w2": w2, "alpha": torch.tensor(1.0)}, tmp_path)
    assert apart(found, torch.kron(w1.double(), w2.double())) < 1e-12


def test_lokr_of_two_whole_parts_has_the_scale_one(tmp_path):
    """Check 17: alpha 0.5 and the dimension 4 in its header count for nothing there."""
    w1, w2 = drawn((3, 2), (4, 5))
    found = change(linear(12, 10), {"lokr_w1": w1, "lokr_w2": w2, "alpha": torch.tensor(0.5)}, tmp_path)
    assert apart(found, torch.kron(w1.double(), w2.double())) < 1e-12


def test_doras_axis_is_told_by_its_shape(tmp_path):
    """Check 18: a magnitude per output and one per input are other changes; a square layer's too."""
    for rows, cols in ((6, 9), (6, 6)):
        down, up, by_output, by_input = drawn((2, cols), (rows, 2), (rows, 1), (1, cols))
        weight = linear(rows, cols).weight.detach().double()
        moved = weight + up.double() @ down.double()
        pair = {"lora_down.weight": down, "lora_up.weight": up}
        found = {}
        for axis, scale in ((1, by_output.abs()), (0, by_input.abs())):
            found[axis] = change(linear(rows, cols), {**pair, "dora_scale": scale}, tmp_path)
            wanted = moved * scale.double() / moved.norm(dim=axis, keepdim=True) - weight
            assert apart(found[axis], wanted) < 1e-6
        assert apart(found[0], found[1]) > 0.1


def test_doras_magnitude_is_spelled_as_peft_does_and_back(tmp_path):
    """Check 18: (m, 1) is ``lora_magnitude_vector`` (m) in a PEFT folder, and comes back to the bit."""
    from studio.files.convert import convert

    down, up, scale = drawn((2, 9), (6, 2), (6, 1))
    parts = {"lora_down.weight": down, "lora_up.weight": up, "dora_scale": scale, "alpha": torch.tensor(2.0)}
    save_file({f"{NAME}.{part}": tensor for part, tensor in parts.items()}, tmp_path / "a.safetensors")
    assert convert(tmp_path / "a.safetensors", tmp_path / "b", format="peft", base=One(linear(6, 9))).error == 0
    assert load_file(tmp_path / "b" / "adapter_model.safetensors")[
        "base_model.model.layer.lora_magnitude_vector"
    ].shape == (6,)
    convert(tmp_path / "b", tmp_path / "c.safetensors", format="kohya", base=One(linear(6, 9)))
    again = load_file(tmp_path / "c.safetensors")
    assert again.keys() == {f"{NAME}.{part}" for part in parts}
    assert all(torch.equal(again[f"{NAME}.{part}"], tensor) for part, tensor in parts.items())


@pytest.mark.parametrize("form", ["now", "then"])
def test_gloras_two_forms_are_told_by_their_shapes(form, tmp_path):
    """Check 19: s (W a1 a2 + b1 b2), and in the first form s (W a2 a1 + b2 b1)."""
    a1, a2, b1, b2 = drawn((9, 2), (2, 9), (6, 2), (2, 9))
    named = {"a1": a1, "a2": a2, "b1": b1, "b2": b2} if form == "now" else {"a1": a2, "a2": a1, "b1": b2, "b2": b1}
    parts = {f"{name}.weight": tensor for name, tensor in named.items()} | {"alpha": torch.tensor(1.0)}
    weight = linear(6, 9).weight.detach().double()
    found = change(linear(6, 9), parts, tmp_path)
    assert apart(found, 0.5 * (weight @ a1.double() @ a2.double() + b1.double() @ b2.double())) < 1e-12


WITH_WEIGHT = {
    "ia3": {"weight": torch.linspace(-1, 1, 16), "on_input": torch.tensor(0)},
    "full": {"diff": torch.linspace(-1, 1, 256).view(16, 16)},
    "oft": {"oft_blocks": torch.linspace(-1, 1, 64).view(4, 4, 4)},
    "boft": {"oft_blocks": torch.linspace(-1, 1, 128).view(2, 4, 4, 4)},
    "full, of a norm": {"w_norm": torch.linspace(-1, 1, 16), "b_norm": torch.linspace(-1, 1, 16)},
}


@pytest.mark.parametrize("method", WITH_WEIGHT)
def test_what_is_no_pair_is_combined_too_and_not_left_out(method, tmp_path):
    """Check 20: norms, whole differences, IA3 and OFT are merged, as what they change; nothing is unsupported there."""
    layer = nn.LayerNorm(16) if "norm" in method else linear(16, 16)
    net = One(layer)
    save_file({f"{NAME}.{part}": one for part, one in WITH_WEIGHT[method].items()}, tmp_path / "a.safetensors")
    report = studio.load(net, tmp_path / "a.safetensors", name="a")
    assert report.method == method.partition(",")[0] and not report.ignored
    x = torch.randn(3, 16, generator=torch.Generator().manual_seed(1))
    wanted = net.layer(x)
    studio.combine(net, {"a": 1.0}, name="both")
    studio.blend(net, "both")
    assert torch.allclose(net.layer(x), wanted, atol=1e-5)
    assert not torch.allclose(One(nn.LayerNorm(16) if "norm" in method else linear(16, 16)).layer(x), wanted, atol=1e-3)
    assert adapters(net)["both"].sites == ("layer",)


@pytest.mark.parametrize("sides", [("lora_A", "lora_B"), ("lora_down", "lora_up")], ids=["PEFT's", "kohya's"])
def test_whole_differences_and_biases_beside_pairs_are_kept(sides, tmp_path):
    """Check 33: ``.diff`` and ``.diff_b`` as files for Wan have them, which diffusers drops: for it they are refused.

    Video models have no family yet; the keys are the same on any.
    """
    from studio.errors import DoesNotFit
    from studio.files.convert import convert
    from tests.support.tiny_pipelines import build

    pipe = build("flux1")
    lead, block = "diffusion_model.double_blocks.0.img_", pipe.transformer.transformer_blocks[0]
    pair, whole = block.attn.to_out[0], block.ff.net[0].proj
    down, up, bias, difference, other = drawn((2, 32), (32, 2), (32,), tuple(whole.weight.shape), (len(whole.weight),))
    tensors = {f"{lead}attn.proj.{side}.weight": one for side, one in zip(sides, (down, up), strict=True)}
    tensors |= {f"{lead}attn.proj.diff_b": bias, f"{lead}mlp.0.diff": difference, f"{lead}mlp.0.diff_b": other}
    save_file(tensors, tmp_path / "a.safetensors")
    x, y = torch.eye(32), torch.eye(whole.in_features)
    before = pair(x), whole(y)
    report = studio.load(pipe, tmp_path / "a.safetensors")
    assert set(report.applied) == set(tensors) and not report.ignored
    assert torch.allclose(pair(x) - before[0], (up @ down).T + bias, atol=1e-5)
    assert torch.allclose(whole(y) - before[1], difference.T + other, atol=1e-5)
    studio.detach(pipe)
    with pytest.raises(DoesNotFit, match="diffusers reads LoRA and DoRA, and a.safetensors is of full at"):
        convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", program="diffusers", base=pipe)
    assert convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", format="kohya", base=pipe).error == 0
