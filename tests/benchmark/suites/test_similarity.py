"""Similarities by local weights, here small random ones: the same image is the same, and nothing is downloaded."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from anchoredit_model.errors import AnchorEditError
from anchoredit_model.images import save_image
from benchmark.__main__ import execute
from benchmark.suites.similarity import load_similarities

transformers = pytest.importorskip("transformers")
SIZE = 32


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A folder of small random models, one for each metric that transformers has."""
    root = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    vit = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": SIZE, "patch_size": 8}
    models = {
        "dino": transformers.Dinov2Model(transformers.Dinov2Config(**vit)),
        "clip": transformers.CLIPVisionModelWithProjection(
            transformers.CLIPVisionConfig(**vit, intermediate_size=32, projection_dim=16)
        ),
        "perceptual": transformers.ResNetModel(
            transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])
        ),
    }
    size = {"height": SIZE, "width": SIZE}
    for name, model in models.items():
        model.save_pretrained(root / name)
        processor = {"do_resize": True, "size": size, "do_rescale": True, "do_normalize": True}
        processor |= {"image_processor_type": "ViTImageProcessor", "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
        (root / name / "preprocessor_config.json").write_text(json.dumps(processor))
    return root


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(1)
    return torch.rand(3, 40, 48, generator=generator), torch.rand(3, 40, 48, generator=generator)


@pytest.mark.parametrize(("name", "same"), [("dino", 1.0), ("clip", 1.0), ("perceptual", 0.0)])
def test_metrics(weights, images, name, same):
    model = load_similarities({name: weights / name})[name]
    one, other = map(model.describe, images)
    assert model.compare(one, one) == pytest.approx(same, abs=1e-5)
    near = model.describe((images[0] + 0.02).clamp(0, 1))
    assert abs(model.compare(one, near) - same) < abs(model.compare(one, other) - same)
    assert model.fingerprint == load_similarities({name: weights / name})[name].fingerprint


def test_similarity_metrics_are_part_of_a_run(weights, images, tmp_path):
    save_image(images[0], tmp_path / "a.png")
    (tmp_path / "instructions.txt").write_text("x\ny\n")
    asked = ["run", "--suite", "photos", "--photos", str(tmp_path), "--editor", "no-op", "--out", str(tmp_path / "out")]
    given = [f"--{name}={weights / name}" for name in ("dino", "perceptual")]
    assert execute([*asked, *given]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["absent"] == ["clip", "face"]
    assert [interval["mean"] for interval in report["by_turn"]["dino"]] == pytest.approx([1, 1], abs=1e-4)
    with pytest.raises(AnchorEditError, match=r"holds a run with similarities\."):
        execute(asked)  # other metrics would leave half of the sessions without theirs


@pytest.mark.parametrize(
    ("name", "folder", "said"),
    [
        ("clip", "dino", "as Clip .it has no weights for"),
        ("dino", "perceptual", "as Dino"),
    ],
)
def test_another_model_is_refused(weights, name, folder, said):
    """Where transformers would initialise weights at random, or the model gives no features of an image."""
    with pytest.raises(AnchorEditError, match=said):
        load_similarities({name: weights / folder})


def test_unusable_weights_are_refused(weights, tmp_path):
    with pytest.raises(AnchorEditError, match="has no safetensors"):
        load_similarities({"dino": tmp_path})
    (tmp_path / "model.safetensors").write_bytes((weights / "dino" / "model.safetensors").read_bytes()[:100])
    (tmp_path / "config.json").write_bytes((weights / "dino" / "config.json").read_bytes())
    (tmp_path / "preprocessor_config.json").write_bytes((weights / "dino" / "preprocessor_config.json").read_bytes())
    with pytest.raises(AnchorEditError, match="cannot be used as Dino .*Give the folder of such a model"):
        load_similarities({"dino": tmp_path})


def test_faces(tmp_path, monkeypatch):
    """The largest face counts; without one there is no similarity. OpenCV's models are replaced by fakes."""
    cv2 = pytest.importorskip("cv2")
    with pytest.raises(AnchorEditError, match=r"must have one file '\*yunet\*\.onnx', got 0"):
        load_similarities({"face": tmp_path})
    for name in ("face_detection_yunet_2023mar.onnx", "face_recognition_sface_2021dec.onnx"):
        (tmp_path / name).write_bytes(b"no model")
    with pytest.raises(AnchorEditError, match="OpenCV cannot read the ONNX files"):
        load_similarities({"face": tmp_path})

    class Detector:
        def setInputSize(self, size):
            self.size = size

        def detect(self, image):
            assert self.size == (image.shape[1], image.shape[0])
            red = float(image[0, 0, 2])  # OpenCV's order of colours
            return 1, np.array([[0, 0, 5, 5, 0.1], [0, 0, 9, 9, red]]) if red > 9 else None

    recogniser = SimpleNamespace(alignCrop=lambda image, face: face, feature=lambda face: np.array([[face[4], 100.0]]))
    monkeypatch.setattr(cv2.FaceDetectorYN, "create", lambda *_: Detector())
    monkeypatch.setattr(cv2.FaceRecognizerSF, "create", lambda *_: recogniser)
    model = load_similarities({"face": tmp_path})["face"]
    nobody, one, other = (model.describe(torch.full((3, 20, 30), red / 255)) for red in (0, 100, 200))
    assert model.compare(one, one) == pytest.approx(1) and model.compare(one, other) == pytest.approx(0.9487, abs=1e-3)
    assert math.isnan(model.compare(one, nobody))
