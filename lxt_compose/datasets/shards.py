"""Rows in Parquet files, which appear when they are complete, each with the coverage of its rows."""

from __future__ import annotations

import json
import os
from importlib import import_module
from pathlib import Path
from typing import Any

from ..extras import needed
from .coverage import Coverage
from .rows import Row

_PATTERN, _KEY = "samples-*.parquet", b"lxt_compose"


def arrow() -> Any:
    """Return pyarrow, with its module for Parquet.

    Raises:
        ImportError: it is not installed.
    """
    needed("pyarrow.parquet", "results are written as Parquet files, which needs pyarrow: pip install pyarrow")
    return import_module("pyarrow")


def write_whole(path: Path, write: Any) -> None:
    """Write a file such that it exists as a whole or not at all.

    Args:
        path: the file.
        write: writes a file at the path that it is given.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    write(part)
    with open(part, "rb+") as file:
        os.fsync(file.fileno())
    part.replace(path)


class Shards:
    """The files of one folder.

    Args:
        folder: where they are.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._schema: Any = None

    def files(self) -> list[Path]:
        """Return the complete files, by the number of their first sample."""
        return sorted(self.folder.glob(_PATTERN))

    def done(self) -> tuple[set[int], int]:
        """Return the numbers of all samples that have rows, and how many of them failed."""
        found: set[int] = set()
        failed: set[int] = set()
        for path in self.files():
            table = arrow().parquet.read_table(path, columns=["sample", "error"])
            numbers, errors = table["sample"].to_pylist(), table["error"].to_pylist()
            found.update(numbers)
            failed.update(number for number, error in zip(numbers, errors, strict=True) if error is not None)
        return found, len(failed)

    def coverage(self) -> Coverage:
        """Return the coverage of all files."""
        total = Coverage()
        for path in self.files():
            kept = (arrow().parquet.read_schema(path).metadata or {}).get(_KEY)
            if kept is not None:
                total.add(Coverage.from_dict(json.loads(kept)))
        return total

    def write(self, rows: list[Row], coverage: Coverage) -> None:
        """Write rows as a file, named by the number of the first sample."""
        pa = arrow()
        schema = self._schema_of(rows, pa).with_metadata({_KEY: json.dumps(coverage.to_dict()).encode()})
        columns = {name: pa.array([row.get(name) for row in rows], schema.field(name).type) for name in schema.names}
        table = pa.table(columns, schema=schema)
        path = self.folder / f"samples-{rows[0]['sample']:09d}.parquet"
        write_whole(path, lambda part: pa.parquet.write_table(table, part))

    def _schema_of(self, rows: list[Row], pa: Any) -> Any:
        """Return the columns, which are the same in all files as soon as one sample was explained."""
        if self._schema is None:
            for path in self.files():  # files of the run that this one continues
                schema = pa.parquet.read_schema(path)
                if len(schema.names) > len(_HEAD):
                    self._schema = schema
        fields = {name: getattr(pa, kind)() for name, kind in _HEAD.items()}
        if self._schema is not None:
            fields = dict(zip(self._schema.names, self._schema.types, strict=True))
        for row in rows:
            for name, value in row.items():
                if name not in fields:
                    kind = pa.int32() if isinstance(value, list) else pa.from_numpy_dtype(value.dtype)
                    fields[name] = pa.list_(kind)
        schema = pa.schema(list(fields.items()))
        if len(fields) > len(_HEAD):
            self._schema = schema
        return schema


_HEAD = {
    "sample": "int64",
    "error": "string",
    "output": "float64",
    "target": "int64",
    "against": "int64",
    "target_name": "string",
}
"""The columns that every file has, with their types in pyarrow."""
