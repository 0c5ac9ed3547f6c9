"""Blends per sample: the samples of one batch, each under a blend of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from studio.adapters.blend import read_blend
from studio.adapters.contract.strength import Strength, StrengthLike
from studio.adapters.hosting.attached import assemblies, check_unbaked
from studio.adapters.hosting.turns import BlendContext, turn
from studio.errors import BadConfig

__all__ = ["blended_samples"]


@contextmanager
def blended_samples(
    model: Any,
    blends: Sequence[Mapping[str, StrengthLike] | str],
    *,
    rows: Mapping[str, Sequence[int]] | None = None,
    flat: Mapping[str, Callable[[str], bool]] | None = None,
) -> Iterator[None]:
    """Lets every sample of a batch have a blend of its own while the context lasts: ``y_b = base(x_b) + Σ s_bi · …``.

    The base computes the batch as one; what the adapters change is computed row by row. While nothing is trained, the
    bits of a sample depend on its own blend, its own input and the number of rows alone.

    Args:
        model: the model or pipeline.
        blends: one per sample, as for :func:`studio.blend`, without strengths per sample in them.
        rows: component -> the sample of every row that it is called with (guidance: ``[0, 1, 0, 1]``), ``""`` for a
            model by itself; where a component is not named, every row is a sample.
        flat: component -> says of a path whether the layer there is called with the tokens of all rows as one row.

    Raises:
        UnknownName: an adapter that is not attached.
        BadConfig: no blend, an impossible strength, or strengths per sample in one.
        DoesNotFit: a blend is baked into the weights, or another task of this thread is inside a context on this model.

    Example:
        >>> import torch, studio
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 8))
        >>> _ = studio.attach(net, studio.LoRA(rank=2, targets=("0",)), name="dog")
        >>> _ = studio.state(net, "dog")["0.up"].data.fill_(1.0)
        >>> x = torch.eye(2, 8)
        >>> with torch.no_grad(), studio.blended_samples(net, [{"dog": 0.8}, {}]):
        ...     both = net(x)
        >>> studio.blend(net, {})
        >>> torch.equal(both[1], net(x)[1]), torch.equal(both[0], net(x)[0])
        (True, False)
    """
    with turn(model):
        check_unbaked(model, "blend")
        read = _read(model, blends)
        present = assemblies(model)
        context = BlendContext(assembly.levels for assembly in present.values())
        before = [(one.levels, one.levels.samples, one.levels.rows, one.levels.flat) for one in present.values()]
        try:
            for component, assembly in present.items():
                levels, owners = assembly.levels, (rows or {}).get(component)
                levels.rows = None if owners is None else tuple(owners)
                levels.flat = (flat or {}).get(component, levels.flat)
                assembly.set_samples(read)
            yield
        finally:
            for levels, samples, owners, named in before:
                levels.samples, levels.rows, levels.flat = samples, owners, named
                levels.touch()
            context.leave()


def _read(model: Any, blends: Sequence[Mapping[str, StrengthLike] | str]) -> list[dict[str, Strength]]:
    read = [read_blend(model, one) for one in blends]
    if not read:
        raise BadConfig("blends=[] names no sample; give one blend per sample")
    for index, one in enumerate(read):
        for name, strength in one.items():
            if strength.samples is not None:
                raise BadConfig(
                    f"the strength of {name!r} in the blend of sample {index} differs by sample; give one number"
                )
    return read
