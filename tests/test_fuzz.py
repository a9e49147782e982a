"Spoiled files, words and settings: every reader gives a value or one sentence, never a traceback. `benchmarks/robustness.py fuzz` does the same ten thousand times."

import io
import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
hypothesis = pytest.importorskip("hypothesis", reason="the fuzz tests need hypothesis: pip install hypothesis")
import mutants as m  # noqa: E402
from hypothesis import HealthCheck, given, settings  # noqa: E402

from deepswap import cli  # noqa: E402
from deepswap.core import DataError, DeepswapError, ImageError, UsageError, WeightsError, read_image, seed_everything  # noqa: E402
from deepswap.data import FolderFaces, procedural_people  # noqa: E402
from deepswap.evaluate import open_report  # noqa: E402
from deepswap.train import at_most, load_method, read_tensors, rebuilt, write_tensors  # noqa: E402

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore")]
EXAMPLES = {"pictures": 200, "videos": 25, "signs": 10, "weights": 60, "texts": 60, "words": 50, "descriptions": 15, "environment": 5}


@pytest.fixture(scope="module", params=m.READERS)
def bench(request, tmp_path_factory):
    return m.Bench(request.param, tmp_path_factory.mktemp(request.param))


def test_readers(bench):
    "A value or one sentence, in time, and the input is as it was."
    said = []

    @settings(max_examples=EXAMPLES[bench.name], deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(bench.strategy())
    def ask(drawn):
        said.append(bench.ask(drawn))

    ask()
    assert ("refused" in said or bench.name == "environment") and len(said) >= EXAMPLES[bench.name] // 2, f"{len(said)} inputs, none refused: the spoiling spoils nothing"


def test_sound_files_are_read(bench):
    "What the spoiled files were made from can be read, or the fuzzing proves nothing."
    for name, data in bench.seeds:
        path = bench.work / name
        path.write_bytes(data)
        if bench.name == "weights":
            m.read_own(path)
        else:
            m.FILES[bench.name][1](path)


# ---------------------------------------------------------------- what the fuzzing found, one by one


def test_a_fax_is_refused(tmp_path):
    "A damaged group 4 TIFF showed what lay in memory before, other at each reading."
    for kind in ("group3", "group4", "tiff_ccitt"):
        with pytest.raises(ImageError, match="packed like a fax"):
            read_image(m.encoded(m.noise(37, 29).convert("1"), "TIFF", compression=kind))
    assert read_image(m.encoded(m.noise(37, 29), "TIFF", compression="tiff_lzw")).size == (37, 29)


def checkpoint(path, config, **info):
    return write_tensors(path, {"network/x": torch.zeros(2)}, {"method": "autoencoder", "config": config, **info})


@pytest.mark.parametrize("config", [{"size": 64, "width": 2**31}, {"size": 64, "width": 100_000}, {"size": [64]}, {"siez": 64}, None, [1], {"size": 64, "width": None}, {"code": 10**9}])
def test_a_file_cannot_ask_for_any_network(tmp_path, config):
    "Sizes of nonsense raised TypeErrors, or took all memory."
    with pytest.raises(DeepswapError) as e:
        load_method(checkpoint(tmp_path / "a.safetensors", config))
    m.check_sentence(e.value)


def test_building_is_counted_in_its_thread_only():
    from threading import Thread

    def other():
        torch.nn.Linear(100, 100)

    with at_most(5000):
        t = Thread(target=other)
        t.start()
        t.join()
        with pytest.raises(WeightsError, match="million"):
            torch.nn.Linear(100, 100)
    assert torch.nn.Linear(100, 100).weight.shape == (100, 100), "outside nothing is counted"
    with pytest.raises(WeightsError, match="can't be built"):
        rebuilt("x", torch.nn.Linear, {"in_features": "many"})


def test_weights_without_numbers_are_refused(tmp_path):
    from deepswap.train import load_network

    net = torch.nn.Linear(2, 2)
    good = {f"n/{k}": v.clone() for k, v in net.state_dict().items()}
    load_network(net, good, "n/")
    for bad in (float("nan"), float("inf")):
        with pytest.raises(WeightsError, match="no numbers"):
            load_network(net, {**good, "n/bias": torch.tensor([0.0, bad])}, "n/")
    assert net.bias.isfinite().all(), "the network keeps what it had"


@pytest.mark.parametrize("change", [{"method": ["gan"]}, {"method": None}, {"checksums": 3}, {"format": "new"}])
def test_headers_of_nonsense(tmp_path, change):
    path = checkpoint(tmp_path / "a.safetensors", {})
    meta, tensors = m.apart(path.read_bytes())
    path.write_bytes(m.together({"deepswap": json.dumps(json.loads(meta["deepswap"]) | change)}, tensors))
    for read in (read_tensors, load_method, lambda p: cli.open_run(p)):
        with pytest.raises(WeightsError) as e:
            read(path)
        m.check_sentence(e.value)


@pytest.mark.parametrize("note", ["", "[]", '{"bad": [1]}', '{"bad": [99], "skipped": []}', '{"bad": null, "skipped": 3}', "\x00"])
def test_a_spoiled_note_on_bad_files_is_made_again(tmp_path, monkeypatch, note):
    monkeypatch.setenv("DEEPSWAP_CACHE", str(tmp_path / "cache"))
    (tmp_path / "p").mkdir()
    for k in range(3):
        (tmp_path / "p" / f"{k}.jpg").write_bytes(m.SMALL if k != 1 else m.SMALL[:200])
    assert len(FolderFaces(tmp_path / "p", 8, cache="disk")) == 2
    file = next((tmp_path / "cache").rglob("bad.json"))
    whole = file.read_text()
    file.write_text(note)
    faces = FolderFaces(tmp_path / "p", 8, cache="disk")
    assert faces.names == ["0.jpg", "2.jpg"] and json.loads(file.read_text())["bad"] == json.loads(whole)["bad"] == [1]


def test_lists_of_nonsense(tmp_path):
    for name, data in (("identity.txt", b"1.jpg\n"), ("attributes.txt", b"3\nA B\n1.jpg 1\n"), ("attributes.txt", b"3\nA\n1.jpg 7\n"), ("partition.txt", b"1.jpg\n2.jpg 0\n"), ("identity.txt", b"\xff\xfe"),
                       ("people.txt", b"1\nAnn\t99999999999\n"), ("people.txt", b"1\n../Ann\t1\n"), ("pairs.txt", b"1\nAnn\t1\tx\n"), ("names.txt", b"\xff")):
        root = tmp_path / f"{name}-{len(list(tmp_path.iterdir()))}"
        root.mkdir()
        with pytest.raises(DataError) as e:
            m.read_lists(root, name, data)
        m.check_sentence(e.value)


@pytest.mark.parametrize("spec", ["n=\u00b2", "n=1000000000", "n=1000,scenes=1000", "seed=99999999999999999999", "person=\u0663", "n=0"])
def test_descriptions_of_too_much(spec):
    with pytest.raises(DataError) as e:
        procedural_people(spec)
    m.check_sentence(e.value)


def test_seeds_too_large():
    with pytest.raises(UsageError, match="seed"):
        seed_everything(2**63)
    seed_everything(2**63 - 1)


@pytest.mark.parametrize("report", ['{"settings": 3}', '{"settings": {}, "lines": [0]}', '{"settings": {}, "lines": [{"protocol": "a", "method": "b", "print": "", "numbers": {"colour": 1}}]}', "[]", '{"settings": {}, "samples": 1}'])
def test_reports_of_nonsense(tmp_path, report):
    (tmp_path / "evaluate.json").write_text(report)
    with pytest.raises(DataError, match="no report"):
        open_report(tmp_path)


def test_notes_of_unfinished_videos(tmp_path):
    "A damaged note begins anew, and a name in it leads nowhere else."
    job = m.toy_job(tmp_path)
    job.take_up()
    job.run()
    note, good = job.folder / "job.json", json.loads((job.folder / "job.json").read_text())
    assert (again := m.toy_job(tmp_path)).take_up() == [] and again.finished == 10
    (tmp_path / "00000.mp4").write_bytes(b"somebody's")
    for change in ({"segments": True}, {"segments": [None]}, {"segments": [{**s, "file": "../00000.mp4"} for s in good["segments"]]}, {"done": False, "state": {"tracker": 3}}, {"swapped": "x"}):
        note.parent.mkdir(exist_ok=True)
        for k in range(3):
            (note.parent / f"{k:05d}.mp4").touch()
        note.write_text(json.dumps(good | change))
        again = m.toy_job(tmp_path)
        again.take_up()
        assert again.finished == 0 or all((again.folder / s["file"]).parent == again.folder and "/" not in s["file"] for s in again.record["segments"])
    assert (tmp_path / "00000.mp4").read_bytes() == b"somebody's"


def test_an_empty_word_is_told(capsys):
    assert cli.main(["inspect", "", ""]) == 2 and "not an option" in capsys.readouterr().err
    assert cli.main(["people", "--people", "9" * 5000, "--out", "x"]) == 2
    line = capsys.readouterr().err
    assert len(line) < 600 and line.startswith("deepswap: ") and len(line.splitlines()) == 1


# ---------------------------------------------------------------- from a shell


def spoiled_files(folder):
    "A handful, each of another kind."
    clip = m.write_clip(folder / "whole.mp4", "libx264", "aac")
    png, tif = m.encoded(m.noise(300, 200), "PNG"), m.encoded(m.noise(64, 64), "TIFF", compression="tiff_adobe_deflate")
    made = {"cut.png": png[:400], "lies.png": m.lie(png, 2**31 - 1, 0), "text.jpg": b"dear diary", "cut.mp4": clip.read_bytes()[:300], "zeros.mp4": bytes(4000), "noisy.tif": tif[:20] + bytes(60) + tif[80:], "empty.webp": b"",
            "lies.gif": b"GIF89a" + struct.pack("<HH", 65535, 65535) + bytes(30)}
    for name, data in made.items():
        (folder / name).write_bytes(data)
    return {n: folder / n for n in made}


def test_every_command_says_one_line_of_a_spoiled_file(tmp_path, capfd):
    "In this process, down to the file descriptor: decoders written in C are silent too."
    files = spoiled_files(tmp_path)
    good = tmp_path / "good.png"
    m.noise(120, 120).save(good)
    before = {p: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()}
    for name, path in files.items():
        for argv in (["swap", good, path, "-o", tmp_path / "o.png"], ["inspect", path], ["video", "--source", good, "--target", path, "--out", tmp_path / "o.mp4"], ["extract", path, "--out", tmp_path / "o"],
                     ["evaluate", "--photos", path, "--encoder", path], ["sample", path, "--out", tmp_path / "o.png"], ["train", "autoencoder", "--data", path, "--size", "8", "--steps", "1", "--out", tmp_path / "run"]):
            code = cli.main([str(a) for a in argv])
            err = capfd.readouterr().err
            assert code == 2 and err.startswith("deepswap: ") and len(err.splitlines()) == 1, (name, argv[0], code, err)
    assert {p: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()} == before, "inputs unchanged, nothing new"


def test_a_program_of_its_own_says_one_line_too(tmp_path):
    path = spoiled_files(tmp_path)["noisy.tif"]
    ask = lambda code: subprocess.run([sys.executable, "-c", code, "inspect", str(path)], capture_output=True, text=True, timeout=120)  # noqa: E731
    plain = ask("import sys; from PIL import Image\ntry: Image.open(sys.argv[2]).load()\nexcept OSError: pass")
    assert "ZIPDecode" in plain.stderr, "the decoder says nothing by itself, so its silence would prove nothing"
    done = ask("import sys; from deepswap.cli import main; sys.exit(main())")
    assert done.returncode == 2 and done.stdout == "" and len(done.stderr.splitlines()) == 1 and done.stderr.startswith("deepswap: "), done.stderr


def test_memory_stays_bounded_when_headers_lie():
    "A picture that claims a hundred megapixels and holds none takes no more than it claims."
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    png = bytearray(m.encoded(m.noise(30, 30), "PNG"))
    png = m.lie(m.lie(bytes(png), 12_000, 0), 9_999, 1)
    with pytest.raises(ImageError):
        read_image(io.BytesIO(png))
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / (2**20 if sys.platform == "darwin" else 2**10)
    assert grown < 1500, f"{grown:.0f} MB"
