// The GAN playground of chapter 20: draws what Python says of the game and asks for the next picture when it has drawn the last.
// `ask(name, args)` calls the answer of that name in `deepswap.gan.arena` and gives a promise of the frame it returns.

const PACES = {"slow motion": 0, "move by move": 1, "10 moves a picture": 10, "50 moves a picture": 50};
const BEATS = ["noise", "fakes", "landscape", "gradients", "update"];
const SAYS = {
  d: ["D's turn. Codes are drawn: plain noise.", "G turns every code into a fake.", "D judges reals and fakes: green is real, pink is fake. A bold ring is a mistake.", "",
      "D has learnt from its mistakes: the landscape has changed."],
  g: ["G's turn. Codes are drawn: plain noise.", "G turns every code into a fake.", "D judges the fakes, and stands still.",
      "The gradient at each fake: where it would go if it were free.", "G has changed its weights: the fakes follow as far as one network can move them all."]};

const ALL = "Behind the dots: what D says of every place, green for real, pink for fake. Arrows: where each fake would go if it were free. Web: the plane of codes as G bends it.";

const PAGE = s => `
  <div class="bar"><button data-do="run" class="main">▶ Run</button><select data-set="pace" aria-label="pace">${Object.keys(PACES).map(option)}</select>
    <button data-do="beat" title="the next part of a move">Next part</button><button data-do="d" class="d">Step D</button><button data-do="g" class="g">Step G</button>
    <button data-do="round" title="k moves of D, then one of G">Round</button><button data-do="restart">Start again</button></div>
  <div class="table"><canvas class="plane" role="img"></canvas>
    <div class="side"><div class="status"></div><div class="says"></div><div class="flow">${BEATS.map(b => `<span>${b}</span>`).join("<i>→</i>")}</div>
      <canvas class="score" role="img"></canvas><canvas class="losses" role="img"></canvas>
      <div class="legend">${["real", "fake", "generator", "discriminator"].map(r => `<span><b style="background:${s.palette[r]}"></b>${r}</span>`).join("")}</div></div></div>
  <div class="bar"><span>Points</span>${[...s.presets, "own"].map(p => `<button data-preset="${p}">${p}</button>`).join("")}<button data-do="clear">Clear</button>
    <span class="hint">Click or drag on the plane to draw points of your own; hold Shift to rub out.</span></div>
  <div class="bar"><label>objective <select data-rule="objective">${s.objectives.map(option)}</select></label>
    <label>k <select data-rule="k">${s.ks.map(option)}</select></label>
    <label>rate of G <select data-rule="lr_g">${s.rates.map(option)}</select></label><label>rate of D <select data-rule="lr_d">${s.rates.map(option)}</select></label>
    <label title="the penalty of section 6">R1 <select data-rule="r1">${s.r1s.map(option)}</select></label>
    ${["landscape", "arrows", "manifold"].map(n => `<label><input type="checkbox" data-see="${n}" checked>${n}</label>`).join("")}</div>`;
const option = v => `<option>${v}</option>`;
const mix = (a, b, t) => !a || a.length !== b.length ? b : b.map((v, i) => a[i] + (v - a[i]) * t);
const rgb = hex => [1, 3, 5].map(i => parseInt(hex.slice(i, i + 2), 16));

function render({ask, el, state}) {
  const {palette: C, extent: E} = state, see = {landscape: true, arrows: true, manifold: true};
  const box = document.createElement("div"); box.className = "ds-play"; box.innerHTML = PAGE(state); el.append(box);
  const $ = s => box.querySelector(s), plane = $(".plane");
  let was = null, now = null, began = 0, lasts = 0, running = false, own = [], clock = [];

  // ---- talking to Python ----
  const slow = () => PACES[$("[data-set=pace]").value] === 0;
  const call = (name, args = {}) => ask(name, args).then(show, e => { pause(); $(".says").textContent = e.message; });
  const pause = () => { running = false; $("[data-do=run]").textContent = "▶ Run"; };
  async function run() {                                   // the next picture is asked for when the last one is on the screen
    running = true; clock = []; $("[data-do=run]").textContent = "❚❚ Pause";
    while (running && box.isConnected) {
      await call(...(slow() ? ["beat"] : ["step", {n: PACES[$("[data-set=pace]").value]}]));
      await new Promise(ok => slow() ? setTimeout(ok, now?.beat === 2 || now?.beat === 3 ? 1400 : 1000) : requestAnimationFrame(ok));
    }
  }

  function show(frame) {
    was = now; now = frame; began = performance.now(); lasts = slow() || !running ? 450 : 0;
    clock = [...clock, [began, now.moves]].filter(c => began - c[0] < 2000);
    const rate = clock.length > 3 && running && !slow() ? ` · ${((now.moves - clock[0][1]) / (began - clock[0][0]) * 1000).toFixed(0)} moves/s` : "";
    $(".status").textContent = `${now.moves} moves: D ${now.d_moves}, G ${now.g_moves} · divergence ${now.js.toFixed(2)} bits${rate}`;
    $(".says").textContent = now.places.length ? SAYS[now.player]?.[now.beat] ?? ALL : "No points: draw some, or choose a preset.";
    $(".flow").childNodes.forEach((n, i) => n.className = i === 2 * now.beat ? now.player : "");
    for (const [k, v] of Object.entries(now.rules)) $(`[data-rule=${k}]`).value = v;
    for (const b of box.querySelectorAll("[data-preset]")) b.className = b.dataset.preset === now.data ? "on" : "";
    plane.setAttribute("aria-label", `${$(".status").textContent}. ${$(".says").textContent}`);
    chart($(".score"), [[now.scores, C.ink]], "divergence, bits", 0, 1, []);
    chart($(".losses"), [[now.d_losses, C.discriminator], [now.g_losses, C.generator]], "losses", null, null, now.fair);
    requestAnimationFrame(draw);
  }

  // ---- drawing ----
  function fit(canvas) {                                   // one canvas pixel for one screen pixel; returns a context in CSS pixels
    const {clientWidth: w, clientHeight: h} = canvas, r = window.devicePixelRatio || 1, c = canvas.getContext("2d");
    if (canvas.width !== Math.round(w * r)) [canvas.width, canvas.height] = [Math.round(w * r), Math.round(h * r)];
    c.setTransform(r, 0, 0, r, 0, 0); c.clearRect(0, 0, w, h);
    return [c, w, h];
  }

  function draw() {
    const t = lasts ? Math.min(1, (performance.now() - began) / lasts) : 1, beat = now.beat ?? 4, [c, w] = fit(plane);
    const X = x => (x / E + 1) / 2 * w, Y = y => (1 - y / E) / 2 * w, all = now.beat == null;
    const place = f => f.beat === 0 ? f.codes : f.fakes, net = f => f.beat === 0 ? f.lattice : f.mesh;
    const at = mix(was && place(was), place(now), t), mesh = mix(was && net(was), net(now), t), says = mix(was?.says, now.says, t);
    if (see.landscape) heat(c, says, w, all || beat === 2 || beat === 3 || (beat === 4) ? .8 : .25);
    if (see.manifold) web(c, mesh, X, Y);
    dots(c, now.reals, C.real, X, Y, (x, y) => beat === 2 && now.player === "d" && look(says, x, y) < .5);
    dots(c, at, beat === 0 ? C.grey : C.fake, X, Y, (x, y) => beat === 2 && now.player === "d" && look(says, x, y) > .5);
    if (see.arrows && (all || beat === 3)) for (let i = 0; i < now.arrows.length; i += 2) arrow(c, X(at[i]), Y(at[i + 1]), X(at[i] + now.arrows[i]), Y(at[i + 1] + now.arrows[i + 1]));
    if (t < 1) requestAnimationFrame(draw);
  }

  const side = Math.round(Math.sqrt(state.cells)), small = Object.assign(document.createElement("canvas"), {width: side, height: side});
  const look = (says, x, y) => says[Math.min(side - 1, Math.max(0, Math.floor((y / E + 1) / 2 * side))) * side + Math.min(side - 1, Math.max(0, Math.floor((x / E + 1) / 2 * side)))];
  function heat(c, says, w, strength) {                    // pink is fake, white is "can't tell", green is real
    const image = new ImageData(side, side), [real, fake] = [rgb(C.real), rgb(C.fake)];
    says.forEach((p, i) => { const to = p > .5 ? real : fake, much = Math.abs(2 * p - 1) * strength, j = 4 * ((side - 1 - Math.floor(i / side)) * side + i % side);
      for (let k = 0; k < 3; k++) image.data[j + k] = 255 + (to[k] - 255) * much; image.data[j + 3] = 255; });
    small.getContext("2d").putImageData(image, 0, 0); c.imageSmoothingEnabled = true; c.imageSmoothingQuality = "high"; c.drawImage(small, 0, 0, w, w);
  }

  function web(c, mesh, X, Y) {                            // the plane of codes as G bends it; each cell holds as many fakes as any other, so small ones are dark
    const n = Math.round(Math.sqrt(mesh.length / 2)), p = (i, j) => [X(mesh[2 * (i * n + j)]), Y(mesh[2 * (i * n + j) + 1])];
    c.strokeStyle = C.generator; c.fillStyle = C.generator; c.lineWidth = .7;
    for (let i = 0; i + 1 < n; i++) for (let j = 0; j + 1 < n; j++) {
      const q = [p(i, j), p(i, j + 1), p(i + 1, j + 1), p(i + 1, j)];
      const area = Math.abs(q.reduce((s, [x, y], k) => s + x * q[(k + 1) % 4][1] - y * q[(k + 1) % 4][0], 0)) / 2;
      c.beginPath(); q.forEach(([x, y], k) => k ? c.lineTo(x, y) : c.moveTo(x, y)); c.closePath();
      c.globalAlpha = Math.min(.3, 25 / (area + 1)); c.fill(); c.globalAlpha = .45; c.stroke();
    }
    c.globalAlpha = 1;
  }

  function dots(c, xy, color, X, Y, bold) {
    for (let i = 0; i < xy.length; i += 2) {
      const wrong = bold(xy[i], xy[i + 1]);
      c.beginPath(); c.arc(X(xy[i]), Y(xy[i + 1]), wrong ? 4.5 : 3, 0, 7); c.fillStyle = color; c.fill(); c.strokeStyle = C.ink; c.lineWidth = wrong ? 1.8 : .5; c.stroke();
    }
  }

  function arrow(c, x, y, u, v) {
    const long = Math.hypot(u - x, v - y), a = Math.atan2(v - y, u - x), head = Math.min(6, long / 2);
    if (long < 1.5) return;
    c.strokeStyle = c.fillStyle = C.generator; c.lineWidth = 1.8;
    c.beginPath(); c.moveTo(x, y); c.lineTo(u - head * Math.cos(a), v - head * Math.sin(a)); c.stroke();
    c.beginPath(); c.moveTo(u, v); for (const s of [2.6, -2.6]) c.lineTo(u + head * 1.4 * Math.cos(a + s), v + head * 1.4 * Math.sin(a + s)); c.fill();
  }

  function chart(canvas, lines, title, low, high, marks) {
    const [c, w, h] = fit(canvas), values = lines.flatMap(l => [...l[0]]).concat(marks), left = 26, top = 18;
    low ??= Math.min(0, ...values); high ??= Math.max(low + .1, ...values);
    const X = (i, n) => left + (w - left - 6) * (n > 1 ? i / (n - 1) : 0), Y = v => h - 6 - (h - 6 - top) * (v - low) / (high - low);
    c.fillStyle = C.ink; c.font = "11px sans-serif"; c.fillText(title, left, 11);
    c.fillStyle = C.grey; c.textAlign = "right"; for (const v of [low, high]) c.fillText(+v.toFixed(1), left - 4, Y(v) + 4); c.textAlign = "left";
    c.strokeStyle = C.pale; c.lineWidth = 1; c.strokeRect(left, top, w - left - 6, h - 6 - top);
    c.setLineDash([2, 3]); c.strokeStyle = C.grey; for (const v of marks) { c.beginPath(); c.moveTo(left, Y(v)); c.lineTo(w - 6, Y(v)); c.stroke(); } c.setLineDash([]);
    for (const [v, color] of lines) { c.beginPath(); v.forEach((y, i) => c.lineTo(X(i, v.length), Y(y))); c.strokeStyle = color; c.lineWidth = 1.6; c.stroke(); }
    canvas.setAttribute("aria-label", `${title}: ${lines.map(l => l[0].length ? l[0].at(-1).toFixed(2) : "none yet").join(", ")}`);
  }

  // ---- the reader's hands ----
  let pen = null, sending = false;
  async function touch(e) {                                // while one drawing is on its way to Python, the next is gathered
    const r = plane.getBoundingClientRect(), x = ((e.clientX - r.left) / r.width * 2 - 1) * E, y = (1 - (e.clientY - r.top) / r.height * 2) * E;
    const near = d => p => Math.hypot(p[0] - x, p[1] - y) < d;
    if (e.shiftKey) pen = pen.filter(p => !near(.15)(p)); else if (!pen.some(near(.07)) && pen.length < state.most) pen.push([x, y]);
    if (sending) return;
    for (sending = true, own = null; pen && own !== JSON.stringify(pen);) { own = JSON.stringify(pen); await call("paint", {points: JSON.parse(own)}); }
    sending = false; own = JSON.parse(own);
  }
  plane.onpointerdown = e => { if (!now) return; plane.setPointerCapture(e.pointerId); pen = now.places.map(p => [...p]); touch(e); };
  plane.onpointermove = e => { if (e.buttons && pen) touch(e); };
  box.onclick = ({target: b}) => {
    if (b.dataset.preset === "own") call("paint", {points: own ?? []}); else if (b.dataset.preset) call("preset", {name: b.dataset.preset});
    const does = {run: () => running ? pause() : run(), beat: () => call("beat"), d: () => call("step", {player: "d"}), g: () => call("step", {player: "g"}),
                  round: () => call("round"), restart: () => call("restart"), clear: () => { own = []; call("paint", {points: []}); }}[b.dataset.do];
    does?.();
  };
  box.onchange = ({target: b}) => {
    if (b.dataset.rule) call("rules", {[b.dataset.rule]: b.dataset.rule === "objective" ? b.value : +b.value});
    if (b.dataset.see) { see[b.dataset.see] = b.checked; requestAnimationFrame(draw); }
  };
  $("[data-set=pace]").value = "move by move";
  call("look");
  return pause;
}
