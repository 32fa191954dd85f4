"""How many architectures of transformers does each library explain without losing relevance or making more of it?

    python benchmarks/conserving.py [--count 60] [--kinds causal sequence image] [--peers DIR]

Everything that a small model with random weights adds to its tokens or pixels (biases, positions, class tokens) is set
to 0, so its logit is the sum of what these contribute. Under rules that conserve (epsilon at layers, identity at
activations and norms, nothing through softmax and gates' own slopes), the sum of relevance must be the logit again, to
1 % of it. *sums*: it is. *other*: relevance came, with another sum. *raised*: none came. Ours is ``cp_lrp``. For
Zennit, tdhook and Captum, rules are put on each module whose kind tells what it is; LXT's efficient variant has patches
for some architectures, and is asked only there. The architectures are evenly spread over the alphabet.
"""

from __future__ import annotations

import argparse
import copy
import inspect
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import peers
import torch
import transformers
from measure import show
from torch import Tensor, nn
from zoo import KINDS, build, logit_of, sources_of

from lxt_compose import presets

Explainer = Callable[["Alone"], float]
"""From a model of one input to the sum of that input's relevance."""
TOLERANCE = 0.01
BASE = "gradient x input"


class Alone(nn.Module):
    """A model as a function of its embeddings or its pixels alone, to one logit."""

    def __init__(self, model: nn.Module, inputs: dict[str, Any]) -> None:
        super().__init__()
        self.model, self.inputs = model, dict(inputs)
        self.name = "pixel_values"
        if "pixel_values" not in inputs:
            self.name = "inputs_embeds"
            if self.name not in inspect.signature(model.forward).parameters:
                raise TypeError("takes no embeddings")
            self.x = model.get_input_embeddings()(self.inputs.pop("input_ids")).detach()
        else:
            self.x = self.inputs.pop("pixel_values").detach()

    def forward(self, x: Tensor) -> Tensor:
        """The logit, of shape (1, 1)."""
        return logit_of(self.model(**{self.name: x}, **self.inputs)).reshape(1, 1)


def alone(name: str, kind: str) -> Alone:
    """A small model to which nothing is added but its input."""
    model, inputs = build(name, kind)
    table = getattr(model.get_input_embeddings(), "weight", None) if "input_ids" in inputs else None
    named = dict((*model.named_parameters(), *model.named_buffers()))
    with torch.no_grad():
        for source in sources_of(model, inputs):
            if named[source] is not table and "running" not in source:
                named[source].zero_()
    made = Alone(model.requires_grad_(False), inputs)
    with torch.no_grad():
        logit = float(made(made.x))
    if not abs(logit) > 1e-4:
        raise ValueError("the logit is nothing without what is added")
    return made


def total(model: Alone, *, divided: bool) -> float:
    """The sum of relevance after one backward pass; divided: it carries relevance over the tensor."""
    x = model.x.clone().requires_grad_()
    logit = model(x)
    logit.backward(None if divided else logit.detach())
    assert x.grad is not None
    return float((x.detach() * x.grad if divided else x.grad).sum())


def ours(model: Alone) -> float:
    """The preset that conserves at softmax."""
    with presets.cp_lrp().register(model):
        return total(model, divided=True)


def _passes(module: nn.Module) -> bool:
    name = type(module).__name__
    return not [*module.children()] and (
        "Norm" in name or "Activation" in name or "nn.modules.activation" in str(type(module))
    )


def zennit(model: Alone) -> float:
    """Epsilon on layers, Pass on activations and norms of any kind."""
    rules = peers.load("zennit.rules")
    for module in model.modules():
        if isinstance(module, peers.LAYERS):
            rules.Epsilon(1e-9).register(module)
        elif _passes(module):
            rules.Pass().register(module)
    return total(model, divided=False)


def tdhook(model: Alone) -> float:
    """The same with tdhook's rules."""
    rules = peers.load("tdhook.attribution.lrp_helpers.rules")
    for module in model.modules():
        if isinstance(module, peers.LAYERS):
            rules.EpsilonRule().register(module)
        elif _passes(module):
            rules.PassRule().register(module)
    return total(model, divided=False)


def captum(model: Alone) -> float:
    """The same with Captum's, which refuses modules without a rule."""
    methods, rules = peers.load("captum.attr"), peers.load("captum.attr._utils.lrp_rules")
    for module in model.modules():
        if not [*module.children()]:
            layer = isinstance(module, peers.LAYERS)
            module.rule = rules.EpsilonRule() if layer else rules.IdentityRule()  # type: ignore[assignment]
    return float(methods.LRP(model).attribute(model.x.clone().requires_grad_(), target=0).sum())


def lxt(model: Alone, patched: dict[str, Any]) -> float:
    """LXT's patched classes, where it has them."""
    family = type(model.model).__module__.rpartition("modeling_")[2]
    if family not in patched:
        patched[family] = peers.lxt_efficient(family, "cp_LRP")
    if patched[family] is None:
        raise NotImplementedError("no patch for this architecture")
    found: float = patched[family](lambda: total(model, divided=True))
    return found


def verdict(explain: Explainer, model: Alone) -> str:
    """What became of the relevance."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        logit = float(model(model.x))
    try:
        found = explain(model)
    except Exception:  # whatever a library raises is its verdict
        return "raised"
    return "sums" if abs(found - logit) <= TOLERANCE * abs(logit) else "other"


def spread(names: list[str], count: int) -> list[str]:
    """So many of the names, evenly over the alphabet."""
    names = sorted(names)
    return [names[i * len(names) // count] for i in range(min(count, len(names)))]


def main() -> None:
    """Print one row for each library."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=60, help="architectures, over all kinds")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=["causal", "sequence", "image"])
    parser.add_argument("--peers", help="folder with other libraries, as pip install --target makes it")
    options = parser.parse_args()
    if options.peers:
        sys.path.append(options.peers)
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    patched: dict[str, Any] = {}
    explainers: dict[str, Explainer] = {
        "ours, cp_lrp": ours, "LXT, cp_LRP": lambda model: lxt(model, patched), "Zennit": zennit, "tdhook": tdhook,
        "Captum": captum, BASE: lambda model: total(model, divided=True),
    }  # fmt: skip
    counts = {name: Counter[str]() for name in explainers}
    left_out = Counter[str]()
    for kind in options.kinds:
        for name in spread(list(KINDS[kind][0]), options.count // len(options.kinds)):
            try:
                model = alone(name, kind)
            except Exception as reason:  # whatever keeps it from being built small, for all libraries alike
                left_out[f"{type(reason).__name__}"] += 1
                continue
            found = {library: verdict(explain, model) for library, explain in explainers.items()}
            if found[BASE] == "raised":
                left_out["no gradient"] += 1
                continue
            print(kind, name, found, file=sys.stderr, flush=True)
            for library, said in found.items():
                counts[library][said] += 1
    ran = sum(counts["ours, cp_lrp"].values())
    rows = [[library, *(count[said] for said in ("sums", "other", "raised"))] for library, count in counts.items()]
    title = f"architectures that each library explains, of {ran} (and {left_out.total()} that cannot be asked)"
    show(title, ["library", "sums to the logit", "another sum", "raised"], rows)


if __name__ == "__main__":
    main()
