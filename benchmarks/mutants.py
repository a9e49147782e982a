"""Spoiled inputs for every reader: pictures, clips, signed files, weights, runs, lists, words and the environment.

`tests/test_fuzz.py` draws a few hundred of them in each run of the suite, `benchmarks/robustness.py fuzz` ten thousand. A reader may
give a value or raise a `DeepswapError` of one sentence; anything else is a fault. hypothesis draws, and shrinks what it finds."""

import base64
import copy
import functools
import io
import json
import os
import struct
import tempfile
import time
import traceback
import zlib
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from hypothesis import strategies as st
from PIL import Image

from deepswap.core import DeepswapError

LONG = 600  # letters that the one sentence may have; a path of the file system may be most of it
SLOW = 20.0  # seconds after which an input counts as a hang

# ---------------------------------------------------------------- bytes: what can happen to any file

part = st.integers(0, 9999).map(lambda k: k / 9999)
WHOLE = [0, 1, 2, 3, 7, 8, 15, 16, 255, 256, 1000, 32767, 65535, 65536, 2**24, 2**31 - 1, 2**31, 2**32 - 1]


@st.composite
def ops(draw):
    "One thing that happens to a file: a name and its numbers."
    kind = draw(st.sampled_from(["cut", "flip", "put", "drop", "repeat", "splice", "number", "zero", "lie"]))
    return (kind, draw(part), draw(part), draw(st.sampled_from(WHOLE)), draw(st.binary(min_size=1, max_size=8)), draw(st.integers(0, 63)))


def spoil(data: bytes, op, other: bytes) -> bytes:
    "Do it; `other` is a sound file of the same family, for splices."
    kind, a, b, n, new, k = op
    at, m = int(a * len(data)), bytearray(data)
    if kind == "cut":
        return data[:at]
    if kind == "flip" and m:
        m[min(at, len(m) - 1)] ^= 1 << (k % 8)
    if kind == "put":
        m[at : at + len(new)] = new
    if kind == "drop":
        del m[at : at + 1 + int(b * 64)]
    if kind == "repeat":
        m[at:at] = m[at : at + 1 + int(b * 256)] * (1 + k % 5)
    if kind == "splice":
        return data[:at] + other[int(b * len(other)) :]
    if kind == "number":
        m[at : at + 4] = struct.pack("<I" if k % 2 else ">I", n & 0xFFFFFFFF)
    if kind == "zero":
        m[at : at + 1 + int(b * 256)] = bytes(1 + int(b * 256))
    return bytes(lie(data, n, k)) if kind == "lie" else bytes(m)


def lie(data: bytes, n: int, k: int) -> bytes:
    "The header claims something else, mostly a size, and is sound otherwise."
    m, short = bytearray(data), n & 0xFFFF
    if data[:4] == b"\x89PNG" and len(data) > 33:
        fields = (">I", 16, n & 0x7FFFFFFF), (">I", 20, n & 0x7FFFFFFF), (">B", 24, n & 255), (">B", 25, n & 7), (">B", 28, n & 1)
        fmt, at, value = fields[k % 5]
        struct.pack_into(fmt, m, at, value)
        struct.pack_into(">I", m, 29, zlib.crc32(m[12:29]))
    elif data[:2] == b"\xff\xd8":
        for sof in (b"\xff\xc0", b"\xff\xc2"):
            if (at := data.find(sof)) > 0 and at + 10 < len(data):
                struct.pack_into(">H", m, at + (5, 7, 2)[k % 3], short)
    elif data[:3] == b"GIF" and len(data) > 12:
        struct.pack_into("<H", m, 6 + 2 * (k % 2), short)
    elif data[:2] == b"BM" and len(data) > 54:
        fmt, at = (("<i", 18), ("<i", 22), ("<H", 28), ("<I", 30), ("<I", 10), ("<I", 46))[k % 6]
        struct.pack_into(fmt, m, at, n & (0xFFFF if fmt == "<H" else 0x7FFFFFFF))
    elif data[:4] in (b"II*\0", b"MM\0*") and len(data) > 8:
        end = "<" if data[:1] == b"I" else ">"
        start = struct.unpack_from(end + "I", data, 4)[0]
        if start + 2 < len(data) and (count := struct.unpack_from(end + "H", data, start)[0]):
            at = start + 2 + 12 * (k % count)
            if at + 12 <= len(data):
                struct.pack_into(end + "I", m, at + (8 if k % 3 else 4), n & 0xFFFFFFFF)
    elif data[:4] == b"RIFF" and len(data) > 30:
        struct.pack_into("<I", m, (4, 16, 24, 27)[k % 4], n & 0xFFFFFFFF)
    elif data[4:8] == b"ftyp":  # MP4: the length of a box that is in every such file
        box = (b"moov", b"mvhd", b"trak", b"tkhd", b"stsz", b"stco", b"stts", b"stsd", b"avc1", b"mdat", b"stsc", b"elst")[k % 12]
        if (at := data.find(box)) >= 4:
            struct.pack_into(">I", m, at - 4 if k % 3 else min(at + 16, len(m) - 4), n & 0xFFFFFFFF)
    elif data[:2] in (b"P5", b"P6"):
        return data[:3] + f"{n} {n if k % 2 else 3}\n255\n".encode() + data[15:]
    return bytes(m)


# ---------------------------------------------------------------- JSON: what can happen to a tree

odd = st.one_of(
    st.sampled_from([None, True, False, 0, -1, 1, 3, 64, 2**12, 2**20, 2**31, 2**63, 10**30, 1e308, -0.5, "", "x", "../x", "a\0b", "/etc/passwd", "\u202egnp.exe", [], {}, [[]], {"a": 1}, [0] * 50]),
    st.integers(), st.floats(), st.text(max_size=12), st.lists(st.integers(-3, 3), max_size=3),
)
edits = st.tuples(st.lists(st.integers(0, 40), min_size=1, max_size=5), st.sampled_from(["put", "put", "drop", "rename", "wrap"]), odd)


def edit(tree, steps, what, value):
    "Walk into the tree by the numbers and change what is there; JSON alone comes out."
    steps, value, at, up, key = list(steps), copy.deepcopy(value), tree, None, None
    while steps and isinstance(at, (dict, list)) and at:
        keys = list(at) if isinstance(at, dict) else range(len(at))
        up, key = at, keys[steps.pop(0) % len(keys)]
        at = up[key]
    if up is None:
        return value
    if what == "drop":
        del up[key]
    elif what == "rename" and isinstance(up, dict):
        up[str(value)[:20]] = up.pop(key)
    else:
        up[key] = [at] if what == "wrap" else value
    return tree


def broken_json(text: str, changes, op) -> bytes:
    "Text of a tree after some changes; one in a few is not JSON any more."
    tree = json.loads(text)
    for change in changes:
        tree = edit(tree, *change)
    data = json.dumps(tree).encode("utf-8", "surrogatepass")
    return spoil(data, op, data[::-1]) if op else data


# ---------------------------------------------------------------- safetensors: taken apart and put together with other contents


def apart(data: bytes):
    "(metadata, {name: [dtype, shape, bytes]}) of a sound safetensors file."
    n = struct.unpack("<Q", data[:8])[0]
    header, body = json.loads(data[8 : 8 + n]), data[8 + n :]
    meta = header.pop("__metadata__", {})
    return meta, {k: [v["dtype"], v["shape"], body[slice(*v["data_offsets"])]] for k, v in header.items()}


def together(meta, tensors) -> bytes:
    "The file again; the offsets are right, whatever the tensors claim."
    header, body = ({"__metadata__": meta} if meta else {}), b""
    for k, (dtype, shape, raw) in tensors.items():
        header[k] = {"dtype": dtype, "shape": shape, "data_offsets": [len(body), len(body) + len(raw)]}
        body += raw
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(text)) + text + body


weight_edits = st.tuples(st.sampled_from(["info", "info", "info", "state", "state", "values", "shape", "lose", "rename", "header"]), edits, st.integers(0, 200), st.booleans())


def spoil_weights(data: bytes, change) -> bytes:
    "Change what a weights file says of itself, its state or its tensors; if asked, with checksums that fit again."
    kind, tree_edit, k, mend = change
    meta, tensors = apart(data)
    info = json.loads(meta.get("deepswap", "{}"))
    names = list(tensors)
    name = names[k % len(names)] if names else None
    if kind == "info":
        info = edit(info, *tree_edit)
    if kind == "state" and "state" in tensors:
        raw = json.dumps(edit(json.loads(tensors["state"][2]), *tree_edit)).encode("utf-8", "surrogatepass")
        tensors["state"] = ["U8", [len(raw)], raw]
    if kind == "values" and name:
        dtype, _, raw = tensors[name]
        nan = {"F32": struct.pack("<f", float("nan" if k % 2 else "inf")), "F16": b"\x00\x7e"}.get(dtype, b"\xff")
        tensors[name][2] = nan * (len(raw) // len(nan))
    if kind == "shape" and name:
        tensors[name][1] = [*tensors[name][1][::-1]] if k % 2 else [int(np.prod(tensors[name][1]))]
    if kind == "lose" and name:
        del tensors[name]
    if kind == "rename" and name:
        tensors[f"{name}x"] = tensors.pop(name)
    if kind == "header":
        tensors = edit({k: list(v) for k, v in tensors.items()}, tree_edit[0][:2], "put", tree_edit[2])
        tensors = {str(k): v for k, v in tensors.items() if isinstance(v, list) and len(v) == 3 and isinstance(v[2], bytes)} if isinstance(tensors, dict) else {}
    if mend and isinstance(info, dict) and isinstance(info.get("checksums"), dict):
        info["checksums"] = {k: zlib.crc32(v[2]) for k, v in tensors.items()}
    return together({**meta, "deepswap": json.dumps(info)} if "deepswap" in meta else meta, tensors)


# ---------------------------------------------------------------- sound files to begin with


def noise(w, h, seed=0, bands=3):
    "A picture with structure and some noise."
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:h, :w]
    a = np.stack([(x * 5 + y * (3 + c) + 40 * c) % 256 for c in range(bands)], -1) + rng.integers(0, 20, (h, w, bands))
    return Image.fromarray(a.clip(0, 255).astype(np.uint8))


def encoded(image, kind, **kw) -> bytes:
    "A picture's file."
    out = io.BytesIO()
    image.save(out, kind, **kw)
    return out.getvalue()


def seed_pictures(folder) -> list:
    "Every kind and mode of still that is read."
    rgb, exif = noise(37, 29), Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "camera"
    deep = Image.fromarray((np.arange(29 * 37, dtype=np.uint16) * 60).reshape(29, 37))
    frames = [noise(24, 20, k).convert("P") for k in range(3)]
    return [
        *[("a.png", encoded(i, "PNG")) for i in (rgb, rgb.convert("P"), rgb.convert("RGBA"), rgb.convert("1"), rgb.convert("LA"), deep)],
        ("a.png", encoded(rgb.convert("P"), "PNG", transparency=3)),
        *[("a.jpg", encoded(i, "JPEG", **k)) for i, k in ((rgb, {}), (rgb.convert("L"), {}), (rgb.convert("CMYK"), {}), (rgb, {"progressive": True}), (rgb, {"exif": exif}))],
        ("a.webp", encoded(rgb, "WEBP")), ("a.webp", encoded(rgb.convert("RGBA"), "WEBP", lossless=True)),
        ("a.gif", encoded(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=40)), ("a.gif", encoded(frames[0], "GIF", transparency=0)),
        *[("a.tiff", encoded(i, "TIFF", compression=c)) for i, c in ((rgb, None), (rgb, "tiff_lzw"), (rgb, "tiff_adobe_deflate"), (rgb, "jpeg"), (rgb.convert("1"), "packbits"), (deep, None))],
        ("a.bmp", encoded(rgb, "BMP")), ("a.bmp", encoded(rgb.convert("P"), "BMP")), ("a.ppm", encoded(rgb, "PPM")), ("a.ppm", encoded(rgb.convert("L"), "PPM")),
    ]


def write_clip(path, codec, sound=None, n=10, size=(48, 32), rate=10):
    "A tiny clip, with a sine for sound."
    import av

    with av.open(str(path), "w") as file:
        s = file.add_stream(codec, rate=rate)
        s.width, s.height, s.pix_fmt = *size, "bgr8" if codec == "gif" else "yuv420p"
        if codec == "libx264":
            s.options = {"preset": "ultrafast"}
        a = file.add_stream(sound, rate=44100) if sound else None
        for k in range(n):
            file.mux(s.encode(av.VideoFrame.from_image(noise(*size, k)).reformat(format=s.pix_fmt)))
        file.mux(s.encode())
        if a:
            wave = (np.sin(np.arange(44100 * n // rate) / 20) * 9000).astype(np.int16)[None]
            f = av.AudioFrame.from_ndarray(wave, format="s16", layout="mono")
            f.sample_rate, f.pts = 44100, 0
            file.mux(a.encode(f))
            file.mux(a.encode())
    return Path(path)


def seed_clips(folder) -> list:
    "Containers and codecs."
    made = [("a.mp4", "libx264", "aac"), ("a.mkv", "libx264", "aac"), ("a.avi", "mpeg4", None), ("a.gif", "gif", None), ("a.mov", "mpeg4", "aac"), ("a.webm", "libvpx", None), ("a.mpg", "mpeg1video", None)]
    rate = {"mpeg1video": 25}
    return [(name, write_clip(Path(folder) / f"{k}{name}", codec, sound, rate=rate.get(codec, 10)).read_bytes()) for k, (name, codec, sound) in enumerate(made)]


def seed_signed(folder) -> list:
    "Results of ours, and files that carry nothing."
    from deepswap.provenance import stamp, stamp_video

    folder, picture, out = Path(folder), noise(160, 120), []
    for name in ("s.png", "s.jpg"):
        stamp(picture, folder / name)
        out.append((name, (folder / name).read_bytes()))
    clip = write_clip(folder / "plain.mp4", "libx264", n=4)
    stamp_video(clip, folder / "s.mp4", mark=False, label="bottom-right")
    return [*out, ("s.mp4", (folder / "s.mp4").read_bytes()), ("p.jpg", encoded(picture, "JPEG")), ("p.mp4", clip.read_bytes())]


def seed_weights(folder) -> list:
    "One small file for every function that loads weights."
    import torch
    from safetensors.torch import save_file

    from deepswap.classify import AttributeCNN
    from deepswap.faceshifter import FaceShifter, save_faceshifter
    from deepswap.hear import Hear, save_hear
    from deepswap.identity import IdentityNet, MobileFaceNet, save_encoder
    from deepswap.train import half_tensors, run, write_tensors
    from deepswap.yardsticks import SceneReader, save_reader

    folder = Path(folder)
    torch.manual_seed(0)
    run("toy-gan", "ring", 8, 4, 2, out=folder / "toy", device="cpu", options={"width": 8}, progress=False)
    run("autoencoder", "procedural:n=4", 16, 4, 1, out=folder / "ae", device="cpu", options={"width": 2, "code": 4}, progress=False)
    shifter = FaceShifter(size=32, width=2, ndf=2)
    save_faceshifter(shifter, folder / "fs.safetensors")
    save_hear(Hear(size=32, width=2, faceshifter=str(folder / "fs.safetensors")), folder / "hear.safetensors")
    plain = {"attributes": ["smiling", "hat"], "depth": 2, "width": 2, "size": 16, "hidden": 4, "norm": True}
    write_tensors(folder / "cnn.safetensors", half_tensors(AttributeCNN(**plain), "network/"), {"attribute_cnn": plain})
    small = IdentityNet(size=48, width=2, dim=8)
    save_encoder(small, folder / "id.safetensors")
    save_reader(SceneReader(), folder / "reader.safetensors")
    save_file({k: t for k, t in MobileFaceNet().state_dict().items()}, folder / "mobile.safetensors")
    return [*((p.name, p.read_bytes()) for p in sorted(folder.glob("*.safetensors"))), *((f"{n}.safetensors", (folder / n / "last.safetensors").read_bytes()) for n in ("toy", "ae"))]


# ---------------------------------------------------------------- readers: from a spoiled file to a value, or to one sentence


def read_picture(path):
    "By path, by bytes, by open file; and as the tensor that networks take."
    from deepswap.core import read_image, to_tensor

    image = read_image(path)
    assert image.mode == "RGB" and min(image.size) > 0, f"{image.mode} {image.size}"
    assert np.array_equal(np.asarray(image), np.asarray(read_image(path.read_bytes()))), "path and bytes differ"
    if image.width * image.height < 10**6:
        x = to_tensor(image)
        assert x.shape == (1, 3, image.height, image.width) and x.abs().max() <= 1


def each(*readers):
    "Call one after the other; the first error is raised at the end, so that each is tried."
    first = None
    for read in readers:
        try:
            read()
        except DeepswapError as e:
            check_sentence(e)
            first = first or e
    if first:
        raise first


def read_clip(path):
    "By the chapter on data, the one on extraction, and the one on video."
    from itertools import islice

    from deepswap.data import VideoFaces, video_frames
    from deepswap.extraction import count_pictures, pictures_of
    from deepswap.video import Clip, check_sound

    def swapped():
        clip = Clip(path)
        check_sound(clip, ".mp4")
        last = None
        for f in islice(clip.frames(), 60):
            assert f.image.mode == "RGB" and (last is None or f.pts > last)
            last = f.pts

    each(swapped, lambda: [None for _ in islice(video_frames(path), 60)], lambda: [None for _ in islice(pictures_of(path, 1, lambda s: None), 60)], lambda: count_pictures(path), lambda: VideoFaces(path, 16, limit=20))


def read_signs(path):
    "What `deepswap inspect` asks, and what the signer looks at."
    from deepswap.provenance import inspect

    found = inspect(path)
    assert found.summary


def read_own(path):
    "With the loader that its name asks for."
    from deepswap.classify import load_attribute_cnn
    from deepswap.cli import open_run
    from deepswap.faceshifter import load_faceshifter
    from deepswap.hear import load_hear
    from deepswap.identity import get_encoder
    from deepswap.train import load_method
    from deepswap.yardsticks import load_reader

    own = {"cnn": load_attribute_cnn, "fs": lambda p: load_faceshifter(p, "cpu"), "hear": lambda p: load_hear(p, "cpu"), "id": lambda p: get_encoder(p, "cpu"), "mobile": lambda p: get_encoder(p, "cpu"),
           "reader": load_reader, "toy": lambda p: (open_run(p, "cpu"), resume_toy(p)), "ae": lambda p: load_method(p, device="cpu")}
    own[path.stem](path)


def read_weights(path):
    "With the loader that its name asks for, and with one that knows nothing of it."
    from deepswap.classify import load_attribute_cnn
    from deepswap.swap import open_trained
    from deepswap.train import read_tensors
    from deepswap.yardsticks import SqueezeFeatures, load_reader

    others = [load_attribute_cnn, load_reader, SqueezeFeatures, read_tensors, open_trained]
    each(lambda: read_own(path), lambda: others[path.stat().st_size % len(others)](path))


def resume_toy(path):
    "Go on with a run whose checkpoint this is."
    from deepswap.train import run

    with tempfile.TemporaryDirectory() as out:
        (Path(out) / "last.safetensors").write_bytes(path.read_bytes())
        run("toy-gan", "ring", 8, 4, 2, out=out, resume=True, device="cpu", options={"width": 8}, progress=False)


def seed_texts(folder) -> list:
    "Reports, notes, lists and tables that are read again."
    report = {"settings": {"n": 2, "size": 64, "gallery": 8, "space": "attributes"}, "about": {}, "lines": [{"protocol": "normal", "method": m, "print": "x/y", "numbers": {"judge: retrieval": 0.5, "pose": 3.25, "ms": 4}} for m in ("untouched", "classical")]}
    lists = {"identity.txt": "1.jpg 7\n2.jpg 7\n3.jpg 9\n", "partition.txt": "1.jpg 0\n2.jpg 1\n3.jpg 2\n", "attributes.txt": "3\nSmiling Hat\n1.jpg -1 1\n2.jpg 1 1\n3.jpg 1 -1\n",
             "people.txt": "2\n2\nAnn\t1\nBob\t1\n", "pairs.txt": "1\t1\nAnn\t1\t1\nAnn\t1\tBob\t1\n", "names.txt": "Ann 1\nBob 1\n"}
    return [("report.json", json.dumps(report).encode()), ("bad.json", json.dumps({"bad": [1], "skipped": [["2.jpg", "cut"]]}).encode()), ("job.json", seed_job(folder)), *((k, v.encode()) for k, v in lists.items())]


def seed_job(folder) -> bytes:
    "The note of an unfinished video."
    job = toy_job(folder)
    with quietly(DeepswapError, KeyboardInterrupt):
        job.take_up()
        job.run(lambda done, text: None)
    return (job.folder / "job.json").read_bytes()


def toy_job(folder):
    "A video job whose swapper does nothing, in segments of four frames."
    import torch

    from deepswap.video import Clip, VideoJob

    clip = Path(folder) / "clip.mp4"
    if not clip.exists():
        write_clip(clip, "libx264", n=10)
    job = VideoJob(Clip(clip), Path(folder) / "out.mp4", lambda s, t: (t, t[:, :1] * 0), segment=4, size=64, mark=False, label=False, device="cpu", match=False)
    job.crops[64] = torch.zeros(1, 3, 64, 64), torch.zeros(1, 5, 2)
    return job


@contextmanager
def quietly(*errors):
    try:
        yield
    except errors:
        pass


def read_text(path):
    "Put it where it is read: into a folder that is otherwise sound."
    from deepswap.evaluate import _begin, open_report

    data, name = path.read_bytes(), path.name
    with tempfile.TemporaryDirectory(dir=path.parent) as root:
        root = Path(root)
        if name == "report.json":
            report = open_report(path)
            assert all(isinstance(report.table(p), str) for p in report.protocols)
            (root / "evaluate.json").write_bytes(data)
            _begin(root, {"n": 2, "size": 64, "gallery": 8, "space": "attributes"})
        elif name == "job.json":
            job = toy_job(path.parent)
            job.folder.mkdir(exist_ok=True)
            (job.folder / "job.json").write_bytes(data)
            for k in range(3):
                (job.folder / f"{k:05d}.mp4").write_bytes(b"no video")
            job.take_up()
        elif name == "bad.json":
            read_disk_cache(root, data)
        else:
            read_lists(root, name, data)


def read_disk_cache(root, data):
    "A data set on the disk whose note on bad files is spoiled."
    from deepswap.data import FolderFaces

    pictures = root / "pictures"
    pictures.mkdir()
    for k in range(3):
        (pictures / f"{k}.jpg").write_bytes(SMALL)
    before = os.environ.get("DEEPSWAP_CACHE")
    os.environ["DEEPSWAP_CACHE"] = str(root / "cache")
    try:
        FolderFaces(pictures, 8, cache="disk")
        note = next((root / "cache").rglob("bad.json"))
        note.write_bytes(data)
        assert 1 <= len(FolderFaces(pictures, 8, cache="disk")) <= 3
    finally:
        os.environ.pop("DEEPSWAP_CACHE") if before is None else os.environ.update(DEEPSWAP_CACHE=before)


SMALL = encoded(noise(16, 16), "JPEG")


def read_lists(root, name, data):
    "CelebA's and LFW's lists, one of them spoiled."
    from deepswap.data import CelebAFaces, LFWFaces

    where = {"identity.txt": "identity_CelebA.txt", "partition.txt": "list_eval_partition.txt", "attributes.txt": "list_attr_celeba.txt", "people.txt": "people.txt", "pairs.txt": "pairs.txt", "names.txt": "lfw-names.txt"}
    sound = {n: d for n, d in seed_texts_lists()}
    celeba = name in ("identity.txt", "partition.txt", "attributes.txt")
    folder = root / ("img_align_celeba" if celeba else "lfw_funneled")
    folder.mkdir()
    for file in ("1.jpg", "2.jpg", "3.jpg") if celeba else ("Ann/Ann_0001.jpg", "Bob/Bob_0001.jpg"):
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_bytes(SMALL)
    for n in ("identity.txt", "partition.txt", "attributes.txt") if celeba else ("people.txt", "pairs.txt", "names.txt"):
        (root / where[n]).write_bytes(data if n == name else sound[n])
    each(*((lambda s=s: CelebAFaces(root, 8, split=s)) for s in ("all", "train"))) if celeba else LFWFaces(root, 8)


def seed_texts_lists():
    return [(n, d) for n, d in seed_texts_cache() if n.endswith(".txt")]


@functools.lru_cache(1)
def seed_texts_cache():
    with tempfile.TemporaryDirectory() as folder:
        return seed_texts(folder)


# ---------------------------------------------------------------- words and the environment

VALUES = ["0", "1", "-1", "2", "8", "16", "64", "1e9", "99999999999999999999", "9" * 5000, "nan", "inf", "-inf", "0.5", "\u00b2", "\u0663", "1_0", " 4", "", "x", "a\0b", "../../etc/passwd", "/etc/passwd", "/dev/null", ".", "..",
          "~", "con", "-", "--", "--help", "-o", "\u202egnp.exe", "\ud800", "n" * 300, "a/" * 3000, "auto", "cpu", "cuda:97", "meta", "largest", "all", "a", "b", "easy", "procedural", "*", "$(id)", "\n", "%s%n", "{0}", "None",
          "out.png", "out.mp4", "in.png", "in.mp4", "in.txt", "run"]
DATA = ["n", "scenes", "seed", "person", "preset", "smiling", "no-hat", "no-", "no-no-hat", "x", "="]


@st.composite
def words(draw):
    "A command line: a real command as a rule, real options as a rule, any values."
    from deepswap.cli import COMMANDS, TRAINABLE, build_parser

    name = draw(st.sampled_from([*COMMANDS, "help", "swpa", "--version", ""]))
    first = draw(st.sampled_from([*TRAINABLE, "gam"])) if name == "train" else None
    known = sorted(build_parser(name, [first] if first in TRAINABLE else [])._option_string_actions) if name in COMMANDS else ["-h"]
    value = st.one_of(st.sampled_from(VALUES), st.text(max_size=8))
    option = st.one_of(st.sampled_from(known), st.sampled_from(["--siez", "-x", "--"]))
    tail = draw(st.lists(st.one_of(st.tuples(option), st.tuples(option, value), st.tuples(option, value), st.tuples(value)), max_size=7))
    return [name, *([first] if first else []), *(w for some in tail for w in some)]


@st.composite
def description(draw):
    "What may stand behind --data procedural:"
    pair = st.tuples(st.sampled_from(DATA), st.sampled_from(VALUES)).map("=".join)
    return "procedural:" + ",".join(draw(st.lists(st.one_of(st.sampled_from(DATA), pair, st.text(max_size=6)), max_size=4)))


def read_words(argv, folder):
    "The program up to where the work would begin: everything is parsed and checked, nothing is trained, swapped or served."
    import contextlib

    from deepswap import cli

    out, err, here = io.StringIO(), io.StringIO(), os.getcwd()
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), no_work():
            code = cli.main(list(argv))
    finally:
        os.chdir(here)
    said = err.getvalue()
    assert code in (0, 1, 2), f"exit code {code}"
    assert "fault of the program" not in said and "Traceback" not in said + out.getvalue(), said[:300]
    lines = [line for line in said.split("\n") if line]
    assert all(line.startswith("deepswap: ") for line in lines), said[:300]
    if code == 2 and argv and argv[0]:
        assert len(lines) >= 1 and len(lines[-1]) < 2 * LONG, said[:300]
        raise DeepswapError("The command was refused.")


class Enough(DeepswapError):
    "Raised in place of the work."


@contextmanager
def no_work():
    "Replace what computes, serves or starts a program by a stop."
    from unittest import mock

    from deepswap import data, demo, evaluate, extraction, people, swap, train, video

    def stop(*a, **k):
        raise Enough("All words were understood.")

    marks = [(swap, "swap_photo"), (extraction, "extract_faces"), (train.Trainer, "fit"), (video, "swap_video"), (evaluate, "evaluate"), (people, "render"), (demo, "launch"), (data.ProceduralFaces, "_draw")]
    with contextlib_stack() as stack:
        for where, name in marks:
            stack.enter_context(mock.patch.object(where, name, stop))
        stack.enter_context(mock.patch("subprocess.Popen", stop))
        yield


def contextlib_stack():
    import contextlib

    return contextlib.ExitStack()


def read_description(spec, folder):
    "A description of procedural people, up to the drawing of the pictures."
    from deepswap.data import open_faces

    with no_work():
        try:
            faces = open_faces(spec, 8, n_people=4)
        except Enough:
            return
        assert len(faces) >= 1


SETTINGS = ["DEEPSWAP_FAST", "DEEPSWAP_CACHE", "DEEPSWAP_DEBUG", "XDG_CACHE_HOME", "IN_TEST", "WORLD_SIZE", "RANK"]
environment = st.dictionaries(st.sampled_from(SETTINGS[:5]), st.sampled_from([v for v in VALUES if "\0" not in v and "\ud800" not in v]), max_size=3)


def read_environment(values, folder):
    "Everything that asks the environment."
    from unittest import mock

    from deepswap.core import budget, cache_dir
    from deepswap.provenance import inspect, stamp

    here = os.getcwd()
    os.chdir(folder)
    try:
        with mock.patch.dict(os.environ, {**values, "HOME": str(folder)}):
            assert budget(1, 2) in (1, 2)
            each(lambda: cache_dir("x"), lambda: inspect(noisy(folder)), lambda: stamp(noise(64, 64), Path(folder) / "stamped.png"))
    finally:
        os.chdir(here)


def noisy(folder):
    path = Path(folder) / "in.png"
    if not path.exists():
        noise(96, 64).save(path)
    return path


# ---------------------------------------------------------------- the property

FILES = {"pictures": (seed_pictures, read_picture), "videos": (seed_clips, read_clip), "signs": (seed_signed, read_signs), "weights": (seed_weights, read_weights), "texts": (seed_texts, read_text)}
SPOKEN = {"words": (words, read_words), "descriptions": (description, read_description), "environment": (lambda: environment, read_environment)}
READERS = [*FILES, *SPOKEN]


def check_sentence(e):
    "One sentence a person can use: one line, not too long, ends, names no machine part."
    text = " ".join(w if len(w) < 300 else w[:240] for w in str(e).split(" "))  # the command line shortens such words too
    assert text.strip() and len(text.splitlines()) == 1, f"{type(e).__name__} of {len(text.splitlines())} lines: {text[:200]!r}"
    assert text[-1] in ".!?" and len(text) <= LONG, f"{type(e).__name__} ends badly or is too long ({len(text)}): {text[:200]!r}"
    assert not any(w in text for w in ("Traceback", "object at 0x", "site-packages", "errno")), text[:200]


class Bench:
    "Sound files of every family, made once, and a folder to spoil them in."

    def __init__(self, name, folder):
        self.name, self.folder = name, Path(folder)
        (self.folder / "seeds").mkdir(parents=True, exist_ok=True)
        self.work = self.folder / "work"
        self.work.mkdir(exist_ok=True)
        self.seeds = FILES[name][0](self.folder / "seeds") if name in FILES else []
        for n in ("in.png", "in.txt") if name in SPOKEN else ():
            noisy(self.work) if n == "in.png" else (self.work / n).write_text("a text")

    def strategy(self):
        "What hypothesis draws: plain values from which `make` makes the input."
        if self.name in SPOKEN:
            return SPOKEN[self.name][0]()
        which = st.integers(0, len(self.seeds) - 1)
        some = st.lists(ops(), min_size=1, max_size=3)
        if self.name == "weights":
            return st.tuples(which, st.one_of(st.lists(weight_edits, min_size=1, max_size=2), some))
        if self.name == "texts":
            return st.tuples(which, st.lists(edits, max_size=3), st.one_of(st.none(), ops()))
        return st.tuples(which, some)

    def make(self, drawn):
        "(name, bytes) of a spoiled file."
        name, data = self.seeds[drawn[0]]
        if self.name == "texts":
            if name.endswith(".json"):
                return name, broken_json(data.decode(), *drawn[1:])
            return name, spoil_text(data, drawn[1], drawn[2])
        for op in drawn[1]:
            if op[0] in ("info", "state", "values", "shape", "lose", "rename", "header"):
                try:
                    data = spoil_weights(data, op)
                except (ValueError, KeyError, IndexError, struct.error):
                    pass  # the change before left nothing to change
            else:
                data = spoil(data, op, self.seeds[(drawn[0] + 1 + op[5]) % len(self.seeds)][1])
        return name, data

    def ask(self, drawn) -> str:
        "The property, for one input: 'read' or 'refused'; an AssertionError or any other exception is a fault."
        start = time.perf_counter()
        if self.name in SPOKEN:
            read, what, path = lambda: SPOKEN[self.name][1](drawn, self.work), None, None
        else:
            name, what = self.make(drawn)
            path = self.work / name
            path.write_bytes(what)
            read = lambda: FILES[self.name][1](path)  # noqa: E731
        try:
            read()
            said = "read"
        except DeepswapError as e:
            check_sentence(e)
            said = "refused"
        if path is not None:
            assert path.read_bytes() == what, "the input was changed"
        assert time.perf_counter() - start < SLOW, f"took {time.perf_counter() - start:.1f} s"
        return said


def spoil_text(data, changes, op) -> bytes:
    "A list: words replaced, then anything that happens to a file."
    cells = data.decode().split("\n")
    for steps, what, value in changes:
        k = steps[0] % len(cells)
        row = cells[k].replace("\t", " \t ").split(" ")
        row[steps[-1] % len(row)] = "" if what == "drop" else str(value).replace("\ud800", "?")
        cells[k] = "".join(row) if "\t" in row else " ".join(row)
    data = "\n".join(cells).encode("utf-8", "surrogatepass")
    return spoil(data, op, data[::-1]) if op else data


def where(e) -> str:
    "Kind of an error and the line of ours that raised it, for a table."
    frames = [f for f in traceback.extract_tb(e.__traceback__) if "deepswap/" in f.filename.replace("\\", "/") and "benchmarks" not in f.filename]
    at = frames[-1] if frames else None
    return f"{type(e).__name__} in {Path(at.filename).stem}.{at.name}: {' '.join(str(e).split())[:90]}" if at else f"{type(e).__name__}: {' '.join(str(e).split())[:140]}"


def told(drawn) -> str:
    "An input as text from which it can be drawn again: for reports."
    return base64.b64encode(zlib.compress(repr(drawn).encode("utf-8", "surrogatepass"))).decode()
