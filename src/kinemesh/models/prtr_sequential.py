"""PRTR, end to end: people and their keypoints from a whole image (Li et al., CVPR 2021).

DETR detects people. The box of each person query cuts a grid of cells out of several levels of the
backbone's maps, by sampling that has a gradient into the box, and a second transformer predicts
keypoint hypotheses from those cells. Tensor names equal those of the official notebook; where it
does not run as released (boxes not flattened over people, classes of the last person only, maps not
repeated for each person, a missing function for image sizes) this does what it means.

Shape legend: B batch, P person queries, K persons looked at, N = B K, Q keypoint queries, J joints,
D width of the keypoint transformer, C channels, H and W size of an image or map, h and w rows and
columns of the grid.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kinemesh.errors import InputError
from kinemesh.models.detr import MLP, DetrTransformer
from kinemesh.models.frozen_batch_norm import FrozenNormResNet
from kinemesh.models.position_encoding import SinePositionEncoding, sine_position_code
from kinemesh.models.prtr import KeypointSetOutput, body_of, joined_backbone

_ENLARGED = 1.25  # side of a crop over that of its box
_PERSON_CLASSES = 2
ChoosePersons = Callable[[Tensor, Tensor], Tensor]
"""From person logits (B,P,2) and boxes (B,P,4) to the queries to look at, (B,K) int64."""


@dataclass(frozen=True)
class SequentialConfig:
    """Sizes of a `SequentialPrtr`.

    Attributes:
        joints: J.
        person_queries: P.
        keypoint_queries: Q.
        width: Of the detector's transformer.
        keypoint_width: D, a multiple of 8.
        heads: Of each attention, in both transformers.
        encoder_layers: Layers of each encoder.
        decoder_layers: Layers of each decoder.
        feed_forward: Hidden units of the feed-forward networks.
        dropout: Share of activations that training drops.
        pre_norm: Norms in front of the branches instead of after the sums.
        levels: Maps that crops are cut from; 0 to 3 are layers 1 to 4 of the backbone.
        rows: h.
        columns: w.
    """

    joints: int = 17
    person_queries: int = 100
    keypoint_queries: int = 100
    width: int = 256
    keypoint_width: int = 512
    heads: int = 8
    encoder_layers: int = 6
    decoder_layers: int = 6
    feed_forward: int = 2048
    dropout: float = 0.1
    pre_norm: bool = False
    levels: tuple[int, ...] = (1, 2, 3)
    rows: int = 10
    columns: int = 10

    def transformer(self, width: int) -> DetrTransformer:
        """A transformer of these sizes."""
        return DetrTransformer(
            width,
            self.heads,
            self.encoder_layers,
            self.decoder_layers,
            self.feed_forward,
            self.dropout,
            self.pre_norm,
        )


class PaddedImages(NamedTuple):
    """Images of several sizes in one batch.

    Attributes:
        images: (B,3,H,W), zeros below and right of each image.
        padding_mask: (B,H,W) bool, True there.
        sizes: (B,2) int64, height and width of each image, pixels.
    """

    images: Tensor
    padding_mask: Tensor
    sizes: Tensor


def pad_images(images: Sequence[Tensor]) -> PaddedImages:
    """Put images (3,H,W) of any sizes into a batch of the largest height and width.

    Raises:
        InputError: There is no image.
    """
    if not images:
        raise InputError("images: expected at least one, found none.")
    sizes = torch.tensor([image.shape[-2:] for image in images])
    height, width = (int(side) for side in sizes.amax(0))
    batch = torch.stack(
        [F.pad(x, (0, width - x.shape[-1], 0, height - x.shape[-2])) for x in images]
    )
    sizes = sizes.to(batch.device)
    return PaddedImages(batch, padding_of_sizes(sizes, height, width), sizes)


def padding_of_sizes(sizes_B2: Tensor, height: int, width: int) -> Tensor:
    """(B,H,W) bool, True outside of images of those heights and widths at the top left."""
    row_H1 = torch.arange(height, device=sizes_B2.device)[:, None]
    column_W = torch.arange(width, device=sizes_B2.device)
    return (row_H1 >= sizes_B2[:, 0, None, None]) | (column_W >= sizes_B2[:, 1, None, None])


class Detections(NamedTuple):
    """What the detector says.

    Attributes:
        logits: (B,P,2) before softmax: person, no object.
        boxes: (B,P,4) centre x, centre y, width and height in [0,1] of the image without padding.
        auxiliary: The same after each decoder layer but the last; in training mode only.
    """

    logits: Tensor
    boxes: Tensor
    auxiliary: tuple["Detections", ...] = ()


class SequentialOutput(NamedTuple):
    """People with their keypoint hypotheses.

    Attributes:
        logits: (B,P,2) before softmax: person, no object.
        boxes: (B,P,4) centre x, centre y, width and height in [0,1] of the image without padding.
        keypoint_coords: (B,K,Q,2) x and y in [0,1] of the image without padding.
        keypoint_logits: (B,K,Q,J+1) before softmax; class 0 is the background.
        persons: (B,K) person query of each row of keypoints.
        auxiliary_detections: Detections after each decoder layer but the last; training mode only.
        auxiliary_keypoints: The same for keypoints, of the same persons and final boxes; there
            too class 0 is the background.
    """

    logits: Tensor
    boxes: Tensor
    keypoint_coords: Tensor
    keypoint_logits: Tensor
    persons: Tensor
    auxiliary_detections: tuple[Detections, ...] = ()
    auxiliary_keypoints: tuple[KeypointSetOutput, ...] = ()


def sample_cells(map_BCHW: Tensor, grid_BKhw2: Tensor) -> Tensor:
    """(N,C,h,w) bilinear samples of a map; points outside take the value at the edge."""
    persons, rows = grid_BKhw2.shape[1:3]
    # All persons of an image are one tall grid: the map is read in place, not repeated.
    samples = F.grid_sample(
        map_BCHW, grid_BKhw2.flatten(1, 2), padding_mode="border", align_corners=False
    )
    batch, channels, _, columns = samples.shape
    by_person = samples.reshape(batch, channels, persons, rows, columns).transpose(1, 2)
    return by_person.flatten(0, 1)


def sample_projected(map_BCHW: Tensor, weight_DC11: Tensor, grid_BKhw2: Tensor) -> Tensor:
    """(N,D,h,w) samples of a map through a 1x1 convolution.

    The samples' weights sum to one, so convolution and sampling may change places: whichever has
    fewer vectors to multiply comes first.
    """
    if grid_BKhw2[0, ..., 0].numel() < map_BCHW[0, 0].numel():
        return F.conv2d(sample_cells(map_BCHW, grid_BKhw2), weight_DC11)
    return sample_cells(F.conv2d(map_BCHW, weight_DC11), grid_BKhw2)


class SampledProjection(nn.Conv2d):
    """1x1 convolution of cells that are cut out of several maps, side by side in channels.

    Args:
        channels: Of each map.
        width: D.
    """

    def __init__(self, channels: Sequence[int], width: int) -> None:
        super().__init__(sum(channels), width, 1)
        self.level_channels = list(channels)

    def forward(  # type: ignore[override]
        self, maps: Sequence[Tensor], grid_BKhw2: Tensor
    ) -> Tensor:
        """Return (N,D,h,w)."""
        assert self.bias is not None
        total = self.bias[:, None, None]
        weights = torch.split(self.weight, self.level_channels, dim=1)
        for level, weight in zip(maps, weights, strict=True):
            # A backbone may be optimised to compute in fewer bits than what comes after it.
            total = total + sample_projected(level.to(weight.dtype), weight, grid_BKhw2)
        return total


class KeypointTransformer(nn.Module):
    """Keypoint hypotheses from the cells of a crop.

    Args:
        config: Sizes.
        channels: Of each level that crops are cut from.
    """

    def __init__(self, config: SequentialConfig, channels: Sequence[int]) -> None:
        super().__init__()
        width = config.keypoint_width
        self.query_embed = nn.Embedding(config.keypoint_queries, width)
        self.input_proj = SampledProjection(channels, width)
        self.transformer = config.transformer(width)
        self.coord_predictor = MLP(width, 2)
        self.class_predictor = nn.Linear(width, config.joints + 1)

    def forward(
        self, maps: Sequence[Tensor], grid_BKhw2: Tensor, position_1Dhw: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Cut out the cells and decode the queries.

        Args:
            maps: (B,C,H,W) of each level.
            grid_BKhw2: See `SequentialPrtr.crop_grid`.
            position_1Dhw: See `SequentialPrtr.crop_position`.

        Returns:
            Logits (layers,N,Q,J+1) and x, y in [0,1] of the enlarged box (layers,N,Q,2): of all
            decoder layers in training mode, of the last alone otherwise.
        """
        cells_NDhw = self.input_proj(maps, grid_BKhw2)
        queries = self.transformer(
            cells_NDhw, self.query_embed.weight, position_1Dhw, every_layer=self.training
        ).queries_LBQD
        return self.class_predictor(queries), self.coord_predictor(queries).sigmoid()


class SequentialPrtr(nn.Module):
    """Detector, crops and keypoint transformer.

    Args:
        config: Sizes.
        backbone: Gives four maps by ``features(image)``, of ``level_channels`` channels.
    """

    x_interpolate: Tensor
    y_interpolate: Tensor
    mask: Tensor
    pe: Tensor

    def __init__(self, config: SequentialConfig, backbone: FrozenNormResNet) -> None:
        super().__init__()
        self.config = config
        width, rows, columns = config.width, config.rows, config.columns
        self.backbone = joined_backbone(backbone, SinePositionEncoding(width))
        self.input_proj = nn.Conv2d(backbone.map_channels, width, 1)
        self.transformer = config.transformer(width)
        self.query_embed = nn.Embedding(config.person_queries, width)
        self.class_embed = nn.Linear(width, _PERSON_CLASSES)
        self.bbox_embed = MLP(width, 4)
        channels = [backbone.level_channels[level] for level in config.levels]
        self.transformer_kpt = KeypointTransformer(config, channels)
        # The official names: "row" is the code of x.
        self.row_embed = nn.Embedding(config.keypoint_width // 4, columns)
        self.col_embed = nn.Embedding(config.keypoint_width // 4, rows)
        nn.init.uniform_(self.row_embed.weight)
        nn.init.uniform_(self.col_embed.weight)
        self.register_constants()

    def register_constants(self) -> None:
        """Computed, but in official files."""
        rows, columns = self.config.rows, self.config.columns
        valid = torch.ones(1, rows, columns, dtype=torch.bool)
        self.register_buffer(
            "x_interpolate", torch.linspace(-_ENLARGED, _ENLARGED, columns).unsqueeze(0)
        )
        self.register_buffer(
            "y_interpolate", torch.linspace(-_ENLARGED, _ENLARGED, rows).unsqueeze(0)
        )
        self.register_buffer("mask", ~valid)
        self.register_buffer("pe", sine_position_code(valid, self.config.keypoint_width // 2))

    def forward(
        self,
        images_B3HW: Tensor,
        padding_mask_BHW: Tensor | None = None,
        sizes_B2: Tensor | None = None,
        choose_persons: ChoosePersons | None = None,
    ) -> SequentialOutput:
        """Find people and their keypoints.

        Args:
            images_B3HW: Normalised images, padded below and right (`pad_images`).
            padding_mask_BHW: True where a batch is padding; follows from ``sizes_B2`` if not given.
            sizes_B2: Height and width of each image, pixels; follow from the mask if not given.
                Without either no image is padded.
            choose_persons: Picks the persons whose keypoints are wanted; all P if not given. With
                K = 0 only the detector runs.
        """
        padding, ratios_B2 = _padding_and_ratios(images_B3HW, padding_mask_BHW, sizes_B2)
        body = body_of(self.backbone)
        assert isinstance(body, FrozenNormResNet)
        maps = body.features(images_B3HW)
        found = self._detect(maps[-1], padding)
        if choose_persons is None:
            persons = torch.arange(self.config.person_queries, device=images_B3HW.device)
            persons_BK = persons.expand(len(images_B3HW), -1)
        else:
            persons_BK = choose_persons(found.logits, found.boxes)
        boxes_BK4 = found.boxes.gather(1, persons_BK[..., None].expand(-1, -1, 4))
        *before, last = self._keypoints(maps, boxes_BK4, ratios_B2)
        return SequentialOutput(
            found.logits,
            found.boxes,
            last.coords,
            last.logits,
            persons_BK,
            found.auxiliary,
            tuple(before),
        )

    def crop_grid(self, boxes_BK4: Tensor, ratios_B2: Tensor | None = None) -> Tensor:
        """Points at which each person's cells are sampled.

        Args:
            boxes_BK4: Boxes in [0,1] of the images without padding.
            ratios_B2: Height and width of each image over those of the batch; 1 if not given.

        Returns:
            (B,K,h,w,2) x and y, -1 and 1 at the outer edges of the batch.
        """
        if ratios_B2 is not None:
            boxes_BK4 = boxes_BK4 * ratios_B2.flip(1).repeat(1, 2)[:, None]
        cx, cy, width, height = boxes_BK4[..., None].unbind(2)
        x_BKw = 2 * cx - 1 + width * self.x_interpolate
        y_BKh = 2 * cy - 1 + height * self.y_interpolate
        shape = (*boxes_BK4.shape[:2], self.config.rows, self.config.columns)
        return torch.stack(
            [x_BKw[:, :, None].expand(shape), y_BKh[..., None].expand(shape)], dim=-1
        )

    def crop_position(self) -> Tensor:
        """(1,D,h,w) code of the cells, the same for everyone: sine, learned y, learned x."""
        shape = (-1, self.config.rows, self.config.columns)
        y = self.col_embed.weight[:, :, None].expand(shape)
        x = self.row_embed.weight[:, None].expand(shape)
        return torch.cat([self.pe[0], y, x])[None]

    def _detect(self, map_BCHW: Tensor, padding_BHW: Tensor | None) -> Detections:
        if padding_BHW is not None:
            padding = padding_BHW[:, None].to(map_BCHW.dtype)
            padding_BHW = F.interpolate(padding, size=map_BCHW.shape[-2:])[:, 0] > 0.5
        queries = self.transformer(
            self.input_proj(map_BCHW),
            self.query_embed.weight,
            self.backbone[1](map_BCHW, padding_BHW),
            padding_BHW,
            every_layer=self.training,
        ).queries_LBQD
        layers = zip(self.class_embed(queries), self.bbox_embed(queries).sigmoid(), strict=True)
        *before, last = (Detections(*layer) for layer in layers)
        return last._replace(auxiliary=tuple(before))

    def _keypoints(
        self, maps: Sequence[Tensor], boxes_BK4: Tensor, ratios_B2: Tensor | None
    ) -> list[KeypointSetOutput]:
        """Hypotheses after each decoder layer that `KeypointTransformer` returns."""
        batch, persons = boxes_BK4.shape[:2]
        config = self.config
        if persons == 0:
            shape = (batch, 0, config.keypoint_queries)
            new = boxes_BK4.new_zeros
            return [KeypointSetOutput(new(*shape, config.joints + 1), new(*shape, 2))]
        chosen = [maps[level] for level in config.levels]
        grid = self.crop_grid(boxes_BK4, ratios_B2)
        logits, in_crop = self.transformer_kpt(chosen, grid, self.crop_position())
        in_crop = in_crop.unflatten(1, (batch, persons))
        centre, side = boxes_BK4.unsqueeze(2).chunk(2, dim=-1)
        coords = ((_ENLARGED * in_crop - _ENLARGED / 2) * side + centre).clamp(0, 1)
        layers = zip(logits.unflatten(1, (batch, persons)), coords, strict=True)
        return [KeypointSetOutput(*layer) for layer in layers]


def _padding_and_ratios(
    images_B3HW: Tensor, padding_BHW: Tensor | None, sizes_B2: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """Mask of padding, and height and width of each image over the batch's; None: no padding."""
    height, width = images_B3HW.shape[-2:]
    if sizes_B2 is None:
        if padding_BHW is None:
            return None, None
        valid = ~padding_BHW
        sizes_B2 = torch.stack([valid[:, :, 0].sum(1), valid[:, 0].sum(1)], dim=1)
    elif padding_BHW is None:
        padding_BHW = padding_of_sizes(sizes_B2, height, width)
    return padding_BHW, torch.stack([sizes_B2[:, 0] / height, sizes_B2[:, 1] / width], dim=1)
