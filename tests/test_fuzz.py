"""Random models under random composites: a slice of ``benchmarks/fuzz.py``, which runs thousands of them."""

import random
from dataclasses import replace

import pytest
import torch
from fuzzing.composites import TRANSFORMERS, choice_of, random_choice
from fuzzing.oracles import examine
from fuzzing.programs import Model, Program, random_program
from fuzzing.sequential import examine_sequential
from fuzzing.steps import STEPS, Draw, Function

from lxt_compose import Composite, Epsilon


@pytest.mark.parametrize("block", range(6))
def test_random_models_keep_every_promise(block):
    for seed in range(10 * block, 10 * block + 10):
        choice, program = random_choice(seed), random_program(seed)
        found = examine(program, choice)
        assert not found.findings, f"seed {seed}, {choice.text}: {found.findings}\n{program.to_json()}"


def test_sequential_models_keep_every_promise():
    for seed in range(9, 60, 10):
        assert not examine_sequential(seed).findings


@pytest.mark.parametrize("name", sorted(STEPS))
def test_all_spellings_of_a_step_are_the_same_function(name):
    step, values = STEPS[name], []
    operands = [Draw(seed)(3, 4, 6, scale=1.0) for seed in range(step.operands)]
    for make in step.spellings(Draw(0)).values():
        made = make()
        values.append(made.run(*operands) if isinstance(made, Function) else made(*operands))
    for value in values[1:]:
        torch.testing.assert_close(value, values[0], rtol=1e-10, atol=1e-10)


def test_programs_can_be_written_down_and_read_again():
    for seed in range(20):
        program = random_program(seed)
        read = Program.from_json(program.to_json())
        assert read == program
        assert torch.equal(Model(read)(**read.tensors()), Model(program)(**program.tensors()))


def test_a_shortened_program_has_one_line_less_and_runs():
    program = random_program(1)
    shorter = program.without(0)
    assert len(shorter.lines) == len(program.lines) - 1
    assert Model(shorter)(**shorter.tensors()).isfinite().all()
    other = program.spelled(random.Random(0))
    torch.testing.assert_close(Model(other)(**other.tensors()), Model(program)(**program.tensors()))


@pytest.mark.parametrize(
    ("break_it", "oracle"),
    [
        (lambda f: Composite({torch.add: lambda a, b: a + b.detach()}, formulation=f), "gradient"),
        (lambda f: Composite(formulation=f, defaults=False), "complete"),
        (lambda f: Composite({torch.add: Epsilon(0.5)}, formulation=f), "formulations"),
    ],
)
def test_what_is_broken_on_purpose_is_found(break_it, oracle):
    program = Program.from_json(
        '[2, [["add", "a + b", [0, 1], 1], ["linear", "F.linear", [2], 2]], 3, "positional", ""]'
    )
    assert not examine(program, TRANSFORMERS[-1]).findings
    found = examine(program, replace(TRANSFORMERS[-1], make=break_it))
    assert oracle in {name for name, _ in found.findings}, found.findings


def test_composites_are_known_by_their_text():
    for seed in range(40):
        choice = random_choice(seed)
        assert repr(choice_of(choice.text).make("relevance")) == repr(choice.make("relevance"))
