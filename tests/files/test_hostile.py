"""Files that want to do something: refused in one sentence, without running, writing or taking anything."""

from __future__ import annotations

import collections
import functools
import io
import json
import os
import pickle
import struct
import time
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import studio
from studio.errors import BadFile, StudioError

PAIR = {"0.lora_A.weight": torch.ones(1, 4), "0.lora_B.weight": torch.ones(4, 1)}


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4))


def refused(action, error=StudioError, match="."):
    """One sentence, without characters that a terminal acts on."""
    with pytest.raises(error, match=match) as caught:
        action()
    said = str(caught.value)
    assert said.strip() and "\n" not in said and "\0" not in said and len(said) < 2000
    return said


# -- pickles -----------------------------------------------------------------------------------------------------------


class Runs:
    """What runs something when it is unpickled."""

    def __init__(self, call, *given):
        self.call, self.given = call, given

    def __reduce__(self):
        return self.call, self.given


class Settled:
    """The same through its state."""

    def __setstate__(self, state):
        Path(state["mark"]).touch()


def settled(mark):
    made = Settled()
    made.__dict__["mark"] = mark
    return made


PAYLOADS = {
    "os.system": lambda mark: Runs(os.system, f"touch {mark}"),
    "open": lambda mark: Runs(open, mark, "w"),
    "exec": lambda mark: Runs(exec, f"open({mark!r}, 'w')"),
    "eval": lambda mark: Runs(eval, f"open({mark!r}, 'w')"),
    "getattr": lambda mark: Runs(getattr, os, "system"),
    "partial": lambda mark: functools.partial(open, mark, "w"),
    "counter": lambda mark: collections.Counter({"x": 1}),
    "module": lambda mark: net(),
    "class": lambda mark: Settled,
    "state": settled,
    "import": lambda mark: Runs(__import__, "antigravity"),
    "loaded again": lambda mark: Runs(pickle.loads, pickle.dumps(Runs(open, mark, "w"))),
    "a number": lambda mark: 7,
    "a text": lambda mark: "lora",
    "nothing": lambda mark: None,
    "a table of numbers": lambda mark: {"0.lora_A.weight": [[1.0, 2.0]]},
}
PLACES = {
    "by itself": lambda one: one,
    "as a tensor": lambda one: {**PAIR, "x": one},
    "as a key": lambda one: {one: torch.ones(1)},
    "in a state_dict": lambda one: {"state_dict": {**PAIR, "x": one}},
    "in a list": lambda one: [torch.ones(4, 1), torch.ones(1, 4)] * 143 + [one, torch.ones(1, 4)],
    "beside a word": lambda one: {"string_to_param": {"*": torch.ones(1, 768)}, "name": one},
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("payload", PAYLOADS)
def test_pickles_of_every_kind(payload, place, tmp_path):
    """Never opened unless asked for, and then by torch's reader of tensors alone."""
    mark = tmp_path / "ran"
    try:
        content = PLACES[place](PAYLOADS[payload](str(mark)))
    except TypeError:
        pytest.skip("it is no key")  # of a table
    for suffix in (".pt", ".bin", ".ckpt", ".pth"):
        file = tmp_path / f"a{suffix}"
        try:
            torch.save(content, file)
        except TypeError:  # nothing pickles it
            pytest.skip("no pickle of it can be made")
        mark.unlink(missing_ok=True)  # making one may run it
        model = net()
        refused(lambda file=file, model=model: studio.load(model, file), BadFile, "pickled=True")
        refused(lambda file=file: studio.inspect(file), BadFile)
        refused(lambda file=file, model=model: studio.load(model, file, pickled=True))
        assert not mark.exists() and studio.adapters(model) == {}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_bare_pickles_of_every_protocol(protocol, tmp_path):
    mark = tmp_path / "ran"
    for content in (Runs(open, str(mark), "w"), {**{key: 1 for key in PAIR}, "x": Runs(open, str(mark), "w")}):
        (tmp_path / "a.pt").write_bytes(pickle.dumps(content, protocol=protocol))
        refused(lambda: studio.load(net(), tmp_path / "a.pt", pickled=True), BadFile)
        assert not mark.exists()


BYTES = {
    "empty": b"", "stop": b".", "no stop": b"\x80\x02}", "memo": b"\x80\x04" + b"\x94" * 1000,
    "deep": b"(" * 100_000, "long text": b"\x80\x02X" + struct.pack("<I", 2**31), "zip": b"PK\x05\x06" + b"\0" * 18,
    "legacy": pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2) + pickle.dumps(1001, protocol=2),
}  # fmt: skip


@pytest.mark.parametrize("kind", BYTES)
def test_what_is_hardly_a_pickle(kind, tmp_path):
    (tmp_path / "a.pt").write_bytes(BYTES[kind])
    begin = time.monotonic()
    refused(lambda: studio.load(net(), tmp_path / "a.pt", pickled=True), BadFile)
    assert time.monotonic() - begin < 5


# -- zips --------------------------------------------------------------------------------------------------------------


def rezipped(entries, more):
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in (*entries.items(), *more.items()):
            packed.writestr(name, content)
    return made.getvalue()


@pytest.fixture
def entries():
    """The parts of a zip of torch's."""
    saved = io.BytesIO()
    torch.save(PAIR, saved)
    with zipfile.ZipFile(saved) as opened:
        return {name: opened.read(name) for name in opened.namelist()}


SLIPS = ["../evil", "../../evil", "/studio-evil", "a/../../evil", "archive/../../evil", "C:\\evil"]


@pytest.mark.parametrize("name", SLIPS)
def test_zip_slips_write_nothing(name, entries, tmp_path):
    inside = tmp_path / "deep" / "inside"
    inside.mkdir(parents=True)
    (inside / "a.pt").write_bytes(rezipped(entries, {name: b"evil"}))
    before = sorted(tmp_path.rglob("*"))
    try:
        studio.load(net(), inside / "a.pt", pickled=True)
    except StudioError as error:
        assert "\n" not in str(error)
    assert sorted(tmp_path.rglob("*")) == before
    assert not Path("/studio-evil").exists()


def test_a_zip_bomb_is_not_unpacked(entries, tmp_path):
    (tmp_path / "a.pt").write_bytes(rezipped(entries, {"archive/data/9": b"\0" * 50_000_000}))
    assert (tmp_path / "a.pt").stat().st_size < 200_000
    refused(lambda: studio.load(net(), tmp_path / "a.pt", pickled=True), BadFile, "unpacks to")


# -- names -------------------------------------------------------------------------------------------------------------

NAMES = {
    "upwards": "../../../../evil.lora_A.weight", "absolute": "/etc/passwd.lora_A.weight", "nul": "0\0.lora_A.weight",
    "long": "a" * 10_000 + ".lora_A.weight", "many levels": ".".join("a" * 4000) + ".lora_A.weight",
    "terminal": "\x1b[2J\x1b]0;evil\x07.lora_A.weight", "line": "0\n1.lora_A.weight", "empty": "", "dots": "....",
    "turned": "\u202e0.lora_A.weight", "dunder": "__class__.lora_A.weight", "adapters": "0.adapters.x.lora_A.weight",
    "weight": "0.weight.lora_A.weight", "number": "-1.lora_A.weight", "format": "{0}.lora_A.weight",
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_names_of_layers(name, tmp_path):
    """Refused, and whatever is written for such a file is where it was asked for."""
    folder = tmp_path / "inside"
    folder.mkdir()
    save_file({**PAIR, NAMES[name]: torch.ones(1, 4)}, folder / "a.safetensors")
    model = net()
    refused(lambda: studio.load(model, folder / "a.safetensors"))
    assert studio.adapters(model) == {}
    refused(lambda: studio.convert(folder / "a.safetensors", folder / "b.safetensors", format="kohya", base=model))
    refused(lambda: studio.resize(folder / "a.safetensors", folder / "c.safetensors", rank=1, base=model))
    assert [path.name for path in folder.iterdir()] == ["a.safetensors"] and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("name", ["../../evil", "/etc/passwd", "a\0b", "x" * 10_000, "\x1b[2J", "a b", "", "..", "a/b"])
def test_names_of_adapters_in_a_file(name, tmp_path):
    """A name that could not be given is not taken from a file either."""
    entry = {"method": "lora", "name": name, "config": {"rank": 1}}
    save_file(PAIR, tmp_path / "a.safetensors", metadata={"studio": json.dumps(entry)})
    model = net()
    try:
        loaded = studio.load(model, tmp_path / "a.safetensors").name
    except StudioError as error:
        assert "\n" not in str(error)
        assert studio.load(model, tmp_path / "a.safetensors", name="dog").name == "dog"
    else:
        assert loaded == "default"
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


# -- links -------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.name == "nt", reason="links of POSIX")
def test_links(tmp_path):
    """A link to a good file is that file; to anything else it is what that is."""
    save_file(PAIR, tmp_path / "a.safetensors")
    (tmp_path / "good.safetensors").symlink_to(tmp_path / "a.safetensors")
    assert studio.load(net(), tmp_path / "good.safetensors").sites == ("0",)
    (tmp_path / "secret.txt").write_text("password: hunter2")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "adapter_model.safetensors").symlink_to(tmp_path / "secret.txt")
    (folder / "adapter_config.json").symlink_to(tmp_path / "secret.txt")
    for target in (folder, folder / "adapter_model.safetensors"):
        assert "hunter2" not in refused(lambda target=target: studio.load(net(), target), BadFile)
    for place in ("/dev/zero", "/dev/stdin", tmp_path):
        link = tmp_path / "link.safetensors"
        link.unlink(missing_ok=True)
        link.symlink_to(place)
        refused(lambda link=link: studio.load(net(), link), BadFile)


@pytest.mark.skipif(os.name == "nt", reason="links of POSIX")
def test_writing_through_a_link_leaves_what_it_leads_to(tmp_path):
    (tmp_path / "theirs").write_bytes(b"precious")
    (tmp_path / "out.safetensors").symlink_to(tmp_path / "theirs")
    model = net()
    studio.attach(model, studio.LoRA(rank=1, targets=("0",)))
    try:
        studio.save(model, tmp_path / "out.safetensors")
    except StudioError as error:
        assert "\n" not in str(error)
        assert (tmp_path / "theirs").read_bytes() == b"precious"
    else:  # the link itself is replaced, or it was meant: then the file is whole
        assert studio.load(net(), tmp_path / "out.safetensors").sites == ("0",)


# -- metadata ----------------------------------------------------------------------------------------------------------

BOMBS = {
    "deep lists": "[" * 200_000 + "]" * 200_000,
    "deep tables": '{"a":' * 100_000 + "1" + "}" * 100_000,
    "a long number": "9" * 500_000,
    "a long text": json.dumps({"method": "lora", "config": {"targets": ["a" * 2_000_000]}}),
    "many fields": json.dumps({"method": "lora", "config": {f"x{number}": 1 for number in range(100_000)}}),
    "many layers": json.dumps({"method": "lora", "config": {"rank_pattern": {f"x{n}": 1 for n in range(20_000)}}}),
    "twice": '{"method": "lora", "method": "dora", "config": {}, "config": {"rank": 3}}',
    "numbers": '{"method": "lora", "config": {"rank": 1e999, "alpha": NaN}}',
    "parts in parts": json.dumps({"method": "lora+lora", "config": {"parts": [{"parts": [{}] * 1000}] * 2}}),
    "a surrogate": '{"method": "lora", "name": "\\ud800"}',
    "slow": json.dumps({"method": "lora", "config": {"targets": ["re:(a+)+$"], "exclude": ["re:(x|x)*y"]}}),
}
WHERE = (
    "studio",
    "lora_adapter_metadata",
    "ss_network_args",
    "ss_tag_frequency",
    "ss_network_alpha",
)


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("bomb", BOMBS)
def test_bombs_in_metadata(bomb, where, tmp_path):
    """Bounded time, no traceback; what loads is the pair at scale 1, or a scale that stands there."""
    save_file(PAIR, tmp_path / "a.safetensors", metadata={where: BOMBS[bomb]})
    begin = time.monotonic()
    model = net()
    with torch.no_grad():
        plain = model(torch.ones(1, 4))
        studio.inspect(tmp_path / "a.safetensors")
        try:
            studio.load(model, tmp_path / "a.safetensors")
        except StudioError as error:
            assert "\n" not in str(error) and len(str(error)) < 5000
        else:
            assert torch.allclose(model(torch.ones(1, 4)), plain + 4.0, atol=1e-5)
    assert time.monotonic() - begin < 5
