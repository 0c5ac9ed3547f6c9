"""Adapters on bare parameters: projections that a module writes as a parameter, and stored experts."""

from __future__ import annotations

import copy
import json
import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    FalconConfig,
    FalconForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GptOssConfig,
    GptOssForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

import studio
from studio.adapters.sites.parameter import BARE
from studio.errors import BadConfig, DoesNotFit, NoEffect, NoTargets, UnsupportedLayer

X = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))


class Clip(nn.Module):
    """A module with two bare parameters and a method beside its forward that reads one of them."""

    def __init__(self, inner: int = 6, outer: int = 4) -> None:
        super().__init__()
        self.lin = nn.Linear(inner, inner)
        self.text_projection = nn.Parameter(torch.randn(inner, outer))
        self.scale = nn.Parameter(torch.randn(outer))
        self.logit_scale = nn.Parameter(torch.tensor(1.0))

    def encode(self, x: Tensor) -> Tensor:
        return self.lin(x) @ self.text_projection

    def forward(self, x: Tensor) -> Tensor:
        return self.encode(x) * self.scale


class Deep(nn.Module):
    def __init__(self, inner: int = 6, outer: int = 4) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.block = Clip(inner, outer)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


def shaken(model: nn.Module, name: str = "default") -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in studio.state(model, name).values():
            if tensor.is_floating_point():
                tensor += 0.3 * torch.randn(tensor.shape, generator=generator)


ABLE = sorted(name for name, config in studio.METHODS.items() if "parameter" in config.adapter.kinds)


@pytest.mark.parametrize("method", ABLE)
def test_every_method_of_a_pure_delta_acts_on_a_parameter(method: str) -> None:
    """The reference is the module's formula with ``W + ΔW`` for ``W``, and ``ΔW`` from the method's definition."""
    model, x = Deep(64, 64), torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    base, before, kind = model(x), list(model.state_dict()), type(model.block)
    studio.attach(model, studio.METHODS[method](targets=("text_projection",)))
    assert isinstance(model.block, Clip) and isinstance(
        dict(model.named_parameters())["block.text_projection"], nn.Parameter
    )
    assert all(
        key.startswith("block.adapters.text_projection.default.") for key in set(model.state_dict()) - set(before)
    )
    shaken(model)
    own = model.block._parameters
    delta = model.block.adapters.text_projection.default.delta(own["text_projection"], None).weight
    live = model(x)
    wanted = model.block.lin(x) @ (own["text_projection"] + delta) * own["scale"]
    assert (live - base).abs().max() > 1e-3
    torch.testing.assert_close(live, wanted, rtol=1e-5, atol=1e-5)
    live.sum().backward()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert trained and all(parameter.grad is not None for parameter in trained)
    assert torch.equal(copy.deepcopy(model)(x), live)
    assert torch.equal(pickle.loads(pickle.dumps(model))(x), live)
    studio.bake(model)
    torch.testing.assert_close(model(x), live, rtol=1e-5, atol=1e-5)
    studio.unbake(model)
    studio.detach(model)
    assert list(model.state_dict()) == before and type(model.block) is kind and torch.equal(model(x), base)
    assert "adapters" not in model.block._modules and "_mount" not in vars(model.block)


def test_methods_that_change_no_weight_are_refused_by_name() -> None:
    model = Deep()
    for method in ("bottleneck", "lntuning"):
        with pytest.raises(UnsupportedLayer, match="block.text_projection is of kind 'parameter'.*LoRA"):
            studio.attach(model, studio.METHODS[method](targets=("block.text_projection",)))
    with pytest.raises(UnsupportedLayer, match="bare parameter, which has no input to drop"):
        studio.attach(model, studio.LoRA(rank=1, dropout=0.5, targets=("text_projection",)))
    with pytest.raises(UnsupportedLayer, match="has no bias that could be trained"):
        studio.attach(model, studio.LoRA(rank=1, use_bias=True, targets=("text_projection",)))
    assert type(model.block) is Clip and not model._forward_hooks


def test_a_method_of_the_module_reads_the_adapted_parameter_too() -> None:
    model = Clip()
    studio.attach(model, studio.LoRA(rank=2, init="orthogonal", targets=("text_projection",)))
    shaken(model)
    torch.testing.assert_close(model.encode(X) * model.scale, model(X))
    assert (model.text_projection - model._parameters["text_projection"]).abs().max() > 1e-2
    studio.blend(model, {})
    assert model.text_projection is model._parameters["text_projection"]


def test_two_parameters_of_one_module_and_two_adapters() -> None:
    model = Deep()
    base = model(X)
    studio.attach(model, studio.LoRA(rank=1, targets=("text_projection", "block.scale")), name="a")
    studio.attach(model, studio.LoRA(rank=1, targets=("scale",)), name="b")
    for name in ("a", "b"):
        shaken(model, name)
    assert sorted(studio.state(model, "a")) == [
        f"block.{path}.{part}" for path in ("scale", "text_projection") for part in ("down", "up")
    ]
    studio.blend(model, {"a": 0.5, "b": 2.0})
    own = model.block._parameters
    a, b = (studio.state(model, name) for name in ("a", "b"))
    scale = own["scale"] + 0.5 * (a["block.scale.up"] @ a["block.scale.down"]).flatten()
    scale = scale + 2.0 * (b["block.scale.up"] @ b["block.scale.down"]).flatten()
    weight = own["text_projection"] + 0.5 * a["block.text_projection.up"] @ a["block.text_projection.down"]
    torch.testing.assert_close(model(X), model.block.lin(X) @ weight * scale)
    studio.detach(model, "a")
    assert list(model.block.adapters._modules) == ["scale"]
    studio.detach(model)
    assert torch.equal(model(X), base) and type(model.block) is Clip


def test_checkpointing_gives_the_same_gradients() -> None:
    grads = []
    for kept in (False, True):
        model = Deep()
        studio.attach(
            model,
            studio.LoRA(rank=2, init="orthogonal", rank_pattern={"scale": 1}, targets=("text_projection", "scale")),
        )
        run = model(X) if not kept else checkpoint(model.block, X.clone().requires_grad_(), use_reentrant=False)
        run.pow(2).sum().backward()
        grads.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert len(grads[0]) == 4 and all(torch.equal(one, two) for one, two in zip(*grads, strict=True))


def test_what_an_exception_in_the_forward_leaves() -> None:
    model = Deep()
    studio.attach(model, studio.LoRA(rank=2, init="orthogonal", targets=("text_projection",)))
    with pytest.raises(RuntimeError):
        model(torch.zeros(3, 5))
    owner = vars(model.block)["_mount"]
    assert not owner.depths and not owner.read


def test_strengths_by_sample_are_refused_by_name() -> None:
    model = Deep()
    studio.attach(model, studio.LoRA(rank=2, targets=("text_projection",)))
    studio.blend(model, {"default": studio.Strength(samples=[0.5, 1.0, 0.0])})
    with pytest.raises(DoesNotFit, match="strengths that differ by sample cannot act on block.text_projection"):
        model(X)


def test_compiled_it_is_the_same() -> None:
    model = Deep()
    studio.attach(
        model, studio.LoRA(rank=2, init="orthogonal", rank_pattern={"scale": 1}, targets=("text_projection", "scale"))
    )
    shaken(model)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(X), model(X))


def test_patterns_name_layers_before_parameters() -> None:
    model = Deep()
    model.text_projection = nn.Linear(4, 4)  # never called: only its name matters
    found = studio.attach(model, studio.LoRA(rank=1, targets=("text_projection",))).sites
    assert found == ("text_projection",)
    studio.detach(model)
    assert studio.attach(model, studio.LoRA(rank=1, targets=("block.text_projection",))).sites == (
        "block.text_projection",
    )
    studio.detach(model)
    with pytest.raises(UnsupportedLayer, match=r"block.logit_scale is a parameter of shape \(\)"):
        studio.attach(model, studio.LoRA(rank=1, targets=("logit_scale",)))
    with pytest.raises(NoTargets, match="the nearest layers are: block.text_projection"):
        studio.attach(model, studio.LoRA(rank=1, targets=("block.text_projektion",)))


# -- experts ---------------------------------------------------------------------------------------------------------

SIZES: dict[str, Any] = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
}
SPARSE = {**SIZES, "moe_intermediate_size": 8, "shared_expert_intermediate_size": 12, "num_experts": 4}
IDS = torch.randint(0, 32, (2, 7), generator=torch.Generator().manual_seed(0))
MODELS = {
    "mixtral": lambda: MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=4)),
    "gpt_oss": lambda: GptOssForCausalLM(GptOssConfig(**SIZES, num_local_experts=4)),
    "qwen2_moe": lambda: Qwen2MoeForCausalLM(Qwen2MoeConfig(**SPARSE, num_experts_per_tok=2)),
    "qwen3_moe": lambda: Qwen3MoeForCausalLM(Qwen3MoeConfig(**SPARSE, num_experts_per_tok=2)),
}


def sparse(kind: str) -> Any:
    torch.manual_seed(0)
    model = MODELS[kind]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.3)
    return model


@pytest.mark.parametrize("kind", MODELS)
def test_experts_have_a_pair_each(kind: str) -> None:
    """The reference is the same model with every expert's matrix changed by its own product."""
    model = sparse(kind)
    base = model(IDS).logits
    report = studio.attach(model, studio.LoRA(rank=2, alpha=3, targets="experts"))
    assert [path.rpartition(".")[2] for path in report.sites] == ["gate_up_proj", "down_proj"] * 2
    assert torch.equal(model(IDS).logits, base)
    shaken(model)
    live = model(IDS).logits
    changed, tensors = sparse(kind), studio.state(model)
    for path in report.sites:
        up, down = tensors[f"{path}.up"], tensors[f"{path}.down"]
        delta = torch.stack([1.5 * u @ d for u, d in zip(up, down, strict=True)])
        weight = changed.get_parameter(path)
        with torch.no_grad():
            weight += delta.mT if kind == "gpt_oss" else delta  # GPT-OSS stores (E, in, out)
    torch.testing.assert_close(live, changed(IDS).logits, rtol=1e-4, atol=1e-5)
    assert (live - base).abs().max() > 1e-2
    studio.bake(model)
    torch.testing.assert_close(model(IDS).logits, live, rtol=1e-5, atol=1e-5)
    studio.unbake(model)
    studio.detach(model)
    assert torch.equal(model(IDS).logits, base)


def test_what_experts_refuse() -> None:
    model = sparse("mixtral")
    with pytest.raises(UnsupportedLayer, match="is of kind 'experts', which DoRA cannot change.*can: LoRA"):
        studio.attach(model, studio.DoRA(rank=2, targets="experts"))
    with pytest.raises(BadConfig, match="holds 4 experts; they start with one of kaiming, gaussian, orthogonal"):
        studio.attach(model, studio.LoRA(rank=2, init="pissa", targets="experts"))
    assert BARE == ("parameter", "experts") and not model._forward_hooks


PARAMETERS = {
    "both": (["experts.gate_up_proj", "experts.down_proj"], ["q_proj"]),
    "one": (["experts.down_proj"], []),
    "router": (["mlp.gate.weight", "mlp.router.weight"], ["v_proj"]),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("which", PARAMETERS)
@pytest.mark.parametrize("kind", MODELS)
def test_peft_has_the_same_function_both_ways(kind: str, which: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model = sparse(kind)
    names, layers = PARAMETERS[which]
    present = [name for name in names if any(path.endswith(name) for path, _ in model.named_parameters())]
    config = peft.LoraConfig(r=3, lora_alpha=5, target_modules=layers, target_parameters=present)
    theirs = peft.get_peft_model(copy.deepcopy(model), config)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.3)
    wanted = theirs(IDS).logits
    theirs.save_pretrained(tmp_path / "theirs")
    studio.load(model, tmp_path / "theirs")
    scale = wanted.abs().max()
    assert (model(IDS).logits - wanted).abs().max() <= 1e-5 * scale
    studio.save(model, tmp_path / "ours", format="peft")
    file = studio.save(model, tmp_path / "own.safetensors")
    before = {key: tensor.clone() for key, tensor in studio.state(model).items()}
    with pytest.raises(DoesNotFit, match="bare parameter, which kohya's format has not"):
        studio.save(model, tmp_path / "kohya.safetensors", format="kohya")
    studio.detach(model)
    back = peft.PeftModel.from_pretrained(copy.deepcopy(model), tmp_path / "ours")
    assert (back(IDS).logits - wanted).abs().max() <= 1e-5 * scale
    studio.load(model, file)
    after = studio.state(model)
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)


def test_a_folder_that_names_an_unknown_parameter_is_refused(tmp_path: Path) -> None:
    model = sparse("mixtral")
    studio.attach(model, studio.LoRA(rank=2, targets=("experts.down_proj",)))
    folder = studio.save(model, tmp_path / "a", format="peft")
    studio.detach(model)
    fields = json.loads((folder / "adapter_config.json").read_text())
    assert fields["target_parameters"] == ["down_proj"] and fields["target_modules"] == []
    fields["target_parameters"] = ["down_porj"]
    (folder / "adapter_config.json").write_text(json.dumps(fields))
    with pytest.raises(DoesNotFit, match="target_parameters names 'down_porj'.*the nearest are: .*down_proj"):
        studio.load(model, folder)


def test_save_pretrained_of_the_base_leaves_adapters_of_parameters_out(tmp_path: Path) -> None:
    model = sparse("mixtral")
    base = model(IDS).logits
    studio.attach(model, studio.LoRA(rank=2, targets="attention+experts"))
    shaken(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(tmp_path)
        again = MixtralForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(again(IDS).logits, base)


# -- experts that are layers -----------------------------------------------------------------------------------------


class Expert(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w1, self.w2 = nn.Linear(4, 8), nn.Linear(8, 4)
        self.bypass = False

    def forward(self, x: Tensor) -> Tensor:
        hidden = x @ self.w1.weight.T if self.bypass else self.w1(x)
        return self.w2(hidden.relu())


class Routed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(Expert() for _ in range(4))
        self.picked = [0]

    def forward(self, x: Tensor) -> Tensor:
        for one in self.picked:
            x = x + self.experts[one](x)
        return x


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Routed() for _ in range(2))
        self.depth = 2

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[: self.depth]:
            x = layer(x)
        return x


def test_an_expert_that_the_router_skips_is_no_error() -> None:
    model, x = Stack(), torch.randn(2, 4)
    studio.attach(model, studio.LoRA(rank=2, targets=("w1",)))
    model(x)
    model.layers[0].picked = [1, 3]
    model(x)
    model.layers[1].picked = []  # none of the list ran
    with pytest.raises(NoEffect, match=r"layers.1.experts.0.w1 and 3 more are active"):
        model(x)
    model.layers[1].picked = [2]
    model.layers[1].experts[2].bypass = True  # it ran, past its own layer
    with pytest.raises(NoEffect, match=r"layers.1.experts.2.w1 are active"):
        model(x)
    model.layers[1].experts[2].bypass = False
    model.depth = 1  # a layer that is dropped as a whole
    model(x)
    copied = copy.deepcopy(model)
    copied.depth, copied.layers[0].picked = 2, []
    with pytest.raises(NoEffect, match=r"layers.0.experts"):
        copied(x)
    studio.detach(model)
    assert not any(module._forward_pre_hooks for module in model.modules())


# -- subclasses with a forward of their own --------------------------------------------------------------------------


def gemma() -> Any:
    torch.manual_seed(0)
    return Gemma3ForCausalLM(Gemma3TextConfig(**SIZES, pad_token_id=0)).eval()


def bart() -> Any:
    torch.manual_seed(0)
    sizes = {
        f"{side}_{what}": size for side in ("encoder", "decoder") for what, size in (("layers", 1), ("ffn_dim", 24))
    }
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    config = BartConfig(vocab_size=32, d_model=16, scale_embedding=True, max_position_embeddings=16, **sizes, **heads)
    return BartForConditionalGeneration(config).eval()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", [gemma, bart])
def test_scaled_embeddings_act_as_in_peft(make: Any, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model, ids = make(), IDS.clamp(min=4)
    base, name = model(ids).logits, "embed_tokens" if make is gemma else "encoder.embed_tokens"
    theirs = peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(r=3, lora_alpha=5, target_modules=[name]))
    with torch.no_grad():
        for path, parameter in theirs.named_parameters():
            if "lora_" in path:
                parameter.normal_(std=0.3)
    theirs.save_pretrained(tmp_path, save_embedding_layers=False)
    wanted = theirs(ids).logits
    studio.load(model, tmp_path)
    live = model(ids).logits
    assert (live - wanted).abs().max() <= 1e-5 * wanted.abs().max() and (live - base).abs().max() > 1e-4
    studio.bake(model)
    torch.testing.assert_close(model(ids).logits, live, rtol=1e-5, atol=1e-5)


def test_other_subclasses_are_refused_and_plain_ones_are_not() -> None:
    with pytest.raises(
        UnsupportedLayer, match="BartLearnedPositionalEmbedding, an Embedding with a forward of its own"
    ):
        studio.attach(bart(), studio.LoRA(rank=2, targets=("encoder.embed_positions",)))
    model = FalconForCausalLM(FalconConfig(vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=4))
    report = studio.attach(model, studio.LoRA(rank=2))  # FalconLinear has a forward of its own, and it is Linear's
    assert [path.rpartition(".")[2] for path in report.sites] == ["query_key_value", "dense"]
    shaken(model)
    live = model(IDS).logits
    studio.bake(model)
    torch.testing.assert_close(model(IDS).logits, live, rtol=1e-5, atol=1e-5)

    class Squared(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) ** 2

    with pytest.raises(UnsupportedLayer, match="Squared, a Linear with a forward of its own"):
        studio.attach(nn.Sequential(Squared(4, 4)), studio.LoRA(rank=2, targets=("0",)))


# -- tied weights ----------------------------------------------------------------------------------------------------


def test_the_report_says_where_an_adapter_on_a_tied_weight_acts() -> None:
    model = gemma()
    base = model(IDS).logits
    report = studio.attach(model, studio.LoRA(rank=2, targets=("embed_tokens",)))
    assert report.notes == (
        "model.embed_tokens shares its weight with lm_head: the adapter acts at model.embed_tokens alone; baking gives "
        "each its own",
    )
    shaken(model)
    hidden = model.model(IDS).last_hidden_state
    live = model(IDS).logits
    torch.testing.assert_close(live, hidden @ model.lm_head.weight.T)  # the head computes with the weight as it was
    studio.bake(model)
    assert model.lm_head.weight is not model.model.embed_tokens.weight
    torch.testing.assert_close(model(IDS).logits, live, rtol=1e-4, atol=1e-5)
    studio.unbake(model)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    studio.detach(model)
    assert torch.equal(model(IDS).logits, base)
    both = studio.attach(model, studio.LoRA(rank=2, targets=("embed_tokens", "lm_head")))
    assert len(both.notes) == 2 and all("each has an adapter of its own" in note for note in both.notes)
    assert not studio.attach(sparse("mixtral"), studio.LoRA(rank=2)).notes


def test_an_offloaded_module_finds_its_parameter() -> None:
    accelerate = pytest.importorskip("accelerate")
    model = sparse("mixtral")
    base = model(IDS).logits
    lora = studio.LoRA(rank=2, targets="attention+experts")
    studio.attach(model, lora)
    shaken(model)
    live = model(IDS).logits
    studio.detach(model)
    accelerate.cpu_offload(model, torch.device("cpu"))
    studio.attach(model, lora)
    shaken(model)
    assert torch.equal(model(IDS).logits, live)
    studio.detach(model)
    assert torch.equal(model(IDS).logits, base)
