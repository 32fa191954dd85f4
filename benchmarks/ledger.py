"""What a ledger costs: time as a multiple of plain gradient x input, forward and backward, all in one run.

    python benchmarks/ledger.py [--repeats 15] [--only digits]

The base freezes the parameters, as a registration does, so both compute the gradient of the input alone. "ledger" is
what happens while relevance flows; "+ table" also makes the entries. On the smallest nets Python's work for each
operation is all that counts. `attribute` has a base of its own: without a ledger.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable

import torch
from llama import llama
from measure import ratios, show, times
from overhead import cnn, mlp, transformer
from torch import Tensor, nn

from lxt_compose import Composite, attribute
from lxt_compose.demo.models import SmallCNN, SmallViT
from lxt_compose.runtime.registration import Registration

LIMIT = 3.0
Call = Callable[[nn.Module, Tensor], Tensor]


def models() -> dict[str, tuple[nn.Module, Tensor, Call]]:
    """Models, inputs, and how they are called."""
    found: dict[str, tuple[nn.Module, Tensor, Call]] = {}
    for kind in (SmallViT, SmallCNN):
        for batch in (1, 64):
            found[f"digits: {kind.__name__}, batch {batch}"] = kind(), torch.rand(batch, 1, 8, 8), nn.Module.__call__
    small = llama(2, 64, 128, 4, 2)
    for batch in (1, 8):
        found[f"llama: 2 layers of width 64, {batch} x 16 tokens"] = small, torch.randn(batch, 16, 64), last_token
    for build in (mlp, cnn, transformer):
        found[f"{build.__name__}: {(build.__doc__ or '').strip()}"] = *build(), nn.Module.__call__
    return found


def last_token(model: nn.Module, x: Tensor) -> Tensor:
    """The logits of the last token for embeddings x."""
    logits: Tensor = model(inputs_embeds=x).logits[:, -1]
    return logits


def explain(model: nn.Module, x: Tensor, call: Call, *, relevance: bool = False) -> Tensor:
    """One logit of each sample, back to the inputs: their relevance."""
    x = x.detach().requires_grad_()
    logit = call(model, x)[:, 0]
    (slot,) = torch.autograd.grad(logit, x, logit.detach() if relevance else torch.ones_like(logit))
    return slot if relevance else x.detach() * slot


def booked(registration: Registration, x: Tensor, call: Call, *, table: bool) -> None:
    """The same with a ledger."""
    with registration.ledger() as books:
        explain(registration.model, x, call, relevance=registration.formulation == "relevance")
    if table:
        books.frozen()


def measure(model: nn.Module, x: Tensor, call: Call, repeats: int) -> list[list[object]]:
    """Rows: the formulation, and the time of each job over that of plain gradient x input."""
    model.eval().requires_grad_(False)
    jobs: dict[str, Callable[[], object]] = {"plain": lambda: explain(model, x, call)}
    for formulation in ("gradient", "relevance"):
        one = Composite(formulation=formulation).register(copy.deepcopy(model))
        relevance = formulation == "relevance"
        jobs[f"{formulation}, rules"] = lambda one=one, r=relevance: explain(one.model, x, call, relevance=r)
        jobs[f"{formulation}, ledger"] = lambda one=one: booked(one, x, call, table=False)
        jobs[f"{formulation}, + table"] = lambda one=one: booked(one, x, call, table=True)
    seconds = times(jobs, repeats, time.process_time)
    found = ratios(seconds, "plain")
    rows: list[list[object]] = []
    for formulation in ("gradient", "relevance"):
        row = [found[f"{formulation}, {job}"] for job in ("rules", "ledger", "+ table")]
        rows.append([formulation, min(seconds["plain"]) * 1e3, *row, "yes" if row[-1] <= LIMIT else "NO"])
    if call is nn.Module.__call__:
        own = {f"{ledger}": lambda ledger=ledger: attribute(model, x, target=0, ledger=ledger) for ledger in (0, 1)}
        rows.append(["attribute", "", 1.0, "", ratios(times(own, repeats, time.process_time), "0")["1"], ""])
    return rows


def main() -> None:
    """Print one table for each model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--only", default="", help="models whose name has this in it")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)  # processor time is counted, so that others on the machine do not matter
    for title, (model, x, call) in models().items():
        if options.only in title:
            rows = measure(model, x, call, options.repeats)
            show(title, ["", "plain, ms (best)", "rules", "ledger", "+ table", f"within {LIMIT:g}"], rows)


if __name__ == "__main__":
    main()
