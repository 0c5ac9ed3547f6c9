"""Blocks that wait in the CPU's memory: the same numbers, two blocks at a time, and the base as it was."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import studio
import tiny
import tiny_pipelines
from packings import CHEAP, prepare
from studio.errors import DoesNotFit
from studio.families.blocks import away_blocks, running_blocks, staying
from studio.planning.blueprint import blueprint
from studio.planning.tracker import Tracker
from studio.quantization import packing_of
from studio.trainers.loop.block_swap import BlockSwap
from studio.trainers.loop.mode import checkpoint_gradients

KINDS = {
    "plain": lambda: None,
    "offloaded activations": lambda: torch.autograd.graph.save_on_cpu(),
}


class Net(nn.Module):
    """Blocks of different sizes, one of which is run twice, between two layers that stay."""

    def __init__(self, count: int = 6, checkpointed: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(16, 8 + 4 * n), nn.SiLU(), nn.Linear(8 + 4 * n, 16), nn.LayerNorm(16))
            for n in range(count)
        )
        self.extra = nn.ParameterList(nn.Parameter(torch.zeros(16)) for _ in range(count))
        self.checkpointed = checkpointed
        for part in (self.first, self.last, self.blocks):
            part.requires_grad_(False)

    def forward(self, x):
        x = self.first(x)
        for block, extra in zip([*self.blocks, self.blocks[1]], [*self.extra, self.extra[1]], strict=True):
            inner = (x + extra).requires_grad_()
            x = x + (checkpoint(block, inner, use_reentrant=False) if self.checkpointed else block(inner))
        return self.last(x).sum()


def differentiated(net, swap=None, inner=None, passes=3):
    """The losses and gradients of some passes, in order."""
    found = []
    for number in range(passes):
        net.zero_grad()
        x = torch.linspace(-1, 1, 24).view(3, 8) * (number + 1)
        inner_now = contextlib.nullcontext() if inner is None else inner() or contextlib.nullcontext()
        with inner_now if swap is None else swap.keeping(inner_now):
            loss = net(x)
        loss.backward()
        found += [loss.detach(), *(p.grad.clone() for p in net.extra)]
    return found


def state_of(module):
    """Everything that a module tree holds, as objects and as numbers; packed ones are unpacked by their library."""
    return [
        (path, type(part), name, id(tensor), tensor.device, tensor.requires_grad, _numbers(part, tensor))
        for path, part in module.named_modules()
        for table in (part._parameters, part._buffers)
        for name, tensor in table.items()
        if tensor is not None
    ]


def _numbers(part, tensor):
    packing = packing_of(part)
    plain = type(tensor).__module__.startswith("torch.") or packing is None or not packing.packs(tensor)
    return (tensor if plain else packing.unpacked(part)).detach().clone()


def same(first, second):
    return all(one[:-1] == two[:-1] and torch.equal(one[-1], two[-1]) for one, two in zip(first, second, strict=True))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("count", [1, 3, 6])
def test_the_same_gradients_bit_for_bit_and_the_base_comes_back(count, checkpointed, kind):
    net = Net(checkpointed=checkpointed)
    before, hooks = state_of(net), [len(part._forward_pre_hooks) for part in net.modules()]
    wanted = differentiated(net)
    swap = BlockSwap(net, count)
    found = differentiated(net, swap, KINDS[kind])
    assert all(torch.equal(one, two) for one, two in zip(found, wanted, strict=True))
    swap.close()
    assert same(state_of(net), before)
    assert [len(part._forward_pre_hooks) for part in net.modules()] == hooks
    swap.close()  # again does nothing


@pytest.mark.parametrize("checkpointed", [False, True])
def test_two_blocks_are_there_at_a_time_and_the_backward_pass_keeps_none(checkpointed):
    """While anything computes, what is held of copies is at most the two largest neighbours."""
    net = Net(8, checkpointed)
    tracker = Tracker()
    swap = BlockSwap(net, 8, fetched=lambda copies: tracker.own(copies, "copies"))
    sizes = [sum(-(-one.tensor.numel() * 4 // 512) * 512 for one in unit.held) for unit in swap.units]
    for number in range(2):
        with tracker, tracker.phase(f"step {number}", "activations"):
            with swap.keeping(contextlib.nullcontext()):
                loss = net(torch.ones(2, 8))
            loss.backward()
        assert 0 < tracker.peaks[f"step {number}"].by["copies"] <= sizes[-1] + sizes[-2]
    del loss
    swap.close()
    assert tracker.held["copies"] == 0


def test_the_next_block_is_on_its_way_while_one_computes():
    """From the second step on, whichever block is needed has been asked for before."""
    net = Net()
    swap, late = BlockSwap(net, 6), []
    needed = swap.need

    def need(unit):
        if unit is not swap._current and not unit.copies:
            late.append(unit.number)
        needed(unit)

    swap.need = need
    differentiated(net, swap, passes=1)
    late.clear()
    differentiated(net, swap, passes=2)
    assert late == []
    swap.close()


@pytest.mark.parametrize(
    "name, count",
    [("sd1", 44), ("sdxl", 91), ("sd3-medium", 24), ("flux-dev", 57), ("z-image", 34), ("llama-3-8b", 32)],
)
def test_blocks_are_found_in_every_sort_of_model(name, count):
    """They hold most of its weights, and none holds another."""
    drawn = blueprint(name)
    root = drawn.language or drawn.components[drawn.family.denoiser]
    blocks = [block.module for block in running_blocks(root)]
    inside = [id(part) for block in blocks for part in block.modules()]
    assert len(inside) == len(set(inside)) and len(blocks) == count
    size = sum(p.numel() for block in blocks for p in block.parameters())
    assert size > 0.8 * sum(p.numel() for p in root.parameters())


def test_a_unet_is_taken_apart_and_a_llama_is_a_list_of_layers():
    unet, model = tiny.unet(), tiny.llama()
    kinds = {type(block.module).__name__ for block in running_blocks(unet)}
    assert {"ResnetBlock2D", "BasicTransformerBlock"} <= kinds and not any("Block2DCross" in kind for kind in kinds)
    assert {type(block.module).__name__ for block in running_blocks(model)} == {"LlamaDecoderLayer"}


def test_those_that_stay_away_are_spread_evenly():
    net = nn.Sequential(nn.ModuleList(nn.Linear(2, 2) for _ in range(10)))
    assert [int(block.key) for block in away_blocks(net, 5)] == [1, 3, 5, 7, 9]
    assert [int(block.key) for block in away_blocks(net, 10)] == list(range(10))


def test_more_blocks_than_there_are_is_refused():
    with pytest.raises(DoesNotFit, match="blocks_to_swap=7: the model has 6 blocks; give at most that"):
        BlockSwap(Net(), 7)


def test_a_tensor_that_others_hold_too_stays():
    net = Net()
    net.blocks[0][0].weight = net.blocks[3][0].weight
    shared = net.blocks[0][0].weight
    swap = BlockSwap(net, 6)
    assert all(one is not shared for one in swap.held)
    swap.close()


def test_moving_a_model_leaves_the_blocks_behind():
    """On a CPU a type stands in for a place: what stays behind keeps its own."""
    net = Net()
    with staying(net, 3):
        net.to(torch.float64)
    assert {block[0].bias.dtype for block in net.blocks} == {torch.float64}
    kinds = [block[0].weight.dtype for block in net.blocks]
    assert kinds == [torch.float64, torch.float32] * 3 and net.first.weight.dtype is torch.float64


class Layers(nn.Module):
    """Blocks of layers that can be quantised."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(64, 64)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 64)) for _ in range(4))
        self.shift = nn.Parameter(torch.zeros(64))

    def forward(self, x):
        x = self.first(x) + self.shift
        for block in self.blocks:
            x = x + checkpoint(block, x, use_reentrant=False)
        return x.square().sum()


CANNOT = {"int8", "quanto-int8"}


def quantised(way):
    import warnings

    net = Layers().requires_grad_(False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        studio.quantize(net, way)
    net.shift.requires_grad_(True)
    return net


@pytest.mark.parametrize("way", CHEAP)
def test_quantised_blocks_are_fetched_or_refused(way):
    prepare(way)
    net = quantised(way)
    if way in CANNOT:
        with pytest.raises(DoesNotFit, match="cannot wait elsewhere than they compute"):
            BlockSwap(net, 4, checkpointed=True)
        return
    with pytest.raises(DoesNotFit, match="set gradient_checkpointing=true too"):
        BlockSwap(net, 4)
    x, before = torch.linspace(-1, 1, 128).view(2, 64), state_of(net)

    def passed():
        net.shift.grad = None
        loss = net(x)
        loss.backward()
        return loss.detach(), net.shift.grad.clone()

    wanted = passed()
    swap = BlockSwap(net, 4, checkpointed=True)
    for _ in range(2):
        with swap.keeping(contextlib.nullcontext()):
            found = passed()
        assert all(torch.equal(one, two) for one, two in zip(found, wanted, strict=True))
    copies = [copy for unit in swap.units for copy in unit.copies]
    assert copies and not {id(copy) for copy in copies} & {id(one) for one in swap.held}
    swap.close()
    assert same(state_of(net), before)


# -- another device than the CPU: torch's meta device has no numbers, and refuses to mix with what is elsewhere --------

PLACES = {
    "unet": (lambda: tiny.unet(), lambda net, x: net(x(1, 4, 16, 16), x(1), x(1, 4, 8)).sample),
    "mmdit": (lambda: tiny_pipelines.build("sd3").transformer, None),
    "llama": (
        lambda: tiny.llama(),
        lambda net, x: net(inputs_embeds=x(1, 6, net.config.hidden_size), attention_mask=x(1, 1, 6, 6)).logits,
    ),
}


def mmdit_called(net, x):
    config = net.config
    return net(
        x(1, config.in_channels, 8, 8), encoder_hidden_states=x(1, 5, config.joint_attention_dim),
        pooled_projections=x(1, config.pooled_projection_dim), timestep=x(1),
    ).sample  # fmt: skip


@pytest.mark.parametrize("way", [None, "fp8"])
@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("kind", PLACES)
def test_whatever_computes_finds_its_weights_where_it_computes(kind, checkpointed, way):
    """Forward and backward pass with adapters, blocks on the CPU and everything else on another device."""
    made, call = PLACES[kind]
    net = made().requires_grad_(False)
    if way:
        if not checkpointed:
            pytest.skip("is refused")
        studio.quantize(net, way)
    studio.attach(net, studio.DoRA(rank=2, targets="all-linear") if way is None else studio.LoRA(rank=2))
    checkpoint_gradients(net, checkpointed)
    count = len(running_blocks(net))
    with staying(net, count):
        net.to("meta")
    swap = BlockSwap(net, count, checkpointed=checkpointed)
    swap.settle()
    assert swap.device.type == "meta" and all(one.device.type == "cpu" for one in swap.held) and swap.held
    rest = [p for p in (*net.parameters(), *net.buffers()) if id(p) not in {id(one) for one in swap.held}]
    assert all(p.device.type == "meta" for p in rest)

    def x(*shape):
        return torch.zeros(shape, device="meta")

    net.train()
    for _ in range(2):
        with swap.keeping(contextlib.nullcontext()):
            loss = (call or mmdit_called)(net, x).sum()
        loss.backward()
    trained = [p for p in net.parameters() if p.requires_grad]
    assert trained and all(p.grad is not None and p.grad.device.type == "meta" for p in trained)
    swap.close()
