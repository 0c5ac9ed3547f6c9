"""Norms and whole modules as sites: what is changed in them, and that they stay the objects that they are."""

from __future__ import annotations

import copy
import pickle
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from diffusers.models.normalization import FP32LayerNorm
from diffusers.models.normalization import RMSNorm as DiffusersRMSNorm
from diffusers.models.unets.unet_stable_cascade import SDCascadeLayerNorm
from torch import Tensor, nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.t5.modeling_t5 import T5LayerNorm
from transformers.utils import ModelOutput

import studio
from studio.adapters.hosting.host import is_hosted
from studio.adapters.sites.kinds import is_site, kind_of, site_for
from studio.errors import DoesNotFit, NoEffect, NoTargets, UnsupportedLayer
from tiny import shaken

# norm -> how it is made, the shape of an input; all have eight channels
NORMS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "layernorm": (lambda: nn.LayerNorm(8), (3, 5, 8)),
    "layernorm-2d": (lambda: nn.LayerNorm((2, 8)), (3, 2, 8)),
    "layernorm-bare": (lambda: nn.LayerNorm(8, bias=False), (3, 5, 8)),
    "rmsnorm": (lambda: nn.RMSNorm(8), (3, 5, 8)),
    "groupnorm": (lambda: nn.GroupNorm(2, 8), (3, 8, 4, 4)),
    "batchnorm": (lambda: nn.BatchNorm1d(8), (3, 8)),
    "batchnorm-2d": (lambda: nn.BatchNorm2d(8), (3, 8, 4, 4)),
    "t5": (lambda: T5LayerNorm(8), (3, 5, 8)),
    "llama": (lambda: LlamaRMSNorm(8), (3, 5, 8)),
    "gemma": (lambda: GemmaRMSNorm(8), (3, 5, 8)),
    "diffusers": (lambda: DiffusersRMSNorm(8, eps=1e-6, bias=True), (3, 5, 8)),
    "diffusers-fp32": (lambda: FP32LayerNorm(8), (3, 5, 8)),
    "cascade": (lambda: SDCascadeLayerNorm(8), (3, 8, 4, 4)),
}


def tower(norm: str) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(NORMS[norm][0]())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    return model.eval()


# -- kinds -----------------------------------------------------------------------------------------------------------


def test_norms_and_modules_are_looked_at_only_where_they_are_asked_for() -> None:
    assert not is_site(nn.LayerNorm(8)) and is_site(nn.LayerNorm(8), ("norm",))
    assert not is_site(nn.Sequential()) and is_site(nn.Sequential(), ("module",))
    assert kind_of(nn.ModuleList()) is None and kind_of(nn.LayerNorm(8, elementwise_affine=False)) == "module"
    model = nn.ModuleDict({"block": nn.Linear(8, 8), "block_norm": nn.LayerNorm(8)})
    pattern = ("block*",)
    assert studio.attach(model, studio.LoRA(rank=2, targets=pattern)).sites == ("block",)
    assert studio.attach(model, studio.LNTuning(targets=pattern), name="b").sites == ("block", "block_norm")


def test_a_norm_is_refused_by_kind_where_the_method_has_no_use_for_it() -> None:
    model = nn.ModuleDict({"norm1": nn.LayerNorm(8), "lin": nn.Linear(8, 8)})
    with pytest.raises(
        UnsupportedLayer, match=r"norm1 is of kind 'norm', which LoRA cannot change.*BitFit, Full, LNTuning"
    ):
        studio.attach(model, studio.LoRA(rank=2, targets=("lin", "norm1")))
    with pytest.raises(NoTargets, match="'norm2' matches no layer"):
        studio.attach(model, studio.LNTuning(targets=("norm2",)))
    assert not studio.adapters(model)


def test_norms_of_a_model_are_found_by_structure() -> None:
    model = nn.TransformerEncoderLayer(8, 2, 16)
    assert studio.attach(model, studio.LNTuning()).sites == ("norm1", "norm2")


# -- norms -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize("norm", NORMS)
def test_a_norm_computes_what_it_would_with_the_tuned_weight(norm: str, training: bool) -> None:
    model, twin = tower(norm).train(training), tower(norm).train(training)
    x = torch.randn(NORMS[norm][1], generator=torch.Generator().manual_seed(2))
    studio.attach(model, studio.LNTuning(targets=("0",)))
    tuned = {key: tensor.detach().clone() for key, tensor in studio.state(shaken(model)).items()}
    assert set(tuned) == {f"0.{name}" for name in dict(twin[0].named_parameters())}
    with torch.no_grad():
        for key, tensor in tuned.items():
            twin.get_parameter(key).copy_(tensor)
    assert torch.allclose(model(x), twin(x), atol=1e-5)
    # what the norm remembers of its inputs is remembered once
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), twin.buffers(), strict=True))
    live = model.eval()(x)
    studio.bake(model)
    assert torch.allclose(model(x), live, atol=1e-5)
    studio.unbake(model)
    studio.blend(model, {"default": 0.5})
    with torch.no_grad():
        for key, tensor in tuned.items():
            twin.get_parameter(key).copy_(tower(norm).get_parameter(key).lerp(tensor, 0.5))
    assert torch.allclose(model(x), twin.eval()(x), atol=1e-5)


@pytest.mark.parametrize("norm", NORMS)
def test_a_bias_is_added_where_the_norm_can_have_one(norm: str) -> None:
    model = tower(norm)
    x = torch.randn(NORMS[norm][1], generator=torch.Generator().manual_seed(2))
    if norm in ("rmsnorm", "t5", "llama", "gemma"):
        with pytest.raises(UnsupportedLayer, match="which cannot have a bias"):
            studio.attach(model, studio.BitFit(targets=("0",)))
        return
    studio.attach(model, studio.BitFit(targets=("0",)))
    live = shaken(model)(x)
    studio.bake(model)
    assert torch.allclose(model(x), live, atol=1e-6)
    bias = model[0].bias
    studio.unbake(model)
    assert bias is not None and not torch.allclose(live, tower(norm)(x), rtol=1e-2)


def test_norms_that_are_not_what_they_seem_are_refused() -> None:
    class SquareNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(8))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.weight**2

    class GatedNorm(nn.LayerNorm):
        def forward(self, x: Tensor, gate: Tensor | None = None) -> Tensor:
            return super().forward(x) * gate

    with pytest.raises(UnsupportedLayer, match="0 is a SquareNorm, and its output is not affine in its weight"):
        studio.attach(nn.Sequential(SquareNorm()), studio.LNTuning(targets=("0",)))
    with pytest.raises(UnsupportedLayer, match="0 is a GatedNorm, which takes further inputs"):
        studio.attach(nn.Sequential(GatedNorm(8)), studio.LNTuning(targets=("0",)))


def test_norms_in_one_compiled_graph() -> None:
    model = nn.Sequential(nn.LayerNorm(8), GemmaRMSNorm(8), nn.Linear(8, 8)).eval()
    studio.attach(model, studio.LNTuning(targets=("0", "1")))
    studio.attach(model, studio.BitFit(targets=("0", "2")), name="b")
    shaken(shaken(model), "b")
    x = torch.randn(3, 8)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        for blend in ({"default": 1.0}, {"default": 0.3, "b": -0.5}, {}):
            studio.blend(model, blend)
            assert torch.allclose(compiled(x), model(x), atol=1e-6)


# -- modules ---------------------------------------------------------------------------------------------------------

Pair = namedtuple("Pair", ["sample", "rest"])


@dataclass
class Output(ModelOutput):
    sample: Tensor | None = None
    rest: str | None = None


class Block(nn.Module):
    """Returns what it is told to."""

    def __init__(self, form: Callable[[Tensor], object] = lambda y: y) -> None:
        super().__init__()
        self.lin, self.form = nn.Linear(8, 8), form

    def forward(self, hidden_states: Tensor, scale: float = 1.0) -> object:
        return self.form(self.lin(hidden_states) * scale)


def identity(y: Tensor) -> Tensor:
    return y


FORMS: dict[str, tuple[Callable[[Tensor], object], Callable[[object], Tensor]]] = {
    "tensor": (identity, lambda out: out),
    "tuple": (lambda y: (y, None, "rest"), lambda out: out[0]),
    "list": (lambda y: [y, "rest"], lambda out: out[0]),
    "named-tuple": (lambda y: Pair(y, "rest"), lambda out: out.sample),
    "model-output": (lambda y: Output(sample=y, rest="rest"), lambda out: out.sample),
}
BOTTLE = studio.Bottleneck(size=3, targets=("block",))
X = torch.randn(2, 8, generator=torch.Generator().manual_seed(2))


class Net(nn.Module):
    def __init__(self, form: Callable[[Tensor], object] = identity) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.block, self.skip = Block(form), False

    def forward(self, x: Tensor) -> object:
        return x if self.skip else self.block(hidden_states=x, scale=0.5)


@pytest.mark.parametrize("form", FORMS)
def test_the_first_tensor_is_changed_and_the_rest_stays(form: str) -> None:
    make, first = FORMS[form]
    model = Net(make)
    before = model(X)
    studio.attach(model, BOTTLE)
    after = shaken(model)(X)
    assert type(after) is type(before) and not torch.allclose(first(after), first(before), rtol=1e-2)
    if form != "tensor":
        assert list(after)[1:] == list(before)[1:] and after[-1] == before[-1]
    with studio.blended(model, {}):
        assert torch.equal(first(model(X)), first(before))


def test_a_module_without_a_tensor_or_a_width_says_so() -> None:
    model = Net(lambda y: {"a": "text"})
    studio.attach(model, BOTTLE)
    with pytest.raises(DoesNotFit, match="block returned a dict that does not begin with a tensor"):
        model(X)
    with pytest.raises(UnsupportedLayer, match="is a GELU without a linear layer or convolution in it"):
        studio.attach(nn.ModuleDict({"block": nn.GELU()}), BOTTLE)
    with pytest.raises(NoTargets):  # a list of modules is never called
        studio.attach(nn.ModuleDict({"block": nn.ModuleList([nn.ReLU()])}), BOTTLE)


def test_a_hosted_module_is_the_same_object_and_comes_back_as_it_was() -> None:
    model = Net()
    module, kind, before = model.block, type(model.block), set(vars(model.block))
    keys, weight, base = list(model.state_dict()), model.block.lin.weight, model(X)
    studio.attach(model, BOTTLE, name="dog")
    assert model.block is module and isinstance(model.block, Block) and type(model.block).__name__ == "Block"
    gained = set(model.state_dict()) - set(keys)
    assert gained == {f"block.adapters.dog.{part}" for part in ("down", "down_bias", "up", "up_bias")}
    studio.detach(model)
    assert type(module) is kind and set(vars(module)) == before and list(model.state_dict()) == keys
    assert model.block.lin.weight is weight and torch.equal(model(X), base)


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
@pytest.mark.parametrize("kind", ["module", "norm"])
def test_copies_are_independent(kind: str, copier: Callable[[nn.Module], nn.Module]) -> None:
    model = Net() if kind == "module" else nn.ModuleDict({"block": GemmaRMSNorm(8)})
    call = (lambda m: m(X)) if kind == "module" else (lambda m: m["block"](X))
    base = call(model)
    studio.attach(model, BOTTLE if kind == "module" else studio.LNTuning(targets=("block",)))
    expected = call(shaken(model))
    twin = copier(model)
    assert torch.equal(call(twin), expected)
    studio.blend(twin, {})
    assert torch.equal(call(twin), base) and torch.equal(call(model), expected)
    studio.detach(twin)
    assert is_hosted(model.get_submodule("block")) and not is_hosted(twin.get_submodule("block"))


def test_a_module_that_is_not_called_is_noticed() -> None:
    model = Net()
    studio.attach(model, BOTTLE)
    model.skip = True
    with pytest.raises(NoEffect, match="block are active, and Net ran without calling"):
        model(X)


def test_layers_inside_an_adapted_module_can_be_adapted_too() -> None:
    model = Net()
    studio.attach(model, BOTTLE, name="outer")
    studio.attach(model, studio.LoRA(rank=2, targets=("lin",)), name="inner")
    shaken(shaken(model, "outer"), "inner")
    both = model(X)
    with studio.blended(model, {"outer": 1.0}):
        outer = model(X)
    studio.detach(model, "inner")
    assert torch.equal(model(X), outer) and not torch.allclose(both, outer, rtol=1e-2)


@pytest.mark.parametrize("attach_first", [True, False], ids=["attach-offload", "offload-attach"])
def test_offloaded_norms_and_modules_in_either_order(attach_first: bool) -> None:
    from accelerate import cpu_offload

    def build() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.LayerNorm(8), Block()).eval()

    configs = {"norm": studio.LNTuning(targets=("0",)), "module": studio.Bottleneck(size=3, targets=("1",))}
    plain = build()
    base = plain(X)
    for name, config in configs.items():
        studio.attach(plain, config, name=name)
    tensors = {name: {k: t.detach() for k, t in studio.state(shaken(plain, name), name).items()} for name in configs}
    expected = plain(X)
    model = build()
    if not attach_first:
        cpu_offload(model, execution_device="cpu")
    for name, config in configs.items():
        studio.attach(model, config, name=name)
        with torch.no_grad():
            for key, tensor in studio.state(model, name).items():
                tensor.copy_(tensors[name][key])
    if attach_first:
        cpu_offload(model, execution_device="cpu")
    with torch.no_grad():
        assert torch.allclose(model(X), expected, atol=1e-6)
        studio.detach(model)
        assert torch.equal(model(X), base)


def test_a_module_in_one_compiled_graph() -> None:
    model = Net().eval()
    studio.attach(model, BOTTLE)
    shaken(model)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        for blend in ({"default": 1.0}, {"default": 0.3}, {}):
            studio.blend(model, blend)
            assert torch.allclose(compiled(X), model(X), atol=1e-6)


def test_a_subclass_with_a_forward_of_its_own_is_a_module() -> None:
    class Scaled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    assert site_for("0", Scaled(8, 8), ("module",)).kind == "module"
    model = nn.Sequential(Scaled(8, 8))
    with pytest.raises(UnsupportedLayer, match="a Linear with a forward of its own"):
        studio.attach(model, studio.LoRA(rank=2, targets=("0",)))
    studio.attach(model, studio.Bottleneck(size=3, targets=("0",)))
    assert shaken(model)(X).shape == (2, 8)
