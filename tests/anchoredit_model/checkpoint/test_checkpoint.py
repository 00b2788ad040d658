"""Every format of a checkpoint gives the same weights; everything else is refused with a reason."""

import io
import json
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from anchoredit_model.checkpoint.fingerprint import fingerprint
from anchoredit_model.checkpoint.formats import FORMATS, Format, RawCheckpoint
from anchoredit_model.checkpoint.keymap import to_wan_name, unwrapped
from anchoredit_model.checkpoint.loading import UNDISTILLED, load_transformer, outline, read_checkpoint
from anchoredit_model.checkpoint.saving import save_checkpoint, save_folder
from anchoredit_model.config import EditConfig, TransformerConfig
from anchoredit_model.errors import AnchorEditError
from anchoredit_model.networks.transformer import CausalWanTransformer

CONFIG = TransformerConfig(dim=128, ffn_dim=64, num_heads=1, num_layers=2, freq_dim=16, text_dim=24)
EDIT = EditConfig(timesteps=(1000, 500), shift=2.0, resolution=512)
# Wan's name -> diffusers', of a model of two layers, as measured on diffusers itself
GOLDEN_MAP = json.loads((Path(__file__).parents[2] / "golden" / "keymap_official_to_diffusers.json").read_text())


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {name: tensor.shape for name, tensor in CausalWanTransformer(CONFIG).state_dict().items()}
    return {name: torch.randn(shape, generator=generator) * 0.1 for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def diffusers_weights(weights) -> dict[str, torch.Tensor]:
    return {GOLDEN_MAP[name]: tensor for name, tensor in weights.items()}


def write_json(path: Path, value: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def halves(weights: dict) -> tuple[dict, dict]:
    items = list(weights.items())
    return dict(items[::2]), dict(items[1::2])


def prefixed(prefix: str, weights: dict) -> dict:
    return {prefix + name: tensor for name, tensor in weights.items()}


DIFFUSERS_JSON = {
    "_class_name": "WanTransformer3DModel",
    "num_attention_heads": 1,
    "attention_head_dim": 128,
    "ffn_dim": 64,
    "num_layers": 2,
    "freq_dim": 16,
    "text_dim": 24,
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": [1, 2, 2],
    "eps": 1e-6,
    "rope_max_seq_len": 1024,
}
WAN_JSON = {
    "_class_name": "WanModel",
    "model_type": "t2v",
    "dim": 128,
    "ffn_dim": 64,
    "num_heads": 1,
    "num_layers": 2,
    "freq_dim": 16,
    "in_dim": 16,
    "out_dim": 16,
    "text_len": 512,
    "eps": 1e-6,
}


# ------------------------------------------------------------------------------------------------ formats
# One writer per way of storing a model: (folder, Wan's weights, diffusers' weights) -> the path to read.


def own_file(folder, wan, theirs):
    save_checkpoint(folder / "x.safetensors", wan, CONFIG, EDIT)
    return folder / "x.safetensors"


def own_folder(folder, wan, theirs):
    save_folder(folder / "mine", wan, CONFIG, EDIT)
    return folder / "mine"


def diffusers_folder(folder, wan, theirs):
    write_json(folder / "config.json", DIFFUSERS_JSON)
    save_file(theirs, folder / "diffusion_pytorch_model.safetensors")
    return folder


def diffusers_pipeline(folder, wan, theirs):
    write_json(folder / "model_index.json", {"_class_name": "WanPipeline"})
    (folder / "vae").mkdir()
    inner = folder / "transformer"
    write_json(inner / "config.json", DIFFUSERS_JSON)
    parts = [f"diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for part, half in zip(parts, halves(theirs), strict=True):
        save_file(half, inner / part)
    weight_map = {name: part for part, half in zip(parts, halves(theirs), strict=True) for name in half}
    write_json(inner / "diffusion_pytorch_model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})
    return folder


def diffusers_file(folder, wan, theirs):
    save_file(theirs, folder / "x.safetensors")
    return folder / "x.safetensors"


def wan_folder(folder, wan, theirs):
    write_json(folder / "config.json", WAN_JSON)
    for i, half in enumerate(halves(wan), start=1):
        save_file(half, folder / f"diffusion_pytorch_model-0000{i}-of-00002.safetensors")
    (folder / "Wan2.1_VAE.pth").write_bytes(b"other files lie here too")
    return folder


def comfyui_file(prefix):
    def write(folder, wan, theirs):
        save_file(prefixed(prefix, wan), folder / "x.safetensors")
        return folder / "x.safetensors"

    return write


def comfyui_all_in_one(folder, wan, theirs):
    others = {"first_stage_model.conv1.weight": torch.ones(1), "text_encoders.umt5xxl.shared.weight": torch.ones(1)}
    save_file(prefixed("model.diffusion_model.", wan) | others, folder / "x.safetensors")
    return folder / "x.safetensors"


def parts_file(folder, wan, theirs):
    for i, half in enumerate(halves(wan), start=1):
        save_file(half, folder / f"x_part{i}of2.safetensors", {"config": json.dumps(WAN_JSON)})
    return folder / "x_part2of2.safetensors"


def parts_folder(folder, wan, theirs):
    return parts_file(folder, wan, theirs).parent


def published(folder, wan, theirs):
    ema = {f"model._fsdp_wrapped_module.{name.replace('blocks.', 'blocks._orig_mod.')}": t for name, t in wan.items()}
    stale = prefixed("model.", {name: torch.zeros_like(tensor) for name, tensor in wan.items()})
    torch.save({"generator": stale, "generator_ema": ema, "step": 7}, folder / "model.pt")
    return folder / "model.pt"


def published_without_ema(folder, wan, theirs):
    torch.save({"generator": prefixed("module.model.", wan), "generator_ema": None}, folder / "model.pt")
    return folder / "model.pt"


def bare_pt(folder, wan, theirs):
    torch.save(wan, folder / "model.pt")
    return folder / "model.pt"


def old_pt(folder, wan, theirs):
    torch.save(wan, folder / "model.pt", _use_new_zipfile_serialization=False)
    return folder / "model.pt"


FOREIGN = EditConfig(anchor_prompt="first_prompt", slot_mode="absolute")
STORED = {
    "own file": (own_file, "anchoredit", EDIT),
    "own folder": (own_folder, "anchoredit", EDIT),
    "diffusers folder": (diffusers_folder, "diffusers", None),
    "diffusers pipeline, sharded": (diffusers_pipeline, "diffusers", None),
    "diffusers file": (diffusers_file, "diffusers", None),
    "wan folder, sharded": (wan_folder, "wan", None),
    "comfyui, no prefix": (comfyui_file(""), "comfyui", None),
    "comfyui, diffusion_model": (comfyui_file("diffusion_model."), "comfyui", None),
    "comfyui, model": (comfyui_file("model."), "comfyui", None),
    "comfyui, model.diffusion_model": (comfyui_file("model.diffusion_model."), "comfyui", None),
    "comfyui, all in one": (comfyui_all_in_one, "comfyui", None),
    "parts, one named": (parts_file, "comfyui", None),
    "parts, their folder": (parts_folder, "comfyui", None),
    "published": (published, "published", FOREIGN),
    "published without EMA": (published_without_ema, "published", FOREIGN),
    "bare .pt": (bare_pt, "state_dict", None),
    "old .pt": (old_pt, "state_dict", None),
}


@pytest.mark.parametrize("name", STORED)
def test_every_format_gives_the_same_weights(name, tmp_path, weights, diffusers_weights):
    write, format, edit = STORED[name]
    path = write(tmp_path, weights, diffusers_weights)
    found = read_checkpoint(path)
    assert (found.format, found.edit_config, found.transformer_config) == (format, edit, CONFIG)
    assert found.state_dict.keys() == weights.keys()
    assert all(torch.equal(found.state_dict[key], weights[key]) for key in weights)

    known = outline(path)
    assert (known.format, known.edit_config) == (format, edit)
    one_file = path.is_file() and not name.startswith("parts")
    assert known.wan_file == (one_file and format in ("anchoredit", "comfyui"))

    model, loaded_edit = load_transformer(str(path), torch.float32, "cpu")
    assert loaded_edit == (edit or UNDISTILLED) and not model.training
    assert fingerprint(model) == fingerprint(weights)
    everything = [*model.parameters(), *model.buffers()]
    assert not any(tensor.is_meta for tensor in everything)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_every_format_is_tested():
    assert {format for _, format, _ in STORED.values()} == set(FORMATS) - {"gguf"}  # which is refused


def test_a_new_format_is_one_entry(tmp_path, weights, monkeypatch):
    path = tmp_path / "model.xyz"
    path.write_bytes(b"XYZ1 weights")
    with pytest.raises(AnchorEditError, match="neither safetensors nor a PyTorch checkpoint"):
        read_checkpoint(path)
    xyz = Format(lambda source: source.start.startswith(b"XYZ1"), lambda source: RawCheckpoint(dict(weights)))
    monkeypatch.setitem(FORMATS, "xyz", xyz)
    assert read_checkpoint(path).format == "xyz"
    assert fingerprint(load_transformer(path)[0]) == fingerprint(weights)


def test_header_length_is_not_mistaken_for_a_pickle(tmp_path, weights):
    """Its length is the file's first number: 1 in 32 of them has 0x80, where a pickle begins, as its lowest byte."""
    path = tmp_path / "model.safetensors"
    for room in range(0, 256, 8):
        save_file(weights, path, {"note": "x" * room})
        if path.read_bytes()[0] == 0x80:
            break
    assert path.read_bytes()[0] == 0x80 and read_checkpoint(path).transformer_config == CONFIG


def test_loading_casts_to_the_dtype(tmp_path, weights):
    model, _ = load_transformer(own_file(tmp_path, weights, None), torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_loaded_model_computes_the_same_as_the_saved_one(tmp_path, weights):
    """Nothing that a forward needs is lost by building on the meta device."""
    built = CausalWanTransformer(CONFIG).eval()
    built.load_state_dict(weights)
    loaded, _ = load_transformer(own_file(tmp_path, weights, None))
    latents, text = torch.ones(1, 16, 2, 4, 4), torch.ones(1, 2, 3, CONFIG.text_dim)
    with torch.no_grad():
        assert torch.equal(*(model(latents, torch.tensor([[0.0, 500.0]]), text) for model in (built, loaded)))


# ------------------------------------------------------------------------------------------------ names


@pytest.mark.parametrize(
    "key",
    [
        "model.blocks.0.norm3.bias",
        "blocks._checkpoint_wrapped_module.0.norm3.bias",
        "_fsdp_wrapped_module.model._fsdp_wrapped_module.blocks.0._fsdp_wrapped_module.norm3.bias",
        "_orig_mod.module.model.blocks.0._orig_mod.norm3.bias",
        "model.diffusion_model.blocks.0.norm3.bias",
    ],
)
def test_wrappers_are_stripped_anywhere(key):
    assert unwrapped(key) == "blocks.0.norm3.bias"


def test_diffusers_names(weights):
    assert GOLDEN_MAP.keys() == weights.keys()
    for wan, theirs in GOLDEN_MAP.items():
        assert to_wan_name(theirs) == wan
        assert to_wan_name(theirs.replace("blocks.1.", "blocks.39.")) == wan.replace("blocks.1.", "blocks.39.")
    for unknown in ("blocks.0.attn2.add_k_proj.weight", "blocks.0.norm3.weight", "rope.freqs"):
        assert to_wan_name(unknown) is None


def test_one_weight_under_two_names_is_refused(tmp_path, weights):
    torch.save(weights | prefixed("module.", weights), tmp_path / "two.pt")
    with pytest.raises(AnchorEditError, match="twice"):
        read_checkpoint(tmp_path / "two.pt")


# ------------------------------------------------------------------------------------------------ strictness


def test_missing_unexpected_and_misshapen_weights_are_named(tmp_path, weights):
    path = tmp_path / "x.safetensors"
    lacking = {name: tensor for name, tensor in weights.items() if not name.startswith("blocks.1.self_attn")}
    save_file(lacking, path)
    with pytest.raises(AnchorEditError, match=r"10 weights missing \(blocks.1.self_attn.*, \.\.\.\)") as error:
        load_transformer(path)
    assert str(error.value).count("blocks.1.self_attn") == 5 and "\n" not in str(error.value)

    save_file(weights | {"blocks.1.extra.weight": torch.ones(1)}, path)
    with pytest.raises(AnchorEditError, match=r"1 weights left over \(blocks.1.extra.weight\)"):
        load_transformer(path)

    save_file(weights | {"head.head.bias": torch.ones(3)}, path)
    with pytest.raises(AnchorEditError, match=r"wrong shape \(head.head.bias \(3,\) instead of \(64,\)\)"):
        load_transformer(path)


def test_a_config_that_contradicts_the_weights_is_refused(tmp_path, weights):
    write_json(wan_folder(tmp_path, weights, None) / "config.json", WAN_JSON | {"dim": 256})
    with pytest.raises(AnchorEditError, match="declares dim 256, but its weights have 128"):
        read_checkpoint(tmp_path)


def test_number_of_heads(tmp_path, weights):
    path = comfyui_file("")(tmp_path, weights, None)
    assert read_checkpoint(path).transformer_config.num_heads == 1
    assert read_checkpoint(path, num_heads=4).transformer_config.num_heads == 4
    with pytest.raises(AnchorEditError, match="got 3 heads"):
        read_checkpoint(path, num_heads=3)
    metadata = {"config": json.dumps({"transformer": {"num_heads": 2}})}
    save_file(weights, path, metadata)
    assert read_checkpoint(path).transformer_config.num_heads == 2


@pytest.mark.parametrize(
    ("name", "shape", "reason"),
    [
        ("img_emb.proj.0.weight", (4,), "image-to-video"),
        ("vace_blocks.0.norm3.weight", (4,), "VACE"),
        ("control_adapter.conv.weight", (4,), "camera"),
        ("patch_embedding.weight", (128, 36, 1, 2, 2), "36 channels"),
    ],
)
def test_other_kinds_of_models_are_refused_with_the_reason(name, shape, reason, tmp_path, weights):
    save_file(weights | {name: torch.ones(shape)}, tmp_path / "x.safetensors")
    with pytest.raises(AnchorEditError, match=reason):
        load_transformer(tmp_path / "x.safetensors")


def test_other_kinds_of_models_are_refused_by_their_config(tmp_path, weights, diffusers_weights):
    write_json(wan_folder(tmp_path, weights, None) / "config.json", WAN_JSON | {"model_type": "i2v"})
    with pytest.raises(AnchorEditError, match="i2v"):
        read_checkpoint(tmp_path)
    write_json(tmp_path / "config.json", DIFFUSERS_JSON | {"_class_name": "WanVACETransformer3DModel"})
    with pytest.raises(AnchorEditError, match="WanVACETransformer3DModel"):
        read_checkpoint(tmp_path)
    (tmp_path / "transformer_2").mkdir()
    with pytest.raises(AnchorEditError, match=r"Wan 2\.2"):
        read_checkpoint(tmp_path)


# ------------------------------------------------------------------------------------------------ unreadable files


class Evil:
    """Unpickling it would create a file."""

    def __init__(self, target: Path):
        self.target = str(target)

    def __reduce__(self):
        return os.mkdir, (self.target,)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path, weights):
    target = tmp_path / "created"
    torch.save({"generator": weights, "step": Evil(target)}, tmp_path / "zip.pt")
    (tmp_path / "zip.safetensors").write_bytes((tmp_path / "zip.pt").read_bytes())
    with (tmp_path / "plain.safetensors").open("wb") as file:  # the name does not matter
        pickle.dump({"generator": Evil(target)}, file, protocol=2)
    for name in ("zip.pt", "zip.safetensors", "plain.safetensors"):
        with pytest.raises(AnchorEditError, match=r"mkdir.*not opened.*safetensors"):
            read_checkpoint(tmp_path / name)
    assert not target.exists()


def zip_bytes(weights) -> bytes:
    buffer = io.BytesIO()
    torch.save(weights, buffer)
    return buffer.getvalue()


def of_two_disks(archive: bytes) -> bytes:
    """A flipped number in the zip64 locator, at which Python's zipfile raises even when asked if it is one."""
    disks = archive.rindex(b"PK\x06\x07") + 16
    return archive[:disks] + b"\x02" + archive[disks + 1 :]


def other_zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.txt", "x")
    return buffer.getvalue()


def test_unreadable_files_say_what_they_are(tmp_path, weights):
    whole = own_file(tmp_path, weights, None).read_bytes()
    cases = {
        "cut.safetensors": (whole[:-100], "cut short"),
        "cut_in_header.safetensors": (whole[:50], "cut short"),
        "cut.pt": (zip_bytes(weights)[:-100], "cut short"),
        "disks.pt": (of_two_disks(zip_bytes(weights)), "cut short"),
        "other.zip": (other_zip(), "damaged"),
        "damaged.pt": (b"\x80\x02 nonsense", "damaged|not opened"),
        "text.safetensors": (b"version https://git-lfs.github.com/spec/v1\n", "neither safetensors nor"),
        "empty.pt": (b"", "is empty"),
        "model.gguf": (b"GGUF\x03\x00\x00\x00\x00", "GGUF loader"),
    }
    for name, (content, reason) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(AnchorEditError, match=reason) as error:
            read_checkpoint(tmp_path / name)
        assert name in str(error.value) and "\n" not in str(error.value)


def test_checkpoints_of_other_content_are_refused(tmp_path, weights):
    save_file({"unet.steps": torch.ones(1, dtype=torch.int64)}, tmp_path / "other.safetensors")
    with pytest.raises(AnchorEditError, match=r"no Wan 2\.1 transformer .*begins with unet\.steps"):
        read_checkpoint(tmp_path / "other.safetensors")
    torch.save({"critic": weights, "step": 3}, tmp_path / "critic.pt")
    with pytest.raises(AnchorEditError, match="'critic', a dict"):
        read_checkpoint(tmp_path / "critic.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(AnchorEditError, match="holds a list"):
        read_checkpoint(tmp_path / "list.pt")
    save_file(weights, tmp_path / "meta.safetensors", {"config": "{"})
    with pytest.raises(AnchorEditError, match="not a JSON object"):
        read_checkpoint(tmp_path / "meta.safetensors")
    with pytest.raises(AnchorEditError, match="nowhere.pt does not exist"):
        read_checkpoint(tmp_path / "nowhere.pt")


def test_folders_that_lack_or_mix_weights_are_refused(tmp_path, weights):
    (tmp_path / "empty").mkdir()
    with pytest.raises(AnchorEditError, match=r"no \.safetensors weights"):
        read_checkpoint(tmp_path / "empty")

    mixed = own_folder(tmp_path, weights, None)
    save_file({"a": torch.ones(1)}, mixed / "vae.safetensors")
    with pytest.raises(AnchorEditError, match="holds 2 models"):
        read_checkpoint(mixed)

    wan = tmp_path / "wan"
    wan.mkdir()
    wan_folder(wan, weights, None)
    (wan / "diffusion_pytorch_model-00002-of-00002.safetensors").unlink()
    with pytest.raises(AnchorEditError, match="00002-of-00002.safetensors is missing"):
        read_checkpoint(wan)

    write_json(wan / "m.safetensors.index.json", {"weight_map": {"a": "../secret.safetensors"}})
    with pytest.raises(AnchorEditError, match="index of shards in its own folder"):
        read_checkpoint(wan)


# ------------------------------------------------------------------------------------------------ fp8


@pytest.mark.parametrize(("scale", "marker"), [("scale_weight", "scaled_fp8"), ("weight_scale", None)])
def test_scaled_fp8_becomes_bfloat16(scale, marker, tmp_path, weights):
    name = "blocks.1.ffn.0"
    factor = weights[f"{name}.weight"].abs().max() / 448
    file = weights | {
        f"{name}.weight": (weights[f"{name}.weight"] / factor).to(torch.float8_e4m3fn),
        f"{name}.{scale}": factor,
        f"{name}.scale_input": torch.tensor(1.0),
        "head.head.weight": weights["head.head.weight"].to(torch.float8_e4m3fn),
    }
    if marker:
        file[marker] = torch.zeros(2, dtype=torch.float8_e4m3fn)
    save_file(prefixed("model.diffusion_model.", file), tmp_path / "x.safetensors")
    found = read_checkpoint(tmp_path / "x.safetensors").state_dict
    assert found.keys() == weights.keys()
    for key in (f"{name}.weight", "head.head.weight"):
        assert found[key].dtype == torch.bfloat16
        torch.testing.assert_close(found[key].float(), weights[key], rtol=0.08, atol=1e-3)
    assert torch.equal(found["blocks.0.ffn.0.weight"], weights["blocks.0.ffn.0.weight"])


def test_other_quantisations_are_refused(tmp_path, weights):
    name = "blocks.0.ffn.0"
    save_file(weights | {f"{name}.weight_scale": torch.ones(64, 1)}, tmp_path / "rows.safetensors")
    with pytest.raises(AnchorEditError, match="64 numbers"):
        read_checkpoint(tmp_path / "rows.safetensors")
    packed = weights[f"{name}.weight"].to(torch.int8)
    save_file(weights | {f"{name}.weight": packed}, tmp_path / "int8.safetensors")
    with pytest.raises(AnchorEditError, match="int8"):
        read_checkpoint(tmp_path / "int8.safetensors")


# ------------------------------------------------------------------------------------------------ saving


def test_our_file_is_readable_by_comfyui_and_by_others(tmp_path, weights):
    path = tmp_path / "new" / "x.safetensors"
    save_checkpoint(path, prefixed("_orig_mod.", weights), CONFIG, EDIT, dtype=torch.bfloat16)
    with safe_open(path, framework="pt") as file:
        metadata, names = file.metadata(), set(file.keys())
        assert file.get_tensor("head.head.weight").dtype == torch.bfloat16
    assert names == set(weights)
    transformer = json.loads(metadata["config"])["transformer"]
    expected = {key: value for key, value in WAN_JSON.items() if key != "_class_name"}
    assert transformer == expected | {"text_dim": 24, "patch_size": [1, 2, 2]}
    assert EditConfig.from_json(json.loads(metadata["anchoredit"])) == EDIT
    assert path.stat().st_mode & 0o044 == 0o044
    assert [file.name for file in path.parent.iterdir()] == ["x.safetensors"]


def test_a_model_saves_as_its_state_dict(tmp_path):
    model = CausalWanTransformer(CONFIG)
    save_checkpoint(tmp_path / "x.safetensors", model, CONFIG, EDIT)
    assert fingerprint(load_transformer(tmp_path / "x.safetensors")[0]) == fingerprint(model)


def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path, weights, monkeypatch):
    path = own_file(tmp_path, weights, None)
    before = path.read_bytes()

    def full_disk(tensors, temporary, metadata):
        Path(temporary).write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr("anchoredit_model.checkpoint.saving.save_file", full_disk)
    with pytest.raises(AnchorEditError, match="no space left"):
        save_checkpoint(path, weights, CONFIG, EDIT)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_saving_incomplete_weights_is_refused(tmp_path, weights):
    lacking = {name: tensor for name, tensor in weights.items() if name != "head.modulation"}
    with pytest.raises(AnchorEditError, match="1 weights missing"):
        save_checkpoint(tmp_path / "x.safetensors", lacking, CONFIG, EDIT)
    with pytest.raises(AnchorEditError, match="must end in .safetensors"):
        save_checkpoint(tmp_path / "x.pt", weights, CONFIG, EDIT)
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------------ fingerprint


def test_fingerprint_sees_names_shapes_dtypes_and_values():
    base = {"a": torch.arange(6.0), "b": torch.ones(2)}
    reference = fingerprint(base)
    assert len(reference) == 64
    assert fingerprint({"b": base["b"], "a": base["a"]}) == reference
    assert fingerprint(prefixed("_orig_mod.", base)) == reference
    others = [
        {"a": base["a"], "c": base["b"]},
        {"a": base["a"].reshape(2, 3), "b": base["b"]},
        {"a": base["a"], "b": base["b"].bfloat16()},
        {"a": base["a"].flip(0), "b": base["b"]},
    ]
    assert len({reference, *map(fingerprint, others)}) == 5


def test_fingerprint_of_a_large_tensor_sees_one_changed_value():
    large = torch.randn(600_001, generator=torch.Generator().manual_seed(1)).bfloat16()
    reference = fingerprint({"w": large})
    for index in (0, 1, 300_001, 600_000):
        changed = large.clone()
        changed[index] += 1
        assert fingerprint({"w": changed}) != reference
    assert fingerprint({"w": torch.cat([large[:1], large])[1:]}) == reference  # a view that is not aligned to 8 bytes
