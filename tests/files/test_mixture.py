"""Files of several methods: each layer acts as its own method says, and all of them are one adapter."""

from __future__ import annotations

import logging
from collections import Counter

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import studio
from studio.adapters import METHODS
from studio.adapters.contract.mixed import Mixed
from studio.errors import BadConfig, DoesNotFit, PartialLoad, UnsupportedLayer
from studio.files.convert import convert
from tests.support.tiny_pipelines import build
from tiny import language, shaken

SOURCE = torch.Generator().manual_seed(0)


def draw(*shape):
    return torch.randn(*shape, generator=SOURCE)


class Net(nn.Module):
    """A convolution, norms and projections."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.group = nn.Conv2d(8, 16, 3, padding=1), nn.GroupNorm(4, 16)
        self.wide, self.norm, self.square = nn.Linear(16, 32), nn.LayerNorm(32), nn.Linear(32, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.tanh(self.group(self.conv(x)))
        return self.square(torch.tanh(self.norm(self.wide(h.flatten(2).mT))))


def sample():
    return torch.randn(2, 8, 5, 5, generator=torch.Generator().manual_seed(2))


def test_lycoris_own_network_of_three_algorithms_and_norms(tmp_path):
    """Its presets give modules algorithms of their own, and ``train_norm`` adds the norms: it computes the same."""
    lycoris = pytest.importorskip("lycoris")
    logging.getLogger("LyCORIS").disabled = True
    lycoris.LycorisNetwork.apply_preset(
        {
            "target_name": ["conv", "wide", "square"],
            "name_algo_map": {"conv": {"algo": "lokr", "factor": 2}, "wide": {"algo": "loha"}},
        }
    )
    net = Net()
    made = lycoris.create_lycoris(
        net, 1.0, algo="locon", linear_dim=4, linear_alpha=2.0, conv_dim=4, conv_alpha=2.0, dropout=0.0, train_norm=True
    )
    made.apply_to()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.2 * draw(*parameter.shape))
        made.eval()
        expected = net(sample())
    tensors = {key: tensor.detach().clone().contiguous() for key, tensor in made.state_dict().items()}
    parts = Counter(key.partition(".")[2].partition("_")[0] for key in tensors)
    assert {"hada", "lokr", "lora", "w"} <= parts.keys()
    save_file(tensors, tmp_path / "a.safetensors")
    other = Net()
    base = other(sample())
    report = studio.load(other, tmp_path / "a.safetensors")
    assert not report.ignored and set(report.applied) == set(tensors)
    assert set(report.method.split("+")) == {"full", "loha", "lokr", "lora"}
    assert torch.allclose(other(sample()), expected, atol=1e-5) and (base - expected).abs().max() > 1e-2


PAIR = ("lora_down.weight", "lora_up.weight")


def mixed(pipe, denoiser="unet"):
    """kohya's keys: pairs on to_q, LoHa on to_v, and the change of some norms."""
    tensors = {}
    for path, module in pipe.components[denoiser].named_modules():
        name = f"lora_unet_{path.replace('.', '_')}"
        if path.endswith("attn1.to_q"):
            tensors |= {f"{name}.{PAIR[0]}": draw(2, module.in_features) / 4, f"{name}.alpha": torch.tensor(1.0)}
            tensors |= {f"{name}.{PAIR[1]}": draw(module.out_features, 2) / 4}
        elif path.endswith("attn1.to_v"):
            for part, shape in (("a", (module.out_features, 2)), ("b", (2, module.in_features))):
                tensors |= {f"{name}.hada_w{one}_{part}": draw(*shape) / 2 for one in (1, 2)}
            tensors[f"{name}.alpha"] = torch.tensor(2.0)
        elif path.endswith(("norm1", "norm2")) and isinstance(module, (nn.LayerNorm, nn.GroupNorm)):
            tensors |= {f"{name}.{part}": draw(*module.weight.shape) / 8 for part in ("w_norm", "b_norm")}
    return tensors


@pytest.fixture(scope="module")
def pipe():
    return build("sd1")


@pytest.fixture
def file(pipe, tmp_path):
    save_file(mixed(pipe), tmp_path / "mixed.safetensors")
    yield tmp_path / "mixed.safetensors"
    studio.detach(pipe)


def predict(pipe):
    generator = torch.Generator().manual_seed(5)
    unet = pipe.unet
    x = torch.randn(2, unet.config.in_channels, 8, 8, generator=generator)
    text = torch.randn(2, 5, unet.config.cross_attention_dim, generator=generator)
    with torch.no_grad():
        return unet(x, 10, encoder_hidden_states=text).sample


def by_hand(pipe, tensors, strength):
    """What it does to the weights, by the formulas of its methods in float64."""
    changed = {}
    for path, _ in pipe.unet.named_modules():
        name = f"lora_unet_{path.replace('.', '_')}"
        own = {
            key.partition(".")[2]: tensor.double() for key, tensor in tensors.items() if key.partition(".")[0] == name
        }
        if PAIR[0] in own:
            changed[f"{path}.weight"] = 0.5 * own[PAIR[1]] @ own[PAIR[0]]
        elif "hada_w1_a" in own:
            first, second = (own[f"hada_w{one}_a"] @ own[f"hada_w{one}_b"] for one in (1, 2))
            changed[f"{path}.weight"] = first * second
        elif "w_norm" in own:
            changed |= {f"{path}.weight": own["w_norm"], f"{path}.bias": own["b_norm"]}
    parameters = dict(pipe.unet.named_parameters())
    with torch.no_grad():
        for path, change in changed.items():
            parameters[path].copy_(parameters[path].double() + strength * change)
    return len(changed)


def test_every_layer_acts_by_its_own_formula_at_any_strength(pipe, file):
    """Live, baked, and the formulas folded into the weights by hand give one result; the base comes back bitwise."""
    before = {key: tensor.clone() for key, tensor in pipe.unet.state_dict().items()}
    base = predict(pipe)
    report = studio.load(pipe, file, name="dog", strength=0.7)
    assert not report.ignored and "several methods" in report.notes[-1]
    live = predict(pipe)
    studio.bake(pipe)
    baked = predict(pipe)
    studio.unbake(pipe)
    studio.detach(pipe)
    assert torch.equal(predict(pipe), base)
    assert by_hand(pipe, load_file(file), 0.7) > 20
    right = predict(pipe)
    pipe.unet.load_state_dict(before)
    scale = (right - base).norm()
    assert scale > 1e-2 and (live - right).norm() < 1e-5 * scale + 1e-5 and (baked - right).norm() < 1e-5 * scale + 1e-5
    assert all(torch.equal(tensor, before[key]) for key, tensor in pipe.unet.state_dict().items())


@pytest.mark.parametrize("format", ["diffusers", "kohya"])
def test_saved_and_loaded_it_is_the_same(pipe, file, tmp_path, format):
    report = studio.load(pipe, file, name="dog")
    live = predict(pipe)
    first = studio.save(pipe, tmp_path / "first.safetensors", name="dog", format=format)
    found = studio.inspect(first)
    assert found.method == report.method == "full+loha+lora" and not found.unread
    assert isinstance(found.config, Mixed) and found.config.label == found.method
    studio.detach(pipe)
    again = studio.load(pipe, first, name="dog")
    assert not again.ignored and again.sites == report.sites
    assert torch.equal(predict(pipe), live)
    second = studio.save(pipe, tmp_path / "second.safetensors", name="dog", format=format)
    assert first.read_bytes() == second.read_bytes()


def test_converted_there_and_back_it_has_the_same_bytes(pipe, file, tmp_path):
    assert convert(file, tmp_path / "d.safetensors", format="diffusers", base=pipe).error == 0
    report = convert(tmp_path / "d.safetensors", tmp_path / "k.safetensors", format="kohya", base=pipe)
    assert report.error == 0 and report.method == "full+loha+lora"
    first, last = load_file(file), load_file(tmp_path / "k.safetensors")
    assert first.keys() == last.keys() and all(torch.equal(first[key], last[key]) for key in first)


def test_combined_with_another_it_is_their_blend(pipe, file):
    studio.load(pipe, file, name="dog")
    studio.attach(pipe, studio.LoRA(rank=2, targets="attention", init="orthogonal"), name="ink")
    with torch.no_grad():
        for tensor in studio.state(pipe, "ink").values():
            tensor.copy_(draw(*tensor.shape) / 4)
    blend = {"dog": 0.6, "ink": -0.5}
    studio.blend(pipe, blend)
    live = predict(pipe)
    studio.combine(pipe, blend, name="both")
    studio.blend(pipe, "both")
    assert (predict(pipe) - live).norm() < 1e-5 * live.norm()


def test_trained_on_it_learns_in_all_of_its_methods(pipe, file):
    studio.load(pipe, file, name="dog", trainable=True)
    before = {key: tensor.detach().clone() for key, tensor in studio.state(pipe, "dog").items()}
    trained = [parameter for parameter in pipe.unet.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.1)
    x, text = draw(1, pipe.unet.config.in_channels, 8, 8), draw(1, 5, pipe.unet.config.cross_attention_dim)
    pipe.unet(x, 10, encoder_hidden_states=text).sample.square().mean().backward()
    optimizer.step()
    moved = [key for key, tensor in studio.state(pipe, "dog").items() if not torch.equal(tensor, before[key])]
    assert {key.rpartition(".")[2] for key in moved} >= {"down", "up", "w1_a", "w2_b", "weight", "bias"}


# -- refusals ------------------------------------------------------------------------------------------------------


def test_a_folder_of_peft_is_of_one_method(pipe, file, tmp_path):
    studio.load(pipe, file, name="dog")
    with pytest.raises(DoesNotFit, match=r"holds one method, and this adapter is full\+loha\+lora"):
        studio.save(pipe, tmp_path / "folder", name="dog", format="peft")
    assert not (tmp_path / "folder").exists()


def test_two_methods_in_a_file_that_states_one_are_refused(pipe, tmp_path):
    """A file of the studio's, to which another program has added layers: they are named."""
    studio.attach(pipe, studio.LoRA(rank=2, targets=("attn1.to_q",)), name="dog")
    file = studio.save(pipe, tmp_path / "a.safetensors", name="dog", format="kohya")
    studio.detach(pipe)
    norms = {key: tensor for key, tensor in mixed(pipe).items() if key.endswith("_norm")}
    metadata = dict(studio.inspect(file).metadata)
    save_file({**load_file(file), **norms}, tmp_path / "b.safetensors", metadata=metadata)
    with pytest.raises(PartialLoad, match="it is of the method full, the rest of the file is lora"):
        studio.load(pipe, tmp_path / "b.safetensors")
    assert not studio.adapters(pipe)


def test_parts_are_of_several_methods_and_layers_of_one(pipe):
    with pytest.raises(BadConfig, match="at least two"):
        Mixed(parts=(studio.LoRA(),))
    with pytest.raises(BadConfig, match="a is in lora and in full"):
        Mixed(parts=(studio.LoRA(targets=("a",)), studio.Full(targets=("a",))))
    with pytest.raises(BadConfig, match="of the method lora, with different settings"):
        studio.attach(pipe, Mixed(parts=(studio.LoRA(targets=("*to_q",)), studio.LoRA(rank=2, targets=("*to_k",)))))
    assert not studio.adapters(pipe)
    with pytest.raises(BadConfig, match="prompttuning sits on a model as a whole"):
        studio.attach(pipe, Mixed(parts=(studio.PromptTuning(), studio.Full(targets=("b",)))))


@pytest.mark.parametrize("method", ["lora", "adalora", "vera", "ia3"])
def test_several_methods_are_attached_trained_and_saved_as_one(method, tmp_path):
    """Pairs in a body and the change of its head: presets become paths, and the file gives them back."""
    model = language("bert")
    both = Mixed(parts=(METHODS[method](targets="attention"), studio.Full(targets=("classifier",))))
    found = studio.attach(model, both, name="a")
    assert found.sites[-1] == "classifier" and found.parameters > 16 * 2 + 2
    shaken(model, "a")
    tokens = torch.arange(2, 10)[None]
    wanted = model(tokens).logits
    file = studio.save(model, tmp_path / "a.safetensors", name="a")
    studio.detach(model)
    assert studio.load(model, file).method == f"{method}+full"
    torch.testing.assert_close(model(tokens).logits, wanted)


def test_methods_that_diffusers_knows_are_saved_together_and_do_not_grow(tmp_path):
    """Its table of settings is of one method; the studio's own metadata keeps both."""
    model = language("bert")
    studio.attach(model, Mixed(parts=(studio.LoRA(targets=("*query",)), studio.DoRA(targets=("*value",)))), name="a")
    shaken(model, "a")
    tokens = torch.arange(2, 10)[None]
    wanted = model(tokens).logits
    with pytest.raises(UnsupportedLayer, match=r"several methods \(lora\+dora\), which do not grow together"):
        studio.grow(model, "a", 32)
    file = studio.save(model, tmp_path / "a.safetensors", name="a")
    studio.detach(model)
    assert studio.load(model, file).method == "lora+dora"
    torch.testing.assert_close(model(tokens).logits, wanted)
