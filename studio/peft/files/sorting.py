"""What the keys of a state dict of PEFT's belong to: layers, whole modules, the base's own parameters, token rows."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from torch import Tensor, nn

from studio.files.detect import sort_keys
from studio.files.format import Source
from studio.files.header import DTYPES, TensorInfo
from studio.files.names import Names
from studio.files.peft import CONFIG_FILE
from studio.files.reading import Reading, read_layers
from studio.files.soft import read_soft
from studio.peft.configs.select import paths_to_save
from studio.peft.configs.translate import method_of
from studio.peft.files.tensors import PREFIX, SHARED
from studio.peft.model.tokens import TOKEN_KEY

__all__ = ["Parts", "read_parts", "sorted_parts"]

_WORDS: Final = {dtype: word for word, dtype in DTYPES.items()}
_SETTLED: Final = {"bias": "none", "trainable_token_indices": None, "init_lora_weights": True, "modules_to_save": None}
"""Fields that say what this module has dealt with when the tensors of layers are read."""


class Parts(NamedTuple):
    """The tensors of a file, by what they belong to; keys without the prefix."""

    layers: dict[str, Tensor]
    modules: dict[str, dict[str, Tensor]]
    parameters: dict[str, Tensor]
    tokens: dict[str, Tensor]


def sorted_parts(model: nn.Module, config: Any, tensors: Mapping[str, Tensor], name: str) -> Parts:
    """Puts apart what belongs to layers, to whole modules, to the base's own parameters and to rows of tokens.

    Args:
        model: the base. config: PEFT's config. tensors: PEFT's keys to tensors ``(...)``. name: an adapter's name that
            may stand in the keys.
    """
    modules = set(paths_to_save(model, config))
    parameters = {path for path, _ in model.named_parameters(remove_duplicate=False) if ".adapters." not in path}
    prefix = SHARED if config.is_prompt_learning else PREFIX
    parts = Parts({}, {}, {}, {})
    for key, tensor in tensors.items():
        bare = _bare(key.removeprefix(prefix), name)
        inside = next((path for path in modules if bare.startswith(path + ".")), None)
        plain = bare.replace(".base_layer.", ".")
        if inside is not None:
            rest = bare[len(inside) + 1 :].removeprefix("modules_to_save.")
            parts.modules.setdefault(inside, {})[rest] = tensor
        elif bare.endswith(TOKEN_KEY):
            parts.tokens[bare.removesuffix(TOKEN_KEY).removesuffix(".base_layer")] = tensor
        elif plain in parameters and not bare.endswith(("lora_A.weight", "lora_B.weight")):
            parts.parameters[plain] = tensor
        else:
            parts.layers[bare] = tensor
    return parts


def _bare(key: str, name: str) -> str:
    """A key without an adapter's name that stands in it."""
    return re.sub(rf"\.(lora_[AB]|lora_embedding_[AB]|modules_to_save)\.{re.escape(name)}\.", r".\1.", key)


def read_parts(model: nn.Module, config: Any, tensors: Mapping[str, Tensor]) -> Reading:
    """Brings the tensors of layers into the core's form.

    Args:
        model: the base. config: PEFT's config. tensors: keys without the prefix to tensors ``(...)``.

    Raises:
        DoesNotFit: the config cannot be used. BadFile: tensors of virtual tokens that are missing.
    """
    fields = config.to_dict()
    fields |= {name: value for name, value in _SETTLED.items() if name in fields}
    virtual, method = config.is_prompt_learning, method_of(config)
    keyed = {key if virtual or key.startswith(SHARED) else PREFIX + key: one for key, one in tensors.items()}
    infos = {
        key: TensorInfo(_WORDS.get(tensor.dtype, str(tensor.dtype)), tuple(tensor.shape), 0, 0)
        for key, tensor in keyed.items()
    }
    source = Source(Path(CONFIG_FILE).parent, infos, keyed, {}, fields)
    if virtual:
        return read_soft(model, source, None, method)
    return read_layers(Names(model), source, sort_keys(infos, method), method, None)
