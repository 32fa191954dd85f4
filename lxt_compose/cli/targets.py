"""Targets on the command line: a label, an index, or a token of the vocabulary."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..attribution.targets import OTHERS
from ..heatmap.tokens import bytes_of, scheme_of


@dataclass(frozen=True)
class Wanted:
    """A target for :func:`attribute`, with its name."""

    target: Any
    against: str = ""


def wanted(target: str | None, against: str | None, names: Any) -> Wanted:
    """Return the target of the two options.

    Args:
        target: a name or an index; None is the arg-max.
        against: the class or token that is subtracted; ``"others"`` is the mean of all others.
        names: turns a name into an index.

    Raises:
        ValueError: no class or token has this name, or both are the same.
    """
    first = None if target is None else names(target)
    if against is None:
        return Wanted(first)
    second = OTHERS if against == OTHERS else names(against)
    if first == second:
        raise ValueError(f"--target and --against are the same, {names.name(first)}, so there is nothing to explain")
    return Wanted((first, second), against)


class Labels:
    """The classes of a classifier, by label or number."""

    def __init__(self, config: Any) -> None:
        self.labels = {int(index): str(label) for index, label in (getattr(config, "id2label", None) or {}).items()}

    def __call__(self, name: str) -> int:
        """Return the index of a class.

        Raises:
            ValueError: there is none of this name.
        """
        name = name.strip()
        found = [index for index, label in self.labels.items() if label.lower() == name.lower()]
        if len(found) == 1:
            return found[0]
        if name.isdecimal():
            return int(name)
        shown = ", ".join(list(self.labels.values())[:20])
        raise ValueError(f"no class is called {name!r}; classes: {shown}")

    def name(self, index: int) -> str:
        """Return the name of a class."""
        return self.labels.get(index, str(index))


class Vocabulary:
    """The tokens of a language model, by text or, as ``#17``, by number."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def __call__(self, name: str) -> int:
        """Return the number of a token.

        Raises:
            ValueError: the text is not one token, or not in the vocabulary.
        """
        if name.startswith("#") and name[1:].isdecimal():
            return int(name[1:])
        if not name:
            raise ValueError("a target is a token or its number, such as #17; got an empty text")
        unknown = self._unknown()
        meant = name.strip() == unknown
        tries = (name, f" {name}") if not name.startswith(" ") else (name,)
        for text in tries:
            ids = self.tokenizer.encode(text, add_special_tokens=False)
            if len(ids) == 1 and (meant or self.tokenizer.convert_ids_to_tokens(ids) != [unknown]):
                return int(ids[0])
        pieces = self.tokenizer.convert_ids_to_tokens(self.tokenizer.encode(name, add_special_tokens=False))
        if not pieces or (unknown in pieces and not meant):
            number = f"#{int(name)} for token {int(name)}" if name.strip().isdecimal() else "such as #17"
            raise ValueError(
                f"{name!r} is not in the vocabulary: the tokenizer makes {' '.join(pieces[:8]) or 'nothing'} of it; "
                f"give a token as it is written in a text, or its number, {number}"
            )
        raise ValueError(
            f"{name!r} is not one token but {len(pieces)} ({' '.join(pieces[:8])}); give one of them as it is written "
            f"in a text, or its number as #17"
        )

    def _unknown(self) -> str | None:
        """Return the unknown token, if there is one."""
        if self.tokenizer.unk_token is not None:
            return str(self.tokenizer.unk_token)
        # A tokenizer may lack the attribute, while its backend knows the token.
        model = getattr(getattr(self.tokenizer, "backend_tokenizer", None), "model", None)
        return getattr(model, "unk_token", None)

    def name(self, index: int) -> str:
        """Return the name of a token: its text in quotes, or its bytes where they are only a part of a character."""
        text = str(self.tokenizer.decode([index]))
        if text and "\ufffd" not in text:
            return repr(text)
        token = str(self.tokenizer.convert_ids_to_tokens([index])[0])
        return "".join(f"<0x{byte:02X}>" for byte in bytes_of(token, scheme_of(self.tokenizer) or "bytes"))
