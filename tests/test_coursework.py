"The coursework's protocol: data, runs, statistics, and a verdict that can go either way."

import json
import math
import sys
from dataclasses import replace

import pytest
import torch
from common import script

import deepswap.coursework as cw
from deepswap.autoencoder import FACE_STYLE, TwoPeople, score_pair
from deepswap.core import UsageError
from deepswap.coursework import ASKED_OF, EASY, LOSSES, SETS, VARIANTS, Claim, Estimate, Experiment, estimate

pytestmark = pytest.mark.usefixtures("one_thread")


def whom(people, k):
    "Identity of the first picture of person k."
    return people.identity.values[int((people.person < k).sum())]


@pytest.fixture(scope="module")
def tests():
    return cw.coursework_task("C", 32, 4)


class Fake(TwoPeople):
    "One number per person to learn: the picture's brightness. As fast as a method can be."

    name = "fake"

    def __init__(self, size=64, **config):
        super().__init__(size=size, **config)
        self.encoder, self.decoder_a, self.decoder_b = (torch.nn.Conv2d(3, 3, 1) for _ in range(3))

    def optimizers(self):
        return {"g": torch.optim.Adam(self.parameters(), 1e-2)}

    def redraw(self, images, to):
        return (self.decoder_a if to == "a" else self.decoder_b)(self.encoder(images)), None

    def losses(self, wa, a, wb, b):
        g = {f"g_{k}": (self.redraw(w, k)[0] - x).abs().mean() for k, w, x in (("a", wa, a), ("b", wb, b))}
        return g | {"d_a": (0.0, g["g_a"].detach() * 0 + 0.25), "d_b": (0.0, g["g_b"].detach() * 0 + 0.25)}

    def step(self, batch, update):
        (wa, a), (wb, b) = self.augment.pair(batch["a"]), self.augment.pair(batch["b"])
        update("g", self.losses, wa, a, wb, b)


# the data


@pytest.mark.parametrize("hard", ["A", "C"])
def test_hard_and_easy_sets_show_the_same_two_people(hard):
    h, e = cw.set_people(hard), cw.set_people(EASY[hard])
    for k in (0, 1):
        assert torch.equal(whom(h, k), whom(e, k))
        for field in FACE_STYLE:
            worn = [getattr(p.style, field)[p.person == k] for p in (h, e)]
            assert len(torch.cat(worn).unique()) == 1, field
    assert not torch.equal(whom(h, 0), whom(h, 1))
    assert not torch.equal(whom(h, 0), whom(cw.set_people(hard, seed=1), 0)), "another seed is another pair"


def test_the_counts_are_the_courseworks():
    counts = {k: tuple(int((cw.set_people(k).person == p).sum()) for p in (0, 1)) for k in "ABCD"}
    assert counts == {"A": (377, 404), "B": (2437, 2151), "C": (46, 48), "D": (906, 875)}


def test_each_control_differs_from_its_set_in_one_thing():
    a, singly, d, unlike = (cw.set_people(k) for k in ("A", "A singly", "D", "D unlike"))
    changed = (a.scene.values != singly.scene.values).any(1)
    assert changed.sum() == 255 and changed[377:632].all() and torch.equal(a.identity.values, singly.identity.values)
    assert torch.equal(d.scene.values, unlike.scene.values) and torch.equal(d.style.values, unlike.style.values)
    changed = (d.identity.values != unlike.identity.values).any(1)
    assert torch.equal(changed, d.person == 1)
    far = [(whom(p, 0) - whom(p, 1)).norm() for p in (d, unlike)]
    assert far[1] > 1.5 * far[0]


def test_tests_are_held_out_and_exact(tests):
    task = tests["own"]
    assert score_pair(task.exact_ab.image, task)["identity"] == 1 and score_pair(task.test_a.image, task)["identity"] == 0
    changed = (task.exact_ab.image - task.test_a.image).abs().amax(1, keepdim=True) > 0.05
    near = torch.nn.functional.max_pool2d(torch.maximum(task.exact_ab.mask, task.test_a.mask), 9, 1, 4) > 0
    assert changed[near].float().mean() > 0.2 and changed[~near].float().mean() < 0.25
    seen = task.a.batch(range(len(task.a))).image.flatten(1)
    assert torch.cdist(task.test_a.image.flatten(1), seen).min() > 1, "a test picture is among the training pictures"


def test_the_easy_test_of_a_hard_set_is_the_easy_sets_own(tests):
    own = cw.coursework_task("D", 32, 4)["own"]
    assert torch.equal(tests["easy"].test_a.image, own.test_a.image) and torch.equal(tests["easy"].exact_ba.image, own.exact_ba.image)
    assert not torch.equal(tests["own"].test_a.image, own.test_a.image)


def test_unknown_names_are_refused():
    for f, wrong in ((cw.set_people, "E"), (cw.plan, "huge"), (lambda x: cw.plan(only=x), "all")):
        with pytest.raises(UsageError, match="choose one of"):
            f(wrong)


# the plan and a run


def test_plan_runs_everything_once_and_early_seeds_first():
    whole = cw.plan(seeds=2)
    assert len(set(whole)) == len(whole) and {e.data for e in whole} == set(SETS) and {e.variant for e in whole} == set(VARIANTS)
    assert [e.seed for e in whole] == sorted(e.seed for e in whole)
    assert {e.name for e in cw.plan(only="questions", seeds=1)} < {e.name for e in whole}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_differs_from_the_baseline_by_its_switches_alone(variant):
    make = lambda v: cw.FaceSwapGAN(**cw.BASELINE | {"width": 2, "ndf": 2} | VARIANTS[v])
    base, other = make("baseline").config, make(variant).config
    assert {k for k in base if base[k] != other[k]} == set(VARIANTS[variant])


def test_the_full_scale_is_the_courseworks():
    full = cw.SCALES["full"]
    assert (full["steps"], full["batch"], full["few"], full["lr"]) == (5000, 128, 32, 1e-4)
    code = cw.FaceSwapGAN(**cw.COURSEWORK_MODEL, width=full["width"], ndf=1).encoder(torch.zeros(1, 3, 64, 64))
    assert code.shape == (1, 1024, 4, 4)
    assert cw.arithmetic("full") > 1000 * cw.arithmetic("cpu")


def small(tests, seed=0, steps=6):
    trainer, read = cw.train_experiment(Experiment("C", seed=seed, scale="tiny"), tests["own"], lambda **kw: Fake(**kw | {"size": 32}), steps=steps)
    return trainer, read


def test_a_run_is_written_down_and_repeats(tests, monkeypatch):
    monkeypatch.setattr(cw, "resized", lambda x, side: x)  # 32 px stand in for 64
    with pytest.warns(UserWarning, match="46 pictures"):
        trainer, read = small(tests)
    row, swaps = cw.report(Experiment("C", scale="tiny"), trainer, read, {32: tests, 64: tests})
    assert json.loads(json.dumps(row)) == row and swaps["b"].shape == tests["own"].test_a.image.shape
    assert [r["step"] for r in row["readings"]] == [1, 2, 3, 4, 5, 6] and row["steps"] == 6
    assert row["losses"]["d_a"] == pytest.approx(0.25) and len(row["course"]["g_a"]) == 6
    assert row["losses"]["g_a"] == pytest.approx(sum(r["g_a"] for r in trainer.history) / 6)
    assert row["authentic"] is None and row["seconds per step"] > 0 and row["gap"]["seen"] > 0
    with pytest.warns(UserWarning):
        again, other = small(tests)[0], small(tests, seed=1)[0]
    assert again.history[-1]["g_a"] == trainer.history[-1]["g_a"] != other.history[-1]["g_a"]


def test_gap_sees_what_was_learned_by_heart(tests):
    class ByHeart:
        known = {k: getattr(tests["own"], k).batch(range(40)).image for k in "ab"}

        def translate(self, x, to):
            return self.known[to][torch.cdist(x.flatten(1), self.known[to].flatten(1)).argmin(1)]

    class Honest:
        def translate(self, x, to):
            return x + 0.1

    heart, honest = (cw.reconstruction_gap(m(), tests["own"], n=40) for m in (ByHeart, Honest))
    assert heart["gap"] > 0.1 and honest["gap"] == pytest.approx(0, abs=1e-5) and honest["seen"] == pytest.approx(0.1, abs=1e-5)


def test_scores_average_both_directions(tests):
    task = tests["own"]
    right, wrong = {"b": task.exact_ab.image, "a": task.exact_ba.image}, {"b": task.test_a.image, "a": task.test_b.image}
    assert cw.swap_scores(right, task)["identity"] == 1 and cw.swap_scores(wrong, task)["identity"] == 0
    half = cw.swap_scores({"b": right["b"], "a": wrong["a"]}, task)
    assert half["identity"] == 0.5 and half["face to b"] > half["face to a"]


# the statistics


@pytest.mark.parametrize("df, t", [(1, 12.7062), (2, 4.3027), (5, 2.5706), (20, 2.0860), (1000, 1.9623)])
def test_students_t(df, t):
    assert cw.student(df) == pytest.approx(t, rel=1e-3)


def test_an_estimate_of_one_run_says_nothing():
    assert math.isinf(estimate([5.0]).half) and estimate([5.0]).sign == 0 and "one run" in str(estimate([5.0]))
    assert estimate([]).sign == 0 and str(estimate([])) == "not run"


def test_compare_pairs_by_seed():
    shifts = {"baseline": (0, 0, 0), "up": (1.01, 0.99, 1), "down": (-1.01, -0.99, -1), "same": (0.01, 0, -0.01)}
    values = {(v, s): 10 * s + shift for v, row in shifts.items() for s, shift in enumerate(row)}
    found = cw.compare(values)
    assert {v: e.sign for v, e in found.items()} == {"up": 1, "down": -1, "same": 0}
    paired = sum(values["up", s] - values["baseline", s] for s in range(3)) / 3
    assert found["up"].mean == pytest.approx(paired) and found["up"].n == 3
    del values["up", 2]  # a missing run widens the interval and does not bias it
    less = cw.compare(values)["up"]
    assert less.half > found["up"].half and less.mean == pytest.approx(1, abs=0.1)


def test_compare_is_right_about_as_often_as_it_says():
    g, wrong = torch.Generator().manual_seed(0), 0
    for _ in range(200):
        seeds = 5 * torch.randn(3, generator=g)
        values = {(v, s): float(seeds[s] + torch.randn((), generator=g)) for v in ("baseline", "b", "c") for s in range(3)}
        wrong += cw.compare(values)["b"].sign != 0
    assert 2 <= wrong <= 20  # 5 % of 200 are 10


def test_compare_needs_the_baseline_and_more_than_one_seed():
    with pytest.raises(UsageError, match="no run of 'baseline'"):
        cw.compare({("mask", 0): 1.0})
    assert math.isinf(cw.compare({("baseline", 0): 1.0, ("mask", 0): 2.0})["mask"].half)


def test_rank_correlation():
    assert cw.rank_correlation([1, 2, 3, 4], [1, 8, 27, 64]) == pytest.approx(1) and cw.rank_correlation([1, 2, 3], [9, 5, 1]) == pytest.approx(-1)
    assert cw.rank_correlation([1, 2, 2, 3], [1, 2, 2, 3]) == pytest.approx(1) and cw.rank_correlation([0, 0, 0], [1, 2, 3]) == 0
    with pytest.raises(UsageError):
        cw.rank_correlation([1, 2], [1, 2])


def test_blind_loss_is_the_variance_of_the_question():
    lam = torch.distributions.Beta(torch.tensor(0.5), torch.tensor(0.5)).sample((100_000,))
    assert cw.blind_loss(0.5) == pytest.approx(float(lam.var()), abs=3e-3) and cw.blind_loss() == 0.25
    assert all(0.95 < v / cw.blind_loss(0.2) < 1 for row in cw.PAPER_TABLE.values() for k, v in row.items() if k.startswith("d_"))


# tables and claims, from rows that were made up


def row(data, variant, seed, **change):
    "A run as the results hold it; `change` moves single numbers."
    jitter = 0.001 * ((7 * seed + len(data) + len(variant)) % 3 - 1)
    hard = data[0] in "AC"
    r = {"data": data, "variant": variant, "seed": seed, "scale": "cpu", "authentic": 0.5 + jitter if data == ASKED_OF else None, "seconds per step": 0.1, "steps": 10,
         "losses": {n: (0.2 if n[0] == "g" else cw.blind_loss(0.2 if variant == "mixtures" else 0)) + 0.1 * hard + jitter * (n[0] == "g") for n in LOSSES},
         "gap": {"seen": 0.1, "held out": 0.12 + jitter, "gap": 0.02 + jitter, "mean gap": 0.01},
         "readings": [{"step": 5, "face": 19.0}, {"step": 10, "face": 20.0 + jitter}],
         "scores": {k: {"face": 20.0 + jitter - 2 * hard, "untouched face": 15.0, "psnr": 21.0, "identity": 0.97 + jitter} for k in ("own", "easy")}}  # fmt: skip
    r["losses"] |= {k: v - 0.1 * hard for k, v in r["losses"].items() if k[0] == "d"}
    r["course"] = {n: [0.3, 0.25, 0.22, 0.2, 0.18, 0.17, 0.16, 0.15, 0.14, 0.13] if n[0] == "g" else [r["losses"][n]] * 10 for n in LOSSES}
    for path, value in change.items():
        *way, last = path.split("__")
        here = r
        for key in way:
            here = here[key]
        here[last] = value
    return r


def book(change=None, seeds=3):
    "Made-up results of the whole plan; `change`: (data, variant, seed) -> changes."
    rows = [row(e.data, e.variant, e.seed, **((change or (lambda *_: {}))(e.data, e.variant, e.seed))) for e in cw.plan(seeds=seeds)]
    for i, r in enumerate(rows):
        if r["data"] == ASKED_OF and not change:
            r["authentic"], r["scores"]["own"]["face"] = 0.01 * i, 20 + 0.01 * i
    return rows


def verdicts(rows):
    return {c.number + c.says[:12]: c.verdict for c in cw.claims(rows)}


def test_claims_can_go_either_way():
    before = verdicts(book())
    assert before["1The model is"] == "holds" and before["1Longer train"] == "holds" and before["4Varied and s"] == "holds" and before["6A classifier"] == "holds"
    assert before["2LOSS_G falls"] == "holds" and before["2LOSS_D stays"] == "holds" and before["2(the reason)"] == "holds"
    worse = verdicts(book(lambda d, v, s: {"scores__own__face": 16.0 + 0.01 * s, "readings": [{"step": 5, "face": 20.0}, {"step": 10, "face": 19.0 + 0.01 * s}]}))
    assert worse["1The model is"] == "does not hold" and worse["1Longer train"] == "does not hold"
    rising = verdicts(book(lambda d, v, s: {"course": {n: [0.1 + 0.02 * i + 0.001 * s for i in range(10)] for n in LOSSES}, "losses__d_a": 0.05 + 0.001 * s}))
    assert rising["2LOSS_G falls"] == "does not hold" and rising["2LOSS_D stays"] == "does not hold" and rising["2(the reason)"] == "does not hold"
    easy_is_hard = verdicts(book(lambda d, v, s: {"scores__easy__face": (22.0 if d[0] in "AC" else 18.0) + 0.01 * s}))
    assert easy_is_hard["4Varied and s"] == "does not hold"


@pytest.mark.parametrize("b, verdict", [(0.25, "holds"), (0.35, "does not hold")])
def test_claim_of_one_source(b, verdict):
    rows = book(lambda d, v, s: {"losses__g_b": (b if d == "A" else 0.3) + 0.001 * s * (d == "A")})
    assert next(c for c in cw.claims(rows) if c.number == "3").verdict == verdict


@pytest.mark.parametrize("unlike, verdict", [(18.0, "holds"), (23.0, "does not hold")])
def test_claim_of_people_who_differ(unlike, verdict):
    rows = book(lambda d, v, s: {"scores__own__face": (unlike if d.endswith("unlike") else 20.0) + 0.01 * s * (d in "DC")})
    assert next(c for c in cw.claims(rows) if c.number == "5").verdict == verdict


def test_what_was_not_run_decides_nothing():
    rows = [r for r in book() if r["variant"] != "mixtures" and r["data"] != "A singly"]
    open_ = {k: v for k, v in verdicts(rows).items() if k[0] == "3" or "reason" in k}
    assert set(open_.values()) == {"can't be said"} and len(open_) == 2


def test_one_run_decides_nothing():
    assert set(verdicts([r for r in book(seeds=1) if r["data"] == "B"]).values()) == {"can't be said"}


def test_a_claim_needs_all_its_parts():
    up, down, open_ = Estimate(1.0, 0.1, 3), Estimate(-1.0, 0.1, 3), Estimate(1.0, 2.0, 3)
    say = lambda *parts: Claim("", "", dict(enumerate(parts))).verdict
    assert (say(up), say(up, down), say(up, open_), say(open_, down), say()) == ("holds", "does not hold", "can't be said", "does not hold", "can't be said")


def test_ranks_are_compared_within_a_seed():
    rows = [{"data": ASKED_OF, "variant": v, "seed": s, "x": 100 * s + i, "y": (-1) ** s * i - 50 * s, "z": None if s else i} for s in (0, 1) for i, v in enumerate("abcd")]
    assert cw.ranks_alike(rows, "x", "x").mean == pytest.approx(1) and cw.ranks_alike(rows, "x", "y").mean == pytest.approx(0)
    assert cw.ranks_alike(rows, "x", "z").n == 1


def test_a_judge_that_orders_at_random_is_no_metric():
    rows = [r | {"authentic": r["authentic"] and 0.0} for r in book()]
    assert verdicts(rows)["6A classifier"] == "does not hold"


def test_questions_tell_better_from_not_distinguishable():
    better = lambda d, v, s: {"scores__own__face": 20 + 0.01 * ((s + len(v)) % 3) + (1.0 if v == "pixel shuffle" else 0), "seconds per step": 0.3 if v == "5 D steps" else 0.1}
    found = cw.questions(book(better))
    assert set(found) == set(VARIANTS) - {"baseline"}
    assert cw.verdict(found["pixel shuffle"]["face"]) == "better" and cw.verdict(found["mask"]["face"]) == "not distinguishable"
    assert found["5 D steps"]["cost"] == pytest.approx(3) and found["mask"]["cost"] == pytest.approx(1)
    assert cw.verdict(replace(found["pixel shuffle"]["face"], half=math.inf)) == "one run only"
    assert cw.verdict(found["pixel shuffle"]["face"], more_is_better=False) == "worse"


def test_table_and_overfitting_read_what_is_there():
    table = cw.table1(book(seeds=2))
    assert set(table) == set(SETS) and table["A"]["g_a"].mean == pytest.approx(0.3, abs=0.01) and table["B"]["g_a"].mean == pytest.approx(0.2, abs=0.01)
    assert cw.table1([r for r in book() if r["data"] == "B"]).keys() == {"B"}
    less = lambda d, v, s: {"gap__gap": (0.01 if v == "dropout" else 0.03) + 0.0001 * ((s + len(v)) % 3)}
    found = cw.overfitting(book(less))
    assert cw.verdict(found["dropout"]["less"], False) == "better" and found["baseline"]["gap"].mean == pytest.approx(0.03, abs=1e-3)
    assert set(cw.easy_test(book())) == {("A", "B"), ("C", "D")}


# the chapter


# the script


def test_the_script_goes_on_where_it_stopped(tmp_path, repo, monkeypatch, capsys):
    coursework_script = script("benchmarks/coursework.py")

    def run(*more):
        monkeypatch.setattr(sys, "argv", ["coursework.py", "--scale", "tiny", "--only", "gap", "--seeds", "1", "--out", str(tmp_path), *more])
        coursework_script.main()
        return capsys.readouterr().out

    with pytest.warns(UserWarning, match="46 pictures"):
        assert run().count("minutes") == 3
    path = tmp_path / "coursework_tiny.json"
    found = json.loads(path.read_text())
    assert [r["variant"] for r in found["runs"]] == ["baseline", "dropout", "adaptive dropout"] and len(list(tmp_path.glob("*.jpg"))) == 3
    kept = found["runs"].pop(1)
    path.write_text(json.dumps(found))
    with pytest.warns(UserWarning):
        assert run().count("minutes") == 1, "only what is missing is run"
    again = json.loads(path.read_text())["runs"]
    assert [r["variant"] for r in again] == ["baseline", "adaptive dropout", "dropout"] and again[2]["losses"] == kept["losses"]
    assert "0 of 3 runs left" in run("--list")
    found["setting"]["steps"] = 5
    path.write_text(json.dumps(found))
    with pytest.raises(SystemExit, match="other settings"):
        run()
