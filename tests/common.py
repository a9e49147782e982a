"What several test files share."

import importlib.util
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


class Stop:
    "A callback that asks a run to stop after a step."

    def __init__(self, step):
        self.at = step

    def on_step(self, trainer):
        if trainer.step == self.at:
            trainer.request_stop()


def script(path):
    "A file of the repository that is no package's, as a module: 'benchmarks/cyclegan.py', say."
    spec = importlib.util.spec_from_file_location(Path(path).stem + "_script", ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
