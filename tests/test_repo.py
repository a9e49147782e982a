"The notebooks, the library, the README and the site agree."

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from common import script
import yaml

ROOT = Path(__file__).resolve().parents[1]
NBS = [ROOT / "index.ipynb", *sorted((ROOT / "nbs").glob("[!_]*.ipynb"))]
MODULES = sorted(p for p in (ROOT / "deepswap").glob("[!_]*.py"))


def cells(path):
    return json.loads(path.read_text())["cells"]


def is_method(node):
    "A function that `patch` makes a method of a class of its chapter."
    return any(isinstance(d, ast.Name) and d.id == "patch" for d in node.decorator_list)


def source_notebook(module):
    found = re.search(r"File to edit: (\S+\.ipynb)", module.read_text())
    assert found, f"{module.name} was not exported from a notebook"
    return (module.parent / found[1]).resolve()


def test_every_module_has_one_notebook():
    sources = [source_notebook(m) for m in MODULES]
    assert all(s.exists() for s in sources) and len(set(sources)) == len(sources)


def imports(module):
    "Names of the modules of ours that a module imports, anywhere in it."
    for node in ast.walk(ast.parse(module.read_text())):
        names = [node.module] if isinstance(node, ast.ImportFrom) and node.module else [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.level:
            names = [f"deepswap.{node.module}"] if node.module else [f"deepswap.{a.name}" for a in node.names]
        yield from (n.split(".")[1] for n in names if n.startswith("deepswap."))


def test_modules_import_only_from_lower_floors():
    "A chapter uses only what was built before it. One exception, within one floor: a video is signed while it is written, and what the signs are is told after it."
    number = {m.stem: int(source_notebook(m).name[:2]) for m in MODULES}
    for m in MODULES:
        for name in imports(m):
            assert name not in number or number[name] < number[m.stem] or (m.stem, name) == ("video", "provenance"), f"{m.name} imports {name}, which stands above it"


def test_imports_make_no_circle():
    graph = {m.stem: set(imports(m)) - {m.stem} for m in MODULES}
    while ready := [name for name, needs in graph.items() if not needs & graph.keys()]:
        for name in ready:
            del graph[name]
    assert not graph, f"a circle of imports among {sorted(graph)}"


def test_no_public_name_is_defined_twice():
    seen = {}
    for m in MODULES:
        for node in ast.parse(m.read_text()).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_") and not is_method(node):
                assert node.name not in seen, f"{node.name} is defined in {seen[node.name]} and {m.name}"
                seen[node.name] = m.name
    assert len(seen) > 20


def test_public_functions_have_docstrings():
    bare = []
    for m in MODULES:
        for node in ast.walk(ast.parse(m.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_") and not ast.get_docstring(node):
                if node.col_offset == 0:
                    bare.append(f"{m.stem}.{node.name}")
    assert not bare, f"without a docstring: {bare}"


def test_sidebar_lists_every_notebook():
    yml = yaml.safe_load((ROOT / "_quarto.yml").read_text())
    listed = re.findall(r"[\w/]+\.ipynb", json.dumps(yml["website"]["sidebar"]))
    assert sorted(listed) == sorted(str(p.relative_to(ROOT)) for p in NBS)


@pytest.mark.parametrize("path", NBS, ids=lambda p: p.name)
def test_notebook_is_small_has_ids_and_outputs(path):
    assert path.stat().st_size < 1_500_000
    all_cells = cells(path)
    assert all(c.get("id") for c in all_cells) and len({c["id"] for c in all_cells}) == len(all_cells)
    outputs = [o for c in all_cells for o in c.get("outputs", [])]
    assert outputs, "run it in full mode and keep the outputs"
    assert not [o for o in outputs if o["output_type"] == "error"]


@pytest.mark.parametrize("path", NBS[1:], ids=lambda p: p.name)
def test_chapter_has_the_parts_of_a_chapter(path):
    all_cells = cells(path)
    prose = "\n".join("".join(c["source"]) for c in all_cells if c["cell_type"] == "markdown")
    code = [c for c in all_cells if c["cell_type"] == "code"]
    assert re.search(r"^#+ .*Summary", prose, re.M) and re.search(r"^#+ .*Exercises", prose, re.M)
    assert prose.count("<details") >= 3, "three to five exercises, each with a folded solution"
    assert (len(all_cells) - len(code)) / len(all_cells) > 0.28
    assert any(re.search(r"\b(interactive|interactive_output|controls)\(", "".join(c["source"])) for c in code), "nothing moves"


@pytest.mark.parametrize("path", [p for p in NBS[1:] if "run_solutions(" in p.read_text()], ids=lambda p: p.name)
def test_every_exercise_checks_its_answer(path):
    "An unanswered cell of the reader's per exercise, a check with a hint for each, and a last cell that runs the folded solutions."
    all_cells = cells(path)
    begin = max(i for i, c in enumerate(all_cells) if c["cell_type"] == "markdown" and re.search(r"^#+ .*Exercises", "".join(c["source"]), re.M))
    folded = re.findall(r"<details>.*?</details>", "".join("".join(c["source"]) for c in all_cells[begin:] if c["cell_type"] == "markdown"), re.S)
    code = ["".join(c["source"]) for c in all_cells[begin:] if c["cell_type"] == "code"]
    checks = [f for s in code for f in parsed(s).body if isinstance(f, ast.FunctionDef) and any(ast.unparse(d) == "exercise" for d in f.decorator_list)]
    assert len(checks) >= len(folded) >= 3 and all(ast.get_docstring(f) for f in checks)
    for f in checks:
        assert any(re.search(rf"^{f.name}\(", s, re.M) and "..." in s for s in code), f"no cell waits for an answer to {f.name}"
        assert any(f"{f.name}(" in s for s in folded), f"no solution is checked by {f.name}"
    assert f'run_solutions("{path.stem}", globals())' in code[-1]


@pytest.mark.parametrize("path", NBS, ids=lambda p: p.name)
def test_formulas_are_not_escaped_twice(path):
    for c in cells(path):
        if c["cell_type"] == "markdown":
            twice = re.findall(r"\\\\[a-zA-Z{},;|!]", "".join(c["source"]))  # \\frac is a line break and the word frac
            assert not twice, f"{path.name}: {''.join(c['source'])[:80]!r} holds {twice[:3]}"


@pytest.mark.parametrize("path", NBS, ids=lambda p: p.name)
def test_links_between_chapters_resolve(path):
    for c in cells(path):
        if c["cell_type"] == "markdown":
            for link in re.findall(r"\]\(([\w./-]+\.(?:ipynb|md|jpg|png))", "".join(c["source"])):
                assert (path.parent / link).exists(), f"{path.name} links to {link}"


def test_readme_is_made_from_the_index():
    text, pictures = script("tools/readme.py").render()
    assert (ROOT / "README.md").read_text(encoding="utf-8") == text, "run `make sync`"
    assert pictures and all((ROOT / n).read_bytes() == b for n, b in pictures.items())
    for target in ("make lab", "make demo", "make test"):
        assert target in text


def test_site_is_built_and_links_are_checked(tmp_path):
    "Without Quarto; the check itself is shown to find a broken link."
    out = tmp_path / "site"
    run = subprocess.run([sys.executable, "tools/site.py", str(out)], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]
    assert len(list(out.rglob("*.html"))) == len(NBS) + 5  # and the reference: stable names, all names, models, gallery, benchmarks
    prose = re.sub(r"<pre.*?</pre>", "", (out / "nbs" / "gan.html").read_text(), flags=re.S)  # a label in the code may be LaTeX
    assert "<math" in prose and not re.search(r"\$[\w\\]+\$", prose)
    assert re.search(r'</math><span>\(1\)</span>', prose) and 'rel="next"' in prose and 'href="#5.-the-playground"' in prose
    pages = [re.sub(r"<pre.*?</pre>", "", p.read_text(), flags=re.S) for p in out.rglob("*.html")]
    assert not any('src="data:image/jpeg' in p or 'alt="No description' in p or re.search(r"<img(?![^>]* alt=\"[^\"])", p) for p in pages), "pictures are files, and described"
    known = json.loads((out / "search_index.js").read_text().removeprefix("const INDEX = "))
    assert any(e["p"] == "nbs/gan.html" and "Playground" in e["x"] for e in known) and any("deepswap-faceshifter-v1" in e["x"] for e in known)
    page = out / "index.html"
    page.write_text(page.read_text() + '<a href="nowhere.html">x</a>')
    assert script("tools/site.py").broken_links(out)[0] == [("index.html", "nowhere.html")]


def test_benchmark_page_says_what_was_recorded():
    "The page is computed from the recorded results, a missed goal is called missed, and a missing result is no success."
    bench = script("benchmarks/all.py")
    stored = json.loads((bench.RESULTS / "all.json").read_text())
    rows = bench.gather()
    assert {**stored, "rows": rows} == stored and (bench.HERE / "README.md").read_text() == bench.page(stored), "run `python benchmarks/all.py --page`"
    for r in rows:
        if r["goal"] and r["figure"] is not None:
            relation, goal = r["goal"].split()
            assert r["reached"] == (r["figure"] >= float(goal) if relation == ">=" else r["figure"] <= float(goal)), r["what"]
        else:
            assert r["reached"] is None and (r["figure"] is not None or r["missing"])
    bench.RESULTS = bench.HERE / "nowhere"
    assert not any(r["reached"] for r in bench.gather())


@pytest.mark.parametrize("path", NBS[1:], ids=lambda p: p.name)
def test_the_link_to_colab_leads_to_this_chapter(path):
    "The link names a file of this repository, and the cell that installs does nothing elsewhere."
    tool = script("tools/colab.py")
    link, install = tool.cells_for(path)
    assert tool.with_cells(path) == path.read_text(encoding="utf-8"), "run `make sync`"
    assert (ROOT / "".join(link["source"]).rstrip(")").split("/blob/main/")[1]) == path
    calls = []
    exec("".join(install["source"]), {"get_ipython": lambda: calls})  # a shell that is not Colab's
    assert not calls


def test_gallery_shows_what_is_tagged(tmp_path):
    pages = script("tools/pages.py")
    pages.OUT = tmp_path
    text = pages.gallery()
    pictures = re.findall(r'<img src="(images/\S+)" alt="([^"]*)"', text)
    assert len(pictures) >= 20 and all((tmp_path / p).stat().st_size > 1000 and alt for p, alt in pictures)


def test_no_path_of_a_machine_and_no_large_file():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    bad = []
    for name in filter(None, listed.stdout.split("\0")):
        p = ROOT / name
        if not p.is_file():
            continue
        assert p.stat().st_size < 25_000_000, name
        if p.suffix in (".py", ".ipynb", ".md", ".ini", ".toml", ".yml") and re.search(r"/(?:work|root|home/\w+)/[\w.]", p.read_text()):
            bad.append(name)
    assert not bad, f"a path of one machine in {bad}"


@pytest.mark.parametrize("path", NBS, ids=lambda p: p.name)
def test_every_figure_is_described_for_those_who_cannot_see_it(path):
    bare = []
    for i, c in enumerate(cells(path)):
        for o in c.get("outputs", []):
            pictures = {k for k in o.get("data", {}) if k.startswith("image/")}
            alt = any(isinstance(m, dict) and m.get("alt") for m in o.get("metadata", {}).values())
            if pictures and not alt and "#| fig-alt:" not in "".join(c["source"]):
                bare.append((i, "".join(c["source"])[:60]))
    assert not bare, "write `#| fig-alt: ...` as the first line of these cells"


@pytest.mark.parametrize("path", [p for p in NBS[1:] if 10 <= int(p.name[:2]) < 50 or p.name.startswith("52")], ids=lambda p: p.name)
def test_chapter_keeps_a_readers_pace(path):
    "Not too long, no wall of code, and never more than three code cells in a row."
    all_cells = cells(path)
    end = next(i for i, c in enumerate(all_cells) if c["cell_type"] == "markdown" and re.search(r"^#+ .*Exercises", "".join(c["source"]), re.M))
    housekeeping = {c["id"] for c in script("tools/colab.py").cells_for(path)}  # a link, and a hidden cell that installs
    all_cells = [c for c in all_cells[:end] if c["id"] not in housekeeping]  # the exercises are the reader's own time
    code = [len([x for x in "".join(c["source"]).splitlines() if x.strip()]) for c in all_cells if c["cell_type"] == "code"]
    assert 35 <= len(all_cells) <= 90 and sorted(code)[len(code) // 2] <= 10 and max(code) <= 40
    kinds = "".join(c["cell_type"][0] for c in all_cells)
    assert "cccc" not in kinds


WIDGET = re.compile(r"\b(?:interactive|interactive_output|controls|stepper|in_browser|arena)\(")


@pytest.mark.parametrize("path", NBS, ids=lambda p: p.name)
def test_a_notebook_names_its_kernel(path):
    "Without it JupyterLab opens the chapter with a question."
    assert json.loads(path.read_text())["metadata"].get("kernelspec", {}).get("name") == "python3"


@pytest.mark.parametrize("path", NBS[1:], ids=lambda p: p.name)
def test_every_widget_is_shown(path):
    "A widget that is made and not displayed moves nothing: it, or the name it was given, is displayed or ends a cell."
    sources = ["".join(c["source"]) for c in cells(path) if c["cell_type"] == "code"]
    ends = [ast.unparse(tree.body[-1]) for s in sources if (tree := parsed(s)) and tree.body and isinstance(tree.body[-1], ast.Expr)]
    shown = "\n".join(ends + re.findall(r"display\(.*\)", "\n".join(sources)))
    for s in sources:
        for node in parsed(s).body if parsed(s) else ():
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and WIDGET.match(ast.unparse(node.value)):
                name = ast.unparse(node.targets[0])
                assert re.search(rf"\b{re.escape(name)}\b", shown), f"{path.name}: {name} is never shown"


def parsed(source):
    "The cell as a syntax tree, or None where it holds a magic."
    try:
        return ast.parse(source)
    except SyntaxError:
        return None
