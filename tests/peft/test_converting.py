"""Tools beside the adapters: an adapter as a LoRA, weaker intruders, components of batches, buffers by name."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import studio.peft as ours
from studio.peft.buffers import BufferDict
from studio.peft.conversion import convert_to_lora, save_as_lora
from studio.peft.incremental_pca import IncrementalPCA
from studio.peft.intruders import reduce_intruder_dimension


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 6))


def stirred(model):
    """The model with every trained number moved, so that each adapter changes something."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in (one for one in model.parameters() if one.requires_grad):
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


def check_same(found, wanted, share=2e-5):
    """Checks that tensors differ by a small share of the largest number."""
    torch.testing.assert_close(found, wanted, rtol=0.0, atol=share * float(wanted.detach().abs().max()))


X = torch.randn(5, 12, generator=torch.Generator().manual_seed(2))
ADDED = {
    "loha": ours.LoHaConfig(r=2, target_modules=["0", "2"]),
    "lokr": ours.LoKrConfig(r=2, target_modules=["0", "2"]),
    "vera": ours.VeraConfig(r=4, target_modules=["0", "2"]),
    "miss": ours.MissConfig(r=3, target_modules=["0", "2"]),
    "lora": ours.LoraConfig(r=3, target_modules=["0", "2"]),
    "dora": ours.LoraConfig(r=3, target_modules=["0", "2"], use_dora=True),
    "randlora": ours.RandLoraConfig(r=4, target_modules=["0", "2"]),
    "fourierft": ours.FourierFTConfig(n_frequency=12, target_modules=["0", "2"]),
}


pytestmark = pytest.mark.filterwarnings("ignore:Converting a PEFT adapter to LoRA that is already")


@pytest.mark.parametrize("name", ADDED)
def test_a_lora_with_all_the_energy_is_the_adapter_itself(name):
    model = stirred(ours.get_peft_model(net(), copy.deepcopy(ADDED[name])))
    assert model.supports_lora_conversion() and model.base_model.model[0].supports_lora_conversion()
    config, tensors = convert_to_lora(model, rank=1.0)
    assert config.rank_pattern == config.alpha_pattern == {path: len(tensors[f"base_model.model.{path}.lora_A.weight"])
                                                           for path in ("0", "2")}  # fmt: skip
    lora = ours.get_peft_model(net(), config).eval()
    assert ours.set_peft_model_state_dict(lora, tensors).unexpected_keys == []
    check_same(lora(X), model(X))


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("name", ADDED)
def test_a_rank_takes_the_largest_singular_values(name, merged):
    model = stirred(ours.get_peft_model(net(), copy.deepcopy(ADDED[name])))
    change = model.base_model.model[0].get_delta_weight("default")
    if merged:
        model.merge_adapter()
    _, tensors = convert_to_lora(model, rank=2)
    assert bool(model.base_model.model[0].merged) is merged
    u, s, vh = torch.linalg.svd(change)
    made = tensors["base_model.model.0.lora_B.weight"] @ tensors["base_model.model.0.lora_A.weight"]
    check_same(made, u[:, :2] * s[:2] @ vh[:2])


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_share_is_met_by_the_smallest_rank(share):
    model = stirred(ours.get_peft_model(net(), copy.deepcopy(ADDED["loha"])))
    change = model.base_model.model[0].get_delta_weight("default")
    energy = torch.linalg.svdvals(change).square()
    least = next(k for k in range(1, 9) if energy[:k].sum() >= share * energy.sum())
    assert convert_to_lora(model, rank=share)[0].rank_pattern["0"] == least


def test_the_folder_is_read_by_peft_and_keeps_saved_modules(tmp_path):
    theirs = pytest.importorskip("peft")
    model = stirred(ours.get_peft_model(net(), ours.LoKrConfig(r=2, target_modules=["0"], modules_to_save=["2"])))
    save_as_lora(tmp_path, model, rank=8)
    there = theirs.PeftModel.from_pretrained(net(), tmp_path).eval()
    check_same(there(X), model(X))
    here = ours.PeftModel.from_pretrained(net(), tmp_path).eval()
    check_same(here(X), model(X))


REFUSED = {
    "ia3": (ours.IA3Config(target_modules=["0"], feedforward_modules=[]), 2, "do not support LoRA conversion"),
    "oft": (ours.OFTConfig(oft_block_size=4, target_modules=["0"]), 2, "do not support LoRA conversion"),
    "shira": (ours.ShiraConfig(r=1, target_modules=["0"]), 2, "do not support LoRA conversion"),
    "a rank of 0": (ADDED["loha"], 0, "doesn't make sense"),
    "a rank below 0": (ADDED["loha"], -3, "doesn't make sense"),
    "a share above 1": (ADDED["loha"], 1.5, "between 0 and 1 but got 1.5"),
    "a rank above the layer's": (ADDED["loha"], 7, "rank 7 is larger than the weight shape"),
    "biases": (ours.LoraConfig(r=2, target_modules=["0"], bias="all"), 2, "sets bias"),
    "a bias of the pair": (ours.LoraConfig(r=2, target_modules=["0"], lora_bias=True), 2, "sets bias"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_lora_can_be_is_refused(name, tmp_path):
    config, rank, said = REFUSED[name]
    model = ours.get_peft_model(net(), copy.deepcopy(config))
    with pytest.raises(ValueError, match=said):
        save_as_lora(tmp_path / "folder", model, rank=rank)
    assert not (tmp_path / "folder").exists()


def test_a_model_without_adapters_has_nothing_to_convert():
    with pytest.raises(TypeError, match="Could not detect any layer that supports LoRA conversion"):
        convert_to_lora(net(), rank=2)


# -- intruders ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threshold", [0.9, 2.0])
def test_intruders_are_lessened_as_peft_lessens_them(threshold):
    theirs = pytest.importorskip("peft")
    from peft.tuners.lora.intruders import reduce_intruder_dimension as reduce_theirs

    here = stirred(ours.get_peft_model(net(), ours.LoraConfig(r=3, target_modules=["0", "2"])))
    there = theirs.get_peft_model(net(), theirs.LoraConfig(r=3, target_modules=["0", "2"])).eval()
    theirs.set_peft_model_state_dict(there, ours.get_peft_model_state_dict(here))
    lines: list[str] = []
    before = here(X)
    reduce_intruder_dimension(here, threshold_epsilon=threshold, logging_sink=lines.append)
    reduce_theirs(there, threshold_epsilon=threshold, logging_sink=None)
    assert here.active_adapters == ["intruder_reduced"] and any("Intruders: " in line for line in lines)
    torch.testing.assert_close(here(X), there(X), atol=1e-4, rtol=1e-4)
    here.set_adapter("default")
    assert torch.equal(here(X), before)


@pytest.mark.parametrize("config", [ADDED["miss"], ADDED["dora"], ADDED["loha"]], ids=["miss", "dora", "loha"])
def test_intruders_are_for_a_plain_lora(config):
    model = ours.get_peft_model(net(), copy.deepcopy(config))
    with pytest.raises(ValueError, match="LoRA"):
        reduce_intruder_dimension(model)
    assert list(model.peft_config) == ["default"]


# -- components and buffers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape, kept, batch", [((50, 10), 3, 12), ((103, 7), None, 10), ((20, 5), 2, 20)])
def test_components_are_those_of_all_rows_at_once(shape, kept, batch):
    theirs = pytest.importorskip("peft.utils.incremental_pca")
    torch.manual_seed(0)
    rows = torch.randn(*shape, dtype=torch.float64) + 3
    found = IncrementalPCA(kept, batch_size=batch).fit(rows)
    peer = theirs.IncrementalPCA(kept, batch_size=batch).fit(rows.clone())
    torch.testing.assert_close(found.mean_, rows.mean(dim=0))
    torch.testing.assert_close(found.var_, rows.var(dim=0, unbiased=False))
    for name in ("components_", "singular_values_", "explained_variance_ratio_"):
        torch.testing.assert_close(getattr(found, name), getattr(peer, name))
    torch.testing.assert_close(found.transform(rows), peer.transform(rows))


@pytest.mark.parametrize(
    "fields, rows, said",
    [
        ({"n_components": 4}, torch.zeros(5, 3), "n_features=3"),
        ({"n_components": 3}, torch.zeros(2, 3), "number of samples 2"),
        ({"lowrank": True}, torch.zeros(5, 3), "lowrank_q"),
        ({"n_components": 3, "lowrank": True, "lowrank_q": 2}, torch.zeros(5, 3), "lowrank_q"),
        ({"batch_size": 0}, torch.zeros(5, 3), "batch_size"),
    ],
)
def test_components_that_cannot_be_are_refused(fields, rows, said):
    with pytest.raises(ValueError, match=said):
        IncrementalPCA(**fields).fit(rows)


@pytest.mark.parametrize("wrong, kind", [(3, TypeError), ([3], TypeError), ([("a", 1, 2)], ValueError)])
def test_buffers_by_name(wrong, kind):
    held = BufferDict({"b": torch.ones(1)}, persistent=True)
    with pytest.raises(kind):
        held.update(wrong)
    held.update({"a": torch.zeros(2)})
    assert list(held.state_dict()) == list(held) == ["b", "a"] and held.pop("b") == 1 and "b" not in held
    held.clear()
    assert len(held) == 0
    with pytest.raises(RuntimeError):
        held(1)
