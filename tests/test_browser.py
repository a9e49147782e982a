"What a visitor does and what a reader does, in a real browser; nothing may be asked of another host."

import json
import os
import re
import shutil
import sys
import time
from urllib.parse import urlparse

import numpy as np
import pytest
from PIL import Image

from deepswap import demo
from deepswap.core import read_image
from deepswap.provenance import inspect
from servers import descendants, free_port, server

CHROMIUM = next((p for p in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if p), None)
FLAGS = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync".split()
CHAPTERS = ("01_people", "20_gan")  # a slider is moved in the first, points are drawn in the second and the game is played


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        assert not os.environ.get("DEEPSWAP_REQUIRE_BROWSER"), "no Chromium was found, and DEEPSWAP_REQUIRE_BROWSER is set"
        pytest.skip("no Chromium or Chrome on this machine")
    sync = pytest.importorskip("playwright.sync_api")
    with sync.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def tab(browser):
    "A page that notes every host it speaks to and every error in its console."
    context = browser.new_context(viewport={"width": 1200, "height": 1000}, accept_downloads=True)
    tab = context.new_page()
    tab.set_default_timeout(30_000)
    tab.hosts, tab.errors = set(), []
    tab.on("request", lambda r: tab.hosts.add(urlparse(r.url).hostname) if r.url.startswith(("http", "ws")) else None)
    tab.on("websocket", lambda w: tab.hosts.add(urlparse(w.url).hostname))
    tab.on("pageerror", lambda e: tab.errors.append(str(e)))
    yield tab
    context.close()


# ---- the demo ----


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    "The demo in its own process, with its own temporary folder: (address, folder)."
    folder, port = tmp_path_factory.mktemp("site"), free_port()
    (folder / "tmp").mkdir()
    command = [sys.executable, "-c", f"from deepswap.demo import launch; launch({port})"]
    with server(command, f"http://127.0.0.1:{port}/", folder / "log.txt", env={"TMPDIR": str(folder / "tmp"), "OMP_NUM_THREADS": "1"}) as process:
        yield f"http://127.0.0.1:{port}/", folder / "tmp"
        children = descendants(process.pid)
    assert process.returncode in (0, 143, -15) and not [c for c in children if c.is_running()]
    assert list((folder / "tmp").glob("deepswap-demo-*")) == [], "a stopped demo leaves no picture"


def open_demo(tab, site):
    tab.goto(site[0])
    tab.wait_for_selector("#ds-go")


def give(tab, what, path):
    "Upload a picture and wait for what the page says about it."
    tab.set_input_files(f"#ds-{what} input[type=file]", str(path))
    tab.wait_for_selector(f"#ds-{what}-note .ds-note:not(:empty)")
    return tab.inner_text(f"#ds-{what}-note")


def uploads(site):
    "Files on the desk that are not the page's own examples."
    own = {p.name for p in demo.example_pictures()}
    return [p for p in site[1].rglob("*") if p.is_file() and p.parent.parent.name.startswith("deepswap-demo-") and p.name not in own]


def test_a_visitor_swaps_one_of_two_faces_and_inspects_the_result(tab, site, tmp_path):
    people = demo.example_pictures()
    source, target = shutil.copy(people[0], tmp_path / "her.jpg"), shutil.copy(people[-1], tmp_path / "them.jpg")
    open_demo(tab, site)
    assert "agreed" in tab.inner_text(".ds-consent") and not tab.is_visible("#ds-slider")

    assert give(tab, "source", source) == "One face found."
    assert "2 faces found" in give(tab, "target", target)
    assert not tab.is_visible("#ds-source-choice")
    tab.wait_for_selector("#ds-target-faces img")  # the numbered overview
    assert tab.locator("#ds-target-choice label").all_inner_texts() == ["Largest", "All", "1", "2"]
    tab.locator("#ds-target-choice").get_by_label("2", exact=True).check()
    tab.locator("#ds-kind").get_by_label("JPEG").check()
    tab.click("#ds-go")

    tab.wait_for_selector("#ds-seal .ds-card.ours", timeout=60_000)
    assert "1 face replaced" in tab.inner_text("#ds-seal")
    slider = tab.locator("#ds-slider img")
    assert slider.count() == 2
    tab.wait_for_function("[...document.querySelectorAll('#ds-slider img')].every(i => i.complete && i.naturalWidth == 1280)")
    assert len({slider.nth(i).get_attribute("src") for i in (0, 1)}) == 2, "before and after are two pictures"

    with tab.expect_download() as download:
        tab.click("#ds-download")
    result = tmp_path / download.value.suggested_filename
    download.value.save_as(result)
    found = inspect(result)
    assert result.suffix == ".jpg" and found.ours and found.credentials.valid and found.mark.found
    assert not inspect(target).ours
    change = np.abs(np.asarray(read_image(target), dtype=float) - np.asarray(read_image(result), dtype=float)).mean(2)
    assert change[200:450, 840:1090].mean() > 4 * change[:, :640].mean(), "the chosen face changed, the other did not"
    assert uploads(site)

    tab.get_by_role("tab", name="Inspect").click()
    tab.set_input_files("#ds-inspect input[type=file]", str(result))
    tab.wait_for_selector("#ds-verdict .ds-card.ours")
    assert "Made with deepswap" in tab.inner_text("#ds-verdict")
    tab.locator("#ds-inspect").get_by_role("button", name="Remove Image").click()
    tab.set_input_files("#ds-inspect input[type=file]", target)
    tab.wait_for_selector("#ds-verdict .ds-card.other li")
    assert "No sign of deepswap" in tab.inner_text("#ds-verdict")

    tab.get_by_role("tab", name="How it works").click()
    links = tab.locator(".ds-steps a, .ds-map a")
    assert links.count() == len(demo.STEPS) + len(demo.MORE) and links.first.is_visible()

    assert tab.hosts == {"127.0.0.1"} and tab.errors == []
    tab.close()
    end = time.monotonic() + 20
    while uploads(site) and time.monotonic() < end:
        time.sleep(0.2)
    assert uploads(site) == [], "pictures go with the visitor"


def test_an_example_is_one_click_and_pictures_can_be_deleted(tab, site):
    open_demo(tab, site)
    for what in ("source", "target"):
        tab.locator(f"#ds-{what}-examples button.gallery-item").nth(1).click()
        tab.wait_for_selector(f"#ds-{what}-note .ds-note.good")
    tab.click("#ds-go")
    tab.wait_for_selector("#ds-seal .ds-card.ours", timeout=60_000)
    assert len(uploads(site)) == 2
    tab.click("#ds-forget")
    tab.wait_for_selector("#ds-slider", state="hidden")
    assert uploads(site) == [] and tab.locator("#ds-source input[type=file]").count() == 1


def test_a_visitor_sees_all_methods_the_mixture_and_the_masks(tab, site, tmp_path):
    "Every picture the page shows beside the result is signed, in the file that the browser gets."
    open_demo(tab, site)
    for what, n in (("source", 0), ("target", 4)):  # the first and the second person
        tab.locator(f"#ds-{what}-examples button.gallery-item").nth(n).click()
        tab.wait_for_selector(f"#ds-{what}-note .ds-note.good")
    methods = tab.locator("#ds-method label").all_inner_texts()
    assert methods == list(demo.page_methods()) and tab.locator("#ds-method").get_by_label("auto").is_checked()
    tab.locator("#ds-method").get_by_label("classical").check()
    tab.wait_for_selector("#ds-share", state="hidden")
    tab.locator("#ds-method").get_by_label("faceshifter").check()
    tab.locator("#ds-share input[type=number]").fill("0.5")
    for name in ("All methods", "Mixture", "Attention masks"):
        tab.locator("#ds-show").get_by_label(name).check()
    tab.click("#ds-go")
    tab.wait_for_selector("#ds-seal .ds-card.ours", timeout=90_000)
    assert "replaced by faceshifter" in tab.inner_text("#ds-seal")

    captions = tab.locator("#ds-others .caption-label").all_inner_texts()
    assert [c.rsplit(",", 1)[0] for c in captions] == methods[1:] and all(re.fullmatch(r".+, \d+\.\d s", c) for c in captions)
    shown = tab.locator("#ds-others button > img, .ds-sheet img")
    assert shown.count() == len(methods) - 1 + 2
    for n in range(shown.count()):
        file = tmp_path / f"{n}.png"
        file.write_bytes(tab.request.get(shown.nth(n).get_attribute("src")).body())
        assert inspect(file).ours, "what the browser shows is the signed file itself"
        if n < len(captions):
            picture, words = shown.nth(n).bounding_box(), tab.locator("#ds-others .caption-label").nth(n).bounding_box()
            assert words["y"] >= picture["y"] + picture["height"] - 1, "no caption lies on the label"

    tab.click("#ds-forget")
    tab.wait_for_selector("#ds-others", state="hidden")
    assert uploads(site) == [] and tab.hosts == {"127.0.0.1"} and tab.errors == []


def test_errors_are_said_where_the_visitor_looks(tab, site, tmp_path):
    open_demo(tab, site)
    tab.click("#ds-go")
    toast = tab.locator("[data-testid=toast-body]")
    toast.wait_for()
    assert "There is no source picture yet" in toast.inner_text()
    Image.linear_gradient("L").resize((400, 300)).save(tmp_path / "sky.png")
    (tmp_path / "letter.jpg").write_text("Dear Sir or Madam")
    assert "No face was found" in give(tab, "source", tmp_path / "sky.png")
    assert "letter.jpg is not a picture we can read" in give(tab, "target", tmp_path / "letter.jpg")
    tab.wait_for_selector("#ds-target input[type=file]", state="attached")  # emptied, ready for another
    tab.locator("#ds-target-examples button.gallery-item").nth(1).click()
    tab.wait_for_selector("#ds-target-note .ds-note.good")
    tab.click("#ds-go")
    tab.locator("[data-testid=toast-body]", has_text="No face was found in the source picture").wait_for()
    assert not tab.is_visible("#ds-slider") and tab.hosts == {"127.0.0.1"}


def test_the_page_fits_a_telephone(browser, site):
    context = browser.new_context(viewport={"width": 360, "height": 740}, is_mobile=True, has_touch=True)
    tab = context.new_page()
    open_demo(tab, site)
    tab.wait_for_selector("#ds-source-examples img")
    assert tab.evaluate("document.documentElement.scrollWidth") <= 360
    for box in (tab.locator(s).bounding_box() for s in ("#ds-source", "#ds-target", "#ds-go")):
        assert box["x"] >= 0 and box["x"] + box["width"] <= 360 and box["width"] > 280
    for what in ("source", "target"):
        tab.locator(f"#ds-{what}-examples button.gallery-item").nth(1).click()
        tab.wait_for_selector(f"#ds-{what}-note .ds-note.good")
    for name in ("All methods", "Attention masks"):
        tab.locator("#ds-show").get_by_label(name).check()
    tab.click("#ds-go")
    tab.wait_for_selector("#ds-seal .ds-card.ours", timeout=90_000)
    tab.wait_for_function("document.querySelector('.ds-sheet img')?.complete")
    assert tab.evaluate("document.documentElement.scrollWidth") <= 360
    for box in (tab.locator(s).bounding_box() for s in ("#ds-slider", "#ds-seal", "#ds-download", "#ds-others", ".ds-sheet:visible")):
        assert box["x"] >= 0 and box["x"] + box["width"] <= 360 and box["width"] > 280
    context.close()


# ---- the course ----


@pytest.fixture(scope="module")
def lab(tmp_path_factory, repo):
    "JupyterLab on a copy of the chapter, without a token on the loopback device, and with its settings in a folder of its own."
    folder, port = tmp_path_factory.mktemp("lab"), free_port()
    (folder / "nbs").mkdir()
    for chapter in CHAPTERS:
        shutil.copy(repo / "nbs" / f"{chapter}.ipynb", folder / "nbs")
    shutil.copytree(repo / "benchmarks" / "results", folder / "benchmarks" / "results")  # what the chapters read
    settings = {"apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False}, "notebook-extension/tracker": {"windowingMode": "none"}}
    for name, values in settings.items():
        path = folder / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))
    env = {f"JUPYTER_{n}_DIR": str(folder / n.lower()) for n in ("CONFIG", "DATA", "RUNTIME")}
    env |= {"JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"), "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces"), "IPYTHONDIR": str(folder / "ipython"),
            "DEEPSWAP_FAST": "1", "OMP_NUM_THREADS": "1", "MPLBACKEND": None}  # fmt: skip
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}", "--ServerApp.port_retries=0",
               "--IdentityProvider.token=", "--ServerApp.password=", f"--ServerApp.root_dir={folder}"]  # fmt: skip
    with server(command, f"http://127.0.0.1:{port}/api", folder / "log.txt", env=env, cwd=folder) as process:
        yield f"http://127.0.0.1:{port}"
        children = descendants(process.pid)
    assert not [c for c in children if c.is_running()], "no kernel outlives the test"


PROMPTS = "[...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt:not(.jp-Placeholder-prompt)')].map(p => p.innerText)"
ERRORS = "[...document.querySelectorAll('.jp-OutputArea-output')].map(o => o.innerText).filter(t => t.includes('Traceback (most recent call last)'))"
PICTURES = "e => [...e.querySelectorAll('img')].map(i => i.src).concat([...e.querySelectorAll('canvas')].map(c => c.toDataURL()))"


def run_chapter(tab, lab, chapter):
    "Open a chapter and run all of it."
    tab.goto(f"{lab}/lab/tree/nbs/{chapter}.ipynb?reset")
    tab.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=60_000)
    tab.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status=idle]", timeout=60_000)
    tab.wait_for_selector(".jp-OutputArea-output", state="attached")  # the chapter keeps its outputs
    for _ in range(6):  # a request made before the kernel is connected gets lost, or JupyterLab asks which kernel it should be
        tab.get_by_role("menuitem", name="Run", exact=True).click()
        tab.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        tab.wait_for_timeout(5000)
        if tab.locator(".jp-Dialog").count():
            tab.locator(".jp-Dialog .jp-mod-accept").first.click()
            tab.wait_for_timeout(5000)
        if tab.evaluate(f"({PROMPTS}).some(p => /[*\\d]/.test(p))"):
            break
    tab.wait_for_function(f"() => ({PROMPTS}).every(p => /\\d/.test(p)) || ({ERRORS}).length", timeout=200_000)
    assert tab.evaluate(ERRORS) == [], "a cell raised"


def new_pictures(cell, before):
    "What the cell shows once it is something else; the old picture goes before the new one comes."
    end = time.monotonic() + 30
    while cell.evaluate(PICTURES) in (before, []) and time.monotonic() < end:
        time.sleep(0.2)
    return cell.evaluate(PICTURES)


CELL = "xpath=ancestor::div[contains(concat(' ', @class, ' '), ' jp-CodeCell ')]"
SHOWN = ".widget-output img, .widget-output canvas, .widget-image"


def test_a_reader_runs_a_chapter_and_moves_a_slider(tab, lab):
    run_chapter(tab, lab, CHAPTERS[0])
    handle = tab.locator(".jp-CodeCell .widget-slider [role=slider]").first
    handle.scroll_into_view_if_needed()
    cell = handle.locator(CELL).last
    cell.locator(SHOWN).first.wait_for(state="attached")
    before, value = cell.evaluate(PICTURES), handle.get_attribute("aria-valuenow")
    assert before and re.match("data:image|blob:|http", before[0])
    for _ in range(8):
        handle.press("ArrowRight")
    assert handle.get_attribute("aria-valuenow") != value, "the key moves the slider"
    after = new_pictures(cell, before)
    assert after and after != before, "the picture follows the slider"
    assert tab.hosts == {"127.0.0.1"}


def test_a_reader_draws_points_and_plays_the_gan_game(tab, lab):
    "The playground's canvas: own points by mouse, single moves, slow motion, running and pausing; Python behind it plays."
    run_chapter(tab, lab, CHAPTERS[1])
    box = tab.locator(".ds-play").first
    plane, status, says = box.locator(".plane"), box.locator(".status"), box.locator(".says")
    box.scroll_into_view_if_needed()
    moves = lambda: int(re.match(r"(\d+) moves", status.inner_text())[1])
    divergence = lambda: float(re.search(r"divergence ([\d.]+)", status.inner_text())[1])
    picture = lambda: plane.evaluate("c => c.toDataURL()")
    look = lambda text, where: tab.wait_for_function("([e, t]) => e.innerText.includes(t)", arg=[where.element_handle(), text])
    do = lambda name: box.locator(f"[data-do={name}]").click()

    do("clear")
    look("No points", says)
    do("d")
    look("There are no points", says)
    empty, r = picture(), plane.bounding_box()
    for u in (0.3, 0.7):  # two strokes
        tab.mouse.move(r["x"] + r["width"] * u, r["y"] + r["height"] * 0.25)
        tab.mouse.down()
        tab.mouse.move(r["x"] + r["width"] * u, r["y"] + r["height"] * 0.75, steps=20)
        tab.mouse.up()
    tab.wait_for_function("b => b.className == 'on'", arg=box.locator("[data-preset=own]").element_handle())
    tab.wait_for_timeout(1000)
    drawn = picture()
    assert drawn != empty, "the points are seen"
    do("d"), do("g")
    look("2 moves: D 1, G 1", status)
    tab.wait_for_timeout(1000)
    assert picture() != drawn, "the landscape follows"

    box.locator("[data-set=pace]").select_option("slow motion")
    for part in ("Codes are drawn", "turns every code", "D judges"):
        do("beat")
        look(part, says)
    assert moves() == 2, "the weights change in the last part only"
    do("beat")
    look("3 moves: D 2, G 1", status)

    do("restart")
    look("0 moves", status)
    first = divergence()
    box.locator("[data-set=pace]").select_option("10 moves a picture")
    do("run")
    end, rates = time.monotonic() + 60, []
    while (moves() < 600 or divergence() > first - 0.2) and time.monotonic() < end:
        rates += map(int, re.findall(r"(\d+) moves/s", status.inner_text()))
        tab.wait_for_timeout(250)
    do("run")
    tab.wait_for_timeout(1000)
    stopped = moves()
    tab.wait_for_timeout(1000)
    assert moves() == stopped and divergence() < first - 0.2, "it ran, learnt, and pauses"
    assert max(rates) >= 10, "a film, not a slide show"

    box.locator("[data-rule=objective]").select_option("minimax")
    box.locator("[data-preset=ring]").click()
    tab.wait_for_function("b => b.className == 'on'", arg=box.locator("[data-preset=ring]").element_handle())
    assert box.locator("[data-rule=objective]").input_value() == "minimax" and moves() == stopped, "rules and points change within a game"
    assert tab.evaluate(ERRORS) == [] and tab.errors == [] and tab.hosts == {"127.0.0.1"}
