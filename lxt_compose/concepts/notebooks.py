"""Results in a notebook: a picture, or a text where there can be none."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from typing import Any


def html_of(found: Any, picture: Callable[[], Any]) -> str:
    """Return a picture as HTML, or the result's text and the reason why there is no picture.

    Args:
        found: the result.
        picture: makes a :class:`~lxt_compose.heatmap.Picture`; may raise ValueError or ImportError.
    """
    try:
        shown: str = picture().html()
    except (ValueError, ImportError) as error:
        return f"<p>{escape(repr(found))}</p><p>{escape(str(error))}</p>"
    return shown
