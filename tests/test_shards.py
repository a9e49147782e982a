"Shards: written whole, read once per epoch by any number of processes and workers, resumed in the middle, and never trusted."

import errno
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from PIL import Image

from deepswap import shards
from deepswap.core import DataError, OutputError, UsageError
from deepswap.data import PairLoader, Subset, batches, open_faces, split_people
from deepswap.shards import KINDS, Record, ShardFaces, Workers, extract_shards, index_shards, members, read_index, shard_order, write_index, write_shard, write_shards


def jpeg(seed, size=16):
    out = io.BytesIO()
    colour = np.random.default_rng(seed).integers(0, 255, (2, 2, 3), dtype=np.uint8)
    Image.fromarray(colour).resize((size, size)).save(out, "JPEG", quality=90)
    return out.getvalue()


def pack(folder, counts, person=lambda k: f"p{k // 5}"):
    "Shards of these sizes; records are numbered on."
    folder.mkdir()
    lines, k = [], 0
    for s, n in enumerate(counts):
        lines.append(write_shard(folder / f"faces-{s:06d}.tar", [Record(jpeg(j), "jpg", {"person": person(j), "n": j}) for j in range(k, k + n)]))
        k += n
    write_index(folder, lines)
    return folder


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    return pack(tmp_path_factory.mktemp("shards") / "s", [13, 20, 7, 1, 20, 9])


def epoch(loader):
    return torch.cat([b.index for b in loader])


# ---------------------------------------------------------------- the order


@pytest.mark.parametrize("counts", [[1], [5, 1, 9], [100] * 9 + [37], [3] * 50])
@pytest.mark.parametrize("lanes", [1, 3, 8])
@pytest.mark.parametrize("buffer", [1, 16, 10**6])
def test_an_epoch_has_every_record_once(counts, lanes, buffer):
    for e in (0, 1):
        order = shard_order(counts, 7, e, buffer, lanes)
        assert order.sort()[0].tolist() == list(range(sum(counts)))
        assert torch.equal(order, shard_order(counts, 7, e, buffer, lanes))
    if sum(counts) > 20 and buffer > 1:
        assert not torch.equal(shard_order(counts, 7, 0, buffer, lanes), shard_order(counts, 7, 1, buffer, lanes))
        assert not torch.equal(shard_order(counts, 7, 0, buffer, lanes), shard_order(counts, 8, 0, buffer, lanes))


@pytest.mark.parametrize("world", [1, 2, 4])
def test_processes_read_their_own_shards(world):
    "A process opens about its share of the shards, and each shard is opened by two at most."
    counts = [50] * 40
    order = shard_order(counts, 0, 0, 64, 8)
    opened = [{int(k) // 50 for k in order[r::world]} for r in range(world)]
    assert all(len(o) <= 40 // world + 8 // world for o in opened)
    assert max(sum(s in o for o in opened) for s in range(40)) <= 2


def test_a_window_is_a_stretch_of_the_tape():
    order = shard_order([1000], 0, 0, buffer=80, lanes=4)  # windows of 20 in four lanes of 250
    for lane in range(4):
        for w in range(12):
            window = order[lane::4][20 * w : 20 * w + 20].sort()[0]
            assert window.diff().unique().tolist() == [1]


def test_tens_of_thousands_once_over_four_processes(tmp_path):
    "The million of the benchmark, small: 20,000 records in uneven shards, four real processes, decoded."
    picture, folder = jpeg(0, 8), tmp_path / "s"
    folder.mkdir()
    counts = [1700] * 11 + [1300]
    lines = [write_shard(folder / f"faces-{s:06d}.tar", (Record(picture, "jpg", {"person": f"p{k % 7}"}) for k in range(n))) for s, n in enumerate(counts)]
    write_index(folder, lines)
    start = time.perf_counter()
    faces = ShardFaces(folder, 8, buffer=512, budget_mb=0)
    assert time.perf_counter() - start < 1 and len(faces) == 20_000
    pids = []
    for r in range(4):
        if not (pid := os.fork()):
            torch.set_num_threads(1)
            seen, order = [], batches(faces, 64, seed=1).order(0)[r::4]
            for i in order.split(64):
                faces._shelve(i.tolist())
                assert all(isinstance(faces.sample(k), dict) for k in i.tolist())
                for k in i.tolist():
                    faces._hand_out(k)
                seen += i.tolist()
            np.array(seen).tofile(tmp_path / f"seen{r}")
            ok = faces.evicted == 0 and faces.reads < 60 and len(faces.shelf) <= 4  # runs that lie across the end of a lane
            os._exit(0 if ok else 1)
        pids.append(pid)
    assert not any(os.waitpid(p, 0)[1] for p in pids)
    seen = np.concatenate([np.fromfile(tmp_path / f"seen{r}", np.int64) for r in range(4)])
    assert np.bincount(seen, minlength=20_000).tolist() == [1] * 20_000


# ---------------------------------------------------------------- the data set


def test_it_is_a_data_set_like_the_others(packed):
    faces = open_faces(f"shards:{packed}", 16)
    assert len(faces) == 70 and faces.names[13] == "faces-000001.tar#0" and faces.names[-1] == "faces-000005.tar#8" and len(faces.names[3:6]) == 3
    assert [faces.notes(k)["n"] for k in (0, 13, 69)] == [0, 13, 69]
    assert [faces.person_names[p] for p in faces.person[[0, 5, 69]]] == ["p0", "p1", "p13"]
    want = np.asarray(Image.open(io.BytesIO(jpeg(40))))
    got = ((faces.batch([40]).image[0].permute(1, 2, 0) + 1) * 127.5).round().numpy()
    assert np.array_equal(got, want)
    assert "70 pictures of 14 people" in repr(faces)


def test_stream_reads_runs_and_batch_reads_records(packed):
    a, b = (ShardFaces(packed, 16, budget_mb=0, run=8) for _ in range(2))
    assert torch.equal(a.stream(torch.arange(13, 29)).image, b.batch(range(13, 29)).image)
    assert a.reads == 2 and b.reads == 16 and not a.shelf and a.shelf_bytes == 0
    a.stream(torch.tensor([0]))
    assert len(a.shelf) == 1 and a.shelf_bytes > 0
    a.batch([1, 2])
    assert a.reads == 3, "from the shelf"


def test_a_small_shelf_costs_reads_and_loses_nothing(packed):
    faces = ShardFaces(packed, 16, budget_mb=0, run=8, shelf_mb=0.003, lanes=4)
    assert epoch(batches(faces, 5, epochs=1)).sort()[0].tolist() == list(range(70))
    assert faces.evicted > 0 and faces.shelf_bytes >= 0


def test_what_fits_is_decoded_once(packed):
    faces = ShardFaces(packed, 16)
    for _ in range(3):
        epoch(batches(faces, 10, epochs=1))
    assert faces.decoded == 70


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", ["single", "pairs"])
def test_processes_and_workers_see_together_what_one_sees(packed, world, kind):
    def make():
        faces = ShardFaces(packed, 16, buffer=16)
        return batches(faces, 12, seed=5) if kind == "single" else PairLoader(faces, 12, 0.25, seed=5)

    whole = [b for b, _ in zip(make(), range(13))]  # across the end of two epochs
    parts = [[b for b, _ in zip(make().shard(r, world), range(13))] for r in range(world)]
    for k, want in enumerate(whole):
        got = shards.woven([p[k] for p in parts])
        if kind == "pairs":
            assert torch.equal(got.source.image, want.source.image) and torch.equal(got.same, want.same)
            got, want = got.target, want.target
        assert torch.equal(got.index, want.index) and torch.equal(got.image, want.image)


@pytest.mark.parametrize("workers,world", [(1, 1), (2, 1), (3, 2)])
def test_workers_change_nothing_but_the_time(packed, workers, world):
    def make():
        return batches(ShardFaces(packed, 16, buffer=16), 12, seed=2, epochs=1)

    for r in range(world):
        alone, helped = list(make().shard(r, world)), list(Workers(make().shard(r, world), workers))
        assert [b.index.tolist() for b in alone] == [b.index.tolist() for b in helped]
        assert all(torch.equal(a.image, b.image) for a, b in zip(alone, helped))


@pytest.mark.parametrize("kind", ["files", "part", "pairs"])
def test_workers_name_the_bad_pictures_that_they_met(tmp_path, kind):
    "What a worker process leaves out is named in the process that asked it, once, however many epochs there are."
    for k in range(12):
        (tmp_path / f"p{k % 3}").mkdir(exist_ok=True)
        (tmp_path / f"p{k % 3}" / f"{k:02d}.jpg").write_bytes(jpeg(k) if k % 5 else b"\xff\xd8 no")

    def make():
        faces = open_faces(tmp_path, 16, check=False)
        faces = Subset(faces, range(12)) if kind == "part" else faces
        return (PairLoader if kind == "pairs" else batches)(faces, 4, seed=1, epochs=2)

    alone, helped = make(), make()
    list(alone)
    list(Workers(helped, 2))
    assert sorted(helped.faces.skipped) == sorted(alone.faces.skipped) and len(alone.faces.skipped) == 3
    list(Workers(helped, 2))
    assert len(helped.faces.skipped) == 3


@pytest.mark.parametrize("settings,says", [({"min_sharpness": 5}, "min_sharpness=5"), ({"duplicates": -1}, "duplicates=-1"), ({"size": 8}, "32 to 1024"), ({"every": 0}, "every=0"), ({"quality": 0}, "quality=0")])
def test_settings_of_an_extraction_are_checked_before_it_begins(tmp_path, settings, says):
    (tmp_path / "a.jpg").write_bytes(jpeg(0))
    with pytest.raises(UsageError, match=says):
        extract_shards(tmp_path, tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("at", [1, 4, 7, 11])
@pytest.mark.parametrize("workers", [0, 2])
def test_resume_gives_exactly_what_was_not_seen(packed, at, workers):
    def make():
        loader = batches(ShardFaces(packed, 16, buffer=24, lanes=4), 6, seed=9)
        return Workers(loader, workers) if workers else loader

    unbroken = [b.index.tolist() for b, _ in zip(make(), range(15))]
    first = make()
    seen = [b.index.tolist() for _, b in zip(range(at), first)]
    state = json.loads(json.dumps(first.state_dict()))
    second = make()
    second.load_state_dict(state)
    seen += [b.index.tolist() for b, _ in zip(second, range(15 - at))]
    assert seen == unbroken
    assert sorted(sum(seen, [])[:70]) == list(range(70))


def test_resume_with_another_number_of_processes(packed):
    def make():
        return batches(ShardFaces(packed, 16, buffer=24), 12, seed=9)

    whole = [b.index.tolist() for b, _ in zip(make(), range(9))]
    loaders = [make().shard(r, 4) for r in range(4)]
    for l in loaders:
        for _ in zip(range(3), l):
            pass
    assert len({json.dumps(l.state_dict()) for l in loaders}) == 1
    rest = []
    for r in range(3):
        l = make().shard(r, 3)
        l.load_state_dict(loaders[0].state_dict())
        rest.append([b.index for b, _ in zip(l, range(6))])
    assert [shards.woven([p[k] for p in rest]).tolist() for k in range(6)] == whole[3:]


def test_resume_on_other_shards_or_settings_is_refused(packed, tmp_path):
    state = batches(ShardFaces(packed, 16), 4).state_dict()
    for other in (ShardFaces(packed, 16, buffer=7), ShardFaces(packed, 16, lanes=2), ShardFaces(pack(tmp_path / "o", [70]), 16)):
        with pytest.raises(DataError, match="can't go on"):
            batches(other, 4).load_state_dict(state)


def test_pairs_keep_their_share_and_read_little(packed):
    faces = ShardFaces(packed, 16, budget_mb=0, buffer=64)
    loader = PairLoader(faces, 10, 0.2, seed=0)
    got = [b for _, b in zip(range(14), loader)]
    assert sum(int(b.same.sum()) for b in got) == 28
    for b in got:
        assert torch.equal(b.same, b.source.person == b.target.person)
        assert set(b.source.index[~b.same].tolist()) <= set(b.target.index.tolist())
        assert (b.source.index != b.target.index).all()
    assert faces.decoded <= 140 + 28


def test_a_part_by_person_keeps_the_local_order(packed):
    faces = ShardFaces(packed, 16, budget_mb=0)
    train, _, test = split_people(faces, (0.6, 0.2, 0.2))
    assert sorted(epoch(batches(train, 7, epochs=1)).tolist()) == list(range(len(train)))
    whole = [k for k in faces.order(3, 1).tolist() if k in set(train.indices.tolist())]
    assert train.indices[train.order(3, 1)].tolist() == whole
    b = next(iter(batches(test, 3, shuffle=False)))
    assert b.index.tolist() == [0, 1, 2] and torch.equal(b.image, faces.batch(test.indices[:3]).image)


# ---------------------------------------------------------------- what strangers send


def test_the_library_reads_what_we_write_and_we_what_it_writes(tmp_path, packed):
    theirs = list(webdataset.WebDataset(str(packed / "faces-000001.tar"), shardshuffle=False))
    assert [s["jpg"] for s in theirs] == [jpeg(k) for k in range(13, 33)]
    with webdataset.ShardWriter(str(tmp_path / "x-%04d.tar"), maxcount=4, verbose=0) as w:
        for k in range(10):
            w.write({"__key__": f"sub/{k:03d}", "jpg": jpeg(k), "cls": k // 2, "txt": "words"})
    index_shards(tmp_path)
    faces = ShardFaces(tmp_path, 16)
    assert len(faces) == 10 and faces.person_names == ["0", "1", "2", "3", "4"] and faces.person.tolist() == [k // 2 for k in range(10)]
    assert not faces.skipped and len(epoch(batches(faces, 3, epochs=1)).unique()) == 10


def odd_tar(path):
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:

        def put(name, data=b"", **kw):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            vars_ = kw
            for k, v in vars_.items():
                setattr(info, k, v)
            tar.addfile(info, io.BytesIO(data))

        put("folder", type=tarfile.DIRTYPE)
        put("a.jpg", jpeg(1))
        put("a.json", b'{"person": "ann"}')
        put("a.pkl", b"cos\nsystem\n(S'touch pwned'\ntR.")
        put("/etc/passwd.jpg", b"x")
        put("../up.jpg", b"x")
        put("link.jpg", type=tarfile.SYMTYPE, linkname="/etc/passwd")
        put("hard.jpg", type=tarfile.LNKTYPE, linkname="a.jpg")
        put("null.jpg", type=tarfile.CHRTYPE)
        put("pipe.jpg", type=tarfile.FIFOTYPE)
        put("back\\slash.jpg", b"x")
        put("n" * 150 + ".jpg", jpeg(2))
        put("/" + "n" * 150 + ".jpg", jpeg(2))
        put("b.jpg", jpeg(3))
        put("b.json", b'{"person": ')
        put("c.txt", b"no picture")
        put("d.png", b"\x89PNG broken")
        put("d.json", b'{"person": "ben"}')


def test_odd_members_are_named_and_counted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s").mkdir()
    odd_tar(tmp_path / "s/a.tar")
    index_shards(tmp_path / "s")
    why = dict(read_index(tmp_path / "s")["skipped"])
    expected = {"/etc/passwd.jpg": "out of the folder", "../up.jpg": "out of the folder", "link.jpg": "a link", "hard.jpg": "a link", "null.jpg": "no plain file",
                "pipe.jpg": "no plain file", "back\\slash.jpg": "odd characters", "b": "JSON is broken", "c": "no picture"}
    assert {k.split("/", 1)[1] for k in why if "nnn" not in k} == set(expected)
    assert all(v in why[f"a.tar/{k}"] for k, v in expected.items())
    assert [v for k, v in why.items() if "nnn" in k] == ["its name points out of the folder"], "a long name is read, and looked at"
    faces = ShardFaces(tmp_path / "s", 16)
    assert len(faces) == 4 and faces.person is None
    got = sorted(set(epoch(batches(faces, 3, epochs=1, shuffle=False)).tolist()))
    assert got == [0, 1] and {n.rsplit("#")[-1] for n, _ in faces.skipped if "#" in n} == {"2", "3"}
    assert not list(tmp_path.rglob("pwned"))


def test_no_command_is_run_and_nothing_unpickled(packed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "s"
    shutil.copytree(packed, folder)
    index = (folder / "index.json").read_text()
    for name in ("pipe:touch pwned.tar", "../s/faces-000000.tar", "/etc/x.tar", "http://x/y.tar", ".hidden.tar"):
        (folder / "index.json").write_text(index.replace("faces-000000.tar", name))
        with pytest.raises(DataError, match="can't be used"):
            ShardFaces(folder)
    assert not (tmp_path / "pwned.tar").exists()
    source = Path(shards.__file__).read_text()
    assert "import pickle" not in source and "gopen" not in source and "shell=True" not in source and "extractall" not in source


@pytest.mark.parametrize("text", ["", "{", "[]", '{"shards": 3}', '{"shards": [{"name": "a.tar"}], "people": []}', "[" * 100_000])
def test_a_broken_index_is_one_sentence(packed, tmp_path, text):
    folder = tmp_path / "s"
    shutil.copytree(packed, folder)
    (folder / "index.json").write_text(text)
    with pytest.raises(DataError, match="make it anew with index_shards") as e:
        ShardFaces(folder)
    assert "\n" not in str(e.value)
    index_shards(folder)
    assert len(ShardFaces(folder)) == 70


def test_other_damage_is_named_and_the_rest_is_used(packed, tmp_path):
    def spoil(name, how):
        folder = tmp_path / name
        shutil.copytree(packed, folder)
        how(folder)
        faces = ShardFaces(folder, 16, check=name == "changed")
        got = sorted(set(epoch(batches(faces, 7, epochs=1)).tolist()))
        return faces, got

    def flip(folder):
        raw = bytearray((folder / "faces-000001.tar").read_bytes())
        raw[700] ^= 1
        (folder / "faces-000001.tar").write_bytes(raw)

    faces, got = spoil("short", lambda f: (f / "faces-000001.tar").write_bytes((f / "faces-000001.tar").read_bytes()[:-5000]))
    assert len(faces) == 50 and got == list(range(50)) and "20 records are left out" in faces.skipped[0][1]
    faces, got = spoil("missing", lambda f: (f / "faces-000004.tar").unlink())
    assert len(faces) == 50 and faces.skipped[0][0] == "faces-000004.tar" and "missing" in faces.skipped[0][1]
    faces, got = spoil("added", lambda f: shutil.copy(f / "faces-000004.tar", f / "faces-000099.tar"))
    assert len(faces) == 70 and "index doesn't list it" in faces.skipped[0][1]
    faces, got = spoil("changed", flip)
    assert len(faces) == 50 and "checksum" in faces.skipped[0][1]
    faces, got = spoil("unchecked", flip)
    assert len(faces) == 70 and got == [k for k in range(70) if k != 13] and "checksum has changed" in faces.skipped[0][1]

    def header(folder):
        raw = bytearray((folder / "faces-000001.tar").read_bytes())
        raw[130] ^= 1
        (folder / "faces-000001.tar").write_bytes(raw)

    faces, got = spoil("header", header)
    assert got == [k for k in range(70) if k != 13] and "damaged" in faces.skipped[0][1], "its neighbours in the run are read"
    empty = tmp_path / "empty"
    empty.mkdir()
    for call in (ShardFaces, index_shards):
        with pytest.raises(DataError, match="tar files"):
            call(empty)
    with pytest.raises(DataError, match="no folder of shards"):
        ShardFaces(tmp_path / "nowhere")
    for f in (tmp_path / "added").glob("*.tar"):
        f.unlink()
    with pytest.raises(DataError, match="no usable shard"):
        ShardFaces(tmp_path / "added")


def test_members_of_random_bytes_end_in_an_error_or_nothing():
    g = np.random.default_rng(0)
    for _ in range(50):
        with pytest.raises(DataError):
            list(members(g.bytes(2048)))
    assert list(members(b"")) == [] and list(members(bytes(10240))) == []


# ---------------------------------------------------------------- writing


def people_folder(root, n=40):
    for k in range(n):
        (root / f"p{k % 4}").mkdir(parents=True, exist_ok=True)
        (root / f"p{k % 4}" / f"{k:03d}.jpg").write_bytes(jpeg(k))
    Image.new("RGB", (16, 16), "red").save(root / "p0" / "x.bmp")
    (root / "p1" / "torn.jpg").write_bytes(jpeg(1)[:100])
    (root / "loose.jpg").write_bytes(jpeg(2))
    (root / "p2" / "note.txt").write_text("x")
    return root


def test_packing_keeps_bytes_and_names_what_it_leaves_out(tmp_path):
    report = write_shards(people_folder(tmp_path / "in"), tmp_path / "out", per_shard=12)
    assert (report.records, report.shards, report.people) == (41, 4, 4) and "41 faces of 4 people in 4 shards, 3 left out" in str(report)
    assert {n for n, _ in report.skipped} == {"p1/torn.jpg", "loose.jpg", "p2/note.txt"}
    faces = ShardFaces(tmp_path / "out", 16)
    got = {faces.notes(k)["source"]: k for k in range(41)}
    for k in range(40):
        x = faces.sample(got[f"p{k % 4}/{k:03d}.jpg"])
        assert x["jpg"] == jpeg(k) and faces.person_names[faces.person[got[f"p{k % 4}/{k:03d}.jpg"]]] == f"p{k % 4}"
    assert "png" in faces.sample(got["p0/x.bmp"])
    assert [s["records"] for s in read_index(tmp_path / "out")["shards"]] == [12, 12, 12, 5] or sum(s["records"] for s in read_index(tmp_path / "out")["shards"]) == 41
    order = [faces.notes(k)["source"] for k in range(41)]
    assert order != sorted(order), "shuffled once"
    assert not (tmp_path / "out" / ".parts").exists()


def test_the_same_shards_whoever_writes_them_and_however_often_killed(tmp_path):
    source = people_folder(tmp_path / "in", 60)
    write_shards(source, tmp_path / "one", per_shard=5)
    write_shards(source, tmp_path / "two", per_shard=5, workers=2)
    code = ("import sys, os, signal; from deepswap.shards import write_shards\n"
            "def die(done, jobs):\n  if done == int(sys.argv[3]): open(sys.argv[2] + '/.faces-000012.dead.part.tar', 'w').write('half'); os.kill(os.getpid(), signal.SIGKILL)\n"
            "write_shards(sys.argv[1], sys.argv[2], per_shard=5, progress=die)")
    for at in (3,):
        done = subprocess.run([sys.executable, "-c", code, str(source), str(tmp_path / "killed"), str(at)], env=os.environ | {"PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path)})
        assert done.returncode == -signal.SIGKILL
        assert len(list((tmp_path / "killed").glob("[!.]*.tar"))) == at
        with pytest.raises(DataError, match="not finished"):
            ShardFaces(tmp_path / "killed")
    report = write_shards(source, tmp_path / "killed", per_shard=5)
    assert report.found == 3
    hashes = [read_index(tmp_path / n)["shards"] for n in ("one", "two", "killed")]
    assert hashes[0] == hashes[1] == hashes[2]
    assert sorted(p.name for p in (tmp_path / "killed").iterdir()) == sorted([s["name"] for s in hashes[0]] + ["index.json", "index.safetensors"])
    sources = [ShardFaces(tmp_path / "killed", 16).notes(k)["source"] for k in range(61)]
    assert len(set(sources)) == 61


def test_another_source_or_setting_is_refused(tmp_path):
    source = people_folder(tmp_path / "in")
    write_shards(source, tmp_path / "out", per_shard=10)
    for change in (dict(per_shard=11), dict(seed=1)):
        with pytest.raises(OutputError, match="other files or settings"):
            write_shards(source, tmp_path / "out", **({"per_shard": 10} | change))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("x")
    with pytest.raises(OutputError, match="not empty"):
        write_shards(source, tmp_path / "full")
    for bad in (dict(per_shard=0), dict(workers=0)):
        with pytest.raises(UsageError):
            write_shards(source, tmp_path / "new", **bad)
    with pytest.raises(DataError, match="no folder"):
        write_shards(tmp_path / "nothing", tmp_path / "new")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.jpg").write_bytes(b"no")
    with pytest.raises(DataError, match="None of the files"):
        write_shards(tmp_path / "bad", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_full_disk_is_one_sentence_and_the_run_goes_on_later(tmp_path, monkeypatch):
    source, real, calls = people_folder(tmp_path / "in"), shards.TarWriter.write, []

    def full(self, obj):
        calls.append(1)
        if len(calls) > 25:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(self, obj)

    monkeypatch.setattr(shards.TarWriter, "write", full)
    with pytest.raises(OutputError, match="disk is full"):
        write_shards(source, tmp_path / "out", per_shard=10)
    assert len(list((tmp_path / "out").glob("*.tar"))) == 2 and not list((tmp_path / "out").glob(".*.tar"))
    monkeypatch.setattr(shards.TarWriter, "write", real)
    assert write_shards(source, tmp_path / "out", per_shard=10).found == 2


def test_extraction_writes_shards_by_person_and_goes_on(tmp_path):
    from deepswap.core import to_pil
    from deepswap.people import render, sample_people

    for name, seed in (("ann", 3), ("ben", 4)):
        (tmp_path / "in" / name).mkdir(parents=True)
        for k, im in enumerate(to_pil(render(sample_people(1, "easy", seed=seed, scenes=2), 128).image)):
            im.save(tmp_path / "in" / name / f"{k}.png")
    (tmp_path / "in" / "ben" / "torn.jpg").write_bytes(b"\xff\xd8 no")
    settings = dict(per_shard=2, size=64, min_size=16, duplicates=0, min_sharpness=0)

    def power_cut(done, jobs):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract_shards(tmp_path / "in", tmp_path / "out", progress=power_cut, **settings)
    report = extract_shards(tmp_path / "in", tmp_path / "out", **settings)
    assert report.found == 1 and report.people == 2 and any("torn" in n for n, _ in report.skipped)
    faces = ShardFaces(tmp_path / "out", 64)
    assert faces.person_names == ["ann", "ben"]
    points = np.array(faces.notes(0)["landmarks"])
    assert points.shape == (5, 2) and 0.2 < points.min() < points.max() < 0.8 and faces.notes(0)["source"].startswith("ann/")
    for bad in (dict(size=8), dict(person="photo.jpg"), dict(every=0), dict(quality=0)):
        with pytest.raises(UsageError):
            extract_shards(tmp_path / "in", tmp_path / "new", **(settings | bad))


def test_on_the_command_line(tmp_path, monkeypatch, capsys):
    from deepswap.cli import main

    monkeypatch.chdir(tmp_path)
    people_folder(tmp_path / "in", 48)
    assert main(["extract", "in", "--out", "s", "--shards", "--aligned", "--per-shard", "20"]) == 0
    assert "49 faces of 4 people in 3 shards" in capsys.readouterr().out
    assert main(["extract", "in", "--out", "t", "--aligned"]) == 2
    assert main(["train", "autoencoder", "--data", "shards:s", "--size", "16", "--batch", "8", "--width", "4", "--code", "8", "--steps", "3", "--device", "cpu", "--out", "run"]) == 0
    assert main(["train", "autoencoder", "--data", "shards:nothing", "--size", "16", "--steps", "3", "--device", "cpu", "--out", "run2"]) == 2
    assert "no folder of shards" in capsys.readouterr().err


def test_faceshifter_takes_its_pairs_from_shards(packed):
    from deepswap.autoencoder import aligned_faces
    from deepswap.identity import identity_faces

    faces = identity_faces(f"shards:{packed}", 16)
    assert isinstance(faces, ShardFaces) and isinstance(aligned_faces(f"shards:{packed}", 16), ShardFaces)
    assert KINDS[0] == "jpg" and len(PairLoader(faces, 10, 0.2).make(0)) == 10
