"The command line: one line per error, honest exit codes, nothing half written."

import csv
import os
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
    assert list(cli.COMMANDS) == ["lab", "demo", "people", "swap", "inspect", "extract", "train", "sample"]
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
    (["swap"], ["SOURCE, TARGET"]), (["swap", "a", "b", "-o", "c.png", "--metod", "x"], ["Did you mean '--method'?"]),
    (["swap", "a", "b", "-o", "c.png", "--fac", "1"], ["not an option"]), (["swap", "a", "b", "-o", "c.png", "--face", "left"], ["no choice of face"]),
    (["swap", "a", "b", "-o", "c.png", "--face", "0"], ["no choice of face"]), (["swap", "a", "b", "-o", "c.png", "--label-place", "centre"], ["bottom-right"]),
    (["swap", "a", "b", "-o", "c.png", "--source-face", "all"], ["--source-face"]),
    (["people", "--out", "x", "--people", "0"], ["from 1"]), (["people", "--out", "x", "--size", "9999"], ["16 to 2048"]), (["people", "--out", "x", "--seed", "-1"], ["from 0 up"]),
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


# ---- swap and inspect

def test_swap_then_inspect(capsys, pictures, tmp_path):
    for name in ("out.png", "out.jpg"):
        out = tmp_path / name
        argv = ["swap", pictures / "anna.png", pictures / "ben.png", "-o", out]
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
    import json
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
    assert r.returncode == 0 and r.stderr == "", r.stderr
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
    fails(capsys, [*argv, tmp_path / "no/x"], "does not exist")
    assert listing(tmp_path) == listing(tmp_path) and sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


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
    assert cli.main(["extract", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--size", "96"]) == 0
    said = capsys.readouterr()
    assert "3 faces from 3 pictures" in said.out and "broken.jpg" in said.err and len(said.err.splitlines()) == 1
    with open(tmp_path / "out/faces.csv", newline="") as f: rows = list(csv.DictReader(f))
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted([r["file"] for r in rows] + ["faces.csv"])
    assert all(Image.open(tmp_path / "out" / r["file"]).size == (96, 96) for r in rows)
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.mp4").write_text("no video")
    for source, says in ((pictures / "plain.png", "No face was found"), (tmp_path / "empty", "holds no pictures"), (tmp_path / "missing", "nothing at"), (tmp_path / "text.mp4", "is no video")):
        fails(capsys, ["extract", source, "--out", tmp_path / "none"], says)
    fails(capsys, ["extract", tmp_path / "in", "--out", tmp_path / "out"], "is not empty")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "in", "out", "text.mp4"]


def test_extract_video(capsys, pictures, tmp_path):
    import av
    frame = av.VideoFrame.from_image(Image.open(pictures / "anna.png")).to_ndarray(format="rgb24")
    with av.open(str(tmp_path / "a.mp4"), "w") as video:
        stream = video.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 256
        stream.bit_rate = 4_000_000
        for _ in range(7): video.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        video.mux(stream.encode(None))
    assert cli.main(["extract", str(tmp_path / "a.mp4"), "--out", str(tmp_path / "out"), "--every", "3"]) == 0
    assert "3 faces from 3 pictures" in capsys.readouterr().out
    assert (tmp_path / "out/a_000006_face1.png").exists()


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
        assert f"usage: deepswap train {name}" in out and cls.__doc__.strip().splitlines()[0] in out
        assert all("--" + o.replace("_", "-") in out for o in cls.options) and ("--data" not in out) == hasattr(cls, "translate") == ("--a DATA" in out)
    assert cli.main(["train", "--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"  {n} " in out for n in cli.TRAINABLE) and "--data" in out and "--b" in out
    ours = {n for n, c in METHODS.items() if c.__module__.startswith("deepswap.")}
    assert ours == set(cli.TRAINABLE), "a method of the library is missing on the command line"


def test_options_come_from_the_signature():
    class Base:
        name, options = "base", {"latent": "length", "fade": "blend 100 %", "rate": "learning rate", "kind": "which", "k": "steps"}
        def __init__(self, latent: int = 100, fade: bool = True, rate: float | None = None, kind="hinge", hidden=3): pass
    class Child(Base):
        def __init__(self, k: int = 5, **more): pass
    p = cli.Parser("x")
    cli.add_options(p, Child)
    read = lambda *w: {k.split()[1]: v for k, v in vars(p.parse_args(list(w))).items()}
    assert read() == {} and "blend 100 % (default True)" in p.format_help() and "default not set" in p.format_help()
    assert read("--latent", "7", "--no-fade", "--rate", "1e-3", "--kind", "minimax", "--k", "2") == {"latent": 7, "fade": False, "rate": 1e-3, "kind": "minimax", "k": 2}
    for bad in (["--latent", "1.5"], ["--rate", "fast"], ["--hidden", "4"]):
        with pytest.raises(cli.Complaint): p.parse_args(bad)


@pytest.mark.parametrize("words,says", [
    (["autoencodr"], ["Did you mean 'autoencoder'?"]), (["--size", "32"], ["METHOD"]), (["--size", "32", "--widht", "8", "autoencoder"], ["Did you mean '--width'?"]), (["autoencoder", "--widht", "8"], ["Did you mean '--width'?"]),
    (["autoencoder", "--width", "wide"], ["invalid int value"]), (["autoencoder", "--precision", "int8"], ["fp32"]), (["autoencoder", "--a", "x", "--b", "y"], ["'--a' is not an option of"]),
    (["autoencoder", "--data", "nothing"], ["nothing"]), (["autoencoder", "--data", "procedural:wings"], ["wings"]), (["autoencoder", "--size", "63"], ["63"])])
def test_wrong_words_for_train(capsys, tmp_path, monkeypatch, words, says):
    monkeypatch.chdir(tmp_path)
    fails(capsys, ["train", *words, "--steps", "2", "--device", "cpu", "--out", tmp_path / "run"], *says)
    assert listing(tmp_path) == []


def test_settings_of_the_trainer_arrive(tmp_path, capsys):
    out = tmp_path / "run"
    argv = ["train", "autoencoder", "--size", "16", "--batch", "2", "--device", "cpu", "--width", "4", "--out", str(out), "--data", "procedural:smiling,n=8", "--ema", "0.5", "--precision", "bf16", "--channels-last", "--checkpoint-every", "2", "--preview-every", "3"]
    assert cli.main([*argv, "--steps", "3"]) == 0
    import json
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


def test_lab_needs_the_notebooks(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "__file__", str(tmp_path / "site-packages/deepswap/cli.py"))
    fails(capsys, ["lab"], "checkout of the repository")
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
    assert calls == [{"port": 7999, "host": "127.0.0.1", "open_browser": False}]


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
