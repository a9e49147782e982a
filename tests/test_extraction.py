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
from deepswap.core import CANONICAL5, DataError, ImageError, NoFaceError, OutputError, UsageError, to_pil, to_tensor, to_uint8
from deepswap.extraction import (COLUMNS, Album, announced, appearance, extract_faces, face_hash, face_sharpness, fine_mask, group_faces,
                                 hull_mask, is_clip, pictures_of, read_extract, rough_pose, source_files, whole_folder)
from deepswap.faces import align, find_faces
from deepswap.people import landmarks, render, sample_people, scene_path

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
    return extract_faces(clip, out, size=128, duplicates=0.01), out


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
