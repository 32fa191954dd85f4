"""Stream a data set once, and show for units of a model the samples where they matter most."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from tabulate import tabulate
from torch import Tensor
from torch.utils.data import default_collate

from ..attribution import attribute
from ..concepts import References, find_references, find_units, gallery
from ..heatmap import Picture, page
from ..heatmap.picture import visible
from .answer import Answer, Say
from .composite_options import CheckpointOptions
from .explain import moved
from .model_files import CheckpointError, Loaded, load_model, load_object
from .sample_files import Images, Texts
from .targets import wanted

_FILE, _MANIFEST, _PAGE = "references.pt", "options.json", "gallery.html"
_FEW, _TOLD = 3, 10


@dataclass(frozen=True, kw_only=True)
class ConceptOptions(CheckpointOptions):
    """The units and samples that are collected, and what is shown of them.

    ``units`` are names of units, see :func:`~lxt_compose.concepts.find_units`; ``data`` is ``module:name`` of a data
    set, for models of a function. ``show`` is how many units the gallery has, ``count`` how many samples of each.
    """

    units: tuple[str, ...]
    out: Path
    texts: Path | None = None
    field: str = "text"
    images: Path | None = None
    data: str | None = None
    by: str = "relevance"
    k: int = 16
    target: str | None = None
    against: str | None = None
    batch_size: int = 8
    show: int = 8
    count: int = 8
    crop: bool = False
    pictures: bool = False


class DataSet:
    """Samples of a data set of the user's own."""

    tokens = None

    def __init__(self, reference: str) -> None:
        self._samples, self.collate = load_object(reference), default_collate
        if not (hasattr(self._samples, "__getitem__") and hasattr(self._samples, "__len__")):
            raise CheckpointError(
                f"{reference} is of type {type(self._samples).__name__}, no data set with len() and [i]"
            )

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, number: int) -> Any:
        """Return the inputs of one sample: without its label, if it is a pair of a tensor and a label."""
        sample = self._samples[number]
        is_pair = isinstance(sample, (tuple, list)) and len(sample) == 2 and isinstance(sample[0], Tensor)
        return sample[0] if is_pair else sample

    def title(self, number: int) -> str:
        """Return the name of a sample."""
        return f"sample {number}"

    @staticmethod
    def names(name: str) -> int:
        """Return the index of a class, which is given by its number."""
        if not name.isdecimal():
            raise ValueError(f"classes of this model are known by their numbers alone, got {name!r}")
        return int(name)


def collect_concepts(reference: str, options: ConceptOptions, *, say: Say) -> Answer:
    """Collect reference samples of units, and write a gallery; continues an earlier call.

    Args:
        reference: the checkpoint's folder, or ``module:factory`` with ``data``.
        options: what and how.
        say: takes lines about the progress.

    Raises:
        CheckpointError: the model, its tokenizer or its image processor cannot be loaded, or is not for this.
        ValueError: there are no samples, an option makes no sense, or the folder holds results of other options.
        MatchError: a name matches no module.
    """
    composite = options.rules.composite()
    say(f"loading {reference}")
    loaded = load_model(reference, dtype=options.dtype)
    data = _data(loaded, options)
    model = moved(loaded.model, options.device)
    found = find_units(model, options.units)
    how: dict[str, Any] = {"composite": composite, "target": wanted(options.target, options.against, data.names).target}
    _check_folder(reference, options)
    stream = _Stream(data, options.batch_size, options.device)
    say(f"collecting the best {options.k} of {len(data)} samples by {options.by}, into {options.out}")
    kept = find_references(model, stream, found, by=options.by, k=options.k, path=options.out / _FILE, **how)
    if not kept.count:
        raise ValueError(f"none of the {len(data)} samples can be read: {'; '.join(stream.skipped[:_FEW])}")
    complete = options.by != "relevance" or attribute(model, stream.one(0), **how).report.complete
    rows, pictures = [], {}
    for row in kept.table(options.show):
        name, number = row["units"], row["number"]
        rows.append(_row(row, stream))
        say(f"drawing {rows[-1]['unit']}")
        unit = next(each for each in found if str(each) == name)
        pictures[rows[-1]["unit"]] = gallery(
            model, kept, unit, number, stream.one, count=options.count, tokens=data.tokens, crop=options.crop,
            title=lambda best: f"{stream.title(best.sample)}: {best.value:.3g}", **how,
        )  # fmt: skip
    files = _write(pictures, kept, options, loaded.name)
    told = {"samples": kept.count, "units": rows, "files": files, "skipped": stream.skipped}
    return Answer(_told(kept, told), told, complete)


def _data(loaded: Loaded, options: ConceptOptions) -> Any:
    """Return the samples."""
    if sum(given is not None for given in (options.texts, options.images, options.data)) != 1:
        raise ValueError("give either --texts, --images or --data")
    if options.images is not None:
        return Images(loaded, options.images)
    return DataSet(options.data) if options.data is not None else Texts(loaded, options.texts, options.field)


def _check_folder(reference: str, options: ConceptOptions) -> None:
    """Note the options in the folder, which is made if it is not there.

    Raises:
        ValueError: the folder has other options.
    """
    names = ("units", "texts", "field", "images", "data", "by", "k", "target", "against", "batch_size")
    mine = {"model": reference, "rules": str(options.rules), **{name: getattr(options, name) for name in names}}
    mine = {name: str(value) for name, value in mine.items()}
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / _MANIFEST
    kept = json.loads(path.read_text("utf-8")) if path.exists() else mine
    other = [name for name in mine if kept.get(name) != mine[name]]
    if other:
        name = other[0]
        raise ValueError(
            f"{options.out} holds references for {name}={kept.get(name)}, not {mine[name]}; choose another folder"
        )
    path.write_text(json.dumps(mine, indent=2), encoding="utf-8")


def _row(row: dict[str, Any], stream: _Stream) -> dict[str, Any]:
    """Return the data of a unit."""
    best = [{"sample": stream.title(r.sample), "value": r.value, "place": list(r.place)} for r in row["best"]]
    place = row["units"].partition("[")[0].partition("@")[0]
    return {"unit": f"{place}[{row['number']}]", "mean": row["mean"], "best": best}


def _write(pictures: dict[str, Picture], kept: References, options: ConceptOptions, model: str) -> list[str]:
    """Write the page, and pictures if they are wanted; return the names of all files."""
    sections = [
        f"<h1>What units of {escape(visible(model))} stand for</h1>",
        f"<p>The best of {kept.count} samples by {options.by}, for the units with the largest means; colored is the "
        f"relevance that passes the unit at its best place, by the rules of {escape(str(options.rules))}.</p>",
    ]
    files = [str(options.out / _FILE), str(options.out / _PAGE)]
    for name, picture in pictures.items():
        sections += [f"<h2>{escape(visible(name))}</h2>", picture.html()]
        if options.pictures:
            path = options.out / (re.sub(r"[^\w.-]+", "_", name).strip("_") + ".png")
            files.append(str(picture.save(path)))
    (options.out / _PAGE).write_text(page(f"units of {visible(model)}", sections), encoding="utf-8")
    return files


def _told(kept: References, told: dict[str, Any]) -> str:
    """Return the table and what was written, for a terminal."""
    table = [
        [row["unit"], f"{row['mean']:+.4g}", ", ".join(f"{b['sample']} ({b['value']:.3g})" for b in row["best"][:_FEW])]
        for row in told["units"]
    ]
    lines = [tabulate(table, ["unit", "mean", "best samples"], tablefmt="simple", maxcolwidths=[40, None, 60]), ""]
    lines += [f"{kept!r}"[1:-1], *told["files"]]
    if told["skipped"]:
        lines += [f"{len(told['skipped'])} samples could not be read:", *told["skipped"][:_TOLD]]
    return "\n".join(lines)


class _Stream:
    """Batches of the samples that can be read, in order; others are reported and left out."""

    def __init__(self, data: Any, size: int, device: str) -> None:
        self._data, self._size, self._device = data, size, device
        self.numbers: list[int] = []
        """The number in the data set of each sample that was read."""
        self.skipped: list[str] = []

    def __iter__(self) -> Iterator[Any]:
        self.numbers, self.skipped, group = [], [], []
        for number in range(len(self._data)):
            try:
                group.append(self._data[number])
            except Exception as error:  # raised by the code that reads the sample
                self.skipped.append(f"{self._data.title(number)}: {type(error).__name__}: {error}")
                continue
            self.numbers.append(number)
            if len(group) == self._size:
                yield self._batch(group)
                group = []
        if group:
            yield self._batch(group)

    def one(self, place: int) -> Any:
        """Return the inputs of the sample that was read with this number, as a batch."""
        return self._batch([self._data[self.numbers[place]]])

    def title(self, place: int) -> str:
        """Return the name of the sample that was read with this number."""
        called: str = self._data.title(self.numbers[place])
        return called

    def _batch(self, group: Sequence[Any]) -> Any:
        batch = self._data.collate(list(group))
        if isinstance(batch, Tensor):
            return batch.to(self._device)
        return {name: x.to(self._device) if isinstance(x, Tensor) else x for name, x in batch.items()}
