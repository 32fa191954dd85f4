"""What mkdocs does to the pages of this folder, so that docstrings and files read well on the site too."""

import re

_INTO_THE_CODE = re.compile(r"\[([^\]]+)\]\(\.\./(?:lxt_compose|tests|benchmarks|examples|README|CONTRIBUTING)[^)]*\)")
_ROLE = re.compile(r":(?:class|func|meth|attr|mod|data|exc):\s*<code>~?(?:lxt_compose\.)?")


def on_page_markdown(markdown: str, **_: object) -> str:
    """Return the page with links into the code, which is no part of the site, as their text."""
    return _INTO_THE_CODE.sub(r"\1", markdown)


def on_page_content(html: str, **_: object) -> str:
    """Return the page without Sphinx's marks in front of names."""
    return _ROLE.sub("<code>", html)
