"""What relevance costs registered, as one graph and compiled: multiples of the eager gradient of the same model.

    python benchmarks/traced.py [--rows bert "llama 6x64*"] [--presets attnlrp] [--repeats 21] [--no-compile]
                                [--wall] [--threads 1] [--peers DIR]

Each row is one model and one preset, all jobs in turns: medians of the ratios within each round, of the processor time
of one thread unless it is told otherwise, so that others on the machine matter less. "compiled / torch.compile" is the
compiled graph over the gradient of the model that ``torch.compile`` compiled, as users have it; "/ bare graph" over a
graph of that gradient which the same compiler made and which is run without any check of inputs or weights. Memory is
what a call allocates at most at one time, over that of the gradient. LXT's patched Llama and Zennit's composites stand
beside where they can be imported.
"""

from __future__ import annotations

import argparse
import copy
import fnmatch
import sys
import time
from collections.abc import Callable
from typing import Any

import peers
import torch
from llama import llama as llama_of
from measure import peak_memory, ratios, show, times
from overhead import Runner
from rules import vgg
from small_models import Logits, bert, llama
from torch import Tensor, nn
from transformers import ResNetConfig, ResNetForImageClassification, ViTConfig, ViTForImageClassification

from lxt_compose import Composite, Gamma, TraceError, presets
from lxt_compose.tracing import Program

BASE, TARGET = "gradient", 7
USUAL, BARE = "compiled / torch.compile", "/ bare graph"
Made = tuple[nn.Module, Tensor]


class Answer(nn.Module):
    """The logits of an image model of transformers."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """The logits."""
        logits: Tensor = self.model(x).logits
        return logits


def longer(build: Callable[[], Made], batch: int, tokens: int) -> Callable[[], Made]:
    """The same model with more samples and tokens."""

    def made() -> Made:
        model, x = build()
        return model, torch.randn(batch, tokens, x.shape[-1])

    return made


def wide() -> Made:
    """A Llama of 8 layers of width 512."""
    return Logits(llama_of()).eval().requires_grad_(False), torch.randn(1, 16, 512)


def vit() -> Made:
    """A ViT-B/16, one image of 224 x 224."""
    return Answer(ViTForImageClassification(ViTConfig(num_labels=10))).eval(), torch.randn(1, 3, 224, 224)


def resnet() -> Made:
    """A ResNet-50, one image of 224 x 224."""
    return Answer(ResNetForImageClassification(ResNetConfig(num_labels=10))).eval(), torch.rand(1, 3, 224, 224)


SIZES = [(batch, tokens) for batch in (1, 8) for tokens in (16, 256)]
TEXT, IMAGES = ("attnlrp", "cp_lrp", "res_lrp"), ("epsilon_plus", "gamma")
ROWS: dict[str, tuple[Callable[[], Made], tuple[str, ...]]] = {
    "bert 6x64, 16 tokens": (bert, TEXT),
    **{f"llama 6x64, {b} x {t} tokens": (longer(llama, b, t), TEXT) for b, t in SIZES},
    **{f"llama 8x512, {b} x {t} tokens": (longer(wide, b, t), TEXT) for b, t in SIZES},
    "vit-b/16": (vit, (*TEXT, "gamma")),
    "resnet-50": (resnet, IMAGES),
    "vgg": (vgg, IMAGES),
}
PYTHON_BOUND = ("bert 6x64, 16 tokens", "llama 6x64, 1 x 16 tokens")
"""Rows where Python takes longer than the arithmetic."""
BARS = {True: {"eager": 2.0, "traced": 0.8, "compiled": 0.55}, False: {"traced": 1.0}}


def composite_of(preset: str) -> Composite:
    """The composite; gamma is that rule on all layers with weights."""
    return Composite({peers.LAYERS: Gamma()}) if preset == "gamma" else presets.get(preset)


# ---- the jobs --------------------------------------------------------------------------------------------------------


class Explain(Runner):
    """Forward, backward, and gradient x input or the relevance of the input, for one logit."""

    def __call__(self) -> Tensor:
        """The relevance."""
        return relevance(self.model, self.x, self.composite)


def relevance(model: Callable[[Tensor], Any], x: Tensor, composite: Composite | None) -> Tensor:
    """What flows back to the input: relevance, or the gradient times the input."""
    leaf = x.detach().requires_grad_()
    logit = model(leaf)[:, TARGET]
    slots = composite is not None and composite.formulation == "relevance"
    (found,) = torch.autograd.grad(logit, leaf, logit.detach() if slots else torch.ones_like(logit))
    return found if slots else x * found


def jobs_of(model: nn.Module, x: Tensor, preset: str) -> tuple[dict[str, Callable[[], Any]], Any]:
    """The gradient, the registered model and its graph; the graph, or why there is none."""
    composite, registered = composite_of(preset), copy.deepcopy(model)
    composite.register(registered)
    jobs: dict[str, Callable[[], Any]] = {BASE: Explain(model, x, None), "eager": Explain(registered, x, composite)}
    try:
        traced: Any = composite.trace(model, x, target=TARGET)
        jobs["traced"] = lambda: traced(x)
    except TraceError as error:
        traced = str(error)
    return jobs, traced


def compiled_jobs(model: nn.Module, x: Tensor, preset: str, traced: Any) -> tuple[dict[str, Callable[[], Any]], float]:
    """The compiled graph, two compiled gradients, and the seconds that the first one took."""
    other = composite_of(preset).trace(model, x, target=TARGET)
    start = time.perf_counter()
    other.compile()
    other(x)
    seconds = time.perf_counter() - start
    plain = Program(lambda x: [relevance(model, x, None)], [x])
    plain.compile(x)
    usual = torch.compile(copy.deepcopy(model))
    jobs = {"compiled": lambda: other(x), BARE: lambda: plain(x), USUAL: lambda: relevance(usual, x, None)}
    return jobs, seconds


def peer_jobs(name: str, model: nn.Module, x: Tensor, preset: str) -> dict[str, Callable[[], Any]]:
    """The same explanation by other libraries, where they have it."""
    jobs: dict[str, Callable[[], Any]] = {}
    if name.startswith("llama") and preset == "attnlrp":
        patches = peers.lxt_efficient("llama")
        if patches is not None:
            jobs["LXT"] = lambda: patches(Explain(model, x, None))
    if name in ("vgg", "resnet-50"):
        install = peers.zennit_composite("EpsilonPlus") if preset == "epsilon_plus" else peers.zennit("Gamma")
        if install is not None:
            jobs["Zennit"] = Explain(install(copy.deepcopy(model)), x, None)
    return jobs


# ---- tables ----------------------------------------------------------------------------------------------------------

HEADERS = ["model", "preset", "gradient, ms", "eager", "traced", "compiled", USUAL, BARE, "memory eager",
           "memory traced", "compile, s", "LXT", "Zennit", "above its bar"]  # fmt: skip


def row_of(name: str, preset: str, options: argparse.Namespace) -> list[object]:
    """Measure one model under one preset."""
    torch.manual_seed(0)
    model, x = ROWS[name][0]()
    model.eval().requires_grad_(False)
    jobs, traced = jobs_of(model, x, preset)
    compile_seconds: float | None = None
    if not isinstance(traced, str) and not options.no_compile:
        more, compile_seconds = compiled_jobs(model, x, preset, traced)
        jobs |= more
    jobs |= peer_jobs(name, model, x, preset)
    seconds = times(jobs, options.repeats, time.perf_counter if options.wall else time.process_time)
    found = ratios(seconds, BASE)
    memory = {job: peak_memory(jobs[job]) for job in (BASE, "eager", "traced") if job in jobs}
    over = {job: bytes_ / memory[BASE] for job, bytes_ in memory.items()}
    compiled = {base: ratios(seconds, base)["compiled"] if base in jobs else None for base in (USUAL, BARE)}
    bars = {**BARS[name in PYTHON_BOUND], USUAL: 1.15, BARE: 1.15, "memory traced": 1.0}
    values = {**found, **compiled, "memory traced": over.get("traced")}
    missed = [f"{job} {bars[job]}" for job in bars if (values.get(job) or 0) > bars[job]]
    if isinstance(traced, str):
        print(f"{name}, {preset}: {traced}", file=sys.stderr)
    ours = [found.get(job) for job in ("eager", "traced", "compiled")]
    return [name, preset, min(seconds[BASE]) * 1e3, *ours, *compiled.values(), over.get("eager"), over.get("traced"),
            compile_seconds, found.get("LXT"), found.get("Zennit"), ", ".join(missed)]  # fmt: skip


def main() -> None:
    """Print one line for each model and preset, as they are measured, and the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", nargs="+", default=["*"], help=f"names or patterns of {', '.join(ROWS)}")
    parser.add_argument("--presets", nargs="+", help="by default those that are meant for the model")
    parser.add_argument("--repeats", type=int, default=21)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-compile", action="store_true", help="leave inductor out")
    parser.add_argument("--wall", action="store_true", help="wall clock time instead of processor time")
    parser.add_argument("--peers", help="folder with other libraries, as pip install --target makes it")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.peers:
        sys.path.append(options.peers)
    rows = []
    for name, (_, usual) in ROWS.items():
        if any(fnmatch.fnmatch(name, pattern) for pattern in options.rows):
            for preset in options.presets or usual:
                rows.append(row_of(name, preset, options))
                print(*(f"{v:.2f}" if isinstance(v, float) else v for v in rows[-1]), sep=" | ", flush=True)
    show("multiples of the eager gradient x input", HEADERS, rows)


if __name__ == "__main__":
    main()
