"""Recomputed activations change neither values nor gradients nor running statistics."""

import copy

import torch

from kinemesh.models.activation_checkpointing import checkpoint_activations
from tests.seeded_weights import input_image
from tests.test_optimised import SIDE, small_network


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
