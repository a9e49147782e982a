"Attributes, the feature space, transfer, and the judge of real and fake."

import hashlib
import json
import subprocess
import sys
import time

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from deepswap.classify import (
    FAKES,
    HELD_BACK,
    SPACE,
    WEIGHTS,
    AttributeCNN,
    AttributeMethod,
    FeatureSpace,
    RealOrFake,
    ResNetEncoder,
    Transfer,
    attribute_scores,
    average_precision,
    cheap_fakes,
    confusion_matrix,
    depth_table,
    examine,
    feature_space,
    features,
    fid,
    frechet_distance,
    kernel_distance,
    load_attribute_cnn,
    occlusion_map,
    saliency,
    spoil,
    targets_of,
)
from deepswap.core import DataError, UsageError, WeightsError, to_pil, write_image
from deepswap.data import ProceduralFaces, open_faces
from deepswap.people import ATTRIBUTES, render, sample_people
from deepswap.train import load_method, run, write_tensors

SHA = "fbd4502f0bd03ddccf027c3b43a7919ee3a38b9b4cb420fb9553bd6eb1d18fe9"
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def faces():
    return ProceduralFaces(n_people=96, size=16, seed=3)


@pytest.fixture(scope="module")
def two_sets():
    return [render(sample_people(120, "easy", seed), 64).image for seed in (1, 2)]


# the network and its training


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_shapes_for_every_depth(depth):
    net = AttributeCNN(("a", "b"), depth, width=8, size=32, hidden=12)
    convolutions = [m for m in net.body if isinstance(m, torch.nn.Conv2d)]
    assert [c.out_channels for c in convolutions] == [8 * 2**i for i in range(depth)]
    assert net.features(torch.zeros(3, 3, 32, 32)).shape == (3, 12) and net(torch.zeros(3, 3, 32, 32)).shape == (3, 2)


def test_bad_networks_and_pictures_get_one_sentence():
    for bad in (dict(depth=0), dict(depth=3, size=20), dict(attributes=())):
        with pytest.raises(UsageError):
            AttributeCNN(**bad)
    net = AttributeCNN(("a",), 1, size=16)
    for x in (torch.zeros(1, 1, 16, 16), torch.zeros(1, 4, 16, 16), torch.zeros(1, 3, 32, 32), torch.zeros(3, 16, 16)):
        with pytest.raises(UsageError, match="shape"):
            net(x)


def test_it_learns_what_can_be_learned():
    faces = ProceduralFaces(n_people=300, size=16, seed=1)
    net = run("classify", faces, size=16, batch=32, steps=80, seed=0, progress=False, options=dict(attributes="bald,eyeglasses", depth=2, width=12, norm=True)).method.network
    scores = attribute_scores(*examine(net, ProceduralFaces(n_people=200, size=16, seed=2)), net.attributes)
    assert all(s["ap"] > 0.6 and s["balanced"] > 0.6 for s in scores.values()), scores


def test_resumed_training_is_the_same_to_the_last_bit(faces, tmp_path):
    options = dict(attributes="smiling,hat", depth=2, width=4, norm=True)
    settings = dict(size=16, batch=8, seed=5, progress=False, options=options, checkpoint_every=3, device="cpu")
    whole = run("classify", faces, steps=6, out=tmp_path / "whole", **settings)
    run("classify", faces, steps=3, out=tmp_path / "parts", **settings)
    parts = run("classify", faces, steps=6, out=tmp_path / "parts", resume=True, **settings)
    a, b = whole.method.state_dict(), parts.method.state_dict()
    assert parts.step == 6 and all(torch.equal(a[k], b[k]) for k in a)
    assert [r["bce"] for r in whole.history][-3:] == [r["bce"] for r in parts.history][-3:]
    again = load_method(tmp_path / "whole", device="cpu")
    assert again.config["attributes"] == ["smiling", "hat"]
    space = FeatureSpace(tmp_path / "whole")
    x = faces.batch([0, 1]).image
    assert torch.equal(space(x), again.network.features(x))


def test_the_method_takes_the_attributes_of_the_data(faces):
    trainer = run("classify", faces, size=16, batch=8, steps=2, progress=False, options=dict(depth=1, width=4))
    assert trainer.method.network.attributes == ATTRIBUTES
    few = AttributeMethod("hat,bald", 16, 1, 4).for_data(faces)
    assert few.columns == [ATTRIBUTES.index("hat"), ATTRIBUTES.index("bald")]
    rows = trainer.method.preview(faces.batch(range(4)))
    assert all(v.shape == (4, 3, 16, 16) for v in rows.values())


def test_data_that_does_not_fit_gets_one_sentence(faces, tmp_path):
    with pytest.raises(DataError, match="no attribute 'wings'"):
        run("classify", faces, size=16, steps=1, progress=False, options=dict(attributes="wings"))
    for k in range(3):
        write_image(to_pil(faces.batch([k]).image), tmp_path / f"{k}.png")
    with pytest.raises(DataError, match="does not know its attributes"):
        run("classify", tmp_path, size=16, steps=1, progress=False)
    with pytest.raises(DataError, match="no attributes"):
        AttributeMethod(size=16, depth=1).step(faces.batch([0]).image, None)


def test_depth_table_on_a_celeba_folder(faces, tmp_path):
    base = tmp_path / "celeba"
    (base / "img_align_celeba").mkdir(parents=True)
    names = [f"{k + 1:06d}.jpg" for k in range(12)]
    for k, name in enumerate(names):
        write_image(to_pil(faces.batch([k]).image).resize((44, 54)), base / "img_align_celeba" / name)
    (base / "identity_CelebA.txt").write_text("".join(f"{n} {k}\n" for k, n in enumerate(names)))
    (base / "list_attr_celeba.txt").write_text("12\nSmiling Male \n" + "".join(f"{n} {1 if k % 2 else -1} {1 if k % 3 else -1}\n" for k, n in enumerate(names)))
    celeba = open_faces(tmp_path, 16)
    assert targets_of(celeba, ["Smiling"])[:, 0].tolist() == [0.0, 1.0] * 6
    rows = depth_table(celeba, celeba, ["Smiling"], depths=(1, 2), steps=2, test=celeba, width=4)
    assert [r["depth"] for r in rows] == [1, 2] and all(0 <= r[k] <= 1 for r in rows for k in ("train", "valid", "balanced", "test"))
    assert run("classify", celeba, size=16, batch=4, steps=1, progress=False, options=dict(depth=1)).method.network.attributes == ("Smiling", "Male")


# scores


def test_scores_by_hand():
    y = torch.tensor([[1.0, 0], [1, 0], [0, 0], [0, 1]])
    z = torch.tensor([[2.0, -1], [-1, -1], [-2, -1], [-3, -1]])
    s = attribute_scores(z, y, ["a", "b"])
    assert s["a"]["accuracy"] == 0.75 and s["a"]["balanced"] == 0.75 and s["a"]["ap"] == 1
    assert s["b"]["accuracy"] == s["b"]["constant"] == 0.75 and s["b"]["balanced"] == 0.5
    assert average_precision(torch.tensor([1.0, 2, 3]), torch.tensor([1.0, 0, 0])) == pytest.approx(1 / 3)
    assert confusion_matrix(torch.tensor([0, 2, 2]), torch.tensor([0, 1, 2]), 3).tolist() == [[1, 0, 0], [0, 0, 1], [0, 0, 1]]
    with pytest.raises(UsageError):
        attribute_scores(z, y, ["a"])
    with pytest.raises(UsageError):
        confusion_matrix(torch.zeros(3).long(), torch.zeros(2).long())


def test_where_it_looks():
    torch.manual_seed(0)
    net = AttributeCNN(("a", "b"), 1, width=4, size=16, hidden=8).eval()
    net.body[0].weight.data.zero_(), net.body[0].bias.data.zero_()
    net.body[0].weight.data[:, 0, 1, 1] = 1  # sees red alone
    left = torch.zeros(8, 4, 8, 8)
    left[:, :, :, :4] = torch.rand(8, 4, 8, 4)
    net.hidden[0].weight.data = left.flatten(1)  # and the left half alone
    net.answers.weight.data.fill_(1.0)
    x = torch.rand(2, 3, 16, 16)
    s = saliency(net, x, "a")
    assert s.shape == (2, 1, 16, 16) and s.max() == 1 and s[..., 8:].max() == 0
    o = occlusion_map(net, x[0], "b", patch=4, stride=4)
    assert o.shape == (1, 1, 16, 16) and o[..., :5].mean() > 10 * o[..., 11:].abs().mean()
    assert all(p.requires_grad for p in net.parameters())
    with pytest.raises(UsageError, match="wings"):
        saliency(net, x, "wings")


# the feature space


def test_the_weights_that_ship_are_version_1():
    file = WEIGHTS / f"{SPACE}.safetensors"
    assert hashlib.sha256(file.read_bytes()).hexdigest() == SHA, "version 1 never changes; make a version 2"
    assert file.stat().st_size < 1_000_000 and SHA in (WEIGHTS / f"{SPACE}.md").read_text()
    net = load_attribute_cnn()
    assert not set(net.attributes) & set(HELD_BACK) and not net.training and not any(p.requires_grad for p in net.parameters())
    start = time.perf_counter()
    FeatureSpace()
    assert time.perf_counter() - start < 0.2


def test_it_recognises_people_it_has_never_seen():
    people = ProceduralFaces(n_people=200, size=64, seed=4321)
    space = feature_space()
    names = [n for n in ("eyeglasses", "bald", "hat", "beard", "curly_hair", "black_hair")]
    with torch.no_grad():
        z = space.net(people.batch(range(200)).image)[:, [space.net.attributes.index(n) for n in names]]
    assert all(s["ap"] > 0.85 for s in attribute_scores(z, targets_of(people, names), names).values())


def test_features_take_any_size_and_never_train(two_sets):
    space = FeatureSpace().train()
    assert not space.training and not space.net.training
    a = features(two_sets[0][:20])
    assert a.shape == (20, 128) and a.min() >= 0 and a.isfinite().all()
    assert torch.equal(a, space(two_sets[0][:20], batch=7)) or torch.allclose(a, space(two_sets[0][:20], batch=7), atol=1e-5)
    big = F.interpolate(two_sets[0][:20], 128, mode="bilinear")
    assert (features(big) - a).norm() < 0.5 * (a - a.roll(1, 0)).norm()
    below = FeatureSpace(layer="body")
    assert below(two_sets[0][:2]).shape == (2, below.length) == (2, 2048)
    with pytest.raises(UsageError, match="layer"):
        FeatureSpace(layer="top")
    for bad in (torch.zeros(2, 1, 64, 64), torch.zeros(0, 3, 64, 64), torch.zeros(3, 64, 64)):
        with pytest.raises(UsageError):
            features(bad)


def test_distances_of_gaussians_are_the_closed_form():
    g = torch.Generator().manual_seed(0)
    mean, std = torch.tensor([1.0, -2, 0.5, 0]), torch.tensor([0.5, 1, 2, 1])
    a, b = torch.randn(200_000, 4, generator=g, dtype=torch.double), torch.randn(200_000, 4, generator=g, dtype=torch.double) * std + mean
    assert frechet_distance(a, b) == pytest.approx(float(mean.square().sum() + (1 - std).square().sum()), rel=0.02)
    assert frechet_distance(a[:500], a[:500]) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a[:500], b[:400]) == pytest.approx(frechet_distance(b[:400], a[:500]))
    for bad in ((a[:1], b), (a[:, :2], b), (a * float("nan"), b), (a[0], b[0])):
        with pytest.raises(UsageError):
            frechet_distance(*bad)


def test_fewer_samples_than_features_is_no_accident():
    a, b = torch.randn(20, 64), torch.randn(20, 64)
    assert 0 < frechet_distance(a, b) < 1000


def test_kernel_distance_has_no_bias():
    g = torch.Generator().manual_seed(1)
    draws = torch.tensor([kernel_distance(torch.randn(40, 6, generator=g), torch.randn(40, 6, generator=g)) for _ in range(200)])
    assert draws.mean().abs() < 3 * draws.std() / 200**0.5
    assert kernel_distance(torch.randn(40, 6, generator=g), torch.randn(40, 6, generator=g) + 1) > 0.5


def test_frechet_agrees_with_torchmetrics():
    metrics = pytest.importorskip("torchmetrics.image.fid")
    a, b = torch.randn(100, 16).double(), torch.randn(120, 16).double() * 1.5 + 0.3
    other = metrics._compute_fid(a.mean(0), a.T.cov(), b.mean(0), b.T.cov())
    assert frechet_distance(a, b) == pytest.approx(float(other), rel=1e-4)


def test_fid_orders_what_has_an_order(two_sets):
    real, other = two_sets
    at = features(real)
    floor = frechet_distance(at, features(other))
    for how, amounts in {"blur": (0.5, 1, 3), "noise": (0.05, 0.1, 0.3), "blocks": (0.125, 0.5, 1)}.items():
        d = [floor] + [frechet_distance(at, features(spoil(other, how, a))) for a in amounts]
        assert all(x < y for x, y in zip(d, d[1:])), (how, d)
    nothing = fid(real, torch.rand(120, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1)
    assert nothing > d[-1] and floor < 0.15 * nothing
    hard = frechet_distance(at, features(render(sample_people(120, "hard", 3), 64).image))
    few = frechet_distance(at, features(other[:4].repeat(30, 1, 1, 1)))
    assert hard > 1.5 * floor and few > 1.5 * floor, "other scenes, and a generator that knows four faces"
    with pytest.raises(UsageError):
        spoil(real, "magic", 1)


def test_damaged_and_foreign_weights_get_one_sentence(tmp_path):
    with pytest.raises(WeightsError, match="no checkpoint"):
        FeatureSpace("deepswap-attributes-v0")
    data = (WEIGHTS / f"{SPACE}.safetensors").read_bytes()
    (tmp_path / "short.safetensors").write_bytes(data[:-1000])
    with pytest.raises(WeightsError):
        FeatureSpace(tmp_path / "short.safetensors")
    broken = bytearray(data)
    broken[-5] ^= 1
    (tmp_path / "broken.safetensors").write_bytes(broken)
    with pytest.raises(WeightsError, match="checksum"):
        FeatureSpace(tmp_path / "broken.safetensors")
    write_tensors(tmp_path / "other.safetensors", {"a": torch.zeros(2)}, {"kind": "other"})
    with pytest.raises(WeightsError, match="no attribute network"):
        FeatureSpace(tmp_path / "other.safetensors")
    faces = ProceduralFaces(n_people=8, size=16)
    run("autoencoder", faces, size=16, batch=4, steps=1, progress=False, out=tmp_path / "ae")
    with pytest.raises(WeightsError, match="no attribute network"):
        FeatureSpace(tmp_path / "ae")


# transfer


class Corners(torch.nn.Module):
    "A fixed encoder for tests: sixteen means of a picture, and a norm that must not learn."

    length = 48

    def __init__(self):
        super().__init__()
        self.norm = torch.nn.BatchNorm2d(3)

    def forward(self, x):
        return F.adaptive_avg_pool2d(self.norm(x), 4).flatten(1)


def test_transfer_trains_the_head_alone(faces):
    net = Transfer(Corners(), ("bald", "black_hair"), width=16)
    before = {k: v.clone() for k, v in net.encoder.state_dict().items()}
    heads, seen = [p.clone() for p in net.head.parameters()], []
    x, y = faces.batch(range(96)).image, targets_of(faces, net.attributes)
    net.fit(x, y, epochs=3, each=lambda epoch, _: seen.append(epoch))
    assert all(torch.equal(v, net.encoder.state_dict()[k]) for k, v in before.items())
    assert any(not torch.equal(a, b) for a, b in zip(heads, net.head.parameters())) and seen == [1, 2, 3]
    assert not net.training and not net.train().encoder.training
    assert [type(m).__name__ for m in net.head] == ["Linear", "BatchNorm1d", "ReLU", "Dropout"] * 3 + ["Linear"]


def test_resnet_says_so_when_it_has_no_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(WeightsError, match="no weights of ResNet-50 on this machine"):
        ResNetEncoder()
    with pytest.raises(WeightsError, match="There is no file"):
        ResNetEncoder(tmp_path / "gone.pth")
    (tmp_path / "resnet50-0676ba61.pth").write_bytes(b"something else")
    with pytest.raises(WeightsError, match="checksum"):
        ResNetEncoder(tmp_path / "resnet50-0676ba61.pth")
    (tmp_path / "x.safetensors").write_bytes(b"something else")
    with pytest.raises(WeightsError, match="can't be read"):
        ResNetEncoder(tmp_path / "x.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(WeightsError, match="not a ResNet-50"):
        ResNetEncoder(tmp_path / "a.safetensors")

    def offline(*args, **kwargs):
        raise OSError("no route")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
    with pytest.raises(WeightsError, match="can't be downloaded"):
        ResNetEncoder("download")


def test_resnet_from_a_file(tmp_path):
    from torchvision.models import resnet50

    torch.manual_seed(0)
    save_file(resnet50().state_dict(), tmp_path / "resnet.safetensors")
    encoder = ResNetEncoder(tmp_path / "resnet.safetensors", size=32)
    x = torch.rand(2, 3, 16, 16) * 2 - 1
    assert encoder(x).shape == (2, 2048) and not encoder.train().training
    assert Transfer(encoder, ("hat",))(x).shape == (2, 1)


# real or fake


def test_fakes_are_pictures_that_differ():
    x = render(sample_people(60, "easy", 1), 32).image
    made = cheap_fakes(x, seed=1)
    assert list(made) == list(FAKES)
    for name, fake in made.items():
        assert fake.shape == x.shape and fake.abs().max() <= 1 and (fake - x).abs().mean() > 0.01, name
    assert all(torch.equal(a, b) for a, b in zip(made.values(), cheap_fakes(x, seed=1).values()))


def test_the_judge_is_calibrated_and_knows_what_it_was_shown():
    real, new, base, more = (render(sample_people(240, "easy", seed), 32).image for seed in (1, 2, 3, 4))
    kinds = ("softened", "checkered")
    judge = RealOrFake(32, width=8).fit(real, {k: v for k, v in cheap_fakes(base).items() if k in kinds}, steps=60)
    again = RealOrFake(32, width=8).fit(real, {k: v for k, v in cheap_fakes(base).items() if k in kinds}, steps=60)
    test = cheap_fakes(more)
    assert all(judge.share(test[k]) < 0.2 for k in kinds) and judge.share(new) > 0.75
    assert judge.share(test["pasted"]) > 0.3, "the leak: it does not know what it was not shown"
    assert torch.allclose(judge.judge(new), again.judge(new), atol=1e-4)
    with pytest.raises(DataError):
        RealOrFake(32).fit(real, {})
    with pytest.raises(UsageError):
        judge.share(torch.zeros(2, 3, 64, 64))


@pytest.mark.parametrize("command", [["classify.py"], ["classify.py", "--depth"], ["classify_features.py"]])
def test_benchmarks_run(repo, tmp_path, command):
    out = ["--out", str(tmp_path)] if "features" in command[0] else []
    done = subprocess.run([sys.executable, str(repo / "benchmarks" / command[0]), *command[1:], "--fast", *out], capture_output=True, text=True, cwd=repo)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "torch" in json.loads(done.stdout)
