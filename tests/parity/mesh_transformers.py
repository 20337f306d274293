"""METRO and Mesh Graphormer, built and run as a manifest says."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from kinemesh.geometry.cameras import WeakPerspective
from kinemesh.mesh_losses import MeshTransformerLoss
from kinemesh.models.attention_maps import OFFICIAL_SKIP, attention_vector
from kinemesh.models.checkpoints import from_official, to_official
from kinemesh.models.graphormer import GraphormerConfig, MeshGraphormer
from kinemesh.models.hrnet import HRNet, HRNetFeatures
from kinemesh.models.mesh_transformer import MeshOutput, MeshTransformer
from kinemesh.models.metro import Metro, MetroConfig
from kinemesh.models.query_tokens import QueryTokens
from kinemesh.models.resnet import ResNetBackbone
from tests import parity
from tests.parity import Comparison
from tests.parity.losses import mesh_loss, targets
from tests.parity.networks import Case, Taps, WeightDrawer, tap_arrays, tapped_names
from tests.seeded_weights import input_image, normal

SystemName = Literal["metro", "graphormer"]
LEVELS = ("vertices_sub2", "vertices_sub", "vertices")  # coarse to full; a hand has the last two
JOINTS = {"body": 14, "hand": 21}
PLAIN_HRNET_WIDTH = 40  # of the architecture that is called "hrnet" without a number
RESNET_MODULES = {"0": "conv1", "1": "bn1", "3": "maxpool"} | {
    str(number + 3): f"layer{number}" for number in (1, 2, 3, 4)
}
DEAD = re.compile(r"backbone\.classifier\.|\.bert\.(embeddings|pooler)\.|\.skip_conv\.")
FIXED = {"layer_norm_eps": 1e-12, "hidden_act": "gelu"}
PARITY = Path(__file__).resolve().parents[3] / "shared" / "parity"


class BackboneRun(NamedTuple):
    """Outputs of a backbone and of its modules, and zeros in the place of its gradients."""

    features: HRNetFeatures | Tensor
    taps: dict[str, Tensor]
    frozen: dict[str, Tensor]


BACKBONES: dict[tuple[object, ...], BackboneRun] = {}
"""What ran in this process, by all that decides the result."""


class FixedBackbone(nn.Module):
    """Stands for a backbone whose outputs are known."""

    def __init__(self, features: Any) -> None:
        super().__init__()
        self.features = features

    def forward(self, _image: Tensor) -> Any:
        """Return what is known."""
        return self.features


@dataclass(eq=False)
class MeshTransformers:
    """Compares the network cases of ``metro`` or ``graphormer``.

    A backbone with the same weights and images runs once for all cases, of both systems.
    """

    system: SystemName
    _drawer: WeightDrawer = field(default_factory=WeightDrawer)

    def order(self, cases: list[Case]) -> list[Case]:
        """The order in which most is shared."""
        return sorted(cases, key=lambda case: (case.config["kind"], case.salt))

    def compare(self, case: Case) -> Comparison:
        """Everything in the golden file of one case."""
        golden, kind = case.golden(), case.config["kind"]
        names = tapped_names(golden)
        loss = mesh_loss(kind, self._topology(case).parent, case.salt)
        template_1Q3 = mock_template(case, loss)
        arrays: dict[str, object] = {"template/ref_vertices": template_1Q3}
        fed_1Q3 = torch.from_numpy(golden.get("template/ref_vertices", template_1Q3.numpy()))
        backbone, network = self._networks(case, fed_1Q3[0], names)
        with torch.set_grad_enabled(bool(case.config["is_train"])):
            output, taps = run(network, case, names)
        arrays |= tap_arrays(backbone.taps | taps)
        arrays |= outputs(output) | post_processed(output, loss, kind)
        if case.config.get("output_attentions"):
            arrays |= attention(network, case)
        if case.config["is_train"]:
            terms = loss(output, targets(loss, kind, len(output.camera), case.salt))
            arrays |= {f"loss/{name}": term.detach().numpy() for name, term in terms.items()}
            if any(key.startswith("grad/") for key in golden):
                terms["total"].backward()
                arrays |= self._gradients(case, network, backbone.frozen)
        if golden["out/cam"].ndim == 1:  # the official code drops the batch axis of one sample
            arrays["out/cam"] = output.camera[0]
        ours = {key: value for key, value in arrays.items() if key in golden}
        units = training_units(case, golden)
        return parity.compare(case.name, in_units(ours, units), in_units(golden, units))

    def official_shapes(self, case: Case) -> dict[str, tuple[int, ...]]:
        """Official names and shapes of the network that the case's configuration describes."""
        published = MetroConfig.body() if case.config["kind"] == "body" else MetroConfig.hand()
        queries = published.joints + published.coarse_vertices
        network = self._build(case, torch.zeros(queries, 3), _backbone(case))
        official = to_official(network.state_dict(), f"{self.system}-{case.config['kind']}")
        return {name: tuple(tensor.shape) for name, tensor in official.items()}

    def _topology(self, case: Case) -> Path:
        """The case's own file of mesh constants, or that of the delivered goldens."""
        own, delivered = (
            folder / "topology.npz" for folder in (case.folder, PARITY / self.system / "golden")
        )
        return own if own.is_file() else delivered

    def _networks(
        self, case: Case, template_Q3: Tensor, tapped: set[str]
    ) -> tuple[BackboneRun, MeshTransformer]:
        """Run the backbone unless it was, and build the rest; both from official tensors."""
        wanted = frozenset(name for name in tapped if name.startswith("backbone."))
        key = (case.config["arch"], case.salt, case.rules, case.inputs["images"], wanted)
        known = BACKBONES.get(key)
        state = self._drawer.state(
            case,
            lambda name: (
                bool(DEAD.search(name)) or (known is not None and name.startswith("backbone."))
            ),
        )
        heads, family = case.config["num_attention_heads"], f"{self.system}-{case.config['kind']}"
        ours = from_official(state, family, heads=heads).state
        if known is None:
            known = BACKBONES[key] = _run_backbone(_backbone(case), ours, case, wanted)
        fixed = FixedBackbone(self._features(known.features))
        network = self._build(case, template_Q3, fixed)
        rest = {name: value for name, value in ours.items() if not name.startswith("backbone.")}
        network.load_state_dict(rest, assign=True)
        return known, network

    def _features(self, features: HRNetFeatures | Tensor) -> Any:
        """What the network wants of the backbone's outputs."""
        if isinstance(features, Tensor):
            return features
        return features.final if self.system == "metro" else (features.grid, features.pooled)

    def _build(self, case: Case, template_Q3: Tensor, backbone: nn.Module) -> MeshTransformer:
        """The network without storage for its parameters, in eval mode as the goldens want."""
        joints = JOINTS[case.config["kind"]]
        template = template_Q3.split([joints, len(template_Q3) - joints])
        if self.system == "metro":
            with torch.device("meta"):
                return Metro(metro_config(case), backbone, *template).eval()
        graph = adjacency(self._topology(case), case.config["kind"], len(template[1]))
        with torch.device("meta"):
            return MeshGraphormer(graphormer_config(case), backbone, *template, graph).eval()

    def _gradients(
        self, case: Case, network: MeshTransformer, frozen: dict[str, Tensor]
    ) -> dict[str, object]:
        """[norm, first 16 values] of the gradients, by official names; the backbone has none."""
        ours = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
        official = to_official(ours | frozen, f"{self.system}-{case.config['kind']}")
        return {
            f"grad/{name}": torch.cat([g.norm()[None], g.flatten()[:16]]).double().numpy()
            for name, g in official.items()
            if not name.startswith("backbone.") and not DEAD.search(name)
        }


# Units ---------------------------------------------------------------------------------------


def training_units(case: Case, golden: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What losses and gradients are counted in, so that one absolute tolerance suits all arrays.

    Losses above 1 are counted in their golden value (the total of a body is 4649). Norms of
    gradients are counted in the golden norm, single values in the root mean square of the gradient.
    """
    units = {}
    for key, value in golden.items():
        if key.startswith("loss/"):
            units[key] = np.maximum(np.abs(value), 1.0)
        elif key.startswith("grad/") and value[0] > 0:
            size = math.prod(case.shapes[key.removeprefix("grad/")])
            units[key] = np.full(value.shape, value[0] / math.sqrt(size))
            units[key][0] = value[0]
    return units


def in_units(arrays: Mapping[str, Any], units: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Arrays divided by their units; those without one stay as they are."""
    return {key: value / units[key] if key in units else value for key, value in arrays.items()}


# Configuration -------------------------------------------------------------------------------


def metro_config(case: Case) -> MetroConfig:
    """What the manifest says of a METRO network."""
    config = MetroConfig.body() if case.config["kind"] == "body" else MetroConfig.hand()
    return replace(config, **_common(case))


def graphormer_config(case: Case) -> GraphormerConfig:
    """What the manifest says of a Mesh Graphormer."""
    config = GraphormerConfig.body() if case.config["kind"] == "body" else GraphormerConfig.hand()
    flags = tuple(bool(flag) for flag in case.config["which_gcn"])
    if case.config.get("mesh_type", case.config["kind"]) != case.config["kind"]:
        raise ValueError(f"{case.name}: mesh_type and kind differ")
    return replace(config, graph_blocks=flags, **_common(case))


def _common(case: Case) -> dict[str, Any]:
    config = case.config
    for name, value in FIXED.items():
        if config.get(name, value) != value:
            raise ValueError(f"{case.name}: {name} is {config[name]}, the networks have {value}")
    out_dims = tuple(config["output_feat_dim"])
    if tuple(config["input_feat_dim"]) != (2051, *out_dims[:-1]):
        raise ValueError(f"{case.name}: input_feat_dim does not chain with output_feat_dim")
    return {
        "hidden_dims": tuple(config["hidden_feat_dim"]),
        "feed_forward_dims": tuple(config["intermediate_size"]),
        "out_dims": out_dims,
        "layers": config["num_hidden_layers"],
        "heads": config["num_attention_heads"],
        "positions": config["max_position_embeddings"],
    }


def adjacency(topology: Path, kind: str, count: int) -> Tensor:
    """The official matrix, dense."""
    with np.load(topology) as arrays:
        indices, values = arrays[f"{kind}/adj_indices"], arrays[f"{kind}/adj_values"]
    dense = torch.zeros(count, count)
    dense[tuple(torch.from_numpy(indices).long())] = torch.from_numpy(values)
    return dense


def mock_template(case: Case, loss: MeshTransformerLoss) -> Tensor:
    """(1,Q,3) template of the drawn body models that stand for SMPL and MANO."""
    vertices = loss.regressor_TV.shape[1]
    if case.config["kind"] == "body":
        drawn = normal("smpl_template", (1, vertices, 3), case.salt) * np.float32(0.3)
        full_1V3 = torch.from_numpy(drawn)
        joints_1J3, root_113 = loss.joints(full_1V3), loss.root(full_1V3)
    else:
        drawn = normal("mano_template", (1, vertices, 3), case.salt) * np.float32(0.1)
        millimetres = torch.from_numpy(drawn * np.float32(1000))
        full_1V3, joints_1J3 = millimetres / 1000, loss.joints(millimetres) / 1000
        root_113 = joints_1J3[:, :1]
    coarse_1N3 = full_1V3[:, loss.get_buffer(f"level_{len(loss._levels) - 1}")]
    return torch.cat([joints_1J3 - root_113, coarse_1N3 - root_113], dim=1)


# Running -------------------------------------------------------------------------------------


def _backbone(case: Case) -> nn.Module:
    """The case's backbone without storage for its parameters."""
    arch = case.config["arch"]
    with torch.device("meta"):
        if arch.startswith("hrnet"):
            return HRNet(int(arch.partition("-w")[2] or PLAIN_HRNET_WIDTH)).eval()
        return ResNetBackbone(int(arch.removeprefix("resnet"))).eval()


def _run_backbone(
    backbone: nn.Module, state: Mapping[str, Tensor], case: Case, tapped: frozenset[str]
) -> BackboneRun:
    own = {name: value for name, value in state.items() if name.startswith("backbone.")}
    backbone.load_state_dict(
        {name.removeprefix("backbone."): value for name, value in own.items()}, assign=True
    )
    ours = {_our_module(name): name for name in tapped}
    with torch.no_grad(), Taps(backbone, "backbone.", ours) as taps:
        features = backbone(input_image("images", case.inputs["images"], case.salt))
    named = {ours[name]: value for name, value in taps.items()}
    if "backbone.bn1" in named:
        # The official activation works in place, after the tap took its tensor.
        named["backbone.bn1"] = named["backbone.bn1"].relu()
    frozen = {name: torch.zeros(()).expand(value.shape) for name, value in own.items()}
    return BackboneRun(features, named, frozen)


def _our_module(official: str) -> str:
    top, _, number = official.partition(".")
    return f"{top}.{RESNET_MODULES.get(number, number)}" if number else top


def run(
    network: MeshTransformer, case: Case, tapped: set[str]
) -> tuple[MeshOutput, dict[str, Tensor]]:
    """Outputs and taps; those of the input are written out from its factors."""
    inputs: list[QueryTokens] = []
    handle = network.trans_encoder[0].register_forward_pre_hook(
        lambda _module, arguments: inputs.append(arguments[0])
    )
    with Taps(network, wanted=tapped) as taps:
        output: MeshOutput = network(torch.empty(0), _mask(case))
    handle.remove()
    taps = {
        # Linear maps of a graph block: (B,channels,vertices) in the goldens.
        name: value.transpose(1, 2) if name.endswith((".lin1", ".lin2")) else value
        for name, value in taps.items()
    }
    taps["encoder_input"] = inputs[0].dense()
    taps["conv_learn_tokens"] = inputs[0].image_features()
    return output, taps


def _mask(case: Case) -> Tensor | None:
    """1 where a query is kept; masks act in training only."""
    if not case.config["is_train"]:
        return None
    drawn = normal("meta_mask", case.inputs["meta_mask"], case.salt)
    return torch.from_numpy(drawn > -0.5).float()


def outputs(output: MeshOutput) -> dict[str, object]:
    """Camera, joints and all levels by their golden names."""
    levels = LEVELS[-len(output.vertices) :]
    named = {"cam": output.camera, "joints": output.joints}
    named |= dict(zip(levels, output.vertices, strict=True))
    return {f"out/{name}": value for name, value in named.items()}


def post_processed(output: MeshOutput, loss: MeshTransformerLoss, kind: str) -> dict[str, object]:
    """Joints of the predicted mesh, about their root and projected."""
    joints_BJ3 = loss.joints(output.vertices[-1])
    pelvis_B13 = loss.root(output.vertices[-1])
    root_B13 = pelvis_B13 if kind == "body" else joints_BJ3[:, :1]
    camera = WeakPerspective.from_vector(output.camera)
    return {
        "post/joints_from_mesh": joints_BJ3,
        "post/joints_from_mesh_rooted": joints_BJ3 - root_B13,
        "post/pelvis": pelvis_B13[:, 0],
        "post/joints2d_from_mesh": camera.project(joints_BJ3),
        "post/joints2d": camera.project(output.joints),
    }


def attention(network: MeshTransformer, case: Case) -> dict[str, object]:
    """Attention and hidden states of the last block, by the explicit formula."""
    with torch.no_grad():
        output: MeshOutput = network(torch.empty(0), _mask(case), return_attention=True)
    taps: dict[str, Tensor] = {}
    arrays: dict[str, object] = {}
    for layer, probability_BATT in enumerate(output.attention):
        taps[f"att.{layer}"] = probability_BATT
        arrays[f"att/{layer}/row7"] = probability_BATT[:, :, 7]
    for layer, hidden_BTH in enumerate(output.hidden):
        taps[f"hidden.{layer}"] = hidden_BTH
        arrays[f"hidden/{layer}/tok0_8"] = hidden_BTH[:, :: hidden_BTH.shape[1] // 8]
    joint = 7 if output.attention[-1].shape[-1] > 400 else 0
    arrays["att/vis_joint"] = joint
    arrays["att/vis"] = attention_vector(output.attention[-1], joint, OFFICIAL_SKIP)[0]
    return arrays | tap_arrays(taps)
