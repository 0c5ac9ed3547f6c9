"""Files of cloneofsimo's trainer, whose layers have numbers: each is the layer that the trainer itself would count."""

from __future__ import annotations

import json

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

import studio
from studio.adapters import blended
from studio.errors import BadFile, DoesNotFit, PartialLoad
from studio.families.shapes import outline
from studio.files.cloneofsimo import numbered
from studio.files.header import TensorInfo

PLAIN, EXTENDED = {"CrossAttention", "Attention", "GEGLU"}, {"ResnetBlock2D", "CrossAttention", "Attention", "GEGLU"}
FIRST = {"CrossAttention", "Attention"}


def counted(model, classes, kinds=(nn.Linear,)):
    """Paths of the layers in the trainer's order: its ``_find_modules`` (lora_diffusion/lora.py), by names."""
    return [
        f"{name}.{inner}"
        for name, ancestor in model.named_modules()
        if type(ancestor).__name__ in classes
        for inner, layer in ancestor.named_modules()
        if isinstance(layer, kinds)
    ]


def as_registered_once(paths):
    """The order that diffusers' transformer blocks had until 0.10: attn1, ff, attn2."""
    rank = {"attn1": 0, "ff": 1, "attn2": 2}

    def place(path):
        block, _, rest = path.partition(".transformer_blocks.0.")
        return blocks.index(block), rank.get(rest.partition(".")[0], 0)

    blocks = list(dict.fromkeys(path.partition(".transformer_blocks.0.")[0] for path in paths))
    return sorted(paths, key=place)


def written(model, component, paths, rank=1, seed=0):
    """A file's tensors as the trainer writes them, and path -> pair."""
    draw = torch.Generator().manual_seed(seed)
    tensors, pairs = {}, {}
    for number, path in enumerate(paths):
        shape = model.get_submodule(path).weight.shape
        down = torch.randn(rank, *shape[1:], generator=draw)
        up = torch.randn(shape[0], rank, *(1,) * len(shape[2:]), generator=draw)
        tensors |= {f"{component}:{number}:up": up, f"{component}:{number}:down": down}
        pairs[path] = down, up
    return tensors, pairs


def infos(tensors):
    return {key: TensorInfo("F32", tuple(one.shape), 0, 0) for key, one in tensors.items()}


@pytest.fixture(scope="module")
def unet():
    """A UNet of SD1's layers, each as small as it can be."""
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16, 24, 24),
        norm_num_groups=4,
        cross_attention_dim=12,
        attention_head_dim=2,
    ).eval()


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    config = CLIPTextConfig(hidden_size=12, intermediate_size=24, num_hidden_layers=12, num_attention_heads=2,
                            vocab_size=64, pad_token_id=0, bos_token_id=1, eos_token_id=2)  # fmt: skip
    return CLIPTextModel(config).eval()


ORDERS = {
    "today": (PLAIN, (nn.Linear,), lambda paths: paths, 144),
    "until 0.10": (PLAIN, (nn.Linear,), as_registered_once, 144),
    "without GEGLU": (FIRST, (nn.Linear,), lambda paths: paths, 128),
    "with convolutions": (EXTENDED, (nn.Linear, nn.Conv2d), lambda paths: paths, 224),
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("shape", ["sd1", "sd2"])
def test_numbers_are_those_that_the_trainer_counts(order, shape):
    """Of the public models' own layers, on no memory; keys and values of attn2 are told by their inputs."""
    classes, kinds, ordered, count = ORDERS[order]
    model = outline(shape, ["unet"]).components["unet"]
    paths = ordered(counted(model, classes, kinds))
    assert len(paths) == count
    keys = {}
    for number, path in enumerate(paths):
        rows, cols, *kernel = model.get_submodule(path).weight.shape
        keys[f"unet:{number}:up"] = TensorInfo("F16", (rows, 4, *(1,) * len(kernel)), 0, 0)
        keys[f"unet:{number}:down"] = TensorInfo("F16", (4, cols, *kernel), 0, 0)
    placed, refused = numbered(keys)
    parts = (("up", "lora_B"), ("down", "lora_A"))
    assert placed == {
        f"unet:{number}:{part}": f"unet.{path}.{theirs}.weight"
        for number, path in enumerate(paths)
        for part, theirs in parts
    }
    assert refused == {}
    widths = {keys[key].shape[1] for key, name in placed.items() if "attn2.to_k.lora_A" in name}
    assert widths == {768 if shape == "sd1" else 1024}


@pytest.mark.parametrize(("shape", "count"), [("sd1", 48), ("sd2", 92)])
def test_text_encoders_count_k_v_q_out(shape, count):
    model = outline(shape, ["text_encoder"]).components["text_encoder"]
    paths = counted(model, {"CLIPAttention"})
    width = model.config.hidden_size
    assert len(paths) == count
    keys = {}
    for number in range(count):
        keys[f"text_encoder:{number}:up"] = TensorInfo("F16", (width, 4), 0, 0)
        keys[f"text_encoder:{number}:down"] = TensorInfo("F16", (4, width), 0, 0)
    placed, _ = numbered(keys)
    assert [placed[f"text_encoder:{number}:up"] for number in range(count)] == [
        f"text_encoder.text_model.{path}.lora_B.weight" for path in paths
    ]


def moved(model, path):
    """How far an adapter moves a layer's output from where it is, and the input."""
    layer = model.get_submodule(path)
    shape = (3, layer.in_features) if isinstance(layer, nn.Linear) else (1, layer.in_channels, 5, 5)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        with_it = layer(x)
        with blended(model, {}):
            return with_it - layer(x), x


@pytest.mark.parametrize("order", ORDERS)
def test_every_pair_acts_on_its_layer_at_scale_one(unet, order, tmp_path):
    classes, kinds, ordered, count = ORDERS[order]
    tensors, pairs = written(unet, "unet", ordered(counted(unet, classes, kinds)), rank=2)
    metadata = {"unet": json.dumps(sorted(classes)), **{f"unet:{number}:rank": "2" for number in range(count)}}
    save_file(tensors, tmp_path / "a.safetensors", metadata=metadata)
    report = studio.load(unet, tmp_path / "a.safetensors")
    try:
        assert set(report.applied) == set(tensors) and not report.ignored and not report.notes
        assert set(report.sites) == set(pairs)
        for path, (down, up) in pairs.items():
            difference, x = moved(unet, path)
            if x.dim() == 2:
                expected = x.double() @ down.double().T @ up.double().T
            else:
                layer = unet.get_submodule(path)
                middle = nn.functional.conv2d(x.double(), down.double(), stride=layer.stride, padding=layer.padding)
                expected = nn.functional.conv2d(middle, up.double())
            assert torch.allclose(difference.double(), expected, atol=1e-4), path
    finally:
        studio.detach(unet)


def test_lists_of_a_unet_and_of_a_text_encoder(unet, encoder, tmp_path):
    """Check 36: the ``.pt`` list of 288 tensors, which is read on request alone."""
    tensors, pairs = written(unet, "unet", counted(unet, PLAIN))
    flat = [tensors[f"unet:{number}:{part}"].half() for number in range(144) for part in ("up", "down")]
    torch.save(flat, tmp_path / "a.pt")
    with pytest.raises(BadFile, match="pickled=True"):
        studio.load(unet, tmp_path / "a.pt")
    report = studio.load(unet, tmp_path / "a.pt", pickled=True)
    assert len(report.applied) == 288 and set(report.sites) == set(pairs)
    path = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    down, up = (one.half().float() for one in pairs[path])
    difference, x = moved(unet, path)
    assert torch.allclose(difference, x @ down.T @ up.T, atol=1e-4)
    studio.detach(unet)
    texts, read = written(encoder, "text_encoder", counted(encoder, {"CLIPAttention"}))
    torch.save(list(texts.values()), tmp_path / "a.text_encoder.pt")
    report = studio.load(encoder, tmp_path / "a.text_encoder.pt", pickled=True)
    assert len(report.applied) == 96 and set(report.sites) == set(read)
    studio.detach(encoder)


@pytest.mark.parametrize("lost", [1, 2, 18, 100])
def test_a_wrong_count_is_refused_and_288_is_named(unet, lost, tmp_path):
    """Check 36: with one pair too few every later number would be another layer's."""
    tensors, _ = written(unet, "unet", counted(unet, PLAIN))
    cut = dict(list(tensors.items())[:-lost])
    save_file(cut, tmp_path / "a.safetensors")
    with pytest.raises(BadFile, match=rf"the file has {288 - lost} tensors of unet, and such a file has 288"):
        studio.load(unet, tmp_path / "a.safetensors")
    assert studio.adapters(unet) == {}
    with pytest.raises(BadFile):
        studio.load(unet, tmp_path / "a.safetensors", allow_partial=True)
    torch.save(list(cut.values()), tmp_path / "a.pt")
    with pytest.raises(BadFile, match="288 tensors"):
        studio.load(unet, tmp_path / "a.pt", pickled=True)
    assert set(studio.inspect(tmp_path / "a.safetensors").unread) == set(cut)


@pytest.mark.parametrize(
    "content",
    [[], [1, 2], [torch.ones(2)] * 287 + ["x"], [torch.ones(2, 2)] * 289],
    ids=["none", "numbers", "x", "odd"],
)
def test_lists_of_something_else(unet, content, tmp_path):
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(BadFile, match="list of"):
        studio.load(unet, tmp_path / "a.pt", pickled=True)


def test_a_hole_in_the_numbers_or_a_pair_of_other_shapes(unet, tmp_path):
    tensors, _ = written(unet, "unet", counted(unet, PLAIN))
    moved_up = {key.replace("unet:143:", "unet:150:"): one for key, one in tensors.items()}
    save_file(moved_up, tmp_path / "a.safetensors")
    with pytest.raises(BadFile, match="tells no layer"):
        studio.load(unet, tmp_path / "a.safetensors")
    swapped = dict(tensors)  # the first pair's two tensors have changed places
    swapped["unet:0:up"], swapped["unet:0:down"] = tensors["unet:0:down"], tensors["unet:0:up"]
    save_file(swapped, tmp_path / "a.safetensors")
    with pytest.raises(PartialLoad, match="unet:0:"):
        studio.load(unet, tmp_path / "a.safetensors")
    other = {f"{key.replace('unet:143:', 'unet:0143:')}": one for key, one in tensors.items()}
    save_file(other, tmp_path / "a.safetensors")
    with pytest.raises(BadFile, match="unet:"):
        studio.load(unet, tmp_path / "a.safetensors")


def test_it_is_of_no_other_family(unet, tmp_path):
    tensors, _ = written(unet, "unet", counted(unet, PLAIN))
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(DoesNotFit):
        studio.load(nn.Sequential(nn.Linear(4, 4)), tmp_path / "a.safetensors")


def test_it_is_told_and_converted_for_other_programs(tmp_path):
    """Of SD1's own sizes: kohya's and diffusers' files of it change every layer as it does, to the bit."""
    model = outline("sd1", ["unet"]).components["unet"]
    tensors, pairs = written(model, "unet", as_registered_once(counted(model, PLAIN)))
    file = tmp_path / "a.safetensors"
    metadata = {"unet": json.dumps(sorted(PLAIN)), **{f"unet:{number}:rank": "1" for number in range(144)}}
    save_file({key: one.half() for key, one in tensors.items()}, file, metadata=metadata)
    found = studio.inspect(file)
    assert (found.method, found.family, dict(found.ranks), len(found.sites)) == ("lora", "sd1", {1: 144}, 144)
    assert not found.unread and not any("rank" in fact for fact in found.facts)
    for format, count in (("kohya", 432), ("diffusers", 288)):
        report = studio.convert(file, tmp_path / f"{format}.safetensors", format=format)
        assert (report.sites, report.error) == (144, 0.0)
        assert len(load_file(report.file)) == count
    path = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
    kohya = load_file(tmp_path / "kohya.safetensors")
    flat = f"lora_unet_{path.replace('.', '_')}"
    assert torch.equal(kohya[f"{flat}.lora_down.weight"], pairs[path][0].half()) and kohya[f"{flat}.alpha"] == 1
