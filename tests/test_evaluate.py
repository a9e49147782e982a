"The one table: who meets whom, retrieval that can say no, measures against the right answer, a report that goes on where it stopped, real pictures, and one sentence for each wrong input."

import json

import pytest
import torch
import torch.nn.functional as F
from common import script
from solved import all_hold, toy

from deepswap import evaluate as ev
from deepswap.autoencoder import pair_task
from deepswap.core import DataError, DeepswapError, OutputError, UsageError, write_image
from deepswap.people import PARTS, People, render, sample_people

pytestmark = pytest.mark.usefixtures("one_thread")


class Colours(torch.nn.Module):
    "Stands for an encoder: a face's mean colours in a few places."
    dim = 48

    def embed(self, x):
        middle = F.adaptive_avg_pool2d(x[..., x.shape[-1] // 3 :, x.shape[-1] // 4 : -x.shape[-1] // 4], 4).flatten(1)
        return F.normalize(middle - middle.mean(1, keepdim=True))


class Reader:
    "Stands for a reader of pose and expression."

    def pose(self, x):
        return 30 * x.mean((2, 3))

    def expression(self, x):
        return F.adaptive_avg_pool2d(x.mean(1, keepdim=True), (2, 3)).flatten(1)


ENCODERS, READER = {"judge": Colours()}, Reader()
WAYS = {"encoders": ENCODERS, "reader": READER}


def whole(target):
    return torch.ones_like(target[:, :1])


def keep(source, target):
    return target.clone(), whole(target)


def paste(source, target):
    return source.clone(), whole(target)


@pytest.fixture(scope="module")
def task():
    return ev.evaluation_task("normal", 4, 32, 12)


@pytest.fixture(scope="module")
def hidden():
    return ev.evaluation_task("occluded", 4, 32, 8)


def test_a_task_is_the_same_every_time_and_the_gallery_is_as_large_as_asked_for(task):
    again = ev.evaluation_task("normal", 4, 32, 12)
    assert torch.equal(again.exact.image, task.exact.image) and torch.equal(again.known, task.known)
    assert len(task.source) + len(task.target) + len(task.strangers) == 12
    assert not torch.equal(ev.evaluation_task("normal", 4, 32, 12, seed=5).source, task.source)


def test_light_meets_dark():
    tone = {role: ev.crowd("cross-skin", role, 6, 1).identity.skin_tone for role in ("source", "target")}
    assert ((tone["source"] < 0.25) == torch.tensor([True, False] * 3)).all() and ((tone["target"] > 0.7) == torch.tensor([True, False] * 3)).all()
    assert (tone["source"] - tone["target"]).abs().min() > 0.4


def test_who_wears_something_meets_a_bare_face():
    worn = lambda role: torch.stack([getattr(ev.crowd("cross-attribute", role, 8, 1).style, k) > 0 for k in ("glasses", "beard", "makeup")]).sum(0)
    source, target = worn("source"), worn("target")
    assert ((source > 0) != (target > 0)).all() and source.max() == 2
    assert sorted({0, 2} & set(source.tolist())) == [0, 2]


def test_something_hides_the_face_and_stays_in_the_right_answer(hidden):
    covered = hidden.drawn.parts == PARTS.index("occluder")
    assert (ev.hidden_face(hidden).sum((1, 2, 3)) > 4).sum() >= 3 and not ev.hidden_face(hidden)[~covered[:, None]].any()
    held = [0, 1, 3]  # the third wears a mask, which sits as the new face wants it
    assert torch.equal((hidden.exact.parts == PARTS.index("occluder"))[held], covered[held])


def test_known_pictures_show_the_same_person_in_another_style():
    people = ev.crowd("normal", "source", 5, 3, 2)
    assert torch.equal(people.identity.values[0::2], people.identity.values[1::2])
    assert (people.style.values[0::2] != people.style.values[1::2]).any(1).all()


def test_nobody_is_on_both_sides(task):
    everybody = [ev.crowd(p, role, 12, ev.FIRST_SEED + 100 * ev.PROTOCOLS.index(p) + 10 * (role == "target")).identity.values for p in ev.PROTOCOLS[:4] for role in ("source", "target")]
    rows = torch.cat(everybody)
    assert len(rows.unique(dim=0)) == len(rows)


def test_the_pair_goes_both_ways():
    pair = pair_task(32, 8, 3)
    t = ev.pair_evaluation(pair, 6)
    assert len(t) == 6 and t.person.tolist() == [1, 1, 1, 0, 0, 0] and t.was.tolist() == [0, 0, 0, 1, 1, 1]
    assert torch.equal(t.target[t.groups["b"]], pair.test_a.image) and torch.equal(t.exact.image[t.groups["a"]], pair.exact_ba.image)
    called = []
    swappers = {to: lambda s, x, to=to: (called.append((to, len(x))), keep(s, x))[1] for to in "ba"}
    out = ev.swap_all(swappers, t)[0]
    assert called == [("b", 3), ("a", 3)] and torch.equal(out, t.target)


def test_the_line_up_names_the_right_face_only(task):
    assert ev.line_up(task.exact.image, task) == 1
    for wrong in (task.target, ev.dequantise(task.decoys[0])):
        assert ev.line_up(wrong, task) == 0
    redder = task.exact.image + torch.tensor([0.2, 0.0, -0.1]).view(3, 1, 1) * task.face
    assert ev.line_up(redder.clamp(-1, 1), task) > 0.7 and task.decoys.shape == (1, 4, 3, 32, 32)
    assert ev.evaluation_task("normal", 4, 32, 8, decoys=0).decoys is None


def test_retrieval_knows_the_source_the_target_and_nobody(task):
    share = lambda x: ev.retrieval(x, task, ENCODERS["judge"])
    assert share(task.source)["same picture"] == 1 and share(task.known)["retrieval"] == 1
    nothing = share(task.target)
    assert nothing["retrieval"] == nothing["same picture"] == nothing["by code"] == 0 and nothing["to target"] == pytest.approx(1, abs=1e-5)
    assert share(task.known)["by code"] == 1
    assert share(task.source.roll(1, 0))["same picture"] == 0
    stranger = task.strangers[:1].expand(4, -1, -1, -1)
    assert share(stranger)["retrieval"] == 0


def test_the_other_frames_of_a_person_count_as_right():
    x = torch.rand(3, 3, 32, 32) * 2 - 1
    t = ev.EvalTask("clip", x, x.flip(0), None, torch.tensor([0, 0, 1]), torch.empty(0, 3, 32, 32), whole(x), known=x, was=torch.tensor([1, 0, 0]))
    assert ev.retrieval(x[[1, 0, 2]], t, Colours())["same picture"] == 1


def test_what_counts_is_the_picture_in_its_mask(task):
    half = whole(task.target) * (torch.arange(32) < 16).view(1, 1, 1, 32)
    out, seconds = ev.swap_all(lambda s, t: (s, half[: len(t)]), task, chunk=3)
    assert torch.allclose(out[..., :16], task.source[..., :16], atol=1e-6) and torch.equal(out[..., 16:], task.target[..., 16:]) and seconds > 0


def test_a_swapper_gets_the_landmarks_it_takes(task):
    seen = {}

    def one(source, target, target_landmarks=None):
        seen["points"] = target_landmarks
        return keep(source, target)

    ev.swap_all(one, task)
    assert torch.equal(seen["points"], task.points[1])
    ev.swap_all(keep, task)


def test_the_exact_swap_is_perfect_and_the_source_is_not(task):
    best, worst = ev.measure(task.exact.image, task, **WAYS), ev.measure(paste, task, **WAYS)
    assert best["psnr"] > 90 and best["ssim"] > 0.999 and best["perceptual"] < 1e-6 and best["nearer"] == 1
    assert worst["psnr"] < 25 and worst["ssim"] < 0.8 and worst["perceptual"] > 0.1 and worst["pose"] > 0.5
    assert worst["judge: same picture"] == 1 and "ms" in worst and "ms" not in best


def test_nothing_moves_where_nothing_is_done(task):
    numbers = ev.measure(keep, task, **WAYS)
    assert numbers["pose"] == numbers["expression"] == numbers["points"] == numbers["nearer"] == 0
    assert numbers["detail"] == pytest.approx(1) and numbers["judge: to target"] == pytest.approx(1, abs=1e-5)


def test_blur_loses_detail_and_noise_shows_in_the_set(task):
    soft = F.interpolate(F.avg_pool2d(task.target, 4), scale_factor=4.0, mode="bilinear")
    assert ev.measure(soft, task, **WAYS)["detail"] < 0.5
    noisy = (task.target + 0.5 * torch.randn(task.target.shape, generator=torch.Generator().manual_seed(0))).clamp(-1, 1)
    assert ev.measure(noisy, task, **WAYS)["fid"] > ev.measure(task.target, task, **WAYS)["fid"]


def test_what_hides_the_face_is_measured_where_there_is_something(task, hidden):
    assert "covered" not in ev.measure(keep, task, **WAYS)
    gone = hidden.target.clone()
    gone[(ev.hidden_face(hidden) > 0).expand_as(gone)] = 1.0
    kept, lost = (ev.measure(x, hidden, **WAYS)["covered"] for x in (hidden.exact.image, gone))
    assert kept > 60 > 30 > lost


def test_a_trembling_clip_trembles():
    people = sample_people(1, "easy", 4)
    still = render(people, 64).image.expand(6, -1, -1, -1)
    shaken = torch.stack([x.roll(int(k), -1) for x, k in zip(still, (0, 3, 0, 3, 0, 3))])
    t = ev.EvalTask("clip", still, shaken, None, torch.zeros(6).long(), torch.empty(0, 3, 64, 64), whole(still), was=torch.ones(6).long(), encoders=ENCODERS, sequence=True)
    assert ev.measure(keep, t, reader=READER)["jitter"] == pytest.approx(1)
    assert ev.measure(paste, t, reader=READER)["jitter"] < 0.2


def test_the_judge_is_new_and_knows_people():
    judge = ev.judge_encoder(50, 2)
    assert judge.dim == 32 and ev.judge_encoder(50, 2) is judge
    kept = ev.judge_encoder.__wrapped__(50, 2)
    assert torch.equal(kept.net.linear.weight, judge.net.linear.weight)
    same = ev.crowd("normal", "source", 20, 77, 2)
    from deepswap.autoencoder import render_aligned

    codes = judge.embed(render_aligned(same, 64)[0].image)
    assert ((codes[0::2] @ codes[1::2].T).argmax(1) == torch.arange(20)).float().mean() > 0.2
    state = torch.random.get_rng_state()
    ev._solved(ev.judge_people(50, 2, 5), 4)
    assert torch.equal(torch.random.get_rng_state(), state)


def report(**numbers):
    return ev.Report({}, [{"protocol": "p", "method": m, "print": "", "numbers": v} for m, v in numbers.items()])


def test_the_best_is_bold_and_floor_and_ceiling_are_not():
    r = report(untouched={"pose": 0.0, "nearer": 0.0}, one={"pose": 2.0, "nearer": 0.9}, two={"pose": 1.0, "nearer": 0.5, "kid": 0.1}, **{"exact swap": {"pose": 0.5, "nearer": 1.0}})
    assert r.best("p", "pose") == ["two"] and r.best("p", "nearer") == ["one"]
    lines = r.table().splitlines()
    assert lines[0] == "| p | nearer to the source | pose, degrees | KID |"
    assert lines[2:] == ["| *untouched* | 0.0% | 0.0 |  |", "| one | **90.0%** | 2.0 |  |", "| two | 50.0% | **1.0** | **0.100** |", "| *exact swap* | 100.0% | 0.5 |  |"]


def test_columns_can_be_chosen():
    r = report(one={"judge: retrieval": 0.5, "own: same picture": 0.7, "psnr": 20.0, "points": 3.0})
    assert r.main_keys("p") == ["judge: retrieval", "psnr"] and r.table("p", ["points"]).splitlines()[2] == "| one | **3.00** |"
    with pytest.raises(UsageError, match="no column 'x'"):
        r.table("p", ["x"])
    with pytest.raises(UsageError, match="was not measured"):
        r.table("q")


@pytest.fixture
def counted(task):
    calls = []

    def swapper(source, target):
        calls.append(len(target))
        return keep(source, target)

    return swapper, calls


def test_an_evaluation_goes_on_where_it_stopped(task, counted, tmp_path):
    swapper, calls = counted

    def breaks(source, target):
        raise OutputError("The disk is full.")

    with pytest.raises(OutputError):
        ev.evaluate({"one": swapper, "two": breaks}, [task], out=tmp_path, **WAYS)
    assert [x["method"] for x in ev.open_report(tmp_path).lines] == ["untouched", "one"] and not (tmp_path / "tables.md").exists()
    done = ev.evaluate({"one": swapper, "two": paste}, [task], out=tmp_path, **WAYS)
    assert calls == [4] and [x["method"] for x in done.lines] == ["untouched", "one", "two", "exact swap"]
    assert {p.name for p in tmp_path.iterdir()} == {"evaluate.json", "samples.safetensors", "tables.md", "plot.jpg", "sheet-normal.jpg"}
    again = ev.open_report(tmp_path)
    assert again.lines == done.lines and {k: v.shape for k, v in again.samples.items()} == {k: v.shape for k, v in done.samples.items()}


def test_other_settings_are_not_mixed(task, tmp_path):
    ev.evaluate({"one": keep}, [task], out=tmp_path, **WAYS)
    with pytest.raises(UsageError, match="holds an evaluation with n 128, and 64"):
        ev.evaluate({"one": keep}, [task], n=64, out=tmp_path, **WAYS)


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight, self.calls = torch.nn.Parameter(torch.zeros(1)), 0


class Held:
    def __init__(self):
        self.model, self.calls = Net(), 0

    def __call__(self, source, target):
        self.calls += 1
        return keep(source, target)


def test_a_method_with_new_weights_is_measured_again(task, tmp_path):
    held = Held()
    for calls, change in ((1, 0.0), (1, 0.0), (2, 1.0)):
        held.model.weight.data += change
        r = ev.evaluate({"net": held}, [task], out=tmp_path, **WAYS)
        assert held.calls == calls and len(r.lines) == 3
    assert ev.fingerprint(keep) == "" != ev.fingerprint(held) == ev.fingerprint({"b": held})


def test_progress_grows_to_one(task):
    seen = []
    ev.evaluate({"one": keep}, [task], progress=lambda share, text: seen.append((share, text)), **WAYS)
    assert [s for s, _ in seen] == sorted(s for s, _ in seen) and seen[-1] == (1.0, "Done")
    assert any("Measuring one on normal" in t for _, t in seen)


def test_figures_are_drawn_and_described(task):
    r = ev.evaluate({"one": keep, "two": paste}, [task], **WAYS)
    assert r.plot().jpeg()[:2] == r.sheet().jpeg()[:2] == b"\xff\xd8"
    assert "two" in r.sheet().alt and "pose" in r.plot().alt
    with pytest.raises(UsageError, match="no pictures"):
        ev.Report({}, r.lines).sheet("normal")


@pytest.mark.parametrize(
    "call, error, text",
    [
        (lambda: ev.evaluation_task("nobody"), UsageError, "choose one of normal"),
        (lambda: ev.evaluation_task("normal", 1), UsageError, "2 pairs or more"),
        (lambda: ev.evaluation_task("normal", 8, gallery=10), UsageError, "gallery of 16"),
        (lambda: ev.judge_encoder(50, 1), UsageError, "2 pictures or more"),
        (lambda: ev.evaluate({}), UsageError, "give one or more"),
        (lambda: ev.evaluate({"untouched": keep}), UsageError, "names other than"),
        (lambda: ev.open_report("nowhere"), DataError, "no report of an evaluation"),
        (lambda: ev.photo_task("nowhere", None), UsageError, "an encoder that was trained on photographs"),
        (lambda: ev.photo_task("nowhere", "own"), DataError, "There is no folder nowhere"),
        (lambda: ev.clip_task(["one.mp4"], "own"), UsageError, "give a source, or two clips"),
    ],
)
def test_one_sentence(call, error, text):
    with pytest.raises(error, match=text) as caught:
        call()
    assert isinstance(caught.value, DeepswapError) and str(caught.value).count(". ") == 0 and str(caught.value).endswith(".")


def test_a_folder_without_faces_is_refused(tmp_path):
    for k in range(4):
        write_image(torch.full((3, 64, 64), 0.1 * k), tmp_path / f"{k}.png")
    with pytest.raises(DataError, match="0 pairs of faces"):
        ev.photo_task(tmp_path, "own", size=64)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    "Six drawn people, two pictures of each."
    root = tmp_path_factory.mktemp("faces")
    people = ev.crowd("normal", "source", 6, 42, 2)
    people = People(people.identity, people.style.replace(glasses=0.0, hat=0.0), people.scene, people.person)
    for k, x in enumerate(render(people, 160).image):
        folder = root / ("first", "second")[k % 2]
        folder.mkdir(exist_ok=True)
        write_image(x, folder / f"{k // 2}.png")
    return root


def test_folders_of_photos_become_pairs(folders):
    t = ev.photo_task(folders / "first", "own", others=folders / "second", size=64)
    assert len(t) == 3 and t.exact is None and len(t.known) == 3 and list(t.encoders) == ["own"]
    numbers = ev.measure(keep, t)
    assert numbers["own: retrieval"] == 0 and "psnr" not in numbers and "pose" not in numbers and "expression" not in numbers
    assert ev.measure(paste, t)["own: retrieval"] == 1
    r = ev.evaluate({"one": keep}, [t])
    assert [x["method"] for x in r.lines] == ["untouched", "one"] and r.table().startswith("| photos |")


def test_photographs_of_the_shared_folder(shared):
    data = shared / "data"
    t = ev.photo_task(data / "london" / "neutral", data / "weights" / "mobilefacenet_foamliu.safetensors", others=data / "london" / "smiling", n=4, size=64)
    numbers = {k: ev.measure(f, t) for k, f in (("keep", keep), ("paste", paste))}
    name = "mobilefacenet_foamliu"
    assert numbers["keep"][f"{name}: retrieval"] == 0 and numbers["paste"][f"{name}: retrieval"] == 1
    assert numbers["paste"]["points"] > numbers["keep"]["points"] == 0


def test_clips_of_the_shared_folder(shared):
    files = sorted((shared / "data" / "video").glob("*.mpg"))[:2]
    t = ev.clip_task(files, shared / "data" / "weights" / "mobilefacenet_foamliu.safetensors", every=25, size=64)
    assert t.sequence and list(t.groups) == ["0", "1"] and set(t.person.tolist()) == {0, 1} and (t.person != t.was).all()
    assert ev.measure(keep, t)["jitter"] == pytest.approx(1)
    assert ev.measure(paste, t)["mobilefacenet_foamliu: retrieval"] == 1


def test_the_record_holds_every_part(repo):
    r = ev.open_report(repo / "benchmarks" / "results" / "evaluate.json")
    assert r.protocols == [*ev.PROTOCOLS, "photos", "clips"] and set(r.about) == set(script("benchmarks/evaluate.py").PARTS)
    for protocol in r.protocols[:5]:
        n = r.numbers(protocol)
        assert n["untouched"]["psnr"] < n["FaceShifter"]["psnr"] < n["exact swap"]["psnr"]
        assert n["untouched"]["judge: retrieval"] < 0.05


def test_the_benchmark_runs(tmp_path, repo):
    bench = script("benchmarks/evaluate.py")
    old = ev.Report({}, [{"protocol": "normal", "method": "x", "print": "", "numbers": {}}, {"protocol": "pair", "method": "y", "print": "", "numbers": {}}])
    new = ev.Report({"n": 4, "size": 32, "gallery": 8}, [{"protocol": "pair", "method": "z", "print": "", "numbers": {}}])
    out = bench.merged(old, new, "pair", {"name": 1})
    assert [x["method"] for x in out.lines] == ["x", "z"] and out.about["pair"]["pairs"] == 4
    assert json.dumps(out.to_json())


def test_exercises_take_the_solutions_and_no_wrong_answer():
    names = {**vars(ev), "task": ev.evaluation_task("normal", 12, 64, 40, decoys=3)}
    for name in ("found", "standard_error"):
        exec(toy("50_evaluate", name), names)
    ones = lambda t: torch.ones_like(t[:, :1])
    keep, hand_back = lambda s, t: (t, ones(t)), lambda s, t: (s, ones(t))
    sharp = lambda s, t: ((2.5 * t - 1.5 * torch.nn.functional.avg_pool2d(t, 3, 1, 1)).clamp(-1, 1), ones(t))
    all_hold("50_evaluate", names, {
        "in_another_gallery": [lambda share, a, b: share, lambda share, a, b: share * a / b],
        "two_errors_apart": [lambda p, q: 128, lambda p, q: 5000, lambda p, q: 690.5],
        "leads_a_column": [(keep, keep), (sharp, keep), (sharp, hand_back)],
        "praised_for_skin": [lambda t, e, i: t, lambda t, e, i: t * (1 - i) + e * i, lambda t, e, i: t + (e - t).mean((2, 3), keepdim=True) * i]})  # fmt: skip
