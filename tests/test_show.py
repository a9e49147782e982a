"Colours, curves, grids, curtain and live panel: deepswap.show."

import json
import math
import queue
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch

from deepswap import show
from deepswap.core import UsageError
from deepswap.show import PALETTE, ROLES, LivePanel, plot_losses, smooth, to_grid


def faces(n=4, size=16, seed=0):
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_importing_show_loads_neither_matplotlib_nor_ipywidgets():
    code = "import sys, deepswap.show; from deepswap.show import *; print([m for m in ('matplotlib', 'ipywidgets', 'IPython') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


# ---- palette


def lab(colour):
    linear = show._linear(show._hex_to_rgb(colour))
    m = torch.tensor([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    t = (m @ linear) / torch.tensor([0.95047, 1.0, 1.08883])
    f = torch.where(t > 0.008856, t.clamp(min=1e-9) ** (1 / 3), 7.787 * t + 16 / 116)
    return torch.stack([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("eye", ["none", "deuteranopia", "protanopia", "tritanopia"])
@pytest.mark.parametrize("pair", [("generator", "discriminator"), ("real", "fake"), ("source", "target")])
def test_colours_that_meet_stay_apart_for_every_eye(pair, eye):
    a, b = (lab(show.seen_by(PALETTE[r], eye)) for r in pair)
    assert (a - b).norm() > 20


def test_roles_have_six_different_colours_and_grey_is_legible():
    assert len({PALETTE[r] for r in ROLES}) == 6
    assert lab(PALETTE["grey"])[0] < 55 and lab(PALETTE["ink"])[0] < 20


@pytest.mark.parametrize("name,role", [("g", "generator"), ("loss_G", "generator"), ("d_real", "discriminator"), ("D/loss", "discriminator"), ("fake", "fake"), ("target", "target")])
def test_a_name_has_the_colour_of_its_role(name, role):
    assert show.color_of(name) == PALETTE[role]


# ---- curves


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9, 0.99])
def test_smooth_is_the_weighted_mean_of_the_past(beta):
    x = torch.randn(50, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for t in (1, 2, 10, 50):
        w = beta ** torch.arange(t - 1, -1, -1, dtype=torch.float64)
        assert math.isclose(smooth(x.tolist(), beta)[t - 1], float((w * x[:t]).sum() / w.sum()), abs_tol=1e-9)


def test_smooth_steps_over_holes():
    nan = float("nan")
    assert smooth([2.0, nan, None, 2.0], 0.9) == pytest.approx([2.0] * 4)
    assert math.isnan(smooth([nan, 1.0], 0.9)[0])
    with pytest.raises(UsageError, match="beta is 1.5"):
        smooth([1.0], 1.5)


def test_plot_losses_takes_the_trainers_rows_and_leaves_bookkeeping_out():
    rows = [{"step": s, "d": 1.0 / s, "g": float(s), "lr_d": 1e-3, "lr.g": 1e-3, "images_per_s": 9.0, "seconds": 1.0, "memory_mb": 5.0, "epoch": 0, "note": "x"} for s in range(1, 20)]
    assert list(show.loss_columns(rows)) == ["d", "g"]
    fig = plot_losses(rows)
    raw, line = fig.axes[0].lines[:2]
    assert line.get_color() == PALETTE["discriminator"] and list(raw.get_xdata()) == list(range(1, 20))
    assert fig.axes[0].lines[3].get_color() == PALETTE["generator"]
    assert plot_losses([]).jpeg()[:2] == b"\xff\xd8"
    assert plot_losses([{"step": 1, "d": float("nan")}, {"step": 2, "d": float("inf")}]).jpeg()[:2] == b"\xff\xd8"


def test_names_with_two_roles_get_two_colours():
    lines = plot_losses([{"step": 1, "d_real": 1.0, "d_fake": 2.0, "g_adv": 3.0, "rec": 1.0}, {"step": 2, "d_real": 1.0, "d_fake": 2.0, "g_adv": 3.0, "rec": 1.0}]).axes[0].lines
    assert [lines[k].get_color() for k in (1, 3, 5)] == [PALETTE["discriminator"], PALETTE["fake"], PALETTE["generator"]]
    assert len({lines[k].get_color() for k in (1, 3, 5, 7)}) == 4


def test_figures_leave_matplotlibs_settings_alone_and_carry_alt_text():
    import matplotlib

    before = dict(matplotlib.rcParams)
    fig, ax = show.figure(alt="nothing yet")
    assert dict(matplotlib.rcParams) == before
    assert fig.alt == "nothing yet" and fig._repr_jpeg_()[1] == {"alt": "nothing yet"}
    import matplotlib.pyplot as plt

    assert not plt.get_fignums()  # nothing is left open behind the reader's back


# ---- pictures


@pytest.mark.parametrize("n,cols", [(1, None), (5, 2), (5, 9), (7, 3)])
def test_grid_puts_each_picture_where_it_belongs_and_changes_no_value(n, cols):
    x, pad = faces(n), 3
    g = to_grid(x, cols, pad)
    width = min(n, cols or math.ceil(math.sqrt(n)))
    assert g.shape == (3, math.ceil(n / width) * 19 - 3, width * 19 - 3)
    for k in range(n):
        r, c = divmod(k, width)
        assert torch.equal(g[:, r * 19 : r * 19 + 16, c * 19 : c * 19 + 16], x[k])


def test_grid_takes_grey_lists_and_broken_pixels_and_refuses_the_rest():
    assert to_grid(torch.zeros(2, 1, 4, 4)).shape == (3, 4, 10)
    assert to_grid([faces(1)[0], faces(1)]).shape == (3, 16, 34)
    bad = faces(1)
    bad[0, 1, 2, 3] = float("inf")
    assert torch.isfinite(to_grid(bad)).all()
    for wrong in (torch.zeros(4, 4), torch.zeros(0, 3, 4, 4), torch.zeros(2, 5, 4, 4), []):
        with pytest.raises(UsageError, match="Can't show a tensor"):
            to_grid(wrong)


def test_mosaic_has_one_shape_whatever_comes():
    for n in (1, 35, 36, 50):
        assert show.mosaic(faces(n, 8)).shape == (3, 48, 48)
    assert show.mosaic(faces(7, 8))[:, 8:16, 8:16].abs().sum() == 0  # place 8 of 7 pictures is mid grey
    assert torch.equal(show.mosaic(faces(36, 8))[:, 40:, 40:], faces(36, 8)[35])


def test_wipe_and_difference():
    a, b = faces(1, seed=1)[0], faces(1, seed=2)[0]
    w = show.wipe(a, b, 0.25, line=0)
    assert torch.equal(w[..., :4], a[..., :4]) and torch.equal(w[..., 4:], b[..., 4:])
    assert torch.equal(show.wipe(a, b, 7.0), a) and torch.equal(show.wipe(a, b, -1.0), b)
    assert show.difference(a[None], a[None]).min() == 1 and show.difference(-torch.ones(1, 3, 2, 2), torch.ones(1, 3, 2, 2)).max() == -1
    with pytest.raises(UsageError):
        show.wipe(a, b[..., :8])
    page = str(show.wipe_html(a, b, ('<script>alert("x")</script>', "after")))
    assert "<script>" not in page and page.count("data:image/jpeg;base64,") == 2


def test_before_after_rows_and_preview_grid():
    fig = show.before_after(faces(3), faces(3, seed=1), changed=True)
    assert [ax.get_ylabel() for ax in fig.axes] == ["before", "after", "changed"]
    assert show.preview_grid({"a": faces(20), "b": faces(9)}).shape == (3, 34, 8 * 18 - 2)
    with pytest.raises(UsageError, match="differ in shape"):
        show.show_rows({"a": faces(3), "b": faces(2)})
    assert len(show.show_images(faces(24, 64)).jpeg()) < 150_000


# ---- widgets


def test_controls_move_and_raise():
    box = show.controls(lambda a, b=2: a * b, a=(0, 10), b=(1, 5))
    box.children[0].value = 7
    assert box.result == 14
    with pytest.raises(ZeroDivisionError):
        show.controls(lambda a: 1 / (a - 5), a=(0, 10))


def test_stepper_presses():
    state = [0]
    box = show.stepper(lambda: faces(1, seed=state[0])[0], add_one=lambda: state.__setitem__(0, state[0] + 1))
    before = box.picture.value
    box.buttons["add_one"].click()
    assert state == [1] and box.counts == {"add_one": 1} and box.picture.value != before and box.buttons["add_one"].description == "add one (1)"


def test_background_keeps_the_error():
    class Broken:
        def fit(self):
            raise ValueError("no")

    hook, threading.excepthook = threading.excepthook, lambda args: None
    try:
        thread = show.in_background(Broken())
        thread.join(5)
    finally:
        threading.excepthook = hook
    assert isinstance(thread.error, ValueError)


# ---- the panel and the real trainer


def trainer_with(panel, steps=400, tmp=None, **kw):
    train = pytest.importorskip("deepswap.train")
    method = train.ToyGAN()
    loader, shown = method.loader("procedural", 64, 32, 0)
    return train.Trainer(method, loader, out=tmp, steps=steps, device="cpu", progress=False, callbacks=[panel], **kw)


def test_panel_stops_the_real_trainer():
    panel = LivePanel(every=0.0, display=True)
    trainer = trainer_with(panel, 10**6)
    step = panel.on_step

    def press(t):
        step(t)
        if len(t.history) == 5:
            panel.stop_button.click()

    panel.on_step = press
    trainer.fit()
    assert 5 <= len(trainer.history) <= 7 and panel.drawings >= 2 and panel.stop_button.disabled
    assert panel.label.value.startswith("step ") and panel.picture.value[:2] == b"\xff\xd8"


def test_panel_pauses_and_lets_go_on():
    panel = LivePanel(every=60, display=True)
    trainer = trainer_with(panel, 10**6)
    thread = show.in_background(trainer)
    wait = lambda f: [time.sleep(0.02) for _ in range(500) if not f()] and None
    wait(lambda: len(trainer.history) > 3)
    panel.pause_button.click()
    time.sleep(0.3)
    held = len(trainer.history)
    time.sleep(0.3)
    assert len(trainer.history) == held and panel.pause_button.description == "Resume"
    panel.pause_button.click()
    wait(lambda: len(trainer.history) > held)
    assert len(trainer.history) > held
    panel.pause_button.click()
    panel.stop_button.click()  # stop while paused
    thread.join(20)
    assert not thread.is_alive() and thread.error is None


def test_a_reply_is_plain_values_and_bytes_or_an_error_in_one_line():
    def think(n):
        return {"n": n + 1, "list": [1, None], "x": torch.arange(6, dtype=torch.int64).view(2, 3).T, "none": torch.zeros(0, 2, requires_grad=True)}

    def refuse():
        raise UsageError("Draw first.")

    answers = {"think": think, "refuse": refuse}
    said, buffers = show.reply(answers, {"id": 3, "name": "think", "args": {"n": 1}})
    assert json.loads(json.dumps(said)) == {"id": 3, "answer": {"n": 2, "list": [1, None]}, "tensors": ["x", "none"]}
    assert np.frombuffer(buffers[0], np.float32).tolist() == [0, 3, 1, 4, 2, 5] and buffers[1] == b""
    assert show.reply(answers, {"id": 4, "name": "refuse"}) == ({"id": 4, "error": "Draw first."}, [])
    for bad in ({"name": "think", "args": {"m": 1}}, {"name": "dream"}, {}):
        error = show.reply(answers, bad)[0]["error"]
        assert 20 < len(error) < 200 and "\n" not in error


def test_a_canvas_answers_what_the_browser_asks():
    said = []
    box = show.in_browser("function render() {}", {"double": lambda x: {"y": 2 * x}}, ".a {}", colour="#123456")
    box.send = lambda content, buffers=None: said.append(content)
    box._handle_custom_msg({"id": "a", "name": "double", "args": {"x": 4}}, [])
    assert said == [{"id": "a", "answer": {"y": 8}, "tensors": []}] and box.state == {"colour": "#123456"}
    assert box._esm.startswith("function render() {}") and "export default" in box._esm and box._css == ".a {}" and "http" not in box._esm


def test_panel_without_a_notebook_draws_nothing():
    panel = LivePanel()
    trainer = trainer_with(panel, 3)
    trainer.fit()
    assert panel.widget is None and panel.drawings == 0 and len(trainer.history) >= 1


def test_panel_waits_longer_when_drawing_is_slow(monkeypatch):
    now = [0.0]
    panel = LivePanel(every=1, display=True, clock=lambda: now[0])
    real = show.panel_figure

    def slow(*args):
        now[0] += 2.0
        return real(*args)

    monkeypatch.setattr(show, "panel_figure", slow)

    class Trainer:
        history, steps = [{"step": 1, "d": 1.0}], 9

    panel.on_start(Trainer())
    assert panel.wait == pytest.approx(20.0)  # a tenth of the time at most
    now[0] += 19
    panel.on_step(panel.trainer)
    assert panel.drawings == 1
    now[0] += 2
    panel.on_step(panel.trainer)
    assert panel.drawings == 2


KERNEL = """
import time
from deepswap.show import LivePanel
class Trainer:
    history, steps, ended = [], 10**9, False
    def request_stop(self): self.ended = True
    def pause(self): pass
    def resume_run(self): pass
panel, trainer = LivePanel(every=.2), Trainer()
panel.on_start(trainer)
print('stop', panel.stop_button.model_id, flush=True)
end = time.time() + 30
while not trainer.ended and time.time() < end:
    time.sleep(.02); trainer.history.append({'step': len(trainer.history), 'd': 1.})
    panel.on_step(trainer)
panel.on_end(trainer)
print('ended' if trainer.ended else 'too late', panel.drawings > 1, flush=True)
"""


def test_stop_button_is_heard_inside_a_busy_cell():
    "What JupyterLab 4.4 and newer do: widget messages go to a subshell, so a click reaches a kernel that is training."
    from jupyter_client.manager import start_new_kernel

    manager, client = start_new_kernel()
    try:
        client.control_channel.send(client.session.msg("create_subshell_request", {}))
        subshell = client.control_channel.get_msg(timeout=30)["content"]
        if "subshell_id" not in subshell:
            pytest.skip("this ipykernel has no subshells; show.in_background is the way there")
        client.execute(KERNEL)
        printed, deadline, pressed = "", time.time() + 60, False
        while time.time() < deadline and not ("ended" in printed or "too late" in printed):
            try:
                message = client.iopub_channel.get_msg(timeout=1)
            except queue.Empty:
                continue
            if message["msg_type"] == "error":
                pytest.fail("\n".join(message["content"]["traceback"]))
            if message["msg_type"] == "stream":
                printed += message["content"]["text"]
            if "stop " in printed and "\n" in printed and not pressed:
                comm = printed.split("stop ")[1].split()[0]
                time.sleep(0.6)
                click = client.session.msg("comm_msg", {"comm_id": comm, "data": {"method": "custom", "content": {"event": "click"}}})
                click["header"]["subshell_id"] = subshell["subshell_id"]
                client.shell_channel.send(click)
                pressed = True
        assert "ended True" in printed, printed
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
