"The doors: real files, broken files, full disks."

import errno
import io
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from deepswap import core
from deepswap.core import DeepswapError, ImageError, OutputError, read_image, to_pil, to_tensor, write_image

BROKEN = [
    "astronaut_truncated60.jpg", "broken.png", "broken_data_stream.png", "decompression_bomb.gif", "empty.jpg",
    "hopper_unknown_pixel_mode.tif", "not_an_image.jpg", "truncated_image.png", "truncated_jpeg.jpg",
]  # fmt: skip


def png(image):
    f = io.BytesIO()
    image.save(f, "PNG")
    return f.getvalue()


@pytest.mark.parametrize("name", BROKEN)
def test_broken_file_gets_one_sentence(shared, name):
    with pytest.raises(ImageError) as e:
        read_image(shared / "data/stills/malformed" / name)
    assert name in str(e.value) and "\n" not in str(e.value) and ";" in str(e.value)


def test_reading_in_threads_leaves_the_warnings_of_the_process_alone():
    data = png(Image.new("RGB", (64, 64), "white"))
    with warnings.catch_warnings():
        warnings.resetwarnings()
        before = list(warnings.filters)
        with ThreadPoolExecutor(8) as pool:
            assert len(list(pool.map(read_image, [data] * 400))) == 400
        assert warnings.filters == before


def test_all_other_stills_are_read_upright_as_rgb(shared):
    files = [p for d in ("face", "hard", "noface", "malformed") for p in (shared / "data/stills" / d).iterdir() if p.name not in BROKEN]
    assert len(files) > 70
    for p in files:
        im = read_image(p)
        assert im.mode == "RGB" and np.asarray(im).dtype == np.uint8, p


def test_orientation_and_depth_of_real_files(shared):
    folder = shared / "data/stills/malformed"
    small = lambda n: np.asarray(read_image(folder / n).convert("L").resize((16, 16))).astype(float)
    upright = small("astronaut_16bit.png")
    for other in ("astronaut_exif6.jpg", "astronaut_cmyk.jpg"):
        assert np.corrcoef(upright.ravel(), small(other).ravel())[0, 1] > 0.9, other


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB", "I", "F", "I;16"])
def test_every_mode_becomes_rgb(mode):
    image = Image.new("L", (5, 4), 128)
    image = Image.fromarray(np.full((4, 5), 128 * 257, np.uint16)) if mode == "I;16" else image.convert("RGB").convert(mode) if mode in ("LAB", "HSV", "YCbCr", "CMYK") else image.convert(mode)
    out = read_image(image)
    assert (out.mode, out.size) == ("RGB", (5, 4))


def test_a_huge_picture_is_refused_before_it_is_decoded():
    with pytest.raises(ImageError, match="400 megapixels"):
        read_image(png(Image.new("L", (20_000, 20_000))))
    with pytest.raises(ImageError, match="130 megapixels"):
        read_image(png(Image.new("L", (13_000, 10_000))))
    with pytest.raises(ImageError, match="100 x 50"):
        read_image(png(Image.new("L", (100, 50))), max_pixels=1000)


@pytest.mark.parametrize("what", [b"", b"abc", "nowhere.png", ".", "a\0b", 3.5, None, np.zeros((2, 2, 5), np.uint8), np.zeros((0, 3, 3), np.uint8)])
def test_other_wrong_input(what):
    with pytest.raises(ImageError) as e:
        read_image(what)
    assert "\n" not in str(e.value)


def test_round_trip_is_exact_and_clamps():
    a = np.random.default_rng(0).integers(0, 256, (3, 7, 9, 3), dtype=np.uint8)
    x = to_tensor(list(a))
    assert x.shape == (3, 3, 7, 9) and x.dtype == torch.float32 and x.min() >= -1 and x.max() <= 1
    assert all((np.asarray(p) == b).all() for p, b in zip(to_pil(x), a))
    assert np.asarray(to_pil(torch.tensor([9.0, -9.0, float("nan")]).reshape(3, 1, 1))).tolist() == [[[255, 0, 0]]]


def test_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    good = write_image(Image.new("RGB", (8, 8), "red"), tmp_path / "a.png")
    before = good.read_bytes()

    def full(self, fp, *a, **kw):
        with open(fp, "wb") as f:
            f.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OutputError, match="disk is full"):
        write_image(Image.new("RGB", (8, 8)), good)
    assert good.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_write_errors_are_sentences(tmp_path):
    im = Image.new("RGB", (4, 4))
    for path in (tmp_path / "a.xyz", tmp_path / "no" / "a.png", tmp_path):
        with pytest.raises(OutputError):
            write_image(im, path)
    assert list(tmp_path.iterdir()) == []


def test_keyboard_interrupt_cleans_up(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        with core.atomic_path(tmp_path / "x.txt") as part:
            part.write_text("half")
            raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("device", ["cuda:97", "toaster", "meta"])
def test_absent_device(device):
    with pytest.raises(core.DeviceError, match="auto"):
        core.pick_device(device)


@pytest.mark.parametrize("flag, fast", [("1", True), ("0", False), ("false", False), ("yes", True)])
def test_budget(monkeypatch, flag, fast):
    monkeypatch.setenv("DEEPSWAP_FAST", flag)
    assert core.is_fast() is fast and core.budget(1, 2) == (1 if fast else 2)


def test_errors_have_one_root():
    kinds = [getattr(core, n) for n in dir(core) if n.endswith("Error") and isinstance(getattr(core, n), type) and n.endswith("Error") and getattr(core, n).__module__ == "deepswap.core"]
    assert len(kinds) >= 9 and all(issubclass(k, DeepswapError) for k in kinds)

def test_a_pillow_picture_that_breaks_off_gets_one_sentence(tmp_path):
    "Pillow opens a file before it decodes it, so a picture in hand may be a broken one."
    path = tmp_path / "cut.jpg"
    Image.effect_noise((64, 64), 90).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ImageError, match="cut.jpg is damaged or cut short"):
        read_image(Image.open(path))
    spoilt = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(spoilt, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\xff\xff\xff\x7f\0\0\0\0")
    assert read_image(Image.open(spoilt)).size == (8, 8), "spoilt notes beside a sound picture"


def test_what_a_jpeg_can_not_hold(tmp_path):
    glass = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    assert read_image(write_image(glass, tmp_path / "glass.jpg")).getpixel((4, 4)) == (255, 255, 255)
    assert Image.open(write_image(glass, tmp_path / "glass.png")).mode == "RGBA"
    with pytest.raises(OutputError, match="can hold one picture, and 2 were given"):
        write_image(torch.zeros(2, 3, 8, 8), tmp_path / "two.png")
    assert not (tmp_path / "two.png").exists()
