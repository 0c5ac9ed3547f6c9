"""A step of each tensor in the backward pass: the same bits as after it, and one gradient at a time."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

import studio
from studio.planning.tracker import Tracker
from studio.trainers.loop.fused import FusedBackward
from studio.trainers.loop.optimizer import OPTIMIZERS, Work, set_rates
from studio.trainers.loop.plan import Plan


def adapted():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 2))
    studio.attach(net, studio.LoRA(rank=2, targets="all-linear"), seed=0)
    with torch.no_grad():
        for number, tensor in enumerate(net.parameters()):
            if tensor.requires_grad:
                tensor.add_(0.01 * (number + 1))
    return net


def optimizer_of(net, name):
    from studio.adapters import state
    from studio.adapters.training import layers

    tensors = state(net, "default")
    plan = Plan(optimizer=name, steps=4)
    made = OPTIMIZERS[name](Work(tensors, layers(net, "default"), {"": 1e-2}, plan))
    return {key: tensor for key, tensor in tensors.items() if tensor.requires_grad}, made


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_same_tensors_and_moments_bit_for_bit(name):
    if name.endswith("8bit") or name.startswith("paged"):
        pytest.importorskip("bitsandbytes")
    x = torch.linspace(-1, 1, 32).view(4, 8)
    made = []
    for fused in (False, True):
        net = adapted()
        tensors, optimizer = optimizer_of(net, name)
        own = FusedBackward(tensors, optimizer) if fused else None
        norms = []
        for step in range(4):
            set_rates(optimizer, 1 / (step + 1))
            if own is not None:
                own.begin()
            net(x).square().sum().backward()
            if own is None:
                norms.append(float(nn.utils.get_total_norm([tensor.grad for tensor in tensors.values()])))
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            else:
                assert all(tensor.grad is None for tensor in tensors.values())
                norms.append(own.norm())
        made.append((tensors, optimizer.state_dict(), norms))
    (plain, kept, norms), (found, held, others) = made
    assert all(torch.equal(plain[key], found[key]) for key in plain)
    assert norms == pytest.approx(others, rel=1e-6)
    assert kept["param_groups"] == held["param_groups"]
    moments, others = ([content["state"][number] for number in sorted(content["state"])] for content in (kept, held))
    for value, other in zip(tree_leaves(moments), tree_leaves(others), strict=True):
        assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other


def test_one_gradient_is_held_at_a_time():
    """Each is of 512 bytes or more, as all storages are counted; the largest of them is the most that is held."""
    net = adapted()
    tensors, optimizer = optimizer_of(net, "adamw")
    tracker = Tracker()
    for tensor in tensors.values():
        tensor.register_post_accumulate_grad_hook(lambda one: tracker.own([one.grad], "gradients"))
    FusedBackward(tensors, optimizer)
    with tracker, tracker.phase("backward", "temporaries"):
        net(torch.ones(4, 8)).sum().backward()
        assert tracker.held["gradients"] == 0
    assert tracker.peaks["backward"].by.get("gradients", 0) <= 512


def test_what_was_reached_is_known_and_it_ends():
    net = adapted()
    tensors, optimizer = optimizer_of(net, "adamw")
    unused = torch.zeros(3, requires_grad=True)
    optimizer.add_param_group({"params": [unused], "rate": 1e-2})
    fused = FusedBackward({**tensors, "unused": unused}, optimizer)
    net(torch.ones(4, 8)).sum().backward()
    assert fused.reached == {id(tensor) for tensor in tensors.values()}
    fused.close()
    net(torch.ones(4, 8)).sum().backward()
    assert all(tensor.grad is not None for tensor in tensors.values())
