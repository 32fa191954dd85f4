"""The pages on units, circuits and weights: every block of Python runs as it stands, every command is understood."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from torch import nn

from lxt_compose import concepts
from lxt_compose.cli.arguments import build_parser

DOCS = Path(__file__).resolve().parent.parent.parent / "docs"
UNITS, CIRCUITS = (
    re.findall(r"^```python\n(.*?)^```", (DOCS / name).read_text("utf-8"), flags=re.M | re.S)
    for name in ("concepts.md", "circuits.md")
)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        return self.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn = Attention()
        self.mlp = nn.ModuleDict({"up": nn.Linear(8, 16), "act": nn.GELU(), "down": nn.Linear(16, 8)})

    def forward(self, x):
        x = x + self.attn(x)
        return x + self.mlp["down"](self.mlp["act"](self.mlp["up"](x)))


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers, self.head = nn.ModuleList([Layer(), Layer()]), nn.Linear(8, 5)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.head(x[:, -1])


def scans():
    torch.manual_seed(0)
    model = nn.Sequential()
    for name, layer in (
        ("conv1", nn.Conv2d(1, 8, 3)), ("act1", nn.ReLU()), ("conv2", nn.Conv2d(8, 8, 3)), ("act2", nn.ReLU()),
        ("conv3", nn.Conv2d(8, 4, 3)), ("flat", nn.Flatten()), ("head", nn.Linear(16, 6)),
    ):  # fmt: skip
        model.add_module(name, layer)
    images = torch.randn(24, 1, 8, 8)
    world = {"model": model.eval(), "images": images[:3], "batches": list(images.split(6)), "labels": [0, 1] * 12}
    return {**world, "others": [torch.randn(4, 1, 8, 8)], "concepts": concepts}


def pairs():
    torch.manual_seed(0)
    given = {"clean": torch.randn(3, 4, 8), "corrupted": torch.randn(3, 4, 8)}
    return {"model": Transformer().eval(), **given, "pairs": torch.tensor([[0, 1]] * 3), "concepts": concepts}


def run(block, world):
    exec(compile(block, "the page", "exec"), world)
    return world


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_blocks_are_those_that_are_run():
    assert (len(UNITS), len(CIRCUITS)) == (3, 3)


def test_units(in_a_folder):
    world = run(UNITS[0], scans())
    assert len(world["found"]) == 6
    assert (in_a_folder / "conv2.pt").exists()


def test_images_that_units_would_like(in_a_folder):
    world = run(UNITS[1], scans())
    assert world["wished"].names == ("conv2[3]", "conv2[5]", "conv2[3]@2,2")
    assert (world["wished"].activations > world["wished"].first).all()
    assert (in_a_folder / "wishes.png").exists()


def test_prototypes():
    pytest.importorskip("sklearn")
    world = run(UNITS[2], scans())
    assert world["strange"].shape == (4,)


def test_graphs(in_a_folder):
    pytest.importorskip("networkx")
    world = run(CIRCUITS[0], scans())
    assert world["graph"].places == ["conv1", "conv2", "conv3"]
    assert (in_a_folder / "graph.graphml").exists()


def test_circuits(in_a_folder):
    pytest.importorskip("networkx")
    world = run(CIRCUITS[1], pairs())
    assert world["guess"].nodes == world["exact"].nodes
    assert (in_a_folder / "circuit.graphml").exists()


def test_weights():
    world = scans()
    before = {name: value.clone() for name, value in world["model"].state_dict().items()}
    run(CIRCUITS[2], world)
    assert all(torch.equal(value, before[name]) for name, value in world["model"].state_dict().items())


def test_commands_are_understood():
    lines = re.findall(r"^(lxt-compose .*)$", (DOCS / "concepts.md").read_text("utf-8"), flags=re.M)
    assert len(lines) == 3
    for line in lines:
        assert build_parser().parse_args(shlex.split(line)[1:]).command == "concepts"
