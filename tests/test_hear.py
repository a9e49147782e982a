"FaceShifter's second stage: right answers behind occluders, the heuristic error, what each way of drawing and each loss does, what is kept and what is frozen, the swapper, files, and one sentence for each wrong input."

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from common import script
from solved import all_hold, toy

from deepswap import hear as hr
from deepswap.core import DataError, UsageError, WeightsError
from deepswap.cyclegan import psnr
from deepswap.data import Faces, PairLoader
from deepswap.faceshifter import FaceShifter, FaceShifterSwapper, save_faceshifter
from deepswap.identity import get_encoder, identity_faces
from deepswap.people import OCCLUDERS, exact_swap, render, sample_people
from deepswap.provenance import METHOD_CODES
from deepswap.train import Trainer, load_method, run

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def same_dice():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def task():
    return hr.occluded_task(12, 32)


@pytest.fixture(scope="module")
def stage1():
    torch.manual_seed(0)
    return FaceShifter(32, width=2, ndf=4).eval()


@pytest.fixture(scope="module")
def stage1_file(stage1, tmp_path_factory):
    return save_faceshifter(stage1, tmp_path_factory.mktemp("first") / "first.safetensors")


@pytest.fixture(scope="module")
def people():
    faces = identity_faces("procedural:n=6,scenes=3,preset=easy", 32)
    return hr.AlignedPeople(hr.with_occluders(faces.people, 0.5, 1), 32)


def pictures(n=4, size=32):
    return torch.rand(n, 3, size, size) * 2 - 1


def small(stage1, **more):
    return hr.Hear(32, stage1, **{"width": 2} | more)


def trained(method, people, steps=2, **more):
    return Trainer(method, method.loader(people, 32, 4, 0)[0], steps=steps, device="cpu", seed=0, progress=False, log_every=1, **more).fit()


def test_a_share_of_the_people_gets_occluders_of_all_kinds():
    plain = sample_people(400, "easy", 1)
    some, all_ = hr.with_occluders(plain, 0.25, 3), hr.with_occluders(plain, 1.0, 3)
    assert 0.18 < (some.scene.occluder > 0).float().mean() < 0.32 and (all_.scene.occluder > 0).all()
    assert sorted(all_.scene.occluder.unique().tolist()) == list(range(1, len(OCCLUDERS)))
    rest = plain.scene.replace(occluder=0).values, some.scene.replace(occluder=0).values
    assert torch.equal(*rest) and torch.equal(plain.identity.values, some.identity.values) and torch.equal(plain.person, some.person)
    hard = sample_people(50, "hard", 1)
    assert (hard.scene.occluder > 0).any() and (hr.with_occluders(hard, 0.0).scene.occluder == 0).all()


@pytest.mark.parametrize("kind", OCCLUDERS[1:])
def test_right_answer_keeps_the_target_s_occluder_and_swaps_the_rest(kind):
    s, t = sample_people(3, "easy", 5), sample_people(3, "easy", 6)
    s.identity, t.identity = s.identity.replace(skin_tone=0.95), t.identity.replace(skin_tone=0.05)
    t.scene = t.scene.replace(occluder=OCCLUDERS.index(kind), occluder_x=0.2, occluder_y=0.5)
    target, answer = hr.swap_behind(s, t, 64)
    there = hr.occluder_map(target) * hr.occluder_map(answer)
    assert there.sum() > 50
    off = (answer.image - target.image).abs()
    assert (off * there).max() == 0, "the target's pixels, a hand's skin too"
    assert (off * answer.mask * (1 - hr.occluder_map(target))).sum() / answer.mask.sum() > 0.3
    clear = hr.render_aligned(exact_swap(s, t), 64, hr.render_aligned(t, 64)[1])[0]
    assert torch.allclose(answer.image * (1 - there), clear.image * (1 - there))


def test_task_and_scores_know_where_the_occluder_is(task):
    encoder = get_encoder("own", "cpu")
    exact, untouched = (hr.score_occluded(x, task, encoder) for x in (task.exact.image, task.target.image))
    assert min(exact["psnr"], exact["occluder"], exact["elsewhere"]) > 60 and exact["nearer"] == 1
    assert untouched["occluder"] > 40 and untouched["elsewhere"] < 35 and untouched["nearer"] == 0
    lost = task.exact.image * (1 - task.where)
    assert hr.score_occluded(lost, task, encoder)["occluder"] < 15 < 60 < hr.score_occluded(lost, task, encoder)["elsewhere"]
    assert (task.where.sum((1, 2, 3)) > 0).float().mean() > 0.8 and set(task.where.unique().tolist()) == {0.0, 1.0}
    clear = hr.occluded_task(6, 32, share=0.0)
    assert clear.where.sum() == 0 == clear.kind.sum() and hr.score_occluded(clear.target.image, clear, encoder)["occluder"] is None


def test_heuristic_error_is_the_target_minus_its_self_swap(stage1, task):
    t = task.target.image
    assert torch.allclose(hr.heuristic_error(stage1, t), t - stage1.swap(t, t))
    large = hr.resized(t, 80)
    assert hr.heuristic_error(stage1, large).shape == t.shape

    class Perfect:
        config = {"size": 32}

        def swap(self, source, target):
            return target

    assert hr.heuristic_error(Perfect(), t).abs().max() == 0


@pytest.mark.parametrize("size, depth", [(16, 2), (32, 3), (64, 4), (128, 5), (256, 5)])
@pytest.mark.parametrize("out", hr.HEARNet.OUT)
def test_network_keeps_the_shape_at_every_size(size, depth, out):
    net = hr.HEARNet(size, 2, out).eval()
    y = net(*pictures(6, size).split(2))
    assert y.shape == (2, 3, size, size) and len(net.down) == depth and torch.isfinite(y).all()


def test_untrained_it_changes_nothing_or_nearly_nothing():
    swap, error, target = pictures(6).split(2)
    assert torch.equal(hr.HEARNet(32, 2, "add")(swap, error), swap)
    moved = hr.HEARNet(32, 2, "gate")(swap, error, target) - swap
    assert torch.allclose(moved, torch.sigmoid(torch.tensor(-3.0)) * (target - swap), atol=1e-6)
    assert (hr.HEARNet(32, 2, "paint")(swap, error) - swap).abs().mean() > 0.1


def test_gate_goes_from_the_swap_to_the_target():
    swap, error, target = pictures(6).split(2)
    net = hr.HEARNet(32, 2, "gate")
    for bias, end in ((-40.0, swap), (40.0, target)):
        torch.nn.init.constant_(net.last.bias, bias)
        assert torch.allclose(net(swap, error, target), end, atol=1e-6)


@pytest.mark.parametrize("out", hr.HEARNet.OUT)
def test_every_weight_learns_and_both_inputs_count(out):
    net, (swap, error, target) = hr.HEARNet(32, 2, out), pictures(12).split(4)
    torch.nn.init.normal_(net.last.weight, 0, 0.1)
    net(swap, error, target).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for n, p in net.named_parameters() if "bias" not in n)
    net.eval()
    assert not torch.allclose(net.drawn(swap, error), net.drawn(swap, -error)) and not torch.allclose(net.drawn(swap, error), net.drawn(-swap, error))


@pytest.mark.parametrize("make, word", [(lambda: hr.HEARNet(out="draw"), "paint, add, gate"), (lambda: hr.HEARNet(48), "48"), (lambda: hr.HEARNet(width=0), "width 0"),
                                        (lambda: hr.HEARNet(32, 2)(pictures(2, 16), pictures(2, 16)), "16, 16"), (lambda: hr.HEARNet(32, 2, "gate")(pictures(), pictures()), "give the target")])
def test_wrong_networks_and_inputs_get_a_sentence(make, word):
    with pytest.raises(UsageError, match=word):
        make()


def test_losses_are_the_paper_s(stage1, people):
    m = small(stage1, kind="paint", id=1.0, chg=1.0, rec=1.0)
    b = m.loader(people, 32, 4, 0)[0].make(0)
    m.net.eval()
    code = m.faceshifter.code(b.source.image)
    found = m.losses(b, code)
    y = m.net(b.swap, b.error)
    by_hand = {"id": (1 - (m.faceshifter.who.embed(y) * code).sum(1)).mean(), "chg": (y - b.swap).abs().mean(),
               "rec": sum(0.5 * (y[k] - b.target.image[k]).square().mean() for k in range(4) if b.same[k]) / 2}
    assert found.keys() == by_hand.keys() and b.same.sum() == 2
    for k, v in by_hand.items():
        assert found[k][0] == 1 and torch.allclose(found[k][1], v, atol=1e-6), k


def test_presets_switch_what_they_name(stage1, people):
    assert hr.Hear(32, stage1, width=2, **hr.Hear.presets["paper"]).config["rec"] == 1
    m = hr.Hear(32, stage1, width=2, **hr.Hear.presets["taught"])
    b = m.loader(people, 32, 4, 0)[0].make(0)
    found = m.losses(b, m.faceshifter.code(b.source.image))
    assert found.keys() == {"id", "supervised"} and m.net.out == "gate"


@pytest.mark.parametrize("bad, word", [({"rec": 0.0}, "rec or supervised"), ({"chg": -1.0}, "chg -1"), ({"same": 2.0}, "same is 2"), ({"occluders": -0.5}, "occluders -0.5"), ({"lr": 0.0}, "lr is 0"), ({"kind": "x"}, "choose one of")])
def test_settings_out_of_range_get_a_sentence(stage1, bad, word):
    with pytest.raises(UsageError, match=word):
        small(stage1, **bad)


def test_size_must_be_the_first_stage_s(stage1):
    with pytest.raises(UsageError, match="draws 32 pixels a side, and 64"):
        hr.Hear(64, stage1)


@pytest.mark.parametrize("taught", [False, True])
def test_pairs_hold_swap_error_and_answer_and_are_drawn_once(stage1, people, taught):
    loader = hr.HearLoader(people, stage1, 6, 0.5, 1, taught=taught)
    b = loader.make(0)
    s, t = b.source.image, b.target.image
    assert (b.swap - stage1.swap(s, t)).abs().max() < 0.01 and (b.error - hr.heuristic_error(stage1, t)).abs().max() < 0.01
    assert (b.exact is not None) == taught
    if taught:
        answer = hr.swap_behind(people.people[b.source.index], people.people[b.target.index], 32)[1].image
        assert (b.exact - answer).abs().max() < 0.01
    drawn = []
    loader.draw = lambda pairs: drawn.append(len(pairs)) or hr.HearLoader.draw(loader, pairs)
    again = loader.make(0)
    assert not drawn and torch.equal(again.swap, b.swap) and torch.equal(again.source.index, b.source.index)
    partners = {}
    for p in range(0, 2 * len(people), 6):  # two epochs
        for i, j in zip((x := loader.make(p)).target.index.tolist(), x.source.index.tolist()):
            assert partners.setdefault(i, j) == j
    assert sum(drawn) == len(people) - 6, "each target once"


def test_without_keeping_sources_change(stage1, people):
    loader = hr.HearLoader(people, stage1, 6, 0.5, 1, keep=False)
    found = [{int(t): int(s) for p in range(0, len(people), 6) for b in [loader.make(p + start)] for s, t in zip(b.source.index, b.target.index)} for start in (0, len(people))]
    assert found[0] != found[1] and len(found[0]) == len(people)
    b = loader.make(0)
    assert torch.equal(b.same, b.source.person == b.target.person) and b.same.sum() == 3 and len(b[:2]) == 2 and b[:2].exact is None


def test_training_moves_the_second_stage_alone(stage1, people):
    m = small(stage1)
    before = {n: p.clone() for n, p in m.named_parameters()}
    stats = {n: b.clone() for n, b in m.faceshifter.named_buffers()}
    t = trained(m, people)
    moved = {n for n, p in m.named_parameters() if not torch.equal(p, before[n])}
    assert moved and all(n.startswith("net.") for n in moved)
    assert all(torch.equal(b, stats[n]) for n, b in m.faceshifter.named_buffers()) and not m.faceshifter.training
    assert {"id", "chg", "rec"} <= t.history[-1].keys()


def test_it_learns_to_bring_back_what_is_lost(stage1):
    "A first stage that can't draw a bright square in the corner; the square is in the error, and comes back after some steps."
    net = hr.HEARNet(16, 4, "add")
    opt = torch.optim.Adam(net.parameters(), 0.01)

    def batch(n=16):
        swap, target = pictures(n, 16) * 0.3, torch.zeros(n, 3, 16, 16)
        i = torch.randint(0, 10, (n,))
        for k in range(n):
            target[k, :, i[k] : i[k] + 5, i[k] : i[k] + 5] = 1.0
        return swap, target

    off = []
    for _ in range(80):
        swap, lost = batch()
        answer = torch.where(lost > 0, lost, swap)
        loss = (net(swap, lost) - answer).square().mean()
        opt.zero_grad()
        loss.backward()
        opt.step()
        off.append((loss / (swap - answer).square().mean()).item())
    assert np.mean(off[-10:]) < 0.2 * off[0]


@pytest.mark.parametrize("break_it, word", [(lambda m, b: m.step(b.source.image, None), "no swaps and errors"), (lambda m, b: m.step(b, None), "no exact swap")])
def test_wrong_batches_get_a_sentence(stage1, people, break_it, word):
    m = small(stage1, supervised=1.0)
    b = small(stage1).loader(people, 32, 4, 0)[0].make(0)
    with pytest.raises(DataError, match=word):
        break_it(m, b)


def test_only_procedural_people_can_teach(stage1, people):
    class Strangers(Faces):
        size, person = 32, people.person

        def __init__(self):
            self.skipped = []

        def batch(self, i):
            return people.batch(i)

        def __len__(self):
            return len(people)

    with pytest.raises(DataError, match="Only procedural"):
        small(stage1, supervised=1.0).loader(Strangers(), 32, 4, 0)
    b = small(stage1).loader(Strangers(), 32, 4, 0)[0].make(0)
    assert isinstance(hr.HearLoader(Strangers(), stage1), PairLoader) and b.exact is None and b.swap.shape == (4, 3, 32, 32)


def test_swap_is_both_stages(stage1, task):
    m = small(stage1, kind="add").eval()
    torch.nn.init.normal_(m.net.last.weight, 0, 0.1)
    s, t = task.source[:3], task.target.image[:3]
    first = stage1.swap(s, t)
    with torch.no_grad():
        assert torch.allclose(m.swap(s, t), m.net(first, hr.heuristic_error(stage1, t)).clamp(-1, 1), atol=1e-6)
    assert not torch.allclose(m.swap(s, t), first)
    assert m.swap(s[:1], hr.resized(t, 50)).shape == (3, 3, 32, 32)
    assert torch.allclose(m.swap(s[:1], t)[1], m.swap(s[:1], t[1:2])[0], atol=1e-4)
    m.net.train()
    m.swap(s, t)
    assert m.net.training, "the mode comes back"
    with pytest.raises(UsageError, match="2 sources for 3"):
        m.swap(s[:2], t)


@pytest.mark.parametrize("out", hr.HEARNet.OUT)
def test_swapper(stage1, task, out):
    m = small(stage1, kind=out).eval()
    torch.nn.init.normal_(m.net.last.weight, 0, 0.1)
    s = hr.HearSwapper(m, feather=0.1)
    assert isinstance(s, FaceShifterSwapper) and s.method == "hear" and s.method in METHOD_CODES and (s.size, s.feather, s.mask) == (32, 0.1, "changed")
    t, paste = hr.resized(task.target.image[:2], 48), lambda t, out: t + out[1] * (out[0] - t)
    swapped, mask = s(task.source[:2], t, None, task.target.landmarks[:2] * 1.5)
    assert swapped.shape == (2, 3, 48, 48) and mask.shape == (2, 1, 48, 48) and 0 <= mask.min() and mask.max() <= 1
    small_t, whole = task.target.image[:2], hr.HearSwapper(m, mask="crop", feather=1e-3)
    there = hr.where_to_paste(small_t, feather=1e-3, outline=False) == 1
    assert ((paste(small_t, whole(task.source[:2], small_t)) - m.swap(task.source[:2], small_t)).abs() * there).max() < 1e-4, "pasted, it is what `swap` gives"
    assert hr.HearSwapper(m)(small_t, small_t)[1].max() == 0 == hr.HearSwapper(m, share=0.0)(task.source[:2], small_t)[1].max(), "nothing is changed"


def test_untrained_the_swapper_is_the_first_stage_s(stage1, task):
    t, points = hr.resized(task.target.image[:2], 48), task.target.landmarks[:2] * 1.5
    for more in ({}, {"mask": "outline"}, {"share": 0.5}):
        a, b = (f(task.source[:2], t, None, points) for f in (hr.HearSwapper(small(stage1).eval(), **more), FaceShifterSwapper(stage1, **more)))
        assert torch.allclose(a[0], b[0], atol=1e-5) and torch.allclose(a[1], b[1], atol=1e-4)


def test_what_the_gate_keeps_is_as_sharp_as_the_photograph(stage1, task):
    m = small(stage1, kind="gate").eval()
    torch.nn.init.constant_(m.net.last.bias, 40.0)
    t = pictures(2, 96)
    swapped, mask = hr.HearSwapper(m, mask="crop")(task.source[:2], t)
    assert torch.equal(t + mask * (swapped - t), t) and m.gate(*pictures(4).split(2)).min() == 1
    with pytest.raises(UsageError, match="has no gate"):
        small(stage1).gate(*pictures(4).split(2))


@pytest.mark.parametrize("bad", [lambda m: hr.HearSwapper(m.faceshifter), lambda m: hr.HearSwapper(m, mask="all"), lambda m: hr.HearSwapper(m)(None, pictures())])
def test_swapper_refuses_in_a_sentence(stage1, bad):
    with pytest.raises(UsageError):
        bad(small(stage1))


def test_files_hold_the_second_stage_alone(stage1, stage1_file, task, tmp_path):
    m = small(stage1_file).eval()
    torch.nn.init.normal_(m.net.last.weight, 0, 0.1)
    path = hr.save_hear(m, tmp_path / "second.safetensors", {"steps": 0})
    again = hr.load_hear(path, "cpu")
    s, t = task.source[:3], task.target.image[:3]
    assert (again.swap(s, t) - m.swap(s, t)).abs().max() < 0.02 and not again.training
    assert path.stat().st_size < 2.2 * sum(v.numel() for v in m.net.state_dict().values()) + 20_000
    torch.manual_seed(1)
    other = FaceShifter(32, width=2, ndf=4).eval()
    assert not torch.allclose(hr.load_hear(path, "cpu", faceshifter=other).swap(s, t), again.swap(s, t), atol=1e-3)


def test_bad_files_get_a_sentence(stage1, stage1_file, tmp_path):
    m = small(stage1)
    path = hr.save_hear(m, tmp_path / "second.safetensors")
    with pytest.raises(WeightsError, match="does not say which FaceShifter"):
        hr.load_hear(path)
    assert isinstance(hr.load_hear(path, "cpu", faceshifter=stage1), hr.Hear)
    with pytest.raises(WeightsError, match="holds no HEAR-Net"):
        hr.load_hear(stage1_file)
    with pytest.raises(WeightsError, match="no checkpoint"):
        hr.load_hear(tmp_path / "none.safetensors")
    whole = path.read_bytes()
    path.write_bytes(whole[:-500])
    with pytest.raises(WeightsError, match="can't be read"):
        hr.load_hear(path, faceshifter=stage1)
    path.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
    with pytest.raises(WeightsError, match="damaged"):
        hr.load_hear(path, faceshifter=stage1)


def test_trained_by_name_goes_on_and_is_loaded_from_its_run(stage1_file, tmp_path, task):
    options = {"faceshifter": str(stage1_file), "width": 2}
    a = run("hear", "procedural:n=4,scenes=2,preset=easy", 32, 4, 2, 0, "cpu", tmp_path / "a", options=options, progress=False, ema=0.9)
    b = run("hear", "procedural:n=4,scenes=2,preset=easy", 32, 4, 4, 0, "cpu", tmp_path / "a", resume=True, options=options, progress=False, ema=0.9)
    assert (a.step, b.step) == (2, 4) and list((tmp_path / "a").rglob("*.jpg"))
    m = hr.load_hear(tmp_path / "a", "cpu")
    assert all(torch.equal(x, y) for x, y in zip(m.net.parameters(), b.averages.networks["net"].parameters()))
    assert torch.equal(m.swap(task.source[:2], task.target.image[:2]), load_method(tmp_path / "a", device="cpu").swap(task.source[:2], task.target.image[:2]))


def test_interrupted_training_equals_one_that_ran_through(stage1, people, tmp_path):
    from common import Stop

    one = trained(small(stage1), people, 4)
    trained(small(stage1), people, 4, out=tmp_path, callbacks=[Stop(2)])
    m = small(stage1)
    two = Trainer(m, m.loader(people, 32, 4, 0)[0], steps=4, device="cpu", seed=0, progress=False, log_every=1, out=tmp_path).resume().fit()
    assert two.step == 4 and all(torch.equal(x, y) for x, y in zip(one.method.net.parameters(), two.method.net.parameters()))


def test_folder_per_person(stage1, tmp_path):
    "Photos: no right answer is known, and the paper's losses ask for none."
    from deepswap.core import write_image

    for k, x in enumerate(render(sample_people(3, "easy", 3, scenes=2), 192).image):
        place = tmp_path / f"person {k // 2}"
        place.mkdir(exist_ok=True)
        write_image(x, place / f"{k}.png")
    batch = small(stage1).loader(tmp_path, 32, 4, 0)[0].make(0)
    assert isinstance(batch, hr.HearPairs) and batch.same.sum() == 2 and batch.exact is None


def test_shipped_weights_bring_back_what_the_shipped_first_stage_loses():
    path = hr.WEIGHTS / f"{hr.HEAR}.safetensors"
    if not path.exists():
        pytest.skip("no HEAR-Net is shipped")
    assert path.stat().st_size < 3.4e6
    m, task, encoder = hr.load_hear(device="cpu"), hr.occluded_task(24, 64, seed=940_001), get_encoder("own", "cpu")
    first = m.faceshifter.swap(task.source, task.target.image)
    alone, both = (hr.score_occluded(x, task, encoder) for x in (first, m.swap(task.source, task.target.image)))
    assert both["occluder"] > alone["occluder"] + 2 and both["psnr"] > alone["psnr"] and both["retrieval"] > alone["retrieval"] - 0.1


def test_exercises_take_the_solutions_and_no_wrong_answer():
    names = {"torch": torch, "F": F, "math": math, "psnr": psnr, "task": hr.occluded_task(6, 32), "reconstruction_loss": hr.reconstruction_loss, **{k: getattr(hr, k) for k in hr.__all__}}
    exec(toy("43_hear", "best_pixel"), names)

    def mean_error(net):
        with torch.no_grad():
            net.last.weight[:, -3:, 1, 1] = 1 / 3

    nearer = lambda s, t, r: ((t - r).square().sum(1, keepdim=True) < (s - r).square().sum(1, keepdim=True)).float()
    free = lambda s, t, r: ((r - s) * (t - s)).sum(1, keepdim=True) / (t - s).square().sum(1, keepdim=True)
    all_hold("43_hear", names, {
        "comes_back": [lambda short, chg: (1 / short, short), lambda short, chg: (2 * chg / short, short / 2), lambda short, chg: (chg / short, 2 * short)],
        "gives_the_target_back": [mean_error, lambda net: net.eval()],
        "hidden_by_the_rest": [lambda p: 1 / p, lambda p: 13.0, lambda p: -20 * math.log10(p)],
        "opens_best": [nearer, free, lambda s, t, r: free(s, t, r).clamp(0, 1)]})  # fmt: skip



@pytest.mark.slow
def test_benchmark_records_whole_tables(tmp_path):
    bench = script("benchmarks/hear.py")
    settings = {"steps": 2, "hear_steps": 2, "people": 8, "n": 6}
    found = bench.record_blind(tmp_path, **settings)
    assert found["rows"].keys() == {"target untouched", "FaceShifter", "error added", "gate on the error", *bench.KINDS, "exact swap"}
    assert bench.record_blind(tmp_path, **settings) == found, "runs that are there are not trained again"
