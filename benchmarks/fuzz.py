"""Random models under random composites, held against what must be true of all of them.

    python benchmarks/fuzz.py 2000 [--seed 0] [--oracle spelling] [--steps softmax gate] [--jobs 2]
    python benchmarks/fuzz.py --replay 'PROGRAM' --composite attnlrp

Prints each finding with the smallest program that still shows it, and a table of counts by oracle. The exit status is
the number of models with a finding, at most 100. What each oracle asks is told in ``benchmarks/fuzzing/oracles.py``.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from fuzzing.composites import Choice, choice_of, random_choice
from fuzzing.oracles import Found, examine
from fuzzing.programs import Program, random_program
from fuzzing.sequential import examine_sequential

import lxt_compose


def shortened(program: Program, choice: Choice, finding: tuple[str, str]) -> Program:
    """The program with every line left out that the finding does not need."""
    place, kind = 0, (finding[0], finding[1][:40] if finding[0] == "crash" else "")
    while place < len(program.lines):
        shorter = program.without(place)
        seen = examine(shorter, choice, spellings=8).findings
        if any(name == kind[0] and text.startswith(kind[1]) for name, text in seen):
            program, place = shorter, 0
        else:
            place += 1
    return program


def one(seed: int, steps: list[str] | None, oracle: str | None, brief: bool) -> tuple[int, Found, str]:
    """Examine the model of this seed: what was found, and a text that lets it be seen again."""
    torch.set_num_threads(1)
    if steps is None and seed % 10 == 9:
        return seed, examine_sequential(seed), f"sequential model {seed}: python benchmarks/fuzz.py 1 --seed {seed}"
    choice = random_choice(seed)
    program = random_program(seed, steps=steps)
    found = examine(program, choice)
    found.findings = [finding for finding in found.findings if oracle in (None, finding[0])]
    text = ""
    if brief:
        return seed, found, f"\n    {program}\n    --composite '{choice.text}': {found.findings}" * bool(found.findings)
    for name, said in {finding[0]: finding for finding in reversed(found.findings)}.values():
        small = shortened(program, choice, (name, said))
        seen = [line for line in examine(small, choice, spellings=8).findings if line[0] == name]
        text += f"\n    {name}: {small}\n      {seen[0][1] if seen else '(only in the whole program)'}"
        text += f"\n      --composite '{choice.text}' --replay '{small.to_json()}'"
    return seed, found, text


def replay(text: str, composite: str) -> int:
    """Examine one program that was printed."""
    program = Program.from_json(text)
    print(program)
    for oracle, said in examine(program, choice_of(composite), spellings=8).findings:
        print(f"  {oracle}: {said}")
    return 0


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("count", nargs="?", type=int, default=200, help="how many models")
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--oracle", help="look for findings of this one alone")
    parser.add_argument("--steps", nargs="*", help="use these steps alone")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--brief", action="store_true", help="print whole programs: shortening them takes longest")
    parser.add_argument("--replay", metavar="PROGRAM", help="examine this program")
    parser.add_argument("--composite", default="attnlrp", help="with --replay: which composite")
    options = parser.parse_args()
    if options.replay:
        return replay(options.replay, options.composite)
    print(f"{Path(lxt_compose.__file__).parent}, torch {torch.__version__}", flush=True)
    start, counts, growth, bad, refused = time.perf_counter(), Counter[str](), [], 0, 0
    seeds = range(options.seed, options.seed + options.count)
    work = [(seed, options.steps, options.oracle, options.brief) for seed in seeds]
    if options.jobs > 1:
        with ProcessPoolExecutor(options.jobs) as pool:
            results = list(pool.map(one, *zip(*work, strict=True), chunksize=4))
    else:
        results = (one(*item) for item in work)
    for seed, found, text in results:
        growth.append(found.growth)
        names = sorted({name for name, _ in found.findings})
        counts.update(names)
        bad += bool(names)
        refused += found.refused
        if names:
            print(f"seed {seed}: {', '.join(names)}{text}", flush=True)
    quantiles = statistics.quantiles(growth, n=100) if len(growth) > 1 else growth * 99
    seconds = time.perf_counter() - start
    print(f"\n{options.count} models, {bad} with a finding, {refused} refused by a rule, {seconds:.0f} s")
    print("by oracle: " + (", ".join(f"{name} {count}" for name, count in counts.most_common()) or "none"))
    shown = [f"{share} % {quantiles[share - 1]:.2g}" for share in (50, 90, 99)]
    print(f"sum |R| / output: {', '.join(shown)}, largest {max(growth):.2g}")
    return min(bad, 100)


if __name__ == "__main__":
    sys.exit(main())
