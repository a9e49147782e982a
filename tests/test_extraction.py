"From a clip to a training set: what is kept, what is left out, and what bad input gets."

import csv
import errno
import os

import av
import numpy as np
import pytest
import torch
from PIL import Image

from deepswap import extraction
from deepswap.classical import blur
from deepswap.core import DataError, ImageError, NoFaceError, OutputError, UsageError, to_tensor, to_uint8
from deepswap.extraction import (COLUMNS, ContactSheet, all_pairs, announced, appearance, auc, bar_svg, count_pictures, extract_faces, face_hash,
                                 face_sharpness, fine_mask, group_faces, hull_mask, is_clip, pictures_of, read_extract, rough_pose, source_files,
                                 turned_outline, whole_folder)
from deepswap.faces import align, align_photo, apply_affine, face_frame, find_faces, outline_distance
from deepswap.people import landmarks as exact_landmarks
from deepswap.people import render, sample_people, scene_path

pytestmark = pytest.mark.usefixtures("one_thread")


def film(path, frames, codec="mpeg4", fps=25):
    "Write (N, H, W, 3) uint8 frames as a video."
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=fps)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt, stream.bit_rate = "yuv420p", 4_000_000
        for frame in frames:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        file.mux(stream.encode(None))
    return path


def acted(person, n, seed=0, size=192, every=1):
    "One person of the cast, moving smoothly; (n, size, size, 3) uint8."
    cast = sample_people(4, "easy", seed=2)
    path = scene_path(n * every, seed=seed, base=cast.scene[0].replace(zoom=0.85))[torch.arange(0, n * every, every)]
    some = type(cast)(cast.identity[person].repeat(n), cast.style[person].replace(glasses=0.0).repeat(n), path)
    return to_uint8(render(some, size).image).numpy()


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    "Two people side by side; frames 8 to 10 are one frame again and again, and frame 12 is blurred. The second person is there for the first five frames only."
    left, right = acted(0, 14, every=4), acted(1, 14, seed=1, every=4)
    right[5:] = 200
    left[9:11] = left[8]
    frames = np.concatenate([left, right], 2)
    blurred = blur(to_tensor(Image.fromarray(frames[12])), 3.0)
    frames[12] = to_uint8(blurred)[0].numpy()
    return film(tmp_path_factory.mktemp("clip") / "two.mp4", frames)


@pytest.fixture(scope="module")
def extracted(clip, tmp_path_factory):
    out = tmp_path_factory.mktemp("extracted") / "out"
    return extract_faces(clip, out, size=128), out


def test_a_clip_becomes_a_folder(extracted, clip):
    report, out = extracted
    rows = read_extract(out)
    assert report.seen == 14 and report.kept == len(rows) == len(list(out.glob("*.png")))
    assert report.found == report.kept + sum(report.dropped.values())
    assert all(Image.open(r["crop"]).size == (128, 128) and r["landmarks"].shape == (5, 2) for r in rows)
    assert [r["frame"] for r in rows] == sorted(r["frame"] for r in rows) and {r["group"] for r in rows} == {1}


def test_repeats_blur_and_the_other_person_go(extracted):
    report, out = extracted
    frames = [r["frame"] for r in read_extract(out)]
    assert len(set(frames) & {8, 9, 10}) == 1 and report.dropped["duplicate"] >= 2
    assert 12 not in frames and report.dropped["blurred"] == 1
    assert report.dropped["another person"] >= 3
    assert all(r["right"] < 192 for r in read_extract(out)), "the person on the left was there longer"


def test_table_masks_and_page_fit_the_crops(extracted):
    report, out = extracted
    with open(out / "faces.csv", newline="", encoding="utf-8") as f:
        assert tuple(csv.DictReader(f).fieldnames) == COLUMNS
    for row in read_extract(out):
        hull, fine = (np.asarray(Image.open(row[k])) for k in ("hull", "fine"))
        assert hull.shape == fine.shape == (128, 128) and set(np.unique(hull)) == set(np.unique(fine)) == {0, 255}
        both = ((hull > 0) & (fine > 0)).sum() / ((hull > 0) | (fine > 0)).sum()
        assert both > 0.6 and 0.1 < (hull > 0).mean() < 0.5
        assert row["left"] < row["landmarks"][:, 0].mean() < row["right"] and row["yaw"] == pytest.approx(rough_pose(torch.tensor(row["landmarks"])[None])[0, 0].item(), abs=0.2)
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "care" in page and page.count("<img") == report.found and "http" not in page and str(out) not in page
    assert all(f"Left out: {kind} ({v})" in page for kind, v in report.dropped.items())


@pytest.fixture(scope="module")
def everybody(clip, tmp_path_factory):
    out = tmp_path_factory.mktemp("everybody") / "out"
    return extract_faces(clip, out, size=64, person="all", min_sharpness=0, masks=False, report=False), out


def test_everybody_is_kept_and_told_apart(everybody):
    report, out = everybody
    rows = read_extract(out)
    sides = {g: {r["left"] > 180 for r in rows if r["group"] == g} for g in {r["group"] for r in rows}}
    assert sides == {1: {False}, 2: {True}} and sum(report.groups) == report.kept and rows[0]["hull"] is None
    assert sorted(p.name for p in out.iterdir()) == sorted([r["file"] for r in rows] + ["faces.csv"])


def test_the_person_of_a_photo(clip, tmp_path):
    Image.fromarray(acted(1, 1, seed=9)[0]).save(tmp_path / "ben.png")
    extract_faces(clip, tmp_path / "ben", size=64, every=2, person=tmp_path / "ben.png", masks=False)
    assert all(r["left"] > 180 for r in read_extract(tmp_path / "ben"))
    Image.fromarray(acted(3, 1, seed=9)[0]).save(tmp_path / "stranger.png")
    Image.new("RGB", (200, 200)).save(tmp_path / "black.png")
    with pytest.raises(NoFaceError, match="Nobody found looks like"):
        extract_faces(clip, tmp_path / "no", every=4, person=tmp_path / "stranger.png")
    with pytest.raises(NoFaceError, match="black.png"):
        extract_faces(clip, tmp_path / "no", person=tmp_path / "black.png")
    assert not (tmp_path / "no").exists()


def test_the_person_of_a_picture_in_memory(clip, tmp_path):
    "An array was compared with the words 'main' and 'all'; and an error showed all its numbers."
    with pytest.raises(NoFaceError, match="found in the photo given"):
        extract_faces(clip, tmp_path / "out", person=np.zeros((64, 64, 3), np.uint8))
    assert nothing_left(tmp_path)


def test_same_input_same_bytes(clip, tmp_path):
    for name in "ab":
        extract_faces(clip, tmp_path / name, size=64, every=3)
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file())
    assert len(files) > 5 and all((tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files)


def test_every_and_progress(clip, tmp_path):
    calls = []
    report = extract_faces(clip, tmp_path / "out", size=64, every=5, masks=False, report=False, progress=lambda *a: calls.append(a))
    assert report.seen == 3 == len(calls) and [c[:2] for c in calls] == [(1, 3), (2, 3), (3, 3)] and calls[-1][2] >= report.kept
    assert {r["frame"] for r in read_extract(tmp_path / "out")} <= {0, 5, 10}


# ---- bad input

def nothing_left(folder, names=()):
    return sorted(p.name for p in folder.iterdir()) == sorted(names)


def test_a_clip_without_a_face(tmp_path):
    film(tmp_path / "wall.mp4", np.full((4, 96, 96, 3), 128, np.uint8))
    with pytest.raises(NoFaceError, match="No face was found in 4 pictures"):
        extract_faces(tmp_path / "wall.mp4", tmp_path / "out")
    assert nothing_left(tmp_path, ["wall.mp4"])


def test_half_of_the_frames_hold_a_face(tmp_path):
    frames = acted(0, 8, every=6)
    frames[::2] = 128
    report = extract_faces(film(tmp_path / "half.mp4", frames), tmp_path / "out", size=64, masks=False)
    assert (report.seen, report.empty, report.found) == (8, 4, 4)
    assert {r["frame"] % 2 for r in read_extract(tmp_path / "out")} == {1}


def test_a_cut_begins_another_person(tmp_path):
    frames = np.concatenate([acted(0, 3, every=8), acted(1, 5, every=8)])
    report = extract_faces(film(tmp_path / "cut.mp4", frames), tmp_path / "out", size=64, masks=False, report=False)
    assert report.dropped["another person"] == 3 and {r["frame"] >= 3 for r in read_extract(tmp_path / "out")} == {True}


def test_a_clip_that_breaks_in_the_middle(tmp_path):
    whole = film(tmp_path / "whole.avi", acted(0, 20, every=3))
    (tmp_path / "torn.avi").write_bytes(whole.read_bytes()[:int(0.5 * whole.stat().st_size)])
    report = extract_faces(tmp_path / "torn.avi", tmp_path / "out", size=64, every=2, masks=False, report=False)
    assert 2 < report.seen < 9 and report.kept and len(report.notes) == 1 and "torn.avi" in report.notes[0] and "what" in report.notes[0]
    assert announced(whole) == 20 and count_pictures(whole, 3) == 7


@pytest.mark.parametrize("name,says", [("text.mp4", "is no video"), ("missing", "nothing at"), ("empty", "holds no pictures"), ("torn.jpg", "not a picture"), ("odd", "None of the files"),
                                       ("frameless.avi", "video")])
def test_what_cannot_be_read(tmp_path, name, says):
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "torn.jpg").write_bytes(b"\xff\xd8 no")
    (tmp_path / "frameless.avi").write_bytes(b"RIFF\x00\x00\x00\x00AVI ")
    (tmp_path / "empty").mkdir()
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "a.png").write_bytes(b"")
    before = sorted(p.name for p in tmp_path.iterdir())
    with pytest.raises((DataError, ImageError), match=says) as e:
        extract_faces(tmp_path / name, tmp_path / "out")
    assert "\n" not in str(e.value) and nothing_left(tmp_path, before)


def test_a_folder_of_anything(clip, tmp_path):
    "Pictures and clips at any depth; what is bad is named, what is hidden or something else is not looked at."
    (tmp_path / "in/deeper").mkdir(parents=True)
    (tmp_path / "in/.hidden").mkdir()
    a, b = acted(0, 1)[0], acted(1, 1)[0]
    Image.fromarray(a).save(tmp_path / "in/a.png")
    Image.fromarray(b).save(tmp_path / "in/deeper/b.jpg", quality=95)
    Image.fromarray(b).save(tmp_path / "in/.hidden/b.png")
    Image.fromarray(a).save(tmp_path / "in/moves.gif", save_all=True, append_images=[Image.fromarray(b)])
    Image.fromarray(a).save(tmp_path / "in/stands.gif")
    (tmp_path / "in/broken.jpg").write_bytes(b"\xff\xd8 no")
    (tmp_path / "in/tiny.png").write_bytes((lambda f: (Image.new("RGB", (3, 3)).save(f), f.read_bytes())[1])(tmp_path / "tiny.png"))
    (tmp_path / "in/notes.txt").write_text("not looked at")
    assert [n for _, n in source_files(tmp_path / "in")] == ["a.png", "broken.jpg", "deeper/b.jpg", "moves.gif", "stands.gif", "tiny.png"]
    assert is_clip(tmp_path / "in/moves.gif") and not is_clip(tmp_path / "in/stands.gif")
    report = extract_faces(tmp_path / "in", tmp_path / "out", size=64, person="all", duplicates=0, masks=False)
    assert [r["from"] for r in read_extract(tmp_path / "out")] == ["a.png", "deeper/b.jpg", "moves.gif#000000", "moves.gif#000001", "stands.gif"]
    assert len(report.notes) == 2 and "broken.jpg" in report.notes[0] and "tiny.png" in report.notes[1]


@pytest.mark.parametrize("settings,says", [({"size": 8}, "32 to 1024"), ({"every": 0}, "every=0"), ({"min_sharpness": 1.5}, "a share"), ({"duplicates": -1}, "a share"), ({"person": "missing.png"}, "no file")])
def test_wrong_settings(clip, tmp_path, settings, says):
    with pytest.raises((UsageError, ImageError), match=says):
        extract_faces(clip, tmp_path / "out", **settings)
    assert nothing_left(tmp_path)


def test_where_the_folder_can_not_stand(clip, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for out, says in (("full", "not empty"), ("file", "is a file"), ("file/in", "could not be written")):
        with pytest.raises(OutputError, match=says):
            extract_faces(clip, tmp_path / out)
    assert (tmp_path / "full/mine.txt").read_text() == "mine" and nothing_left(tmp_path, ["full", "file"])


@pytest.mark.parametrize("stop,error", [(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), OutputError), (KeyboardInterrupt(), KeyboardInterrupt)])
def test_a_full_disk_or_ctrl_c_leaves_nothing(clip, tmp_path, monkeypatch, stop, error):
    save, count = Image.Image.save, []

    def fails_later(self, target, *args, **kw):
        if str(target).startswith(str(tmp_path)):
            count.append(target)
            if len(count) == 3:
                raise stop
        return save(self, target, *args, **kw)

    monkeypatch.setattr(Image.Image, "save", fails_later)
    with pytest.raises(error):
        extract_faces(clip, tmp_path / "out", size=64)
    assert len(count) == 3 and nothing_left(tmp_path)


def test_all_too_small(clip, tmp_path):
    with pytest.raises(DataError, match="were left out .*small.*lower min_size"):
        extract_faces(clip, tmp_path / "out", every=5, min_size=500)
    assert nothing_left(tmp_path)
    with pytest.raises(DataError, match="faces.csv"):
        read_extract(tmp_path)


def test_whole_folder_takes_an_empty_place(tmp_path):
    (tmp_path / "out").mkdir()
    with whole_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("a")
        assert not list((tmp_path / "out").iterdir())
    assert nothing_left(tmp_path, ["out"]) and (tmp_path / "out/a").read_text() == "a"


# ---- measures

@pytest.fixture(scope="module")
def portraits():
    "Twelve people, three pictures each: crops at 128 px, who it is, exact masks and landmarks in the crop."
    people = sample_people(12, "easy", seed=60, scenes=3)
    people.scene = people.scene.replace(zoom=0.85)
    drawn = render(people, 160)
    pairs = [align(torch.cat([i, 2 * m - 1])[None], lm, 128) for i, m, lm in zip(drawn.image, drawn.mask, drawn.landmarks)]
    both = torch.cat([c for c, _ in pairs])
    points = torch.stack([apply_affine(m, lm) for (_, m), lm in zip(pairs, drawn.landmarks)])
    return both[:, :3].clamp(-1, 1), people.person, both[:, 3:] > 0, points


def test_sharpness_of_the_face_alone(portraits):
    crops = portraits[0][:6]
    sharp = face_sharpness(crops)
    assert (face_sharpness(blur(crops, 1.5)) < 0.5 * sharp).all()
    wall = crops.clone()
    wall[..., :20] = torch.randn(wall[..., :20].shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(face_sharpness(wall), sharp)


def test_the_hash_sees_a_mouth_and_not_a_lamp(portraits):
    crops = portraits[0][:6]
    code, open_mouth = face_hash(crops), crops.clone()
    open_mouth[..., 86:98, 50:78] = -0.8
    assert code.shape == (6, 512)
    changed = (face_hash(open_mouth) != code).float().mean(1)
    assert (changed > 0.015).all() and ((face_hash(crops * 0.97) != code).float().mean(1) < changed).all()


def test_auc_counts_pairs():
    g = torch.Generator().manual_seed(1)
    s, d = torch.randn(30, generator=g) + 0.7, torch.randn(50, generator=g)
    assert auc(s, d) == pytest.approx((s[:, None] > d).float().mean().item(), abs=1e-6)
    same, different = all_pairs(torch.eye(4), torch.tensor([0, 0, 1, 1]))
    assert (len(same), len(different)) == (2, 4)


def test_appearance_tells_procedural_people_apart(portraits):
    crops, person = portraits[:2]
    looks = appearance(crops)
    torch.testing.assert_close(looks.norm(dim=1), torch.ones(len(crops)))
    torch.testing.assert_close(appearance(crops[5:6]), looks[5:6], atol=1e-4, rtol=0)
    assert auc(*all_pairs(looks, person)) > 0.97
    assert auc(*all_pairs(looks, person[torch.randperm(36, generator=torch.Generator().manual_seed(0))])) < 0.7


def test_appearance_on_real_photos(shared):
    "80 people, twice in one studio: neutral and smiling."
    folder = shared / "data/london"
    names = [f.name for f in sorted((folder / "neutral").glob("*.jpg"))][::2]
    with open(folder / "mtcnn5.tsv", newline="") as f:
        rows = {r["file"]: r for r in csv.DictReader(f, delimiter="\t")}
    crops, person = [], []
    for k, name in enumerate(names):
        for kind in ("neutral", "smiling"):
            r = rows[f"{kind}/{name}"]
            points = np.array([[float(r[f"{p}x"]), float(r[f"{p}y"])] for p in ("le", "re", "n", "lm", "rm")])
            crops.append(align_photo(Image.open(folder / kind / name).convert("RGB"), points, 128)[0])
            person.append(k)
    assert len(names) >= 40 and auc(*all_pairs(appearance(torch.cat(crops)), torch.tensor(person))) > 0.98


def test_groups(portraits):
    crops, person = portraits[0][:12], portraits[1][:12]
    looks = appearance(crops)
    groups = group_faces(looks, [f"picture {k}" for k in range(12)], alike=0.3)
    assert len(set(zip(groups.tolist(), person.tolist()))) == 4 == len(groups.unique())
    strict = group_faces(looks, range(12), alike=0.99)
    assert len(strict.unique()) == 12
    twice = group_faces(looks[[0, 1, 1]], ["a", "b", "b"])
    assert len(set(twice.tolist())) == 2, "one picture can't hold a person twice"
    chained = group_faces(looks[[0, 6]], ["a", "b"], tracks=[5, 5])
    assert chained.tolist() == [0, 0]
    many = group_faces(looks, range(12), alike=0.3, block=3)
    assert len(set(zip(many.tolist(), person.tolist()))) == 4, "in blocks as well"
    assert group_faces(looks[[3, 0, 1]], "abc")[1] == 0, "the largest group is number 0"


def test_rough_pose():
    people = sample_people(60, "easy", seed=8)
    yaw = torch.linspace(-30, 30, 60)
    people.scene = people.scene.replace(yaw=yaw, pitch=0.0)
    pose = rough_pose(exact_landmarks(people, 200))
    assert (pose[:, 0] - yaw).square().mean().sqrt() < 4 and pose[:20, 0].mean() < -10 < 10 < pose[-20:, 0].mean()
    people.scene = people.scene.replace(yaw=0.0, pitch=yaw / 2)
    pitch = rough_pose(exact_landmarks(people, 200))[:, 1]
    assert torch.corrcoef(torch.stack([pitch, yaw]))[0, 1] > 0.5


def iou(a, b):
    return ((a & b).sum((1, 2, 3)) / (a | b).sum((1, 2, 3))).mean().item()


@pytest.mark.parametrize("yaw", [0.0, 30.0])
def test_masks_against_the_exact_one(yaw):
    people = sample_people(8, "easy", seed=70)
    people.scene = people.scene.replace(yaw=yaw, zoom=0.85)
    drawn = render(people, 160)
    pairs = [align(torch.cat([i, 2 * m - 1])[None], lm, 128) for i, m, lm in zip(drawn.image, drawn.mask, drawn.landmarks)]
    both = torch.cat([c for c, _ in pairs])
    crops, exact, points = both[:, :3].clamp(-1, 1), both[:, 3:] > 0, torch.stack([apply_affine(m, lm) for (_, m), lm in zip(pairs, drawn.landmarks)])
    hull, fine = iou(hull_mask(points, 128), exact), iou(fine_mask(crops, points), exact)
    assert fine > 0.86 > hull > 0.74
    large = fine_mask(torch.nn.functional.interpolate(crops, scale_factor=2, mode="bicubic"), 2 * points)
    assert iou(large, torch.nn.functional.interpolate(exact.float(), scale_factor=2) > 0) > 0.85


def test_outline_turns_with_the_head():
    people = sample_people(20, "easy", seed=71)
    left, right = (turned_outline(exact_landmarks(type(people)(people.identity, people.style, people.scene.replace(yaw=y)), 128)).mean(0) for y in (-30.0, 30.0))
    assert left[0] - left[32] > 0.3 and right[32] - right[0] > 0.3, "the far cheek is near, the near one is far: angle 0 is right"


def test_album_spreads():
    album = ContactSheet(4)
    for k in range(21):
        album.add(k)
    assert album.pages == [0, 8, 16] and album.seen == 21


def test_names_are_escaped():
    assert "<b>" not in bar_svg({"<b>": 3}) and "3" in bar_svg({"<b>": 3})


def test_a_real_clip(shared, tmp_path):
    report = extract_faces(shared / "data/video/intel_female-and-male.gif", tmp_path / "out", size=64, every=6, masks=False)
    rows = read_extract(tmp_path / "out")
    assert report.found >= 16 and {r["group"] for r in rows} == {1} and report.dropped["another person"] >= 3
    centres = [r["landmarks"][:, 0].mean() for r in rows]
    assert max(centres) < 240 or min(centres) > 240, "one of the two, on one side of the picture"


def test_every_malformed_still_is_named(shared):
    notes = []
    looked = list(pictures_of(shared / "data/stills/malformed", 1, notes.append))
    files = len(source_files(shared / "data/stills/malformed"))
    assert len({look.clip or look.name for look in looked}) + len(notes) >= files and len(notes) >= 6
    assert all(n.startswith("skipped") or "announces" in n or "breaks" in n for n in notes)


def test_found_faces_match_find_faces(clip):
    look = next(iter(pictures_of(clip)))
    assert look.name == "two.mp4#000000" and len(find_faces(look.image)) == 2


# ---- the exercises' solutions

def test_blurred_faces_belong_to_their_person(everybody):
    rows = {r["frame"]: r["group"] for r in read_extract(everybody[1]) if r["left"] < 180}
    assert 12 in rows and set(rows.values()) == {1}


def test_own_average_takes_a_lone_person_away(portraits):
    crops, person = portraits[0], portraits[1]
    for k in range(3):
        looks = appearance(crops[person == k])
        lone = torch.nn.functional.normalize(looks - looks.mean(0), dim=1)
        assert all_pairs(lone, person[person == k])[0].mean() < 0 < 0.4 < all_pairs(looks, person[person == k])[0].mean()


def test_an_outline_that_knows_no_yaw_falls_like_the_average_one(monkeypatch):
    people = sample_people(8, "easy", seed=77)
    people.scene = people.scene.replace(yaw=33.0, zoom=0.85)
    points = exact_landmarks(people, 128)
    straight = extraction._TURNED.clone()
    straight[:, 1:3] = 0
    turned, average = hull_mask(points, 128), outline_distance(torch.ones(8, 64), face_frame(points), 128) < 0
    monkeypatch.setattr(extraction, "_TURNED", straight)
    assert iou(hull_mask(points, 128), average) > 0.85 > iou(turned, average)


def test_fine_mask_of_a_small_crop(portraits):
    crops, _, exact, points = (v[::3] for v in portraits)
    small = torch.nn.functional.interpolate(crops, (32, 32), mode="bilinear", antialias=True)
    target = torch.nn.functional.interpolate(exact.float(), (32, 32), mode="area") > 0.5
    assert abs(iou(fine_mask(small, points / 4), target) - iou(fine_mask(crops, points), exact)) < 0.03


def test_a_clip_blurred_from_end_to_end_keeps_its_faces(tmp_path):
    frames = torch.cat([to_tensor(Image.fromarray(f)) for f in acted(0, 4, every=8)])
    report = extract_faces(film(tmp_path / "soft.mp4", to_uint8(blur(frames, 2.0)).numpy()), tmp_path / "out", size=64, masks=False)
    assert report.kept == 4 and not report.dropped
    assert max(r["sharpness"] for r in read_extract(tmp_path / "out")) < face_sharpness(align_photo(Image.fromarray(acted(0, 1)[0]), find_faces(acted(0, 1)[0])[0].landmarks, 128)[0]).item() / 2


def test_each_person_is_compared_with_themselves(tmp_path):
    "One of two stands out of focus all the time: that is how they look here, and no reason to drop them."
    soft = blur(torch.cat([to_tensor(Image.fromarray(f)) for f in acted(1, 3, seed=1, every=8)]), 1.5)
    film(tmp_path / "two.mp4", np.concatenate([acted(0, 3, every=8), to_uint8(soft).numpy()], 2))
    report = extract_faces(tmp_path / "two.mp4", tmp_path / "out", size=64, person="all", masks=False, report=False)
    sharp = {side: [r["sharpness"] for r in read_extract(tmp_path / "out") if (r["left"] > 180) == side] for side in (False, True)}
    assert report.kept == 6 and max(sharp[True]) < 0.6 * np.median(sharp[True] + sharp[False])


def test_a_real_head_that_turns_is_one_person_and_a_real_cut_begins_another(shared, tmp_path):
    folder = shared / "data/video"
    report = extract_faces(folder / "intel_female.gif", tmp_path / "turns", size=64, every=6, person="all", masks=False, report=False)
    assert report.kept >= 3 and len(report.groups) == 1
    frames = [np.asarray(look.image) for name in ("grid_A_bbaf2n.mpg", "grid_C_lbax4n.mpg") for look in pictures_of(folder / name, 25)]
    extract_faces(film(tmp_path / "cut.mp4", np.stack(frames)), tmp_path / "cut", size=64, person="all", masks=False, report=False)
    groups = [r["group"] for r in read_extract(tmp_path / "cut")]
    assert len(groups) == 6 and len(set(groups[:3])) == len(set(groups[3:])) == 1 != len(set(groups))


def test_a_new_folder_may_lie_in_new_folders(tmp_path):
    "`deepswap extract CLIP --out faces/anna` is what people type; only a file in the way is an error."
    with whole_folder(tmp_path / "faces" / "anna") as part:
        (part / "a.txt").write_text("a")
    assert (tmp_path / "faces" / "anna" / "a.txt").read_text() == "a"
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError), whole_folder(tmp_path / "file" / "anna"):
        pass
