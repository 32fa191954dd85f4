"""The layout of the package: imports go downwards, files stay short, optional packages come in inside functions."""

import ast
import re
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "lxt_compose"
FILES = sorted((ROOT / PACKAGE).rglob("*.py"))
IDS = [str(path.relative_to(ROOT)) for path in FILES]

# The lower half knows nothing of the upper half. A name stands for a file or for a whole subpackage.
LAYERS = {
    0: ["errors", "extras", "text", "old_paths", "command_start"],
    1: ["ops", "kinds"],
    2: ["autograd", "torch_internals"],
    3: ["rules", "lxt", "functional", "modules"],
    4: ["keys", "canonizers", "target_module", "targets", "tracing"],
    5: ["coverage", "ledger", "runtime"],
    6: ["conservation"],
    7: ["composite"],
    8: [
        "presets",
        "attribution",
        "heatmap",
        "datasets",
        "evaluate",
        "baselines",
        "compat",
        "demo",
        "concepts",
        "generation",
        "similarity",
    ],
    9: ["cli", "__main__", "__init__"],
}
LEVEL = {name: level for level, names in LAYERS.items() for name in names}
LONGEST_FILE = 300
LONGEST_FUNCTION, LONGEST_CODE = 60, 40  # lines with docstring, and without
AT_TOP = {"torch", "tabulate", PACKAGE, *sys.stdlib_module_names}


def module_of(path, root=ROOT):
    """The dotted name of a file: `lxt_compose/rules/base.py` is `lxt_compose.rules.base`."""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in FILES}


def component(module):
    """The part of a module's name that the table of layers lists."""
    return module.split(".")[1] if "." in module else "__init__"


def level_of(module):
    name = component(module)
    assert name in LEVEL, (
        f"{PACKAGE}/{name} has no place yet: put it in LAYERS in tests/test_layout.py, "
        f"as low as it can go, above all that it imports"
    )
    return LEVEL[name]


def is_typing_only(node):
    return isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}


def nodes_at_import(tree):
    """The nodes that run when a file is imported: none of functions, none under `if TYPE_CHECKING`."""
    for node in ast.iter_child_nodes(tree):
        if is_typing_only(node) or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        yield node
        yield from nodes_at_import(node)


def imported(source, module, is_package, known, at_import=False):
    """Absolute names of the modules that a file imports: (line, name) pairs.

    In functions and for typing too, unless only those count that are imported together with the file.
    """
    tree = ast.parse(source)
    for node in nodes_at_import(tree) if at_import else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module.split(".") if is_package else module.split(".")[:-1]
                base = ".".join([*package[: len(package) - node.level + 1], *filter(None, [node.module])])
            # `from package import name` imports the file `name` if there is one, and the package's own names if not.
            names = [f"{base}.{alias.name}" for alias in node.names]
            yield from ((node.lineno, name if name in known else base) for name in names)


def imports_of(module, at_import=False):
    path = MODULES[module]
    found = imported(path.read_text("utf-8"), module, path.stem == "__init__", MODULES, at_import)
    return list(dict.fromkeys(found))


def in_package(name):
    return name == PACKAGE or name.startswith(PACKAGE + ".")


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_downwards(module):
    own = level_of(module)
    for line, name in imports_of(module):
        if in_package(name):
            assert level_of(name) <= own, (
                f"{MODULES[module].relative_to(ROOT)}:{line} (level {own}) imports {name} (level {level_of(name)}), "
                f"which is above it"
            )


def circle_in(graph):
    """The files of a circle of imports, each imported by the one before; none if there is no circle."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1][::-1]
    return []


def test_no_circles():
    graph = {module: {name for _, name in imports_of(module) if name in MODULES} - {module} for module in MODULES}
    assert not circle_in(graph), "files import each other in a circle, be it in a function or for typing alone"


def test_a_circle_is_found():
    sources = {
        "a": "from . import b",
        "b": "if TYPE_CHECKING:\n    from .c import C",
        "c": "def f():\n    from . import a",
    }
    known = {f"lxt_compose.{name}" for name in sources}
    graph = {
        f"lxt_compose.{name}": {found for _, found in imported(source, f"lxt_compose.{name}", False, known)}
        for name, source in sources.items()
    }
    assert set(circle_in(graph)) == known


PRIVATE = {
    *("_getframe", "f_back", "f_locals", "_sequence_nr", "_raw_saved_tensors", "_forward_pre_hooks", "_forward_hooks"),
    *("_schema", "_orig_mod", "_compiled_call_impl", "__code__", "__globals__"),
}
"""Attributes of torch and Python that no one promises to keep."""


def private_parts(source):
    """The lines where a file leans on such attributes, or on a private module of torch."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) != "self":
            if node.attr in PRIVATE or re.fullmatch(r"torch(?!\.ops\.)(\.\w+)*\._[a-zC]\w*", ast.unparse(node)):
                yield node.lineno, node.attr
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr"):
            name = node.args[1]
            if isinstance(name, ast.Constant) and name.value in PRIVATE:
                yield node.lineno, name.value
        elif isinstance(node, ast.ImportFrom) and re.match(r"torch(\.\w+)*\._", f"{node.module}."):
            yield node.lineno, node.module


@pytest.mark.parametrize("module", [name for name in MODULES if component(name) != "torch_internals"])
def test_tricks_on_private_parts_stand_in_one_room(module):
    found = list(private_parts(MODULES[module].read_text("utf-8")))
    assert not found, f"{MODULES[module].relative_to(ROOT)}: {found}: put it into torch_internals, with its reason"


def test_a_trick_outside_that_file_is_found():
    assert list(private_parts("import torch\nx = torch._C.DisableTorchFunction()")) == [(2, "_C")]
    assert list(private_parts("from torch._C import _autograd")) == [(1, "torch._C")]
    assert list(private_parts("from torch.utils._pytree import tree_map")) == [(1, "torch.utils._pytree")]
    assert list(private_parts("s = getattr(x, '_schema', None)")) == [(1, "_schema")]


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_files_and_functions_are_short(path):
    source = path.read_text("utf-8")
    lines = len(source.splitlines())
    assert lines < LONGEST_FILE, f"{path.name} has {lines} lines: split it by concept"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = node.end_lineno - node.lineno + 1
            first = node.body[0]
            code = length - (first.end_lineno - first.lineno + 1 if ast.get_docstring(node) else 0)
            short = length < LONGEST_FUNCTION and code < LONGEST_CODE
            assert short, f"{path.name}:{node.lineno} {node.name} has {length} lines, {code} of code: split it"


@pytest.mark.parametrize("module", MODULES)
def test_optional_packages_are_imported_inside_functions(module):
    for line, name in imports_of(module, at_import=True):
        package = name.partition(".")[0]
        assert package in AT_TOP, (
            f"{MODULES[module].relative_to(ROOT)}:{line} imports {package} at module level: "
            f"import it inside the function that needs it"
        )


def test_a_file_without_a_place_is_named():
    with pytest.raises(AssertionError, match="newcomer has no place yet: put it in LAYERS"):
        level_of(f"{PACKAGE}.newcomer")


@pytest.mark.parametrize(
    ("statement", "name"),
    [
        ("import lxt_compose.composite", "lxt_compose.composite"),
        ("from lxt_compose import composite", "lxt_compose.composite"),
        ("from lxt_compose import Composite", "lxt_compose"),
        ("from ..composite import Composite", "lxt_compose.composite"),
        ("from .. import composite", "lxt_compose.composite"),
        ("from . import base", "lxt_compose.rules.base"),
        ("from .base import Rule", "lxt_compose.rules.base"),
        ("try:\n    import numpy.linalg\nexcept ImportError:\n    pass", "numpy.linalg"),
    ],
)
def test_all_ways_to_import_are_understood(statement, name):
    known = {"lxt_compose", "lxt_compose.composite", "lxt_compose.rules", "lxt_compose.rules.base"}
    function = "def f():\n    " + statement.replace("\n", "\n    ")
    typing_only = "if TYPE_CHECKING:\n    " + statement.replace("\n", "\n    ")
    for source in (statement, function, typing_only):
        found = imported(source, "lxt_compose.rules.split", False, known)
        at_import = imported(source, "lxt_compose.rules.split", False, known, at_import=True)
        assert [every for _, every in found] == [name]
        assert [every for _, every in at_import] == ([name] if source == statement else [])


def test_a_package_resolves_its_own_relative_imports():
    known = {"lxt_compose", "lxt_compose.rules", "lxt_compose.rules.base"}
    found = imported("from .base import Rule", "lxt_compose.rules", True, known)
    assert list(found) == [(1, "lxt_compose.rules.base")]


TEST_FILES = sorted((ROOT / "tests").rglob("test_*.py"))
RULES = [path.stem for path in sorted((ROOT / PACKAGE / "rules").glob("*.py")) if path.stem != "__init__"]


@pytest.mark.parametrize("name", RULES)
def test_every_file_of_rules_has_its_tests(name):
    found = ROOT / "tests" / "rules" / f"test_{name}.py"
    assert found.is_file(), f"{PACKAGE}/rules/{name}.py is tested in {found.relative_to(ROOT)}, which is missing"


def asserts(node):
    """Whether it is an assertion: `assert`, `pytest.raises` or `pytest.warns`, a function named `assert_...`."""
    if isinstance(node, ast.Call):
        name = ast.unparse(node.func).rpartition(".")[2]
        return name in ("raises", "warns") or name.lstrip("_").startswith("assert")
    return isinstance(node, ast.Assert)


@pytest.mark.parametrize("path", TEST_FILES, ids=[str(path.relative_to(ROOT)) for path in TEST_FILES])
def test_every_test_shows_what_it_asserts(path):
    tests = [node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.FunctionDef)]
    silent = [test.name for test in tests if test.name.startswith("test_") and not any(map(asserts, ast.walk(test)))]
    assert not silent, f"{silent}: name the helper that asserts assert_..., or assert in the test"


NOT_IMPERATIVE = re.compile(r"(The|An?|Whether|What|Where|Which|How|All|Each|Every|One|Those)\b")


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_docstrings_of_functions_begin_with_a_verb(path):
    """Properties are named for what they are; all else says what it does."""
    found = []
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if not isinstance(node, ast.FunctionDef) or any("property" in ast.unparse(d) for d in node.decorator_list):
            continue
        if NOT_IMPERATIVE.match(ast.get_docstring(node) or ""):
            found.append(f"{node.lineno}: {node.name}")
    assert not found, f"{path.relative_to(ROOT)}: {found}: begin with an imperative verb, such as Return"
