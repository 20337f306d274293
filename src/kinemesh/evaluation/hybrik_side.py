"""What POTTER's mesh network finds in samples, beside their labels, ready to be scored.

Legend of shapes: B batch, R regressed joints, J joints that turn, V vertices.
"""

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from kinemesh.data.hybrik_targets import DEPTH_UNIT_M
from kinemesh.evaluation.hybrik import HybrikColumns
from kinemesh.models.potter_body import PotterBody, PotterBodyOutput

Batch = Mapping[str, Tensor]
BatchListener = Callable[[int, HybrikColumns, Tensor], None]
"""Called with how many samples are done, and the last batch's columns and images."""


class HybrikSide:
    """A network under evaluation.

    Args:
        model: In eval mode, on its device.
        flip_test: Average with the mirrored crops.
    """

    def __init__(self, model: PotterBody, *, flip_test: bool = True) -> None:
        self.model = model
        self.flip_test = flip_test

    @torch.inference_mode()
    def columns(
        self,
        batches: Iterable[Batch],
        device: torch.device | str,
        listener: BatchListener | None = None,
    ) -> HybrikColumns:
        """Predictions and labels of all samples, in their order, on the CPU.

        Args:
            batches: Of `kinemesh.data.hybrik_records.collate_hybrik`.
            device: Where the model is.
            listener: Called after each batch.
        """
        rows: list[HybrikColumns] = []
        done = 0
        for batch in batches:
            rows.append(self._row({name: value.to(device) for name, value in batch.items()}))
            done += len(batch["image"])
            if listener is not None:
                listener(done, rows[-1], batch["image"])
        fields = HybrikColumns.__dataclass_fields__
        return HybrikColumns(
            **{name: torch.cat([getattr(r, name) for r in rows]) for name in fields}
        )

    def _row(self, batch: Batch) -> HybrikColumns:
        output = self.model(batch["image"], flip_test=self.flip_test)
        assert isinstance(output, PotterBodyOutput)
        labelled = bool((batch["xyz_weight"] > 0).all())
        empty = batch["xyz"].new_zeros(len(batch["xyz"]), 0, 3)
        return HybrikColumns(
            predicted=output.mesh.regressed.cpu(),
            target=batch["joints_17"].cpu(),
            predicted_24=(output.mesh.joints if labelled else empty).cpu(),
            target_24=(batch["xyz"] * DEPTH_UNIT_M if labelled else empty).cpu(),
            vertex_error_m=self._vertex_errors(output, batch).cpu(),
            activity=batch["activity"].cpu(),
            sequence=batch["sequence"].cpu(),
        )

    def _vertex_errors(self, output: PotterBodyOutput, batch: Batch) -> Tensor:
        """Mean distances (B,) in metres, about each side's own root; NaN without labels."""
        target = batch["vertices"]
        if not target.shape[1]:
            target = self.model.body.posed_by_quaternions(batch["theta"], batch["betas"]).vertices
        distances = (output.mesh.vertices - target).norm(dim=-1).mean(dim=1)
        return torch.where(batch["smpl_weight"][:, 0] > 0, distances, float("nan"))
