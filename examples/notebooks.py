"""Run the notebooks of this folder without Jupyter, and keep their outputs small.

    python examples/notebooks.py [NAME ...] [--write]

Each notebook runs from top to bottom in a fresh namespace and in a folder of its own. With ``--write`` the outputs go
into the files: text as text, pictures as small PNGs, so that a notebook can be read before it is run.
"""

from __future__ import annotations

import argparse
import ast
import base64
import contextlib
import io
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from lxt_compose.heatmap import Picture

FOLDER = Path(__file__).resolve().parent
DPI = 72


def paths() -> list[Path]:
    """Return the notebooks, in the order in which they are meant to be read."""
    return sorted(FOLDER.glob("*.ipynb"))


def run(path: Path) -> tuple[dict[str, Any], list[list[dict[str, Any]]]]:
    """Run a notebook.

    Args:
        path: the notebook.

    Returns:
        What its cells defined, and the outputs of each cell (none for text), in the format of notebooks.
    """
    world: dict[str, Any] = {"__name__": "__main__"}
    cells = json.loads(path.read_text("utf-8"))["cells"]
    here = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            outputs = [run_cell(cell, world, f"{path.name}[{place}]") for place, cell in enumerate(cells)]
        finally:
            os.chdir(here)
    return world, outputs


def run_cell(cell: dict[str, Any], world: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """Run one cell in a namespace; return what it printed and, if its last line is an expression, its value."""
    if cell["cell_type"] != "code":
        return []
    body = ast.parse("".join(cell["source"]), name).body
    last = body.pop() if body and isinstance(body[-1], ast.Expr) else None
    value, printed = None, io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(ast.Module(body, []), name, "exec"), world)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), name, "eval"), world)
    outputs: list[dict[str, Any]] = []
    if printed.getvalue():
        outputs.append({"output_type": "stream", "name": "stdout", "text": _lines(printed.getvalue())})
    if value is not None:
        outputs.append({"output_type": "display_data", "metadata": {}, "data": shown(value)})
    return outputs


def shown(value: Any) -> dict[str, Any]:
    """Return a value as a notebook keeps it: its text, and a PNG if it is a picture."""
    data: dict[str, Any] = {"text/plain": _lines(repr(value))}
    if isinstance(value, Picture):
        with tempfile.TemporaryDirectory() as folder:
            file = value.save(Path(folder) / "picture.png", dpi=DPI)
            data["image/png"] = base64.b64encode(file.read_bytes()).decode()
    return data


def write(path: Path, outputs: list[list[dict[str, Any]]]) -> None:
    """Put the outputs of each cell into the file."""
    notebook = json.loads(path.read_text("utf-8"))
    for cell, found in zip(notebook["cells"], outputs, strict=True):
        if cell["cell_type"] == "code":
            cell["outputs"] = found
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", "utf-8")


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


def main() -> None:
    """Run all notebooks, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="notebooks without .ipynb; all if none is named")
    parser.add_argument("--write", action="store_true", help="write the outputs into the notebooks")
    options = parser.parse_args()
    for path in paths():
        if not options.names or path.stem in options.names:
            print(path.name, flush=True)
            _, outputs = run(path)
            if options.write:
                write(path, outputs)


if __name__ == "__main__":
    main()
