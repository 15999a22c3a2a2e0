"""Options that several commands share."""

from __future__ import annotations

import argparse
import math
import textwrap
from typing import Any, TypeAlias

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

INPUTS = "a .npy or .npz file (data.npz:name where it has several arrays), an image or a folder of images"


def parent() -> argparse.ArgumentParser:
    """What every command understands."""
    parser = argparse.ArgumentParser(add_help=False)
    group = parser.add_argument_group("output")
    group.add_argument("-q", "--quiet", action="store_true", help="no progress, no summary; errors only")
    group.add_argument(
        "--json", action="store_true", help="one JSON object on standard output, all else on standard error"
    )
    group.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def command(
    commands: Commands, common: argparse.ArgumentParser, name: str, *, summary: str, text: str, examples: str
) -> argparse.ArgumentParser:
    """Add a command with its help text."""
    return commands.add_parser(
        name,
        help=summary,
        description=textwrap.fill(f"{summary[0].upper()}{summary[1:]}. {text}", 79),
        epilog=f"examples:\n{examples}",
        parents=[common],
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def add_image_options(parser: argparse.ArgumentParser) -> None:
    """How image files become arrays."""
    group = parser.add_argument_group(
        "image files",
        "how they become arrays (channels, height, width); arrays are taken as they are",
    )
    group.add_argument("--color", choices=["gray", "rgb"], help="convert to one or three channels")
    group.add_argument(
        "--scale",
        choices=["unit", "none"],
        help="unit: divide by the largest value of the file's type, so that pixels are in [0, 1] (default); "
        "none: pixels as they are in the file",
    )
    group.add_argument("--resize", type=size, metavar="HxW", help="resize every image, bilinear")
    group.add_argument("--mean", type=numbers, metavar="A[,B,C]", help="subtract, by channel, after --scale")
    group.add_argument("--std", type=numbers, metavar="A[,B,C]", help="then divide, by channel")
    group.add_argument("--layout", choices=["chw", "hwc"], help="order of the axes (default: chw)")


def add_chunk(parser: argparse.ArgumentParser, default: int = 1024) -> None:
    """How many samples are in memory at once."""
    parser.add_argument(
        "--chunk", type=count, default=default, metavar="N", help=f"samples at a time (default: {default})"
    )


def add_resume(parser: argparse.ArgumentParser) -> None:
    """What happens to an interrupted run."""
    parser.add_argument(
        "--restart", action="store_true", help="forget an interrupted run instead of continuing it"
    )


def size(text: str) -> tuple[int, int]:
    """Parse ``HxW``.

    Examples
    --------
    >>> size("64x48")
    (64, 48)
    """
    parts = text.lower().split("x")
    if len(parts) == 1:
        parts *= 2
    try:
        height, width = (int(part) for part in parts)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no size such as 64x48") from None
    if height < 1 or width < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no size such as 64x48")
    return height, width


def numbers(text: str) -> tuple[float, ...]:
    """Parse numbers with commas between them."""
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers such as 0.5,0.5,0.5") from None
    if not all(math.isfinite(value) for value in found):
        raise argparse.ArgumentTypeError(f"{text!r} has a number that is not finite")
    return found


def count(text: str) -> int:
    """Parse a number of things, at least one."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return value


def fraction(text: str) -> float:
    """Parse a number between 0 and 1."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number between 0 and 1")
    return value


def assignment(text: str) -> tuple[str, Any]:
    """Parse ``name=value``; numbers, true, false and none become what they say.

    Examples
    --------
    >>> assignment("k=5"), assignment("stat=mean"), assignment("pca=none")
    (('k', 5), ('stat', 'mean'), ('pca', None))
    """
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"{text!r} is no setting such as k=5")
    words: dict[str, Any] = {"true": True, "false": False, "none": None}
    if value.lower() in words:
        return name, words[value.lower()]
    for kind in (int, float):
        try:
            return name, kind(value)
        except ValueError:
            continue
    return name, value
