"""Single files on a diffusers pipeline, against diffusers' own loader; components, spellings, families."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import studio
from studio.errors import DoesNotFit, PartialLoad
from studio.families import open_base

diffusers = pytest.importorskip("diffusers")


@pytest.fixture(scope="module")
def base(tiny_base):
    return open_base(tiny_base).pipe


@pytest.fixture
def pipe(base):
    copied = copy.copy(base)
    parts = {name: copy.deepcopy(getattr(base, name)) for name in ("unet", "text_encoder")}
    return type(base)(**{**base.components, **parts}, requires_safety_checker=False) if copied else None


def outputs(pipe):
    """What the text encoder and the UNet compute; one picture is a function of these."""
    ids = torch.arange(8).view(1, 8) % pipe.tokenizer.vocab_size
    with torch.no_grad():
        text = pipe.text_encoder(ids)[0]
        noise = torch.linspace(-1, 1, 256).view(1, 4, 8, 8)
        return torch.cat([text.flatten(), pipe.unet(noise, torch.tensor([500]), text).sample.flatten()])


def relative(got, wanted):
    return ((got - wanted).norm() / wanted.norm()).item()


def adapted(pipe, config, seed=0):
    torch.manual_seed(seed)
    studio.attach(pipe, config)
    with torch.no_grad():
        for tensor in studio.state(pipe).values():
            tensor += torch.randn_like(tensor) * 0.2
    return outputs(pipe)


EVERYTHING = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out", "conv1",
              "time_emb_proj", "q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")  # fmt: skip


@pytest.mark.parametrize(
    ("format", "config"),
    [
        ("kohya", studio.LoRA(rank=2, targets=EVERYTHING)),
        ("kohya", studio.LoRA(rank=4, alpha=1.0, targets=EVERYTHING)),
        ("kohya", studio.LoRA(rank=4, alpha=2.0, rank_stabilized=True, targets=EVERYTHING)),
        ("kohya", studio.LoRA(rank=2, alpha=3.0, targets="attention")),
        ("diffusers", studio.LoRA(rank=4, alpha=1.0, targets=EVERYTHING)),
        ("diffusers", studio.LoRA(rank=4, alpha=1.0, rank_stabilized=True, targets=EVERYTHING)),
        (
            "diffusers",
            studio.LoRA(
                rank=4, alpha=1.0, rank_pattern={"to_q": 2, "fc1": 3}, alpha_pattern={"to_k": 6.0}, targets=EVERYTHING
            ),
        ),
        ("diffusers", studio.DoRA(rank=2, alpha=3.0, targets=EVERYTHING)),
    ],
)
def test_diffusers_own_loader_gives_the_same(tmp_path, pipe, format, config):
    pytest.importorskip("peft")
    before = outputs(pipe)
    wanted = adapted(pipe, config)
    assert relative(before, wanted) > 1e-2
    file = studio.save(pipe, tmp_path / "a.safetensors", format=format)
    studio.detach(pipe)
    assert torch.equal(outputs(pipe), before)
    pipe.load_lora_weights(tmp_path, weight_name=file.name)
    assert relative(outputs(pipe), wanted) <= 1e-5


@pytest.mark.parametrize("dora", [False, True])
def test_a_file_of_diffusers_loads_here(tmp_path, pipe, dora):
    peft = pytest.importorskip("peft")
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft.utils import get_peft_model_state_dict

    torch.manual_seed(0)
    unet = peft.LoraConfig(r=2, lora_alpha=5, use_dora=dora, target_modules=["to_q", "to_out.0", "conv1"])
    text = peft.LoraConfig(r=3, lora_alpha=2, use_dora=dora, target_modules=["q_proj", "out_proj"])
    pipe.unet.add_adapter(unet, "default")
    pipe.text_encoder.add_adapter(text, "default")
    with torch.no_grad():
        for module in (pipe.unet, pipe.text_encoder):
            for name, parameter in module.named_parameters():
                if "lora_" in name:
                    parameter += torch.randn_like(parameter) * 0.2
    wanted = outputs(pipe)
    states = [
        convert_state_dict_to_diffusers(get_peft_model_state_dict(module)) for module in (pipe.unet, pipe.text_encoder)
    ]
    configs = [dict(module.peft_config["default"].to_dict()) for module in (pipe.unet, pipe.text_encoder)]
    pipe.save_lora_weights(
        tmp_path, *states, unet_lora_adapter_metadata=configs[0], text_encoder_lora_adapter_metadata=configs[1]
    )
    fresh = type(pipe)(**pipe.components, requires_safety_checker=False)
    pipe.delete_adapters("default") if False else pipe.unload_lora_weights()
    if "default" in getattr(fresh.text_encoder, "peft_config", {}):
        fresh.text_encoder.delete_adapter("default")
    assert relative(outputs(fresh), wanted) > 1e-3
    report = studio.load(fresh, tmp_path / "pytorch_lora_weights.safetensors")
    assert report.format == "diffusers" and report.ignored == {}
    assert relative(outputs(fresh), wanted) <= 1e-5


def test_names_in_the_files_are_those_of_the_formats(tmp_path, pipe):
    adapted(
        pipe,
        studio.LoRA(rank=2, targets=("mid_block.attentions.0.transformer_blocks.0.attn1.to_q", "layers.0.mlp.fc1")),
    )
    layer = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    text = "text_model.encoder.layers.0.mlp.fc1"
    ours = load_file(studio.save(pipe, tmp_path / "a.safetensors"))
    assert set(ours) == {
        f"{name}.lora_{side}.weight" for name in (f"unet.{layer}", f"text_encoder.{text}") for side in "AB"
    }
    theirs = load_file(studio.save(pipe, tmp_path / "b.safetensors", format="kohya"))
    flat = (f"lora_unet_{layer}".replace(".", "_"), f"lora_te_{text}".replace(".", "_"))
    assert set(theirs) == {
        f"{name}.{part}" for name in flat for part in ("lora_down.weight", "lora_up.weight", "alpha")
    }
    assert theirs[f"{flat[0]}.alpha"].shape == () and theirs[f"{flat[0]}.alpha"].dtype == torch.float32
    said = studio.inspect(tmp_path / "b.safetensors")
    assert said.family == "sd1" and said.metadata["ss_base_model_version"] == "sd_v1"
    assert said.metadata["modelspec.architecture"] == "stable-diffusion-v1/lora"


@pytest.mark.parametrize("format", ["diffusers", "kohya"])
def test_a_file_of_one_component_loads_into_that_component(tmp_path, pipe, format):
    wanted = adapted(pipe, studio.LoRA(rank=2, alpha=1.0, targets=("to_q", "ff.net.2")))
    whole = studio.save(pipe, tmp_path / "whole.safetensors", format=format)
    studio.detach(pipe)
    studio.load(pipe.unet, whole)
    assert torch.equal(outputs(pipe), wanted)
    alone = studio.save(pipe.unet, tmp_path / "alone.safetensors", format=format)
    assert alone.read_bytes() == whole.read_bytes()
    studio.detach(pipe.unet)
    studio.load(pipe, alone)
    assert torch.equal(outputs(pipe), wanted)


@pytest.mark.parametrize("format", ["diffusers", "kohya"])
def test_a_file_of_two_components_is_not_loaded_halfway(tmp_path, pipe, format):
    wanted = adapted(pipe, studio.LoRA(rank=2, targets=("to_q", "q_proj")))
    file = studio.save(pipe, tmp_path / "a.safetensors", format=format)
    studio.detach(pipe)
    with pytest.raises(PartialLoad, match="belongs to text_encoder, which this model does not have"):
        studio.load(pipe.unet, file)
    assert studio.adapters(pipe.unet) == {}
    unet = studio.load(pipe.unet, file, allow_partial=True)
    text = studio.load(pipe.text_encoder, file, allow_partial=True)
    assert set(unet.applied) == set(text.ignored) and set(text.applied) == set(unet.ignored)
    assert torch.equal(outputs(pipe), wanted)


def variants(tensors):
    """The same adapter as other programs and versions spell it."""
    yield "without text_model", {key.replace("text_model.", ""): value for key, value in tensors.items()}
    yield (
        "gen 2",
        {key.replace("lora_A.", "lora.down.").replace("lora_B.", "lora.up."): value for key, value in tensors.items()},
    )
    yield (
        "linear layer",
        {
            key.replace("lora_A.", "lora_linear_layer.down.").replace("lora_B.", "lora_linear_layer.up."): value
            for key, value in tensors.items()
        },
    )
    yield "default", {key.replace(".weight", ".default.weight"): value for key, value in tensors.items()}
    kohya = {}
    for key, value in tensors.items():
        kohya[key.replace("lora_A", "lora_down").replace("lora_B", "lora_up")] = value
        kohya[key.rpartition(".lora_")[0] + ".alpha"] = torch.tensor(float(value.shape["lora_B" in key]))
    yield "dotted kohya", kohya
    turned = {}
    for key, value in tensors.items():
        component, _, rest = key.partition(".")
        module, side = rest.rpartition(".lora_")[::2]
        short = {"q_proj": "to_q_lora", "out_proj": "to_out_lora", "to_q": "to_q_lora", "to_out.0": "to_out_lora"}
        end = next(end for end in short if module.endswith(end))
        before = module.removesuffix("." + end) + (".processor" if component == "unet" else "")
        turned[f"{component}.{before}.{short[end]}.{'down' if side.startswith('A') else 'up'}.weight"] = value
    yield "processors", turned


def test_older_spellings_are_read(tmp_path, pipe):
    wanted = adapted(pipe, studio.LoRA(rank=2, targets=("to_q", "to_out.0", "q_proj", "out_proj")))
    tensors = load_file(studio.save(pipe, tmp_path / "a.safetensors"))
    studio.detach(pipe)
    for what, spelled in variants(tensors):
        assert what == "x" or len(spelled) >= len(tensors), what
        file = tmp_path / "b.safetensors"
        save_file({key: value.clone() for key, value in spelled.items()}, file)
        report = studio.load(pipe, file)
        assert report.ignored == {} and len(report.applied) == len(spelled), what
        assert relative(outputs(pipe), wanted) <= 1e-6, what
        studio.detach(pipe)


@pytest.mark.parametrize(
    "alpha",
    [
        torch.tensor(1.0),
        torch.tensor([1.0], dtype=torch.float16),
        torch.tensor(1),
        torch.tensor(1.0, dtype=torch.bfloat16),
    ],
)
def test_every_kind_of_alpha_is_read(tmp_path, pipe, alpha):
    wanted = adapted(pipe, studio.LoRA(rank=4, alpha=1.0, targets=("to_q",)))
    tensors = load_file(studio.save(pipe, tmp_path / "a.safetensors", format="kohya"))
    studio.detach(pipe)
    save_file(
        {key: alpha.clone() if key.endswith("alpha") else value for key, value in tensors.items()},
        tmp_path / "b.safetensors",
    )
    studio.load(pipe, tmp_path / "b.safetensors")
    assert torch.equal(outputs(pipe), wanted)


def test_a_missing_alpha_is_the_rank_layer_by_layer(tmp_path, pipe):
    adapted(pipe, studio.LoRA(rank=4, alpha=1.0, targets=("to_q", "to_k")))
    tensors = load_file(studio.save(pipe, tmp_path / "a.safetensors", format="kohya"))
    studio.detach(pipe)
    some = {key: value for key, value in tensors.items() if not key.endswith("to_k.alpha")}
    save_file(some, tmp_path / "b.safetensors")
    studio.load(pipe, tmp_path / "b.safetensors")
    config = studio.adapters(pipe)["default"].config
    sites = studio.adapters(pipe)["default"].sites
    assert {path[-4:]: config.scale_at(path.partition(".")[2]) for path in sites} == {"to_q": 0.25, "to_k": 1.0}


def test_a_tucker_locon_is_worked_into_its_pair(tmp_path):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(4, 6, 3, bias=False))
    x = torch.randn(1, 4, 7, 7)
    down, mid, up = torch.randn(2, 4, 1, 1), torch.randn(2, 2, 3, 3), torch.randn(6, 2, 1, 1)
    # LyCORIS' definition, as nested convolutions
    f = torch.nn.functional.conv2d
    wanted = net(x) + 0.5 * f(f(f(x, down), mid), up)
    file = tmp_path / "a.safetensors"
    save_file(
        {f"lycoris_0.lora_{name}.weight": value for name, value in (("down", down), ("mid", mid), ("up", up))}
        | {"lycoris_0.alpha": torch.tensor(1.0)},
        file,
    )
    report = studio.load(net, file)
    assert len(report.applied) == 4 and relative(net(x), wanted) <= 1e-6


def test_dora_per_output_and_per_input(tmp_path):
    """Of a square layer the axis with the ones tells which it is."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(6, 6, bias=False))
    x, weight = torch.randn(3, 6), net[0].weight.detach().clone()
    down, up, scale = torch.randn(2, 6), torch.randn(6, 2), torch.rand(6, 1) + 1
    parts = {"lycoris_0.lora_down.weight": down, "lycoris_0.lora_up.weight": up, "lycoris_0.dora_scale": scale}
    file = tmp_path / "a.safetensors"
    save_file(parts, file)
    assert studio.load(net, file).method == "dora"
    moved = weight + up @ down
    assert relative(net(x), x @ (moved * scale / moved.norm(dim=1, keepdim=True)).t()) <= 1e-5
    studio.detach(net)
    save_file({**parts, "lycoris_0.dora_scale": scale.t().contiguous()}, file)
    assert studio.load(net, file).method == "dora"
    assert studio.adapters(net)["default"].config.axis == "inputs"
    assert relative(net(x), x @ (moved * scale.t() / moved.norm(dim=0, keepdim=True)).t()) <= 1e-5


def test_lycoris_forms_of_lokr_and_ia3(tmp_path):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(6, 8, bias=False))
    x, weight = torch.randn(3, 6), net[0].weight.detach().clone()
    file = tmp_path / "a.safetensors"
    w1, w2 = torch.randn(2, 2), torch.randn(4, 3)
    # both parts whole: LyCORIS applies no scale, whatever alpha says
    save_file({"lycoris_0.lokr_w1": w1, "lycoris_0.lokr_w2": w2, "lycoris_0.alpha": torch.tensor(0.5)}, file)
    studio.load(net, file)
    assert relative(net(x), x @ (weight + torch.kron(w1, w2)).t()) <= 1e-6
    studio.detach(net)
    for on_input, gain in ((0, torch.randn(8)), (1, torch.randn(6))):
        save_file({"lycoris_0.weight": gain, "lycoris_0.on_input": torch.tensor(on_input)}, file)
        studio.load(net, file)
        wanted = x @ (weight * (1 + (gain[None] if on_input else gain[:, None]))).t()
        assert relative(net(x), wanted) <= 1e-6
        studio.detach(net)


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (lambda: torch.nn.Linear(6, 8), (3, 6)),
        (lambda: torch.nn.Conv2d(6, 8, 3, padding=1), (2, 6, 5, 5)),
        (lambda: torch.nn.Conv1d(6, 8, 3, stride=2, padding=2, padding_mode="circular", groups=2), (2, 6, 9)),
    ],
)
@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_lycoris_ia3_multiplies_the_weight_and_leaves_the_bias(tmp_path, layer, x, strength):
    """``W' = W + s g W``, the bias as it is: what LyCORIS computes and A1111 merges."""
    torch.manual_seed(0)
    net, x, gain = torch.nn.Sequential(layer()), torch.randn(*x), torch.randn(8)
    file = tmp_path / "a.safetensors"
    save_file({"lycoris_0.weight": gain, "lycoris_0.on_input": torch.tensor(0)}, file)
    theirs = copy.deepcopy(net)
    with torch.no_grad():
        theirs[0].weight.mul_((1 + strength * gain).view(-1, *[1] * (theirs[0].weight.dim() - 1)))
    studio.load(net, file, strength=strength)
    assert relative(net(x), theirs(x)) <= 1e-6
    studio.save(net, tmp_path / "b.safetensors", format="kohya")
    assert torch.equal(load_file(tmp_path / "b.safetensors")["lycoris_0.weight"].flatten(), gain + 1 - 1)
    with pytest.raises(DoesNotFit, match="multiplies the bias|PEFT.s covers"):
        studio.save(net, tmp_path / "folder", format="peft")
    studio.bake(net)
    assert relative(net(x), theirs(x)) <= 1e-6


def test_a_matrix_serves_a_pointwise_convolution_and_the_reverse(tmp_path):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(4, 6, 1), torch.nn.Flatten(1), torch.nn.Linear(24, 5))
    pair, other = (torch.randn(2, 4), torch.randn(6, 2)), (torch.randn(2, 24, 1, 1), torch.randn(5, 2, 1, 1))
    file = tmp_path / "a.safetensors"
    save_file(
        {
            "0.lora_A.weight": pair[0],
            "0.lora_B.weight": pair[1],
            "2.lora_A.weight": other[0],
            "2.lora_B.weight": other[1],
        },
        file,
    )
    x = torch.randn(1, 4, 2, 2)
    middle = net[0](x) + torch.einsum("or,ri,bihw->bohw", pair[1], pair[0], x)
    wanted = net[2](middle.flatten(1)) + middle.flatten(1) @ (other[1].flatten(1) @ other[0].flatten(1)).t()
    studio.load(net, file)
    assert relative(net(x), wanted) <= 1e-6


def test_lora_metadata_of_diffusers_wins_over_ours_when_it_was_edited(tmp_path, pipe):
    """What another program reads is what counts."""
    adapted(pipe, studio.LoRA(rank=4, alpha=1.0, targets=("to_q",)))
    file = studio.save(pipe, tmp_path / "a.safetensors")
    studio.detach(pipe)
    said = dict(studio.inspect(file).metadata)
    table = {**json.loads(said["lora_adapter_metadata"]), "unet.lora_alpha": 8}
    save_file(load_file(file), file, metadata={**said, "lora_adapter_metadata": json.dumps(table)})
    studio.load(pipe, file)
    assert studio.adapters(pipe)["default"].config.alpha == 8.0
