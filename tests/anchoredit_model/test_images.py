"""Every common kind of image file loads as RGB; mistakes are one line; saving is all or nothing."""

import errno
import os

import numpy as np
import pytest
import torch
from PIL import Image

from anchoredit_model import images
from anchoredit_model.errors import AnchorEditError
from anchoredit_model.images import load_image, save_image

RED, GREEN, BLUE = (255, 0, 0), (0, 128, 0), (0, 0, 255)


@pytest.fixture
def pixels():
    """8-bit RGB noise [5, 7, 3]."""
    return np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


def write(path, image, **options):
    image.save(path, **options)
    return path


def levels(tensor):
    """A loaded image as 8-bit [H, W, 3]."""
    assert tensor.dtype == torch.float32 and tensor.is_contiguous()
    assert tensor.min() >= 0 and tensor.max() <= 1
    return (tensor * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()


def test_round_trip_is_bit_exact(tmp_path, pixels):
    every_level = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    for source in (pixels, every_level):
        path = write(tmp_path / "a.png", Image.fromarray(source))
        save_image(load_image(path), tmp_path / "b.png")
        with Image.open(tmp_path / "b.png") as saved:
            assert np.array_equal(np.asarray(saved), source)


def test_metadata_is_kept_and_values_are_clipped(tmp_path):
    path = tmp_path / "a.png"
    save_image(torch.tensor([-1.0, 0.5, 2.0]).view(3, 1, 1), path, {"prompt": "café", "zh": "\u7ea2\u8272\u7684\u8239"})
    with Image.open(path) as saved:
        assert saved.text == {"prompt": "café", "zh": "\u7ea2\u8272\u7684\u8239"}
        assert saved.getpixel((0, 0)) == (0, 128, 255)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(tmp_path, orientation):
    upright = Image.new("RGB", (2, 3), "black")
    upright.putpixel((0, 0), RED)
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = upright.transpose(undo[orientation]) if orientation in undo else upright
    path = write(tmp_path / "a.png", stored, exif=exif)
    assert np.array_equal(levels(load_image(path)), np.asarray(upright))


def test_grey_palette_and_one_bit(tmp_path, pixels):
    grey = Image.fromarray(pixels[..., 0])
    assert np.array_equal(levels(load_image(write(tmp_path / "l.png", grey)))[..., 1], pixels[..., 0])
    palette = Image.fromarray(pixels).quantize(8)
    path = write(tmp_path / "p.png", palette)
    assert np.array_equal(levels(load_image(path)), np.asarray(palette.convert("RGB")))
    path = write(tmp_path / "1.png", grey.convert("1"))
    assert set(np.unique(levels(load_image(path)))) <= {0, 255}


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_sixteen_bit_grey_keeps_its_depth(tmp_path, name):
    source = np.array([[0, 1, 255], [256, 40000, 65535]], dtype=np.uint16)
    loaded = load_image(write(tmp_path / name, Image.fromarray(source)))
    torch.testing.assert_close(loaded[2], torch.from_numpy(source / 65535).float())


def test_sixteen_bit_rgb(tmp_path):
    header = b"P6 2 1 65535\n"
    (tmp_path / "a.ppm").write_bytes(header + np.array([0, 32896, 65535, 65535, 0, 257], dtype=">u2").tobytes())
    assert np.array_equal(levels(load_image(tmp_path / "a.ppm")), [[[0, 128, 255], [255, 0, 1]]])


def test_cmyk(tmp_path):
    cmyk = Image.new("CMYK", (4, 4), (0, 255, 255, 0))
    loaded = levels(load_image(write(tmp_path / "a.tif", cmyk)))
    assert np.array_equal(loaded[0, 0], RED)


def test_transparency_becomes_white(tmp_path, caplog):
    image = Image.new("RGBA", (3, 1), (*BLUE, 255))
    image.putpixel((1, 0), (*BLUE, 0))
    image.putpixel((2, 0), (*BLUE, 51))
    loaded = levels(load_image(write(tmp_path / "a.png", image)))
    assert loaded.tolist() == [[list(BLUE), [255, 255, 255], [204, 204, 255]]]
    assert "transparent" in caplog.text
    caplog.clear()
    keyed = Image.new("P", (2, 1))
    keyed.putpalette([*GREEN, *RED])
    keyed.putpixel((1, 0), 1)
    loaded = levels(load_image(write(tmp_path / "b.png", keyed, transparency=1)))
    assert loaded.tolist() == [[list(GREEN), [255, 255, 255]]]


def test_opaque_alpha_changes_nothing(tmp_path, pixels, caplog):
    path = write(tmp_path / "a.png", Image.fromarray(pixels).convert("RGBA"))
    assert np.array_equal(levels(load_image(path)), pixels)
    assert not caplog.text


def test_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, GREEN, BLUE)]
    path = write(tmp_path / "a.gif", frames[0], save_all=True, append_images=frames[1:])
    assert np.array_equal(levels(load_image(path))[0, 0], RED)


def test_images_that_cannot_be_read(tmp_path, pixels, monkeypatch):
    with pytest.raises(AnchorEditError, match=r"missing\.png' does not exist"):
        load_image(tmp_path / "missing.png")
    with pytest.raises(AnchorEditError, match="is a folder"):
        load_image(tmp_path)
    for content in (b"", b"not an image"):
        (tmp_path / "text.png").write_bytes(content)
        with pytest.raises(AnchorEditError, match="not an image"):
            load_image(tmp_path / "text.png")
    with pytest.raises(AnchorEditError, match="32-bit float"):
        load_image(write(tmp_path / "f.tif", Image.fromarray(np.ones((2, 2), dtype=np.float32))))
    large = write(tmp_path / "large.png", Image.fromarray(pixels))
    monkeypatch.setattr(images, "MAX_PIXELS", 34)
    with pytest.raises(AnchorEditError, match=r"large\.png' \(7x5\)"):
        load_image(large)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(AnchorEditError, match="Scale it down"):
        load_image(large)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")  # Pillow's, before it gives up
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.gif", "a.tif", "a.webp", "a.bmp"])
def test_damaged_images(tmp_path, name):
    noise = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    whole = write(tmp_path / name, Image.fromarray(noise)).read_bytes()
    for length in (len(whole) // 2, 40, 12):
        (tmp_path / name).write_bytes(whole[:length])
        with pytest.raises(AnchorEditError) as caught:
            load_image(tmp_path / name)
        assert name in str(caught.value) and "\n" not in str(caught.value)


def test_failed_save_leaves_nothing_behind(tmp_path, monkeypatch):
    image = torch.rand(3, 4, 4)
    path = tmp_path / "a.png"
    save_image(image, path)
    before = path.read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(AnchorEditError, match="No space left"):
            save_image(1 - image, path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["a.png"]
    for folder in (tmp_path / "missing", path):
        with pytest.raises(AnchorEditError, match="cannot be written"):
            save_image(image, folder / "b.png")
    with pytest.raises(AnchorEditError, match=r"end in \.png"):
        save_image(image, tmp_path / "a.jpg")
    with pytest.raises(AnchorEditError, match="NaN"):
        save_image(image / 0 * 0, path)
    assert os.listdir(tmp_path) == ["a.png"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_folder(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(AnchorEditError, match="cannot be written"):
        save_image(torch.rand(3, 4, 4), tmp_path / "a.png")
