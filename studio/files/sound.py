"""The numbers in a file's tensors: finite, whole where they are counts, single where they are one number."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from studio.adapters import AdapterConfig
from studio.adapters.contract.ranked import RankedConfig
from studio.errors import DoesNotFit, Refused

__all__ = ["check_finite", "check_product", "fitting", "one_number", "whole_numbers"]

_LARGEST = torch.finfo(torch.float32).max


def one_number(key: str, tensor: Tensor) -> float:
    """Returns the number that a tensor of a file is, whatever its number of axes.

    Args:
        key: of the tensor. tensor: ``()`` or ``(1, ..)``.

    Raises:
        DoesNotFit: it is of several numbers or none, or no real number.
    """
    if tensor.numel() != 1 or tensor.is_complex() or tensor.dtype == torch.bool:
        kind = str(tensor.dtype).removeprefix("torch.")
        raise DoesNotFit(f"{key} is a {kind} of the shape {tuple(tensor.shape)}, and one number was expected")
    return float(tensor.item())


def whole_numbers(part: str, tensor: Tensor) -> Tensor:
    """Returns a file's tensor of counts or places as int64.

    Args:
        part: what it is called. tensor: of any shape ``(...)``.

    Raises:
        DoesNotFit: it holds something that is no whole number.
    """
    sound = not tensor.is_complex() and tensor.dtype != torch.bool
    if sound and tensor.is_floating_point():
        sound = bool((tensor.double() == tensor.double().trunc()).all()) and bool((tensor.double().abs() < 2**53).all())
    if not sound:
        raise DoesNotFit(f"its tensor {part} is {str(tensor.dtype).removeprefix('torch.')} and not of whole numbers")
    return tensor.long()


def finite(tensor: Tensor) -> bool:
    """Says whether all numbers of a tensor are finite in fp32, which the studio computes adapters in."""
    if tensor.is_complex():
        return bool(torch.isfinite(torch.view_as_real(tensor)).all())
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor.float()).all())


def check_finite(tensors: Mapping[str, Tensor], keys: Iterable[str], file: object) -> None:
    """Refuses tensors with which everything that is computed would be NaN.

    Args:
        tensors: of the file. keys: those that are used. file: for the message.

    Raises:
        Refused: one holds NaN or an infinity, or a number beyond fp32.
    """
    bad = [key for key in keys if not finite(tensors[key])]
    if bad:
        more = f" and {len(bad) - 1} more tensors" if bad[1:] else ""
        raise Refused(
            f"{file}: {bad[0]!r}{more} hold NaN or infinite numbers, so the adapter could give nothing but NaN; its "
            "training diverged or the file is damaged: take an earlier one, or get it again"
        )


def check_product(config: AdapterConfig, layers: Mapping[str, Mapping[str, Tensor]], file: object) -> None:
    """Refuses numbers that are finite each by itself and whose product with the scale is beyond fp32.

    Args:
        config: the method. layers: path -> its tensors, all finite. file: for the message.

    Raises:
        Refused: a layer's change could not be computed.
    """
    for path, tensors in layers.items():
        bound = abs(config.scale_at(path)) if isinstance(config, RankedConfig) else 1.0
        for tensor in tensors.values():
            if tensor.numel() and tensor.is_floating_point():
                bound *= max(1.0, float(tensor.abs().max()))
        if bound > _LARGEST:
            raise Refused(
                f"{file}: at {path} the scale times the largest numbers of the tensors is {bound:.1e}, more than fp32 "
                "holds, so the adapter would give infinities; its alpha or a tensor is wrong"
            )


@contextmanager
def fitting(what: str) -> Iterator[None]:
    """Turns what torch and Python say of tensors and fields that nothing can be made of into a sentence.

    A method computes with what a file gives it; where shapes contradict each other, what fails first is a matter of
    the method, and always the same to who asked.

    Args:
        what: the subject of the sentence.

    Raises:
        DoesNotFit: such an error was raised.
    """
    try:
        yield
    except (RuntimeError, LookupError, ValueError, TypeError, ArithmeticError, AttributeError) as error:
        reason = str(error).partition("\n")[0][:200]
        raise DoesNotFit(f"{what} do not go together ({reason})") from None
