"""The file of an offline W&B run: a header, then records in the format of LevelDB's logs."""

import struct
import zlib
from pathlib import Path

MAGIC = b":W&B"
HEADER = 7
BLOCK = 32768  # no piece of a record goes over its end
WHOLE, LAST = 1, 4  # kinds of pieces that end a record


def cut_to_whole_records(path: Path) -> None:
    """Cut off the record that a kill has left half written: `wandb sync` stops at it, and sends no later part of the
    run. A file that is whole stays as it is.

    Raises:
        OSError: it cannot be read or written.
    """
    with path.open("r+b") as file:
        if file.read(HEADER)[: len(MAGIC)] != MAGIC:
            return
        end = HEADER
        while True:
            left = BLOCK - file.tell() % BLOCK
            if left < HEADER:
                file.seek(left, 1)
            head = file.read(HEADER)
            if len(head) < HEADER:
                break
            checksum, length, kind = struct.unpack("<IHB", head)
            piece = file.read(length)
            if len(piece) < length or zlib.crc32(head[6:] + piece) != checksum:
                break
            if kind in (WHOLE, LAST):
                end = file.tell()
        if end < file.seek(0, 2):
            file.truncate(end)
