"""What mkdocs does to the pages of this folder, so that docstrings, files and notebooks read well on the site too."""

import json
import re
from pathlib import Path
from typing import Any

_EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
_INTO_THE_CODE = re.compile(
    r"\[([^\]]+)\]\((?:\.\./)+(?:lxt_compose|tests|benchmarks|examples|README|CONTRIBUTING)[^)]*\)"
)
_NOTEBOOK = re.compile(r"\((?:\.\./)+examples/(\w+)\.ipynb\)")
_ROLE = re.compile(r":(?:class|func|meth|attr|mod|data|exc):\s*<code>~?(?:lxt_compose\.)?")


def on_files(files: Any, config: Any) -> Any:
    """Return the pages with one more for each notebook in ``examples/``."""
    from mkdocs.structure.files import File

    for path in sorted(_EXAMPLES.glob("*.ipynb")):
        files.append(File.generated(config, f"examples/{path.stem}.md", content=as_markdown(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: object) -> str:
    """Return the page with links to notebooks as links to their pages, and links into the code as their text."""
    up = "../" * page.file.src_uri.count("/")
    return _INTO_THE_CODE.sub(r"\1", _NOTEBOOK.sub(rf"({up}examples/\1.md)", markdown))


def on_page_content(html: str, **_: object) -> str:
    """Return the page without Sphinx's marks in front of names."""
    return _ROLE.sub("<code>", html)


def as_markdown(path: Path) -> str:
    """Return a notebook as a page: its text, its code, and what the cells showed when it was last written."""
    parts = []
    for cell in json.loads(path.read_text("utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
        else:
            parts += [f"```python\n{source}\n```", *map(_shown, cell["outputs"])]
    return "\n\n".join(parts) + f"\n\n---\n\nThis page is the notebook `examples/{path.name}`, which the tests run.\n"


def _shown(output: dict[str, Any]) -> str:
    data = output.get("data", {})
    if "image/png" in data:
        return f"![the picture that the cell shows](data:image/png;base64,{data['image/png'].strip()})"
    return "```text\n" + "".join(output.get("text") or data["text/plain"]).rstrip("\n") + "\n```"
