"""Wrappers: what ``torch.compile``, DataParallel, DDP and FSDP put around a model; its names show nothing of them."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, Final, cast

from torch import nn

from studio.errors import DoesNotFit

__all__ = ["check_open", "check_own", "named_parameters", "named_parts", "unwrapped"]

_WRAPPERS: Final = {
    "OptimizedModule": "_orig_mod",
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "AveragedModel": "module",
    "DeepSpeedEngine": "module",
    "FullyShardedDataParallel": "_fsdp_wrapped_module",
    "CheckpointWrapper": "_checkpoint_wrapped_module",
}
"""Class of a wrapper (asked by name, so that nothing is imported for it) -> where it keeps the model."""


def _wrapped_word(module: nn.Module) -> str:
    """The attribute in which a wrapper keeps its model, ``""`` for any other module."""
    kind: Any = type(module)
    word = _word_of(kind)
    return word if word in module._modules else ""


@functools.lru_cache(maxsize=1024)
def _word_of(kind: type[nn.Module]) -> str:
    libraries = [cls for cls in kind.__mro__ if cls.__module__.partition(".")[0] in ("torch", "deepspeed")]
    return next((_WRAPPERS[cls.__name__] for cls in libraries if cls.__name__ in _WRAPPERS), "")


def unwrapped(module: nn.Module) -> nn.Module:
    """Returns the model inside all wrappers.

    Example:
        >>> model = nn.Linear(2, 2)
        >>> unwrapped(nn.DataParallel(model)) is model
        True
    """
    kind: Any = type(module)
    while (word := _word_of(kind)) and word in module._modules:
        module = cast(nn.Module, module._modules[word])
        kind = type(module)
    return module


def check_open(model: Any) -> None:
    """Checks that what is put on a model now takes part in its training.

    DDP and FSDP note the parameters of a model when they are put around it: later ones would be trained by each process
    for itself.

    Raises:
        DoesNotFit: the model is inside such a wrapper, of several processes or with weights that it has taken apart.
    """
    module = model
    while isinstance(module, nn.Module) and (word := _wrapped_word(module)):
        shared = getattr(module, "process_group", None)
        apart = not getattr(module, "_use_orig_params", True)
        if apart or (shared is not None and shared.size() > 1):
            raise DoesNotFit(
                f"the model is inside {type(module).__name__}, which has noted its parameters already: attach to the "
                "model first, then wrap it"
            )
        module = module._modules[word]


def check_own(module: nn.Module, doing: str) -> None:
    """Checks that the parameters of a part of a model are its own, so that they can be exchanged or taken away.

    FSDP keeps them inside one long tensor, and looks for each at every call and in every state dict.

    Args:
        module: the part. doing: what is to be done with it, for the message.

    Raises:
        DoesNotFit: FSDP has taken them over.
    """
    if any(getattr(parameter, "_fsdp_flattened", False) for parameter in module._parameters.values()):
        raise DoesNotFit(
            f"cannot {doing}: the model has been wrapped as FullyShardedDataParallel since the adapter was attached, "
            "which looks for its parameters at every call; save the adapter, and load it onto a model without wrapper"
        )


def named_parts(root: nn.Module, but: type[nn.Module] | None = None) -> Iterator[tuple[str, nn.Module]]:
    """Yields the path and the module of all parts of a model, as if nothing in it were wrapped.

    Args:
        root: the model. but: a class whose modules are left out, with all that is in them.

    Example:
        >>> [path for path, _ in named_parts(nn.Sequential(nn.DataParallel(nn.Sequential(nn.ReLU()))))]
        ['', '0', '0.0']
    """
    seen: set[int] = set()
    waiting = [("", root)]
    while waiting:
        path, module = waiting.pop()
        module = unwrapped(module)
        if id(module) in seen:
            continue
        seen.add(id(module))
        yield path, module
        below = [(name, part) for name, part in module._modules.items() if part is not None]
        if but is not None:
            below = [(name, part) for name, part in below if not isinstance(part, but)]
        waiting += [(f"{path}.{name}" if path else name, part) for name, part in reversed(below)]


def named_parameters(
    root: nn.Module, but: type[nn.Module] | None = None
) -> Iterator[tuple[str, nn.Parameter]]:  # fmt: skip
    """Yields the path and the tensor of all parameters, as if nothing were wrapped; a tied one under each of its names.

    Args:
        root, but: as for :func:`named_parts`.

    Example:
        >>> [path for path, _ in named_parameters(nn.DataParallel(nn.Linear(2, 2)))]
        ['weight', 'bias']
    """
    for path, module in named_parts(root, but):
        for name, parameter in module._parameters.items():
            if parameter is not None:
                yield f"{path}.{name}" if path else name, parameter
