"""What happens when things go wrong? Spoiled input, kill -9, a full disk, ten visitors at once. Writes benchmarks/results/robustness.json.

    python benchmarks/robustness.py fuzz [--n 10000]           spoiled files, words and settings (see mutants.py), in child processes
    python benchmarks/robustness.py kill [--n 50]              kill -9 at random points of training, extraction and video
    python benchmarks/robustness.py disk                       a file system of a few megabytes under the output (needs root, on Linux)
    python benchmarks/robustness.py visitors [--seconds 120]   ten visitors of the demo, with bad files mixed in

With --record the figures are entered in the file; without it they are only printed. Every part runs on one thread."""

import argparse
import collections
import contextlib
import csv
import hashlib
import io
import json
import os
import platform
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "tests")]
RESULTS = Path(__file__).parent / "results" / "robustness.json"
SHARES = {"texts": 0.1, "words": 0.05, "pictures": 0.62, "weights": 0.1, "videos": 0.1, "signs": 0.008, "descriptions": 0.02, "environment": 0.002}
HANG = 30.0  # seconds without an answer after which a child is killed


# ---------------------------------------------------------------- fuzz


def fuzz_child(name, n, seed, log):
    "Draw and ask; a line on `log` for each input, and the input itself beside it before it is asked."
    import resource

    import mutants as m
    import torch
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import seed as seeded

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    bench, left = m.Bench(name, tempfile.mkdtemp()), [n]
    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    out = open(log, "a", buffering=1)

    @seeded(seed)
    @settings(max_examples=4 * n, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(bench.strategy())
    def ask(drawn):
        if not left[0]:
            return
        left[0] -= 1
        text = m.told(drawn)
        Path(f"{log}.current").write_text(text)
        began, why = time.perf_counter(), ""
        try:
            said = bench.ask(drawn)
        except Exception as e:
            said, why = "fault", m.where(e)
        out.write(json.dumps([said, time.perf_counter() - began, hashlib.sha256(text.encode()).hexdigest()[:16], why]) + "\n")
        if not left[0]:  # what hypothesis would still draw is asked of nobody, and a silent child is taken for a hang
            out.write(json.dumps(["memory", (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start) / 1024, "", ""]) + "\n")
            out.flush()
            os._exit(0)

    ask()


def lines_of(log):
    "The whole lines of a log."
    return [json.loads(x) for x in Path(log).read_text().splitlines() if x.endswith("]")] if Path(log).exists() else []


def fuzz_reader(name, n, folder):
    "One reader's inputs, through as many children as it takes; a child that dies or hangs is counted, named and replaced."
    log, ended, stopped, restarts = Path(folder) / f"{name}.log", [], [], 0
    while (left := n - len([x for x in lines_of(log) if x[0] != "memory"]) - len(stopped)) > 0 and restarts < 40:
        child = subprocess.Popen([sys.executable, __file__, "fuzz-child", name, str(left), str(1000 * restarts), str(log)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "TMPDIR": str(folder), "DEEPSWAP_CACHE": str(Path(folder) / "cache"), "DEEPSWAP_FAST": "1"})
        size, since = -1, time.monotonic()
        while child.poll() is None:
            time.sleep(0.2)
            now = log.stat().st_size if log.exists() else 0
            if now != size:
                size, since = now, time.monotonic()
            elif time.monotonic() - since > HANG + 60 * (now == 0):
                child.kill()
                child.wait()
                stopped.append("hang")
        hung = child.returncode == -signal.SIGKILL and "hang" in stopped[-1:]
        if child.returncode and not hung:
            stopped.append(signal.Signals(-child.returncode).name if child.returncode < 0 else f"exit {child.returncode}")
        if child.returncode:
            ended.append({"how": stopped[-1], "input": Path(f"{log}.current").read_text()[:2000]})
        restarts += 1
    found = lines_of(log)
    asked = [x for x in found if x[0] != "memory"]
    faults = collections.Counter(x[3] for x in asked if x[0] == "fault")
    return {"inputs": len(asked) + len(stopped), "different": len({x[2] for x in asked}), **{k: sum(x[0] == k for x in asked) for k in ("read", "refused", "fault")}, "crash": sum(s != "hang" for s in stopped), "hang": stopped.count("hang"),
            "slowest": round(max(x[1] for x in asked), 2), "mean": round(sum(x[1] for x in asked) / len(asked), 4), "memory": round(max([x[1] for x in found if x[0] == "memory"], default=0)), "faults": dict(faults.most_common(8)), "ended": ended}


def fuzz(n, only=None, keep=lambda found: None):
    "All readers; `keep` is called after each."
    out = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, share in SHARES.items():
            if not only or name in only:
                out[name] = fuzz_reader(name, round(n * share), folder)
                print(name, {k: v for k, v in out[name].items() if k != "ended"}, [e["how"] for e in out[name]["ended"]], flush=True)
                keep({"readers": {k: {x: y for x, y in v.items() if x != "ended"} for k, v in out.items()}, "inputs": sum(r["inputs"] for r in out.values())})
    return {"readers": out, "inputs": sum(r["inputs"] for r in out.values())}


# ---------------------------------------------------------------- kill -9


def forked(argv, env=None, pipe=None):
    "A process that runs a command of deepswap with everything imported already, so that a kill meets the work and not the imports."
    pid = os.fork()
    if pid:
        return pid
    code = 99
    try:
        os.setsid()
        out = os.open(pipe or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", 1, closefd=False), os.fdopen(2, "w", 1, closefd=False)
        os.environ.update(env or {})
        from deepswap.cli import main

        code = main([str(a) for a in argv])
    finally:
        os._exit(code)


def imported():
    "Everything that the three commands import."
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    import c2pa  # noqa: F401

    from deepswap import autoencoder, evaluate, extraction, provenance, train, video  # noqa: F401


def waited(pid, seconds=None):
    "The exit code, or None if it still runs after so many seconds."
    end = None if seconds is None else time.monotonic() + seconds
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if end is not None and time.monotonic() >= end:
            return None
        time.sleep(0.002)


def opens(path):
    "Does a file that can be seen hold what its name says?"
    import av
    from PIL import Image
    from safetensors import safe_open

    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as f:
                [f.get_tensor(k) for k in f.keys()]
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix in (".png", ".jpg"):
            Image.open(path).load()
        elif path.suffix == ".csv":
            rows = list(csv.reader(path.read_text().splitlines()))
            assert len({len(r) for r in rows}) == 1
        elif path.suffix == ".mp4":
            with av.open(str(path)) as f:
                assert sum(1 for _ in f.decode(video=0)) > 0
        elif path.suffix == ".html":
            assert path.read_text().rstrip().endswith("</html>")
        return True
    except Exception as e:
        print("half written:", path, e, flush=True)
        return False


def seen(out):
    "The files of a result that can be seen: neither hidden nor in a hidden folder."
    out = Path(out)
    files = [out] if out.is_file() else [p for p in out.rglob("*") if p.is_file()] if out.is_dir() else []
    return sorted(p for p in files if not any(part.startswith(".") for part in p.relative_to(out.parent).parts))


def hidden(out):
    "What a killed run left beside or in its result, and nobody cleared."
    out = Path(out)
    return [p.name for p in [*out.parent.iterdir(), *(out.rglob("*") if out.is_dir() else ())] if p.name.startswith(".") and (out.name in p.name or out in p.parents)]


def weights_of(out):
    "What training made: every tensor of the last checkpoint but the clock, and the table of losses."
    from deepswap.train import read_tensors

    tensors, _ = read_tensors(out / "last.safetensors")
    rows = list(csv.DictReader((out / "history.csv").read_text().splitlines()))
    return {k: hashlib.sha256(v.numpy().tobytes()).hexdigest() for k, v in tensors.items() if k != "state"}, [{k: v for k, v in r.items() if k in ("step", "l1")} for r in rows]


def faces_of(out):
    "What extraction made."
    return {p.relative_to(out).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in seen(out) if p.name != "report.html"}


def frames_of(out):
    "What a video shows and sounds like."
    import av

    with av.open(str(out)) as f:
        pixels = [(x.pts, hashlib.sha256(x.to_ndarray(format="rgb24").tobytes()).hexdigest()) for x in f.decode(video=0)]
    with av.open(str(out)) as f:
        return pixels, [hashlib.sha256(bytes(p)).hexdigest() for p in f.demux(audio=0)] if f.streams.audio else []


def actors(folder, n=36, size=160):
    "A clip with one computed face that moves, and a picture of another."
    import torch

    from deepswap.core import to_pil
    from deepswap.people import People, render, sample_people, scene_path
    from deepswap.video import write_clip

    p = sample_people(2, "easy", seed=11)
    p.style = p.style.replace(glasses=0.0, fringe=0.0, hat=0.0)
    scenes = scene_path(n, seed=3, base=p.scene[0]).replace(zoom=0.6)
    write_clip(to_pil(render(People(p.identity[0].repeat(n), p.style[0].repeat(n), scenes, torch.zeros(n)), size).image), Path(folder) / "clip.mp4")
    for name, who in (("anna", p[1:]), ("ben", p[:1])):
        to_pil(render(who, 192).image).save(Path(folder) / f"{name}.png")
    return Path(folder)


def jobs(folder):
    "name -> (words without --out, name of the result, words that a second start adds, what is compared)."
    return {"train": (["train", "autoencoder", "--data", "procedural:n=6", "--size", "16", "--batch", "4", "--steps", "60", "--checkpoint-every", "5", "--device", "cpu", "--width", "4", "--code", "8"], "run", ["--resume"], weights_of),
            "extract": (["extract", folder / "clip.mp4", "--size", "64", "--min-size", "16", "--every", "3", "--device", "cpu"], "faces", [], faces_of),
            "video": (["video", "--source", folder / "anna.png", "--target", folder / "clip.mp4", "--method", "classical", "--size", "64", "--device", "cpu"], "out.mp4", [], frames_of)}


def video_in_short_segments():
    "So that a clip of a second has several, and a run that is killed has something to go on from."
    from deepswap import video

    names = video.swap_video.__code__.co_varnames[: video.swap_video.__code__.co_argcount]
    defaults = dict(zip(names[-len(video.swap_video.__defaults__) :], video.swap_video.__defaults__))
    video.swap_video.__defaults__ = tuple({**defaults, "segment": 6}.values())


def kills(name, n, folder, rng):
    "Kill a job n times at random points, checking after each; finish it in between whenever it gets through."
    words, result, again, compare = jobs(folder)[name]
    reference, start = folder / "reference" / result, time.monotonic()
    reference.parent.mkdir(exist_ok=True)
    code = waited(forked([*words, "--out", reference], pipe=folder / "said.txt"))
    assert code == 0, (folder / "said.txt").read_text()
    length, expected = time.monotonic() - start, compare(reference)
    done = {"kills": 0, "half": 0, "finished": 0, "equal": 0, "resumed": 0, "refused": [], "left": [], "seconds": round(length, 2)}

    def check(out):
        done["half"] += sum(not opens(p) for p in seen(out))

    def finish(out):
        code = waited(forked([*words, "--out", out, *(again if (out / "last.safetensors").exists() else [])], pipe=folder / "said.txt"))
        done["finished"] += 1
        if code:
            done["refused"].append((folder / "said.txt").read_text()[-300:])
        elif compare(out) == expected:
            done["equal"] += 1
        done["left"] += hidden(out)

    while done["kills"] < n:
        out = folder / f"{name}-{done['finished']}" / result
        out.parent.mkdir(exist_ok=True)
        for _ in range(rng.randint(1, 4)):
            going_on = (out / "last.safetensors").exists() or (out.parent / f".{out.name}.deepswap-part" / "job.json").exists()
            pid = forked([*words, "--out", out, *(again if (out / "last.safetensors").exists() else [])], pipe=folder / "said.txt")
            code = waited(pid, rng.uniform(0.01, length))
            if code is None:
                os.kill(pid, signal.SIGKILL)
                waited(pid)
                done["kills"] += 1
                done["resumed"] += going_on
                check(out)
            else:
                if code:
                    done["refused"].append((folder / "said.txt").read_text()[-300:])
                break
            if done["kills"] >= n:
                break
        if out.exists() and not (name == "train"):
            code = 0 if compare(out) == expected else 1
            done["finished"] += 1
            done["equal"] += code == 0
            done["left"] += hidden(out)
        else:
            finish(out)
        check(out)
    return done


def kill(n=50, only=None, seed=0):
    "All three jobs, or those that are named."
    imported()
    video_in_short_segments()
    rng, out = random.Random(seed), {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DEEPSWAP_CACHE"] = str(Path(folder) / "cache")
        pid = os.fork()  # threads that drawing and encoding start must not be there when the jobs are forked
        if not pid:
            code = 1
            try:
                actors(folder)
                code = 0
            finally:
                os._exit(code)
        assert waited(pid) == 0
        for name, m in zip(("train", "extract", "video"), (n - 2 * (n * 3 // 10), n * 3 // 10, n * 3 // 10)):
            if only and name not in only:
                continue
            out[name] = kills(name, m, Path(folder), rng)
            print(name, out[name], flush=True)
    return {"jobs": out, "kills": sum(j["kills"] for j in out.values())}


# ---------------------------------------------------------------- a full disk


@contextlib.contextmanager
def small_disk(folder, kilobytes=3000):
    "A file system of its own. Raises RuntimeError where that is not allowed."
    folder = Path(folder)
    folder.mkdir(exist_ok=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"no file system can be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder, left):
    "Use up the file system but for so many kilobytes."
    (folder / "filler").unlink(missing_ok=True)
    stat = os.statvfs(folder)
    size = stat.f_bavail * stat.f_frsize - left * 1024
    with open(folder / "filler", "wb") as f:
        f.write(bytes(max(size, 0)))


def disk_jobs(inputs, place):
    "name -> (words, result, a file that stands there already or None, environment)."
    pair = ["--source", inputs / "anna.png", "--target", inputs / "clip.mp4", "--method", "classical", "--size", "64", "--device", "cpu"]
    swap = ["swap", inputs / "anna.png", inputs / "ben.png", "--method", "classical", "--device", "cpu"]
    return {"swap": ([*swap, "-o", place / "out.png"], place / "out.png", inputs / "old.png", {}), "video": (["video", *pair, "--out", place / "out.mp4"], place / "out.mp4", None, {}),
            "train": ([*jobs(inputs)["train"][0], "--out", place / "run"], place / "run", None, {}), "extract": (["extract", inputs / "clip.mp4", "--size", "64", "--min-size", "16", "--every", "3", "--out", place / "faces"], place / "faces", None, {}),
            "people": (["people", "--people", "8", "--scenes", "2", "--size", "96", "--out", place / "people"], place / "people", None, {}),
            "evaluate": (["evaluate", "--methods", "classical", "--pairs", "2", "--gallery", "4", "--out", place / "table"], place / "table", None, {}),
            "cache": ([*swap, "-o", inputs / "cached.png"], inputs / "cached.png", None, {"DEEPSWAP_CACHE": str(place / "cache")})}


def disk(levels=(0, 8, 64, 2500)):
    "Every command at several fillings: free kilobytes when it starts."
    imported()
    out = {}
    with tempfile.TemporaryDirectory() as root:
        root = Path(root)
        os.environ["DEEPSWAP_CACHE"] = str(root / "cache")
        pid = os.fork()
        if not pid:
            code = 1
            try:
                from deepswap.cli import main

                actors(root)
                code = main([str(a) for a in ["swap", root / "anna.png", root / "ben.png", "--method", "classical", "-o", root / "old.png"]])
            finally:
                os._exit(code)
        assert waited(pid) == 0
        with small_disk(root / "small") as place:
            for name, (words, result, old, env) in disk_jobs(root, place).items():
                row = {"tries": 0, "told": 0, "done": 0, "half": 0, "lost": 0, "left": 0, "says": ""}
                for left in levels:
                    for p in place.iterdir():
                        subprocess.run(["rm", "-rf", str(p)], check=True)
                    (root / "cached.png").unlink(missing_ok=True)
                    if old:
                        result.write_bytes(old.read_bytes())
                    fill(place, left)
                    code = waited(forked(words, env, root / "said.txt"))
                    said = [x for x in (root / "said.txt").read_text().splitlines() if x.startswith("deepswap: ") and "note" not in x]
                    row["tries"] += 1
                    row["done"] += code == 0
                    row["told"] += (told := code == 2 and len(said) == 1 and any(w in said[0] for w in ("disk is full", "No space", "MB of room")))
                    if code and not row["says"]:
                        row["says"] = re.sub(r"/\S*/", "", said[-1]) if said else (root / "said.txt").read_text()[-200:]
                    if code and not told:
                        row.setdefault("odd", []).append((code, (root / "said.txt").read_text()[-300:]))
                    row["half"] += sum(not opens(p) for p in seen(result))
                    row["lost"] += bool(old and code and result.read_bytes() != old.read_bytes())
                    row["left"] += len([h for h in hidden(result) if not h.endswith(".deepswap-part")]) if code else 0
                out[name] = row
                print(name, row, flush=True)
    return {"commands": out}


# ---------------------------------------------------------------- visitors


def serve(port, keep, runs=None):
    "The demo as `deepswap demo` starts it, but idle pictures go after `keep` seconds, looked for every second."
    import torch

    torch.set_num_threads(1)
    from deepswap import demo

    demo.Desk.__init__.__defaults__ = (keep, None)
    demo.Desk.watch.__defaults__ = (1,)
    demo.launch(port)


COLOURS = [(230, 30, 30), (30, 200, 30), (40, 60, 230), (230, 220, 30), (220, 40, 220), (30, 210, 220), (240, 140, 20), (120, 60, 20), (120, 120, 120), (20, 20, 20), (250, 250, 250), (100, 20, 160)]


def cards(folder, n):
    "A picture with one computed face for each visitor, framed in a colour of the visitor's own."
    import torch
    from PIL import Image, ImageOps

    from deepswap.core import to_pil
    from deepswap.people import render, sample_people

    torch.set_num_threads(1)
    out = []
    for k, picture in enumerate(to_pil(render(sample_people(n, "easy", seed=11), 224).image)):
        path = Path(folder) / f"visitor-{k}.png"
        ImageOps.expand(picture, 48, COLOURS[k % len(COLOURS)]).save(path)
        out.append(path)
    pair = Image.new("RGB", (448, 224))
    for k in range(2):
        pair.paste(Image.open(out[k]).crop((48, 48, 272, 272)), (224 * k, 0))
    pair.save(Path(folder) / "pair.png")
    return out


def whose(data):
    "The number of the visitor whose colour frames this picture."
    import numpy as np
    from PIL import Image

    a = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(float)
    frame = np.median(np.concatenate([a[4:40, 4:-4].reshape(-1, 3), a[4:-60, 4:40].reshape(-1, 3)]), 0)
    return int(np.argmin([np.abs(frame - c).sum() for c in COLOURS]))


def bad_files(folder):
    "name -> bytes of what nobody should upload, with names that nobody should give."
    import mutants as m
    from PIL import Image

    good = (Path(folder) / "visitor-0.png").read_bytes()
    jpeg = io.BytesIO()
    Image.open(io.BytesIO(good)).save(jpeg, "JPEG")
    plain = io.BytesIO()
    Image.new("RGB", (300, 300), "grey").save(plain, "PNG")
    return {"cut.jpg": jpeg.getvalue()[:700], "huge.png": m.lie(m.lie(good, 60_000, 0), 60_000, 1), "plain.png": plain.getvalue(), "notes.txt": b"dear diary", "empty.png": b"", "../../../../tmp/escaped.png": good[:900],
            "/etc/cron.d/escaped.png": b"x" * 50, "a" * 300 + ".png": good[:500], "\u202egnp.exe": b"MZ" + bytes(100), "<img src=x onerror=alert(1)>.png": b"not", "..%2f..%2fescaped.png": b"no", "con.png": good[:40]}


class Visitor(threading.Thread):
    "Comes, swaps, sends a bad file now and then, checks that what comes back is theirs, looks for what is not."

    def __init__(self, k, url, folder, bad, end, book, burst=2):
        super().__init__(daemon=True)
        self.k, self.url, self.folder, self.bad, self.end, self.book, self.burst = k, url, Path(folder), bad, end, book, burst
        self.rng, self.session = random.Random(k), f"visitor{k}{os.getpid()}"

    def note(self, what, n=1):
        with LOCK:
            self.book["counts"][what] += n

    def upload(self, web, name, data):
        answer = web.post("/gradio_api/upload", files={"files": (name, data)})
        if answer.status_code >= 500:
            self.note("server errors")
        return answer.json()[0] if answer.status_code == 200 else None

    def ask(self, web, source, target, face="largest", tab=""):
        "One swap through the queue; the event stream's last line. Each tab of a browser is a session: two streams of one session would take each other's messages."
        data = lambda p: p and {"path": p, "meta": {"_type": "gradio.FileData"}}  # noqa: E731
        start = time.monotonic()
        answer = web.post("/gradio_api/call/swap", json={"data": [data(source), data(target), "classical", face, "largest", "bottom-right", "PNG", 1, []], "session_hash": self.session + tab})
        if answer.status_code in (429, 503):
            self.note("told to wait")
            time.sleep(self.rng.uniform(0.2, 1))
            return None, None
        if answer.status_code != 200:
            self.note("server errors" if answer.status_code >= 500 else "refused at the door")
            return None, None
        text = web.get(f"/gradio_api/call/swap/{answer.json()['event_id']}", timeout=120).text
        with LOCK:
            self.book["seconds"].append(time.monotonic() - start)
        last = text.strip().split("\n\n")[-1]
        return ("complete" if "event: complete" in last else "error"), last.partition("data: ")[2]

    def good(self, web):
        "A swap that must give this visitor's own picture, whole and marked."
        mine = self.upload(web, f"me-{self.k}.png", (self.folder / f"visitor-{self.k}.png").read_bytes())
        source = self.upload(web, "source.png", (self.folder / f"visitor-{(self.k + 1) % len(COLOURS) if (self.folder / f'visitor-{(self.k + 1) % len(COLOURS)}.png').exists() else 0}.png").read_bytes())
        how, said = self.ask(web, source, mine)
        if how is None:
            return
        if how == "error":
            self.note("good refused")
            with LOCK:
                self.book["odd"].append(said[:300])
            return
        url = json.loads(said)[1]
        url = (url.get("value") or url)["url"] if isinstance(url, dict) else url
        got = web.get(url[url.index("/gradio_api") :])
        self.note("answered")
        self.note("own picture" if got.status_code == 200 and whose(got.content) == self.k else "another's picture")
        with LOCK:
            self.book["urls"].append((self.k, url[url.index("/gradio_api") :]))

    def evil(self, web):
        "A file that nobody should send, under its name."
        name = self.rng.choice(sorted(self.bad))
        path = self.upload(web, name, self.bad[name])
        if path is None:
            return self.note("bad: refused at the door")
        how, said = self.ask(web, path, self.upload(web, "me.png", (self.folder / f"visitor-{self.k}.png").read_bytes()))
        self.note("bad: one sentence" if how == "error" and "Traceback" not in said and 0 < len(said) < 700 else "bad: told to wait" if how is None else "bad: taken")
        if how == "error" and "Something went wrong here" in said:
            self.note("apologies")
            with LOCK:
                self.book["odd"].append(f"{name[:40]}: {said[:200]}")

    def peek(self, web):
        "Names and places that are none of this visitor's business."
        with LOCK:
            others = [u for k, u in self.book["urls"] if k != self.k]
        guesses = ["/gradio_api/file=/etc/passwd", f"/gradio_api/file={Path(__file__).parents[1] / 'settings.ini'}", "/gradio_api/file=../../../../etc/passwd", "/file=/etc/passwd", "/gradio_api/file=%2e%2e%2fsettings.ini"]
        if others:
            url = self.rng.choice(others)
            folder, name = url.rsplit("/", 1)
            guesses += [folder, folder + "/", f"{folder}/../", f"{url.rsplit('/', 2)[0]}/{'0' * 64}/{name}", f"{folder.rsplit('/', 1)[0]}"]
        for g in guesses:
            answer = web.get(g)
            self.note("looked where nothing is")
            if answer.status_code == 200 and not answer.headers.get("content-type", "").startswith("text/html"):  # an address that is none shows the page itself
                self.note("served")
                with LOCK:
                    self.book["odd"].append(f"served: {g}")

    def run(self):
        import httpx

        with httpx.Client(base_url=self.url, timeout=120) as web:
            while time.monotonic() < self.end:
                try:
                    what = self.rng.random()
                    self.good(web) if what < 0.6 else self.evil(web) if what < 0.8 else self.several(web) if what < 0.9 else self.peek(web)
                except Exception as e:
                    self.note("broken connections")
                    with LOCK:
                        self.book["odd"].append(f"{type(e).__name__}: {str(e)[:200]}")

    def several(self, web):
        "Two faces, one asked for; and several requests at once, more than the queue holds."
        mine = self.upload(web, "pair.png", (self.folder / "pair.png").read_bytes())
        inner = [threading.Thread(target=self.ask, args=(web, mine, mine, "1", f"tab{t}")) for t in range(self.burst)]
        for t in inner:
            t.start()
        for t in inner:
            t.join()
        self.note("bursts")


LOCK = threading.Lock()


def rss(process):
    "Resident memory of a process and its children, MB."
    import psutil

    try:
        return sum(p.memory_info().rss for p in [process, *process.children(recursive=True)]) / 2**20
    except psutil.Error:
        return 0.0


def files_in(folder):
    "All files below a folder; `os.walk` doesn't mind that some vanish meanwhile."
    return [Path(at) / name for at, _, names in os.walk(folder) for name in names]


def visitors(n=10, seconds=120, keep=45.0, burst=3, root=None):
    "Start the demo, let them all in, watch it, and look at what is left when they are gone."
    import numpy as np
    import psutil
    from servers import free_port, server

    book, memory, port = {"counts": collections.Counter(), "seconds": [], "urls": [], "odd": []}, [], free_port()
    with tempfile.TemporaryDirectory(dir=root) as folder:
        folder, temp = Path(folder), Path(folder) / "tmp"
        temp.mkdir()
        cards(folder, n)
        bad = bad_files(folder)
        env = {"TMPDIR": str(temp), "DEEPSWAP_FAST": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1]), **({} if os.environ.get("DEEPSWAP_CACHE") else {"DEEPSWAP_CACHE": str(folder / "cache")})}
        with server([sys.executable, __file__, "serve", str(port), str(keep)], f"http://127.0.0.1:{port}/", folder / "log.txt", timeout=180, env=env) as process:
            watched, url = psutil.Process(process.pid), f"http://127.0.0.1:{port}"
            first = files_in(temp)
            start = time.monotonic()
            crowd = [Visitor(k, url, folder, bad, start + seconds, book, burst) for k in range(n)]
            for v in crowd:
                v.start()
            most = 0
            while any(v.is_alive() for v in crowd) and time.monotonic() - start < seconds + 120:
                memory.append((time.monotonic() - start, rss(watched)))
                most = max(most, len(files_in(temp)))
                time.sleep(1)
            lasted = time.monotonic() - start
            end = time.monotonic() + keep + 30
            while time.monotonic() < end and any(p not in first for p in files_in(temp)):
                time.sleep(0.5)
            cleared = keep + 30 - (end - time.monotonic())
            left = [str(p.relative_to(temp)) for p in files_in(temp) if p not in first]
            escaped = [str(p) for p in (Path("/tmp/escaped.png"), Path("/etc/cron.d/escaped.png")) if p.exists()] + [str(p) for p in folder.glob("escaped*")]
            alive, log = process.poll() is None, (folder / "log.txt").read_text(errors="replace")
        after = [str(p) for p in files_in(temp)]
    t, mb = np.array([(a, b) for a, b in memory if b and a > seconds / 3]).T
    waits = np.array(book["seconds"])
    counts = dict(book["counts"])
    return {"visitors": n, "seconds": round(lasted), "counts": counts, "requests": len(waits), "a_minute": round(60 * len(waits) / lasted, 1), "wait_p50": round(float(np.percentile(waits, 50)), 2), "wait_p95": round(float(np.percentile(waits, 95)), 2),
            "wait_most": round(float(waits.max()), 2), "memory_start": round(memory[0][1]), "memory_third": round(float(mb[0])), "memory_end": round(float(mb[-1])), "memory_most": round(max(b for _, b in memory)), "memory_slope": round(float(np.polyfit(t, mb, 1)[0] * 60), 1),
            "files_most": most, "left": left, "cleared_after": round(cleared, 1), "left_after_stop": after, "escaped": escaped, "alive": alive, "tracebacks": log.count("Traceback"), "log": log[-1500:] if "Traceback" in log else "", "odd": book["odd"][:10], "keep": keep}


# ---------------------------------------------------------------- all


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("fuzz", "kill", "disk", "visitors", "fuzz-child", "serve"))
    parser.add_argument("rest", nargs="*")
    parser.add_argument("--n", type=int)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--record", action="store_true", help=f"enter the figures in {RESULTS.name}")
    a = parser.parse_args()
    if a.what == "fuzz-child":
        return fuzz_child(a.rest[0], int(a.rest[1]), int(a.rest[2]), a.rest[3])
    if a.what == "serve":
        return serve(int(a.rest[0]), float(a.rest[1]))
    start = time.time()
    about = {"machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"}

    def record(found):
        "Enter what is known by now."
        from deepswap.core import write_json

        if a.record:
            book = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
            found = {k: v for k, v in found.items() if k != "log"} | about
            for part, total in (("readers", "inputs"), ("jobs", "kills")):
                if part in found:  # parts may be recorded one by one
                    found[part] = book.get(a.what, {}).get(part, {}) | found[part]
                    found[total] = sum(v[total] for v in found[part].values())
            write_json(book | {a.what: found}, RESULTS)

    found = {"fuzz": lambda: fuzz(a.n or 10_000, a.rest, record), "kill": lambda: kill(a.n or 50, a.rest), "disk": disk, "visitors": lambda: visitors(a.n or 10, a.seconds)}[a.what]()
    found |= about | {"took": round(time.time() - start)}
    print("\n" + json.dumps(found, indent=1))
    for r in found.get("readers", {}).values():
        r.pop("ended", None)
    record(found)


if __name__ == "__main__":
    main()
