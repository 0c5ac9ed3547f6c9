"""DeepSpeed, as far as the loop uses it: two engines, of which one lends the base out and one divides the adapter.

ZeRO takes what every process of a run would hold the same of and lets each hold a part of it. An adapter's numbers are
one in a thousand of its base's, so it stays whole, and what is divided is::

    zero2    the adapter's gradients and moments      (studio.trainers.loop.zero_adapter)
    zero3    these, and the frozen base               (studio.trainers.loop.zero_base)

With ``offload="optimizer"`` a process keeps its gradients and moments in the machine's memory and does its part of the
step there; with ``"all"`` its part of the base rests there too. DeepSpeed's settings are made here, none is asked for:
torch's own AdamW does the step, so nothing is compiled.

References:
    | ZeRO: Memory Optimizations Toward Training Trillion Parameter Models (Rajbhandari et al., 2019), arXiv:1910.02054
    | ZeRO-Offload: Democratizing Billion-Scale Model Training (Ren et al., 2021), arXiv:2101.06840
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import nn

from studio.packages import need

__all__ = ["ZERO", "engine", "need_deepspeed", "settings_for"]

ZERO: Final[Mapping[str, int]] = {"zero2": 2, "zero3": 3}
"""Ways of dividing that are DeepSpeed's -> its number of the stage."""


def need_deepspeed(sharding: str) -> None:
    """Checks that the package is there; it is not imported, which takes seconds.

    Args:
        sharding: the plan's.

    Raises:
        MissingPackage: it is not installed.
    """
    from importlib.util import find_spec

    if sharding in ZERO and find_spec("deepspeed") is None:
        need("deepspeed", f"trainings with sharding={sharding!r}", extra="distributed")


def settings_for(
    stage: int, *, offload: str = "none", passes: int = 1, clip: float = 0.0, unit: int = 0, numbers: int = 1,
    pinned: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Returns DeepSpeed's settings for one of the two engines.

    Args:
        stage: 2 divides gradients and moments, 3 the weights.
        offload: the plan's.
        passes: backward passes of a step.
        clip: largest norm of the gradient; 0 does not clip.
        unit: numbers of the largest block of weights: as many are fetched ahead, and no more than two such are held.
        numbers: of all that is divided.
        pinned: whether the machine's memory is pinned, for an accelerator to read while it computes.

    Example:
        >>> settings_for(2, offload="optimizer", clip=1.0)["zero_optimization"]["offload_optimizer"]
        {'device': 'cpu', 'pin_memory': False}
    """
    there = {"device": "cpu", "pin_memory": pinned}
    zero: dict[str, Any] = {"stage": stage, "overlap_comm": False, "reduce_bucket_size": numbers}
    if stage == 3:
        zero |= {
            "stage3_max_live_parameters": 2 * unit, "stage3_max_reuse_distance": 0, "stage3_prefetch_bucket_size": unit,
            "stage3_param_persistence_threshold": min(10**5, numbers // 10**4),  # what is tiny costs more to fetch
        }  # fmt: skip
        zero |= {"offload_param": there} if offload == "all" else {}
    elif offload != "none":
        zero["offload_optimizer"] = there
    return {
        "train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": passes, "gradient_clipping": clip,
        "zero_optimization": zero, "zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }  # fmt: skip


def engine(module: nn.Module, settings: dict[str, Any], device: torch.device, optimizer: Any = None) -> Any:
    """Returns DeepSpeed's engine over a module's tensors, which says nothing but what went wrong.

    Args:
        module: holds them. settings: from :func:`settings_for`. device: where it is computed. optimizer: over them.
    """
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else it takes what the machine has
    os.environ.setdefault("LOCAL_RANK", "0")
    warnings.filterwarnings("ignore", message="`torch.distributed.*` is deprecated", category=FutureWarning)
    library = need("deepspeed", "trainings with sharding='zero2' and 'zero3'", extra="distributed")
    library.utils.logging.logger.setLevel(logging.ERROR)
    vars(library.ops).setdefault("__compatible_ops__", {})  # else it compiles collectives of its own for minutes
    return library.initialize(model=module, optimizer=optimizer, config=settings)[0]
