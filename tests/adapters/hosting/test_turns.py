"""Turns: threads and tasks that share a model compute with their own blend, or wait, or are refused."""

from __future__ import annotations

import asyncio
import copy
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import studio
from studio.adapters.hosting.assembly import assembly_at
from studio.errors import DoesNotFit, StudioError

X = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
CONFIGS: dict[str, Any] = {
    "lora": studio.LoRA(rank=2, targets=("0", "2")),
    "dora": studio.DoRA(rank=2, targets=("0", "2")),
    "ia3-inputs": studio.IA3(targets=("0", "2"), feedforward=("0", "2")),
    "norm": studio.LNTuning(targets=("1",)),
}


def model_with(config: Any) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 8)).eval()
    for seed, name in enumerate("ab"):
        studio.attach(model, config, name=name, seed=seed)
        draw = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for tensor in studio.state(model, name).values():
                tensor += 0.3 * torch.randn(tensor.shape, generator=draw)
    model.requires_grad_(False)
    studio.blend(model, {"a": 0.5})
    return model


def together(*works: Callable[[], Any]) -> list[Any]:
    """Runs the works at the same time, each in a thread of its own."""
    with ThreadPoolExecutor(len(works)) as pool:
        return [one.result(timeout=60) for one in [pool.submit(work) for work in works]]


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_threads_with_blends_of_their_own_never_compute_with_another_one(config) -> None:
    model, blends = model_with(config), [{"a": 1.0}, {"b": 1.0}, {}, {"a": 0.3, "b": -0.2}]
    wanted = []
    for blend in blends:
        with studio.blended(model, blend):
            wanted.append(model(X))

    def draw(index: int) -> Callable[[], list[Tensor]]:
        def work() -> list[Tensor]:
            found = []
            for _ in range(40):
                with studio.blended(model, blends[index]):
                    found.append(model(X))
            return found

        return work

    for index, found in enumerate(together(*(draw(index) for index in range(len(blends))))):
        assert all(torch.equal(one, wanted[index]) for one in found)
    assert studio.adapters(model)["a"].strength == 0.5 and studio.adapters(model)["b"].strength == 0.0


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_threads_that_share_the_standing_blend_get_what_one_gets(config) -> None:
    model = model_with(config)
    wanted = model(X)
    found = together(*[lambda: [model(X) for _ in range(100)]] * 4)
    assert all(torch.equal(one, wanted) for several in found for one in several)


def test_a_call_from_outside_of_another_threads_blend_is_refused() -> None:
    model = model_with(CONFIGS["lora"])
    inside, done, found = threading.Event(), threading.Event(), []

    def other() -> None:
        assert inside.wait(20)
        for attempt in (lambda: model(X), lambda: model(X[:1])):
            try:
                found.append(attempt())
            except DoesNotFit as refused:
                found.append(refused)
        done.set()

    def holder() -> None:
        with studio.blended(model, {"b": 1.0}):
            inside.set()
            assert done.wait(20)

    together(holder, other)
    assert len(found) == 2 and all("inside blended" in str(one) for one in found)
    model(X)


def test_setting_the_blend_waits_for_the_turn_of_another_thread() -> None:
    model = model_with(CONFIGS["lora"])
    inside, order = threading.Event(), []

    def holder() -> None:
        with studio.blended(model, {"b": 1.0}):
            inside.set()
            time.sleep(0.2)
            order.append("ended")

    def setter() -> None:
        assert inside.wait(20)
        studio.blend(model, {"a": 0.25})
        order.append("set")

    together(holder, setter)
    assert order == ["ended", "set"] and studio.adapters(model)["a"].strength == 0.25


def test_a_blend_that_another_thread_changes_during_a_call_is_noticed() -> None:
    model = model_with(CONFIGS["lora"])
    middle, changed = threading.Event(), threading.Event()

    def pause(*_: Any) -> None:
        middle.set()
        assert changed.wait(20)

    def change() -> None:
        assert middle.wait(20)
        studio.blend(model, {"b": 1.0})
        changed.set()

    handle = model[1].register_forward_hook(pause)

    def call() -> Any:
        with pytest.raises(DoesNotFit, match="another thread changed the blend"):
            model(X)

    together(call, change)
    handle.remove()


def test_tasks_of_one_thread_are_refused_and_leave_the_blend_as_it_was() -> None:
    model = model_with(CONFIGS["lora"])
    with studio.blended(model, {"b": 1.0}):
        wanted = model(X)

    async def first(ready: asyncio.Event, go: asyncio.Event) -> Tensor:
        with studio.blended(model, {"b": 1.0}):
            ready.set()
            await go.wait()
            return model(X)

    async def second(ready: asyncio.Event, go: asyncio.Event) -> list[str]:
        await ready.wait()
        said = []
        for attempt in (lambda: model(X), lambda: studio.blend(model, "a"), lambda: enter(model)):
            with pytest.raises(DoesNotFit) as refused:
                attempt()
            said.append(str(refused.value))
        go.set()
        return said

    async def both() -> list[Any]:
        ready, go = asyncio.Event(), asyncio.Event()
        return await asyncio.gather(first(ready, go), second(ready, go))

    got, said = asyncio.run(both())
    assert torch.equal(got, wanted) and all("thread or task is inside blended" in one for one in said)
    assert studio.adapters(model)["a"].strength == 0.5


def enter(model: nn.Module) -> None:
    with studio.blended(model, "a"):
        pass


def test_contexts_that_cross_are_refused_and_restored() -> None:
    model = model_with(CONFIGS["lora"])

    def holding(blend: dict[str, float]) -> Iterator[None]:
        with studio.blended(model, blend):
            yield

    one, two = holding({"a": 1.0}), holding({"b": 1.0})
    next(one), next(two)
    with pytest.raises(DoesNotFit, match="cross"):
        next(one)
    assert studio.adapters(model)["b"].strength == 1.0  # the second still holds
    with pytest.raises(StopIteration):
        next(two)
    assert studio.adapters(model)["a"].strength == 0.5 and studio.adapters(model)["b"].strength == 0.0


def test_who_holds_a_turn_does_not_wait_for_another() -> None:
    """Each of two threads holds one model and wants the other's: one of them is told so, and nobody hangs."""
    models = [model_with(CONFIGS["lora"]) for _ in range(2)]
    ready, said = threading.Barrier(2, timeout=20), []

    def work(own: int) -> Callable[[], None]:
        def both() -> None:
            try:
                with studio.blended(models[own], {"b": 1.0}):
                    ready.wait()
                    with studio.blended(models[1 - own], {"b": 1.0}):
                        pass
                    time.sleep(0.05)
            except StudioError as refused:
                said.append(str(refused))

        return both

    together(work(0), work(1))
    assert said and all("wait for the other for ever" in one for one in said)


def test_nested_contexts_and_copies_are_as_before() -> None:
    model = model_with(CONFIGS["lora"])
    with studio.blended(model, {"b": 1.0}), studio.blended(model, {"a": 1.0}):
        twin = copy.deepcopy(model)
        assert studio.adapters(model)["a"].strength == 1.0
    assert studio.adapters(model)["a"].strength == 0.5
    assert assembly_at(twin).levels is not assembly_at(model).levels
    twin(X)  # a copy of a model inside a context is inside none
    with studio.blended(twin, {}):
        twin(X)
