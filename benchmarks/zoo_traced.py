"""Architectures as graphs: is what a graph gives the eager relevance bit for bit, under each preset and for any shape?

    python benchmarks/zoo_traced.py                                  # the architectures of the tests, and of MORE
    python benchmarks/zoo_traced.py llama vit --presets res_lrp gamma
    python benchmarks/zoo_traced.py --dynamic                        # one graph for other batches and lengths
    python benchmarks/zoo_traced.py --kinds causal sequence image --presets attnlrp --keep verdicts.txt

Each is small, with random weights, in float32. *equal*: relevance of every input and the output of
`composite.trace(...)` are those of `attribute(...)`, bit for bit; otherwise the largest difference, as a part of the
largest relevance, or why there is no graph. Where the graph is written down as compilers see the model, the eager
relevance is that of the model in the same state, which may take other kernels than without. With `--dynamic` the graph
is written down for one example and called with another batch and, of text, another length: *one graph*, or *graphs by
shape* and why.

With `--kinds` it takes every architecture of transformers with one of these heads, made small as `zoo.py` does. That
takes hours: `--keep` writes each verdict to a file, and what is in the file is not run again.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import signal
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
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
from lxt_compose.torch_internals.traces import as_compilers_see

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
    model, inputs = zoo.build(architecture, kind, experts="batched_mm")
    given = zoo.with_mask(model.float(), in_single(inputs))
    return model, {key: x.repeat_interleave(batch, 0) for key, x in given.items()}


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
    try:
        model, inputs = build(name, 2 if dynamic else 1)
    except Exception as error:
        raise NotBuiltError(said(error)) from error
    model.eval().requires_grad_(False)
    composite = composite_of(preset)
    graph = composite.trace(model, inputs, target=first_logit, dynamic=dynamic)
    asked = of_other_shape(name) if dynamic else inputs
    compiling = any("as compilers see" in note for note in graph.notes)
    with as_compilers_see() if compiling else contextlib.nullcontext():
        result = attribute(model, asked, target=first_logit, composite=composite)
    found = graph(asked)
    apart = difference(found, result)
    equal = ("equal" if apart == 0 else f"{apart:.0e} apart") + " (as compilers see it)" * compiling
    several = next((note for note in graph.notes if "each shape" in note or "of their own" in note), "")
    return f"{equal}, graphs by shape: {several}" if several else f"{equal}, one graph" if dynamic else equal


class NotBuiltError(Exception):
    """There is no small model of this architecture."""


class TooSlowError(BaseException):
    """The time is up; nothing that catches exceptions catches this."""


def said(error: BaseException) -> str:
    """What an error says, in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


@contextlib.contextmanager
def limited(seconds: int) -> Iterator[None]:
    """Raise after some time, and again and again until this is left."""

    def too_slow(*_: Any) -> None:
        raise TooSlowError(f"took more than {seconds} s")

    signal.signal(signal.SIGALRM, too_slow)
    signal.setitimer(signal.ITIMER_REAL, seconds, 10)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def tried(name: str, preset: str, *, dynamic: bool, seconds: int = SECONDS) -> str:
    """The verdict, or why there is none."""
    try:
        with limited(seconds), contextlib.redirect_stdout(io.StringIO()):
            return verdict(name, preset, dynamic=dynamic)
    except NotBuiltError as error:
        return f"not built: {error}"
    except (Exception, TooSlowError) as error:  # whatever an architecture raises is its verdict
        return said(error)


class Verdicts:
    """Verdicts in a file, a line for each; one that was begun and has no verdict ended the process."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path is not None and path.exists() else []
        self._known = {(name, preset): found for name, preset, found in (line.split(" | ", 2) for line in lines)}

    def get(self, name: str, preset: str, make: Callable[[], str]) -> str:
        """The verdict that is known, or that is made now."""
        if (name, preset) not in self._known:
            self._write(name, preset, "ended the process")
            self._write(name, preset, make())
        return self._known[name, preset]

    def _write(self, name: str, preset: str, found: str) -> None:
        self._known[name, preset] = found
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(f"{name} | {preset} | {found}\n")


def kind_of(found: str) -> str:
    """What a verdict is counted as."""
    return found if found.startswith("equal") and ":" not in found else "not built" if "not built" in found else "other"


def main() -> None:
    """Print a line for each architecture as it is done, and how many there are of each verdict."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=[*architectures.ZOO, *MORE])
    parser.add_argument("--presets", nargs="+", default=PRESETS)
    parser.add_argument("--dynamic", action="store_true", help="other shapes than that of the example")
    parser.add_argument("--kinds", nargs="+", choices=zoo.KINDS, help="all architectures with one of these heads")
    parser.add_argument("--keep", type=Path, help="a file with the verdicts so far, which are not made again")
    parser.add_argument("--seconds", type=int, default=SECONDS, help="the most that one of them may take")
    options = parser.parse_args()
    if options.kinds:
        options.names = [f"{kind}:{name}" for kind in options.kinds for name in zoo.KINDS[kind][0]]
    verdicts = Verdicts(options.keep)
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    counts = {preset: Counter[str]() for preset in options.presets}
    for name in options.names:
        for preset in options.presets:
            ask = partial(tried, name, preset, dynamic=options.dynamic, seconds=options.seconds)
            found = verdicts.get(name, preset, ask)
            counts[preset][kind_of(found)] += 1
            print(f"{name} | {preset} | {found}", flush=True)
    columns = sorted({found for count in counts.values() for found in count})
    show("summary", ["preset", *columns], [[p, *(count[found] for found in columns)] for p, count in counts.items()])


if __name__ == "__main__":
    main()
