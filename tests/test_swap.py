"Photo in, photo out: results, choices, and what bad input gets."

import json
import os
import pickle
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from solved import all_hold, toy

from deepswap.autoencoder import AutoencoderSwap, PairSwapper, resized
from deepswap.autoencoder import AutoencoderSwap as KnownSwap
from deepswap.classical import ClassicalSwapper, blur, rgb_to_lab
from deepswap.cyclegan import psnr
from deepswap.core import CANONICAL5, DeepswapError, DeviceError, ImageError, NoFaceError, SeveralFacesError, UsageError, WeightsError, to_pil, write_image
from deepswap.faces import Face, align_photo, face_mask, find_faces
from deepswap.people import exact_swap, render, sample_people
from deepswap import swap as module
from deepswap.aei import AEINet
from deepswap.faceshifter import FACESHIFTER, FaceShifter, FaceShifterSwapper, add_detail, save_faceshifter
from deepswap.swap import (SWAPPERS, Acquaintance, AutoSwapper, LitPair, Photo, add_light, get_swapper, glance, open_acquaintance, open_auto, open_pair, open_photo, open_shipped,
                           save_acquaintance, swap_photo, takes_landmarks)
from deepswap.train import METHODS, RingOfGaussians, ToyGAN, Trainer, run, write_tensors
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
    r = swap_photo(a, b, "classical")
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


# ---- a trained pair ----

RED, BLUE = (0.6, -0.6, -0.6), (-0.6, -0.6, 0.6)


def two_colors(out):
    "A run in a new folder whose A is plain red and whose B is plain blue, whatever is shown."
    torch.manual_seed(0)
    method = AutoencoderSwap(16, 4, 8)
    for decoder, color in ((method.decoder_a, RED), (method.decoder_b, BLUE)):
        last = decoder[-2]
        torch.nn.init.zeros_(last.weight)
        last.bias.data = torch.tensor(color).atanh()
    method.optimizers = lambda: {"ae": torch.optim.SGD(method.parameters(), 0.0)}  # one step that changes nothing
    Trainer(method, [{"a": torch.zeros(2, 3, 16, 16), "b": torch.zeros(2, 3, 16, 16)}], out=out, steps=1, progress=False).fit()
    return out


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return two_colors(tmp_path_factory.mktemp("pair") / "run")


def middle(image, face):
    "Mean colour (3,) in the middle of a face, in [-1, 1]."
    return align_photo(image, face.landmarks, 64)[0][0, :, 24:40, 24:40].mean((1, 2))


@pytest.mark.parametrize("to, color", [("a", RED), ("b", BLUE)])
def test_a_run_paints_the_person_asked_for_and_needs_no_source(pair, people, to, color):
    r = swap_photo(target=people[0], swapper=pair, to=to, light=False)
    assert r.source is None and r.source_face is None and r.to == [to] and r.note == ""
    assert (middle(r.image, r.faces[0]) - torch.tensor(color)).abs().max() < 0.03
    before, after = np.asarray(people[0]), np.asarray(r.image)
    assert 0.02 < (before != after).any(2).mean() < 0.25 and r.crops[0][0] is None and r.crops[0][1].shape[-1] == 16
    for given in (str(pair), pair / "last.safetensors", pair / "weights-last.safetensors"):
        assert np.array_equal(np.asarray(swap_photo(None, people[0], given, to=to, light=False).image), after)


def test_auto_paints_the_other_one_and_says_so(pair, people, group):
    def tinted(image, color):
        x = np.asarray(image).astype(float)
        return Photo(Image.fromarray((0.5 * x + 0.5 * (np.array(color) + 1) * 127.5).astype(np.uint8)), faces)
    faces = find_faces(people[0])
    for color, other in ((RED, "b"), (BLUE, "a")):
        r = swap_photo(None, tinted(people[0], color), pair)
        assert r.to == [other] and f"became person {other.upper()}" in r.note and r.note.endswith(".")
    r = swap_photo(None, group, pair, face="all", to="b")
    assert r.to == ["b"] * 3 and len(r.crops) == 3
    assert "holds 3 faces" in swap_photo(None, group, pair).note and "became person" in swap_photo(None, group, pair).note


def test_what_a_pair_can_not_do_is_refused(pair, people):
    with pytest.raises(UsageError, match="leave the source picture out"):
        swap_photo(people[1], people[0], pair)
    with pytest.raises(UsageError, match="'auto', 'a' or 'b'"):
        swap_photo(None, people[0], pair, to="c")
    with pytest.raises(UsageError, match="works at 16"):
        swap_photo(None, people[0], pair, size=64)
    with pytest.raises(UsageError, match="no target picture"):
        swap_photo(people[0], swapper=pair)
    with pytest.raises(UsageError, match="no source picture"):
        swap_photo(None, people[0])
    with pytest.raises(UsageError, match="only a trained pair"):
        swap_photo(people[1], people[0], to="a")
    with pytest.raises(NoFaceError):
        swap_photo(None, Image.new("RGB", (200, 200), "teal"), pair)


def test_a_swapper_from_a_run(pair):
    s = get_swapper(pair, "cpu", "b")
    assert type(s) is PairSwapper and (s.to, s.size, s.method) == ("b", 16, "autoencoder-swap")
    assert get_swapper(s) is s
    other = get_swapper(s, to="a", light=True)
    assert type(other) is LitPair and other.to == "a" and other.model is s.model and s.to == "b"
    assert get_swapper(s, light=True).to == "b", "what was chosen stays"
    assert open_pair(str(pair)).to == "auto"


def test_a_pair_is_known_by_its_name(pair, monkeypatch):
    "Who has run chapter 31 in this process has entered a class of the same name that is another one."

    class AutoencoderSwap:
        def __new__(cls, **config):
            return KnownSwap(**config)

    monkeypatch.setitem(METHODS, "autoencoder-swap", AutoencoderSwap)
    assert get_swapper(pair, "cpu", "a").to == "a"


def test_what_was_chosen_of_a_pair_stays_chosen(pair):
    s = PairSwapper(get_swapper(pair, "cpu").model, "b", mask="crop")
    x = torch.rand(1, 3, 16, 16) * 2 - 1
    for other in (get_swapper(s, to="a"), get_swapper(s, light=True)):
        assert other.mask == "crop" and torch.equal(other(None, x)[1], s(None, x)[1])


def test_a_faceshifter_run_swaps_any_two_photos(people, tmp_path):
    pytest.importorskip("deepswap.faceshifter")
    run("faceshifter", "procedural:n=4,scenes=3", 32, 2, 1, device="cpu", out=tmp_path / "run", options={"width": 2, "ndf": 4}, progress=False)
    s = get_swapper(str(tmp_path / "run"), "cpu")
    assert s.method == "faceshifter" and s.size == 32
    r = swap_photo(people[1], people[0], str(tmp_path / "run"), device="cpu")
    assert r.image.size == people[0].size and np.abs(np.asarray(r.image, float) - np.asarray(people[0], float)).max() > 5
    with pytest.raises(UsageError, match="only a trained pair has two"):
        get_swapper(str(tmp_path / "run"), "cpu", to="a")
    with pytest.raises(UsageError, match="no source picture"):
        swap_photo(None, people[0], str(tmp_path / "run"))


class Bomb:
    def __reduce__(self):
        return os.mkdir, (os.environ["DEEPSWAP_TEST_BOMB"],)


def bad_runs(folder):
    "Kind -> (path, what the error says)."
    (folder / "empty").mkdir()
    (folder / "text.safetensors").write_text("not weights")
    (folder / "cut.safetensors").write_bytes((folder / "run/last.safetensors").read_bytes()[:-500])
    (folder / "pickle.pt").write_bytes(pickle.dumps(Bomb()))
    Trainer(ToyGAN(), RingOfGaussians(8), out=folder / "toy", steps=1, progress=False).fit()
    write_tensors(folder / "stranger.safetensors", {"state": torch.zeros(2, dtype=torch.uint8)}, {"method": "no-such", "config": {}})
    write_tensors(folder / "old.safetensors", {"state": torch.zeros(2, dtype=torch.uint8)}, {"method": "autoencoder-swap", "config": {"size": "large"}})
    write_tensors(folder / "hollow.safetensors", {"state": torch.zeros(2, dtype=torch.uint8)}, {"method": "autoencoder-swap", "config": {}})
    write_tensors(folder / "bare.safetensors", {"state": torch.frombuffer(bytearray(b'{"dict": [["extra", {"dict": []}]]}'), dtype=torch.uint8)}, {"method": "autoencoder-swap", "config": {"size": 16, "width": 4, "code": 8}})
    return {"empty": "holds no last.safetensors", "text.safetensors": "can't be read as a checkpoint", "cut.safetensors": "can't be read as a checkpoint",
            "pickle.pt": "can't be read as a checkpoint", "toy": "'toy-gan', which does not swap two people", "stranger.safetensors": "'no-such', which does not swap",
            "old.safetensors": "another version", "hollow.safetensors": "a state that autoencoder-swap can't use", "bare.safetensors": "lacks", "missing": "no run at that place"}


def test_bad_runs_get_one_sentence_and_nothing_is_unpickled(pair, people, tmp_path, monkeypatch):
    monkeypatch.setenv("DEEPSWAP_TEST_BOMB", str(tmp_path / "boom"))
    (tmp_path / "run").symlink_to(pair)
    for name, text in bad_runs(tmp_path).items():
        with pytest.raises(WeightsError if text[0] in "hlca" else UsageError) as e:
            swap_photo(None, people[0], tmp_path / name)
        assert text in str(e.value) and str(e.value).endswith(".") and "\n" not in str(e.value), name
    assert not (tmp_path / "boom").exists()


def test_light_is_carried_over(pair, people):
    "A pair that knows one light paints it; with `light`, the swap follows the target into the dark and keeps the colour that was asked for."
    face, = find_faces(people[0])
    dark = people[0].point(lambda v: v // 2)
    plain, lit = ([middle(swap_photo(None, Photo(im, [face]), pair, to="b", light=light).image, face) for im in (people[0], dark)] for light in (False, True))
    assert (plain[0] - plain[1]).abs().max() < 0.03, "without it, light changes nothing"
    assert (lit[0] - lit[1]).mean() > 0.1
    assert lit[1][2] > lit[1][0] + 0.3, "and blue stays blue"


def test_added_light_is_the_blurred_difference_in_lab():
    g = torch.Generator().manual_seed(0)
    painted, own, target = (torch.rand(2, 3, 32, 32, generator=g) * 0.2 for _ in range(3))
    one = torch.ones(2, 1, 32, 32)
    assert (add_light(painted, target, target, one) - painted).abs().max() < 1e-3, "nothing missed, nothing added"
    moved = rgb_to_lab(add_light(painted, own, target, one)) - rgb_to_lab(painted)
    expected = blur(rgb_to_lab(target) - rgb_to_lab(own), 3.2)
    assert (moved - expected).abs().mean() < 0.2 and moved.abs().mean() > 0.3


# ---- a network for any two people, and auto ----

class Painter(FaceShifter):
    "Paints every face red, and gives back what it is to swap with itself. What its attribute encoder sees is how bright a crop is."
    def swap(self, source, target, share=1.): return resized(target, 32) if source is target else torch.tensor(RED)[:, None, None].expand(len(target), 3, 32, 32).clone()


def brightness(x): return [x.mean((1, 2, 3), keepdim=True), torch.zeros(len(x), 1, 1, 1), torch.full((len(x), 9, 4, 4), torch.nan)]


def network():
    made = Painter(size=32, width=2, ndf=4)
    made.attributes.forward = brightness
    return FaceShifterSwapper(made)


# usual is a brightness of 0, and 0.2 more or less is the most that may be strange; no direction is usual
USED_TO = Acquaintance(torch.zeros(4), torch.tensor([0.1, 1, 1, 1]), torch.zeros(0, 4), limit=1.)


@pytest.fixture()
def by_light(people):
    "Two pictures that the network knows and two that it does not."
    faces = [find_faces(im) for im in people[:2]]
    light = [float(align_photo(im, f[0].landmarks, 32)[0].mean()) for im, f in zip(people, faces)]
    known = Acquaintance(torch.tensor([np.mean(light), 0, 0, 0]).float(), torch.ones(4), torch.zeros(0, 4), limit=0.03)
    dark = [im.point(lambda v: v // 8) for im in people[:2]]
    auto = AutoSwapper(network(), ClassicalSwapper(device="cpu"), known)
    return auto, [Photo(im, f, "the picture") for im, f in zip(people, faces)], [Photo(im, f, "the picture") for im, f in zip(dark, faces)]


def test_auto_takes_the_network_where_it_knows_both_faces(by_light):
    auto, known, unknown = by_light
    r = swap_photo(known[0], known[1], auto)
    assert r.method == "faceshifter" and r.note == "" and (middle(r.image, r.faces[0]) - torch.tensor(RED)).abs().max() < 0.03
    plain = swap_photo(known[0], unknown[1], "classical")
    assert plain.method == "classical" and plain.note == ""
    for a, b, says in ((known[0], unknown[1], "like that of the target ("), (unknown[0], known[1], "like that of the source ("), (unknown[0], unknown[1], "like that of the source (")):
        r = swap_photo(a, b, auto)
        assert r.method == "classical" and r.note.startswith("The classical swap was used") and says in r.note and r.note.endswith("may be strange in a face.") and ("and that of the target" in r.note) == (a is unknown[0] and b is unknown[1])
        assert r.crops[0][0].shape[-1] > 100, "at the photo's own resolution"
        if b is unknown[1] and a is known[0]: assert np.array_equal(np.asarray(r.image), np.asarray(plain.image))


def test_one_face_that_is_not_known_decides_for_all(by_light):
    auto, known, unknown = by_light
    both = open_photo(Image.fromarray(np.concatenate([np.asarray(p.image) for p in (known[1], known[0])], 1)))
    assert swap_photo(known[0], both, auto, face="all").method == "faceshifter"
    half = np.array(both.image)
    half[:, :256] //= 8
    mixed = Photo(Image.fromarray(half), both.faces, "the picture")
    r = swap_photo(known[0], mixed, auto, face="all")
    assert r.method == "classical" and "that of the target" in r.note and len(r.faces) == 2


def test_auto_and_a_size(by_light):
    auto, known, _ = by_light
    assert swap_photo(known[0], known[1], auto, size=32).method == "faceshifter"
    r = swap_photo(known[0], known[1], auto, size=96)
    assert r.method == "classical" and "works at 32 pixels, not at 96" in r.note and r.crops[0][0].shape[-1] == 96


def test_what_is_strange_lies_in_no_usual_direction():
    g = torch.Generator().manual_seed(0)
    usual = torch.randn(300, 2, generator=g) @ torch.tensor([[3., 0, 0, 1], [0, 2, 0, 0]]) + 0.01 * torch.randn(300, 4, generator=g) + 5
    known = Acquaintance.learn(usual, keep=2)
    assert torch.allclose(known.basis @ known.basis.T, torch.eye(2), atol=1e-5)
    along, across = usual[:1] + torch.tensor([[9., 0, 0, 3]]), usual[:1] + torch.tensor([[0., 0, 1, 0]])
    assert known.strangeness(along) < 5 * known.strangeness(usual).max() < known.strangeness(across)
    known.limit = 2.
    half = known.strangeness(across)
    known.limit = 1.
    assert torch.allclose(known.strangeness(across), 2 * half)
    assert USED_TO.strangeness(torch.tensor([[0.2, 0, 0, 0]])) == pytest.approx(1)


def test_a_glance_is_mean_and_spread_of_the_coarse_maps(shipped):
    x = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad(): maps = shipped.model.attributes(x)[:2]
    seen = glance(shipped, x)
    assert torch.allclose(seen, torch.cat([f for m in maps for f in (m.mean((2, 3)), m.flatten(2).std(2, correction=0))], 1), atol=1e-5)
    large = torch.nn.functional.interpolate(x, (128, 128), mode="bilinear")
    assert torch.equal(glance(shipped, large), glance(shipped, resized(large, 64))), "crops of any side"
    assert not torch.isnan(glance(network(), x)).any()


def test_an_acquaintance_belongs_to_its_network(tmp_path):
    a, file = network(), tmp_path / "known.safetensors"
    save_acquaintance(USED_TO, file, a)
    read = open_acquaintance(file, a)
    assert read.limit == 1 and torch.equal(read.mean, USED_TO.mean) and torch.equal(read.scale, USED_TO.scale) and torch.equal(read.basis, USED_TO.basis)
    with pytest.raises(WeightsError, match="belongs to another network"): open_acquaintance(file, network())
    write_tensors(file, {"x": torch.zeros(1)}, {})
    with pytest.raises(WeightsError, match="does not say what a network is used to"): open_acquaintance(file, a)


def test_without_an_acquaintance_auto_does_not_ask(by_light, tmp_path, monkeypatch):
    auto, known, _ = by_light
    r = swap_photo(known[0], known[1], AutoSwapper(auto.network, auto.other, "It is lost."))
    assert r.method == "classical" and r.note == "The classical swap was used: It is lost."
    (tmp_path / f"{FACESHIFTER}.safetensors").symlink_to(module.WEIGHTS / f"{FACESHIFTER}.safetensors")
    monkeypatch.setattr(module, "WEIGHTS", tmp_path)
    assert "There is no checkpoint" in swap_photo(known[0], known[1]).note


def test_the_share_reaches_the_network(by_light, people):
    auto, known, unknown = by_light
    half = get_swapper(auto, share=0.5)
    assert half.network.share == 0.5 and half.network.model is auto.network.model and auto.network.share == 1 and half.known is auto.known
    assert swap_photo(known[0], unknown[1], auto, share=0.5).note.endswith("The share of the source was left out.")
    for method in ("classical", "none", lambda s, t: (t, t[:, :1])):
        with pytest.raises(UsageError, match="only a FaceShifter can mix"): swap_photo(*people[:2], method, share=0.5)
    for share in (-0.1, 1.5, "half", False, float("nan")):
        with pytest.raises(UsageError, match="from 0 to 1"): swap_photo(*people[:2], auto, share=share)


def test_who_takes_landmarks():
    assert takes_landmarks(ClassicalSwapper()) and takes_landmarks(network()) and not takes_landmarks(lambda s, t: (t, t)) and not takes_landmarks(print)


# ---- the network that is shipped ----

@pytest.fixture(scope="module")
def shipped():
    return open_shipped("cpu")


def drawn_pairs(n, seed=940_001, **scene):
    p = sample_people(2 * n, "easy", seed=seed)
    p.scene = p.scene.replace(zoom=0.65, **scene)
    s, t = p[torch.arange(n)], p[torch.arange(n, 2 * n)]
    return [[to_pil(x) for x in render(k, 256).image] for k in (s, t, exact_swap(s, t))]


def test_it_is_better_than_nothing_and_than_the_classical_swap(shipped):
    gains = []
    for s, t, exact in zip(*drawn_pairs(4)):
        r, c = swap_photo(s, t, shipped), swap_photo(s, t, "classical")
        score = [float(psnr(*(align_photo(im, r.faces[0].landmarks, 128)[0] for im in (x, exact)))) for x in (r.image, c.image, t)]
        gains.append([score[0] - score[1], score[0] - score[2]])
    assert np.mean(gains, 0).min() > 1, gains


def test_auto_draws_people_and_leaves_photographs_alone(shared):
    s, t, _ = drawn_pairs(3)
    methods = [swap_photo(a, b).method for a, b in zip(s, t)]
    assert methods.count("faceshifter") >= 2, methods
    folder = shared / "data/london/neutral"
    for a, b in (("001", "004"), ("066", "104")):
        r = swap_photo(folder / f"{a}.jpg", folder / f"{b}.jpg")
        assert r.method == "classical" and "does not know" in r.note


def test_detail_that_the_network_can_not_hold():
    coarse = torch.nn.functional.interpolate(torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)) - .5, (64, 64), mode="bilinear")
    lines = coarse.clone()
    lines[..., ::2] += 0.2
    soft = torch.full_like(coarse, 0.1)
    assert (add_detail(soft, coarse, 32) - soft).abs().mean() < 0.01, "what 32 pixels hold is not laid back"
    moved = (add_detail(soft, lines, 32) - soft)[..., 16:48, 16:48]
    assert (moved[..., ::2] - moved[..., 1::2]).mean() == pytest.approx(0.7 * 0.2, abs=0.02)
    assert torch.equal(add_detail(soft, lines, 64), soft), "at the network's own size there is nothing to lay back"


def test_what_is_shipped_belongs_together(repo):
    auto = open_auto("cpu")
    assert isinstance(auto.known, Acquaintance), auto.known
    record = json.loads((repo / "benchmarks/results/known.json").read_text())
    assert record["network"] == module.seal(auto.network) and record["faces"]["limit"] == auto.known.limit
    assert record["faces"]["drawn and not known"] < 0.15 and record["faces"]["photographs and known"] < 0.15


def test_it_is_read_once_and_quickly(shipped):
    import time
    module._read_once.cache_clear()
    start = time.perf_counter()
    first = open_shipped("cpu")
    assert time.perf_counter() - start < 3 and open_shipped("cpu").model is first.model


def test_half_of_the_source(shipped):
    (s,), (t,), _ = drawn_pairs(1)
    crop = lambda share: swap_photo(s, t, shipped, share=share).crops[0][2]
    none, half, whole = (crop(x) for x in (0., .5, 1.))
    assert (half - none).abs().mean() < (whole - none).abs().mean() and (half - whole).abs().mean() < (whole - none).abs().mean()
    assert torch.equal(whole, swap_photo(s, t, shipped).crops[0][2])


@pytest.mark.parametrize("method", ["auto", "faceshifter", "hear"])
@pytest.mark.parametrize("file", ["face/lisa1.jpg", "face/composite_f_multi.jpg", "hard/intel_female_f20.png", "hard/london004_mask.jpg", "hard/london066_eyesbar.jpg", "hard/london104_gray.png", "hard/london134_32px.png", "hard/london001_dark.jpg"])
def test_odd_faces_give_a_picture_or_a_sentence(shared, people, file, method):
    "A painting, an average, a head turned aside, a mask, dark glasses, grey, tiny, dark: as the source and as the target."
    path = shared / "data/stills" / file
    for a, b in ((people[0], path), (path, people[0])):
        try: r = swap_photo(a, b, method)
        except DeepswapError as e:
            assert str(e).endswith(".") and "\n" not in str(e) and len(str(e)) < 400
            continue
        assert r.image.size == r.target.image.size and r.method in ("faceshifter", "hear", "classical") and len(r.note) < 300
        assert all(bool(torch.isfinite(x).all()) for x in (*r.crops[0], *r.masks)), "no holes"
        changed = (np.asarray(r.image) != np.asarray(r.target.image)).any(2)
        assert 0.0005 < changed.mean() < 0.8


@pytest.mark.parametrize("method", ["auto", "faceshifter"])
def test_a_face_at_the_edge(people, method):
    cut = people[1].crop((100, 0, 256, 256))
    try: r = swap_photo(people[0], cut, method)
    except DeepswapError as e:
        assert str(e).endswith(".")
        return
    assert r.image.size == cut.size and bool(torch.isfinite(r.crops[0][2]).all())


def test_a_drawing_without_a_face_and_the_same_photo_twice(people):
    from PIL import ImageDraw
    stick = Image.new("RGB", (256, 256), "white")
    d = ImageDraw.Draw(stick)
    d.ellipse((78, 40, 178, 160), outline="black", width=3)
    d.line((128, 160, 128, 240), fill="black", width=3)
    for method in ("auto", "faceshifter"):
        with pytest.raises(NoFaceError, match="target"): swap_photo(people[0], stick, method)
        with pytest.raises(UsageError, match="same face of the same picture"): swap_photo(people[0], people[0], method)


def test_weights_that_are_damaged_get_one_sentence(people, tmp_path, monkeypatch):
    whole = (module.WEIGHTS / f"{FACESHIFTER}.safetensors").read_bytes()
    changed = bytearray(whole)
    changed[-5000] ^= 1
    file = tmp_path / f"{FACESHIFTER}.safetensors"
    monkeypatch.setattr(module, "WEIGHTS", tmp_path)
    for data, says in ((None, "There is no checkpoint"), (whole[:-1000], "cut short"), (whole[:50], "cut short"), (bytes(changed), "does not match its checksum"), (b"", "can't be read")):
        if data is not None: file.write_bytes(data)
        for method in ("auto", "faceshifter", *([file] if data is not None else [])):
            with pytest.raises(WeightsError, match=says) as e: swap_photo(people[0], people[1], method)
            assert str(e.value).endswith(".") and "\n" not in str(e.value)


def test_an_encoder_of_another_size(people, tmp_path):
    small = FaceShifter(size=32, width=2, ndf=4)
    save_faceshifter(small, tmp_path / "good.safetensors")
    r = swap_photo(people[0], people[1], tmp_path / "good.safetensors")
    assert r.method == "faceshifter" and r.crops[0][2].shape[-1] > 100 and swap_photo(people[0], people[1], tmp_path / "good.safetensors", size=32).crops[0][2].shape[-1] == 32
    small.generator = AEINet(32, 2, small.who.dim * 2).generator
    save_faceshifter(small, tmp_path / "odd.safetensors")
    with pytest.raises(WeightsError, match="in the checkpoint and"): swap_photo(people[0], people[1], tmp_path / "odd.safetensors")


def test_exercises_take_the_solutions_and_no_wrong_answer():
    names = {**vars(module), "Face": Face, "face_mask": face_mask, "CANONICAL5": CANONICAL5, "pairs": list(zip(*drawn_pairs(2)))}
    names |= {"sample_people": sample_people, "render": render, "to_pil": to_pil}
    exec(toy("51_swap", "portraits", "fig, axes"), names)
    face = lambda t: face_mask(CANONICAL5 * t.shape[-1], t.shape[-1])
    all_hold("51_swap", names, {
        "lays_half": [lambda s, t: ((s + t) / 2, torch.ones_like(t[:, :1])), lambda s, t: ((s + t) / 2, face(t)), lambda s, t: (t, face(t).expand(len(t), -1, -1, -1))],
        "what_came_before": [lambda r: [0.0] * len(r.faces), lambda r: [float(m.mean()) for m in r.masks]],
        "warns_of_softness": [lambda a, b: "", lambda a, b: "soft", lambda a, b: f"{b.size / a.size:.0f} times"],
        "knows_a_stranger": [lambda e, known: e.amin(1) > known.mean(), lambda e, known: e.mean(1) > known.mean(1).quantile(0.95), lambda e, known: e.amin(1) > known.amin(1).max()]})  # fmt: skip
