"""What llama.cpp and MLX call the layers of causal language models, for those whose names are known to both.

llama.cpp's names of tensors are those of its package ``gguf``. Of an architecture whose positions it turns in
neighbouring pairs (``rotates``), the rows of queries and keys stand in another order there: with ``n = rows / heads``
rows a head, row ``h·n + 2i + j`` there is row ``h·n + j·n/2 + i`` of transformers, for ``j`` in 0, 1.

References:
    | RoFormer: Enhanced Transformer with Rotary Position Embedding (Su et al., 2021), https://arxiv.org/abs/2104.09864
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import torch
from torch import Tensor

from studio.errors import DoesNotFit
from studio.packages import need

__all__ = ["RUNTIMES", "LlamaCppNames", "MlxNames", "Runtime"]


@dataclass(frozen=True)
class Runtime:
    """How other programs have a model type of transformers.

    Attributes:
        architecture: llama.cpp's word for it. rotates: whether rows of queries and keys stand in another order there.
        body: what the names of its layers begin with in transformers, where MLX has ``model.``.
    """

    architecture: str
    rotates: bool = False
    body: str = "model."


RUNTIMES: Final[dict[str, Runtime]] = {
    "llama": Runtime("llama", rotates=True),
    "mistral": Runtime("llama", rotates=True),
    "mixtral": Runtime("llama", rotates=True),
    "smollm3": Runtime("smollm3", rotates=True),
    "granite": Runtime("granite", rotates=True),
    "qwen2": Runtime("qwen2"),
    "qwen2_moe": Runtime("qwen2moe"),
    "qwen3": Runtime("qwen3"),
    "qwen3_moe": Runtime("qwen3moe"),
    "gemma": Runtime("gemma"),
    "gemma2": Runtime("gemma2"),
    "gemma3_text": Runtime("gemma3"),
    "gpt2": Runtime("gpt2", body="transformer."),
    "phi": Runtime("phi2"),
    "phi3": Runtime("phi3"),
    "starcoder2": Runtime("starcoder2"),
    "stablelm": Runtime("stablelm"),
    "olmo2": Runtime("olmo2"),
    "cohere": Runtime("command-r"),
}
"""Model type of transformers -> how llama.cpp and MLX have it."""
_HEAD: Final = "lm_head"


def _row(model: Any, program: str) -> Runtime:
    config = getattr(model, "config", None)
    kind = getattr(config, "model_type", None)
    if kind not in RUNTIMES:
        what = f"a {kind!r}" if isinstance(kind, str) else f"a {type(model).__name__}"
        raise DoesNotFit(
            f"{program}'s names of the layers of {what} are not known here; those of these models are: "
            f"{', '.join(RUNTIMES)}"
        )
    return RUNTIMES[kind]


def _tied(model: Any, path: str) -> bool:
    """Whether a layer is the model's head and has the weight of its embedding, so that it is no tensor elsewhere."""
    return path == _HEAD and bool(getattr(model.config, "tie_word_embeddings", False))


class _Names(ABC):
    """A program's names of a model's layers, and back."""

    _paths: tuple[str, ...]

    @abstractmethod
    def name(self, path: str) -> str:
        """Returns what a layer is called, or ``""``."""

    def path(self, name: str) -> str | None:
        """Returns the layer that is called so, or None."""
        return self._by_name.get(name)

    @cached_property
    def _by_name(self) -> dict[str, str]:
        named = ((self.name(path), path) for path in self._paths)
        return {name: path for name, path in named if name}


class LlamaCppNames(_Names):
    """llama.cpp's names of the weights of a model.

    Args:
        model: a causal language model of transformers. paths: those of its layers.

    Attributes:
        architecture: what llama.cpp calls it.

    Raises:
        DoesNotFit: its names there are not known. MissingPackage: the package with them is not installed.
    """

    def __init__(self, model: Any, paths: Iterable[str]) -> None:
        self._row, self._model, self._paths = _row(model, "llama.cpp"), model, tuple(paths)
        self.architecture = self._row.architecture
        library = need("gguf", "llama.cpp's names of layers", extra="gguf")
        numbers = {name: number for number, name in library.MODEL_ARCH_NAMES.items()}
        if self.architecture not in numbers:
            raise DoesNotFit(f"the package gguf that is installed does not know {self.architecture!r}: update it")
        self._table = library.get_tensor_name_map(numbers[self.architecture], int(model.config.num_hidden_layers))

    def name(self, path: str) -> str:
        """Returns the name of the weight of a layer, ``blk.0.attn_q.weight``; ``""`` where it has none by itself."""
        name = None if _tied(self._model, path) else self._table.get_name(path)
        return f"{name}.weight" if name else ""

    def there(self, path: str, rows: Tensor) -> Tensor:
        """Returns the same rows in llama.cpp's order.

        Args:
            path: of the layer. rows: one per output of it, ``(rows, ...)``.
        """
        heads = self._heads(path)
        return rows[_paired(len(rows), heads)] if heads else rows

    def back(self, path: str, rows: Tensor) -> Tensor:
        """Returns the same rows in transformers' order.

        Args:
            path: of the layer. rows: one per output of it, ``(rows, ...)``.

        Raises:
            DoesNotFit: rows that are no whole pairs of every head.
        """
        heads = self._heads(path)
        if heads and (not rows.dim() or len(rows) % (2 * heads)):
            raise DoesNotFit(f"its {len(rows) if rows.dim() else 1} rows are no pairs of {heads} heads")
        return rows[_paired(len(rows), heads).argsort()] if heads else rows

    def _heads(self, path: str) -> int:
        """The heads whose rows stand in another order; 0 where none do."""
        last, config = path.rpartition(".")[2], self._model.config
        if not self._row.rotates or last not in ("q_proj", "k_proj"):
            return 0
        heads = int(config.num_attention_heads)
        return heads if last == "q_proj" else int(getattr(config, "num_key_value_heads", None) or heads)


def _paired(rows: int, heads: int) -> Tensor:
    """Which row of transformers is which there.

    Example:
        >>> _paired(8, 2).tolist()
        [0, 2, 1, 3, 4, 6, 5, 7]
    """
    return torch.arange(rows).reshape(heads, 2, -1).mT.reshape(-1)


class MlxNames(_Names):
    """MLX's names of the layers of a model.

    Args:
        model: a causal language model of transformers. paths: those of its layers.

    Attributes:
        layers: how many blocks it has.

    Raises:
        DoesNotFit: its names there are not known.
    """

    def __init__(self, model: Any, paths: Iterable[str]) -> None:
        self._body, self._model, self._paths = _row(model, "MLX").body, model, tuple(paths)
        self.layers = int(model.config.num_hidden_layers)

    def name(self, path: str) -> str:
        """Returns the name of a layer, ``model.layers.0.self_attn.q_proj``; ``""`` where it is none by itself."""
        if _tied(self._model, path):
            return ""
        return f"model.{path.removeprefix(self._body)}" if path.startswith(self._body) else path
