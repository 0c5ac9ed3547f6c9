"""PEFT's classes of adapted layers by method and by kind of layer, which ``isinstance`` asks for."""

from __future__ import annotations

from typing import Final

from studio.peft.configs.config import PEFT_TYPE_TO_CONFIG_MAPPING, PromptLearningConfig
from studio.peft.model.copies import AuxiliaryTrainingWrapper
from studio.peft.model.dressing import view_of
from studio.peft.model.layers import BaseTunerLayer, IA3Layer, LoHaLayer, LoKrLayer, LoraLayer
from studio.peft.model.state import TOKENS

__all__ = ["LAYERS", "Conv1d", "Conv2d", "Conv3d", "Embedding", "Linear", "TrainableTokensWrapper"]


@view_of("LORA:linear", "LORA:conv1d-gpt2")
class Linear(LoraLayer):
    """A linear layer with LoRA or DoRA on it."""


@view_of("LORA:Conv1d")
class Conv1d(LoraLayer):
    """A convolution over one axis with LoRA or DoRA on it."""


@view_of("LORA:Conv2d", "LORA:conv")
class Conv2d(LoraLayer):
    """A convolution over two axes with LoRA or DoRA on it."""


@view_of("LORA:Conv3d")
class Conv3d(LoraLayer):
    """A convolution over three axes with LoRA or DoRA on it."""


@view_of("LORA:embedding")
class Embedding(LoraLayer):
    """An embedding with LoRA or DoRA on it."""


@view_of(TOKENS)
class TrainableTokensWrapper(BaseTunerLayer, AuxiliaryTrainingWrapper):
    """An embedding of which single rows are trained beside an adapter's layers."""


def _made() -> dict[str, type]:
    """PEFT's class of a layer of each method, by its name: those above, and one for each of the other methods."""
    found: dict[str, type] = {one.__name__: one for one in (LoraLayer, LoHaLayer, LoKrLayer, IA3Layer)}
    for word, config in PEFT_TYPE_TO_CONFIG_MAPPING.items():
        name = f"{config.__name__.removesuffix('Config')}Layer"
        if name not in found and not issubclass(config, PromptLearningConfig):
            base = LoraLayer if word.value == "ADALORA" else BaseTunerLayer
            body = {"__doc__": f"A layer with {word.value} on it.", "__module__": __name__}
            found[name] = view_of(word.value)(type(name, (base,), body))
    return found


LAYERS: Final = _made()
"""PEFT's name of a method's layers -> the class."""
