"Which one is synthetic? The counting, the questions, the judge's reasons, and the box in a notebook."

import pytest
import torch

from deepswap.classify import RealOrFake
from deepswap.core import UsageError
from deepswap.provenance import inspect
from deepswap.quiz import Question, Quiz, QuizPictures, as_file, by_luck, duel, evidence, evidence_picture, needed, quiz_box, quiz_pictures, reveal, suspicion, wilson

pytestmark = pytest.mark.usefixtures("one_thread")


def noise(n, seed, size=16):
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.fixture(scope="module")
def pictures():
    return QuizPictures({"exact": noise(5, 1), "classical": noise(4, 2)}, noise(6, 3))


def test_luck_is_the_binomial_tail():
    assert by_luck(0, 7) == 1 and by_luck(7, 7) == 0.5**7 and by_luck(1, 2, 0.25) == pytest.approx(1 - 0.75**2)
    assert by_luck(15, 20) == pytest.approx(0.02069, abs=1e-5)  # printed in tables of the binomial distribution
    for n in range(1, 60):
        for p in (0.5, 0.25):
            k = needed(n, p)
            assert k is None or by_luck(k, n, p) < 0.05 <= by_luck(k - 1, n, p)
    assert needed(4) is None and needed(100) == 59 and needed(10, level=0.001) == 10
    for bad in ((5, 4), (-1, 4)):
        with pytest.raises(UsageError):
            by_luck(*bad)


def test_wilson_interval():
    assert wilson(0, 10)[0] == pytest.approx(0, abs=1e-12) and 0.25 < wilson(0, 10)[1] < 0.31 and wilson(3, 3)[0] > 0.4
    low, high = wilson(81, 263)  # Newcombe 1998, table I: 0.2553 to 0.3662
    assert low == pytest.approx(0.2553, abs=5e-5) and high == pytest.approx(0.3662, abs=5e-5)
    assert wilson(3, 12) == pytest.approx(tuple(1 - v for v in wilson(9, 12)[::-1]))
    with pytest.raises(UsageError):
        wilson(0, 0)


def test_questions_are_fixed_by_seed_and_number(pictures):
    a, b, other = Quiz(pictures, 3), Quiz(pictures, 3), Quiz(pictures, 4)
    b.answer(0)
    for i in range(30):
        p, q = a.question(i), b.question(i)
        assert (p.method, p.synthetic, p.which, p.number) == (q.method, q.synthetic, q.which, i) and torch.equal(p.pictures, q.pictures)
        assert torch.equal(p.pictures[p.synthetic], pictures.made[p.method][p.which])
        assert any(torch.equal(p.pictures[1 - p.synthetic], x) for x in pictures.drawn)
    key = lambda z: [(z.question(i).method, z.question(i).synthetic, z.question(i).which) for i in range(30)]
    assert key(a) != key(other)
    sides = [a.question(i).synthetic for i in range(400)]
    assert 160 < sum(sides) < 240, "neither side is favoured"
    assert all({a.question(2 * i).method, a.question(2 * i + 1).method} == {"exact", "classical"} for i in range(20)), "each method once in a block"
    with pytest.raises(UsageError):
        Quiz(QuizPictures({}, noise(2, 0)))


def test_score_and_report(pictures):
    quiz = Quiz(pictures, 1)
    for i in range(12):
        q = quiz.question()
        assert q.number == i
        assert quiz.answer(q.synthetic if q.method == "exact" or i < 4 else 1 - q.synthetic) == (q.method == "exact" or i < 4)
    assert quiz.score("exact") == (6, 6) and quiz.score("classical") == (2, 6) and quiz.score() == (8, 12)
    report = quiz.report()
    assert f"| exact | 6 of 6 | {wilson(6, 6)[0]:.0%} to 100% | {by_luck(6, 6):.3f} |" in report and "| **all** | 8 of 12 |" in report
    assert "| exact | 0 of 0 | | |" in Quiz(pictures).report()
    for bad in (2, None, "left"):
        with pytest.raises(UsageError):
            quiz.answer(bad)
    assert quiz.score() == (8, 12), "a wrong key is no answer"


def test_duel_counts_pairs():
    assert duel(torch.tensor([2.0, 3.0]), torch.tensor([0.0, 1.0])) == 1 and duel(torch.tensor([0.0]), torch.tensor([0.0])) == 0.5
    assert duel(torch.tensor([0.0, 2.0]), torch.tensor([1.0])) == 0.5


def test_evidence_points_at_what_was_planted():
    "Fakes with a bright square in a known corner: the judge learns it, and the map shows it."
    real, fake = noise(120, 1, 32) * 0.5, noise(120, 2, 32) * 0.5
    fake[:, :, 4:12, 20:28] += 0.9
    judge = RealOrFake(32, depth=2, width=8).fit(real, {"square": fake}, steps=40, batch=32)
    a, b = noise(40, 3, 32) * 0.5, noise(40, 4, 32) * 0.5
    b[:, :, 4:12, 20:28] += 0.9
    assert duel(suspicion(judge, b), suspicion(judge, a)) > 0.95
    found = evidence(judge, b).clamp(min=0)
    assert found.shape == (40, 1, 32, 32) and found[..., 2:14, 18:30].sum() / found.sum() > 3 * (12 * 12) / 32**2
    assert evidence(judge, b, size=8).shape == (40, 1, 8, 8) and not torch.equal(evidence(judge, b, mean=True), evidence(judge, b))
    picture = evidence_picture(judge, b[:2])
    assert picture.shape == (2, 3, 32, 32) and picture.isfinite().all() and picture.abs().max() <= 1


def test_swapped_files_are_signed_and_others_are_not(recwarn):
    x = quiz_pictures(2, ("exact",))
    assert list(x.made) == ["exact"] and x.drawn.shape == x.made["exact"].shape == (2, 3, 64, 64) and 0 < x.changed["exact"].mean() < 1
    swapped, drawn = as_file(x.made["exact"][0], "exact"), as_file(x.drawn[0])
    found = inspect(swapped)
    assert found.ours and found.mark.found and found.credentials.valid and found.credentials.label == "left out on request"
    assert not inspect(drawn).ours and not recwarn.list
    q = Question(0, "exact", torch.stack([x.drawn[0], x.made["exact"][0]]), 1, 0)
    right, left_file, right_file = reveal(q, 1, (drawn, swapped)).splitlines()
    assert right.startswith("Right: the right one was swapped, by the exact method") and "No sign" in left_file and "Made with deepswap" in right_file and "Invisible mark: found" in right_file
    assert reveal(q, 0, (drawn, swapped)).startswith("Wrong: the right one")


def test_a_reader_plays_in_the_box():
    x = quiz_pictures(3, ("exact", "classical"))
    judge, quiz = RealOrFake(64, width=4), Quiz(x, 2)
    box = quiz_box(quiz, judge)
    for i in range(3):
        q, shown = quiz.question(), [bytes(p.value) for p in box.pictures]
        assert shown == box.files and f"Question {i + 1}" in box.said.value
        assert [inspect(f).ours for f in shown] == [q.synthetic == 0, q.synthetic == 1], "what is shown is the signed file"
        assert [b.disabled for b in box.buttons] == [False, False, True]
        box.buttons[q.synthetic if i else 1 - q.synthetic].click()
        assert box.said.value.startswith("Right" if i else "Wrong") and [b.disabled for b in box.buttons] == [True, True, False]
        assert f"{i} of {i + 1}" in box.table.value
        box.buttons[2].click()
    assert quiz.score() == (2, 3)
