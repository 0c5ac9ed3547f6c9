"""A default device or inference mode that the caller has set changes nothing of what is made, trained and saved."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import studio
from studio.adapters.contract.adapter import METHODS
from studio.adapters.tokens.contract import TokenConfig
from studio.device import on_cpu
from tiny import llama, shaken

LAYERS = [name for name, config in METHODS.items() if not issubclass(config, TokenConfig)]
TOKENS = [name for name in METHODS if name not in LAYERS]


class Net(nn.Module):
    """An embedding, a layer, a norm and a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(12, 8)
        self.first = nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)
        self.second = nn.Linear(8, 8)

    def forward(self, ids: Tensor) -> Tensor:
        return self.second(torch.tanh(self.norm(self.first(self.table(ids)))))


def net() -> nn.Module:
    torch.manual_seed(0)
    return Net()


def config_of(method: str) -> Any:
    kind = METHODS[method].adapter.kinds
    names = ("norm",) if "linear" not in kind else ("table",) if "embedding" in METHODS[method].usual().targets else ()
    return METHODS[method].example(targets=(*names, "first", "second") if names != ("table",) else names)


IDS = torch.arange(6).reshape(2, 3)


def life(method: str, folder: Path) -> dict[str, Tensor]:
    """All verbs in a row; what each gave."""
    model, made = net(), {}
    if method in TOKENS:
        model = llama()
        studio.attach(model, METHODS[method].example())
        call: Callable[[nn.Module], Tensor] = lambda one: one(IDS).logits  # noqa: E731
    else:
        studio.attach(model, config_of(method))
        call = lambda one: one(IDS)  # noqa: E731
    made |= {f"start {key}": tensor.detach().clone() for key, tensor in studio.state(model).items()}
    with on_cpu():
        shaken(model)
    call(model).square().sum().backward()
    made |= {f"grad {path}": p.grad for path, p in model.named_parameters() if p.grad is not None}
    studio.blend(model, {"default": 0.5})
    made["half"] = call(model.eval()).detach()
    file = studio.save(model, folder / "a.safetensors")
    if method not in TOKENS and METHODS[method].adapter.bakes:
        studio.bake(model)
        made["baked"] = call(model).detach()
        studio.unbake(model)
    studio.detach(model)
    studio.load(model, file, strength=0.5)
    made["loaded"] = call(model).detach()
    return made


@contextmanager
def default(device: str) -> Iterator[None]:
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


CONTEXTS = [("with", method) for method in LAYERS] + [("set", "lora")]


@pytest.mark.parametrize(("context", "method"), CONTEXTS)
def test_the_default_device_changes_nothing(context: str, method: str, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    wanted = life(method, tmp_path / "a")
    real = net()
    with pytest.MonkeyPatch.context() as patch, torch.device("meta") if context == "with" else default("meta"):
        patch.setitem(globals(), "net", lambda: real)
        found = life(method, tmp_path / "b")
    assert found.keys() == wanted.keys()
    for key, tensor in wanted.items():
        assert found[key].device.type == "cpu", key
        torch.testing.assert_close(found[key], tensor, rtol=0, atol=0, msg=lambda text, key=key: f"{key}: {text}")
    assert (tmp_path / "a" / "a.safetensors").read_bytes() == (tmp_path / "b" / "a.safetensors").read_bytes()


@pytest.mark.parametrize("method", [*LAYERS, *TOKENS])
def test_what_inference_mode_has_made_can_be_trained(method: str, tmp_path: Path) -> None:
    model = llama() if method in TOKENS else net()
    config = METHODS[method].example() if method in TOKENS else config_of(method)
    with torch.inference_mode():
        studio.attach(model, config)
        file = studio.save(model, tmp_path / "a.safetensors")
        studio.detach(model)
        studio.load(model, file, trainable=True)
    tensors = studio.state(model)
    assert not any(tensor.is_inference() for tensor in tensors.values())
    output = model(IDS)
    (output.logits if method in TOKENS else output).square().sum().backward()
    assert any(tensor.grad is not None for tensor in tensors.values())


def test_studio_peft_puts_adapters_where_the_weights_are() -> None:
    import studio.peft

    model = llama()
    with torch.device("meta"):
        made = studio.peft.get_peft_model(model, studio.peft.LoraConfig(target_modules=["q_proj"]))
    assert {parameter.device.type for parameter in made.parameters()} == {"cpu"}
    assert made(IDS).logits.shape == (2, 3, 32)
