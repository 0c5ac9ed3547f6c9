"""What stops a training that would be for nothing: nothing trained, numbers that are not finite, an interruption."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from studio.errors import NothingTrained, StudioError
from studio.families import components
from studio.signals import hear

__all__ = [
    "Interruption",
    "NotFinite",
    "check_moved",
    "check_trainable",
    "find_not_finite",
    "interruptible",
    "site_of_key",
]


class NotFinite(StudioError):
    """A loss or a gradient became NaN or infinite; the message names the module and the last good checkpoint."""


def site_of_key(key: str) -> str:
    """Returns the layer's path of a key ``"<path>.<tensor>"``."""
    return key.rpartition(".")[0]


def check_trainable(tensors: Mapping[str, Tensor], wanted: Sequence[str]) -> None:
    """Checks, before step 1, that every component that shall be trained has something that can be.

    Args:
        tensors: the adapter's tensors by ``"<component>.<path>.<tensor>"``.
        wanted: components; ``""`` is a model by itself.

    Raises:
        NothingTrained: naming the components.
    """
    trained = [key for key, tensor in tensors.items() if tensor.requires_grad]
    bare = [name for name in wanted if not any(not name or key.startswith(f"{name}.") for key in trained)]
    if bare:
        raise NothingTrained(
            f"nothing would be trained in {' and '.join(bare) or 'the model'}: the adapter's targets name no layer "
            "there; name some, or do not ask for that component"
        )


def check_moved(
    start: Mapping[str, Tensor], tensors: Mapping[str, Tensor], step: int, silent: Collection[str] = (),
    reached: Callable[[Tensor], bool] = lambda tensor: tensor.grad is not None,
) -> None:  # fmt: skip
    """Checks, after the second step, that every tensor has a gradient and that every site has a tensor that moved.

    Two steps, because a factor that starts at zero keeps its partner's first gradient at zero.

    Args:
        start: the adapter's tensors before the first step, of any shape, by ``"<component>.<path>.<tensor>"``.
        tensors: the same now, of any shape.
        step: how many steps are done.
        silent: sites that nothing depends on, which a file that is trained on from may bring along.
        reached: whether a tensor has a gradient.

    Raises:
        NothingTrained: naming the sites.
    """
    heard = {key: tensor for key, tensor in tensors.items() if site_of_key(key) not in silent}
    trained = {key: tensor for key, tensor in heard.items() if tensor.requires_grad}
    without = [key for key, tensor in trained.items() if not reached(tensor)]
    if without:
        raise NothingTrained(
            f"after step {step} no gradient has reached {_named(without)}: the forward pass does not use them; leave "
            "these layers out of the targets"
        )
    still: dict[str, bool] = {}
    for key, tensor in trained.items():
        site = site_of_key(key)
        still[site] = still.get(site, True) and bool(torch.equal(tensor.detach(), start[key].to(tensor.device)))
    unmoved = [site for site, stands in still.items() if stands]
    if unmoved:
        raise NothingTrained(
            f"after step {step} nothing has changed in {_named(unmoved)}: their gradients are zero; leave these layers "
            "out of the targets, or raise the learning rate"
        )


def find_not_finite(model: Any, tensors: Mapping[str, Tensor], again: Callable[[], Tensor]) -> str:
    """Says where numbers stop being finite: repeats the forward pass and looks at each module's output.

    Args:
        model: the model or pipeline.
        tensors: the adapter's tensors.
        again: computes the same loss again.

    Returns:
        The end of a sentence that begins with "the first that is not finite is".
    """
    broken = [key for key, tensor in tensors.items() if not _finite(tensor)]
    if broken:
        return f"the adapter's own {_named(broken)}"
    found: list[str] = []

    def watch(path: str) -> Callable[[nn.Module, Any, Any], None]:
        def look(module: nn.Module, given: Any, output: Any) -> None:
            if not found and not all(map(_finite, _tensors(output))):
                entered = all(map(_finite, _tensors(given)))
                found.append(f"the output of {path}" if entered else f"what goes into {path}")

        return look

    with contextlib.ExitStack() as stack:
        for component, root in components(model).items():
            for path, module in root.named_modules():
                if not any(module.children()) and ".adapters" not in f".{path}":
                    name = ".".join(part for part in (component, path) if part)
                    stack.callback(module.register_forward_hook(watch(name)).remove)
        stack.enter_context(torch.no_grad())
        again()
    if found:
        return found[0]
    gradients = [key for key, tensor in tensors.items() if tensor.grad is not None and not _finite(tensor.grad)]
    return f"the gradient of {_named(gradients)}" if gradients else "the loss itself; every module's output is finite"


class Interruption:
    """Whether someone asked the run to stop; ``name`` is the signal's."""

    def __init__(self) -> None:
        self.name: str | None = None


@contextlib.contextmanager
def interruptible() -> Iterator[Interruption]:
    """Turns the first Ctrl-C, SIGTERM or SIGHUP into a request that is met after the step; the second acts at once.

    Signals reach the main thread only; in another thread nothing is changed.
    """
    request = Interruption()

    def ask(number: signal.Signals) -> None:
        if request.name is not None:
            raise KeyboardInterrupt
        request.name = number.name

    forget = hear(ask)
    try:
        yield request
    finally:
        forget()


def _named(names: Sequence[str], most: int = 5) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def _finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for entry in value.values():
            yield from _tensors(entry)
    elif isinstance(value, (list, tuple)):
        for entry in value:
            yield from _tensors(entry)
