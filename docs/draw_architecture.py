"""Draw the rooms of the package and the imports between them: ``python docs/draw_architecture.py``.

Everything is read off the code, so the picture (docs/architecture.svg) stays true; a test compares the two. An arrow
goes from a room to one that it imports; those that follow from others are left out.
"""

from __future__ import annotations

import ast
import json
from pathlib import Path

import networkx

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "lxt_compose"
PICTURE = ROOT / "docs" / "architecture.svg"
FACADE = {"__init__", "__main__", "old_paths", "functional", "modules", "kinds"}
"""Files that only hand names on."""
_MARK = "lxt_compose rooms: "
_COLORS = ("#e8f0fb", "#e6f4ea", "#fdf3dc", "#fbe9e7", "#efe7f6")


def modules() -> dict[str, Path]:
    """Return each module of the package by its dotted name."""
    found = {}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(module: str, path: Path, known: dict[str, Path]) -> set[str]:
    """Return the modules of the package that a file imports, in functions and for typing too."""
    found = set()
    package = module.split(".") if path.stem == "__init__" else module.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if not isinstance(node, ast.ImportFrom):
            continue
        base = node.module or ""
        if node.level:
            base = ".".join([*package[: len(package) - node.level + 1], *filter(None, [node.module])])
        names = [f"{base}.{alias.name}" for alias in node.names]
        found |= {name if name in known else base for name in names}
    return {name for name in found if name in known and name != module}


def room(module: str) -> str:
    """Return the room of a module: a file at the top, or a folder."""
    return module.split(".")[1] if "." in module else "__init__"


def rooms() -> networkx.DiGraph:
    """Return the graph of rooms: an edge for each that imports another."""
    known, graph = modules(), networkx.DiGraph()
    for module, path in known.items():
        for other in imports(module, path, known):
            pair = room(module), room(other)
            if pair[0] != pair[1] and not FACADE & set(pair):
                graph.add_edge(*pair)
    return graph


def described(graph: networkx.DiGraph) -> dict[str, list[str]]:
    """Return the graph as plain data: each room with those that it imports."""
    return {name: sorted(graph.successors(name)) for name in sorted(graph)}


def pictured() -> dict[str, list[str]]:
    """Return what the picture shows."""
    text = PICTURE.read_text("utf-8")
    start = text.index(_MARK) + len(_MARK)
    found: dict[str, list[str]] = json.loads(text[start : text.index("-->", start)])
    return found


def levels(graph: networkx.DiGraph) -> list[list[str]]:
    """Return the rooms by level: each stands above all that it imports, right below the lowest that imports it."""
    order, heights = list(networkx.topological_sort(graph)), dict[str, int]()
    for name in reversed(order):
        heights[name] = 1 + max((heights[other] for other in graph.successors(name)), default=-1)
    for name in order:
        heights[name] = min((heights[other] - 1 for other in graph.predecessors(name)), default=heights[name])
    return [sorted(name for name in heights if heights[name] == level) for level in range(max(heights.values()) + 1)]


def draw(graph: networkx.DiGraph, path: Path) -> None:
    """Write the picture."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": PACKAGE, "font.family": "DejaVu Sans"})
    from matplotlib import pyplot

    rows = levels(graph)
    figure, axes = pyplot.subplots(figsize=(10, 0.95 * len(rows) + 0.4), dpi=72)
    places = {}
    for height, names in enumerate(rows):
        for number, name in enumerate(names):
            places[name] = (number + 0.5) / len(names), float(height)
    axes.set(xlim=(0, 1), ylim=(-0.6, len(rows) - 0.4))
    axes.axis("off")
    boxes = {}
    for name, (x, y) in places.items():
        color = _COLORS[int(y) % len(_COLORS)]
        box = {"boxstyle": "round,pad=0.45", "facecolor": color, "edgecolor": "#5b6472", "linewidth": 0.8}
        text = axes.text(x, y, name, ha="center", va="center", fontsize=10, color="#1c1f24", bbox=box)
        boxes[name] = text.get_bbox_patch()
    figure.canvas.draw()  # gives the boxes, at whose edges arrows end, their sizes
    for above, below in sorted(networkx.transitive_reduction(graph).edges):
        ends = {"patchA": boxes[above], "patchB": boxes[below], "shrinkA": 0, "shrinkB": 2}
        arrow = {"arrowstyle": "-|>", "color": "#8a8f98", "lw": 0.8, **ends}
        axes.annotate("", places[below], places[above], arrowprops=arrow)
    figure.savefig(path, metadata={"Date": None}, facecolor="white", bbox_inches="tight")
    written = path.read_text("utf-8")
    path.write_text(f"{written.rstrip()}\n<!-- {_MARK}{json.dumps(described(graph))} -->\n", "utf-8")


if __name__ == "__main__":
    draw(rooms(), PICTURE)
    print(f"{PICTURE.relative_to(ROOT)}: {len(rooms())} rooms, {rooms().number_of_edges()} arrows")
