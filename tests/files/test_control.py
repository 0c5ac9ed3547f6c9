"""Control LoRAs of Flux: pairs with biases on every layer, norms that are replaced, a wider input."""

from __future__ import annotations

import pytest
import torch
from diffusers import FluxTransformer2DModel
from safetensors.torch import save_file
from torch import nn

import studio
from studio.errors import DoesNotFit, PartialLoad, StudioError
from studio.files.names import Names
from tests.support.tiny_pipelines import build


def transformer(channels=128):
    """As the control models are: pictures and what controls them side by side, so twice the inputs."""
    config = {**build("flux1").transformer.config, "in_channels": channels, "out_channels": 64}
    torch.manual_seed(0)
    return FluxTransformer2DModel.from_config(config).eval()


def control_file(model, place):
    """The keys of flux1-canny-dev-lora, at the sizes of a model; native name -> our paths."""
    draw, tensors, natives = torch.Generator().manual_seed(1), {}, Names(model).native.values()
    for native in {one.name: one for one in natives}.values():
        layers = [model.get_submodule(path) for path in native.paths]
        if not isinstance(layers[0], nn.Linear):
            norm = layers[0].weight
            tensors[f"{native.name}.scale"] = 1 + 0.2 * torch.randn(norm.shape, generator=draw)
            continue
        rows = sum(layer.out_features for layer in layers)
        tensors[f"{native.name}.lora_A.weight"] = 0.2 * torch.randn(4, layers[0].in_features, generator=draw)
        tensors[f"{native.name}.lora_B.weight"] = 0.2 * torch.randn(rows, 4, generator=draw)
        tensors[f"{native.name}.lora_B.bias"] = 0.2 * torch.randn(rows, generator=draw)
    save_file(tensors, place)
    return tensors


def by_hand(model, tensors):
    """What BFL's LinearLora computes, ``W x + b + B A x + bias`` at scale 1, and the norms, folded in float64."""
    for native in {one.name: one for one in Names(model).native.values()}.values():
        layers = [model.get_submodule(path) for path in native.paths]
        with torch.no_grad():
            if f"{native.name}.scale" in tensors:
                layers[0].weight.copy_(tensors[f"{native.name}.scale"])
                continue
            down, up, bias = (tensors[f"{native.name}.lora_{part}"].double() for part in ("A.weight", "B.weight",
                                                                                          "B.bias"))  # fmt: skip
            change = up @ down
            if native.name == "final_layer.adaLN_modulation.1":  # shift and scale change places
                change, bias = (torch.cat(one.chunk(2)[::-1]) for one in (change, bias))
            begin = 0
            for layer in layers:
                end = begin + layer.out_features
                layer.weight.copy_(layer.weight.double() + change[begin:end])
                layer.bias.copy_(layer.bias.double() + bias[begin:end])
                begin = end


def predict(model):
    draw = torch.Generator().manual_seed(2)
    ids = torch.zeros(4, 3)
    ids[:, 1], ids[:, 2] = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
    with torch.no_grad():
        return model(
            hidden_states=torch.randn(1, 4, model.config.in_channels, generator=draw),
            encoder_hidden_states=torch.randn(1, 3, model.config.joint_attention_dim, generator=draw),
            pooled_projections=torch.randn(1, model.config.pooled_projection_dim, generator=draw),
            timestep=torch.tensor([0.5]), guidance=torch.tensor([3.5]), img_ids=ids, txt_ids=torch.zeros(3, 3),
        ).sample  # fmt: skip


def test_every_key_of_it_acts_as_it_does_there(tmp_path):
    model = transformer()
    file = tmp_path / "control.safetensors"
    tensors = control_file(model, file)
    base = predict(model)
    report = studio.load(model, file)
    assert not report.ignored and set(report.applied) == set(tensors) and report.method == "lora+lntuning"
    live = predict(model)
    assert studio.inspect(file).method == "lora+lntuning" and studio.inspect(file).family == "flux1"
    again = studio.save(model, tmp_path / "again.safetensors")
    studio.detach(model)
    assert torch.equal(predict(model), base)
    studio.load(model, again)
    assert torch.equal(predict(model), live)
    studio.detach(model)
    by_hand(model, tensors)
    wanted = predict(model)
    assert (live - wanted).norm() < 1e-5 * wanted.norm() and (base - wanted).norm() > 0.1 * wanted.norm()


def test_on_the_plain_model_its_wider_input_is_named(tmp_path):
    file = tmp_path / "control.safetensors"
    control_file(transformer(), file)
    plain = transformer(64)
    with pytest.raises((DoesNotFit, PartialLoad), match="img_in"):
        studio.load(plain, file)
    assert not studio.adapters(plain)


def test_a_checkpoint_of_the_same_names_is_no_adapter(tmp_path):
    names = ("double_blocks.0.img_attn.norm.query_norm.scale", "double_blocks.0.img_attn.qkv.weight")
    save_file({name: torch.ones(4, 4) for name in names}, tmp_path / "whole.safetensors")
    with pytest.raises(StudioError):
        studio.load(transformer(64), tmp_path / "whole.safetensors")
    assert not studio.inspect(tmp_path / "whole.safetensors").method
