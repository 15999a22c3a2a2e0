from __future__ import annotations

import pytest
import torch
from torchmetrics.functional.segmentation import dice_score

from selkit.errors import InvalidInputError
from selkit.metrics import absolute_error, dice_loss, squared_error, zero_one_loss
from selkit.metrics.losses import has_class_labels


@pytest.mark.parametrize(
    ("preds", "target", "expected"),
    [
        (torch.tensor([0, 1, 2]), torch.tensor([0, 2, 2]), [0, 1, 0]),
        (torch.tensor([[0.1, 0.9], [0.8, 0.2]]), torch.tensor([1, 1]), [0, 1]),
        (torch.tensor([[3.0, -9.0], [-3.0, 1.0]]), torch.tensor([[0], [0]]), [0, 1]),
        (torch.tensor([[0.6], [0.4]]), torch.tensor([True, True]), [0, 1]),
        (torch.tensor([0.6, 0.4]).half(), torch.tensor([1, 0]), [0, 0]),
        (torch.tensor([0.5]), torch.tensor([0]), [0]),  # torchmetrics' tie rule: class 1 above 0.5
        (torch.tensor([True, False]), torch.tensor([1, 1]), [0, 1]),
    ],
)
def test_zero_one_loss(preds, target, expected):
    assert zero_one_loss(preds, target).tolist() == expected


def test_zero_one_loss_refuses_what_it_would_have_to_guess():
    with pytest.raises(InvalidInputError, match="so they are logits"):
        zero_one_loss(torch.tensor([0.2, 1.5]), torch.tensor([0, 1]))
    with pytest.raises(InvalidInputError, match="Pass your own loss="):
        zero_one_loss(torch.rand(2, 4, 4), torch.zeros(2, 4, 4).long())
    with pytest.raises(InvalidInputError, match="Pass your own loss="):
        zero_one_loss(torch.rand(3), torch.rand(3))
    with pytest.raises(InvalidInputError, match="one row per sample"):
        zero_one_loss(torch.zeros(3).long(), torch.zeros(2).long())


def test_class_labels_are_recognised():
    labels, scores, masks = torch.zeros(3).long(), torch.rand(3, 4), torch.zeros(3, 4, 4).long()
    assert has_class_labels(labels, labels)
    assert has_class_labels(scores, labels)
    assert not has_class_labels(masks, masks)
    assert not has_class_labels(scores, scores)
    assert not has_class_labels(torch.zeros(3, 4).long(), labels)


def test_errors_are_means_over_all_but_the_first_axis():
    preds, target = torch.randn(3, 2, 5), torch.randn(3, 2, 5)
    difference = (preds - target).numpy().reshape(3, -1)
    assert absolute_error(preds, target).tolist() == pytest.approx(abs(difference).mean(1).tolist())
    assert squared_error(preds, target).tolist() == pytest.approx((difference**2).mean(1).tolist())
    with pytest.raises(InvalidInputError, match="of one shape"):
        squared_error(preds, target[:, 0])


@pytest.mark.filterwarnings("ignore:.*defaults to `average=micro`.*")
def test_dice_loss_against_torchmetrics():
    draw = torch.Generator().manual_seed(0)
    preds = torch.rand(6, 1, 8, 8, generator=draw)
    target = (torch.rand(6, 1, 8, 8, generator=draw) < 0.3).long()
    expected = dice_score(
        (preds > 0.5).long(), target, num_classes=1, average="micro", input_format="one-hot"
    )
    assert dice_loss(preds, target).tolist() == pytest.approx((1 - expected.reshape(-1)).tolist())


def test_dice_loss_of_empty_masks_is_zero_and_of_others_is_refused():
    empty = torch.zeros(1, 4)
    assert dice_loss(empty, empty).tolist() == [0.0]
    assert dice_loss(empty, torch.ones(1, 4)).tolist() == [1.0]
    with pytest.raises(InvalidInputError, match="target has values outside"):
        dice_loss(empty, torch.full((1, 4), 2))
    with pytest.raises(InvalidInputError, match="preds has values outside"):
        dice_loss(torch.full((1, 4), -3.0), empty)
