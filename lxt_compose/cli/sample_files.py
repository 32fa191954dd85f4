"""Texts of a file and images of a folder, as inputs by a checkpoint's tokenizer or image processor."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.utils.data import default_collate

from .explain import IMAGES, SEQUENCES, is_causal
from .model_files import CheckpointError, Loaded, load_beside
from .targets import Labels, Vocabulary

_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")


class Texts:
    """The texts of a file, as tokens."""

    def __init__(self, loaded: Loaded, path: Any, field: str) -> None:
        causal = is_causal(loaded)
        if not causal and SEQUENCES not in loaded.name:
            raise CheckpointError(f"{loaded.name} is neither a causal language model nor a classifier of texts")
        self._tokenizer, self._name = load_beside(loaded, "AutoTokenizer"), loaded.name
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token or self._tokenizer.convert_ids_to_tokens(0)
        accepted = set(inspect.signature(loaded.model.forward).parameters)
        self._accepted = accepted - {"token_type_ids"} if causal else accepted
        self._limit = getattr(loaded.model.config, "max_position_embeddings", None)
        self._texts = _lines(path, field)
        self.names = Vocabulary(self._tokenizer) if causal else Labels(loaded.model.config)

    def __len__(self) -> int:
        return len(self._texts)

    def title(self, number: int) -> str:
        """Return what a sample is called."""
        return f"line {number + 1}"

    @property
    def tokens(self) -> Any:
        """The tokenizer, which turns token ids into texts."""
        return self._tokenizer

    def __getitem__(self, number: int) -> dict[str, Any]:
        text = self._texts[number]
        if not text.strip():
            raise ValueError("the text is blank")
        found = {k: v for k, v in self._tokenizer(text).items() if k in self._accepted}
        length = len(found["input_ids"])
        if not length:
            raise ValueError("the text has no tokens")
        if self._limit is not None and length > self._limit:
            raise ValueError(f"the text has {length} tokens, but {self._name} takes at most {self._limit}")
        return found

    def collate(self, samples: list[dict[str, Any]]) -> Mapping[str, Any]:
        """Return the texts as one batch, padded to the longest."""
        return dict(self._tokenizer.pad(samples, return_tensors="pt", padding_side="right"))


def _lines(path: Path, field: str) -> list[str]:
    """Return the text of each line of a file; that of a blank line is blank.

    Raises:
        ValueError: there is none, or a line has no such entry.
    """
    with path.open(encoding="utf-8") as file:  # str.splitlines() would split at more than line breaks
        lines = [line.rstrip("\n") for line in file]
    if not any(line.strip() for line in lines):
        raise ValueError(f"{path} has no texts")
    if path.suffix != ".jsonl":
        return lines
    return [_entry(line, field, f"line {number} of {path}") for number, line in enumerate(lines, 1)]


def _entry(line: str, field: str, where: str) -> str:
    """Return the text of one line of JSON.

    Raises:
        ValueError: it is no JSON, or has no such entry.
    """
    if not line.strip():
        return ""
    try:
        found = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is no JSON: {error}") from error
    if not isinstance(found, dict) or not isinstance(found.get(field), str):
        raise ValueError(f"{where} has no text called {field!r}; say which entry it is: --field")
    text: str = found[field]
    return text


class Images:
    """The images of a folder, as inputs by an image processor."""

    def __init__(self, loaded: Loaded, folder: Path) -> None:
        if IMAGES not in loaded.name:
            raise CheckpointError(f"{loaded.name} is no classifier of images")
        self._processor = load_beside(loaded, "AutoImageProcessor")
        self._files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES)
        if not self._files:
            raise ValueError(f"{folder} has no images ({', '.join(_SUFFIXES)})")
        self._dtype = next(p.dtype for p in loaded.model.parameters() if p.is_floating_point())
        self.names, self.collate = Labels(loaded.model.config), default_collate

    def __len__(self) -> int:
        return len(self._files)

    tokens = None

    def title(self, number: int) -> str:
        """Return what a sample is called."""
        return self._files[number].name

    def __getitem__(self, number: int) -> dict[str, Any]:
        from PIL import Image

        picture = Image.open(str(self._files[number])).convert("RGB")
        return {"pixel_values": self._processor(picture, return_tensors="pt")["pixel_values"][0].to(self._dtype)}
