"""Rows of the conformance table: quantized numbers, and what prepares features."""

from __future__ import annotations

import numpy as np
from graph_cases import NEWEST, Case, case


def i8(*shape: int, seed: int = 0) -> np.ndarray:
    # 7 bits: onnxruntime's products of uint8 and int8 saturate on processors without VNNI
    return np.random.default_rng(seed).integers(-60, 60, shape).astype(np.int8)


def u8(*shape: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, shape).astype(np.uint8)


def scale(*shape: int, seed: int = 2) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0.01, 0.05, shape).astype(np.float32)


STORED: list[Case] = [
    case("DequantizeLinear(c, s, z)", {"c": u8(3, 4), "s": scale(), "z": u8()}, opsets=(10, NEWEST)),
    case("DequantizeLinear(c, s)", {"c": i8(3, 4), "s": scale()}, opsets=(10, NEWEST)),
    case(
        "DequantizeLinear<axis=0>(c, s, z)",
        {"c": i8(3, 4, 2), "s": scale(3), "z": i8(3)},
        opsets=(13, NEWEST),
    ),
    case(
        "DequantizeLinear<axis=-1>(c, s)",
        {"c": i8(3, 4).astype(np.int32) * 1000, "s": scale(4)},
        opsets=(13, NEWEST),
    ),
    case(
        "DequantizeLinear<axis=1, block_size=2>(c, s, z)",
        {"c": i8(3, 5), "s": scale(3, 3), "z": i8(3, 3)},
        opsets=(21, NEWEST),
    ),
    case(
        "ConvInteger<pads=[1, 1, 0, 1]>(c, w, z)",
        {"c": u8(1, 2, 4, 5), "w": u8(3, 2, 2, 3, seed=4), "z": u8()},
        opsets=(10, NEWEST),
    ),
    case(
        "MatMulInteger(a, b, az, bz)",
        {"a": u8(3, 4), "b": i8(4, 2), "az": u8(), "bz": i8(2)},
        opsets=(10, NEWEST),
    ),
    case("MatMulInteger(a, b)", {"a": u8(3, 4), "b": u8(4, 2)}, opsets=(10, NEWEST)),
    case(
        "QLinearConv<strides=[2, 1], group=2>(x8, xs, xz, w8, ws, wz, ys, yz, b)",
        {
            "x8": u8(1, 4, 5, 5),
            "xs": scale(),
            "xz": u8(),
            "w8": i8(6, 2, 2, 2),
            "ws": scale(6),
            "wz": np.zeros(6, np.int8),
            "ys": np.float32(0.7),
            "yz": u8(seed=3),
            "b": np.arange(6, dtype=np.int32) * 100,
        },
        opsets=(10, NEWEST),
    ),
    case(
        "QLinearMatMul(a, as, az, b, bs, bz, ys, yz)",
        {
            "a": u8(3, 4),
            "as": scale(),
            "az": u8(),
            "b": u8(4, 2, seed=5),
            "bs": scale(seed=6),
            "bz": u8(seed=7),
            "ys": np.float32(0.05),
            "yz": u8(seed=8),
        },
        opsets=(10, NEWEST),
    ),
]

ACTIVATIONS: list[Case] = [
    case("QuantizeLinear(x, s, z)", {"s": scale(), "z": u8()}, opsets=(10, NEWEST), x=(2, 3)),
    case("QuantizeLinear(x, s)", {"s": scale()}, opsets=(10, NEWEST), x=(2, 3)),
    case("QuantizeLinear<axis=2>(x, s, z)", {"s": scale(3), "z": i8(3)}, opsets=(13, NEWEST), x=(2, 2, 3)),
    case(
        "QuantizeLinear<axis=-1, block_size=2>(x, s, z)",
        {"s": scale(2, 2), "z": u8(2, 2)},
        opsets=(21, NEWEST),
        x=(2, 3),
    ),
    case("y, s, z = DynamicQuantizeLinear(x)", opsets=(11, NEWEST), x=(3, 4)),
]

FEATURES: list[Case] = [
    case("ai.onnx.ml.Scaler<offset=[0.5, -1.0, 2.0], scale=[2.0, 0.5, -3.0]>(x)", x=(2, 3)),
    case("ai.onnx.ml.Scaler<offset=[0.5], scale=[2.0]>(x)", x=(2, 3)),
    case('ai.onnx.ml.Normalizer<norm="L1">(x)', x=(2, 3)),
    case('ai.onnx.ml.Normalizer<norm="L2">(x)', x=(2, 3)),
    case('ai.onnx.ml.Normalizer<norm="MAX">(x)', low=0.1, x=(2, 3)),
]

CASES = STORED + ACTIVATIONS + FEATURES
