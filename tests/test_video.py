"Video in, video out: sound, times, choices, resume, and what bad input gets."

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from fractions import Fraction
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from PIL import Image
from solved import all_hold

import deepswap.video as module
from deepswap.autoencoder import AutoencoderSwap, PairSwapper
from deepswap.faceshifter import FaceShifter, FaceShifterSwapper
from deepswap.core import DataError, DeepswapError, ImageError, NoFaceError, OutputError, UsageError, to_pil, write_image
from deepswap.people import People, render, sample_people, scene_path
from deepswap.provenance import inspect
from deepswap.swap import open_photo
from deepswap.video import Cast, Clip, ClipWriter, ColorMatch, Stage, Steady, flicker, swap_video, write_clip

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore:This result goes out")]
SIDE = 160


def tint(source, target, source_landmarks=None, target_landmarks=None):
    "A swapper that is quick and easy to see: the negative, in a square."
    mask = torch.zeros_like(target[:, :1])
    mask[..., 16:48, 16:48] = 1
    return -target, mask


tint.size = 64


def actor(n, person=0, size=SIDE, **scene):
    "Somebody talks: n frames as Pillow pictures."
    p = sample_people(2, "easy", seed=11)
    p.style = p.style.replace(glasses=0.0, fringe=0.0, hat=0.0)
    path = scene_path(n, seed=3, base=p.scene[0]).replace(**{"zoom": 0.6, **scene})
    return to_pil(render(People(p.identity[person].repeat(n), p.style[person].repeat(n), path, torch.zeros(n)), size).image)


def wall(n, size=SIDE):
    "Nobody is there."
    return [Image.new("RGB", (size, size), (40 + i % 3, 120, 120)) for i in range(n)]


@pytest.fixture(scope="module")
def frames():
    return actor(24)


@pytest.fixture(scope="module")
def clip(frames, tmp_path_factory):
    return write_clip(frames, tmp_path_factory.mktemp("clips") / "actor.mp4")


@pytest.fixture(scope="module")
def source():
    return open_photo(actor(2, 1, 200)[0])


def packets(path, kind):
    "(payload, time in seconds) of each packet, in the order in which it is shown."
    with av.open(str(path)) as file:
        streams = getattr(file.streams, kind)
        return sorted(((bytes(p), p.pts * p.time_base) for p in file.demux(streams) if p.size), key=lambda p: p[1]) if streams else []


def raw_sound(path): return b"".join(b for b, _ in packets(path, "audio"))


def times(path): return [t for _, t in packets(path, "video")]


def pixels(path):
    with av.open(str(path)) as file:
        return [f.to_ndarray(format="rgb24") for f in file.decode(video=0)]


def swap(source, clip, out, swapper=tint, **kw):
    return swap_video(source, clip, out, swapper, **{"mark": False, "segment": 10, **kw})


def difference(a, b): return np.abs(np.asarray(a).astype(int) - np.asarray(b).astype(int)).mean()


def changed(a, b):
    "Share of pixels that are another colour altogether."
    return (np.abs(np.asarray(a).astype(int) - np.asarray(b).astype(int)).max(-1) > 60).mean()


def elsewhere(a, b):
    "How far two pictures differ above the face, in means of 4 x 4 pixels."
    return difference(*(np.asarray(x)[:40].reshape(10, 4, -1, 4, 3).mean((1, 3)) for x in (a, b)))


# ---- the plain case ----

def test_a_clip_with_its_sound(clip, source, frames, tmp_path):
    told, before = [], hashlib.sha256(clip.read_bytes()).digest()
    r = swap(source, clip, tmp_path / "out.mp4", progress=lambda f, t: told.append((f, t)))
    assert (r.frames, r.swapped, r.resumed, r.note) == (24, 24, 0, "") and r.fps > 0
    assert packets(r.path, "audio") == packets(clip, "audio") and len(packets(clip, "audio")) > 30
    assert times(r.path) == times(clip)
    fractions = [f for f, _ in told]
    assert fractions == sorted(fractions) and fractions[-1] == 1.0 and "of 24 frames" in told[3][1] and "left" in told[3][1]
    assert set(r.stages) == {"decode", "find", "swap", "blend", "encode"} and all(v >= 0 for v in r.stages.values())
    assert [p.name for p in tmp_path.iterdir()] == ["out.mp4"], "the work folder is gone"
    assert hashlib.sha256(clip.read_bytes()).digest() == before
    assert 0.01 < changed(pixels(r.path)[12], frames[12]) < 0.3, "the face changed, and little else"


def test_a_result_says_that_it_is_synthetic(clip, source, tmp_path):
    photo = write_image(source.image, tmp_path / "source.png")
    r = swap_video(photo, clip, tmp_path / "out.mp4", "classical", segment=10)
    found = inspect(r.path)
    assert found.ours and found.credentials.valid and found.credentials.method == "classical" and found.credentials.label == "bottom-right"
    assert found.mark.found and found.mark.method == "classical"
    corner = pixels(r.path)[5][-12:, -60:]
    assert corner.min() < 60 and corner.max() > 200, "the label: light letters on a dark plate"
    assert 0.5 < difference(pixels(r.path)[5], pixels(clip)[5]) < 12


# ---- what a file may be like ----

def film(path, frames, codec="libx264", pix_fmt="yuv420p", sound="aac", rate=25, turn=0, hertz=44100, **tags):
    "A clip of any kind: container by suffix."
    with av.open(str(path), "w") as file:
        v = file.add_stream(codec, rate=rate)
        v.height, v.width = np.asarray(frames[0]).shape[:2]
        v.pix_fmt = pix_fmt
        if turn: v.set_display_rotation(turn)
        for k, x in tags.items(): setattr(v.codec_context, k, x)
        s = file.add_stream(sound, rate=hertz) if sound else None
        for i, picture in enumerate(frames):
            f = av.VideoFrame.from_ndarray(np.ascontiguousarray(np.asarray(picture)), format="rgb24")
            f = f.reformat(format=pix_fmt, dst_colorspace=tags.get("colorspace"), dst_color_range=tags.get("color_range")) if tags else f
            f.pts, f.time_base = i, Fraction(1, rate)
            file.mux(v.encode(f))
        file.mux(v.encode(None))
        if s: module._tone(file, s, len(frames) / rate, 440)
    return path


CONTAINERS = {"m.mkv": {}, "a.avi": dict(codec="mpeg4", sound="mp3"), "m.mpg": dict(codec="mpeg1video", sound="mp2"), "t.ts": {},
              "w.webm": dict(codec="libvpx", sound="libopus", hertz=48000), "q.mov": dict(codec="mjpeg", pix_fmt="yuvj420p", sound="pcm_s16le"), "g.gif": dict(codec="gif", pix_fmt="rgb8", sound=None), "alpha.mov": dict(codec="qtrle", pix_fmt="argb", sound=None)}


@pytest.mark.parametrize("name", CONTAINERS)
def test_any_container(name, frames, source, tmp_path):
    path = film(tmp_path / name, frames[:12], **CONTAINERS[name])
    r = swap(source, path, tmp_path / ("out.mp4" if name == "w.webm" else "out.mov"))
    assert r.frames == 12 and r.swapped >= 10
    head = 7 if name == "t.ts" else 0  # in a transport stream each AAC packet begins with the header that MOV keeps once
    assert [b for b, _ in packets(r.path, "audio")] == [b[head:] for b, _ in packets(path, "audio")]
    shift = times(path)[0] - times(r.path)[0]
    assert max(abs(a - b - shift) for a, b in zip(times(path), times(r.path))) < 1e-6
    if CONTAINERS[name].get("sound", "aac"):
        assert abs(float(packets(path, "audio")[0][1] - packets(r.path, "audio")[0][1] - shift)) < 1e-3, "sound and picture stay together"
    assert elsewhere(pixels(r.path)[3], pixels(path)[3]) < 4


def test_frame_times_that_vary(frames, source, tmp_path):
    when = np.cumsum([0.04, 0.04, 0.2, 0.013, 0.04, 0.5, 0.04, 0.04, 0.1, 0.03, 0.02, 0.04]).tolist()
    path = write_clip(frames[:12], tmp_path / "vfr.mp4", times=when)
    r = swap(source, path, tmp_path / "out.mp4", segment=5)
    assert times(r.path) == times(path) and len(set(np.diff(times(path)))) > 4
    assert packets(r.path, "audio") == packets(path, "audio")


@pytest.mark.parametrize("turn", [90, 180, -90])
def test_a_clip_filmed_sideways_comes_out_upright(turn, frames, source, tmp_path):
    wide = [np.pad(np.asarray(f), ((0, 0), (0, 40), (0, 0))) for f in frames[:6]]
    path = film(tmp_path / "turned.mp4", [np.rot90(f, -turn // 90) for f in wide], turn=turn, sound=None)
    r = swap(source, path, tmp_path / "out.mp4")
    with av.open(str(r.path)) as file:
        shown = next(file.decode(video=0))
    assert shown.rotation == 0 and (shown.width, shown.height) == (SIDE + 40, SIDE) and r.swapped == 6
    assert elsewhere(pixels(r.path)[2], wide[2]) < 4


@pytest.mark.parametrize("tags", [dict(color_range=2, colorspace=1, color_primaries=1, color_trc=1), dict(color_range=1, colorspace=5, color_primaries=5, color_trc=6), dict(color_range=1, colorspace=9, color_primaries=9, color_trc=14)], ids=str)
def test_colours_are_kept(tags, frames, source, tmp_path):
    path = film(tmp_path / "c.mp4", frames[:4], sound=None, **tags)
    r = swap(source, path, tmp_path / "out.mp4")
    with av.open(str(r.path)) as file:
        shown = next(file.decode(video=0))
        assert {k: int(getattr(shown, k)) for k in tags} == tags
    with av.open(str(path)) as file:
        y = [next(file.decode(video=0)).to_ndarray()[:40].astype(int)]
    assert np.abs(shown.to_ndarray()[:40].astype(int) - y[0]).mean() < 1.5, "the same numbers in the file, not only the same tags"


def test_odd_sizes_and_deep_colours(frames, source, tmp_path):
    odd = [np.asarray(f)[:-1, :-3] for f in frames[:6]]
    r = swap(source, film(tmp_path / "odd.mp4", odd, pix_fmt="yuv444p", sound=None), tmp_path / "out.mp4")
    assert pixels(r.path)[0].shape == (SIDE, SIDE - 2, 3) and "odd" in r.note and r.swapped == 6
    r = swap(source, film(tmp_path / "deep.mkv", frames[:6], codec="libx265", pix_fmt="yuv420p10le", sound=None), tmp_path / "out.mp4")
    assert "more than 8 bits" in r.note and elsewhere(pixels(r.path)[3], frames[3]) < 4


def test_sound_that_does_not_fit(frames, source, tmp_path):
    path = film(tmp_path / "m.mkv", frames[:4], sound="tta")
    with pytest.raises(OutputError, match=r"\(tta\) does not fit into a .mp4 file; convert its sound"):
        swap(source, path, tmp_path / "out.mp4")
    assert swap(source, path, tmp_path / "out.mp4", sound=False).frames == 4
    path = film(tmp_path / "p.mkv", frames[:4], sound="pcm_u8")
    with pytest.raises(OutputError, match="choose .mov"):
        swap(source, path, tmp_path / "out.mp4")
    assert raw_sound(swap(source, path, tmp_path / "out.mov").path) == raw_sound(path) != b""


# ---- stop and go on ----

SCRIPT = """
import sys; sys.path.insert(0, {tests!r})
import torch; torch.set_num_threads(1)
from test_video import swap, tint, open_photo
swap(open_photo({photo!r}), {clip!r}, {out!r}, segment=6, mark=True, progress=lambda f, t: print(t, flush=True))
"""


def test_a_killed_run_goes_on_where_it_stopped(frames, source, tmp_path):
    clip = write_clip(frames[:18], tmp_path / "clip.mp4", times=np.cumsum([0.04, 0.02, 0.07] * 6))  # times that vary: the tracker looks at them
    photo = write_image(source.image, tmp_path / "source.png")
    words = SCRIPT.format(tests=str(module.Path(__file__).parent), photo=str(photo), clip=str(clip), out=str(tmp_path / "out.mp4"))
    run = subprocess.Popen([sys.executable, "-c", words], stdout=subprocess.PIPE, text=True)
    for line in run.stdout:
        if line.startswith("14 of"):
            run.send_signal(signal.SIGKILL)
            break
    run.wait()
    assert not (tmp_path / "out.mp4").exists() and (tmp_path / ".out.mp4.deepswap-part" / "job.json").exists()
    r = swap(open_photo(photo), clip, tmp_path / "out.mp4", segment=6, mark=True)
    whole = swap(open_photo(photo), clip, tmp_path / "whole.mp4", segment=6, mark=True)
    assert (r.resumed, whole.resumed, r.frames, r.swapped) == (12, 0, 18, 18)
    assert times(r.path) == times(whole.path) == times(clip)
    assert all(np.array_equal(a, b) for a, b in zip(pixels(r.path), pixels(whole.path)))
    assert packets(r.path, "audio") == packets(clip, "audio") and not (tmp_path / ".out.mp4.deepswap-part").exists()


def interrupted(after):
    "A progress that presses Ctrl-C."
    def progress(f, t):
        if t.startswith(f"{after} of"): raise KeyboardInterrupt
    return progress


def test_ctrl_c_keeps_what_is_finished_and_other_settings_start_anew(clip, source, tmp_path):
    out = tmp_path / "out.mp4"
    with pytest.raises(KeyboardInterrupt):
        swap(source, clip, out, segment=8, progress=interrupted(12))
    assert not out.exists() and not [t for t in threading.enumerate() if t.name.startswith("deepswap-")]
    assert swap(source, clip, out, segment=8).resumed == 8
    with pytest.raises(KeyboardInterrupt):
        swap(source, clip, out, segment=8, progress=interrupted(12))
    r = swap(source, clip, out, lambda s, t: (t * 0, torch.ones_like(t[:, :1])), segment=8)
    assert r.resumed == 0 and "other settings" in r.note
    with pytest.raises(KeyboardInterrupt):
        swap(source, clip, out, segment=8, progress=interrupted(12))
    r = swap(source, clip, out, segment=8, resume=False)
    assert r.resumed == 0 and r.note == ""


def test_a_full_disk_keeps_the_segments(clip, source, tmp_path, monkeypatch):
    real, left = ClipWriter.add, [13]

    def add(self, *args):
        left[0] -= 1
        if left[0] < 0: raise OSError(28, "No space left on device")
        real(self, *args)
    monkeypatch.setattr(ClipWriter, "add", add)
    with pytest.raises(OutputError, match="disk is full"):
        swap(source, clip, tmp_path / "out.mp4", segment=8)
    monkeypatch.undo()
    assert swap(source, clip, tmp_path / "out.mp4", segment=8).resumed == 8


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_the_writer_notices_a_full_disk(clip):
    with pytest.raises(OSError) as e, ClipWriter("/dev/full", Clip(clip), (SIDE, SIDE), 1) as w:
        for i in range(200): w.add(np.random.default_rng(i).integers(0, 255, (SIDE, SIDE, 3), np.uint8), i * 3600)
    assert e.value.errno == 28


def test_a_swapper_that_fails_ends_all_threads(clip, source, tmp_path):
    calls = []

    def broken(s, t):
        calls.append(len(t))
        if len(calls) > 2: raise UsageError("This method can't do that; choose another.")
        return t, torch.ones_like(t[:, :1])
    with pytest.raises(UsageError, match="can't do that"):
        swap(source, clip, tmp_path / "out.mp4", broken, batch=4)
    assert not [t for t in threading.enumerate() if t.name.startswith("deepswap-")] and not (tmp_path / "out.mp4").exists()


# ---- who is swapped ----

def test_a_face_in_half_of_the_frames(frames, source, tmp_path):
    path = write_clip(frames[:12] + wall(12), tmp_path / "half.mp4", tone=0)
    r = swap(source, path, tmp_path / "out.mp4")
    assert (r.frames, r.swapped) == (24, 12) and "12 of 24 frames" in r.note
    share = [changed(a[:-20], b[:-20]) for a, b in zip(pixels(path), pixels(r.path))]
    assert min(share[:12]) > 0.005 and max(share[12:]) == 0


def test_no_face_leaves_nothing_behind(source, tmp_path):
    path = write_clip(wall(6), tmp_path / "wall.mp4")
    with pytest.raises(NoFaceError, match="the target video wall.mp4"):
        swap(source, path, tmp_path / "out.mp4")
    assert [p.name for p in tmp_path.iterdir()] == ["wall.mp4"]


@pytest.fixture(scope="module")
def duo(tmp_path_factory):
    "Two people side by side, the left one smaller."
    both = [np.concatenate([np.asarray(a), np.asarray(b)], 1) for a, b in zip(actor(8, zoom=0.5), actor(8, 1, zoom=0.65))]
    return write_clip(both, tmp_path_factory.mktemp("duo") / "duo.mp4", tone=0)


@pytest.mark.parametrize("face,sides", [("largest", "r"), ("all", "lr"), (1, "l"), ("2", "r")])
def test_two_faces(duo, source, tmp_path, face, sides):
    r = swap(source, duo, tmp_path / "out.mp4", face=face, label=False)
    for i in (0, 5):
        a, b = pixels(duo)[i], pixels(r.path)[i]
        assert "".join(s for s, half in (("l", np.s_[:, :SIDE]), ("r", np.s_[:, SIDE:])) if changed(a[half], b[half]) > 0.005) == sides
    assert ("Up to 2 faces" in r.note) == (face == "largest")


def test_a_face_that_is_not_there(duo, source, tmp_path):
    with pytest.raises(UsageError, match="never shows more than 2"):
        swap(source, duo, tmp_path / "out.mp4", face=3)
    with pytest.raises(UsageError, match="counted from the left"):
        swap(source, duo, tmp_path / "out.mp4", face="middle")


def test_a_cut_is_no_fade(frames, source, tmp_path):
    path = write_clip(frames[:8] + actor(8, 1, bg_hue=0.9, light_power=1.5), tmp_path / "cut.mp4", tone=0)
    r = swap(source, path, tmp_path / "out.mp4", label=False)
    share = [changed(a, b) for a, b in zip(pixels(path), pixels(r.path))]
    assert r.swapped == 16 and share[7] > 0.7 * max(share[:8]) and share[8] > 0.7 * max(share[8:]), "at full strength before and after the cut"


def faces(*ids, size=40.0):
    "Stand-ins for tracked faces, from left to right."
    return [SimpleNamespace(id=i, box=np.array([60.0 * k, 0, 60 * k + size + i, size]), size=size + i) for k, i in enumerate(ids)]


def play(cast, shots):
    "The weights of each frame of each shot as {id: weight}."
    out = []
    for shot in shots:
        for t in range(len(shot)): out.append({f.id: round(w, 3) for f, w in cast(shot[t:t + cast.fade + 1], t == 0)})
    return out


def test_faces_fade_in_and_out_but_not_at_cuts():
    got = play(Cast("all", fade=3), [[faces(1)] * 4 + [faces(1, 2)] * 8 + [faces(1)] * 3, [faces(3)] * 2])
    assert [g.get(1) for g in got[:15]] == [1.0] * 15, "there from cut to cut"
    assert [g.get(2, 0) for g in got[:15]] == [0] * 4 + [0.25, 0.5, 0.75, 1.0, 1.0, 0.75, 0.5, 0.25] + [0] * 3
    assert got[15:] == [{3: 1.0}] * 2


def test_the_part_stays_with_its_track():
    crossing = [faces(1, 2)] * 3 + [faces(2, 1)] * 3 + [faces(2)] * 4 + [faces(2, 3)] * 3
    assert [set(g) for g in play(Cast(1, fade=1), [crossing])] == [{1}] * 6 + [set()] * 4 + [{3}] * 3, "number 2 was passed over; a newcomer may play"
    assert [set(g) for g in play(Cast("largest", fade=1), [[faces(1, 2)] * 2, [faces(5)] * 2])] == [{2}] * 2 + [{5}] * 2
    assert play(Cast(2, fade=1), [[faces(1)] * 3]) == [{}] * 3
    saved = Cast(1, fade=1)
    play(saved, [crossing[:2]])
    again = Cast(1, fade=1)
    again.load_state_dict(json.loads(json.dumps(saved.state_dict())))
    assert [f.id for f, _ in again(crossing[3:5])] == [1]


# ---- colour ----

def test_colours_move_slowly():
    g = torch.Generator().manual_seed(0)
    target = torch.rand(1, 3, 32, 32, generator=g) * 0.6 - 0.3
    mask, match, outs = torch.ones(1, 1, 32, 32), ColorMatch(), []
    for i in range(30): outs.append(match(target * 0.7 + 0.2 + 0.1 * torch.randn(1, generator=g), target, mask).mean().item())
    assert abs(np.mean(outs) - target.mean().item()) < 0.03, "the target's colour"
    assert abs(match(target, target, mask) - target).mean() > 0.02, "from the whole shot, not from this frame"
    before = match.stats.clone()
    match(torch.zeros_like(target), target * 0 - 1, mask)
    assert (match.stats - before).abs().max() <= 8 / 30, "a black frame is not believed"
    copy = ColorMatch()
    copy.load_state_dict(json.loads(json.dumps(match.state_dict())))
    assert torch.equal(copy(target, target, mask), match(target, target, mask))


def test_a_trained_pair_keeps_the_other_complexion():
    g = torch.Generator().manual_seed(1)
    noise, mask = torch.rand(1, 3, 32, 32, generator=g) * 0.1, torch.ones(1, 1, 32, 32)
    own, other, lamp = noise - 0.1, noise + 0.3, 0.15  # the target's skin and the other's as the network knows them; the clip is brighter
    plain, paired = ColorMatch(), ColorMatch()
    for _ in range(5):
        lost = plain(other, own + lamp, mask)
        kept = paired(other, own + lamp, mask, own)
    assert abs(lost.mean() - (own + lamp).mean()) < 0.02, "without `own` the target's skin comes through"
    assert abs(kept.mean() - (other + lamp).mean()) < 0.03, "with it, the other's skin in the clip's light"


def test_a_face_may_keep_its_complexion(clip, source, tmp_path):
    def pale(s, t): return torch.full_like(t, 0.9), torch.ones_like(t[:, :1])
    matched, kept = (pixels(swap(source, clip, tmp_path / f"{m}.mp4", pale, size=64, match=m).path)[6] for m in (True, False))
    target, box = pixels(clip)[6], np.s_[60:90, 65:95]
    assert difference(matched[box], target[box]) < 40 and kept[box].mean() > 225


def test_small_jumps_are_steadied_and_large_ones_let_through():
    x, mask = torch.zeros(1, 3, 64, 64), torch.ones(1, 1, 64, 64)
    for jump, seen in ((0.02, 0.005), (0.8, 0.8)):
        s = Steady(memory=4)
        assert torch.equal(s(x + 0.1, x, mask), x + 0.1)
        assert abs((s(x + 0.1 + jump, x, mask) - x - 0.1).mean().item() - seen) < 1e-3
    s = Steady(memory=4)
    light = [s(x + i + 0.1, x + i, mask).mean().item() - i for i in (0.0, 0.3, -0.2)]
    assert np.allclose(light, 0.1, atol=1e-3), "the target's own light passes at once"
    fine = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 0.1
    again = Steady(memory=50)
    again(x, x, mask)
    assert (again(fine, x, mask) - fine).abs().mean() < 0.1 * fine.abs().mean(), "fine detail is left alone"


def test_flicker_is_seen(frames):
    lm = np.tile(open_photo(frames[0]).faces[0].landmarks, (8, 1, 1))
    still = [frames[0]] * 8
    light = [Image.fromarray((np.asarray(frames[0]) * (1 - 0.1 * (i % 2))).astype(np.uint8)) for i in range(8)]
    assert flicker(still, still, lm).max() == 0 and flicker(light, light, lm).max() == 0, "the target's own light is no flicker"
    assert flicker(light, still, lm).mean() > 3


# ---- stages ----

def test_stages_keep_order_and_run_a_few_items_ahead():
    made = []

    def numbers(n):
        for i in range(n): made.append(i); yield i
    a = Stage("a", numbers, 100, room=3)
    b = Stage("b", lambda xs: (10 * x for x in xs), a, room=3)
    it = iter(b)
    first = [next(it) for _ in range(5)]
    time.sleep(0.3)
    assert first == [0, 10, 20, 30, 40] and len(made) <= 5 + 2 * (3 + 1) + 1, "memory does not grow with length"
    assert list(it) == [10 * i for i in range(5, 100)]
    b.close()


def test_stages_overlap():
    def slow(xs):
        for x in xs: time.sleep(0.02); yield x
    start, s = time.perf_counter(), range(15)
    for name in "abc": s = Stage(name, slow, s)
    assert list(s) == list(range(15))
    assert time.perf_counter() - start < 0.7 * 3 * 15 * 0.02 and abs(s.busy - 0.3) < 0.2
    s.close()


def test_an_error_in_a_stage_arrives():
    def bad(xs):
        for x in xs: yield 1 // (3 - x)
    s = Stage("bad", bad, range(10))
    with pytest.raises(ZeroDivisionError): list(s)
    s.close()
    assert not s.thread.is_alive()


# ---- bad input ----

def museum(tmp_path, frames, kind):
    path = tmp_path / f"{kind.replace(' ', '_')}.mp4"
    if kind == "folder": path.mkdir()
    if kind == "text": path.write_text("This is not a video.")
    if kind == "plain text": path = tmp_path / "notes.txt"; path.write_text("This is not a video.\n" * 9)
    if kind == "picture": path = write_image(frames[0], tmp_path / "face.png")
    if kind == "empty": path.touch()
    if kind == "sound only":
        with av.open(str(path), "w") as file: module._tone(file, file.add_stream("aac", rate=44100), 0.5, 440)
    if kind == "zero frames":
        with av.open(str(path), "w", options={"movflags": "empty_moov"}) as file:
            v = file.add_stream("mpeg4", rate=25)
            v.width = v.height = 64
            file.start_encoding()
    if kind == "header only":
        whole = write_clip(frames[:12], path)
        whole.write_bytes(whole.read_bytes()[:300])
    return path


@pytest.mark.parametrize("kind", ["missing", "folder", "text", "plain text", "picture", "empty", "sound only", "zero frames", "header only"])
def test_what_is_no_video_gets_one_sentence(kind, frames, source, tmp_path):
    path = museum(tmp_path, frames, kind)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(DataError) as e: swap(source, path, tmp_path / "out.mp4")
    text = str(e.value)
    assert "\n" not in text and text.endswith(".") and len(text) < 300 and path.name in text
    assert sorted(tmp_path.iterdir()) == before


def test_a_clip_that_breaks_off_is_swapped_as_far_as_it_goes(frames, source, tmp_path):
    path = film(tmp_path / "cut.ts", frames)
    path.write_bytes(path.read_bytes()[:path.stat().st_size * 6 // 10])
    r = swap(source, path, tmp_path / "out.mp4")
    assert 4 <= r.frames < 24 and r.swapped == r.frames == len(pixels(r.path))
    path = film(tmp_path / "index.avi", frames, codec="mpeg4", sound="mp3")
    path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])
    r = swap(source, path, tmp_path / "out.mov")
    assert 2 <= r.frames < 24 and "breaks off after" in r.note


def test_a_damaged_spot_is_skipped(frames, source, tmp_path):
    path = film(tmp_path / "d.mkv", frames, codec="mjpeg", pix_fmt="yuvj420p", sound=None)
    with av.open(str(path)) as file: where = [(p.pos, p.size) for p in file.demux(video=0) if p.size][10]
    data = bytearray(path.read_bytes())
    data[where[0] + 10:where[0] + where[1] // 2] = bytes(where[1] // 2 - 10)
    path.write_bytes(data)
    r = swap(source, path, tmp_path / "out.mp4")
    assert 22 <= r.frames <= 24 and r.path.exists()


@pytest.mark.parametrize("out,error,says", [("out.mkv", OutputError, ".mp4, .mov, .m4v"), ("no/out.mp4", OutputError, "does not exist"), ("there.mp4", OutputError, "is a folder"), ("same", UsageError, "never changed")])
def test_a_bad_output_is_refused_before_any_work(out, error, says, clip, source, tmp_path):
    (tmp_path / "there.mp4").mkdir()
    with pytest.raises(error, match=says): swap(source, clip, clip if out == "same" else tmp_path / out)


@pytest.mark.parametrize("option", [dict(every=0), dict(batch=0), dict(quality=99), dict(segment=True), dict(size=7), dict(size=128), dict(device="abacus"), dict(swapper="magic"), dict(to="b")], ids=str)
def test_bad_options(option, clip, source, tmp_path):
    with pytest.raises(DeepswapError) as e: swap(source, clip, tmp_path / "out.mp4", **option)
    assert str(e.value).endswith(".") and not list(tmp_path.iterdir())


def test_the_source(clip, tmp_path):
    write_image(Image.new("RGB", (200, 100), "teal"), tmp_path / "wall.png")
    with pytest.raises(NoFaceError, match="source picture wall.png"): swap(tmp_path / "wall.png", clip, tmp_path / "out.mp4")
    with pytest.raises(ImageError, match="nobody.png"): swap(tmp_path / "nobody.png", clip, tmp_path / "out.mp4")
    with pytest.raises(UsageError, match="source"): swap(None, clip, tmp_path / "out.mp4")


def test_a_trained_pair_needs_no_source(clip, source, tmp_path):
    torch.manual_seed(0)
    pair = PairSwapper(AutoencoderSwap.for_size(64))
    r = swap(None, clip, tmp_path / "out.mp4", pair, label=False)
    assert r.swapped == 24 and inspect(r.path).credentials.method == "autoencoder-swap"
    a, b = (pixels(swap(None, clip, tmp_path / f"{to}.mp4", pair, to=to, label=False).path)[7] for to in "ab")
    auto = pixels(r.path)[7]
    assert difference(a, b) > 0.05 and min(difference(auto, a), difference(auto, b)) == 0
    with pytest.raises(UsageError, match="leave the source"): swap(source, clip, tmp_path / "out.mp4", pair)


class Unsure(module.AutoSwapper):
    "Asks, as `auto` does, and remembers what it was shown."
    def __init__(self, answer): self.network, self.answer, self.asked = tint, answer, []
    def choose(self, source, target, size=None, typical=None):
        self.asked.append((len(source), len(target), size, typical(torch.tensor([3., 1., 2.]))))
        return self.answer


def test_auto_decides_once_for_the_clip(clip, source, tmp_path):
    known, unknown = Unsure((tint, "")), Unsure((lambda s, t: (t, torch.ones_like(t[:, :1])), "It was left to another."))
    r = swap(source, clip, tmp_path / "a.mp4", known)
    assert r.note == "" and difference(pixels(r.path)[7], pixels(swap(source, clip, tmp_path / "b.mp4").path)[7]) == 0
    assert known.asked == [(1, 1, None, 2)], "once, about a frame of each second; the middle one counts"
    r = swap(source, clip, tmp_path / "c.mp4", unknown, size=64, label=False)
    assert r.note == "It was left to another." and r.swapped == 24 and len(unknown.asked) == 1 and unknown.asked[0][2] == 64
    negative, middle_ = pixels(tmp_path / "a.mp4")[7], np.s_[60:90, 65:95]
    assert difference(pixels(r.path)[7][middle_], pixels(clip)[7][middle_]) < 15 < 40 < difference(negative[middle_], pixels(clip)[7][middle_]), "the face is there, only softer; the other one is a negative"


def test_faces_to_decide_by(frames, tmp_path):
    late = write_clip(wall(20) + frames[:10] + wall(45), tmp_path / "late.mp4", tone=0)
    found = module.some_faces(Clip(late), device="cpu")
    assert len(found) == 1 and found[0][1].landmarks.shape == (5, 2), "of the frames 0, 25 and 50 the second shows a face"
    assert len(module.some_faces(Clip(write_clip(frames[:1] * 80, tmp_path / "still.mp4", tone=0)), device="cpu", n=2)) == 2
    assert module.some_faces(Clip(write_clip(wall(30), tmp_path / "wall.mp4", tone=0)), device="cpu") == []


def test_a_faceshifter_paints_a_clip_in_its_own_colours(clip, source, tmp_path):
    s = FaceShifterSwapper(FaceShifter(size=32, width=2, ndf=4))
    red = torch.tensor([0.7, -0.6, -0.6])[:, None, None]
    s.model.swap = lambda a, b, share=1.: b if a is b else red.expand(len(b), 3, *b.shape[-2:]).clone()
    r = swap(source, clip, tmp_path / "out.mp4", s, label=False)
    assert inspect(r.path).credentials.method == "faceshifter" and r.swapped == 24
    x = pixels(r.path)[12].astype(int)
    changed_here = np.abs(x - pixels(clip)[12].astype(int)).sum(2) > 100
    assert changed_here.mean() > 0.02 and (x[..., 0] - x[..., 2])[changed_here].mean() > 100, "red stays red: the network saw the target's light itself"
    with pytest.raises(UsageError, match="only a FaceShifter"): swap(source, clip, tmp_path / "out2.mp4", "classical", share=0.5)


def test_side_by_side(clip, source, tmp_path):
    r = swap(source, clip, tmp_path / "out.mp4", side_by_side=True, mark=True)
    x = pixels(r.path)[8]
    assert x.shape == (SIDE, 2 * SIDE, 3) and inspect(r.path).mark.found
    assert difference(x[40:120, :SIDE], pixels(clip)[8][40:120]) < 3 < difference(x[40:120, SIDE:], pixels(clip)[8][40:120])


def test_exercises_take_the_solutions_and_no_wrong_answer(source, tmp_path):
    write_clip(actor(8) + wall(4), tmp_path / "half.mp4", tone=0)
    crop = lambda frame: module.align_photo(frame, module.find_faces(frame)[0].landmarks, 128)[0]
    names = {**vars(module), "photo": source, "room": tmp_path, "target": torch.cat([crop(Image.fromarray(np.asarray(f))) for f in actor(2)])}
    coarse = lambda t, n, mode="nearest": torch.nn.functional.interpolate(torch.nn.functional.interpolate(t, (n, n), mode="bilinear", antialias=True), t.shape[-2:], mode=mode)
    face = lambda t: module.face_mask(module.CANONICAL5 * t.shape[-1], t.shape[-1]).expand(len(t), -1, -1, -1)
    grid = lambda begin, end, batch, segment: [range(i, min(i + batch, end)) for i in range(begin, end, batch)]
    all_hold("52_video", names, {
        "follows_late": [lambda m: m, lambda m: 10 * m],
        "bounds_the_pace": [lambda t, c: sum(t) / c, lambda t, c: max(t), lambda t, c: sum(t)],
        "same_batches": [grid, lambda begin, end, batch, segment: [[i] for i in range(begin, end)]],
        "hides_a_face": [lambda s, t: (coarse(t, 64), face(t)), lambda s, t: (coarse(t, 10, "bilinear"), face(t)), lambda s, t: (coarse(t, 10), torch.ones_like(t[:, :1]))]})  # fmt: skip



# ---- real clips ----

def test_a_talking_head(shared, tmp_path):
    path = shared / "data/video/grid_A_bbaf2n.mpg"
    r = swap_video(shared / "data/london/neutral/004.jpg", path, tmp_path / "out.mp4", "none", mark=False, size=64)
    assert (r.frames, r.swapped) == (75, 75) and r.note == ""
    assert [b for b, _ in packets(r.path, "audio")] == [b for b, _ in packets(path, "audio")] and len(packets(path, "audio")) > 100
    assert times(r.path) == [Fraction(i, 25) for i in range(75)]


def test_a_gif(shared, tmp_path, source):
    path = shared / "data/video/intel_female.gif"
    r = swap(source, path, tmp_path / "out.mp4")
    assert r.frames == 23 and r.swapped > 12 and times(r.path) == times(path)
