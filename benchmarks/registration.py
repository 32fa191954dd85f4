"""How long registering, removing and reporting take on a large model: 80 layers, Llama's shape, on the meta device.

python benchmarks/registration.py [--layers 80]
"""

import argparse
import statistics
import time

import torch
from measure import show
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig

from lxt_compose import Composite, Epsilon, Identity


def median_seconds(job, repeats: int = 7) -> float:
    """The median time of a job."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        job()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=80)
    config = LlamaConfig(num_hidden_layers=parser.parse_args().layers, hidden_size=8192, intermediate_size=28672,
                         num_attention_heads=64, num_key_value_heads=8)  # fmt: skip
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config).eval()
    composite = Composite({nn.Linear: Epsilon(), "model.layers.*.mlp.act_fn": Identity()}, formulation="gradient")
    register = median_seconds(lambda: composite.register(model).remove())
    rows = [["register and remove", register]]
    with Composite(formulation="gradient").register(model) as registration:
        x = torch.empty(1, 16, config.hidden_size, device="meta", requires_grad=True)
        rows.append(["forward pass, registered", median_seconds(lambda: model(inputs_embeds=x), 3)])
        rows.append(["report and its table", median_seconds(lambda: str(registration.report()))])
    table = str(registration.report())
    rows.append(["forward pass, plain", median_seconds(lambda: model(inputs_embeds=x), 3)])
    parameters = sum(p.numel() for p in model.parameters()) / 1e9
    modules, lines = len(list(model.modules())), len(table.splitlines())
    show(f"{modules} modules, {parameters:.0f}e9 parameters, report of {lines} lines", ["", "seconds"], rows)


if __name__ == "__main__":
    main()
