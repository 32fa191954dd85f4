"""Whole answers: how much faster than token by token, in how much memory, and whether the right source comes first.

    python benchmarks/generation.py [--only speed memory sources] [--prompt 512] [--targets 256] [--sample 8]

Speed: `--targets` tokens of one sequence of `--prompt` tokens, Llama 8 x 512, against attribute() of each token by
itself on the tokens before it, of which `--sample` are run and counted up; and against the plain eager gradient x
input of each, as other libraries do it, with the gradient of the embeddings alone. Processor time on a CPU, of one
thread. `--count` runs both again and counts the multiply-adds of their matrix products (without attention's own).
Memory: the peak of a pass, by the number of rows at a time.
Sources: three tasks whose sources are known, each learned within minutes by a small Llama: copying, looking up the
value of a key, and a chain of three look-ups whose steps are written down. Counted is how often the right source is
first: of the prompt's tokens, for answers that are right. For the chain: how often the three facts that lead to the
last step are the first three.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from llama import llama
from measure import peak_memory, show
from needle import wilson
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from lxt_compose import attribute, attribute_generation, baselines, evaluate

LIMIT = 10
SYMBOLS, FACTS, LENGTH = 12, 8, 12
ASK = SYMBOLS + SYMBOLS * SYMBOLS
Task = Callable[[int, torch.Generator], tuple[Tensor, Tensor]]


# ---- speed and memory ------------------------------------------------------------------------------------------------


def clock() -> float:
    """Processor time; on a GPU the time of the clock, when all is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def timed(job: Callable[[], object]) -> float:
    """Seconds of a job."""
    start = clock()
    job()
    return clock() - start


def plain(model: nn.Module, ids: Tensor, place: int) -> Tensor:
    """Gradient x input of one token, eager."""
    x = model.get_input_embeddings()(ids[:, :place]).detach().requires_grad_()
    logits = model(inputs_embeds=x, logits_to_keep=1).logits
    (grad,) = torch.autograd.grad(logits[0, -1, ids[0, place]], x)
    return (x.detach() * grad).sum(-1).cpu()


def products(job: Callable[[], object]) -> float:
    """The multiply-adds of a job's matrix products."""
    with FlopCounterMode(display=False) as counter:
        job()
    return counter.get_total_flops() / 2


def compared(model: nn.Module, prompt: int, targets: int, sample: int, count: bool) -> dict[str, object]:
    """Seconds one by one and together, how the latter ran, and the multiply-adds of both."""
    device, before = next(model.parameters()).device, prompt - targets
    ids = torch.randint(4, 1000, (1, prompt), generator=torch.Generator().manual_seed(0)).to(device)
    places = torch.linspace(before, prompt - 1, sample).long().tolist()

    def whole() -> str:
        return attribute_generation(model, ids[:, :before], ids[:, before:])[0].ran

    def one_by_one(explain: Callable[[int], object]) -> float:
        return sum(timed(lambda p=p: explain(p)) for p in places) * targets / sample

    def single(place: int) -> object:
        return attribute(model, ids[:, :place], target=int(ids[0, place]))

    single(before)
    plain(model, ids, before)
    attribute_generation(model, ids[:, :before], ids[:, before : before + 2])
    ran: list[str] = []
    found: dict[str, object] = {
        "one by one, s": one_by_one(single),
        "gradient x input one by one, s": one_by_one(lambda p: plain(model, ids, p)),
        "together, s": timed(lambda: ran.append(whole())),
    }
    found["times faster"] = found["one by one, s"] / found["together, s"]
    found["ran"] = ran[0]
    if count:
        alone = sum(products(lambda p=p: single(p)) for p in places) * targets / sample
        together = products(whole)
        found |= {"1e12 multiply-adds one by one": alone / 1e12, "together": together / 1e12, "ratio": alone / together}
    return found


def _written(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def speed(prompt: int, targets: int, sample: int, shapes: list[tuple[str, nn.Module]], count: bool) -> None:
    """All targets in one call against each by itself."""
    rows = {name: compared(model, prompt, targets, sample, count) for name, model in shapes}
    title = f"{targets} targets in a sequence of {prompt} tokens, fp32; one by one from {sample} of them"
    names = list(next(iter(rows.values())))
    show(title, ["", *rows], [[name, *(_written(row[name]) for row in rows.values())] for name in names])
    told = (f"{name} {'yes' if row['times faster'] >= LIMIT else 'NO'}" for name, row in rows.items())
    print(f"at least {LIMIT} times faster: {', '.join(told)}")


def memory(prompt: int, targets: int, model: nn.Module) -> None:
    """Peak memory of a call by the number of rows at a time, beside what the estimate allows for."""
    device = next(model.parameters()).device
    ids = torch.randint(4, 1000, (1, prompt), generator=torch.Generator().manual_seed(0)).to(device)
    before, rows = prompt - targets, []
    one = 6 * (prompt - 1) * 1408 * 4 / 2**20
    for chunk in (1, 4, 16):
        few = max(2, chunk)  # one full chunk is enough to reach the peak
        answer = ids[:, before : before + few]
        peak = peak_memory(lambda c=chunk, a=answer: attribute_generation(model, ids[:, :before], a, chunk_size=c))
        rows.append([chunk, peak / 2**20, chunk * one])
    show("peak memory by rows at a time, MiB", ["rows", "peak", "estimate for the cotangents"], rows)


# ---- known sources ---------------------------------------------------------------------------------------------------


def copying(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Symbols, the token that asks, and the same symbols again; the source of each is its first place."""
    symbols = torch.randint(0, SYMBOLS, (count, LENGTH), generator=generator)
    ask = torch.full((count, 1), ASK)
    return torch.cat([symbols, ask, symbols], 1), torch.arange(LENGTH).repeat(count, 1)


def _facts(keys: Tensor, values: Tensor) -> Tensor:
    return SYMBOLS + keys * SYMBOLS + values


def look_up(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Facts (a key and a value in one token), a key, its value; the source is the fact of that key."""
    keys = torch.rand(count, SYMBOLS, generator=generator).argsort(1)[:, :FACTS]
    values = torch.randint(0, SYMBOLS, (count, FACTS), generator=generator)
    asked = torch.randint(0, FACTS, (count, 1), generator=generator)
    whole = [_facts(keys, values), torch.full((count, 1), ASK), keys.gather(1, asked), values.gather(1, asked)]
    return torch.cat(whole, 1), asked


def chain(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Facts a -> b, a start, and three steps from it; the sources are the facts of the three steps."""
    path = torch.rand(count, SYMBOLS, generator=generator).argsort(1)
    keys, values = path[:, :FACTS], path[:, 1 : FACTS + 1].clone()
    # Three steps along a path; the other facts lead anywhere.
    values[:, 3:] = torch.randint(0, SYMBOLS, (count, FACTS - 3), generator=generator)
    order = torch.rand(count, FACTS, generator=generator).argsort(1)
    places = order.argsort(1)[:, :3]
    facts = _facts(keys, values).gather(1, order)
    return torch.cat([facts, torch.full((count, 1), ASK), path[:, :4]], 1), places


TASKS: dict[str, tuple[Task, int, int]] = {
    "copying": (copying, LENGTH, 1000), "look-up": (look_up, 1, 1000), "chain of three": (chain, 3, 1000)
}  # fmt: skip


def train(task: Task, answers: int, steps: int, seed: int) -> LlamaForCausalLM:
    """A small Llama that gives the last `answers` tokens right."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        num_hidden_layers=3, hidden_size=64, intermediate_size=128, num_attention_heads=4, num_key_value_heads=4,
        vocab_size=ASK + 1, use_cache=False, attn_implementation="eager",
    )  # fmt: skip
    model, generator = LlamaForCausalLM(config), torch.Generator().manual_seed(1000 + seed)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps, pct_start=0.2)
    for _ in range(steps):
        ids, _ = task(64, generator)
        logits = model(input_ids=ids[:, :-1]).logits[:, -answers:]
        loss = F.cross_entropy(logits.flatten(0, 1), ids[:, -answers:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def alone(method: Callable[[nn.Module, dict[str, Tensor], Tensor], Tensor]) -> Callable[..., Tensor]:
    """A method that explains the next token, for each token of the answer: [samples, answer, prompt]."""

    def run(model: nn.Module, ids: Tensor, answers: int) -> Tensor:
        before = ids.shape[1] - answers
        given = [ids[:, : before + place] for place in range(answers)]
        rows = [method(model, {"input_ids": x}, ids[:, x.shape[1]])[:, :before] for x in given]
        return torch.stack(rows, 1)

    return run


def ours(handed: bool) -> Callable[..., Tensor]:
    """Relevance of the prompt for each token of the answer, with or without handing on."""

    def run(model: nn.Module, ids: Tensor, answers: int) -> Tensor:
        before = ids.shape[1] - answers
        found = attribute_generation(model, ids[:, :before], ids[:, before:])
        return torch.stack([(one.handed_on() if handed else one).relevance[:, :before] for one in found])

    return run


METHODS: dict[str, Callable[..., Tensor]] = {
    "attnlrp, through the answer": ours(handed=True),
    "attnlrp": ours(handed=False),
    "gradient x input": alone(lambda m, x, t: baselines.gradient_x_input(m, x, target=t)),
    "integrated gradients": alone(lambda m, x, t: baselines.integrated_gradients(m, x, target=t)),
    "attention rollout": alone(lambda m, x, t: baselines.attention_rollout(m, x, read="last")),
    "leave one out": alone(lambda m, x, t: evaluate.leave_one_out(m, x, target=t, baseline="zero")),
}


def sources(samples: int, seed: int, names: list[str]) -> None:
    """How often the right source is first, by task and method."""
    rows: dict[str, list[object]] = {name: [name] for name in METHODS}
    heads = [""]
    for name in names:
        task, answers, steps = TASKS[name]
        start = time.process_time()
        model = train(task, answers, steps, seed)
        spent = time.process_time() - start
        ids, places = task(samples, torch.Generator().manual_seed(7 + seed))
        with torch.no_grad():
            right = (model(input_ids=ids[:, :-1]).logits[:, -answers:].argmax(-1) == ids[:, -answers:]).all(1)
        share = float(right.double().mean())
        print(f"{name}: trained in {spent:.0f} s of processor time, {share:.1%} of answers right", flush=True)
        ids, places = ids[right], places[right]
        heads += [name] if name != "chain of three" else ["step by step", "all three facts first"]
        for method, explain in METHODS.items():
            scores = explain(model, ids, answers)
            first = scores.argmax(-1) == places
            rows[method].append(_rate(int(first.sum()), first.numel()))
            if name == "chain of three":
                facts = scores[:, -1, :FACTS].topk(3).indices.sort(1).values == places.sort(1).values
                rows[method].append(_rate(int(facts.all(1).sum()), len(facts)))
    title = f"how often the right source is first among the prompt's tokens ({samples} samples each)"
    show(title, heads, rows.values())


def _rate(hits: int, count: int) -> str:
    low, high = wilson(hits, count)
    return f"{hits / count:.1%} ({low:.0%} - {high:.0%})"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = ["speed", "memory", "sources"]
    parser.add_argument("--only", nargs="+", choices=parts, default=parts)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--targets", type=int, default=256)
    parser.add_argument("--sample", type=int, default=8)
    parser.add_argument("--count", action="store_true")
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if "speed" in options.only:
        shapes = [("Llama 8 x 512", llama().to(device)), ("Llama 8 x 64", llama(8, 64, 176, 4, 2).to(device))]
        speed(options.prompt, options.targets, options.sample, shapes, options.count)
    if "memory" in options.only:
        memory(options.prompt, options.targets, llama().to(device))
    if "sources" in options.only:
        sources(options.samples, options.seed, options.tasks)


if __name__ == "__main__":
    main()
