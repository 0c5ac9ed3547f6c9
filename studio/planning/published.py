"""Peaks that others have measured and published, with what is known of how, to hold forecasts against."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

__all__ = ["MIB", "PROCESS", "PUBLISHED", "UNIT", "Published"]


@dataclass(frozen=True)
class Published:
    """A row of a published table.

    Args:
        model: the public model's name. what: how it was trained.
        published: GB that were measured; None: more than there were. there: GB of the device. host: GB of the CPU's
            memory; None: nobody says.
        settings: fields of a forecast that play the recipe.
        targets: of a LoRA; empty: every weight was trained. rank: its rank.
        notes: what was taken for granted, and what explains a difference.
    """

    model: str
    what: str
    published: float | None
    there: float
    host: float | None
    settings: Mapping[str, Any]
    targets: tuple[str, ...] = ()
    rank: int = 16
    notes: tuple[str, ...] = field(default=())


_DREAMBOOTH: Final = dict(
    task="dreambooth", dtype="fp32", text_encoder=True, attention="eager", prior="images", cached=False, batch_size=1,
    previews=False, keep_gradients=True,
)  # fmt: skip
_PAIRS: Final = dict(
    task="seq2seq", dtype="fp32", keep_gradients=True, attention="eager", batch_size=8, length=60, answer=4
)
_FINE_PAIRS: Final = {**_PAIRS, "length": 64}
_TEXTS: Final = dict(task="causal-lm", dtype="fp32", keep_gradients=True, attention="eager", batch_size=8, length=64)
_OFFLOADED: Final = {"offload": "all", "sharding": "zero3"}
_SUBJECT: Final = ("to_q", "to_v", "q_proj", "v_proj")
_TRAINED: Final = (
    "prior preservation makes two rows of a batch of 1; the text encoder is trained, the autoencoder stays"
)
_TWEETS: Final = "8 samples of twitter_complaints, fp32, padded to the longest: of the 50 it has 144 characters, which"
_LENGTH: Final = f"{_TWEETS} are about 60 of T5's pieces (counted by hand; one more is 0.05 GB); answers of 4"
_FINER: Final = (
    f"{_TWEETS} are taken for 64 of mT5's pieces, as it cuts English finer than T5 (its tokenizer was not at hand; one "
    "more is 0.1 GB); answers of 4"
)
_WHOLE: Final = (
    "no script of it is published. Weights, gradients and two moments alone are 45.60 GB, which leaves 1.54 GB for all "
    "else, half of what the LoRA row leaves with the same data: gradients may have been dropped, not zeroed, which "
    "would be 46.12 GB (-2.2 %), or the batch was another one"
)
_CAUSAL: Final = "8 samples of twitter_complaints, padded to 64 tokens, fp32"
_ZERO: Final = (
    "DeepSpeed's buffers are those of its own defaults (10⁹ live parameters, a bucket of 5·10⁸, the largest parameter "
    "twice), which were looked for after the gap had been seen; the log beside the published recipe of t0-3b agrees: "
    "1916 MiB before the first step, where the bucket is 1907, and 9404 MiB (9.86 GB) at the peak"
)
_LOCKED: Final = (
    "CPU: weights and moments in page-locked memory, which is given in powers of two (a T5 matrix of 40 MiB takes 64), "
    "beside what the process takes without them (the other rows' figure, which is not forecast)"
)
_BARE: Final = (
    "CPU: the weights alone are 51.7 GB, so the published 52 leave nothing for the process, which takes 3 without "
    "them, nor for powers of two, which would make it 70: its pages were not locked, and the process left out"
)
UNIT: Final = (
    "the published scripts print MiB, and the tables do not say what they call a GB: the deviation is given for 10⁹ "
    "bytes, and for a thousand MiB; the one log beside them (9404 MiB, published as 9.8 GB) speaks for 10⁹ bytes"
)
MIB: Final = 2**20

PUBLISHED: Final[tuple[Published, ...]] = (
    Published("sd1", "full", 27.5, 80, None, {**_DREAMBOOTH, "whole": True}, notes=(
        _TRAINED, "gradients are zeroed and not dropped, as accelerate did then. Dropped, it would be 23.7 GB")),
    Published("sd1", "LoRA", 15.5, 80, None, _DREAMBOOTH, _SUBJECT, notes=(_TRAINED,)),
    Published("sd1", "LoRA + checkpointing", 8.12, 80, None, {**_DREAMBOOTH, "gradient_checkpointing": True},
              _SUBJECT, notes=(_TRAINED,
              "the text encoder is checkpointed too, which the published script leaves out")),
    Published("t0-3b", "full", 47.14, 80, 2.96, {**_PAIRS, "whole": True}, notes=(_LENGTH, _WHOLE)),
    Published("t0-3b", "LoRA", 14.4, 80, 2.96, _PAIRS, ("q", "v"), 8, (_LENGTH,)),
    Published("t0-3b", "LoRA + ZeRO-3 offload", 9.8, 80, 17.8, {**_PAIRS, **_OFFLOADED}, ("q", "v"), 8,
              (_LENGTH, _ZERO, _LOCKED)),
    Published("mt0-xxl", "full", None, 80, None, {**_FINE_PAIRS, "whole": True}, notes=(_FINER,)),
    Published("mt0-xxl", "LoRA", 56.0, 80, 3.0, _FINE_PAIRS, ("q", "v"), 8, (_FINER,)),
    Published("mt0-xxl", "LoRA + ZeRO-3 offload", 22.0, 80, 52.0, {**_FINE_PAIRS, **_OFFLOADED}, ("q", "v"),
              8, (_FINER, _ZERO, _LOCKED, _BARE)),
    Published("bloomz-7b1", "full", None, 80, None, {**_TEXTS, "whole": True}, notes=(_CAUSAL,)),
    Published("bloomz-7b1", "LoRA", 32.0, 80, 3.8, _TEXTS, ("query_key_value",), 8, (_CAUSAL,)),
    Published("bloomz-7b1", "LoRA + ZeRO-3 offload", 18.1, 80, 35.0, {**_TEXTS, **_OFFLOADED},
              ("query_key_value",), 8, (_CAUSAL, _ZERO, _LOCKED)),
)  # fmt: skip
"""PEFT's tables: Stable Diffusion v1-4 by DreamBooth, and three language models on one A100 of 80 GB."""

PROCESS: Final[Mapping[str, float]] = {
    one.model: one.host for one in PUBLISHED if one.host is not None and "offload" not in one.settings
}
"""Model -> GB of the CPU's memory that its process takes where nothing rests there, as published."""
