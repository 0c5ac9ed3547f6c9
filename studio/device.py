"""Devices: which one computes, which number formats it has, how much memory is used. No other file names one."""

from __future__ import annotations

import os
import sys
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from studio.errors import DoesNotFit, UnknownName, nearest

__all__ = [
    "DTYPES",
    "DeviceRow",
    "DtypeChoice",
    "Memory",
    "allocated",
    "choose_device",
    "choose_dtype",
    "collective_backend",
    "device_rows",
    "dtype_named",
    "free_cache",
    "has_dtype",
    "memory",
    "on_cpu",
    "own_device",
    "reset_peak",
    "side_stream",
    "title",
    "wait",
]

# best first: what is taken when nothing is asked for
BACKENDS = ("cuda", "xpu", "mps", "cpu")

DTYPES: dict[str, torch.dtype] = {
    "fp32": torch.float32,
    "float32": torch.float32,
    "fp16": torch.float16,
    "float16": torch.float16,
    "bf16": torch.bfloat16,
    "bfloat16": torch.bfloat16,
    "fp64": torch.float64,
    "float64": torch.float64,
}
_SHORT = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16", torch.float64: "fp64"}


@dataclass(frozen=True)
class DtypeChoice:
    """A number format that works, and one line where it is not the one that was asked for, or slow."""

    dtype: torch.dtype
    note: str | None = None

    @property
    def name(self) -> str:
        """The short name: ``"fp32"``, ``"bf16"``, ..."""
        return _SHORT[self.dtype]


@dataclass(frozen=True)
class Memory:
    """Memory of one device in bytes: in use by this process, its highest so far, and all that the device has.

    A figure that the system does not tell is 0. On a CPU, ``used`` and ``peak`` are those of the whole process.
    """

    used: int
    peak: int
    total: int


@dataclass(frozen=True)
class DeviceRow:
    """One device of this machine: its torch name, what it is, the formats it computes in, and its memory in bytes."""

    device: str
    title: str
    dtypes: tuple[str, ...]
    memory: int


def choose_device(asked: str | torch.device | None = None) -> torch.device:
    """Returns the device to compute on.

    Args:
        asked: a torch device name such as ``"cpu"`` or ``"mps"``; ``None`` and ``"auto"`` take the best there is.

    Raises:
        UnknownName: no such device.
        DoesNotFit: a device that this machine, or this build of torch, does not have.

    Example:
        >>> choose_device("cpu")
        device(type='cpu')
        >>> choose_device("gpuu")
        Traceback (most recent call last):
        ...
        studio.errors.UnknownName: no device is named 'gpuu'; did you mean 'cpu'? (known: auto, cuda, xpu, mps, cpu)
    """
    if asked is None or asked == "auto":
        return next(torch.device(backend) for backend in BACKENDS if _count(backend))
    backend, _, index = str(asked).partition(":")
    if backend not in BACKENDS or (index and not index.isdigit()):
        close = nearest(backend, BACKENDS, 1)[0]
        raise UnknownName(
            f"no device is named {str(asked)!r}; did you mean {close!r}? (known: auto, {', '.join(BACKENDS)})"
        )
    count = _count(backend)
    if not count:
        there = ", ".join(row.device for row in device_rows())
        raise DoesNotFit(
            f"the device {str(asked)!r} was asked for and torch {torch.__version__} finds none: use {there}"
        )
    if index and int(index) >= count and backend != "cpu":
        raise DoesNotFit(
            f"the device {str(asked)!r} was asked for and there are {count}: the last is '{backend}:{count - 1}'"
        )
    return torch.device(str(asked))


def collective_backend() -> str:
    """Returns what processes exchange tensors by: gloo, and nccl or xccl where devices have it, in torch's words."""
    if _count("cuda"):
        return "cpu:gloo,cuda:nccl"
    return "cpu:gloo,xpu:xccl" if _count("xpu") else "gloo"


def own_device(number: int) -> None:
    """Makes one device of several the one that is meant where none is numbered.

    Args:
        number: of the process on this machine; processes beyond the last device begin with the first one again.
    """
    for backend in ("cuda", "xpu"):
        if _count(backend):
            getattr(torch, backend).set_device(number % _count(backend))
            return


def side_stream(device: torch.device) -> Any:
    """Returns a stream on which a device copies while it computes on its own; None where it does one thing at a time.

    Example:
        >>> side_stream(torch.device("cpu")) is None
        True
    """
    return torch.get_device_module(device).Stream(device) if device.type in ("cuda", "xpu") else None


def on_cpu() -> AbstractContextManager[object]:
    """Lasts while what is made without naming a device is on the CPU, whatever default the caller has set.

    Random numbers are drawn there, so that they are the same on every machine, and moved where they are needed.

    Example:
        >>> with torch.device("meta"), on_cpu():
        ...     torch.zeros(1).device
        device(type='cpu')
    """
    # torch.device as a context costs every operation a call in Python: it is entered only where it changes something
    return nullcontext() if torch.get_default_device().type == "cpu" else torch.device("cpu")


def choose_dtype(asked: str | torch.dtype | None, device: torch.device, *, training: bool = False) -> DtypeChoice:
    """Returns a number format that ``device`` can compute in: the one asked for, or the nearest substitute.

    A CPU keeps what it is told, which may be chosen for its size; where it only emulates the format, the note says so.

    Args:
        asked: a key of :data:`DTYPES` or a torch dtype. ``None`` and ``"auto"`` take fp32 on a CPU; elsewhere bf16
            where the hardware has it, else fp16, and fp32 for training.
        device: where it will be computed.
        training: gradients will be taken; fp16 then needs loss scaling, so it is never the automatic choice.

    Raises:
        UnknownName: no such format.

    Example:
        >>> choose_dtype("bfloat16", torch.device("cpu")).name
        'bf16'
        >>> choose_dtype("fp16", torch.device("cpu"), training=True).note.partition(":")[0]
        'fp16 on a cpu is no faster than fp32 and its gradients underflow'
    """
    if asked is None or asked == "auto":
        if device.type == "cpu":
            return DtypeChoice(torch.float32)
        if has_dtype(torch.bfloat16, device):
            return DtypeChoice(torch.bfloat16)
        return DtypeChoice(torch.float32 if training else torch.float16)
    dtype = dtype_named(asked)
    if device.type == "cpu" and dtype is torch.float16 and training:
        substitute = torch.bfloat16 if has_dtype(torch.bfloat16, device) else torch.float32
        note = "fp16 on a cpu is no faster than fp32 and its gradients underflow"
        return DtypeChoice(substitute, f"{note}: computing in {_SHORT[substitute]} instead")
    if has_dtype(dtype, device):
        return DtypeChoice(dtype)
    if device.type == "cpu":
        slow = f"this cpu has no {_SHORT[dtype]} and emulates it, which can take tens of times as long as fp32"
        return DtypeChoice(dtype, f"{slow}: use it to save memory alone")
    substitute = torch.float16 if dtype is torch.bfloat16 and not training else torch.float32
    return DtypeChoice(substitute, f"{device} has no {_SHORT[dtype]}: computing in {_SHORT[substitute]} instead")


def has_dtype(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether ``device`` computes in ``dtype`` by itself (not by slow emulation)."""
    if device.type == "cuda" and dtype is torch.bfloat16:
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "mps":
        if dtype is torch.bfloat16:
            return torch.backends.mps.is_macos_or_newer(14, 0)
        return dtype is not torch.float64
    if device.type == "cpu":
        return _cpu_has(dtype)
    return True


def _cpu_has(dtype: torch.dtype) -> bool:
    """Whether the CPU multiplies in ``dtype``; where torch cannot tell (it is built without oneDNN), it is believed to.

    Measured on a CPU without AVX-512, where oneDNN has no such kernels: products of matrices and convolutions in bf16
    and fp16 take 50 to 70 times as long as in fp32, linear layers of many rows six times.
    """
    probes = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}
    if dtype not in probes or not torch.backends.mkldnn.is_available():
        return True
    probe = getattr(torch.ops.mkldnn, probes[dtype], None)
    return probe is None or bool(probe())


def device_rows() -> list[DeviceRow]:
    """Returns the devices of this machine, best first."""
    rows = []
    for backend in BACKENDS:
        for index in range(_count(backend)):
            device = torch.device(backend) if backend in ("cpu", "mps") else torch.device(backend, index)
            dtypes = tuple(name for dtype, name in _SHORT.items() if has_dtype(dtype, device))
            rows.append(DeviceRow(str(device), _title(device), dtypes, memory(device).total))
    return rows


def memory(device: torch.device) -> Memory:
    """Returns how much memory of ``device`` is used, in bytes; cheap enough for every training step.

    Example:
        >>> figures = memory(torch.device("cpu"))
        >>> 0 <= figures.used <= figures.peak <= figures.total
        True
    """
    if device.type == "mps":
        used = torch.mps.driver_allocated_memory()
        return Memory(used, used, torch.mps.recommended_max_memory())
    if device.type in ("cuda", "xpu"):
        backend = torch.get_device_module(device)
        total = backend.get_device_properties(device).total_memory
        return Memory(backend.memory_allocated(device), backend.max_memory_allocated(device), total)
    used, peak = _process_memory()
    return Memory(used, max(used, peak), _machine_memory())


def allocated(device: torch.device) -> Memory | None:
    """Returns what this process has been given of ``device``, in bytes; None where no peak of it is kept.

    Of an accelerator that is what torch's allocator has given to tensors; of a CPU what the process holds without the
    files that are mapped into it (Linux alone tells), which the weights of a base may be.

    Example:
        >>> figures = allocated(torch.device("cpu"))
        >>> figures is None or figures.used <= figures.peak <= figures.total
        True
    """
    if device.type in ("cuda", "xpu"):
        return memory(device)
    try:
        resident, mapped = (size * os.sysconf("SC_PAGE_SIZE") for size in _pages())
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except (OSError, ValueError):
        return None
    high = next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:")), 0)
    return Memory(resident - mapped, max(high, resident) - mapped, _machine_memory()) if high else None


def reset_peak(device: torch.device) -> None:
    """Starts the peak of :func:`allocated` anew, where the device keeps one."""
    if device.type in ("cuda", "xpu"):
        torch.get_device_module(device).reset_peak_memory_stats(device)
    elif device.type == "cpu":
        with suppress(OSError):  # Linux alone has it, and containers may forbid it: the peak is then an older one
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def title(device: torch.device) -> str:
    """Returns what a device is called: ``"NVIDIA A100-SXM4-80GB"``, or its sort.

    Example:
        >>> title(torch.device("cpu"))
        'cpu'
    """
    return _title(device) if device.type in ("cuda", "xpu") else device.type


def wait(device: torch.device) -> None:
    """Waits until ``device`` has done all that was asked of it, so that a clock tells the truth."""
    if device.type != "cpu":
        torch.get_device_module(device).synchronize()


def free_cache(device: torch.device) -> None:
    """Gives memory that torch keeps for later use back to the device."""
    if device.type != "cpu":
        torch.get_device_module(device).empty_cache()


def _count(backend: str) -> int:
    if backend == "cpu":
        return 1
    if backend == "mps":
        return int(torch.backends.mps.is_available())
    module = torch.get_device_module(backend)
    return module.device_count() if module.is_available() else 0


def _title(device: torch.device) -> str:
    if device.type in ("cuda", "xpu"):
        return torch.get_device_module(device).get_device_name(device)
    if device.type == "mps":
        return "Apple GPU"
    threads = torch.get_num_threads()
    return f"{os.cpu_count()} cores, torch uses {threads} thread{'s' if threads != 1 else ''}"


def dtype_named(asked: str | torch.dtype) -> torch.dtype:
    """Returns the number format that a word or a torch dtype means.

    Args:
        asked: a key of :data:`DTYPES`, or one of their dtypes.

    Raises:
        UnknownName: no such format, or one that nothing is computed in.

    Example:
        >>> dtype_named("bf16")
        torch.bfloat16
    """
    if isinstance(asked, torch.dtype) and asked in _SHORT:
        return asked
    asked = str(asked).removeprefix("torch.")
    if asked not in DTYPES:
        close = nearest(asked, DTYPES, 1)[0]
        raise UnknownName(f"no number format is named {asked!r}; did you mean {close!r}? (known: {', '.join(DTYPES)})")
    return DTYPES[asked]


def _process_memory() -> tuple[int, int]:
    """Bytes that this process holds now and held at most."""
    if sys.platform == "win32":
        return 0, 0  # the standard library does not tell
    import resource

    # the peak comes in bytes on macOS and in kilobytes elsewhere
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    try:
        return _pages()[0] * os.sysconf("SC_PAGE_SIZE"), peak
    except OSError:
        return peak, peak


def _pages() -> tuple[int, int]:
    """Pages that this process holds, and those of them that are mapped files."""
    with open("/proc/self/statm") as file:  # noqa: PTH123 - read every step: the plain call is the cheap one
        _, resident, mapped, *_ = map(int, file.read().split())
    return resident, mapped


def _machine_memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0
