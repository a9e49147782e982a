"Filter, smoother, cuts and tracker: against closed forms, against exact landmarks of procedural people, and on real clips where they are at hand."

import json

import numpy as np
import pytest
import torch
from PIL import Image

from deepswap.core import CANONICAL5, ImageError, UsageError
from deepswap.data import video_frames
from deepswap.faces import Face, find_faces
from deepswap.tracking import (
    FaceTracker, KalmanFilter, TrackedFace, cut_distance, eye_distance, is_cut, jitter, known_clip, lag, motion, smooth_landmarks, thumbnail)

pytestmark = pytest.mark.usefixtures("one_thread")


def person(seed, n, size=144, zoom=0.7, **scene): return known_clip(n, seed, size, zoom, 0.0, **scene)


@pytest.fixture(scope="module")
def talk():
    return person(7, 16)


@pytest.fixture(scope="module")
def every_frame(talk):
    "What MTCNN finds when it is asked about each frame."
    return [find_faces(f)[0] for f in talk[0]]


def plain(size=(144, 144), colour="teal"): return Image.new("RGB", size, colour)


# --- the filter -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("process, noise, dt", [(10, 0.01, 1 / 25), (2, 0.3, 1 / 50), (400, 1.0, 1 / 12)])
def test_gain_settles_where_the_closed_form_says(process, noise, dt):
    "Kalata (1984): the gains of the alpha-beta filter follow from one number, the tracking index."
    f = KalmanFilter(process, noise, speed=process, dt=dt)
    f.start(np.zeros(1))
    for _ in range(800):
        f.predict()
        gain = f.cov[:, 0] / (f.cov[0, 0] + noise ** 2)
        f.update(np.zeros(1))
    index = process * dt ** 2 / noise
    root = np.sqrt(index ** 2 + 8 * index)
    alpha = -(index ** 2 + 8 * index - (index + 4) * root) / 8
    beta = (index ** 2 + 4 * index - index * root) / 4
    assert np.allclose(gain, [alpha, beta / dt], rtol=1e-6)


def batch_solution(z, process, noise, speed, dt):
    "All positions at once: the joint Gaussian of the whole path, conditioned on what was measured (NaN: nothing)."
    T = len(z)
    F, Q = motion(dt, process)
    steps = [np.linalg.matrix_power(F, k) for k in range(T + 1)]
    first = np.diag([noise ** 2, speed ** 2])
    cov = np.zeros((T, 2, T, 2))
    for i in range(T):
        for j in range(T):
            cov[i, :, j] = steps[i] @ first @ steps[j].T + sum((steps[i - k] @ Q @ steps[j - k].T for k in range(1, min(i, j) + 1)), np.zeros((2, 2)))
    cov = cov[:, 0, :, 0]  # of positions, around the first measurement
    seen = np.array([t for t in range(1, T) if np.isfinite(z[t])])
    gain = cov[:, seen] @ np.linalg.inv(cov[np.ix_(seen, seen)] + noise ** 2 * np.eye(len(seen)))
    return z[0] + gain @ (z[seen] - z[0])


@pytest.mark.parametrize("gap", [(), (4, 5, 6)])
def test_smoother_is_the_conditional_mean_of_the_whole_path(gap):
    z = np.cumsum(np.random.default_rng(0).normal(size=12))
    z[list(gap)] = np.nan
    f = KalmanFilter(30, 0.5, speed=4, dt=0.1, delay=20)
    f.start(z[:1])
    for x in z[1:]:
        f.predict()
        f.update(None if np.isnan(x) else [x])
    expected = batch_solution(z, 30, 0.5, 4, 0.1)
    assert np.allclose([f.smoothed(11 - t)[0] for t in range(12)], expected, atol=1e-8)
    assert np.allclose(f.mean[0], expected[-1])  # the newest frame has no future: filter and smoother agree


def test_a_gap_goes_on_with_constant_velocity_and_grows_uncertain():
    f = KalmanFilter(1.0, 0.01, dt=0.1)
    f.start([0.0, 5.0])
    for t in range(1, 60):
        f.predict()
        f.update([0.2 * t, 5.0])
    spread = []
    for _ in range(5):
        f.predict()
        f.update(None)
        spread.append(f.cov[0, 0])
    assert np.allclose(f.mean[0], [0.2 * 64, 5.0], atol=1e-3) and np.allclose(f.mean[1], [2.0, 0.0], atol=1e-3)
    assert (np.diff(spread) > 0).all()


def test_frame_times_may_vary():
    f = KalmanFilter(1.0, 0.01)
    f.start([0.0])
    for dt, x in ((0.1, 1.0), (0.3, 4.0), (0.05, 4.5), (0.2, 6.5)):
        f.predict(dt)
        f.update([x])
    assert f.mean[1, 0] == pytest.approx(10, rel=0.02)


@pytest.mark.parametrize("wrong", [dict(process=0), dict(noise=-1), dict(dt=0), dict(delay=-1)])
def test_a_filter_that_cannot_be(wrong):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        KalmanFilter(**wrong)


def test_a_filter_must_start_and_remembers_only_its_delay():
    with pytest.raises(UsageError, match="start"):
        KalmanFilter().predict()
    f = KalmanFilter(delay=2)
    f.start([0.0])
    for _ in range(9):
        f.predict()
        f.update([0.0])
    assert len(f.steps) == 3
    with pytest.raises(UsageError, match="remembers 2"):
        f.smoothed(3)


# --- measures ---------------------------------------------------------------------------------------------------

def test_jitter_is_the_second_difference_and_skips_holes():
    t = np.arange(10.0)
    assert jitter(np.stack([3 * t + 1, -t], 1)) == pytest.approx(0)
    p = np.stack([t ** 2, 0 * t], 1)
    assert jitter(p) == pytest.approx(2)
    p[4] = np.nan
    assert jitter(p) == pytest.approx(2)
    with pytest.raises(UsageError, match="three frames"):
        jitter(p[:2])


@pytest.mark.parametrize("shift", [-1.5, 0.0, 0.7, 2.0])
def test_lag_finds_a_known_shift(shift):
    t = np.arange(80.0)
    def curve(t): return np.stack([np.sin(t / 5), np.cos(t / 9)], 1)
    assert lag(curve(t - shift) + 4, curve(t)) == pytest.approx(shift, abs=0.05)


def test_lag_says_what_it_needs():
    with pytest.raises(UsageError, match="one shape"):
        lag(np.zeros((30, 2)), np.zeros((31, 2)))


def test_eye_distance_is_that_of_the_canonical_face_and_shrinks_less_when_a_head_turns():
    face = CANONICAL5.numpy() * 100
    turn = np.array([[0.8, -0.6], [0.6, 0.8]])
    between = np.linalg.norm(face[1] - face[0])
    assert eye_distance(np.stack([face, 3 * face @ turn + 7])) == pytest.approx([between, 3 * between], rel=1e-3)
    squeezed = face * [0.5, 1.0]
    assert 0.75 * between < eye_distance(squeezed) < between and np.linalg.norm(squeezed[1] - squeezed[0]) < 0.51 * between


# --- a whole track -----------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def noisy():
    "A path with known positions, measured with noise of 1 % of the eye distance."
    t = np.arange(120) / 25
    sway = np.stack([20 * np.sin(2 * np.pi * 0.4 * t), 8 * np.sin(2 * np.pi * 0.7 * t + 1)], 1)[:, None]
    face = 30 / 0.236 * np.array([[0.3814, 0.4707], [0.6174, 0.4693], [0.5002, 0.6049], [0.4032, 0.7430], [0.5986, 0.7419]])
    exact = face + 100 + sway
    return exact, exact + 0.3 * np.random.default_rng(1).normal(size=exact.shape)


def test_a_look_ahead_halves_the_tremble_without_lag_and_the_causal_filter_does_not(noisy):
    exact, z = noisy
    calm, causal = smooth_landmarks(z, delay=3), smooth_landmarks(z, delay=0)
    assert jitter(calm) < 0.5 * jitter(z) and abs(lag(calm, exact)) < 0.1
    assert np.abs(calm - exact).mean() < 0.75 * np.abs(z - exact).mean()
    assert jitter(causal) > jitter(calm) * 1.3
    heavy = smooth_landmarks(z, delay=0, process=0.2)
    assert lag(heavy, exact) > 1 > abs(lag(smooth_landmarks(z, delay=10, process=1), exact))


def test_gaps_are_bridged_up_to_the_patience_and_nothing_is_smoothed_across_a_cut(noisy):
    exact, z = noisy[0].copy(), noisy[1].copy()
    z[30:34] = z[60:75] = z[:2] = z[-3:] = np.nan
    z[90:] += 500
    out = smooth_landmarks(z, cuts=[90], patience=10)
    hole = np.isnan(out).all((1, 2))
    assert np.flatnonzero(hole).tolist() == [0, 1, *range(60, 75), 117, 118, 119]
    assert np.abs(out[30:34] - exact[30:34]).mean() < 1.5
    assert np.abs(out[85:95] - z[85:95]).max() < 2, "the jump at the cut stays a jump"
    assert np.abs(smooth_landmarks(z, patience=10)[87:93] - z[87:93]).max() > 10, "without the cut it is smeared"


@pytest.mark.parametrize("n", [1, 2, 3])
def test_short_tracks_and_none(n):
    p = np.random.default_rng(0).normal(size=(n, 5, 2)) + np.arange(5)[:, None] * 10
    assert np.isfinite(smooth_landmarks(p, delay=None)).all() and np.allclose(smooth_landmarks(p, delay=5)[-1], smooth_landmarks(p, delay=0)[-1])
    assert np.isnan(smooth_landmarks(p * np.nan)).all()
    with pytest.raises(UsageError, match="frames, points"):
        smooth_landmarks(p[0])


# --- cuts ---------------------------------------------------------------------------------------------------------

def test_talking_moving_and_flashing_are_no_cuts_and_another_scene_is(talk):
    frames, _ = talk
    wild, _ = person(7, 8, shift_x=torch.linspace(-0.5, 0.5, 8))
    flash = Image.fromarray((np.asarray(frames[4], dtype=float) * 2).clip(0, 255).astype(np.uint8))
    dark = Image.fromarray((np.asarray(frames[4], dtype=float) * 0.5).astype(np.uint8))
    assert not any(is_cut(a, b) for f in (frames, wild) for a, b in zip(f, f[1:]))
    assert not is_cut(frames[3], flash) and not is_cut(flash, frames[5]) and not is_cut(frames[3], dark)
    assert not is_cut(frames[3], plain(colour="white")), "a flash that blows out everything says nothing"
    for seed in (3, 12, 20):
        assert is_cut(frames[-1], person(seed, 1)[0][0])
    assert not is_cut(None, frames[0])


def test_cuts_between_pictures_arrays_and_thumbnails_are_the_same(talk):
    a, b = talk[0][0], person(3, 1)[0][0]
    d = cut_distance(a, b)
    assert d == cut_distance(np.asarray(a), np.asarray(b)) == cut_distance(thumbnail(a), b) and cut_distance(a, a) == 0


# --- the tracker --------------------------------------------------------------------------------------------------

def follow(frames, **options):
    tracker = FaceTracker(**options)
    return tracker, [faces for _, faces in tracker.track(frames)]


@pytest.mark.parametrize("delay", [0, 3, 40])
def test_one_face_is_followed_with_few_detections(talk, every_frame, delay):
    frames, exact = talk
    tracker, out = follow(frames, every=5, delay=delay)
    assert [len(f) for f in out] == [1] * len(frames) and {f[0].id for f in out} == {0} and tracker.detections == 4
    assert [f[0].frame for f in out] == list(range(len(frames))) and [f[0].cut for f in out] == [True] + [False] * (len(frames) - 1)
    assert isinstance(out[0][0], TrackedFace) and all(f[0].found and f[0].score > 0.7 for f in out)
    points = np.stack([f[0].landmarks for f in out])
    assert (np.linalg.norm(points - exact, axis=-1).mean(-1) / eye_distance(exact)).max() < 0.12  # the detector's own bias
    each = np.stack([f.landmarks for f in every_frame])
    assert np.median(np.linalg.norm(points - each, axis=-1).mean(-1) / eye_distance(each)) < 0.03
    left, top, right, bottom = np.stack([f[0].box for f in out]).T
    assert (left < exact[..., 0].min(1)).all() and (right > exact[..., 0].max(1)).all() and (top < exact[..., 1].min(1)).all() and (bottom > exact[..., 1].max(1)).all()


def test_the_delay_is_the_only_difference_between_update_and_track(talk):
    tracker, (_, whole) = FaceTracker(delay=2), follow(talk[0], delay=2)
    got = [tracker.update(np.asarray(f)) for f in talk[0]]
    assert got[:2] == [None, None]
    for a, b in zip(got[2:] + tracker.flush(), whole, strict=True):
        assert a[0].frame == b[0].frame and np.array_equal(a[0].landmarks, b[0].landmarks)


def test_boxes_tremble_less_than_the_detectors(talk, every_frame):
    each = np.stack([f.box for f in every_frame]).reshape(-1, 2, 2)
    calm = np.stack([f[0].box for f in follow(talk[0], delay=3)[1]]).reshape(-1, 2, 2)
    assert jitter(calm) < 0.5 * jitter(each)


@pytest.mark.parametrize("delay", [0, 3])
def test_no_face_at_all(delay):
    tracker, out = follow([plain()] * 7, every=3, delay=delay)
    assert out == [[]] * 7 and tracker.detections == 3


def test_no_frames_and_one_frame(talk):
    assert follow([], delay=3)[1] == []
    out = follow(talk[0][:1], delay=3)[1]
    assert len(out) == 1 and len(out[0]) == 1


@pytest.mark.parametrize("frame, error", [(np.zeros((0, 0, 3), np.uint8), UsageError), (np.zeros((40, 40), np.uint8), UsageError),
                                         (np.zeros((40, 40, 3)), UsageError), (np.zeros((8, 40, 3), np.uint8), ImageError)])
def test_frames_that_are_none(frame, error):
    with pytest.raises(error):
        FaceTracker().update(frame)


def hidden(frames, which):
    "The face is covered in some frames, the scene stays."
    out = [f.copy() for f in frames]
    for i in which:
        out[i].paste("olive", (35, 35, 115, 125))
    return out


def test_a_short_gap_is_bridged_with_its_id_and_said_to_be(talk):
    _, out = follow(hidden(talk[0], (6, 7, 8)), every=3, delay=4)
    assert [len(f) for f in out] == [1] * 16 and {f[0].id for f in out} == {0}
    assert [f[0].found for f in out] == [i not in (6, 7, 8) for i in range(16)] and all(out[i][0].score == 0 for i in (6, 7, 8))
    gap = np.stack([out[i][0].landmarks for i in (6, 7, 8)])
    assert (np.linalg.norm(gap - talk[1][6:9], axis=-1).mean(-1) / eye_distance(talk[1][6:9])).max() < 0.15


def test_a_face_that_stays_away_is_not_made_up(talk):
    frames = talk[0][:6] + [plain()] * 10
    _, waited = follow(frames, every=2, delay=3, cut=9.0)
    assert [len(f) for f in waited] == [1] * 6 + [0] * 10
    _, causal = follow(frames, every=2, patience=4, cut=9.0)
    assert [len(f) for f in causal] == [1] * 10 + [0] * 6 and not any(f[0].found for f in causal[6:10])


def test_a_face_in_half_of_the_frames(talk):
    frames = [plain()] * 5 + talk[0][:6] + [plain()] * 5
    _, out = follow(frames, every=5, delay=3)
    assert [len(f) for f in out] == [0] * 5 + [1] * 6 + [0] * 5 and out[5][0].cut


def test_a_cut_starts_anew_and_is_marked(talk):
    other, exact = person(3, 8)
    tracker, out = follow(talk[0][:8] + other, every=50, delay=3)
    assert [f[0].id for f in out] == [0] * 8 + [1] * 8 and [f[0].shot for f in out] == [0] * 8 + [1] * 8
    assert [i for i, f in enumerate(out) if f[0].cut] == [0, 8] and tracker.detections == 2
    after = np.linalg.norm(out[8][0].landmarks - exact[0], axis=-1).mean() / eye_distance(exact[0])
    assert after < 0.12, "nothing of the first shot is in the second"


def test_a_frame_of_another_size_is_a_cut(talk):
    out = follow(talk[0][:3] + [f.resize((200, 200)) for f in talk[0][3:6]])[1]
    assert [f[0].cut for f in out] == [True, False, False, True, False, False]


def two(n, start, stop):
    "Two people who walk through each other, the first in front: frames, and the exact landmarks of both."
    a, la = person(7, n, 112, 0.8)
    b, lb = person(12, n, 112, 0.8)
    frames, xs = [], np.linspace(start, stop, n).round().astype(int)
    for fa, fb, x in zip(a, b, xs):
        f = Image.new("RGB", (340, 130), (70, 90, 110))
        f.paste(fb, (228 - int(x), 9))
        f.paste(fa, (int(x), 9))
        frames.append(f)
    shift = np.stack([xs, np.full(n, 9)], 1)[:, None]
    return frames, la + shift, lb + np.stack([228 - xs, np.full(n, 9)], 1)[:, None]


@pytest.mark.parametrize("delay", [0, 4])
def test_two_who_cross_keep_their_ids(delay):
    frames, front, behind = two(26, 0, 228)
    _, out = follow(frames, every=4, delay=delay, cut=9.0)
    def near(faces, points): return min(faces, key=lambda f: np.abs(f.landmarks - points).mean()).id
    assert len(out[0]) == len(out[-1]) == 2 and max(f.id for fs in out for f in fs) == 1, "nobody was taken for a third"
    assert near(out[0], front[0]) == near(out[-1], front[-1]) == near(out[13], front[13])
    assert near(out[0], behind[0]) == near(out[-1], behind[-1])


def test_a_second_face_that_comes_late_gets_its_own_id():
    frames, front, behind = two(8, 0, 0)
    alone = [f.copy() for f in frames]
    for f in alone[:4]:
        f.paste((70, 90, 110), (228, 0, 340, 130))
    _, out = follow(alone, every=2, cut=9.0)
    assert [len(f) for f in out] == [1] * 4 + [2] * 4 and {f.id for f in out[-1]} == {0, 1}


@pytest.mark.parametrize("delay, at", [(0, 5), (3, 2), (3, 9)])
def test_a_saved_tracker_goes_on_exactly(talk, delay, at):
    frames = hidden(talk[0], (7, 8))
    whole, first, second = (FaceTracker(every=3, delay=delay) for _ in range(3))
    expected = [whole.update(f) for f in frames] + whole.flush()
    got = [first.update(f) for f in frames[:at]]
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    got += [second.update(f) for f in frames[at:]]
    assert json.dumps(second.state_dict()) == json.dumps(_after(frames, delay).state_dict())
    for a, b in zip(got + second.flush(), expected, strict=True):
        assert (a is None) == (b is None)
        for x, y in zip(a or [], b or [], strict=True):
            assert (x.id, x.found, x.cut, x.frame) == (y.id, y.found, y.cut, y.frame) and np.array_equal(x.landmarks, y.landmarks) and np.array_equal(x.box, y.box)


def _after(frames, delay):
    t = FaceTracker(every=3, delay=delay)
    for f in frames:
        t.update(f)
    return t


def test_a_state_of_another_tracker_is_refused():
    with pytest.raises(UsageError, match="delay"):
        FaceTracker(delay=2).load_state_dict(FaceTracker(delay=3).state_dict())


@pytest.mark.parametrize("wrong", [dict(every=0), dict(delay=-1), dict(patience=-1), dict(fps=0)])
def test_a_tracker_that_cannot_be(wrong):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        FaceTracker(**wrong)


@pytest.fixture
def stage(monkeypatch):
    "A world without pictures: MTCNN and the closer look see what is put on the stage, a list of landmarks per frame."
    def play(scenes, **options):
        tracker, now = FaceTracker(cut=9.0, **options), {}
        def face(p): return Face(np.concatenate([p.min(0) - 10, p.max(0) + 10]), p, 1.0)
        def nearest(t): return min(now["scene"], key=lambda p: np.abs(p - t.points).mean(), default=None)
        def look(self, image, tracks): return [(t.points, 0.0) if nearest(t) is None else (nearest(t), 1.0) for t in tracks]
        monkeypatch.setattr("deepswap.tracking.find_faces", lambda *a, **k: [face(p) for p in now["scene"]])
        monkeypatch.setattr(FaceTracker, "_look", look)
        out = []
        for scene in scenes:
            now["scene"] = scene
            out.append(tracker.update(plain((64, 64))))
        return tracker, out
    return play


FACE = CANONICAL5.numpy().astype(float) * 100


def test_a_face_that_mtcnn_reports_twice_is_one(stage):
    _, out = stage([[FACE, FACE + 3]] * 6, every=2)
    assert [[f.id for f in fs] for fs in out] == [[0]] * 6


def test_each_face_goes_to_the_nearest_track_whatever_the_order(stage):
    scenes = [[FACE + 2 * i, FACE + [60 + 2 * i, 0]][::(-1) ** i] for i in range(8)]
    _, out = stage(scenes, every=1)
    for i, fs in enumerate(out):
        assert sorted((f.id, round(f.landmarks[0, 0] - FACE[0, 0] - 2 * i, 0)) for f in fs) == sorted({0: (0, 0.0), 1: (1, 60.0)}.values())


def test_a_jump_that_no_head_makes_begins_a_new_track(stage):
    _, out = stage([[FACE]] * 6 + [[FACE + 90]] * 6, every=50, patience=2)
    assert {f.id for f in out[5]} == {0} and {f.id for f in out[6]} == {0, 1} and {f.id for f in out[-1]} == {1}


def test_memory_does_not_grow(stage):
    "Faces come, go and jump for 600 frames; what is remembered stays small."
    scenes = [[] if i % 40 > 30 else [FACE + 80 * (i // 60 % 3)] for i in range(600)]
    tracker, _ = stage(scenes, every=5)
    assert len(tracker.tracks) <= 1 and tracker.ended == [] and len(json.dumps(tracker.state_dict())) < 25_000
    assert all(len(t.marks) == len(t.filter.steps) == 1 for t in tracker.tracks)


# --- what the chapter says, and its exercises ------------------------------------------------------------------------

def test_a_known_clip_is_where_it_says_and_only_its_noise_is_hidden():
    (clean, a), (rough, b) = known_clip(3, seed=4, size=64, noise=0.0), known_clip(3, seed=4, size=64)
    assert np.array_equal(a, b) and a.shape == (3, 5, 2) and clean[0].size == (64, 64)
    assert not np.array_equal(np.asarray(clean[0]), np.asarray(rough[0]))
    moved = known_clip(3, seed=4, size=64, shift_x=0.3)[1]
    assert not np.allclose(a, moved) and jitter(moved) == pytest.approx(jitter(a), abs=0.2)


@pytest.mark.parametrize("fps, gain", [(25, 0.82), (50, 0.59)])
def test_half_the_time_between_frames_means_a_lower_gain(fps, gain):
    f = KalmanFilter(dt=1 / fps)
    f.start([0.0])
    for _ in range(100):
        f.predict()
        last = f.cov[0, 0] / (f.cov[0, 0] + f.noise ** 2)
        f.update([0.0])
    assert round(last, 2) == gain


def test_a_gate_keeps_a_wild_measurement_out_and_opens_after_a_jump():
    def robust_update(f, z, gate=4.0):
        surprise = np.abs(np.asarray(z) - f.mean[0]).max()
        return f.update(None if surprise > gate * (f.cov[0, 0] + f.noise ** 2) ** 0.5 else z)

    def run(z):
        f, out = KalmanFilter(process=10), []
        f.start(z[:1])
        for x in z[1:]:
            f.predict()
            out.append(robust_update(f, [x])[0])
        return np.array(out)

    wild, jump = np.zeros(40), np.zeros(60)
    wild[20], jump[20:] = 5.0, 0.5
    assert np.abs(run(wild)).max() < 0.01
    assert abs(run(jump)[19]) < 0.01 and abs(run(jump)[-1] - 0.5) < 0.05


def test_a_dissolve_is_several_cuts_in_a_row_and_one_when_only_the_first_counts(talk):
    a, b = talk[0][0], person(3, 1)[0][0]
    fade = [a] * 3 + [Image.blend(a, b, k / 10) for k in range(1, 10)] + [b] * 3
    cuts = [is_cut(x, y) for x, y in zip(fade, fade[1:])]
    assert sum(cuts) > 3 and sum(c and not before for before, c in zip([False] + cuts, cuts)) == 1


def test_the_reversed_film_finds_the_frames_before_the_first_detection(talk):
    frames = [plain()] * 6 + talk[0][:8]
    forward, back = follow(frames, every=5, delay=3, cut=9.0)[1], follow(frames[::-1], every=5, delay=3, cut=9.0)[1][::-1]
    assert [len(f) for f in forward] == [0] * 10 + [1] * 4
    assert [len(f) for f in back] == [0] * 6 + [1] * 8


# --- real clips ---------------------------------------------------------------------------------------------------

def test_a_real_talking_head(shared):
    frames = [f for _, f in zip(range(30), (im for _, im in video_frames(shared / "data/video/grid_A_bbaf2n.mpg")))]
    each = np.stack([find_faces(f)[0].landmarks for f in frames])
    tracker, out = follow(frames, every=5, delay=3)
    points = np.stack([f[0].landmarks for f in out])
    away = np.linalg.norm(points - each, axis=-1).mean(-1) / np.linalg.norm(each[:, 0] - each[:, 1], axis=-1)
    assert tracker.detections == 6 and {f[0].id for f in out} == {0}
    assert np.quantile(away, 0.95) < 0.03 and jitter(points) < 0.5 * jitter(each)
    assert abs(lag(points, smooth_landmarks(each, delay=None))) < 1


def test_cuts_of_joined_real_clips(shared):
    clips = [[im for _, im in zip(range(6), (im for _, im in video_frames(p)))] for p in sorted((shared / "data/video").glob("*"))]
    assert len(clips) > 5
    joined = [f for c in clips for f in c]
    starts = {6 * i for i in range(1, len(clips))}
    assert {i for i in range(1, len(joined)) if is_cut(joined[i - 1], joined[i])} == starts


def test_two_real_people_keep_their_ids_and_joined_clips_do_not(shared):
    pair = [im for _, im in zip(range(10), (im for _, im in video_frames(shared / "data/video/intel_female-and-male.gif")))]
    other = [im for _, im in zip(range(4), (im for _, im in video_frames(shared / "data/video/intel_male.gif")))]
    _, out = follow(pair + other, delay=3)
    assert [sorted(f.id for f in fs) for fs in out] == [[0, 1]] * 10 + [[2]] * 4 and [i for i, fs in enumerate(out) if fs[0].cut] == [0, 10]
    left = [min(fs, key=lambda f: f.box[0]).id for fs in out[:10]]
    assert len(set(left)) == 1
