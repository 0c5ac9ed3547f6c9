"""What studio.peft trains beside the layers of an adapter is never left out of a file in silence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import studio
import studio.peft as peft
from studio.errors import DoesNotFit
from tiny import llama

BESIDE: dict[str, tuple[dict[str, Any], str]] = {
    "a module": ({"modules_to_save": ["lm_head"]}, "lm_head"),
    "a layer norm": ({"modules_to_save": ["norm"]}, "model.norm"),
    "token rows": ({"trainable_token_indices": [1, 2]}, "model.embed_tokens"),
    "a module and rows": ({"modules_to_save": ["lm_head"], "trainable_token_indices": [1]}, "lm_head, model.embed_tok"),
}


def trained(**said: Any) -> Any:
    model = peft.get_peft_model(llama(), peft.LoraConfig(target_modules=["q_proj"], **said))
    with torch.no_grad():
        for tensor in filter(lambda one: one.requires_grad, model.parameters()):
            tensor.add_(0.1)
    return model


@pytest.mark.parametrize("what", BESIDE)
@pytest.mark.parametrize("format", ["diffusers", "peft"])
def test_the_base_of_such_a_model_is_not_saved_without_it(what: str, format: str, tmp_path: Path) -> None:
    said, named = BESIDE[what]
    model = trained(**said)
    with pytest.raises(DoesNotFit, match=f"'default' has trained {named}"):
        studio.save(model.get_base_model(), tmp_path / "file.safetensors", format=format)
    assert not list(tmp_path.iterdir())
    model.save_pretrained(tmp_path / "whole")
    again = peft.PeftModel.from_pretrained(llama(), tmp_path / "whole")
    with pytest.raises(DoesNotFit, match=f"'default' has trained {named}"):
        studio.save(again.get_base_model(), tmp_path / "file.safetensors", format=format)


def test_biases_of_the_base_are_beside_too(tmp_path: Path) -> None:
    net = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    model = peft.get_peft_model(net, peft.LoraConfig(target_modules=["0"], bias="all"))
    with pytest.raises(DoesNotFit, match=r"'default' has trained 0\.bias, 1\.bias beside"):
        studio.save(model.get_base_model(), tmp_path / "file.safetensors")


def test_layers_alone_are_saved(tmp_path: Path) -> None:
    model = trained()
    file = studio.save(model.get_base_model(), tmp_path / "file.safetensors")
    again = llama()
    studio.load(again, file)
    ids = torch.tensor([[3, 4, 5]])
    torch.testing.assert_close(again(input_ids=ids).logits, model(input_ids=ids).logits)
