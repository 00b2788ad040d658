"""Set-up of the whole test suite."""

import io
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


class RootIsAFolder:
    """pytest imports the `__init__.py` of every package above a test. Ours at the root belongs to ComfyUI:
    it is loaded by path, as the host does it, in the tests that are about it and nowhere else."""

    @staticmethod
    def pytest_collect_directory(path: Path, parent: pytest.Collector) -> pytest.Collector | None:
        return pytest.Dir.from_parent(parent, path=path) if path == ROOT else None


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden", type=Path, default=ROOT / "tests" / "golden", help="folder of golden numbers (default: our copy)"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(RootIsAFolder())


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole model with random weights, as `AnchorEditPipeline.save_pretrained` writes it; a turn takes milliseconds.

    It works at 64x64 pixels, on at most four images. Read-only: copy the folder before changing a file.
    """
    pytest.importorskip("sentencepiece")
    pytest.importorskip("transformers")
    pytest.importorskip("diffusers")
    import sentencepiece
    import torch
    from diffusers import AutoencoderKLWan
    from transformers import UMT5Config, UMT5EncoderModel

    from anchoredit_model.config import EditConfig, TransformerConfig
    from anchoredit_model.networks.backbone import TransformerBackbone
    from anchoredit_model.networks.text_encoder import TextEncoder
    from anchoredit_model.networks.transformer import CausalWanTransformer
    from anchoredit_model.networks.vae import ImageVAE
    from anchoredit_model.pipeline import AnchorEditPipeline

    vocabulary = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["make the circle red", "move the square left", "add a star"] * 10),
        model_writer=vocabulary,
        vocab_size=300,
        hard_vocab_limit=False,
        byte_fallback=True,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    torch.manual_seed(0)
    encoder = UMT5Config(vocab_size=320, d_model=16, d_kv=8, num_heads=2, d_ff=32, num_layers=1, dropout_rate=0.0)
    sizes = TransformerConfig(dim=128, ffn_dim=128, num_heads=1, num_layers=2, text_dim=32)
    pipeline = AnchorEditPipeline(
        TransformerBackbone(
            CausalWanTransformer(sizes),
            EditConfig(resolution=64, resolution_step=64, max_aspect_ratio=1.0, max_turns=4),
        ),
        ImageVAE(AutoencoderKLWan(base_dim=8)),
        TextEncoder(UMT5EncoderModel(encoder), vocabulary.getvalue(), text_dim=32),
    )
    folder = tmp_path_factory.mktemp("small") / "model"
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def host(tmp_path_factory: pytest.TempPathFactory):
    """A real ComfyUI (see tests/comfyui/conftest.py), started once and stopped at the end."""
    from comfyui_server import server

    named = server(tmp_path_factory.mktemp("comfyui"))
    if named is None:
        pytest.skip("no ComfyUI: set COMFYUI_PATH (and COMFYUI_PYTHON) to run these tests")
    with named:
        yield named


@pytest.fixture
def largest_file() -> Callable[[int], AbstractContextManager]:
    """`with largest_file(size):` no file can grow beyond `size` bytes, as on a full disk."""
    resource = pytest.importorskip("resource")

    @contextmanager
    def limit(size: int) -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limit
