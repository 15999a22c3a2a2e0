"""Image files as arrays, with every choice made by an option."""

from __future__ import annotations

import hashlib
import io
import os
import re
import struct
import zlib
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from selkit.cli.inputs import MOST_BYTES, Chunk, Loaded, Samples, at_once, open_array, split_member
from selkit.errors import FileFormatError, InvalidInputError, MissingExtraError

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".pgm", ".ppm")

_LARGEST = {"uint8": 255.0, "uint16": 65535.0, "bool": 1.0}


@dataclass(frozen=True)
class ImageOptions:
    """How image files become arrays.

    Attributes
    ----------
    color
        "gray", "rgb", or None for files that are all the one or all the other.
    scale
        "unit" divides by the largest value of the file's type; "none" does not.
    resize
        Height and width, or None.
    mean, std
        Subtracted, and divided by, for each channel.
    layout
        "chw" or "hwc".
    """

    color: str | None = None
    scale: str = "unit"
    resize: tuple[int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    layout: str = "chw"

    def __post_init__(self) -> None:
        if self.std is not None and 0 in self.std:
            raise InvalidInputError("--std has a zero, by which no pixel can be divided")

    @classmethod
    def of(cls, options: Namespace, known: Mapping[str, Any] | None = None) -> ImageOptions:
        """Those of the command line; what it leaves open is as in ``known``, which it must not contradict.

        Raises
        ------
        InvalidInputError
            If an option differs from the one that a score was fitted with.
        """
        values: dict[str, Any] = {}
        for entry in fields(cls):
            given = getattr(options, entry.name)
            before = None if known is None else known.get(entry.name)
            before = tuple(before) if isinstance(before, list) else before
            if known is not None and given is not None and given != before:
                raise InvalidInputError(
                    f"--{entry.name} is {given}, but the score was fitted on images read with {before}"
                )
            if given is not None or before is not None:
                values[entry.name] = before if given is None else given
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for a file."""
        return asdict(self)


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtraError(
            "image files need Pillow; install it with: pip install 'selkit[images]'"
        ) from error
    return Image


_BROKEN = (
    OSError, ValueError, SyntaxError, EOFError, LookupError, TypeError, ArithmeticError, RuntimeError,
    AttributeError, MemoryError, struct.error, zlib.error,
)  # fmt: skip
"""What Pillow's readers raise for broken files."""


class ImageSamples:
    """Image files, in the order of their names.

    Parameters
    ----------
    paths
        The files.
    root
        What was given, for messages; names are relative to it.
    options
        How to read them.

    Raises
    ------
    InvalidInputError
        If sizes or kinds of color differ and no option says what to do.
    MissingExtraError
        If Pillow is not installed.
    """

    def __init__(self, paths: Sequence[Path], root: Path, options: ImageOptions) -> None:
        self._pillow = _pillow()
        self.paths, self.root, self.options = list(paths), root, options
        self.where = str(root)
        self._each = 1  # bytes of the largest image, as its header says
        self._check_alike()

    @classmethod
    def open(cls, path: Path, options: ImageOptions) -> ImageSamples:
        """Open one image, or all images in a folder and the folders in it.

        Raises
        ------
        InvalidInputError
            If there is no image.
        """
        if not path.is_dir():
            return cls([path], path.parent, options)
        found = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
        if not found:
            raise InvalidInputError(f"{path} has no images; looked for {', '.join(SUFFIXES)}")
        return cls(found, path, options)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, position: int) -> NDArray[np.float32]:
        return self._decode(self.paths[position].read_bytes(), self.paths[position])

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        return (self[position] for position in range(len(self)))

    def name(self, position: int) -> str:
        """The file's path below the folder that was given; what is no text in it is replaced."""
        path = self.paths[position].relative_to(self.root).as_posix()
        return os.fsencode(path).decode("utf-8", errors="replace")

    def chunks(self, size: int) -> Iterator[Chunk]:
        """All images, ``size`` at a time; a hash needs the files' bytes only."""
        size = at_once(size, self._each)
        for start in range(0, len(self), size):
            paths = self.paths[start : start + size]
            contents = [path.read_bytes() for path in paths]
            state = hashlib.sha256(repr(self.options).encode())
            for position, content in enumerate(contents, start):
                state.update(f"{self.name(position)}:{len(content)}:".encode() + content)
            yield Chunk(
                start,
                len(paths),
                state.hexdigest()[:32],
                lambda paths=paths, contents=contents: self._load(paths, contents),  # type: ignore[misc]
            )

    def _load(self, paths: Sequence[Path], contents: Sequence[bytes]) -> Loaded:
        values, good, bad = [], [], {}
        for position, (path, content) in enumerate(zip(paths, contents, strict=True)):
            try:
                values.append(self._decode(content, path))
                good.append(position)
            except FileFormatError as error:
                bad[position] = str(error)
        return Loaded(np.stack(values) if values else np.zeros((0,), np.float32), tuple(good), bad)

    def _check_alike(self) -> None:
        """Read the headers: mixed sizes and colors need an option; broken files fail later, one by one."""
        seen: dict[str, tuple[object, Path]] = {}
        for path in self.paths:
            try:
                with self._pillow.open(path) as image:
                    found = {"--resize": image.size[::-1], "--color": _color(image.mode)}
                    self._each = max(self._each, _bytes(image))
            except (*_BROKEN, self._pillow.DecompressionBombError):
                continue
            for option, value in found.items():
                if getattr(self.options, option[2:]) is not None:
                    continue
                if value is None:
                    raise InvalidInputError(
                        f"{path} has neither one nor three channels (mode {image.mode}); "
                        "say --color gray or rgb"
                    )
                first, where = seen.setdefault(option, (value, path))
                if value != first:
                    what = "different sizes" if option == "--resize" else "different colors"
                    raise InvalidInputError(
                        f"images have {what}: {first} in {where}, {value} in {path}; say {option}"
                    )

    def _decode(self, content: bytes, path: Path) -> NDArray[np.float32]:
        try:
            with self._pillow.open(io.BytesIO(content)) as image:
                if getattr(image, "n_frames", 1) > 1:
                    raise FileFormatError(f"{path} has {image.n_frames} frames; one is needed")
                if _bytes(image) > MOST_BYTES:
                    raise FileFormatError(
                        f"{path} has {image.width} x {image.height} pixels, {_bytes(image) // 2**20} MiB; at "
                        f"most {MOST_BYTES // 2**20} MiB are read: cut it into tiles"
                    )
                pixels = self._pixels(image, path)
        except FileFormatError:
            raise
        except (*_BROKEN, self._pillow.DecompressionBombError) as error:
            raise FileFormatError(f"{path} is not a readable image: {_plain(error)}") from error
        if self.options.resize is not None:
            height, width = self.options.resize
            planes = [self._pillow.fromarray(plane) for plane in pixels]
            bilinear = self._pillow.Resampling.BILINEAR
            pixels = np.stack([np.asarray(plane.resize((width, height), bilinear)) for plane in planes])
        pixels = self._normalized(pixels)
        return pixels if self.options.layout == "chw" else np.ascontiguousarray(np.moveaxis(pixels, 0, -1))

    def _pixels(self, image: Any, path: Path) -> NDArray[np.float32]:
        """Channels first, converted and scaled."""
        if _cut_to_bytes(image):
            raise FileFormatError(
                f"{path} has several channels of 16 bits, of which Pillow reads 8; save an array instead"
            )
        own = _color(image.mode)
        color = self.options.color or own
        deep = image.mode.startswith(("I", "F"))
        if color == "rgb" and own != "rgb":
            if deep:
                raise FileFormatError(
                    f"{path} has more than 8 bits in one channel; --color rgb cannot keep them"
                )
            image = image.convert("RGB")
        elif color == "gray" and not deep and image.mode not in ("L", "1"):
            image = image.convert("L")
        array = np.asarray(image)
        if self.options.scale == "unit":
            largest = _LARGEST.get(array.dtype.name)
            if largest is None:
                raise FileFormatError(
                    f"{path} has pixels of type {array.dtype}, whose largest value is not known; "
                    "say --scale none"
                )
            array = array / np.float32(largest)
        planes = array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0)
        return np.ascontiguousarray(planes, dtype=np.float32)

    def _normalized(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        for name, values in (("mean", self.options.mean), ("std", self.options.std)):
            if values is None:
                continue
            if len(values) not in (1, len(pixels)):
                raise InvalidInputError(
                    f"--{name} has {len(values)} numbers; images have {len(pixels)} channel(s)"
                )
            each = np.asarray(values, np.float32)[:, None, None]
            pixels = pixels - each if name == "mean" else pixels / each
        return pixels


def _bytes(image: Any) -> int:
    """What an image takes as float32."""
    return int(image.width * image.height * len(image.getbands()) * 4)


def _plain(error: BaseException) -> str:
    """An error's text without addresses of objects, which differ from run to run."""
    return re.sub(r"<[^<>]* object at 0x[0-9a-fA-F]+>", "its content", str(error))


def _cut_to_bytes(image: Any) -> bool:
    """Whether Pillow reads only the upper bytes of a file's pixels, which it does silently."""
    if len(image.getbands()) == 1:
        return False
    if image.format == "PNG":
        return any(str(tile[3]).partition(";")[2].startswith("16") for tile in image.tile)
    if image.format == "TIFF":
        return bool(max(image.tag_v2.get(258, (8,))) > 8)
    return False


def _color(mode: str) -> str | None:
    """What a file is without conversion; None where that is neither gray nor rgb."""
    if mode == "RGB":
        return "rgb"
    return "gray" if mode in ("L", "1", "F") or mode.startswith("I") else None


def open_samples(where: str, options: ImageOptions) -> Samples:
    """Open an array file, an image or a folder of images.

    Raises
    ------
    FileFormatError
        If it is another kind of file.
    FileNotFoundError
        If there is no such file.
    """
    path, _ = split_member(where)
    if not path.exists():
        raise FileNotFoundError(2, "No such file or directory", str(path))
    suffix = path.suffix.lower()
    if path.is_dir() or suffix in SUFFIXES:
        return ImageSamples.open(path, options)
    if suffix in (".npy", ".npz"):
        return open_array(where)
    raise FileFormatError(
        f"{where} is of an unknown kind; give a .npy or .npz file, a folder, or one of {', '.join(SUFFIXES)}"
    )
