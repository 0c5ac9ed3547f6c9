"""Adapter files in the names of each family's tools: there, and back, and what fused layers mean."""

from __future__ import annotations

import pytest
import torch
from diffusers.loaders import single_file_utils
from safetensors.torch import load_file, save_file
from torch import nn

import studio
from studio.adapters import adapters
from studio.errors import DoesNotFit, PartialLoad
from studio.families import family_of
from studio.files.names import Names
from tiny_pipelines import BUILDERS, build, run

FORMATS = ("diffusers", "kohya", "native")
DEFAULT = [(kind, "kohya") for kind in BUILDERS if kind not in ("sd1", "sd2", "flux1-schnell", "flux2-klein", "sana")]
DEFAULT += [("flux1", "diffusers"), ("flux1", "native"), ("z-image", "native")]
MATRIX = [
    pytest.param(kind, one, marks=() if (kind, one) in DEFAULT else pytest.mark.slow)
    for kind in BUILDERS
    for one in FORMATS
]


def adapted(kind, format="diffusers", **fields):
    """A tiny pipeline with a LoRA that changes something, on every component that the format has."""
    pipe = build(kind)
    family = family_of(pipe)
    components = {"diffusers": (family.denoiser, *family.readers), "kohya": tuple(family.flat), "native": None}[format]
    if format == "native" and kind in ("flux1", "sd3", "chroma"):
        components = (family.denoiser, *family.readers)
    studio.attach(pipe, studio.LoRA(**{"rank": 2, "targets": "all-linear"} | fields), components=components)
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for tensor in studio.state(pipe).values():
            tensor.copy_(torch.randn(tensor.shape, generator=draw) * 0.1)
    return pipe


def changes(pipe) -> dict[str, torch.Tensor]:
    """Path -> ΔW in float64."""
    info, tensors, names = adapters(pipe)["default"], studio.state(pipe), Names(pipe)
    return {
        path: tensors[f"{path}.up"].double()
        @ tensors[f"{path}.down"].double().flatten(1)
        * info.config.scale_at(names.paths[path][1])
        for path in info.sites
    }


def assert_same_change(found, wanted):
    assert found.keys() == wanted.keys()
    for path, change in wanted.items():
        assert (found[path] - change).norm() <= 1e-6 * change.norm(), path


# -- there and back ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "format"), MATRIX)
def test_a_file_has_the_same_change_and_the_same_tensors(tmp_path, kind, format):
    pipe = adapted(kind, format, alpha=3.0)
    file = studio.save(pipe, tmp_path / "a.safetensors", format=format)
    again = build(kind)
    report = studio.load(again, file)
    assert (report.format, report.ignored) == (format, {})
    assert set(report.applied) == set(load_file(file))
    assert_same_change(changes(again), changes(pipe))
    before, after = studio.state(pipe), studio.state(again)
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    second = studio.save(again, tmp_path / "b.safetensors", format=format)
    assert file.read_bytes() == second.read_bytes()
    assert studio.inspect(file).family == family_of(pipe).name


@pytest.mark.parametrize("kind", ["sd3", "flux1", "lumina2", "chroma"])
def test_parts_of_other_scales_and_ranks_and_missing_ones_are_put_together(tmp_path, kind):
    fields = {"alpha": 3.0, "alpha_pattern": {"*to_k": 1.5}, "rank_pattern": {"*to_v": 3}}
    names = ("*.to_q", "*.to_k", "*.to_v", "*.add_q_proj", "*.add_v_proj")
    pipe = adapted(kind, "native", targets=tuple(one for one in names if any(_ends(build(kind), one[1:]))), **fields)
    file = studio.save(pipe, tmp_path / "a.safetensors", format="native")
    again = build(kind)
    assert studio.load(again, file).ignored == {}
    assert_same_change(changes(again), changes(pipe))


def _ends(pipe, ending):
    return [path for path in Names(pipe).paths if path.endswith(ending) and path.startswith("transformer.")]


@pytest.mark.parametrize("format", ["diffusers", "kohya"])
def test_kohyas_header_tells_the_truth_about_ranks(tmp_path, format):
    metadata = studio.inspect(
        studio.save(adapted("flux1", "kohya"), tmp_path / "a.safetensors", format=format)
    ).metadata
    assert metadata["ss_network_dim"] == ("Dynamic" if format == "kohya" else "2")
    assert metadata["ss_base_model_version"] == "flux1"


# -- fused layers, by the formula --------------------------------------------------------------------------------------

JOINT = ("attn.to_q", "attn.to_k", "attn.to_v")
ADDED = ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")
XL = "down_blocks.1.attentions.0"
ONE = {
    "sd3": {
        "joint_blocks.1.x_block.attn.qkv": [f"transformer_blocks.1.{one}" for one in JOINT],
        "joint_blocks.1.x_block.attn2.qkv": [f"transformer_blocks.1.attn2.to_{one}" for one in "qkv"],
        "joint_blocks.2.context_block.attn.qkv": [f"transformer_blocks.2.{one}" for one in ADDED],
        "joint_blocks.0.context_block.mlp.fc2": ["transformer_blocks.0.ff_context.net.2"],
        "joint_blocks.0.context_block.adaLN_modulation.1": ["transformer_blocks.0.norm1_context.linear"],
    },
    "flux1": {
        "double_blocks.1.txt_attn.qkv": [f"transformer_blocks.1.{one}" for one in ADDED],
        "double_blocks.0.img_mlp.0": ["transformer_blocks.0.ff.net.0.proj"],
        "double_blocks.0.txt_mod.lin": ["transformer_blocks.0.norm1_context.linear"],
        "single_blocks.1.linear1": [f"single_transformer_blocks.1.{one}" for one in (*JOINT, "proj_mlp")],
        "single_blocks.1.linear2": ["single_transformer_blocks.1.proj_out"],
        "vector_in.out_layer": ["time_text_embed.text_embedder.linear_2"],
        "final_layer.linear": ["proj_out"],
    },
    "flux2": {
        "double_blocks.0.img_attn.qkv": [f"transformer_blocks.0.{one}" for one in JOINT],
        "double_blocks.0.txt_mlp.2": ["transformer_blocks.0.ff_context.linear_out"],
        "single_blocks.1.linear1": ["single_transformer_blocks.1.attn.to_qkv_mlp_proj"],
        "single_blocks.1.linear2": ["single_transformer_blocks.1.attn.to_out"],
        "single_stream_modulation.lin": ["single_stream_modulation.linear"],
    },
    "z-image": {
        "layers.1.attention.qkv": [f"layers.1.attention.to_{one}" for one in "qkv"],
        "context_refiner.0.attention.out": ["context_refiner.0.attention.to_out.0"],
        "layers.0.feed_forward.w3": ["layers.0.feed_forward.w3"],
    },
    "lumina2": {
        "noise_refiner.0.attention.qkv": [f"noise_refiner.0.{one}" for one in JOINT],  # narrower keys and values
        "layers.0.feed_forward.w2": ["layers.0.feed_forward.linear_2"],
        "layers.0.adaLN_modulation.1": ["layers.0.norm1.linear"],
        "final_layer.linear": ["norm_out.linear_2"],
    },
    "chroma": {
        "single_blocks.0.linear1": [f"single_transformer_blocks.0.{one}" for one in (*JOINT, "proj_mlp")],
        "distilled_guidance_layer.layers.0.out_layer": ["distilled_guidance_layer.layers.0.linear_2"],
    },
    "sdxl": {
        "input_blocks.3.1.transformer_blocks.0.attn1.to_q": [f"{XL}.transformer_blocks.0.attn1.to_q"],
        "output_blocks.1.1.proj_in": ["up_blocks.0.attentions.1.proj_in"],
        "output_blocks.1.2.conv": ["up_blocks.0.upsamplers.0.conv"],
        "middle_block.2.out_layers.3": ["mid_block.resnets.1.conv2"],
        "input_blocks.2.0.op": ["down_blocks.0.downsamplers.0.conv"],
    },
    "qwen-image": {"transformer_blocks.1.img_mlp.net.2": ["transformer_blocks.1.img_mlp.net.2"]},
}  # fmt: skip
SWAPPED = {
    "sd3": {
        "final_layer.adaLN_modulation.1": ["norm_out.linear"],
        "joint_blocks.2.context_block.adaLN_modulation.1": ["transformer_blocks.2.norm1_context.linear"],
    },
    "flux1": {"final_layer.adaLN_modulation.1": ["norm_out.linear"]},
    "flux2": {"final_layer.adaLN_modulation.1": ["norm_out.linear"]},
}


def native_file(file, pipe, layers, *, flat, alpha=3.0, rank=2, block=False):
    """Writes a file of native names with random numbers, and returns its ΔW at each of its layers."""
    tensors, wanted = {}, {}
    draw = torch.Generator().manual_seed(5)
    denoiser = pipe.components[family_of(pipe).denoiser]
    for name, paths in layers.items():
        weights = [denoiser.get_submodule(path).weight for path in paths]
        rows = [len(weight) for weight in weights]
        down = torch.randn(rank * len(rows) if block else rank, *weights[0].shape[1:], generator=draw)
        up = torch.randn(sum(rows), rank, generator=draw)
        up = torch.block_diag(*up.split(rows)) if block else up
        module = f"lora_unet_{name.replace('.', '_')}" if flat else f"diffusion_model.{name}"
        parts = ("lora_down", "lora_up") if flat else ("lora_A", "lora_B")
        spread = up.reshape(*up.shape, *[1] * (down.dim() - 2))
        tensors |= {f"{module}.{parts[0]}.weight": down, f"{module}.{parts[1]}.weight": spread}
        tensors[f"{module}.alpha"] = torch.tensor(alpha)
        wanted[name] = (up.double() @ down.double().flatten(1)) * (alpha / len(down))
    save_file(tensors, file)
    return wanted


@pytest.mark.parametrize("block", [False, True], ids=["dense", "block-diagonal"])
@pytest.mark.parametrize("flat", [True, False], ids=["kohya", "native"])
@pytest.mark.parametrize("kind", ONE)
def test_a_native_file_means_what_its_formula_says(tmp_path, kind, flat, block):
    pipe, file = build(kind), tmp_path / "a.safetensors"
    wanted = native_file(file, pipe, ONE[kind], flat=flat, block=block)
    report = studio.load(pipe, file)
    assert report.ignored == {} and set(report.applied) == set(load_file(file))
    found, denoiser = changes(pipe), family_of(pipe).denoiser
    for name, change in wanted.items():
        stacked = torch.cat([found.pop(f"{denoiser}.{path}") for path in ONE[kind][name]])
        assert (stacked - change).norm() <= 1e-6 * change.norm(), name
    assert not found
    if kind != "z-image":  # its trainers' files have the layers one by one
        again = load_file(studio.save(pipe, tmp_path / "b.safetensors", format="kohya" if flat else "native"))
        first = load_file(file)
        assert again.keys() == first.keys() and all(torch.equal(again[key], first[key]) for key in first)


@pytest.mark.parametrize("flat", [True, False], ids=["kohya", "native"])
@pytest.mark.parametrize("kind", SWAPPED)
def test_the_last_norms_halves_stand_the_other_way_round(tmp_path, kind, flat):
    pipe, file = build(kind), tmp_path / "a.safetensors"
    wanted = native_file(file, pipe, SWAPPED[kind], flat=flat)
    assert studio.load(pipe, file).ignored == {}
    found = changes(pipe)
    for name, (path,) in SWAPPED[kind].items():
        shift, scale = wanted[name].chunk(2)
        assert torch.allclose(found[f"transformer.{path}"], torch.cat([scale, shift]), rtol=1e-6, atol=0)
    again = studio.save(pipe, tmp_path / "b.safetensors", format="kohya" if flat else "native")
    first, second = load_file(file), load_file(again)
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


# diffusers' own conversion of single files; those of the others have the real sizes in their code
CONVERTERS = {
    "sd3": "convert_sd3_transformer_checkpoint_to_diffusers",
    "flux2": "convert_flux2_transformer_checkpoint_to_diffusers",
    "z-image": "convert_z_image_transformer_checkpoint_to_diffusers",
}


class Whole(dict):
    """A checkpoint: a tensor that it lacks is there all the same."""

    def pop(self, key, *default):
        return dict.pop(self, key, *(default or (torch.zeros(6),)))


@pytest.mark.parametrize("kind", CONVERTERS)
def test_every_native_layer_is_where_diffusers_converts_it_to(tmp_path, kind):
    pipe, file = build(kind), tmp_path / "a.safetensors"
    names = Names(pipe)
    layers = {
        one.name: [path.removeprefix("transformer.") for path in one.paths]
        for path, one in names.native.items() if isinstance(names.module(path), (nn.Linear, nn.Conv2d))
    }  # fmt: skip
    wanted = native_file(file, pipe, layers, flat=False)
    assert studio.load(pipe, file).ignored == {}
    convert = getattr(single_file_utils, CONVERTERS[kind])
    converted = convert(Whole({f"{name}.weight": change for name, change in wanted.items()}), config=None)
    found = changes(pipe)
    assert len(found) == sum(map(len, layers.values())) > 30
    for path, change in found.items():
        weight = converted[f"{path.removeprefix('transformer.')}.weight"]
        assert (change - weight).norm() <= 1e-6 * change.norm(), path


def test_a_model_that_was_fused_has_the_native_layer_itself(tmp_path):
    pipe = build("flux1")
    pipe.transformer.fuse_qkv_projections()
    layers = {"double_blocks.1.txt_attn.qkv": ["transformer_blocks.1.attn.to_added_qkv"]}
    wanted = native_file(tmp_path / "a.safetensors", pipe, layers, flat=True)
    report = studio.load(pipe, tmp_path / "a.safetensors")
    assert report.sites == ("transformer.transformer_blocks.1.attn.to_added_qkv",)
    assert torch.allclose(changes(pipe)[report.sites[0]], wanted["double_blocks.1.txt_attn.qkv"])


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_what_cannot_be_said_is_refused_by_name_and_leaves_nothing(tmp_path):
    pipe = build("flux1")
    studio.attach(pipe, studio.DoRA(rank=2, targets=("*.to_q",)), components=("transformer",))
    with pytest.raises(DoesNotFit, match=r"natively single_blocks\.0\.linear1 is the layers .*not all of them have"):
        studio.save(pipe, tmp_path / "a.safetensors", format="kohya")
    pipe = build("flux2")
    layer = "model.language_model.layers.0.self_attn.q_proj"
    studio.attach(pipe, studio.LoRA(rank=2, targets=(layer,)), components=("text_encoder",))
    with pytest.raises(DoesNotFit, match=r"kohya's tools have no name for the layer text_encoder\."):
        studio.save(pipe, tmp_path / "a.safetensors", format="kohya")
    with pytest.raises(DoesNotFit, match="no name that those who trained its base gave it"):
        studio.save(pipe, tmp_path / "a.safetensors", format="native")
    assert not list(tmp_path.iterdir())


def test_a_fused_layer_of_other_sizes_is_refused_whole(tmp_path):
    pipe, file = build("flux1"), tmp_path / "a.safetensors"
    native_file(file, pipe, ONE["flux1"], flat=True)
    tensors = load_file(file)
    key = "lora_unet_single_blocks_1_linear1.lora_up.weight"
    save_file({**tensors, key: tensors[key][:-1].clone()}, file)
    with pytest.raises(PartialLoad, match=r"3 of the 21 keys.*outputs together, and its tensors have"):
        studio.load(pipe, file)
    down = key.replace("lora_up", "lora_down")
    save_file({**tensors, down: torch.ones(2, 5)}, file)
    with pytest.raises(PartialLoad, match="3 of the 21 keys"):
        studio.load(pipe, file)
    assert not adapters(pipe)
    assert len(studio.load(pipe, file, allow_partial=True).applied) == 18


@pytest.mark.parametrize(
    ("kind", "prefix", "component"),
    [("flux1", "lora_te3", "text_encoder_2"), ("flux1", "lora_te2", "text_encoder_2"),
     ("sd3", "lora_te3", "text_encoder_3"), ("chroma", "lora_te3", "text_encoder"),
     ("pixart-sigma", "lora_te", "text_encoder")],
)  # fmt: skip
def test_t5_is_the_encoder_that_the_family_has_it_as(tmp_path, kind, prefix, component):
    pipe = build(kind)
    width = getattr(pipe, component).config.d_model
    name = f"{prefix}_encoder_block_0_layer_0_SelfAttention_q"
    rows = len(getattr(pipe, component).encoder.block[0].layer[0].SelfAttention.q.weight)
    pair = {f"{name}.lora_down.weight": torch.ones(1, width), f"{name}.lora_up.weight": torch.ones(rows, 1)}
    save_file(pair, tmp_path / "a.safetensors")
    report = studio.load(pipe, tmp_path / "a.safetensors")
    assert report.sites == (f"{component}.encoder.block.0.layer.0.SelfAttention.q",)


# -- other readers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "format"),
    [("flux1", "diffusers"), ("sdxl", "kohya"), ("flux2", "native")]
    + [pytest.param(*one, marks=pytest.mark.slow) for one in (
        ("sdxl", "diffusers"), ("sd3", "diffusers"), ("qwen-image", "native"), ("z-image", "native"),
    )],
)  # fmt: skip
def test_diffusers_draws_the_same_from_the_file(tmp_path, kind, format):
    pytest.importorskip("peft")
    pipe = build(kind)
    targets = ("*.to_q", "*.to_k", "*.to_v", "*.to_out.0")
    studio.attach(pipe, studio.LoRA(rank=2, targets=targets), components=(family_of(pipe).denoiser,))
    with torch.no_grad():
        for tensor in studio.state(pipe).values():
            tensor.copy_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(1)) * 0.3)
    bare, ours = run(build(kind), kind), run(pipe, kind)
    assert abs(ours - bare).max() > 1e-3
    other = build(kind)
    other.load_lora_weights(str(studio.save(pipe, tmp_path / "a.safetensors", format=format)))
    assert abs(run(other, kind) - ours).max() < 1e-5
