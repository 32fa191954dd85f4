"""Graphs as machine code (AOTInductor): the numbers to rounding, in a process that has torch alone; refusals."""

import shutil
import subprocess
import sys

import pytest
import torch
from support import mlp

from lxt_compose import TracedAttribution, TraceError, attribute, presets

PROGRAM = """
import sys, torch
sys.modules['lxt_compose'] = None
x, target, expected = torch.load('data.pt')
found = torch._inductor.aoti_load_package('graph.pt2')(x, target)
torch.testing.assert_close(found['relevance']['input'], expected)
"""


def graph():
    model = mlp()
    x = torch.randn(3, model[0].in_features, dtype=model[0].weight.dtype, generator=torch.Generator().manual_seed(0))
    return model, x, presets.attnlrp().trace(model, x, target=1)


@pytest.mark.skipif(shutil.which("g++") is None, reason="AOTInductor needs a C++ compiler")
@pytest.mark.timeout(600)  # the compiler takes seconds, or minutes where others need the processor too
def test_a_compiled_file_runs_in_a_process_that_does_not_have_this_library(tmp_path):
    model, x, traced = graph()
    options = {"aot_inductor.metadata": {"owner": "somebody"}, "aot_inductor.compile_wrapper_opt_level": "O0"}
    traced.save(tmp_path / "graph.pt2", compiled=True, options=options)
    expected = attribute(model, -x, composite="attnlrp", target=0)
    index = torch.zeros(3, dtype=torch.long)
    torch.save((-x, index, expected.relevance), tmp_path / "data.pt")
    subprocess.run([sys.executable, "-c", PROGRAM], cwd=tmp_path, check=True, timeout=300)
    saved = TracedAttribution.load(tmp_path / "graph.pt2")
    assert saved.compiled
    assert saved.inputs == ["input"]
    assert "linear" in saved.report
    found = saved({"input": -x}, index)
    torch.testing.assert_close(found["relevance"]["input"], expected.relevance)
    torch.testing.assert_close(found["output"], expected.output)


def test_without_a_compiler_or_with_another_name_it_says_what_to_do(tmp_path, monkeypatch):
    _, _, traced = graph()
    with pytest.raises(TraceError, match=r"AOTInductor, .* the name of the file must end in .pt2, got graph.bin"):
        traced.save(tmp_path / "graph.bin", compiled=True)

    def no_compiler(*args, **kwargs):
        raise RuntimeError("no C++ compiler found")

    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", no_compiler)
    with pytest.raises(TraceError, match=r"needs g\+\+ or another C\+\+ compiler. cannot write the graph: no C"):
        traced.save(tmp_path / "graph.pt2", compiled=True)


def test_a_file_of_torch_export_is_told_from_one_that_is_compiled(tmp_path):
    model, x, traced = graph()
    traced.save(tmp_path / "graph.pt2")
    saved = TracedAttribution.load(tmp_path / "graph.pt2")
    assert not saved.compiled
    assert torch.equal(saved(x, torch.ones(3, dtype=torch.long))["output"], attribute(model, x, target=1).output)
