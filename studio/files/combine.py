"""combine_files: one new adapter file out of several, without a model."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from studio.adapters.combination import Combination, CombineReport, Way, digest, read_way
from studio.adapters.contract.ranked import any_rank
from studio.adapters.contract.strength import StrengthLike
from studio.errors import BadConfig, BadFile, DoesNotFit, NoEffect, StudioError
from studio.families.called import model_called
from studio.families.shapes import SHAPES, outline
from studio.files.hashes import file_hash
from studio.files.loose import Loose, read_loose, write_loose
from studio.files.parents import Parent, layers_of, strength_of
from studio.files.source import tensor_file
from studio.given import given_path

__all__ = ["LooseCombination", "Parent", "combine_files", "combined", "lineage"]


@dataclass(frozen=True, kw_only=True)
class LooseCombination:
    """An adapter that several files became, which is not written yet.

    Attributes:
        report: what came of them. loose: the adapter. notes: what is worth knowing about the reading.
    """

    report: CombineReport
    loose: Loose
    notes: tuple[str, ...] = ()

    def save(self, file: str | Path, *, format: str | None = None, dtype: torch.dtype | str | None = None) -> Path:
        """Writes it.

        Args:
            file: where to. format: of FORMATS; None: diffusers. dtype: what its tensors are stored in; None: fp32.

        Raises:
            BadFile: it is there already, or nothing can be written there. UnknownName: no such format.
            DoesNotFit: the format cannot say what this adapter is. BadConfig: an impossible dtype.
        """
        place = given_path(file)
        if place.exists():
            raise BadFile(f"{place} is there already; choose another name")
        with any_rank():
            return write_loose(self.loose, place, format=format, dtype=dtype)


def combine_files(
    files: Mapping[str | Path, StrengthLike] | Sequence[Parent],
    out: str | Path,
    *,
    method: str = "exact",
    rank: int | None = None,
    name: str | None = None,
    format: str | None = None,
    dtype: torch.dtype | str | None = None,
    family: str | None = None,
    base: str | Any | None = None,
    pickled: bool = False,
    density: float | None = None,
    epsilon: float | None = None,
    gamma: float | None = None,
    signs: str | None = None,
    sides: str | None = None,
    penalty: float | None = None,
    seed: int | None = None,
) -> CombineReport:
    """Writes one adapter file out of several, as :func:`studio.combine` makes one adapter of those on a model.

    The base of a public model need not be there: its layers' names and sizes are known. What an adapter changes needs
    the base's weights with some methods (DoRA, OFT, IA³, GLoRA), and then ``base=`` names it.

    Args:
        files: adapter files and their strengths, or :class:`Parent` s. out: the new file, which must not be there.
        method: a name of COMBINES. rank: of the result; None: what comes out.
        name: of the new adapter; None: that of its file. format: of FORMATS; None: diffusers.
        dtype: what its tensors are stored in; None: fp32.
        family: the family or public model that they are for; None: told by their keys.
        base: a base or model, where they are for none of the public ones, or its weights are needed.
        pickled: allow ``.pt`` and ``.bin`` files, whose tensors alone are read.
        density, epsilon, gamma, signs, sides, penalty, seed: what rules are told, as of :func:`studio.combine`.

    Raises:
        BadFile: a file cannot be read, or the new one is there. DoesNotFit: files of several bases, or of none that is
            known; a weight that is needed is not at hand. BadConfig: an impossible strength or choice.
        UnknownName: no such method. NoEffect: a file changes nothing.

    Example:
        >>> import tempfile, torch, studio
        >>> net, folder = torch.nn.Sequential(torch.nn.Linear(8, 8)), Path(tempfile.mkdtemp())
        >>> for one in ("dog", "ink"):
        ...     _ = studio.attach(net, studio.LoRA(rank=2, targets=("0",)), name=one)
        ...     _ = studio.state(net, one)["0.up"].data.normal_()
        ...     _ = studio.save(net, folder / f"{one}.safetensors", name=one)
        >>> files = {folder / "dog.safetensors": 0.7, folder / "ink.safetensors": 0.4}
        >>> report = combine_files(files, folder / "both.safetensors", base=torch.nn.Sequential(torch.nn.Linear(8, 8)))
        >>> dict(report.ranks), list(report.parents)
        ({4: 1}, ['dog', 'ink'])
    """
    place = given_path(out)
    if place.exists():
        raise BadFile(f"{place} is there already; choose another name")
    told = dict(density=density, epsilon=epsilon, gamma=gamma, signs=signs, sides=sides, penalty=penalty, seed=seed)
    way = read_way(method, rank, told)
    parents = [Parent(file, strength) for file, strength in files.items()] if isinstance(files, Mapping) else files
    made = combined(parents, way, name=name or place.stem, family=family, base=base, pickled=pickled)
    made.save(place, format=format, dtype=dtype)
    return made.report


@torch.no_grad()
def combined(
    parents: Sequence[Parent],
    way: Way,
    *,
    name: str = "both",
    family: str | None = None,
    base: str | Any | None = None,
    pickled: bool = False,
) -> LooseCombination:
    """Combines adapter files, layer by layer, each layer's tensors being let go once they are combined.

    Args:
        parents: the files. way: how. name: of the new adapter. family, base, pickled: as of :func:`combine_files`.

    Raises:
        BadFile: a file cannot be read. DoesNotFit: files of several bases, or of none that is known; a weight that is
            needed is not at hand. BadConfig: no file, or an impossible strength. NoEffect: a file changes nothing.
    """
    if not parents:
        raise BadConfig("combine takes adapter files and strengths, such as {'dog.safetensors': 0.7}")
    held = _read(parents, family, base, pickled)
    strengths = {one: strength_of(one, parent, held[one]) for one, parent in _named(parents, held)}
    hashes = {one: digest(_flat(loose)) for one, loose in held.items()}
    layers = layers_of(held, strengths)
    notes = tuple(dict.fromkeys(note for loose in held.values() for note in loose.notes))
    shells = {one: dataclasses.replace(loose, layers={}) for one, loose in held.items()}
    held.clear()
    combination = Combination(way, strengths, [part for _, parts in layers.values() for part in parts])
    for path in list(layers):
        site, parts = layers.pop(path)
        combination.add(path, site, parts)
    report = combination.report(name)
    _check_each_changes(report, shells)
    facts = combination.facts(hashes, [loose.facts for loose in shells.values()])
    facts |= lineage(facts, {one: loose.file for one, loose in shells.items()})
    loose = Loose(
        file=Path(name), model=_whole(shells.values(), combination.tensors), base=next(iter(shells.values())).base,
        name=name, format="diffusers", config=combination.config, layers=combination.tensors, facts=facts,
    )  # fmt: skip
    return LooseCombination(report=report, loose=loose, notes=notes)


def _named(parents: Sequence[Parent], held: Mapping[str, Loose]) -> Iterable[tuple[str, Parent]]:
    return zip(held, parents, strict=True)


def _read(parents: Sequence[Parent], family: str | None, base: Any, pickled: bool) -> dict[str, Loose]:
    """Name -> the file, all of them on one base."""
    model = model_called(base) if isinstance(base, (str, Path)) else base
    read = [read_loose(one.file, family=family, base=model, pickled=pickled) for one in parents]
    if base is None and len({one.base for one in read}) > 1:
        read = _on_one(read, pickled)
    found: dict[str, Loose] = {}
    for parent, loose in zip(parents, read, strict=True):
        own = parent.name or (loose.name if loose.name != "default" else loose.file.stem)
        if own in found and parent.name is None:
            own = loose.file.stem
        if own in found:
            raise BadConfig(f"two adapters are called {own!r}: name one of them, other={loose.file}")
        found[own] = loose
    return found


def _on_one(read: Sequence[Loose], pickled: bool) -> list[Loose]:
    """The same files on one public model, which is the first of theirs that takes all."""
    for name in dict.fromkeys(one.base for one in read if one.base in SHAPES):
        try:
            return [one if one.base == name else read_loose(one.file, family=name, pickled=pickled) for one in read]
        except StudioError:  # it is not for this one: the next
            continue
    first, other = read[0], next(one for one in read if one.base != read[0].base)
    raise DoesNotFit(
        f"{first.file.name} is for {first.base} and {other.file.name} for {other.base}: no base takes both"
    )


def _flat(loose: Loose) -> dict[str, torch.Tensor]:
    return {f"{path}.{part}": tensor for path, tensors in loose.layers.items() for part, tensor in tensors.items()}


def _check_each_changes(report: CombineReport, shells: Mapping[str, Loose]) -> None:
    still = next((name for name in shells if name not in report.conflict.whole.norms), None)
    if still is not None:
        raise NoEffect(
            f"{shells[still].file} changes nothing at the strength that it is given: leave it out, or give another one"
        )


def lineage(facts: Mapping[str, str], files: Mapping[str, Path]) -> dict[str, str]:
    """Returns what a combination says about its parents, with their files: name and SHA-256 of each.

    Args:
        facts: what it says already. files: parent -> its file, or folder of PEFT.

    Raises:
        BadFile: one cannot be read.
    """
    said = json.loads(facts["combined"])
    for name, file in files.items():
        said["parents"][name] |= {"file": file.name, "file_sha256": file_hash(tensor_file(file, pickled=True))}
    return {"combined": json.dumps(said), "modelspec.merged_from": ", ".join(files)}


def _whole(shells: Iterable[Loose], tensors: Mapping[str, object]) -> Any:
    """A base on which all layers are."""
    models = {id(one.model): one for one in shells}
    wanted = {path.partition(".")[0] for path in tensors}
    first = next(iter(models.values()))
    if len(models) == 1 or first.base not in SHAPES:
        return first.model
    return outline(first.base, wanted)
