"""Hosting: an adapted layer stays the same object, whatever else is done to the model."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import weakref

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.hooks import apply_group_offloading
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import GPT2Config, GPT2LMHeadModel

import studio
from studio import peft
from studio.adapters.hosting.host import is_hosted
from studio.errors import BadConfig, DoesNotFit, NoEffect, NoTargets, UnknownName, UnsupportedLayer
from tiny import llama, shaken, unet


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8)).eval()


def call(model: UNet2DConditionModel) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    x, tokens = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 3, 8, generator=generator)
    return model(x, torch.tensor([5, 9]), tokens).sample


X = torch.randn(3, 8, generator=torch.Generator().manual_seed(2))
LORA = studio.LoRA(rank=2, targets=("0", "2"))


def test_state_dict_gains_only_the_adapters() -> None:
    model = net()
    before = set(model.state_dict())
    studio.attach(model, LORA, name="dog")
    gained = set(model.state_dict()) - before
    assert gained == {f"{path}.adapters.dog.{part}" for path in "02" for part in ("down", "up")}
    assert isinstance(model[0], nn.Linear) and type(model[0]).__name__ == "Linear"


def test_any_legal_name_can_be_used_and_others_are_refused() -> None:
    model = net()
    for name in ("keys", "forward", "type", "0", "a-b_c"):
        studio.attach(model, LORA, name=name)
    assert set(studio.adapters(model)) == {"keys", "forward", "type", "0", "a-b_c"}
    with pytest.raises(BadConfig, match=r"'a\.b' cannot name an adapter"):
        studio.attach(model, LORA, name="a.b")
    with pytest.raises(DoesNotFit, match="'keys' is attached already"):
        studio.attach(model, LORA, name="keys")


def test_only_the_adapter_is_trainable_and_the_base_thaws_again() -> None:
    model = net()
    model[0].bias.requires_grad_(False)
    studio.attach(model, LORA)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {
        f"{path}.adapters.default.{part}" for path in "02" for part in ("down", "up")
    }
    studio.detach(model)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {"0.weight", "2.weight", "2.bias"}


def test_the_other_components_of_a_pipeline_are_frozen_and_thaw_again() -> None:
    pipe = studio.families.open_base("emoji").pipe
    parts = {"unet": pipe.unet, "text_encoder": pipe.text_encoder}
    for part in parts.values():
        part.requires_grad_(True)
    studio.attach(pipe, studio.LoRA(rank=2))
    assert studio.trainable(pipe).trainable == studio.adapters(pipe)["default"].parameters
    studio.detach(pipe)
    assert all(p.requires_grad for part in parts.values() for p in part.parameters())


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_copies_are_independent(copier: object) -> None:
    model = net()
    base = model(X)
    studio.attach(model, LORA)
    shaken(model)
    twin = copier(model)  # type: ignore[operator]
    expected = model(X)
    assert torch.equal(twin(X), expected)
    studio.blend(twin, {})
    assert torch.equal(twin(X), base) and torch.equal(model(X), expected)
    studio.detach(twin)
    assert torch.equal(model(X), expected) and is_hosted(model[0]) and not is_hosted(twin[0])


def test_torch_save_round_trip() -> None:
    model = shaken_net()
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    assert torch.equal(torch.load(buffer, weights_only=False)(X), model(X))


def shaken_net() -> nn.Module:
    model = net()
    studio.attach(model, LORA)
    return shaken(model)


def test_memory_is_given_back() -> None:
    model = shaken_net()
    model(X)
    factor = weakref.ref(studio.state(model)["0.down"])
    studio.detach(model)
    gc.collect()
    assert factor() is None


def test_frozen_stack_follows_in_place_changes_moves_and_strengths() -> None:
    model = net()
    for name in ("a", "b"):
        studio.attach(model, LORA, name=name, seed=ord(name))
        shaken(model, name)
    model.requires_grad_(False)
    studio.blend(model, {"a": 0.5, "b": 1.5})
    model(X)  # the stack is made now
    with torch.no_grad():
        studio.state(model, "a")["0.down"].mul_(2)
    fresh = copy.deepcopy(model)
    for parameter in fresh.parameters():
        parameter.requires_grad_(True)  # nothing is cached for trainable factors
    assert torch.allclose(model(X), fresh(X), rtol=1e-6)
    model.double()
    assert model(X.double()).dtype == torch.float64
    studio.blend(model, {"a": 0.1})
    fresh = copy.deepcopy(model).requires_grad_(True)
    assert torch.allclose(model(X.double()), fresh(X.double()), rtol=1e-12)


def test_trainable_factors_are_read_anew_at_every_call() -> None:
    model = net()
    for name in ("a", "b"):
        studio.attach(model, LORA, name=name)
    model(X)
    for name in ("a", "b"):
        for tensor in studio.state(model, name).values():
            tensor.data = torch.full_like(tensor, 0.1)  # as ZeRO and FSDP do: no version is bumped
    change = 2 * torch.full((8, 2), 0.1) @ torch.full((2, 8), 0.1)
    hidden = nn.functional.gelu(X @ (model[0].weight + change).T + model[0].bias)
    assert torch.allclose(model(X), hidden @ (model[2].weight + change).T + model[2].bias, atol=1e-6)


def test_zero_strength_is_the_base_bit_for_bit() -> None:
    model = net()
    base = model(X)
    studio.attach(model, LORA)
    shaken(model)
    studio.blend(model, {"default": 0.0})
    assert torch.equal(model(X), base)


def test_tied_weights_part_when_baked_and_meet_again() -> None:
    model = llama(tie_word_embeddings=True)
    ids = torch.arange(6)[None]
    base = model(ids).logits
    studio.attach(model, studio.LoRA(rank=2, targets=("model.embed_tokens",)))
    shaken(model)
    live = model(ids).logits
    studio.bake(model)
    assert model.lm_head.weight is not model.model.embed_tokens.weight
    assert torch.allclose(model(ids).logits, live, rtol=1e-4, atol=1e-5)
    studio.unbake(model)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    studio.detach(model)
    assert torch.equal(model(ids).logits, base)


# -- what bypasses a layer -----------------------------------------------------------------------------------------


def test_encoder_layer_leaves_its_fast_path() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.TransformerEncoder(layer, 2).eval()
    x = torch.randn(2, 5, 8)
    with torch.no_grad():
        base = model(x)
        studio.attach(model, studio.LoRA(rank=2, targets=("self_attn", "linear1", "linear2")))
        shaken(model)
        live = model(x)
        assert (live - base).abs().max() > 1e-3
        studio.bake(model)
        assert torch.allclose(model(x), live, atol=1e-5)
        studio.unbake(model)
        studio.detach(model)
        assert torch.equal(model(x), base)


def test_attention_output_projection_alone_can_be_adapted() -> None:
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(8, 2, kdim=4, vdim=6, batch_first=True).eval()
    query, key, value = torch.randn(2, 5, 8), torch.randn(2, 3, 4), torch.randn(2, 3, 6)
    with torch.no_grad():
        base = layer(query, key, value)[0]
        with pytest.raises(UnsupportedLayer, match="kdim or vdim"):
            studio.attach(nn.ModuleDict({"attn": layer}), studio.LoRA(rank=2, targets=("attn",)))
        studio.attach(layer, studio.LoRA(rank=2, targets=("out_proj",)))
        shaken(layer)
        live = layer(query, key, value)[0]
        assert (live - base).abs().max() > 1e-3
        studio.bake(layer)
        assert torch.allclose(layer(query, key, value)[0], live, atol=1e-5)
        studio.detach(layer)
        assert torch.equal(layer(query, key, value)[0], base) and type(layer) is nn.MultiheadAttention


def test_fused_projections_raise_instead_of_doing_nothing() -> None:
    model = unet()
    studio.attach(model, studio.LoRA(rank=2, targets=("to_q", "to_k", "to_v")))
    shaken(model)
    call(model)
    model.fuse_qkv_projections()
    with pytest.raises(NoEffect, match=r"to_q and \d+ more are active, and UNet2DConditionModel ran without calling"):
        call(model)
    with studio.blended(model, {}):
        call(model)


def test_code_that_reads_the_weight_raises() -> None:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.layer.weight.T

    model = Reader()
    studio.attach(model, studio.LoRA(rank=2, targets=("layer",)))
    with pytest.raises(NoEffect, match="layer are active"):
        model(X)


def test_layer_with_a_forward_of_its_own_is_refused() -> None:
    class Scaled(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    with pytest.raises(UnsupportedLayer, match="a Linear with a forward of its own"):
        studio.attach(nn.Sequential(Scaled(8, 8)), studio.LoRA(rank=2, targets=("0",)))


# -- hooks of others, in either order --------------------------------------------------------------------------------


@torch.no_grad()
def fill(model: nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    for key, tensor in studio.state(model).items():
        tensor.copy_(tensors[key])


@pytest.mark.parametrize("attach_first", [True, False], ids=["attach-offload", "offload-attach"])
@pytest.mark.parametrize("method", [studio.LoRA, studio.DoRA], ids=["lora", "dora"])
def test_accelerate_offloading_in_either_order(attach_first: bool, method: type) -> None:
    from accelerate import cpu_offload
    from accelerate.hooks import remove_hook_from_submodules

    config = method(rank=2, targets=("q_proj", "down_proj"))
    ids, plain = torch.arange(6)[None], llama()
    base = plain(ids).logits
    studio.attach(plain, config)
    tensors = {key: tensor.detach().clone() for key, tensor in studio.state(shaken(plain)).items()}
    expected = plain(ids).logits

    model = llama()
    if attach_first:
        studio.attach(model, config)
        fill(model, tensors)
        cpu_offload(model, execution_device="cpu")
        assert studio.state(model)[next(iter(tensors))].device.type == "meta"
    else:
        cpu_offload(model, execution_device="cpu")
        studio.attach(model, config)
        fill(model, tensors)
    with torch.no_grad():
        assert torch.allclose(model(ids).logits, expected, atol=1e-5)
        with pytest.raises(DoesNotFit, match="offload"):
            studio.bake(model)
        studio.detach(model)
        assert torch.equal(model(ids).logits, base)
    remove_hook_from_submodules(model)
    assert torch.equal(model(ids).logits, base)
    assert all(type(module).__module__ != "abc" for module in model.modules())


@pytest.mark.parametrize("attach_first", [True, False], ids=["attach-offload", "offload-attach"])
def test_diffusers_group_offloading_in_either_order(attach_first: bool) -> None:
    config = studio.LoRA(rank=2, targets="attention")
    plain = unet()
    base = call(plain).detach()
    studio.attach(plain, config)
    expected = call(shaken(plain)).detach()

    model = unet()
    device = torch.device("cpu")
    options = {"onload_device": device, "offload_device": device, "offload_type": "leaf_level"}
    if attach_first:
        studio.attach(model, config)
        shaken(model)
        apply_group_offloading(model, **options)
    else:
        apply_group_offloading(model, **options)
        studio.attach(model, config)
        shaken(model)
    with torch.no_grad():
        assert torch.allclose(call(model), expected, atol=1e-6)
        studio.detach(model)
        assert torch.equal(call(model), base)


def test_unknown_forward_replacement_is_refused() -> None:
    model = net()
    inner = model[0].forward
    model[0].forward = lambda x: inner(x)
    with pytest.raises(UnsupportedLayer, match="forward of 0 has been replaced"):
        studio.attach(model, LORA)
    assert not any(is_hosted(module) for module in model.modules())
    assert set(model.state_dict()) == set(net().state_dict())


# -- gradient checkpointing --------------------------------------------------------------------------------------------


def gradients(model: nn.Module, output: torch.Tensor) -> dict[str, torch.Tensor]:
    output.square().mean().backward()
    found = {}
    for key, tensor in studio.state(model).items():
        assert tensor.grad is not None, f"{key} got no gradient"
        found[key], tensor.grad = tensor.grad.clone(), None
    return found


@pytest.mark.parametrize("attach_first", [True, False], ids=["attach-enable", "enable-attach"])
@pytest.mark.parametrize("method", [studio.LoRA, studio.DoRA, studio.IA3, studio.LoKr])
def test_checkpointing_keeps_the_gradients_of_a_unet(method: type, attach_first: bool) -> None:
    config = method(targets="attention", **({} if method is studio.IA3 else {"rank": 2}))
    plain = unet().train()
    studio.attach(plain, config)
    expected = gradients(plain, call(shaken(plain)))
    model = unet().train()
    if attach_first:
        studio.attach(model, config)
        model.enable_gradient_checkpointing()
    else:
        model.enable_gradient_checkpointing()
        studio.attach(model, config)
    actual = gradients(model, call(shaken(model)))
    assert all(torch.equal(actual[key], expected[key]) for key in expected)


@pytest.mark.parametrize("reentrant", [False, True], ids=["plain", "reentrant"])
@pytest.mark.parametrize("attach_first", [True, False], ids=["attach-enable", "enable-attach"])
def test_checkpointing_keeps_the_gradients_of_a_language_model(attach_first: bool, reentrant: bool) -> None:
    config, ids = studio.LoRA(rank=2, targets="attention"), torch.arange(6)[None]
    plain = llama().train()
    studio.attach(plain, config)
    expected = gradients(plain, shaken(plain)(ids).logits)
    model = llama().train()
    if attach_first:
        studio.attach(model, config)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    if not attach_first:
        studio.attach(model, config)
    actual = gradients(model, shaken(model)(ids, use_cache=False).logits)
    assert all(torch.allclose(actual[key], expected[key], rtol=1e-6, atol=1e-9) for key in expected)


def test_bf16_base_keeps_no_fp32_activation_for_backward() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64)).to(torch.bfloat16)
    studio.attach(model, studio.LoRA(rank=4, targets=("0", "1")))
    kept: list[torch.Tensor] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    x = torch.randn(512, 64, dtype=torch.bfloat16)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(x).sum().backward()
    big = [tensor for tensor in kept if tensor.numel() >= 512 * 64]
    assert big and all(tensor.dtype == torch.bfloat16 for tensor in big)
    assert all(p.dtype == torch.float32 and p.grad is not None for p in studio.state(model).values())


def test_layer_inside_torch_checkpoint() -> None:
    model = net()
    studio.attach(model, LORA)
    shaken(model)
    plain = gradients(model, model(X))
    again = gradients(model, checkpoint(model, X, use_reentrant=False))
    assert all(torch.equal(plain[key], again[key]) for key in plain)


# -- saving the base ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [unet, llama], ids=["diffusers", "transformers"])
def test_save_pretrained_of_the_base_leaves_the_adapters_out(make: object, tmp_path: object) -> None:
    from safetensors import safe_open

    model = make()  # type: ignore[operator]
    keys = set(model.state_dict()) - {"lm_head.weight"} | ({"lm_head.weight"} & set(model.state_dict()))
    studio.attach(model, studio.LoRA(rank=2, targets="attention"))
    model.save_pretrained(tmp_path)
    (file,) = tmp_path.glob("*.safetensors")  # type: ignore[attr-defined]
    with safe_open(file, "pt") as opened:
        assert set(opened.keys()) == keys
    assert any(".adapters." in key for key in model.state_dict())
    again = type(model).from_pretrained(tmp_path)
    studio.detach(model)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert "save_pretrained" not in vars(model)


# -- errors leave nothing behind -----------------------------------------------------------------------------------


def test_errors_say_what_is_wrong_and_leave_no_trace() -> None:
    model = net()
    before = dict(vars(model)), list(model.state_dict())
    with pytest.raises(NoTargets, match=r"'00' matches no layer; the nearest layers are: 0, 2"):
        studio.attach(model, studio.LoRA(targets=("00",)))
    with pytest.raises(BadConfig, match=r"LoRA\(rank=9\) is larger than the layer 0 \(8 x 8\); use a rank of"):
        studio.attach(model, studio.LoRA(rank=9, targets=("0",)))
    with pytest.raises(BadConfig, match="rank must be a whole number, at least 1"):
        studio.LoRA(rank=0)
    with pytest.raises(BadConfig, match="did you mean 'kaiming'"):
        studio.LoRA(init="kaimin")
    with pytest.raises(BadConfig, match=r"dropout must be a probability in \[0, 1\)"):
        studio.LoRA(dropout=1.0)
    assert (dict(vars(model)), list(model.state_dict())) == before and type(model[0]) is nn.Linear
    studio.attach(model, LORA, name="dog")
    with pytest.raises(UnknownName, match=r"no adapter is named 'dig'; did you mean 'dog'\?"):
        studio.blend(model, {"dig": 1.0})
    with pytest.raises(BadConfig, match="a strength must be a finite number"):
        studio.blend(model, {"dog": float("nan")})
    studio.blend(model, {"dog": [0.0, 1.0]})
    with pytest.raises(DoesNotFit, match="the blend names 2 rows, and 0 was called with 3"):
        model(X)
    studio.blend(model, "dog")
    studio.bake(model)
    for doing in (
        lambda: studio.blend(model, {}),
        lambda: studio.bake(model),
        lambda: studio.attach(model, LORA, name="cat"),
    ):
        with pytest.raises(DoesNotFit, match="baked into the weights"):
            doing()


def test_attach_fails_in_the_middle_and_leaves_nothing() -> None:
    model = nn.ModuleDict({"a": nn.Linear(8, 8), "b": nn.Linear(8, 8)})
    model["b"].adapters = nn.Linear(1, 1)
    with pytest.raises(UnsupportedLayer, match="attribute 'adapters' of its own"):
        studio.attach(model, studio.LoRA(rank=2, targets=("a", "b")))
    assert type(model["a"]) is nn.Linear and not is_hosted(model["a"]) and not model._forward_hooks


def test_two_models_cannot_share_one_layer() -> None:
    inner = net()
    outer = nn.Sequential(inner, nn.ReLU())
    studio.attach(inner, LORA)
    with pytest.raises(DoesNotFit, match="attached through another module"):
        studio.attach(outer, studio.LoRA(rank=2, targets=("0.0",)))


def test_gpt2_is_adapted_by_structure() -> None:
    model = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=32)).eval()
    report = studio.attach(model, studio.LoRA(rank=2, targets="attention"))
    assert report.sites == tuple(f"transformer.h.{i}.attn.{part}" for i in (0, 1) for part in ("c_attn", "c_proj"))


@pytest.mark.slow
def test_compiles_as_one_graph() -> None:
    model = shaken_net()
    expected = model(X)
    assert torch.allclose(torch.compile(model, fullgraph=True)(X), expected, atol=1e-6)


def test_strengths_change_without_a_new_graph() -> None:
    """One graph for every blend of numbers, frozen adapters, another method beside them, baked weights included."""
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, inputs: object) -> object:
        graphs.append(graph)
        return graph.forward

    model = net()
    configs = {"a": LORA, "b": LORA, "c": studio.DoRA(rank=2, targets=("2",))}
    for name, config in configs.items():
        studio.attach(model, config, name=name, seed=ord(name))
        shaken(model, name)
    model.requires_grad_(False)
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    with torch.no_grad():
        for blend in ({"a": 1.0}, {}, {"a": 0.3, "b": -0.2}, {"a": 0.1, "b": 0.2, "c": 0.7}, {"c": 1.0}, {"b": 0.0}):
            studio.blend(model, blend)
            assert torch.allclose(compiled(X), model(X), atol=1e-6)
        assert len(graphs) == 1
        for blend in ({"a": [0.1, 0.2, 0.3], "b": 0.2}, {"a": studio.Strength(blocks={"2": 0.5})}):
            studio.blend(model, blend)
            assert torch.allclose(compiled(X), model(X), atol=1e-6)
        studio.bake(model)
        assert torch.allclose(compiled(X), model(X), atol=1e-6)


def test_pictures_in_inference_mode_leave_nothing_that_training_trips_over() -> None:
    model = shaken_net()
    for tensor in studio.state(model).values():
        tensor.requires_grad_(False)
    with torch.inference_mode():
        model(X)  # stacks the frozen factors
    x = X.clone().requires_grad_()
    model(x).sum().backward()
    assert x.grad is not None


def test_detach_waits_until_a_wrapper_is_gone() -> None:
    """FSDP2 changes the class of a layer in place, as hosting does; ours is then no longer the outermost."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    try:
        model = net()
        base = model(X)
        studio.attach(model, LORA)
        expected = shaken(model)(X)
        fully_shard(model[0], mesh=init_device_mesh("cpu", (1,)))
        assert torch.allclose(model(X), expected, atol=1e-6) and not torch.allclose(expected, base)
        model(X).sum().backward()
        assert all(tensor.grad is not None for tensor in studio.state(model).values())
        with pytest.raises(DoesNotFit, match="0 has been wrapped as FSDP"):
            studio.detach(model)
        assert is_hosted(model[0]) and is_hosted(model[2])
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("method", [studio.LoRA, studio.DoRA])
def test_dropout_acts_only_on_an_adapter_in_training(method: type) -> None:
    """PyTorch's dropout keeps an input with probability 1 − p and scales it by 1 / (1 − p): the mean is the same."""
    model = net()
    studio.attach(model, method(rank=2, targets=("2",), dropout=0.5))
    hidden = torch.nn.functional.gelu(model[0](X)).detach()
    layer, expected = shaken(model)[2], model[2](hidden).detach()
    assert torch.equal(layer(hidden), expected)  # evaluation
    model.train()
    torch.manual_seed(0)
    draws = torch.stack([layer(hidden).detach() for _ in range(4000)])
    assert not torch.equal(draws[0], draws[1])
    error = (draws.mean(0) - expected).abs() / (draws.std(0) / 4000**0.5).clamp_min(1e-6)
    assert error.max() < 5  # standard errors
    model.requires_grad_(False)
    studio.blend(model, "default")
    assert torch.allclose(layer(hidden), expected, atol=1e-6)  # frozen, although in training mode


@pytest.mark.parametrize(
    "around, place",
    [
        (lambda inner: nn.Sequential(inner), "0"),
        (lambda inner: nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Sequential(inner)}), "b.0"),
        (lambda inner: peft.PeftModel(inner, peft.LoraConfig(r=2, target_modules=["2"])), "model.get_base_model()"),
    ],
    ids=["a module around it", "two around it", "a PEFT model"],
)
def test_an_unknown_name_says_which_module_inside_carries_adapters(around, place, tmp_path):
    inner = net()
    if place != "model.get_base_model()":
        studio.attach(inner, LORA, name="default")
    outer = around(inner)
    with pytest.raises(UnknownName) as caught:
        studio.save(outer, tmp_path / "a.safetensors")
    ending = f"; the Sequential inside it carries default: give that one, {place}"
    assert str(caught.value) == f"no adapter is named 'default' (attached: none){ending}"
    assert list(tmp_path.iterdir()) == []
    studio.save(inner, tmp_path / "a.safetensors")
