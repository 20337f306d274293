"""How images are normalised for the backbones that were trained on ImageNet (HRNet, ResNet)."""

import torch
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def normalise_imagenet(image_B3HW: Tensor) -> Tensor:
    """Subtract ImageNet's mean from (B,3,H,W) sRGB in 0..1 and divide by its deviation."""
    # Channel by channel with plain numbers: a tensor of them would wait for a copy to the device.
    channels = zip(image_B3HW.unbind(1), IMAGENET_MEAN, IMAGENET_STD, strict=True)
    return torch.stack([(channel - mean) / std for channel, mean, std in channels], dim=1)
