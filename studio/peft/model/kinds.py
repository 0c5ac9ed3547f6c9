"""PEFT's classes of adapted layers by method and by kind of layer, which ``isinstance`` asks for."""

from __future__ import annotations

from typing import Any, Final, cast

from torch import nn

from studio.adapters import Adapter, Site
from studio.peft.configs.config import PEFT_TYPE_TO_CONFIG_MAPPING, PromptLearningConfig
from studio.peft.model.copies import AuxiliaryTrainingWrapper, plain_view
from studio.peft.model.dressing import SITE, view_of
from studio.peft.model.layers import BaseTunerLayer, IA3Layer, LoHaLayer, LoKrLayer, LoraLayer
from studio.peft.model.names import Table
from studio.peft.model.rows import TokenAdapter
from studio.peft.model.state import TOKENS
from studio.peft.terms.errors import Wrong

__all__ = ["LAYERS", "Conv1d", "Conv2d", "Conv3d", "Embedding", "Linear", "ParamWrapper", "TrainableTokensWrapper"]


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


@view_of("LORA:owner", "ADALORA:owner")
class ParamWrapper(LoraLayer):
    """A bare parameter with LoRA on it: it stands where the module that keeps the parameter has its adapters."""

    @property
    def _site(self) -> Site:
        return cast(Site, self.__dict__[SITE])

    @property
    def parameter_name(self) -> str:
        """The parameter's name in its module."""
        return self._site.weight_name

    def _adapters(self, *, tokens: bool = False) -> dict[str, Adapter]:
        return self._state.adapters_at(self._site.path, tokens=tokens)

    def get_base_layer(self) -> nn.Module:
        """Returns the module that keeps the parameter."""
        return plain_view(self._site.module)

    def update_layer(self, *args: Any, **kwargs: Any) -> None:
        """Refuses; the name is here because libraries put theirs in its place.

        Raises:
            Wrong: always.
        """
        raise Wrong("update_layer is not how adapters are made here: get_peft_model and add_adapter make them")


@view_of(TOKENS)
class TrainableTokensWrapper(BaseTunerLayer, AuxiliaryTrainingWrapper):
    """An embedding of which single rows are trained beside an adapter's layers."""

    @property
    def original_module(self) -> nn.Module:
        """The base's own module: its class, its parameters."""
        return plain_view(cast(nn.Module, self))


@view_of("TRAINABLE_TOKENS")
class TrainableTokensLayer(BaseTunerLayer):
    """An embedding of which single rows are trained and nothing else; a layer that is tied to it has the same rows."""

    @property
    def _held(self) -> TokenAdapter:
        return TokenAdapter(self._state, self._site.path, tokens=False)

    @property
    def trainable_tokens_delta(self) -> Table:
        """Adapter name -> the rows themselves, ``(tokens, dim)``."""
        return self._held.trainable_tokens_delta

    @property
    def trainable_tokens_original(self) -> Table:
        """Adapter name -> the base's own rows of the same tokens, ``(tokens, dim)``."""
        return self._held.trainable_tokens_original

    @property
    def token_indices(self) -> Table:
        """Adapter name -> the numbers of the tokens."""
        return self._held.token_indices


def _made() -> dict[str, type]:
    """PEFT's class of a layer of each method, by its name: those above, and one for each of the other methods."""
    found: dict[str, type] = {one.__name__: one for one in (LoraLayer, LoHaLayer, LoKrLayer, IA3Layer, ParamWrapper,
                                                            TrainableTokensLayer)}  # fmt: skip
    for word, config in PEFT_TYPE_TO_CONFIG_MAPPING.items():
        name = f"{config.__name__.removesuffix('Config')}Layer"
        if name not in found and not issubclass(config, PromptLearningConfig):
            base = LoraLayer if word.value == "ADALORA" else BaseTunerLayer
            body = {"__doc__": f"A layer with {word.value} on it.", "__module__": __name__}
            found[name] = view_of(word.value)(type(name, (base,), body))
    return found


LAYERS: Final = _made()
"""PEFT's name of a method's layers -> the class."""
