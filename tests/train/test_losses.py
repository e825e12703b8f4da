"""Tests of the training losses: values that were computed by hand, and the gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from vadcli.train import LossWeights
from vadcli.train.step import (
    IGNORED,
    Losses,
    anomaly_loss,
    answer_loss,
    dice_loss,
    focal_loss,
    iou_loss,
    iou_of_logits,
    mask_losses,
    score_loss,
)

LN2 = math.log(2)
LN3 = math.log(3)  # sigmoid(ln 3) = 3/4, sigmoid(−ln 3) = 1/4


def numbers(losses: Losses) -> dict[str, float]:
    return {name: value.item() for name, value in vars(losses).items()}


def grid(*rows: list[float]) -> Tensor:
    return torch.tensor(rows)


def near(value: Tensor, expected: object) -> None:
    torch.testing.assert_close(value, torch.as_tensor(expected, dtype=value.dtype), rtol=1e-6, atol=1e-7)


def test_focal_of_one_positive_and_one_negative_pixel() -> None:
    # Logit 0, p = 1/2, cross-entropy ln 2.
    # Positive: .25 · (1/2)² · ln 2 = ln 2 / 16. Negative: .75 · (1/2)² · ln 2 = 3 ln 2 / 16.
    near(focal_loss(grid([0.0]), grid([1.0])), LN2 / 16)
    near(focal_loss(grid([0.0]), grid([0.0])), 3 * LN2 / 16)
    # Mean of both: (1 + 3) ln 2 / 16 / 2 = ln 2 / 8.
    near(focal_loss(grid([0.0, 0.0]), grid([1.0, 0.0])), LN2 / 8)


def test_focal_counts_pixels_that_are_right_less() -> None:
    # Logit ln 3, target 1: p_t = 3/4, .25 · (1/4)² · ln(4/3). Target 0: p_t = 1/4, .75 · (3/4)² · ln 4.
    near(focal_loss(grid([LN3]), grid([1.0])), 0.25 / 16 * math.log(4 / 3))
    near(focal_loss(grid([LN3]), grid([0.0])), 0.75 * 9 / 16 * math.log(4))


def test_focal_without_its_terms_is_half_of_cross_entropy() -> None:
    logits = torch.linspace(-3, 3, 12).reshape(1, 3, 4)
    targets = (torch.arange(12) % 3 == 0).reshape(1, 3, 4)
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets.float())
    near(focal_loss(logits, targets, alpha=0.5, gamma=0.0), [0.5 * float(entropy)])


def test_dice_by_hand() -> None:
    # p = (3/4, 1/4, 1/2), t = (1, 0, 1): Σp·t = 5/4, Σp = 3/2, Σt = 2; 1 − (5/2 + 1)/(7/2 + 1) = 1 − 7/9.
    near(dice_loss(grid([LN3, -LN3, 0.0]), grid([1.0, 0.0, 1.0])), 2 / 9)
    # Empty target, empty prediction: 1 − (0 + 1)/(0 + 1) = 0. Empty target, 3 pixels predicted: 1 − 1/4.
    near(dice_loss(grid([-200.0] * 3), grid([0.0] * 3)), 0.0)
    near(dice_loss(grid([200.0] * 3), grid([0.0] * 3)), 0.75)


def test_iou_by_hand() -> None:
    # Predicted: pixels 0, 1, 2. Target: 2, 3. One in common, four in either. A logit of exactly 0 is not predicted.
    logits, targets = grid([1.0, 5.0, 0.1, 0.0, -1.0]), grid([0.0, 0.0, 1.0, 1.0, 0.0])
    near(iou_of_logits(logits, targets), 0.25)
    near(iou_of_logits(-torch.ones(1, 4), torch.zeros(1, 4)), 0.0)
    near(iou_loss(torch.tensor(0.9), logits, targets), 0.65)
    near(iou_loss(torch.tensor(0.1), logits, targets), 0.15)


def test_score_by_hand() -> None:
    # ln 3: present −ln 3/4 = ln(4/3), absent −ln 1/4 = ln 4.
    near(score_loss(torch.tensor([LN3, LN3, 0.0]), torch.tensor([True, False, True])), [math.log(4 / 3), math.log(4), LN2])


def test_answer_by_hand() -> None:
    # Vocabulary of 2. Clip 0 has answers at 1 and 3, from the logits at 0 and 2. At 0: (ln 3, 0), p(0) = 3/4, label 0: ln(4/3).
    # At 2: (0, 0), label 1: ln 2. Mean (ln(4/3) + ln 2)/2. Clip 1 has an answer only at 3: (0, ln 3), label 0: ln 4.
    logits = torch.full((3, 4, 2), 50.0)
    logits[0, 0], logits[0, 2] = torch.tensor([LN3, 0.0]), torch.tensor([0.0, 0.0])
    logits[1, 2] = torch.tensor([0.0, LN3])
    labels = torch.full((3, 4), IGNORED)
    labels[0, 1], labels[0, 3], labels[1, 3] = 0, 1, 0
    labels[2, 0] = 1  # the first token has no logits, because no token comes before it
    near(answer_loss(logits, labels), [(math.log(4 / 3) + LN2) / 2, math.log(4), 0.0])


def test_the_best_of_three_masks_is_trained_and_every_iou_head() -> None:
    # Target (1, 0). Mask 0 is undecided (p = 1/2), mask 1 is right with p = 3/4, mask 2 is wrong.
    logits = grid([0.0, 0.0], [LN3, -LN3], [-LN3, LN3]).reshape(1, 3, 1, 2).requires_grad_()
    heads = torch.tensor([[0.5, 0.5, 0.5]], requires_grad=True)
    parts = mask_losses(logits, heads, grid([1.0, 0.0]).reshape(1, 1, 2))
    assert parts.best.tolist() == [1]
    # Focal of mask 1: (.25 + .75) · (1/4)² · ln(4/3) / 2. Dice: p = (3/4, 1/4), 1 − (3/2 + 1)/(2 + 1) = 1/6.
    near(parts.focal, [math.log(4 / 3) / 32])
    near(parts.dice, [1 / 6])
    # The actual IoUs are 0 (a logit of 0 is not predicted), 1 and 0; each head is wrong by .5.
    near(parts.iou, [0.5])
    (parts.focal + parts.dice + parts.iou).sum().backward()
    assert logits.grad is not None
    assert heads.grad is not None
    assert logits.grad[0, 1].abs().min() > 0
    assert not logits.grad[0, [0, 2]].any()
    near(heads.grad, [[1 / 3, -1 / 3, 1 / 3]])


def test_the_weights_decide_which_mask_is_best() -> None:
    # The target is one pixel of four. Mask 0: p = 1/2 everywhere. Mask 1: p = 1/4 at the pixel, p ≈ 0 elsewhere.
    # Mean focal loss: mask 0 (.25 + 3·.75)/4 · ln 2 = .433, mask 1 .25 · (3/4)² · ln 4 = .195. Dice: mask 0 1 − 2/(3 + 1) = .5,
    # mask 1 1 − 1.5/(1.25 + 1) = 1/3. Mask 2: p ≈ 1 at the pixel and at another pixel: large focal loss, dice 1 − 3/4 = .25.
    logits = grid([0.0] * 4, [-LN3, -200, -200, -200], [20.0, 20.0, -20.0, -20.0]).reshape(1, 3, 2, 2)
    target = grid([1.0, 0.0], [0.0, 0.0]).reshape(1, 2, 2)
    best = {
        name: int(mask_losses(logits, torch.zeros(1, 3), target, weights=weights).best)
        for name, weights in {"focal": LossWeights(dice=0), "dice": LossWeights(focal=0), "paper": LossWeights()}.items()
    }
    assert best == {"focal": 1, "dice": 2, "paper": 1}


def two_frames() -> dict[str, Tensor]:
    """Return a batch of two frames with two masks each.

    Frame 0 has an object at pixel 0 of 2; frame 1 has no object.
    """
    return {
        "mask_logits": grid([LN3, -LN3], [0.0, 0.0], [0.0, LN3], [5.0, 5.0]).reshape(2, 2, 1, 2),
        "iou": torch.tensor([[0.75, 0.25], [0.9, 0.9]]),
        "score_logits": torch.tensor([LN3, LN3]),
        "masks": grid([1.0, 0.0], [0.0, 0.0]).reshape(2, 1, 2),
        "present": torch.tensor([True, False]),
    }


def test_all_parts_together_by_hand() -> None:
    loss = anomaly_loss(**two_frames(), answer=torch.tensor([LN2, 0.0]))
    # Frame 0, mask 0 as above: focal ln(4/3)/32, dice 1/6; IoU heads: |.75 − 1| and |.25 − 0|, mean 1/4. All of
    # these are halved, because the mean counts both frames.
    near(loss.focal, math.log(4 / 3) / 64)
    near(loss.dice, 1 / 12)
    near(loss.iou, 1 / 8)
    near(loss.score, (math.log(4 / 3) + math.log(4)) / 2)
    near(loss.lm, LN2 / 2)
    # 20 focal + 2 dice + IoU + 2 score + LM.
    total = 20 * math.log(4 / 3) / 64 + 2 / 12 + 1 / 8 + math.log(4 / 3) + math.log(4) + LN2 / 2
    near(loss.total, total)
    assert numbers(loss)["total"] == pytest.approx(total, rel=1e-6)


def test_each_weight_weighs_its_own_part() -> None:
    zero = {"focal": 0.0, "dice": 0.0, "iou": 0.0, "score": 0.0, "lm": 0.0}
    for name in zero:
        loss = anomaly_loss(**two_frames(), answer=torch.tensor([LN2]), weights=LossWeights(**{**zero, name: 3.0}))
        assert float(loss.total) == pytest.approx(3 * numbers(loss)[name], rel=1e-6)
        assert numbers(loss)[name] > 0


def gradients(**changes: Tensor) -> tuple[Losses, dict[str, Tensor]]:
    given = {**two_frames(), **changes}
    leaves = {name: given[name].clone().requires_grad_() for name in ("mask_logits", "iou", "score_logits")}
    loss = anomaly_loss(**{**given, **leaves})
    loss.total.backward()
    return loss, {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}


def test_a_frame_without_an_object_trains_its_score_alone() -> None:
    _, grads = gradients()
    assert not grads["mask_logits"][1].any()
    assert not grads["iou"][1].any()
    assert grads["score_logits"].all()
    assert grads["mask_logits"][0, 0].all()
    assert not grads["mask_logits"][0, 1].any()  # not the best mask
    # Weight 2, mean of two frames, sigmoid − label: 3/4 − 1 and 3/4.
    near(grads["score_logits"], [-0.25, 0.75])


def test_masks_of_absent_objects_may_hold_anything() -> None:
    odd = two_frames()["mask_logits"].clone()
    odd[1] = torch.inf
    loss, grads = gradients(mask_logits=odd)
    assert loss.total.isfinite()
    assert all(grad.isfinite().all() for grad in grads.values())


@pytest.mark.parametrize("frames", [0, 3])
def test_nothing_to_see_gives_zero_and_zero_gradients(frames: int) -> None:
    loss, grads = gradients(
        mask_logits=torch.ones(frames, 2, 1, 2),
        iou=torch.ones(frames, 2),
        score_logits=torch.zeros(frames),
        masks=torch.zeros(frames, 1, 2),
        present=torch.zeros(frames, dtype=torch.bool),
    )
    assert numbers(loss) == pytest.approx(
        {"focal": 0, "dice": 0, "iou": 0, "lm": 0, "names": 0, "score": LN2 if frames else 0, "total": 2 * LN2 if frames else 0}
    )
    assert set(grads) == {"mask_logits", "iou", "score_logits"}  # several GPUs need the gradients of all heads
    assert not grads["mask_logits"].any()
    assert not grads["iou"].any()


def test_an_empty_answer_is_zero() -> None:
    logits = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(1), requires_grad=True)
    loss = answer_loss(logits, torch.full((2, 5), IGNORED))
    near(loss.detach(), [0.0, 0.0])
    loss.sum().backward()
    assert logits.grad is not None
    assert not logits.grad.any()
    assert answer_loss(torch.zeros(0, 5, 7), torch.zeros(0, 5, dtype=torch.int64)).shape == (0,)


def random_batch(frames: int, seed: int = 0) -> dict[str, Tensor]:
    made = torch.Generator().manual_seed(seed)
    present = torch.rand(frames, generator=made) < 0.6
    masks = (torch.rand(frames, 6, 5, generator=made) < 0.3) & present.view(-1, 1, 1)
    return {
        "mask_logits": 4 * torch.randn(frames, 3, 6, 5, generator=made),
        "iou": torch.rand(frames, 3, generator=made),
        "score_logits": torch.randn(frames, generator=made),
        "masks": masks,
        "present": present,
    }


def test_a_batch_is_the_mean_of_its_frames_alone() -> None:
    batch = random_batch(8)
    assert 0 < int(batch["present"].sum()) < 8
    alone = [numbers(anomaly_loss(**{name: values[k : k + 1] for name, values in batch.items()})) for k in range(8)]
    whole = numbers(anomaly_loss(**batch))
    for name, value in whole.items():
        assert value == pytest.approx(sum(one[name] for one in alone) / 8, rel=1e-5, abs=1e-7)


def test_clips_of_long_and_short_answers_weigh_alike() -> None:
    made = torch.Generator().manual_seed(2)
    logits = torch.randn(2, 6, 9, generator=made)
    labels = torch.tensor([[IGNORED, 1, 2, 3, 4, 5], [IGNORED, IGNORED, IGNORED, IGNORED, IGNORED, 8]])
    together = answer_loss(logits, labels)
    for clip in range(2):
        near(together[clip : clip + 1], answer_loss(logits[clip : clip + 1], labels[clip : clip + 1]))
    flat = torch.nn.functional.cross_entropy(logits[0, :-1], labels[0, 1:])
    near(together[0], float(flat))


def test_half_precision_comes_in_and_float32_goes_out() -> None:
    # 300 × 300 pixels with probability 1/2. fp16 cannot add ones up to their sum of 45,000, and 90,000 is outside its range.
    wanted = torch.ones(1, 300, 300)
    logits = torch.zeros(1, 1, 300, 300, dtype=torch.float16)
    near(dice_loss(logits[0], wanted.half()), [1 - 90001 / 135001])
    batch = random_batch(4, seed=5)
    rounded = {name: values.half() if values.is_floating_point() else values for name, values in batch.items()}
    exact = {name: values.float() if values.is_floating_point() else values for name, values in rounded.items()}
    half, full = anomaly_loss(**rounded), anomaly_loss(**exact)
    assert half.total.dtype == torch.float32
    assert numbers(half) == numbers(full)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert numbers(anomaly_loss(**exact)) == numbers(full)
    labels = torch.tensor([[IGNORED, 2]])
    assert answer_loss(torch.randn(1, 2, 5).bfloat16(), labels).dtype == torch.float32


def test_gradients_are_those_of_the_formulas() -> None:
    made = torch.Generator().manual_seed(4)
    logits = torch.randn(2, 3, 4, generator=made, dtype=torch.float64, requires_grad=True)
    targets = torch.rand(2, 3, 4, generator=made).round().double()
    assert torch.autograd.gradcheck(lambda x: focal_loss(x, targets), logits)
    assert torch.autograd.gradcheck(lambda x: dice_loss(x, targets), logits)
    words = torch.randn(2, 4, 5, generator=made, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([[IGNORED, IGNORED, 1, 4], [IGNORED, 0, IGNORED, 2]])
    assert torch.autograd.gradcheck(lambda x: answer_loss(x, labels), words)


def test_shapes_that_do_not_fit_are_refused() -> None:
    for wrong in (
        {"masks": torch.zeros(2, 2, 2)},
        {"present": torch.ones(1, dtype=torch.bool)},
        {"present": torch.ones(2)},
        {"iou": torch.ones(2, 3)},
        {"score_logits": torch.ones(2, 1)},
    ):
        with pytest.raises(ValueError, match="shapes do not fit"):
            anomaly_loss(**{**two_frames(), **wrong})
