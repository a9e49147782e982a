"""Runs trainings for tests/test_train.py in processes of their own.

python tests/ddp_worker.py CASE OUT [SETTINGS as JSON]      or under  torchrun --standalone --nproc_per_node 2
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from deepswap.train import AutoencoderMethod, DropOnPlateau, RingOfGaussians, ToyGAN, Trainer


class Pictures:
    "An endless, shuffled, resumable loader of smooth random pictures."

    def __init__(self, n=40, size=16, batch=10, seed=0, repeat=None):
        coarse = torch.rand(n, 3, 4, 4, generator=torch.Generator().manual_seed(seed)) * 2 - 1
        self.images = nn.functional.interpolate(coarse, size=size, mode="bilinear")
        self.batch, self.seed, self.epoch, self.place = batch, seed, 0, 0

    def __iter__(self):
        while True:
            order = torch.randperm(len(self.images), generator=torch.Generator().manual_seed(self.seed + self.epoch))
            chosen = order[self.place : self.place + self.batch]
            self.place += self.batch
            if self.place >= len(order):
                self.epoch, self.place = self.epoch + 1, 0
            yield {"image": self.images[chosen], "name": "pictures"}

    def state_dict(self):
        return {"epoch": self.epoch, "place": self.place}

    def load_state_dict(self, state):
        self.epoch, self.place = state["epoch"], state["place"]


class Noisy(AutoencoderMethod):
    "An autoencoder whose loss uses torch's, numpy's and Python's random numbers, and which keeps a memory beside its networks."

    name = "test-noisy"

    def __init__(self, **config):
        super().__init__(**{"size": 16, "width": 4, "code": 8, **config})
        self.pool = torch.zeros(2)

    def schedules(self):
        return {"ae": DropOnPlateau(factor=0.7, patience=4, threshold=0.05)}

    def losses(self, image, noise):
        return {"l1": (self.autoencoder(image + noise) - image).abs().mean()}

    def step(self, batch, update):
        import random

        import numpy as np

        image = batch["image"]
        self.pool = 0.9 * self.pool + torch.tensor([random.random(), np.random.rand()])
        update("ae", self.losses, image, 0.1 * torch.randn_like(image) * self.pool.mean())

    def extra_state(self):
        return {"pool": self.pool}

    def load_extra_state(self, state):
        self.pool = state["pool"]


class FixedNoise(ToyGAN):
    "The toy GAN with its noise in the batch, so that processes share it as they share the points."

    name = "test-fixed-noise"

    def step(self, batch, update):
        real, noise = batch
        for _ in range(self.config["k"]):
            update("d", self.d_losses, real, noise)
        update("g", self.g_losses, noise)

    def preview(self, batch):
        return None


class PointsAndNoise(RingOfGaussians):
    def __iter__(self):
        for real in super().__iter__():
            yield real, torch.randn(len(real), 4, generator=self.dice)


class Slow:
    "Gives the test time to send a signal, and says how far the run is; or is killed, as by a power cut, at a step of its own."

    def __init__(self, kill_at=None):
        self.kill_at = kill_at

    def on_step(self, trainer):
        if trainer.step == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        print(trainer.step, flush=True)
        time.sleep(0.01)


def noisy(out=None, **settings):
    torch.manual_seed(3)
    settings = {"steps": 40, "seed": 5, "ema": 0.9, "clip": 1.0, "log_every": 3, "checkpoint_every": 7, "progress": False, **settings}
    return Trainer(Noisy(), Pictures(), out=out, **settings)


def gan(out=None, batch=64, **settings):
    torch.manual_seed(3)
    settings = {"steps": 12, "seed": 5, "ema": 0.9, "progress": False, "accumulate": 2, **settings}
    return Trainer(FixedNoise(width=16, k=2), PointsAndNoise(batch), out=out, **settings)


def autoencoder(out=None, batch=10, **settings):
    torch.manual_seed(3)
    settings = {"steps": 12, "progress": False, "clip": 1.0, **settings}
    return Trainer(AutoencoderMethod(size=16, width=4, code=8), Pictures(batch=batch), out=out, **settings)


def faces(out=None, **settings):
    "Procedural people, dealt to the processes by their own loader."
    from deepswap.data import ProceduralFaces, batches

    torch.manual_seed(3)
    data = batches(ProceduralFaces(10, 2, 16, seed=1), 6, seed=4)
    settings = {"steps": 8, "progress": False, "seed": 1, "about": {"people": 10}, **settings}
    return Trainer(AutoencoderMethod(size=16, width=4, code=8), data, out=out, **settings)


def final(trainer, path):
    "Networks and averages of a finished run."
    tensors = {f"network/{k}": v.detach().clone() for k, v in trainer.method.state_dict().items()}
    if trainer.averages:
        for name, net in trainer.averages.networks.items():
            tensors |= {f"average/{name}/{k}": v.clone() for k, v in net.state_dict().items()}
    if trainer.processes.main:
        save_file(tensors, path)


def everything(out):
    "All that is compared between one process and two."
    out = Path(out)
    for name, make in (("gan", gan), ("autoencoder", autoencoder), ("faces", faces)):
        trainer = make(out / name, checkpoint_every=5)
        trainer.fit()
        final(trainer, out / f"{name}.safetensors")
        if trainer.processes.main:
            (out / f"{name}.json").write_text(json.dumps(trainer.history))
    broken = autoencoder(out / "rollback", on_nan="rollback", checkpoint_every=3)
    poison(broken, step=8)
    broken.fit()
    if broken.processes.main:
        (out / "events.json").write_text(json.dumps([broken.step, broken.events]))
    gan(out / "halves", callbacks=[Stop()]).fit()
    resumed = gan(out / "halves").resume().fit()
    final(resumed, out / "halves.safetensors")
    final(gan().fit(), out / "whole.safetensors")


class Stop:
    def on_step(self, trainer):
        if trainer.step == 5:
            trainer.request_stop()


def poison(trainer, step):
    "In the last process alone, the pictures of one step are NaN."
    losses, method, last = trainer.method.losses, trainer.method, int(os.environ.get("WORLD_SIZE", 1)) - 1
    state = {"left": 1}

    def poisoned(image):
        if trainer.step + 1 == step and state["left"] and trainer.processes.index == last:
            state["left"] = 0
            image = image * float("nan")
        return losses(image)

    method.losses = poisoned


def launched(out):
    "The same GAN through accelerate's notebook_launcher."
    import socket

    from accelerate import notebook_launcher

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    notebook_launcher(_launched, (out,), num_processes=2, use_port=str(port))


def _launched(out):
    final(gan().fit(), Path(out) / "launched.safetensors")


def full_disk(out):
    "A file size limit stands in for a disk that fills up while a checkpoint is written."
    import resource

    from deepswap.core import DeepswapError

    trainer = noisy(out, steps=7)
    trainer.fit()
    size = (Path(out) / "last.safetensors").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, size // 2))
    trainer.steps = 14
    try:
        trainer.fit()
    except DeepswapError as e:
        print(f"{type(e).__name__}: {e}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    case, out = sys.argv[1:3]
    settings = json.loads(sys.argv[3]) if len(sys.argv) > 3 else {}
    if case == "noisy":
        resume = settings.pop("resume", False)
        trainer = noisy(out, callbacks=[Slow(settings.pop("kill_at", None))], **settings)
        trainer = (trainer.resume() if resume else trainer).fit()
        print(trainer.status, trainer.step)
    else:
        {"everything": everything, "launched": launched, "full_disk": full_disk}[case](out)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
