"The identity chapter: the margin loss, the encoders behind one interface, verification, and what bad input gets."

import hashlib
import json
import math

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from deepswap.core import ARCFACE5, CANONICAL5, DataError, UsageError, WeightsError, write_image
from deepswap.identity import (
    ARCFACE_SQUARE, OWN_SQUARE, OWN_WEIGHTS, ArcFace, FaceEncoder, FaceFilters, Fisher, IdentityMethod, IdentityNet, MobileFaceNet,
    codes_of, crop_square, get_encoder, identity_faces, mean_codes, name_people, naming_task, save_encoder, verify, widened)
from deepswap.classify import WEIGHTS
from deepswap.people import IDENTITY, STYLE
from deepswap.train import load_method, run

torch.set_num_threads(1)
SMALL = "procedural:n=6,scenes=3,preset=hard,seed=5"


@pytest.fixture(scope="module")
def task():
    return naming_task(20)


@pytest.fixture(scope="module")
def own():
    return get_encoder("own", "cpu")


# ---- the loss


@pytest.mark.parametrize("scale, margin", [(1., 0.), (8., .3), (64., .5)])
def test_arcface_is_equation_4_1(scale, margin):
    "Against a loop over angles."
    torch.manual_seed(0)
    arc, z, y = ArcFace(12, 5, scale, margin), torch.randn(20, 12), torch.randint(5, (20,))
    total = 0.
    for zi, yi in zip(z.double(), y.tolist()):
        theta = [math.acos(float(F.cosine_similarity(zi, w.double(), dim=0))) for w in arc.weight.detach()]
        if theta[yi] + margin > math.pi:
            pytest.fail("the seed gives an angle that (4.1) is not meant for")
        logits = torch.tensor([scale * math.cos(t + (margin if j == yi else 0)) for j, t in enumerate(theta)])
        total -= float(logits.log_softmax(0)[yi])
    assert arc(z, y).item() == pytest.approx(total / 20, rel=1e-3)


def test_without_a_margin_it_is_softmax_over_cosines():
    arc, z, y = ArcFace(6, 4, 10., 0.), torch.randn(9, 6), torch.randint(4, (9,))
    assert torch.allclose(arc(z, y), F.cross_entropy(10 * F.normalize(z) @ F.normalize(arc.weight).T, y), atol=1e-5)


def test_a_margin_makes_the_loss_larger():
    torch.manual_seed(1)
    arc, z, y = ArcFace(6, 4, 10., 0.), torch.randn(50, 6), torch.randint(4, (50,))
    losses = []
    for arc.margin in (0., .2, .4):
        losses.append(arc(z, y).item())
    assert losses == sorted(losses) and losses[2] > losses[0] + .5


@pytest.mark.parametrize("margin", [.1, .5, 1.2])
def test_the_logit_falls_all_the_way_and_has_no_step(margin):
    theta = torch.linspace(0.01, math.pi - 1e-3, 5000, dtype=torch.double)
    logit = widened(theta.cos(), margin)
    assert (logit.diff() < 0).all()
    assert logit.diff().abs().max() < 2 * float(theta[1] - theta[0])
    inside = theta + margin < math.pi
    assert torch.allclose(logit[inside], (theta[inside] + margin).cos(), atol=1e-3)
    assert ((theta[~inside] + margin).cos().diff() > 0).all()                # which is what it is there to avoid


def test_a_code_on_the_far_side_is_pulled_home():
    "Where cos(theta + m) rises again, the gradient must still turn the code towards its person."
    arc = ArcFace(2, 2, 16., .5)
    with torch.no_grad():
        arc.weight.copy_(torch.tensor([[1., 0.], [0., 1.]]))
    angle = torch.tensor(math.pi - .2, requires_grad=True)
    arc(torch.stack([angle.cos(), -angle.sin()])[None], torch.tensor([0])).backward()
    assert angle.grad > .1


@pytest.mark.parametrize("cos", [1., -1.])
def test_gradients_are_finite_at_the_poles(cos):
    arc = ArcFace(2, 2)
    with torch.no_grad():
        arc.weight.copy_(torch.tensor([[1., 0.], [0., 1.]]))
    z = torch.tensor([[cos, 0.]], requires_grad=True)
    arc(z, torch.tensor([0])).backward()
    assert torch.isfinite(z.grad).all() and torch.isfinite(arc.weight.grad).all()


def test_angles_keep_their_digits_under_autocast():
    arc, z, y = ArcFace(64, 500), torch.randn(8, 64), torch.arange(8)
    with torch.autocast("cpu", torch.bfloat16):
        low = arc(z, y)
    assert torch.equal(low, arc(z, y))


@pytest.mark.parametrize("kwargs", [{"classes": 1}, {"dim": 0}, {"margin": -.1}, {"margin": 2.}, {"scale": 0.}])
def test_arcface_refuses_nonsense(kwargs):
    with pytest.raises(UsageError):
        ArcFace(**{"dim": 4, "classes": 3} | kwargs)


# ---- what is seen


def test_squares_are_where_the_templates_say():
    x, y, side = ARCFACE_SQUARE
    assert torch.allclose((CANONICAL5 - torch.tensor([x, y])) / side * 112, ARCFACE5, atol=1e-3)
    assert min(*OWN_SQUARE[:2]) >= 0 and max(OWN_SQUARE[:2]) + OWN_SQUARE[2] <= 1.0001


@pytest.mark.parametrize("side", [64, 100, 256])
def test_crop_square_shows_the_same_at_any_size(side):
    "A ramp is a ramp: the left and top edge of the crop lie where they should."
    ramp = (torch.arange(side) + .5) / side
    images = torch.stack([ramp.expand(side, side), ramp[:, None].expand(side, side), torch.zeros(side, side)])[None]
    seen = crop_square(images, (.2, .1, .5), 40)
    want = (torch.arange(40) + .5) / 40 * .5
    assert torch.allclose(seen[0, 0, 20, 2:-2], .2 + want[2:-2], atol=.01) and torch.allclose(seen[0, 1, 2:-2, 20], .1 + want[2:-2], atol=.01)


def test_filters_ignore_the_strength_of_light():
    faces = naming_task(3).gallery.batch(range(6)).image.clamp(-.8, .2)
    seen = F.interpolate(faces, (48, 48))
    f = FaceFilters()
    bright = (seen + 1) * 1.5 - 1
    change = lambda a, b: float((a - b).norm() / (a - a.mean(0)).norm())
    assert change(f(seen), f(bright)) < .15 and change(f(seen), f(seen.flip(3))) > .5


def test_filters_know_directions():
    "A vertical edge lights up right or left, and nothing up or down."
    x = torch.full((1, 3, 48, 48), -.5)
    x[..., 24:] = .5
    e = FaceFilters()(x)[0, :8, 7, 5:10].amax(1)
    assert e[0] > .5 and e[2] < .05 and e[4] < .05 and e[6] < .05


def test_fisher_forgets_what_varies_in_everybody():
    "One coordinate is loud in every picture, one says who it is."
    torch.manual_seed(0)
    who = torch.arange(20).repeat_interleave(30)
    x = torch.stack([20 * torch.randn(600), who.float() + .1 * torch.randn(600), torch.randn(600)], 1)
    weight, bias = Fisher(20, 3).add(x[:200], who[:200]).add(x[200:], who[200:]).solve(1, shrink=1e-6)
    assert abs(weight[0, 1]) > 50 * abs(weight[0, 0])
    assert abs(float((x @ weight.T + bias).mean())) < .1


def test_fisher_copes_with_fewer_people_than_numbers():
    weight, bias = Fisher(3, 10).add(torch.randn(12, 10), torch.arange(12) % 3).solve(8)
    assert weight.shape == (8, 10) and (weight[2:] == 0).all() and weight[:2].abs().sum() > 0 and torch.isfinite(bias).all()


# ---- data and training


def test_the_naming_task_changes_style_and_keeps_the_person(task):
    g, p = task.gallery.people, task.probes.people
    assert torch.equal(g.identity.values[::4], p.identity.values[::5]) and torch.equal(task.gallery.person[::4], task.probes.person[::5])
    one = p.style.values[:5]
    assert len(one.unique(dim=0)) == 5 and not any((s == g.style.values).all(1).any() for s in one)
    assert len(IDENTITY) > 20 and len(STYLE) > 10


def test_identity_faces_changes_style_in_every_picture():
    faces = identity_faces(SMALL)
    assert len(faces) == 18 and len(faces.person.unique()) == 6 and faces.size == 64
    mine = faces.people[faces.person == faces.person[0]]
    assert len(mine.identity.values.unique(dim=0)) == 1 and len(mine.style.values.unique(dim=0)) == 3


def test_a_folder_per_person(tmp_path):
    "Real files: names come from the folders, faces are found and aligned."
    faces = identity_faces("procedural:n=2,scenes=2,preset=easy,seed=1", 128)
    for k in range(4):
        (tmp_path / f"p{faces.person[k]}").mkdir(exist_ok=True)
        write_image(faces.batch([k]).image, tmp_path / f"p{faces.person[k]}" / f"{k}.png")
    found = identity_faces(tmp_path, 64)
    assert found.person.tolist() == [0, 0, 1, 1] and found.batch([0]).image.shape == (1, 3, 64, 64)
    flat = tmp_path / "flat"
    flat.mkdir()
    write_image(faces.batch([0]).image, flat / "a.png")
    with pytest.raises(DataError, match="who is who"):
        identity_faces(flat)


def test_one_person_is_refused():
    with pytest.raises(DataError, match="one person"):
        identity_faces("procedural:person=3,n=2,scenes=2")


def test_training_starts_from_fisher_and_can_be_loaded_again(tmp_path, task):
    faces = identity_faces("procedural:n=30,scenes=6,preset=hard,seed=5")
    start = IdentityMethod().for_data(faces)
    right = lambda m: float((name_people(lambda x: m.encoder(m.look(x)), task) == task.probes.person).float().mean())
    assert right(start.eval()) > .25                                         # guessing: 0.05
    done = run("identity", faces, size=64, batch=30, steps=4, device="cpu", out=tmp_path / "run", progress=False)
    assert done.history[-1]["arc"] > 0 and done.method.config["people"] == 30 and done.method.arc.margin == pytest.approx(.3)
    again, x = load_method(tmp_path / "run", averaged=False, device="cpu"), task.probes.batch([0, 1]).image
    assert torch.allclose(again.encoder(again.look(x)), done.method.eval().encoder(done.method.look(x)), atol=1e-5)
    e = get_encoder(tmp_path / "run", "cpu")
    assert e.dim == 128 and torch.allclose(e.embed(x).norm(dim=1), torch.ones(2), atol=1e-5)


def test_the_margin_grows_during_the_first_fifth():
    m = IdentityMethod()
    seen = [(m.before_step(k, 100), m.arc.margin)[1] for k in (0, 10, 20, 99)]
    assert seen == pytest.approx([0, .15, .3, .3])


@pytest.mark.parametrize("size", [32, 100])
def test_sizes_that_do_not_fit_are_refused(size):
    with pytest.raises(UsageError):
        IdentityMethod(size=size)
    with pytest.raises(UsageError):
        IdentityNet(size)


# ---- verification


def test_roc_against_a_slow_loop():
    torch.manual_seed(2)
    z, who = torch.randn(25, 4), torch.arange(25) % 6
    z += 1.2 * torch.randn(6, 4)[who]
    v = verify(z, who)
    pairs = [(float(F.cosine_similarity(z[i], z[j], dim=0)), bool(who[i] == who[j])) for i in range(25) for j in range(i)]
    yes, no = [s for s, same in pairs if same], [s for s, same in pairs if not same]
    assert (v.same, v.different) == (len(yes), len(no))
    assert v.auc == pytest.approx(sum(a > b for a in yes for b in no) / len(yes) / len(no), abs=2e-3)
    t = v.threshold_at(.1)
    assert sum(s >= t - 1e-6 for s in no) / len(no) <= .1 and v.tar_at(.1) == pytest.approx(sum(s >= t - 1e-6 for s in yes) / len(yes), abs=1e-6)
    assert abs(v.far[v.tar + v.far >= 1][0] - v.eer) < .1


def test_perfect_and_useless_codes():
    who = torch.arange(40) % 4
    perfect = verify(torch.eye(4)[who], who)
    assert perfect.auc == 1 and perfect.tar_at(.01) == 1 and perfect.eer == 0
    same = verify(torch.ones(40, 3), who)                                     # all alike: accepted together, so half
    assert same.auc == pytest.approx(.5) and same.tar_at(.5) == 0
    torch.manual_seed(0)
    assert verify(torch.randn(300, 8), torch.arange(300) % 30).auc == pytest.approx(.5, abs=.05)


def test_what_cannot_be_measured_is_said():
    v = verify(torch.randn(10, 4), torch.arange(10) % 2)
    with pytest.raises(UsageError, match="can't be measured"):
        v.tar_at(1e-4)
    for labels in (torch.zeros(5), torch.arange(5)):
        with pytest.raises(DataError):
            verify(torch.randn(5, 3), labels)


# ---- encoders


@pytest.mark.parametrize("side", [48, 64, 112, 256])
def test_own_takes_crops_of_any_side(own, side):
    x = torch.rand(2, 3, side, side) * 2 - 1
    z = own.embed(x)
    assert z.shape == (2, own.dim) and torch.allclose(z.norm(dim=1), torch.ones(2), atol=1e-5)


def test_own_is_frozen_and_passes_gradients(own):
    x = (torch.rand(1, 3, 64, 64) - .5).requires_grad_()
    before = {k: v.clone() for k, v in own.state_dict().items()}
    holder = torch.nn.Sequential(own).train()
    (1 - (holder(x) * own.embed(-x.detach())).sum()).backward()
    assert x.grad.abs().sum() > 0 and torch.isfinite(x.grad).all()
    assert not any(p.requires_grad for p in own.parameters()) and all(torch.equal(v, before[k]) for k, v in own.state_dict().items())
    assert not any(m.training for m in own.modules())


def test_own_gradient_leads_to_the_other_person(own, task):
    "Following it by small steps makes a picture more like another person: a generator can learn from it."
    a, b = task.gallery.batch([0]).image, task.gallery.batch([4]).image
    goal, x = own.embed(b).detach(), a.clone().requires_grad_()
    start = float((own.embed(a) * goal).sum())
    for _ in range(10):
        g, = torch.autograd.grad((own.embed(x) * goal).sum(), x)
        x = (x + .01 * g.sign()).detach().requires_grad_()
    assert float((own.embed(x.detach()) * goal).sum()) > start + .2


def test_own_names_people_it_has_never_seen(own):
    task = naming_task(60)
    right = (name_people(own.embed, task) == task.probes.person).float().mean()
    assert right > .9                                                        # guessing: 0.017
    v = verify(codes_of(own.embed, task.probes), task.probes.person)
    assert v.auc > .97 and v.tar_at(.01) > .7


def test_own_holds_the_person_and_not_the_style(own, task):
    "The same person in another style and scene is nearer than another in the same."
    from deepswap.autoencoder import render_aligned
    from deepswap.people import exact_swap, sample_people
    a, b = sample_people(24, "hard", seed=900_100), sample_people(24, "hard", seed=900_101)
    picture = lambda p: own.embed(render_aligned(p, 64)[0].image)
    z, restyled, other = picture(a), picture(exact_swap(a, b)), picture(exact_swap(b, a))
    assert ((z * restyled).sum(1) > (z * other).sum(1)).float().mean() > .85


def test_own_weights_are_small_and_documented(own):
    file = WEIGHTS / f"{OWN_WEIGHTS}.safetensors"
    card = (WEIGHTS / f"{OWN_WEIGHTS}.md").read_text()
    assert file.stat().st_size < 5_000_000 and hashlib.sha256(file.read_bytes()).hexdigest() in card


def test_saved_and_read_again(tmp_path):
    net, x = IdentityNet(48, 4, 8).eval(), torch.rand(3, 3, 64, 64)
    path = save_encoder(net, tmp_path / "e.safetensors", {"steps": 3})
    e = get_encoder(path, "cpu")
    by_hand = FaceEncoder(net, "e", 48, 8, OWN_SQUARE, mirror=True)
    assert e.dim == 8 and e.name == "e" and torch.allclose(e.embed(x), by_hand.embed(x), atol=5e-3)
    assert get_encoder(e) is e


def mobile_file(path, change=lambda t: t):
    torch.manual_seed(0)
    tensors = {k: v for k, v in MobileFaceNet().state_dict().items() if not k.endswith("num_batches_tracked")}
    save_file(change(tensors), path)
    return path


def test_mobilefacenet_layout(tmp_path):
    e = get_encoder(mobile_file(tmp_path / "m.safetensors"), "cpu")
    x = torch.rand(2, 3, 256, 256).requires_grad_()
    z = e.embed(x)
    z[:, 0].sum().backward()
    assert (e.dim, e.size) == (128, 112) and torch.allclose(z.norm(dim=1), torch.ones(2), atol=1e-5) and x.grad.abs().sum() > 0


@pytest.mark.parametrize("change, says", [
    (lambda t: {k: v for k, v in t.items() if k != "conv3.bias"}, "lacks conv3.bias"),
    (lambda t: t | {"extra": torch.zeros(1)}, "unknown extra"),
    (lambda t: t | {"conv3.bias": torch.zeros(64)}, r"conv3.bias is \(64,\)")])
def test_another_layout_is_refused(tmp_path, change, says):
    with pytest.raises(WeightsError, match=says):
        get_encoder(mobile_file(tmp_path / "m.safetensors", change), "cpu")


def test_damaged_and_missing_files(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    with pytest.raises(WeightsError, match="download=True"):
        get_encoder("facenet", "cpu")
    with pytest.raises(WeightsError, match="no identity encoder"):
        get_encoder(tmp_path / "nothing.safetensors", "cpu")
    own = (WEIGHTS / f"{OWN_WEIGHTS}.safetensors").read_bytes()
    for name, data in (("short", own[:5000]), ("changed", own[:-100] + bytes(100)), ("text", b"hello")):
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(data)
        with pytest.raises(WeightsError):
            get_encoder(path, "cpu")
    with pytest.raises(WeightsError, match="no identity encoder"):
        get_encoder(WEIGHTS / "deepswap-attributes-v1.safetensors", "cpu")


def test_facenet_from_a_file(tmp_path, monkeypatch):
    "Random weights in facenet-pytorch's own layout, with its classifier on top, found in torch's cache and by path."
    from facenet_pytorch import InceptionResnetV1
    torch.manual_seed(0)
    path = tmp_path / "hub" / "checkpoints" / "20180402-114759-vggface2.pt"
    path.parent.mkdir(parents=True)
    torch.save(InceptionResnetV1(classify=True, num_classes=5).state_dict(), path)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    e = get_encoder("facenet", "cpu")
    assert (e.name, e.size, e.dim) == ("facenet", 160, 512) and e.embed(torch.zeros(1, 3, 64, 64)).shape == (1, 512)
    with pytest.raises(WeightsError, match="SHA-256"):
        get_encoder(path, "cpu", sha256="0" * 64)
    path.with_suffix(".sha256").write_text("0" * 64)
    with pytest.raises(WeightsError, match="SHA-256"):
        get_encoder("facenet", "cpu")
    bad = tmp_path / "bad.pt"
    torch.save({"weights": torch.zeros(3)}, bad)
    with pytest.raises(WeightsError, match="InceptionResnetV1"):
        get_encoder(bad, "cpu")
    bad.write_bytes(b"nothing")
    with pytest.raises(WeightsError):
        get_encoder(bad, "cpu")


def test_a_download_that_fails_is_one_sentence(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("no network")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    with pytest.raises(WeightsError, match="no network"):
        get_encoder("facenet", "cpu", download=True)
    assert not [*(tmp_path / "hub").rglob("*.pt")]


def test_a_download_keeps_its_checksum(tmp_path, monkeypatch):
    from facenet_pytorch import InceptionResnetV1
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda url, path, progress: torch.save(InceptionResnetV1().state_dict(), path))
    assert get_encoder("facenet", "cpu", download=True).dim == 512
    file, = (tmp_path / "hub").rglob("*.pt")
    with open(file, "ab") as f:
        f.write(b"x")
    with pytest.raises(WeightsError, match="SHA-256"):
        get_encoder("facenet", "cpu")


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 1, 64, 64), (1, 3, 64, 48)])
def test_pictures_of_another_shape(own, shape):
    with pytest.raises(UsageError, match="crops have shape"):
        own.embed(torch.zeros(shape))


def test_flat_and_extreme_pictures_give_codes(own):
    for x in (torch.zeros(1, 3, 64, 64), torch.ones(1, 3, 64, 64), -torch.ones(1, 3, 64, 64), 9 * torch.randn(1, 3, 64, 64)):
        x = x.requires_grad_()
        z = own.embed(x)
        z[:, 0].sum().backward()
        assert torch.isfinite(z).all() and torch.isfinite(x.grad).all()


def test_mobilefacenet_on_photographs(shared):
    "The shipped layout and the shared file agree: smiling people are found among neutral ones."
    from deepswap.core import read_image
    from deepswap.faces import align_photo, find_faces
    e = get_encoder(shared / "data/weights/mobilefacenet_foamliu.safetensors", "cpu")
    names = [p.name for p in sorted((shared / "data/london/neutral").glob("*.jpg")) if (shared / "data/london/smiling" / p.name).exists()][:8]
    def codes(folder):
        crops = []
        for n in names:
            image = read_image(shared / "data/london" / folder / n)
            crops.append(align_photo(image, find_faces(image)[0].landmarks, 256)[0])
        with torch.no_grad():
            return e.embed(torch.cat(crops))
    a, b = codes("neutral"), codes("smiling")
    assert ((b @ a.T).argmax(1) == torch.arange(len(names))).all()
    v = verify(torch.cat([a, b]), torch.arange(len(names)).repeat(2))
    assert v.auc > .95


def test_mean_codes_are_means():
    codes = F.normalize(torch.randn(6, 4))
    m = mean_codes(codes, torch.tensor([0, 0, 1, 1, 1, 0]))
    assert torch.allclose(m[0], F.normalize(codes[[0, 1, 5]].sum(0), dim=0), atol=1e-6)


def test_the_record_holds_what_the_chapter_reads(repo):
    record = json.loads((repo / "benchmarks/results/identity.json").read_text())
    assert record["procedural"]["own"]["named_right"] > .9 and record["procedural"]["own"]["people"] == 200
    start, done = record["start"], record["procedural"]["own"]
    assert start["probes"] == done["probes"] and start["named_right"] < done["named_right"] and start["tar_at_far"]["0.01"] < done["tar_at_far"]["0.01"] - .1
    for part in ("procedural", "london"):
        for r in record[part].values():
            assert 0 < r["auc"] <= 1 and len(r["far"]) == len(r["tar"]) and r["far"] == sorted(r["far"])


@pytest.mark.parametrize("side", [64, 256])
def test_pictures_are_not_changed_and_devices_do_not_matter(own, side):
    x = torch.rand(2, 3, side, side) * 2 - 1
    before = x.clone()
    assert torch.equal(own(x), own.embed(x)) and torch.equal(x, before)
    assert torch.allclose(own.embed(x.double()), own.embed(x), atol=1e-5)


def test_a_code_hardly_depends_on_the_size_of_the_crop(own):
    "The same faces at 64 and at 256 pixels get nearly the same code, or the encoder could not be used beside a generator of another size."
    from deepswap.autoencoder import render_aligned
    from deepswap.people import sample_people
    people = sample_people(16, "easy", seed=900_200)
    small, large = (own.embed(render_aligned(people, s)[0].image) for s in (64, 256))
    same, other = (small * large).sum(1), (small @ large.T).fill_diagonal_(-1).amax(1)
    assert same.mean() > .9 and (same > other).all()
