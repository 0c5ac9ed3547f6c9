"""What torch puts around a model, or around a part of it, changes no name and hides no adapter."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.optim.swa_utils import AveragedModel

import studio
from studio.errors import DoesNotFit
from studio.families import named_parameters, named_parts
from tiny import llama, shaken

# torch.compile asks a block's input for its gradient
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")


class Net(nn.Module):
    """Two blocks in a list, and a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(8, 8)) for _ in range(2)])
        self.last = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.last(x)


def net() -> Net:
    torch.manual_seed(0)
    return Net()


def _compiled(model: Any) -> Any:
    return torch.compile(model, backend="eager")


def _inside(wrap: Callable[[Any], Any]) -> Callable[[Net], nn.Module]:
    def wrapped(model: Net) -> nn.Module:
        model.blocks[0] = wrap(model.blocks[0])
        model.last = wrap(model.last)
        return model

    return wrapped


WRAPPERS: dict[str, Callable[[Any], Any]] = {
    "compile": _compiled,
    "DataParallel": nn.DataParallel,
    "DDP": nn.parallel.DistributedDataParallel,
    "AveragedModel": AveragedModel,
    "DDP of a compiled one": lambda model: nn.parallel.DistributedDataParallel(_compiled(model)),
    "a compiled block": _inside(_compiled),
    "a checkpointed block": _inside(checkpoint_wrapper),
}


@pytest.fixture(scope="module", autouse=True)
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One process is a group of one."""
    file = tmp_path_factory.mktemp("group") / "store"
    torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("first", [True, False], ids=["attach-wrap", "wrap-attach"])
@pytest.mark.parametrize("what", WRAPPERS)
def test_adapters_have_the_names_of_the_model(what: str, first: bool, tmp_path: Path) -> None:
    model = net()
    config = studio.LoRA(rank=2, targets="all-linear")
    if first:
        studio.attach(model, config)
    outer = WRAPPERS[what](model)
    if not first:
        assert studio.attach(outer, config).sites == ("blocks.0.0", "blocks.1.0", "last")
    assert list(studio.state(shaken(outer)))[:2] == ["blocks.0.0.down", "blocks.0.0.up"]
    x = torch.ones(2, 8)
    wanted = outer(x)
    assert not torch.equal(wanted, net()(x))
    for format in ("diffusers", "kohya", "peft"):
        file = studio.save(outer, tmp_path / (format if format == "peft" else f"{format}.safetensors"), format=format)
        again = net()
        studio.load(again, file)
        torch.testing.assert_close(again(x), wanted)
    studio.blend(outer, {"default": 0.0})
    torch.testing.assert_close(outer(x), net()(x))
    studio.detach(outer)
    assert all(parameter.requires_grad for parameter in outer.parameters())
    assert [path for path, _ in named_parameters(outer)] == [path for path, _ in net().named_parameters()]


@pytest.mark.parametrize("what", WRAPPERS)
def test_a_file_loads_into_a_wrapped_model(what: str, tmp_path: Path) -> None:
    model = net()
    studio.attach(model, studio.LoRA(rank=2, targets="all-linear"))
    file, x = studio.save(shaken(model), tmp_path / "a.safetensors"), torch.ones(2, 8)
    outer = WRAPPERS[what](net())
    report = studio.load(outer, file)
    assert not report.ignored
    torch.testing.assert_close(outer(x), model(x))


@pytest.mark.parametrize("what", WRAPPERS)
def test_parts_are_those_of_the_model(what: str) -> None:
    outer = WRAPPERS[what](net())
    assert [path for path, _ in named_parts(outer)] == [path for path, _ in net().named_modules()]


def test_a_module_of_ones_own_that_is_called_module_is_no_wrapper() -> None:
    class Shell(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = nn.Linear(8, 8)

    assert studio.attach(Shell(), studio.LoRA(rank=2, targets=("module",))).sites == ("module",)


def test_a_base_with_a_compiled_block_is_saved_without_adapters(tmp_path: Path) -> None:
    model: Any = llama()
    studio.attach(model, studio.LoRA(rank=2, targets="attention"))
    model.model.layers[0] = torch.compile(model.model.layers[0], backend="eager")
    model.save_pretrained(tmp_path)

    assert not [key for key in load_file(tmp_path / "model.safetensors") if "adapters" in key]


def test_several_processes_that_have_noted_the_parameters_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    outer = nn.parallel.DistributedDataParallel(net())
    monkeypatch.setattr(type(outer.process_group), "size", lambda self: 2)
    with pytest.raises(DoesNotFit, match="is inside DistributedDataParallel.*attach to the model first, then wrap it"):
        studio.attach(outer, studio.LoRA(rank=2, targets="all-linear"))
    assert not studio.adapters(outer)


def test_weights_that_fsdp_has_taken_apart_are_refused() -> None:
    from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy

    alone = ShardingStrategy.NO_SHARD
    outer = FullyShardedDataParallel(net(), device_id=torch.device("cpu"), sharding_strategy=alone)
    with pytest.raises(DoesNotFit, match="is inside FullyShardedDataParallel"):
        studio.attach(outer, studio.LoRA(rank=2, targets="all-linear"))


@pytest.mark.filterwarnings("ignore:When using ``NO_SHARD``:UserWarning")
@pytest.mark.parametrize("doing", ["detach", "grow"])
@pytest.mark.parametrize("inside", [False, True], ids=["the wrapper", "the model inside"])
def test_what_fsdp_has_noted_is_neither_taken_away_nor_exchanged(doing: str, inside: bool) -> None:
    from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy

    model, x = net(), torch.ones(2, 8)
    studio.attach(model, studio.LoRA(rank=2, targets="all-linear"))
    alone = ShardingStrategy.NO_SHARD
    outer = FullyShardedDataParallel(
        model, device_id=torch.device("cpu"), sharding_strategy=alone, use_orig_params=True
    )
    wanted, names = outer(x), list(outer.state_dict())
    with pytest.raises(DoesNotFit, match=f"cannot {doing}: the model has been wrapped as FullyShardedDataParallel"):
        studio.detach(model if inside else outer) if doing == "detach" else studio.grow(outer, "default", 4)
    assert torch.equal(outer(x), wanted) and list(outer.state_dict()) == names


@pytest.mark.filterwarnings("ignore:When using ``NO_SHARD``:UserWarning")
def test_what_was_attached_behind_fsdp_is_taken_away_again() -> None:
    from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy

    alone = ShardingStrategy.NO_SHARD
    outer = FullyShardedDataParallel(
        net(), device_id=torch.device("cpu"), sharding_strategy=alone, use_orig_params=True
    )
    names = list(outer.state_dict())
    studio.attach(outer, studio.LoRA(rank=2, targets="all-linear"))
    studio.detach(outer)
    assert list(outer.state_dict()) == names
