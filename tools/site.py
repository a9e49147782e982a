"""Build the documentation and check every internal link.

python tools/site.py OUT          with Quarto where it is installed, else plain HTML from the processed notebooks
python tools/site.py --check OUT  check the links of a built site only
"""

import base64
import hashlib
import html
import io
import json
import re
import shutil
import subprocess
import sys
import warnings
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import yaml

ROOT = Path(__file__).resolve().parents[1]
STYLE = """
:root{color-scheme:light dark;--page:#fff;--ink:#1c2430;--soft:#4a5461;--faint:#5d6773;--line:#dde2e8;--code:#f5f6f8;--link:#00659f}
@media(prefers-color-scheme:dark){:root{--page:#14181d;--ink:#dde3ea;--soft:#b3bcc6;--faint:#98a2ad;--line:#2d353e;--code:#1c2229;--link:#6db9ea}}
*{box-sizing:border-box}html{scroll-padding-top:1rem}
body{margin:0;display:flex;background:var(--page);color:var(--ink);font:16px/1.6 system-ui,sans-serif}
a{color:var(--link)}:focus-visible{outline:2px solid var(--link);outline-offset:2px;border-radius:2px}
.skip{position:absolute;left:-99rem;padding:.5rem 1rem;background:var(--page)}.skip:focus{left:0;z-index:2}
nav.course{flex:0 0 16rem;height:100vh;overflow:auto;position:sticky;top:0;padding:1.2rem;border-right:1px solid var(--line);font-size:.9rem;line-height:1.5}
nav.course a{display:block;padding:.15rem 0;color:inherit;text-decoration:none}nav.course a:hover{color:var(--link)}
nav.course a.here{font-weight:600;color:var(--link)}nav.course b{display:block;margin-top:.9rem;color:var(--faint)}
nav.course ul{list-style:none;margin:0 0 .4rem;padding-left:.8rem;border-left:2px solid var(--line);font-size:.85rem;color:var(--soft)}
#menu{display:none;width:100%;margin-top:.6rem}#search,#menu{padding:.4rem .5rem;border:1px solid var(--faint);border-radius:4px;font:inherit;color:inherit;background:var(--page)}
#search{width:100%}#pages{margin-top:.8rem}#found a{padding:.4rem 0;border-bottom:1px solid var(--line)}#found small{display:block;color:var(--faint)}#found:not(:empty){padding-top:.5rem}
main{flex:1;min-width:0;max-width:66rem;padding:0 2rem 4rem}main :is(p,ul,ol,blockquote,summary){max-width:46rem}main li :is(p,ul,ol){max-width:none}
h1,h2,h3,h4{line-height:1.25}h2{margin-top:2.2rem}h1+blockquote{margin:0;font-size:1.1rem;color:var(--soft)}blockquote{margin-left:0;padding-left:1rem;border-left:3px solid var(--line)}
.anchor-link{margin-left:.3em;text-decoration:none;opacity:0}:hover>.anchor-link,.anchor-link:focus{opacity:.6}
img,video{max-width:100%;height:auto;background:#fff;border-radius:2px}
pre,code{font:.875em/1.5 ui-monospace,SFMono-Regular,Consolas,"DejaVu Sans Mono",monospace}pre{overflow-x:auto;margin:.6rem 0;padding:.6rem .8rem;border-radius:4px}
.highlight,p code,li code,td code{background:var(--code);border-radius:4px}:is(p,li,td) code{padding:.05em .25em}:is(p,li) code{overflow-wrap:anywhere}.output_area pre{padding:.2rem .8rem;border-left:3px solid var(--line);background:none}
.table{overflow-x:auto;margin:1rem 0}table{border-collapse:collapse;font-size:.92rem}th,td{border-bottom:1px solid var(--line);padding:.3rem .7rem .3rem 0;text-align:left;vertical-align:top}
hr{border:0;border-top:1px solid var(--line)}.source{float:right;margin:.4rem 0 0;font-size:.85rem}details{margin:.6rem 0;padding:.3rem .8rem;border:1px solid var(--line);border-radius:4px}summary{cursor:pointer}
math{font-family:"Cambria Math","STIX Two Math","Latin Modern Math","DejaVu Math TeX Gyre",math}
.formula{display:flex;align-items:center;gap:1rem;margin:1rem 0;overflow-x:auto;overflow-y:hidden}.formula math{flex:1 0 auto}
.gallery{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(26rem,100%),1fr));gap:1.5rem}.gallery figure{margin:0}.gallery img{display:block;max-height:34rem;width:auto}
figcaption{margin-top:.3rem;font-size:.85rem;color:var(--soft)}.turn{display:flex;justify-content:space-between;gap:2rem;margin-top:3rem;padding-top:1rem;border-top:1px solid var(--line)}
@media(max-width:50rem){body{display:block}nav.course{height:auto;position:static;border:0;padding:1rem 1rem 0}main{padding:0 1rem 3rem}
.js #menu{display:block}.js #pages{display:none}.js .open #pages{display:block}}
"""

ICON = "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 32 32'%3E%3Ccircle cx='12' cy='16' r='10' fill='%230072b2'/%3E%3Ccircle cx='20' cy='16' r='10' fill='%23d55e00' fill-opacity='.8'/%3E%3C/svg%3E"

SEARCH = """
// Every word must occur in a section; sections whose heading holds it come first. The index is a script, so that it also loads from a disk, and only when somebody searches.
const box = document.getElementById("search"), found = document.getElementById("found"), list = document.getElementById("pages"), menu = document.getElementById("menu");
function look() {
  const words = box.value.toLowerCase().split(/\\s+/).filter(w => w.length > 1), phrase = words.join(" ");
  list.hidden = words.length > 0;
  if (!words.length) { found.replaceChildren(); return; }
  if (typeof INDEX === "undefined") { found.textContent = "Loading."; return; }
  const rank = e => words.reduce((n, w) => {
    const head = (e.t + " " + e.h).toLowerCase().includes(w), body = e.x.toLowerCase().includes(w);
    return n < 0 || !(head || body) ? -1 : n + (head ? 10 : 1);
  }, e.x.toLowerCase().includes(phrase) ? 5 : 0);
  const hits = INDEX.map(e => [rank(e), e]).filter(h => h[0] > 0).sort((a, b) => b[0] - a[0]).slice(0, 12);
  found.replaceChildren(...hits.map(([, e]) => {
    const a = document.createElement("a"), where = document.createElement("small"), text = e.x.toLowerCase();
    const at = Math.max(0, (text.includes(phrase) ? text.indexOf(phrase) : text.indexOf(words[0])) - 40);
    a.href = UP + e.p + (e.a ? "#" + e.a : ""); a.textContent = e.h || e.t;
    where.textContent = e.t + ": " + e.x.slice(at, at + 110); a.append(where);
    return a;
  }));
  if (!hits.length) found.textContent = "Nothing found.";
}
box.addEventListener("input", look);
box.addEventListener("focus", () => {
  const script = document.createElement("script");
  script.src = UP + "search_index.js"; script.onload = look;
  document.head.append(script);
}, { once: true });
document.addEventListener("keydown", e => {
  if (e.key === "Escape" && box.value) { box.value = ""; look(); }
  if (e.key === "/" && !e.target.closest("input,textarea")) { e.preventDefault(); box.focus(); }
});
menu.addEventListener("click", () => menu.setAttribute("aria-expanded", menu.parentElement.classList.toggle("open")));
const nav = menu.parentElement, here = nav.querySelector(".here");
if (here && here.offsetTop > nav.clientHeight / 2) nav.scrollTop = here.offsetTop - nav.clientHeight / 3;
"""


def sections():
    "The sidebar of _quarto.yml as (title, [paths of notebooks and pages])."
    top = yaml.safe_load((ROOT / "_quarto.yml").read_text())["website"]["sidebar"]["contents"]
    yield "", [c for c in top if isinstance(c, str)]
    for c in top:
        if isinstance(c, dict):
            yield c["section"], c["contents"]


def numbered(name, title):
    "'20 The GAN game': a chapter goes by its number, as the text calls it."
    return f"{Path(name).name[:2]} {title}" if re.match(r"\d\d_", Path(name).name) else title


def navigation(titles, here, body):
    "The sidebar as HTML, relative to the page `here`, with the sections of that page."
    up = "../" * (len(here.parts) - 1)
    rows = []
    for section, notebooks in sections():
        if section:
            rows.append(f"<b>{html.escape(section)}</b>")
        for nb in notebooks:
            page, title = titles[nb]
            current = ' class="here" aria-current="page"' if page == here else ""
            rows.append(f'<a href="{up}{page}"{current}>{html.escape(numbered(nb, title))}</a>')
            if current:
                parts = re.findall(r'<h2 id="([^"]*)">(.*?)(?:<a class="anchor-link".*?)?</h2>', body, re.S)
                rows.append("<ul>" + "".join(f'<li><a href="#{anchor}">{re.sub("<[^>]+>", "", text)}</a></li>' for anchor, text in parts) + "</ul>")
    return "\n".join(rows)


def turn(titles, name):
    "Links to the page before and the page after."
    order = [n for _, names in sections() for n in names]
    i, up = order.index(name), "../" * (len(Path(titles[name][0]).parts) - 1)
    link = lambda k, word: f'<a rel="{word}" href="{up}{titles[order[k]][0]}">{html.escape(numbered(order[k], titles[order[k]][1]))}</a>' if 0 <= k < len(order) else "<span></span>"
    return f'<nav class="turn" aria-label="Previous and next page">{link(i - 1, "prev")}{link(i + 1, "next")}</nav>'


def front_matter(nb):
    "What nbdev put in the raw first cell."
    return yaml.safe_load(nb.cells[0].source.strip("-\n ")) if nb.cells[0].cell_type == "raw" else {}


def with_math(body):
    "LaTeX between dollars as MathML, which a browser sets without any script."
    from latex2mathml.converter import convert

    def formula(found):
        text = html.unescape(found[1] or found[2]).replace(r"\arg", r"\operatorname{arg}")
        number = re.search(r"\\tag\{(.+?)\}", text)
        out = convert(text.replace(number[0], "") if number else text, display="block" if found[1] else "inline")
        for a, b in ((r"\|", "‖"), (r"\lVert", "‖"), (r"\rVert", "‖"), (r"\lfloor", "⌊"), (r"\rfloor", "⌋")):
            out = out.replace(f">{a}<", f">{b}<")  # after \big
        out = re.sub(r"<mi>(;|&#x0007E;)</mi>", lambda m: "<mo>;</mo>" if m[1] == ";" else "<mo>∼</mo>", out)
        return f'<span class="formula">{out}{f"<span>({number[1]})</span>" if number else ""}</span>' if found[1] else out

    parts = re.split(r"(<pre.*?</pre>|<code.*?</code>|<style.*?</style>|<script.*?</script>|<img[^>]*>)", body, flags=re.S)
    parts[::2] = [re.sub(r"\$\$(.+?)\$\$|\$([^$]+?)\$", formula, p, flags=re.S) for p in parts[::2]]
    return "".join(parts)


def with_files(body, page, out):
    "Pictures as files beside the page instead of text in it: the page is a third as large, and a picture comes when it is scrolled to."
    from PIL import Image

    def file(found):
        kind, data = found[1], base64.b64decode(found[2])
        name = f"{page.stem}_{hashlib.sha256(data).hexdigest()[:10]}.{kind}"
        (out / page.parent / "pictures").mkdir(parents=True, exist_ok=True)
        (out / page.parent / "pictures" / name).write_bytes(data)
        width, height = Image.open(io.BytesIO(data)).size
        return f'src="pictures/{name}" width="{width}" height="{height}" loading="lazy"'

    return re.sub(r'(?<=\s)src="data:image/(png|jpeg);base64,([\w+/=\s]{80,})"', file, body)


def dressed(body):
    "What nbconvert leaves to a notebook's own style sheet: wide tables scroll, links say what they are for, no empty widget state."
    body = re.sub(r"<table.*?</table>", lambda m: f'<div class="table" tabindex="0" role="group" aria-label="Table">{m[0]}</div>', body, flags=re.S)
    body = re.sub(r'<hr\s*/?>\s*<p>(<a href="[^"]*"[^>]*>source</a>)</p>', r'<p class="source">\1</p>', body)
    body = re.sub(r'<script type="application/vnd.jupyter.widget-state.*?</script>', "", body, flags=re.S)
    body = re.sub(r"<code>([0-9a-f]{32})([0-9a-f]{32})</code>", r"<code>\1<wbr>\2</code>", body)  # a checksum may break on a phone
    return body.replace('<a class="anchor-link" ', '<a class="anchor-link" aria-label="Link to this section" ')


def passages(page, title, body):
    "What the search knows of a page: an entry for each heading with the text below it."
    body = re.sub(r"<(style|script|math|annotation).*?</\1>|<img[^>]*>", " ", body, flags=re.S)
    body = re.sub(r"</?span[^>]*>", "", body)  # they part the words of code only in colour
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
        alt = re.search(r'#\| fig-alt: "?(.+?)"?$', c.source, re.M)
        if c.cell_type == "code" and "#| echo: false" in c.source:
            c.source, c.metadata["tags"] = "", ["no-input"]
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
    from pygments.formatters import HtmlFormatter

    warnings.filterwarnings("ignore", message="Found cells containing imports")  # of exercises, which import where they need it

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
    light, dark = (re.sub(r"\bbackground:[^;}]*;?", "", HtmlFormatter(style=s).get_style_defs(".highlight")) for s in ("default", "github-dark"))
    (out / "site.css").write_text(f"{light}\n@media(prefers-color-scheme:dark){{{dark}}}\n{STYLE}")
    index = []
    for name, (nb, fm) in notebooks.items():
        page, title = titles[name]
        up = "../" * (len(page.parts) - 1)
        body, _ = exporter.from_notebook_node(prepare(nb, fm, base, up))
        body = re.sub(r'(<h\d id="|class="anchor-link" href="#)([^"]+)', lambda m: m[1] + m[2].lower(), body)  # as Quarto names them
        body = dressed(with_math(body))
        index += passages(page, numbered(name, title), body)
        (out / page).parent.mkdir(parents=True, exist_ok=True)
        about = html.escape(fm.get("description") or "A course in notebooks from a first GAN to FaceShifter, that is also a library and a demo.", quote=True)
        (out / page).write_text(
            f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
            f'<title>{html.escape(title)}{"" if title == "deepswap" else " – deepswap"}</title><meta name="description" content="{about}">'
            f'<link rel="icon" href="{ICON}"><link rel="stylesheet" href="{up}site.css"><script>document.documentElement.className = "js"</script></head>'
            f'<body><a class="skip" href="#content">Skip to the text</a><nav class="course" aria-label="Course">'
            f'<input id="search" type="search" placeholder="Search" aria-label="Search the course"><div id="found" aria-live="polite"></div>'
            f'<button id="menu" aria-expanded="false" aria-controls="pages">Contents</button><div id="pages">{navigation(titles, page, body)}</div></nav>'
            f'<main id="content">{with_files(body, page, out)}{turn(titles, name)}</main>'
            f'<script>const UP = "{up}"</script><script src="{up}search.js"></script></body></html>'
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
