"""Tables that a user holds in memory, written as Parquet files for the readers of this package.

All checks live in one reader, which reads files (runtime/tables/), so a table in memory is written first. A path stays
as it is. Pictures become bytes: a `PIL.Image`, bytes, a path, or the `datasets` struct of both.
"""

import filecmp
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from runtime.files import partial_path

IMAGE = pa.struct([("bytes", pa.large_binary()), ("path", pa.string())])
ROWS_AT_ONCE = 64
MOST_FILE_BYTES = 2**28  # far above the limit of a picture file, unless a policy raises that


def as_file(data: Any, *, name: str, folder: Path) -> str:
    """The path of a table: `data` itself where that is one, else `folder/name.parquet`, written from it.

    Args:
        data: a path or Hub id, a pandas or polars DataFrame, a pyarrow Table, a `datasets.Dataset`, a list of dicts, or
            a dict of columns.
        name: of the table, in messages and as the name of the file.

    Raises:
        ValueError: nothing of these, no rows, or a column whose values have no common type.
    """
    if isinstance(data, str | Path):
        return str(data)
    table, images = _columns(data, name=name)
    if not table.num_columns and images is None:
        raise ValueError(f"{name}: the table is empty; give at least one row")
    path = folder / f"{name}.parquet"
    folder.mkdir(parents=True, exist_ok=True)
    partial = partial_path(path)
    try:
        try:
            _write(table, images, partial, name=name)
        except pa.ArrowException as error:
            reason = str(error).strip().split("\n")[0]
            raise ValueError(f"{name}: a column cannot be written: {reason}; convert it to text or numbers") from error
        # An equal file keeps its time, by which finished work on it is recognised.
        if not (path.exists() and filecmp.cmp(partial, path, shallow=False)):
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return str(path)


def _columns(data: Any, *, name: str) -> tuple[pa.Table, Sequence[Any] | None]:
    """All columns but `image`, and the values of that one."""
    kind = type(data).__module__.partition(".")[0]
    if isinstance(data, pa.Table):
        images = data.column("image").to_pylist() if "image" in data.column_names else None
        return (data if images is None else data.drop_columns(["image"])), images
    if kind == "datasets":
        return _from_dataset(data, name=name)
    if kind == "pandas":
        images = None if "image" not in data else [_or_none(value) for value in data["image"].tolist()]
        rest = data.drop(columns=["image"], errors="ignore")
        return _arrow(lambda: pa.Table.from_pandas(rest, preserve_index=False), name=name), images
    if kind == "polars":
        images = data["image"].to_list() if "image" in data.columns else None
        rest = data.drop("image", strict=False)
        return _arrow(rest.to_arrow, name=name), images
    if isinstance(data, Mapping):
        images = list(data["image"]) if "image" in data else None
        rest = {column: list(values) for column, values in data.items() if column != "image"}
        return _arrow(lambda: pa.table(rest), name=name), images
    if isinstance(data, Sequence) and all(isinstance(row, Mapping) for row in data):
        columns = list(dict.fromkeys(key for row in data for key in row))
        return _columns({column: [row.get(column) for row in data] for column in columns}, name=name)
    raise ValueError(
        f"{name} is {type(data).__name__}; give a path, a pandas or polars DataFrame, a pyarrow Table, a "
        "datasets.Dataset, a list of dicts or a dict of columns"
    )


def _from_dataset(data: Any, *, name: str) -> tuple[pa.Table, Sequence[Any] | None]:
    import datasets

    if isinstance(data, datasets.DatasetDict | datasets.IterableDatasetDict):
        raise ValueError(
            f"{name} holds the splits {', '.join(data)}; give one of them, such as data[{next(iter(data))!r}]"
        )
    if isinstance(data, datasets.IterableDataset):
        return _columns([dict(row) for row in data], name=name)
    if isinstance(data.features.get("image"), datasets.Image):
        data = data.cast_column("image", datasets.Image(decode=False))
    images = data["image"] if "image" in data.column_names else None
    rest = data.remove_columns([] if images is None else ["image"]).with_format("arrow")
    return (rest[:] if rest.column_names else pa.table({})), images


def _arrow(convert: Callable[[], pa.Table], *, name: str) -> pa.Table:
    try:
        found: pa.Table = convert()
    except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"{name}: a column has values of several types: {reason}; convert it to one type") from error
    return found


def _or_none(value: Any) -> Any:
    """None for pandas' NaN and NA."""
    is_missing = value is None or type(value).__name__ == "NAType" or (isinstance(value, float) and value != value)
    return None if is_missing else value


def _write(table: pa.Table, images: Sequence[Any] | None, path: Path, *, name: str) -> None:
    if images is None:
        pq.write_table(table, path)
        return
    schema = table.schema.append(pa.field("image", IMAGE))
    with pq.ParquetWriter(path, schema) as writer:
        for low in range(0, len(images), ROWS_AT_ONCE):
            cells = [
                _picture(images[row], f"{name}: row {row}") for row in range(low, min(low + ROWS_AT_ONCE, len(images)))
            ]
            part = table.slice(low, len(cells)).combine_chunks()
            writer.write_table(pa.table([*part.columns, pa.array(cells, IMAGE)], schema=schema))


def _content(file: Path) -> bytes:
    """The bytes of a file; of one that no limit allows only the first, so that the reader rejects it as too large."""
    with file.open("rb") as stream:
        return stream.read(MOST_FILE_BYTES + 1)


def _picture(value: Any, place: str) -> dict[str, Any] | None:
    """One value as {bytes, path}; a file that is not there keeps its path, and its row is rejected by the reader."""
    if value is None or value == "":
        return None
    if isinstance(value, Mapping):
        return _picture(value.get("bytes") or value.get("path"), place)
    if isinstance(value, bytes | bytearray | memoryview):
        return {"bytes": bytes(value), "path": None}
    if isinstance(value, str | Path):
        file = Path(value).expanduser()
        if file.is_file():
            return {"bytes": _content(file), "path": file.name}
        return {"bytes": None, "path": file.name if file.is_absolute() else str(value)}
    if hasattr(value, "save") and hasattr(value, "mode"):
        buffer = io.BytesIO()
        value.save(buffer, "PNG")
        return {"bytes": buffer.getvalue(), "path": None}
    raise ValueError(f"{place}: an image is {type(value).__name__}; give a PIL image, bytes, a path or None")
