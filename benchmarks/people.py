"""How fast are people drawn, how much memory does a chunk take, and does a face detector find them?

python benchmarks/people.py [--device auto] [--faces 1000] [--size 160] [--no-find] [--compile]      prints one line of JSON
"""
import argparse
import json
import subprocess
import sys
import time
from pathlib import Path


import torch  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from deepswap.core import pick_device  # noqa: E402
from deepswap.people import render, sample_people  # noqa: E402


def speed(people, size, compile=False, rounds=3):
    "Best of a few rounds, pictures a second, wall clock and per second of processor time."
    cuda = people.device.type == "cuda"
    sync = torch.cuda.synchronize if cuda else (lambda: None)
    render(people if compile or cuda else people[:64], size, compile=compile)
    wall, cpu = 0., 0.
    for _ in range(rounds):
        sync()
        t, c = time.perf_counter(), time.process_time()
        render(people, size, compile=compile)
        sync()
        wall = max(wall, len(people) / (time.perf_counter() - t))
        cpu = max(cpu, len(people) / (time.process_time() - c))
    return dict(per_second=round(wall), per_cpu_second=round(cpu))


def memory(device, chunk, n, size=64):
    "Megabytes that drawing n pictures in chunks needs besides the pictures themselves, in a fresh process (resident memory, or memory of the GPU)."
    code = f"""
import sys, torch
sys.path.insert(0, {str(Path(__file__).resolve().parents[1])!r})
from deepswap.people import render, sample_people
p = sample_people({n}, 'easy', seed=1).to({str(device)!r})
cuda = p.device.type == 'cuda'
def status(key): return int(next(line for line in open('/proc/self/status') if line.startswith(key)).split()[1])
render(p[:1], {size})
if cuda: torch.cuda.reset_peak_memory_stats()
else: open('/proc/self/clear_refs', 'w').write('5')          # Linux: start the high-water mark anew
a = torch.cuda.memory_allocated() / 1024 if cuda else status('VmRSS')
r = render(p, {size}, chunk={chunk})
b = torch.cuda.max_memory_allocated() / 1024 if cuda else status('VmHWM')
out = sum(t.numel() * t.element_size() for t in (r.image, r.mask, r.parts, r.landmarks)) / 1024
print((b - a - out) / 1024)
"""
    return round(float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout), 1)


def find_rate(faces, size, device):
    "Share of hard pictures in which facenet-pytorch's MTCNN finds a face, and one that lies on the eyes it should have found."
    from facenet_pytorch import MTCNN
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    mtcnn = MTCNN(device="cpu", keep_all=True)
    people = sample_people(faces, "hard", seed=1234)
    found, right, sure, lost = 0, 0, [], {}
    for k in range(0, faces, 50):
        r = render(people[k:k + 50].to(device), size)
        frames = ((r.image + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        for j, frame in enumerate(frames):
            boxes, p = mtcnn.detect(frame)
            if boxes is None:
                s = people.scene[k + j]
                lost[k + j] = {n: round(float(getattr(s, n)), 2) for n in ("blur", "noise", "occluder", "watermark", "filter", "grey", "yaw", "light_power", "ambient")}
                continue
            found += 1
            sure.append(float(p.max()))
            centre = r.landmarks[j].mean(0).cpu().tolist()
            right += any(b[0] < centre[0] < b[2] and b[1] < centre[1] < b[3] for b in boxes.astype(float))
    torch.set_num_threads(threads)
    return dict(faces=faces, size=size, found=round(found / faces, 4), in_place=round(right / faces, 4), mean_probability=round(sum(sure) / max(1, len(sure)), 4), lost=lost)


def main():
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("--device", default="auto")
    ap.add_argument("--faces", type=int, default=1000)
    ap.add_argument("--size", type=int, default=192, help="pixels of the pictures for the detector")
    ap.add_argument("--no-find", action="store_true")
    ap.add_argument("--compile", action="store_true", help="also measure with torch.compile")
    args = ap.parse_args()
    device = pick_device(args.device)
    cuda = device.type == "cuda"
    n = 32768 if cuda else 512
    out = dict(benchmark="people", device=torch.cuda.get_device_name() if cuda else "cpu", threads=torch.get_num_threads())
    for preset in ("easy", "hard"): out[f"speed_64_{preset}"] = speed(sample_people(n, preset, seed=1).to(device), 64)
    out["speed_256_easy"] = speed(sample_people(n // 16, "easy", seed=1).to(device), 256)
    if args.compile: out["speed_64_compiled"] = speed(sample_people(n, "easy", seed=1).to(device), 64, compile=True)
    chunks = (1024, 2048) if cuda else (8, 32, 128)
    out["memory_mb"] = {str(c): {str(m): memory(device, c, m) for m in ((4096, 8192) if cuda else (256, 1024))} for c in chunks}
    if not args.no_find: out["mtcnn"] = find_rate(args.faces, args.size, device)
    print(json.dumps(out))


if __name__ == "__main__":
    main()
