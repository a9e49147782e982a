"Photo in, photo out: results, choices, and what bad input gets."

import os
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from deepswap.classical import ClassicalSwapper
from deepswap.core import DeepswapError, DeviceError, ImageError, NoFaceError, SeveralFacesError, UsageError, to_pil, write_image
from deepswap.faces import find_faces
from deepswap.people import render, sample_people
from deepswap.swap import SWAPPERS, Photo, get_swapper, open_photo, swap_photo
from test_faces import checked


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def people():
    p = sample_people(3, "easy", seed=11)
    p.style = p.style.replace(glasses=0.0, fringe=0.0, hat=0.0)
    p.scene = p.scene.replace(zoom=torch.tensor([0.6, 0.55, 0.7]), shift_x=0.0, shift_y=-0.1, roll=8.0, yaw=0.0)
    return [to_pil(x) for x in render(p, 256).image]


@pytest.fixture(scope="module")
def group(people):
    return open_photo(Image.fromarray(np.concatenate([np.asarray(im) for im in people], 1)), "target")


def test_swap_changes_the_face_and_nothing_else(people):
    a, b, _ = people
    r = swap_photo(a, b)
    before, after = np.asarray(b).astype(int), np.asarray(r.image).astype(int)
    assert r.image.size == b.size and r.image.mode == "RGB" and r.note == "" and r.seconds > 0
    changed = np.abs(before - after).max(2) > 0
    x0, y0, x1, y1 = r.faces[0].box
    assert 0.02 < changed.mean() < 0.25
    ys, xs = np.where(changed)
    pad = 0.35 * r.faces[0].size
    assert xs.min() > x0 - pad and xs.max() < x1 + pad and ys.min() > y0 - pad and ys.max() < y1 + pad
    assert len(r.crops) == len(r.masks) == 1 and r.crops[0][0].shape == r.crops[0][2].shape
    assert np.array_equal(np.asarray(b).astype(int), before), "the input is not changed"


def test_pose_is_kept(people):
    a, b, _ = people
    r = swap_photo(a, b)
    after, = find_faces(r.image)
    assert np.abs(after.landmarks - r.faces[0].landmarks).mean() < 0.06 * after.size


def test_paths_bytes_arrays_and_files_are_taken(people, tmp_path):
    a, b, _ = people
    expected = np.asarray(swap_photo(a, b, "none").image)
    write_image(a, tmp_path / "a.png")
    write_image(b, tmp_path / "b.png")
    with open(tmp_path / "b.png", "rb") as f:
        for source, target in ((tmp_path / "a.png", str(tmp_path / "b.png")), ((tmp_path / "a.png").read_bytes(), np.asarray(b)), (open_photo(a), f)):
            assert np.array_equal(np.asarray(swap_photo(source, target, "none").image), expected)
    assert np.abs(expected.astype(int) - np.asarray(b).astype(int)).mean() < 1.0


def test_which_face(people, group):
    a = people[0]
    assert swap_photo(a, group, "none").note.startswith("The target picture holds 3 faces")
    assert [len(swap_photo(people[1], group, "none", face=f).faces) for f in ("largest", "all", 1, "3")] == [1, 3, 1, 1]
    left, right = (swap_photo(people[1], group, "none", face=f).faces[0].box[0] for f in (1, 3))
    assert left < 256 and right > 512
    with pytest.raises(UsageError, match="holds 3"):
        swap_photo(a, group, face=4)
    with pytest.raises(UsageError, match="only one face"):
        swap_photo(group, a, source_face="all")


def test_two_people_where_one_was_expected(people, group):
    with pytest.raises(SeveralFacesError, match="3 faces were found in the source picture .*choose one by its number"):
        swap_photo(group.image, people[0])
    with pytest.raises(SeveralFacesError, match="target"):
        swap_photo(people[0], group, face="one")
    assert swap_photo(group, people[0], "none", source_face=2).source_face.box[0] > 200
    assert swap_photo(group, people[0], "none", source_face="largest").source_face.size == group.faces[0].size


def test_same_photo(people, group):
    with pytest.raises(UsageError, match="same face of the same picture"):
        swap_photo(people[0], people[0])
    with pytest.raises(UsageError, match="same face"):
        swap_photo(group, group, source_face=2, face=2)
    assert len(swap_photo(group, group, "none", source_face=2, face="all").faces) == 2


def test_swappers():
    assert isinstance(get_swapper("classical"), ClassicalSwapper) and set(SWAPPERS) >= {"classical", "none"}
    assert all(isinstance(line, str) and callable(make) for line, make in SWAPPERS.values())
    with pytest.raises(UsageError, match="classical"):
        get_swapper("deepfake")


def test_size_of_the_crop(people):
    a, b, _ = people
    seen = []

    class Fixed:
        size = 80

        def __call__(self, s, t):
            seen.append(s.shape[-1])
            return t, torch.ones_like(t[:, :1])
    swap_photo(a, b, Fixed())
    swap_photo(a, b, lambda s, t: (seen.append(s.shape[-1]), (t, torch.ones_like(t[:, :1])))[1], size=48)
    assert seen == [80, 48]
    for size in (7, 5000, 1.5, "big", True):
        with pytest.raises(UsageError, match="32 to 2048"):
            swap_photo(a, b, size=size)
    with pytest.raises(UsageError, match="works at 80"):
        swap_photo(a, b, Fixed(), size=64)
    with pytest.raises(DeviceError):
        swap_photo(a, b, device="abacus")


def test_progress_rises_to_one(people):
    told = []
    swap_photo(people[0], people[1], "none", progress=lambda f, t: told.append((f, t)))
    fractions = [f for f, _ in told]
    assert fractions == sorted(fractions) and fractions[0] == 0 and fractions[-1] == 1 and all(t for _, t in told)


def test_a_swapper_that_fails_changes_nothing(people):
    def broken(s, t):
        raise UsageError("This method can't do that; choose another.")
    before = np.asarray(people[1]).copy()
    with pytest.raises(UsageError):
        swap_photo(people[0], people[1], broken)
    assert np.array_equal(before, np.asarray(people[1]))


def bomb(path, side=20000):
    "A valid PNG of side x side grey pixels, in a few hundred kilobytes."
    def chunk(kind, data): return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")
    head = side.to_bytes(4, "big") * 2 + bytes([8, 0, 0, 0, 0])
    data = zlib.compress(bytes(side * (side + 1)), 1)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b""))


@pytest.mark.parametrize("role", ["source", "target"])
@pytest.mark.parametrize("kind", ["missing", "folder", "text", "empty", "cut", "huge", "dot", "no face", "null byte", "number"])
def test_bad_input_gets_one_sentence(people, tmp_path, kind, role):
    bad = tmp_path / "bad.png"
    if kind == "folder":
        bad.mkdir()
    elif kind == "text":
        bad.write_text("This is not a picture.")
    elif kind == "empty":
        bad.touch()
    elif kind == "cut":
        write_image(people[0], bad)
        bad.write_bytes(bad.read_bytes()[:9000])
    elif kind == "huge":
        bomb(bad)
    elif kind == "dot":
        write_image(Image.new("RGB", (1, 1)), bad)
    elif kind == "no face":
        write_image(Image.new("RGB", (200, 100), "teal"), bad)
    given = {"null byte": "a\0b.png", "number": 42}.get(kind, bad)
    before = set(tmp_path.iterdir())
    with pytest.raises(DeepswapError) as e:
        swap_photo(*((given, people[0]) if role == "source" else (people[0], given)))
    text = str(e.value)
    assert "\n" not in text and text.endswith(".") and len(text) < 400
    assert isinstance(e.value, NoFaceError if kind == "no face" else ImageError)
    if kind in ("dot", "no face"):
        assert role in text
    assert set(tmp_path.iterdir()) == before, "nothing is written"


BAD = [f for f, n in checked("malformed") + checked("noface") if n in ("0", "-")]


@pytest.mark.parametrize("file", BAD[::3] or ["none"])
def test_malformed_and_faceless_stills(shared, people, file):
    with pytest.raises(DeepswapError) as e:
        swap_photo(people[0], shared / "data/stills" / file)
    assert "\n" not in str(e.value) and str(e.value).endswith(".")


@pytest.mark.parametrize("file", ["malformed/astronaut_16bit.png", "malformed/astronaut_alpha.png", "malformed/astronaut_anim.gif", "malformed/astronaut_cmyk.jpg",
                                  "malformed/astronaut_exif6.jpg", "hard/hopper_16bit.pgm", "hard/hopper_bw_500.png", "hard/london104_gray.png",
                                  "hard/london004_upsidedown.jpg", "hard/london134_32px.png", "hard/london001_dark.jpg"])
def test_odd_but_sound_stills_are_swapped(shared, people, file):
    r = swap_photo(people[0], shared / "data/stills" / file, size=128)
    before, after = np.asarray(r.target.image).astype(int), np.asarray(r.image).astype(int)
    assert before.shape == after.shape and (before != after).any()
    if "gray" in file or "bw" in file:
        assert np.ptp(after, axis=2).max() <= 12, "a grey photo stays grey"


def test_two_london_photos(shared):
    folder = shared / "data/london/neutral"
    r = swap_photo(folder / "001.jpg", folder / "004.jpg")
    assert r.image.size == (675, 675) and r.crops[0][0].shape[-1] > 256, "at the photo's own resolution"
    found = find_faces(r.image)
    assert len(found) == 1 and np.abs(found[0].landmarks - r.faces[0].landmarks).mean() < 0.03 * found[0].size


def test_everybody_in_a_conference(shared):
    target = shared / "data/stills/hard/solvay1927.jpg"
    r = swap_photo(shared / "data/stills/face/astronaut.png", target, "none", face="all")
    assert len(r.faces) == len(r.crops) == 29


def test_photo_is_opened_once(people, monkeypatch):
    import deepswap.swap as module
    a, b = open_photo(people[0]), open_photo(people[1], "target")
    monkeypatch.setattr(module, "find_faces", lambda *args, **kw: pytest.fail("looked for faces again"))
    assert isinstance(a, Photo) and swap_photo(a, b, "none").image.size == (256, 256)
    assert os.path.basename(module.__file__) == "swap.py"
