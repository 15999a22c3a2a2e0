"""The parser of the command, and what becomes of errors and signals."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from types import FrameType

import selkit
from selkit.cli import bundle, demo, explain, fit, ops, report, roi, select
from selkit.cli.console import Console, Exit, TerminatedError, one_line
from selkit.cli.options import parent
from selkit.errors import SelkitError

COMMANDS = (fit, select, roi, explain, bundle, report, demo, ops)

EPILOG = """\
exit codes:
  0    done
  1    an input or a file cannot be used; one line on standard error says why
  2    the command line is wrong
  3    done, but some samples could not be judged (they are listed with their reason)
  4    done, but a check that was asked for failed (coverage, unsupported operators, verification)
  70   a fault of selkit itself
  130  interrupted (Ctrl-C), 143 terminated; what was done is kept
  141  the reader of standard output went away

example:
  selkit fit train.npy --calibration calibration.npy --score euclidean --coverage 0.9 -o score.safetensors
  selkit select score.safetensors new.npy -o decisions.csv
"""


def build_parser() -> argparse.ArgumentParser:
    """The parser with all commands; nothing heavy is imported for it."""
    parser = argparse.ArgumentParser(
        prog="selkit",
        description="Abstain, test and explain, on arrays, image folders and ONNX models.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"selkit {selkit.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for module in COMMANDS:
        module.add(commands, parent())
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Parameters
    ----------
    argv
        The arguments; by default those of the process.

    Returns
    -------
    int
        One of :class:`selkit.cli.console.Exit`.
    """
    try:
        parser = build_parser()
        options = parser.parse_args(argv)
        if any("\0" in word for word in argv or ()):  # no shell hands that on, but a caller of this may
            parser.error("an argument has a null character")
    except SystemExit as stop:  # argparse has printed help, version or what is wrong
        return stop.code if isinstance(stop.code, int) else int(Exit.USAGE)
    console = Console(options.quiet, options.json)
    try:
        with _sigterm(), _silence(quiet=options.quiet):
            code = options.run(options, console)
            sys.stdout.flush()
            return int(code)
    except (KeyboardInterrupt, TerminatedError) as stop:
        return _stopped(stop, console)
    except BrokenPipeError:
        _drop_stdout()
        return int(Exit.BROKEN_PIPE)
    except Exception as error:  # the last resort: a line instead of a traceback
        if options.debug:
            raise
        return _failed(error, options.command, console)


def _stopped(stop: BaseException, console: Console) -> int:
    """Say what an interrupt leaves."""
    interrupted = isinstance(stop, KeyboardInterrupt)
    console.complain(
        ("interrupted" if interrupted else "terminated") + (console.kept and f"; {console.kept}")
    )
    return int(Exit.INTERRUPTED if interrupted else Exit.TERMINATED)


def _failed(error: Exception, command: str, console: Console) -> int:
    """Say what is wrong, in one line."""
    # onnxruntime's errors have no common base class
    known = isinstance(error, SelkitError | OSError) or type(error).__module__.startswith("onnxruntime")
    code = Exit.WRONG_INPUT if known else Exit.BUG
    text = one_line(error)
    if not known:
        text = f"{type(error).__name__}: {text} (a fault of selkit: run again with --debug and report it)"
    console.complain(f"error: {text}")
    with contextlib.suppress(BrokenPipeError):
        console.result({"command": command, "error": {"type": type(error).__name__, "message": text}})
    return int(code)


def _drop_stdout() -> None:
    """Let nothing be written to a closed pipe when the interpreter ends."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextlib.contextmanager
def _silence(*, quiet: bool) -> Iterator[None]:
    """No progress and no warnings inside the block, if quiet is wanted."""
    if not quiet:
        yield
        return
    from selkit.utils import progress

    with progress.disabled(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _sigterm() -> Iterator[None]:
    """Turn SIGTERM into an exception, so that files are closed; only the main thread may."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise TerminatedError

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
