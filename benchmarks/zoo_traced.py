"""Architectures as graphs: is what a graph gives the eager relevance bit for bit, under each preset and for any shape?

    python benchmarks/zoo_traced.py                                  # the architectures of the tests, and of MORE
    python benchmarks/zoo_traced.py llama vit --presets res_lrp gamma
    python benchmarks/zoo_traced.py --dynamic                        # one graph for other batches and lengths

Each is small, with random weights, in float32. *equal*: relevance of every input and the output of
`composite.trace(...)` are those of `attribute(...)`, bit for bit; otherwise the largest difference, as a part of the
largest relevance, or why there is no graph. With `--dynamic` the graph is written down for one example and called with
another batch and, of text, another length: *one graph*, or *graphs by shape* and why.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import signal
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from measure import show
from peers import LAYERS
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "helpers"))

import architectures
import zoo

from lxt_compose import Composite, Gamma, attribute, presets

MORE = (
    "causal:qwen3_next causal:granite causal:cohere causal:stablelm causal:mamba2 causal:olmo causal:gptj causal:rwkv "
    "sequence:electra sequence:xlnet sequence:mpnet image:resnet image:mobilenet_v2 image:beit image:levit "
    "ctc:wav2vec2 seq2seq:pegasus"
).split()
"""Architectures beside those of the tests: others of the kinds that `zoo.py` knows."""
PRESETS = ("attnlrp", "cp_lrp", "res_lrp", "epsilon_plus", "gamma")
SECONDS = 240


def composite_of(preset: str) -> Composite:
    """The composite; gamma is that rule on all layers with weights."""
    return Composite({LAYERS: Gamma()}) if preset == "gamma" else presets.get(preset)


def first_logit(output: Any) -> Tensor:
    """One number for each sample: the logit of class 1, of text that of the last token."""
    if "logits" not in output:
        found: Tensor = output.logits_per_text.diagonal() if "logits_per_text" in output else zoo.logit_of(output)[None]
        return found
    logits = output.logits
    return logits[:, -1, 1] if logits.dim() == 3 else logits[:, 1]


def build(name: str, batch: int = 1) -> tuple[nn.Module, dict[str, Tensor]]:
    """A small model, and inputs for it."""
    if name in architectures.ZOO:
        known = architectures.ZOO[name]
        attention = None if not known.attends else "eager" if known.eager_only else "sdpa"
        model = architectures.build(known, attention=attention, experts="batched_mm").float()  # no loops over experts
        return model, in_single(architectures.inputs_of(known, model, batch=batch))
    kind, _, architecture = name.partition(":")
    model, inputs = zoo.build(architecture, kind)
    return model.float(), {key: x.repeat_interleave(batch, 0) for key, x in in_single(inputs).items()}


def in_single(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inputs with floats in float32."""
    return {name: x.float() if x.is_floating_point() else x for name, x in inputs.items()}


def of_other_shape(name: str) -> dict[str, Tensor]:
    """Inputs of three samples, text two tokens shorter."""
    _, inputs = build(name, 3)
    text = ("input_ids", "attention_mask", "token_type_ids")
    return {key: x[:, :-2] if key in text and x.dim() == 2 and x.shape[1] > 3 else x for key, x in inputs.items()}


def difference(found: Any, result: Any) -> float:
    """The largest difference to the eager relevance and output, in parts of the largest of them; 0 if bit for bit."""
    traced = found.relevance if isinstance(found.relevance, dict) else {"": found.relevance}
    eager = list(result.relevances.values()) if len(result.relevances) == len(traced) else [result.relevance]
    pairs = [*zip(traced.values(), eager, strict=True), (found.output, result.output)]
    if all(torch.equal(a, b) for a, b in pairs):
        return 0.0
    return max(float((a - b).abs().max() / b.abs().max().clamp(min=1e-30)) for a, b in pairs)


def verdict(name: str, preset: str, *, dynamic: bool) -> str:
    """What came of one architecture under one preset."""
    model, inputs = build(name, 2 if dynamic else 1)
    model.eval().requires_grad_(False)
    composite = composite_of(preset)
    graph = composite.trace(model, inputs, target=first_logit, dynamic=dynamic)
    asked = of_other_shape(name) if dynamic else inputs
    result = attribute(model, asked, target=first_logit, composite=composite)
    found = graph(asked)
    apart = difference(found, result)
    equal = "equal" if apart == 0 else f"{apart:.0e} apart"
    several = next((note for note in graph.notes if "each shape" in note or "of their own" in note), "")
    return f"{equal}, graphs by shape: {several}" if several else f"{equal}, one graph" if dynamic else equal


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """Raise after some minutes."""

    def too_slow(*_: Any) -> None:
        raise TimeoutError(f"took more than {SECONDS} s")

    signal.signal(signal.SIGALRM, too_slow)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)


def tried(name: str, preset: str, *, dynamic: bool) -> str:
    """The verdict, or why there is none."""
    try:
        with limited(), contextlib.redirect_stdout(io.StringIO()):
            return verdict(name, preset, dynamic=dynamic)
    except Exception as error:  # whatever an architecture raises is its verdict
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def main() -> None:
    """Print a line for each architecture as it is done, and how many there are of each verdict."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=[*architectures.ZOO, *MORE])
    parser.add_argument("--presets", nargs="+", default=PRESETS)
    parser.add_argument("--dynamic", action="store_true", help="other shapes than that of the example")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    counts = {preset: Counter[str]() for preset in options.presets}
    for name in options.names:
        for preset in options.presets:
            said = tried(name, preset, dynamic=options.dynamic)
            counts[preset][said if said.startswith("equal") and ":" not in said else "other"] += 1
            print(f"{name} | {preset} | {said}", flush=True)
    columns = sorted({said for count in counts.values() for said in count})
    show("summary", ["preset", *columns], [[p, *(count[said] for said in columns)] for p, count in counts.items()])


if __name__ == "__main__":
    main()
