"""Traits: one row for each operation, true of torch, and the only place that knows operations by name."""

import ast
import inspect
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from lxt_compose.ops import Argument, op_of
from lxt_compose.ops.families import build_ops
from lxt_compose.ops.trait_rows import TRAITS
from lxt_compose.runtime.decompositions import STEPS

PACKAGE = Path(__file__).resolve().parent.parent.parent / "lxt_compose"
OPS = build_ops()
FILES = sorted(path for path in PACKAGE.rglob("*.py") if PACKAGE / "ops" not in path.parents)

ALLOWED = {
    # what a user chooses by these words
    "evaluate/removal.py": {"zero", "mean"},
    "concepts/weights.py": {"sum", "norm"},
    "similarity/pair.py": {"mean", "embedding"},
    # devices
    "torch_internals/ambient.py": {"cpu", "cuda", "xpu"},
    # kernels of ATen that torch's own decompositions take apart; models do not call them
    "torch_internals/traces.py": {"native_layer_norm", "native_group_norm", "native_batch_norm"},
}


# ---- nobody else keeps tables of operations -------------------------------------------------------------------------


def _words(node):
    """The strings that a literal lists: a collection, the keys of a dict, or a text that is split."""
    if isinstance(node, (ast.Tuple, ast.List, ast.Set)):
        items = node.elts
    elif isinstance(node, ast.Dict):
        items = [key for key in node.keys if key is not None]
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "split":
        text = node.func.value
        return text.value.split() if isinstance(text, ast.Constant) and isinstance(text.value, str) else []
    else:
        return []
    return [item.value for item in items if isinstance(item, ast.Constant) and isinstance(item.value, str)]


def _is_name(node):
    """Whether this is `x.name`, or a variable that is called a name."""
    said = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
    return said == "name" or said.endswith("_name")


def _constants(tree):
    """The constants of a module that are one string."""
    return {
        target.id: node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for target in node.targets
        if isinstance(target, ast.Name)
    }


def _compared(node, constants):
    """The strings that a name is compared with."""
    left, right = node.left, node.comparators[0]
    if isinstance(node.ops[0], (ast.Eq, ast.NotEq)) and _is_name(right):
        left, right = right, left
    if not _is_name(left):
        return []
    found = [right.value] if isinstance(right, ast.Constant) else _words(right)
    return [*found, constants.get(right.id, "")] if isinstance(right, ast.Name) else found


def operations_named(source):
    """The lines where a file lists operations by name, or compares a name with that of an operation."""
    tree = ast.parse(source)
    constants = _constants(tree)
    exports = {id(node.value) for node in tree.body if isinstance(node, ast.Assign) and "__all__" in ast.dump(node)}
    for node in ast.walk(tree):
        listed = set() if id(node) in exports else {word for word in _words(node) if word in OPS}
        compared = _compared(node, constants) if isinstance(node, ast.Compare) else []
        if len(listed) >= 2 or any(word in OPS for word in compared):
            yield node.lineno, listed.union(word for word in compared if word in OPS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_other_room_has_a_table_of_operations(path):
    allowed = ALLOWED.get(path.relative_to(PACKAGE).as_posix(), set())
    found = [(line, names) for line, names in operations_named(path.read_text("utf-8")) if not names <= allowed]
    assert not found, f"{path.relative_to(PACKAGE.parent)}: {found}: say it by a trait in lxt_compose/ops/trait_rows.py"


def test_what_is_allowed_is_there():
    assert {name for name in ALLOWED if list(operations_named((PACKAGE / name).read_text("utf-8")))} == set(ALLOWED)


@pytest.mark.parametrize(
    "source",
    [
        'x = {"add": 1, "sub": 2}',
        'x = frozenset({"add", "sub"})',
        'def f():\n    return ["add", "other", "sub"]',
        'x = "add sub".split()',
        'if op.name == "add": pass',
        'if "add" != op.name: pass',
        'if op.name not in ("add",): pass',
        'x = name == "add"',
        'ADD = "add"\nx = info.name == ADD',
    ],
)
def test_a_table_of_operations_is_found(source):
    assert [names - {"sub"} for _, names in operations_named(source)][-1] == {"add"}


@pytest.mark.parametrize("source", ['x = {"add": 1, "other": 2}', '__all__ = ["add", "sub"]', 'x = kind == "add"'])
def test_other_words_are_no_table_of_operations(source):
    assert not list(operations_named(source))


# ---- the rows -------------------------------------------------------------------------------------------------------


def test_each_row_is_of_an_operation():
    assert not TRAITS.keys() - OPS.keys()
    for name, traits in TRAITS.items():
        assert OPS[name].traits is traits


def test_each_composed_operation_is_taken_apart():
    assert {op.name for op in OPS.values() if op.family == "composed"} == STEPS.keys()


PYTHON_FUNCTIONS = [
    f for name, f in sorted(vars(F).items()) if inspect.isfunction(f) and not name.startswith("_") and op_of(f)
]


@pytest.mark.parametrize("function", PYTHON_FUNCTIONS, ids=lambda f: f.__name__)
def test_arguments_are_those_of_the_function(function):
    """Position, keyword and default, where the function's signature says them."""
    traits = op_of(function).traits
    parameters = list(inspect.signature(function).parameters.values())
    given = {field: value for field in traits.__slots__ if isinstance(value := getattr(traits, field), Argument)}
    for field, argument in given.items():
        parameter = parameters[argument.position]
        assert parameter.name == argument.keyword, field
        if field in ("dropout_rate", "training"):
            assert parameter.default in (argument.default, parameter.empty), field


def test_an_argument_is_found_by_position_keyword_or_default():
    rate = Argument(1, "p", 0.5, "rate")
    assert [rate.of((0, 1), {}), rate.of((0,), {"p": 2}), rate.of((0,), {"rate": 3}), rate.of((0,), {})] == [
        1,
        2,
        3,
        0.5,
    ]


def test_the_exponent_of_a_power_is_the_argument_that_is_one():
    for function, args in ((torch.pow, (2, 3)), (torch.Tensor.__pow__, (2, 3)), (torch.Tensor.__rpow__, (3, 2))):
        assert op_of(function).traits.exponent.of(args, {}) == 3
