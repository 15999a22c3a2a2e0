"""A checksum of a bundle's bytes inside the bundle, so that no damaged file decides."""

from __future__ import annotations

import hashlib

import onnx

from selkit.errors import FileFormatError

KEY = "selkit.sha256"
_BLANK = b"0" * 64
_MARK = b"\n" + bytes([len(KEY)]) + KEY.encode() + b"\x12" + bytes([len(_BLANK)])
"""How protobuf writes the entry's key, and the length of its value."""


def prepare(model: onnx.ModelProto) -> None:
    """Put an empty checksum into a model's metadata."""
    model.metadata_props.add(key=KEY, value=_BLANK.decode())


def seal(content: bytes) -> bytes:
    """The file's content with its checksum: that of all bytes, the checksum's own counted as zeros."""
    place = content.index(_MARK) + len(_MARK)
    return content[:place] + _digest(content, place) + content[place + len(_BLANK) :]


def check(content: bytes, where: str) -> None:
    """Refuse content that is not, to the byte, what was written.

    Raises
    ------
    FileFormatError
        If it was changed or damaged.
    """
    if content.count(_MARK) != 1:
        raise FileFormatError(f"{where} has no checksum: it was damaged, or saved by another program")
    place = content.index(_MARK) + len(_MARK)
    if content[place : place + len(_BLANK)] != _digest(content, place):
        raise FileFormatError(
            f"{where} was changed or damaged after it was written: its checksum does not fit; export it again"
        )


def _digest(content: bytes, place: int) -> bytes:
    state = hashlib.sha256(memoryview(content)[:place])
    state.update(_BLANK)
    state.update(memoryview(content)[place + len(_BLANK) :])
    return state.hexdigest().encode()
