"""What is recovered and what is rendered: topologies, coarse levels and compact rigs."""

from kinemesh.bodies.assets import asset_path, load_rig, load_topology
from kinemesh.bodies.rig import Posed, Rig
from kinemesh.bodies.topology import CoarseLevel, Topology

__all__ = [
    "CoarseLevel",
    "Posed",
    "Rig",
    "Topology",
    "asset_path",
    "load_rig",
    "load_topology",
]
