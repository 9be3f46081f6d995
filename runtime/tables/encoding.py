"""The bytes of a text file as UTF-8, one block of whole lines at a time.

Encodings are detected by their marks (UTF-8, UTF-16, UTF-32) or by the zero bytes of UTF-16. Another encoding is not
guessed: Latin-1 and a Cyrillic code page hold the same bytes, and a wrong guess would go unnoticed.
"""

import codecs
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from runtime.tables.files import TableFile, open_bytes
from runtime.tables.schema import BrokenFile

BLOCK_BYTES = 8 * 2**20
# Longest row of a text file: a text of 10 MB is one bad row, not an unreadable file.
ROW_BYTES = 64 * 2**20
# Rows with bytes that are not UTF-8 are rejected one by one, up to this share of a file that has no other UTF-8.
BROKEN_SHARE = 0.01
MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
HIGH_LINE = re.compile(rb"[^\n]*[\x80-\xff][^\n]*")


@dataclass(frozen=True)
class TextFile:
    """A text file and how it is encoded; `label` is its name where its table has several files, else ""."""

    path: Path
    name: str
    label: str
    table: str
    encoding: str

    def blocks(self) -> Iterator[bytes]:
        """UTF-8 in blocks that end with a line; only the last one may lack the line's end.

        Raises:
            BrokenFile: a line is longer than `ROW_BYTES`.
        """
        decoder = None if self.encoding.startswith("utf-8") else codecs.getincrementaldecoder(self.encoding)()
        held, first = b"", True
        with open_bytes(self.path) as opened:
            while True:
                data = opened.read(BLOCK_BYTES)
                is_last = not data
                if decoder is not None:
                    data = decoder.decode(data, is_last).encode()
                if first:
                    data, first = data.removeprefix(codecs.BOM_UTF8), False
                end = len(data) if is_last else max(data.rfind(b"\n"), _last_return(data)) + 1
                if end or is_last:
                    if held or end:
                        yield held + data[:end]
                    held = data[end:]
                else:
                    held += data
                if is_last:
                    return
                if len(held) > ROW_BYTES:
                    raise BrokenFile(f"{self.table}: {self.name} has a line of over {ROW_BYTES >> 20} MB. Shorten it.")


def _last_return(data: bytes) -> int:
    """Place of the last carriage return that is not the end of the block: a line feed may follow it."""
    return data.rfind(b"\r", 0, len(data) - 1) if b"\n" not in data else -1


def open_text(file: TableFile, *, table: str) -> TextFile:
    """Detect the encoding; every byte is looked at once.

    Raises:
        BrokenFile: the file is in another encoding than UTF-8, UTF-16 or UTF-32; names the first such line.
    """
    with open_bytes(file.path) as opened:
        begin = opened.read(4096)
    encoding = next((encoding for mark, encoding in MARKS if begin.startswith(mark)), None) or _by_zeros(begin)
    found = TextFile(file.path, file.name, file.label, table, encoding or "utf-8")
    if encoding is None or encoding == "utf-8-sig":
        _check_utf8(found)
    return found


def _by_zeros(begin: bytes) -> str | None:
    """UTF-16 without a mark: every other byte of ASCII text is zero."""
    even, odd = begin[0::2], begin[1::2]
    if len(begin) < 8:
        return None
    if odd.count(0) > 0.4 * len(odd) and even.count(0) < 0.1 * len(even):
        return "utf-16-le"
    if even.count(0) > 0.4 * len(even) and odd.count(0) < 0.1 * len(odd):
        return "utf-16-be"
    return None


def _check_utf8(file: TextFile) -> None:
    line, broken, first, is_utf8 = 0, 0, 0, False
    value = b""
    for block in file.blocks():
        if not block.isascii():
            try:
                block.decode()
                is_utf8 = True
            except UnicodeDecodeError:
                for found in HIGH_LINE.finditer(block):
                    try:
                        found[0].decode()
                        is_utf8 = True
                    except UnicodeDecodeError:
                        broken += 1
                        if not first:
                            first, value = line + block.count(b"\n", 0, found.start()) + 1, found[0]
        line += block.count(b"\n")
    if broken > max(1, BROKEN_SHARE * line) and not is_utf8:
        shown = value.decode("latin-1")[:60]
        raise BrokenFile(
            f"{file.table}: {file.name} is not UTF-8: line {first} ({shown!r} if it is Latin-1) and {broken - 1} more. "
            f"Save it as UTF-8, for example: iconv -f LATIN1 -t UTF-8 {file.path.name}"
        )
