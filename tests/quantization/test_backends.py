"""Ways to quantise: their bytes, their errors, what they refuse, and models that others have quantised."""

from __future__ import annotations

import copy
import logging
import subprocess
import sys
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import studio
from packings import CHEAP, dense, prepare, quantized
from studio.errors import BadConfig, DoesNotFit, MissingPackage, UnknownName, UnsupportedLayer
from studio.packages import EXTRAS
from studio.quantization import BACKENDS, backend_called, packing_of
from studio.quantization.counting import hidden_numbers
from studio.quantization.layers import quantizable
from studio.quantization.wishes import read_wishes

ALL = [pytest.param(name, marks=() if name in CHEAP else pytest.mark.slow) for name in BACKENDS]

ERROR = {
    "grid8": 0.004, "grid4": 0.065, "grid3": 0.14, "grid2": 0.31, "fp8": 0.027, "nf4": 0.1, "fp4": 0.125, "int8": 0.01,
    "torchao-int8": 0.01, "torchao-int4": 0.07, "torchao-fp8": 0.027, "quanto-int8": 0.01, "quanto-int4": 0.08,
    "quanto-int2": 0.45, "quanto-fp8": 0.027, "gguf-q8-0": 0.005, "gguf-q5-1": 0.04, "gguf-q5-0": 0.05,
    "gguf-q4-1": 0.08, "gguf-q4-0": 0.1,
}  # fmt: skip
"""Relative error of a weight that is drawn evenly from an interval, at most."""


def layer(name: str, rows: int = 96, cols: int = 256, dtype: torch.dtype = torch.float32) -> nn.Module:
    prepare(name)
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return BACKENDS[name].layer(nn.Linear(cols, rows).weight.detach().to(dtype), None)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("shape", [(96, 256), (64, 64), (32, 384)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_bytes_that_are_told_are_those_that_are_kept(name: str, shape: tuple[int, int], dtype: torch.dtype) -> None:
    made = layer(name, *shape, dtype)
    kept = sum(part.nbytes for part in BACKENDS[name].packing.tensors(made).values())
    assert BACKENDS[name].bytes(*shape, dtype.itemsize) == kept


@pytest.mark.parametrize("name", ALL)
def test_each_error_is_that_of_its_bits(name: str) -> None:
    made = layer(name)
    torch.manual_seed(0)
    weight = nn.Linear(256, 96).weight.detach()
    error = float((BACKENDS[name].packing.unpacked(made) - weight).norm() / weight.norm())
    assert ERROR[name] / 4 < error < ERROR[name]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_weight_that_was_quantised_is_not_written_to(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(64, 200)).to(dtype)
    layer, before = model[0], model[0].weight.detach().clone()
    report = studio.quantize(model, "fp8")
    assert torch.equal(layer.weight, before)
    off = BACKENDS["fp8"].packing.unpacked(model[0]).double() - before.double()
    assert report.error == pytest.approx(float(off.norm() / before.double().norm()), rel=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_a_model_counts_the_weights_that_are_meant(name: str) -> None:
    model = quantized(name)
    assert studio.trainable(model).total == 64 * 96 + 96 + 96 * 32
    assert sum(p.numel() for p in model.parameters()) + hidden_numbers(model) == 64 * 96 + 96 + 96 * 32


@pytest.mark.parametrize("name", ALL)
def test_in_half_precision_it_computes_in_half_precision(name: str) -> None:
    made = layer(name, dtype=torch.bfloat16)
    x = torch.randn(7, 256, generator=torch.Generator().manual_seed(1)).bfloat16().requires_grad_()
    model = nn.Sequential(made)
    studio.attach(model, studio.LoRA(rank=2, targets=("0",)))
    y, wanted = model(x), F.linear(x.detach().float(), BACKENDS[name].packing.unpacked(made).float())
    assert y.dtype == torch.bfloat16 and float((y.detach().float() - wanted).norm() / wanted.norm()) < 0.01
    y.sum().backward()
    assert x.grad is not None and x.grad.dtype == torch.bfloat16


# -- bad input -----------------------------------------------------------------------------------------------------


def test_an_unknown_name_is_told_the_nearest() -> None:
    with pytest.raises(UnknownName, match="'nf5'; did you mean 'nf4'"):
        studio.quantize(nn.Sequential(nn.Linear(64, 64)), "nf5")


@pytest.mark.parametrize("name", [name for name in BACKENDS if BACKENDS[name].package])
def test_a_backend_that_is_not_installed_says_what_installs_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    backend, model = BACKENDS[name], nn.Sequential(nn.Linear(64, 64))
    monkeypatch.setitem(sys.modules, backend.package, None)
    wanted = f"bases in {name} need {backend.package}: {EXTRAS[backend.extra].command}"
    for ask in (backend_called, read_wishes, lambda word: studio.quantize(model, word)):
        with pytest.raises(MissingPackage) as caught:
            ask(name)
        assert str(caught.value) == wanted
    assert type(model[0]) is nn.Linear


STEPS = {name: backend.step for name, backend in BACKENDS.items() if backend.step > 1}


@pytest.mark.parametrize("name", STEPS)
def test_a_shape_that_does_not_divide_is_told_whatever_is_installed(name: str) -> None:
    BACKENDS[name].check("blocks.0", 5, 2 * STEPS[name])
    with pytest.raises(BadConfig) as caught:
        BACKENDS[name].check("blocks.0", 5, 48)
    packs = f"{name} packs {STEPS[name]} inputs at a time, which"
    grid = name.startswith("grid")
    assert str(caught.value) == (
        f"{f'group={STEPS[name]}' if grid else packs} does not divide the 48 inputs of blocks.0; exclude it, or use "
        f"another {'group' if grid else 'backend'}"
    )
    assert STEPS["torchao-int4"] == 32


@pytest.mark.parametrize("name", ["grid4", "torchao-int4", "gguf-q4-0"])
def test_a_shape_that_does_not_divide_is_named_and_nothing_is_changed(name: str) -> None:
    prepare(name)
    model = nn.Sequential(nn.Linear(64, 48), nn.Linear(48, 8))
    with pytest.raises(BadConfig, match=r"does not divide the 48 inputs of 1; exclude it"):
        studio.quantize(model, name)
    assert [type(one) for one in model] == [nn.Linear, nn.Linear]
    assert studio.quantize(model, name, exclude=("1",)).sites == ("0",)


def test_settings_of_the_grid_are_not_of_others() -> None:
    with pytest.raises(BadConfig, match="bits and group are of the studio's own grid"):
        studio.quantize(nn.Sequential(nn.Linear(64, 64)), "fp8", bits=4)


@pytest.mark.filterwarnings("ignore")
def test_tensors_without_a_backward_pass_are_refused_by_name() -> None:
    torchao = pytest.importorskip("torchao.quantization")
    model = nn.Sequential(nn.Linear(64, 64))
    torchao.quantize_(model, torchao.Int8DynamicActivationInt8WeightConfig())
    with pytest.raises(UnsupportedLayer, match="0 quantises its inputs"):
        studio.attach(model, studio.LoRA(rank=2, targets=("0",)))
    assert not studio.adapters(model)


NEEDS_WEIGHT = [studio.DoRA(rank=2, targets=("0",)), studio.LoRA(rank=2, targets=("0",), init="pissa")]
"""Methods that are made of the weight, and of its decomposition."""


@pytest.mark.parametrize("config", [*NEEDS_WEIGHT, studio.LoRA(rank=2, targets=("0",))], ids=["dora", "pissa", "lora"])
def test_blocks_that_cannot_be_read_are_refused_before_anything_is_attached(config) -> None:
    gguf = pytest.importorskip("gguf")
    from diffusers.quantizers.gguf.utils import GGUFParameter

    prepare("gguf-q8-0")
    made = BACKENDS["gguf-q8-0"].layer(torch.randn(4, 256), None)
    kind = gguf.GGMLQuantizationType.IQ2_XXS
    blocks = torch.zeros(4, gguf.GGML_QUANT_SIZES[kind][1], dtype=torch.uint8)
    made.weight = GGUFParameter(blocks, quant_type=kind)
    model = nn.Sequential(made)
    with pytest.raises(UnsupportedLayer) as caught:
        studio.attach(model, config)
    assert str(caught.value) == (
        "the weight of 0 is in GGUF blocks of the type IQ2_XXS, which diffusers cannot read (it reads BF16, IQ4_NL, "
        "IQ4_XS, Q2_K, Q3_K, Q4_0, Q4_1, Q4_K, Q5_0, Q5_1, Q5_K, Q6_K, Q8_0): take the base in one of those, or "
        "exclude the layer"
    )
    assert not studio.adapters(model)


@pytest.mark.parametrize("config", [*NEEDS_WEIGHT, studio.LoRA(rank=2, targets=("0",))], ids=["dora", "pissa", "lora"])
def test_a_weight_that_is_not_packed_yet_is_refused(config) -> None:
    bnb = pytest.importorskip("bitsandbytes")
    model = nn.Sequential(bnb.nn.Linear4bit(64, 8, bias=False, quant_type="nf4"))
    with pytest.raises(UnsupportedLayer) as caught:
        studio.attach(model, config)
    assert str(caught.value) == (
        "0 is one of bitsandbytes' 4-bit layers whose weight is not packed yet, so that it cannot be read: move the "
        "model to its device first, which packs it (model.to('cpu'))"
    )
    assert not studio.adapters(model)
    studio.attach(model.to("cpu"), config)
    assert model(torch.ones(1, 64)).shape == (1, 8)


@pytest.mark.parametrize("config", NEEDS_WEIGHT, ids=["dora", "pissa"])
def test_a_quantised_weight_without_values_is_not_read(config) -> None:
    bnb = pytest.importorskip("bitsandbytes")
    model = nn.Sequential(bnb.nn.Linear4bit(64, 8, bias=False, quant_type="nf4", device="meta"))
    with pytest.raises(DoesNotFit) as caught:
        studio.attach(model, config)
    assert str(caught.value) == "0 is on the meta device: it has no values that this start could use"
    assert not studio.adapters(model)
    studio.attach(model, studio.LoRA(rank=2, targets=("0",)))  # which needs its shape alone


def test_blocks_that_can_be_read_and_not_written_are_refused_and_nothing_is_changed() -> None:
    gguf = pytest.importorskip("gguf")
    from diffusers.quantizers.gguf.utils import GGUFParameter

    prepare("gguf-q8-0")
    torch.manual_seed(0)
    made = BACKENDS["gguf-q8-0"].layer(torch.randn(4, 256), None)
    blocks = torch.randint(0, 60, (4, 144), dtype=torch.uint8)  # Q4_K: 144 bytes for 256 weights
    made.weight = GGUFParameter(blocks, quant_type=gguf.GGMLQuantizationType.Q4_K)
    model = nn.Sequential(made)
    studio.attach(model, studio.LoRA(rank=2, targets=("0",), init="orthogonal"))
    x = torch.ones(1, 256)
    before = model(x)
    with pytest.raises(UnsupportedLayer, match="Q4_K can be read and not written"):
        studio.bake(model, requantize=True)
    assert torch.equal(model(x), before) and studio.adapters(model)["default"].baked is False


# -- bitsandbytes' own layers, with their trap ---------------------------------------------------------------------


def bnb_net() -> nn.Sequential:
    """As transformers makes it: the layer repacks its weight at the first evaluation on some CPUs."""
    bnb = pytest.importorskip("bitsandbytes")
    model = quantized("nf4")
    for one in (model[0], model[2]):
        one.support_avx512bf16_for_cpu = bnb.functional.has_avx512bf16()
    return model


def gradient(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    x = x.clone().requires_grad_()
    model(x).square().sum().backward()
    assert x.grad is not None
    return x.grad


def test_an_evaluation_of_a_layer_that_carries_nothing_does_not_end_the_gradients() -> None:
    model, x = bnb_net(), torch.randn(3, 5, 64, generator=torch.Generator().manual_seed(1))
    flags = [model[0].support_avx512bf16_for_cpu, model[2].support_avx512bf16_for_cpu]
    studio.attach(model, studio.LoRA(rank=2, targets=("0",)))  # the layer behind it is bare
    before = gradient(model, x)
    model.eval()
    with torch.no_grad():
        model(x)
    model.train()
    assert torch.equal(gradient(model, x), before)
    studio.detach(model)
    assert flags == [model[0].support_avx512bf16_for_cpu, model[2].support_avx512bf16_for_cpu]


def test_a_layer_that_was_repacked_before_is_trained_and_comes_back_repacked() -> None:
    model, x = bnb_net()[:1], torch.randn(3, 5, 64, generator=torch.Generator().manual_seed(1))
    if not model[0].support_avx512bf16_for_cpu:
        pytest.skip("this CPU has no such kernel")
    weight = BACKENDS["nf4"].packing.unpacked(model[0])
    wanted = 2 * F.linear(x, weight, model[0].bias.detach()) @ weight
    model.eval()
    with torch.no_grad():
        model(x)
    packed = model[0].weight.data.clone()
    assert packed.shape == (96, 32), "bitsandbytes has repacked it"
    studio.attach(model, studio.LoRA(rank=2, targets=("0",)))
    got = gradient(model.train(), x)
    assert float((got - wanted).norm() / wanted.norm()) < 0.02  # the scales were rounded to bf16 by bitsandbytes
    studio.detach(model)
    assert torch.equal(model[0].weight.data, packed) and model[0].weight.quant_state.packing_format_for_cpu


def test_its_remark_on_a_kernel_that_is_not_used_is_left_out_and_no_other(caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("bitsandbytes")
    code = "import studio.families, diffusers; diffusers.UNet2DConditionModel; import bitsandbytes"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
    assert "gemm_4bit" not in done.stderr
    log = logging.getLogger("bitsandbytes.backends.cpu.ops")
    log.warning("Failed to load CPU gemm_4bit_forward from kernels-community: %s.", "No module named 'kernels'")
    log.warning("Failed to load the library: %s", "no such file")
    assert caplog.messages == ["Failed to load the library: no such file"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("bits", ["load_in_4bit", "load_in_8bit"])
def test_a_model_that_transformers_loaded_quantised_is_trained(bits: str, tmp_path) -> None:
    pytest.importorskip("bitsandbytes")
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    from tiny import llama

    llama(hidden_size=64, intermediate_size=128).save_pretrained(tmp_path)
    more = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float32} if "4" in bits else {}
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path, quantization_config=BitsAndBytesConfig(**{bits: True}, **more), device_map="cpu", dtype=torch.float32
    )
    plain = llama(hidden_size=64, intermediate_size=128)
    packed = 0
    for path, module in model.named_modules():
        packing = packing_of(module)
        if packing is not None:
            plain.get_submodule(path).weight.data.copy_(packing.unpacked(module))
            packed += 1
    assert packed == 14
    ids = torch.arange(6).view(2, 3)
    for one in (model, plain):
        one.requires_grad_(False)
        studio.attach(one, studio.LoRA(rank=2, targets="all-linear", init="orthogonal"))
    with torch.no_grad():  # an evaluation first
        live = model(ids).logits
    wanted = plain(ids).logits
    assert float((live - wanted).norm() / wanted.norm()) <= 1e-5
    for one in (model, plain):
        one.train()(ids).logits.square().sum().backward()
    for (key, mine), other in zip(studio.state(model).items(), studio.state(plain).values(), strict=True):
        assert float((mine.grad - other.grad).norm()) <= 1e-4 * float(other.grad.norm()), key


# -- which layers --------------------------------------------------------------------------------------------------


def test_heads_tied_and_attention_weights_stay() -> None:
    from tiny import llama, t5

    assert len(quantizable(llama())) == 14
    found = quantizable(t5())
    assert found and not [path for path in found if path.endswith(".wo") or path == "lm_head"]


def test_a_quantised_model_says_so() -> None:
    from studio.quantization.parts import quantize_part

    model = quantized("grid4")
    with pytest.raises(DoesNotFit, match="is quantised already"):
        quantize_part("the model", model, "fp8")
    with pytest.raises(DoesNotFit, match="has no Linear layers"):
        quantize_part("the model", nn.Sequential(nn.Tanh()), "fp8")
    with pytest.raises(DoesNotFit) as caught:
        quantize_part("the unet of tiny", nn.Sequential(nn.Linear(48, 64)), "grid4")
    assert str(caught.value) == (
        "the unet of tiny has no Linear layers that grid4 can divide, so it cannot be quantised as 'grid4': leave it "
        "out"
    )


@pytest.mark.parametrize("name", ["nf4", "gguf-q4-0", "fp8"])
def test_loftq_leaves_less_than_rounding_in_every_way_to_quantise(name: str) -> None:
    prepare(name)
    from packings import wide

    full, rounded = wide(), quantized(name)
    x = torch.randn(3, 5, 64, generator=torch.Generator().manual_seed(1))
    model = copy.deepcopy(full)
    studio.quantize(model, name, rank=8, iterations=4)
    studio.attach(model, studio.LoRA(rank=8, init="loftq", targets=("0", "2")), original=full)
    assert (model(x) - full(x)).norm() < 0.9 * (rounded(x) - full(x)).norm()


# -- an accelerator ------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no accelerator is at hand")
@pytest.mark.parametrize("name", ALL)
def test_on_an_accelerator_it_computes_the_same(name: str) -> None:
    model = quantized(name).to("cuda")
    plain = dense(model).to("cuda")
    x = torch.randn(3, 5, 64, generator=torch.Generator().manual_seed(2)).to("cuda")
    for one in (model, plain):
        studio.attach(one, studio.LoRA(rank=4, targets=("0", "2"), init="orthogonal"))
    live = model(x)
    assert float((live - plain(x)).norm() / live.norm()) <= 1e-3
    before = gradient(model, x)
    with torch.no_grad():
        model.eval()(x)
    assert torch.allclose(gradient(model.train(), x), before)
