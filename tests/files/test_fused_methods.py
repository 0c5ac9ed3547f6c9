"""LyCORIS' files for layers that are one matrix natively: each of ours is the rows that belong to it, of any method."""

from __future__ import annotations

import logging

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import studio
from studio.adapters.contract.rows import Rows, cut_rows, joined_rows
from studio.errors import DoesNotFit, PartialLoad
from studio.files.convert import convert
from tests.support.tiny_pipelines import build

lycoris = pytest.importorskip("lycoris")
logging.getLogger("LyCORIS").disabled = True

ALGORITHMS = {
    "lora": {"algo": "locon"},
    "dora": {"algo": "locon", "dora_wd": True},
    "loha": {"algo": "loha"},
    "loha-decomposed": {"algo": "loha", "dora_wd": True},
    "lokr": {"algo": "lokr", "linear_dim": 100000, "factor": 3},
    "lokr-factored": {"algo": "lokr", "factor": 4, "linear_dim": 1, "decompose_both": True},
    "lokr-across": {"algo": "lokr", "factor": 2},  # w1 has two rows, for three or four layers
    "lokr-decomposed": {"algo": "lokr", "factor": 2, "dora_wd": True},
    "glora": {"algo": "glora"},
    "full": {"algo": "full"},
    "ia3": {"algo": "ia3"},
    "diag-oft": {"algo": "diag-oft", "rescaled": True},
}
REFUSED = {
    "boft": ({"algo": "boft", "linear_dim": 16}, "changes its outputs together"),
    "by-inputs": ({"algo": "locon", "dora_wd": True, "wd_on_output": False}, "magnitude per input"),
    "loha-by-inputs": ({"algo": "loha", "dora_wd": True, "wd_on_output": False}, "magnitude per input"),
}
FUSED = {
    "double_blocks_0_img_attn_qkv": ("transformer_blocks.0.attn", ("to_q", "to_k", "to_v")),
    "single_blocks_0_linear1": ("single_transformer_blocks.0", ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")),
}


class Whole(nn.Module):
    """The layers as those who trained the base have them: one matrix."""

    def __init__(self, transformer: nn.Module, name: str) -> None:
        super().__init__()
        above, below = FUSED[name]
        parts = [transformer.get_submodule(f"{above}.{one}") for one in below]
        self.layer = nn.Linear(parts[0].in_features, sum(part.out_features for part in parts))
        with torch.no_grad():
            self.layer.weight.copy_(torch.cat([part.weight for part in parts]))
            self.layer.bias.copy_(torch.cat([part.bias for part in parts]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


def network(whole: Whole, options: dict[str, object], name: str) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """LyCORIS' own network on the fused layer: its tensors under kohya's name, and what it computes."""
    chosen = {"linear_dim": 4, "linear_alpha": 2.0, "dropout": 0.0, **options}
    lycoris.LycorisNetwork.apply_preset({"target_name": ["layer"]})
    made = lycoris.create_lycoris(whole, 1.0, **chosen)
    made.apply_to()
    generator = torch.Generator().manual_seed(len(name))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        made.eval()
        expected = whole(sample(whole))
    tensors = {f"lora_unet_{name}.{key.partition('.')[2]}": one for key, one in made.state_dict().items()}
    return {key: one.detach().clone().contiguous() for key, one in tensors.items()}, expected


def sample(whole: Whole) -> torch.Tensor:
    return torch.randn(3, whole.layer.in_features, generator=torch.Generator().manual_seed(2))


def outputs(transformer: nn.Module, name: str, x: torch.Tensor) -> torch.Tensor:
    above, below = FUSED[name]
    return torch.cat([transformer.get_submodule(f"{above}.{one}")(x) for one in below], dim=-1)


@pytest.fixture(scope="module")
def pipe():
    return build("flux1")


@pytest.fixture(autouse=True)
def clean(pipe):
    yield
    studio.detach(pipe)


def written(pipe, options, folder):
    """A file of all fused layers, and what each should compute."""
    tensors, expected = {}, {}
    for name in FUSED:
        own, expected[name] = network(Whole(pipe.transformer, name), options, name)
        tensors |= own
    save_file(tensors, folder / "a.safetensors")
    return folder / "a.safetensors", tensors, expected


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_together_the_parts_compute_what_the_whole_does(algorithm, pipe, tmp_path):
    file, tensors, expected = written(pipe, ALGORITHMS[algorithm], tmp_path)
    report = studio.load(pipe, file)
    assert not report.ignored and set(report.applied) == set(tensors) and len(report.sites) == 7
    with torch.no_grad():
        for name, wanted in expected.items():
            whole = Whole(pipe.transformer, name)
            found = outputs(pipe.transformer, name, sample(whole))
            assert torch.allclose(found, wanted, atol=1e-5), (name, (found - wanted).abs().max())
            assert (whole(sample(whole)) - wanted).abs().max() > 1e-3
        studio.bake(pipe)
        for name, wanted in expected.items():
            assert torch.allclose(outputs(pipe.transformer, name, sample(Whole(pipe.transformer, name))), wanted,
                                  atol=1e-5)  # fmt: skip
        studio.unbake(pipe)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_apart_and_put_together_again_it_has_the_same_tensors(algorithm, pipe, tmp_path):
    """kohya's names → diffusers' → kohya's: every tensor to the bit."""
    file, _, _ = written(pipe, ALGORITHMS[algorithm], tmp_path)
    studio.load(pipe, file)
    first = studio.save(pipe, tmp_path / "first.safetensors", format="kohya")
    studio.detach(pipe)
    there, back = tmp_path / "there.safetensors", tmp_path / "back.safetensors"
    assert convert(first, there, format="diffusers", base=pipe).error < 1e-6
    assert convert(there, back, format="kohya", base=pipe).error < 1e-6
    one, other = load_file(first), load_file(back)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one), [k for k in one if not torch.equal(one[k], other[k])]
    assert not any("window" in key for key in other)


@pytest.mark.parametrize("algorithm", REFUSED)
def test_what_has_no_rows_of_its_own_is_refused_by_name(algorithm, pipe, tmp_path):
    options, reason = REFUSED[algorithm]
    file, _, _ = written(pipe, options, tmp_path)
    with pytest.raises((DoesNotFit, PartialLoad), match=reason):
        studio.load(pipe, file)
    assert not studio.adapters(pipe)


@pytest.mark.parametrize("broken", ["longer", "alone"])
def test_factors_that_do_not_make_the_outputs_are_refused(broken, pipe, tmp_path):
    """A second factor of more rows would still have rows enough for each layer: the wrong ones."""
    file, tensors, _ = written(pipe, ALGORITHMS["lokr-across"], tmp_path)
    keys = [key for key in tensors if key.endswith("lokr_w2")] or [key for key in tensors if key.endswith("lokr_w2_a")]
    for key in keys if broken == "longer" else [key for key in tensors if ".lokr_w1" in key]:
        tensors[key] = torch.cat([tensors[key]] * 2)
        if broken == "alone":
            del tensors[key]
    save_file(tensors, file)
    with pytest.raises((DoesNotFit, PartialLoad), match="do not make these"):
        studio.load(pipe, file)
    assert not studio.adapters(pipe)


def test_parts_that_do_not_share_are_refused_where_they_would_be_one(pipe, tmp_path):
    file, _, _ = written(pipe, ALGORITHMS["loha"], tmp_path)
    studio.load(pipe, file)
    with torch.no_grad():
        studio.state(pipe)["transformer.transformer_blocks.0.attn.to_k.w1_b"].add_(1.0)
    with pytest.raises(DoesNotFit, match="their w1_b differ, and one layer has one of each"):
        studio.save(pipe, tmp_path / "b.safetensors", format="kohya")
    assert studio.save(pipe, tmp_path / "b.safetensors", format="diffusers").exists()


def test_a_last_norms_halves_are_exchanged_for_other_methods_too(pipe, tmp_path):
    """Natively shift stands before scale, in diffusers behind it: rows of ΔW change places, whatever makes them."""
    norm = pipe.transformer.norm_out.linear
    rows, cols = norm.weight.shape
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(rows, 2, generator=generator) for _ in range(2))
    c, d = (torch.randn(2, cols, generator=generator) for _ in range(2))
    name = "lora_unet_final_layer_adaLN_modulation_1"
    save_file(
        {f"{name}.hada_w1_a": a, f"{name}.hada_w2_a": b, f"{name}.hada_w1_b": c, f"{name}.hada_w2_b": d},
        tmp_path / "a.safetensors",
    )
    before = norm.weight.detach().clone()
    studio.load(pipe, tmp_path / "a.safetensors")
    studio.bake(pipe)
    change = ((a @ c) * (b @ d)).double()
    wanted = before.double() + torch.cat(change.chunk(2)[::-1])
    assert (norm.weight.double() - wanted).norm() < 1e-6 * wanted.norm()
    studio.unbake(pipe)
    studio.save(pipe, tmp_path / "b.safetensors", format="kohya")
    found = load_file(tmp_path / "b.safetensors")
    assert torch.equal(found[f"{name}.hada_w1_a"], a) and torch.equal(found[f"{name}.hada_w2_b"], d)


def test_blocks_that_are_cut_in_two_are_named():
    tensors = {"skew": torch.ones(2, 3), "gain": torch.ones(6)}
    with pytest.raises(DoesNotFit, match="skew has 2 blocks, which make the outputs 2 to 4 of 6 together with others"):
        cut_rows(tensors, ("skew", "gain"), Rows(2, 4, 6))
    parts = [cut_rows(tensors, ("skew", "gain"), rows) for rows in (Rows(0, 3, 6), Rows(3, 6, 6))]
    joined = joined_rows(parts, ("skew", "gain"))
    assert all(torch.equal(joined[name], tensors[name]) for name in tensors)
