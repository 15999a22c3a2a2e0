"""``selkit demo``: abstain, test and bundle on scikit-learn's digits, by the commands themselves."""

from __future__ import annotations

import shlex
from argparse import ArgumentParser, Namespace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selkit.cli import options as shared
from selkit.cli.console import Console, Exit
from selkit.errors import SelkitError

if TYPE_CHECKING:
    import onnx
    import torch
    from numpy.typing import NDArray

EXAMPLES = """\
  selkit demo
  selkit demo -o my-folder --images 200
"""

SIDE = 12
BRIGHTNESS = 3.5
"""Of a digit's brightest pixel, in standard deviations of the noise."""


def add(commands: shared.Commands, common: ArgumentParser) -> None:
    """Add the command."""
    parser = shared.command(
        commands,
        common,
        "demo",
        summary="run the other commands on a small example",
        text="Trains a small network to find digits in noise (scikit-learn's digits, no download), writes it "
        "as ONNX, and runs the other commands on it, which it prints, so that they can be run again. Takes "
        "about half a minute.",
        examples=EXAMPLES,
    )
    parser.set_defaults(run=run)
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("selkit-demo"),
        metavar="FOLDER",
        help="(default: selkit-demo)",
    )
    parser.add_argument(
        "--images", type=shared.count, default=300, metavar="N", help="to judge (default: 300)"
    )
    parser.add_argument("--seed", type=int, default=0)


def run(options: Namespace, console: Console) -> Exit:
    """Make data and model, and run the commands on them."""
    import numpy as np

    from selkit.utils.atomic import write_bytes, write_text

    folder: Path = options.output
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(options.seed)
    console.say(f"training a network to find digits in noise, into {folder} ...")
    model = train(random)
    write_bytes(folder / "model.onnx", model.SerializeToString())
    kinds = write_data(folder, options.images, random)
    write_text(folder / "kinds.txt", "\n".join(kinds) + "\n")
    at = {name: str(folder / name) for name in ("train.npy", "calibration.npy", "new.npy", "model.onnx")}
    score, decisions, tests, regions, page = (
        str(folder / name)
        for name in ("score.safetensors", "decisions.csv", "tests.csv", "regions.npy", "report.html")
    )
    fit = [
        "fit",
        at["train.npy"],
        "--calibration",
        at["calibration.npy"],
        "--score",
        "mahalanobis",
        "-p",
        "k=5",
    ]
    _command(
        [*fit, "--model", at["model.onnx"], "--layer", "embedding", "--coverage", "0.9", "-o", score], console
    )
    select = ["select", score, at["new.npy"], "--model", at["model.onnx"], "-o", decisions, "--restart"]
    _command(select, console)
    test = ["test", at["model.onnx"], at["new.npy"], "--top", "12", "--var", "1", "--accepted-by", score]
    _command([*test, "--regions", regions, "-o", tests, "--restart"], console)
    bundle = ["bundle", at["model.onnx"], "--score", score, "--roi-top", "12"]
    _command([*bundle, "--verify", at["new.npy"], "-o", str(folder / "bundle.onnx")], console)
    report = ["report", decisions, tests, "--images", at["new.npy"], "--regions", regions, "--score", score]
    more = ["--groups", str(folder / "kinds.txt"), "--title", "Digits in noise"]
    _command([*report, *more, "-o", page], console)
    found = findings(kinds, Path(decisions), Path(tests))
    console.say("")
    for name, values in found.items():
        line = f"{name:8}{values['images']:4d} images, {values['selected']:4.0%} selected"
        if values["tested"]:
            line += (
                f"; regions called real: {values['naive']:4.0%} by a naive test, "
                f"{values['selective']:4.0%} by the selective one"
            )
        console.out(line)
    console.out(f"report: {page}")
    console.result({"command": "demo", "output": page, "kinds": found})
    return Exit.OK


def _command(arguments: list[str], console: Console) -> None:
    """Show a command, and run it."""
    from selkit.cli.app import main

    console.say(f"\n$ selkit {shlex.join(arguments)}")
    quiet = ["--quiet"] if console.quiet else []
    code = main([*arguments, *quiet])
    if code == Exit.INTERRUPTED:
        raise KeyboardInterrupt
    if code not in (Exit.OK, Exit.SOME_FAILED):
        raise DemoError(f"the demo stopped: selkit {arguments[0]} ended with exit code {code}")


class DemoError(SelkitError, RuntimeError):
    """A step of the demo failed; what it said is above."""


@cache
def _digits() -> NDArray[Any]:
    """Scikit-learn's digits, shape ``(1797, 8, 8)``, from 0 to 1."""
    from sklearn.datasets import load_digits

    digits: NDArray[Any] = load_digits().images / 16
    return digits


def draw(count: int, random: Any, kind: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """Images of one kind and where their digits are, shape ``(count, 1, 12, 12)`` each."""
    import numpy as np

    digits = _digits()
    images = np.zeros((count, 1, SIDE, SIDE))
    for image in images if kind != "noise" else ():
        top, left = random.integers(0, SIDE - 8 + 1, size=2)
        image[0, top : top + 8, left : left + 8] = digits[random.integers(len(digits))]
    truth = images > 0.4
    if kind == "foreign":  # too bright, and inverted
        images = 2 - 2 * images
    noisy = BRIGHTNESS * images + random.normal(size=images.shape)
    return noisy.astype(np.float32), truth.astype(np.float32)


def train(random: Any, steps: int = 300) -> onnx.ModelProto:
    """A network whose first output is high where a digit is, and whose second is an embedding."""
    import numpy as np
    import torch
    from torch import nn

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(random.integers(2**31)))
        network = nn.Sequential(nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.Conv2d(6, 1, 5, padding=2))
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
        for _ in range(steps):
            parts = [draw(16, random, kind) for kind in ("digit", "noise")]
            x, y = (torch.from_numpy(np.concatenate(part)) for part in zip(*parts, strict=True))
            loss = nn.functional.binary_cross_entropy_with_logits(network(x), y)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return to_onnx([p.detach() for p in network.parameters()])


def to_onnx(weights: list[torch.Tensor]) -> onnx.ModelProto:
    """The network as ONNX, written node by node: no exporter is needed."""
    import onnx
    from onnx import numpy_helper

    model = onnx.parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 17]>
        digits (float[N, 1, {SIDE}, {SIDE}] image)
            => (float[N, 1, {SIDE}, {SIDE}] map, float[N, 6] embedding) {{
            a = Conv <pads = [2, 2, 2, 2]> (image, w0, b0)
            b = Relu(a)
            map = Conv <pads = [2, 2, 2, 2]> (b, w1, b1)
            means = GlobalAveragePool(b)
            embedding = Flatten(means)
        }}""")
    names = ("w0", "b0", "w1", "b1")
    model.graph.initializer.extend(
        numpy_helper.from_array(value.numpy(), name) for name, value in zip(names, weights, strict=True)
    )
    onnx.checker.check_model(model)
    return model


def write_data(folder: Path, count: int, random: Any) -> list[str]:
    """Write references, calibration images and new ones, and return of which kind each new one is."""
    import numpy as np

    from selkit.utils.atomic import write_array

    for name, size in (("train", 500), ("calibration", 200)):
        both = [draw(size // 2, random, kind)[0] for kind in ("digit", "noise")]
        write_array(folder / f"{name}.npy", np.concatenate(both))
    foreign = count // 5
    noise = (count - foreign) // 2
    parts = {"digit": count - foreign - noise, "noise": noise, "foreign": foreign}
    write_array(folder / "new.npy", np.concatenate([draw(n, random, kind)[0] for kind, n in parts.items()]))
    return [kind for kind, n in parts.items() for _ in range(n)]


def findings(kinds: list[str], decisions: Path, tests: Path) -> dict[str, dict[str, float]]:
    """What was decided about each kind: fractions of the images."""
    from selkit.cli.tables import read_rows

    rows = list(zip(kinds, read_rows(decisions), read_rows(tests), strict=True))
    found = {}
    for kind in dict.fromkeys(kinds):
        own = [(chosen, test) for name, chosen, test in rows if name == kind]
        tested = [test for _, test in own if test["p_value"] is not None]

        def share(column: str, among: list[dict[str, Any]] = tested) -> float:
            return float(sum(row[column] <= 0.05 for row in among) / max(1, len(among)))

        found[kind] = {
            "images": len(own),
            "tested": len(tested),
            "selected": sum(chosen["selected"] for chosen, _ in own) / len(own),
            "naive": share("naive_p_value"),
            "selective": share("p_value"),
        }
    return found
