"The classical swap: each idea against an independent answer, then the whole."

import math

import pytest
import torch
import torch.nn.functional as F

from deepswap.classical import (
    ClassicalSwapper, blur, closed_path, color_transfer, dst, eye_mask, face_outline, lab_to_rgb, match_blur, moments, move_landmarks,
    poisson_blend, poisson_solve, relight, rgb_to_lab, skin_likelihood, thin_plate, warp_points)
from deepswap.core import UsageError, canonical_points
from deepswap.faces import face_frame, face_mask, find_faces, outline_distance, parallax, align_photo, refine_landmarks
from deepswap.people import exact_swap, render, sample_people


pytestmark = pytest.mark.usefixtures("one_thread")


def plain(people, **scene):
    style = people.style.replace(glasses=0.0, beard=0.0, moustache=0.0, stubble=0.0, fringe=0.0, hat=0.0)
    still = dict(yaw=0.0, pitch=0.0, roll=0.0, smile=0.0, mouth_open=0.0, brow_raise=0.0, blink=0.0) | scene
    return type(people)(people.identity, style, people.scene.replace(**still), people.person)


@pytest.fixture(scope="module")
def pairs():
    a, b = plain(sample_people(6, "easy", seed=31)), plain(sample_people(6, "easy", seed=32))
    skin = ("skin_tone", "skin_warmth", "rosiness", "freckles")
    return render(a, 128), render(b, 128), render(exact_swap(a, b, move=skin), 128)


def psnr(a, b, w):
    return 10 * torch.log10(4 * w.sum((1, 2, 3)) / ((a - b).square().mean(1, keepdim=True) * w).sum((1, 2, 3)))


def test_lab_agrees_with_skimage_and_comes_back():
    color = pytest.importorskip("skimage.color", reason="scikit-image is not installed")
    x = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    expected = torch.tensor(color.rgb2lab(((x[0] + 1) / 2).permute(1, 2, 0).numpy())).permute(2, 0, 1)
    assert torch.allclose(rgb_to_lab(x)[0], expected.float(), atol=0.05)
    assert torch.allclose(lab_to_rgb(rgb_to_lab(x)), x, atol=2e-3)


def test_blur_keeps_the_mean_and_small_and_wide_agree():
    x = torch.rand(1, 2, 96, 96, generator=torch.Generator().manual_seed(0))
    assert torch.equal(blur(x, 0.0), x)
    a, b = blur(x, 5.9), blur(x, 6.1)  # full size against a smaller copy
    assert (a - b)[..., 24:72, 24:72].abs().max() < 0.02


def test_poisson_solves_laplace_and_agrees_with_a_dense_solver():
    h, w = 7, 9
    def line(n): return torch.diag(torch.full((n,), -2.0)) + torch.diag(torch.ones(n - 1), 1) + torch.diag(torch.ones(n - 1), -1)
    A = torch.kron(line(h), torch.eye(w)) + torch.kron(torch.eye(h), line(w))
    rhs = torch.randn(3, h, w, generator=torch.Generator().manual_seed(0))
    for screen in (0.0, 0.3):
        dense = torch.linalg.solve((A - screen * torch.eye(h * w)).double(), rhs.view(3, -1).T.double()).T.view(3, h, w)
        assert torch.allclose(poisson_solve(rhs, screen).double(), dense, atol=1e-4)
    u = poisson_solve(torch.randn(2, 3, 60, 90, generator=torch.Generator().manual_seed(1)).double())
    kernel = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]]).double().view(1, 1, 3, 3)
    back = F.conv2d(u.view(6, 1, 60, 90), kernel, padding=1).view(2, 3, 60, 90)
    assert torch.allclose(back, torch.randn(2, 3, 60, 90, generator=torch.Generator().manual_seed(1)).double(), atol=1e-9)


def test_dst_is_the_sine_transform_and_its_own_inverse():
    x = torch.randn(4, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    k = torch.arange(1, 12, dtype=torch.float64)
    assert torch.allclose(dst(x), x @ torch.sin(math.pi * k[:, None] * k / 12), atol=1e-9)
    assert torch.allclose(dst(dst(x)) * 2 / 12, x, atol=1e-9)


def test_poisson_blend_limits():
    g = torch.Generator().manual_seed(0)
    s, t = torch.rand(2, 3, 32, 40, generator=g), torch.rand(2, 3, 32, 40, generator=g)
    assert torch.allclose(poisson_blend(s, t, torch.zeros(2, 1, 32, 40)), t, atol=1e-5)
    m = torch.zeros(2, 1, 32, 40)
    m[..., 8:24, 8:32] = 1
    out = poisson_blend(s, t, m)
    inner = (slice(None), slice(None), slice(9, 23), slice(9, 31))
    gap = out - s  # inside the mask the gradients are the source's, so the gap is smooth: harmonic
    lap = gap[..., 2:, 1:-1] + gap[..., :-2, 1:-1] + gap[..., 1:-1, 2:] + gap[..., 1:-1, :-2] - 4 * gap[..., 1:-1, 1:-1]
    assert lap[..., 8:22, 8:30].abs().max() < 1e-3
    assert torch.allclose(poisson_blend(s + 0.3, t, m)[inner], out[inner], atol=1e-4), "a constant added to the source leaves no trace"
    far = poisson_blend(s, t, m, screen=1e9)
    assert torch.allclose(far, m * s + (1 - m) * t, atol=1e-3)


def test_closed_path_follows_a_valley_across_the_start():
    cost = torch.ones(2, 64, 41)
    a = torch.arange(64)
    wave = torch.stack([(20 + 9 * torch.sin(a * 2 * math.pi / 64 + p)).round().long() for p in (0.0, 2.0)])
    cost.scatter_(2, wave[..., None], 0.0)
    assert torch.equal(closed_path(cost), wave)
    path = closed_path(torch.rand(3, 64, 41, generator=torch.Generator().manual_seed(0)))
    assert (path - path.roll(1, 1)).abs().max() <= 2, "no jump of more than two steps, not even where it closes"


def test_outline_is_nearer_to_the_true_face_than_the_egg(pairs):
    _, t, _ = pairs
    low = torch.arange(128).view(1, 1, 128, 1) > 64
    def overlap(radii):
        inside, truth = outline_distance(radii, face_frame(t.landmarks), 128) < 0, t.mask > 0.5
        return ((inside & truth & low).sum() / ((inside | truth) & low).sum()).item()
    assert overlap(face_outline(t.image, t.landmarks)) > max(0.88, overlap(torch.ones(6, 64)))


def test_color_transfer_matches_mean_and_never_colours_a_grey_photo():
    g = torch.Generator().manual_seed(0)
    a, b = 50 + 6 * torch.randn(1, 3, 64, 64, generator=g), 60 + 6 * torch.randn(1, 3, 64, 64, generator=g)
    w = torch.ones(1, 1, 64, 64)
    out = color_transfer(a, b, w, w)
    assert (moments(out, w)[0] - moments(b, w)[0]).abs().max() < 1.5
    b[:, 1:] = 0
    assert color_transfer(a, b, w, w)[:, 1:].abs().max() < 1e-2


def test_relight_is_limited():
    w = torch.ones(1, 1, 64, 64)
    a, b = torch.zeros(1, 3, 64, 64) + 50, torch.zeros(1, 3, 64, 64) + 95
    assert 12 < (relight(a, b, w, w, 1.0) - a)[:, 0].max() <= 14.01
    assert torch.allclose(relight(a, b, w, w, 0.0), a, atol=1e-3)


def test_thin_plate_pins_and_affine_maps():
    g = torch.Generator().manual_seed(0)
    p, q = torch.rand(2, 8, 2, generator=g), torch.rand(2, 8, 2, generator=g)
    assert torch.allclose(thin_plate(p, q)(p), q, atol=1e-3)
    A = torch.tensor([[0.8, 0.1], [-0.2, 1.2]])
    assert torch.allclose(thin_plate(p, p @ A)(q), q @ A, atol=1e-3)
    x = torch.rand(2, 1, 64, 64, generator=g)
    smooth = blur(x, 2.0)
    assert (warp_points(smooth, p * 64, p * 64) - smooth)[..., 4:-4, 4:-4].abs().max() < 0.02


def test_move_landmarks_takes_on_the_pose(pairs):
    s, t, _ = pairs
    turned = sample_people(6, "easy", seed=32)
    turned = render(plain(turned, yaw=25.0), 128).landmarks
    moved = move_landmarks(s.landmarks, turned)
    assert (parallax(moved) - parallax(turned)).abs().mean() < 0.4 * (parallax(s.landmarks) - parallax(turned)).abs().mean()
    assert torch.allclose(move_landmarks(s.landmarks, s.landmarks), s.landmarks, atol=1e-2)


def test_match_blur_only_blurs(pairs):
    s, t, _ = pairs
    m = torch.ones(6, 1, 128, 128)
    dull = match_blur(s.image, blur(t.image, 3.0), m)
    def detail(x): return (x - blur(x, 1.0)).std()
    assert detail(dull) < 0.5 * detail(s.image)
    assert torch.equal(match_blur(s.image, s.image, m), s.image)


def test_skin_and_eyes(pairs):
    s, _, _ = pairs
    p = skin_likelihood(s.image, s.landmarks)
    assert p.min() >= 0 and p.max() <= 1
    skin, background = (p * (s.parts == 1)[:, None]).sum() / (s.parts == 1).sum(), (p * (s.parts == 0)[:, None]).sum() / (s.parts == 0).sum()
    assert skin > 0.6 > 0.3 > background
    e = eye_mask(canonical_points(128)[None], 128)
    y, x = divmod(e.flatten().argmax().item(), 128)
    assert (torch.tensor([x + 0.5, y + 0.5]) - canonical_points(128)[:2]).norm(dim=-1).min() < 2


def test_swap_is_nearer_to_the_exact_one_than_pasting_and_than_nothing(pairs):
    s, t, exact = pairs
    out, mask = ClassicalSwapper(device="cpu")(s.image, t.image)
    assert out.shape == t.image.shape and mask.shape == (6, 1, 128, 128) and out.abs().max() <= 1 and 0 <= mask.min() and mask.max() <= 1
    swap, nothing = psnr(out, exact.image, exact.mask), psnr(t.image, exact.image, exact.mask)
    paste = psnr(torch.where(face_mask(t.landmarks, 128) > 0.3, s.image, t.image), exact.image, exact.mask)
    assert swap.mean() > paste.mean() + 1 and swap.mean() > nothing.mean()
    outside = mask == 0
    assert torch.equal(torch.where(outside, out, t.image), t.image), "outside the mask nothing changes"
    assert 0.05 < (mask > 0.5).float().mean() < 0.4
    assert mask[..., [0, -1], :].max() == 0 and mask[..., [0, -1]].max() == 0


def test_no_hard_seam(pairs):
    s, t, _ = pairs
    out, mask = ClassicalSwapper(device="cpu")(s.image, t.image)
    rim = ((mask > 0.02) & (mask < 0.4)).float()
    def steps(x):
        d = F.pad(x.diff(dim=-1).abs().mean(1, keepdim=True), (0, 1)) + F.pad(x.diff(dim=-2).abs().mean(1, keepdim=True), (0, 0, 0, 1))
        return ((d * rim).sum((1, 2, 3)) / rim.sum((1, 2, 3))).mean()
    pasted = torch.where(mask > 0.2, s.image, t.image)
    assert steps(out) < 1.25 * steps(t.image) < steps(pasted)


@pytest.mark.parametrize("size", [64, 96, 256, 512])
def test_sizes(pairs, size):
    s, t = (F.interpolate(r.image[:1], (size, size), mode="bilinear", antialias=True) for r in pairs[:2])
    out, mask = ClassicalSwapper(device="cpu")(s, t)
    assert out.shape == (1, 3, size, size) and out.isfinite().all() and mask.mean() > 0.05


def test_batch_equals_single(pairs):
    s, t, _ = pairs
    swapper = ClassicalSwapper(device="cpu")
    both, _ = swapper(s.image[:3], t.image[:3])
    for i in range(3):
        one, _ = swapper(s.image[i:i + 1], t.image[i:i + 1])
        assert (one - both[i:i + 1]).abs().max() < 0.02


def test_grey_target_stays_grey_and_blank_crops_do_not_crash(pairs):
    s, t, _ = pairs
    grey = t.image.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    out, _ = ClassicalSwapper(device="cpu")(s.image, grey)
    assert (out - out.mean(1, keepdim=True)).abs().max() < 0.05
    for v in (-1.0, 0.0, 1.0):
        blank = torch.full((1, 3, 64, 64), v)
        assert ClassicalSwapper(device="cpu")(blank, blank)[0].isfinite().all()


def test_wrong_shapes_are_named(pairs):
    s, t, _ = pairs
    with pytest.raises(UsageError, match=r"\(6, 3, 128, 128\)"):
        ClassicalSwapper()(s.image, t.image[:2])


def test_london_pose_kept_and_face_replaced(shared):
    folder = sorted((shared / "data/london/neutral").glob("*.jpg"))
    from deepswap.core import read_image
    pick = [folder[i] for i in (3, 20, 41, 62)]
    crops = torch.cat([align_photo(im, find_faces(im)[0].landmarks, 192)[0] for im in map(read_image, pick)])
    source, target = crops[:2], crops[2:]
    out, mask = ClassicalSwapper(device="cpu")(source, target)
    points = [refine_landmarks(x)[0] for x in (target, out)]
    assert (parallax(points[0]) - parallax(points[1])).abs().max() < 0.02
    assert (points[0] - points[1]).norm(dim=-1).mean() < 0.03 * 192
    inner = (mask > 0.9).float()
    assert ((out - target).abs() * inner).sum() / inner.sum() / 3 > 0.04, "the face is replaced"
    lab = [moments(rgb_to_lab(x), inner)[0] for x in (out, target)]
    assert (lab[0] - lab[1]).abs().max() < 8, "and has the target's colours"
