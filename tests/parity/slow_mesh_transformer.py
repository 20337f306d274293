"""METRO and Mesh Graphormer written out: the slow, obvious twin of the networks.

Plain formulas over a dict of tensors with official names; no module, no fused product, no factored
token, nothing that is left out because it has no influence later. It makes goldens for manifests
that nobody delivered numbers for.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

State = Mapping[str, Tensor]


def forward(
    state: State,
    config: Mapping[str, Any],
    image: Tensor,
    template_Q3: Tensor,
    keep_BQ1: Tensor | None,
    adjacency: Tensor | None,
) -> dict[str, Tensor]:
    """Camera, joints, all levels and the blocks' outputs, under their golden names."""
    hand, grid = config["kind"] == "hand", adjacency is not None
    final, before = backbone(state, config["arch"], image)
    batch, joints = len(image), 21 if hand else 14
    if hand or grid:
        feature = final.mean((2, 3))[:, None].repeat(1, len(template_Q3), 1)
    else:
        feature = F.conv1d(final.flatten(2).transpose(1, 2), *_pair(state, "conv_learn_tokens"))
    tokens = torch.cat([template_Q3.repeat(batch, 1, 1), feature], dim=2)
    if keep_BQ1 is not None:
        tokens = tokens * keep_BQ1 + 0.01 * (1 - keep_BQ1)
    if grid:
        cells = before.flatten(2).transpose(1, 2)
        tokens = torch.cat([tokens, F.linear(cells, *_pair(state, "grid_feat_dim"))], dim=1)
    out = {}
    for number in range(3):
        graph = (joints, adjacency) if grid and config["which_gcn"][number] else None
        tokens = block(state, f"trans_encoder.{number}", config, tokens, graph)
        out[f"block{number}"] = tokens
    queries = tokens[:, : len(template_Q3)]
    coarse = queries[:, joints:]
    camera = F.linear(queries if hand else coarse, *_pair(state, "cam_param_fc")).transpose(1, 2)
    camera = F.linear(camera, *_pair(state, "cam_param_fc2"))
    out["out/cam"] = F.linear(camera, *_pair(state, "cam_param_fc3"))[:, 0]
    out["out/joints"] = queries[:, :joints]
    levels = [coarse, _upsample(state, "upsampling", coarse)]
    if not hand:
        levels.append(_upsample(state, "upsampling2", levels[-1]))
    names = ("vertices_sub2", "vertices_sub", "vertices")[-len(levels) :]
    return out | {f"out/{name}": level for name, level in zip(names, levels, strict=True)}


def _upsample(state: State, name: str, coarse: Tensor) -> Tensor:
    return F.linear(coarse.transpose(1, 2), *_pair(state, name)).transpose(1, 2)


def _pair(state: State, name: str) -> tuple[Tensor, Tensor]:
    return state[f"{name}.weight"], state[f"{name}.bias"]


# Transformer ---------------------------------------------------------------------------------


def block(
    state: State,
    name: str,
    config: Mapping[str, Any],
    tokens: Tensor,
    graph: tuple[int, Tensor] | None,
) -> Tensor:
    """One of the three blocks on written-out tokens."""
    x = F.linear(tokens, *_pair(state, f"{name}.bert.img_embedding"))
    x = x + state[f"{name}.bert.position_embeddings.weight"][: tokens.shape[1]]
    for number in range(config["num_hidden_layers"]):
        layer = f"{name}.bert.encoder.layer.{number}"
        a = _attention(state, f"{layer}.attention", config["num_attention_heads"], x)
        if graph is not None:
            start, adjacency = graph
            stop = start + len(adjacency)
            nodes = _graph(state, f"{layer}.graph_conv", a[:, start:stop], adjacency)
            a = torch.cat([a[:, :start], nodes, a[:, stop:]], dim=1)
        u = F.linear(a, *_pair(state, f"{layer}.intermediate.dense"))
        u = u * 0.5 * (1 + torch.erf(u / math.sqrt(2)))
        u = F.linear(u, *_pair(state, f"{layer}.output.dense"))
        x = _norm(state, f"{layer}.output.LayerNorm", a + u)
    head = F.linear(x, *_pair(state, f"{name}.cls_head"))
    return head + F.linear(tokens, *_pair(state, f"{name}.residual"))


def _attention(state: State, name: str, heads: int, x: Tensor) -> Tensor:
    query, key, value = (
        F.linear(x, *_pair(state, f"{name}.self.{part}")) for part in ("query", "key", "value")
    )
    width = x.shape[2] // heads
    parts = []
    for head in range(heads):
        own = slice(head * width, (head + 1) * width)
        scores = query[..., own] @ key[..., own].transpose(1, 2) / math.sqrt(width)
        parts.append(scores.softmax(2) @ value[..., own])
    dense = F.linear(torch.cat(parts, dim=2), *_pair(state, f"{name}.output.dense"))
    return _norm(state, f"{name}.output.LayerNorm", x + dense)


def _graph(state: State, name: str, v: Tensor, adjacency: Tensor) -> Tensor:
    u = _norm(state, f"{name}.pre_norm", v).relu()
    u = u @ state[f"{name}.lin1.W"].T + state[f"{name}.lin1.b"]
    u = _norm(state, f"{name}.norm1", u).relu()
    u = torch.stack([adjacency @ (one @ state[f"{name}.conv.weight"]) for one in u])
    u = _norm(state, f"{name}.norm2", u + state[f"{name}.conv.bias"]).relu()
    return v + u @ state[f"{name}.lin2.W"].T + state[f"{name}.lin2.b"]


def _norm(state: State, name: str, x: Tensor) -> Tensor:
    centred = x - x.mean(2, keepdim=True)
    scaled = centred / (centred.square().mean(2, keepdim=True) + 1e-12).sqrt()
    return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]


# Backbones -----------------------------------------------------------------------------------


def backbone(state: State, arch: str, image: Tensor) -> tuple[Tensor, Tensor]:
    """The last map, and for an HRNet the one before its last convolution."""
    if arch.startswith("hrnet"):
        return _hrnet(state, image)
    x = _conv(state, "backbone.0", "backbone.1", image, 2, 3).relu()
    x = F.max_pool2d(x, 3, 2, 1)
    for number in (4, 5, 6, 7):
        for index in range(_count(state, f"backbone.{number}")):
            stride = 2 if number > 4 and index == 0 else 1
            x = _bottleneck(state, f"backbone.{number}.{index}", x, stride)
    return x, x


def _hrnet(state: State, image: Tensor) -> tuple[Tensor, Tensor]:
    x = _conv(state, "backbone.conv1", "backbone.bn1", image, 2, 1).relu()
    x = _conv(state, "backbone.conv2", "backbone.bn2", x, 2, 1).relu()
    for index in range(4):
        x = _bottleneck(state, f"backbone.layer1.{index}", x)
    maps = [
        _conv(state, "backbone.transition1.0.0", "backbone.transition1.0.1", x, 1, 1).relu(),
        _conv(state, "backbone.transition1.1.0.0", "backbone.transition1.1.0.1", x, 2, 1).relu(),
    ]
    for stage, modules in ((2, 1), (3, 4), (4, 3)):
        if stage > 2:
            name = f"backbone.transition{stage - 1}.{stage - 1}.0"
            maps.append(_conv(state, f"{name}.0", f"{name}.1", maps[-1], 2, 1).relu())
        for module in range(modules):
            maps = _exchange(state, f"backbone.stage{stage}.{module}", maps)
    y = _bottleneck(state, "backbone.incre_modules.0.0", maps[0])
    for index in range(3):
        name = f"backbone.downsamp_modules.{index}"
        down = _conv(state, f"{name}.0", f"{name}.1", y, 2, 1).relu()
        y = _bottleneck(state, f"backbone.incre_modules.{index + 1}.0", maps[index + 1]) + down
    return _conv(state, "backbone.final_layer.0", "backbone.final_layer.1", y).relu(), y


def _exchange(state: State, name: str, maps: list[Tensor]) -> list[Tensor]:
    grown = []
    for branch, start in enumerate(maps):
        x = start
        for index in range(4):
            basic = f"{name}.branches.{branch}.{index}"
            y = _conv(state, f"{basic}.conv1", f"{basic}.bn1", x, 1, 1).relu()
            x = (x + _conv(state, f"{basic}.conv2", f"{basic}.bn2", y, 1, 1)).relu()
        grown.append(x)
    fused = []
    for target in range(len(maps)):
        total = torch.zeros_like(grown[target])
        for source, x in enumerate(grown):
            total = total + _fuse(state, f"{name}.fuse_layers.{target}.{source}", x, source, target)
        fused.append(total.relu())
    return fused


def _fuse(state: State, name: str, x: Tensor, source: int, target: int) -> Tensor:
    if source > target:
        y, times = _conv(state, f"{name}.0", f"{name}.1", x), 2 ** (source - target)
        return y.repeat_interleave(times, dim=2).repeat_interleave(times, dim=3)
    for step in range(target - source):
        x = _conv(state, f"{name}.{step}.0", f"{name}.{step}.1", x, 2, 1)
        x = x.relu() if step < target - source - 1 else x
    return x


def _bottleneck(state: State, name: str, x: Tensor, stride: int = 1) -> Tensor:
    y = _conv(state, f"{name}.conv1", f"{name}.bn1", x).relu()
    y = _conv(state, f"{name}.conv2", f"{name}.bn2", y, stride, 1).relu()
    y = _conv(state, f"{name}.conv3", f"{name}.bn3", y)
    if f"{name}.downsample.0.weight" in state:
        x = _conv(state, f"{name}.downsample.0", f"{name}.downsample.1", x, stride)
    return (x + y).relu()


def _conv(
    state: State, conv: str, norm: str, x: Tensor, stride: int = 1, padding: int = 0
) -> Tensor:
    """Convolution and batch norm by running statistics."""
    y = F.conv2d(x, state[f"{conv}.weight"], state.get(f"{conv}.bias"), stride, padding)
    mean, variance, weight, bias = (
        state[f"{norm}.{part}"][:, None, None]
        for part in ("running_mean", "running_var", "weight", "bias")
    )
    return (y - mean) / (variance + 1e-5).sqrt() * weight + bias


def _count(state: State, name: str) -> int:
    return len({key.removeprefix(f"{name}.").split(".")[0] for key in state if f"{name}." in key})
