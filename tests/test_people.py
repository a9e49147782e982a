"The procedural people: same seed, same people; pictures, landmarks, masks and parts agree; the exact swap; bad input."

import pytest
import torch

from deepswap.core import CANONICAL5, UsageError
from deepswap.people import (ATTRIBUTES, COURSEWORK, PARTS, Identity, People, Scene, Style, attributes, calm, coursework_set, exact_swap, landmarks,
                             render, sample_people, scene_path)


@pytest.fixture(scope="module")
def hard(): return sample_people(24, "hard", seed=5, scenes=1)


@pytest.fixture(scope="module")
def drawn(hard): return render(hard, 64)


def average(n=1, **scene): return People(Identity(n=n), Style(n=n), Scene(n=n, **scene))


def test_shapes_and_ranges(drawn):
    assert drawn.image.shape == (24, 3, 64, 64) and drawn.image.dtype == torch.float32
    assert drawn.image.min() >= -1 and drawn.image.max() <= 1 and drawn.image.isfinite().all()
    assert drawn.mask.shape == (24, 1, 64, 64) and drawn.mask.min() >= 0 and drawn.mask.max() <= 1
    assert drawn.parts.shape == (24, 64, 64) and drawn.parts.dtype == torch.uint8 and drawn.parts.max() < len(PARTS)
    assert drawn.landmarks.shape == (24, 5, 2)
    assert (drawn.image.flatten(1).std(1) > .05).all()


def test_same_seed_same_people(hard, drawn):
    again = sample_people(24, "hard", seed=5)
    assert torch.equal(again.identity.values, hard.identity.values) and torch.equal(again.scene.values, hard.scene.values)
    assert torch.equal(render(again, 64).image, drawn.image)
    assert not torch.equal(sample_people(24, "hard", seed=6).identity.values, hard.identity.values)


def test_every_field_is_within_its_range():
    for kind in (Identity, Style, Scene):
        v = kind.sample(3000, seed=1).values
        low, high = (torch.tensor([getattr(f, k) for f in kind.FIELDS]) for k in ("low", "high"))
        assert (v >= low - 1e-6).all() and (v <= high + 1e-6).all()
        assert (v.std(0) > 0).all()
        assert all(f.doc for f in kind.FIELDS)


def test_every_field_changes_some_picture():
    "Each at its ends and between them, with what makes it visible: a hue needs its glasses, a mole's place needs the mole."
    shown = dict(mole_size=1., occluder=5., filter=1., makeup=1., glasses=1., bg_kind=4., clothes_cut=1., clothes_stripes=.3, fringe=.2, rim=.5, bg_color=.6, clothes_color=.9, zoom=.85)
    for kind in (Identity, Style, Scene):
        for f in kind.FIELDS:
            named = {k: v for k, v in shown.items() if k != f.name} | {f.name: torch.tensor([f.low, f.low * .6 + f.high * .4, f.high])}
            part = lambda k: k(n=3, **{g.name: named[g.name] for g in k.FIELDS if g.name in named})
            assert render(People(part(Identity), part(Style), part(Scene)), 48).image.std(0).max() > .01, f.name


def test_no_two_people_alike():
    p = sample_people(60, "easy", seed=2)
    same = People(p.identity, Style(n=60), Scene(n=60))
    x = render(same, 32).image.flatten(1)
    d = torch.cdist(x, x) + torch.eye(60) * 99
    assert d.min() > 1.


@pytest.mark.parametrize("chunk", [1, 7, 24])
def test_chunks_do_not_change_the_pictures(hard, drawn, chunk):
    r = render(hard, 64, chunk=chunk)
    assert (r.image - drawn.image).abs().max() < 2e-3
    assert (r.parts != drawn.parts).float().mean() < 1e-3


@pytest.mark.parametrize("size", [16, 50, 64, 97, 192])
def test_any_size(size):
    p = sample_people(3, "hard", seed=8)
    r = render(p, size)
    assert r.image.shape[-1] == size and r.image.isfinite().all()
    assert torch.allclose(r.landmarks / size, render(p, 64).landmarks / 64, atol=1e-4)


def test_edges_are_antialiased():
    p = sample_people(6, "easy", seed=4)
    fine = render(p, 64, supersample=4).image
    assert (render(p, 64).image - fine).abs().mean() < .05


def test_average_person_is_on_the_canonical_crop():
    assert (landmarks(average(), 1)[0] - CANONICAL5).abs().max() < .02


def test_landmarks_lie_on_what_they_name(hard):
    drawn = render(People(hard.identity, hard.style, hard.scene.replace(blink=0)), 64)      # a closed eye shows skin
    at = drawn.landmarks.long().clamp(0, 63)
    seen = drawn.parts[torch.arange(24)[:, None], at[..., 1], at[..., 0]]
    in_front = {PARTS.index(k) for k in ("glasses", "occluder", "hair", "beard")}
    for point, names in ((0, {"eyes"}), (1, {"eyes"}), (2, {"nose"}), (3, {"lips", "mouth", "skin"}), (4, {"lips", "mouth", "skin"})):
        fine = {PARTS.index(k) for k in names} | in_front
        share = sum(int(k) in fine for k in seen[:, point].tolist()) / 24
        assert share >= .9, (point, [PARTS[int(k)] for k in seen[:, point]])


def test_landmarks_follow_roll_zoom_and_shift():
    base = landmarks(average(), 100)[0]
    moved = landmarks(average(shift_x=.1, shift_y=-.1), 100)[0]
    assert torch.allclose(moved - base, torch.tensor([5., 5.]).expand(5, 2), atol=1e-3)
    wide = landmarks(average(zoom=.8), 100)[0]
    assert torch.allclose(wide - 50, (base - 50) * .8, atol=1e-3)
    eyes = landmarks(average(roll=15.), 100)[0, :2]
    angle = torch.rad2deg(torch.atan2(eyes[0, 1] - eyes[1, 1], eyes[1, 0] - eyes[0, 0]))
    assert abs(angle - 15) < .5
    assert landmarks(average(yaw=30.), 100)[0, 2, 0] > landmarks(average(yaw=-30.), 100)[0, 2, 0] + 5


def test_masks_and_parts_agree(drawn):
    for name in ("background", "clothes", "neck", "occluder"):
        where = drawn.parts == PARTS.index(name)
        assert drawn.mask[:, 0][where].mean() < .1, name
    assert drawn.mask[:, 0][drawn.parts == PARTS.index("skin")].mean() > .85


def test_occluder_and_hair_leave_the_mask():
    clear, hidden = render(average(), 64), render(average(occluder=3), 64)
    assert hidden.mask.sum() < .93 * clear.mask.sum()
    bald = render(People(Identity(), Style(hair_cut=0), Scene()), 64)
    fringe = render(People(Identity(), Style(hair_cut=2, fringe=1), Scene()), 64)
    assert fringe.mask.sum() < .85 * bald.mask.sum()


def test_exact_swap(hard):
    source, target = hard[:12], hard[12:]
    swap = exact_swap(source, target)
    assert torch.equal(swap.identity.values, source.identity.values)
    assert torch.equal(swap.style.values, target.style.values) and torch.equal(swap.scene.values, target.scene.values)
    assert torch.equal(swap.person, source.person)
    moved = exact_swap(source, target, move=("beard", "skin_tone", "smile"))
    assert torch.equal(moved.style.beard, source.style.beard) and torch.equal(moved.identity.skin_tone, target.identity.skin_tone)
    assert torch.equal(moved.scene.smile, source.scene.smile) and torch.equal(moved.identity.nose_width, source.identity.nose_width)
    assert torch.equal(render(exact_swap(source, source), 32).image, render(source, 32).image)


def test_a_swap_changes_the_face_and_little_else():
    p = sample_people(16, "easy", seed=3)
    target = p[8:]
    before, after = render(target, 64), render(exact_swap(p[:8], target), 64)
    change = (before.image - after.image).abs().mean(1)
    far = (before.parts == 0) & (after.parts == 0)
    face = (before.mask[:, 0] > .9) & (after.mask[:, 0] > .9)
    assert change[face].mean() > 5 * change[far].mean()
    assert change[far].mean() < .01


def test_attributes_match_fields():
    a = attributes(People(Identity(n=2), Style(n=2, beard=torch.tensor([0., .9]), glasses=torch.tensor([0., 2.])), Scene(n=2, smile=torch.tensor([-.5, .9]))))
    named = {n: a[:, k].tolist() for k, n in enumerate(ATTRIBUTES)}
    assert named["beard"] == named["eyeglasses"] == named["smiling"] == [0., 1.]
    assert len(ATTRIBUTES) >= 12 and set(a.unique().tolist()) <= {0., 1.}


def test_attributes_are_visible():
    for field, value, part in (("beard", 1., "beard"), ("glasses", 2., "glasses")):
        r = render(People(Identity(), Style(**{field: value}), Scene()), 96)
        assert (r.parts == PARTS.index(part)).sum() > 30


def test_scene_path_is_smooth():
    s = scene_path(300, seed=2)
    step = s.values.diff(dim=0).abs()
    names = [f.name for f in Scene.FIELDS]
    assert step[:, names.index("yaw")].max() < 3 and step[:, names.index("mouth_open")].max() < .4
    assert s.blink.max() > .5 and s.yaw.std() > 1
    assert step[:, names.index("bg_seed")].max() == 0


def test_presets_and_coursework():
    easy, hard = sample_people(300, "easy", seed=0).scene, sample_people(300, "hard", seed=0).scene
    assert easy.yaw.std() < .5 * hard.yaw.std()
    for name in ("occluder", "grey", "watermark", "noise", "filter"):
        assert getattr(easy, name).abs().max() == 0 and (getattr(hard, name) > 0).any()
    for name, (_, counts) in COURSEWORK.items():
        assert coursework_set(name).person.bincount().tolist() == list(counts)
    a = coursework_set("A")
    assert a.scene.bg_seed[377:377 + 255].unique().numel() == 1 and a.scene.bg_seed[:377].unique().numel() > 300
    assert (coursework_set("C").scene.filter > 0).any()
    d = coursework_set("D").identity
    assert (d.skin_tone[0] - d.skin_tone[-1]).abs() < .4


def test_lerp_switches_kinds_and_moves_the_rest():
    a, b = Style(hair_cut=1, beard=0.), Style(hair_cut=5, beard=1.)
    assert a.lerp(b, .4).hair_cut.item() == 1 and a.lerp(b, .6).hair_cut.item() == 5
    assert abs(a.lerp(b, .25).beard.item() - .25) < 1e-6
    assert calm(Scene(yaw=20.)).yaw.item() == pytest.approx(7.)


def test_memory_is_bounded_by_the_chunk():
    "What render keeps per picture is the picture, not the maps it was drawn with."
    import resource
    p = sample_people(96, "easy", seed=1)
    render(p[:8], 64, chunk=8)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    render(p, 64, chunk=8)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 60          # MB; all at once would be several hundred


@pytest.mark.parametrize("wrong, words", [
    (lambda: sample_people(3, "medium"), "'easy' or 'hard'"),
    (lambda: sample_people(0), "at least one"),
    (lambda: render(average(), 4), "at least 8"),
    (lambda: render(average()[:0], 32), "no people"),
    (lambda: exact_swap(average(2), average(1)), "as many of both"),
    (lambda: exact_swap(average(), average(), move="nose"), "move names nose"),
    (lambda: coursework_set("Z"), "expected one of A, B, C, D"),
    (lambda: Scene(torch.zeros(3, 2)), "expected (N,"),
    (lambda: Style().replace(wig=1), "no field 'wig'"),
    (lambda: People(Identity(n=2), Style(), Scene()), "as many of each"),
])
def test_bad_input_is_one_clear_sentence(wrong, words):
    with pytest.raises(UsageError) as e: wrong()
    assert words in str(e.value) and "\n" not in str(e.value)


@pytest.mark.slow
def test_mtcnn_finds_hard_faces():
    from facenet_pytorch import MTCNN
    x = render(sample_people(100, "hard", seed=41), 192).image
    frames = ((x + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    mtcnn = MTCNN(device="cpu", keep_all=True)
    found = sum(mtcnn.detect(f)[0] is not None for f in frames)
    assert found >= 97, found


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_same_picture_on_the_gpu(hard, drawn):
    r = render(hard.to("cuda"), 64)
    assert (r.image.cpu() - drawn.image).abs().mean() < 2e-3
    assert (r.landmarks.cpu() - drawn.landmarks).abs().max() < .05
