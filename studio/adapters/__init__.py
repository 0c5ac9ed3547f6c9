"""The adapter core: methods, sites, and the verbs attach, detach, blend and bake.

The package can be called: ``studio.adapters(model)`` tells what is attached to ``model``, although ``studio.adapters``
is also the name of this package.
"""

import sys
from types import ModuleType
from typing import Any

from studio.adapters.attach import AttachReport, attach, detach, install
from studio.adapters.bake import bake, unbake
from studio.adapters.blend import (
    at_progress,
    blend,
    blended,
    block_weights,
    current_blend,
    move,
    moving,
    read_strength,
    sample_rows,
    scheduled,
)
from studio.adapters.combine import CombineReport, combine
from studio.adapters.combining.rules import COMBINES
from studio.adapters.contract.adapter import METHODS, Adapter, AdapterConfig, Delta, Factors
from studio.adapters.contract.mixed import Mixed
from studio.adapters.contract.schedule import Schedule, When
from studio.adapters.contract.strength import Strength
from studio.adapters.grow import grow
from studio.adapters.info import AdapterInfo, TrainableReport, adapters, site_of, state, trainable
from studio.adapters.methods import *  # noqa: F403  (the configs of all methods)
from studio.adapters.quantize import QuantizeReport, quantize
from studio.adapters.samples import blended_samples
from studio.adapters.sites.site import Site
from studio.adapters.slots import Slots, slots
from studio.adapters.tokens.wiring import for_tasks
from studio.quantization.grid import GroupQuantizedLinear

__all__ = [
    "COMBINES",
    "METHODS",
    "Adapter",
    "AdapterConfig",
    "AdapterInfo",
    "AttachReport",
    "CombineReport",
    "Delta",
    "Factors",
    "GroupQuantizedLinear",
    "Mixed",
    "QuantizeReport",
    "Schedule",
    "Site",
    "Slots",
    "Strength",
    "TrainableReport",
    "When",
    "adapters",
    "at_progress",
    "attach",
    "bake",
    "blend",
    "blended",
    "blended_samples",
    "block_weights",
    "combine",
    "current_blend",
    "detach",
    "for_tasks",
    "grow",
    "install",
    "quantize",
    "move",
    "moving",
    "read_strength",
    "sample_rows",
    "scheduled",
    "slots",
    "site_of",
    "state",
    "trainable",
    "unbake",
]


class _Package(ModuleType):
    """This package as a function; importing a subpackage always binds its name in ``studio``, so one must be both."""

    def __call__(self, model: Any) -> dict[str, AdapterInfo]:
        return adapters(model)


sys.modules[__name__].__class__ = _Package
