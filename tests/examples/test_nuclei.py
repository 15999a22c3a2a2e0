"""The demo's data: split by place, scaled as it says, with a noise variance that is right."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import nuclei


@pytest.fixture(scope="module")
def patches() -> nuclei.Patches:
    return nuclei.make_patches()


def test_shapes_and_counts(patches):
    assert patches.train.tensors[0].shape == (29 * 61, 1, 32, 32)
    assert patches.calibration.tensors[0].shape == (144, 1, 32, 32)
    assert patches.test.tensors[0].shape == (64, 1, 32, 32)
    for part in (patches.train, patches.calibration, patches.test):
        image, mask = part.tensors
        assert image.dtype == torch.float32
        assert mask.unique().tolist() == [0, 1]
        assert image.shape == mask.shape
    assert {name: len(x) for name, x in patches.foreign.items()} == dict.fromkeys(nuclei.FOREIGN, 16)


def test_queries_name_their_kind(patches):
    queries, kinds = patches.queries()
    assert len(queries) == len(kinds) == 128
    assert kinds.count("nuclei") == 64
    torch.testing.assert_close(queries.tensors[0][64 + 16 : 64 + 32], patches.foreign["grass"])
    assert not queries.tensors[1][64:].any()


def test_no_place_is_in_two_parts():
    """Patches of an image whose pixels are their own numbers show where each was cut."""
    place = np.arange(512.0 * 512).reshape(512, 512)
    train = set(nuclei.cut(place[:, :256], 8).unique().tolist())
    calibration = set(nuclei.cut_board(place[:, 256:], 0, 16).unique().tolist())
    test = set(nuclei.cut_board(place[:, 256:], 1, 32).unique().tolist())
    assert not train & calibration
    assert not train & test
    assert not calibration & test
    assert (len(train), len(calibration), len(test)) == (512 * 256, 512 * 128, 512 * 128)


def test_foreign_patches_have_the_mean_and_contrast_of_the_image(patches):
    for name, x in patches.foreign.items():
        assert x.mean(dim=(1, 2, 3)).abs().max() < 1e-5, name
        torch.testing.assert_close(x.std(dim=(1, 2, 3)), torch.ones(16), atol=1e-4, rtol=0)
    half = nuclei.make_patches(stride=32).train.tensors[0]  # patches that tile the left half
    assert half.mean().abs() < 1e-5
    assert float(half.std()) == pytest.approx(1, abs=1e-4)


def test_noise_variance_is_that_of_single_rows_of_the_background(patches):
    """What a pixel differs from the mean of its two neighbours in the row has 3/2 of the noise's variance."""
    image, masks = nuclei.read_nuclei()
    x = image / image[:, :256].std()
    background = (masks[:, :-2] == 0) & (masks[:, 1:-1] == 0) & (masks[:, 2:] == 0)
    differences = x[:, 1:-1] - (x[:, :-2] + x[:, 2:]) / 2
    assert patches.variance == pytest.approx(np.mean(differences[background] ** 2) / 1.5, rel=0.03)
    assert x[masks == 0].var() > 2 * patches.variance  # the plain variance counts slow changes too


def test_the_same_seed_trains_the_same_network():
    part = nuclei.make_patches(stride=64, foreign=1)
    first, second, other = (nuclei.train_unet(part.train, 1, 2, seed) for seed in (0, 0, 1))
    x = part.test.tensors[0]
    torch.testing.assert_close(first(x), second(x), rtol=0, atol=0)
    assert not torch.equal(first(x), other(x))


def test_embedding_is_mean_and_maximum_of_each_level():
    torch.manual_seed(0)
    model = nuclei.UNet(channels=2).eval()
    x = torch.randn(3, 1, 32, 32)
    with torch.no_grad():
        levels, embedding = model.levels(x), model.embed(x)
    assert embedding.shape == (3, 28)
    numpy = np.concatenate(
        [pool(level.numpy(), axis=(2, 3)) for level in levels for pool in (np.mean, np.max)], axis=1
    )
    np.testing.assert_allclose(embedding.numpy(), numpy, atol=1e-6)


def test_exported_model_gives_the_same_probabilities(tmp_path):
    import onnxruntime

    torch.manual_seed(0)
    model = nuclei.UNet(channels=2).eval()
    path = nuclei.export_unet(model, tmp_path / "sub" / "model.onnx")
    x = torch.randn(5, 1, 32, 32)
    (out,) = onnxruntime.InferenceSession(path).run(None, {"image": x.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(out, model(x).numpy(), atol=1e-5)
