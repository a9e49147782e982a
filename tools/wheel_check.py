"""Install the wheel as a stranger would, in a fresh environment outside the repository, and use it: library, command line, demo, course, tests.

python tools/wheel_check.py PYTHON                  e.g. python3.13; prints one line of JSON, exit code 0 if every step went well
    --wheel FILE     an existing wheel; else one is built
    --extra WORDS    more for the installer, e.g. "--torch-backend cpu"
    --chapters a,b   chapters that are run in fast mode from the unpacked course (default 00_core,20_gan,43_hear)
    --tests a,b      test files without `test_` (default: TESTS below)
    --before WORDS   words to put before each command, e.g. "nice -n 10" or a queue
    --keep           leave the environment in place, and say where
    --record         enter the result in benchmarks/results/wheel.json under the version of Python
"""

import argparse
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TESTS = "core,layers,norms,objectives,faces,classical,provenance,show"


# A chapter's cells, one after the other, where it lies. Not with nbconvert: its client waits for ever at the first widget that draws.
CHAPTER = """
import json, os, sys
from IPython.core.interactiveshell import InteractiveShell
os.chdir(sys.argv[1])
shell = InteractiveShell.instance()
for cell in json.load(open(sys.argv[2], encoding="utf-8"))["cells"]:
    if cell["cell_type"] == "code" and not shell.run_cell("".join(cell["source"])).success:
        sys.exit("".join(cell["source"]))
"""


class Failed(Exception):
    "A step that did not go as it should."


class Check:
    "A fresh environment and a folder to work in; `steps` holds the processor seconds of each step that went well."

    def __init__(self, python, folder, before=""):
        self.folder, self.steps, self.python, self.before = folder, {}, python, shlex.split(before)
        self.bin = folder / "venv" / ("Scripts" if os.name == "nt" else "bin")
        keep = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "DEEPSWAP_SHARED", "IN_TEST")}
        self.env = {**keep, "DEEPSWAP_CACHE": str(folder / "cache"), "PATH": f"{self.bin}{os.pathsep}{os.environ['PATH']}", "MPLBACKEND": "Agg", "JUPYTER_PLATFORM_DIRS": "1"}

    def run(self, step, *words, codes=(0,), timeout=1800, **env):
        "One command in the folder; its output, both streams."
        start = os.times()
        try:
            found = subprocess.run([*self.before, *(str(w) for w in words)], cwd=self.folder, env={**self.env, **env}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=timeout)
        except subprocess.TimeoutExpired:
            raise Failed(f"{step}: not ready after {timeout} s") from None
        if found.returncode not in codes:
            raise Failed(f"{step}: exit code {found.returncode}: {found.stdout[-3000:]}")
        end = os.times()
        self.steps[step] = round(end.children_user + end.children_system - start.children_user - start.children_system, 1)
        return found.stdout

    def expect(self, step, text, *pieces):
        "Pieces that must be in an output."
        for piece in pieces:
            if piece not in text:
                raise Failed(f"{step}: {piece!r} is not in {text[-2000:]!r}")

    def install(self, wheel, extra):
        uv = shutil.which("uv")
        self.run("venv", *([uv, "venv", "-q", "--python", self.python, "venv"] if uv else [self.python, "-m", "venv", "venv"]))
        pip = [uv, "pip", "install", "-q", "--python", self.bin / "python"] if uv else [self.bin / "python", "-m", "pip", "install", "-q"]
        self.run("install", *pip, *shlex.split(extra), wheel, "pytest", "pytest-timeout")

    def library(self):
        code = "import sys, time; t = time.perf_counter(); import deepswap; t = time.perf_counter() - t; print(deepswap.__file__, 'torch' in sys.modules, t)"
        place, torch, seconds = self.run("import", self.bin / "python", "-W", "error", "-c", code).rsplit(maxsplit=2)
        if torch != "False" or float(seconds) > 0.2 or str(self.bin.parent) not in place:
            raise Failed(f"import: {place}, torch {torch}, {seconds} s")
        self.run("every module", self.bin / "python", "-c", "import deepswap, importlib; [importlib.import_module('deepswap.' + m) for m in deepswap._PUBLIC]; [getattr(deepswap, n) for n in deepswap.__all__]")
        return float(seconds)

    def commands(self):
        deepswap = self.bin / "deepswap"
        self.expect("--version", self.run("--version", deepswap, "--version"), "deepswap ")
        self.run("people", deepswap, "people", "--people", 2, "--scenes", 1, "--size", 192, "--out", "people")
        a, b = sorted((self.folder / "people").glob("*.png"))
        self.expect("swap", self.run("swap", deepswap, "swap", a, b, "-o", "out.png"), "1 face swapped (faceshifter")
        self.expect("inspect", self.run("inspect", deepswap, "inspect", "out.png"), "Made with deepswap")

    def course(self, chapters):
        deepswap, course = self.bin / "deepswap", self.folder / "my course"
        self.expect("unpack", self.run("unpack", deepswap, "lab", course, "--unpack-only"), " new")
        chapter = course / "nbs" / "00_core.ipynb"
        chapter.write_text(chapter.read_text(encoding="utf-8") + "\n", encoding="utf-8")
        mine = chapter.read_bytes()
        self.expect("unpack again", self.run("unpack again", deepswap, "lab", course, "--unpack-only"), "up to date")
        if chapter.read_bytes() != mine:
            raise Failed("unpack again: an edit was lost")
        for name in chapters:
            self.run(f"chapter {name}", self.bin / "python", "-c", CHAPTER, course / "nbs", f"{name}.ipynb", DEEPSWAP_FAST="1", timeout=900)

    def server(self, step, path, *words):
        "Start a server, fetch a page, interrupt it."
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        start, log = time.time(), open(self.folder / f"{step}.log", "w+")
        process = subprocess.Popen([self.bin / "deepswap", *words, "--no-browser", "--port", str(port)], cwd=self.folder, env=self.env, stdout=log, stderr=log, start_new_session=True)
        answer = None
        while answer is None and process.poll() is None and time.time() < start + 180:
            try:
                answer = urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10).read()
            except OSError:
                time.sleep(0.5)
        ready = round(time.time() - start, 1)
        for grace in (20, 10, 10):  # JupyterLab asks back at the first
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGINT)
            try:
                process.wait(grace)
                break
            except subprocess.TimeoutExpired:
                pass
        else:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        log.seek(0)
        if not answer:
            raise Failed(f"{step}: no answer: {log.read()[-2000:]}")
        self.steps[step] = ready  # here the wall's clock

    def tests(self, names):
        "A slice of the tests against the installed package: the folder holds no other."
        for part in ("tests", "benchmarks"):
            shutil.copytree(ROOT / part, self.folder / part, dirs_exist_ok=True)
        shutil.copy(ROOT / "pyproject.toml", self.folder)
        files = [f"tests/test_{n}.py" for n in names]
        out = self.run("tests", self.bin / "python", "-m", "pytest", "-m", "not browser", "-p", "no:cacheprovider", *files, timeout=3000)
        return next((line.split(" in ")[0] for line in reversed(out.splitlines()) if " passed" in line), out[-200:])


def version_of(python):
    return subprocess.run([python, "-c", "import platform; print(platform.python_version())"], capture_output=True, text=True, check=True).stdout.strip()


def build(folder):
    "A wheel of this checkout, made from its own source distribution."
    subprocess.run([sys.executable, "-m", "build", "-o", folder, ROOT] if not shutil.which("uv") else ["uv", "build", "-q", "-o", folder, ROOT], check=True, stdout=sys.stderr)
    return next(Path(folder).glob("*.whl"))


def main(args):
    folder = Path(tempfile.mkdtemp(prefix="deepswap-wheel-")).resolve()
    result = {"python": version_of(args.python), "ok": False}
    try:
        wheel = Path(args.wheel).resolve() if args.wheel else build(folder / "dist")
        result["wheel_mb"] = round(wheel.stat().st_size / 1e6, 1)
        check = Check(args.python, folder, args.before)
        result["cpu_s"] = check.steps
        check.install(wheel, args.extra)
        result["torch"] = check.run("torch", check.bin / "python", "-c", "import torch; print(torch.__version__)").strip()
        result["import_s"] = round(check.library(), 4)
        check.commands()
        check.course([c for c in args.chapters.split(",") if c])
        check.server("demo", "/", "demo")
        check.server("lab", "/api", "lab", "my course")
        if args.tests:
            result["tests"] = check.tests(args.tests.split(","))
        result["ok"] = True
    except Failed as e:
        result["failed"] = str(e)
    finally:
        if not args.keep:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            result["folder"] = str(folder)
    print(json.dumps(result))
    if args.record:
        path = ROOT / "benchmarks" / "results" / "wheel.json"
        book = json.loads(path.read_text()) if path.exists() else {}
        book[".".join(result["python"].split(".")[:2])] = result
        path.write_text(json.dumps(dict(sorted(book.items(), key=lambda kv: int(kv[0].split(".")[1]))), indent=1) + "\n")
    return 0 if result["ok"] else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("python")
    parser.add_argument("--wheel")
    parser.add_argument("--extra", default="")
    parser.add_argument("--chapters", default="00_core,20_gan,43_hear")
    parser.add_argument("--tests", default=TESTS)
    parser.add_argument("--before", default="")
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--record", action="store_true")
    sys.exit(main(parser.parse_args()))
