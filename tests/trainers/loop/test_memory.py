"""What a run can do without on its device: blocks that wait elsewhere, gradients that are used at once. Same bits."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

import studio
from packings import prepare
from studio.adapters import AdaLoRA, DoRA, LoRA
from studio.errors import BadConfig, DoesNotFit
from studio.families import components, open_base
from studio.families.language import open_language_base
from studio.trainers import CausalLM, DreamBooth, Plan, train
from studio.trainers.loop.group import Group
from studio.trainers.loop.steps import _check_fused
from tiny_pipelines import build

STEPS = 3

KINDS = [
    ("unet", True), ("mmdit", False), ("llama", False),
    *(pytest.param(*one, marks=pytest.mark.slow) for one in (("unet", False), ("mmdit", True), ("llama", True))),
]  # fmt: skip
"""What is trained, and whether its blocks compute again in the backward pass."""


@pytest.fixture(scope="module")
def sd3(tmp_path_factory):
    place = tmp_path_factory.mktemp("bases") / "sd3"
    build("sd3").save_pretrained(place)
    return place


@pytest.fixture
def texts(tmp_path):
    rows = [{"prompt": f"What is {n} + {n}?", "completion": f"It is {2 * n}."} for n in range(6)]
    file = tmp_path / "texts.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows))
    return file


@pytest.fixture
def tasks(tiny_base, sd3, tiny_language, photos, texts):
    """A small task on a U-Net, an MMDiT and a Llama."""

    def make(kind, **more):
        if kind == "llama":
            return CausalLM(base=tiny_language, data=texts, **more)
        return DreamBooth(
            base=tiny_base if kind == "unet" else sd3, instance_images=photos, instance_prompt="a photo of sks robot",
            preview_prompts=("a photo of sks robot",), preview_steps=1, **more,
        )  # fmt: skip

    return make


@pytest.fixture
def settings(tmp_path):
    return {
        "steps": STEPS, "batch_size": 2, "quiet": True, "cache": str(tmp_path / "cache"), "checkpoint_every": 0,
        "learning_rate": 1e-2,
    }  # fmt: skip


def blocks_of(task):
    from studio.families.blocks import running_blocks

    if isinstance(task, CausalLM):
        return len(running_blocks(open_language_base(task.base).model))
    base = open_base(task.base)
    return len(running_blocks(base.pipe.components[base.family.denoiser]))


@pytest.mark.parametrize(("kind", "checkpointed"), KINDS)
def test_blocks_that_wait_change_no_bit(tasks, settings, tmp_path, kind, checkpointed):
    task = tasks(kind)
    settings |= {"gradient_checkpointing": checkpointed, "adapter": LoRA(rank=2, dropout=0.1)}
    plain = train(task, output=tmp_path / "plain", **settings)
    for count in (2, blocks_of(task)):
        swapped = train(task, output=tmp_path / str(count), blocks_to_swap=count, **settings)
        assert swapped.adapter.read_bytes() == plain.adapter.read_bytes() and swapped.losses == plain.losses
    for one in sorted((tmp_path / "plain" / "samples").rglob("*.png")):  # drawn by the same blocks
        other = tmp_path / str(count) / one.relative_to(tmp_path / "plain")
        assert one.read_bytes() == other.read_bytes()


def test_a_pipeline_object_comes_back_bit_for_bit(tasks, settings, tmp_path):
    pipe = open_base(tasks("unet").base).pipe
    task = tasks("unet", text_encoder=True)
    parts = components(pipe)

    def held():
        return [
            (id(tensor), name, tensor.requires_grad, tensor.detach().clone(), len(part._forward_pre_hooks))
            for part in parts.values()
            for name, tensor in (*part.named_parameters(), *part.named_buffers())
        ]

    before = held()
    train(
        dataclasses.replace(task, base=pipe), output=tmp_path / "a", blocks_to_swap=4, adapter=LoRA(rank=2), **settings
    )
    after = held()
    assert [one[:3] for one in before] == [one[:3] for one in after]
    assert all(torch.equal(one[3], two[3]) and one[4] == two[4] for one, two in zip(before, after, strict=True))


@pytest.mark.parametrize("config", [DoRA(rank=2), AdaLoRA(rank=2)], ids=["dora", "adalora"])
def test_methods_that_read_weights_or_gradients_see_the_same(tasks, settings, tmp_path, config):
    runs = [
        train(tasks("unet"), output=tmp_path / str(count), blocks_to_swap=count, adapter=config, **settings)
        for count in (0, 3)
    ]
    assert runs[0].adapter.read_bytes() == runs[1].adapter.read_bytes()


def test_offloaded_activations_and_growth_go_along(tasks, settings, tmp_path):
    settings |= {"offload_activations": True, "grow": {2: 4}, "adapter": LoRA(rank=2)}
    runs = [train(tasks("unet"), output=tmp_path / str(count), blocks_to_swap=count, **settings) for count in (0, 5)]
    assert runs[0].adapter.read_bytes() == runs[1].adapter.read_bytes()


@pytest.mark.parametrize(
    ("kind", "way"),
    [("unet", "fp8"), ("llama", "nf4"), *(pytest.param(*one, marks=pytest.mark.slow) for one in
     (("unet", "nf4"), ("llama", "fp8"), ("mmdit", "fp8"), ("mmdit", "nf4"), ("llama", "grid4")))],
)  # fmt: skip
def test_quantised_blocks_wait_too(tasks, settings, tmp_path, kind, way):
    prepare(way)
    task = tasks(kind, quantize=way)
    settings |= {"gradient_checkpointing": True, "adapter": LoRA(rank=2)}
    runs = [train(task, output=tmp_path / str(count), blocks_to_swap=count, **settings) for count in (0, 2)]
    assert runs[0].adapter.read_bytes() == runs[1].adapter.read_bytes() and runs[0].losses == runs[1].losses


def test_quantised_blocks_that_cannot_wait_are_refused_before_anything_is_trained(tasks, settings, tmp_path):
    prepare("int8")
    with pytest.raises(DoesNotFit, match="gradient_checkpointing=true too"):
        train(tasks("unet", quantize="fp8"), output=tmp_path / "a", blocks_to_swap=2, **settings)
    with pytest.raises(DoesNotFit, match="8-bit layers cannot wait elsewhere than they compute"):
        train(
            tasks("unet", quantize="int8"), output=tmp_path / "b", blocks_to_swap=2, gradient_checkpointing=True,
            **settings,
        )  # fmt: skip


def test_more_blocks_than_there_are_are_refused(tasks, settings, tmp_path):
    with pytest.raises(DoesNotFit, match="blocks_to_swap=99: the model has 2 blocks; give at most that"):
        train(tasks("llama"), output=tmp_path / "a", blocks_to_swap=99, **settings)
    assert not (tmp_path / "a" / "checkpoints").exists()


def test_a_run_goes_on_with_other_blocks_away(tasks, settings, tmp_path):
    """What waits where is no part of what is learned."""
    settings |= {"adapter": LoRA(rank=2), "checkpoint_every": 1}
    whole = train(tasks("llama"), output=tmp_path / "whole", **settings)
    train(tasks("llama"), output=tmp_path / "run", **{**settings, "steps": 2})
    again = train(tasks("llama"), output=tmp_path / "run", further=True, blocks_to_swap=2, **settings)
    assert len(again.losses) == STEPS and again.losses[:2] == whole.losses[:2]


# -- steps in the backward pass --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "checkpointed"), KINDS)
def test_steps_in_the_backward_pass_change_no_bit(tasks, settings, tmp_path, kind, checkpointed):
    settings |= {"gradient_checkpointing": checkpointed, "clip": 0.0, "adapter": DoRA(rank=2), "ema": 0.5}
    runs = [
        train(tasks(kind), output=tmp_path / str(way), fused_backward_pass=way, **settings) for way in (False, True)
    ]
    assert runs[0].adapter.read_bytes() == runs[1].adapter.read_bytes() and runs[0].losses == runs[1].losses
    logs = [[json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()] for run in runs]
    for one, two in zip(*logs, strict=True):
        assert one["gradient_norm"] == pytest.approx(two["gradient_norm"], rel=1e-5)


@pytest.mark.parametrize("optimizer", ["lora-plus", "lora-fa"])
def test_with_every_optimizer_growth_and_blocks_that_wait(tasks, settings, tmp_path, optimizer):
    settings |= {"clip": 0.0, "adapter": LoRA(rank=2), "optimizer": optimizer}
    settings |= {"grow": {2: 4}} if optimizer == "lora-plus" else {}
    runs = [
        train(tasks("unet"), output=tmp_path / str(way), fused_backward_pass=way, blocks_to_swap=3 * way, **settings)
        for way in (False, True)
    ]
    assert runs[0].adapter.read_bytes() == runs[1].adapter.read_bytes()


def test_layers_that_do_not_grow_are_stepped_once(tasks, settings, tmp_path):
    """They keep their tensors, and would keep the hooks of the optimizer before, too."""
    settings |= {"steps": 4, "clip": 0.0, "grow": {2: 4}, "adapter": LoRA(rank=2, rank_pattern={"*q_proj": 6})}
    runs = [
        train(tasks("llama"), output=tmp_path / str(way), fused_backward_pass=way, **settings) for way in (False, True)
    ]
    assert runs[0].adapter.read_bytes() == runs[1].adapter.read_bytes()


@pytest.mark.parametrize(
    "more, said",
    [({}, "set clip=0"), ({"clip": 0.0, "accumulation": 2}, "accumulation=2 passes make one step"),
     ({"clip": 0.0, "sharding": "full"}, "sharding='full' divides")],
)  # fmt: skip
def test_steps_before_all_gradients_are_there_are_refused_by_name(more, said):
    with pytest.raises(BadConfig, match=f"fused_backward_pass=True.*{said}"):
        Plan(fused_backward_pass=True, **more)
    with pytest.raises(BadConfig, match="blocks_to_swap must be"):
        Plan(blocks_to_swap=-1)
    with pytest.raises(BadConfig, match="blocks_to_swap=2: blocks_to_swap must be 0 where sharding='full'"):
        Plan(blocks_to_swap=2, sharding="full")


def test_methods_and_processes_that_need_all_gradients_are_refused(tasks, settings, tmp_path):
    with pytest.raises(DoesNotFit, match="AdaLoRA looks at all gradients after every step"):
        train(
            tasks("unet"), output=tmp_path / "a", fused_backward_pass=True, clip=0.0, adapter=AdaLoRA(rank=2),
            **settings,
        )  # fmt: skip
    with pytest.raises(BadConfig, match="before the gradients of 2 processes have been added up"):
        _check_fused(None, Group(0, 2))


def test_a_gradient_that_is_not_finite_stops_the_run(tasks, settings, tmp_path):
    from studio.trainers import NotFinite

    with pytest.raises(NotFinite, match="step"):
        train(
            tasks("unet"), output=tmp_path / "a", fused_backward_pass=True, clip=0.0, adapter=LoRA(rank=2),
            **{**settings, "learning_rate": 1e30, "steps": 4},
        )  # fmt: skip


# -- an accelerator ----------------------------------------------------------------------------------------------------


def accelerator():
    if not torch.accelerator.is_available() or torch.accelerator.current_accelerator().type == "mps":
        pytest.skip("there is no accelerator with streams")
    return torch.accelerator.current_accelerator()


@pytest.mark.parametrize("way", [None, "nf4"])
@pytest.mark.parametrize("kind", ["unet", "mmdit", "llama"])
def test_on_an_accelerator_blocks_wait_in_the_cpus_memory(tasks, settings, tmp_path, kind, way):
    """The same losses as without; the matrices of blocks are in locked memory meanwhile."""
    device = str(accelerator())
    if way:
        prepare(way)
    task = tasks(kind, quantize=way)
    settings |= {"device": device, "gradient_checkpointing": True, "adapter": LoRA(rank=2)}
    plain = train(task, output=tmp_path / "plain", **settings)
    swapped = train(task, output=tmp_path / "swapped", blocks_to_swap=2, **settings)
    assert swapped.losses == pytest.approx(plain.losses, rel=1e-5)
    one, two = (studio.inspect(run.adapter).tensors for run in (plain, swapped))
    assert list(one) == list(two)


def test_on_an_accelerator_two_blocks_take_its_memory():
    from studio.trainers.loop.block_swap import BlockSwap

    device = accelerator()
    size = 1024
    net = (
        torch.nn.Sequential(
            torch.nn.Linear(size, size), torch.nn.ModuleList(torch.nn.Linear(size, size, bias=False) for _ in range(16))
        )
        .requires_grad_(False)
        .to(device)
    )
    kept = [block.weight.clone() for block in net[1]]
    before = torch.accelerator.memory_allocated()
    swap = BlockSwap(net, 16)
    assert before - torch.accelerator.memory_allocated() >= 16 * 4 * size * size
    low = torch.accelerator.memory_allocated()
    torch.accelerator.reset_peak_memory_stats()
    x = torch.randn(8, size, device=device, requires_grad=True)
    with swap.keeping(torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t)):
        y = x
        for block in net[1]:
            y = y + block(y)
    y.sum().backward()
    assert torch.accelerator.max_memory_allocated() - low < 3 * 4 * size * size
    swap.close()
    assert all(torch.equal(block.weight, one) for block, one in zip(net[1], kept, strict=True))
    assert all(block.weight.device.type == device.type for block in net[1])
