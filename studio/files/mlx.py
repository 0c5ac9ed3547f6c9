"""MLX's adapter folder: ``adapters.safetensors`` and ``adapter_config.json``, as mlx_lm reads them.

A layer has ``lora_a`` ``(in, r)`` and ``lora_b`` ``(r, out)``, the other way round than elsewhere, and with DoRA ``m``
``(out,)``. Rank and scale are one for all layers: ``W' = W + scale · (lora_a @ lora_b)ᵀ``. Layers are named by ``keys``
inside each of the last ``num_layers`` blocks, or by their whole name; those that the file has no tensors of stay as
they are.

Read by mlx_lm 0.32.2 on its CPU (Llama, Mistral, Qwen2, Qwen3; all linear layers; 32 tokens), logits are within 1e-5 of
the live model's, as a part of the largest, once both agree about the base: a ``rope_theta`` that stands in transformers
5's ``rope_parameters`` alone is not seen by the first three, which is the base's matter and no adapter can mend.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from studio.adapters.contract.ranked import FactorConfig
from studio.config import finite
from studio.errors import BadFile, DoesNotFit
from studio.files.beside import write_beside
from studio.files.format import FORMATS, Draft, Format, Named, Source
from studio.files.level import of_one_rank
from studio.files.names import Names
from studio.files.peft import CONFIG_FILE
from studio.files.scale import Grade
from studio.files.served import check_served

__all__ = ["MLX", "MLX_FILE"]

MLX_FILE: Final = "adapters.safetensors"
_PARTS: Final = {"lora_a": "lora_A.weight", "lora_b": "lora_B.weight", "m": "lora_magnitude_vector"}
_BLOCK: Final = re.compile(r"\.(\d+)\.")
"""Where the number of its block stands in a layer's name."""


class _Settings:
    """What the config beside the tensors says about all layers."""

    def __init__(self, source: Source, method: str) -> None:
        self.notes: list[str] = []
        self.component = ""
        fields = source.mlx
        if fields is None:
            raise BadFile(
                f"{source.file} has MLX's tensors, and no {CONFIG_FILE} beside it says their scale: put it there"
            )
        stated = fields.get("lora_parameters")
        self.stated: Mapping[str, Any] = stated if isinstance(stated, Mapping) else {}
        sort, rank = fields.get("fine_tune_type", "lora"), self.stated.get("rank")
        scale: Any = self.stated.get("scale")
        where = f"{CONFIG_FILE} beside {source.file.name}"
        if sort != method:
            raise BadFile(f"{where} says fine_tune_type={str(sort)[:60]!r}, and its tensors are those of {method}")
        if not finite(scale) or not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
            raise BadFile(f"{where} states no rank and scale of its lora_parameters that could be: {str(stated)[:120]}")
        if "alpha" in self.stated:
            raise DoesNotFit(
                f"{where} has an alpha, by which some versions of mlx_lm multiply the scale and others do not: take it "
                "out, with the scale that is meant"
            )
        self._rank, self._scale, self._where = rank, float(scale), where

    def grade(self, module: str, rank: int | None) -> Grade:
        """Returns rank and scale of a layer.

        Raises:
            BadFile: its tensors have another rank.
        """
        if rank != self._rank:
            raise BadFile(f"{self._where} says rank {self._rank}, and the tensors of {module} have rank {rank}")
        return Grade(rank, self._scale)

    def fields(self) -> dict[str, Any]:
        """Returns the part of inputs that is dropped in training."""
        dropout = self.stated.get("dropout")
        return {"dropout": float(dropout)} if isinstance(dropout, (int, float)) and 0 <= dropout < 1 else {}

    def second(self, module: str) -> bool | None:
        """Returns None: no two tensors have one name."""
        return None


def _owns(key: str) -> bool:
    return key.rpartition(".")[2] in _PARTS


def _split(key: str) -> tuple[str, str] | None:
    module, _, end = key.rpartition(".")
    return module, _PARTS[end]


def _find(names: Names, module: str) -> str | None:
    return names.mlx.path(module)


def _spell(names: Names, path: str) -> str:
    return names.mlx.name(path)


def _settings(source: Source, method: str, components: tuple[str, ...]) -> _Settings:
    return _Settings(source, method)


def _turned(names: Names, path: str, parts: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    odd = next((part for part, one in parts.items() if one.dim() != (1 if part == _PARTS["m"] else 2)), None)
    if odd is not None:
        shape = tuple(parts[odd].shape)
        raise DoesNotFit(f"its {odd} has the shape {shape}, and pairs of matrices are read, not several experts'")
    return {part: one.mT if one.dim() == 2 else one for part, one in parts.items()}


def _gather(names: Names, layers: Named) -> Named:
    ours = {there: here for here, there in _PARTS.items()}
    return {
        _spell(names, path): {ours[part]: one.mT if one.dim() == 2 else one for part, one in parts.items()}
        for path, parts in layers.items()
    }


def _check(draft: Draft) -> None:
    def refusal(path: str) -> str:
        if "magnitude_in" in draft.layers[path]:
            return "its DoRA has a magnitude per input, and MLX's has one per output"
        if not draft.names.mlx.name(path):
            return "its weight is none by itself there: it is one with another, as a tied head is"
        return ""

    check_served(draft, MLX, "MLX", refusal)


def _write(file: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str], draft: Draft) -> None:
    config = draft.config
    assert isinstance(config, FactorConfig), "it is a LoRA or a DoRA"
    path, site = next(iter(draft.sites.items()))
    keys, blocks = _called([draft.names.mlx.name(one) for one in draft.sites], draft.names.mlx.layers)
    stated = {
        "rank": len(draft.layers[path]["down"]), "scale": config.scale_at(site.path), "dropout": config.dropout,
        "keys": keys,
    }  # fmt: skip
    fields = {"fine_tune_type": config.method, "num_layers": blocks, "lora_parameters": stated}
    write_beside(file, (CONFIG_FILE, fields), (MLX_FILE, tensors), metadata)


def _called(names: Iterable[str], layers: int) -> tuple[list[str], int]:
    """What mlx_lm finds layers by, and in how many of the last blocks it looks.

    Example:
        >>> _called(["model.layers.1.mlp.up_proj", "model.layers.2.mlp.up_proj", "lm_head"], 4)
        (['lm_head', 'mlp.up_proj'], 3)
    """
    found = {name: _BLOCK.search(name) for name in names}
    blocks = [int(one[1]) for one in found.values() if one is not None]
    keys = {name if one is None else name[one.end() :] for name, one in found.items()}
    return sorted(keys), layers - min(blocks) if blocks else 0


MLX: Final = FORMATS.add(
    "mlx",
    Format(
        name="mlx",
        title="folder of MLX's",
        dialect="peft",
        folder=True,
        owns=_owns,
        split=_split,
        find=_find,
        spell=_spell,
        settings=_settings,
        write=_write,
        check=_check,
        gather=_gather,
        methods=("lora", "dora"),
        level=of_one_rank,
        turned=_turned,
        rank_axis=1,
        language=True,
    ),
)
