"""Mesh Graphormer against the outputs of the official code under weights drawn from names.

The backbone of all four cases is the same network on the same images, so it runs once.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kinemesh.models.graphormer import GraphormerConfig, HRNetBackbone, MeshGraphormer, MeshOutput
from tests.seeded_weights import input_image, mesh_transformer_state, normal
from tests.tolerances import PARITY_ATOL

KINDS = {"body": GraphormerConfig.body(), "hand": GraphormerConfig.hand()}
LEVELS = {
    "body": ("vertices_sub2", "vertices_sub", "vertices"),
    "hand": ("vertices_sub", "vertices"),
}
DEAD = (
    ".bert.embeddings.",  # word, type and position tables of the text model
    ".bert.pooler.",
    ".graph_conv.skip_conv.",
    "backbone.classifier.",
)


class FixedBackbone(nn.Module):
    """Stands for a backbone whose outputs are known."""

    def __init__(self, grid: Tensor, pooled: Tensor):
        super().__init__()
        self.outputs = grid, pooled

    def forward(self, image):
        return self.outputs


class Taps:
    """Records the outputs of submodules by name, under the prefix of the whole network."""

    def __init__(self, root: nn.Module, prefix: str = ""):
        self.outputs: dict[str, Tensor] = {}
        for name, module in root.named_modules():
            if name:
                module.register_forward_hook(self._hook(prefix + name))

    def _hook(self, name):
        def record(_module, _inputs, output):
            while not isinstance(output, Tensor):
                output = output[-1] if isinstance(output, list) else output[0]
            self.outputs[name] = output

        return record


@pytest.fixture(scope="module")
def folder(shared) -> Path:
    return shared / "parity" / "graphormer"


def adjacency(folder: Path, kind: str) -> Tensor:
    """The official matrix, dense."""
    with np.load(folder / "golden" / "topology.npz") as data:
        indices, values = data[f"{kind}/adj_indices"], data[f"{kind}/adj_values"]
    count = KINDS[kind].coarse_vertices
    dense = torch.zeros(count, count)
    dense[tuple(torch.from_numpy(indices).long())] = torch.from_numpy(values)
    return dense


def golden(folder: Path, case: str) -> dict[str, np.ndarray]:
    with np.load(folder / "golden" / f"{case}.npz") as data:
        return dict(data)


def build(folder: Path, kind: str, backbone: nn.Module) -> MeshGraphormer:
    """A network without storage for its parameters; its template is the golden's."""
    config = KINDS[kind]
    template = torch.from_numpy(golden(folder, f"graphormer_{kind}_w64")["template/ref_vertices"])
    joints, coarse = template[0].split([config.joints, config.coarse_vertices])
    graph = adjacency(folder, kind)
    with torch.device("meta"):
        return MeshGraphormer(config, backbone, joints, coarse, graph).eval()


def fill(module: nn.Module, prefix: str = "") -> None:
    shapes = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    module.load_state_dict(mesh_transformer_state(shapes, prefix), assign=True)


@pytest.fixture(scope="module")
def backbone(folder) -> tuple[FixedBackbone, Taps]:
    with torch.device("meta"):
        network = HRNetBackbone(64).eval()
    fill(network, "backbone.")
    taps = Taps(network, "backbone.")
    with torch.no_grad():
        outputs = network(input_image("images", (2, 3, 224, 224)))
    return FixedBackbone(*outputs), taps


@pytest.fixture(scope="module", params=KINDS)
def network(request, folder, backbone) -> tuple[str, MeshGraphormer]:
    model = build(folder, request.param, backbone[0])
    fill(model)
    return request.param, model


def assert_outputs(output: MeshOutput, kind: str, expected: dict[str, np.ndarray]) -> None:
    ours = {"cam": output.camera, "joints": output.joints}
    ours |= dict(zip(LEVELS[kind], output.vertices, strict=True))
    assert {f"out/{name}" for name in ours} == {k for k in expected if k.startswith("out/")}
    for name, value in ours.items():
        error = np.abs(value.numpy() - expected[f"out/{name}"]).max()
        print(f"{kind} {name}: max abs difference {error:.2e}")
        assert error < PARITY_ATOL, name


def assert_taps(taps: Taps, expected: dict[str, np.ndarray]) -> int:
    """Compare all golden taps of recorded modules; returns how many there were."""
    names = [n for n in taps.outputs if f"tap/{n}/shape" in expected]
    for name in names:
        ours = as_tapped(name, taps.outputs[name]).numpy()
        assert ours.shape == tuple(expected[f"tap/{name}/shape"]), name
        head = expected[f"tap/{name}/first32"]
        np.testing.assert_allclose(
            ours.reshape(-1)[: len(head)], head, rtol=1e-4, atol=PARITY_ATOL, err_msg=name
        )
        np.testing.assert_allclose(
            [ours.mean(dtype=np.float64), ours.std(dtype=np.float64, ddof=1)],
            expected[f"tap/{name}/stats"],
            rtol=1e-4,
            atol=PARITY_ATOL,
            err_msg=name,
        )
    return len(names)


def as_tapped(name: str, output: Tensor) -> Tensor:
    """The recorded output as the goldens hold it."""
    if name == "backbone.bn1":  # the official ReLU works in place, after the tap took its tensor
        return output.relu()
    if name.endswith((".lin1", ".lin2")):  # (B,channels,vertices) in the goldens
        return output.transpose(1, 2)
    return output


@pytest.mark.parametrize("kind", KINDS)
def test_names_and_shapes_are_the_official_ones(folder, kind):
    with torch.device("meta"):
        backbone = HRNetBackbone(64)
    ours = {k: list(v.shape) for k, v in build(folder, kind, backbone).state_dict().items()}
    manifest = json.loads((folder / "manifest.json").read_text())[f"graphormer_{kind}_w64"]
    official = manifest["state_dict"]
    dead = {name for name in official if any(part in name for part in DEAD)}
    assert dead == set(manifest["unused"])
    assert ours == {name: shape for name, shape in official.items() if name not in dead}


def test_sizes_are_the_published_ones(folder):
    """The published counts include dead tensors."""
    with torch.device("meta"):
        counts = {width: _count(HRNetBackbone(width)) for width in (64, 40)}
    classifier = 2048 * 1000 + 1000
    assert counts[64] == 128_059_944 - classifier
    # The published W40 network differs from the W64 one in the backbone alone.
    assert counts[64] - counts[40] == 226_212_270 - 155_709_486


def _count(module):
    return sum(p.numel() for p in module.parameters())


def test_backbone_matches(folder, backbone):
    expected = golden(folder, "graphormer_body_w64")
    assert assert_taps(backbone[1], expected) == 11


def test_outputs_match(folder, network):
    kind, model = network
    expected = golden(folder, f"graphormer_{kind}_w64")
    taps = Taps(model)
    model.trans_encoder[0].register_forward_pre_hook(
        lambda _module, inputs: taps.outputs.update(encoder_input=inputs[0])
    )
    with torch.no_grad():
        output = model(torch.empty(0))
    assert_outputs(output, kind, expected)
    tapped = {key.split("/")[1] for key in expected if key.startswith("tap/")}
    elsewhere = ("backbone.", "att.", "hidden.")  # have tests of their own
    assert assert_taps(taps, expected) == sum(not name.startswith(elsewhere) for name in tapped)


def test_attention_and_hidden_states_match(folder, network):
    kind, model = network
    expected = golden(folder, f"graphormer_{kind}_w64")
    with torch.no_grad():
        output = model(torch.empty(0), return_attention=True)
    assert_outputs(output, kind, expected)
    named = Taps(nn.Module())
    for kind_of, values in (("att", output.attention), ("hidden", output.hidden)):
        named.outputs |= {f"{kind_of}.{layer}": value for layer, value in enumerate(values)}
    assert assert_taps(named, expected) == 9
    for layer, attention in enumerate(output.attention):
        row = expected[f"att/{layer}/row7"]
        np.testing.assert_allclose(attention[:, :, 7].numpy(), row, atol=1e-5)
    for layer, hidden in enumerate(output.hidden):
        every = hidden.shape[1] // 8
        states = expected[f"hidden/{layer}/tok0_8"]
        np.testing.assert_allclose(hidden[:, ::every].numpy(), states, atol=PARITY_ATOL)


def test_masked_outputs_match(folder, network):
    kind, model = network
    expected = golden(folder, f"graphormer_{kind}_w64_train")
    queries = KINDS[kind].joints + KINDS[kind].coarse_vertices
    mask = torch.from_numpy(normal("meta_mask", (2, queries, 1)) > -0.5).float()
    with torch.no_grad():
        output = model(torch.empty(0), keep_mask=mask)
    assert_outputs(output, kind, expected)
