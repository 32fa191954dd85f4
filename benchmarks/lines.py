"""Files, lines and lines of code of the package, the tests and the benchmarks, in one checkout or several.

    python benchmarks/lines.py [../before]

Code is what remains without docstrings, comments and empty lines.
"""

import argparse
import ast
import io
import tokenize
from pathlib import Path

from tabulate import tabulate

HERE = Path(__file__).resolve().parent.parent
FOLDERS = ("lxt_compose", "tests", "benchmarks")
_SILENT = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def lines_of_code(source: str) -> int:
    """Return the number of lines with code on them; texts that stand alone, as docstrings do, are none."""
    texts = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            texts |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    code = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in _SILENT:
            code |= set(range(token.start[0], token.end[0] + 1))
    return len(code - texts)


def counted(folder: Path) -> list[int]:
    """Return the number of files in a folder, of their lines, and of their lines of code."""
    sources = [path.read_text("utf-8") for path in sorted(folder.rglob("*.py"))]
    return [len(sources), sum(len(text.splitlines()) for text in sources), sum(map(lines_of_code, sources))]


def main() -> None:
    """Print one table for each checkout."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("others", nargs="*", type=Path, help="other checkouts, counted before this one")
    for checkout in (*parser.parse_args().others, HERE):
        rows = [[folder, *counted(checkout / folder)] for folder in FOLDERS]
        print(f"{checkout.name}:", tabulate(rows, ["folder", "files", "lines", "code"]), sep="\n\n", end="\n\n")


if __name__ == "__main__":
    main()
