"""Parts of a page that a command writes itself, between two marks."""

from collections.abc import Callable
from pathlib import Path


def between(page: Path, name: str, change: Callable[[str], str]) -> None:
    """Change what stands between the marks of this name, ``<!-- name -->`` and ``<!-- end of name -->``.

    Raises:
        ValueError: the page has no such marks.
    """
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"
    text = page.read_text("utf-8")
    if text.count(begin) != 1 or text.count(end) != 1:
        raise ValueError(f"{page} needs the marks {begin.strip()} and {end.strip()}, once each")
    before, rest = text.split(begin)
    inside, after = rest.split(end)
    page.write_text(f"{before}{begin}\n{change(inside.strip()).strip()}\n\n{end}{after}", "utf-8")
