"""The adapters that `make peers` uses, where no peer is needed; and the peers' own tests, where there are any."""

import os
import re
import subprocess
import sys
from pathlib import Path

import as_captum
import as_lxt
import as_tdhook
import as_zennit
import pytest
import run_suites
import torch
from kinds import CAPTUM, LXT, TDHOOK, ZENNIT, Kind
from run_suites import BEGIN, END, REPOSITORY
from suites import SUITES, Suite, version_of
from torch import nn

from lxt_compose import functional

HERE = Path(__file__).resolve().parent
SOURCES = os.environ.get("PEERS_SRC", "")


@pytest.mark.skipif(not SOURCES, reason="the peers' tests are not here; make peers fetches and runs them")
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("suite", SUITES, ids=lambda suite: suite.name)
def test_each_failure_of_a_peers_test_has_a_reason(suite):
    command = [sys.executable, str(HERE / "run_suites.py"), "--only", suite.adapter, "--sources", SOURCES]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("kind", [*LXT, *ZENNIT, *TDHOOK, *CAPTUM], ids=lambda kind: kind.name)
def test_each_kind_is_told_by_more_than_the_name_of_a_test(kind):
    assert kind.convention or (kind.error and kind.error != "assert False") or kind.most is not None
    assert kind.verdict in ("peer wrong", "peer differs", "limit of ours")
    assert f"def test_{re.sub('[^a-z]+', '_', kind.name.lower())}(" in (HERE / "test_kinds.py").read_text()


def test_a_kind_with_a_convention_explains_only_what_the_convention_settles():
    kind = Kind("name", r"test_sum\[", "peer wrong", "reason", convention=True)
    assert kind.explains("f.py::test_sum[1]", "assert False", True)
    assert not kind.explains("f.py::test_sum[1]", "assert False", False)
    assert not kind.explains("f.py::test_mean[1]", "assert False", True)


def test_source_trees_with_tests_come_first(tmp_path):
    for name in ("a-1.0", "b"):
        (tmp_path / name / "src/peer").mkdir(parents=True)
    (tmp_path / "b/tests").mkdir()
    (tmp_path / "b/tests/test_it.py").touch()
    suite = Suite("Peer", "src/peer", ("tests/test_*.py",), "src", ())
    assert [tree.name for tree in suite.trees([tmp_path])] == ["b", "a-1.0"]
    assert version_of(tmp_path / "a-1.0") == "1.0"
    assert version_of(tmp_path / "b") == "checkout"


def test_the_stabilizer_of_lxt_is_unsigned():
    a, b = torch.tensor([2.0], requires_grad=True), torch.tensor([-3.0], requires_grad=True)
    as_lxt._unsigned(functional.add2)(a, b, False, 0.5).backward(torch.ones(1))
    assert a.grad.item() == 2 / (-1 + 0.5)
    (found,) = torch.autograd.grad(as_lxt._unsigned(functional.matmul)(a[None], b[None, :].mT, False, 0.5), a)
    assert found.item() == pytest.approx(-6 / (2 * -6 + 0.5))


def test_zennits_gamma_takes_the_sign_of_the_output_with_its_bias():
    layer, x = nn.Linear(2, 1).double(), torch.ones(1, 2).double().requires_grad_()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[5.0, -4.0]]))
        layer.bias.fill_(-2.0)
    with as_zennit._gamma(0.25, 1e-6, zero_bias=True).register(layer):
        layer(x).backward(torch.ones(1, 1).double())
    assert x.grad.flatten().tolist() == pytest.approx([5e6, -5e6])


def test_tdhooks_pseudo_identity_is_stabilized_everywhere():
    layer, x = nn.Linear(1, 1, bias=False).double(), torch.tensor([[0.005]]).double().requires_grad_()
    with as_tdhook.StabilizedRatio(1e-6).register(layer, formulation="gradient"):
        layer(x).sum().backward()
    assert x.grad.item() == pytest.approx((layer.weight * 0.005 / 0.005001).item())


def test_captums_classes_give_our_relevance_at_inputs_and_layers():
    model, x = nn.Sequential(nn.Linear(3, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False)), torch.ones(2, 3)
    with torch.no_grad():
        model[0].weight.fill_(2.0)
        model[2].weight.fill_(3.0)
    model[0].rule = as_captum.EpsilonRule()
    relevance, delta = as_captum.LRP(model).attribute(x, target=0, return_convergence_delta=True)
    torch.testing.assert_close(relevance, torch.full((2, 3), 12.0))
    torch.testing.assert_close(delta, torch.zeros(2))
    for layer, inputs in ((model[0], False), (model[2], True)):
        found = as_captum.LayerLRP(model, layer).attribute(x, target=0, attribute_to_layer_input=inputs)
        torch.testing.assert_close(found, torch.full((2, 2), 18.0))
    model[0].rule = 1
    with pytest.raises(TypeError, match="rule is no rule"):
        as_captum.LRP(model)


def test_the_document_has_a_place_for_the_table():
    text = (REPOSITORY / "docs/measured.md").read_text()
    assert text.index(BEGIN) < text.index(END)


def test_a_run_without_all_suites_leaves_the_document(tmp_path, monkeypatch, capsys):
    document = tmp_path / "measured.md"
    document.write_text(f"before\n{BEGIN}table\n{END}after\n")
    given = ["run_suites.py", "--sources", str(tmp_path), "--write", str(document)]
    monkeypatch.setattr(sys, "argv", given)
    assert run_suites.main() == 0
    assert "no tests in the source distribution: set PEERS_SRC" in capsys.readouterr().out
    assert "table" in document.read_text()
    monkeypatch.setattr(run_suites, "judge", lambda suite, *_: ((suite.name, "1", 2, 2, 0, 0), [], []))
    monkeypatch.setattr(Suite, "trees", lambda suite, places: [tmp_path])
    monkeypatch.setattr(Suite, "files", lambda suite, root: ["test_it.py"])
    assert run_suites.main() == 0
    assert "table" not in document.read_text()
    assert document.read_text().endswith(f"{END}after\n")
