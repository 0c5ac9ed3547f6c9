"""PEFT's folders: saved there and loaded here, saved here and loaded there, with equal outputs."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn

import studio
from studio.errors import BadConfig, BadFile, DoesNotFit

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

# PEFT warns about tensors that it does not find; such a warning is a failure here
pytestmark = [
    pytest.mark.filterwarnings("error::UserWarning:peft.*"),
    pytest.mark.filterwarnings("ignore:.*have invalid shape"),  # it takes its own lora_B.bias for a broken lora_B
    pytest.mark.filterwarnings("ignore:Unsupported layer type"),  # its LN tuning does not expect norms
]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(10, 12)
        self.norm = nn.LayerNorm(12)
        self.lin = nn.Linear(12, 20)
        self.deep = nn.ModuleDict({"lin": nn.Linear(20, 20), "head": nn.Linear(20, 20)})
        self.conv = nn.Conv2d(4, 8, 3, padding=1, stride=2)
        self.point = nn.Conv2d(8, 8, 1)

    def forward(self, ids, image):
        x = self.deep["head"](self.deep["lin"](torch.tanh(self.lin(self.norm(self.emb(ids))))))
        return torch.cat([x.flatten(), self.point(self.conv(image)).flatten()])


INPUT = (torch.arange(6).view(2, 3), torch.linspace(-1, 1, 200).view(2, 4, 5, 5))

THEIRS = {
    "lora": lambda: peft.LoraConfig(r=2, lora_alpha=3, target_modules=["lin", "conv", "point", "emb"]),
    "lora-bias": lambda: peft.LoraConfig(r=2, lora_alpha=3, lora_bias=True, target_modules=["lin", "conv"]),
    "lora-patterns": lambda: peft.LoraConfig(
        r=4, lora_alpha=32, use_rslora=True, target_modules=["lin", "conv", "head"],
        rank_pattern={"^lin": 2, "deep.lin": 3}, alpha_pattern={"^lin": 8, r"(conv|head)": 5},
    ),
    "lora-expression": lambda: peft.LoraConfig(r=2, target_modules=r"deep\.(lin|head)|conv"),
    "dora": lambda: peft.LoraConfig(
        r=2, lora_alpha=3, use_dora=True, target_modules=["lin", "conv", "point", "emb"], rank_pattern={"conv": 1}
    ),
    "ia3": lambda: peft.IA3Config(
        target_modules=["lin", "conv", "point", "head"], feedforward_modules=["point", "head"]
    ),
    "lokr": lambda: peft.LoKrConfig(r=2, alpha=3, target_modules=["lin", "conv", "point"]),
    "lntuning": lambda: peft.LNTuningConfig(target_modules=["norm", "lin", "conv", "emb"]),
    "bitfit": lambda: peft.BeftConfig(target_modules=["lin", "head"]),
    "tokenembedding": lambda: peft.TrainableTokensConfig(token_indices=[4, 1], target_modules=["emb"]),
    "lokr-both": lambda: peft.LoKrConfig(r=1, alpha=3, decompose_both=True, target_modules=["lin", "conv", "point"]),
    "lokr-tucker": lambda: peft.LoKrConfig(r=1, alpha=2, use_effective_conv2d=True, target_modules=["lin", "conv"]),
    "adalora": lambda: peft.AdaLoraConfig(
        init_r=3, target_r=2, lora_alpha=5, total_step=10, tinit=2, tfinal=3, target_modules=["lin", "conv", "point"]
    ),
    "loha": lambda: peft.LoHaConfig(r=2, alpha=3, target_modules=["lin", "conv", "point"], rank_pattern={"conv": 1}),
    "loha-tucker": lambda: peft.LoHaConfig(
        r=2, alpha=3, use_effective_conv2d=True, target_modules=["lin", "conv", "point"]
    ),
    "vera": lambda: peft.VeraConfig(r=4, target_modules=["lin", "head"]),
    "vera-key": lambda: peft.VeraConfig(r=30, projection_prng_key=5, d_initial=0.5, target_modules=["lin"]),
    "hra": lambda: peft.HRAConfig(r=4, target_modules=["lin", "conv", "point"]),
    "hra-orthogonal": lambda: peft.HRAConfig(r=3, apply_GS=True, init_weights=False, target_modules=["lin", "point"]),
    "road": lambda: peft.RoadConfig(group_size=4, target_modules=["lin", "head"]),
    "road-two": lambda: peft.RoadConfig(variant="road_2", group_size=10, target_modules=["lin"]),
    "road-four": lambda: peft.RoadConfig(variant="road_4", group_size=2, target_modules=["lin", "head"]),
    "oft": lambda: peft.OFTConfig(oft_block_size=4, target_modules=["lin", "head", "point", "emb"]),
    "oft-exact": lambda: peft.OFTConfig(oft_block_size=4, use_cayley_neumann=False, target_modules=["lin", "point"]),
    "oft-two": lambda: peft.OFTConfig(oft_block_size=4, num_cayley_neumann_terms=2, target_modules=["lin"]),
    "oft-three": lambda: peft.OFTConfig(oft_block_size=4, num_cayley_neumann_terms=3, target_modules=["lin"]),
    "oft-seven": lambda: peft.OFTConfig(oft_block_size=4, num_cayley_neumann_terms=7, target_modules=["lin"]),
    "oft-count": lambda: peft.OFTConfig(r=4, oft_block_size=0, target_modules=["lin", "point"]),
    "oft-share": lambda: peft.OFTConfig(oft_block_size=4, block_share=True, target_modules=["lin", "point"]),
    "oft-bound": lambda: peft.OFTConfig(oft_block_size=4, coft=True, eps=0.5, target_modules=["lin", "point"]),
    "lokr-factor": lambda: peft.LoKrConfig(r=1, alpha=2, decompose_factor=5, target_modules=["lin"]),
}  # fmt: skip

OURS = {
    "lora": studio.LoRA(rank=2, alpha=3, targets=("lin", "conv", "point", "emb")),
    "lora-one": studio.LoRA(rank=2, targets=("re:lin",)),
    "lora-bias": studio.LoRA(rank=2, alpha=3, use_bias=True, targets=("lin", "conv")),
    "lora-patterns": studio.LoRA(
        rank=4, alpha=32, rank_stabilized=True, targets=("lin", "conv", "head"),
        rank_pattern={"re:lin": 2, "deep.lin": 3}, alpha_pattern={"conv": 5.5},
    ),
    "pissa": studio.LoRA(rank=2, init="pissa", targets=("lin", "conv")),
    "pissa-fast": studio.LoRA(rank=2, init="pissa-fast", targets=("lin", "conv")),
    "eva": studio.LoRA(rank=2, alpha=3, init="eva", targets=("lin", "head", "conv")),
    "corda": studio.LoRA(rank=2, alpha=3, init="corda", targets=("lin", "conv")),
    "dora": studio.DoRA(rank=2, alpha=3, targets=("lin", "conv", "point", "emb")),
    "ia3": studio.IA3(targets=("lin", "conv", "point", "head"), feedforward=("point", "head", "re:lin")),
    "lokr": studio.LoKr(rank=1, alpha=3, targets=("lin", "conv", "point")),
    "lokr-tucker": studio.LoKr(rank=1, alpha=3, tucker=True, targets=("lin", "conv", "point")),
    "lntuning": studio.LNTuning(targets=("norm", "lin", "conv", "emb")),
    "bitfit": studio.BitFit(targets=("lin", "head")),
    "tokenembedding": studio.TokenEmbedding(tokens=(4, 1), targets=("emb",)),
    "lokr-both": studio.LoKr(rank=1, alpha=3, decompose_both=True, targets=("lin", "conv", "point")),
    "adalora": studio.AdaLoRA(rank=3, alpha=5, targets=("lin", "conv", "point")),
    "loha": studio.LoHa(rank=2, alpha=3, targets=("lin", "conv", "point"), rank_pattern={"conv": 3}),
    "loha-tucker": studio.LoHa(rank=2, alpha=3, tucker=True, targets=("lin", "conv", "point")),
    "vera": studio.VeRA(rank=4, targets=("lin", "head")),
    "vera-key": studio.VeRA(rank=30, key=5, targets=("lin",)),
    "hra": studio.HRA(rank=4, targets=("lin", "conv", "point")),
    "hra-orthogonal": studio.HRA(rank=3, orthogonal=True, targets=("lin", "point")),
    "road": studio.RoAd(group=4, targets=("lin", "head")),
    "road-four": studio.RoAd(variant=4, group=10, targets=("lin",)),
    "oft": studio.OFT(block_size=4, targets=("lin", "head", "point", "emb")),
    "oft-series": studio.OFT(block_size=4, terms=5, targets=("lin", "point")),
    "oft-two": studio.OFT(block_size=4, terms=2, targets=("lin", "point")),
    "oft-four": studio.OFT(block_size=4, terms=4, targets=("lin", "point")),
    "oft-count": studio.OFT(block_size=5, block_pattern={"re:lin": 3, "point": 2}, targets=("lin", "point")),
    "oft-share": studio.OFT(block_size=4, share=True, eps=9.0, targets=("lin", "point")),
    "lokr-factor": studio.LoKr(rank=1, alpha=3, factor=2, targets=("lin", "conv")),
}  # fmt: skip


def pair(seed=0):
    torch.manual_seed(seed)
    model = Net()
    return model, copy.deepcopy(model)


def disturb(tensors):
    with torch.no_grad():
        for tensor in tensors:
            tensor += torch.randn_like(tensor) * 0.3


def relative(got, wanted):
    return ((got - wanted).norm() / wanted.norm()).item()


@pytest.mark.parametrize("method", list(THEIRS))
def test_their_folder_loads_here(tmp_path, method):
    model, base = pair()
    theirs = peft.get_peft_model(model, THEIRS[method]()).eval()
    disturb(p for name, p in theirs.named_parameters() if p.requires_grad)
    theirs.save_pretrained(tmp_path)
    wanted = theirs(*INPUT)
    assert relative(base(*INPUT), wanted) > 1e-2
    report = studio.load(base, tmp_path)
    assert report.ignored == {} and report.notes == () and report.format == "peft"
    assert report.method == method.partition("-")[0]
    assert relative(base(*INPUT), wanted) <= 1e-5


def test_their_quantisation_aware_folder_loads_here(tmp_path):
    """PEFT has QA-LoRA on GPTQ layers, which need a GPU; its forward is called with such a layer's attributes."""
    from types import SimpleNamespace

    from peft.tuners.lora.variants import QALoraLinearVariant
    from safetensors.torch import save_file

    model, base = pair()
    generator = torch.Generator().manual_seed(0)
    down, up = (torch.randn(shape, generator=generator) for shape in ((2, 5), (20, 2)))
    stem = "base_model.model.deep.lin"
    save_file({f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up}, tmp_path / "adapter_model.safetensors")
    config = peft.LoraConfig(
        r=2, lora_alpha=3, use_rslora=True, use_qalora=True, qalora_group_size=4, target_modules=["deep.lin"]
    )
    config.save_pretrained(tmp_path)
    layer = SimpleNamespace(
        lora_A={"default": SimpleNamespace(weight=down)}, lora_B={"default": SimpleNamespace(weight=up)},
        lora_dropout={"default": nn.Identity()}, scaling={"default": 3 / 2**0.5}, qalora_group_size={"default": 4},
        training=False, in_features=20,
    )  # fmt: skip
    plain = model.deep["lin"].forward
    model.deep["lin"].forward = lambda x: QALoraLinearVariant.forward(layer, "default", x, plain(x))
    assert studio.inspect(tmp_path).method == "qalora"
    report = studio.load(base, tmp_path)
    assert report.method == "qalora" and report.sites == ("deep.lin",) and not report.notes
    assert studio.adapters(base)["default"].config.group == 4
    assert relative(base(*INPUT), model(*INPUT)) <= 1e-5
    # and back: the same tensors under the same names, with the same config
    again = studio.save(base, tmp_path / "again")
    fields = json.loads((again / "adapter_config.json").read_text())
    assert fields["use_qalora"] is True and fields["qalora_group_size"] == 4
    third = pair()[1]
    assert studio.load(third, again).method == "qalora" and torch.equal(third(*INPUT), base(*INPUT))


@pytest.mark.parametrize("method", list(OURS))
def test_our_folder_loads_there(tmp_path, method):
    model, base = pair()
    batches = [(torch.randint(0, 10, (4, 6)), torch.randn(4, 4, 5, 5))]
    studio.attach(model, OURS[method], calibrate=batches if OURS[method].data_driven else None)
    disturb(tensor for tensor in studio.state(model).values() if tensor.requires_grad)
    wanted = model(*INPUT)
    assert relative(base(*INPUT), wanted) > 1e-2
    folder = studio.save(model, tmp_path / "adapter", format="peft")
    theirs = peft.PeftModel.from_pretrained(base, folder).eval()
    assert relative(theirs(*INPUT), wanted) <= 1e-5
    # exactly these layers were wrapped, no more
    wrapped = {name for name, module in theirs.base_model.model.named_modules() if hasattr(module, "base_layer")}
    assert wrapped == set(studio.adapters(model)["default"].sites)


@pytest.mark.parametrize("dora", [False, True])
def test_gpt2_layers_in_both_directions(tmp_path, dora):
    from transformers.pytorch_utils import Conv1D

    def gpt():
        torch.manual_seed(1)
        return nn.Sequential(Conv1D(6, 4), nn.Linear(6, 5))

    x = torch.randn(2, 4)
    theirs = peft.get_peft_model(
        gpt(), peft.LoraConfig(r=2, lora_alpha=5, use_dora=dora, target_modules=["0"], fan_in_fan_out=True)
    )
    disturb(p for p in theirs.parameters() if p.requires_grad)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = gpt()
    studio.load(ours, tmp_path / "theirs")
    assert relative(ours(x), theirs(x)) <= 1e-5
    again = peft.PeftModel.from_pretrained(gpt(), studio.save(ours, tmp_path / "ours", format="peft"))
    assert relative(again(x), theirs(x)) <= 1e-5


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.mha = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        return self.mha(x, x, x)[0]


def test_attention_in_both_directions(tmp_path):
    torch.manual_seed(2)
    model = Attention()
    fresh, third = copy.deepcopy(model), copy.deepcopy(model)
    x = torch.randn(2, 3, 8)
    theirs = peft.get_peft_model(model, peft.LoraConfig(r=2, lora_alpha=5, target_modules=["mha"])).eval()
    # the input projection only: PEFT adds the change of the output projection twice, see below
    disturb(p for name, p in theirs.named_parameters() if p.requires_grad and "out_proj" not in name)
    theirs.save_pretrained(tmp_path / "theirs")
    wanted = theirs(x)
    report = studio.load(fresh, tmp_path / "theirs")
    assert report.sites == ("mha", "mha.out_proj")
    assert relative(fresh(x), wanted) <= 1e-5
    again = peft.PeftModel.from_pretrained(third, studio.save(fresh, tmp_path / "ours", format="peft")).eval()
    assert relative(again(x), wanted) <= 1e-5


def test_the_output_projection_is_what_its_tensors_say(tmp_path):
    """PEFT 0.21's merge of an attention adds the change of ``out_proj`` twice; here it is added once, with a note."""
    torch.manual_seed(3)
    base = Attention()
    x = torch.randn(2, 3, 8)
    theirs = peft.get_peft_model(copy.deepcopy(base), peft.LoraConfig(r=2, lora_alpha=4, target_modules=["mha"])).eval()
    disturb(p for p in theirs.parameters() if p.requires_grad)
    theirs.save_pretrained(tmp_path)
    formula = copy.deepcopy(base)
    layer = theirs.base_model.model.mha
    with torch.no_grad():
        for site, weight in (
            (layer, formula.mha.in_proj_weight),
            (layer.base_layer.out_proj, formula.mha.out_proj.weight),
        ):
            weight += 2 * site.lora_B["default"].weight @ site.lora_A["default"].weight
    report = studio.load(base, tmp_path)
    assert relative(base(x), formula(x)) <= 1e-5
    assert any("twice" in note for note in report.notes)
    with pytest.warns(UserWarning, match=r"adds the change of mha\.out_proj twice"):
        studio.save(base, tmp_path / "ours", format="peft")


def test_the_text_model_level_is_optional(tmp_path):
    """Folders written under transformers 4 name the layers with a level that 5 does not have, and the reverse."""
    config = transformers.CLIPTextConfig(
        vocab_size=20, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=8,
    )  # fmt: skip
    model = transformers.CLIPTextModel(config)
    studio.attach(model, studio.LoRA(rank=2, targets=("q_proj",)))
    disturb(studio.state(model).values())
    kept = {key: tensor.clone() for key, tensor in studio.state(model).items()}
    folder = studio.save(model, tmp_path / "a", format="peft")
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "adapter_model.safetensors")
    assert set(tensors) == {f"base_model.model.encoder.layers.0.self_attn.q_proj.lora_{side}.weight" for side in "AB"}
    old = {key.replace("model.encoder", "model.text_model.encoder"): tensor for key, tensor in tensors.items()}
    save_file(old, folder / "adapter_model.safetensors")
    studio.detach(model)
    studio.load(model, folder)
    assert all(torch.equal(kept[key], tensor) for key, tensor in studio.state(model).items())


def edited(folder, **fields):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def saved(tmp_path):
    model, base = pair()
    studio.attach(model, OURS["lora"])
    return studio.save(model, tmp_path / "adapter", format="peft"), base


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'"),
        ({"use_qalora": True}, "use_qalora=True"),
        ({"use_dora": True}, "use_dora=True"),
        ({"peft_type": "ADALORA"}, "peft_type='ADALORA'"),
        ({"peft_type": "XLORA"}, "peft_type='XLORA', a method that is not among"),
        ({"peft_type": ["LORA"]}, r"peft_type=\['LORA'\], a method"),
        ({"bias": "all"}, "bias='all'"),
        ({"layer_replication": [[0, 1]]}, "layer_replication"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
        ({"use_wonder": {"depth": 2}}, "use_wonder={'depth': 2}, which is not known here"),
    ],
)
def test_what_peft_would_compute_differently_is_refused(tmp_path, fields, says):
    folder, base = saved(tmp_path)
    edited(folder, **fields)
    with pytest.raises(DoesNotFit, match=says):
        studio.load(base, folder)
    assert studio.adapters(base) == {}


@pytest.mark.parametrize("fields", [{"r": 3}, {"r": -2}, {"rank_pattern": {"conv": 1}}])
def test_a_rank_that_the_tensors_do_not_have_is_refused(tmp_path, fields):
    folder, base = saved(tmp_path)
    edited(folder, **fields)
    with pytest.raises(BadFile, match=r"says rank .* and its tensors have rank 2"):
        studio.load(base, folder)
    assert studio.adapters(base) == {}


@pytest.mark.parametrize("fields", [{"qalora_group_size": 64}, {"some_future_field": None}, {"another": False}])
def test_a_field_that_changes_nothing_is_no_obstacle(tmp_path, fields):
    folder, base = saved(tmp_path)
    edited(folder, **fields)
    assert studio.load(base, folder).notes == ()


def test_a_config_without_sense_is_refused(tmp_path):
    folder, base = saved(tmp_path)
    edited(folder, lora_alpha="much")
    with pytest.raises(BadFile, match="PEFT config"):
        studio.load(base, folder)
    edited(folder, lora_alpha=1, alpha_pattern={"(": 3})
    with pytest.raises(BadFile, match=r"says 're:\(': .* is not a regular expression"):
        studio.load(base, folder)
    (folder / "adapter_config.json").write_text("{")
    with pytest.raises(BadFile, match="JSON"):
        studio.load(base, folder)


def test_a_pattern_that_matches_nothing_is_noted(tmp_path):
    folder, base = saved(tmp_path)
    edited(folder, alpha_pattern={"lni": 3})
    assert studio.load(base, folder).notes == ("alpha_pattern 'lni' matches no layer of the file",)


def test_without_its_config_the_scale_is_unknown(tmp_path):
    model, base = pair()
    theirs = peft.get_peft_model(model, peft.LoraConfig(r=2, lora_alpha=2, target_modules=["conv"]))
    disturb(p for p in theirs.parameters() if p.requires_grad)
    theirs.save_pretrained(tmp_path)
    (tmp_path / "adapter_config.json").unlink()
    with pytest.raises(BadFile, match=r"no adapter_config\.json"):
        studio.load(base, tmp_path)
    studio.load(base, tmp_path, allow_partial=True)
    assert relative(base(*INPUT), theirs(*INPUT)) <= 1e-5


def test_whole_modules_are_not_dropped_in_silence(tmp_path):
    model, base = pair()
    theirs = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["conv"], modules_to_save=["head"]))
    theirs.save_pretrained(tmp_path)
    with pytest.raises(studio.errors.PartialLoad, match="modules_to_save"):
        studio.load(base, tmp_path)
    report = studio.load(base, tmp_path, allow_partial=True)
    assert sorted(report.ignored) == ["base_model.model.deep.head.bias", "base_model.model.deep.head.weight"]
    assert len(report.applied) == 2


def test_an_adapter_on_two_components_is_no_peft_folder(tmp_path, tiny_base):
    from studio.families import open_base

    pipe = open_base(tiny_base).pipe
    studio.attach(pipe, studio.LoRA(rank=2, targets=("to_q", "q_proj")))
    with pytest.raises(DoesNotFit, match="text_encoder and unet"):
        studio.save(pipe, tmp_path / "a", format="peft")
    studio.detach(pipe)
    studio.attach(pipe, studio.LoRA(rank=2, targets=("to_q",)))
    folder = studio.save(pipe, tmp_path / "a", format="peft")
    unet = peft.PeftModel.from_pretrained(copy.deepcopy(open_base(tiny_base).pipe.unet), folder)
    assert sum("lora_A" in name for name, _ in unet.named_parameters()) == 4 * 2


def test_pairs_of_layers_with_other_sizes_are_refused(tmp_path):
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 12))  # blocks of 8 and of 4
    studio.attach(model, studio.RoAd(targets=("0", "1")))
    with pytest.raises(DoesNotFit, match="these have 4, 8"):
        studio.save(model, tmp_path / "a", format="peft")
    assert not (tmp_path / "a").exists()
    with pytest.raises(BadConfig, match="an odd number has no pairs"):
        studio.attach(nn.Sequential(nn.Linear(4, 5)), studio.RoAd(targets=("0",)))
