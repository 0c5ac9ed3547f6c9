"""What layers were called in other versions of transformers and diffusers: one table, read in both directions.

A file keeps the names that its base had when it was trained. Both libraries renamed layers since; a file of either time
is meant for a base of either. Every fact here is that of the libraries' own tables (``conversion_mapping.py`` of
transformers 5, the deprecated attention blocks of diffusers), which know tensors of checkpoints and no adapters.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

__all__ = ["RENAMES", "Rename", "other_names"]


@dataclass(frozen=True)
class Rename:
    """Names that were one thing once and are another now.

    Attributes:
        classes: a regular expression that the names of the models' classes match.
        older, newer: whole words between dots, ``"attention.query"``; with ``^`` in front those that a name begins
            with, and ``"^"`` alone is nothing.
    """

    classes: str
    older: str
    newer: str


_LANGUAGE: Final = r"(Llama|Mistral|Mixtral|Ministral|Qwen[23]|Gemma[23]?|Phi3?|Granite|Olmo2?|Cohere2?|StableLm|Glm4?)"
_HEADED: Final = r"(Text)?(Moe)?(Model|For(CausalLM|SequenceClassification|TokenClassification|QuestionAnswering))$"
_TOLD: Final = r"ForConditionalGeneration$|^FuyuForCausalLM$"
_SEEING: Final = r"^(CLIP|CLIPSeg|ChineseCLIP|AltCLIP|MetaClip2|XCLIP|Siglip2?|MLCD)VisionModel(WithProjection)?$"
_READING: Final = r"^(CLIP|CLIPSeg|MetaClip2|XCLIP|Siglip2?)TextModel(WithProjection)?$"
_VIT: Final = r"^(ViT|DeiT|Beit|AST|IJepa|Vivit)(?!MAE|MSN)"
_DINO: Final = r"^(Dinov2|LwDetr)"
_SWIN: Final = r"^Swin(Model|For)"
_GPT2: Final = r"^(GPT2|GPTJ|GPTNeo|Bloom|Falcon|CodeGen)(LMHead)?(Model|For\w+)$"
_ATTENDING: Final = r"^(AutoencoderKL|AutoencoderTiny|VQModel|AsymmetricAutoencoderKL|UNet2DModel|UNet1DModel)$"

RENAMES: Final = (
    # vision-language models: the language model had its head inside, nothing stood under "model" (transformers 4.52)
    Rename(_TOLD, "^language_model.model", "^model.language_model"),
    Rename(_TOLD, "^language_model.lm_head", "^lm_head"),
    *(
        Rename(_TOLD, f"^{part}", f"^model.{part}")
        for part in (
            "vision_tower", "image_tower", "video_tower", "audio_tower", "multi_modal_projector", "vision_model",
            "vision_embed_tokens",
        )
    ),
    Rename(r"(Llava|Gemma3|Mistral3|AyaVision|Aria|InternVL|GotOcr2|Fuyu|Mllama)\w*Model$",
           "^language_model.model", "^language_model"),
    Rename(r"^Qwen2(_5)?_?VLForConditionalGeneration$", "^visual", "^model.visual"),
    Rename(r"^Qwen2(_5)?_?VLForConditionalGeneration$", "^model", "^model.language_model"),
    # CLIP and its kin by themselves: no level of their own any more (transformers 5.6)
    Rename(_READING, "^text_model", "^"),
    Rename(_SEEING, "^vision_model", "^"),
    Rename(_TOLD, "vision_tower.vision_model", "vision_tower"),
    # language models with a head and without one
    Rename(f"^{_LANGUAGE}{_HEADED}", "^model", "^"),
    Rename(_GPT2, "^transformer", "^"),
    Rename(r"^GPTNeoXForCausalLM$", "^embed_out", "^lm_head"),
    # pictures' encoders, which have the names of language models' layers now (transformers 5)
    Rename(_VIT, "encoder.layer", "layers"),
    *(
        Rename(classes, f"attention.attention.{old}", f"attention.{new}")
        for classes in (_VIT, _DINO)
        for old, new in {"query": "q_proj", "key": "k_proj", "value": "v_proj"}.items()
    ),
    *(
        Rename(_SWIN, f"attention.self.{old}", f"attention.{new}")
        for old, new in {"query": "q_proj", "key": "k_proj", "value": "v_proj"}.items()
    ),
    *(Rename(classes, "attention.output.dense", "attention.o_proj") for classes in (_VIT, _DINO, _SWIN)),
    *(Rename(classes, "intermediate.dense", "mlp.fc1") for classes in (_VIT, _SWIN)),
    *(Rename(classes, "output.dense", "mlp.fc2") for classes in (_VIT, _SWIN)),
    # diffusers' attention blocks, before they were its attentions (diffusers 0.13)
    *(
        Rename(_ATTENDING, old, new)
        for old, new in {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}.items()
    ),
)  # fmt: skip


def other_names(cls: str, names: Iterable[str]) -> dict[str, str]:
    """Returns what layers of a model were or will be called, where that tells one layer.

    Args:
        cls: name of the model's class. names: of its layers.

    Returns:
        Another name -> the layer's. None is the name of a layer of this model.

    Example:
        >>> other_names("LlavaModel", ["language_model.layers.0.mlp.up_proj"])
        {'language_model.model.layers.0.mlp.up_proj': 'language_model.layers.0.mlp.up_proj'}
    """
    rows = [row for row in RENAMES if re.search(row.classes, cls)]
    if not rows:
        return {}
    own = set(names)
    found: dict[str, set[str]] = {}
    for name in own:
        for other in _spellings(name, rows) - own:
            found.setdefault(other, set()).add(name)
    return {other: meant.pop() for other, meant in found.items() if len(meant) == 1}


def _spellings(name: str, rows: Iterable[Rename]) -> set[str]:
    """All names that the rows make of one, each row applied or not."""
    spellings = {name}
    for row in rows:
        for spelling in tuple(spellings):
            spellings |= {*_put(spelling, row.newer, row.older), *_put(spelling, row.older, row.newer)}
    return spellings


def _put(name: str, old: str, new: str) -> Iterator[str]:
    """The name with other words, where it has the old ones, and the new ones are not there already."""
    begins = old.startswith("^")
    old, new = old.lstrip("^"), new.lstrip("^")
    if old in new and _has(name, new, begins):
        return
    if not old:
        yield f"{new}.{name}"
    elif begins and _has(name, old, begins):
        yield f"{new}{name[len(old) :]}".removeprefix(".")
    elif _has(name, old, begins):
        yield f".{name}.".replace(f".{old}.", f".{new}.", 1)[1:-1]


def _has(name: str, words: str, begins: bool) -> bool:
    return f"{name}.".startswith(f"{words}.") if begins else f".{words}." in f".{name}."
