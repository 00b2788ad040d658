"""The cache: encoded once by any process, separate for every VAE, never half-written; problems are kept."""

from __future__ import annotations

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from anchoredit_model.errors import AnchorEditError
from train.data.latent_cache import Encoders, prepare
from train.data.session import EditSession, Problems, WorkSizes
from train.data.workers import split, stream

SIZES = WorkSizes(resolution=32, resolution_step=16, max_aspect_ratio=4.0)


@dataclass(frozen=True)
class FakePart:
    """Sessions of 1, 2, 1, ... turns in two aspects; one session is bad."""

    number: int
    count: int = 4
    fingerprint: str = "one"

    @property
    def name(self) -> str:
        return f"part-{self.number}"

    def sessions(self, problems: Problems):
        generator = torch.Generator().manual_seed(self.number)
        for number in range(self.count):
            turns, size = 1 + number % 2, ((32, 32), (20, 60))[number // 2 % 2]
            images = torch.randint(256, (turns + 1, 3, *size), generator=generator).to(torch.uint8)
            texts = tuple({"en": f"edit {self.number % 2} {turn}", "zh": f"zh {turn}"} for turn in range(turns))
            yield EditSession(f"{self.number}_{number}", images, texts)
        problems.add(self.name, "bad", "mixed sizes", "1x1, 2x2")


PARTS = [FakePart(number) for number in range(5)]


@pytest.fixture
def encoders(small_model) -> Encoders:
    return Encoders(small_model / "vae", small_model / "text_encoder")


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("workers", [0, 2])
def test_every_session_is_read_once_over_all_ranks_and_workers(world_size, workers):
    read, ended = [], []
    for rank in range(world_size):
        parts = split(PARTS, rank, world_size)
        for number, item in stream(parts, SIZES, workers):
            if isinstance(item, EditSession):
                assert parts[number] not in ended
                read.append(item.key)
            else:
                ended.append(parts[number])
                assert [problem.origin for problem in item.found] == [parts[number].name]
    assert sorted(read) == [f"{part.number}_{number}" for part in PARTS for number in range(part.count)]
    assert sorted(part.number for part in ended) == list(range(5))


@pytest.mark.slow
def test_the_cache_has_what_the_encoders_return(encoders, tmp_path):
    data = prepare(PARTS, encoders, tmp_path, SIZES)
    assert len(data) == 20 and set(data.shapes) == {(1, 32, 32), (2, 32, 32), (1, 16, 48), (2, 16, 48)}
    sessions = {session.key: SIZES.fit(session) for part in PARTS for session in part.sessions(Problems())}
    for number in range(len(data)):
        batch = data.batch([number], ["en"])
        session = sessions.pop(batch["keys"][0])
        expected = encoders.vae.encode(session.images.float() / 255)
        torch.testing.assert_close(batch["latents"][0].float(), expected, rtol=1e-2, atol=1e-2)
        encoded = encoders.text.encode(["", *(texts["en"] for texts in session.instructions)])
        for states, text in zip(batch["texts"][0], encoded, strict=True):
            width = encoders.text.model.config.d_model
            assert states.shape[1] == width and batch["texts"].dtype == batch["latents"].dtype == torch.bfloat16
            torch.testing.assert_close(states[: len(text)].float(), text[:, :width], rtol=1e-2, atol=1e-2)
            assert not states[len(text) :].any()
    assert not sessions
    assert data.batch([0], ["en"], text_rows=40)["texts"].shape[2] == 40


def test_cached_data_loads_no_encoder(encoders, tmp_path, monkeypatch):
    first = prepare(PARTS[:3], encoders, tmp_path, SIZES)
    made = files(tmp_path)
    monkeypatch.setattr(Encoders, "vae", property(lambda self: pytest.fail("the VAE was loaded")))
    monkeypatch.setattr(Encoders, "text", property(lambda self: pytest.fail("the text encoder was loaded")))
    again = prepare(PARTS[:3], Encoders(encoders.vae_folder, encoders.text_folder), tmp_path, SIZES)
    assert files(tmp_path) == made and again.identity == first.identity
    left_out = "left out: 3 x mixed sizes, first: part-0 bad: mixed sizes"
    assert left_out in "\n".join(first.describe()) and first.describe() == again.describe()


@pytest.mark.slow
@pytest.mark.parametrize("world_size, workers", [(2, 0), (3, 1), (1, 2)])
def test_processes_and_workers_write_the_same_files_as_one(encoders, tmp_path, world_size, workers):
    one = prepare(PARTS, encoders, tmp_path / "one", SIZES)
    barrier = threading.Barrier(world_size)

    def process(rank: int):
        mine = Encoders(encoders.vae_folder, encoders.text_folder)
        return prepare(PARTS, mine, tmp_path / "many", SIZES, rank, world_size, workers, lambda: barrier.wait(60))

    with ThreadPoolExecutor(world_size) as pool:
        many = list(pool.map(process, range(world_size)))
    assert all(data.identity == one.identity for data in many)
    made = [
        {name: data for name, data in files(tmp_path / run).items() if "latents" in name} for run in ("one", "many")
    ]
    assert made[0] == made[1] and len(made[0]) == len(PARTS)
    for number in range(len(one)):  # texts are divided, so that their files differ and their states do not
        for key, value in one.batch([number], ["zh"]).items():
            other = many[-1].batch([number], ["zh"])[key]
            assert (
                value == other if key in ("keys", "star") else torch.allclose(value.float(), other.float(), atol=1e-2)
            )


def test_latents_are_not_used_with_other_weights_images_or_sizes(encoders, tmp_path):
    cache, lines = tmp_path / "cache", []

    def encoded(parts=PARTS[:2], vae=encoders.vae_folder, text=encoders.text_folder, sizes=SIZES, **options) -> list:
        lines.clear()
        prepare(parts, Encoders(vae, text, **options), cache, sizes, report=lines.append)
        return [line.partition(":")[0] for line in lines]

    latents, texts = ["encoded part-0", "encoded part-1"], ["encoded 7 texts"]
    assert encoded() == latents + texts and encoded() == []
    for name, expected in (
        ("encoder.conv_in.bias", latents),
        ("decoder.conv_in.bias", []),
        ("quant_conv.bias", latents),
    ):
        folder = tmp_path / name
        shutil.copytree(encoders.vae_folder, folder)
        weights = load_file(folder / "diffusion_pytorch_model.safetensors")
        weights[name] = weights[name] + 1
        save_file(weights, folder / "diffusion_pytorch_model.safetensors")
        assert encoded(vae=folder) == expected, name
    other = tmp_path / "text"
    shutil.copytree(encoders.text_folder, other)
    weights = load_file(other / "model.safetensors")
    save_file({name: weight + 1 for name, weight in weights.items()}, other / "model.safetensors")
    assert encoded(text=other) == texts
    assert encoded(sizes=WorkSizes(16, 16, 1.0)) == latents
    assert encoded(dtype=torch.bfloat16) == latents  # texts stay in float32 on a CPU
    assert encoded(parts=[PARTS[0], FakePart(1, fingerprint="two")]) == ["encoded part-1"]
    assert encoded() == []
    with pytest.raises(AnchorEditError, match="must differ, got part-0-.* twice"):
        encoded(parts=[PARTS[0], PARTS[0]])


def test_the_identity_depends_on_parts_and_encoders(encoders, tmp_path):
    def differing(parts=PARTS[:2], text=encoders.text_folder, sizes=SIZES, **options) -> set[str]:
        mine = prepare(parts, Encoders(encoders.vae_folder, text, **options), tmp_path / "cache", sizes).identity
        return {name for name, value in mine.items() if value != own[name]}

    own = prepare(PARTS[:2], encoders, tmp_path / "cache", SIZES).identity
    other = tmp_path / "text"
    shutil.copytree(encoders.text_folder, other)
    weights = load_file(other / "model.safetensors")
    save_file({name: weight + 1 for name, weight in weights.items()}, other / "model.safetensors")
    assert differing() == set() and differing(text=other) == {"texts"}
    assert differing(dtype=torch.bfloat16) == differing(sizes=WorkSizes(32, 16, 3.0)) == {"latents"}
    assert differing(parts=[PARTS[0], FakePart(1, fingerprint="two")]) == {"latents"}  # the same keys, other images
    assert differing(parts=PARTS[1:3]) == {"data", "latents"}


def test_a_killed_run_continues_with_its_current_part(encoders, tmp_path):
    class Killed(FakePart):
        def sessions(self, problems):
            yield from list(super().sessions(problems))[:2]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare([PARTS[0], Killed(1), PARTS[2]], encoders, tmp_path, SIZES)
    assert len(files(tmp_path)) == 1
    lines = []
    data = prepare(PARTS[:3], encoders, tmp_path, SIZES, report=lines.append)
    assert [line[:14] for line in lines[:2]] == ["encoded part-1", "encoded part-2"] and len(data) == 12


def test_a_full_disk_is_one_clear_error_and_leaves_no_files(encoders, tmp_path, largest_file):
    assert encoders.vae and encoders.text  # loaded before the disk is full
    with largest_file(1000), pytest.raises(AnchorEditError, match="latents .* cannot be written .*has room"):
        prepare(PARTS[:1], encoders, tmp_path, SIZES)
    assert files(tmp_path) == {}
    assert len(prepare(PARTS[:1], encoders, tmp_path, SIZES)) == 4


def test_a_damaged_cache_file_is_a_clear_error(encoders, tmp_path):
    prepare(PARTS[:2], encoders, tmp_path, SIZES)
    for path in tmp_path.rglob("*.safetensors"):
        whole = path.read_bytes()
        for damaged in (whole[:-1], whole[:100], b"", b"\xff" * 100):
            path.write_bytes(damaged)
            with pytest.raises(AnchorEditError, match=f"{path.name}' is damaged .*Delete it"):
                prepare(PARTS[:2], encoders, tmp_path, SIZES)
        path.unlink()
        assert len(prepare(PARTS[:2], encoders, tmp_path, SIZES)) == 8


def test_data_without_a_usable_session_is_an_error_with_the_reasons(encoders, tmp_path):
    with pytest.raises(AnchorEditError, match="no usable session in 1 parts. 1 x mixed sizes, first: part-7"):
        prepare([FakePart(7, count=0)], encoders, tmp_path, SIZES)
