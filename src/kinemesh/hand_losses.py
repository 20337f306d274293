"""Losses of networks that recover the 3D joints of a hand."""

from torch import Tensor

from kinemesh.errors import InputError


def pose3d_loss(prediction: Tensor, target: Tensor, visible: Tensor) -> Tensor:
    """Squared error of the joints that are labelled: POTTER's loss on Ego-Exo4D.

    The mean over x, y and z is summed over the labelled joints of the whole batch and divided by
    their number, so a hand with few labelled joints weighs little. Unlabelled joints may hold any
    filler, NaN too. A batch without a labelled joint costs 0, with a gradient of 0.

    Args:
        prediction: (B, J, 3); published in normalised units, see
            `kinemesh.models.joint_statistics.JointStatistics`.
        target: (B, J, 3) in the same unit.
        visible: (B, J), true (or above 0) where the joint is labelled.

    Returns:
        () loss.

    Raises:
        InputError: The shapes do not fit.
    """
    expected = (*visible.shape, 3)
    if visible.ndim != 2 or prediction.shape != expected or target.shape != expected:
        raise InputError(
            "pose3d_loss: expected prediction (B, J, 3), target (B, J, 3) and visible (B, J), "
            f"found {tuple(prediction.shape)}, {tuple(target.shape)} and {tuple(visible.shape)}."
        )
    counts_BJ = visible > 0
    # NaN times 0 would stay NaN, in the value and in the gradient
    gap_BJ3 = (prediction - target.where(counts_BJ[..., None], prediction.detach())).square()
    cost_BJ = gap_BJ3.mean(dim=-1).where(counts_BJ, 0.0)
    return cost_BJ.sum() / counts_BJ.sum().clamp(min=1)
