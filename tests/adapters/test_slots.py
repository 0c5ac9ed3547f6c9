"""Slots: adapters of any rank and method in tensors that stay, so that a compiled model stays compiled."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import studio
import tiny_pipelines
from studio.errors import BadConfig, DoesNotFit, UnknownName

X = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(5))
LAYERS = ("0", "2")


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 6)).requires_grad_(False)


def shake(model, name, seed=1):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in studio.state(model, name).values():
            if tensor.requires_grad:
                tensor += 0.3 * torch.randn(tensor.shape, generator=generator)


def saved(make, config, file, seed=1):
    """A file of an adapter, and what the model computes with it at strength 0.7."""
    model = make()
    studio.attach(model, config, name="dog", seed=seed)
    shake(model, "dog", seed)
    studio.save(model, file, name="dog")
    studio.blend(model, {"dog": 0.7})
    return file, model


CONFIGS = {
    "lora": studio.LoRA(rank=2, targets=LAYERS),
    "alpha": studio.LoRA(rank=3, alpha=5.0, targets=("2",)),
    "rank-stabilised": studio.LoRA(rank=4, rank_stabilized=True, targets=LAYERS),
    "pissa": studio.LoRA(rank=2, init="pissa", targets=LAYERS),
    "loha": studio.LoHa(rank=2, targets=LAYERS),
    "lokr": studio.LoKr(rank=1, targets=("0",)),
    "hra": studio.HRA(rank=2, targets=LAYERS),
    "adalora": studio.AdaLoRA(rank=3, targets=LAYERS),
}


@torch.no_grad()
def test_twenty_swaps_compile_nothing(tmp_path):
    model = net()
    places = studio.slots(model, count=2, rank=8, targets=LAYERS)
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(model, backend=backend, fullgraph=True)
    bare = compiled(X)
    assert torch.allclose(bare, net()(X), atol=1e-6)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for number in range(20):
            word = list(CONFIGS)[number % len(CONFIGS)]
            file, alone = saved(net, CONFIGS[word], tmp_path / f"{number}.safetensors", number)
            studio.load(model, file, name="dog", into=places)
            places.blend({"dog": 0.7})
            assert torch.allclose(compiled(X), alone(X), atol=1e-5), word
            places.blend({"dog": studio.Strength(0.7, blocks={"2": 0.5})})
            studio.blend(alone, {"dog": studio.Strength(0.7, blocks={"2": 0.5})} if word != "lokr" else {"dog": 0.7})
            assert torch.allclose(compiled(X), alone(X), atol=1e-5), word
            if number % 3 == 0:
                places.empty("dog")
                assert torch.allclose(compiled(X), bare, atol=1e-6)
    assert len(graphs) == 1


@pytest.mark.slow
@torch.no_grad()
def test_twenty_swaps_compile_nothing_in_a_pipeline_text_encoder_included(tmp_path):
    parts = ["unet", "text_encoder"]
    pipe = tiny_pipelines.build("sd1")
    places = studio.slots(pipe, count=2, rank=8, components=parts)
    unet, encoder = (torch.compile(part, backend="aot_eager") for part in (pipe.unet, pipe.text_encoder))
    ids, noisy = torch.arange(77)[None] % 40, torch.randn(1, 4, 8, 8)

    def run(unet, encoder):
        return unet(noisy, 3, encoder(ids)[0]).sample

    bare = run(unet, encoder)
    configs = [
        (studio.LoRA(rank=rank, targets=targets), chosen)
        for rank, targets, chosen in ((1, "attention", parts), (4, ("to_q",), ["unet"]), (8, ("q_proj",), parts[1:]))
    ] + [(studio.LoHa(rank=2), parts), (studio.AdaLoRA(rank=3), ["unet"])]
    with torch._dynamo.config.patch(error_on_recompile=True):
        for number in range(20):
            config, chosen = configs[number % len(configs)]
            alone = tiny_pipelines.build("sd1")
            studio.attach(alone, config, name="dog", seed=number, components=chosen)
            shake(alone, "dog", number)
            file = studio.save(alone, tmp_path / f"{number}.safetensors", name="dog")
            studio.load(pipe, file, name=f"a{number % 2}", into=places)
            strength = studio.Strength(0.05 * number, text_encoder=0.5)
            places.blend({f"a{number % 2}": strength})
            studio.blend(alone, {"dog": strength if "text_encoder" in chosen else 0.05 * number})
            expected = run(alone.unet, alone.text_encoder)
            assert torch.allclose(run(unet, encoder), expected, atol=1e-3)
        places.blend({})
        assert torch.allclose(run(unet, encoder), bare, atol=1e-6)


@torch.no_grad()
def test_both_slots_act_and_one_can_be_replaced(tmp_path):
    model = net()
    places = studio.slots(model, count=2, rank=4, targets=LAYERS)
    files = {}
    for seed, name in enumerate(("dog", "ink", "new")):
        files[name], _ = saved(net, CONFIGS["lora"], tmp_path / f"{name}.safetensors", seed)
    for name in ("dog", "ink"):
        studio.load(model, files[name], name=name, strength=0.5, into=places)
    other = net()
    for name in ("dog", "ink"):
        studio.load(other, files[name], name=name, strength=0.5)
    assert torch.allclose(model(X), other(X), atol=1e-6)
    with pytest.raises(DoesNotFit, match="all 2 slots are taken, by dog, ink"):
        studio.load(model, files["new"], name="new", into=places)
    studio.load(model, files["new"], name="ink", strength=0.5, into=places)
    studio.detach(other, "ink")
    studio.load(other, files["new"], name="new", strength=0.5)
    assert torch.allclose(model(X), other(X), atol=1e-6)
    places.remove()
    assert torch.equal(model(X), net()(X)) and not studio.adapters(model)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (studio.LoRA(rank=5, targets=("0",)), "rank 5, and the slots have rank 4"),
        (studio.OFT(block_size=4, targets=("0",)), "OFT on 0 makes a change of rank"),
        (studio.BitFit(targets=("0",)), "changes the bias"),
        (studio.LoRA(rank=2, targets=("3",)), "on 3, where there is no slot"),
    ],
)
def test_what_a_slot_does_not_hold_is_refused_and_nothing_changes(tmp_path, config, says):
    def make():
        return nn.Sequential(*net(), nn.Linear(6, 6))

    file, _ = saved(make, config, tmp_path / "a.safetensors")
    model = make()
    places = studio.slots(model, rank=4, targets=LAYERS)
    studio.load(model, saved(make, CONFIGS["lora"], tmp_path / "b.safetensors")[0], name="kept", into=places)
    before = model(X)
    places.empty("kept")
    with pytest.raises(DoesNotFit, match=says):
        studio.load(model, file, name="dog", into=places)
    assert places.taken == {}
    studio.load(model, tmp_path / "b.safetensors", name="kept", into=places)
    assert torch.equal(model(X), before)


def test_names_and_counts_are_checked():
    model = net()
    with pytest.raises(BadConfig, match="count=0"):
        studio.slots(model, count=0, targets=LAYERS)
    places = studio.slots(model, rank=4, targets=LAYERS)
    with pytest.raises(UnknownName, match="in no slot"):
        places.empty("dog")
    with pytest.raises(UnknownName, match="'slot-0' is an empty slot"):
        places.blend({"slot-0": 1.0})
    with pytest.raises(UnknownName, match="'dog'"):
        places.blend({"dog": 1.0})
