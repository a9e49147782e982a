"Data sets, splits, pairs, quality filter, augmentation and loaders: deepswap.data."

import io
import json
import shutil
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from deepswap import data
from deepswap.core import DataError, NoFaceError, OutputError, read_image, to_pil, to_tensor, write_image
from deepswap.data import Augment, FolderFaces, PairLoader, PeopleFolders, PixelStore, ProceduralFaces, batches


@pytest.fixture(scope="module")
def people():
    return ProceduralFaces(8, scenes=4, size=32, seed=1)


@pytest.fixture(scope="module")
def folder(people, tmp_path_factory):
    "Ten pictures without names."
    path = tmp_path_factory.mktemp("pictures")
    for k in range(10):
        write_image(people.batch([k]).image, path / f"{k:02d}.png")
    return path


@pytest.fixture(scope="module")
def named(people, tmp_path_factory):
    "Four people, four pictures each, as a folder per person."
    path = tmp_path_factory.mktemp("named")
    for k in range(16):
        (path / f"p{k // 4}").mkdir(exist_ok=True)
        write_image(people.batch([k]).image, path / f"p{k // 4}" / f"{k % 4}.png")
    return path


@pytest.fixture(scope="module")
def celeba(people, tmp_path_factory):
    root = tmp_path_factory.mktemp("celeba_root")
    base = root / "celeba"
    (base / "img_align_celeba").mkdir(parents=True)
    files = [f"{k + 1:06d}.jpg" for k in range(12)]
    for k, f in enumerate(files):
        write_image(to_pil(people.batch([k]).image).resize((178, 218)), base / "img_align_celeba" / f)
    a = (people.attributes[:12] * 2 - 1).int().tolist()
    (base / "identity_CelebA.txt").write_text("".join(f"{f} {k // 4 + 7}\n" for k, f in enumerate(files)))
    (base / "list_eval_partition.txt").write_text("".join(f"{f} {k % 3}\n" for k, f in enumerate(files)))
    (base / "list_attr_celeba.txt").write_text("12\n" + " ".join(people.attribute_names) + " \n" + "".join(f"{f} " + " ".join(f"{v:2d}" for v in a[k]) + "\n" for k, f in enumerate(files)))
    for name, cols in (("list_bbox_celeba.txt", 4), ("list_landmarks_align_celeba.txt", 10)):
        (base / name).write_text("12\n" + " ".join(f"c{c}" for c in range(cols)) + "\n" + "".join(f"{f} " + " ".join(["1"] * cols) + "\n" for f in files))
    return root


@pytest.fixture(scope="module")
def lfw(people, tmp_path_factory):
    root = tmp_path_factory.mktemp("lfw_root")
    base, names = root / "lfw-py", ["Ada_A", "Bob_B", "Cy_C", "Di_D"]
    for k in range(16):
        (base / "lfw_funneled" / names[k // 4]).mkdir(parents=True, exist_ok=True)
        write_image(to_pil(people.batch([k]).image).resize((250, 250)), base / "lfw_funneled" / names[k // 4] / f"{names[k // 4]}_{k % 4 + 1:04d}.jpg")
    (base / "lfw-names.txt").write_text("".join(f"{n}\t4\n" for n in names))
    (base / "people.txt").write_text("2\n2\nAda_A\t4\nBob_B\t4\n2\nCy_C\t4\nDi_D\t4\n")
    (base / "peopleDevTrain.txt").write_text("3\nAda_A\t4\nBob_B\t4\nCy_C\t4\n")
    (base / "peopleDevTest.txt").write_text("1\nDi_D\t4\n")
    (base / "pairs.txt").write_text("1\t2\nAda_A\t1\t2\nBob_B\t1\t4\nAda_A\t1\tBob_B\t2\nCy_C\t2\tDi_D\t1\n")
    return root


@pytest.fixture(scope="module")
def clip(people, tmp_path_factory):
    import av

    path = tmp_path_factory.mktemp("video") / "clip.mp4"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("mpeg4", rate=25)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for k in range(20):
            for packet in stream.encode(av.VideoFrame.from_image(to_pil(people.batch([k]).image).resize((64, 64)))):
                file.mux(packet)
        for packet in stream.encode():
            file.mux(packet)
    return path


SOURCES = ["procedural", "folder", "named", "celeba", "lfw", "clip"]


def open_source(kind, request, **kw):
    if kind == "procedural":
        return data.open_faces("procedural", n_people=4, size=32, **kw)
    return data.open_faces(request.getfixturevalue(kind), size=32, **kw)


# ---- the same from everywhere


@pytest.mark.parametrize("kind", SOURCES)
def test_every_source_gives_the_same_kind_of_batch(kind, request):
    faces = open_source(kind, request)
    b = faces.batch(torch.tensor([1, 0, 1]))
    assert b.image.shape == (3, 3, 32, 32) and b.image.dtype == torch.float32 and b.image.is_contiguous()
    assert -1 <= b.image.min() < b.image.max() <= 1 and torch.equal(b.image[0], b.image[2])
    assert b.index.tolist() == [1, 0, 1] and b.index.dtype == torch.int64
    assert (b.person is None) == (kind == "folder")
    assert b.person is None or b.person.dtype == torch.int64
    assert (b.attributes is not None) == (kind in ("procedural", "celeba"))
    assert b.attributes is None or b.attributes.shape == (3, len(faces.attribute_names))
    assert len(faces.names) == len(faces) and faces.original.shape == (len(faces), 2)
    assert len(next(iter(batches(faces, 4))).image) == 4
    with pytest.raises(DataError, match="numbers run from 0"):
        faces.batch([len(faces)])
    with pytest.raises(DataError, match="numbers run from 0"):
        faces.batch([-1])


CLASSES = ["procedural", "FolderFaces", "PeopleFolders", "CelebAFaces", "LFWFaces", "VideoFaces"]


def test_open_faces_knows_what_it_sees(request):
    assert [type(open_source(k, request)).__name__ for k in SOURCES[1:]] == CLASSES[1:]
    assert type(open_source("procedural", request)).__name__ == "ProceduralFaces"


@pytest.mark.parametrize("cls", [data.FolderFaces, data.PeopleFolders, data.CelebAFaces, data.LFWFaces, data.VideoFaces, data.open_faces])
def test_bad_paths_are_one_sentence(cls, tmp_path):
    (tmp_path / "text.txt").write_text("hello")
    (tmp_path / "empty").mkdir()
    for bad in (tmp_path / "nowhere", tmp_path / "text.txt", tmp_path / "empty"):
        with pytest.raises(DataError) as e:
            cls(bad)
        assert "\n" not in str(e.value) and str(bad.name) in str(e.value) and str(e.value).count(". ") == 0


# ---- procedural


def test_procedural_is_decided_by_the_seed_and_not_by_the_order_of_asking():
    a, b = (ProceduralFaces(20, 2, size=24, seed=5) for _ in range(2))
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    out = torch.cat([b.batch(order[k : k + 7]).image for k in range(0, 40, 7)])[order.argsort()]
    assert torch.equal(out, a.batch(range(40)).image)
    assert not torch.equal(out, ProceduralFaces(20, 2, size=24, seed=6).batch(range(40)).image)
    live = ProceduralFaces(20, 2, size=24, seed=5, cache=None)
    assert (live.batch(range(40)).image - out).abs().max() <= 2 / 255 + 1e-6 and live.store.memory_mb == 0


def test_procedural_draws_each_picture_once(people):
    faces, drawn = ProceduralFaces(16, 4, size=16, seed=0), []
    draw = faces._draw
    faces._draw = lambda i: drawn.extend(i.tolist()) or draw(i)
    for _, _b in zip(range(12), batches(faces, 16)):
        pass
    assert sorted(drawn) == list(range(64))


def test_store_keeps_to_its_budget_and_the_rest_is_made_again():
    faces = ProceduralFaces(64, 1, size=16, seed=0, budget_mb=40 * 768 / 2**20)
    a = faces.batch(range(64)).image
    assert faces.store.room == 40 and faces.store.memory_mb * 2**20 <= 40 * 768
    assert torch.equal(faces.batch(range(64)).image, a)


# ---- files


def test_nothing_is_decoded_twice_that_can_be_kept(folder):
    faces = FolderFaces(folder, 16)
    for _, _b in zip(range(20), batches(faces, 5)):
        pass
    assert faces.decoded == 10
    poor = FolderFaces(folder, 16, check=False, budget_mb=4 * 768 / 2**20)
    for _, _b in zip(range(4), batches(poor, 5, shuffle=False)):  # two epochs
        pass
    assert poor.decoded == 4 + 2 * 6 and poor.store.memory_mb * 2**20 <= 4 * 768
    none = FolderFaces(folder, 16, check=False, cache=None)
    none.batch(range(10)), none.batch(range(10))
    assert none.decoded == 20
    for a, b in ((faces, poor), (faces, none)):
        assert torch.equal(a.batch(range(10)).image, b.batch(range(10)).image)


def test_disk_cache_serves_a_second_run_and_notices_changes(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("DEEPSWAP_CACHE", str(tmp_path / "cache"))
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "bad.png").write_bytes(b"no picture")
    first = FolderFaces(copy, 16, cache="disk")
    want = first.batch(range(10)).image
    second = FolderFaces(copy, 16, cache="disk")
    assert (first.decoded, second.decoded) == (10, 0) and second.skipped == first.skipped and len(second.skipped) == 1
    assert torch.equal(second.batch(range(10)).image, want) and torch.equal(second.original, first.original)
    write_image(Image.new("RGB", (40, 40), "red"), copy / "03.png")
    third = FolderFaces(copy, 16, cache="disk")
    assert third.decoded == 10 and third.batch([3]).image[0, 0].min() > 0.9
    with pytest.raises(DataError, match="cache='tape'"):
        FolderFaces(copy, 16, cache="tape")


def test_a_cache_that_cannot_be_made_is_an_error(folder, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(data.os, "posix_fallocate", full, raising=False)
    with pytest.raises(DataError, match="No space left on device"):
        PixelStore(10, 8, folder=tmp_path)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DEEPSWAP_CACHE", str(tmp_path / "file"))
    with pytest.raises(OutputError):
        FolderFaces(folder, 16, cache="disk")


def test_malformed_files_are_skipped_named_and_counted(shared):
    path = shared / "data" / "stills" / "malformed"
    faces = FolderFaces(path, 32)
    good = []
    for f in sorted(path.iterdir()):
        try:
            if min(read_image(f).size) >= 8:
                good.append(f.name)
        except Exception:
            pass
    bad = {n for n, _ in faces.skipped}
    assert faces.names == good and len(faces) + len(bad) == len(list(path.iterdir()))
    assert {"empty.jpg", "not_an_image.jpg", "decompression_bomb.gif", "one_pixel.png", "truncated_image.png"} <= bad
    assert all(why and "\n" not in why and str(path) not in why for _, why in faces.skipped)
    for batch, _ in zip(batches(faces, 8), range(6)):
        assert torch.isfinite(batch.image).all()


def test_bad_files_found_late_are_replaced_and_reported(named, tmp_path):
    copy = shutil.copytree(named, tmp_path / "copy")
    (copy / "p1" / "2.png").write_bytes((copy / "p1" / "2.png").read_bytes()[:200])
    faces = PeopleFolders(copy, 32, check=False)
    assert len(faces) == 16 and not faces.skipped
    b = faces.batch(range(16))
    assert b.index.tolist() == [0, 1, 2, 3, 4, 5, 7, 7, *range(8, 16)] and b.person.tolist() == [k // 4 for k in range(16)]
    assert [n for n, _ in faces.skipped] == ["p1/2.png"]
    faces.batch(range(16))
    assert len(faces.skipped) == 1  # counted once
    assert len(PeopleFolders(copy, 32)) == 15
    for f in copy.rglob("*.png"):
        f.write_bytes(b"x")
    with pytest.raises(DataError, match=r"no usable picture in .*16 file\(s\) were skipped"):
        PeopleFolders(copy, 32)
    with pytest.raises(DataError, match="no usable picture"):
        PeopleFolders(copy, 32, check=False).batch([0])


def test_prepare_may_turn_a_file_down(folder):
    def prepare(image):
        if image.getpixel((0, 0))[0] > 128:
            raise NoFaceError("no face was found in it")
        return image

    want = [k for k in range(10) if read_image(folder / f"{k:02d}.png").getpixel((0, 0))[0] <= 128]
    if not want:
        pytest.fail("the pictures should differ in their first pixel")
    faces = FolderFaces(folder, 16, prepare=prepare)
    assert faces.names == [f"{k:02d}.png" for k in want] and all(why == "no face was found in it" for _, why in faces.skipped)


def test_squares_are_cut_where_asked():
    image = Image.new("RGB", (300, 100), "black")
    image.paste("white", (100, 0, 200, 100))
    assert data.square(image, 10).getextrema()[0][0] > 225  # the white third, but for a trace of the filter at its edges
    assert data.square(image, 10, (0.0, 0.5, 1.0)).getextrema()[0][1] < 30  # the left black third; the cut stays inside the picture
    assert data.square(image, 8, (0.5, 0.5, 0.5)).size == (8, 8)
    stripes = Image.fromarray((torch.arange(256) % 2 * 255).to(torch.uint8).repeat(256, 1).numpy()).convert("RGB")
    low, high = data.square(stripes, 16).getextrema()[0]
    assert 110 < low <= high < 145  # anti-aliased: stripes finer than a pixel become grey


def test_celeba_agrees_with_torchvision(celeba):
    from torchvision.datasets import CelebA

    for split, count in (("train", 4), ("valid", 4), ("test", 4), ("all", 12)):
        with patch.object(CelebA, "_check_integrity", lambda self: True):
            theirs = CelebA(celeba, split, target_type=["identity", "attr"])
        ours = data.CelebAFaces(celeba, 32, split=split)
        assert len(ours) == count and ours.names == list(theirs.filename)
        assert ours.person.tolist() == theirs.identity[:, 0].tolist() and torch.equal(ours.attributes.long(), theirs.attr)
    assert ours.original[0].tolist() == [178, 218]


def test_celeba_crop_puts_the_eyes_where_the_canonical_crop_has_them():
    from deepswap.core import CANONICAL5

    cx, cy, side = data.CELEBA_CROP
    side, left, top = side * 178, cx * 178 - side * 178 / 2, cy * 218 - side * 178 / 2
    eyes = (torch.tensor([[69.5, 111.0], [107.5, 111.0]]) - torch.tensor([left, top])) / side  # where CelebA's alignment puts them
    assert (eyes - CANONICAL5[:2]).abs().max() < 0.02


def test_celeba_with_missing_parts(celeba, tmp_path):
    copy = shutil.copytree(celeba, tmp_path / "copy")
    (copy / "celeba" / "img_align_celeba" / "000005.jpg").unlink()
    (copy / "celeba" / "list_attr_celeba.txt").unlink()
    faces = data.CelebAFaces(copy, 32)
    assert len(faces) == 11 and faces.skipped[0][0] == "000005.jpg" and faces.attributes is None
    assert len(data.CelebAFaces(copy / "celeba", 32)) == 11
    (copy / "celeba" / "identity_CelebA.txt").write_text("000001.jpg one\n")
    with pytest.raises(DataError, match="not a file name and whole numbers"):
        data.CelebAFaces(copy, 32)
    (copy / "celeba" / "identity_CelebA.txt").unlink()
    with pytest.raises(DataError, match="identity_CelebA.txt is missing"):
        data.CelebAFaces(copy, 32)


def test_lfw_agrees_with_torchvision(lfw):
    from torchvision.datasets import LFWPairs, LFWPeople
    from torchvision.datasets.lfw import _LFW

    with patch.object(_LFW, "_check_integrity", lambda self: True):
        for split in ("10fold", "train", "test"):
            theirs, ours = LFWPeople(lfw, split), data.LFWFaces(lfw, 32, split=split)
            assert [str(f) for f in ours.files] == theirs.data and ours.person.tolist() == theirs.targets
        pairs, ours = LFWPairs(lfw, "10fold"), data.LFWFaces(lfw, 32)
    assert [(str(ours.files[a]), str(ours.files[b])) for a, b, _ in ours.pairs] == [tuple(map(str, p)) for p in pairs.data]
    assert [same for *_, same in ours.pairs] == [bool(t) for t in pairs.targets]


def test_lfw_without_its_lists_takes_the_folders(lfw, tmp_path):
    copy = shutil.copytree(lfw, tmp_path / "copy")
    for f in (copy / "lfw-py").glob("*.txt"):
        f.unlink()
    (copy / "lfw-py" / "lfw_funneled" / "Bob_B" / "Bob_B_0002.jpg").write_bytes(b"")
    faces = data.LFWFaces(copy, 32)
    assert len(faces) == 15 and faces.person_names == ["Ada_A", "Bob_B", "Cy_C", "Di_D"] and faces.pairs == []
    assert faces.skipped[0][0] == "Bob_B_0002.jpg"


def test_london_as_folders_per_person(shared, tmp_path):
    london = shared / "data" / "london"
    for k in ("001", "002", "003", "004"):
        (tmp_path / k).mkdir()
        for kind in ("neutral", "smiling"):
            found = next((london / kind).glob(f"{k}*"))
            shutil.copy(found, tmp_path / k / f"{kind}{found.suffix}")
    faces = PeopleFolders(tmp_path, 64)
    assert faces.person.tolist() == [0, 0, 1, 1, 2, 2, 3, 3] and not faces.skipped
    pairs = next(iter(PairLoader(faces, 8, same=0.5)))
    assert torch.equal(pairs.same, pairs.source.person == pairs.target.person) and int(pairs.same.sum()) == 4
    assert (pairs.source.index != pairs.target.index).all()
    kept, report = data.quality_filter(faces)
    assert len(kept) == 8 and report.dropped == []


# ---- video


def test_video_frames_are_every_nth(clip, people):
    faces = data.VideoFaces(clip, 32, every=5)
    assert faces.names == [f"clip.mp4#{k}" for k in (0, 5, 10, 15)] and faces.person.tolist() == [0] * 4
    assert faces.original.tolist() == [[64, 64]] * 4
    assert (faces.batch(range(4)).image - people.batch([0, 5, 10, 15]).image).abs().mean() < 0.1
    assert len(data.VideoFaces(clip, 32, every=1)) == 20 and len(data.VideoFaces(clip, 32, every=1, limit=7)) == 7


def test_video_streams_one_frame_at_a_time(clip):
    stream = data.video_frames(clip, 2)
    number, image = next(stream)
    assert number == 0 and image.size == (64, 64) and image.mode == "RGB"
    assert next(stream)[0] == 2
    stream.close()


@pytest.mark.parametrize("turn", (0, 90, 180, -90))
def test_a_clip_held_sideways_is_read_upright(tmp_path, turn):
    import av
    upright = np.zeros((48, 64, 3), np.uint8)
    upright[:16, :32] = 255  # top left
    stored = np.ascontiguousarray(np.rot90(upright, -turn // 90))  # as the sensor saw it; the file says how to turn it back
    path = tmp_path / "phone.mp4"
    with av.open(str(path), "w") as file:
        v = file.add_stream("libx264", rate=25)
        v.height, v.width, v.pix_fmt = *stored.shape[:2], "yuv420p"
        if turn:
            v.set_display_rotation(turn)
        file.mux(v.encode(av.VideoFrame.from_ndarray(stored, format="rgb24")))
        file.mux(v.encode(None))
    (_, image), = data.video_frames(path)
    assert image.size == (64, 48) and np.abs(np.asarray(image, float) - upright).mean() < 8


def test_masks_beside_extracted_faces_are_no_pictures(tmp_path):
    for place in (tmp_path / "one", tmp_path / "many/anna"):
        (place / "masks").mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (40, 40), (80 * i, 40, 90)).save(place / f"{i}.png")
            Image.new("L", (40, 40), 255).save(place / f"masks/{i}.png")
        (place / "faces.csv").write_text("file\n")
    assert data.open_faces(tmp_path / "one", 32).names == ["0.png", "1.png", "2.png"]
    assert data.open_faces(tmp_path / "many", 32).names == [f"anna/{i}.png" for i in range(3)]
    (tmp_path / "one/faces.csv").unlink()
    assert len(data.open_faces(tmp_path / "one", 32)) == 6, "without faces.csv it is a folder like any other"


def test_video_budget_prepare_and_bad_files(clip, tmp_path):
    poor = data.VideoFaces(clip, 32, every=1, budget_mb=6 * 3072 / 2**20)
    assert len(poor) == 6 and "budget" in poor.skipped[0][1]

    def refuse(image):
        raise NoFaceError("no face here")

    with pytest.raises(DataError, match="no face here"):
        data.VideoFaces(clip, 32, prepare=refuse)
    shutil.copy(clip, tmp_path / "a.mp4")
    (tmp_path / "b.mp4").write_bytes(clip.read_bytes()[: clip.stat().st_size // 2])
    (tmp_path / "c.mpg").write_text("no video")
    both = data.VideoFaces(tmp_path, 32, every=10)
    assert both.person.unique().tolist()[0] == 0 and {n for n, _ in both.skipped} >= {"c.mpg"}
    with pytest.raises(DataError, match="c.mpg can't be opened as a video"):
        data.VideoFaces(tmp_path / "c.mpg", 32)


def test_shared_videos(shared):
    faces = data.VideoFaces(shared / "data" / "video" / "grid_A_bbaf2n.mpg", 64, every=15)
    assert len(faces) == 5 and faces.original[0].tolist() == [360, 288]
    gif = data.VideoFaces(shared / "data" / "video" / "intel_female.gif", 64, every=10)
    assert len(gif) == 3


# ---- splits


@pytest.mark.parametrize("n,shares", [(8, (0.8, 0.1, 0.1)), (3, (0.8, 0.1, 0.1)), (100, (0.6, 0.2, 0.2)), (11, (0.5, 0.5)), (5, (0.0, 0.9, 0.1)), (40, (0.98, 0.01, 0.01))])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_nobody_is_in_two_parts(n, shares, seed):
    faces = data.Faces([str(k) for k in range(n * 3)], 8)
    faces.person = torch.arange(n).repeat(3)
    parts = data.split_people(faces, shares, seed)
    who = [set() if p is None else set(p.person.tolist()) for p in parts]
    assert sum(map(len, who)) == n == len(set.union(*who))
    assert sum(len(p) for p in parts if p is not None) == 3 * n
    for w, s in zip(who, shares):
        assert (len(w) > 0) == (s > 0) and abs(len(w) - s * n) <= max(1.5, len(shares) - 1)
    again = data.split_people(faces, shares, seed)
    assert [p and p.names for p in again] == [p and p.names for p in parts]


def test_split_errors(people, folder):
    with pytest.raises(DataError, match="does not know who is who"):
        data.split_people(FolderFaces(folder, 16))
    with pytest.raises(DataError, match="can't be split into 3 parts"):
        data.split_people(data.Subset(people, range(8)))
    with pytest.raises(DataError, match="don't add up to 1"):
        data.split_people(people, (80, 10, 10))
    with pytest.raises(DataError, match="empty"):
        data.Subset(people, [])


def test_a_subset_is_a_data_set(people):
    part = data.Subset(people, [30, 2, 17])
    b = part.batch([2, 0])
    assert torch.equal(b.image, people.batch([17, 30]).image) and b.index.tolist() == [2, 0]
    assert b.person.tolist() == people.person[[17, 30]].tolist() and torch.equal(b.attributes, people.attributes[[17, 30]])
    assert data.Subset(part, [1]).names == [people.names[2]] and part.size == 32


# ---- quality


def test_quality_filter_names_what_it_drops(people, tmp_path):
    images = to_pil(people.batch(range(0, 32, 4)).image)
    for k, im in enumerate(images):
        im.resize((128, 128), Image.Resampling.LANCZOS).save(tmp_path / f"{k}.png")
    images[0].filter(ImageFilter.GaussianBlur(3)).save(tmp_path / "x_blur.png")
    buffer = io.BytesIO()
    images[1].resize((100, 100)).save(buffer, "JPEG", quality=70)
    (tmp_path / "y_twin.jpg").write_bytes(buffer.getvalue())
    images[2].resize((20, 20)).save(tmp_path / "z_small.png")
    faces = FolderFaces(tmp_path, 32)
    kept, report = data.quality_filter(faces, batch_size=3)
    assert kept.names == [f"{k}.png" for k in range(8)]
    assert [(n, kind) for n, kind, _ in report.dropped] == [("x_blur.png", "blurred"), ("y_twin.jpg", "duplicate"), ("z_small.png", "small")]
    assert "1.png" in report.dropped[1][2] and "20 x 20" in report.dropped[2][2] and "8 kept, 3 dropped" in str(report)
    everything, _ = data.quality_filter(faces, min_side=0, min_sharpness=0, min_distance=0)
    assert len(everything) == 11


def test_hash_and_sharpness_measure_what_they_say(people):
    x = people.batch(range(0, 32, 4)).image
    radii = [data.sharpness(to_tensor([i.filter(ImageFilter.GaussianBlur(r)) for i in to_pil(x)])) for r in (0, 0.5, 1, 2)]
    assert all((a > b).all() for a, b in zip(radii, radii[1:]))
    h = data.dhash(x)
    d = data.hash_distance(h, h)
    assert torch.allclose(d, (h[:, None] != h[None]).float().mean(-1), atol=1e-6)
    assert data.hash_distance(data.dhash(x * 0.8 + 0.1), h).diagonal().max() < 0.06
    assert data.hash_distance(data.dhash(x), data.dhash(-x)).diagonal().min() > 0.6


# ---- augmentation


def gen(seed):
    return torch.Generator().manual_seed(seed)


def test_augment_is_decided_by_its_generator_alone(people):
    x, a = people.batch(range(8)).image, Augment(warp=0.03, match=0.5)
    torch.manual_seed(0)
    first = a(x, gen(1))
    torch.manual_seed(99)
    assert torch.equal(a(x, gen(1)), first) and not torch.equal(a(x, gen(2)), first)
    assert first.shape == x.shape and first.dtype == x.dtype and first.abs().max() <= 1 and torch.isfinite(first).all()
    d = a.draw(8, gen(1))
    part = torch.cat([a(x[k : k + 3], draws={n: v[k : k + 3] for n, v in d.items()}) for k in (0, 3, 6)])
    assert torch.allclose(part, first, atol=1e-5)


def test_each_augmentation_does_its_own_thing(people):
    x, off = people.batch(range(6)).image, dict(flip=0, rotate=0, zoom=0, shift=0, warp=0, colour=0, match=0)
    make = lambda **kw: Augment(**{**off, **kw})
    assert torch.equal(make()(x), x)
    assert torch.allclose(make(flip=1)(x), x.flip(-1), atol=1e-4)
    assert make(flip=0.5).draw(4000, gen(0))["flip"].float().mean() == pytest.approx(0.5, abs=0.03)
    warped, straight = make(warp=0.05).pair(x, gen(0))
    assert torch.allclose(straight, x, atol=1e-5) and (warped - x).abs().mean() > 0.02
    coloured = make(colour=0.3)(x, gen(0))
    edge = lambda v: (v[..., 1:] - v[..., :-1]).sum(1).flatten(1)
    corr = torch.stack([torch.corrcoef(torch.stack(p))[0, 1] for p in zip(edge(coloured), edge(x))])
    assert corr.min() > 0.8 and (coloured - x).abs().mean() > 0.02  # other light, same structure
    for kw in (dict(rotate=30), dict(zoom=0.3), dict(shift=0.2), dict(match=1)):
        assert (make(**kw)(x, gen(0)) - x).abs().mean() > 0.02


def test_rotation_has_the_angle_asked_for():
    a = Augment(flip=0, rotate=90, zoom=0, shift=0, colour=0)
    x = torch.full((1, 3, 33, 33), -1.0)
    x[..., 16, 16:] = 1.0  # a hand that points right
    d = {**a.draw(1), "angle": torch.tensor([torch.pi / 2])}
    out = a(x, draws=d)
    assert torch.allclose(out, torch.rot90(x, 1, (2, 3)), atol=1e-3) or torch.allclose(out, torch.rot90(x, -1, (2, 3)), atol=1e-3)


def test_warp_grid_is_the_identity_for_no_noise_and_does_not_fold_at_the_default():
    assert torch.allclose(data.warp_grid(torch.zeros(2, 2, 5, 5), 16), data.identity_grid(2, 16), atol=1e-6)
    g = data.warp_grid(torch.randn(300, 2, 5, 5, generator=gen(0)) * 0.03, 64)
    dx, dy = g[:, :-1, 1:] - g[:, :-1, :-1], g[:, 1:, :-1] - g[:, :-1, :-1]
    area = dx[..., 0] * dy[..., 1] - dx[..., 1] * dy[..., 0]
    assert (area < 0).flatten(1).any(1).float().mean() < 0.1


# ---- loaders


def indices(loader, k):
    return [b.index.tolist() for b, _ in zip(loader, range(k))]


def test_every_picture_once_an_epoch_and_nothing_dropped(people):
    loader = batches(people, 5, seed=2)
    stream = sum(indices(loader, 64), [])
    assert len(stream) == 320
    for e in range(10):
        assert sorted(stream[e * 32 : e * 32 + 32]) == list(range(32))
    assert stream[:32] != stream[32:64]


@pytest.mark.parametrize("stop", [0, 1, 3, 6, 7, 13])
@pytest.mark.parametrize("kind", ["single", "pairs"])
def test_resume_goes_on_bit_for_bit(people, kind, stop):
    def make():
        if kind == "single":
            return batches(people, 5, seed=4, augment=Augment(warp=0.03))
        return PairLoader(people, 5, same=0.3, seed=4, augment=Augment())

    flat = lambda b: [b.image] if kind == "single" else [b.source.image, b.target.image, b.same]
    unbroken = [flat(b) for b, _ in zip(make(), range(stop + 4))]
    first = make()
    it = iter(first)
    for _ in range(stop):
        next(it)
    state = json.loads(json.dumps(first.state_dict()))
    torch.manual_seed(1234)  # the world has moved on
    second = make()
    second.load_state_dict(state)
    for want, got in zip(unbroken[stop:], second):
        assert all(torch.equal(a, b) for a, b in zip(want, flat(got)))


def test_state_refuses_other_data(people):
    state = batches(people, 4, seed=1).state_dict()
    with pytest.raises(DataError, match="pictures=32 and this one has pictures=8"):
        batches(data.Subset(people, range(8)), 4, seed=1).load_state_dict(state)
    with pytest.raises(DataError, match="seed"):
        batches(people, 4, seed=2).load_state_dict(state)
    smaller = batches(people, 2, seed=1)
    smaller.load_state_dict({**state, "position": 6})  # a batch size that was lowered when memory ran out stays lowered
    assert smaller.batch_size == 4 and smaller.position == 6


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("kind", ["single", "pairs"])
def test_processes_together_see_what_one_sees(people, kind, world):
    def make():
        return batches(people, 6, seed=7, augment=Augment()) if kind == "single" else PairLoader(people, 6, seed=7, augment=Augment())

    whole = [b for b, _ in zip(make(), range(7))]
    parts = [[b for b, _ in zip(make().shard(r, world), range(7))] for r in range(world)]
    woven = lambda xs: torch.stack(list(xs), 1).flatten(0, 1)  # dealt like cards
    for t, want in enumerate(whole):
        pick = (lambda b: b) if kind == "single" else (lambda b: b.source)
        assert woven(pick(p[t]).index for p in parts).tolist() == pick(want).index.tolist()
        assert torch.allclose(woven(pick(p[t]).image for p in parts), pick(want).image, atol=1e-5)
        if kind == "pairs":
            assert woven(p[t].same for p in parts).tolist() == want.same.tolist()
            assert woven(p[t].target.index for p in parts).tolist() == want.target.index.tolist()


def test_prefetch_changes_nothing_but_the_time(people):
    assert indices(batches(people, 5, seed=1, prefetch=3), 20) == indices(batches(people, 5, seed=1), 20)
    loader = batches(people, 5, seed=1, prefetch=3)
    it = iter(loader)
    next(it), next(it)
    assert loader.state_dict()["position"] == 10  # what was handed out, not what was made ahead
    loader.load_state_dict({**loader.state_dict(), "position": 30})
    assert next(it).index.tolist() == loader.indices(30).tolist()  # moved while running
    it.close()


def test_finite_loader_ends_and_begins_again(people):
    loader = batches(people, 12, shuffle=False, epochs=1)
    assert [len(b) for b in loader] == [12, 12, 8] and [len(b) for b in loader] == [12, 12, 8]
    assert len(loader) == 3


def test_an_error_in_a_prefetching_thread_arrives(people):
    faces = data.Faces(["a", "b"], 8)
    faces._pixels = lambda i: (_ for _ in ()).throw(DataError("the disk is gone."))
    with pytest.raises(DataError, match="the disk is gone"):
        next(iter(batches(faces, 2, prefetch=2)))


def test_loader_errors(people):
    with pytest.raises(DataError, match="batch of 0"):
        batches(people, 0)
    with pytest.raises(DataError, match="multiple of the number of processes"):
        batches(people, 5, rank=0, world=2)


# ---- pairs


@pytest.mark.parametrize("same", [0.0, 0.2, 0.5, 0.8, 1.0, 1 / 3])
@pytest.mark.parametrize("size", [1, 4, 7])
def test_the_share_of_same_pairs_is_exact(people, same, size):
    got, dealt = 0, 0
    for b, _ in zip(PairLoader(people, size, same=same, seed=3), range(60)):
        assert torch.equal(b.same, b.source.person == b.target.person)
        got, dealt = got + int(b.same.sum()), dealt + len(b)
        assert abs(got - same * dealt) < 1 + 1e-6


def test_partners_are_fair(people):
    loader = PairLoader(people, 32, seed=0)
    target = torch.arange(32).repeat(600)
    g = gen(0)
    different = loader.partners(target, torch.zeros(len(target), dtype=torch.bool), g)
    assert (people.person[different] != people.person[target]).all()
    assert torch.bincount(different, minlength=32).float().div(600).sub(1).abs().max() < 0.2  # everybody equally often
    same = loader.partners(target, torch.ones(len(target), dtype=torch.bool), g)
    assert (people.person[same] == people.person[target]).all() and (same != target).all()
    assert torch.bincount(same, minlength=32).float().div(600).sub(1).abs().max() < 0.2


def test_each_picture_is_a_target_once_an_epoch(people):
    targets = [b.target.index for b, _ in zip(PairLoader(people, 8, seed=1), range(4))]
    assert sorted(torch.cat(targets).tolist()) == list(range(32))


def test_people_with_one_picture_and_sets_of_one_person(people):
    lone = data.Subset(people, [0, 4, 8, 12])  # one picture of each
    b = next(iter(PairLoader(lone, 4, same=1.0)))
    assert torch.equal(b.source.index, b.target.index) and b.same.all()
    uneven = data.Subset(people, [0, 1, 2, 3, 9])
    for b, _ in zip(PairLoader(uneven, 5, same=0.4, seed=2), range(20)):
        assert int(b.same.sum()) == 2
    one = data.Subset(people, [0, 1, 2])
    assert next(iter(PairLoader(one, 3, same=1.0))).same.all()
    with pytest.raises(DataError, match="one person only"):
        PairLoader(one, 3)
    with pytest.raises(DataError, match="no share"):
        PairLoader(people, 4, same=20)


def test_batches_can_be_cut_and_moved(people):
    b = next(iter(PairLoader(people, 6, seed=0)))
    half = b[:3].to("cpu")
    assert len(half) == 3 and torch.equal(half.target.image, b.target.image[:3]) and torch.equal(half.same, b.same[:3])
    train = pytest.importorskip("deepswap.train")
    parts = train.split_batch(b, 3)
    assert [len(p) for p in parts] == [2, 2, 2] and torch.equal(torch.cat([p.source.image for p in parts]), b.source.image)
    plain = data.Batch(torch.zeros(4, 3, 8, 8), None, None, torch.arange(4))
    assert train.split_batch(plain, 2)[1].index.tolist() == [2, 3] and train.batch_length(plain) == 4


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_batches_and_chances_are_the_same(people):
    faces = ProceduralFaces(8, scenes=4, size=32, seed=1, device="cuda")
    b = faces.batch(range(32))
    assert b.image.is_cuda and faces.store.pixels.is_cuda
    assert (b.image.cpu() - people.batch(range(32)).image).abs().mean() < 0.01
    x, a = people.batch(range(8)).image, Augment(warp=0.03, match=0.5)
    assert (a(x.cuda(), gen(3)).cpu() - a(x, gen(3))).abs().mean() < 0.01
    pairs = next(iter(PairLoader(faces, 8, augment=a)))
    assert pairs.source.image.is_cuda and torch.equal(pairs.same, pairs.source.person == pairs.target.person)


def test_procedural_people_by_description():
    faces = data.open_faces("procedural:smiling,no-hat,n=6,seed=2", 16, scenes=2)
    column = {n: faces.attributes[:, faces.attribute_names.index(n)] for n in ("smiling", "hat")}
    assert len(faces) == 12 and column["smiling"].all() and not column["hat"].any()
    same, elsewhere = (data.procedural_people(f"person=3,n=4,seed={s}") for s in (0, 1))
    assert torch.equal(same.identity.values, elsewhere.identity.values) and torch.equal(same.style.values, elsewhere.style.values)
    assert not torch.equal(same.scene.values, elsewhere.scene.values) and not torch.equal(data.procedural_people("person=4,n=4").identity.values, same.identity.values)
    for spec, what in {"smilling": "no attribute", "n=many": "says nothing", "age=3": "says nothing", "n=0": "at least 1", "bald,curly_hair,n=2": "Only 0 of"}.items():
        with pytest.raises(DataError, match=what):
            data.procedural_people(spec)

def test_numbers_beyond_the_data_are_refused_by_the_whole_and_by_a_part(people):
    part = data.Subset(people, [30, 2, 17])
    for faces, bad in ((people, len(people)), (people, -1), (part, 3), (part, -1)):
        with pytest.raises(DataError, match=f"Picture {bad} was asked"):
            faces.batch([0, bad])
    with pytest.raises(DataError, match="was asked"):
        data.Subset(people, [0, len(people)])


def test_pairs_of_any_kind_stay_of_their_kind(people):
    "What a subclass adds is cut and moved with the rest."

    @data.dataclass
    class Marked(data.Pairs):
        mark: torch.Tensor
        more: torch.Tensor = None

    b = people.batch([0, 1, 2])
    pairs = Marked(b, b, torch.tensor([True, False, True]), torch.arange(3))
    part = pairs[torch.tensor([2, 0])].to("cpu")
    assert type(part) is Marked and len(part) == 2 and part.more is None
    assert part.mark.tolist() == [2, 0] and part.source.index.tolist() == [2, 0] and type(pairs[1:].target) is data.Batch
