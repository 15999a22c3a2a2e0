"""``selkit explain``: what each entry of an input adds to a model's output."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from selkit.cli import options as shared
from selkit.cli.console import Console, Exit
from selkit.errors import InvalidInputError, NotFiniteError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from selkit.cli.inputs import Chunk, Samples
    from selkit.cli.partial import Partial
    from selkit.explain import Explainer

COLUMNS = (
    "index",
    "name",
    "target",
    "output",
    "base_value",
    "positive",
    "negative",
    "additivity_error",
    "relative_error",
    "error",
)

EXAMPLES = """\
  selkit explain model.onnx new.npy --references typical.npy -o attributions.npy
  selkit explain model.onnx new/ --color rgb --references train/ --summarize 10 --target 3 \\
      -o attributions.npy --table summary.csv
  selkit explain model.onnx new.npy --references typical.npy -o attributions.npy --export explained.onnx
  selkit explain model.onnx new.npy --references typical.npy -o a.npy --method integrated_gradients
"""


def add(commands: shared.Commands, common: ArgumentParser) -> None:
    """Add the command."""
    parser = shared.command(
        commands,
        common,
        "explain",
        summary="explain a model's output (DeepSHAP, integrated gradients, Shapley values)",
        text="Writes the attributions, shape (N, ...) as the inputs, or (targets, N, ...). For each sample "
        "they sum to the output minus the mean output of the references. A sample that cannot be explained "
        "has NaN, and the exit code is 3. An interrupted run continues where it stopped.",
        examples=EXAMPLES,
    )
    parser.set_defaults(run=run)
    parser.add_argument("model", metavar="MODEL.onnx")
    parser.add_argument("inputs", metavar="INPUTS", help=shared.INPUTS)
    parser.add_argument("--references", required=True, metavar="FILE", help="what inputs are compared with")
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="FILE.npy")
    parser.add_argument("--table", type=Path, metavar="FILE", help="also a row for each: .csv, .json, .jsonl")
    parser.add_argument(
        "--export", type=Path, metavar="FILE.onnx", help="also the model that explains itself"
    )
    parser.add_argument(
        "--summarize", type=shared.count, metavar="K", help="use K typical ones of the references"
    )
    parser.add_argument("--output-name", metavar="NAME", help="which output (default: the first)")
    parser.add_argument(
        "--target",
        type=target,
        default="top",
        metavar="T",
        help="top (each sample's largest output; default), an index, several as 0,3, or all",
    )
    parser.add_argument(
        "--method",
        choices=["deepshap", "integrated_gradients", "permutation"],
        default="deepshap",
        help="(default: deepshap)",
    )
    output = parser.add_argument_group("outputs with positions: maps and sequences")
    output.add_argument("--reduce", choices=["max", "mean", "sum"], help="explain this over all positions")
    output.add_argument("--position", type=position, metavar="I,J", help="or the value at one position")
    output.add_argument(
        "--class-axis", type=class_axis, metavar="A", help="axis of the classes, or none (default: by shapes)"
    )
    parser.add_argument(
        "--fail-above-error",
        type=float,
        metavar="E",
        help="exit with 4 if attributions miss their sum by more than this, relative to the output",
    )
    shared.add_image_options(parser)
    shared.add_chunk(parser, 128)
    shared.add_resume(parser)


def target(text: str) -> Any:
    """Parse a target.

    Examples
    --------
    >>> target("top"), target("3"), target("0,3")
    ('top', 3, [0, 3])
    """
    if text in ("top", "all"):
        return text
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        raise ArgumentTypeError(f"{text!r} is no target: top, all, 3 or 0,3") from None
    return found if "," in text else found[0]


def position(text: str) -> tuple[int, ...]:
    """Parse a position.

    Examples
    --------
    >>> position("3,-1")
    (3, -1)
    """
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ArgumentTypeError(f"{text!r} is no position: whole numbers such as 3,4") from None


def class_axis(text: str) -> int | Literal["none"]:
    """Parse an axis.

    Examples
    --------
    >>> class_axis("-1"), class_axis("none")
    (-1, 'none')
    """
    try:
        return "none" if text == "none" else int(text)
    except ValueError:
        raise ArgumentTypeError(f"{text!r} is no axis: a whole number, or none") from None


def run(options: Namespace, console: Console) -> Exit:
    """Explain every chunk, and write attributions and table."""
    from selkit.cli.features import file_digest
    from selkit.cli.images import ImageOptions, open_samples
    from selkit.cli.partial import Partial, partial_path
    from selkit.cli.tables import check_output, write_rows
    from selkit.explain import Explainer
    from selkit.inference.checkpoint import digest
    from selkit.utils.journal import forget

    check_output(options.output, (".npy",))
    for path, suffixes in ((options.table, (".csv", ".json", ".jsonl")), (options.export, (".onnx",))):
        if path is not None:
            check_output(path, suffixes)
    images = ImageOptions.of(options)
    samples = open_samples(options.inputs, images)
    references = read_references(open_samples(options.references, images), options.summarize)
    said = {"reduce": options.reduce, "position": options.position, "class_axis": options.class_axis}
    explainer = Explainer(
        options.model, references, options.output_name, options.target, method=options.method, **said
    )
    if options.export is not None:
        explainer.export(options.export)
    path = partial_path(options.output)
    if options.restart:
        forget(path)
    writer = Attributions(options.output.with_name(f"{path.name}.npy"), len(samples))
    key = digest(
        file_digest(options.model),
        (references, options.output_name, options.target, options.method, *said.values()),
        (options.chunk, len(samples)),
    )
    if not path.exists():
        writer.path.unlink(missing_ok=True)
    done = _explain_all(explainer, samples, writer, Partial(path, key), options=options, console=console)
    if options.table is not None:
        write_rows(options.table, COLUMNS, done.all_rows())
    code = _summary(done, writer, options, console)
    writer.finish(options.output)
    done.remove()
    return code


def read_references(samples: Samples, few: int | None) -> NDArray[Any]:
    """All of them, or a few that are typical."""
    import numpy as np

    from selkit.explain import summarize

    references = np.stack(list(samples))
    return references if few is None else summarize(references, few)


class Attributions:
    """An .npy file that is filled chunk by chunk.

    Parameters
    ----------
    path
        The file while it is not finished.
    count
        Number of samples.
    """

    def __init__(self, path: Path, count: int) -> None:
        self.path, self.count = path, count
        self._array: Any = None

    def put(self, start: int, size: int, values: Any, at: Any) -> None:
        """Write the attributions of some samples of a chunk, and NaN for the others."""
        import numpy as np

        lead = values.shape[: values.ndim - self._rank]
        self._open((*lead, self.count, *values.shape[len(lead) + 1 :]), values.dtype)
        several = (slice(None),) * len(lead)
        self._array[(*several, slice(start, start + size))] = np.nan
        self._array[(*several, start + at)] = values
        self._array.flush()

    _rank = 0

    def expect(self, rank: int) -> None:
        """Say how many axes a batch of inputs has."""
        self._rank = rank

    def _open(self, shape: tuple[int, ...], dtype: Any) -> None:
        import numpy as np

        from selkit.utils.atomic import reserved

        if self._array is not None:
            return
        if self.path.exists():
            found = np.lib.format.open_memmap(self.path, mode="r+")
            if found.shape == shape and found.dtype == dtype:
                self._array = found
                return
        self._array = reserved(self.path, shape, dtype)
        self._array[...] = np.nan

    def finish(self, output: Path) -> None:
        """Give the file its name."""
        self._array = None
        if not self.path.exists():
            raise InvalidInputError("no sample could be explained; --table says why")
        self.path.replace(output)


def _explain_all(
    explainer: Explainer,
    samples: Samples,
    writer: Attributions,
    done: Partial,
    *,
    options: Namespace,
    console: Console,
) -> Partial:
    """Explain every chunk that was not explained before."""
    from selkit.utils.progress import track

    if done.rows:
        console.say(f"continuing the run in {done.path}")
    chunks = -(-len(samples) // options.chunk)
    try:
        for chunk in track(samples.chunks(options.chunk), "explaining", chunks):
            if not done.has(chunk.start, chunk.mark):
                done.add(chunk.start, chunk.mark, rows_of(explainer, chunk, samples, writer))
    except BaseException:
        console.kept = f"what was explained is kept in {done.path}: run it again to go on"
        done.close()
        raise
    return done


def rows_of(
    explainer: Explainer, chunk: Chunk, samples: Samples, writer: Attributions
) -> list[dict[str, Any]]:
    """Explain a chunk, write its attributions and return its rows: one for each sample and target."""
    import numpy as np

    from selkit.cli.features import finite_rows
    from selkit.utils import progress

    loaded = chunk.load()
    errors = dict(loaded.bad)
    at = np.array(loaded.good, dtype=np.int64)
    fine = finite_rows(loaded.values)
    errors.update(dict.fromkeys(at[~fine].tolist(), "it has NaN or infinity"))
    rows: list[dict[str, Any]] = []
    with progress.disabled():
        found, failed = _explained(explainer, loaded.values[fine])
    errors.update({int(at[fine][place]): text for place, text in failed.items()})
    fine[np.flatnonzero(fine)[list(failed)]] = False
    if found is not None:
        writer.expect(found.x.ndim)
        writer.put(chunk.start, chunk.size, found.attributions, at[fine])
        relative = found.relative_error.reshape(-1).tolist()
        for row, error in zip(found.summary(), relative, strict=True):
            index = chunk.start + int(at[fine][row.pop("sample")])
            rows.append({"index": index, **row, "relative_error": error, "error": None})
    rows.extend({"index": chunk.start + k, "error": text} for k, text in errors.items())
    named = ({**row, "name": samples.name(row["index"])} for row in rows)
    return sorted(named, key=lambda row: (row["index"], row.get("target", -1)))


def _explained(explainer: Explainer, values: NDArray[Any]) -> tuple[Any, dict[int, str]]:
    """The explanation of what can be explained, and why the others cannot."""
    import numpy as np

    if not len(values):
        return None, {}
    try:
        return explainer.explain(values), {}
    except NotFiniteError as error:
        failed = {0: str(error)} if len(values) == 1 else {}
    for place in range(len(values) if len(values) > 1 else 0):  # one of them: find out which
        try:
            explainer.explain(values[place : place + 1])
        except NotFiniteError as error:
            failed[place] = str(error)
    kept = np.setdiff1d(np.arange(len(values)), list(failed))
    return (explainer.explain(values[kept]) if len(kept) else None), failed


def _summary(done: Partial, writer: Attributions, options: Namespace, console: Console) -> Exit:
    """Count, tell, and decide about the exit code."""
    explained: set[int] = set()
    failed = 0
    worst = 0.0
    for row in done.all_rows():
        if row["error"] is None:
            explained.add(row["index"])
            worst = max(worst, row["relative_error"])
        else:
            failed += 1
    console.say(
        f"{len(explained)} of {writer.count} samples explained, {failed} failed; attributions miss their "
        f"sum by at most {worst:.1e} of the output"
    )
    console.result(
        {
            "command": "explain",
            "samples": writer.count,
            "explained": len(explained),
            "failed": failed,
            "largest_relative_error": worst,
            "output": str(options.output),
        }
    )
    if options.fail_above_error is not None and worst > options.fail_above_error:
        console.complain(f"attributions miss their sum by {worst:.3g}, above {options.fail_above_error:g}")
        return Exit.CHECK_FAILED
    return Exit.SOME_FAILED if failed else Exit.OK
