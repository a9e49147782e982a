"""What `import deepswap` costs: seconds and modules, beside a Python that does nothing and beside torch.

python benchmarks/imports.py [--record]
"""

import argparse
import json
import platform
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def seconds(code, n):
    "Best wall time of a fresh interpreter that runs this."
    best = []
    for _ in range(n):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
        best.append(time.perf_counter() - start)
    return min(best)


def measure(n=10):
    bare, ours = seconds("pass", n), seconds("import deepswap", n)
    account = [subprocess.run([sys.executable, "-X", "importtime", "-c", "import deepswap"], capture_output=True, text=True, cwd=ROOT).stderr for _ in range(n)]
    count = "import sys; n = set(sys.modules); import deepswap; print(len(set(sys.modules) - n))"
    loaded = int(subprocess.run([sys.executable, "-c", count], capture_output=True, text=True, cwd=ROOT).stdout)
    return {
        "python_s": round(bare, 4),
        "with_deepswap_s": round(ours, 4),
        "ratio_to_python": round(ours / bare, 3),
        "import_deepswap_s": min(int(a.splitlines()[-1].split("|")[1]) for a in account) / 1e6,
        "modules_loaded": loaded,
        "import_torch_s": round(seconds("import torch", 2), 3),
        "python": platform.python_version(),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", help="write benchmarks/results/imports.json")
    result = measure()
    text = json.dumps(result, indent=1)
    print(text)
    if parser.parse_args().record:
        (ROOT / "benchmarks/results/imports.json").write_text(text + "\n")
