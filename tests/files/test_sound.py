"""Numbers that nothing can be computed with are refused by key; what was changed since the studio saved it is said."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import studio
from studio.errors import DoesNotFit, Refused
from studio.files.header import payload_hash, read_tensors, write_tensors
from studio.files.payload import Payload

CONFIGS = {
    "lora": studio.LoRA(rank=2, targets=("0",)),
    "dora": studio.DoRA(rank=2, targets=("0",)),
    "loha": studio.LoHa(rank=2, targets=("0",)),
    "lokr": studio.LoKr(rank=1, targets=("0",)),
    "ia3": studio.IA3(targets=("0",)),
    "oft": studio.OFT(block_size=4, targets=("0",)),
}


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 12), nn.Linear(12, 4))


def written(folder: Path, config: Any = CONFIGS["lora"], format: str = "diffusers") -> Path:
    model = net()
    studio.attach(model, config)
    with torch.no_grad():
        for tensor in studio.state(model).values():
            tensor.add_(0.01)
    return studio.save(model, folder / "file.safetensors", format=format)


def rewritten(file: Path, change: Any) -> None:
    """Writes a file anew with what ``change`` makes of its tensors and its metadata."""
    header, tensors = read_tensors(file)
    metadata = dict(header.metadata)
    change(tensors, metadata)
    write_tensors(file, tensors, metadata)


@pytest.mark.parametrize("number", [-2.5e38, 1e30, 3e19, float("nan"), float("-inf")])
@pytest.mark.parametrize("method", CONFIGS)
def test_one_number_that_nothing_can_be_computed_with(method: str, number: float, tmp_path: Path) -> None:
    file = written(tmp_path, CONFIGS[method])
    key = sorted(read_tensors(file)[1])[0]

    def change(tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
        tensors[key].view(-1)[1] = number

    rewritten(file, change)
    with pytest.raises(Refused) as caught:
        studio.load(net(), file)
    assert key in str(caught.value) and str(file) in str(caught.value)


@pytest.mark.parametrize("alpha", [float("nan"), float("inf"), 3e38, 1e25])
def test_an_alpha_that_nothing_can_be_computed_with(alpha: float, tmp_path: Path) -> None:
    file = written(tmp_path, format="kohya")

    def change(tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
        tensors["lycoris_0.alpha"] = torch.tensor(alpha)

    rewritten(file, change)
    with pytest.raises(Refused, match=r"lycoris_0\.alpha"):
        studio.load(net(), file)


@pytest.mark.parametrize(("number", "fits"), [(6e4, True), (7e4, False), (1e6, False)])
def test_what_fp16_holds_is_asked_of_a_base_in_fp16(number: float, fits: bool, tmp_path: Path) -> None:
    file = written(tmp_path)

    def change(tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
        tensors["0.lora_A.weight"][0, 0] = number

    rewritten(file, change)
    assert studio.load(net(), file).applied
    if fits:
        assert studio.load(net().half(), file).applied
    else:
        with pytest.raises(Refused, match=r"0\.lora_A\.weight.*fp16"):
            studio.load(net().half(), file)


def test_many_ordinary_numbers_are_no_large_one(tmp_path: Path) -> None:
    """The norm of 160,000 ones times itself is beyond fp16, and no number that is computed with is."""
    model = nn.Sequential(nn.Linear(400, 400, bias=False))
    studio.attach(model, studio.LoRA(rank=400, alpha=400, targets=("0",)))
    with torch.no_grad():
        for tensor in studio.state(model).values():
            tensor.fill_(1.0)
    file = studio.save(model, tmp_path / "file.safetensors")
    assert studio.load(nn.Sequential(nn.Linear(400, 400, bias=False)).half(), file).applied


def _other_number(tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    tensors["0.lora_B.weight"][0, 0] += 0.5


def _other_number_and_hash_gone(tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    _other_number(tensors, metadata)
    del metadata["sshs_model_hash"]


def _entry_torn(tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    metadata["studio"] = metadata["studio"][:-7]


def _field_unknown(tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    metadata["studio"] = metadata["studio"].replace("rank_stabilized", "rank_stAbilized")


def _method_unknown(tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    metadata["studio"] = metadata["studio"].replace('"method":"lora"', '"method":"lorb"')


def _two_alphas(tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    metadata["ss_network_alpha"] = "5"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_other_number, "its tensors are not those that the studio saved"),
        (_other_number_and_hash_gone, "its tensors are not those that the studio saved"),
        (_entry_torn, "the studio's own entry in it cannot be read: a later version"),
        (_field_unknown, "own entry in it cannot be read .*'rank_stAbilized'"),
        (_method_unknown, "the studio's own entry in it cannot be read"),
        (_two_alphas, "says lora_alpha=2, and the header ss_network_alpha=5; the first counts"),
    ],
)
def test_what_was_changed_is_said(change: Any, says: str, tmp_path: Path) -> None:
    file = written(tmp_path)
    assert not studio.load(net(), file).notes
    rewritten(file, change)
    (note,) = studio.load(net(), file).notes
    assert re.search(says, note), note


def test_an_alpha_that_the_fields_leave_out_and_the_header_has_is_refused(tmp_path: Path) -> None:
    file = written(tmp_path)

    def change(tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
        fields = json.loads(metadata["lora_adapter_metadata"])
        del fields["lora_alpha"]
        metadata["lora_adapter_metadata"] = json.dumps(fields)

    rewritten(file, change)
    with pytest.raises(DoesNotFit, match=r"leaves out lora_alpha, for which PEFT takes 8.*ss_network_alpha='2'"):
        studio.load(net(), file)


def test_the_same_tensors_in_another_order_are_those_that_were_saved(tmp_path: Path) -> None:
    """As another program may write them: here the second tensor lies before the first."""
    file = written(tmp_path)
    header, tensors = read_tensors(file)
    head: dict[str, Any] = {"__metadata__": header.metadata}
    body = b""
    for key in sorted(tensors, reverse=True):
        data = tensors[key].numpy().tobytes()
        head[key] = {
            "dtype": "F32",
            "shape": list(tensors[key].shape),
            "data_offsets": [len(body), len(body) + len(data)],
        }
        body += data
    text = json.dumps(head).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + body)
    report = studio.load(net(), file)
    assert not report.notes and len(report.applied) == 2


def test_large_tensors_are_hashed_beside_the_reading(tmp_path: Path) -> None:
    tensors = {"small": torch.ones(3), "large": torch.randn(100_000), "after": torch.zeros(5)}
    write_tensors(tmp_path / "file", tensors, {})
    for stated, agrees in ((payload_hash(tensors), True), ("0" * 64, False)):
        payload = Payload()
        payload.expect(stated)
        read_tensors(tmp_path / "file", None, payload.add)
        assert payload.agrees() is agrees and payload.agrees() is agrees
