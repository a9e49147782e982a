"kill -9 at random points, and a full disk: a small run of what `benchmarks/robustness.py` records."

import json
import os
import subprocess
import sys

import pytest
from common import ROOT

pytestmark = [pytest.mark.skipif(sys.platform != "linux", reason="processes are forked, and a file system is mounted"),
              pytest.mark.skipif(not os.environ.get("DEEPSWAP_SLOW"), reason="takes minutes: set DEEPSWAP_SLOW=1")]


def driven(*words):
    "The driver's figures."
    done = subprocess.run([sys.executable, str(ROOT / "benchmarks" / "robustness.py"), *words], capture_output=True, text=True, timeout=400, cwd=ROOT)
    if "no file system can be mounted here" in done.stderr:
        pytest.skip("no file system can be mounted here")
    assert done.returncode == 0, done.stdout[-500:] + done.stderr[-2000:]
    return json.loads(done.stdout[done.stdout.index("\n{\n") :])


@pytest.mark.timeout(400)
def test_killed_runs_go_on_and_end_as_if_nothing_had_happened():
    jobs = driven("kill", "--n", "9")["jobs"]
    assert set(jobs) == {"train", "extract", "video"} and sum(j["kills"] for j in jobs.values()) == 9
    for name, j in jobs.items():
        assert j["kills"] >= 2 and j["half"] == 0 and j["refused"] == [] and j["finished"] == j["equal"] >= 1 and j["left"] == [], (name, j)


@pytest.mark.timeout(400)
def test_a_full_disk_is_said_and_leaves_nothing_half(tmp_path):
    rows = driven("disk")["commands"]
    assert set(rows) == {"swap", "video", "train", "extract", "people", "evaluate", "cache"}
    for name, r in rows.items():
        assert r["told"] >= 1 and r["told"] + r["done"] == r["tries"] and r["half"] == r["lost"] == r["left"] == 0, (name, r)
