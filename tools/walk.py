"""Walk through chapters as a reader does: open each in a real JupyterLab, run all cells, touch every widget, take pictures of the page.

python tools/walk.py nbs/20_gan.ipynb nbs/21_lsgan.ipynb --shots DIR     (fast mode; --full for the real run)

Needs Chromium and playwright. Prints one line per chapter; the exit code is the number of chapters with an error. Nothing is saved to the notebooks.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

from playwright.sync_api import TimeoutError, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from servers import free_port, server  # noqa: E402

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
CELLS = "[...document.querySelectorAll('.jp-CodeCell')].filter(c => c.querySelector('.cm-content')?.innerText.trim())"  # an empty cell is never numbered, a folded one has no text
PROMPTS = f"{CELLS}.map(c => c.querySelector('.jp-InputPrompt').innerText)"
ERRORS = "[...document.querySelectorAll('[data-mime-type=\"application/vnd.jupyter.error\"]')].map(o => o.innerText)"
TOUCHED = ".jp-CodeCell .widget-slider [role=slider], .jp-CodeCell .jupyter-button, .jp-CodeCell .widget-dropdown select, .jp-CodeCell .widget-checkbox input"


def lab_command(folder, port):
    return [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}", "--ServerApp.port_retries=0",
            "--IdentityProvider.token=", "--ServerApp.password=", f"--ServerApp.root_dir={folder}"]  # fmt: skip


def quiet_settings(folder):
    "No pop-ups, and the whole notebook in the page at once."
    values = {"apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False}, "notebook-extension/tracker": {"windowingMode": "none"}}
    for name, value in values.items():
        path = folder / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value))


def touch(tab):
    "One key or click for every slider, button, menu and box; returns how many."
    handles = tab.locator(TOUCHED)
    count = handles.count()
    for i in range(count):
        h = handles.nth(i)
        if not h.is_visible() or h.is_disabled():
            continue
        h.scroll_into_view_if_needed()
        kind = h.evaluate("e => e.getAttribute('role') || e.tagName")
        if kind == "slider":
            h.press("ArrowRight")
        elif kind == "SELECT":
            n = h.evaluate("e => e.options.length")
            h.select_option(index=n - 1)
        else:
            h.click()
        tab.wait_for_timeout(300)
    return count


def photograph(tab, folder, name):
    "The page in pieces of one screen each."
    panel = ".jp-NotebookPanel:not(.lm-mod-hidden) .jp-WindowedPanel-outer"
    height, screen = tab.evaluate(f"(() => {{ const p = document.querySelector('{panel}'); return [p.scrollHeight, p.clientHeight]; }})()")
    for k, top in enumerate(range(0, height, screen)):
        tab.evaluate(f"document.querySelector('{panel}').scrollTop = {top}")
        tab.wait_for_timeout(150)
        tab.locator(panel).screenshot(path=str(folder / f"{name}_{k:02d}.png"))


def run_all(tab):
    "Ask until the kernel has begun: a request made before it is connected gets lost. Returns when it began."
    for _ in range(5):
        tab.get_by_role("menuitem", name="Run", exact=True).click()
        tab.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        start = time.time()
        try:
            tab.wait_for_function(f"() => ({PROMPTS}).some(p => p.includes('*'))", timeout=8000)
            return start
        except TimeoutError:
            if any(any(c.isdigit() for c in p) for p in tab.evaluate(PROMPTS)):
                return start
    raise RuntimeError("the kernel does not take the cells")


def walk(tab, address, path, shots, limit):
    "One chapter; returns the list of what went wrong."
    tab.goto(f"{address}/lab/tree/{path.relative_to(ROOT)}?reset")
    tab.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=60_000)
    tab.wait_for_function(f"() => fetch('/api/sessions').then(r => r.json()).then(l => l.some(s => s.path.endsWith('{path.name}') && s.kernel.execution_state == 'idle'))", timeout=90_000)
    tab.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status=idle]", timeout=90_000)
    tab.wait_for_timeout(2000)
    start = run_all(tab)
    tab.wait_for_function(f"() => ({PROMPTS}).every(p => /\\d/.test(p)) || ({ERRORS}).length", timeout=limit * 1000)
    seconds = time.time() - start
    count = touch(tab)
    tab.wait_for_timeout(3000)
    if shots:
        photograph(tab, shots, path.stem)
    errors = [e.strip().splitlines()[-1] for e in tab.evaluate(ERRORS)]
    print(f"{path.name}: ran in {seconds:.0f} s, {count} widgets touched, " + ("; ".join(errors) or "no error"), flush=True)
    return errors


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("notebooks", nargs="+", type=Path)
    p.add_argument("--shots", type=Path)
    p.add_argument("--full", action="store_true")
    p.add_argument("--limit", type=int, default=600, help="seconds for one chapter")
    a = p.parse_args()
    if a.shots:
        a.shots.mkdir(parents=True, exist_ok=True)
    folder, port, bad = Path(tempfile.mkdtemp()), free_port(), 0
    quiet_settings(folder)
    course = folder / "course"
    shutil.copytree(ROOT, course, ignore=shutil.ignore_patterns(".venv", ".git", "_docs", "_proc", "_text"))
    env = {f"JUPYTER_{n}_DIR": str(folder / n.lower()) for n in ("CONFIG", "DATA", "RUNTIME")}
    env |= {"JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"), "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces"), "IPYTHONDIR": str(folder / "ipython"),
            "DEEPSWAP_FAST": "" if a.full else "1", "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2"), "MPLBACKEND": None}  # fmt: skip
    with server(lab_command(course, port), f"http://127.0.0.1:{port}/api", folder / "log.txt", env=env, cwd=course), sync_playwright() as pw:
        chromium = shutil.which("chromium") or shutil.which("google-chrome")
        browser = pw.chromium.launch(executable_path=chromium, args=FLAGS)
        for path in map(Path.resolve, a.notebooks):
            tab = browser.new_page(viewport={"width": 1250, "height": 1500})
            try:
                bad += bool(walk(tab, f"http://127.0.0.1:{port}", path, a.shots, a.limit))
            except Exception as e:
                bad += 1
                print(f"{path.name}: {str(e).splitlines()[0]}", flush=True)
                if a.shots:
                    tab.screenshot(path=str(a.shots / f"{path.stem}_stuck.png"))
            tab.close()
        browser.close()
    shutil.rmtree(folder, ignore_errors=True)
    return bad


if __name__ == "__main__":
    sys.exit(main())
