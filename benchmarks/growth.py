"""How cost grows with layers, width and length: slopes of time and peak memory on log-log axes, for a Llama.

    python benchmarks/growth.py [--repeats 5] [--peers DIR]

A slope of 1 is proportional growth. One of layers, width and tokens grows while the others stay; the jobs of a size run
in turns, and count the processor time of one thread. All methods explain one logit at the last token.
"""

import argparse
import math
import sys
import time
from statistics import linear_regression, median

import peers
import torch
from measure import Job, peak_memory, show, times
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from lxt_compose import presets

BASE = "gradient x input"
STILL = {"layers": 2, "width": 128, "tokens": 128}
GROWING = {"layers": (2, 4, 8, 16), "width": (128, 256, 512, 1024), "tokens": (64, 128, 256, 512, 1024)}


def llama(layers: int, width: int, tokens: int) -> tuple[nn.Module, torch.Tensor]:
    """A Llama with random weights, and embeddings for it."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=max(width // 64, 1),
        vocab_size=100,
    )
    return LlamaForCausalLM(config).eval().requires_grad_(False), torch.randn(1, tokens, width)


def jobs_for(layers: int, width: int, tokens: int) -> dict[str, Job]:
    """What explains a model of one size, by name."""
    model, x = llama(layers, width, tokens)

    def explain() -> torch.Tensor:
        leaf = x.clone().requires_grad_()
        model(inputs_embeds=leaf, logits_to_keep=1).logits[0, -1, 7].backward()
        return leaf * leaf.grad

    def registered() -> torch.Tensor:
        with presets.attnlrp().register(model):
            return explain()

    jobs: dict[str, Job] = {BASE: explain, "attnlrp": registered}
    patched = peers.lxt_efficient("llama")
    if patched is not None:
        jobs["LXT"] = lambda: patched(explain)
    return jobs


def main() -> None:
    """Print the slopes, and what each costs at the smallest and the largest size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--peers", help="folder with other libraries, as pip install --target makes it")
    options = parser.parse_args()
    if options.peers:
        sys.path.append(options.peers)
    torch.set_num_threads(1)
    rows = []
    for what, sizes in GROWING.items():
        spent: dict[str, list[float]] = {}
        memory: dict[str, list[float]] = {}
        for size in sizes:
            jobs = jobs_for(**{**STILL, what: size})
            for name, seconds in times(jobs, options.repeats, time.process_time).items():
                spent.setdefault(name, []).append(median(seconds))
                memory.setdefault(name, []).append(peak_memory(jobs[name]))
        axis = [math.log(size) for size in sizes]
        for name in spent:
            slopes = [linear_regression(axis, [math.log(v) for v in values[name]]).slope for values in (spent, memory)]
            first, last = (
                f"{spent[name][i] / spent[BASE][i]:.2f} / {memory[name][i] / memory[BASE][i]:.2f}" for i in (0, -1)
            )
            rows.append([f"{what} {sizes[0]} to {sizes[-1]}", name, *(f"{slope:.2f}" for slope in slopes), first, last])
    title = f"growth: slopes on log-log axes; at the smallest and largest size, multiples of {BASE}: time / peak memory"
    show(title, ["what grows", "method", "slope of time", "slope of memory", "smallest", "largest"], rows)


if __name__ == "__main__":
    main()
