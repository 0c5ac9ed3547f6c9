"""Every method through every format: the same function, and the same bytes again."""

from __future__ import annotations

import contextlib
import copy
import resource
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import studio
from studio.adapters.hosting.assembly import site_at
from studio.errors import BadConfig, BadFile, DoesNotFit, UnknownName
from studio.files import FORMATS, common_formats

# configs that take other branches than the example of their method, or sit on other layers
VARIANTS = {
    "lora": studio.LoRA(rank=2, alpha=3, targets=("lin", "conv", "point", "turned")),
    "lora-bias": studio.LoRA(rank=2, alpha=3, use_bias=True, targets=("lin", "conv")),
    "lora-patterns": studio.LoRA(
        rank=2,
        rank_pattern={"conv": 3},
        alpha_pattern={"lin": 7},
        rank_stabilized=True,
        targets=("lin", "conv", "point"),
    ),
    "lora-embedding": studio.LoRA(rank=2, alpha=1.0, targets=("emb", "lin")),
    "lora-attention": studio.LoRA(rank=2, targets=("mha",)),
    "pissa": studio.LoRA(rank=2, init="pissa", rank_stabilized=True, targets=("lin", "conv")),
    "olora": studio.LoRA(rank=2, alpha=1.3, init="olora", targets=("lin", "conv")),
    "dora": studio.DoRA(rank=2, alpha=3.3, targets=("lin", "conv", "point", "emb")),
    "dora-inputs": studio.DoRA(rank=2, alpha=3.3, axis="inputs", targets=("lin", "conv", "point")),
    "ia3": studio.IA3(targets=("lin", "conv", "point"), feedforward=("point",)),
    "ia3-weights": studio.IA3(targets=("lin", "conv", "point"), feedforward=("point",), with_bias=False),
    "lokr": studio.LoKr(rank=1, alpha=2.5, targets=("lin", "conv", "point")),
    "lokr-both": studio.LoKr(rank=1, alpha=2, decompose_both=True, targets=("lin", "conv")),
    "lokr-full": studio.LoKr(rank=8, alpha=2, targets=("lin", "conv")),
    "lokr-tucker": studio.LoKr(rank=1, alpha=2, tucker=True, targets=("lin", "conv", "point", "turned")),
    "adalora": studio.AdaLoRA(rank=3, alpha=2, target_rank=2, targets=("lin", "conv", "point")),
    "qalora": studio.QALoRA(rank=2, alpha=3, group=4, targets=("lin",)),
    "qalora-mean": studio.QALoRA(rank=2, group=2, pooling="mean", rank_stabilized=True, targets=("lin", "conv", "mha")),
    "lntuning": studio.LNTuning(targets=("norm", "lin", "emb")),
    "bitfit": studio.BitFit(targets=("norm", "lin", "conv")),
    "bitfit-linear": studio.BitFit(targets=("lin",)),
    "full": studio.Full(targets=("norm", "lin", "conv", "emb")),
    "full-weights": studio.Full(use_bias=False, targets=("lin", "conv")),
    "glora": studio.GLoRA(rank=2, alpha=3, targets=("lin", "conv", "point", "turned")),
    "tokenembedding": studio.TokenEmbedding(tokens=(5, 3), targets=("emb",)),
    "tokenembedding-linear": studio.TokenEmbedding(tokens=(5, 3), targets=("emb", "lin")),
    "bottleneck": studio.Bottleneck(size=3, targets=("lin", "conv", "block")),
    "bottleneck-parallel": studio.Bottleneck(
        size=3, placement="parallel", norm=True, train_scale=True, activation="tanh", targets=("lin", "point", "block")
    ),
    "loha": studio.LoHa(rank=2, alpha=3, rank_pattern={"conv": 3}, targets=("lin", "conv", "point", "turned")),
    "loha-tucker": studio.LoHa(rank=2, alpha=3, tucker=True, targets=("lin", "conv", "point", "turned")),
    "loha-decomposed": studio.LoHa(rank=2, alpha=3, decompose="outputs", targets=("lin", "conv", "point", "turned")),
    "lokr-by-inputs": studio.LoKr(rank=1, alpha=2, decompose="inputs", targets=("lin", "conv", "point")),
    "vera": studio.VeRA(rank=5, targets=("lin", "inner")),
    "vera-drawn": studio.VeRA(rank=5, key=3, save_projection=False, targets=("lin", "inner")),
    "vera-conv": studio.VeRA(rank=5, targets=("lin", "conv", "emb", "turned")),
    "road": studio.RoAd(variant=2, group=4, targets=("lin",)),
    "road-conv": studio.RoAd(variant=4, group=2, targets=("conv", "emb", "mha")),
    "hra": studio.HRA(rank=2, targets=("lin", "conv", "point")),
    "hra-embedding": studio.HRA(rank=3, orthogonal=True, targets=("emb", "turned")),
    "oft": studio.OFT(block_size=4, terms=5, dropout=0.1, targets=("lin", "point", "emb")),
    "oft-conv": studio.OFT(block_size=4, block_pattern={"turned": 3}, eps=0.5, targets=("lin", "conv", "turned")),
    "oft-outputs": studio.OFT(block_size=2, outputs=True, use_gain=True, targets=("lin", "conv", "turned")),
    "boft": studio.BOFT(block_size=4, targets=("lin", "conv", "point")),
    "boft-butterfly": studio.BOFT(block_size=2, factors=2, targets=("lin", "conv", "point")),
    "boft-outputs": studio.BOFT(block_size=2, factors=2, outputs=True, targets=("lin", "conv", "point")),
    "mora": studio.MoRA(rank=2, targets=("lin", "conv", "emb")),
    "mora-sharing": studio.MoRA(rank=2, type=1, targets=("lin", "conv", "emb")),
    "deltalora": studio.DeltaLoRA(rank=2, alpha=3, targets=("lin", "conv", "emb", "mha")),
}


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(12, 12)

    def forward(self, x):
        return torch.relu(self.inner(x)), "more"


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(10, 12)
        self.norm = nn.LayerNorm(12)
        self.block = Block()
        self.lin = nn.Linear(12, 20)
        self.mha = nn.MultiheadAttention(20, 2, batch_first=True)
        self.conv = nn.Conv2d(4, 8, 3, padding=1)
        self.point = nn.Conv2d(8, 8, 1)
        self.turned = nn.Conv1d(8, 6, 3)

    def forward(self, ids, image):
        x = self.lin(self.block(self.norm(self.emb(ids)))[0])
        y = self.point(self.conv(image))
        return torch.cat([self.mha(x, x, x)[0].flatten(), y.flatten(), self.turned(y.flatten(2)).flatten()])


INPUT = (torch.arange(6).view(2, 3), torch.linspace(-1, 1, 200).view(2, 4, 5, 5))


def example(config):
    """A method's own example on layers of Net that it covers, or None for a method that sits on whole models."""
    for targets in (("lin", "inner"), ("norm",), ("emb",)):
        with contextlib.suppress(studio.StudioError):
            studio.attach(Net(), config.example(targets=targets))
            return config.example(targets=targets)
    return None


METHODS = {name: made for name, config in studio.METHODS.items() if (made := example(config)) is not None} | VARIANTS

# what a format's own program has on other sides than these: LyCORIS turns outputs, PEFT turns inputs
LYCORIS = ("kohya", "native")
UNSAYABLE = {(m, one) for m in ("oft", "oft-conv", "boft", "boft-butterfly", "ia3") for one in LYCORIS}
UNSAYABLE |= {("oft-outputs", "peft"), ("boft-outputs", "peft")}
UNSAYABLE |= {("dora-inputs", "peft"), ("loha-decomposed", "peft"), ("lokr-by-inputs", "peft")}
UNSAYABLE |= {("ia3-weights", "peft")}  # LyCORIS leaves the bias, PEFT does not


def names_are_missing(config, format):
    """Whether a format has no names for a method, or its program no such layer; it is refused by name."""
    adapter = config.adapter
    if format in LYCORIS:
        return not (adapter.lycoris.tensors or adapter.lycoris.form)
    model = Net()
    sites = [site_at(model, path, adapter.kinds) for path in studio.attach(model, config).sites]
    peft = adapter.peft
    return format == "peft" and (not peft.type or any(peft.refusal(site) or peft.differs(site) for site in sites))


UNSAYABLE |= {
    (m, format) for m, config in METHODS.items() for format in common_formats() if names_are_missing(config, format)
}
# methods that a format states as another one, with the same change
STATED_AS = {(m, one): "lora" for m, config in METHODS.items() if config.adapter.lycoris.form for one in LYCORIS}


def made(config, seed=0):
    """A model with an adapter that changes something, and the same model without."""
    torch.manual_seed(seed)
    base = Net()
    model = copy.deepcopy(base)
    studio.attach(model, config)
    with torch.no_grad():
        for tensor in studio.state(model).values():
            if tensor.requires_grad:
                tensor += torch.randn_like(tensor) * 0.3
    return model, base


def content(path: Path) -> dict[str, bytes]:
    files = [path] if path.is_file() else sorted(path.iterdir())
    return {file.name if path.is_dir() else "": file.read_bytes() for file in files}


def target(folder: Path, format: str, name: str) -> Path:
    return folder / (name if FORMATS[format].folder else f"{name}.safetensors")


@pytest.mark.parametrize(("method", "format"), sorted(UNSAYABLE))
def test_a_method_without_names_in_a_format_is_refused(tmp_path, method, format):
    model, _ = made(METHODS[method])
    with pytest.raises(DoesNotFit, match=type(METHODS[method]).__name__):
        studio.save(model, target(tmp_path, format, "a"), format=format)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("method", "format"),
    [(method, one) for method in METHODS for one in common_formats() if (method, one) not in UNSAYABLE],
)
@pytest.mark.filterwarnings("ignore:PEFT 0.21 adds the change of mha.out_proj twice")
def test_save_load_save(tmp_path, method, format):
    model, base = made(METHODS[method])
    wanted = model(*INPUT)
    assert not torch.allclose(wanted, base(*INPUT), rtol=1e-2)
    first = studio.save(model, target(tmp_path, format, "a"), format=format, metadata={"trigger": "sks", "seed": "3"})
    again = studio.save(model, target(tmp_path, format, "b"), format=format, metadata={"seed": "3", "trigger": "sks"})
    assert content(first) == content(again)
    report = studio.load(base, first)
    assert report.format == format and report.ignored == {}
    assert report.method == STATED_AS.get((method, format), METHODS[method].method)
    got = base(*INPUT)
    assert (got - wanted).norm() <= 1e-6 * wanted.norm()
    second = studio.save(base, target(tmp_path, format, "c"), format=format)
    assert content(first) == content(second)
    facts = studio.inspect(second).facts
    assert facts == {"seed": "3", "trigger": "sks"}


@pytest.mark.parametrize("method", [m for m, config in METHODS.items() if config.adapter.lycoris.algo])
def test_names_of_lycoris_mean_the_same_with_dots(tmp_path, method):
    if (method, "kohya") in UNSAYABLE:
        pytest.skip("LyCORIS has it on the other side")
    model, base = made(METHODS[method])
    tensors = load_file(studio.save(model, tmp_path / "a.safetensors", format="kohya"))
    save_file({key.removeprefix("lycoris_"): tensor for key, tensor in tensors.items()}, tmp_path / "b.safetensors")
    report = studio.load(base, tmp_path / "b.safetensors")
    assert report.ignored == {} and report.method == METHODS[method].method
    assert (base(*INPUT) - model(*INPUT)).norm() <= 1e-6 * model(*INPUT).norm()


@pytest.mark.parametrize("format", common_formats())
@pytest.mark.parametrize("method", ["lora", "dora", "lokr"])
def test_a_narrow_file_stays_narrow(tmp_path, method, format):
    model, base = made(METHODS[method])
    first = studio.save(model, target(tmp_path, format, "a"), format=format, dtype=torch.bfloat16)
    studio.load(base, first)
    assert all(tensor.dtype == torch.float32 for tensor in studio.state(base).values())
    assert content(studio.save(base, target(tmp_path, format, "b"), format=format)) == content(first)
    wide = studio.save(base, target(tmp_path, format, "c"), format=format, dtype=torch.float32)
    assert max(map(len, content(wide).values())) > max(map(len, content(first).values()))


@pytest.mark.parametrize("format", common_formats())
def test_every_key_is_accounted_for(tmp_path, format):
    model, base = made(METHODS["dora"])
    file = studio.save(model, target(tmp_path, format, "a"), format=format)
    report = studio.load(base, file)
    assert set(report.applied) | set(report.ignored) == set(studio.inspect(file).tensors)
    assert report.sites == ("conv", "emb", "lin", "point")


def test_names_and_taken_names(tmp_path):
    model, base = made(METHODS["lora"])
    with pytest.raises(UnknownName, match="'dog'"):
        studio.save(model, tmp_path / "a.safetensors", name="dog")
    file = studio.save(model, tmp_path / "a.safetensors")
    assert studio.load(base, file).name == "default"
    with pytest.raises(DoesNotFit, match="attached already"):
        studio.load(base, file)
    assert studio.load(base, file, name="second", strength=0.5).name == "second"
    assert {name: info.strength for name, info in studio.adapters(base).items()} == {"default": 1.0, "second": 0.5}


def test_loading_is_frozen_unless_asked(tmp_path):
    model, base = made(METHODS["lora"])
    file = studio.save(model, tmp_path / "a.safetensors")
    studio.load(base, file)
    assert not any(tensor.requires_grad for tensor in studio.state(base).values())
    studio.load(base, file, name="more", trainable=True)
    assert all(tensor.requires_grad for tensor in studio.state(base, "more").values())


def test_the_default_format_follows_the_path(tmp_path):
    model, _ = made(METHODS["lora"])
    assert studio.inspect(studio.save(model, tmp_path / "folder")).format == "peft"
    assert studio.inspect(studio.save(model, tmp_path / "file.safetensors")).format == "diffusers"
    with pytest.raises(UnknownName, match="did you mean 'kohya'"):
        studio.save(model, tmp_path / "x.safetensors", format="koyha")


def test_a_baked_model_is_not_saved_and_not_loaded_onto(tmp_path):
    model, _ = made(METHODS["lora"])
    file = studio.save(model, tmp_path / "a.safetensors")
    studio.bake(model)
    with pytest.raises(DoesNotFit, match="unbake"):
        studio.save(model, tmp_path / "b.safetensors")
    with pytest.raises(DoesNotFit, match="unbake"):
        studio.load(model, file, name="b")
    assert not (tmp_path / "b.safetensors").exists()


def test_what_a_format_cannot_say_is_refused(tmp_path):
    grouped = nn.Sequential(nn.Conv2d(4, 8, 3, groups=2))
    studio.attach(grouped, studio.LoRA(rank=2, targets=("0",)))
    with pytest.raises(DoesNotFit, match="grouped convolution"):
        studio.save(grouped, tmp_path / "a", format="peft")
    clash = nn.ModuleDict({"a_b": nn.Linear(4, 4), "a": nn.ModuleDict({"b": nn.Linear(4, 4)})})
    studio.attach(clash, studio.LoRA(rank=2, targets=("a_b",)))
    with pytest.raises(DoesNotFit, match="also that of another layer"):
        studio.save(clash, tmp_path / "a.safetensors", format="kohya")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("format", common_formats())
def test_nothing_is_written_where_nothing_can_be(tmp_path, format):
    model, _ = made(METHODS["lora"])
    blocked = tmp_path / "blocked"
    blocked.write_text("a file")
    with pytest.raises(BadFile, match="cannot write"):
        studio.save(model, target(blocked, format, "a"), format=format)
    with pytest.raises(BadConfig, match="give it as a string"):
        studio.save(model, target(tmp_path, format, "a"), format=format, metadata={"seed": 1})
    with pytest.raises(BadConfig, match="dtype"):
        studio.save(model, target(tmp_path, format, "a"), format=format, dtype=torch.int8)
    assert list(tmp_path.iterdir()) == [blocked]


@pytest.mark.parametrize("format", common_formats())
@pytest.mark.parametrize("existing", [False, True])
def test_a_full_disk_leaves_the_old_file(tmp_path, format, existing):
    import signal

    model, _ = made(METHODS["lora"])
    big = nn.Sequential(nn.Linear(512, 512))
    studio.attach(big, studio.LoRA(rank=64, targets=("0",)))
    place = target(tmp_path, format, "a")
    if existing:
        studio.save(model, place, format=format)
    before = content(place) if existing else None
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(BadFile, match="cannot write"):
            studio.save(big, place, format=format)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert [path.name for path in tmp_path.iterdir()] == ([place.name] if existing else [])
    if existing:
        assert content(place) == before


def test_metadata_that_other_tools_read(tmp_path):
    model, _ = made(METHODS["lora-patterns"])
    facts = {"trigger": "sks dog", "licence": "CC0", "seed": "7", "steps": "40", "title": "Dog", "base_hash": "ab12"}
    file = studio.inspect(studio.save(model, tmp_path / "a.safetensors", format="kohya", metadata=facts))
    said = file.metadata
    assert said["modelspec.trigger_phrase"] == "sks dog" and said["modelspec.license"] == "CC0"
    assert said["ss_seed"] == "7" and said["ss_steps"] == "40" and said["ss_network_module"] == "networks.lora"
    assert said["ss_network_dim"] == "Dynamic" and said["ss_network_alpha"] == "Dynamic"
    assert said["modelspec.hash_sha256"] == "0x" + said["sshs_model_hash"]
    assert file.facts == facts and file.config == METHODS["lora-patterns"] or file.config.rank == 2
    text = " ".join(said.values())
    assert str(tmp_path) not in text and str(Path.home()) not in text


def test_inspect_reads_the_header_only(tmp_path):
    model, _ = made(METHODS["lora"])
    file = studio.save(model, tmp_path / "a.safetensors")
    found = studio.inspect(file)
    assert (found.method, found.format, found.rank, found.name) == ("lora", "diffusers", 2, "default")
    assert found.sites == ("conv", "lin", "point", "turned") and found.unread == {}
    assert found.tensors["conv.lora_A.weight"] == ("F32", (2, 4, 3, 3))


@pytest.mark.parametrize("format", ["diffusers", "kohya"])
def test_a_model_that_is_one_layer(tmp_path, format):
    torch.manual_seed(0)
    model = nn.Linear(6, 4)
    base = copy.deepcopy(model)
    studio.attach(model, studio.LoRA(rank=2, targets=("re:",)))
    with torch.no_grad():
        studio.state(model)["up"].normal_()
    file = studio.save(model, tmp_path / "a.safetensors", format=format)
    assert studio.load(base, file).sites == ("",)
    x = torch.randn(3, 6)
    assert torch.equal(base(x), model(x))
    with pytest.raises(DoesNotFit, match="one single layer"):
        studio.save(model, tmp_path / "folder", format="peft")
