"""AttnLRP on Llama against plain gradient x input: time, peak memory, cost per call, half precision, checkpointing.

    python benchmarks/llama.py [--repeats 15] [--layers 12 24 48] [--only time overhead half memory]

The base freezes the parameters, as a registration does, so both compute the gradient of the embeddings alone. Where
there is a GPU, a model in the shape of Llama-3-8B with random weights is measured too (bf16, 2048 tokens; left out by
--no-gpu).
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable

import torch
from measure import peak_memory, ratios, show, times
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig

from lxt_compose import Composite, presets

LIMIT_TIME, LIMIT_MEMORY = 1.06, 1.05


def llama(layers: int = 8, width: int = 512, inner: int = 1408, heads: int = 8, groups: int = 4) -> nn.Module:
    """A Llama with random weights and frozen parameters, in eval mode."""
    settings = LlamaConfig(
        num_hidden_layers=layers, hidden_size=width, intermediate_size=inner, num_attention_heads=heads,
        num_key_value_heads=groups, vocab_size=1024, use_cache=False,
    )  # fmt: skip
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(settings).eval().requires_grad_(False)


def embeddings(model: nn.Module, batch: int, tokens: int) -> Tensor:
    """Random embeddings in the model's dtype and on its device."""
    weight = next(model.parameters())
    return torch.randn(batch, tokens, model.config.hidden_size, dtype=weight.dtype, device=weight.device)


def explain(model: nn.Module, x: Tensor) -> Tensor:
    """One logit of the last token, back to the embeddings: x * gradient, whatever rules the model is under."""
    x = x.detach().requires_grad_()
    model(inputs_embeds=x, logits_to_keep=1).logits[:, -1, 7].sum().backward()
    return x.detach() * x.grad


def under(composite: Composite, model: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    """The same under a composite, which is put on and taken off each time."""

    def job() -> Tensor:
        with composite.register(model):
            return explain(model, x)

    return job


def compare_time(model: nn.Module, x: Tensor, repeats: int, title: str) -> None:
    """Time and peak memory of the presets, as multiples of plain gradient x input."""
    jobs = {"gradient x input": lambda: explain(model, x)}
    jobs |= {name: under(presets.get(name), model, x) for name in presets.TRANSFORMERS}
    seconds = times(jobs, repeats)
    found = ratios(seconds, "gradient x input")
    memory = {name: peak_memory(job) for name, job in jobs.items()}
    base = memory["gradient x input"]
    rows = [[name, min(seconds[name]) * 1e3, found[name], memory[name] / 2**20, memory[name] / base] for name in jobs]
    show(title, ["", "ms (best)", "time", "MiB", "memory"], rows)
    kept = found["attnlrp"] <= LIMIT_TIME and memory["attnlrp"] <= LIMIT_MEMORY * base
    print(f"attnlrp within {LIMIT_TIME} of the time and {LIMIT_MEMORY} of the memory: {'yes' if kept else 'NO'}\n")


def overhead(repeats: int) -> None:
    """What an explanation of a model with almost no arithmetic costs more, by its number of layers."""
    rows = []
    for layers in (1, 2, 4, 8, 16, 32):
        model = llama(layers, 16, 16, 2, 1)
        x = embeddings(model, 1, 2)
        composite = presets.attnlrp()
        with composite.register(model) as registration:
            explain(model, x)
        calls = sum(row.calls for row in registration.report().rows)

        def registered(model: nn.Module = model, x: Tensor = x, composite: Composite = composite) -> Tensor:
            with composite.register(model):
                return explain(model, x)

        plain = microseconds(lambda model=model, x=x: explain(model, x), repeats)
        whole = microseconds(registered, repeats)
        alone = microseconds(lambda model=model, composite=composite: composite.register(model).remove(), repeats)
        rows.append([layers, calls, plain, whole - plain - alone, (whole - plain - alone) / calls, alone])
    show("per-call overhead, in microseconds of processor time (2 tokens of width 16)",
         ["layers", "calls", "plain", "overhead", "a call", "register and remove"], rows)  # fmt: skip


def microseconds(job: Callable[[], object], repeats: int) -> float:
    """The least processor time of a job: what others do on the machine does not count."""
    found = []
    for _ in range(repeats + 1):
        start = time.process_time()
        job()
        found.append(time.process_time() - start)
    return min(found) * 1e6


def half_precision() -> None:
    """Rank correlation of the relevance of tokens in bf16 and fp16 with that in fp32."""
    model = llama()
    x = embeddings(model, 1, 256)
    rows = []
    exact = under(presets.attnlrp(), model, x)().sum(-1).flatten()
    for dtype in (torch.bfloat16, torch.float16):
        lower = llama().to(dtype)
        found = under(presets.attnlrp(), lower, x.to(dtype))().float().sum(-1).flatten()
        rows.append([str(dtype), spearman(found, exact), bool(found.isfinite().all())])
    show("AttnLRP in half precision: relevance of 256 tokens against fp32", ["dtype", "Spearman", "finite"], rows)


def spearman(a: Tensor, b: Tensor) -> float:
    """The correlation of ranks."""
    ranks = torch.stack([value.argsort().argsort().double() for value in (a, b)])
    return float(torch.corrcoef(ranks)[0, 1])


def checkpointing(layers: list[int]) -> None:
    """Peak memory of AttnLRP by the number of layers, without and with both variants of gradient checkpointing."""
    rows = []
    for count in layers:
        found: list[object] = [count]
        for reentrant in (None, False, True):
            model = llama(count, 128, 448, 4, 1)
            x = embeddings(model, 1, 128)
            expected = under(presets.attnlrp(), model, x)()
            if reentrant is not None:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", FutureWarning)  # the method has a new name in transformers 5
                    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
                model.train()  # transformers checkpoints in train mode only; this configuration has no dropout
            job = under(presets.attnlrp(), model, x)
            assert torch.equal(job(), expected)
            found.append(peak_memory(job) / 2**20)
        rows.append(found)
    show("peak memory of AttnLRP in MiB, by layers (width 128, 128 tokens); relevance is the same, bit by bit",
         ["layers", "no checkpoints", "non-reentrant", "reentrant"], rows)  # fmt: skip
    first, last = rows[0], rows[-1]
    root = (last[0] / first[0]) ** 0.5
    growth = ", ".join(f"{last[i] / first[i]:.2f}" for i in (1, 2, 3))
    print(f"growth from {first[0]} to {last[0]} layers: {growth}; the square root would be {root:.2f}\n")


def on_gpu(repeats: int) -> None:
    """The shape of Llama-3-8B in bf16 with 2048 tokens."""
    with torch.device("cuda"):
        torch.set_default_dtype(torch.bfloat16)
        model = llama(32, 4096, 14336, 32, 8)
        torch.set_default_dtype(torch.float32)
    compare_time(model, embeddings(model, 1, 2048), repeats, "Llama-3-8B, bf16, 2048 tokens, one GPU")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--layers", type=int, nargs="+", default=[12, 24, 48])
    parts = ["time", "overhead", "half", "memory"]
    parser.add_argument("--only", nargs="+", choices=parts, default=parts)
    parser.add_argument("--no-gpu", action="store_true")
    options = parser.parse_args()
    if "time" in options.only:
        model = llama()
        title = f"Llama: 8 layers, width 512, 2 x 256 tokens, {torch.get_num_threads()} thread(s), fp32"
        compare_time(model, embeddings(model, 2, 256), options.repeats, title)
    if "overhead" in options.only:
        overhead(options.repeats)
    if "half" in options.only:
        half_precision()
    if "memory" in options.only:
        checkpointing(options.layers)
    if torch.cuda.is_available() and not options.no_gpu:
        on_gpu(options.repeats)


if __name__ == "__main__":
    main()
