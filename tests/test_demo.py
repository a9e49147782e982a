"The page's handlers, its desk and its server; the browser has its own file."

import copy
import io
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import zipfile
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from deepswap import demo
from deepswap.core import ImageError, NoFaceError, UsageError, WeightsError, read_image
from deepswap.faceshifter import FaceShifter, FaceShifterSwapper
from deepswap.provenance import inspect
from deepswap.show import PALETTE
from deepswap.swap import AutoSwapper, SWAPPERS
from deepswap.train import RingOfGaussians, ToyGAN, Trainer, run

gr = demo.load_gradio()
from gradio_client import Client, handle_file  # noqa: E402
from gradio_client.exceptions import AppError  # noqa: E402
from servers import answers, free_port  # noqa: E402
from test_swap import two_colors  # noqa: E402


@pytest.fixture(scope="module")
def examples():
    return demo.example_pictures()


@pytest.fixture
def desk(tmp_path):
    desk = demo.Desk(parent=tmp_path)
    yield desk
    desk.close()
    assert not desk.root.exists()


def upload(desk, path, name=None):
    "Put a file where gradio would have put it."
    folder = desk.root / f"{time.monotonic_ns():x}"
    folder.mkdir()
    return shutil.copyfile(path, folder / (name or Path(path).name))


def sentence(error):
    "The message of an error, checked to be one clear sentence without a path of ours in it."
    text = error.value.message if isinstance(error.value, gr.Error) else str(error.value)
    assert "\n" not in text and text.rstrip().endswith(".") and 20 < len(text) < 250, text
    assert "Traceback" not in text and "deepswap-demo-" not in text and "our picture" not in text, text
    assert "went wrong here" not in text, text  # the apology for what we did not foresee
    return text


# ---- the desk ----


def test_a_file_stays_until_its_last_holder_lets_go(desk, tmp_path):
    a, b, outside = desk.root / "x" / "a.png", desk.root / "y" / "b.png", tmp_path / "mine.png"
    for p in (a, b, outside):
        p.parent.mkdir(exist_ok=True)
        p.write_bytes(b"1")
    desk.hold("ann", "source", a, outside)
    desk.hold("bob", "target", a)
    desk.hold("ann", "source", b)  # another picture in the same place
    assert a.exists() and b.exists()
    desk.leave("bob")
    assert not a.exists() and not a.parent.exists() and b.exists()
    desk.hold("ann", "source")
    assert not b.exists() and outside.exists() and desk.root.exists()
    assert desk.files() == [] and desk.owners == {}


def test_time_removes_what_idle_visitors_hold_and_what_nobody_holds(desk):
    held, loose, example = (desk.root / n for n in ("held.png", "loose.png", "example.png"))
    for p in (held, loose, example):
        p.write_bytes(b"1")
    desk.hold("*", "examples", example)
    desk.hold("ann", "source", held)
    desk.sweep(time.time() + desk.keep - 5)
    assert held.exists() and loose.exists()
    desk.sweep(time.time() + desk.keep + 5)
    assert desk.files() == [example], "the page's own files stay, all others go"


def test_the_sweeper_runs_by_itself(tmp_path):
    desk = demo.Desk(keep=0.2, parent=tmp_path).watch(every=0.1)
    (desk.root / "held.png").write_bytes(b"1")
    desk.hold("ann", "source", desk.root / "held.png")
    end = time.time() + 10
    while desk.files() and time.time() < end:
        time.sleep(0.05)
    assert desk.files() == []
    desk.close()
    assert list(tmp_path.iterdir()) == []


def test_the_sweeper_survives_a_file_that_vanishes_while_it_looks(tmp_path, monkeypatch):
    calls = []

    def sweep(self, now=None):
        calls.append(1)
        raise FileNotFoundError("gone")

    monkeypatch.setattr(demo.Desk, "sweep", sweep)
    desk = demo.Desk(parent=tmp_path).watch(every=0.05)
    end = time.time() + 10
    while len(calls) < 3 and time.time() < end:
        time.sleep(0.05)
    desk.close()
    assert len(calls) >= 3


def test_the_desk_goes_when_the_program_ends(tmp_path):
    code = f"from deepswap.demo import Desk; d = Desk(parent={str(tmp_path)!r}); (d.root / 'a.png').write_bytes(b'1'); print(d.root); {{}}"
    for end in ("raise SystemExit(0)", "raise ValueError('crash')"):
        out = subprocess.run([sys.executable, "-c", code.format(end)], capture_output=True, text=True, timeout=120)
        assert "deepswap-demo-" in out.stdout and list(tmp_path.iterdir()) == [], out.stderr


@pytest.mark.skipif(os.name == "nt", reason="there a folder of the same day is left alone")
def test_the_next_start_clears_what_a_killed_one_left(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left, alive, other = tmp_path / f"deepswap-demo-{dead.pid}-abc", tmp_path / f"deepswap-demo-{os.getpid()}-abc", tmp_path / "deepswap-demo-notes"
    for p in (left, alive, other):
        p.mkdir()
        (p / "face.png").write_bytes(b"1")
    assert demo.clear_dead(tmp_path) == [left]
    assert not left.exists() and alive.exists() and other.exists()


# ---- looking and swapping ----


def test_look_counts_faces_and_numbers_them_from_the_left(examples):
    one, two = demo.look(examples[0]), demo.look(examples[-1], "target")
    assert (one.good, len(one.faces), one.note, one.picture) == (True, 1, "One face found.", None)
    assert two.good and len(two.faces) == 2 and two.faces[0].box[0] < two.faces[1].box[0]
    assert two.picture.width <= 720
    plain = read_image(examples[-1]).resize(two.picture.size)
    changed = np.abs(np.asarray(two.picture, dtype=int) - np.asarray(plain, dtype=int)).max(2) > 60
    box = np.asarray(two.faces[1].box) * two.picture.width / 1280
    ys, xs = np.nonzero(changed[:, changed.shape[1] // 2 :])
    assert abs(xs.max() + changed.shape[1] // 2 - box[2]) < 6 and abs(ys.max() - box[3]) < 6


def test_one_chosen_face_is_replaced_and_the_file_says_so(examples, desk):
    reports = []
    made = demo.Handlers(desk).swap("ann", examples[0], examples[-1], face="2", place="top-left", kind="JPEG", progress=lambda f, t="": reports.append((f, t)))
    before, after = (np.asarray(read_image(p), dtype=float) for p in (examples[-1], made.file))
    difference = np.abs(before - after).mean(2)
    assert made.file.endswith(".jpg") and made.faces == 1 and before.shape == after.shape
    assert difference[:, 640:][200:450, 200:450].mean() > 4 * difference[100:, :640].mean(), "only the face on the right changes"
    assert difference[:30, :60].mean() > 20, "the label is at the top left"
    assert made.inspection.ours and inspect(made.file).credentials.valid and inspect(made.file).mark.found
    assert [f for f, _ in reports] == sorted(f for f, _ in reports) and reports[-1][0] == 1.0 and all(t for _, t in reports)
    assert sorted(str(p) for p in desk.files()) == sorted([made.file, made.before])
    desk.leave("ann")
    assert desk.files() == []


def test_a_second_swap_replaces_the_first(examples, desk):
    h = demo.Handlers(desk)
    first = h.swap("ann", examples[0], examples[1])
    second = h.swap("ann", examples[0], examples[2])
    assert not Path(first.file).exists() and Path(second.file).exists() and len(desk.files()) == 2


def test_label_and_method_can_be_chosen_but_not_dropped(examples, desk):
    h = demo.Handlers(desk)
    with pytest.raises(gr.Error) as e:
        demo.polite(h.swap, "ann", examples[0], examples[1], place="nowhere")
    assert "nowhere" in sentence(e)
    with pytest.raises(gr.Error) as e:
        demo.polite(h.swap, "ann", examples[0], examples[1], method="magic")
    assert "magic" in sentence(e)
    assert desk.files() == []
    with pytest.raises(TypeError):
        h.swap("ann", examples[0], examples[1], label=False)


# ---- trained pairs as methods ----


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    "A folder with a pair, a FaceShifter, a run of another kind, an empty folder and a file."
    folder = tmp_path_factory.mktemp("runs")
    two_colors(folder / "colors")
    run("faceshifter", "procedural:n=4,scenes=3", 32, 2, 1, device="cpu", out=folder / "faceshifter", options={"width": 2, "ndf": 4}, progress=False)
    Trainer(ToyGAN(), RingOfGaussians(8), out=folder / "toy", steps=1, progress=False).fit()
    (folder / "empty").mkdir()
    (folder / "notes.txt").write_text("notes")
    return folder


def test_pairs_of_a_folder_become_methods(runs, tmp_path):
    methods = demo.page_methods(runs)
    own = list(demo.page_methods())
    assert set(own) <= set(SWAPPERS) - {"none"} and own[0] == "auto" and {"faceshifter", "classical"} < set(own)
    assert list(methods) == [*own, "colors: A", "colors: B", "faceshifter: faceshifter"], "a run takes nobody's name"
    assert all("no source picture" in methods[m][0] for m in ("colors: A", "colors: B"))
    assert methods["faceshifter: faceshifter"][1].size == 32 and methods["faceshifter"][1].size > 32
    with pytest.raises(UsageError, match="no folder"):
        demo.page_methods(tmp_path / "nowhere")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/last.safetensors").write_bytes(b"no weights")
    with pytest.raises(WeightsError, match="can't be read"):
        demo.page_methods(tmp_path)


def test_a_method_without_its_weights_is_left_out_and_said_to_who_starts_the_page(monkeypatch, capsys):
    def missing(device):
        raise WeightsError("There is no file here.")

    monkeypatch.setitem(SWAPPERS, "broken", ("a method", missing))
    assert "broken" not in demo.page_methods() and "without broken: There is no file here." in capsys.readouterr().err


def test_a_pair_paints_without_a_source_and_the_file_names_it(runs, examples, desk):
    h = demo.Handlers(desk, demo.page_methods(runs))
    made = {to: h.swap("ann", None, examples[0], method=f"colors: {to}", place="top-left") for to in "AB"}
    assert made["B"].inspection.ours and inspect(made["B"].file).credentials.method == "autoencoder-swap"
    h = demo.Handlers(desk, demo.page_methods(runs))
    colors = {}
    for to in "AB":
        image = np.asarray(read_image(h.swap("bob", None, examples[0], method=f"colors: {to}", place="top-left").file), dtype=float)
        colors[to] = image[290:350, 290:350].mean((0, 1))
    assert colors["A"][0] - colors["A"][2] > colors["B"][0] - colors["B"][2] + 40, "A is red and B is blue"


def test_a_path_is_no_method_of_the_page(runs, examples, desk):
    with pytest.raises(gr.Error) as e:
        demo.polite(demo.Handlers(desk).swap, "ann", examples[0], examples[1], method=str(runs / "colors"))
    assert "choose one of: auto" in e.value.message and desk.files() == []


# ---- how much of the source, all methods, and inside the network ----


@pytest.fixture(scope="module")
def few():
    "A page with a small network without training, and with what it is compared with."
    torch.manual_seed(0)
    small = FaceShifterSwapper(FaceShifter(size=32, width=2, ndf=4))
    return {"auto": ("decides", AutoSwapper(small, demo.page_methods()["classical"][1], "the network does not know faces like these.")), "small": ("a network", small), "classical": demo.page_methods()["classical"]}


def face_of(file, examples, target=1):
    "Pixels of the face in a result."
    x0, y0, x1, y1 = (int(v) for v in demo.look(examples[target]).faces[0].box)
    return np.asarray(read_image(file), dtype=float)[y0:y1, x0:x1]


def test_the_share_of_the_source_reaches_a_network_and_nothing_else(few, examples, desk):
    h, seen = demo.Handlers(desk, few), {}
    for method in ("small", "classical"):
        for share in (1.0, 0.2):
            seen[method, share] = face_of(h.swap("ann", examples[0], examples[1], method, share=share).file, examples)
    assert np.abs(seen["small", 1.0] - seen["small", 0.2]).mean() > 1
    source, target, drawn = demo.make_swap(demo.Uploads(examples[0], examples[1]), desk.root, "small", share=0.0, methods=few).crops
    assert drawn.shape == target.shape and (drawn - target).abs().mean() > 0.02, "an exercise: 0 is the target drawn anew, not the target"
    assert np.abs(seen["classical", 1.0] - seen["classical", 0.2]).mean() < 0.5, "the mark differs, the face does not"
    assert few["small"][1].share == 1.0, "the next visitor starts anew"
    assert [demo.can_mix(s) for _, s in few.values()] == [True, True, False]
    for share in (1.5, "half", None):
        with pytest.raises(gr.Error) as e:
            demo.polite(h.swap, "ann", examples[0], examples[1], "small", share=share)
        assert "share of the source" in sentence(e)


def test_auto_says_what_it_took_and_the_file_names_that(few, examples, desk):
    made = demo.Handlers(desk, few).swap("ann", examples[0], examples[1])
    assert (made.name, made.method) == ("auto", "classical") and inspect(made.file).credentials.method == "classical"
    assert "does not know faces like" in made.notes[0]
    card = demo.verdict_card(made.inspection, "title", ["<b>"])
    assert card.index("&lt;b&gt;") < card.index("title") and "<b>" not in card


def test_all_methods_are_made_on_the_same_pair_and_each_is_signed(few, examples, desk):
    reports = []
    made = demo.Handlers(desk, few).swap("ann", examples[0], examples[1], "small", show=["all methods"], progress=lambda f, t="": reports.append(f))
    assert list(made.others) == ["small", "classical"], "auto is one of the others"
    assert made.others["small"] is made
    assert re.fullmatch(r"The face was drawn in a square of 32 pixels and enlarged to \d{3}, so it is softer .*", *made.notes) and made.others["classical"].notes == []
    for name, method in {"small": "faceshifter", "classical": "classical"}.items():
        found = inspect(made.others[name].file)
        assert found.ours and found.credentials.method == method and 0 < made.others[name].swapping < 60
    assert np.abs(face_of(made.file, examples) - face_of(made.others["classical"].file, examples)).mean() > 5
    assert {str(p) for p in desk.files()} == {made.before, *(m.file for m in made.others.values())}
    assert reports == sorted(reports), "progress does not go back"
    auto = demo.Handlers(desk, few).swap("ann", examples[0], examples[1], show=["all methods"])
    assert list(auto.others) == ["small", "classical"] and auto.others["classical"] is auto, "what auto took is not made twice"
    assert len(desk.files()) == 3, "the new result takes the old one's place"


def test_a_method_that_cannot_is_named_and_the_others_are_shown(few, runs, examples, desk):
    def broken(source, target):
        raise UsageError("This method is tired.")

    methods = {**few, "tired": ("never works", broken), **{n: m for n, m in demo.page_methods(runs).items() if n.startswith("colors")}}
    made = demo.Handlers(desk, methods).swap("ann", None, examples[0], "colors: A", show=["all methods", "mixture"])
    assert list(made.others) == ["colors: A", "colors: B"], "only a pair needs no source"
    soft, why, sheet = made.notes
    assert "softer" in soft and why.startswith("small, classical, tired: There is no source picture yet") and "no mixture" in sheet and made.sheets == {}
    made = demo.Handlers(desk, methods).swap("ann", examples[1], examples[0], "classical", show=["all methods"])
    assert list(made.others) == ["small", "classical", "colors: A", "colors: B"] and made.notes == ["tired: This method is tired."]


def tile(sheet, n, cols=3, side=230, gap=10, strip=40):
    "The middle of the n-th tile of a sheet."
    x, y = gap + n % cols * (side + gap), gap + n // cols * (side + strip)
    return np.asarray(sheet, dtype=float)[y + 8 : y + side - 8, x + 8 : x + side - 8]


def test_the_mixture_goes_from_the_target_to_the_source(few):
    network, crops = few["small"][1].model, torch.rand(2, 1, 3, 64, 64) * 2 - 1
    sheet = demo.mixture_sheet(network, *crops)
    whole = [tile(demo.tile_sheet([("", p)], ""), 0) for p in (network.swap(*crops, 0.0), network.swap(*crops, 0.25), network.swap(*crops), crops[0])]
    for n, expected in zip((0, 1, 4, 5), whole, strict=True):
        assert np.array_equal(tile(sheet, n), expected), n
    assert not np.array_equal(whole[0], whole[2])


@pytest.mark.parametrize("bias, role", [(30.0, "source"), (-30.0, "target")])
def test_masks_are_in_the_colour_of_who_decides(bias, role):
    torch.manual_seed(0)
    network = FaceShifter(size=32, width=2, ndf=4)
    for block in network.generator.blocks:
        for layer in block.aad:
            torch.nn.init.zeros_(layer.attention.weight)
            torch.nn.init.constant_(layer.attention.bias, bias)
    sheet = demo.mask_sheet(network, *torch.rand(2, 1, 3, 64, 64))
    color = [int(PALETTE[role][i : i + 2], 16) for i in (1, 3, 5)]
    for n in range(3, 3 + len(network.generator.blocks)):
        assert np.abs(tile(sheet, n) - color).max() <= 1, n
    assert np.abs(tile(sheet, 0) - color).mean() > 5


def test_of_a_method_with_two_stages_the_first_is_looked_into(few, tmp_path):
    first, second = few["small"][1], copy.copy(few["small"][1])
    second.model = SimpleNamespace(faceshifter=first.model)
    seen = []
    for name, methods in (("second", {"second": ("two stages", second), "small": few["small"]}), ("small", few)):
        made = SimpleNamespace(name=name, crops=tuple(torch.zeros(2, 1, 3, 64, 64)), notes=[], sheets={})
        demo.make_sheets(made, tmp_path, ["mixture"], methods)
        seen.append(tile(read_image(made.sheets["mixture"]), 0))
        assert made.notes == []
    assert np.abs(seen[0] - seen[1]).mean() < 2, "the same network drew both"


def test_sheets_are_signed_and_held_by_the_visitor(few, examples, desk):
    made = demo.Handlers(desk, few).swap("ann", examples[0], examples[1], "classical", show=list(demo.SHEETS), kind="JPEG")
    assert list(made.sheets) == list(demo.SHEETS) and all(f.endswith(".jpg") for f in made.sheets.values())
    for file in made.sheets.values():
        assert inspect(file).ours and inspect(file).credentials.method == "faceshifter"
    desk.leave("ann")
    assert desk.files() == []
    without = {"classical": few["classical"]}
    made = demo.Handlers(desk, without).swap("ann", examples[0], examples[1], show=["mixture"])
    assert made.sheets == {} and "no FaceShifter" in made.notes[0]


# ---- what bad input gets ----

MALFORMED = ("astronaut_truncated60.jpg", "broken.png", "broken_data_stream.png", "decompression_bomb.gif", "empty.jpg", "hopper_unknown_pixel_mode.tif",
             "not_an_image.jpg", "one_pixel.png", "truncated_image.png", "truncated_jpeg.jpg")  # fmt: skip
FACELESS = ("chelsea.png", "page.png", "moon.png", "rocket.jpg")


def refused(desk, examples, path, name=None):
    "Give a bad file as source, as target, to look and to swap; returns what was said."
    h, said = demo.Handlers(desk), set()
    for role in ("source", "target"):
        bad = upload(desk, path, name)
        pair = (bad, examples[0]) if role == "source" else (examples[0], bad)
        with pytest.raises(gr.Error) as e:
            demo.polite(h.swap, "ann", *pair)
        said.add(sentence(e))
        seen, overview = h.look("ann", bad, role)
        assert not seen.good and seen.note and overview is None
        if not seen.readable:
            assert not bad.exists(), "what can't be read is not kept"
        desk.leave("ann")
        assert desk.files() == []
    return said


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_file(shared, desk, examples, name):
    refused(desk, examples, shared / "data" / "stills" / "malformed" / name)


@pytest.mark.parametrize("name", FACELESS)
def test_picture_without_a_face(shared, desk, examples, name):
    assert all("face" in s for s in refused(desk, examples, shared / "data" / "stills" / "noface" / name))


def test_every_other_odd_file_is_read(shared, desk):
    folder = shared / "data" / "stills" / "malformed"
    for p in sorted(folder.iterdir()):
        if p.name not in MALFORMED:
            assert demo.open_upload(p).mode == "RGB", p.name
    assert {p.name for p in folder.iterdir()} >= set(MALFORMED)


def huge_png():
    "A 20,000 x 20,000 PNG, all black, of 50 kB."
    import struct

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    z = zlib.compressobj(9)
    rows = b"".join(z.compress(bytes(2501)) for _ in range(20_000)) + z.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 20_000, 20_000, 1, 0, 0, 0, 0)) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_bad_files_made_here(desk, examples, tmp_path):
    files = {"notes.txt": b"To whom it may concern", "looks.png": b"%PDF-1.7 not a picture at all", "nothing.jpg": b"", "huge.png": huge_png()}
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as z:
        z.writestr("a.txt", "a")
    files["packed.jpg"] = packed.getvalue()
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
        assert all(name in s for s in refused(desk, examples, tmp_path / name)), name
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (300, 300, 3), dtype=np.uint8)).save(tmp_path / "noise.png")
    assert all("No face" in s for s in refused(desk, examples, tmp_path / "noise.png"))


def test_nothing_uploaded_a_folder_and_a_lost_file(desk, examples, tmp_path):
    with pytest.raises(UsageError) as e:
        demo.make_swap(demo.Uploads(None, examples[0]), tmp_path)
    assert "no source picture" in sentence(e)
    with pytest.raises(UsageError) as e:
        demo.make_swap(demo.Uploads(examples[0], None), tmp_path)
    assert "no target picture" in sentence(e)
    with pytest.raises(ImageError) as e:
        demo.make_swap(demo.Uploads(tmp_path, examples[0]), tmp_path)
    assert "folder" in sentence(e)
    with pytest.raises(ImageError) as e:
        demo.make_swap(demo.Uploads(examples[0], tmp_path / "gone.png"), tmp_path)
    assert "upload it again" in sentence(e)
    with pytest.raises(UsageError):
        demo.make_swap(demo.Uploads(examples[0], examples[-1]), tmp_path, face="3")
    assert list(tmp_path.iterdir()) in ([], [desk.root])


def test_what_nobody_foresaw_is_an_apology_without_details(capsys):
    def broken():
        raise RuntimeError("secret path /etc/shadow")

    with pytest.raises(gr.Error) as e:
        demo.polite(broken)
    assert "try again" in e.value.message and "shadow" not in e.value.message
    assert "RuntimeError" in capsys.readouterr().err


def test_markup_in_a_file_name_stays_text(desk, tmp_path):
    (tmp_path / "<img src=x onerror=alert(1)>.png").write_bytes(b"no picture")
    with pytest.raises(gr.Error) as e:
        demo.polite(demo.open_upload, tmp_path / "<img src=x onerror=alert(1)>.png")
    assert "<" not in e.value.message and "&lt;img" in e.value.message
    card = demo.verdict_card(type("I", (), dict(ours=False, reasons=["<b>x</b>", "<script>"]))())
    assert "<script>" not in card and "<b>" not in card


# ---- the server ----


@pytest.fixture(scope="module")
def page():
    page = demo.launch(free_port(), block=False)
    yield page
    page.close(verbose=False)
    page.desk.close()
    assert not page.desk.root.exists()


@pytest.fixture(scope="module")
def client(page, tmp_path_factory):
    client = Client(page.local_url, verbose=False, download_files=str(tmp_path_factory.mktemp("client")), analytics_enabled=False)
    yield client
    client.close()


def options(**changed):
    return dict(method="classical", face="largest", source_face="largest", place="bottom-right", kind="PNG", share=1.0, show=[], **changed)


def call_swap(client, source, target, method, face, source_face, place, kind, share, show):
    return client.predict(source, target, method, face, source_face, place, kind, share, show, api_name="/swap")


def test_a_program_swaps_over_the_network_and_leaves_nothing(page, client, examples, tmp_path):
    own = {p.name for p in page.desk.files()}
    slider, file, seal, *_ = call_swap(client, handle_file(examples[0]), handle_file(examples[1]), **options())
    path = file["value"] if isinstance(file, dict) else file
    assert inspect(path).ours and not inspect(examples[1]).ours
    assert "1 face replaced" in seal and len(slider) == 2
    assert "Made with deepswap" in client.predict(handle_file(path), api_name="/inspect")
    assert "No sign" in client.predict(handle_file(examples[1]), api_name="/inspect")
    numbered = call_swap(client, handle_file(examples[0]), handle_file(examples[-1]), **{**options(), "face": "2"})
    everyone = call_swap(client, handle_file(examples[0]), handle_file(examples[-1]), **{**options(), "face": "all"})
    assert "1 face replaced" in numbered[2] and "2 faces replaced" in everyone[2]
    page.desk.sweep(time.time() + page.desk.keep + 5)
    assert {p.name for p in page.desk.files()} == own, "only the page's examples are left"


def test_a_program_asks_for_everything_and_gets_signed_files(page, client, examples):
    own = {p.name for p in page.desk.files()}
    show = ["all methods", *demo.SHEETS]
    slider, file, seal, gallery, *sheets = call_swap(client, handle_file(examples[0]), handle_file(examples[1]), **{**options(), "method": "faceshifter", "share": 0.75, "show": show})
    pictures = [g["image"]["path"] if isinstance(g["image"], dict) else g["image"] for g in (gallery["value"] if isinstance(gallery, dict) else gallery)]
    sheets = [s["value"] if isinstance(s, dict) and "value" in s else s for s in sheets]
    sheets = [s["path"] if isinstance(s, dict) else s for s in sheets]
    assert "replaced by faceshifter" in seal and len(pictures) == len(demo.page_methods()) - 1 and len(sheets) == 2
    assert all(inspect(p).ours for p in (*pictures, *sheets))
    with pytest.raises(AppError, match="2.0|maximum|share"):
        call_swap(client, handle_file(examples[0]), handle_file(examples[1]), **{**options(), "method": "faceshifter", "share": 2.0})
    with pytest.raises(AppError):
        call_swap(client, handle_file(examples[0]), handle_file(examples[1]), **{**options(), "show": ["passwords"]})
    page.desk.sweep(time.time() + page.desk.keep + 5)
    assert {p.name for p in page.desk.files()} == own


def test_errors_reach_the_program_as_one_sentence(page, client, examples, tmp_path):
    (tmp_path / "notes.txt").write_text("not a picture")
    with pytest.raises(AppError, match="notes.txt is not a picture we can read"):
        call_swap(client, handle_file(tmp_path / "notes.txt"), handle_file(examples[1]), **options())
    with pytest.raises(AppError, match="Face 3 was asked for, but the target picture holds 2"):
        call_swap(client, handle_file(examples[0]), handle_file(examples[-1]), **{**options(), "face": "3"})
    with pytest.raises(AppError, match="no target picture"):
        call_swap(client, handle_file(examples[0]), None, **options())
    grey = Image.new("RGB", (300, 300), "grey")
    grey.save(tmp_path / "grey.png")
    with pytest.raises(AppError, match="No face was found in the target picture"):
        call_swap(client, handle_file(examples[0]), handle_file(tmp_path / "grey.png"), **options())


def test_links_and_foreign_paths_are_refused(page, examples, repo):
    "Spoken in plain HTTP, because the client itself would fetch a link and check a path."
    import httpx

    def ask(file):
        event = web.post("/gradio_api/call/inspect", json={"data": [file]}).json()["event_id"]
        return web.get(f"/gradio_api/call/inspect/{event}").text

    with httpx.Client(base_url=page.local_url, timeout=60) as web:
        mine = web.post("/gradio_api/upload", files={"files": ("mine.jpg", examples[1].read_bytes())}).json()[0]
        whole = {"path": mine, "meta": {"_type": "gradio.FileData"}}
        assert "event: complete" in ask(whole) and "No sign of deepswap" in ask(whole), "the same words with an upload of one's own work"
        link = "http://127.0.0.1:9/a.png"
        assert "Links are not fetched" in ask({**whole, "path": link, "url": link})
        foreign = repo / "nbs" / ".." / "README.md"
        picture = examples[2]  # a readable picture outside the desk
        for path in (foreign, picture, page.desk.root / ".." / "x.png"):
            for file in ({**whole, "path": str(path)}, {"path": str(path)}):
                answer = ask(file)
                assert "event: error" in answer and "ds-card" not in answer and "not a picture we can read" not in answer, answer


def test_only_its_own_files_are_served_and_large_ones_refused(page, repo, tmp_path):
    import httpx

    with httpx.Client(base_url=page.local_url, timeout=60) as web:
        for path in (repo / "settings.ini", Path("/etc/passwd"), tmp_path / "x.png", page.desk.root / ".." / "x.png"):
            assert web.get(f"/gradio_api/file={path}").status_code in (403, 404), path
        assert web.post("/gradio_api/upload", files={"files": ("big.png", bytes(26 * 2**20))}).status_code == 413
        assert "fonts.googleapis.com" not in web.get("/").text
    assert not [p for p in page.desk.files() if p.stat().st_size > 20 * 2**20]


def test_a_port_in_use_is_said_in_one_sentence(page):
    with pytest.raises(UsageError) as e:
        demo.pick_port(page.server_port)
    assert str(page.server_port) in sentence(e) and "in use" in sentence(e)
    for port in (0, -1, 70000):
        with pytest.raises(UsageError):
            demo.pick_port(port)
    free = demo.pick_port()
    with socket.socket() as s:
        s.bind(("127.0.0.1", free))


def test_closing_the_page_stops_the_server(tmp_path):
    port = free_port()
    page = demo.launch(port, block=False)
    assert answers(f"http://127.0.0.1:{port}/") and page.desk.root.exists()
    page.close(verbose=False)
    page.desk.close()
    assert not page.desk.root.exists() and not answers(f"http://127.0.0.1:{port}/", timeout=1)


def test_importing_the_library_does_not_import_gradio():
    code = "import sys, deepswap.demo; assert 'gradio' not in sys.modules, 'gradio is imported at once'"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


def test_every_chapter_the_page_names_exists(repo):
    for name, *_ in [*demo.STEPS, *demo.MORE]:
        assert (repo / "nbs" / f"{name}.ipynb").exists(), name
        assert f"/nbs/{name[3:]}.html" in demo.chapter_url(name) and demo.chapter_url(name) in demo.how_html()


def test_no_face_error_is_the_librarys_own(examples, tmp_path):
    Image.new("RGB", (200, 200), "white").save(tmp_path / "white.png")
    with pytest.raises(NoFaceError):
        demo.make_swap(demo.Uploads(examples[0], tmp_path / "white.png"), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["white.png"]
