"""Recurrent nets: does an explanation name the evidence, and does it agree with leaving out?

    python benchmarks/recurrent.py [--samples 200] [--seeds 3] [--task reader recall keywords adding]

Four tasks with known evidence (recurrent_tasks.py), each learned within a minute: a line of digits read by a CNN and a
BiLSTM with CTC; a value behind a marker, named at the end; words for and against; two numbers among twenty, added.
Methods: Arras et al. 2017 and 2019 call ``attnlrp``'s rule at gates LRP-all (a gate gets nothing, the signal all);
``halves`` is LRP-half, which is AttnLRP's rule for products to the letter.

Printed, as ranges over seeds: the evidence (see each task), the linear correlation with leaving out each token or pair
of columns, the symmetric relevance gain, and the sum of |R| over the explained number (median).
"""

import argparse
import copy
import statistics
import time
from dataclasses import replace

import torch
from measure import show
from recurrent_tasks import Task, Written, adding, keywords, reader, recall
from torch import Tensor, nn

from lxt_compose import Uniform, attribute, baselines, evaluate, presets

TASKS = {"reader": reader, "recall": recall, "keywords": keywords, "adding": adding}
METHODS = {
    "gamma_rnn": "gamma_rnn",
    "attnlrp (LRP-all)": "attnlrp",
    "res_lrp": "res_lrp",
    "epsilon_plus": "epsilon_plus",
    "gamma 0.25 everywhere": presets.gamma_vit(0.25, 0.25),
    "halves (LRP-half)": presets.attnlrp({torch.mul: Uniform()}),
    "gradient x input": baselines.gradient_x_input,
    "integrated gradients": lambda *args, **options: baselines.integrated_gradients(*args, steps=2 * STEPS, **options),
    "leave one out": None,
}
HAND_WRITTEN = ("gamma_rnn", "attnlrp (LRP-all)")
STEPS = 10
"""Of flipping, and twice as many of integrated gradients."""


def units(scores: Tensor) -> Tensor:
    """Scores of tokens, or of pairs of columns, [n, units]."""
    return scores if scores.dim() == 2 else scores.sum(1).unflatten(1, (-1, 2)).sum(2)


def scores_of(method: object, task: Task) -> Tensor:
    """What a method says of each unit; for numbers with marks the relevance of both."""
    if method is None:
        found = evaluate.leave_one_out(task.model, task.inputs, target=task.target, batch_size=1000, **task.removing)
        return found.flatten(1) if "patch" in task.removing else found
    options = {"target": task.target, "batch_size": 100}
    if callable(method):
        return units(method(task.model, task.inputs, **options))
    return units(attribute(task.model, task.inputs, composite=method, **options).scores)


def measured(scores: Tensor, effects: Tensor, task: Task, values: Tensor) -> list[float]:
    """Evidence, correlation, gain and size."""
    grid = scores[:, None] if "patch" in task.removing else scores
    flip = evaluate.flip(
        task.model, task.inputs, grid, target=task.target, batch_size=1000, steps=STEPS, **task.removing
    )
    size = (scores.abs().sum(1) / values.abs()).median()
    agrees = evaluate.correlation(scores, effects, kind="pearson").nanmean()
    return [float(task.evidence(scores).mean()), float(agrees), flip.gain, float(size)]


def explained_numbers(task: Task) -> Tensor:
    """The numbers that are explained, [n]."""
    return attribute(task.model, task.inputs, target=task.target, batch_size=100).output


def spread(values: list[float]) -> str:
    """The median over seeds, and the range; of one seed its number."""
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def by_hand(task: Task) -> Task:
    """The same task with the LSTM written by hand."""
    model = copy.deepcopy(task.model)
    model.rnn = Written(model.rnn)
    return replace(task, model=model.eval())


def rows_of(task: Task, kind: str) -> dict[str, list[float]]:
    """What is printed of each method."""
    effects, values, found = scores_of(None, task), explained_numbers(task), {}
    for method, how in METHODS.items():
        found[method] = measured(effects if how is None else scores_of(how, task), effects, task, values)
    if kind == "LSTM" and "patch" not in task.removing:
        written = by_hand(task)
        for method in HAND_WRITTEN:
            found[f"{method}, by hand"] = measured(scores_of(METHODS[method], written), effects, task, values)
    return found


def main() -> None:
    """Train, explain, print a table for each task and kind of net."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=150)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--task", nargs="+", default=list(TASKS), choices=list(TASKS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.task:
        for kind in ["LSTM"] if name == "reader" else ["LSTM", "GRU"]:
            each: list[dict[str, list[float]]] = []
            for seed in range(options.seeds):
                start = time.process_time()
                task = TASKS[name](getattr(nn, kind), seed, options.samples // (5 if name == "reader" else 1))
                spent = time.process_time() - start
                print(f"{name}, {kind}, seed {seed}: trained in {spent:.0f} s, {task.right:.0%} right", flush=True)
                each.append(rows_of(task, kind))
            rows = [
                [method, *(spread(list(of)) for of in zip(*(found[method] for found in each), strict=True))]
                for method in each[0]
            ]
            head = ["", "evidence", "correlation with leaving out", "gain", "sum |R| / output"]
            show(f"{name}, {kind}: {options.seeds} models", head, rows)


if __name__ == "__main__":
    main()
