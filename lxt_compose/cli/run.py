"""Explain a file of texts or a folder of images, and write the results to a folder."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.utils.data import default_collate

from ..datasets import attribute_dataset
from .answer import Answer, Say
from .composite_options import CheckpointOptions
from .explain import IMAGES, SEQUENCES, is_causal, moved
from .model_files import CheckpointError, Loaded, load_beside, load_model
from .targets import Labels, Vocabulary, wanted

_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")


@dataclass(frozen=True, kw_only=True)
class RunOptions(CheckpointOptions):
    """What is to be explained, and where the results go.

    ``texts`` is a file with a text on each line, or ``.jsonl`` with an object on each line, whose entry ``field`` is
    the text; ``images`` is a folder. ``target`` and ``against`` are as for one text or image.
    """

    out: Path
    texts: Path | None = None
    field: str = "text"
    images: Path | None = None
    target: str | None = None
    against: str | None = None
    batch_size: int = 8
    keep: str = "scores"
    progress: bool = True


def run(reference: str, options: RunOptions, *, say: Say) -> Answer:
    """Explain what a checkpoint makes of each text or image; goes on where an earlier run has stopped.

    Args:
        reference: the checkpoint's folder.
        options: what and how.
        say: takes lines about the progress.

    Raises:
        CheckpointError: the model, its tokenizer or its image processor cannot be loaded, or is not for this.
        ValueError: the file or the folder has no texts or images, or an option makes no sense for this model.
    """
    if (options.texts is None) == (options.images is None):
        raise ValueError("give either --texts or --images")
    composite = options.rules.composite()
    say(f"loading {reference}")
    loaded = load_model(reference, dtype=options.dtype)
    data: Any = _Images(loaded, options.images) if options.images else _Texts(loaded, options.texts, options.field)
    aim = wanted(options.target, options.against, data.names)
    say(f"explaining {len(data)} samples with {options.rules}, into {options.out}")
    done = attribute_dataset(
        moved(loaded.model, options.device),
        data,
        options.out,
        target=aim.target,
        composite=composite,
        keep=options.keep,
        batch_size=options.batch_size,
        collate=data.collate,
        progress=options.progress,
    )
    return Answer(repr(done)[1:-1], done.manifest, done.complete)


class _Texts:
    """The texts of a file, each as a tokenizer takes it apart."""

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

    def __getitem__(self, number: int) -> dict[str, Any]:
        found = {k: v for k, v in self._tokenizer(self._texts[number]).items() if k in self._accepted}
        length = len(found["input_ids"])
        if not length:
            raise ValueError("the text has no tokens")
        if self._limit is not None and length > self._limit:
            raise ValueError(f"the text has {length} tokens, but {self._name} takes at most {self._limit}")
        return found

    def collate(self, samples: list[dict[str, Any]]) -> Mapping[str, Any]:
        """Return the texts side by side, padded to the longest of them."""
        return dict(self._tokenizer.pad(samples, return_tensors="pt", padding_side="right"))


def _lines(path: Path, field: str) -> list[str]:
    """Return the texts of a file.

    Raises:
        ValueError: there is none, or a line has no such entry.
    """
    lines = [line for line in path.read_text("utf-8").splitlines() if line.strip()]
    if not lines:
        raise ValueError(f"{path} has no texts")
    if path.suffix != ".jsonl":
        return lines
    found = [json.loads(line) for line in lines]
    for number, one in enumerate(found, 1):
        if not isinstance(one, dict) or not isinstance(one.get(field), str):
            raise ValueError(f"line {number} of {path} has no text called {field!r}; say which entry it is: --field")
    return [one[field] for one in found]


class _Images:
    """The images of a folder, as an image processor makes them."""

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

    def __getitem__(self, number: int) -> dict[str, Any]:
        from PIL import Image

        picture = Image.open(str(self._files[number])).convert("RGB")
        return {"pixel_values": self._processor(picture, return_tensors="pt")["pixel_values"][0].to(self._dtype)}
