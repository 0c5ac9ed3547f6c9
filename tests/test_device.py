"""Devices, number formats and memory figures."""

from __future__ import annotations

import pytest
import torch

from studio.device import (
    DTYPES,
    choose_device,
    choose_dtype,
    device_rows,
    free_cache,
    has_dtype,
    memory,
    reset_peak,
    wait,
)
from studio.errors import DoesNotFit, UnknownName

CPU = torch.device("cpu")
CUDA, MPS = torch.device("cuda"), torch.device("mps")


def test_the_best_device_is_the_default():
    assert choose_device() == choose_device("auto")
    if not (torch.cuda.is_available() or torch.backends.mps.is_available() or torch.xpu.is_available()):
        assert choose_device() == CPU


def test_wrong_devices_are_refused_by_name():
    with pytest.raises(UnknownName, match="no device is named 'cdua'; did you mean 'cuda'"):
        choose_device("cdua")
    with pytest.raises(UnknownName):
        choose_device("cuda:x")
    if not torch.cuda.is_available():
        with pytest.raises(DoesNotFit, match=r"the device 'cuda:0' was asked for and torch \S+ finds none: use cpu"):
            choose_device("cuda:0")


def test_the_cpu_computes_in_fp32_by_default_and_keeps_what_it_is_told():
    assert choose_dtype(None, CPU).dtype is torch.float32
    assert choose_dtype("auto", CPU, training=True).dtype is torch.float32
    for name, dtype in DTYPES.items():
        assert choose_dtype(name, CPU).dtype is dtype
        assert (choose_dtype(dtype, CPU).note is None) == has_dtype(dtype, CPU)


def test_what_a_cpu_emulates_is_kept_and_said_to_be_slow(cpu_has_bf16: bool):
    for training in (False, True):
        choice = choose_dtype("bf16", CPU, training=training)
        assert choice.name == "bf16" and (choice.note is None) == cpu_has_bf16
    assert has_dtype(torch.bfloat16, CPU) == cpu_has_bf16 == ("bf16" in device_rows()[-1].dtypes)
    if not cpu_has_bf16:
        assert "this cpu has no bf16 and emulates it" in (choose_dtype("bf16", CPU).note or "")


def test_fp16_training_on_a_cpu_is_replaced_and_said(cpu_has_bf16: bool):
    choice = choose_dtype("fp16", CPU, training=True)
    assert choice.name == ("bf16" if cpu_has_bf16 else "fp32")
    assert (choice.note or "").endswith(f"underflow: computing in {choice.name} instead")


def test_a_missing_format_is_replaced_and_said(monkeypatch):
    # the hardware's answer is the only thing that is set; the choice is ours
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert choose_dtype("bf16", CUDA).note == "cuda has no bf16: computing in fp16 instead"
    assert choose_dtype("bf16", CUDA, training=True).dtype is torch.float32
    assert choose_dtype(None, CUDA).dtype is torch.float16
    assert choose_dtype(None, CUDA, training=True).dtype is torch.float32
    assert choose_dtype("fp64", MPS).note == "mps has no fp64: computing in fp32 instead"


def test_unknown_formats_name_the_nearest():
    with pytest.raises(UnknownName, match="no number format is named 'bf15'; did you mean 'bf16'"):
        choose_dtype("bf15", CPU)
    with pytest.raises(UnknownName, match="'int8'"):
        choose_dtype(torch.int8, CPU)


def test_memory_figures_grow_with_what_is_held():
    before = memory(CPU)
    block = torch.ones(128 * 2**20 // 4)  # above what the allocator keeps for itself, which is up to 32 MiB a block
    after = memory(CPU)
    assert after.used - before.used > 64 * 2**20
    assert after.total > after.peak >= after.used > 0
    del block


def test_rows_list_every_device_and_the_calls_work_on_each():
    rows = device_rows()
    assert rows[-1].device == "cpu" and "fp32" in rows[-1].dtypes and rows[-1].memory > 0
    for row in rows:
        device = torch.device(row.device)
        wait(device), reset_peak(device), free_cache(device)
        assert all(has_dtype(DTYPES[name], device) for name in row.dtypes)
