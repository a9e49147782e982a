"What every test has at hand."

import atexit
import os
import shutil
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
os.environ.setdefault("DEEPSWAP_FAST", "1")
if "DEEPSWAP_CACHE" not in os.environ:
    os.environ["DEEPSWAP_CACHE"] = tempfile.mkdtemp(prefix="deepswap-test-cache-")
    atexit.register(shutil.rmtree, os.environ["DEEPSWAP_CACHE"], ignore_errors=True)
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")


@pytest.fixture(scope="session")
def shared():
    "The folder with real photos and clips that is never part of the repository."
    path = Path(os.environ.get("DEEPSWAP_SHARED", ROOT.parent / "shared"))
    if not (path / "data").is_dir():
        pytest.skip(f"no real photos at {path}: set DEEPSWAP_SHARED to a folder that holds data/")
    return path


@pytest.fixture(scope="session")
def repo():
    return ROOT


@pytest.fixture(scope="module")
def one_thread():
    "Many small operations, MTCNN's among them: threads only contend."
    import torch

    n = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n)
