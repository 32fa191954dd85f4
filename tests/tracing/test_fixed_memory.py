"""Functions that are replayed on memory of their own: what is copied, what is recorded anew or refused.

A CUDA graph writes what it computes again into the same tensors; so does the stand-in here.
"""

import pytest
import torch
from support import mlp
from torch import nn

from lxt_compose import Composite, Gamma, TraceError, presets
from lxt_compose.tracing import Program
from lxt_compose.tracing.fixed_memory import FixedMemory, record_on_gpu


class Recorder:
    """Records as a GPU does: results stay where they are, and each replay overwrites them."""

    def __init__(self):
        self.recorded = self.replayed = 0

    def __call__(self, function):
        results = function()
        self.recorded += 1

        def replay():
            self.replayed += 1
            for result, new in zip(results, function(), strict=True):
                result.copy_(new)

        return replay, results


def test_inputs_are_copied_and_results_are_tensors_of_their_own():
    recorder, seen = Recorder(), []

    def run(weight, x):
        seen.append(x.data_ptr())
        return [x * weight, x + 1]

    weight, fixed = torch.full((3,), 2.0), FixedMemory
    run = fixed(run, 1, recorder)
    first = torch.arange(3.0)
    before = run(weight, first)
    kept = [x.clone() for x in before]
    after = run(weight, first + 5)
    assert all(torch.equal(a, b) for a, b in zip(before, kept, strict=True))
    assert torch.equal(after[0], (first + 5) * 2)
    assert (recorder.recorded, recorder.replayed) == (1, 2)
    assert len(set(seen)) == 1
    assert first.data_ptr() not in seen
    assert torch.equal(first, torch.arange(3.0))


def test_weights_are_read_where_they_are_and_others_are_recorded_anew():
    recorder, x = Recorder(), torch.ones(2)
    run = FixedMemory(lambda weight, x: [weight * x], 1, recorder)
    weight = torch.ones(2)
    run(weight, x)
    weight.mul_(3)
    assert torch.equal(run(weight, x)[0], 3 * x)
    assert recorder.recorded == 1
    assert torch.equal(run(torch.full((2,), 7.0), x)[0], 7 * x)
    assert recorder.recorded == 2


def test_a_program_is_replayed_with_what_depends_on_weights_alone_kept():
    weight, x = torch.randn(4, 4), torch.randn(3, 4)
    program, recorder = Program(lambda x: {"y": x @ weight.abs().t()}, [x]), Recorder()
    program.record(x, record=recorder)
    for _ in range(2):
        for _ in range(2):
            x = torch.randn(3, 4)
            assert torch.equal(program(x)["y"], x @ weight.abs().t())
        weight.mul_(-2)
    assert recorder.recorded == 2


def test_what_cannot_be_recorded_is_refused():
    x = torch.ones(2, 3)
    with pytest.raises(TraceError, match="it runs on cpu; move model and inputs to a GPU"):
        Program(lambda x: x * 2, [x]).record(x)
    with pytest.raises(TraceError, match="it is for any shape; trace it for one shape"):
        Program(lambda x: x * 2, [x], [("batch", None)]).record(x, record=Recorder())

    def fails(function):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    program = Program(lambda x: x * 2, [x])
    with pytest.raises(TraceError, match=r"CUDA graph: operation not permitted when stream is capturing$"):
        program.record(x, record=fails)
    assert torch.equal(program(x), x * 2)  # as before


def test_a_graph_that_chooses_by_data_is_refused():
    model = mlp()
    x = torch.randn(2, model[0].in_features, dtype=model[0].weight.dtype)
    with pytest.raises(TraceError, match="one of several ways by the data"):
        Composite({nn.Linear: Gamma()}).trace(model, x, target=0).record()
    with pytest.raises(TraceError, match="runs on cpu"):
        presets.attnlrp().trace(model, x, target=0).record()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
def test_a_cuda_graph_gives_the_numbers_of_the_graph():
    x = torch.randn(3, 4, device="cuda")
    program = Program(lambda x: [x.exp() * 2], [x])
    program.record(x, record=record_on_gpu)
    for _ in range(2):
        x = torch.randn(3, 4, device="cuda")
        assert torch.equal(program(x)[0], x.exp() * 2)
