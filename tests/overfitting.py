"""Eight samples learned by heart, measured against the best output that never sees a picture.

Weights that begin as N(0, 0.02) suit layers of the published width. A test's layers are a fiftieth
of that, and hands are a tenth of a metre: from such a beginning hundreds of updates go by before
outputs have their size. So the networks get a head start here, of things that are the same for all
pictures: template, size, camera scale. What tells one picture from another has to be learned.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from kinemesh.models.graphormer_pose import PoseOutput
from kinemesh.models.mesh_transformer import MeshOutput
from kinemesh.training.checkpoints import read_checkpoint
from kinemesh.training.mesh_objective import JointObjective, MeshObjective
from kinemesh.training.mesh_transformer_task import MeshTransformerTask

CAMERA_SCALE = {"body": 1.0, "hand": 8.0}  # crop units a metre
_HEAD_SHARE = 0.1  # of the initial size of what a block adds to the template


@torch.no_grad()
def build_with_head_start(task, build=MeshTransformerTask.build_model):
    """The network of a task, beginning with the template in a camera of about the right scale."""
    network = build(task)
    camera = network.get_submodule("cam_param_fc3" if task.has_mesh else "cam_param_fc2")
    camera.weight.mul_(0.1)
    camera.bias.copy_(torch.tensor([CAMERA_SCALE[task.recipe.kind], 0.0, 0.0]))
    if task.has_mesh:
        for block in network.trans_encoder:
            _pass_template_on(block, network.template)
        _upsample_as_the_mesh(network, task.topology.levels)
    return network


def _pass_template_on(block: nn.Module, template_Q3: Tensor) -> None:
    """The first three numbers of a token stay its place; inside the block they get weight."""
    embedding = block.bert.img_embedding.weight
    embedding.mul_(10)
    embedding[:, :3] /= template_Q3.norm(dim=-1).max()
    block.bert.position_embeddings.weight.zero_()
    block.cls_head.weight[:3] *= _HEAD_SHARE
    block.residual.weight[:3] = 0
    block.residual.weight[:3, :3] = torch.eye(3)


def _upsample_as_the_mesh(network: nn.Module, levels) -> None:
    """The last up-sampling, the largest part of a body, also stays as it is: that saves time."""
    finest_first = list(levels)
    for number, name in enumerate(network._upsampling_names, start=1):
        layer, level = network.get_submodule(name), finest_first[-number]
        full = level.upsample(torch.eye(layer.in_features)[None])[0]
        finer = None if number == len(finest_first) else finest_first[-number - 1].vertex_index
        layer.weight.copy_(full if finer is None else full[finer])
        layer.bias.zero_()
    layer.requires_grad_(False)


def best_blind_loss(objective: JointObjective, batch: Mapping[str, Tensor], scale: float) -> float:
    """Loss of the best output that is the same for all pictures, by descent from the mean."""
    free = [torch.tensor([[scale, 0.0, 0.0]]), *_means(objective, batch)]
    free = [value.clone().requires_grad_() for value in free]
    optimiser = torch.optim.Adam([{"params": free[:1], "lr": 0.05}, {"params": free[1:]}], lr=1e-3)
    best = float("inf")
    for _ in range(60):
        camera, joints, *vertices = (v.expand(len(batch["image"]), -1, -1) for v in _rows(free))
        camera = camera[:, 0]
        output = (
            MeshOutput(camera, joints, tuple(vertices)) if vertices else PoseOutput(camera, joints)
        )
        total = objective(output, batch)["total"]
        best = min(best, total.item())
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
    return best


def _rows(free: list[Tensor]) -> list[Tensor]:
    return [free[0][None], *free[1:]]


def _means(objective: JointObjective, batch: Mapping[str, Tensor]) -> list[Tensor]:
    """Mean joints and, coarse to full, the medians of the vertices, which L1 wants."""
    if not isinstance(objective, MeshObjective):
        known = objective.joint_targets(batch)
        return [known.joints_3d_BT4[..., :3].mean(0, keepdim=True)]
    targets = objective.targets(batch)
    joints = targets.joints_3d_BT4[targets.has_3d_B > 0][..., :3].mean(0, keepdim=True)
    full = targets.vertices_BV3[targets.has_mesh_B > 0].median(0, keepdim=True).values
    coarse = [full[:, objective.loss.get_buffer(name)] for name in objective.loss._levels]
    return [joints, *coarse, full]


@torch.no_grad()
def trained_losses(task: MeshTransformerTask, checkpoint, batch) -> tuple[float, float]:
    """Total loss of trained weights, and with each picture in the place of the next."""
    network = task.build_model().train()  # with the statistics of the batch, as it was trained
    tensors = read_checkpoint(checkpoint)[0]
    network.load_state_dict(
        {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
    )
    swapped = dict(batch) | {"image": batch["image"].roll(1, dims=0)}
    # running statistics change, but training mode does not read them
    return tuple(task.loss(network, each)["total"].item() for each in (batch, swapped))
