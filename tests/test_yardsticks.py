"The yardsticks: known values, directions in which each must move, what fools it, and one sentence for each wrong input."

import json
import math
import sys

import pytest
import torch
from safetensors.torch import save_file
from solved import all_hold

from deepswap import yardsticks as ys
from deepswap.autoencoder import render_aligned
from deepswap.classify import features, kernel_distance, spoil
from deepswap.core import CANONICAL5, DeepswapError, UsageError, WeightsError
from deepswap.cyclegan import psnr
from deepswap.data import batches
from deepswap.faceshifter import swap_task
from deepswap.faces import apply_affine
from deepswap.people import Scene, exact_swap, landmarks, sample_people
from deepswap.train import Trainer

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def pairs():
    "Targets, exact swaps and the truth of unseen procedural pairs."
    source, target = sample_people(48, "easy", 991_001), sample_people(48, "easy", 992_001)
    seen, matrix = render_aligned(target, 64)
    return seen.image, render_aligned(exact_swap(source, target), 64, matrix)[0].image, target.scene


@pytest.fixture(scope="module")
def reader():
    return ys.load_reader()


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# Pixels


def test_ssim_of_constant_pictures_is_the_formula():
    a, b = torch.full((2, 3, 16, 16), -.2), torch.full((2, 3, 16, 16), .6)
    x, y, c = .4, .8, 1e-4
    assert torch.allclose(ys.ssim(a, b), torch.full((2,), (2 * x * y + c) / (x * x + y * y + c)), atol=1e-4)


def test_ssim_of_one_window_written_out():
    a, b = torch.rand(1, 3, 11, 11) * 2 - 1, torch.rand(1, 3, 11, 11) * 2 - 1
    t = torch.arange(-5., 6)
    w = torch.exp(-(t[:, None] ** 2 + t ** 2) / 4.5)
    w, x, y, total = w / w.sum(), a[0] / 2 + .5, b[0] / 2 + .5, 0
    for p, q in zip(x, y):
        mp, mq = (w * p).sum(), (w * q).sum()
        vp, vq, cov = (w * (p - mp) ** 2).sum(), (w * (q - mq) ** 2).sum(), (w * (p - mp) * (q - mq)).sum()
        total += (2 * mp * mq + 1e-4) * (2 * cov + 9e-4) / ((mp ** 2 + mq ** 2 + 1e-4) * (vp + vq + 9e-4))
    assert torch.allclose(ys.ssim(a, b)[0], total / 3, atol=1e-4)


def test_ssim_is_one_for_equal_pictures_symmetric_and_counts_where_it_is_told(pairs):
    target, exact, _ = pairs
    assert torch.allclose(ys.ssim(target, target), torch.ones(48)) and torch.allclose(ys.ssim(target, exact), ys.ssim(exact, target))
    spoilt, left = target.clone(), torch.zeros(48, 1, 64, 64)
    spoilt[..., 32:] = noise(48, 3, 64, 32)
    left[..., :20] = 1
    assert torch.allclose(ys.ssim(spoilt, target, left), torch.ones(48)) and ys.ssim(spoilt, target).max() < .8


# Feature spaces


@pytest.mark.parametrize("name,length", [("attributes", 128), ("attributes-body", 2048)])
def test_named_spaces_give_features_and_maps(name, length, pairs):
    space = ys.get_space(name)
    found = ys.features_in(pairs[0][:3], name)
    assert found.shape == (3, length) == (3, space.length) and space is ys.get_space(name)
    assert torch.equal(found, features(pairs[0][:3], space)) and len(space.maps(pairs[0][:3])) == 4


def test_perceptual_distance_is_zero_for_equal_pictures_and_grows_with_the_damage(pairs):
    x = pairs[0]
    assert ys.perceptual(x, x).max() == 0 and torch.allclose(ys.perceptual(x, pairs[1]), ys.perceptual(pairs[1], x))
    for how, amounts in (("blur", (.5, 1., 2.)), ("noise", (.02, .1, .3)), ("blocks", (.2, .5, 1.))):
        far = [float(ys.perceptual(spoil(x, how, a), x).mean()) for a in amounts]
        assert far == sorted(far) and far[0] < .8 * far[-1], how


def test_perceptual_distance_does_not_depend_on_the_batch(pairs):
    assert torch.allclose(ys.perceptual(*pairs[:2], batch=7), ys.perceptual(*pairs[:2]), atol=1e-5)


@pytest.fixture(scope="module")
def squeezenet(tmp_path_factory):
    "A file of the documented layout, with random weights."
    from torchvision.models import squeezenet1_1

    torch.manual_seed(0)
    net, path = squeezenet1_1(weights=None), tmp_path_factory.mktemp("weights") / "squeeze.safetensors"
    save_file({k: v for k, v in net.state_dict().items() if k.startswith("features.")}, path)
    return net.features.eval(), path


def test_squeezenet_sees_bgr_bytes_with_the_mean_taken_off(squeezenet):
    net, path = squeezenet
    x = torch.rand(2, 3, 128, 128) * 2 - 1
    bgr = (x[:, [2, 1, 0]] + 1) * 127.5 - torch.tensor([104., 117., 123.]).view(3, 1, 1)
    with torch.no_grad():
        expected = net(bgr).mean((2, 3))
    assert torch.allclose(ys.features_in(x, path), expected, rtol=1e-4, atol=1e-4)
    assert ys.perceptual(x, x, path).max() == 0 and ys.perceptual(x, x.flip(0), path).min() > 0


@pytest.mark.parametrize("space,says", [("inception", "There is no feature space"), ("cut", "can't be read"), ("other", "layout of SqueezeNet")])
def test_a_wrong_space_is_one_sentence(space, says, tmp_path, squeezenet):
    if space == "cut":
        (tmp_path / "cut.safetensors").write_bytes(squeezenet[1].read_bytes()[:5000])
        space = tmp_path / "cut.safetensors"
    elif space == "other":
        save_file({"features.0.weight": torch.zeros(2)}, tmp_path / "other.safetensors")
        space = tmp_path / "other.safetensors"
    with pytest.raises(WeightsError, match=says) as e:
        ys.get_space(space)
    assert str(e.value).count("\n") == 0


def test_photographs_features_order_damage(shared, pairs):
    path = shared / "data/weights/squeezenet11_caffe_features.safetensors"
    far = [float(ys.perceptual(spoil(pairs[0][:8], "blur", a), pairs[0][:8], path).mean()) for a in (.5, 1., 2.)]
    assert far == sorted(far) and ys.features_in(pairs[0][:2], path).shape == (2, 512)


# Sets of pictures


def test_kid_has_no_bias_and_one_full_subset_is_the_kernel_distance():
    a, b = noise(300, 8, seed=1), noise(300, 8, seed=2)
    mean, spread = ys.kid(a, b, size=60)
    assert abs(mean) < 3 * spread / math.sqrt(5) and ys.kid(a, b, size=60) == (mean, spread)
    assert ys.kid(a, b + .5, size=60)[0] > 4 * ys.kid(a, b, size=60)[1]
    assert abs(ys.kid(a, b, size=300, subsets=2)[0] - kernel_distance(a, b)) < 1e-4


def test_a_judge_guesses_on_one_distribution_and_knows_two():
    guesses = torch.tensor([ys.told_apart(noise(200, 20, seed=2 * k), noise(200, 20, seed=2 * k + 1)) for k in range(30)])
    assert abs(float(guesses.mean()) - .5) < .02 and float(guesses.std()) < ys.chance_band(400), "no lean to either side"
    a, b = noise(400, 20, seed=1), noise(400, 20, seed=2)
    assert ys.told_apart(a, b + 1) > .95 and .6 < ys.told_apart(a, b + .2) < .95


@pytest.mark.parametrize("n,dim", [(100, 20), (40, 300)])
def test_the_judge_takes_either_matrix_and_both_sets_count_alike(n, dim):
    a, b = noise(n, dim, seed=1), noise(3 * n, dim, seed=2)
    assert ys.told_apart(a, b + 1) > .95
    assert .3 < ys.told_apart(a, b) < .68, "one set is three times the other: always naming the larger one must not win"


def test_copies_of_the_targets_stay_in_their_part_when_paired():
    a = noise(200, 100)
    assert ys.told_apart(a, a, paired=True) == .5
    assert ys.told_apart(a, a + .01 * noise(200, 100, seed=3)) < .4, "unpaired, a judge knows each copy as the other set"


def test_realness_tells_a_spoilt_set_from_a_good_one(pairs):
    people = sample_people(96, "easy", 993_001)
    real = render_aligned(people, 64)[0].image
    assert ys.realness(spoil(real[:48], "noise", .3), real[48:], "attributes-body") > .9
    assert ys.realness(real[:48], real[48:], "attributes-body") < .7


def test_chance_band_is_that_of_a_coin():
    flips = torch.rand(4000, 100, generator=torch.Generator().manual_seed(0)).round().mean(1)
    assert abs(float(((flips - .5).abs() <= ys.chance_band(100)).float().mean()) - .95) < .02


# The scene


def test_turned_people_are_turned_anticlockwise_by_what_the_truth_says():
    faces = ys.TurnedPeople(24, 64, "hard", 5, turn=10.)
    eyes = apply_affine(faces.matrix, landmarks(faces.people, 1))[:, :2]
    upright = ys.TurnedPeople(24, 64, "hard", 5, turn=0.)
    level = apply_affine(upright.matrix, landmarks(upright.people, 1))[:, :2]
    angle = lambda p: torch.atan2(-(p[:, 1] - p[:, 0])[:, 1], (p[:, 1] - p[:, 0])[:, 0]).rad2deg()
    assert torch.allclose(angle(eyes) - angle(level), faces.truth[:, 2], atol=1e-2) and faces.truth[:, 2].abs().max() > 10
    assert torch.allclose(level.mean((0, 1)), CANONICAL5[:2].mean(0) * 64, atol=1.) and upright.truth[:, 2].abs().max() == 0
    assert torch.equal(faces.truth[:, 0], faces.people.scene.yaw) and faces.batch([0]).image.shape == (1, 3, 64, 64)


def test_truth_leaves_the_scenes_own_roll_out():
    scene = Scene(n=2, yaw=torch.tensor([5., -5.]), roll=9., smile=.5)
    assert torch.equal(ys.scene_truth(scene)[:, :4], torch.tensor([[5., 0., 0., .5], [-5., 0., 0., .5]]))


def test_mixed_people_are_three_quarters_hard_and_all_differ():
    mixed = ys.TurnedPeople(16, 64, "mixed", 3)
    hard = ys.TurnedPeople(12, 64, "hard", 3)
    assert torch.equal(mixed.people.identity.values[:12], hard.people.identity.values) and len(mixed.person.unique()) == 16
    assert len(mixed.people.identity.values.unique(dim=0)) == 16
    assert torch.equal(mixed.batch([3, 15]).attributes, mixed.truth[[3, 15]])


def test_what_the_reader_says_of_a_mirror_image_is_mirrored(pairs):
    "Equation (3), written out."
    torch.manual_seed(0)
    reader, x = ys.SceneReader(width=3), pairs[0][:5]
    with torch.no_grad():
        f, mirrored = reader.answer(x), reader.answer(x.flip(3))
    for k, name in enumerate(reader.NAMES):
        sign = -1 if name in ("yaw", "roll", "gaze_x") else 1
        span = ys._FIELDS[name].high - ys._FIELDS[name].low
        assert torch.allclose(reader(x)[:, k], span / 16 * (f[:, k] + sign * mirrored[:, k]), atol=1e-4), name
        assert torch.allclose(reader(x.flip(3))[:, k], sign * reader(x)[:, k], atol=1e-4), name


def test_the_method_mirrors_pictures_and_truth_together(monkeypatch):
    "With the softening off, each pair that the loss is given is a picture with its truth, or both mirrored."
    faces = ys.TurnedPeople(12, 64, "easy", 7)
    batch, method, got = faces.batch(range(12)), ys.ReaderMethod(width=2), []
    monkeypatch.setattr(ys, "_soften", lambda x: x)
    torch.manual_seed(1)
    method.step(batch, lambda name, losses, *tensors: got.append(tensors))
    (image, truth), sign = got[0], torch.tensor([-1., 1, -1, 1, 1, 1, 1, -1, 1])
    kept = (image == batch.image).flatten(1).all(1)
    assert 0 < kept.sum() < 12 and torch.equal(image[~kept], batch.image[~kept].flip(3))
    assert torch.equal(truth[kept], faces.truth[kept]) and torch.equal(truth[~kept], faces.truth[~kept] * sign)


def taught(faces, steps=80):
    "A small reader after a short run."
    torch.manual_seed(0)
    t = Trainer(ys.ReaderMethod(width=8), batches(faces, 32), steps=steps, seed=0, device="cpu", progress=False).fit()
    return t.method.reader.eval()


def test_the_method_learns_and_repeats():
    faces, unseen = ys.TurnedPeople(160, 64, "hard", 8), ys.TurnedPeople(64, 64, "hard", 9)
    one, two, x = taught(faces), taught(faces), unseen.batch(range(64)).image
    assert torch.equal(one(x), two(x)), "the same seed"
    error, constant = ((one(x) - unseen.truth).abs().mean(0), (faces.truth.mean(0) - unseen.truth).abs().mean(0))
    assert error[0] < .7 * constant[0], "yaw"


def test_pose_error_is_the_length_of_the_difference(reader, pairs):
    target, _, scene = pairs
    assert ys.pose_error(reader, target, target).max() == 0
    said = reader.pose(target)
    assert torch.allclose(ys.pose_error(reader, target, scene), ((said[:, 0] - scene.yaw) ** 2 + (said[:, 1] - scene.pitch) ** 2 + said[:, 2] ** 2).sqrt(), atol=1e-4)


def test_expression_error_counts_shares_of_the_range():
    class Says:
        def expression(self, images):
            return torch.stack([images[:, 0, 0, 0]] + [images[:, 1, 0, 0]] * 5, 1)

    x, y = torch.zeros(2, 3, 2, 2), torch.zeros(2, 3, 2, 2)
    y[0, 0] = 2                                                               # the smile: all of its range, -1 to 1
    assert torch.allclose(ys.expression_error(Says(), x, y), torch.tensor([1 / 6, 0.]))


def test_the_shipped_reader_knows_other_poses_and_sizes(reader, pairs):
    target, exact, scene = pairs
    same, other = ys.pose_error(reader, exact, target).mean(), ys.pose_error(reader, exact, target.roll(1, 0)).mean()
    assert same < 1.8 and other > 4 * same
    large = torch.nn.functional.interpolate(target, (128, 128), mode="bilinear", align_corners=False)
    assert ys.pose_error(reader, large, target).mean() < 1.


def test_the_shipped_reader_reads_as_its_card_says(reader, repo):
    record = json.loads((repo / "benchmarks/results/yardsticks.json").read_text())
    for preset in ("easy", "hard"):
        faces = ys.TurnedPeople(128, 64, preset, 955_001, turn=0.)
        error = (reader(faces.batch(range(128)).image) - faces.truth).abs().mean(0)
        for k, name in enumerate(reader.NAMES):
            assert error[k] < 1.35 * record["reading"][preset][name]["error"] + .01, (preset, name)


def test_a_reader_is_written_and_read(tmp_path, pairs):
    reader = taught(ys.TurnedPeople(32, 64, "easy", 3), 2)
    path = ys.save_reader(reader, tmp_path / "r.safetensors", {"note": 1})
    again = ys.load_reader(path)
    assert (again(pairs[0]) - reader(pairs[0])).abs().max() < .2 and not any(p.requires_grad for p in again.parameters())
    data = path.read_bytes()
    path.write_bytes(data[:-9] + b"123456789")
    with pytest.raises(WeightsError, match="damaged|checksum"):
        ys.load_reader(path)


def test_the_shipped_reader_is_small_and_has_a_card():
    path = ys.WEIGHTS / f"{ys.SCENE_READER}.safetensors"
    assert path.stat().st_size <= 1_200_000 and ys.SCENE_READER in path.with_suffix(".md").read_text()


@pytest.mark.parametrize("call", [
    lambda r: r(torch.zeros(3, 64, 64)), lambda r: r(torch.zeros(1, 3, 64, 32)), lambda r: ys.ssim(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8)),
    lambda r: ys.ssim(torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 32, 32)), lambda r: ys.perceptual(torch.zeros(1, 3, 64, 64), torch.zeros(2, 3, 64, 64)),
    lambda r: ys.told_apart(torch.zeros(4, 2), torch.zeros(40, 2)), lambda r: ys.told_apart(torch.zeros(20, 2), torch.zeros(40, 2), paired=True),
    lambda r: ys.SceneReader(size=40), lambda r: ys.load_reader("deepswap/no-such-file.safetensors"), lambda r: ys.load_reader(ys.WEIGHTS / "deepswap-identity-v1.safetensors")])
def test_wrong_input_is_one_sentence(call, reader):
    with pytest.raises(DeepswapError) as e:
        call(reader)
    assert str(e.value).endswith(".") and "\n" not in str(e.value)


# The pose network for photographs


def test_without_onnxruntime_there_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UsageError, match=r"onnxruntime.*pip install"):
        ys.pose_reader("x.onnx")


def test_a_pose_file_that_is_none_is_one_sentence(tmp_path):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (extra: real)")
    with pytest.raises(WeightsError, match="There is no pose network"):
        ys.pose_reader(tmp_path / "none.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"nothing")
    with pytest.raises(WeightsError, match="no network that onnxruntime can run"):
        ys.pose_reader(tmp_path / "bad.onnx")


def test_the_pose_network_counts_as_the_house_does(shared):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (extra: real)")
    net = ys.pose_reader(*(shared / "data/weights" / n for n in ("fsanet_1x1.onnx", "fsanet_var.onnx")))
    faces = ys.TurnedPeople(48, 64, "hard", 956_001, turn=10.)
    said = net.pose(faces.batch(range(48)).image)
    for k, least in enumerate((.9, .4, .9)):
        assert torch.corrcoef(torch.stack([said[:, k], faces.truth[:, k]]))[0, 1] > least, ys.POSE[k]


def test_exercises_take_the_solutions_and_no_wrong_answer():
    task = swap_task(4, 64)
    names = {"torch": torch, "math": math, "psnr": psnr, "exact": task.exact.image, "target": task.target.image, **{k: getattr(ys, k) for k in ys.__all__}}
    all_hold("44_yardsticks", names, {
        "still_similar": [lambda a: a + 0.1, lambda a: a / 1.2235, lambda a: a],
        "gains_so_much": [lambda dB: 1 - 10 ** (-dB / 10), lambda dB: 0.5],
        "convinced": [lambda share: 100, lambda share: math.ceil((1.96 / (share - 0.5)) ** 2), lambda share: int(0.25 * (1.96 / (share - 0.5)) ** 2)],
        "takes_its_own_error_off": [lambda m, e: m - e, lambda m, e: abs(m * m - e * e) ** 0.5, lambda m, e: (m * m - e * e) ** 0.5]})  # fmt: skip
