"Finding, aligning, choosing, masking; real photos where they are at hand."

import csv
import os

import numpy as np
import pytest
import torch
from PIL import Image

from deepswap.core import (
    CANONICAL5, DeepswapError, ImageError, NoFaceError, SeveralFacesError, UsageError, canonical_points, read_image, to_pil, to_tensor)
from deepswap.faces import (
    Face, align, align_photo, apply_affine, choose_faces, face_frame, face_mask, find_faces, invert_affine, mirror_landmarks, native_size, outline_distance,
    outline_points, parallax, paste_back, paste_photo, refine_landmarks, sample, similarity, pixel_grid, warp)
from deepswap.people import render, sample_people

STILLS = os.path.join(os.environ.get("DEEPSWAP_SHARED", os.path.join(os.path.dirname(__file__), "..", "..", "shared")), "data", "stills")


def checked(folder):
    "Rows of checked.tsv for one folder whose files are there; empty where the photos are not at hand."
    try:
        with open(os.path.join(STILLS, "checked.tsv")) as f:
            rows = list(csv.DictReader(f, delimiter="\t"))
    except OSError:
        return []
    return [(r["file"], r["mtcnn_faces_p>=0.95"]) for r in rows if r["file"].startswith(folder) and os.path.exists(os.path.join(STILLS, r["file"]))]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def photo():
    p = sample_people(1, "easy", seed=7)
    p.style, p.scene = p.style.replace(glasses=0.0, hat=0.0), p.scene.replace(zoom=0.6, shift_x=0.2, roll=12.0)
    r = render(p, 256)
    return to_pil(r.image), r.landmarks[0]


def test_similarity_is_the_least_squares_solution_and_agrees_with_skimage():
    g = np.random.default_rng(0)
    for _ in range(20):
        p, q = g.normal(size=(2, 5, 2))
        A = np.concatenate([[[x, -y, 1, 0], [y, x, 0, 1]] for x, y in p])
        a, b, tx, ty = np.linalg.lstsq(A, q.reshape(-1), rcond=None)[0]
        assert np.allclose(similarity(torch.tensor(p), torch.tensor(q)), [[a, -b, tx], [b, a, ty]], atol=1e-9)
    transform = pytest.importorskip("skimage.transform", reason="scikit-image is not installed")
    p = g.normal(size=(5, 2))
    q = p @ np.array([[0.8, 0.3], [-0.3, 0.8]]) * 2 + 1 + 0.01 * g.normal(size=(5, 2))  # no reflection fits better
    kind = transform.SimilarityTransform
    if hasattr(kind, "from_estimate"):
        m = kind.from_estimate(p, q)
    else:
        m = kind()
        m.estimate(p, q)
    assert np.allclose(similarity(torch.tensor(p), torch.tensor(q)), m.params[:2], atol=1e-6)


def test_similarity_survives_coinciding_points():
    assert similarity(torch.zeros(5, 2), CANONICAL5).isfinite().all()


def test_affine_there_and_back():
    m = torch.randn(6, 2, 3, generator=torch.Generator().manual_seed(0)) + torch.tensor([[2.0, 0, 0], [0, 2, 0]])
    p = torch.rand(6, 9, 2)
    assert torch.allclose(apply_affine(invert_affine(m), apply_affine(m, p)), p, atol=1e-3)


def test_warp_identity_shift_and_area_filter():
    x = torch.rand(2, 3, 40, 50, generator=torch.Generator().manual_seed(0))
    one = torch.tensor([[1.0, 0, 0], [0, 1, 0]])
    assert torch.allclose(warp(x, one, (40, 50)), x, atol=1e-5)
    shifted = warp(x, torch.tensor([[1.0, 0, 3], [0, 1, 0]]), (40, 50))
    assert torch.allclose(shifted[..., 3:], x[..., :-3], atol=1e-4)
    board = ((pixel_grid(64, 64).floor().sum(-1) % 2) * 2 - 1).view(1, 1, 64, 64)  # finest checkerboard there is
    small = warp(board, torch.tensor([[0.25, 0, 0], [0, 0.25, 0]]), (16, 16))
    assert small.abs().max() < 0.1, "a shrunk checkerboard must be grey"


@pytest.mark.parametrize("size", [48, 128, 300])
def test_align_puts_points_on_the_template_and_paste_back_returns_them(photo, size):
    image, lm = photo
    x = to_tensor(image)
    crop, m = align(x, lm, size)
    assert crop.shape == (1, 3, size, size) and m.shape == (2, 3)
    error = (apply_affine(m, lm) - canonical_points(size)).norm(dim=-1).max() / size
    assert error < 0.05
    mask = torch.zeros(1, 1, size, size)
    mask[..., size // 4:-size // 4, size // 4:-size // 4] = 1
    back = paste_back(x, crop, mask, m)
    touched = paste_back(x * 0, crop * 0 + 1, mask, m) > 0
    assert touched.any() and torch.equal(back[~touched], x[~touched])
    assert (back - x)[touched].square().mean().sqrt() < (0.25 if size < 100 else 0.08)


def test_align_photo_equals_align_and_paste_photo_leaves_the_rest(photo):
    image, lm = photo
    a, ma = align(to_tensor(image), lm, 96)
    b, mb = align_photo(image, lm, 96)
    assert torch.allclose(a, b, atol=1e-4) and torch.allclose(ma, mb)
    out = paste_photo(image, -b, torch.zeros(1, 1, 96, 96), mb)
    assert np.array_equal(np.asarray(out), np.asarray(image))


def test_align_beyond_the_border_of_the_photo(photo):
    image, lm = photo
    corner = lm - lm.mean(0) + torch.tensor([2.0, 2.0])
    crop, m = align_photo(image, corner, 64)
    assert crop.isfinite().all()
    out = paste_photo(image, crop, torch.ones(1, 1, 64, 64), m)
    assert out.size == image.size
    with pytest.raises(UsageError, match="expected"):
        align(to_tensor(image), lm[:4], 64)


def test_find_faces_on_procedural_people(photo):
    image, lm = photo
    f, = find_faces(image)
    assert isinstance(f, Face) and f.turned == 0 and f.probability > 0.95 and f.size > 20
    assert np.abs(f.landmarks - lm.numpy()).mean() < 4
    assert f.box[0] < f.landmarks[:, 0].min() and f.box[2] > f.landmarks[:, 0].max()


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_turned_photos_are_found_with_turned_points(photo, degrees):
    image, _ = photo
    straight, = find_faces(image)
    f, = find_faces(image.rotate(degrees, expand=True))
    x, y = straight.landmarks.T
    w, h = image.size
    expected = np.stack({90: (y, w - x), 180: (w - x, h - y), 270: (h - y, x)}[degrees], 1)
    assert f.turned and np.abs(f.landmarks - expected).max() < 3
    assert all(f.probability < 0.95 for f in find_faces(image.rotate(degrees, expand=True), turns=False))


@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK", "P", "I;16", "LA"])
def test_any_mode(photo, mode):
    image, _ = photo
    im = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257) if mode == "I;16" else image.convert(mode)
    assert len(find_faces(im)) == 1


def test_huge_and_tiny(photo):
    image, _ = photo
    big = find_faces(image.resize((3000, 3000)))
    small = find_faces(image.resize((72, 72)))
    assert len(big) == len(small) == 1
    k = 3000 / 256
    assert np.abs(big[0].landmarks / k - find_faces(image)[0].landmarks).max() < 3
    with pytest.raises(ImageError, match="too small"):
        find_faces(Image.new("RGB", (4, 400)))


def test_no_face_in_flat_and_noisy_pictures():
    assert find_faces(Image.new("RGB", (120, 90), "grey")) == []
    noise = np.random.default_rng(0).integers(0, 255, (128, 128, 3), dtype=np.uint8)
    assert find_faces(noise) == []


def faces_at(*xs):
    return [Face(np.array([x, 0, x + w, w], float), np.zeros((5, 2)), 1.0) for x, w in xs]


def test_choose():
    fs = faces_at((50, 10), (10, 30), (90, 20))
    assert choose_faces(fs, "largest")[0].box[0] == 10
    assert [choose_faces(fs, n)[0].box[0] for n in (1, 2, 3)] == [10, 50, 90]
    assert choose_faces(fs, "2")[0].box[0] == 50
    assert len(choose_faces(fs, "all")) == 3 and len(choose_faces(fs[:1], "one")) == 1
    for which, error, says in (("one", SeveralFacesError, "3 faces"), (0, UsageError, "1 to 3"), (4, UsageError, "holds 3"), (-1, UsageError, "1 to 3"),
                               ("leftmost", UsageError, "leftmost"), (True, UsageError, "True"), (1.5, UsageError, "1.5"), (None, UsageError, "None")):
        with pytest.raises(error, match=says):
            choose_faces(fs, which)
    with pytest.raises(NoFaceError, match="holiday.jpg"):
        choose_faces([], "all", "holiday.jpg")


def test_refined_landmarks_on_crops():
    r = render(sample_people(6, "easy", seed=5), 128)
    points, score = refine_landmarks(r.image)
    assert points.shape == (6, 5, 2) and score.shape == (6,) and score.min() > 0.7
    assert (points - r.landmarks).norm(dim=-1).median() < 4
    flipped, _ = refine_landmarks(r.image.flip(-1))
    back = flipped.clone()
    back[..., 0] = 128 - back[..., 0]
    assert (back[:, [1, 0, 2, 4, 3]] - points).norm(dim=-1).median() < 1.5
    wall, low = refine_landmarks(torch.zeros(1, 3, 128, 128))
    assert low.item() < 0.5


def test_parallax_has_the_sign_of_yaw():
    p = sample_people(1, "easy", seed=4)
    many = type(p)(p.identity.repeat(5), p.style.repeat(5), p.scene.repeat(5).replace(yaw=torch.tensor([-30.0, -15, 0, 15, 30]), roll=0.0))
    pi = parallax(render(many, 64).landmarks)[:, 0]
    assert (pi.diff() > 0).all() and pi[0] < -0.02 < 0.02 < pi[4]


@pytest.mark.parametrize("size", [64, 200])
def test_mask(size):
    lm = canonical_points(size)
    m = face_mask(lm, size)
    assert m.shape == (1, 1, size, size) and m.min() == 0 and m.max() == 1
    assert (sample(m, lm.view(1, 1, 5, 2)) > 0.5).all(), "all five points lie inside"
    assert m[..., 0, :].max() == 0 and m[..., -1, :].max() == 0
    assert face_mask(lm, size, feather=0.2).mean() < m.mean() < face_mask(lm, size, feather=0.0).mean()
    frame, one = face_frame(lm[None]), torch.ones(1, 64)
    d = outline_distance(one, frame, size)
    assert sample(d, outline_points(one, frame)[:, None]).abs().max() < 0.02 * size


def test_native_size():
    lm = canonical_points(200).numpy()
    assert native_size(lm) == 208 and native_size(lm * 0.1) == 64 and native_size(lm * 100) == 1024


@pytest.mark.parametrize("file,count", checked("face") or [("face/none", "-")])
def test_real_faces(shared, file, count):
    assert len(find_faces(shared / "data/stills" / file)) == int(count)


@pytest.mark.parametrize("file,count", checked("hard") or [("hard/none", "-")])
def test_hard_faces(shared, file, count):
    expected = {"hard/hopper_16bit.pgm": 1, "hard/london004_upsidedown.jpg": 1}.get(file, int(count))  # a plain detector misses these two
    found = find_faces(shared / "data/stills" / file)
    assert len(found) == expected
    if "upsidedown" in file:
        assert found[0].turned == 180


@pytest.mark.parametrize("file,count", (checked("noface") + checked("malformed")) or [("noface/none", "-")])
def test_no_face_and_malformed_give_one_sentence_or_faces(shared, file, count):
    path = shared / "data/stills" / file
    if count not in ("0", "-"):
        assert len(find_faces(path)) == int(count)
        return
    with pytest.raises(DeepswapError) as e:
        choose_faces(find_faces(path), "largest", path.name)
    text = str(e.value)
    assert text and "\n" not in text and text.endswith(".") and len(text) < 300
    assert isinstance(e.value, NoFaceError) if count == "0" else isinstance(e.value, ImageError)


def test_london_landmarks(shared):
    folder = shared / "data/london"
    with open(folder / "mtcnn5.tsv") as f:
        rows = [r for r in csv.DictReader(f, delimiter="\t") if (folder / r["file"]).exists()][::16]
    assert len(rows) >= 5
    for r in rows:
        f = find_faces(folder / r["file"])[0]
        known = np.array([[float(r[k + "x"]), float(r[k + "y"])] for k in ("le", "re", "n", "lm", "rm")])
        assert np.abs(f.landmarks - known).mean() < 0.02 * f.size


def test_read_image_feeds_find_faces_with_bytes(photo, tmp_path):
    photo[0].save(tmp_path / "a.png")
    assert len(find_faces((tmp_path / "a.png").read_bytes())) == 1 and len(find_faces(read_image(tmp_path / "a.png"))) == 1


@pytest.mark.parametrize("windows", [1, 2, 10])
def test_fewer_windows_give_nearly_the_same_points_and_a_mirror_gives_the_mirrored_ones(windows):
    "The windows come in mirrored pairs, so the answer for a mirrored face is the mirrored answer."
    r = render(sample_people(4, "easy", seed=5), 128)
    points, _ = refine_landmarks(r.image, windows=windows)
    assert (points - refine_landmarks(r.image)[0]).norm(dim=-1).mean() < 1.5
    assert torch.allclose(mirror_landmarks(refine_landmarks(r.image.flip(-1), windows=windows)[0], 128), points, atol=0.3)


@pytest.mark.parametrize("windows", [0, 11])
def test_a_number_of_windows_that_is_not_there(windows):
    with pytest.raises(UsageError, match="1 to 10"):
        refine_landmarks(torch.zeros(1, 3, 64, 64), windows=windows)
