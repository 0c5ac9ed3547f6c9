"""The numbers in a file's tensors: finite, whole where they are counts, single where they are one number."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

import torch
from torch import Tensor

from studio.adapters import Site
from studio.errors import DoesNotFit, Refused
from studio.files.format import Source

__all__ = ["check_finite", "check_size", "fitting", "norms", "one_number", "whole_numbers"]

_FP32: Final = torch.finfo(torch.float32).max
_FP16: Final = torch.finfo(torch.float16).max
_SQUARED: Final = _FP32**0.5
"""What is computed with a change squares it: DoRA's norms, the base's own, attention."""


def one_number(key: str, tensor: Tensor) -> float:
    """Returns the number that a tensor of a file is, whatever its number of axes.

    Args:
        key: of the tensor. tensor: ``()`` or ``(1, ..)``.

    Raises:
        DoesNotFit: it is of several numbers or none, or no real number. Refused: it is NaN, or beyond fp32.
    """
    if tensor.numel() != 1 or tensor.is_complex() or tensor.dtype == torch.bool:
        kind = str(tensor.dtype).removeprefix("torch.")
        raise DoesNotFit(f"{key} is a {kind} of the shape {tuple(tensor.shape)}, and one number was expected")
    number = float(tensor.item())
    if not abs(number) <= _FP32:
        raise Refused(f"{key} is {number}, so the adapter could give nothing but NaN; get the file again")
    return number


def whole_numbers(part: str, tensor: Tensor) -> Tensor:
    """Returns a file's tensor of counts or places as the whole numbers that it holds: int32 stays so, others are int64.

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
    return tensor if tensor.dtype == torch.int32 else tensor.long()


def finite(tensor: Tensor) -> bool:
    """Says whether all numbers of a tensor are finite in fp32, which the studio computes adapters in."""
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    if not tensor.is_floating_point():
        return True
    tensor = tensor.float()
    return bool(torch.isfinite(tensor.sum())) or bool(torch.isfinite(tensor).all())


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


def norms(tensors: Iterable[Tensor]) -> float:
    """Returns the product of the norms that are above 1, which no entry of what is made of the tensors goes beyond.

    Args:
        tensors: of any shapes ``(...)``. One that holds NaN makes it NaN.
    """
    product = 1.0
    for tensor in tensors:
        if tensor.is_floating_point():
            norm = float(torch.linalg.vector_norm(tensor))
            product *= 1.0 if norm <= 1.0 else norm
    return product


def check_size(scale: float, norm: float, site: Site, source: Source, keys: Sequence[str]) -> None:
    """Refuses numbers that are finite each by itself, and that nothing finite can be computed with.

    Args:
        scale: of the layer. norm: the product of its tensors' norms. site: the layer.
        source: the file. keys: those of this layer.

    Raises:
        Refused: a tensor holds NaN, or the layer's change is beyond the numbers that it is computed in.
    """
    weight = site.module._parameters.get(site.weight_name)
    half = weight is not None and weight.dtype == torch.float16
    if abs(scale) * norm <= (_FP16 if half else _SQUARED):
        return
    check_finite(source.tensors, keys, source.file)
    tensors = {key: source.tensors[key] for key in keys}
    peaks = {key: float(tensor.float().abs().max()) for key, tensor in tensors.items() if tensor.numel()}
    factors = {key: peak for key, peak in peaks.items() if tensors[key].dim() and tensors[key].is_floating_point()}
    largest = abs(scale) * math.prod(max(1.0, peak) for peak in factors.values())
    if half and largest <= _FP16:  # a norm is of many numbers
        return
    worst = max(peaks, key=peaks.__getitem__)
    raise Refused(
        f"{source.file}: {worst!r} has numbers up to {peaks[worst]:.1e}, and with the scale {scale:.3g} those of "
        f"{site.path} change it by up to {largest:.1e}, more than {'fp16' if half else 'fp32'} can compute "
        "with: the adapter would give infinities and NaN; its training diverged or the file is damaged: take an "
        "earlier one, or get it again"
    )


@contextmanager
def fitting(what: str | Callable[[], str]) -> Iterator[None]:
    """Turns what torch and Python say of tensors and fields that nothing can be made of into a sentence.

    A method computes with what a file gives it; where shapes contradict each other, what fails first is a matter of
    the method, and always the same to who asked.

    Args:
        what: the subject of the sentence, or what says it.

    Raises:
        DoesNotFit: such an error was raised.
    """
    try:
        yield
    except (RuntimeError, LookupError, ValueError, TypeError, ArithmeticError, AttributeError) as error:
        reason = str(error).partition("\n")[0][:200]
        subject = what if isinstance(what, str) else what()
        raise DoesNotFit(f"{subject} do not go together ({reason})") from None
