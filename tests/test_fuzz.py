"""Random models under random composites: a slice of ``benchmarks/fuzz.py``, which runs thousands of them."""

import random
from dataclasses import replace

import pytest
import torch
from fast_ways import keep_nothing
from fuzzing.composites import TRANSFORMERS, choice_of, random_choice
from fuzzing.oracles import examine
from fuzzing.programs import Model, Program, random_program
from fuzzing.sequential import examine_sequential
from fuzzing.steps import STEPS, Draw, Function
from torch import nn

from lxt_compose import Composite, Epsilon, Stop
from lxt_compose.coverage.report import CoverageReport


@pytest.mark.parametrize("block", range(6))
def test_random_models_keep_every_promise(block):
    for seed in range(10 * block, 10 * block + 10):
        choice, program = random_choice(seed), random_program(seed)
        found = examine(program, choice)
        assert not found.findings, f"seed {seed}, {choice.text}: {found.findings}\n{program.to_json()}"


class Either(nn.Module):
    """Two models as one, whose operations run in it in turn."""

    def __init__(self, *models):
        super().__init__()
        self.models = nn.ModuleList(models).eval()

    def forward(self, place, **tensors):
        """The logits of one of them."""
        return self.models[place].forward(**tensors)


def slots_in_turn(model, inputs, composite):
    """What flows back to the inputs, and the report, of passes through one model and the other."""
    found = []
    with composite.register(model) as registration:
        for scale, place in enumerate((0, 1, 0, 1), 1):
            given = inputs[place].items()
            leaves = {name: (x * scale).requires_grad_() if x.is_floating_point() else x for name, x in given}
            wanted = [x for x in leaves.values() if x.requires_grad]
            y = model(place, **leaves)[:, 1]
            start = torch.ones_like(y) if composite.formulation == "gradient" else y.detach()
            found += torch.autograd.grad(y, wanted, start, allow_unused=True, materialize_grads=True)
        return found, registration.report().to_string()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("formulation", ["gradient", "relevance"])
@pytest.mark.parametrize("seed", [131, 143, 7])
def test_passes_that_differ_are_as_where_nothing_is_kept(seed, formulation, monkeypatch):
    programs = [random_program(seed + offset) for offset in (0, 5000)]
    model, inputs = Either(*map(Model, programs)), [program.tensors() for program in programs]
    found, report = slots_in_turn(model, inputs, Composite(formulation=formulation))
    keep_nothing(monkeypatch)
    expected, whole = slots_in_turn(model, inputs, Composite(formulation=formulation))
    assert all(map(torch.equal, found, expected))
    assert report == whole


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


def test_a_model_without_relevance_is_a_finding_where_it_depends_on_its_inputs():
    """Not so where it does by a divisor alone, which is held constant."""
    program = Program.from_json('[2, [["quotient", "a / d", [0, 1], 1]], 3, "positional", ""]')
    stops = replace(TRANSFORMERS[-1], make=lambda f: Composite({torch.div: Stop()}, formulation=f))
    assert not examine(program, TRANSFORMERS[-1]).findings
    assert "zero" in {name for name, _ in examine(program, stops).findings}
    text = '[1, [["subtract", "a - b", [0, 0], 1], ["exp", "torch.exp", [1], 2], ["max_pool", "amax", [2], 3], '
    of_divisors = Program.from_json(text + '["quotient", "a / d", [3, 0], 4]], 5, "positional", ""]')
    assert "zero" not in {name for name, _ in examine(of_divisors, TRANSFORMERS[-1]).findings}


@pytest.mark.parametrize("name", ["scripted", "vectorized"])
def test_what_is_out_of_sight_and_not_named_is_a_finding(name, monkeypatch):
    spelling = sorted(STEPS[name].spellings(Draw(0)))[0]
    program = Program.from_json(f'[1, [["{name}", "{spelling}", [0], 1]], 3, "positional", ""]')
    assert not examine(program, TRANSFORMERS[0]).findings
    monkeypatch.setattr(CoverageReport, "complete", property(lambda self: True))
    assert {oracle for oracle, _ in examine(program, TRANSFORMERS[0]).findings} == {"complete"}


def test_norms_that_are_merged_wrongly_are_a_finding():
    program = Program.from_json('[1, [["conv_norm_relu", "BatchNorm2d", [0], 1]], 3, "positional", ""]')
    choice = next(c for c in map(random_choice, range(200)) if c.merges and "zero_bias" not in c.text)
    assert not examine(program, choice).findings
    wrong = replace(choice, unmerged=lambda f: Composite({nn.Conv2d: Epsilon(0.5)}, formulation=f))
    assert "merged" in {name for name, _ in examine(program, wrong).findings}


def test_composites_are_known_by_their_text():
    for seed in range(40):
        choice = random_choice(seed)
        assert repr(choice_of(choice.text).make("relevance")) == repr(choice.make("relevance"))
