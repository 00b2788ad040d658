"""Similarity of two images by pretrained models, from local weights.

    perceptual   distance of the features of any image model that transformers knows (ResNet, ConvNeXt, ViT ...), of
                 unit length, averaged over its stages: LPIPS without its learned weights
                 (https://arxiv.org/abs/1801.03924)
    dino         cosine of the class tokens of a DINO (https://arxiv.org/abs/2304.07193) or any ViT
    clip         cosine of the image embeddings of a CLIP (https://arxiv.org/abs/2103.00020)
    face         cosine of the faces' embeddings, by OpenCV's FaceDetectorYN and FaceRecognizerSF; NaN where either
                 image shows no face. Of several faces the largest is taken.

The first three read a folder in the format of transformers with safetensors; the last a folder with the two ONNX files
of OpenCV's model zoo. Nothing is downloaded and no pickle is read. A new metric is a class and an
entry in `SIMILARITIES`.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from anchoredit_model.checkpoint.fingerprint import fingerprint
from anchoredit_model.errors import AnchorEditError
from anchoredit_model.images import to_pil

_DETECTOR, _RECOGNISER = "*yunet*.onnx", "*sface*.onnx"  # as the model zoo names its files
_MIN_SCORE = 0.7  # of a detected face
_DIGITS = 16  # of a fingerprint
_UNUSED = "pooler."  # weights that no metric uses and that DINO's files lack


class Similarity(ABC):
    """Compare images by one model."""

    title: str  # of its plot
    fingerprint: str  # of the weights: a run must not mix two models

    @abstractmethod
    def __init__(self, folder: Path):
        """Load the weights in a folder. Raises AnchorEditError if they cannot be used."""

    @abstractmethod
    def describe(self, image: Tensor) -> Any:
        """Return the features of an image [3, H, W] in 0..1; those of the source are computed once."""

    @abstractmethod
    def compare(self, one: Any, other: Any) -> float:
        """Return the similarity, or distance, of two images by their features."""


class _TransformersModel(Similarity):
    """Load a model in the format of transformers."""

    auto = "AutoModel"

    def __init__(self, folder: Path):
        import transformers
        from safetensors import SafetensorError

        if not list(folder.glob("*.safetensors")):
            raise AnchorEditError(f"'{folder}' has no safetensors", "Give a model's folder as transformers saves it")
        options = {"local_files_only": True}
        try:
            self.processor = transformers.AutoImageProcessor.from_pretrained(str(folder), use_fast=False, **options)
            auto = getattr(transformers, self.auto)
            model, found = auto.from_pretrained(str(folder), use_safetensors=True, output_loading_info=True, **options)
            self.model = model.eval()
            missing = sorted(name for name in found["missing_keys"] if not name.startswith(_UNUSED))
            if missing:  # transformers would initialise them at random
                raise ValueError(f"it has no weights for {missing[0]} and {len(missing) - 1} others")
            grey = self.describe(torch.full((3, 64, 64), 0.5))
            self.compare(grey, grey)
        except (OSError, ValueError, KeyError, RuntimeError, AttributeError, TypeError, SafetensorError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise AnchorEditError(
                f"'{folder}' cannot be used as {type(self).__name__} ({reason})", "Give the folder of such a model"
            ) from None
        weights = {name: value for name, value in model.state_dict().items() if name not in found["missing_keys"]}
        self.fingerprint = fingerprint(weights)[:_DIGITS]

    @torch.no_grad()
    def describe(self, image: Tensor) -> Any:
        return self.embed(self.processor(to_pil(image), return_tensors="pt")["pixel_values"])

    @abstractmethod
    def embed(self, pixels: Tensor) -> Any:
        """Return the features of one preprocessed image [1, 3, h, w]."""

    def compare(self, one: Tensor, other: Tensor) -> float:
        return float(F.cosine_similarity(one, other, dim=-1))


class Dino(_TransformersModel):
    """Compare class tokens."""

    title = "similarity to the source (DINO)"

    def embed(self, pixels: Tensor) -> Tensor:
        return self.model(pixel_values=pixels).last_hidden_state[0, 0]


class Clip(_TransformersModel):
    """Compare image embeddings."""

    title = "similarity to the source (CLIP)"
    auto = "CLIPVisionModelWithProjection"

    def embed(self, pixels: Tensor) -> Tensor:
        return self.model(pixel_values=pixels).image_embeds[0]


class Perceptual(_TransformersModel):
    """Compare the features of all stages; 0 for the same image."""

    title = "perceptual distance from the source"

    def embed(self, pixels: Tensor) -> list[Tensor]:
        stages = self.model(pixel_values=pixels, output_hidden_states=True).hidden_states
        # [C, h, w] of a convolutional model, [tokens, C] of others
        return [F.normalize(stage[0].movedim(0, -1) if stage.ndim == 4 else stage[0], dim=-1) for stage in stages]

    def compare(self, one: list[Tensor], other: list[Tensor]) -> float:
        distances = [(a - b).square().sum(dim=-1).mean() for a, b in zip(one, other, strict=True)]
        return float(torch.stack(distances).mean())


class Face(Similarity):
    """Compare the embeddings of the largest faces."""

    title = "similarity of the face to the source's"

    def __init__(self, folder: Path):
        try:
            import cv2
        except ImportError as error:
            raise AnchorEditError(
                "similarity of faces needs OpenCV", "Run `pip install opencv-python-headless`"
            ) from error
        detector, recogniser = (_only(folder, pattern) for pattern in (_DETECTOR, _RECOGNISER))
        files = (detector, recogniser)
        self.fingerprint = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:_DIGITS]
        try:
            self.detector = cv2.FaceDetectorYN.create(str(detector), "", (320, 320), _MIN_SCORE)
            self.recogniser = cv2.FaceRecognizerSF.create(str(recogniser), "")
        except cv2.error as error:
            raise AnchorEditError(
                f"OpenCV cannot read the ONNX files of '{folder}' ({error.err})", "Download them again"
            ) from None

    def describe(self, image: Tensor) -> np.ndarray | None:
        pixels = np.asarray(to_pil(image))[:, :, ::-1].copy()  # OpenCV's order of colours
        self.detector.setInputSize((pixels.shape[1], pixels.shape[0]))
        _, faces = self.detector.detect(pixels)
        if faces is None or not len(faces):
            return None
        largest = max(faces, key=lambda face: face[2] * face[3])
        return self.recogniser.feature(self.recogniser.alignCrop(pixels, largest)).ravel()

    def compare(self, one: np.ndarray | None, other: np.ndarray | None) -> float:
        if one is None or other is None:
            return math.nan
        return float(one @ other / max(np.linalg.norm(one) * np.linalg.norm(other), 1e-9))


SIMILARITIES: Mapping[str, type[Similarity]] = {
    "perceptual": Perceptual,
    "dino": Dino,
    "clip": Clip,
    "face": Face,
}


def load_similarities(folders: Mapping[str, Path | None]) -> dict[str, Similarity]:
    """Load the metrics whose folder is given. Raises AnchorEditError if a folder cannot be used."""
    loaded = {}
    for name, folder in folders.items():
        if folder is not None:
            if not folder.is_dir():
                raise AnchorEditError(f"--{name} must be a folder, got '{folder}'", "Give the folder of the weights")
            loaded[name] = SIMILARITIES[name](folder)
    return loaded


def _only(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise AnchorEditError(
            f"'{folder}' must have one file '{pattern}', got {len(found)}", "Put one there, from OpenCV's model zoo"
        )
    return found[0]
