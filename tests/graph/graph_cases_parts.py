"""Rows of the conformance table for operators that are made of others, or move elements."""

from __future__ import annotations

import numpy as np
from graph_cases import NEWEST, case, f, i

MICROSOFT = "com.microsoft"


def whole(*rows: object) -> np.ndarray:
    return np.array(rows, dtype=np.int64)


def mask(*shape: int, seed: int = 0) -> np.ndarray:
    """Which keys are allowed; each query has the first one."""
    allowed = np.random.default_rng(seed).random(shape) < 0.6
    allowed[..., 0] = True
    return allowed


SELF = {"q0": (2, 3, 8), "k": (2, 4, 8), "v": (2, 4, 8)}
HEADS = {"q0": (1, 2, 3, 4), "k": (1, 2, 5, 4), "v": (1, 2, 5, 4)}

ATTENTION = [
    case("Attention<q_num_heads=2, kv_num_heads=2>(q0, k, v)", opsets=(23, NEWEST), **SELF),
    case("Attention(q0, k, v)", opsets=(23, NEWEST), **HEADS),
    case(
        "Attention(q0, c, d)", {"c": f(1, 2, 5, 4), "d": f(1, 2, 5, 4)}, opsets=(23, NEWEST), q0=(1, 2, 3, 4)
    ),
    case(
        "Attention<q_num_heads=4, kv_num_heads=2, scale=0.7>(q0, k, v)",
        opsets=(23, NEWEST),
        q0=(1, 3, 8),
        k=(1, 5, 4),
        v=(1, 5, 6),
    ),
    case("Attention<is_causal=1, softcap=2.0>(q0, k, v)", opsets=(23, NEWEST), **HEADS),
    case("Attention(q0, k, v, m)", {"m": mask(3, 5)}, opsets=(23, NEWEST), **HEADS),
    case(
        "Attention<is_causal=1>(q0, k, v, m)",
        {"m": np.where(mask(1, 2, 3, 5), f(1, 2, 3, 5), -np.inf).astype(np.float32)},
        opsets=(23, NEWEST),
        **HEADS,
    ),
    case("Attention(q0, k, v, m0)", opsets=(23, NEWEST), m0=(3, 5), **HEADS),
    case(
        "y, pk, pv = Attention<is_causal=1>(q0, k, v, , c, d)",
        {"c": f(1, 2, 2, 4), "d": f(1, 2, 2, 4)},
        opsets=(23, NEWEST),
        **HEADS,
    ),
    case(
        "y, , , qk = Attention<is_causal=1, qk_matmul_output_mode=3>(q0, k, v)",
        opsets=(23, NEWEST),
        **HEADS,
    ),
    case(
        "Attention<left_window_size=1, right_window_size=0>(q0, k, v)",
        opsets=(25, NEWEST),
        exact=False,
        **HEADS,
    ),
    case("Attention(q0, k, v, , , , n)", {"n": i(4)}, opsets=(24, NEWEST), exact=False, **HEADS),
    case("RotaryEmbedding(x, c, d)", {"c": f(1, 3, 2), "d": f(1, 3, 2)}, opsets=(23, NEWEST), x=(1, 2, 3, 4)),
    case(
        "RotaryEmbedding<interleaved=1, num_heads=2>(x, c, d, p)",
        {"c": f(9, 2), "d": f(9, 2), "p": whole([5, 0, 2], [1, 1, 8])},
        opsets=(23, NEWEST),
        x=(2, 3, 8),
    ),
    case(
        "RotaryEmbedding<rotary_embedding_dim=4>(x, c, d, p)",
        {"c": f(9, 2), "d": f(9, 2), "p": whole([5, 0, 2])},
        opsets=(23, NEWEST),
        x=(1, 2, 3, 6),
    ),
]


def layer(gates: int, directions: int = 1, hidden: int = 3, inputs: int = 2) -> dict[str, np.ndarray]:
    wide = gates * hidden
    return {
        "w": f(directions, wide, inputs),
        "r": f(directions, wide, hidden) * 0.9,
        "b": f(directions, 2 * wide),
    }


RECURRENT = [
    case("y, h = RNN<hidden_size=3>(x, w, r, b)", layer(1), x=(4, 2, 2)),
    case(
        'y, h = RNN<hidden_size=3, activations=["Relu"], direction="reverse">(x, w, r, b, n)',
        {**layer(1), "n": np.array([4, 2], np.int32)},
        x=(4, 2, 2),
    ),
    case(
        "y, h = RNN<hidden_size=3, clip=0.5, "
        'activations=["LeakyRelu", "ScaledTanh"], activation_alpha=[0.3, 0.9], activation_beta=[0.6], '
        'direction="bidirectional">(x, w, r, , , h0)',
        {key: value for key, value in layer(1, 2).items() if key != "b"},
        x=(3, 2, 2),
        h0=(2, 2, 3),
    ),
    case("y, h = GRU<hidden_size=3>(x, w, r, b)", layer(3), x=(4, 2, 2)),
    case(
        'y, h = GRU<hidden_size=3, linear_before_reset=1, direction="bidirectional">(x, w, r, b, n, h0)',
        {**layer(3, 2), "n": np.array([2, 4], np.int32)},
        x=(4, 2, 2),
        h0=(2, 2, 3),
    ),
    case(
        'GRU<hidden_size=3, activations=["HardSigmoid", "Softsign"]>(x, w, r)',
        {key: value for key, value in layer(3).items() if key != "b"},
        x=(3, 1, 2),
    ),
    case("y, h, c = LSTM<hidden_size=3>(x, w, r, b)", layer(4), x=(4, 2, 2)),
    case(
        'y, h, c = LSTM<hidden_size=3, direction="bidirectional">(x, w, r, b, n, h0, c0, p)',
        {**layer(4, 2), "n": np.array([3, 4], np.int32), "p": f(2, 9)},
        x=(4, 2, 2),
        h0=(2, 2, 3),
        c0=(2, 2, 3),
    ),
    case(
        'y, h = LSTM<hidden_size=3, input_forget=1, clip=0.7, activations=["Sigmoid", "Relu", "Affine"], '
        "activation_alpha=[0.5], activation_beta=[0.1]>(x, w, r, b)",
        layer(4),
        x=(3, 2, 2),
    ),
    case(
        'y, h, c = LSTM<hidden_size=3, layout=1, direction="reverse">(x, w, r, b)',
        layer(4),
        opsets=(14, NEWEST),
        exact=False,
        x=(2, 4, 2),
    ),
]

GRIDS = [
    case(
        f'GridSample<mode="{mode}", padding_mode="{padding}", align_corners={corners}>(x, c)',
        {"c": f(2, 3, 4, 2, low=-1.6, high=1.6)},
        opsets=(first, last),
        x=(2, 3, 5, 4),
    )
    for mode, first, last in (
        ("bilinear", 16, 19),
        ("nearest", 16, NEWEST),
        ("linear", 20, NEWEST),
        ("cubic", 20, NEWEST),
    )
    for padding in ("zeros", "border", "reflection")
    for corners in (0, 1)
] + [
    case(
        'GridSample<mode="linear", padding_mode="reflection">(x, c)',
        {"c": f(1, 2, 3, 2, 3, low=-1.6, high=1.6)},
        opsets=(20, NEWEST),
        x=(1, 2, 3, 4, 2),
    ),
]

SCATTERING = [
    case("GatherElements<axis=1>(x, c)", {"c": whole([0, -1], [2, 1])}, opsets=(11, NEWEST), x=(2, 3)),
    case("GatherND(x, c)", {"c": whole([0, 2], [1, -1])}, opsets=(11, NEWEST), x=(2, 3, 4)),
    case("GatherND<batch_dims=1>(x, c)", {"c": whole([2, 0], [1, -1])}, opsets=(12, NEWEST), x=(2, 3, 4)),
    case(
        "GatherND<batch_dims=2>(x, c)",
        {"c": whole([[[2], [0]], [[1], [-1]], [[3], [3]]])[[0, 0]]},
        opsets=(12, NEWEST),
        x=(2, 3, 4),
    ),
    case("ScatterND(x, c, y0)", {"c": whole([0], [2])}, opsets=(11, NEWEST), x=(4, 3), y0=(2, 3)),
    case("ScatterND(x, c, u)", {"c": whole([0, 1], [2, -1]), "u": f(2)}, opsets=(11, NEWEST), x=(4, 3)),
    case(
        'ScatterND<reduction="add">(d, c, x)',
        {"c": whole([0], [0]), "d": f(4, 3)},
        opsets=(16, NEWEST),
        x=(2, 3),
    ),
    *(
        case(
            f'ScatterND<reduction="{name}">(d, c, u)',
            {"c": whole([0], [0]), "d": f(4, 3), "u": f(2, 3)},
            opsets=(first, NEWEST),
        )
        for name, first in (("mul", 16), ("max", 18), ("min", 18))
    ),
    case(
        "ScatterElements(x, c, y0)",
        {"c": whole([0, 1, 2], [3, -1, 0])},
        opsets=(11, NEWEST),
        x=(4, 3),
        y0=(2, 3),
    ),
    case(
        "ScatterElements<axis=-1>(d, c, x)",
        {"c": whole([2], [0]), "d": f(2, 3)},
        opsets=(11, NEWEST),
        x=(2, 1),
    ),
    case(
        'ScatterElements<axis=1, reduction="add">(x, c, y0)',
        {"c": whole([1, 1], [0, -1])},
        opsets=(16, NEWEST),
        x=(2, 3),
        y0=(2, 2),
    ),
    *(
        case(
            f'ScatterElements<reduction="{name}">(d, c, u)',
            {"c": whole([0, 0, 0], [0, 1, 0]), "d": f(4, 3), "u": f(2, 3)},
            opsets=(first, NEWEST),
        )
        for name, first in (("mul", 16), ("max", 18), ("min", 18))
    ),
    case("Scatter(x, c, y0)", {"c": whole([0, 1, 2], [3, 1, 0])}, opsets=(9, 10), x=(4, 3), y0=(2, 3)),
]

SORTING = [
    case("y, j = TopK<k=2>(x)", opsets=(7, 9), x=(3, 5)),
    case("y, j = TopK(x, k)", {"k": i(3)}, opsets=(10, NEWEST), x=(3, 5)),
    case("y, j = TopK(x, k)", {"k": i(1)}, opsets=(10, NEWEST), x=(3, 5)),
    case("y, j = TopK<axis=0, largest=0>(x, k)", {"k": i(4)}, opsets=(11, NEWEST), x=(4, 3)),
    case("y, j = TopK<axis=1>(x, k)", {"k": i(7)}, opsets=(11, NEWEST), x=(2, 9, 2)),
    case("y, j = TopK<axis=1, largest=0>(x, k)", {"k": i(1)}, opsets=(11, NEWEST), x=(2, 9, 2)),
]

REDUCTION = [
    case("ReduceProd(c)", {"c": f(2, 3)}),
    case("ReduceProd<axes=[1], keepdims=0>(c)", {"c": f(2, 3)}, opsets=(7, 17)),
    case("ReduceProd(x)", x=(2, 3)),
    case("ReduceProd<axes=[-1, 0], keepdims=0>(x)", opsets=(11, 17), x=(2, 3, 5)),
    case("ReduceProd<keepdims=0>(x, a)", {"a": i(1)}, opsets=(18, NEWEST), x=(2, 7)),
    case("ReduceProd<noop_with_empty_axes=1>(x)", opsets=(18, NEWEST), exact=False, x=(2, 3)),
]

NORMS = [
    case("LpPool<kernel_shape=[2, 3], strides=[2, 1]>(x)", low=0.2, x=(1, 2, 6, 5)),
    case("LpPool<kernel_shape=[3, 2], p=1, pads=[1, 0, 1, 1]>(x)", x=(1, 2, 6, 5)),
    case("LpPool<kernel_shape=[3], p=3>(x)", x=(1, 2, 7)),
    case(
        "LpPool<kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1, dilations=[2, 1]>(x)",
        opsets=(18, NEWEST),
        low=0.2,
        x=(1, 2, 6, 7),
    ),
    case('LpPool<kernel_shape=[3, 2], strides=[2, 2], auto_pad="SAME_UPPER">(x)', low=0.2, x=(1, 2, 5, 5)),
    case("GlobalLpPool(x)", opsets=(7, 21), low=0.2, x=(2, 3, 4, 5)),
    case("GlobalLpPool<p=1>(x)", opsets=(7, 21), x=(2, 3, 4)),
    case("GlobalLpPool<p=4>(x)", opsets=(7, 21), low=0.2, x=(2, 3, 4)),
    case(
        "GroupNormalization<num_groups=2>(x, s, b)",
        {"s": f(2), "b": f(2)},
        opsets=(18, 20),
        x=(2, 4, 3, 5),
    ),
    case("CastLike(x, c)", {"c": f(2)}, opsets=(15, NEWEST), x=(2, 3)),
    case("CastLike(x, c)", {"c": i(2)}, opsets=(15, NEWEST), low=-9, high=9, x=(2, 9)),
    case("CastLike(x, y0)", opsets=(15, NEWEST), x=(2, 3), y0=(4,)),
    case("CastLike(c, x)", {"c": i(2, 3)}, opsets=(15, NEWEST), x=(2,)),
]

FUSED = [
    case(f"{MICROSOFT}.Gelu(x)", low=-5, high=5, x=(2, 9)),
    case(f"{MICROSOFT}.BiasGelu(x, c)", {"c": f(9)}, low=-5, high=5, x=(2, 9)),
    case(f"{MICROSOFT}.FastGelu(x, c)", {"c": f(9)}, low=-5, high=5, x=(2, 9)),
    case(f"{MICROSOFT}.FastGelu(x)", low=-5, high=5, x=(2, 9)),
    case(f"{MICROSOFT}.QuickGelu<alpha=1.5>(x)", low=-5, high=5, x=(2, 9)),
    *(
        case(
            f'{MICROSOFT}.FusedConv<pads=[1, 1, 1, 1], activation="{name}"{more}>(x, w, b)',
            {"w": f(4, 2, 3, 3), "b": f(4)},
            x=(1, 2, 5, 5),
        )
        for name, more in (
            ("Relu", ""),
            ("Sigmoid", ""),
            ("Tanh", ""),
            ("LeakyRelu", ", activation_params=[0.3]"),
            ("Clip", ", activation_params=[-0.5, 0.8]"),
            ("HardSigmoid", ", activation_params=[0.3, 0.4]"),
        )
    ),
    case(
        f'{MICROSOFT}.FusedConv<strides=[2, 2], activation="Relu">(x, w, b, z)',
        {"w": f(4, 2, 3, 3), "b": f(4)},
        x=(1, 2, 5, 5),
        z=(1, 4, 2, 2),
    ),
    case(f"{MICROSOFT}.FusedMatMul<transA=1, alpha=0.5>(x, c)", {"c": f(4, 5)}, x=(2, 4, 3)),
    case(f"{MICROSOFT}.FusedMatMul<transB=1>(x, y0)", x=(2, 3, 4), y0=(2, 5, 4)),
    case(
        f"{MICROSOFT}.FusedMatMul<transBatchA=1, transA=1, transBatchB=1>(x, y0)",
        x=(3, 2, 5, 4),
        y0=(3, 2, 5, 4),
    ),
    case(
        f'{MICROSOFT}.FusedGemm<transB=1, beta=0.5, activation="LeakyRelu", activation_alpha=0.2>(x, b, c)',
        {"b": f(5, 4), "c": f(5)},
        x=(3, 4),
    ),
    case(
        f"y, , , t = {MICROSOFT}.SkipLayerNormalization<epsilon=0.01>(x, y0, s, b, c)",
        {"s": f(4), "b": f(4) + 1, "c": f(4)},
        x=(2, 3, 4),
        y0=(2, 3, 4),
    ),
    case(
        f"{MICROSOFT}.SkipSimplifiedLayerNormalization<epsilon=0.01>(x, y0, s)",
        {"s": f(4)},
        x=(2, 3, 4),
        y0=(2, 3, 4),
    ),
    case("SimplifiedLayerNormalization(x, s)", {"s": f(4)}, x=(2, 3, 4)),
    case(f"{MICROSOFT}.SimplifiedLayerNormalization(x, s)", {"s": f(4)}, exact=False, x=(2, 3, 4)),
    case(f"{MICROSOFT}.LayerNormalization(x, s, b)", {"s": f(4), "b": f(4)}, exact=False, x=(2, 3, 4)),
    case("LayerNormalization(x, s, b)", {"s": f(4), "b": f(4)}, opsets=(11, 16), x=(2, 3, 4)),
]

CASES = ATTENTION + RECURRENT + GRIDS + SCATTERING + SORTING + REDUCTION + NORMS + FUSED
