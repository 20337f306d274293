"""POTTER's mesh network out of a weight file, with the body that it poses and the body's mesh.

Legend of shapes: V vertices.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from kinemesh.bodies.assets import load_rig, load_topology
from kinemesh.bodies.hybrik_anny import AnnyHybrik
from kinemesh.bodies.hybrik_bodies import HYBRIK17, SmplHybrik, load_smpl_hybrik
from kinemesh.bodies.official_assets import UPRIGHT_TURN_RAD
from kinemesh.bodies.sampling import padded_rows
from kinemesh.bodies.topology import Topology, regress
from kinemesh.errors import InputError
from kinemesh.models.potter_body import PotterBody
from kinemesh.models.potter_mesh import PotterMesh
from kinemesh.models.potter_variants import build_potter_network
from kinemesh.skeletons import H36M17

_ANNY = "anny-body"


def build_potter_body(
    path: Path, record: Mapping[str, Any], state: Mapping[str, Tensor], assets: Path | None
) -> tuple[PotterBody, Topology]:
    """Build the network with its body, in eval mode, on the CPU.

    Args:
        path: Of the weight file, for messages.
        record: Its record.
        state: Its tensors in float32, with the names of a `PotterMesh`.
        assets: Folder with SMPL and its joint regressor; a network on Anny's body needs none.

    Returns:
        The network, and the mesh that it poses. SMPL's has neither coarse levels nor joints that
        are tokens, since nothing here up-samples.

    Raises:
        InputError: A file of SMPL is missing, or the tensors do not fit.
    """
    is_anny = record.get("body", "smpl") == _ANNY
    if not is_anny and assets is None:
        raise InputError(
            f"{path}: this network poses SMPL, whose files are not in it. Name the folder that "
            "holds SMPL and J_regressor_h36m_correct.npy with --assets."
        )
    network = cast(PotterMesh, build_potter_network(record, blank=True))
    network.load_state_dict(state, assign=True)
    if is_anny:
        return PotterBody(network, AnnyHybrik(load_rig(_ANNY))).eval(), load_topology(_ANNY)
    assert assets is not None
    body = load_smpl_hybrik(assets)
    return PotterBody(network, body).eval(), smpl_mesh(body)


def smpl_mesh(body: SmplHybrik) -> Topology:
    """SMPL's full mesh with the joints of `kinemesh.skeletons.H36M17`, about the pelvis.

    The template stands upright in the camera's axes, as published ones do.
    """
    turn_172 = torch.zeros(1, 24, 3)
    turn_172[0, 0, 0] = UPRIGHT_TURN_RAD
    template_V3 = body.posed_by_axis_angles(turn_172, torch.zeros(1, body.shapes)).vertices[0]
    rows_KV = body.regressor_KV[list(HYBRIK17)].double().numpy()
    index, weight = padded_rows(rows_KV)
    pelvis_13 = regress(template_V3[None], index, weight)[0, :1]
    return Topology(
        name="smpl",
        kind="body",
        template=template_V3 - pelvis_13,
        faces=body.skinning.faces_F3,
        levels=(),
        regressor_index=index,
        regressor_weight=weight,
        skeleton=H36M17,
    )
