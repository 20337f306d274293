"""What is recovered and what is rendered: topologies, rigs, and the user's own body models."""

from kinemesh.bodies.asset_report import inspect_assets
from kinemesh.bodies.assets import asset_path, load_rig, load_topology
from kinemesh.bodies.mano import ManoModel
from kinemesh.bodies.official_assets import (
    load_body_model,
    mano_topology,
    metro24_regressor,
    smpl_topology,
)
from kinemesh.bodies.rig import Posed, Rig
from kinemesh.bodies.skinning import BodyMesh
from kinemesh.bodies.smpl import SmplModel
from kinemesh.bodies.topology import CoarseLevel, Topology

__all__ = [
    "BodyMesh",
    "CoarseLevel",
    "ManoModel",
    "Posed",
    "Rig",
    "SmplModel",
    "Topology",
    "asset_path",
    "inspect_assets",
    "load_body_model",
    "load_rig",
    "load_topology",
    "mano_topology",
    "metro24_regressor",
    "smpl_topology",
]
