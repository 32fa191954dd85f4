"""The matrix: which cases of a test run, and what its page keeps."""

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from some_cases import chosen

spec = importlib.util.spec_from_file_location("run_matrix", Path(__file__).with_name("run_matrix.py"))
run_matrix = importlib.util.module_from_spec(spec)


@pytest.fixture(scope="module", autouse=True)
def _loaded():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "run_matrix", run_matrix)
        spec.loader.exec_module(run_matrix)
        yield


def cases(count, **mark):
    found = SimpleNamespace(kwargs=mark) if mark else None
    return [
        SimpleNamespace(
            nodeid=f"tests/test_a.py::test_b[{i}]",
            callspec=SimpleNamespace(params={"preset": "ab"[i % 2], "number": i}),
            get_closest_marker=lambda name: found,
        )
        for i in range(count)
    ]


@pytest.mark.parametrize(("count", "most"), [(1, 1), (2, 2), (7, 1), (7, 2), (7, 3), (3, 7)])
def test_as_many_cases_run_as_asked_for_and_no_case_twice(count, most):
    every = cases(count)
    some = chosen(every, most)
    assert len({each.nodeid for each in some}) == len(some) == min(count, most)
    assert [each.nodeid for each in some] == [each.nodeid for each in chosen(cases(count), most)]


def test_all_cases_run_that_a_mark_names():
    some = chosen(cases(7, preset=("b",)), 1)
    assert [each.callspec.params["number"] for each in some] == [1, 3, 5]


def test_a_page_keeps_what_it_says_of_rows_that_did_not_run():
    first, last = run_matrix.ROWS[0], run_matrix.ROWS[-1]
    page = run_matrix.written(
        f"above\n{run_matrix.BEGIN}\n{run_matrix.END}\nbelow\n", {run_matrix.cells(first): "3 passed"}
    )
    page = run_matrix.written(page, {**run_matrix.told(page), run_matrix.cells(last): "4 passed"})
    assert page.startswith("above\n")
    assert page.endswith("below\n")
    assert f"{run_matrix.cells(first)} | 3 passed |" in page
    assert f"{run_matrix.cells(last)} | 4 passed |" in page
    assert page.count("not run") == len(run_matrix.ROWS) - 2
