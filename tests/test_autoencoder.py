"One encoder, two decoders: aligned data, the base of all pair methods, the swapper, and a task that can say no."

import json
import math
import warnings

import pytest
import torch
from fastcore import test as house
from PIL import Image

from solved import checks

from deepswap import autoencoder as module
from deepswap.autoencoder import (
    AlignedPeople,
    AutoencoderSwap,
    FaceDecoder,
    PairSwapper,
    SharedEncoder,
    TwoPeople,
    aligned_faces,
    check_pair,
    flattened,
    nearer_to_source,
    pair_task,
    radial_spectrum,
    render_aligned,
    same_pictures,
    score_pair,
)
from deepswap.classical import ClassicalSwapper, color_transfer, lab_to_rgb, rgb_to_lab
from deepswap.core import CANONICAL5, DataError, DeepswapError, UsageError, WeightsError, run_solutions, seed_everything, to_pil
from deepswap.cyclegan import TwoDomains, psnr
from deepswap.data import Subset, dhash, hash_distance, procedural_people
from deepswap.faces import apply_affine, face_mask, refine_landmarks, similarity
from deepswap.people import People, exact_swap, render
from deepswap.train import Method, Trainer, load_method, mlp, register, run

pytestmark = pytest.mark.usefixtures("one_thread")
TINY = {"width": 4, "code": 16}


def one_line(e):
    assert "\n" not in str(e) and 20 < len(str(e)) < 420, str(e)
    return str(e)


@pytest.fixture(scope="module")
def task():
    return pair_task(32, 60, 8)


def trainer(task, steps=6, method=None, **settings):
    torch.manual_seed(0)
    method = method or AutoencoderSwap(32, **TINY)
    return Trainer(method, TwoDomains(task.a, task.b, batch_size=4), steps=steps, seed=0, device="cpu", progress=False, preview_every=None, **settings)


def count(net):
    return sum(p.numel() for p in net.parameters())


# --- aligned data


def test_exact_landmarks_come_to_the_canonical_place():
    people = procedural_people("person=3", 1, 6)
    drawn, matrix = render_aligned(people, 64)
    best = apply_affine(similarity(drawn.landmarks, (CANONICAL5 * 64).expand(6, 5, 2)), drawn.landmarks)
    assert (drawn.landmarks - best).abs().max() < 1e-3, "no similarity brings them nearer"
    assert (drawn.landmarks.mean(1) - (CANONICAL5 * 64).mean(0)).abs().max() < 0.5
    by_hand = apply_affine(matrix, render(people, 200).landmarks / 200)
    assert (by_hand - drawn.landmarks).abs().max() < 0.01
    assert (AlignedPeople(people, 64).landmarks - drawn.landmarks).abs().max() < 0.01


def test_the_detector_agrees_with_the_picture_not_only_with_the_numbers():
    drawn, _ = render_aligned(procedural_people("person=5", 1, 4), 128)
    found, score = refine_landmarks(drawn.image, "cpu")
    assert score.min() > 0.7 and (found - drawn.landmarks).norm(dim=-1).mean() < 0.03 * 128


def test_a_picture_does_not_depend_on_its_neighbours():
    people = procedural_people("person=3", 1, 5)
    whole, alone = render_aligned(people, 32)[0].image, render_aligned(people[2:3], 32)[0].image
    assert (whole[2:3] - alone).abs().max() < 1e-5
    faces = AlignedPeople(people, 32)
    assert (faces.batch([2]).image - alone).abs().max() < 1 / 127
    assert faces.store.pixels.dtype == torch.uint8 and faces.store.present.all()


def test_procedural_words_open_as_aligned_crops():
    faces = aligned_faces("procedural:person=3,n=7", 32)
    assert isinstance(faces, AlignedPeople) and len(faces) == 7 and faces.batch([0]).image.shape == (1, 3, 32, 32)
    assert aligned_faces(faces, 32) is faces
    with pytest.raises(DataError, match="32 pixels"):
        aligned_faces(faces, 64)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    "Four large pictures, one with no face, as a folder."
    folder = tmp_path_factory.mktemp("photos")
    for k, x in enumerate(render(procedural_people("person=3", 1, 4), 192).image):
        to_pil(x[None]).save(folder / f"{k}.png")
    Image.new("RGB", (192, 192), (90, 120, 90)).save(folder / "wall.png")
    return folder


def test_a_folder_is_aligned_on_opening_and_pictures_without_a_face_are_named(photos):
    faces = aligned_faces(photos, 64)
    assert len(faces) == 4 and [n for n, why in faces.skipped] == ["wall.png"] and "no face" in faces.skipped[0][1]
    found, _ = refine_landmarks(faces.batch(range(4)).image, "cpu")
    assert (found.mean(1) - (CANONICAL5 * 64).mean(0)).norm(dim=-1).max() < 2


def test_a_folder_without_faces_is_refused_in_one_sentence(tmp_path):
    for k in range(2):
        Image.new("RGB", (64, 64), (k, 9, 9)).save(tmp_path / f"{k}.png")
    with pytest.raises(DataError, match="No face was found in any of the 2") as e:
        aligned_faces(tmp_path, 32)
    one_line(e.value)


def test_a_clip_without_faces_is_refused_in_one_sentence(tmp_path):
    frames = [Image.new("RGB", (64, 64), (20 * k, 90, 90)) for k in range(6)]
    frames[0].save(tmp_path / "grey.gif", save_all=True, append_images=frames[1:])
    with pytest.raises(DataError, match="No face was found") as e:
        aligned_faces(tmp_path / "grey.gif", 32)
    one_line(e.value)
    with pytest.raises(DataError, match="nothing at"):
        aligned_faces(tmp_path / "gone.mp4", 32)


def test_what_extract_wrote_is_used_as_it_is(tmp_path):
    crops = render_aligned(procedural_people("person=3", 1, 3), 32)[0].image
    (tmp_path / "masks").mkdir()
    for k, x in enumerate(crops):
        to_pil(x[None]).save(tmp_path / f"{k:06d}_a.png")
        Image.new("L", (32, 32), 255).save(tmp_path / "masks" / f"{k:06d}_a.png")
    (tmp_path / "faces.csv").write_text("file\n")
    faces = aligned_faces(tmp_path, 32)
    assert len(faces) == 3, "masks are no faces"
    assert (faces.batch(range(3)).image - crops).abs().max() < 1 / 127


# --- one person twice, few pictures


def test_copies_are_found_in_any_order_and_after_jpeg(task, tmp_path):
    half = Subset(task.a, torch.randperm(60, generator=torch.Generator().manual_seed(0))[:30])
    assert same_pictures(half, task.a) == 1.0 and same_pictures(task.a, task.b) == 0.0
    for k, x in enumerate(task.a.batch(range(30)).image):
        to_pil(x[None]).save(tmp_path / f"{k}.jpg", quality=80)
    (tmp_path / "faces.csv").write_text("file\n")
    assert same_pictures(aligned_faces(tmp_path, 32), task.a) > 0.9


def test_two_people_who_look_alike_are_a_pair():
    "Same room, same light, same hair, and a face that is a third of the way to the other's."
    two = procedural_people("person=3,n=24", 1, 24)
    alike = People(two.identity.lerp(procedural_people("person=8,n=24", 1, 24).identity, 0.3), two.style, two.scene, two.person)
    a, b = AlignedPeople(two, 64), AlignedPeople(alike, 64)
    assert hash_distance(dhash(a.batch(range(24)).image), dhash(b.batch(range(24)).image)).amin(1).median() <= 0.06, "by the hash alone they would be copies"
    assert same_pictures(a, b) == 0.0 and same_pictures(a, a) == 1.0


@pytest.mark.parametrize(
    "data",
    [("procedural:person=3,n=9", "procedural:person=3,n=9"), ("procedural:person=3,n=9", "procedural:person=3,n=8"), ("here", "./here")],
    ids=["same words", "same pictures", "same folder"],
)
def test_one_person_twice_is_refused(data):
    with pytest.raises(DataError, match="two different people") as e:
        AutoencoderSwap(32, **TINY).loader(data, 32, 2, 0)
    one_line(e.value)


@pytest.mark.parametrize("data, why", [("procedural:person=3", "pair"), (("procedural:person=3,n=1", "procedural:person=4,n=9"), "at least 2")])
def test_what_can_not_be_a_pair_is_refused(data, why):
    with pytest.raises(DataError, match=why) as e:
        AutoencoderSwap(32, **TINY).loader(data, 32, 2, 0)
    one_line(e.value)


def test_few_pictures_train_with_one_line_of_warning(tmp_path):
    with pytest.warns(UserWarning, match="below 50") as caught:
        done = run("autoencoder-swap", ("procedural:person=3,n=10", "procedural:person=4,n=12"), 32, 4, 2, out=tmp_path / "run", options=TINY, progress=False, device="cpu")
    assert len([w for w in caught if w.category is UserWarning]) == 1 and "\n" not in str(caught[0].message)
    assert done.step == 2 and (tmp_path / "run" / "previews").is_dir()


def test_many_pictures_train_without_a_warning(task):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_pair(task.a, task.b)


# --- networks and training


def test_at_the_originals_width_it_has_the_originals_82_million_parameters():
    assert round((count(SharedEncoder(64, 128, 1024)) + 2 * count(FaceDecoder(64, 128))) / 1e6) == 82


@pytest.mark.parametrize("size", (16, 32, 64, 128))
@pytest.mark.parametrize("up", ("shuffle", "transposed"))
def test_pictures_come_out_as_large_as_they_went_in(size, up):
    encoder, decoder = SharedEncoder(size, 4, 8, up), FaceDecoder(size, 4, up)
    x = torch.rand(2, 3, size, size) * 2 - 1
    assert encoder.code(x).shape == (2, 8) and encoder(x).shape == (2, 16, 8, 8)
    y = decoder(encoder(x))
    assert y.shape == x.shape and y.abs().max() <= 1
    y.sum().backward()
    assert all(p.grad is not None for p in [*encoder.parameters(), *decoder.parameters()])


@pytest.mark.parametrize("bad", [{"size": 48}, {"size": 8}, {"width": 1}, {"code": 0}, {"up": "magic"}], ids=str)
def test_options_out_of_range_are_refused(bad):
    with pytest.raises(UsageError) as e:
        AutoencoderSwap(**{"size": 32, **TINY, **bad})
    one_line(e.value)


def test_unknown_options_are_refused(tmp_path):
    "They were taken into the configuration and never looked at; the file of such a run says what is wrong with it."
    with pytest.raises(UsageError, match="AutoencoderSwap has no option 'colour'.*view, warp") as e:
        AutoencoderSwap(32, **TINY, colour=0.5)
    one_line(e.value)
    trainer = Trainer(AutoencoderSwap(32, **TINY), [], progress=False)
    for change, says in (({"colour": 0.5}, "no option 'colour'"), ({"view": 3}, "from 0.4 to 1"), ({"size": 48}, "16, 32, 64")):
        trainer.config = trainer.method.config | change
        with pytest.raises(WeightsError, match=f"The AutoencoderSwap that .*odd.safetensors describes.*{says}") as e:
            load_method(trainer.save(tmp_path / "odd.safetensors"))
        one_line(e.value)


@pytest.mark.parametrize("data", (None, 3, ["only-one"], {"a": 1, "b": 2}), ids=str)
def test_what_is_no_pair(data):
    with pytest.raises(DataError, match="learns two people") as e:
        AutoencoderSwap(32, **TINY).loader(data, 32, 2, 0)
    one_line(e.value)


def test_the_encoder_learns_from_both_and_each_decoder_from_its_own(task):
    m = AutoencoderSwap(32, **TINY)
    a, b = task.test_a.image[:2], task.test_b.image[:2]
    m.losses(a, a, b, b)["l1_a"][1].backward()
    assert all(p.grad is None for p in m.decoder_b.parameters()) and all(p.grad is not None for p in m.decoder_a.parameters())
    by_a = m.encoder.squeeze.weight.grad.clone()
    m.zero_grad()
    m.losses(a, a, b, b)["l1"].backward()
    assert (m.encoder.squeeze.weight.grad - by_a).abs().max() > 0


def test_the_loss_is_the_mean_absolute_error_to_the_unwarped_picture(task):
    m, seen = AutoencoderSwap(32, **TINY), {}
    m.step({"a": task.test_a.image, "b": task.test_b.image}, lambda name, f, *batch: seen.update(batch=batch, loss=f(*batch)))
    wa, a, wb, b = seen["batch"]
    assert (wa - a).abs().mean() > 0.005, "the input is warped"
    expected = (m.redraw(wa, "a")[0] - a).abs().mean() + (m.redraw(wb, "b")[0] - b).abs().mean()
    assert torch.isclose(seen["loss"]["l1"], expected, atol=1e-6)
    assert not [k for k in m.networks() if k == "augment"]


def test_a_stopped_run_goes_on_bit_for_bit(task, tmp_path):
    class StopAt3:
        def on_step(self, t):
            t.step == 3 and t.request_stop()

    trainer(task, out=tmp_path, callbacks=[StopAt3()]).fit()
    again, whole = trainer(task, out=tmp_path).resume().fit(), trainer(task).fit()
    assert torch.equal(again.method.encoder.squeeze.weight, whole.method.encoder.squeeze.weight)
    assert torch.equal(load_method(tmp_path, device="cpu").translate(task.test_a.image, "b"), again.method.eval().translate(task.test_a.image, "b"))


def test_a_batch_in_pieces_is_the_same_step(task):
    "The warp is drawn for the whole batch, so cutting it up changes nothing but rounding."
    whole, pieces, other = (trainer(task, 2, **kw).fit().method.encoder.squeeze.weight for kw in ({}, {"accumulate": 3}, {"clip": 1e-3}))
    assert (whole - pieces).abs().max() < 1e-5 < (whole - other).abs().max()


@pytest.fixture(scope="module")
def trained(task):
    return trainer(task, 150, AutoencoderSwap(32, 16, 64, lr=2e-3), ema=0.95).fit()


def test_a_short_run_swaps(task, trained):
    "Above the untouched target by far, in pose too, and towards the right person."
    m = trained.method
    for to, target, exact in (("b", task.test_a, task.exact_ab), ("a", task.test_b, task.exact_ba)):
        s = score_pair(lambda x: m.translate(x, to), task, to)
        assert s["psnr"] > s["untouched"] + 4 and s["face"] > s["untouched face"] + 4 and s["identity"] >= 0.95
    assert not m.who(task.test_a.image).any() and m.who(task.test_b.image).all()


def test_translate_works_in_pieces_and_leaves_the_mode_alone(task, trained):
    m = trained.method
    x = task.test_a.image
    m.train()
    whole = m.translate(x, "b")
    assert m.training and not whole.requires_grad
    assert torch.allclose(whole, torch.cat([m.paint(p, "b", chunk=3)[0] for p in x.split(4)]), atol=1e-5)
    assert m.paint(x, "b")[1] is None
    assert set(m.preview({"a": x, "b": x})) == {"a", "a by a", "a as b", "b", "b by b", "b as a"}


@pytest.mark.parametrize("shape, to", [((2, 3, 32, 32), "c"), ((2, 3, 16, 16), "a"), ((2, 1, 32, 32), "a")])
def test_translate_refuses_what_it_can_not_do(trained, shape, to):
    with pytest.raises(UsageError) as e:
        trained.method.translate(torch.zeros(shape), to)
    one_line(e.value)


# --- the swapper


@register
class Mirror(TwoPeople):
    "Paints b white and a black, on the left half only."

    name = "test-mirror"

    def __init__(self, size=32, **config):
        super().__init__(size=size, **config)
        self.scale = torch.nn.Parameter(torch.ones(()))

    def redraw(self, images, to):
        mask = torch.zeros_like(images[:, :1])
        mask[..., : images.shape[-1] // 2] = 1
        return torch.full_like(images, 1.0 if to == "b" else -1.0) * self.scale, mask


def test_a_painted_mask_keeps_the_rest(task):
    x = task.test_a.image
    y = Mirror().translate(x, "b")
    assert (y[..., :16] - 1).abs().max() < 1e-5 and torch.equal(y[..., 16:], x[..., 16:])
    swapped, mask = PairSwapper(Mirror(), "b")(None, x)
    own = face_mask((CANONICAL5 * 32).expand(8, 5, 2), 32)
    assert torch.allclose(mask[..., :16], own[..., :16]) and mask[..., 16:].max() == 0


@pytest.mark.parametrize("side", (24, 32, 50, 256))
def test_swapper_takes_crops_of_any_side(task, trained, side):
    s = PairSwapper(trained.method, "b")
    x = torch.nn.functional.interpolate(task.test_a.image, (side, side), mode="bilinear", antialias=True)
    y, mask = s(None, x)
    assert y.shape == x.shape and mask.shape == (8, 1, side, side) and 0 <= mask.min() and mask.max() <= 1
    assert s.size == 32 and s.method == "autoencoder-swap"
    assert psnr(torch.nn.functional.interpolate(y, (32, 32), mode="bilinear", antialias=True), trained.method.translate(task.test_a.image, "b")) > 22


def test_the_mask_follows_the_landmarks(task, trained):
    s, points = PairSwapper(trained.method, "b"), (CANONICAL5 * 32).expand(8, 5, 2)
    moved = s(None, task.test_a.image, None, points + 4)[1]
    plain = s(None, task.test_a.image)[1]
    assert torch.allclose(moved[..., 4:, 4:], plain[..., :-4, :-4], atol=1e-4) and not torch.allclose(moved, plain)


def test_auto_makes_the_other_person_by_majority(task, trained):
    auto, m = PairSwapper(trained.method), trained.method
    a, b = task.test_a.image, task.test_b.image
    assert torch.equal(auto(None, a)[0], m.translate(a, "b")) and torch.equal(auto(None, b)[0], m.translate(b, "a"))
    mixed = torch.cat([a[:5], b[:2]])
    assert torch.equal(auto(None, mixed)[0], m.translate(mixed, "b"))


@pytest.mark.parametrize("size", (32, 64, 128))
def test_the_view_holds_the_whole_outline_and_leaves_the_rest_alone(size):
    m = Mirror(size, view=2 / 3)
    outline = face_mask(CANONICAL5 * m.crop, m.crop)
    assert m.crop == size * 3 // 2 and m.look(outline).shape == (1, 1, size, size)
    assert m.look(outline).sum() > 0.999 * outline.sum(), "no part of the face lies outside"
    x = torch.rand(2, 3, m.crop, m.crop) * 2 - 1
    y, mask = m.translate(x, "b"), m.paint(x, "b")[1]
    seen = torch.zeros(m.crop, m.crop, dtype=torch.bool)
    seen[m.window] = True
    assert torch.equal(y[..., ~seen], x[..., ~seen]) and mask[..., ~seen].max() == 0
    middle = m.look(mask)[..., size // 2, : size // 2]  # Mirror paints the left half; the seam fades
    assert middle[..., 0].max() < 0.2 and middle[..., size // 4 :].min() > 0.99
    assert (m.look(y)[:, :, size // 2, size // 4] > 0.99).all()


def test_what_is_restored_is_the_window_of_what_was_warped():
    m, x, seen = AutoencoderSwap(32, 4, 8, view=2 / 3), torch.rand(2, 3, 48, 48) * 2 - 1, []
    torch.manual_seed(3)
    m.step({"a": x, "b": x}, lambda name, f, *tensors: seen.extend(tensors))
    torch.manual_seed(3)
    bent, straight = m.augment.pair(x)
    assert torch.equal(seen[0], m.look(bent)) and torch.equal(seen[1], m.look(straight)) and [tuple(s.shape) for s in seen] == [(2, 3, 32, 32)] * 4


def test_a_run_with_a_view_is_written_read_and_swaps(tmp_path):
    options = {**TINY, "view": 0.667}
    done = run("autoencoder-swap", ("procedural:person=3,n=60", "procedural:person=4,n=60"), 32, 4, 2, options=options, device="cpu", out=tmp_path, progress=False)
    m = load_method(tmp_path, device="cpu")
    swapper, x = PairSwapper(m, "a"), torch.rand(3, 3, 100, 100) * 2 - 1
    assert m.crop == swapper.size == 48 and swapper(None, x)[0].shape == x.shape
    assert done.preview()["a as b"].shape[-1] == 48
    with pytest.raises(UsageError, match="48, 48"):
        m.translate(torch.zeros(1, 3, 32, 32))


@pytest.mark.parametrize("view", (0.1, 1.5, float("nan")))
def test_a_view_out_of_range_is_refused(view):
    with pytest.raises(UsageError, match="0.667"):
        AutoencoderSwap(32, **TINY, view=view)


def test_a_swapper_may_paint_as_far_as_its_method_does(task, trained):
    x, points = task.test_a.image, (CANONICAL5 * 32).expand(8, 5, 2)
    whole, outline = (PairSwapper(trained.method, "b", mask=m)(None, x, None, points)[1] for m in ("crop", "outline"))
    assert whole[..., 4:-4, 4:-4].min() == 1 and whole[..., 0, :].max() < 0.5 and outline.mean() < 0.6 * whole.mean()
    half = PairSwapper(Mirror(), "b", mask="crop")(None, x)[1]
    assert half[..., 4:-4, 4:16].min() == 1 and half[..., 16:].max() == 0


def test_swapper_refuses_what_it_can_not_use(trained):
    with pytest.raises(UsageError, match="auto"):
        PairSwapper(trained.method, to="c")
    with pytest.raises(UsageError, match="outline"):
        PairSwapper(trained.method, mask="oval")
    with pytest.raises(UsageError, match="two people"):
        PairSwapper(Method())


# --- the task that can say no


def test_scenes_are_unpaired_in_training_and_paired_in_the_answer(task):
    rows = lambda p: {tuple(r) for r in p.scene.values[:, :11].tolist()}
    assert not rows(task.a.people) & rows(task.b.people)
    assert torch.equal(task.a.people.scene.bg_seed.unique(), task.b.people.scene.bg_seed.unique()), "one room"
    wall = (task.test_a.parts == 0) & (task.exact_ab.parts == 0)
    assert (task.test_a.image - task.exact_ab.image).abs().amax(1)[wall].median() < 0.01, "same matrix: the background stays in place"
    assert psnr(task.test_a.image, task.exact_ab.image, task.test_a.mask) < 15, "the two differ enough to measure"


def test_what_is_worn_on_the_face_moves_along():
    "3 wears a beard and glasses, 4 does not; hair stays with the target."
    a, b = (procedural_people(f"person={k}", 1, 1) for k in (3, 4))
    drawn = pair_task(32, 2, 2).exact_ba
    assert (drawn.parts == 11).any() and not (render_aligned(exact_swap(a, b), 32)[0].parts == 11).any()


def test_rooms_can_differ():
    t = pair_task(32, 4, 2, rooms=(None, 9))
    assert not torch.equal(t.a.people.scene.bg_hue[:1], t.b.people.scene.bg_hue[:1])


@pytest.mark.parametrize("bad", [{"n": 1}, {"test": 1}, {"two": (3, 3)}], ids=str)
def test_task_refuses_what_is_no_task(bad):
    with pytest.raises(DeepswapError) as e:
        pair_task(**{"size": 32, "n": 4, "test": 2, **bad})
    one_line(e.value)


def test_score_says_yes_to_the_answer_and_no_to_everything_else(task):
    untouched, exact = score_pair(lambda x: x, task), score_pair(task.exact_ab.image, task)
    assert untouched["identity"] == 0 and untouched["psnr"] == untouched["untouched"]
    assert exact["identity"] == 1 and exact["psnr"] > 60
    assert score_pair(lambda s, t, ls, lt: (task.exact_ab.image, torch.zeros(8, 1, 32, 32)), task)["identity"] == 0, "a mask of nothing"
    classical = score_pair(ClassicalSwapper(device="cpu"), task)
    assert set(classical) == {"psnr", "face", "untouched", "untouched face", "identity"} and classical["psnr"] != untouched["psnr"]


@pytest.mark.parametrize("to", "ab")
def test_paint_in_the_sources_colour_is_not_the_source(task, to):
    target, exact = (task.test_a, task.exact_ab) if to == "b" else (task.test_b, task.exact_ba)
    x = lab_to_rgb(color_transfer(rgb_to_lab(target.image), rgb_to_lab(exact.image), target.mask + 1e-6, exact.mask + 1e-6))
    x = target.image + target.mask * (x - target.image)
    assert psnr(x, exact.image, exact.mask) > psnr(target.image, exact.image, exact.mask) + 1, "nearer in decibels"
    assert nearer_to_source(x, exact, target).float().mean() < 0.3, "and still the target"


def test_flattened_forgets_complexion_and_light(task):
    x, w = task.test_a.image * 0.4, task.test_a.mask
    assert (flattened(x * 1.5 - 0.2, w) - flattened(x, w)).abs().max() < 0.3
    assert ((flattened(x, w) * w).sum((2, 3)) / w.sum((2, 3))).abs().max() < 1e-3


def test_real_clips_become_aligned_crops(shared):
    clips = sorted((shared / "data" / "video").glob("*.mpg"))
    if not clips:
        pytest.skip("no clips")
    faces = aligned_faces(clips[0], 64, every=25, limit=4)
    found, score = refine_landmarks(faces.batch(range(len(faces))).image, "cpu")
    assert len(faces) and score.min() > 0.5 and (found.mean(1) - (CANONICAL5 * 64).mean(0)).norm(dim=-1).max() < 3


# --- fine structure, and the chapter's own words


def test_spectrum_finds_the_wave_and_what_blur_takes_away(task):
    for k in (5, 12):
        wave = torch.cos(2 * torch.pi * k * torch.arange(64) / 64).expand(1, 3, 64, 64)
        assert int(radial_spectrum(wave).argmax()) == k and int(radial_spectrum(wave.transpose(2, 3)).argmax()) == k
    x = task.test_a.image
    blurred = torch.nn.functional.avg_pool2d(x, 5, 1, 2)
    assert radial_spectrum(x).shape == (16,)
    assert radial_spectrum(blurred)[8:].sum() < 0.2 * radial_spectrum(x)[8:].sum() and radial_spectrum(blurred)[1] > 0.5 * radial_spectrum(x)[1]


def notebook_cells(repo):
    return ["".join(c["source"]) for c in json.loads((repo / "nbs" / "31_autoencoder.ipynb").read_text())["cells"]]


@pytest.fixture(scope="module")
def toy(repo):
    "The chapter's toy, from its own cells."
    space = {"torch": torch, "math": math, "mlp": mlp, "seed_everything": seed_everything, "budget": lambda fast, full: 150, "test_close": house.test_close}
    for start in ("def poses", "def train_toy"):
        exec(next(c for c in notebook_cells(repo) if start in c).split("ARMS =")[0], space)
    return space


def test_solutions_of_the_exercises_run(repo, toy):
    space = {**vars(module), **toy, "test_eq": house.test_eq, "pixels": torch.arange(64).float(), "count": lambda *nets: sum(count(n) for n in nets)}
    found = checks("31_autoencoder", space)
    assert len(found) >= 4 and run_solutions(str(repo / "nbs/31_autoencoder"), space).startswith(f"{len(found)} solutions run")


def test_two_encoders_tear_the_toy_apart_and_one_does_not(toy):
    "The naive version really fails and the fix really mends it."
    pose = torch.linspace(-1, 1, 21)[:, None]

    def off(shared, seed):
        swap = toy["train_toy"](shared, False, seed)
        with torch.no_grad():
            return float((toy["pose_of"](swap(toy["arc"](pose, 1.0))) - pose).abs().median() * 180 / math.pi)

    assert max(off(True, s) for s in (0, 1)) < 15 < min(off(False, s) for s in (0, 1))
