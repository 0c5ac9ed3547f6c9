"""Every method on every kind of layer against PEFT: what one writes and the other reads is the same function.

Where PEFT computes something else on a kind of layer than the method's formula, nothing is written for it, and what it
wrote acts as its tensors say, with a note. So nothing that passes between the two changes its meaning silently.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial

import peft
import pytest
import torch
from torch import Tensor, nn

import studio
from studio.adapters.hosting.assembly import site_at
from studio.errors import DoesNotFit, StudioError
from studio.survey import LAYERS as SURVEYED
from tiny import Tower

LAYERS: dict[str, Callable[[], nn.Module]] = {
    **SURVEYED,
    "Conv1d circular": lambda: nn.Conv1d(256, 64, 3, padding=1, padding_mode="circular"),
    "Conv1d dilated": lambda: nn.Conv1d(256, 64, 3, dilation=2),
    "Conv2d reflect, not padded": lambda: nn.Conv2d(256, 64, 3, padding_mode="reflect"),
    "Conv2d same": lambda: nn.Conv2d(256, 64, 3, padding="same"),
    "Conv2d 3×1": lambda: nn.Conv2d(256, 64, (3, 1)),
    "Conv2d 1×1 dilated": lambda: nn.Conv2d(256, 64, 1, dilation=2),
}

# BOFT has a CUDA kernel in PEFT, Delta-LoRA and MoRA are not in it, QA-LoRA there needs a GPTQ layer: the first is
# compared in test_rotations.py. AdaLoRA's own test compares its pruned ranks.
APART = {"boft", "qalora"}
TRIED = {
    name: config
    for name, config in studio.METHODS.items()
    if config.adapter.peft.type and "model" not in config.adapter.kinds and name not in APART
}

OURS = {name: config.example(targets=("layer",)) for name, config in TRIED.items()} | {
    "lora": studio.LoRA(rank=2, alpha=3, targets=("layer",)),
    "dora": studio.DoRA(rank=2, alpha=3, targets=("layer",)),
    "adalora": studio.AdaLoRA(rank=2, alpha=3, targets=("layer",)),
    "ia3": studio.IA3(targets=("layer",)),
    "ia3-inputs": studio.IA3(targets=("layer",), feedforward=("layer",)),
    "loha": studio.LoHa(rank=2, targets=("layer",)),
    "loha-tucker": studio.LoHa(rank=2, tucker=True, targets=("layer",)),
    "lokr": studio.LoKr(rank=2, targets=("layer",)),
    "lokr-whole": studio.LoKr(rank=16, targets=("layer",)),
    "lokr-tucker": studio.LoKr(rank=2, tucker=True, decompose_both=True, targets=("layer",)),
    "vera": studio.VeRA(rank=4, targets=("layer",)),
    "hra": studio.HRA(rank=4, targets=("layer",)),
    "road": studio.RoAd(group=4, targets=("layer",)),
    "oft": studio.OFT(block_size=4, targets=("layer",)),
    "lntuning": studio.LNTuning(targets=("layer",)),
    "bitfit": studio.BitFit(targets=("layer",)),
    "tokenembedding": studio.TokenEmbedding(tokens=(1, 3), targets=("layer",)),
}

POINT = {"Conv2d 1×1", "Conv2d 1×1 dilated"}
CONV2D = {"Conv2d 3×3 strided", "Conv2d reflect, not padded", "Conv2d same", "Conv2d 3×1", *POINT}
LOHA = {"Linear", "Conv1d", "Conv1d dilated", "Conv2d dilated", "Conv2d grouped", *CONV2D}
WRITTEN: dict[str, set[str]] = {
    "lora": {"Linear", "GPT-2 Conv1D", "Embedding", "Conv1d", "Conv3d", "MultiheadAttention", *CONV2D},
    "dora": {"Linear", "GPT-2 Conv1D", "Embedding", "Conv1d", "Conv3d", *CONV2D},
    "adalora": {"Linear", "GPT-2 Conv1D", "Conv2d dilated", *CONV2D},
    "ia3": {"Linear", "GPT-2 Conv1D", "Conv2d dilated", "Conv2d circular", "Conv2d grouped", "Conv3d", *CONV2D},
    "ia3-inputs": {"Linear", "GPT-2 Conv1D", "Conv2d dilated", "Conv2d circular", "Conv2d grouped", "Conv3d", *CONV2D},
    "loha": LOHA,
    "loha-tucker": LOHA,
    "lokr": LOHA,
    "lokr-whole": LOHA - {"Conv1d", "Conv1d dilated"},
    "lokr-tucker": LOHA,
    "vera": {"Linear", "GPT-2 Conv1D"},
    "hra": {"Linear", "Conv2d 1×1", "Conv2d 3×3 strided", "Conv2d reflect, not padded"},
    "road": {"Linear"},
    "oft": {"Linear", "Embedding", "Conv2d 1×1"},
    "lntuning": set(LAYERS) - {"MultiheadAttention"},
    "bitfit": {"Linear"},
    "tokenembedding": {"Embedding"},
}
"""The kinds of layers on which PEFT computes the method's formula, found by looking; of other methods they say so."""


def covered(config: type[studio.adapters.AdapterConfig]) -> set[str]:
    peft, sites = config.adapter.peft, {kind: site_at(given(kind)[0], "layer", ("norm",)) for kind in LAYERS}
    return {kind for kind, site in sites.items() if not peft.refusal(site) and not peft.differs(site)}


def of_peft(config: type[studio.adapters.AdapterConfig]) -> peft.PeftConfig:
    """PEFT's config of the method's own example."""
    settings, example = config.adapter.peft.settings, config.example()
    fields = {theirs: getattr(example, ours) for ours, theirs in settings.fields.items()}
    return getattr(peft, settings.name)(**{**fields, **settings.flags, settings.init: False, **ON})


ON = {"target_modules": ["layer"]}
THEIRS: dict[str, Callable[[], peft.PeftConfig]] = {name: partial(of_peft, config) for name, config in TRIED.items()}
THEIRS |= {
    "lora": lambda: peft.LoraConfig(r=2, lora_alpha=3, init_lora_weights=False, **ON),
    "dora": lambda: peft.LoraConfig(r=2, lora_alpha=3, use_dora=True, init_lora_weights=False, **ON),
    "adalora": lambda: peft.AdaLoraConfig(init_r=3, target_r=2, total_step=10, init_lora_weights=False, **ON),
    "ia3": lambda: peft.IA3Config(feedforward_modules=[], init_ia3_weights=False, **ON),
    "ia3-inputs": lambda: peft.IA3Config(feedforward_modules=["layer"], init_ia3_weights=False, **ON),
    "loha": lambda: peft.LoHaConfig(r=2, alpha=3, init_weights=False, **ON),
    "loha-tucker": lambda: peft.LoHaConfig(r=2, alpha=3, use_effective_conv2d=True, init_weights=False, **ON),
    "lokr": lambda: peft.LoKrConfig(r=2, alpha=3, init_weights=False, **ON),
    "lokr-whole": lambda: peft.LoKrConfig(r=16, alpha=3, init_weights=False, **ON),
    "lokr-tucker": lambda: peft.LoKrConfig(
        r=2, alpha=3, use_effective_conv2d=True, decompose_both=True, init_weights=False, **ON
    ),
    "vera": lambda: peft.VeraConfig(r=4, init_weights=False, **ON),
    "hra": lambda: peft.HRAConfig(r=4, init_weights=False, **ON),
    "road": lambda: peft.RoadConfig(group_size=4, init_weights=False, **ON),
    "oft": lambda: peft.OFTConfig(oft_block_size=4, init_weights=False, **ON),
    "lntuning": lambda: peft.LNTuningConfig(**ON),
    "bitfit": lambda: peft.BeftConfig(**ON),
    "tokenembedding": lambda: peft.TrainableTokensConfig(token_indices=[1, 3], **ON),
    "fourierft": lambda: peft.FourierFTConfig(n_frequency=12, **ON),  # its start is random by itself
}


def given(kind: str) -> tuple[Tower, Tensor]:
    """A model of one layer, and an input."""
    torch.manual_seed(0)
    layer = LAYERS[kind]()
    if kind == "Embedding":
        return Tower(layer), torch.tensor([[1, 2, 3, 4, 47]])
    if kind.startswith("Conv"):
        return Tower(layer), torch.randn(2, 256, *[7 if "1d" in kind or "2d" in kind else 4] * int(kind[4]))
    return Tower(layer), torch.randn(2, 4, 256)


WRITTEN |= {name: covered(config) for name, config in TRIED.items() if name not in WRITTEN}


def disturb(tensors: Iterator[Tensor]) -> None:
    with torch.no_grad():
        for tensor in tensors:
            tensor += 0.1 * torch.randn_like(tensor)


def apart(got: Tensor, wanted: Tensor, base: Tensor) -> float:
    """How far two models are apart, in terms of what the adapter changes."""
    return ((got - wanted).norm() / (wanted - base).norm()).item()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("method", OURS)
def test_what_is_written_is_the_same_function_in_peft(tmp_path, method, kind) -> None:
    model, x = given(kind)
    plain = copy.deepcopy(model)
    try:
        studio.attach(model, OURS[method])
    except StudioError:
        pytest.skip("no layer for this method")
    disturb(  # PEFT adds the change of out_proj twice
        tensor for key, tensor in studio.state(model).items() if tensor.is_floating_point() and "out_proj" not in key
    )
    try:
        folder = studio.save(model, tmp_path / "a", format="peft")
    except DoesNotFit as refused:
        assert kind not in WRITTEN[method], refused
        assert "layer" in str(refused) and list(tmp_path.iterdir()) == []
        return
    assert kind in WRITTEN[method]
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(plain), folder).eval()
    assert apart(theirs(x), model.eval()(x), plain.eval()(x)) <= 1e-4


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("method", THEIRS)
def test_what_peft_wrote_is_the_same_function_or_a_note_says_otherwise(tmp_path, method, kind) -> None:
    model, x = given(kind)
    plain = copy.deepcopy(model).eval()
    base = plain(x)
    try:
        theirs = peft.get_peft_model(model, THEIRS[method]()).eval()
        trained = {name: one for name, one in theirs.named_parameters() if one.requires_grad}
        disturb(one for name, one in trained.items() if "out_proj" not in name)
        for name in (name for name in trained if "out_proj" in name):  # PEFT adds it twice
            torch.nn.init.zeros_(trained[name])
        wanted = theirs(x)
    except Exception as refused:  # whatever PEFT raises: it has no such layer, or cannot run it
        pytest.skip(f"PEFT: {refused}")
    theirs.save_pretrained(tmp_path)
    try:
        report = studio.load(plain, tmp_path)
    except StudioError as refused:
        assert "PEFT" in str(refused) and kind not in WRITTEN[method]
        return
    noted = any("here it acts as the layer does" in note for note in report.notes)
    assert noted == (kind not in WRITTEN[method])
    assert noted == (apart(plain(x), wanted, base) > 1e-4)


def test_the_seamless_case_is_read(tmp_path) -> None:
    """A LoRA that was trained with zero padding acts on a base that was made circular as its weights say."""
    base, x = given("Conv2d same")
    theirs = peft.get_peft_model(copy.deepcopy(base), THEIRS["lora"]()).eval()
    theirs.save_pretrained(tmp_path)
    base.layer.padding_mode = "circular"
    formula = copy.deepcopy(base)
    with torch.no_grad():
        formula.layer.weight += theirs.base_model.model.layer.get_delta_weight("default")
    report = studio.load(base, tmp_path)
    assert any("in its mode 'circular'" in note for note in report.notes)
    assert (base(x) - formula(x)).norm() <= 1e-5 * formula(x).norm()
