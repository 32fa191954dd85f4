"""Curves of tuning: what is drawn where."""

import pytest
import torch

from lxt_compose import presets
from lxt_compose.evaluate import Candidate, Tuning

pytest.importorskip("matplotlib")


def tuned(*candidates):
    """A tuning of (name, arguments) whose scores are 0, 1, 2, ..."""
    values = torch.arange(len(candidates), dtype=torch.float64)[:, None] + torch.tensor([-0.1, 0.1, 0, 0]).double()
    tried = tuple(Candidate(name, presets.attnlrp(), name.split("(")[0], arguments) for name, arguments in candidates)
    return Tuning(tried, values, torch.tensor([0, 1, 0, 1]), "gain", {}, 0.95, 0)


GRID = [
    ("g(a=1, b=0.1)", {"a": 1.0, "b": 0.1}),
    ("g(a=0.5, b=0.1)", {"a": 0.5, "b": 0.1}),
    ("g(a=1, b=0.2)", {"a": 1.0, "b": 0.2}),
    ("g(a=0.5, b=0.2)", {"a": 0.5, "b": 0.2}),
    ("attnlrp", {}),
]


def test_a_line_for_each_combination_of_the_other_arguments():
    axes = tuned(*GRID).plot()
    lines = {line.get_label(): line for line in axes.get_lines() if not line.get_label().startswith("_")}
    assert list(lines) == ["g, b=0.2", "g, b=0.1", "chosen, held out"]
    assert lines["g, b=0.1"].get_xdata().tolist() == [0.5, 1.0]
    assert lines["g, b=0.1"].get_ydata().tolist() == [1.0, 0.0]
    assert lines["chosen, held out"].get_ydata() == pytest.approx([4.0, 4.0])
    assert [text.get_text() for text in axes.texts] == ["attnlrp"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("a", "gain")


def test_over_another_argument_and_on_given_axes():
    from matplotlib.figure import Figure

    given = Figure().add_subplot()
    axes = tuned(*GRID).plot("b", ax=given)
    assert axes is given
    assert axes.get_xlabel() == "b"
    with pytest.raises(ValueError, match="no candidate has an argument 'c' with numbers; there are a, b"):
        tuned(*GRID).plot("c")


def test_bars_where_no_argument_is_a_number():
    axes = tuned(("attnlrp", {}), ("cp_lrp", {"strict": True})).plot()
    assert [label.get_text() for label in axes.get_yticklabels()] == ["attnlrp", "cp_lrp"]
    assert axes.get_xlabel() == "gain"
    with pytest.raises(ValueError, match="there are none"):
        tuned(("attnlrp", {})).plot("a")
