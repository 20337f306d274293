"""Synthetic pictures of bodies and hands with exact labels, made while they are needed."""

from kinemesh.data.synthetic.dataset import SyntheticDataset

__all__ = ["SyntheticDataset"]
