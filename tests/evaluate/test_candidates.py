"""What is tried: grids of presets and functions, composites by name, and the usual ones for a model."""

import pytest
import torch
from torch import nn

from lxt_compose import Composite, Epsilon, Gamma, MergeBatchNorm, presets
from lxt_compose.evaluate import Grid
from lxt_compose.evaluate.candidates import Candidate, read_candidates, usual_candidates


def test_a_grid_is_all_combinations_of_lists():
    grid = Grid("gamma_vit", conv_gamma=[0.1, 1.0], linear_gamma=[0.0, 0.05, 0.25], strict=True)
    found = grid.candidates()
    assert len(grid) == len(found) == 6
    assert [candidate.name for candidate in found[:2]] == [
        "gamma_vit(conv_gamma=0.1, linear_gamma=0)",
        "gamma_vit(conv_gamma=0.1, linear_gamma=0.05)",
    ]
    assert found[1].arguments == {"conv_gamma": 0.1, "linear_gamma": 0.05}
    assert repr(found[1].composite) == repr(presets.gamma_vit(0.1, 0.05, strict=True))
    assert str(found[5]) == "gamma_vit(conv_gamma=1, linear_gamma=0.25)"
    assert repr(grid).startswith("Grid(gamma_vit, conv_gamma=[0.1, 1.0]")


def test_a_grid_of_a_function_and_of_lists_of_canonizers_and_tensors():
    def by_depth(early, late):
        return Composite({"0": Gamma(early), "*": Epsilon(late)})

    found = Grid(by_depth, early=[0.1, 0.2], late=1e-3).candidates()
    assert [candidate.name for candidate in found] == ["by_depth(early=0.1)", "by_depth(early=0.2)"]
    merged = Grid("epsilon", canonizers=[(), (MergeBatchNorm(),)]).candidates()
    assert [len(candidate.composite.canonizers) for candidate in merged] == [0, 1]
    boxes = Grid("epsilon_gamma_box", low=torch.zeros(3, 1, 1), high=torch.ones(3, 1, 1)).candidates()
    assert [candidate.name for candidate in boxes] == ["epsilon_gamma_box"]


def test_what_can_be_passed():
    model = nn.Linear(2, 2)
    own = Composite({nn.Linear: Gamma(0.5)})
    names = [
        candidate.name for candidate in read_candidates(model, ["attnlrp", Grid("epsilon", epsilon=[0.1, 1]), own])
    ]
    assert names == ["attnlrp", "epsilon(epsilon=0.1)", "epsilon(epsilon=1)", repr(own)]
    by_name = read_candidates(model, {"mine": own, "default": "attnlrp"})
    assert [candidate.name for candidate in by_name] == ["mine", "default"]
    assert by_name[0].composite is own
    assert [c.name for c in read_candidates(model, "attnlrp")] == ["attnlrp"]
    again = Candidate("again", own)
    assert read_candidates(model, [again]) == [again]


def test_the_usual_ones_know_the_layers_of_a_model():
    def names(*layers):
        return [c.name for c in read_candidates(nn.Sequential(*layers), None)]

    dense, conv = names(nn.Linear(2, 2)), names(nn.Conv2d(1, 1, 1), nn.Linear(2, 2))
    assert not any("conv_gamma" in name for name in dense)
    assert "gamma_vit(linear_gamma=0.25)" in dense
    assert {"epsilon_plus", "epsilon_alpha2_beta1", "gamma_vit(conv_gamma=0.25, linear_gamma=0)"} <= set(conv)
    assert "gamma_rnn(linear_gamma=0.03)" in names(nn.GRUCell(2, 2))
    with_norms = usual_candidates(nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1)))
    plus = next(c for c in with_norms if isinstance(c, Candidate) and c.name == "epsilon_plus")
    assert [type(canonizer) for canonizer in plus.composite.canonizers] == [MergeBatchNorm]


WRONG = {
    "kind": (7, TypeError, "a preset's name, a Composite or a Grid.*got 7"),
    "kind in a list": (["attnlrp", 7], TypeError, "got 7"),
    "nothing": ([], ValueError, "candidates is empty"),
    "twice": (["attnlrp", "attnlrp"], ValueError, "two candidates are called 'attnlrp'"),
    "name": ("attnlpr", ValueError, "no preset is called 'attnlpr'; closest: attnlrp"),
    "argument": ("epsilon_gamma_box", TypeError, "needs low and high"),
}


@pytest.mark.parametrize(("given", "error", "match"), WRONG.values(), ids=WRONG)
def test_what_cannot(given, error, match):
    with pytest.raises(error, match=match):
        read_candidates(nn.Linear(2, 2), given)


def test_grids_that_cannot_be_built():
    with pytest.raises(ValueError, match="tried for gamma is empty"):
        Grid("res_lrp", gamma=[])
    with pytest.raises(TypeError, match="a preset's name or a function"):
        Grid(3)
    with pytest.raises(ValueError, match="no preset is called"):
        Grid("res_lpr", gamma=[1.0])
    with pytest.raises(ValueError, match=r"gamma_vit\(conv_gamma=-1\) cannot be built: gamma"):
        Grid("gamma_vit", conv_gamma=[0.1, -1.0]).candidates()
    with pytest.raises(TypeError, match="cannot be built: the preset 'epsilon' has no argument 'gamma'"):
        Grid("epsilon", gamma=[0.1]).candidates()
    with pytest.raises(TypeError, match="must return a Composite, got int"):
        Grid(lambda x: x, x=[1]).candidates()
