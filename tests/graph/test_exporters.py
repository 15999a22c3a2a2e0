"""Models as the exporters write them equal onnxruntime, with a fixed batch and a dynamic one."""

from __future__ import annotations

import io
import warnings

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from selkit.graph import Graph
from selkit.graph.ops import base
from selkit.graph.ops.base import Kind


class UNet(nn.Module):
    """Skip connections, transposed convolutions, normalization."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.deep = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(4, 8, 3, padding="same"), nn.ReLU())
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.out = nn.Conv2d(8, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.down(x)
        return torch.sigmoid(self.out(torch.cat([skip, self.up(self.deep(skip))], dim=1)))


class Classifier(nn.Module):
    """Convolutions with a linear head; flattening computes shapes where the batch is dynamic."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 4, 3, stride=2), nn.LeakyReLU(0.1), nn.AvgPool2d(2, ceil_mode=True), nn.Dropout()
        )
        self.head = nn.Sequential(nn.Linear(64, 10), nn.GELU(), nn.LayerNorm(10), nn.Linear(10, 3))

    def forward(self, x: Tensor) -> Tensor:
        y = self.features(x)
        return self.head(y.view(y.shape[0], -1)).log_softmax(dim=-1)


class ActivationMap(nn.Module):
    """Class-activation map, upsampled to the size of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        maps = self.features(x)
        logits = self.head(maps.mean(dim=(2, 3)))
        cam = torch.einsum("kc,nchw->nkhw", self.head.weight, maps)[:, 1:2]
        size = x.shape[-2:]
        return nn.functional.interpolate(cam, size=size, mode="bilinear", align_corners=False), logits


class Tokens(nn.Module):
    """Attention over patches: products of live values, softmax, reshapes and transposes."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 8, 4, stride=4)
        self.mixer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0, activation="gelu")

    def forward(self, x: Tensor) -> Tensor:
        return self.mixer(self.patches(x).flatten(2).transpose(1, 2)).amax(dim=1)


class Autoencoder1d(nn.Module):
    """One spatial axis, resampling by a factor, instance normalization."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv1d(1, 4, 5, padding=2, stride=2),
            nn.InstanceNorm1d(4, affine=True),
            nn.PReLU(4),
            nn.Upsample(scale_factor=2, mode="nearest"),
            nn.ReflectionPad1d(2),
            nn.Conv1d(4, 1, 5),
            nn.Hardtanh(-0.5, 0.5),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x.abs() < 10, self.layers(x), x).clamp(min=-0.4)


SHAPES = {
    UNet: (1, 16, 16),
    Classifier: (1, 18, 18),
    ActivationMap: (1, 12, 10),
    Tokens: (1, 16, 16),
    Autoencoder1d: (1, 24),
}


def export(
    network: nn.Module, shape: tuple[int, ...], *, dynamo: bool, dynamic: bool, opset: int | None = None
) -> bytes:
    x = torch.randn(2 if dynamic else 1, *shape)
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dynamo:
            dims = ({0: torch.export.Dim("batch")},) if dynamic else None
            made = torch.onnx.export(
                network, (x,), dynamo=True, dynamic_shapes=dims, verbose=False, opset_version=opset
            )
            made.save(file)
        else:
            axes = {"x": {0: "batch"}} if dynamic else None
            torch.onnx.export(
                network, (x,), file, dynamo=False, input_names=["x"], dynamic_axes=axes, opset_version=opset
            )
    return file.getvalue()


WAYS = [
    (network, dynamo, dynamic)
    for network in SHAPES
    for dynamo in (False, True)
    for dynamic in (False, True)
    if network not in (Tokens, Autoencoder1d) or dynamo is dynamic  # an export takes seconds
]


@pytest.mark.parametrize(("network", "dynamo", "dynamic"), WAYS)
def test_exported_networks_equal_onnxruntime(network, dynamo: bool, dynamic: bool, onnxruntime_of):
    content = export(network().eval(), SHAPES[network], dynamo=dynamo, dynamic=dynamic)
    graph = Graph.load(content)
    (spec,) = graph.inputs
    assert spec.shape == (None if dynamic else 1, *SHAPES[network])
    points = torch.randn(3, 1, *SHAPES[network])
    expected = onnxruntime_of(content, {spec.name: points.numpy()})
    for decompose in (False, True):
        program = graph.compile({spec.name: (1, *SHAPES[network])}, decompose=decompose)
        if network is not Autoencoder1d:  # its condition is live
            assert all(step.kind not in (Kind.CONSTANT, Kind.STEP) for step in program.steps)
        actual = program.run({spec.name: points.double()})
        for output in graph.outputs:
            np.testing.assert_allclose(actual[output.name], expected[output.name], rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("opset", [7, 8, 9, 10, 11, 12, 13, 14, 16, 17, 18, 20])
def test_every_opset_of_the_exporter_equals_onnxruntime(opset: int, onnxruntime_of):
    network = nn.Sequential(
        UNet(),
        nn.Upsample(scale_factor=2, mode="nearest"),
        nn.ConstantPad2d((1, 0, 2, 1), 0.5),
        nn.Hardtanh(0.1, 0.6),
        nn.Flatten(),
        nn.Softmax(dim=1),
    )
    if opset < 9:
        network = network[0]  # its exporter writes these layers from opset 9 on
    content = export(network.eval(), SHAPES[UNet], dynamo=False, dynamic=opset % 2 == 0, opset=opset)
    graph = Graph.load(content)
    assert graph.opset[""] == opset
    points = torch.randn(2, 1, *SHAPES[UNet])
    program = graph.compile({"x": (1, *SHAPES[UNet])})
    (name,) = program.outputs
    expected = onnxruntime_of(content, {"x": points.numpy()})[name]
    np.testing.assert_allclose(program.run({"x": points.double()})[name], expected, rtol=1e-4, atol=2e-6)


def test_shape_arithmetic_leaves_no_steps():
    content = export(Classifier().eval(), SHAPES[Classifier], dynamo=False, dynamic=True)
    graph = Graph.load(content)
    assert {"Shape", "Concat"} & {node.op_type for node in graph.nodes}
    names = [type(step.operator).__name__ for step in graph.compile({"x": (1, 1, 18, 18)}).steps]
    assert "Shape" not in names
    assert "Concat" not in names
    assert "Dropout" not in names


def test_a_batch_of_one_is_the_same_for_fixed_and_dynamic_models():
    network = UNet().eval()
    points = torch.randn(4, 1, *SHAPES[UNet], dtype=torch.float64)
    results = []
    for dynamic in (False, True):
        graph = Graph.load(export(network, SHAPES[UNet], dynamo=False, dynamic=dynamic))
        program = graph.compile({"x": (1, *SHAPES[UNet])})
        results.append(program.run({"x": points})[program.outputs[0]])
    assert results[0].shape == (4, 1, 1, 16, 16)
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-14)


CHANNELS_LAST = """
<ir_version: 8, opset_import: ["" : 13]>
agraph (float[N, 8, 6, 2] image) => (float[N, 8, 6, 1] mask)
<int64[2] size_hw = {8, 6}, int64[1] zero = {0}, int64[1] two = {2},
 float[4] factors = {1.0, 1.0, 2.0, 2.0}>
{
    t1 = Transpose<perm=[0, 3, 1, 2]>(image)
    c1 = Conv<auto_pad="SAME_UPPER", strides=[2, 2], kernel_shape=[3, 3]>(t1, w1, b1)
    n1 = BatchNormalization<epsilon=0.001>(c1, scale, shift, mean, var)
    r1 = Relu(n1)
    t2 = Transpose<perm=[0, 2, 3, 1]>(r1)
    t3 = Transpose<perm=[0, 3, 1, 2]>(t2)
    u1 = Resize<mode="nearest", coordinate_transformation_mode="asymmetric",
                nearest_mode="floor">(t3, , factors)
    c2 = Conv<auto_pad="SAME_LOWER">(u1, w2)
    t4 = Transpose<perm=[0, 2, 3, 1]>(c2)
    s = Shape(image)
    batch = Slice(s, zero, two)
    n = Gather(s, zero)
    one = Constant<value_ints=[1]>()
    target = Concat<axis=0>(n, size_hw, one)
    r = Reshape(t4, target)
    mask = Sigmoid(r)
}"""


def channels_last() -> onnx.ModelProto:
    """As tf2onnx writes them: Transpose pairs around each convolution, automatic padding."""
    rng = np.random.default_rng(0)
    made = onnx.parser.parse_model(CHANNELS_LAST)
    shapes = {"w1": (3, 2, 3, 3), "w2": (1, 3, 2, 2)} | dict.fromkeys(
        ("b1", "scale", "shift", "mean", "var"), (3,)
    )
    for name, shape in shapes.items():
        values = rng.uniform(0.2, 1, shape) * (1 if name == "var" else rng.choice([-1, 1], shape))
        made.graph.initializer.append(onnx.numpy_helper.from_array(values.astype(np.float32), name))
    return made


def test_channels_last_models_equal_onnxruntime(onnxruntime_of):
    made = channels_last()
    graph = Graph.load(made)
    points = np.random.default_rng(1).normal(size=(3, 1, 8, 6, 2)).astype(np.float32)
    program = graph.compile({"image": (1, 8, 6, 2)})
    actual = program.run({"image": torch.from_numpy(points).double()})["mask"]
    np.testing.assert_allclose(actual, onnxruntime_of(made, {"image": points})["mask"], rtol=1e-4, atol=1e-6)
    moves = [step for step in program.steps if type(step.operator).__name__ == "Transpose"]
    assert len(moves) == 2  # a pair in the middle cancels
    assert all(isinstance(step.operator, base.Affine) for step in moves)
