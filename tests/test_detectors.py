import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from kinemesh.errors import InputError, MissingExtraError
from kinemesh.inference import transformers_detector
from kinemesh.inference.boxes import Box, BoxTable
from kinemesh.inference.detectors import SequentialDetector, load_detector
from kinemesh.inference.images import LoadedImage, image_from_array
from kinemesh.inference.person import Person, PhotoCamera
from kinemesh.inference.transformers_detector import PUBLISHED, TransformersDetector, relative_boxes

PHOTO = image_from_array(np.random.default_rng(2).integers(0, 255, (60, 90, 3), dtype=np.uint8))
LABELS = {0: "cat", 1: "person", 2: "dog"}
SIZE = {"height": 64, "width": 96}


def tiny_detector(kind: str) -> torch.nn.Module:
    """A randomly initialised detector of a few ten thousand numbers."""
    transformers = pytest.importorskip(
        "transformers", reason="needs the extra 'detect': pip install transformers"
    )
    shape = {"embedding_size": 8, "hidden_sizes": [8, 8, 16, 32], "out_indices": [2, 3, 4]}
    parts = {
        "encoder_hidden_dim": 16,
        "encoder_in_channels": [8, 16, 32],
        "encoder_ffn_dim": 16,
        "encoder_attention_heads": 2,
        "d_model": 16,
        "num_queries": 12,
        "decoder_in_channels": [16, 16, 16],
        "decoder_ffn_dim": 16,
        "decoder_layers": 2,
        "decoder_attention_heads": 2,
        "num_denoising": 0,
        "id2label": LABELS,
        "label2id": {label: key for key, label in LABELS.items()},
    }
    torch.manual_seed(0)
    if kind == "rtdetr":
        backbone = transformers.RTDetrResNetConfig(depths=[1] * 4, layer_type="basic", **shape)
        config = transformers.RTDetrConfig(backbone_config=backbone, decoder_n_points=2, **parts)
        return transformers.RTDetrForObjectDetection(config)
    stages = {
        "stem_channels": [3, 8, 8],
        "stage_in_channels": [8, 8, 8, 16],
        "stage_mid_channels": [4, 4, 8, 8],
        "stage_out_channels": [8, 8, 16, 32],
        "stage_num_blocks": [1] * 4,
        "stage_numb_of_layers": [1] * 4,
        "stage_downsample": [False, True, True, True],
        "stage_light_block": [False] * 4,
        "stage_kernel_size": [3] * 4,
    }
    backbone = transformers.HGNetV2Config(depths=[1] * 4, **stages, **shape)
    config = transformers.DFineConfig(backbone_config=backbone, decoder_n_points=[2] * 3, **parts)
    return transformers.DFineForObjectDetection(config)


@pytest.fixture(scope="module", params=["rtdetr", "dfine"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved detector whose boxes lie all over the picture."""
    network = tiny_detector(request.param)
    with torch.no_grad():
        for name, value in network.named_parameters():
            if "bbox_embed" in name or "class_embed" in name:
                value.add_(0.3 * torch.randn_like(value))
            if name.endswith("bias") and value.shape == (3,):  # that of the classes
                value[1] += 4
    folder = tmp_path_factory.mktemp(request.param)
    network.save_pretrained(folder)
    rule = {"size": SIZE, "do_normalize": False, "image_mean": [0.5] * 3, "image_std": [0.2] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(rule))
    return folder


def copy_of(folder: Path, target: Path) -> Path:
    return Path(shutil.copytree(folder, target / "copy"))


class TestTransformers:
    def test_boxes_are_those_of_the_package_itself(self, folder: Path) -> None:
        pil = pytest.importorskip("transformers.models.rt_detr.image_processing_pil_rt_detr")
        detector = TransformersDetector(folder, "cpu", 0.0)
        processor = pil.RTDetrImageProcessorPil(size=SIZE)
        inputs = processor(images=PHOTO.pixels, return_tensors="pt")
        with torch.inference_mode():
            output = detector.network(**inputs)
        (reference,) = processor.post_process_object_detection(
            output, threshold=0.0, target_sizes=[(60, 90)]
        )
        people = reference["labels"] == 1
        low, high = reference["boxes"][people].split(2, dim=1)
        seen = detector.network(pixel_values=detector._picture.prepare(PHOTO.pixels)[None])
        scores = seen.logits[0, :, 1].sigmoid().detach()
        boxes = relative_boxes(seen.pred_boxes[0].detach(), scores, PHOTO.size)
        boxes.sort(key=lambda box: -float(box.score or 0))
        assert len(boxes) == 12
        count = int(people.sum())
        assert count >= 3
        found = torch.tensor([box.xywh for box in boxes[:count]])
        expected = torch.cat([low, high - low], dim=1)
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-4)
        best = reference["scores"][people]
        assert [box.score for box in boxes[:count]] == pytest.approx(best.tolist(), abs=1e-5)

    def test_detect_cuts_filters_and_sorts(self, folder: Path) -> None:
        every = TransformersDetector(folder, "cpu", 0.0).detect(PHOTO)
        assert every
        assert [box.score for box in every] == sorted((b.score for b in every), reverse=True)
        for box in every:
            assert box.x >= 0
            assert box.y >= 0
            assert box.x + box.width <= 90 + 1e-6
            assert box.y + box.height <= 60 + 1e-6
        limit = float(every[0].score or 0)
        assert load_detector(str(folder), "cpu", limit).detect(PHOTO) == every[:1]
        assert TransformersDetector(folder, "cpu", min(1.0, limit + 1e-6)).detect(PHOTO) == []

    def test_normalisation_is_heeded(self, folder: Path, tmp_path: Path) -> None:
        changed = copy_of(folder, tmp_path)
        path = changed / "preprocessor_config.json"
        rule = json.loads(path.read_text()) | {"do_normalize": True}
        path.write_text(json.dumps(rule))
        plain = TransformersDetector(folder, "cpu")._picture.prepare(PHOTO.pixels)
        normalised = TransformersDetector(changed, "cpu")._picture.prepare(PHOTO.pixels)
        assert plain.shape == (3, 64, 96)
        torch.testing.assert_close(normalised, (plain - 0.5) / 0.2)

    @pytest.mark.parametrize(
        ("file", "content", "message"),
        [
            ("config.json", None, "found no config.json"),
            ("model.safetensors", None, "found no model.safetensors"),
            ("config.json", "{", "cannot read"),
            ("config.json", "[]", "a JSON object"),
            ("config.json", '{"model_type": "detr"}', "found 'detr'"),
            ("model.safetensors", "no tensors", "cannot read the network"),
            ("preprocessor_config.json", '{"size": {"shortest_edge": 640}}', "width and height"),
        ],
    )
    def test_damaged_folders(
        self, folder: Path, tmp_path: Path, file: str, content: str | None, message: str
    ) -> None:
        broken = copy_of(folder, tmp_path)
        (broken / file).unlink()
        if content is not None:
            (broken / file).write_text(content)
        with pytest.raises(InputError, match=message):
            TransformersDetector(broken, "cpu")

    def test_no_class_of_people(self, folder: Path, tmp_path: Path) -> None:
        changed = copy_of(folder, tmp_path)
        config = json.loads((changed / "config.json").read_text())
        config["id2label"] = {"0": "cat", "1": "dog", "2": "bird"}
        (changed / "config.json").write_text(json.dumps(config))
        with pytest.raises(InputError, match=r"class 'person'.*found cat, dog, bird"):
            TransformersDetector(changed, "cpu")


class FakeHub:
    """Stands for huggingface_hub: a folder that is there, or comes by downloading, or never."""

    def __init__(self, folder: Path, *, cached: bool, reachable: bool) -> None:
        self.folder, self.cached, self.reachable = folder, cached, reachable
        self.asked: list[tuple[str, str | None, bool]] = []

    def snapshot_download(
        self,
        repository: str,
        revision: str | None,
        allow_patterns: list[str],
        local_files_only: bool = False,
    ) -> str:
        assert all(not pattern.endswith((".bin", ".pt", "*")) for pattern in allow_patterns)
        self.asked.append((repository, revision, local_files_only))
        if self.cached or (self.reachable and not local_files_only):
            for name in ("config.json", "model.safetensors"):
                (self.folder / name).touch()
            return str(self.folder)
        raise OSError("no route to host")


class TestFetch:
    @pytest.fixture
    def hub(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
        hub = FakeHub(tmp_path / "a1b2c3", cached=False, reachable=False)
        hub.folder.mkdir()
        monkeypatch.setattr(transformers_detector, "require", lambda *_: hub)
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        return hub

    def test_what_is_here_is_never_asked_for_again(
        self, hub: FakeHub, capsys: pytest.CaptureFixture[str]
    ) -> None:
        hub.cached = True
        assert transformers_detector.fetch("dfine") == hub.folder
        assert hub.asked == [(PUBLISHED["dfine"].repository, None, True)]
        assert capsys.readouterr().err == ""

    def test_a_download_says_the_licence_and_the_revision(
        self, hub: FakeHub, capsys: pytest.CaptureFixture[str]
    ) -> None:
        hub.reachable = True
        assert transformers_detector.fetch("rtdetr@v1") == hub.folder
        assert hub.asked[-1] == (PUBLISHED["rtdetr"].repository, "v1", False)
        err = capsys.readouterr().err
        assert "Apache-2.0" in err
        assert "a1b2c3" in err

    def test_offline_says_what_to_do(self, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(InputError, match=r"no route to host.*hf download .* --local-dir"):
            transformers_detector.fetch("rtdetr")
        with pytest.raises(InputError, match="said to be offline"):
            transformers_detector.fetch("rtdetr", download=False)
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        with pytest.raises(InputError, match=r"said to be offline.*--boxes"):
            transformers_detector.fetch("rtdetr")
        assert [only_local for *_, only_local in hub.asked] == [True, False, True, True]


def test_the_extra_is_named_where_it_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(module: str, extra: str) -> None:
        raise MissingExtraError(f"{module} of {extra}")

    monkeypatch.setattr(transformers_detector, "require", absent)
    with pytest.raises(MissingExtraError, match="transformers of detect"):
        load_detector("rtdetr", "cpu")
    with pytest.raises(MissingExtraError, match="transformers of detect"):
        load_detector(str(tmp_path), "cpu")


def test_relative_boxes() -> None:
    boxes = torch.tensor([[0.5, 0.5, 0.2, 0.4], [0.1, 0.1, 0.0, 0.1], [float("nan"), 0, 1, 1]])
    (box,) = relative_boxes(boxes, torch.tensor([0.75, 0.9, 0.9]), (200, 100))
    np.testing.assert_allclose(box.xywh, (80, 30, 40, 40), atol=1e-5)
    assert box.score == 0.75


class FakeKeypoints:
    """Finds two people, one of them twice, in any photo."""

    finds_people = True

    def predict(self, photo: LoadedImage, min_score: float) -> list[Person]:
        camera = PhotoCamera(100.0, (45.0, 30.0), photo.size)
        empty = np.zeros((17, 2), np.float32)
        return [
            Person(
                vertices=np.zeros((0, 3), np.float32),
                faces=np.zeros((0, 3), np.int64),
                joints=np.zeros((0, 3), np.float32),
                joints_px=empty,
                joint_confidence=empty[:, 0],
                skeleton="coco17",
                box_px=box,
                side=None,
                score=score,
                camera=camera,
            )
            for box, score in (((50, 5, 60, 40), 0.7), ((0, 0, 30, 50), 0.9), ((1, 0, 30, 50), 0.8))
            if score >= min_score
        ]


class TestOthers:
    def test_sequential_network(self) -> None:
        detector = SequentialDetector(FakeKeypoints(), 0.6)  # type: ignore[arg-type]
        assert detector.detect(PHOTO) == [Box(0, 0, 30, 50, 0.9), Box(50, 5, 40, 40, 0.7)]

    def test_two_stage_network_is_refused(self) -> None:
        predictor = FakeKeypoints()
        predictor.finds_people = False
        with pytest.raises(InputError, match="sequential network of PRTR"):
            SequentialDetector(predictor)  # type: ignore[arg-type]

    def test_table_of_boxes(self) -> None:
        table = BoxTable([Box(1, 2, 3, 4)])
        assert table.detect(PHOTO) == [Box(1, 2, 3, 4)]
        named = BoxTable(by_name={"one.png": [Box(5, 6, 7, 8)]})
        assert named.detect(LoadedImage(PHOTO.pixels, Path("x/one.png"))) == [Box(5, 6, 7, 8)]
        with pytest.raises(InputError, match="array"):
            named.detect(PHOTO)

    @pytest.mark.parametrize("name", ["yolo", "nowhere/detector.safetensors"])
    def test_unknown(self, name: str) -> None:
        with pytest.raises(InputError, match="rtdetr or dfine"):
            load_detector(name, "cpu")

    def test_score_outside(self) -> None:
        with pytest.raises(InputError, match=r"from 0 to 1, found 1\.5"):
            load_detector("rtdetr", "cpu", 1.5)

    def test_model_of_one_person_is_no_detector(self) -> None:
        weights = Path(transformers_detector.__file__).parents[1] / "weights"
        with pytest.raises(InputError, match="task 'hand'"):
            load_detector(str(weights / "guided-graphormer-hand.safetensors"), "cpu")
