"The command line: one line per error, honest exit codes, nothing half written."

import csv
import io
import json
import os
import re
import signal
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import pytest
import torch
from PIL import Image

from deepswap import cli
from deepswap.core import to_pil
from deepswap.people import render, sample_people

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    "Two computed people, a picture with both, and one without a face."
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("pictures")
    a, b = render(sample_people(2, preset="easy", seed=3), 256).image
    for name, x in (("anna", a), ("ben", b), ("both", torch.cat([a, b], 2)), ("plain", torch.zeros(3, 200, 200))): to_pil(x).save(folder / f"{name}.png")
    return folder


def listing(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


def fails(capsys, argv, *says, code=2):
    "The command ends with this code, one line on standard error, nothing on standard output."
    capsys.readouterr()
    assert cli.main([str(a) for a in argv]) == code
    out, err = capsys.readouterr()
    lines = [x for x in err.splitlines() if not x.startswith(("deepswap: skipped", "deepswap: note"))]
    assert out == "" and len(lines) == 1, (out, err)
    assert lines[0].startswith("deepswap: ") and "Traceback" not in err and len(lines[0]) < 400
    for s in says: assert s in lines[0], (s, lines[0])
    return lines[0]


def claims(path, width, height):
    "A file of a few bytes that says it is a huge picture."
    def chunk(kind, data): return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    body = zlib.compress(b"\0" * 1000)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)) + chunk(b"IDAT", body) + chunk(b"IEND", b""))
    return path


# ---- words

def test_help_is_quick():
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    for words in (["--help"], ["swap", "--help"], ["train", "--help"]):
        best = 9.0
        for _ in range(3):
            start = time.perf_counter()
            r = subprocess.run([sys.executable, "-c", f"import sys; from deepswap.cli import main; sys.exit(main({words!r}))"], capture_output=True, text=True, env=env, cwd=ROOT)
            best = min(best, time.perf_counter() - start)
            assert r.returncode == 0 and "usage: deepswap" in r.stdout and not r.stderr
        assert best < 1, best


def test_help_imports_nothing_heavy():
    code = "import sys; from deepswap.cli import main; main(['swap', '--help']); sys.exit(any(m in sys.modules for m in ('torch', 'numpy', 'PIL', 'gradio', 'c2pa', 'fastcore')))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=ROOT).returncode == 0


def test_overview_names_every_command(capsys):
    assert list(cli.COMMANDS) == ["lab", "demo", "people", "extract", "train", "sample", "swap", "video", "evaluate", "inspect"]
    assert cli.main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"  {n} " in out for n in cli.COMMANDS) and "exit codes" in out
    for n in cli.COMMANDS:
        assert cli.main([n, "--help"]) == 0
        assert f"usage: deepswap {n}" in capsys.readouterr().out


def test_version(capsys):
    import deepswap
    assert cli.main(["--version"]) == 0 and capsys.readouterr().out == f"deepswap {deepswap.__version__}\n"
    assert cli.main([]) == 2


@pytest.mark.parametrize("argv,says", [
    (["swpa"], ["Did you mean 'swap'?"]), (["zzzz"], ["no command 'zzzz'"]), (["--vers"], ["not an option", "--version"]),
    (["swap"], ["--out"]), (["swap", "-o", "c.png"], ["TARGET"]), (["swap", "a", "b", "c", "-o", "c.png"], ["'c' is not an option"]),
    (["video"], ["--target, -o/--out"]), (["video", "--target", "a.mp4", "--out", "b.mkv"], ["neither .mp4 nor .mov"]), (["video", "--target", "a.mp4", "--out", "b.mp4", "--quality", "52"], ["0 to 51"]),
    (["video", "--target", "a.mp4", "--out", "b.mp4", "--too", "a"], ["Did you mean '--to'?"]), (["video", "--target", "a.mp4", "--out", "b.mp4", "--to", "c"], ["auto"]), (["vidoe"], ["Did you mean 'video'?"]),
    (["extract", "a", "--out", "b", "--duplicates", "2"], ["from 0 to 1"]), (["extract", "a", "--out", "b", "--min-size", "big"], ["not a number"]), (["extract", "--out", "b"], ["VIDEO|FOLDER"]), (["swap", "a", "b", "-o", "c.png", "--metod", "x"], ["Did you mean '--method'?"]),
    (["swap", "a", "b", "-o", "c.png", "--fac", "1"], ["not an option"]), (["swap", "a", "b", "-o", "c.png", "--face", "left"], ["no choice of face"]),
    (["swap", "a", "b", "-o", "c.png", "--face", "0"], ["no choice of face"]), (["swap", "a", "b", "-o", "c.png", "--label-place", "centre"], ["bottom-right"]),
    (["swap", "a", "b", "-o", "c.png", "--source-face", "all"], ["--source-face"]),
    (["swap", "a", "b", "-o", "c.png", "--share", "1.5"], ["from 0 to 1"]), (["people", "--out", "x", "--people", "0"], ["from 1"]), (["people", "--out", "x", "--size", "9999"], ["16 to 2048"]), (["people", "--out", "x", "--seed", "-1"], ["from 0 up"]),
    (["people"], ["--out"]), (["people", "--preset", "medium", "--out", "x"], ["easy"]), (["train", "autoencodr", "--out", "x"], ["Did you mean 'autoencoder'?"]),
    (["lab", "--port", "0"], ["from 1 to 65535"]), (["demo", "--port", "x"], ["not a whole number"]), (["inspect"], ["FILE"])])
def test_wrong_words(capsys, tmp_path, monkeypatch, argv, says):
    monkeypatch.chdir(tmp_path)
    fails(capsys, argv, *says)
    assert listing(tmp_path) == []


def test_label_places_are_those_of_provenance():
    from deepswap.provenance import PLACES
    option = cli.build_parser("swap")._option_string_actions["--label-place"]
    assert tuple(option.choices) == PLACES


def test_extract_begins_with_the_defaults_of_the_library():
    "A limit that was measured anew stood in the chapter and not here."
    from inspect import signature

    from deepswap.extraction import extract_faces
    from deepswap.shards import extract_shards

    parsed = cli.build_parser("extract").parse_args(["a", "--out", "b"])
    for function in (extract_faces, extract_shards):
        ours = {k: p.default for k, p in signature(function).parameters.items() if hasattr(parsed, k) and p.default is not p.empty}
        assert len(ours) >= 7 and ours == {k: getattr(parsed, k) for k in ours}


# ---- swap and inspect

def test_swap_then_inspect(capsys, pictures, tmp_path):
    for name in ("out.png", "out.jpg"):
        out = tmp_path / name
        argv = ["swap", pictures / "anna.png", pictures / "ben.png", "-o", out, "--method", "classical"]
        assert cli.main([str(a) for a in argv]) == 0
        said = capsys.readouterr()
        assert said.err == "" and "1 face swapped (classical" in said.out
        assert cli.main(["inspect", str(out)]) == 0
        assert "Made with deepswap" in capsys.readouterr().out
        assert Image.open(out).size == (256, 256)
    assert cli.main([str(a) for a in argv]) == 0  # a result of ours is replaced
    assert listing(tmp_path) == ["out.jpg", "out.png"]
    assert cli.main(["inspect", str(pictures / "anna.png")]) == 1
    assert "No sign of deepswap" in capsys.readouterr().out


def test_inspect_json(capsys, pictures):
    assert cli.main(["inspect", "--json", str(pictures / "ben.png")]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["ours"] is False and found["credentials"] is None and found["mark"]["found"] is False


def test_label_is_not_dropped_silently(capsys, pictures, tmp_path):
    out = tmp_path / "out.png"
    assert cli.main(["swap", str(pictures / "anna.png"), str(pictures / "ben.png"), "-o", str(out), "--no-label"]) == 0
    assert "without the visible label" in capsys.readouterr().err
    assert cli.main(["inspect", str(out)]) == 0 and "left out on request" in capsys.readouterr().out


def test_several_faces(capsys, pictures, tmp_path):
    both, anna, out = pictures / "both.png", pictures / "anna.png", tmp_path / "out.png"
    fails(capsys, ["swap", both, anna, "-o", out], "2 faces were found in the source")
    fails(capsys, ["swap", anna, both, "-o", out, "--face", "one"], "2 faces were found in the target")
    fails(capsys, ["swap", anna, both, "-o", out, "--face", "3"], "Face 3")
    assert listing(tmp_path) == []
    assert cli.main(["swap", str(both), str(anna), "-o", str(out), "--source-face", "2"]) == 0
    assert cli.main(["swap", str(anna), str(both), "-o", str(out), "--face", "2"]) == 0
    assert "1 face swapped" in capsys.readouterr().out
    assert cli.main(["swap", str(anna), str(both), "-o", str(out)]) == 0
    assert "holds 2 faces; the largest" in capsys.readouterr().err


def test_wrong_places(capsys, pictures, tmp_path):
    anna, ben = pictures / "anna.png", pictures / "ben.png"
    photo = tmp_path / "holiday.png"
    photo.write_bytes(anna.read_bytes())
    for out, says in ((tmp_path, "is a folder"), (tmp_path / "a.gif", "neither .png nor .jpg"), (tmp_path / "a", "neither .png"), (tmp_path / "no/a.png", "does not exist"),
                      (photo, "is no result of deepswap")):
        fails(capsys, ["swap", anna, ben, "-o", out], says)
    fails(capsys, ["swap", photo, ben, "-o", photo, "--force"], "also an input")
    assert listing(tmp_path) == ["holiday.png"] and photo.read_bytes() == anna.read_bytes()
    assert cli.main(["swap", str(anna), str(ben), "-o", str(photo), "--force"]) == 0
    fails(capsys, ["swap", anna, ben, "-o", tmp_path / "b.png", "--method", "clasical"], "lasical")


@pytest.mark.parametrize("kind", ["missing", "folder", "text", "empty", "plain", "huge.png", "huge.gif", "nul"])
def test_bad_input(capsys, pictures, tmp_path, kind):
    bad = {"missing": tmp_path / "missing.jpg", "folder": tmp_path, "plain": pictures / "plain.png", "nul": "a\0b.png"}.get(kind, tmp_path / kind)
    if kind == "text": bad.write_text("dear diary")
    if kind == "empty": bad.write_bytes(b"")
    if kind == "huge.png": claims(bad, 20_000, 20_000)
    if kind == "huge.gif": bad.write_bytes(b"GIF89a" + struct.pack("<HH", 20_000, 20_000) + b"\0\0\0,\0\0\0\0" + struct.pack("<HH", 20_000, 20_000) + b"\0\x02\x02D\x01\0;")
    before, good = listing(tmp_path), pictures / "anna.png"
    for argv in ([bad, good], [good, bad]):
        line = fails(capsys, ["swap", *argv, "-o", tmp_path / "out.png"])
        if kind.startswith("huge"): assert "20000" in line or "400 megapixels" in line
    if kind != "plain": fails(capsys, ["inspect", bad])
    assert listing(tmp_path) == before


def test_every_malformed_file(capsys, pictures, tmp_path, shared):
    good, swapped = pictures / "anna.png", 0
    files = sorted((shared / "data/stills/malformed").iterdir())
    assert len(files) > 20
    for f in files:
        out = tmp_path / "out.png"
        if cli.main(["swap", str(good), str(f), "-o", str(out)]) == 0:
            swapped += 1
            out.unlink()
        else:
            err = capsys.readouterr().err
            assert len(err.splitlines()) == 1 and err.startswith("deepswap: "), err
        capsys.readouterr()
        assert listing(tmp_path) == []
        assert cli.main(["inspect", str(f)]) in (1, 2)
        assert len(capsys.readouterr().err.splitlines()) <= 1
    assert swapped >= 5  # rotated, grey, deep, transparent: odd but sound


def test_pictures_without_a_face(capsys, pictures, tmp_path, shared):
    files = sorted((shared / "data/stills/noface").iterdir())
    refused = 0
    for f in files:
        code = cli.main(["swap", str(pictures / "anna.png"), str(f), "-o", str(tmp_path / "out.png")])
        err = capsys.readouterr().err
        if code: refused += 1; assert "No face was found" in err and len(err.splitlines()) == 1 and listing(tmp_path) == []
        else: (tmp_path / "out.png").unlink()
    assert refused >= len(files) - 2, f"{refused} of {len(files)}"


def test_two_london_photos(capsys, tmp_path, shared):
    a, b = (shared / "data/london" / n for n in ("neutral/001.jpg", "smiling/044.jpg"))
    out = tmp_path / "out.jpg"
    run = lambda *w: subprocess.run([sys.executable, "-c", "import sys; from deepswap.cli import main; sys.exit(main())", *map(str, w)], capture_output=True, text=True, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})
    r = run("swap", a, b, "-o", out)
    assert r.returncode == 0 and "(classical" in r.stdout, r
    assert len(r.stderr.splitlines()) == 1 and "note: The classical swap was used, since the network does not know faces like that of the" in r.stderr
    assert run("swap", a, b, "-o", out, "--method", "classical").stderr == ""
    assert run("inspect", out).returncode == 0
    r = run("inspect", b)
    assert r.returncode == 1 and r.stderr == ""
    r = run("inspect", tmp_path / "missing.jpg")
    assert r.returncode == 2 and len(r.stderr.splitlines()) == 1


# ---- the other commands

def test_people(capsys, tmp_path):
    argv = ["people", "--preset", "hard", "--people", "3", "--scenes", "2", "--size", "48", "--seed", "7", "--out"]
    assert cli.main([*argv, str(tmp_path / "a")]) == 0 and cli.main([*argv, str(tmp_path / "b")]) == 0
    with open(tmp_path / "a/people.csv", newline="") as f: rows = list(csv.DictReader(f))
    assert len(rows) == 6 and [r["person"] for r in rows] == ["0", "0", "1", "1", "2", "2"] and all(r["synthetic"] == "1" for r in rows)
    assert {"identity.skin_tone", "scene.yaw", "is.beard", "nose_x"} <= set(rows[0])
    people = sample_people(3, preset="hard", seed=7, scenes=2)
    assert abs(float(rows[4]["scene.yaw"]) - people.scene.yaw[4].item()) < 1e-5
    for r in rows:
        one, two = (Image.open(tmp_path / d / r["file"]) for d in "ab")
        assert one.size == (48, 48) and one.tobytes() == two.tobytes()
    from deepswap.provenance import read_credentials
    c = read_credentials((tmp_path / "a" / rows[0]["file"]).read_bytes())
    assert c.ours and c.kind == "algorithmicMedia" and c.label == "left out on request"
    expected = to_pil(render(people, 48).image)[0]
    assert Image.open(tmp_path / "a" / rows[0]["file"]).tobytes() == expected.tobytes()  # no label, no mark in a training set
    fails(capsys, [*argv, tmp_path / "a"], "is not empty")
    assert cli.main([*argv, str(tmp_path / "new/c")]) == 0 and (tmp_path / "new/c/people.csv").exists()  # folders above it are made
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "new"]


def test_interrupted_people_leave_nothing(capsys, tmp_path, monkeypatch):
    from deepswap import provenance
    def interrupt(*a, **k): raise KeyboardInterrupt
    monkeypatch.setattr(provenance, "stamp", interrupt)
    fails(capsys, ["people", "--people", "2", "--out", tmp_path / "a"], "interrupted", code=130)
    assert listing(tmp_path) == []


def test_extract(capsys, pictures, tmp_path):
    (tmp_path / "in/deeper").mkdir(parents=True)
    for i, n in enumerate(("anna.png", "both.png", "plain.png")): (tmp_path / "in" / ("deeper" if i else "") / n).write_bytes((pictures / n).read_bytes())
    (tmp_path / "in/broken.jpg").write_bytes(b"\xff\xd8 no")
    (tmp_path / "in/notes.txt").write_text("not looked at")
    few = ["--person", "all", "--min-size", "40", "--min-sharpness", "0", "--duplicates", "0"]
    assert cli.main(["extract", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--size", "96", *few]) == 0
    said = capsys.readouterr()
    assert "3 faces from 3 pictures" in said.out and "report.html" in said.out and "broken.jpg" in said.err and len(said.err.splitlines()) == 1
    with open(tmp_path / "out/faces.csv", newline="") as f: rows = list(csv.DictReader(f))
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted([r["file"] for r in rows] + ["faces.csv", "masks", "masks_fine", "report.html"])
    assert len(rows) == 3
    assert all(Image.open(tmp_path / "out" / r["file"]).size == (96, 96) for r in rows)
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.mp4").write_text("no video")
    for source, says in ((pictures / "plain.png", "No face was found"), (tmp_path / "empty", "holds no pictures"), (tmp_path / "missing", "nothing at"), (tmp_path / "text.mp4", "is no video")):
        fails(capsys, ["extract", source, "--out", tmp_path / "none"], says)
    fails(capsys, ["extract", tmp_path / "in", "--out", tmp_path / "out"], "is not empty")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "in", "out", "text.mp4"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    "A computed person who looks about for nine frames, with a tone."
    from deepswap.people import People, scene_path
    from deepswap.video import write_clip
    one = sample_people(1, preset="easy", seed=3)
    frames = render(People(one.identity.repeat(9), one.style.repeat(9), scene_path(9, 3, base=one.scene)), 160).image
    return write_clip(to_pil(frames), tmp_path_factory.mktemp("clip") / "talk.mp4")


def test_extract_video(capsys, clip, tmp_path):
    argv = ["extract", str(clip), "--every", "3", "--size", "64", "--min-size", "40", "--duplicates", "0", "--no-masks", "--no-report", "--out"]
    assert cli.main([*argv, str(tmp_path / "out")]) == 0
    said = capsys.readouterr()
    assert "3 faces from 3 pictures" in said.out and said.err == "" and "report" not in said.out
    assert not (tmp_path / "out/masks").exists() and not (tmp_path / "out/report.html").exists()
    with open(tmp_path / "out/faces.csv", newline="") as f: assert [r["frame"] for r in csv.DictReader(f)] == ["0", "3", "6"]
    fails(capsys, [*argv, tmp_path / "all", "--person", tmp_path / "nobody.jpg"], "no file at")
    assert not (tmp_path / "all").exists()


def test_only_the_person_on_the_photo(capsys, pictures, tmp_path):
    (tmp_path / "in").mkdir()
    for n in ("anna", "ben", "both"): (tmp_path / f"in/{n}.png").write_bytes((pictures / f"{n}.png").read_bytes())
    argv = ["extract", str(tmp_path / "in"), "--size", "64", "--min-size", "40", "--duplicates", "0", "--min-sharpness", "0", "--no-masks", "--no-report"]
    for who in ("anna", "ben"):
        assert cli.main([*argv, "--person", str(pictures / f"{who}.png"), "--out", str(tmp_path / who)]) == 0
        with open(tmp_path / who / "faces.csv", newline="") as f: assert [r["from"] for r in csv.DictReader(f)] == sorted([f"{who}.png", "both.png"])


class Terminal(io.StringIO):
    def isatty(self): return True


def test_ticker_writes_one_line_and_cleans_up(monkeypatch):
    screen, file = Terminal(), io.StringIO()
    monkeypatch.setenv("COLUMNS", "30")
    for stream in (screen, file):
        with pytest.raises(KeyboardInterrupt), cli.Ticker(stream, pause=0) as line:
            line.count(10, 40, "frames")
            line.count(10, 0, "frames")
            line.show("x" * 99)
            raise KeyboardInterrupt
    assert file.getvalue() == ""  # no terminal, no line
    parts = screen.getvalue().split("\r")
    assert "\n" not in screen.getvalue() and all(len(p) in (0, 29) for p in parts)
    assert parts[1].startswith("10 of 40 frames, ") and parts[2].startswith("10 frames, ") and parts[3] == "x" * 29 and parts[4].strip() == "" and parts[-1] == ""
    slow = Terminal()
    with cli.Ticker(slow, pause=60) as line:
        for k in range(1000): line.count(k, 1000, "frames")
    assert slow.getvalue().count("frames") == 1


def test_train_and_resume(capsys, tmp_path, pictures):
    (tmp_path / "data").mkdir()
    for i in range(8): Image.open(pictures / ("anna.png", "ben.png")[i % 2]).rotate(i).save(tmp_path / f"data/{i}.png")
    argv = ["train", "autoencoder", "--data", str(tmp_path / "data"), "--size", "32", "--batch", "4", "--device", "cpu", "--out", str(tmp_path / "run")]
    assert cli.main([*argv, "--steps", "3"]) == 0
    assert cli.main([*argv, "--steps", "5", "--resume"]) == 0
    assert "trained for 5 steps" in capsys.readouterr().out
    assert any("last" in p.name and p.suffix == ".safetensors" for p in (tmp_path / "run").rglob("*"))
    fails(capsys, ["train", "autoencoder", "--data", tmp_path / "nothing", "--steps", "2", "--out", tmp_path / "run3"])
    fails(capsys, ["train", "autoencoder", "--device", "cuda:99", "--steps", "2", "--out", tmp_path / "run3"])
    assert not list(tmp_path.glob("run3/*"))


# ---- training by name

def test_the_table_of_methods_is_true(capsys):
    from deepswap.train import METHODS
    for name, where in cli.TRAINABLE.items():
        cls = cli.method_class(name)
        assert METHODS[name] is cls and cls.name == name and cli.describe(where) == cls.__doc__.strip().splitlines()[0]
        assert cli.main(["train", name, "--help"]) == 0
        out = capsys.readouterr().out
        assert f"usage: deepswap train {name}" in out and cls.__doc__.strip().splitlines()[0] in " ".join(out.split())  # as wide as the terminal
        assert all("--" + o.replace("_", "-") in out for o in cls.options) and ("--data" not in out) == hasattr(cls, "translate") == ("--a DATA" in out)
    assert cli.main(["train", "--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"  {n} " in out for n in cli.TRAINABLE) and "--data" in out and "--b" in out
    ours = {n for n, c in METHODS.items() if c.__module__.startswith("deepswap.")}
    assert ours == set(cli.TRAINABLE), "a method of the library is missing on the command line"


def test_options_come_from_the_signature():
    class Base:
        name, options = "base", {"latent": "length", "fade": "blend 100 %", "rate": "learning rate", "kind": "which", "k": "steps"}
        presets = {"small": {"latent": 8, "k": 1}}
        def __init__(self, latent: int = 100, fade: bool = True, rate: float | None = None, kind="hinge", hidden=3): pass
    class Child(Base):
        def __init__(self, k: int = 5, **more): pass
    p = cli.Parser("x")
    cli.add_options(p, Child)
    read = lambda *w: {k.split()[1]: v for k, v in vars(p.parse_args(list(w))).items() if k != "preset"}
    assert p.parse_args([]).preset is None and p.parse_args(["--preset", "small"]).preset == "small" and "latent 8, k 1" in " ".join(p.format_help().split())
    assert read() == {} and "blend 100 % (default True)" in p.format_help() and "default not set" in p.format_help()
    assert read("--latent", "7", "--no-fade", "--rate", "1e-3", "--kind", "minimax", "--k", "2") == {"latent": 7, "fade": False, "rate": 1e-3, "kind": "minimax", "k": 2}
    for bad in (["--latent", "1.5"], ["--rate", "fast"], ["--hidden", "4"], ["--preset", "large"]):
        with pytest.raises(cli.Complaint): p.parse_args(bad)


@pytest.mark.parametrize("words,says", [
    (["autoencodr"], ["Did you mean 'autoencoder'?"]), (["--size", "32"], ["METHOD"]), (["--size", "32", "--widht", "8", "autoencoder"], ["Did you mean '--width'?"]), (["autoencoder", "--widht", "8"], ["Did you mean '--width'?"]),
    (["autoencoder", "--width", "wide"], ["invalid int value"]), (["autoencoder", "--precision", "int8"], ["fp32"]), (["autoencoder", "--a", "x", "--b", "y"], ["'--a' is not an option of"]),
    (["autoencoder", "--data", "nothing"], ["nothing"]), (["autoencoder", "--data", "procedural:wings"], ["wings"]), (["autoencoder", "--size", "63"], ["63"])])
def test_wrong_words_for_train(capsys, tmp_path, monkeypatch, words, says):
    monkeypatch.chdir(tmp_path)
    fails(capsys, ["train", *words, "--steps", "2", "--device", "cpu", "--out", tmp_path / "run"], *says)
    assert listing(tmp_path) == []


def test_settings_of_the_trainer_arrive(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("deepswap.train.computes_bf16", lambda device: True)  # else a processor without bf16 gets a warning, which is another test's
    out = tmp_path / "run"
    argv = ["train", "autoencoder", "--size", "16", "--batch", "2", "--device", "cpu", "--width", "4", "--out", str(out), "--data", "procedural:smiling,n=8", "--ema", "0.5", "--precision", "bf16", "--channels-last", "--checkpoint-every", "2", "--preview-every", "3"]
    assert cli.main([*argv, "--steps", "3"]) == 0
    settings = json.loads((out / "config.json").read_text())
    assert settings["config"]["width"] == 4 and (settings["ema"], settings["precision"], settings["channels_last"], settings["checkpoint_every"]) == (0.5, "bf16", True, 2)
    assert [p.name for p in (out / "previews").iterdir()] == ["step-00000003.jpg"]
    fails(capsys, [*argv, "--steps", "4"], "holds a run already")
    fails(capsys, [*argv[:9], "8", *argv[10:], "--steps", "4", "--resume"], "width was 4 and is 8 now")


def test_a_generator_is_trained_and_sampled(tmp_path, capsys):
    run = tmp_path / "run"
    assert cli.main(["train", "lsgan", "--c", "0.5", "--size", "32", "--batch", "4", "--latent", "8", "--width", "4", "--steps", "2", "--device", "cpu", "--data", "procedural:n=8", "--out", str(run)]) == 0
    for words, size in ((["--n", "9"], (100, 100)), (["--n", "5", "--walk"], (168, 32))):
        names = [tmp_path / f"{k}.png" for k in "ab"]
        for f in names: assert cli.main(["sample", str(run), "--out", str(f), "--seed", "3", "--force", *words]) == 0
        w, h = Image.open(names[0]).size
        times = 400 // size[1]
        assert (w, h) == (size[0] * times, size[1] * times + size[1] * times // 12)  # and a strip for the label
        assert Image.open(names[0]).tobytes() == Image.open(names[1]).tobytes()
        assert cli.main(["inspect", str(names[0])]) == 0
        assert "method lsgan" in capsys.readouterr().out
    from deepswap.provenance import read_credentials
    assert read_credentials(names[0].read_bytes()).kind == "trainedAlgorithmicMedia"
    fails(capsys, ["sample", run, "--out", tmp_path / "c.png", "--n", "1", "--walk"], "two faces or more")
    fails(capsys, ["sample", run, "--out", tmp_path / "c.png", "--input", names[0]], "leave --input out")
    fails(capsys, ["sample", run, "--out", tmp_path / "c.png", "--n", "0"], "from 1")
    assert not (tmp_path / "c.png").exists()


# ---- two people

@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    "Two procedural people, an autoencoder of a few steps."
    out = tmp_path_factory.mktemp("pair") / "run"
    argv = ["train", "autoencoder-swap", "--a", "procedural:person=3,n=12", "--b", "procedural:person=4,n=12", "--size", "32", "--batch", "4", "--width", "4", "--code", "16", "--steps", "2", "--device", "cpu", "--out", str(out)]
    assert cli.main(argv) == 0
    return out


def test_two_people_are_learned_from_what_extract_wrote(capsys, clip, pictures, tmp_path):
    from deepswap.faceswap_gan import FaceSwapGAN
    small = ["--size", "32", "--min-size", "40", "--duplicates", "0", "--min-sharpness", "0", "--no-report"]
    assert cli.main(["extract", str(clip), "--out", str(tmp_path / "a"), *small]) == 0
    argv = ["train", "faceswap", "--a", str(tmp_path / "a"), "--b", str(pictures / "ben.png"), "--size", "32", "--batch", "2", "--width", "4", "--ndf", "4", "--steps", "2", "--device", "cpu", "--out", str(tmp_path / "run")]
    capsys.readouterr()
    fails(capsys, [*argv[:5], "x", *argv[6:]], "nothing at")
    fails(capsys, [*argv[:5], argv[3], *argv[6:]], "A and B")
    assert not list(tmp_path.glob("run/*"))
    argv[5] = "procedural:person=4,n=12"
    assert cli.main([*argv, "--preset", "quick"]) == 0
    from deepswap.train import load_method
    config = load_method(tmp_path / "run", device="cpu").config
    assert config["width"] == 4 and config["recolour"] == FaceSwapGAN.presets["quick"]["recolour"] > 0, "an option given is stronger than the preset, the preset than the default"
    said = capsys.readouterr()
    assert "faceswap trained for 2 steps" in said.out and "A has 9 pictures" in said.err
    assert cli.main(["sample", str(tmp_path / "run"), "--input", str(tmp_path / "a"), "--to", "b", "--out", str(tmp_path / "out")]) == 0
    assert len(listing(tmp_path / "out")) == 9 and "9 pictures translated to b by faceswap" in capsys.readouterr().out  # the faces, not their masks


def test_swap_with_a_pair_takes_one_picture(capsys, pair, pictures, tmp_path):
    ben, out = pictures / "ben.png", tmp_path / "x.png"
    for words in ([ben, "-o", out, "--method", pair, "--to", "b"], ["--method", pair, "-o", out, ben, "--to", "a"]):
        assert cli.main(["swap", *map(str, words)]) == 0
        said = capsys.readouterr()
        assert "1 face swapped (autoencoder-swap" in said.out and said.err == ""
    assert Image.open(out).size == (256, 256)
    from deepswap.provenance import inspect
    i = inspect(out)
    assert i.ours and i.credentials.method == i.mark.method == "autoencoder-swap" and i.credentials.kind == "compositeWithTrainedAlgorithmicMedia"
    assert cli.main(["swap", str(pictures / "anna.png"), "-o", str(out), str(ben)]) == 0  # options may stand between pictures
    nothing = tmp_path / "y.png"
    fails(capsys, ["swap", pictures / "anna.png", ben, "-o", nothing, "--method", pair], "leave the source picture out")
    fails(capsys, ["swap", ben, "-o", nothing], "no source picture")
    fails(capsys, ["swap", pictures / "anna.png", ben, "-o", nothing, "--to", "a"], "trained pair")
    fails(capsys, ["swap", ben, "-o", nothing, "--method", pictures], "first")
    fails(capsys, ["swap", pictures / "plain.png", "-o", nothing, "--method", pair], "No face was found")
    assert not nothing.exists()


def test_sample_of_a_pair_finds_the_face(capsys, pair, pictures, tmp_path, monkeypatch):
    from deepswap import provenance
    from deepswap.autoencoder import LargestFace
    from deepswap.core import read_image, to_tensor
    kept = []
    monkeypatch.setattr(provenance, "stamp", lambda image, out, **kw: kept.append(image))
    assert cli.main(["sample", str(pair), "--input", str(pictures / "anna.png"), "--to", "a", "--out", str(tmp_path / "x.png"), "--device", "cpu"]) == 0
    face = to_tensor(LargestFace(32)(read_image(pictures / "anna.png")))
    assert torch.equal(kept[0][:, ::12, ::12], cli.open_run(pair, "cpu").translate(face, "a")[0])
    fails(capsys, ["sample", pair, "--input", pictures / "plain.png", "--out", tmp_path / "x.png"], "no face was found")
    (tmp_path / "in").mkdir()
    (tmp_path / "in/plain.png").write_bytes((pictures / "plain.png").read_bytes())
    fails(capsys, ["sample", pair, "--input", tmp_path / "in", "--out", tmp_path / "out"], "No face was found in any of the 1 pictures")
    assert not (tmp_path / "out").exists()


# ---- video

def test_video_both_ways(capsys, clip, pair, pictures, tmp_path):
    from deepswap.data import video_frames
    out, before = tmp_path / "out.mp4", clip.read_bytes()
    assert cli.main(["video", "--source", str(pictures / "ben.png"), "--target", str(clip), "--out", str(out), "--method", "classical"]) == 0
    said = capsys.readouterr()
    assert "9 of 9 frames swapped (classical, " in said.out and said.err == ""
    assert cli.main(["inspect", str(out)]) == 0
    said = capsys.readouterr().out
    assert "this video is synthetic" in said and "method classical" in said
    assert cli.main(["video", "--target", str(clip), "-o", str(out), "--method", str(pair), "--to", "b", "--side-by-side"]) == 0  # ours, so it may be replaced
    assert next(video_frames(out))[1].size == (320, 160) and sum(1 for _ in video_frames(out)) == 9
    from deepswap.provenance import read_credentials
    assert read_credentials(out).method == "autoencoder-swap"
    assert clip.read_bytes() == before and listing(tmp_path) == ["out.mp4"]
    assert cli.main(["inspect", str(clip)]) == 1
    assert "No sign of deepswap" in capsys.readouterr().out


def test_video_refuses(capsys, clip, pair, pictures, tmp_path):
    ben, out = pictures / "ben.png", tmp_path / "out.mp4"
    mine = tmp_path / "holiday.mp4"
    mine.write_bytes(clip.read_bytes())
    (tmp_path / "text.mp4").write_text("no clip")
    before = listing(tmp_path)
    for words, says in (([], "no source picture"), (["--source", ben, "--method", pair], "leave the source picture out"), (["--source", tmp_path / "none.png"], "no file at"),
                        (["--source", pictures / "plain.png"], "No face was found"), (["--source", ben, "--to", "a"], "trained pair"), (["--source", ben, "--method", "clasical"], "clasical")):
        fails(capsys, ["video", "--target", clip, "--out", out, *words], says)
    for target, says in ((tmp_path / "text.mp4", "text.mp4"), (tmp_path / "none.mp4", "none.mp4"), (pictures, "pictures")): fails(capsys, ["video", "--source", ben, "--target", target, "--out", out], says)
    fails(capsys, ["video", "--source", ben, "--target", clip, "--out", mine], "is no result of deepswap")
    fails(capsys, ["video", "--source", ben, "--target", mine, "--out", mine, "--force"], "also an input")
    fails(capsys, ["video", "--source", ben, "--target", clip, "--out", tmp_path / "no/x.mp4"], "does not exist")
    assert listing(tmp_path) == before and mine.read_bytes() == clip.read_bytes()


def test_video_options_arrive(clip, tmp_path, monkeypatch):
    from deepswap import video
    calls = []
    def swap_video(*args, **kw):
        import inspect
        calls.append(inspect.signature(real).bind(*args, **kw).arguments)
        raise KeyboardInterrupt
    real = video.swap_video
    monkeypatch.setattr(video, "swap_video", swap_video)
    words = "--method run --to a --face 2 --source-face largest --size 64 --device cpu --every 3 --batch 2 --side-by-side --quality 30 --no-sound --no-label --restart --share 0.4".split()
    assert cli.main(["video", "--source", "a.png", "--target", str(clip), "--out", str(tmp_path / "x.mov"), *words]) == 130
    got = calls[0]
    progress = got.pop("progress")
    progress(0.5, "half")
    assert got == {"source": "a.png", "target": str(clip), "out": tmp_path / "x.mov", "swapper": "run", "to": "a", "face": 2, "source_face": "largest", "size": 64, "device": "cpu", "every": 3,
                   "batch": 2, "side_by_side": True, "quality": 30, "sound": False, "label": False, "resume": False, "share": 0.4}


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_interrupted_video_goes_on(capsys, tmp_path, pictures):
    "Killed by Ctrl-C in the middle; the same command then says how much was there."
    import numpy as np
    from deepswap.data import video_frames
    from deepswap.video import write_clip
    first = np.asarray(Image.open(pictures / "anna.png").resize((128, 128)))
    long = write_clip((np.roll(first, k // 40, 1) for k in range(160)), tmp_path / "long.mp4", tone=0)
    words = [sys.executable, "-c", "import sys; from deepswap.cli import main; sys.exit(main())", "video", "--source", str(pictures / "ben.png"), "--target", str(long), "--out", str(tmp_path / "out.mp4"), "--size", "64"]
    r = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})
    end, parts = time.time() + 100, lambda: [p for p in tmp_path.rglob("*.mp4") if p.name not in ("long.mp4", "out.mp4") and "part" not in p.name]
    while not parts() and time.time() < end and r.poll() is None: time.sleep(0.05)
    r.send_signal(signal.SIGINT)
    out, err = r.communicate(timeout=60)
    assert r.returncode == 130 and out == "", (r.returncode, out, err)
    assert err.splitlines()[-1].startswith("deepswap: interrupted; the same command goes on") and "Traceback" not in err
    assert not (tmp_path / "out.mp4").exists() and parts(), "what is finished stays"
    assert cli.main(words[3:]) == 0 and sum(1 for _ in video_frames(tmp_path / "out.mp4")) == 160
    assert "160 frames" in capsys.readouterr().out
    assert listing(tmp_path) == ["long.mp4", "out.mp4"]


def test_a_real_clip(capsys, tmp_path, shared):
    clips = sorted((shared / "data/video").glob("*.mpg"))
    short = ["extract", str(clips[0]), "--every", "25", "--size", "64", "--duplicates", "0", "--out", str(tmp_path / "faces")]
    assert cli.main(short) == 0
    assert "3 faces from 3 pictures" in capsys.readouterr().out
    assert cli.main(["inspect", str(clips[0])]) == 1


# ---- evaluate

def test_evaluate_prints_a_table_and_signs_the_sheet(capsys, tmp_path):
    from deepswap.provenance import read_credentials
    words = ["evaluate", "--methods", "classical", "none", "--pairs", "2", "--gallery", "4", "--out", str(tmp_path / "table"), "--device", "cpu"]
    assert cli.main(words) == 0
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert said.err == "" and lines[0].startswith("| normal | ") and [x.split(" | ")[0].strip("| *") for x in lines[2:5]] == ["untouched", "classical", "exact swap"]
    assert {"evaluate.json", "tables.md", "plot.jpg", "sheet-normal.jpg"} <= set(listing(tmp_path / "table")) and "table: evaluate.json, tables.md, plot.jpg and 1 contact sheet" in lines[-1]
    assert read_credentials(tmp_path / "table/sheet-normal.jpg").ours
    before = (tmp_path / "table/evaluate.json").read_bytes()
    assert cli.main(words) == 0 and (tmp_path / "table/evaluate.json").read_bytes() == before, "what is measured is not measured again"
    capsys.readouterr()
    fails(capsys, [*words[:5], "3", *words[6:7], "6", *words[8:]], "give another folder")


def test_evaluate_options_arrive(capsys, tmp_path, monkeypatch):
    from deepswap import evaluate
    calls = []
    def stop(*args, **kw): calls.append((args, kw)); raise KeyboardInterrupt
    monkeypatch.setattr(evaluate, "evaluate", stop)
    monkeypatch.setattr(evaluate, "photo_task", lambda *args: ("photos", args))
    words = "evaluate --methods classical none --pairs 7 --gallery 99 --device cpu".split()
    assert cli.main([*words, "--protocol", "occluded", "cross-skin"]) == 130
    (swappers, protocols, n), kw = calls[0]
    assert list(swappers) == ["classical"] and callable(swappers["classical"]) and (protocols, n, kw["gallery"], kw["out"]) == (["occluded", "cross-skin"], 7, 99, None)
    assert cli.main([*words, "--photos", "people", "--encoder", "net", "--pose", "a.onnx", "b.onnx"]) == 130
    assert calls[1][0][1] == [("photos", ("people", "net", None, ["a.onnx", "b.onnx"], 7))], "photographs alone, unless a protocol is named"


def test_evaluate_refuses(capsys, pair, tmp_path):
    for words, says in ((["--methods", "clasical"], "clasical"), (["--methods", pair], "is a trained pair"), (["--encoder", "net.safetensors"], "give them with --photos"), (["--protocol", "hard"], "invalid choice"),
                        (["--pairs", "1"], "from 2"), (["--methods", "classical", "--photos", tmp_path], "need an encoder"), (["--methods", "classical", "--photos", tmp_path, "--encoder", tmp_path / "net.safetensors"], "net.safetensors"),
                        (["--methods", "classical", "--pairs", "4", "--gallery", "4"], "gallery")):
        fails(capsys, ["evaluate", *words], says)


# ---- sample

def test_sample_needs_a_run_that_can(capsys, tmp_path):
    out = tmp_path / "run"
    assert cli.main(["train", "autoencoder", "--size", "16", "--batch", "2", "--width", "4", "--steps", "2", "--device", "cpu", "--data", "procedural:n=8", "--out", str(out)]) == 0
    picture = tmp_path / "x.png"
    fails(capsys, ["sample", out, "--out", picture], "neither draws")
    fails(capsys, ["sample", tmp_path / "nowhere", "--out", picture], "no run at")
    fails(capsys, ["sample", tmp_path, "--out", picture], "last.safetensors", "train first")
    fails(capsys, ["sample", out, "--out", tmp_path / "x.gif"], "neither .png")
    short = tmp_path / "short.safetensors"
    short.write_bytes((out / "last.safetensors").read_bytes()[:-1000])
    fails(capsys, ["sample", short, "--out", picture], "cut short")
    from deepswap.train import read_tensors, write_tensors
    tensors, info = read_tensors(out / "last.safetensors")
    for change, says in (({"method": "stylegan"}, "does not know"), ({"config": {"wings": 2}}, "another version"), ({"config": {**info["config"], "width": 8}}, "in the checkpoint")):
        write_tensors(short, tensors, {**{k: v for k, v in info.items() if k not in ("checksums", "format")}, **change})
        fails(capsys, ["sample", short, "--out", picture], says)
    assert not picture.exists()


@pytest.fixture(scope="module")
def translator(tmp_path_factory):
    "A growing CycleGAN of a few steps."
    out = tmp_path_factory.mktemp("translator") / "run"
    argv = ["train", "progressive", "--a", "procedural:person=1,n=4", "--b", "procedural:person=2,n=4", "--size", "32", "--batch", "2", "--ngf", "4", "--ndf", "4", "--steps", "5", "--device", "cpu"]
    assert cli.main([*argv, "--out", str(out)]) == 0
    return out, argv


def test_translators_take_two_domains(capsys, tmp_path, translator):
    (tmp_path / "one").mkdir()
    to_pil(torch.zeros(3, 40, 40)).save(tmp_path / "one/a.png")
    argv = ["train", "cyclegan", "--size", "32", "--ngf", "4", "--ndf", "4", "--blocks", "1", "--steps", "2", "--device", "cpu", "--out", tmp_path / "run"]
    two = ["--a", "procedural:person=1,n=4", "--b"]
    for more, says in ((["--a", "x"], "add --b"), (["--b", "x"], "add --a"), (["--data", "procedural"], "--a and --b instead of --data"), ([*two, tmp_path / "one"], "Domain b holds 1 picture"), ([*two, "procedural:n=1"], "Domain b holds 1 picture"),
                       ([*two, tmp_path / "nothing"], "nothing at")):
        fails(capsys, [*argv, *more], says)
    assert not list(tmp_path.glob("run/*"))
    out, argv = translator
    fails(capsys, [*argv, "--out", out, "--resume", "--fade", "0"], "fade was 0.5 and is 0.0 now")
    fails(capsys, [*argv[:2], "--out", out, "--resume", *argv[6:]], "data was")
    fails(capsys, ["train", "cyclegan", *argv[2:], "--out", out, "--resume"], "'progressive'", "'cyclegan'")


def test_pictures_are_translated(capsys, tmp_path, pictures, translator):
    run, _ = translator
    folder = tmp_path / "in"
    (folder / "deeper").mkdir(parents=True)
    Image.open(pictures / "anna.png").convert("L").save(folder / "grey.png")
    Image.open(pictures / "ben.png").convert("RGBA").save(folder / "deeper/glass.png")
    Image.open(pictures / "both.png").save(folder / "wide.jpg")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8 no")
    for name in ("grey.png", "deeper/glass.png", "wide.jpg"):
        assert cli.main(["sample", str(run), "--input", str(folder / name), "--to", "a", "--out", str(tmp_path / "x.png")]) == 0
        assert Image.open(tmp_path / "x.png").size == (384, 384) and cli.main(["inspect", str(tmp_path / "x.png")]) == 0
        said = capsys.readouterr()
        assert "translated to a by progressive" in said.out and said.err == ""
    assert cli.main(["sample", str(run), "--input", str(folder), "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr()
    assert "3 pictures translated to b" in said.out and "broken.jpg" in said.err
    assert listing(tmp_path / "out") == ["deeper_glass_png.png", "grey_png.png", "wide_jpg.png"]
    from deepswap.provenance import read_credentials
    found = read_credentials((tmp_path / "out/wide_jpg.png").read_bytes())
    assert found.ours and found.method == "progressive" and found.kind == "compositeWithTrainedAlgorithmicMedia"
    fails(capsys, ["sample", run, "--out", tmp_path / "y.png"], "say which with --input")
    fails(capsys, ["sample", run, "--input", folder / "grey.png", "--walk", "--out", tmp_path / "y.png"], "leave --walk out")
    fails(capsys, ["sample", run, "--input", folder / "nothing.png", "--out", tmp_path / "y.png"], "no file at")
    fails(capsys, ["sample", run, "--input", folder, "--out", tmp_path / "out"], "is not empty")
    fails(capsys, ["sample", run, "--input", folder / "grey.png", "--to", "c", "--out", tmp_path / "y.png"], "choose from")
    fails(capsys, ["sample", run, "--input", folder / "grey.png", "--out", folder / "grey.png", "--force"], "also an input")
    assert not (tmp_path / "y.png").exists()


def test_a_translated_picture_is_what_the_method_says(tmp_path, pictures, translator, monkeypatch):
    from deepswap import provenance
    from deepswap.core import read_image, to_tensor
    from deepswap.data import square
    kept = []
    monkeypatch.setattr(provenance, "stamp", lambda image, out, **kw: kept.append((image, kw)))
    assert cli.main(["sample", str(translator[0]), "--input", str(pictures / "anna.png"), "--out", str(tmp_path / "x.png"), "--device", "cpu"]) == 0
    method = cli.open_run(translator[0], "cpu")
    expected = method.translate(to_tensor(square(read_image(pictures / "anna.png"), 32)), "b")[0]
    assert torch.equal(kept[0][0][:, ::12, ::12], expected) and kept[0][1]["sources"] == [str(pictures / "anna.png")]


# ---- the course

def course(folder, **chapters):
    "A course of a few words."
    for name, text in {"index": "map", **chapters}.items():
        path = folder / ("index.ipynb" if name == "index" else f"nbs/{name}.ipynb")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_text() for p in sorted(folder.rglob("*")) if p.is_file() and p.name != cli.UNPACKED}


def test_course_files_are_those_a_reader_needs():
    if not (ROOT / "index.ipynb").exists(): pytest.skip("no checkout")
    names = set(cli.course_files(ROOT))
    assert {"index.ipynb", "LICENSE", "nbs/00_core.ipynb", "nbs/55_cli.ipynb", "benchmarks/results/known.json", "benchmarks/results/imports.json"} <= names
    assert not [n for n in names if ".ipynb_checkpoints" in n or n.startswith(("tests", "tools", "deepswap")) or "/_" in n]
    for nb in (n for n in names if n.startswith("nbs/")): # whatever a chapter reads by a relative path is there
        code = "\n".join("".join(c["source"]) for c in json.loads((ROOT / nb).read_text())["cells"] if c["cell_type"] == "code")
        assert "__file__).parents" not in code and "__file__).resolve().parents" not in code.replace("Path(deepswap.__file__).resolve().parents[1])", ""), f"{nb} looks beside the package"
        for found in re.findall(r"\.\./(benchmarks/results/[\w.]+\.(?:json|jpg))", code): assert found in names, f"{nb} reads {found}"


def test_course_is_unpacked_and_never_over_edits(tmp_path):
    mine = tmp_path / "a" / "mine"
    mine.parent.mkdir()
    old = course(tmp_path / "old", a="1", b="1", c="1", d="1", gone="1", gone_changed="1")
    assert cli.unpack_course(mine, old)["new"] == ["index.ipynb", *(f"nbs/{n}.ipynb" for n in ("a", "b", "c", "d", "gone", "gone_changed"))]
    assert contents(mine) == contents(old) and os.listdir(tmp_path / "a") == ["mine"]
    stamps = {p: p.stat().st_mtime_ns for p in mine.rglob("*")}
    assert not any(cli.unpack_course(mine, old).values()) and stamps == {p: p.stat().st_mtime_ns for p in mine.rglob("*")}, "nothing to do, nothing touched"
    for n in ("b", "c", "gone_changed"): (mine / f"nbs/{n}.ipynb").write_text("my note")
    (mine / "nbs/d.ipynb").unlink()
    (mine / "nbs/own.ipynb").write_text("my own")
    told = cli.unpack_course(mine, course(tmp_path / "new", a="2", b="2", c="1", d="1", e="2"))
    assert told == {"new": ["nbs/d.ipynb", "nbs/e.ipynb"], "updated": ["nbs/a.ipynb"], "kept": [("nbs/b.ipynb", "nbs/b.new.ipynb")], "removed": ["nbs/gone.ipynb"]}
    expected = {"index.ipynb": "map", "nbs/a.ipynb": "2", "nbs/b.ipynb": "my note", "nbs/b.new.ipynb": "2", "nbs/c.ipynb": "my note", "nbs/d.ipynb": "1", "nbs/e.ipynb": "2", "nbs/gone_changed.ipynb": "my note", "nbs/own.ipynb": "my own"}
    assert contents(mine) == expected
    assert not any(cli.unpack_course(mine, tmp_path / "new").values()) and contents(mine) == expected


def test_what_stands_beside_an_edit_may_be_edited_too(tmp_path):
    mine = tmp_path / "mine"
    cli.unpack_course(mine, course(tmp_path / "one", a="1", b="1"))
    for n in "ab": (mine / f"nbs/{n}.ipynb").write_text("mine")
    cli.unpack_course(mine, course(tmp_path / "two", a="2", b="2"))
    (mine / "nbs/a.new.ipynb").write_text("2, and my note")
    told = cli.unpack_course(mine, course(tmp_path / "three", a="3", b="3"))
    assert told["kept"] == [("nbs/a.ipynb", "nbs/a.new2.ipynb"), ("nbs/b.ipynb", "nbs/b.new.ipynb")]
    assert contents(mine) == {"index.ipynb": "map", "nbs/a.ipynb": "mine", "nbs/a.new.ipynb": "2, and my note", "nbs/a.new2.ipynb": "3", "nbs/b.ipynb": "mine", "nbs/b.new.ipynb": "3"}
    os.replace(mine / "nbs/b.new.ipynb", mine / "nbs/b.ipynb") # the reader takes the new one over
    assert cli.unpack_course(mine, course(tmp_path / "four", a="3", b="4"))["updated"] == ["nbs/b.ipynb"]


@pytest.mark.parametrize("damage", ["{", ""])
def test_a_damaged_list_counts_everything_as_the_readers(tmp_path, damage):
    mine = tmp_path / "mine"
    cli.unpack_course(mine, course(tmp_path / "one", a="1", b="1"))
    (mine / cli.UNPACKED).write_text(damage)
    assert cli.unpack_course(mine, course(tmp_path / "two", a="2", b="1"))["kept"] == [("nbs/a.ipynb", "nbs/a.new.ipynb")]
    assert contents(mine)["nbs/a.ipynb"] == "1"


def test_course_is_whole_or_not_at_all(tmp_path, monkeypatch):
    from deepswap.core import OutputError
    mine, real = tmp_path / "mine", os.replace
    one, two = course(tmp_path / "one", a="1", b="1", c="1"), course(tmp_path / "two", a="2", b="2", c="2", d="2")
    def fails_at(n, error):
        count = iter(range(1000))
        def replace(a, b):
            if next(count) == n: raise error
            real(a, b)
        return replace
    for n in range(6): # five files, and the folder
        monkeypatch.setattr(os, "replace", fails_at(n, OSError(28, "No space left on device")))
        with pytest.raises(OutputError, match="No space left"): cli.unpack_course(mine, one)
        assert sorted(os.listdir(tmp_path)) == ["one", "two"], "no folder, or no half of one"
    monkeypatch.setattr(os, "replace", real)
    cli.unpack_course(mine, one)
    before = {p: p.read_bytes() for p in mine.rglob("*") if p.is_file()}
    for n in range(9): # three replaced files and the list are two moves each, a new file is one
        for error, raised in ((OSError(28, "No space left on device"), OutputError), (KeyboardInterrupt(), KeyboardInterrupt)):
            monkeypatch.setattr(os, "replace", fails_at(n, error))
            with pytest.raises(raised): cli.unpack_course(mine, two)
            monkeypatch.setattr(os, "replace", real)
            assert {p: p.read_bytes() for p in mine.rglob("*") if p.is_file()} == before, n
    assert cli.unpack_course(mine, two)["updated"] == [f"nbs/{n}.ipynb" for n in "abc"] and contents(mine)["nbs/d.ipynb"] == "2"


def test_unpacking_refuses(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/letter.txt").write_text("mine")
    (tmp_path / "file").write_text("x")
    fails(capsys, ["lab", "full", "--unpack-only"], "not empty")
    fails(capsys, ["lab", "file", "--unpack-only"], "is a file")
    fails(capsys, ["lab", "file/course", "--unpack-only"], "could not be written")
    assert listing(tmp_path) == ["file", "full", "full/letter.txt"]
    monkeypatch.setattr(__import__("deepswap"), "__file__", str(tmp_path / "site-packages/deepswap/__init__.py"))
    fails(capsys, ["lab", "new", "--unpack-only"], "no course in this installation", "wheel")


def test_lab_unpacks_where_there_is_no_checkout(capsys, tmp_path, monkeypatch):
    "As for somebody who installed the wheel: the package brings its course along."
    import deepswap
    package = tmp_path / "site-packages/deepswap"
    course(package / "course", a="1")
    monkeypatch.setattr(deepswap, "__file__", str(package / "__init__.py"))
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path / "home")
    assert cli.main(["lab", "--unpack-only"]) == 0
    assert "deepswap-course: 2 new" in capsys.readouterr().out and contents(tmp_path / "home/deepswap-course") == {"index.ipynb": "map", "nbs/a.ipynb": "1"}
    monkeypatch.chdir(tmp_path / "home/deepswap-course/nbs")
    Path("a.ipynb").write_text("mine")
    course(package / "course", a="2")
    assert cli.main(["lab", "--unpack-only"]) == 0 and os.listdir(tmp_path / "home") == ["deepswap-course"], "found from within"
    said = capsys.readouterr().out
    assert "nothing replaced" in said and "nbs/a.ipynb is yours and stays; its new version is nbs/a.new.ipynb" in said
    assert cli.main(["lab", "--unpack-only"]) == 0 and "up to date" in capsys.readouterr().out
    own = course(tmp_path / "own", a="quite different")
    assert cli.main(["lab", str(own), "--unpack-only"]) == 0 and "left as it is" in capsys.readouterr().out and contents(own) == {"index.ipynb": "map", "nbs/a.ipynb": "quite different"}


def test_lab_opens_the_course(capsys, tmp_path, monkeypatch):
    calls = []
    class Server:
        def __init__(self, words, **kw): calls.append((words, kw)); self.waits = iter((KeyboardInterrupt, 0))
        def wait(self):
            w = next(self.waits)
            if w: raise w
            return w
    monkeypatch.setattr(subprocess, "Popen", Server)
    monkeypatch.chdir(ROOT / "tests")
    if (ROOT / "index.ipynb").exists():
        assert cli.main(["lab", "--no-browser", "--port", "8899"]) == 0
        assert "left as it is" in capsys.readouterr().out, "a checkout is not touched"
        assert "--LabApp.default_url=/lab/tree/index.ipynb" in calls[0][0] and calls[0][1]["cwd"] == ROOT
    import importlib.util
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: None if n in ("jupyterlab", "gradio") else find(n, *a))
    fails(capsys, ["demo"], "gradio")
    if (ROOT / "index.ipynb").exists(): fails(capsys, ["lab"], "pip install jupyterlab")


def test_demo_gets_its_options(monkeypatch):
    demo = pytest.importorskip("deepswap.demo")
    calls = []
    monkeypatch.setattr(demo, "launch", lambda **kw: calls.append(kw))
    assert cli.main(["demo", "--port", "7999", "--no-browser"]) == 0
    assert calls == [{"port": 7999, "host": "127.0.0.1", "open_browser": False, "runs": None}]
    assert cli.main(["demo", "--runs", "runs"]) == 0 and calls[1]["runs"] == "runs"


def test_demo_wants_a_folder_of_runs(capsys, tmp_path):
    pytest.importorskip("gradio")
    fails(capsys, ["demo", "--no-browser", "--runs", str(tmp_path / "none")], "There is no folder", "deepswap train")


# ---- faults

def test_an_unforeseen_fault_is_one_line(capsys, pictures, tmp_path, monkeypatch):
    from deepswap import provenance
    def fault(*a, **k): raise ZeroDivisionError("division\nby zero")
    monkeypatch.setattr(provenance, "inspect", fault)
    fails(capsys, ["inspect", pictures / "anna.png"], "division by zero", "DEEPSWAP_DEBUG=1", "ZeroDivisionError")
    monkeypatch.setenv("DEEPSWAP_DEBUG", "1")
    with pytest.raises(ZeroDivisionError): cli.main(["inspect", str(pictures / "anna.png")])


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_ctrl_c(tmp_path):
    code = "import sys; from deepswap.cli import main; sys.exit(main())"
    r = subprocess.Popen([sys.executable, "-c", code, "people", "--people", "500", "--size", "96", "--out", str(tmp_path / "a")], stderr=subprocess.PIPE, text=True, cwd=ROOT)
    end = time.time() + 60
    while not list(tmp_path.glob(".a.*.part/*.png")) and time.time() < end: time.sleep(0.1)
    r.send_signal(signal.SIGINT)
    assert r.wait(30) == 130 and r.stderr.read() == "deepswap: interrupted.\n"
    assert listing(tmp_path) == []


@pytest.mark.skipif(os.name != "posix", reason="pipes of POSIX")
def test_closed_pipe():
    r = subprocess.run(f"{sys.executable} -c \"import sys; from deepswap.cli import main; sys.exit(main(['--help']))\" | true", shell=True, capture_output=True, text=True, cwd=ROOT)
    assert "Traceback" not in r.stderr


def test_lab_does_not_begin_with_a_question_about_news(tmp_path, monkeypatch):
    monkeypatch.setenv("JUPYTER_CONFIG_PATH", str(tmp_path / "own"))
    env = cli.without_news(tmp_path / "lab")
    assert env["JUPYTER_CONFIG_PATH"].split(os.pathsep) == [str(tmp_path / "lab"), str(tmp_path / "own")], "beside the reader's own configuration"
    code = ("from jupyterlab_server.settings_utils import _get_overrides as f; import sys; "
            "print(f(sys.argv[1])[0]['@jupyterlab/apputils-extension:notification']['fetchNews'])")  # fmt: skip
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=env, capture_output=True, text=True)
    assert run.stdout.strip() == "false", run.stderr[-500:]
