"""Reading a checkpoint of one file: its denoiser in the names of those who trained it, and what it holds beside it.

diffusers' own ``from_single_file`` reads it. Configs and tokenizers, which such files lack, come from a diffusers
folder, and so do components that it lacks where that folder was named for it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from studio.claims import Header
from studio.errors import BadFile, DoesNotFit, UnknownName
from studio.families.family import FAMILIES, Family, Shapes, SingleFile
from studio.families.opening import hub
from studio.families.opening.dtype import by_component, usual_dtype
from studio.families.opening.folder import chosen, class_of, index_of, load_part, load_pipeline, reading, weights_of
from studio.families.opening.gguf_file import gguf_header, gguf_tensors, is_gguf
from studio.families.opening.ids import hub_id
from studio.families.opening.scaled_file import BESIDE, read_scaled, scale_names
from studio.families.opening.selection import INDEX, Read, config_files, parts_of, read_index
from studio.families.opening.weights import Weights, header_of, held
from studio.quantization.counting import packed_layers

__all__ = ["check_kind", "read_single_file", "told"]

_DENOISER: Final = "model.diffusion_model."
_PICKLES: Final = (".ckpt", ".pt", ".pth", ".bin")
_ADAPTER: Final = ("lora_", ".lora_A.", ".lora_B.", ".lora.", "hada_", "lokr_", "oft_")


def check_kind(file: Path) -> None:
    """Refuses what is neither a safetensors nor a GGUF file, by its name.

    Raises:
        BadFile: it is a pickle, or another kind of file.
    """
    if file.suffix.lower() in _PICKLES:
        raise BadFile(
            f"{file} is a pickle, which can run programs, and is not read: convert it once where you trust it, with "
            "safetensors.torch.save_file(torch.load(file, weights_only=True)['state_dict'], 'model.safetensors')"
        )
    if file.suffix.lower() != ".safetensors" and not is_gguf(file):
        raise BadFile(f"{file} is no base: a base in one file is a .safetensors checkpoint, or a .gguf file")


def read_single_file(
    file: Path,
    dtype: torch.dtype | str | None,
    device: torch.device,
    *,
    config_of: str | Path | None = None,
    away: bool = False,
) -> tuple[Any, Weights]:
    """Reads a pipeline, and says which files its weights are in.

    Args:
        file: a safetensors checkpoint, or a denoiser alone in a GGUF file.
        dtype: see :func:`~studio.families.opening.dtype.usual_dtype`. device: where it will compute.
        config_of: a diffusers folder, or the hub id of one, with configs, tokenizers, and components that the file
            lacks; None: the hub's folder of such a base, without its weights.
        away: the network is not to be asked.

    Raises:
        BadFile: it is no whole safetensors file, or diffusers cannot read it.
        DoesNotFit: it is of no family that can be opened so, lacks components, or ``config_of`` is of another family.
        UnknownName: ``config_of`` is not there, or no configs in the cache where the network is not to be asked.
    """
    check_kind(file)
    header = gguf_header(file) if is_gguf(file) else header_of(file)
    family, single, shapes = told(file, header)
    lacking = _lacking(family, single, header)
    whole = len(lacking) <= len(family.readers)
    if whole and (is_gguf(file) or scale_names(header.tensors)):
        raise DoesNotFit(f"{file} holds a whole base in few bits; only denoisers alone are read so: give one of those")
    if lacking and config_of is None:
        raise DoesNotFit(_incomplete(file, family, lacking, single.configs(shapes)))
    folder = _configs(config_of or single.configs(shapes), lacking, named=config_of is not None, away=away)
    index = index_of(folder)
    other, cls = class_of(folder, index)
    if other.pipelines != family.pipelines:  # the first two families share one class
        raise DoesNotFit(f"{file} is of {family.title}, and {folder} of {other.title}: name a folder of {family.title}")
    needed = chosen(folder, _Configs(lacking))
    weights = {
        "": (file,),
        **{name: files for name, files in weights_of(folder, index, needed).items() if name in lacking},
    }
    counts = held([header, *(header_of(one) for name, files in weights.items() if name for one in files)])
    dtypes = by_component(usual_dtype(counts, device, dtype), family.dtypes)
    with reading(f"{file} cannot be opened as a {cls.__name__} with the configs of {folder}"):
        try:
            pipe = _read(file, folder, cls, index, family, single, lacking, dtypes, needed)
        except NotImplementedError as problem:  # of torch: a tensor that was not in the file cannot be moved
            raise BadFile(f"{file} lacks tensors that the configs of {folder} describe") from problem
    _check_whole(file, pipe, family, single, header)
    return pipe, weights


def told(file: Path, header: Header) -> tuple[Family, SingleFile, Shapes]:
    """Returns the family of a checkpoint, by the names of its tensors, and what its denoiser has.

    Args:
        file: the checkpoint, for messages. header: what it says.

    Raises:
        DoesNotFit: it is of no family that is known in one file.
    """
    shapes = _denoiser(header)
    for family in FAMILIES.values():
        if family.single is not None and family.single.tells(shapes):
            return family, family.single, shapes
    if any(mark in name for name in header.tensors for mark in _ADAPTER):
        raise DoesNotFit(f"{file} holds an adapter, not a base: open a base, and give this as its adapter")
    known = ", ".join(family.title for family in FAMILIES.values() if family.single is not None)
    first = next(iter(header.tensors), "nothing")
    raise DoesNotFit(
        f"{file} is a checkpoint of no family that is known in one file ({known}); its tensors are called like "
        f"{first[:100]!r}; open it as a diffusers folder"
    )


def _denoiser(header: Header) -> dict[str, tuple[int, ...]]:
    own = {name: info.shape for name, info in header.tensors.items() if name.startswith(_DENOISER)}
    own = own or {name: info.shape for name, info in header.tensors.items()}
    return {name.removeprefix(_DENOISER): shape for name, shape in own.items()}


def _lacking(family: Family, single: SingleFile, header: Header) -> tuple[str, ...]:
    """Returns the components beside the denoiser that the file does not hold."""
    return tuple(
        part for part in (*family.readers, "vae")
        if not any(name.startswith(single.parts.get(part, ())) for name in header.tensors)
    )  # fmt: skip


def _incomplete(file: Path, family: Family, lacking: Collection[str], usual: str) -> str:
    alone = "the denoiser alone" if len(lacking) > len(family.readers) else "a part"
    return (
        f"{file} holds {alone} of a base of {family.title} and lacks {', '.join(lacking)}: give --config-of "
        f"(config_of=) with the folder or the hub id of a whole one, from which they are taken, such as {usual}"
    )


class _Configs:
    """Selects the small files of a folder, and the weights of some of its components."""

    def __init__(self, parts: Collection[str]) -> None:
        self.parts = parts

    def __call__(self, files: Collection[str], read: Read) -> list[str]:
        index = read_index(read(INDEX)) if INDEX in files else {}
        there = [name for name in self.parts if name in parts_of(index)]
        return config_files(files, read, weights=there)


def _configs(asked: str | Path, lacking: Collection[str], *, named: bool, away: bool) -> Path:
    """Returns the folder with the configs, and with the weights of what is lacking."""
    folder = Path(asked).expanduser()
    if folder.is_dir():
        return folder
    found = hub_id(str(asked)) if isinstance(asked, str) and not folder.exists() else None
    if found is None or found.is_file:
        raise UnknownName(f"--config-of {str(asked)[:200]!r} is neither a folder nor a hub id")
    try:
        return hub.fetch(found, _Configs(lacking), away=away)
    except (BadFile, UnknownName) as problem:
        if named:
            raise
        raise type(problem)(
            f"the configs of such a checkpoint: {problem}; or give --config-of (config_of=)"
        ) from problem


def _read(
    file: Path, folder: Path, cls: Any, index: Mapping[str, Any], family: Family, single: SingleFile,
    lacking: Collection[str], dtypes: Mapping[str, torch.dtype], needed: Collection[str],
) -> Any:  # fmt: skip
    """Reads the denoiser alone and the rest from the folder, or all that the file holds."""
    parts, default = parts_of(dict(index)), dtypes["default"]
    if len(lacking) > len(family.readers):
        import diffusers

        own = getattr(diffusers, parts[family.denoiser][1])
        denoiser = _read_denoiser(file, own, folder, family.denoiser, single.level, default)
        return load_pipeline(folder, cls, dtypes, needed, **{family.denoiser: denoiser})
    others = {
        part: load_part(folder, index, part, dtypes.get(part, default), needed) for part in lacking if part in parts
    }
    pipe = cls.from_single_file(str(file), config=str(folder), dtype=default, local_files_only=True, **others)
    for part, dtype in dtypes.items():
        if part in pipe.components:
            pipe.components[part].to(dtype)
    return pipe


def _read_denoiser(file: Path, cls: Any, folder: Path, part: str, level: str, dtype: torch.dtype) -> Any:
    """Reads a denoiser alone; weights that the file holds in few bits stay so."""
    from diffusers import GGUFQuantizationConfig
    from safetensors.torch import load_file

    read = gguf_tensors if is_gguf(file) else load_file
    tensors = {level + name.removeprefix(_DENOISER): tensor for name, tensor in read(file).items()}
    if scale_names(tensors):
        return read_scaled(cls, tensors, str(folder), part, dtype)
    packed = {"quantization_config": GGUFQuantizationConfig(compute_dtype=dtype)} if is_gguf(file) else {}
    return cls.from_single_file(
        tensors, config=str(folder), subfolder=part, dtype=dtype, local_files_only=True, **packed
    )  # fmt: skip


def _check_whole(file: Path, pipe: Any, family: Family, single: SingleFile, header: Header) -> None:
    """Checks that each tensor of the pipeline was in the file, and each of the denoiser's is in the pipeline.

    Raises:
        BadFile: some are not.
    """
    for name, part in pipe.components.items():
        if isinstance(part, nn.Module):
            part.eval()
            lost = [key for key, tensor in part.state_dict().items() if tensor.is_meta]
            if lost:
                raise BadFile(f"{file} lacks {len(lost)} tensors of the {name} that its configs describe ({lost[0]})")
    unread = (*single.unread, *BESIDE)
    there = sum(_count(shape) for key, shape in _denoiser(header).items() if not key.endswith(unread))
    taken = _numbers(pipe.components[family.denoiser])
    if there != taken:
        raise BadFile(
            f"{file}: its denoiser holds {there:,} numbers and the one that its configs describe {taken:,}; give "
            "--config-of (config_of=) with the folder or the hub id of its own configs"
        )


def _numbers(root: nn.Module) -> int:
    """How many numbers a module has, with those that packed weights stand for."""
    packed = {path: packing.shape(layer) for path, layer, packing in packed_layers(root)}
    plain = (
        tensor.numel() for key, tensor in root.state_dict().items()
        if key.endswith(".bias") or key.rpartition(".")[0] not in packed
    )  # fmt: skip
    return sum(plain) + sum(rows * cols for rows, cols in packed.values())


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count
