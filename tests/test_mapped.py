"""Memory of mapped files: it is given back behind whoever read it, and never with a number that is not in the file."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from studio.families.opening import hashing
from studio.families.opening.hashing import modules_hash
from studio.mapped import let_pages_go
from studio.quantization.parts import quantize_part

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell which pages are a file's")

ROWS, COLS, LAYERS = 1024, 1024, 8
BYTES = LAYERS * ROWS * COLS * 4


def of_files() -> int:
    """Bytes of mapped files that this process holds now."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssFile:"))


def model(folder: Path) -> nn.Sequential:
    """Layers whose weights are mapped from a file, none of which has been read."""
    torch.manual_seed(0)
    file = folder / "model.safetensors"
    save_file({f"{number}.weight": torch.randn(ROWS, COLS) for number in range(LAYERS)}, file)
    net = nn.Sequential(*(nn.Linear(COLS, ROWS, bias=False, device="meta") for _ in range(LAYERS)))
    net.load_state_dict(load_file(file), assign=True)
    return net


def test_what_was_read_is_let_go_and_comes_back(tmp_path: Path) -> None:
    net = model(tmp_path)
    before = of_files()
    sums = [float(layer.weight.detach().sum()) for layer in net]
    assert of_files() - before > 0.9 * BYTES, "else the weights are not mapped, and nothing is shown here"
    assert all(let_pages_go(layer.weight) for layer in net)
    assert of_files() - before < 0.1 * BYTES
    assert [float(layer.weight.detach().sum()) for layer in net] == sums


def test_a_number_that_was_written_stays(tmp_path: Path) -> None:
    weight = model(tmp_path)[3].weight.detach()
    weight[500, 7] = 42.0
    assert not let_pages_go(weight)
    assert float(weight[500, 7]) == 42.0
    assert let_pages_go(weight[:400])  # other pages of the same file


def test_what_is_transposed_or_a_column_goes_with_all_between(tmp_path: Path) -> None:
    weight = model(tmp_path)[0].weight.detach()
    before, whole = of_files(), float(weight.sum())
    assert let_pages_go(weight.t()) and of_files() < before + 0.1 * BYTES
    assert float(weight[:, 3].sum()) == float(weight.t()[3].sum()) and let_pages_go(weight[:, 3])
    assert float(weight.sum()) == whole


@pytest.mark.parametrize(
    "tensor",
    [torch.ones(1 << 18), torch.ones(()), torch.ones(0), torch.ones(1 << 18, device="meta"), torch.eye(9).to_sparse()],
    ids=["memory", "one number", "nothing", "meta", "sparse"],
)
def test_what_is_of_no_file_is_left_alone(tensor: torch.Tensor) -> None:
    known = None if tensor.is_meta else tensor.clone()
    assert not let_pages_go(tensor)
    assert known is None or torch.equal(known.to_dense(), tensor.to_dense())


def by_hand(net: nn.Module) -> str:
    """The hash by its definition: names and shapes, and all numbers as fp32 or as 64-bit integers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(net.state_dict().items()):
        digest.update(f".{name} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.to(torch.float32 if tensor.is_floating_point() else torch.int64).numpy().tobytes())
    return digest.hexdigest()


def test_the_hash_is_the_same_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    net = nn.BatchNorm2d(7)  # a number that has no shape, and integers
    torch.manual_seed(0)
    net.weight = nn.Parameter(torch.randn(5, 400).bfloat16()[:, ::3])
    net.register_buffer("few", torch.zeros(0, 3))
    net.register_buffer("asks", torch.rand(50) > 0.5)
    assert modules_hash({"": net}) == by_hand(net)
    monkeypatch.setattr(hashing, "_PIECE", 10)
    assert modules_hash({"": net}) == by_hand(net)


def test_a_base_is_hashed_and_quantised_without_being_held(tmp_path: Path) -> None:
    net = model(tmp_path)
    before, wanted = of_files(), by_hand(net)
    assert of_files() - before > 0.9 * BYTES
    assert modules_hash({"": net}) == wanted
    assert of_files() - before < 0.1 * BYTES
    quantize_part("the model", net, "fp8")
    assert of_files() - before < 0.1 * BYTES
