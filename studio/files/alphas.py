"""The form in which a file keeps its alphas, a type and a shape: what is saved again keeps it.

kohya's tools store alpha without axes in the type of the tensors, LyCORIS' extraction as one number on an axis, others
as int64. The studio writes fp32 without axes, unless the file that an adapter came from has another form throughout.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from torch import Tensor

from studio.files.format import Source
from studio.files.header import DTYPES

__all__ = ["FORM", "alpha_form", "in_form"]

FORM: Final = "alpha_form"
"""The fact under which an adapter that was loaded has it."""
_ENDING: Final = "alpha"


def alpha_form(source: Source, keys: Iterable[str]) -> dict[str, str]:
    """Returns the fact about the form of a file's alphas; none where they are as the studio writes them, or differ.

    Args:
        source: the file. keys: those that are used.
    """
    infos = [source.infos[key] for key in keys if key.rpartition(".")[2] == _ENDING]
    forms = {f"{info.dtype} {len(info.shape)}" for info in infos}
    return {FORM: forms.pop()} if len(forms) == 1 and forms != {"F32 0"} else {}


def in_form(tensors: Mapping[str, Tensor], form: str) -> dict[str, Tensor]:
    """Returns tensors with their alphas in a form; one whose number it cannot hold stays as it is.

    Args:
        tensors: of a file, by key. form: as :func:`alpha_form` states it, or ``""``.

    Example:
        >>> import torch
        >>> in_form({"a.alpha": torch.tensor(4.0), "b.alpha": torch.tensor(0.5)}, "I64 1")
        {'a.alpha': tensor([4]), 'b.alpha': tensor(0.5000)}
    """
    word, _, axes = form.partition(" ")
    if word not in DTYPES or not axes.isdigit() or len(axes) > 1:
        return dict(tensors)
    found = dict(tensors)
    for key, alpha in tensors.items():
        if key.rpartition(".")[2] == _ENDING and alpha.numel() == 1:
            narrow = alpha.to(DTYPES[word])
            found[key] = narrow.reshape([1] * int(axes)) if narrow.to(alpha.dtype) == alpha else alpha
    return found
