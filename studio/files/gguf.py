"""llama.cpp's LoRA file: ``blk.0.attn_q.weight.lora_a`` ``(r, in)`` and ``….lora_b`` ``(out, r)``, and one alpha.

The scale is ``adapter.lora.alpha / r`` with each pair's own rank, and 1 where alpha is 0 or left out. Rows of queries
and keys stand as they do in llama.cpp's model (:mod:`studio.families.language.runtimes`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from studio.adapters.contract.ranked import RankedConfig
from studio.errors import DoesNotFit
from studio.files.format import FORMATS, Draft, Format, Named, Source
from studio.files.gguf_container import SUFFIX, write_gguf
from studio.files.level import of_one_alpha
from studio.files.metadata import ARCHITECTURE, KEY
from studio.files.names import Names
from studio.files.scale import Grade
from studio.files.served import check_served
from studio.files.stated import number

__all__ = ["GGUF"]

_ALPHA: Final = "adapter.lora.alpha"
_ACTIVATED: Final = "adapter.alora.invocation_tokens"
_ENDS: Final = {".lora_a": "lora_A.weight", ".lora_b": "lora_B.weight"}
_WEIGHT: Final = ".weight"


class _Settings:
    """What the header says about all layers."""

    def __init__(self, source: Source) -> None:
        self.notes: list[str] = []
        self.stated: Mapping[str, Any] = {}
        self.component = ""
        text = source.metadata.get(_ALPHA, "0")
        alpha = number(text)
        if alpha is None:
            raise DoesNotFit(f"{source.file} says {_ALPHA}={text[:60]!r}, which is no finite number")
        if _ACTIVATED in source.metadata:
            raise DoesNotFit(
                f"{source.file} acts only behind certain tokens ({_ACTIVATED}), and adapters here act on all"
            )
        self._alpha = alpha

    def grade(self, module: str, rank: int | None) -> Grade:
        """Returns rank and scale of a layer: as llama.cpp, 1 where alpha is 0."""
        return Grade(rank, self._alpha / rank if self._alpha and rank else 1.0)

    def fields(self) -> dict[str, Any]:
        """Returns nothing: the header says nothing else."""
        return {}

    def second(self, module: str) -> bool | None:
        """Returns None: no two tensors have one name."""
        return None


def _owns(key: str) -> bool:
    return key.endswith(tuple(_WEIGHT + end for end in _ENDS))


def _split(key: str) -> tuple[str, str] | None:
    module, dot, end = key.rpartition(".")
    return module, _ENDS[dot + end]


def _find(names: Names, module: str) -> str | None:
    return names.llama_cpp.path(module)


def _spell(names: Names, path: str) -> str:
    return names.llama_cpp.name(path)


def _settings(source: Source, method: str, components: tuple[str, ...]) -> _Settings:
    return _Settings(source)


def _turned(names: Names, path: str, parts: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    own = names.llama_cpp.architecture
    if names.architecture != own:
        raise DoesNotFit(
            f"the file is for llama.cpp's {names.architecture or 'no architecture'!r}, and the model is its {own!r}: "
            "layers of one name are other ones there"
        )
    up = _ENDS[".lora_b"]
    return {part: names.llama_cpp.back(path, one) if part == up else one for part, one in parts.items()}


def _gather(names: Names, layers: Named) -> Named:
    return {
        _spell(names, path): {
            "lora_a": parts[_ENDS[".lora_a"]], "lora_b": names.llama_cpp.there(path, parts[_ENDS[".lora_b"]])
        }
        for path, parts in layers.items()
    }  # fmt: skip


def _check(draft: Draft) -> None:
    def refusal(path: str) -> str:
        if draft.names.llama_cpp.name(path):
            return ""
        return "its weight is none by itself there (it is one with another, as a tied head is), or is not known"

    check_served(draft, GGUF, "llama.cpp", refusal)


def _write(file: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str], draft: Draft) -> None:
    config = draft.config
    assert isinstance(config, RankedConfig), "it is a LoRA"
    path, site = next(iter(draft.sites.items()))
    entries: dict[str, str | float] = {
        "general.type": "adapter",
        ARCHITECTURE: draft.names.llama_cpp.architecture,
        "adapter.type": "lora",
        _ALPHA: config.scale_at(site.path) * len(draft.layers[path]["down"]),
        KEY: metadata[KEY],
    }
    write_gguf(file, tensors, entries)


GGUF: Final = FORMATS.add(
    "gguf",
    Format(
        name="gguf",
        title="file of llama.cpp's",
        dialect="peft",
        suffix=SUFFIX,
        owns=_owns,
        split=_split,
        find=_find,
        spell=_spell,
        settings=_settings,
        write=_write,
        check=_check,
        gather=_gather,
        methods=("lora",),
        language=True,
        level=of_one_alpha,
        turned=_turned,
    ),
)
