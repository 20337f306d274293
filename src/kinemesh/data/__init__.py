"""Training and evaluation data: one record schema, and the sources that fill it."""

from kinemesh.data.records import Sample, collate

__all__ = ["Sample", "collate"]
