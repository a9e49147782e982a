"""Build the documentation and check every internal link.

python tools/site.py OUT          with Quarto where it is installed, else plain HTML from the processed notebooks
python tools/site.py --check OUT  check the links of a built site only
"""

import html
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import yaml

ROOT = Path(__file__).resolve().parents[1]
STYLE = """
main a{color:#0072b2}main table{border-collapse:collapse;font-size:.92rem}main th,main td{border-bottom:1px solid #dde2e8;padding:.25rem .6rem;text-align:left;vertical-align:top}
math[display=block]{margin:1rem 0;overflow-x:auto;overflow-y:hidden}
.gallery{display:grid;grid-template-columns:repeat(auto-fill,minmax(24rem,1fr));gap:1.2rem}.gallery figure{margin:0}.gallery img{width:100%;height:19rem;object-fit:contain;background:#f6f7f9}
.gallery figcaption{font-size:.85rem;color:#4a5461}
#search{width:100%;box-sizing:border-box;padding:.35rem .5rem;border:1px solid #c6ccd4;border-radius:4px;font:inherit}#found a{padding:.35rem 0;border-bottom:1px solid #eef0f3}#found small{display:block;color:#68727e}
body{margin:0;font:16px/1.55 system-ui,sans-serif;color:#1c2430;display:flex}
nav{flex:0 0 15rem;padding:1.2rem;border-right:1px solid #dde2e8;height:100vh;overflow:auto;position:sticky;top:0;box-sizing:border-box;font-size:.9rem}
nav a{display:block;color:inherit;text-decoration:none;padding:.15rem 0}nav a.here{font-weight:600;color:#0072b2}nav b{display:block;margin-top:.9rem;color:#68727e}
main{flex:1;min-width:0;padding:0 2rem 4rem;max-width:62rem}img{max-width:100%}
.jp-InputPrompt,.jp-OutputPrompt,.jp-Collapser{display:none!important}pre{overflow:auto}
@media(max-width:50rem){body{display:block}nav{height:auto;position:static;border:0}main{padding:0 1rem}}
"""


SEARCH = """
// Every word must occur in a section; sections whose heading holds it come first. The index is a script, so that it also loads from a disk.
const box = document.getElementById("search"), found = document.getElementById("found"), list = document.getElementById("pages");
box.addEventListener("input", () => {
  const words = box.value.toLowerCase().split(/\\s+/).filter(w => w.length > 1);
  const rank = e => words.reduce((n, w) => {
    const head = (e.t + " " + e.h).toLowerCase().includes(w), body = e.x.toLowerCase().includes(w);
    return n < 0 || !(head || body) ? -1 : n + (head ? 10 : 1);
  }, 0);
  const hits = words.length ? INDEX.map(e => [rank(e), e]).filter(h => h[0] > 0).sort((a, b) => b[0] - a[0]).slice(0, 12) : [];
  list.hidden = words.length > 0;
  found.replaceChildren(...hits.map(([, e]) => {
    const a = document.createElement("a"), where = document.createElement("small"), at = Math.max(0, e.x.toLowerCase().indexOf(words[0]) - 40);
    a.href = UP + e.p + (e.a ? "#" + e.a : ""); a.textContent = e.h || e.t;
    where.textContent = e.t + ": " + e.x.slice(at, at + 110); a.append(where);
    return a;
  }));
  if (words.length && !hits.length) found.textContent = "Nothing found.";
});
"""


def sections():
    "The sidebar of _quarto.yml as (title, [paths of notebooks and pages])."
    top = yaml.safe_load((ROOT / "_quarto.yml").read_text())["website"]["sidebar"]["contents"]
    yield "", [c for c in top if isinstance(c, str)]
    for c in top:
        if isinstance(c, dict):
            yield c["section"], c["contents"]


def navigation(titles, here):
    "The sidebar as HTML, relative to the page `here`."
    up = "../" * (len(here.parts) - 1)
    rows = []
    for section, notebooks in sections():
        if section:
            rows.append(f"<b>{html.escape(section)}</b>")
        for nb in notebooks:
            page, title = titles[nb]
            rows.append(f'<a href="{up}{page}"{" class=here" if page == here else ""}>{html.escape(title)}</a>')
    return "\n".join(rows)


def front_matter(nb):
    "What nbdev put in the raw first cell."
    return yaml.safe_load(nb.cells[0].source.strip("-\n ")) if nb.cells[0].cell_type == "raw" else {}


def with_math(body):
    "LaTeX between dollars as MathML, which a browser sets without any script."
    from latex2mathml.converter import convert

    def formula(found):
        text = html.unescape(found[1] or found[2]).replace(r"\arg", r"\operatorname{arg}")
        return convert(text, display="block" if found[1] else "inline")

    parts = re.split(r"(<pre.*?</pre>|<code.*?</code>|<style.*?</style>|<script.*?</script>|<img[^>]*>)", body, flags=re.S)
    parts[::2] = [re.sub(r"\$\$(.+?)\$\$|\$([^$]+?)\$", formula, p, flags=re.S) for p in parts[::2]]
    return "".join(parts)


def passages(page, title, body):
    "What the search knows of a page: an entry for each heading with the text below it."
    body = re.sub(r"<(style|script|math|annotation).*?</\1>|<img[^>]*>", " ", body, flags=re.S)
    anchor, heading = "", ""
    for part in re.split(r'(<h[1-4] id="[^"]*".*?</h[1-4]>)', body, flags=re.S):
        text = " ".join(html.unescape(re.sub(r"<[^>]+>", " ", part)).split())
        if found := re.match(r'<h[1-4] id="([^"]*)"', part):
            anchor, heading = found[1], text.rstrip("¶ ")
        elif text:
            yield {"p": str(page), "a": anchor, "t": title, "h": heading, "x": text[:4000]}


def prepare(nb, fm, base, up):
    "Make one processed notebook fit for nbconvert: title cell, local links, no Quarto syntax, no directives."
    import nbformat

    nb.metadata.language_info = {"name": "python"}
    if fm:
        nb.cells[0] = nbformat.v4.new_markdown_cell(f"# {fm['title']}\n\n> {fm.get('description', '')}")
    for c in nb.cells:
        if c.cell_type == "markdown":
            c.source = re.sub(r"\]\(([\w./-]+|api)\.(?:ipynb|(?<=api\.)md)\b", r"](\1.html", c.source.replace(base, up))
            c.source = re.sub(r"\]\(\.\./nbs/\d\d_(\w+\.html)", r"](../nbs/\1", c.source)
            c.source = re.sub(r"\]\((?:nbs/)?\d\d_(\w+\.html)", r"](\1", c.source) if up else re.sub(r"\]\(nbs/\d\d_(\w+\.html)", r"](nbs/\1", c.source)
        elif "#| echo: false" in c.source:
            c.source, c.metadata["tags"] = "", ["no-input"]
        alt = re.search(r'#\| fig-alt: "?(.+?)"?$', c.source, re.M)
        if c.cell_type == "code":
            c.source = re.sub(r"^#\|.*\n?", "", c.source, flags=re.M)
        for o in c.get("outputs", []):
            if alt and o.get("output_type") in ("display_data", "execute_result"):
                for kind in (k for k in o.data if k.startswith("image/")):
                    o.metadata.setdefault(kind, {}).setdefault("alt", alt[1])
            if "text/markdown" in o.get("data", {}):
                o.data["text/markdown"] = re.sub(r"\{target=.*?\}", "", "".join(o.data["text/markdown"])).replace(base, up)
    return nb


def page_of_text(path):
    "A page that is written in Markdown, as a notebook of one cell below its title."
    import nbformat

    title, _, text = path.read_text(encoding="utf-8").removeprefix("# ").partition("\n")
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_raw_cell(f"---\ntitle: {title}\n---"), nbformat.v4.new_markdown_cell(text)])


def build_plain(out):
    "The site without Quarto."
    import nbformat
    from nbconvert import HTMLExporter
    from nbdev.config import get_config
    from nbdev.doclinks import _build_modidx
    from nbdev.serve import proc_nbs

    cfg = get_config()
    _build_modidx()
    proc = proc_nbs(n_workers=0, force=True)
    base = cfg.doc_host + cfg.doc_baseurl + "/"
    exporter = HTMLExporter(
        template_name="basic",
        exclude_input_prompt=True,
        exclude_output_prompt=True,
        config={"TagRemovePreprocessor": {"enabled": True, "remove_input_tags": ["no-input"]}},
    )
    exporter.register_filter("clean_html", lambda source: source)  # our own code, highlighted: half of the time went into mistrusting it
    lab_css = re.findall(r"<style.*?</style>", HTMLExporter(template_name="lab").from_notebook_node(nbformat.v4.new_notebook())[0], re.S)
    notebooks, titles = {}, {}
    for section in sections():
        for name in section[1]:
            nb = nbformat.read(proc / name, 4) if name.endswith(".ipynb") else page_of_text(ROOT / name)
            fm = front_matter(nb)
            page = Path(name).with_name(fm.get("output-file", Path(name).stem + ".html"))
            heading = re.search(r"^# (.+)$", nb.cells[0].source, re.M)
            notebooks[name], titles[name] = (nb, fm), (page, fm.get("title") or (heading[1] if heading else Path(name).stem))
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    (out / "site.css").write_text("\n".join(re.sub(r"</?style.*?>", "", s) for s in lab_css) + STYLE)
    index = []
    for name, (nb, fm) in notebooks.items():
        page, title = titles[name]
        up = "../" * (len(page.parts) - 1)
        body, _ = exporter.from_notebook_node(prepare(nb, fm, base, up))
        body = re.sub(r'(<h\d id="|class="anchor-link" href="#)([^"]+)', lambda m: m[1] + m[2].lower(), body)  # as Quarto names them
        body = with_math(body)
        index += passages(page, title, body)
        (out / page).parent.mkdir(parents=True, exist_ok=True)
        (out / page).write_text(
            f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
            f'<title>{html.escape(title)} – deepswap</title><link rel="stylesheet" href="{up}site.css">'
            f'<body><nav><input id="search" type="search" placeholder="Search" aria-label="Search the course"><div id="found"></div>'
            f'<div id="pages">{navigation(titles, page)}</div></nav><main>{body}</main>'
            f'<script>const UP = "{up}"</script><script src="{up}search_index.js"></script><script src="{up}search.js"></script></body></html>'
        )
    (out / "search.js").write_text(SEARCH)
    (out / "search_index.js").write_text("const INDEX = " + json.dumps(index, ensure_ascii=False))
    for folder in ("images", "nbs/images", "reference/images"):
        if (ROOT / folder).is_dir():
            shutil.copytree(ROOT / folder, out / folder)
    shutil.rmtree(proc)  # or it stands in the reader's list of files
    print(f"{len(notebooks)} pages in {out}, without Quarto")


class Links(HTMLParser):
    "Collects what a page links to and the anchors it has."

    def __init__(self):
        super().__init__()
        self.links, self.ids = [], set()

    def handle_starttag(self, tag, attrs):
        for k, v in attrs:
            if k in ("href", "src") and v:
                self.links.append(v)
            elif k in ("id", "name") and v:
                self.ids.add(v)


def broken_links(out):
    "Internal links of the site at `out` that lead nowhere, as (page, link)."
    pages = {}
    for p in out.rglob("*.html"):
        pages[p] = Links()
        pages[p].feed(p.read_text(encoding="utf-8"))
    bad = []
    for page, found in pages.items():
        for link in found.links:
            path, _, anchor = link.partition("#")
            if re.match(r"[a-z]+:|//", path):
                continue
            goal = (page.parent / unquote(path.split("?")[0])).resolve() if path else page
            goal = goal / "index.html" if goal.is_dir() else goal
            if not goal.exists() or (anchor and goal in pages and unquote(anchor) not in pages[goal].ids):
                bad.append((str(page.relative_to(out)), link))
    return bad, len(pages)


def main(args):
    out = Path(args[-1]).resolve()
    if "--check" not in args:
        subprocess.run([sys.executable, "tools/pages.py"], cwd=ROOT, check=True)
        if shutil.which("quarto"):
            subprocess.run([str(Path(sys.executable).with_name("nbdev_docs"))], cwd=ROOT, check=True)
        else:
            build_plain(out)
    bad, n = broken_links(out)
    print(f"{n} pages checked, {len(bad)} broken internal links", *(f"  {p}: {link}" for p, link in bad), sep="\n")
    return 1 if bad or not n else 0


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1:]))
