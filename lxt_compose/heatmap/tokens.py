"""Word pieces: the text that a token stands for, and the pieces that belong to one word."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

SCHEMES = ("words", "wordpiece", "bytes", "sentencepiece", "suffix")
_SPACE = "\u2581"  # SentencePiece's mark of a space
_NO_SPACE_BEFORE = frozenset(".,;:!?%)]}'’”…")
_NO_SPACE_AFTER = frozenset("([{‘“'’-–—/")


@dataclass(frozen=True)
class Piece:
    """One token of a text, with its text and spaces.

    ``text`` is its own text, without spaces at the ends (unless it has nothing else) and line breaks;
    ``tokens`` are the numbers of the tokens it stands for (several, if only together they are a character or if words
    are wanted); ``space`` says whether a space, and ``lines`` how many line breaks, come before it; ``special`` marks
    tokens that stand for no text, such as ``[CLS]``.
    """

    text: str
    tokens: tuple[int, ...]
    space: bool = False
    lines: int = 0
    special: bool = False

    @property
    def blank(self) -> bool:
        """Whether it is made of spaces alone."""
        return bool(self.text) and not self.text.strip(" ")

    @property
    def label(self) -> str:
        """Its name outside of the text."""
        return "\u2423" * len(self.text) if self.blank else self.text


@dataclass(frozen=True)
class Sentence:
    """One text: pieces, the score of each, what full color means, a title (may be empty), the raw tokens.

    ``marked`` are the numbers of tokens that stand out.
    """

    pieces: tuple[Piece, ...]
    scores: tuple[float, ...]
    scale: float
    title: str
    tokens: tuple[str, ...]
    marked: frozenset[int] = frozenset()

    def stands_out(self, piece: Piece) -> bool:
        """Return whether one of a piece's tokens is marked."""
        return not self.marked.isdisjoint(piece.tokens)

    def raw(self, piece: Piece) -> str:
        """Return the tokens behind a piece, as the tokenizer names them."""
        return " ".join(self.tokens[number] for number in piece.tokens)


def _byte_table() -> dict[str, int]:
    """Return the bytes behind the characters of byte-level BPE: printable bytes are themselves, others 256 and up."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTES = _byte_table()


def guess_scheme(tokens: Sequence[str]) -> str:
    """Return how word pieces are marked: one of :data:`SCHEMES`, from the marks that occur.

    ``"wordpiece"``: ``##ing`` goes on with a word (BERT). ``"bytes"``: ``Ġthe`` begins with a space (GPT-2, Llama 3).
    ``"sentencepiece"``: ``▁the`` does (T5, Llama 2, Gemma). ``"suffix"``: ``the</w>`` ends a word (CLIP, XLM).
    ``"words"``: no marks, each token is a word.
    """
    if any(_SPACE in token for token in tokens):
        return "sentencepiece"
    if any(token.startswith(("Ġ", "Ċ")) for token in tokens):
        return "bytes"
    if any(token.startswith("##") and len(token) > 2 for token in tokens):
        return "wordpiece"
    if any(token.endswith("</w>") for token in tokens):
        return "suffix"
    return "words"


def scheme_of(tokenizer: Any) -> str | None:
    """Return how the word pieces of a tokenizer are marked; None if that is unknown and has to be guessed.

    Args:
        tokenizer: a tokenizer of transformers or of tokenizers.
    """
    backend = getattr(tokenizer, "backend_tokenizer", getattr(tokenizer, "_tokenizer", tokenizer))
    try:
        decoder = json.dumps(json.loads(backend.to_str())["decoder"])
    except (AttributeError, KeyError, TypeError, ValueError):
        return None
    for mark, scheme in (
        ('"WordPiece"', "wordpiece"),
        ('"ByteLevel"', "bytes"),
        ('"Metaspace"', "sentencepiece"),
        ('"BPEDecoder"', "suffix"),
        (_SPACE.encode("unicode_escape").decode(), "sentencepiece"),
    ):
        if mark in decoder:
            return scheme
    return None


def pieces_of(tokens: Sequence[str], *, scheme: str | None = None, special: Sequence[str] = ()) -> list[Piece]:
    """Return the pieces of text of tokens.

    Args:
        tokens: as the tokenizer names them, or plain words.
        scheme: one of :data:`SCHEMES`; None guesses.
        special: tokens that stand for no text; those in ``<...>``, ``[...]`` and ``<|...|>`` are known.

    Raises:
        ValueError: the scheme is unknown.
    """
    scheme = guess_scheme(tokens) if scheme is None else scheme
    if scheme not in SCHEMES:
        raise ValueError(f"scheme must be one of {', '.join(SCHEMES)}, or None to guess, got {scheme!r}")
    marked = {token for token in tokens if token in special or _is_special(token, scheme)}
    if scheme in ("bytes", "sentencepiece"):
        return _spaced(_characters(tokens, marked, scheme))
    pieces: list[Piece] = []
    inside = False  # a word has begun and goes on
    for number, token in enumerate(tokens):
        if token in marked:
            pieces.append(Piece(token, (number,), space=number > 0, special=True))
            inside = False
            continue
        text, goes_on = token, inside
        if scheme == "wordpiece":
            goes_on = token.startswith("##") and len(token) > 2
            text = token[2:] if goes_on else token
        elif scheme == "suffix":
            text = token.removesuffix("</w>")
            inside = not token.endswith("</w>")
        before = pieces[-1] if pieces else None
        space = before is not None and not goes_on
        if scheme == "wordpiece" and before is not None and not before.special and space:
            space = not (text in _NO_SPACE_BEFORE or before.text in _NO_SPACE_AFTER)
        pieces.append(Piece(text, (number,), space=space))
    return pieces


def labels_of(tokens: Sequence[str], *, scheme: str | None = None, special: Sequence[str] = ()) -> list[str]:
    """Return the text of each token outside of the text; tokens that only together are a character all have it.

    Args and errors are those of :func:`pieces_of`.
    """
    found = list(tokens)
    for piece in pieces_of(tokens, scheme=scheme, special=special):
        for number in piece.tokens:
            found[number] = piece.label
    return found


def words_of(pieces: Sequence[Piece]) -> list[Piece]:
    """Return pieces joined to whole words."""
    words: list[Piece] = []
    for piece in pieces:
        last = words[-1] if words else None
        if last is not None and last.blank and not (piece.blank or piece.lines or piece.special):
            words[-1] = Piece(piece.text, (*last.tokens, *piece.tokens), len(words) > 1, last.lines)
        elif last is None or piece.space or piece.lines or piece.special or piece.blank or last.special or last.blank:
            words.append(piece)
        else:
            words[-1] = Piece(last.text + piece.text, (*last.tokens, *piece.tokens), last.space, last.lines)
    return words


def _is_special(token: str, scheme: str) -> bool:
    if token.startswith("<|") and token.endswith("|>") and len(token) > 4:
        return True
    if len(token) > 2 and token[0] + token[-1] == "[]":
        return token[1:-1].isupper() or token.startswith("[unused")
    if len(token) > 2 and token[0] + token[-1] == "<>" and scheme != "words":
        return token in _ANGLED or token.startswith(("<extra_id_", "<unused"))
    return False


_ANGLED = frozenset("<s> </s> <pad> <unk> <mask> <bos> <eos> <cls> <sep> <start_of_turn> <end_of_turn>".split())


def _characters(tokens: Sequence[str], marked: set[str], scheme: str) -> list[Piece]:
    """Return pieces whose text may begin with spaces and line breaks; tokens of one character stay together."""
    pieces: list[Piece] = []
    pending = b""
    numbers: list[int] = []
    for number, token in enumerate(tokens):
        if token in marked:
            if numbers:
                pieces.append(Piece(pending.decode("utf-8", "replace"), tuple(numbers)))
            pending, numbers = b"", []
            pieces.append(Piece(token, (number,), special=True))
            continue
        pending += bytes_of(token, scheme)
        numbers.append(number)
        if _is_whole(pending):
            pieces.append(Piece(pending.decode("utf-8", "replace"), tuple(numbers)))
            pending, numbers = b"", []
    if numbers:
        pieces.append(Piece(pending.decode("utf-8", "replace"), tuple(numbers)))
    return pieces


def bytes_of(token: str, scheme: str) -> bytes:
    """Return the bytes of text that a token stands for, of a tokenizer that splits characters into bytes."""
    if scheme == "sentencepiece":
        if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            try:
                return bytes.fromhex(token[3:5])
            except ValueError:
                pass
        return token.replace(_SPACE, " ").encode("utf-8", "replace")
    if all(char in _BYTES for char in token):
        return bytes(_BYTES[char] for char in token)
    return token.encode("utf-8", "replace")  # an added token, which is plain text


def _is_whole(data: bytes) -> bool:
    """Return whether the last character is complete; bytes that are no text at all count as complete."""
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.reason != "unexpected end of data" or len(data) - error.start > 3
    return True


def _spaced(raw: list[Piece]) -> list[Piece]:
    """Turn spaces and line breaks at the ends of pieces into attributes of the pieces."""
    pieces: list[Piece] = []
    space, lines = False, 0
    for piece in raw:
        if piece.special:
            pieces.append(Piece(piece.text, piece.tokens, space or bool(pieces), lines, special=True))
            space, lines = True, 0
            continue
        body = piece.text.strip(" \n\r\t")
        count = piece.text.count("\n")
        if not body and not count:  # spaces alone: they are their own text
            pieces.append(Piece(" " * len(piece.text), piece.tokens, space, lines))
            space, lines = False, 0
            continue
        if not body:  # line breaks alone: shown by a mark, and they break the line after it
            pieces.append(Piece("\u23ce" * count, piece.tokens, space, lines))
            space, lines = False, count
            continue
        head = piece.text[: len(piece.text) - len(piece.text.lstrip(" \n\r\t"))]
        tail = piece.text[len(piece.text.rstrip(" \n\r\t")) :]
        space = (space or bool(set(head) - {"\n", "\r"})) and bool(pieces)
        pieces.append(Piece(body, piece.tokens, space, lines + head.count("\n")))
        space, lines = bool(set(tail) - {"\n", "\r"}), tail.count("\n")
    return pieces
