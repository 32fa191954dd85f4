"""What is saved for the backward pass, and alive until then: no tensor that the rules do not need."""

import weakref

import pytest
import torch
from support import Fn
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from lxt_compose import presets

BATCH, TOKENS, WIDTH, INNER, LAYERS = 2, 12, 16, 40, 3
STREAM, HIDDEN, SCORES, FACTORS = (BATCH * TOKENS * size for size in (WIDTH, INNER, TOKENS, 1))
BYTES = 4


class Layer(nn.Module):
    """A norm, attention and a gated MLP, all written out; each result is handed to `seen`, with its name."""

    def __init__(self, seen):
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))
        self.gate, self.up = nn.Linear(WIDTH, INNER, bias=False), nn.Linear(WIDTH, INNER, bias=False)
        self.down = nn.Linear(INNER, WIDTH, bias=False)
        self.seen = seen

    def forward(self, x):
        y = self.norm(x)
        scores = self.seen("scores", self.q(y) @ self.k(y).transpose(-1, -2)) / 4
        x = self.seen("stream", x + self.out(scores.softmax(-1) @ self.v(y)))
        y = self.norm(x)
        gate = self.seen("gate", self.gate(y))
        return self.seen("stream", x + self.down(F.silu(gate) * self.up(y)))

    def norm(self, x):
        squares = self.seen("squares", x.pow(2))
        return x * torch.rsqrt(squares.mean(-1, keepdim=True) + 1e-6)


def run(preset, seen=lambda name, y: y, after=lambda: None):
    """Run a model of several layers under a preset; `after` is called before the outermost module has ended."""
    torch.manual_seed(0)
    model = nn.Sequential(*(Layer(seen) for _ in range(LAYERS))).requires_grad_(False)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    model[-1].register_forward_hook(lambda *_: after())
    with presets.get(preset).register(model):
        return model(torch.randn(BATCH, TOKENS, WIDTH, requires_grad=True)), weights


def saved_by(output):
    """Return the bytes of each memory that the autograd graph behind an output has saved, numbers aside."""
    pending, met, memory = [output.grad_fn], set(), {}
    while pending:
        node = pending.pop()
        if node is None or node in met:
            continue
        met.add(node)
        own = [getattr(node, name) for name in dir(node) if name.startswith("_saved_")]
        for value in (*own, *getattr(node, "saved_tensors", ())):
            if isinstance(value, torch.Tensor) and value.dim():
                memory[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        pending += [source for source, _ in node.next_functions]
    return memory


# Both norms need their factor. Attention that is a constant needs no queries, keys and values, a gate that is one
# neither what it came from nor the signal.
NEEDED = {
    "attnlrp": 3 * STREAM + SCORES + 2 * FACTORS + 3 * HIDDEN,
    "cp_lrp": SCORES + 2 * FACTORS + HIDDEN,
    "relp": SCORES + 2 * FACTORS + 3 * HIDDEN,
}


@pytest.mark.parametrize("preset", NEEDED)
def test_only_what_the_rules_need_is_saved(preset):
    output, weights = run(preset)
    found = {place: size for place, size in saved_by(output).items() if place not in weights}
    assert sum(found.values()) == LAYERS * NEEDED[preset] * BYTES


@pytest.mark.parametrize(("preset", "alive"), [("attnlrp", {"gate"}), ("cp_lrp", set()), ("relp", {"gate"})])
def test_what_is_not_saved_is_let_go_at_once(preset, alive):
    made, found = [], set()

    def seen(name, y):
        made.append((name, weakref.ref(y)))
        return y

    def after():
        found.update(name for name, y in made[:-7] if y() is not None)  # the last layer still has its own

    run(preset, seen, after)
    assert found == alive


def test_equal_shares_are_taken_at_once():
    """A multiplication for each factor would need the slots of both factors twice."""

    class Halves(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            factor = args[1] if function is torch.ops.aten.mul.Tensor else None
            self.count += isinstance(factor, float) and factor == 0.5
            return function(*args, **(kwargs or {}))

    x = torch.randn(3, 4, requires_grad=True)
    model = Fn(lambda _, x: (x @ x.T).relu() @ (x * x.flip(-1)))
    with presets.attnlrp().register(model):
        output = model(x)
    with Halves() as seen:
        output.sum().backward()
    assert seen.count == 3
