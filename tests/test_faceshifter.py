"FaceShifter's first stage: the losses against the formulas written out, what each gradient reaches, pairs, resume, the swapper, and one sentence for each wrong input."

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from common import script
from solved import all_hold, toy

from deepswap import faceshifter as fs
from deepswap.autoencoder import AlignedPeople, render_aligned
from deepswap.core import CANONICAL5, DataError, DeepswapError, UsageError, write_image
from deepswap.data import Pairs
from deepswap.gan import get_objective
from deepswap.identity import get_encoder, identity_faces
from deepswap.people import exact_swap, render
from deepswap.provenance import METHOD_CODES
from deepswap.swap import get_swapper, swap_face
from deepswap.train import Trainer, load_method, read_tensors, run

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = {"size": 32, "width": 2, "ndf": 4}


@pytest.fixture(autouse=True)
def same_dice():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def people():
    return identity_faces("procedural:n=6,scenes=3,preset=easy", 32)


@pytest.fixture(scope="module")
def task():
    return fs.swap_task(24, 32)


def pictures(n=4, size=32):
    return torch.rand(n, 3, size, size) * 2 - 1


def trained(people, steps=2, **more):
    m = fs.FaceShifter(**SMALL | more)
    return Trainer(m, m.loader(people, 32, 4, 0)[0], steps=steps, device="cpu", seed=0, progress=False, log_every=1).fit()


def test_identity_loss_is_one_minus_the_cosine():
    a, b = F.normalize(torch.randn(5, 8)), F.normalize(torch.randn(5, 8))
    assert torch.allclose(fs.face_identity_loss(a, b), sum(1 - (x * y).sum() for x, y in zip(a, b)) / 5, atol=1e-6)
    assert fs.face_identity_loss(a, a) < 1e-6 and abs(fs.face_identity_loss(a, -a) - 2) < 1e-6


def test_attribute_loss_counts_every_map_alike():
    a, b = ([torch.randn(2, c, s, s) for c, s in ((8, 2), (4, 4), (3, 8))] for _ in "ab")
    by_hand = 0.5 * sum(((x - y) ** 2).sum() / x.numel() for x, y in zip(a, b))
    assert torch.allclose(fs.attribute_loss(a, b), by_hand)
    for k in range(3):  # none is left out
        assert fs.attribute_loss([x + (i == k) for i, x in enumerate(a)], a).item() == pytest.approx(0.5)
    with pytest.raises(UsageError, match="3 maps"):
        fs.attribute_loss(a, b[:2])


def test_reconstruction_is_the_mean_of_the_same_pairs_and_zero_where_there_are_none():
    y, t = pictures().requires_grad_(), pictures()
    same = torch.tensor([True, False, False, True])
    loss = fs.reconstruction_loss(y, t, same)
    each = [0.5 * ((y[i] - t[i]) ** 2).mean() for i in range(4)]
    assert torch.allclose(loss, (each[0] + each[3]) / 2)
    loss.backward()
    moved = y.grad.abs().sum((1, 2, 3)) > 0
    assert torch.equal(moved, same)
    assert fs.reconstruction_loss(y, t, torch.zeros(4, dtype=torch.bool)) == 0


def test_adversarial_loss_is_the_hinge_over_scales():
    hinge = get_objective("hinge")
    real, fake = ([torch.randn(2, 1, s, s) for s in (6, 3)] for _ in "ab")
    by_hand = sum((1 - r).clamp(min=0).mean() + (1 + f).clamp(min=0).mean() for r, f in zip(real, fake)) / 2
    assert torch.allclose(fs.over_scales(hinge.d_loss, real, fake), by_hand)
    assert torch.allclose(fs.over_scales(hinge.g_loss, fake), -sum(f.mean() for f in fake) / 2)


def test_weights_are_the_thesis_s_and_switches(people):
    c = fs.FaceShifter(**SMALL).config
    assert (c["adv"], c["id"], c["att"], c["rec"], c["supervised"], c["same"]) == (1, 5, 10, 10, 0, 0.2)
    m = fs.FaceShifter(**SMALL, adv=0.0, id=3.0)
    losses, y = m.g_losses(pictures(), F.normalize(torch.randn(4, m.who.dim)), torch.ones(4).bool())
    assert {k: w for k, (w, _) in losses.items()} == {"g_id": 3.0, "g_att": 10, "g_rec": 10} and y.shape == (4, 3, 32, 32)


@pytest.mark.parametrize("bad, word", [({"att": -1.0}, "att -1"), ({"same": 1.5}, "1.5"), ({"adv": 0.0, "id": 0.0, "att": 0.0, "rec": 0.0}, "one above"), ({"lr": 0.0}, "lr"), ({"beta": 1.0}, "beta")])
def test_settings_out_of_range_get_a_sentence(bad, word):
    with pytest.raises(UsageError, match=word):
        fs.FaceShifter(**SMALL | bad)


def test_a_step_moves_generator_and_discriminator_and_never_the_encoder(people):
    m = fs.FaceShifter(**SMALL)
    before = {k: {n: p.clone() for n, p in getattr(m, k).named_parameters()} for k in ("attributes", "generator", "discriminator", "who")}
    t = Trainer(m, m.loader(people, 32, 4, 0)[0], steps=1, device="cpu", seed=0, progress=False).fit()
    share = {k: sum(not torch.equal(p, dict(getattr(m, k).named_parameters())[n]) for n, p in v.items()) / len(v) for k, v in before.items()}
    assert share["who"] == 0 and not m.who.training and all(share[k] > 0.5 for k in ("attributes", "generator", "discriminator"))
    assert {"g_adv", "g_id", "g_att", "g_rec", "d_adv"} <= t.history[-1].keys()


def test_identity_loss_reaches_the_generator_through_the_frozen_encoder():
    m = fs.FaceShifter(**SMALL, adv=0.0, att=0.0, rec=0.0)
    losses, _ = m.g_losses(pictures(), F.normalize(torch.randn(4, m.who.dim)), torch.zeros(4).bool())
    losses["g_id"][1].backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in m.generator.parameters())
    assert all(p.grad is None for p in m.who.parameters())


@pytest.mark.parametrize("same", [0.2, 0.5])
def test_share_of_same_pairs(people, same):
    pairs, _ = fs.FaceShifter(**SMALL, same=same).loader(people, 32, 5, 0)
    batches = [pairs.make(k * 5) for k in range(12)]
    assert sum(b.same.sum().item() for b in batches) == 60 * same
    assert all(torch.equal(b.same, b.source.person == b.target.person) for b in batches)
    apart = [(b.source.image - b.target.image).abs().mean((1, 2, 3))[b.same] for b in batches]
    assert torch.cat(apart).min() > 0.01, "same person, another picture"


def test_taught_pairs_hold_the_exact_swap(people):
    m = fs.FaceShifter(**SMALL, supervised=1.0)
    b = m.loader(people, 32, 5, 0)[0].make(0)
    s, t = people.people[b.source.index], people.people[b.target.index]
    matrix = render_aligned(t, 32)[1]
    assert torch.allclose(b.exact, render_aligned(exact_swap(s, t), 32, matrix)[0].image, atol=1 / 255 + 1e-4), 'kept as bytes'
    off = (b.exact - b.target.image).abs().mean((1, 2, 3))
    assert (off[b.same] < 0.01).all() and (off[~b.same] > 0.01).all()
    assert len(b[:2]) == 2 and b[:2].exact.shape[0] == 2 and b.to("cpu").exact.shape == b.exact.shape


def test_only_procedural_people_can_teach(tmp_path, people):
    class Strangers:
        size, person = 32, people.person

        def batch(self, i):
            return people.batch(i)

        def __len__(self):
            return len(people)

    m = fs.FaceShifter(**SMALL, supervised=1.0)
    with pytest.raises(DataError, match="Only procedural"):
        m.loader(Strangers(), 32, 4, 0)
    plain = fs.FaceShifter(**SMALL).loader(people, 32, 4, 0)[0]
    with pytest.raises(DataError, match="no exact swap"):
        m.step(plain.make(0), lambda *a: None)
    with pytest.raises(DataError, match="no pairs"):
        m.step(pictures(), lambda *a: None)


@pytest.mark.parametrize("more", [{}, {"supervised": 10.0, "id": 0.0, "att": 0.0, "rec": 0.0}, {"adv": 0.0, "objective": "least-squares"}])
def test_all_variants_train_and_stay_finite(people, more):
    t = trained(people, **more)
    assert t.status == "done" and all(v == v for row in t.history for v in row.values() if isinstance(v, float))
    assert ("d_adv" in t.history[-1]) == (more.get("adv", 1.0) > 0)


def test_taught_network_comes_nearer_to_the_exact_swap(people):
    "A few steps on few pictures: the loss falls."
    rows = trained(people, 40, supervised=10.0, id=0.0, att=0.0, rec=0.0, adv=0.0, lr=0.005, beta=0.5).history
    assert sum(r["g_supervised"] for r in rows[-5:]) < 0.5 * sum(r["g_supervised"] for r in rows[:5])


def test_run_resumes_to_the_same_weights_and_loads(tmp_path, people):
    def go(out, steps, resume=False):
        return run("faceshifter", people, 32, 4, steps, 0, "cpu", out, resume, options={"width": 2, "ndf": 4}, progress=False, ema=0.9, preview_every=99)

    whole = go(tmp_path / "whole", 4)
    class Stop:
        def on_step(self, trainer):
            if trainer.step == 2:
                trainer.request_stop()

    run("faceshifter", people, 32, 4, 4, 0, "cpu", tmp_path / "half", options={"width": 2, "ndf": 4}, progress=False, ema=0.9, preview_every=99, callbacks=[Stop()])
    half = go(tmp_path / "half", 4, True)
    for a, b in zip(whole.method.generator.parameters(), half.method.generator.parameters()):
        assert torch.equal(a, b)
    m = load_method(tmp_path / "whole", device="cpu")
    for a, b in zip(m.generator.parameters(), whole.averages.networks["generator"].parameters()):
        assert torch.equal(a, b)


def test_swap_takes_any_side_and_one_source_for_all():
    m = fs.FaceShifter(**SMALL).eval()
    s, t = pictures(3, 48), pictures(3, 64)
    assert m.swap(s, t).shape == (3, 3, 32, 32)
    assert torch.allclose(m.swap(s[:1], t)[1:], m.swap(s[:1].expand(3, -1, -1, -1), t)[1:], atol=1e-5)
    with pytest.raises(UsageError, match="2 sources for 3"):
        m.swap(s[:2], t)
    m.train()
    m.swap(s, t)
    assert m.training and not m.who.training, "drawing leaves the mode alone"


def test_the_encoder_always_sees_its_own_framing(task):
    m = fs.FaceShifter(**SMALL)
    seen = []
    look, m.who.see = m.who.see, lambda x: seen.append(look(x)) or seen[-1]
    m.code(task.source)
    m.g_losses(task.target.image, m.code(task.source), torch.zeros(24).bool())
    assert len(seen) == 3 and {x.shape[-1] for x in seen} == {get_encoder("own", "cpu").size}
    assert torch.allclose(seen[0], get_encoder("own", "cpu").see(task.source))


def test_between_goes_from_one_code_to_the_other():
    a, b = F.normalize(torch.randn(6, 9)), F.normalize(torch.randn(6, 9))
    assert torch.allclose(fs.between(a, b, 0.0), a, atol=1e-5) and torch.allclose(fs.between(a, b, 1.0), b, atol=1e-5)
    third = fs.between(a, b, 1 / 3)
    assert torch.allclose(third.norm(dim=1), torch.ones(6), atol=1e-5)
    assert torch.allclose((a * third).sum(1).acos() * 3, (a * b).sum(1).acos(), atol=1e-3), "equal angles"
    assert torch.isfinite(fs.between(a, a, 0.5)).all()


def test_swapper_has_the_house_s_form(task):
    s = fs.FaceShifterSwapper(fs.FaceShifter(**SMALL))
    assert s.size == 32 and s.method == "faceshifter" in METHOD_CODES and get_swapper(s) is s
    t = pictures(2, 80)
    swapped, mask = s(task.source[:2], t, None, CANONICAL5.expand(2, 5, 2) * 80)
    assert swapped.shape == t.shape and mask.shape == (2, 1, 80, 80) and 0 <= mask.min() and mask.max() <= 1 and swapped.abs().max() <= 1
    outline, crop = (fs.FaceShifterSwapper(s.model, mask=k)(task.source[:2], t, None, CANONICAL5.expand(2, 5, 2) * 80)[1] for k in ("outline", "crop"))
    assert outline[:, :, :4].max() == 0, "no hair, no corner"
    assert crop.mean() > outline.mean() and (mask <= crop + 1e-6).all() and mask.mean() < crop.mean()
    for bad in (lambda: fs.FaceShifterSwapper("x"), lambda: fs.FaceShifterSwapper(s.model, mask="all"), lambda: s(None, t)):
        with pytest.raises(UsageError):
            bad()


def test_only_what_the_code_changes_is_pasted(task):
    itself = pictures(2, 32) * 0.5
    swapped = itself.clone()
    swapped[:, :, 8:20, 8:20] += 0.5
    mask = fs.where_changed(swapped, itself)
    assert mask.shape == (2, 1, 32, 32) and mask[:, :, 10:18, 10:18].min() == 1 and mask[:, :, 26:].max() == 0 == mask[:, :, :, 26:].max()
    model = fs.FaceShifter(**SMALL)
    t = task.target.image[:2]
    assert fs.FaceShifterSwapper(model)(t, t)[1].max() == 0, "the same face twice: nothing is changed"
    assert fs.FaceShifterSwapper(model, share=0.0)(task.source[:2], t)[1].max() == 0, "nothing of the source: nothing is changed"


def test_swapper_in_a_photo(task):
    "What `swap_photo` does once both faces are found."
    from PIL import Image

    from deepswap.faces import Face

    source, target = (Image.effect_noise((90, 90), 40).convert("RGB") for _ in range(2))
    face = Face(np.array([15.0, 15, 75, 75]), (CANONICAL5 * 60 + 15).numpy(), 1.0)
    out, crops, mask = swap_face(target, face, source, face, fs.FaceShifterSwapper(fs.FaceShifter(**SMALL)), device="cpu")
    assert out.size == (90, 90) and crops[2].shape == (1, 3, 64, 64) and out.getpixel((0, 0)) == target.getpixel((0, 0))


def test_scores_know_the_exact_swap_from_the_untouched_target(task):
    encoder = get_encoder("own", "cpu")
    exact, untouched = fs.score_swap(task.exact.image, task, encoder), fs.score_swap(task.target.image, task, encoder)
    assert exact["psnr"] > 60 and exact["nearer"] == 1 and exact["retrieval"] > 0.8 and exact["by code"] > 0.9
    assert untouched["psnr"] < 40 and untouched["nearer"] == 0 and untouched["retrieval"] < 0.2 and untouched["by code"] < 0.1
    assert len(task.source) == len(task.known) == 24 and not torch.allclose(task.source, task.known)


def test_training_people_and_test_people_are_strangers(people):
    a, b = people.people.identity.values, fs.sample_people(24, "easy", 920_001, scenes=2).identity.values
    assert torch.cdist(a, b).min() > 0.1 and isinstance(people, AlignedPeople) and issubclass(fs.TaughtPairs, Pairs)


def test_benchmark_mixes_data_sets_and_reads_options(people):
    bench = script("benchmarks/faceshifter.py")
    both = bench.Mixed([people, people])
    assert len(both) == 2 * len(people) and len(both.person.unique()) == 12
    i = torch.tensor([0, len(people), len(people) + 4, 3])
    assert torch.equal(both.batch(i).image, people.batch([0, 0, 4, 3]).image)
    assert bench.value("id=2.5") == ("id", 2.5) and bench.value("encoder=own") == ("encoder", "own")
    with pytest.raises(DeepswapError, match="sets no option"):
        bench.value("nothing=1")


@pytest.mark.slow
def test_benchmark_trains_and_goes_on(tmp_path):
    command = "benchmarks/faceshifter.py --data procedural:n=4,scenes=2,preset=easy --size 32 --width 2 --ndf 4 --batch 4 --device cpu --steps"
    for steps in ("2", "4"):  # the second call goes on, and is told that the run is longer now
        done = subprocess.run([sys.executable, *command.split(), steps, "--out", tmp_path], cwd=Path(__file__).resolve().parents[1], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-500:]
    assert (tmp_path / "score.json").exists() and read_tensors(tmp_path / "last.safetensors", prefix="-")[1]["step"] == 4


def test_exercises_take_the_solutions_and_no_wrong_answer():
    names = {"torch": torch, "F": F, **{k: getattr(fs, k) for k in fs.__all__}}
    exec(toy("42_faceshifter", "best_w"), names)

    def half_collapsed(m):
        for up in m.attributes.up:
            torch.nn.init.zeros_(up[1].weight)

    all_hold("42_faceshifter", names, {
        "goes_as_far": [lambda same, noise: 5 * 0.8 / (1 - same), lambda same, noise: 20],
        "asks_for_the_same": [lambda theirs, same: 2.0, lambda theirs, same: theirs / len(same)],
        "furthest_behind": [(0.24, 5.0), (0.76, 4.07), (0.5, 4.07)],
        "says_nothing": [half_collapsed, lambda m: m.attributes.eval()]})  # fmt: skip



def test_folder_per_person(tmp_path):
    "Photos, one folder for each person: faces are found, aligned and paired."
    drawn = render(fs.sample_people(3, "easy", 3, scenes=2), 192).image
    for k, x in enumerate(drawn):
        place = tmp_path / f"person {k // 2}"
        place.mkdir(exist_ok=True)
        write_image(x, place / f"{k}.png")
    batch = fs.FaceShifter(**SMALL, same=0.5).loader(tmp_path, 32, 4, 0)[0].make(0)
    assert batch.same.sum() == 2 and torch.equal(batch.same, batch.source.person == batch.target.person)
    with pytest.raises(DataError, match="Only procedural"):
        fs.FaceShifter(**SMALL, supervised=1.0).loader(tmp_path, 32, 4, 0)
