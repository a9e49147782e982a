"The three signs: what they say, what they survive, and that nothing is written by halves."

import concurrent.futures
import io
import itertools
import math
import os
import signal
import stat
import subprocess
import sys
import warnings
from datetime import date, timedelta

import numpy as np
import pytest
import torch
from PIL import Image
from solved import all_hold

from deepswap import provenance as p
from deepswap.core import ImageError, OutputError, UsageError, to_pil
from deepswap.people import render, sample_people

LOAD = p.pack_payload("classical", date(2026, 11, 21))


def psnr(a, b):
    d = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    return 20 * math.log10(255 / math.sqrt((d * d).mean()))


def portraits(n, size, seed=0):
    return [to_pil(i) for i in render(sample_people(n, preset="hard", seed=seed), size).image]


@pytest.fixture(scope="module")
def faces():
    torch.set_num_threads(1)
    return portraits(8, 256, seed=900)


@pytest.fixture(scope="module")
def marked(faces):
    return [p.embed_mark(f, LOAD) for f in faces]


# ---- the invisible mark

def test_mark_is_faint(faces, marked):
    assert all(38.5 < psnr(a, b) < 48 for a, b in zip(faces, marked))


@pytest.mark.parametrize("kind,amount", [("jpeg", 95), ("jpeg", 75), ("jpeg", 50), ("resize", 0.5), ("resize", 0.75), ("resize", 1.5),
                                         ("crop", 0.05), ("crop", 0.1), ("crop", 0.2), ("blur", 1), ("noise", 5), ("mirror", 0)])
def test_mark_survives(marked, kind, amount):
    read = [p.detect_mark(p.damage(m, kind, amount, i)) for i, m in enumerate(marked)]
    assert all(r.found for r in read), [round(r.score, 1) for r in read]
    if kind in ("jpeg", "blur", "mirror"): assert all(r.payload == LOAD and r.intact and r.method == "classical" for r in read)
    assert all(r.mirrored == (kind == "mirror") for r in read)


def test_unmarked_pictures_are_not_accused(faces):
    dice = np.random.default_rng(0)
    odd = [Image.new("RGB", (300, 200), "white"), Image.new("RGB", (64, 64)), Image.fromarray(dice.integers(0, 256, (256, 256, 3), dtype=np.uint8)),
           Image.fromarray(np.kron(np.indices((32, 32)).sum(0) % 2, np.ones((8, 8))).astype(np.uint8) * 255).convert("RGB"), Image.new("RGB", (1, 1)), Image.new("RGB", (500, 3))]
    scores = [p.detect_mark(i) for i in [*faces, *odd]]
    assert not any(s.found for s in scores)
    assert max(s.score for s in scores) < 7.5


def test_threshold_bounds_chance():
    "Random phases in place of a picture: the share of single scores over t stays below exp(-t^2 / 2), and is not far from a Gaussian's."
    c = p.comb()
    g = torch.Generator().manual_seed(0)
    turns = torch.polar(torch.ones(60, len(c.sync)), 2 * math.pi * torch.rand(60, len(c.sync), generator=g))
    z = p._shift_scores(turns.to(torch.complex64), c).flatten()
    assert abs(z.mean()) < 0.02 and abs(z.var() - 1) < 0.05
    for t in (2.0, 3.0, 4.0):
        share = (z > t).double().mean().item()
        assert 0.3 * 0.5 * math.erfc(t / 2**0.5) < share < math.exp(-t * t / 2)
    assert p.mark_threshold(1e-9) > p.mark_threshold(1e-6) > 7


def test_key_matters(marked):
    assert not p.detect_mark(marked[0], key="another").found
    other = p.embed_mark(portraits(1, 256, 5)[0], LOAD, key="another")
    assert p.detect_mark(other, key="another").found and not p.detect_mark(other).found


def test_mark_is_the_same_on_every_machine():
    "The teeth and phases are part of the format: a change here makes older pictures unreadable."
    c = p.comb()
    assert len(c.waves) == 828
    assert c.sync[:4].tolist() == SYNC and c.waves[0].tolist() == WAVE
    assert np.allclose(c.phases[:3], PHASES, atol=1e-6)


SYNC, WAVE, PHASES = [565, 508, 117, 769], [0, 10], [4.6568182, 3.5211364, 2.095547]


@pytest.mark.parametrize("size", [(640, 360), (200, 333), (1500, 1000)])
def test_any_shape(size):
    x = portraits(1, 256, 77)[0].resize(size, Image.Resampling.BICUBIC)
    m = p.embed_mark(x, LOAD)
    assert m.size == size
    r = p.detect_mark(p.damage(m, "jpeg", 75))
    assert r.found and abs(r.unit / p.natural_unit(size[1], size[0]) - 1) < 0.01


@pytest.mark.parametrize("size", [(1, 1), (3, 500), (16, 16), (40, 30)])
def test_tiny_pictures_do_not_break(size):
    m = p.embed_mark(Image.new("RGB", size, (120, 80, 60)), LOAD)
    assert m.size == size
    p.detect_mark(m)


def votes_for(payload, strength=5.0):
    return torch.tensor([strength if payload >> i & 1 else -strength for i in range(32)], dtype=torch.float64)


@pytest.mark.parametrize("wrong", [(0,), (31,), (4, 19), (12, 30)])
def test_unsure_bits_are_mended_and_sure_ones_are_not(wrong):
    votes = votes_for(LOAD)
    for i in wrong: votes[i] *= -0.05
    assert p.decode_payload(votes) == LOAD
    votes = votes_for(LOAD) + torch.linspace(0, 1, 32, dtype=torch.float64) * votes_for(LOAD).sign()
    votes[25 if wrong[-1] < 25 else 26] *= -3  # a loud wrong bit is not among the weak ones
    assert p.unpack_payload(p.decode_payload(votes)) is None


def test_a_day_to_come_is_not_read_into_a_damaged_payload():
    future = p.pack_payload("classical", date.today() + timedelta(days=30))
    votes = votes_for(future)
    assert p.decode_payload(votes) == future  # as voted: whatever it says
    votes[3] *= -0.05
    assert p.decode_payload(votes) != future


def test_noise_is_no_payload():
    noise = torch.randn(4000, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert sum(p.unpack_payload(p.decode_payload(v)) is not None for v in noise) < 40  # 4000 / 256 = 16 pass an 8-bit checksum by themselves


def test_payload():
    assert p.unpack_payload(LOAD) == ("classical", "2026-11-21")
    assert p.unpack_payload(p.pack_payload("new method", date(2020, 1, 1))) == ("other", "2025-01-01")
    assert p.unpack_payload(0) is None
    for n in (1, 2, 3): # up to three wrong bits never pass
        assert not any(p.unpack_payload(LOAD ^ sum(1 << i for i in bits)) for bits in itertools.combinations(range(32), n))


# ---- the visible label

@pytest.mark.parametrize("place", p.PLACES)
def test_label_stands_where_it_should(place):
    grey = Image.new("RGB", (400, 300), (128, 128, 128))
    changed = np.asarray(p.add_label(grey, place)).astype(int) != 128
    ys, xs = np.nonzero(changed.any(-1))
    assert (ys.min() > 250) if "top" not in place else (ys.max() < 50)
    if place.endswith("right"): assert xs.min() > 150 and xs.max() == 399
    if place.endswith("left"): assert xs.max() < 250 and xs.min() == 0
    if place == "strip": assert xs.min() == 0 and xs.max() == 399
    assert np.asarray(grey).min() == 128  # the picture given stays as it was


@pytest.mark.parametrize("size", [(32, 16), (33, 900), (100, 40), (192, 192), (4000, 3000)])
@pytest.mark.parametrize("ground", [0, 255])
def test_label_is_legible(size, ground):
    a = np.asarray(p.add_label(Image.new("RGB", size, (ground,) * 3))).astype(int)
    assert a.max() > 220 and a.min() < 80 or ground == 0 and a.max() > 220


def test_label_refuses():
    with pytest.raises(OutputError, match="too small"): p.add_label(Image.new("RGB", (20, 8)))
    with pytest.raises(UsageError, match="choose one of bottom-right"): p.add_label(Image.new("RGB", (99, 99)), "center")


# ---- Content Credentials

def test_key_is_made_once_and_private(tmp_path, monkeypatch):
    monkeypatch.setenv("DEEPSWAP_CACHE", str(tmp_path / "new" / "cache"))
    assert p._signer_pem(make=False) == (None, None)
    first = p._signer_pem()
    assert p._signer_pem() == first
    file = tmp_path / "new" / "cache" / "credentials" / "signer.pem"
    if os.name == "posix": assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [f.name for f in file.parent.iterdir()] == ["signer.pem"]


def test_key_made_by_many_threads_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("DEEPSWAP_CACHE", str(tmp_path))
    with concurrent.futures.ThreadPoolExecutor(8) as pool: keys = set(pool.map(lambda _: p._signer_pem(), range(8)))
    assert len(keys) == 1 and [f.name for f in (tmp_path / "credentials").iterdir()] == ["signer.pem"]


def test_key_made_by_two_processes_at_once(tmp_path):
    code = "from deepswap.provenance import _signer_pem; import hashlib; print(hashlib.sha256(b''.join(_signer_pem())).hexdigest())"
    env = {**os.environ, "DEEPSWAP_CACHE": str(tmp_path), "OMP_NUM_THREADS": "1"}
    runs = [subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert len({r.communicate(timeout=120)[0] for r in runs}) == 1


def test_unusable_cache_is_one_sentence(tmp_path, monkeypatch, faces):
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("DEEPSWAP_CACHE", str(tmp_path / "file"))
    with pytest.raises(OutputError) as e: p.stamp(faces[0], tmp_path / "out.png")
    assert "DEEPSWAP_CACHE" in str(e.value) and "\n" not in str(e.value)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["file"]
    assert not p.inspect(png(faces[0])).ours  # reading needs no key


@pytest.mark.parametrize("damaged", [b"", b"-----BEGIN PRIVATE KEY-----\nxx\n-----END PRIVATE KEY-----\n" + b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n" * 2])
def test_damaged_key_is_one_sentence(tmp_path, monkeypatch, faces, damaged):
    monkeypatch.setenv("DEEPSWAP_CACHE", str(tmp_path))
    p._signer_pem()
    (tmp_path / "credentials" / "signer.pem").write_bytes(damaged)
    with pytest.raises(OutputError, match="delete"): p.stamp(faces[0], tmp_path / "out.png", mark=True)
    assert not (tmp_path / "out.png").exists()


def png(image, **kw):
    b = io.BytesIO()
    image.save(b, kw.pop("format", "PNG"), **kw)
    return b.getvalue()


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.jpeg", "A.PNG"])
def test_stamp_and_inspect(tmp_path, faces, name):
    out = p.stamp(faces[0], tmp_path / name, method="classical", place="top-left")
    i = p.inspect(out)
    assert i.ours and not i.altered and i.mark.found and i.mark.method == "classical"
    c = i.credentials
    assert (c.valid, c.ours, c.this_computer, c.method, c.label, c.kind) == (True, True, True, "classical", "top-left", "compositeSynthetic")
    assert c.made_by.startswith("deepswap ") and c.when[:2] == "20" and not c.problems
    assert Image.open(out).format == ("PNG" if name.lower().endswith("png") else "JPEG")
    assert [f.name for f in tmp_path.iterdir()] == [name]
    assert i.summary.startswith("Made with deepswap") and "Not proven" in i.summary


def test_another_computers_key(tmp_path, monkeypatch, faces):
    out = p.stamp(faces[0], tmp_path / "a.png")
    monkeypatch.setenv("DEEPSWAP_CACHE", str(tmp_path / "elsewhere"))
    for _ in range(2):  # without a key of its own, and with one
        c = p.inspect(out).credentials
        assert c.valid and c.ours and not c.this_computer
        p._signer_pem()


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_altered_file_is_caught(tmp_path, faces, name):
    data = bytearray(p.stamp(faces[0], tmp_path / name).read_bytes())
    data[-3000] ^= 1
    c = p.read_credentials(bytes(data))
    assert not c.valid and not c.ours and c.altered and any("mismatch" in x for x in c.problems)


def test_mark_outlives_the_credentials(tmp_path, faces):
    out = p.stamp(faces[0], tmp_path / "a.png", method="classical")
    i = p.inspect(png(p.damage(Image.open(out), "crop", 0.1), format="JPEG", quality=70))
    assert i.ours and i.credentials is None and i.mark.found and i.altered


def test_credentials_of_others_are_not_ours(faces):
    claim = p.manifest("classical")
    claim["claim_generator_info"] = [{"name": "another program", "version": "9"}]
    out = io.BytesIO()
    p._copy_signed(io.BytesIO(png(faces[0])), "image/png", out, claim)
    i = p.inspect(out)
    assert i.credentials.valid and not i.credentials.ours and not i.ours and "not by deepswap" in i.summary


def test_sources_are_kept_without_their_names(tmp_path, faces):
    import c2pa
    faces[1].save(tmp_path / "Jane Doe.jpg")
    out = p.stamp(faces[0], tmp_path / "a.png", sources=[tmp_path / "Jane Doe.jpg"])
    text = c2pa.Reader("image/png", io.BytesIO(out.read_bytes())).json()
    assert "source 1" in text and "componentOf" in text and "Jane" not in text
    assert p.inspect(out).credentials.valid
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "Jane Doe.jpg").read_bytes()[:200])  # a damaged source does not stop the result
    assert p.inspect(p.stamp(faces[0], tmp_path / "b.png", sources=[tmp_path / "cut.jpg"])).credentials.valid


def test_inspect_takes_many_kinds(tmp_path, marked):
    marked[0].save(tmp_path / "a.png")
    p.sign_file(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    for source in (tmp_path / "a.png", str(tmp_path / "a.png"), data, bytearray(data), io.BytesIO(data)): assert p.inspect(source).credentials.ours
    for source in (marked[0], np.asarray(marked[0])):
        i = p.inspect(source)
        assert i.ours and i.credentials is None


def test_signs_are_not_dropped_silently(tmp_path, faces):
    with pytest.warns(UserWarning, match="without the visible label"): out = p.stamp(faces[0], tmp_path / "a.png", label=False)
    assert p.read_credentials(out.read_bytes()).label == "left out on request"
    with pytest.warns(UserWarning, match="Content Credentials"): out = p.stamp(faces[0], tmp_path / "b.png", credentials=False)
    i = p.inspect(out)
    assert i.ours and i.credentials is None
    with pytest.raises(UsageError, match="at least one"): p.stamp(faces[0], tmp_path / "c.png", label=False, mark=False, credentials=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        p.stamp(faces[0], tmp_path / "d.png")


@pytest.mark.parametrize("name,match", [("a.gif", "neither .png nor .jpg"), ("a", "neither"), ("no/a.png", "does not exist"), (".", "neither|folder")])
def test_stamp_refuses(tmp_path, faces, name, match):
    with pytest.raises(OutputError, match=match): p.stamp(faces[0], tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_failed_stamp_leaves_the_old_file(tmp_path, faces, monkeypatch):
    out = tmp_path / "a.png"
    out.write_bytes(b"precious")
    monkeypatch.setattr(p.os, "replace", lambda *a: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OutputError, match="disk is full"): p.stamp(faces[0], out)
    assert out.read_bytes() == b"precious" and [f.name for f in tmp_path.iterdir()] == ["a.png"]


def test_sign_file(tmp_path, faces):
    faces[0].save(tmp_path / "a.png")
    (tmp_path / "b.png").write_text("no picture")
    faces[0].save(tmp_path / "c.webp")
    assert p.read_credentials(p.sign_file(tmp_path / "a.png", tmp_path / "d.png", method="faceshifter").read_bytes()).kind == "compositeWithTrainedAlgorithmicMedia"
    assert p.read_credentials((tmp_path / "a.png").read_bytes()) is None
    with pytest.raises(ImageError): p.sign_file(tmp_path / "b.png")
    with pytest.raises(OutputError, match="neither PNG nor JPEG"): p.sign_file(tmp_path / "c.webp")


def test_takes_tensors(tmp_path):
    x = render(sample_people(1, seed=4), 128).image[0]
    assert p.inspect(p.stamp(x, tmp_path / "a.jpg")).credentials.ours


# ---- video

def people_clip(n=24, size=192, seed=0):
    "A computed person who talks and looks about: uint8 (N, H, W, 3)."
    from deepswap.people import People, scene_path
    one = sample_people(1, preset="easy", seed=seed)
    frames = render(People(one.identity.repeat(n), one.style.repeat(n), scene_path(n, seed, base=one.scene)), size).image
    return ((frames.permute(0, 2, 3, 1) + 1) * 127.5).round().clamp(0, 255).byte().numpy()


def write_clip(path, frames, codec="libx264", crf=23, scale=1.0, rate=25):
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as c:
        s = c.add_stream(codec, rate=rate)
        s.width, s.height, s.pix_fmt = round(frames.shape[2] * scale) // 2 * 2, round(frames.shape[1] * scale) // 2 * 2, "yuv420p"
        if codec == "libx264": s.options = {"crf": str(crf)}
        else: s.bit_rate = 4_000_000
        for f in frames: c.mux(s.encode(av.VideoFrame.from_ndarray(f, format="rgb24").reformat(s.width, s.height, "yuv420p", interpolation="BICUBIC")))
        c.mux(s.encode(None))
    return path


class CtrlC(io.BytesIO):
    "A picture during whose signing somebody presses Ctrl-C: the native code reads it through a callback."
    pressed = False

    def readinto(self, buffer):
        if not self.pressed: signal.raise_signal(signal.SIGINT)
        self.pressed = True
        return super().readinto(buffer)


def test_ctrl_c_while_signing_or_reading_is_not_lost(faces):
    data = io.BytesIO()
    faces[0].save(data, "PNG")
    source, signed, before = CtrlC(data.getvalue()), io.BytesIO(), signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        p._copy_signed(source, "image/png", signed, p.manifest("classical"))
    with pytest.raises(KeyboardInterrupt):
        p.read_credentials(CtrlC(signed.getvalue()))
    assert source.pressed and signal.getsignal(signal.SIGINT) is before and p.read_credentials(signed).method == "classical"


@pytest.fixture(scope="module")
def clip():
    torch.set_num_threads(1)
    return people_clip(40, 288, seed=5)


@pytest.fixture(scope="module")
def marked_clip(clip):
    return p.FrameMark(*clip.shape[1:3], p.pack_payload("faceswap", date(2026, 11, 21))).embed(clip)


def test_frame_mark_is_faint_steady_and_read_from_one_frame(clip, marked_clip):
    assert all(38.5 < psnr(a, b) < 48 for a, b in zip(clip, marked_clip))
    change = marked_clip[..., 0].astype(float) - clip[..., 0]
    assert np.abs(np.diff(change, axis=0)).mean() < 0.15 * np.abs(change).mean(), "the mark must stand still, not crawl"
    loose = np.stack([np.asarray(p.embed_mark(f)) for f in clip[:8]]).astype(float)[..., 0] - clip[:8, ..., 0]
    assert np.abs(np.diff(change, axis=0)).mean() < 0.5 * np.abs(np.diff(loose, axis=0)).mean(), "embed_mark on each frame crawls more"
    for f in (marked_clip[0], marked_clip[-1]):
        r = p.detect_mark(f)
        assert r.intact and r.method == "faceswap" and r.frames == 1


def test_frame_mark_does_not_depend_on_batches_and_resumes(clip):
    make = lambda: p.FrameMark(*clip.shape[1:3], LOAD, every=10)
    whole = make().embed(clip[:30])
    parts, mark, fresh = [], make(), make()
    for a, b in ((0, 1), (1, 4), (4, 17), (17, 30)): parts.append(mark.embed(clip[a:b]))
    assert np.array_equal(whole, np.concatenate(parts))
    told = make()
    told.listen(clip[0])  # by hand, as `embed` does by itself
    assert np.array_equal(told.embed(clip[:10]), whole[:10])
    first = make()
    first.embed(clip[:17])
    import json
    fresh.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert np.array_equal(fresh.embed(clip[17:30]), whole[17:])
    assert torch.equal(make().embed(torch.from_numpy(clip[:30])), torch.from_numpy(whole))  # tensors in, tensors out


def test_frame_mark_listens_again_in_a_new_shot(clip, monkeypatch):
    other = np.ascontiguousarray(255 - clip)
    heard = []
    listen = p.FrameMark.listen
    monkeypatch.setattr(p.FrameMark, "listen", lambda self, f: (heard.append(f), listen(self, f))[1])
    mark = p.FrameMark(*clip.shape[1:3], LOAD)
    mark.embed(np.concatenate([clip[:20], other[:20]]))
    assert len(heard) == 2 and np.array_equal(heard[0], clip[0]) and np.array_equal(heard[1], other[0])
    heard.clear()
    p.FrameMark(*clip.shape[1:3], LOAD).embed(np.concatenate([c[None] for pair in zip(clip[:20], other[:20]) for c in pair]))
    assert len(heard) <= 4, "a strobe light must not make it listen to each frame"


def test_frame_mark_is_quick(clip):
    mark = p.FrameMark(*clip.shape[1:3], LOAD)
    mark.embed(clip[:1])
    quick = min(timed(lambda: mark.embed(clip)) for _ in range(2)) / len(clip)
    slow = min(timed(lambda: p.embed_mark(clip[0], LOAD)) for _ in range(2))
    assert slow / quick > 6, (slow, quick)


def timed(f):
    import time
    start = time.perf_counter()
    f()
    return time.perf_counter() - start


@pytest.mark.parametrize("bad", [np.zeros((2, 30, 40, 3), np.float32), np.zeros((2, 31, 40, 3), np.uint8), np.zeros((30, 40, 3), np.uint8)])
def test_frame_mark_refuses(bad):
    with pytest.raises(UsageError, match="give uint8 of shape"): p.FrameMark(30, 40).embed(bad)


@pytest.mark.parametrize("crf,scale,first,n", [(18, 1, 0, 4), (23, 1, 0, 24), (28, 1, 0, 24), (18, 0.5, 0, 24), (23, 1, 25, 12)])
def test_frame_mark_survives_compression(tmp_path, marked_clip, crf, scale, first, n):
    path = write_clip(tmp_path / "a.mp4", marked_clip[first:], crf=crf, scale=scale)
    r = p.detect_mark_frames(p.clip_frames(path, n))
    assert r.found and r.frames == n and r.method == "faceswap", r


def test_averaging_beats_the_best_frame(tmp_path, marked_clip):
    "The chapter's exercise 5."
    path = write_clip(tmp_path / "a.mp4", marked_clip, crf=28)
    alone = max(p.detect_mark(f).score for f in p.clip_frames(path, 8))
    assert p.detect_mark_frames(p.clip_frames(path, 8)).score > alone
    assert round(p.mark_threshold(1e-6 / 24), 2) == 8.21 and round(p.mark_threshold(), 2) == 7.81


def test_unmarked_clips_are_not_accused(tmp_path, clip):
    dice = np.random.default_rng(1)
    still, noise = np.repeat(clip[:1], 12, 0), dice.integers(0, 256, (12, 192, 192, 3), dtype=np.uint8)
    bars = np.repeat(np.kron(np.indices((24, 24)).sum(0) % 2, np.ones((8, 8)))[None, ..., None].astype(np.uint8) * 255, 12, 0).repeat(3, -1)
    for name, frames in (("clip", clip), ("still", still), ("noise", noise), ("bars", bars)):
        r = p.inspect(write_clip(tmp_path / f"{name}.mp4", frames))
        assert not r.ours and r.mark.score < 7.5, (name, r.mark.score)


def test_real_clips(tmp_path, shared):
    "Unmarked they are not accused; marked and compressed they are found, at half size too."
    clips = sorted((shared / "data/video").glob("*.mpg"))
    assert len(clips) >= 6
    for f in clips: assert not p.inspect(f).ours
    for f in clips[:2]:
        frames = np.stack([np.asarray(i) for i in p.clip_frames(f, 40)])
        marked = p.FrameMark(*frames.shape[1:3], p.pack_payload("faceswap")).embed(frames)
        for crf, scale, read in ((28, 1, False), (23, 1, True), (18, 0.5, True)):  # at crf 28 the mark is found, its content not always
            r = p.inspect(write_clip(tmp_path / "a.mp4", marked, crf=crf, scale=scale))
            assert r.ours and (r.mark.method == "faceswap" or not read), (f.name, crf, scale, r.mark)
    assert not p.inspect(shared / "data/video/intel_female.gif").ours


@pytest.mark.parametrize("place", p.PLACES)
def test_label_frames_is_add_label(clip, place):
    before = clip[:3].copy()
    after = p.label_frames(before.copy(), place)
    for a, b in zip(before, after): assert np.abs(np.asarray(p.add_label(a, place)).astype(int) - b).max() <= 1
    given = before.copy()
    assert p.label_frames(given, place) is given and (given != before).any()


def test_clip_frames_are_spread_over_the_clip(tmp_path):
    "Also where the gaps are long enough to jump over, and where the first key frame is the only one."
    grey = np.repeat(np.arange(0, 240, 2, dtype=np.uint8)[:, None, None, None], 64, 1).repeat(64, 2).repeat(3, 3)
    for rate in (25, 2):  # 5 seconds, a minute
        path = write_clip(tmp_path / f"{rate}.mp4", grey, crf=5, rate=rate)
        seen = [np.asarray(i).mean() / 2 for i in p.clip_frames(path, 10)]
        assert np.allclose(seen, np.arange(10) * 12 + 5.5, atol=3), seen
    assert len(list(p.clip_frames(path, 500))) == 120
    assert len(list(p.clip_frames(path.read_bytes(), 4))) == len(list(p.clip_frames(open(path, "rb"), 4))) == 4


def test_broken_clips(tmp_path, clip):
    good = write_clip(tmp_path / "a.avi", clip, "mpeg4")
    data = good.read_bytes()
    (tmp_path / "cut.avi").write_bytes(data[: len(data) // 2])
    assert 1 <= len(list(p.clip_frames(tmp_path / "cut.avi", 500))) < len(clip)  # what came before the break
    (tmp_path / "head.mp4").write_bytes(write_clip(tmp_path / "b.mp4", clip[:5]).read_bytes()[:60])
    for name in ("head.mp4", "missing.mp4"):
        with pytest.raises((p.DataError, ImageError)) as e: p.inspect(tmp_path / name)
        assert "\n" not in str(e.value) and name in str(e.value)
    with pytest.raises(p.DataError, match="at least one"): p.detect_mark_frames([])
    r = p.detect_mark_frames([Image.new("RGB", (64, 64)), Image.new("RGB", (65, 64))])
    assert r.frames == 1


# ---- signed videos

@pytest.mark.parametrize("name,codec", [("a.mp4", "libx264"), ("a.mov", "libx264"), ("a.m4v", "libx264"), ("a.avi", "mpeg4")])
def test_signed_video(tmp_path, marked_clip, name, codec, monkeypatch):
    frames = p.label_frames(marked_clip[:12].copy())
    plain = write_clip(tmp_path / name, frames, codec)
    assert p.read_credentials(plain) is None
    def never(*a): raise AssertionError("the whole file was read into memory")
    monkeypatch.setattr(p.Path, "read_bytes", lambda self: never() if self.suffix == plain.suffix else open(self, "rb").read())
    out = p.stamp_video(plain, tmp_path / f"out{plain.suffix}", "faceswap", [plain])
    i = p.inspect(out)
    assert i.what == "video" and i.ours and not i.altered and i.mark.method == "faceswap" and "this video is synthetic" in i.summary
    c = i.credentials
    assert (c.valid, c.ours, c.this_computer, c.method, c.label, c.kind) == (True, True, True, "faceswap", "bottom-right", "compositeWithTrainedAlgorithmicMedia")
    same = lambda path: np.stack([np.asarray(f) for f in p.clip_frames(path, 99)])
    assert np.array_equal(same(plain), same(out)), "signing must not touch the pictures"
    monkeypatch.undo()
    data = bytearray(out.read_bytes())
    where = data.find(b"mdat") + 400 if codec == "libx264" else data.find(b"movi") + 400
    data[where] ^= 1
    i = p.inspect(bytes(data))
    assert i.altered and not i.credentials.valid and "altered after it was signed" in i.summary
    assert p.inspect(io.BytesIO(out.read_bytes())).credentials.ours  # an open file, too


def test_video_signs_are_not_dropped_silently(tmp_path, clip):
    plain = write_clip(tmp_path / "a.mp4", clip[:5])
    with pytest.warns(UserWarning, match="the visible label and the invisible mark"): out = p.stamp_video(plain, tmp_path / "b.mp4", label="", mark=False)
    assert p.read_credentials(out).label == "left out on request"


def test_sign_video_refuses(tmp_path, clip, monkeypatch):
    plain = write_clip(tmp_path / "a.mp4", clip[:5])
    before = plain.read_bytes()
    write_clip(tmp_path / "c.mkv", clip[:5])
    (tmp_path / "text.mp4").write_text("no clip at all")
    with pytest.raises(OutputError, match="ends in none of"): p.stamp_video(plain, tmp_path / "b.webm")
    with pytest.raises(OutputError, match="neither PNG nor JPEG, MP4"): p.sign_file(tmp_path / "c.mkv")
    with pytest.raises(ImageError): p.sign_file(tmp_path / "text.mp4")
    with pytest.raises(OutputError, match="does not exist"): p.stamp_video(plain, tmp_path / "no/b.mp4")
    import shutil
    full = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(p.shutil, "disk_usage", lambda path: full)
    with pytest.raises(OutputError, match="MB of room"): p.stamp_video(plain, tmp_path / "b.mp4")
    monkeypatch.undo()
    monkeypatch.setattr(p.os, "replace", lambda *a: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OutputError, match="disk is full"): p.stamp_video(plain, plain)
    assert plain.read_bytes() == before and sorted(f.name for f in tmp_path.iterdir()) == ["a.mp4", "c.mkv", "text.mp4"]


# ---- bad input and real photos

def test_inspect_bad_files(tmp_path, shared):
    (tmp_path / "t.png").write_text("text")
    good = 0
    for f in [tmp_path, tmp_path / "missing.png", tmp_path / "t.png", *sorted((shared / "data/stills/malformed").iterdir())]:
        try: assert not p.inspect(f).ours; good += 1
        except ImageError as e: assert "\n" not in str(e) and len(str(e)) > 20
    assert good >= 8  # those that are sound pictures in odd formats


def test_real_photos(tmp_path, shared):
    photos = [f for folder in ("neutral", "smiling") for f in sorted((shared / "data/london" / folder).glob("*.jpg"))[:4]]
    for f in photos:
        assert not p.inspect(f).ours
        out = p.stamp(Image.open(f), tmp_path / f"{f.stem}.jpg", method="classical")
        small = p.damage(p.damage(Image.open(out), "resize", 0.5), "crop", 0.2)
        i = p.inspect(png(small, format="JPEG", quality=75))
        assert i.ours and i.mark.intact


def test_nothing_found_in_real_pictures(shared):
    files = sorted((shared / "data/stills/noface").iterdir()) + sorted((shared / "data/stills/face").iterdir())
    scores = [p.detect_mark(f).score for f in files]
    assert max(scores) < p.mark_threshold()


def test_exercises_take_the_solutions_and_no_wrong_answer():
    names = {**vars(p), "faces": [to_pil(x) for x in render(sample_people(4, preset="hard", seed=21), 256).image]}
    names["psnr"] = lambda a, b: 10 * math.log10(255**2 / np.square(np.asarray(a, float) - np.asarray(b, float)).mean())
    chance = lambda x: float(torch.special.ndtr(torch.tensor(float(x))))
    mark = lambda image, **more: p.embed_mark(image, 0xC0FFEE, **more)
    all_hold("53_provenance", names, {
        "finds_it_turned": [lambda c, degrees: c],
        "all_bits_right": [lambda bits, waves, m: chance(m * waves**0.5), lambda bits, waves, m: chance(m) ** bits],
        "best_by_chance": [lambda m: math.sqrt(2 * math.log(m)), lambda m: 3.93],
        "holds_both": [lambda image, key: mark(image, key=key), lambda image, key: mark(image), lambda image, key: mark(mark(image, psnr=32.0), psnr=32.0, key=key)],
        "fools_no_more": [lambda frames, alpha: p.mark_threshold(alpha), lambda frames, alpha: p.mark_threshold(alpha * frames)]})  # fmt: skip
