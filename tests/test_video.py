"Video in, video out: sound, times, choices, resume, and what bad input gets."

import av
import pytest
import torch

from deepswap.core import to_pil
from deepswap.people import People, render, sample_people, scene_path
from deepswap.video import swap_video, write_clip

pytestmark = pytest.mark.usefixtures("one_thread")


def tint(source, target, source_landmarks=None, target_landmarks=None):
    "A swapper that is quick and easy to see."
    mask = torch.zeros_like(target[:, :1])
    mask[..., 32:96, 32:96] = 1
    return -target, mask


tint.size, tint.method = 128, "other"


def actor(n, seed=11, size=160):
    "Somebody talks: n frames as Pillow pictures."
    p = sample_people(2, "easy", seed=seed)
    p.style = p.style.replace(glasses=0.0, fringe=0.0, hat=0.0)
    scene = scene_path(n, seed=3, base=p.scene[0]).replace(zoom=0.6)
    return to_pil(render(People(p.identity[0].repeat(n), p.style[0].repeat(n), scene, torch.zeros(n)), size).image)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_clip(actor(30), tmp_path_factory.mktemp("clips") / "actor.mp4")


def packets(path, kind):
    "(payload, time in seconds) of each packet."
    with av.open(str(path)) as file:
        return [(bytes(p), p.pts * p.time_base) for p in file.demux(getattr(file.streams, kind)) if p.size]


def test_a_clip_with_its_sound(clip, tmp_path):
    told = []
    r = swap_video(None, clip, tmp_path / "out.mp4", tint, segment=8, mark=False, progress=lambda f, t: told.append(f))
    assert (r.frames, r.swapped, r.resumed) == (30, 30, 0) and r.fps > 0
    assert packets(r.path, "audio") == packets(clip, "audio")
    assert [t for _, t in packets(r.path, "video")] == sorted(t for _, t in packets(clip, "video"))
    assert told == sorted(told) and told[-1] == 1.0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.mp4"], "the work folder is gone"
