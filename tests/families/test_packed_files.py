"""Denoisers in files of few bits: GGUF and ComfyUI's scaled fp8, opened, drawn with and adapted."""

from __future__ import annotations

import shutil

import pytest
import torch
from diffusers.loaders import single_file_utils
from safetensors.torch import save_file
from torch import nn

import original_names
import studio
from packings import prepare
from studio.errors import BadFile, DoesNotFit
from studio.families import open_base
from studio.quantization import packing_of
from studio.quantization.counting import packed_layers
from studio.quantization.scaled import ScaledLinear, to_codes
from tiny_pipelines import build

PUBLIC, TINY = 3072, 32  # widths of Flux.1


@pytest.fixture(autouse=True, scope="module")
def tiny_flux():
    """diffusers' conversion of Flux.1 has the public width as a number in its code: the tiny one's is put there."""
    convert = single_file_utils.convert_flux_transformer_checkpoint_to_diffusers
    code = convert.__code__
    convert.__code__ = code.replace(co_consts=tuple(TINY if one == PUBLIC else one for one in code.co_consts))
    yield
    convert.__code__ = code


ALONE = {
    "flux1": lambda pipe: original_names.flux_denoiser(pipe.transformer),
    "z-image": lambda pipe: original_names.z_image_denoiser(pipe.transformer),
    "qwen-image": lambda pipe: dict(original_names.under("model.diffusion_model.", pipe.transformer.state_dict())),
}
MOST = {"flux1": 20, "z-image": 10, "qwen-image": 10}


def scaled(state, end):
    """As ComfyUI writes it: the matrices of blocks in fp8, each with one scale, and that of its inputs."""
    made, off = {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}, {}
    for name, tensor in state.items():
        if name.endswith(".weight") and tensor.dim() == 2 and ("block" in name or "layers" in name):
            codes, scale = to_codes(tensor, whole=True)
            made |= {name: codes, name.removesuffix(".weight") + end: scale}
            off[name] = codes.float() * scale
            made[name.removesuffix(".weight") + ".scale_input"] = torch.ones(())
        else:
            made[name] = off[name] = tensor
    return made, off


def plain(state):
    return {name: tensor.detach().contiguous().clone() for name, tensor in state.items()}


def weights(base):
    """The denoiser's matrices, packed or not, by path."""
    found = {}
    for path, module in getattr(base.pipe, base.family.denoiser).named_modules():
        packing = packing_of(module)
        if packing is not None:
            found[path] = packing.unpacked(module)
        elif isinstance(module, nn.Linear):
            found[path] = module.weight.detach()
    return found


@pytest.mark.parametrize("end", [".scale_weight", ".weight_scale"])
@pytest.mark.parametrize("kind", ALONE)
def test_scaled_fp8_is_read_as_it_is_and_its_scales_count(folders, tmp_path, kind, end):
    made, off = scaled(ALONE[kind](build(kind)), end)
    save_file(plain(made), tmp_path / "scaled.safetensors")
    save_file(plain(off), tmp_path / "dense.safetensors")
    base = open_base(tmp_path / "scaled.safetensors", config_of=folders(kind))
    dense = open_base(tmp_path / "dense.safetensors", config_of=folders(kind))
    packed = [layer for _, layer, _ in packed_layers(getattr(base.pipe, base.family.denoiser))]
    assert len(packed) >= MOST[kind] and all(isinstance(layer, ScaledLinear) for layer in packed)
    assert all(layer.codes.dtype == torch.float8_e4m3fn for layer in packed)
    mine, wanted = weights(base), weights(dense)
    assert mine.keys() == wanted.keys()
    for path, weight in wanted.items():
        torch.testing.assert_close(mine[path], weight, rtol=1e-6, atol=1e-7)
    assert base.hash != dense.hash and base.parameters == dense.parameters


FUSED = "double_blocks.0.img_attn.qkv"


@pytest.mark.parametrize(
    ("dtype", "rows"),
    [(torch.float8_e4m3fn, True), (torch.float8_e5m2, False), (torch.bfloat16, False), (torch.float8_e4m3fn, None)],
    ids=["a scale per row", "e5m2", "bf16 beside a scale", "fp8 without a scale"],
)
def test_a_layer_that_is_kept_otherwise_is_what_its_numbers_say(folders, tmp_path, dtype, rows):
    made, off = scaled(ALONE["flux1"](build("flux1")), ".scale_weight")
    weight = next(name for name in made if name.endswith(f"{FUSED}.weight"))
    scale = made.pop(weight.replace(".weight", ".scale_weight"))
    if rows is None:
        made[weight] = off[weight].to(dtype)
        off[weight] = made[weight].float()
    else:
        scale = scale.expand(len(off[weight])).clone() * (1 + torch.arange(len(off[weight]))) if rows else scale
        made[weight] = (off[weight] / 2e-3).to(dtype)
        made[weight.replace(".weight", ".scale_weight")] = scale
        off[weight] = made[weight].float() * (scale[:, None] if rows else scale)
    save_file(plain(made), tmp_path / "scaled.safetensors")
    save_file(plain(off), tmp_path / "dense.safetensors")
    mine, wanted = (
        weights(open_base(tmp_path / f"{name}.safetensors", config_of=folders("flux1"))) for name in ("scaled", "dense")
    )
    for path, one in wanted.items():
        torch.testing.assert_close(mine[path], one, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda codes, scale: (codes, torch.ones(len(codes), 2)), "does not scale 8-bit floats"),
        (lambda codes, scale: (codes.view(torch.int8), scale), "does not scale 8-bit floats"),
        (lambda codes, scale: (None, scale), "does not scale 8-bit floats"),
        (lambda codes, scale: (codes[:, :-1], scale), r"\(32, 31\) in the file and \(32, 32\)"),
    ],
    ids=["a scale per block", "integers", "a scale alone", "too narrow"],
)
def test_other_packings_of_comfyui_are_refused_and_not_misread(folders, tmp_path, change, said):
    made, _ = scaled(ALONE["flux1"](build("flux1")), ".weight_scale")
    weight = next(name for name in made if name.endswith(f"{FUSED}.weight"))
    beside = weight.replace(".weight", ".weight_scale")
    codes, made[beside] = change(made.pop(weight), made[beside])
    made |= {} if codes is None else {weight: codes}
    save_file(plain(made), tmp_path / "other.safetensors")
    with pytest.raises(BadFile, match=said):
        open_base(tmp_path / "other.safetensors", config_of=folders("flux1"))


@pytest.mark.parametrize("kind", ["flux1", "qwen-image"])
def test_a_gguf_file_is_read_in_its_blocks_and_adapted(folders, tmp_path, kind):
    gguf = pytest.importorskip("gguf")
    prepare("gguf-q8-0")
    state = {name.removeprefix("model.diffusion_model."): one for name, one in ALONE[kind](build(kind)).items()}
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "flux")
    blocks = 0
    for name, tensor in state.items():
        numbers = tensor.detach().float().numpy()
        if tensor.dim() == 2 and tensor.shape[1] % 32 == 0 and "block" in name:
            packed = gguf.quants.quantize(numbers, gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(name, packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
            blocks += 1
        else:
            writer.add_tensor(name, numbers)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert blocks > 5
    base, plain_base = open_base(tmp_path / "model.gguf", config_of=folders(kind)), open_base(folders(kind))
    denoiser = getattr(base.pipe, base.family.denoiser)
    assert {packing.says for _, _, packing in packed_layers(denoiser)} == {"GGUF layers"}
    wanted = weights(plain_base)
    for path, weight in weights(base).items():
        assert (weight - wanted[path]).norm() <= 0.01 * wanted[path].norm(), path
    assert len(base.hash) == 64 and base.parameters == plain_base.parameters
    report = studio.attach(base.pipe, studio.LoRA(rank=2, targets="attention"))
    assert report.sites
    studio.detach(base.pipe)


def test_what_is_no_gguf_file_is_refused(folders, tmp_path):
    pytest.importorskip("gguf")
    (tmp_path / "model.gguf").write_bytes(b"GGUX" + bytes(100))
    with pytest.raises(BadFile, match="is no whole GGUF file"):
        open_base(tmp_path / "model.gguf", config_of=folders("flux1"))


def test_a_whole_base_in_scaled_fp8_is_refused_and_not_misread(folders, tmp_path):
    made, _ = scaled(original_names.flux(build("flux1")), ".scale_weight")
    save_file(plain(made), tmp_path / "all.safetensors")
    with pytest.raises(DoesNotFit, match="holds a whole base in few bits"):
        open_base(tmp_path / "all.safetensors", config_of=folders("flux1"))
    shutil.rmtree(tmp_path)
