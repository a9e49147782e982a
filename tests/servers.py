"Start a server for a test, wait until it answers, and leave no process behind."

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path


def free_port() -> int:
    "A port nobody listens on at this moment."
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def answers(url: str, timeout: float = 2) -> bool:
    "Whether something that speaks HTTP is there; an error page counts."
    try:
        urllib.request.urlopen(url, timeout=timeout).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def _die_with_parent():
    "Linux: the server is killed when the test runner dies without a chance to clean up."
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def descendants(pid: int) -> list:
    "Every process below `pid`, as psutil sees it."
    import psutil

    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def stop(process: subprocess.Popen, grace: float = 20):
    "Ask, wait, insist; then the same for whatever it had started."
    import psutil

    family = descendants(process.pid)
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(grace)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(5)
    for p in psutil.wait_procs(family, timeout=5)[1]:
        p.kill()
    psutil.wait_procs(family, timeout=5)


@contextmanager
def server(command: list, url: str, log: Path, timeout: float = 90, **kwargs):
    "Run `command` until the block ends; yields the process once `url` answers. A None in `env` takes a variable away."
    env = {k: v for k, v in {**os.environ, **kwargs.pop("env", {})}.items() if v is not None}
    with open(log, "wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=env, start_new_session=True, preexec_fn=_die_with_parent, **kwargs)
    try:
        end = time.monotonic() + timeout
        while not answers(url):
            if process.poll() is not None or time.monotonic() > end:
                state = f"ended with {process.returncode}" if process.poll() is not None else f"did not answer in {timeout:.0f} s"
                raise RuntimeError(f"{' '.join(map(str, command[:4]))} {state}:\n{log.read_text(errors='replace')[-3000:]}")
            time.sleep(0.3)
        yield process
    finally:
        stop(process)
