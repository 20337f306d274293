"""Recomputed activations change neither values nor gradients nor running statistics."""

import copy

import pytest
import torch

from kinemesh.models.activation_checkpointing import _Checkpointed, checkpoint_activations
from kinemesh.models.detr import TransformerLayer
from tests.seeded_weights import input_image
from tests.test_optimised import SIDE, small_network
from tests.tiny_prtr import tiny_network


def step(network: torch.nn.Module, image: torch.Tensor) -> torch.Tensor:
    torch.manual_seed(3)  # dropout
    vertices = network(image).vertices[-1]
    vertices.square().mean().backward()
    return vertices.detach()


def test_a_step_is_the_same():
    network = small_network("graphormer-body-w64").train()
    again = copy.deepcopy(network)
    assert checkpoint_activations(again) > 6
    assert list(again.state_dict()) == list(network.state_dict())
    image = input_image("images", (2, 3, SIDE, SIDE))
    torch.testing.assert_close(step(again, image), step(network, image), rtol=0, atol=0)
    for (name, one), two in zip(network.named_parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(two.grad, one.grad, rtol=0, atol=0, msg=name)
    for key, value in network.state_dict().items():
        torch.testing.assert_close(again.state_dict()[key], value, rtol=0, atol=0, msg=key)


def test_less_is_kept_for_the_backward_pass():
    network = small_network("metro-hand-r50").train()
    image = input_image("images", (2, 3, SIDE, SIDE))
    before = kept_bytes(network, image)
    checkpoint_activations(network)
    assert kept_bytes(network, image) < before / 2


def kept_bytes(network: torch.nn.Module, image: torch.Tensor) -> int:
    """Size of all tensors that autograd keeps, besides the parameters."""
    parameters = {value.data_ptr() for value in network.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in parameters:
            kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = network(image)
    del output
    return sum(kept.values())


# Networks of 2D keypoints ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["prtr", "prtr-hrnet", "prtr-deformable", "prtr-sequential"])
def test_a_step_of_a_keypoint_network_is_the_same(kind):
    """With dropout, whose draws are repeated, where the layers have any."""
    overrides = {} if kind == "prtr-deformable" else {"dropout": 0.2}
    network = tiny_network(kind, **overrides)[0].train()
    again = copy.deepcopy(network)
    layers = sum(isinstance(module, TransformerLayer) for module in network.modules())
    assert checkpoint_activations(again) >= layers + 10
    plain = [m for m in again.modules() if not isinstance(m, _Checkpointed)]
    assert not any(isinstance(module, TransformerLayer) for module in plain)
    image = input_image("images", (2, 3, 96, 64))
    values, gradients = zip(*(keypoint_step(each, image) for each in (again, network)), strict=True)
    torch.testing.assert_close(values[0], values[1], rtol=0, atol=0)
    assert gradients[0].keys() == gradients[1].keys()
    for name, expected in gradients[1].items():
        torch.testing.assert_close(gradients[0][name], expected, rtol=0, atol=0, msg=name)
    for key, value in network.state_dict().items():
        torch.testing.assert_close(again.state_dict()[key], value, rtol=0, atol=0, msg=key)


def keypoint_step(network, image):
    """Outputs of all layers, and gradients by name."""
    torch.manual_seed(3)
    output = network(image)
    names = ("logits", "coords", "boxes", "keypoint_logits", "keypoint_coords")
    parts = [getattr(output, name).flatten() for name in names if hasattr(output, name)]
    for name in ("auxiliary", "auxiliary_keypoints", "auxiliary_detections"):
        parts += [value.flatten() for layer in getattr(output, name, ()) for value in layer[:2]]
    values = torch.cat(parts)
    (values * torch.linspace(-1, 1, len(values))).sum().backward()
    return values.detach(), {
        name: parameter.grad
        for name, parameter in network.named_parameters()
        if parameter.grad is not None
    }
