"""The tensors of blocks that are fetched when they compute: which can be, and how they are copied."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import Tensor, nn

from studio.errors import DoesNotFit
from studio.families.blocks import Resting
from studio.quantization.backend import packing_of

__all__ = ["check_fetched", "copied", "in_store", "is_plain"]


def check_fetched(held: Iterable[Resting], name: str, checkpointed: bool) -> None:
    """Checks that a block's tensors can be fetched.

    Args:
        held: the tensors. name: the model's, for messages. checkpointed: whether blocks compute again in the backward
            pass.

    Raises:
        DoesNotFit: they cannot.
    """
    for one in held:
        packing = packing_of(one.module)
        if packing is None:
            continue
        if not checkpointed:
            raise DoesNotFit(
                f"blocks_to_swap: {name} is quantised, and {packing.says} keep their weights for the backward pass: "
                "set gradient_checkpointing=true too"
            )
        odd = not is_plain(one.tensor)
        lost = odd and packing.remade(one.tensor, lambda tensor: tensor) is None
        if not packing.fetched or lost or (odd and one.tensor.device.type != "cpu"):
            raise DoesNotFit(
                f"blocks_to_swap: {packing.says} cannot wait elsewhere than they compute; quantise as nf4, fp8 or "
                "grid8, and give the base by its name, or leave it out"
            )


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is of a type of torch's own.

    Args:
        tensor: of any shape.
    """
    return type(tensor).__module__.partition(".")[0] == "torch"


def copied(one: Resting, make: Callable[[Tensor], Tensor]) -> Tensor:
    """Returns a tensor like one of a block, made of what ``make`` gives for each tensor that holds its numbers."""
    if not is_plain(one.tensor):
        packing = packing_of(one.module)
        made = None if packing is None else packing.remade(one.tensor, make)
        assert made is not None, "looked at before"
        return made
    made = make(one.tensor)
    return nn.Parameter(made, requires_grad=False) if isinstance(one.tensor, nn.Parameter) else made


def in_store(tensor: Tensor) -> Tensor:
    """Returns the numbers in the CPU's memory, locked there if the system lets it: copying then goes on by itself.

    Args:
        tensor: of any shape.
    """
    there = tensor.to("cpu")
    try:
        return there.pin_memory()
    except RuntimeError:
        return there
