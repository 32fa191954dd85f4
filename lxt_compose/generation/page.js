(() => {
  const $ = (id) => document.getElementById(id);
  const answers = JSON.parse($("data").textContent);
  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer;
  const floats = (text) => new Float32Array(bytes(text));
  const integers = (text) => new Uint32Array(bytes(text));
  const number = (x) => (x < 0 ? "\u2212" : "+") + (x === 0 ? "0" : Math.abs(x) >= 1e5 || Math.abs(x) < 1e-4
    ? Math.abs(x).toExponential(2) : Number(Math.abs(x).toPrecision(4)).toString());
  const percent = (x) => (x >= 0.0995 ? Math.round(100 * x) : x >= 0.00995 ? (100 * x).toFixed(1) : (100 * x).toPrecision(2)) + " %";

  // ---- data: rows of the strongest sources, and the same by columns -------------------------------------------------
  function matrix(packed) {
    const start = integers(packed.start), index = integers(packed.index), value = floats(packed.value);
    const sums = Object.fromEntries(Object.entries(packed.sums).map(([name, x]) => [name, floats(x)]));
    const cells = packed.cells ? { steps: new Int16Array(bytes(packed.cells)), most: floats(packed.most_of_cells) } : null;
    return { start, index, value, sums, cells, kept: packed.kept, most: packed.most, columns: null };
  }
  function columnsOf(m, count) {
    if (m.columns) return m.columns;
    const at = new Uint32Array(count + 1);
    for (const j of m.index) at[j + 1]++;
    for (let j = 0; j < count; j++) at[j + 1] += at[j];
    const row = new Uint32Array(m.index.length), value = new Float32Array(m.index.length), next = at.slice();
    for (let i = 0; i + 1 < m.start.length; i++)
      for (let k = m.start[i]; k < m.start[i + 1]; k++) {
        const place = next[m.index[k]]++;
        row[place] = i;
        value[place] = m.value[k];
      }
    return (m.columns = { at, row, value });
  }
  function opened(data) {
    if (data.ready) return data.ready;
    const rowOf = new Map();
    data.rows.forEach(([first, last], row) => { for (let p = first; p <= last; p++) if (!rowOf.has(p)) rowOf.set(p, row); });
    return (data.ready = {
      data, pieces: data.pieces, rows: data.rows, rowOf, scores: floats(data.scores),
      first: data.pieces.findIndex((p) => p.side === "output"),
      direct: matrix(data.direct), handed: data.handed ? matrix(data.handed) : null,
    });
  }

  // ---- what is shown ------------------------------------------------------------------------------------------------
  let chosen = 0, view = "own", way = "direct", held = null, heldCell = null, mode = "from", shown = null, painted = [], spans = [];
  const current = () => opened(view === "other" ? answers[chosen].other : answers[chosen]);
  const table = (one) => (way === "handed" && one.handed ? one.handed : one.direct);

  const names = { image: "the image", sound: "the sound", output: "the answer so far", start: "the decoder's start", prompt: "the prompt" };
  const label = (text) => text.trim() === "" ? "\u2423".repeat(Math.max(1, text.length)) : text.replace(/^ /, "\u2423");
  function textOf(one, first, last) {
    let text = "";
    for (let p = first; p <= last; p++) text += (p > first && (one.pieces[p].s || one.pieces[p].l) ? " " : "") + one.pieces[p].t;
    return text;
  }
  function build() {
    const one = current();
    spans = new Array(one.pieces.length);
    for (const side of ["prompt", "output"]) {
      const pane = $(side);
      pane.textContent = "";
      let box = pane, role = null;
      one.pieces.forEach((piece, number) => {
        if ((piece.side === "output") !== (side === "output")) return;
        const own = piece.r && piece.r !== "template" ? piece.r : "";
        if (own !== role) {
          role = own;
          box = pane;
          if (own) {
            box = document.createElement("span");
            box.className = "turn";
            box.dataset.role = own;
            pane.append(box);
          }
        }
        if (piece.l) box.append("\n".repeat(piece.l));
        if (piece.s && box.lastChild) box.append(" ");
        const span = document.createElement("span");
        span.className = piece.x ? "t x" : "t";
        span.textContent = piece.t;
        span.dataset.n = number;
        spans[number] = span;
        box.append(span);
      });
    }
    painted = [];
    $("prompt").hidden = $("prompt-head").hidden = one.first === 0;
    grids.build(answers[chosen].grids);
    $("ways").hidden = view === "contrast" || !one.handed;
    unlikely();
    against();
    verdicts();
    render();
  }
  function unlikely() {
    const one = current(), on = $("unlikely").checked;
    one.data.likely.forEach((tokens, k) => {
      const low = on && tokens.some(([, share]) => share < 0.1);
      if (spans[one.first + k]) spans[one.first + k].classList.toggle("low", low);
    });
  }
  function against() {
    const on = view === "contrast", pane = $("against");
    pane.hidden = $("against-head").hidden = !on;
    pane.textContent = "";
    if (!on) return;
    const data = answers[chosen], other = opened(data.other), values = floats(data.contrast.against);
    const scale = contrastScale(data);
    for (let p = other.first; p < other.pieces.length; p++) {
      const piece = other.pieces[p], span = document.createElement("span");
      if (piece.l) pane.append("\n".repeat(piece.l));
      if (piece.s && pane.lastChild) pane.append(" ");
      span.className = piece.x ? "t x" : "t";
      span.textContent = piece.t;
      const value = values[p - other.first];
      span.style.background = color(value / scale);
      span.title = `${piece.raw}  ${number(value)}`;
      pane.append(span);
    }
  }
  function contrastScale(data) {
    let most = 0;
    for (const x of floats(data.contrast.values)) most = Math.max(most, Math.abs(x));
    for (const x of floats(data.contrast.against)) most = Math.max(most, Math.abs(x));
    return most || 1;
  }
  const color = (x) => `rgba(var(${x > 0 ? "--for" : "--against"}),${(0.72 * Math.min(1, Math.abs(x))).toFixed(3)})`;

  // Sources of rows, added up; or the rows that a source led to.
  function sourcesOf(one, first, last) {
    const m = table(one), found = new Map(), rows = new Set();
    for (let p = first; p <= last; p++) if (one.rowOf.has(p)) rows.add(one.rowOf.get(p));
    let score = 0;
    const sums = {};
    for (const row of rows) {
      score += one.scores[row];
      for (const name in m.sums) sums[name] = (sums[name] || 0) + m.sums[name][row];
      for (let k = m.start[row]; k < m.start[row + 1]; k++) found.set(m.index[k], (found.get(m.index[k]) || 0) + m.value[k]);
    }
    return { found, score, sums, rows };
  }
  function effectsOf(one, first, last) {
    const columns = columnsOf(table(one), one.pieces.length), found = new Map();
    for (let p = first; p <= last; p++)
      for (let k = columns.at[p]; k < columns.at[p + 1]; k++) {
        const [a, b] = one.rows[columns.row[k]];
        // What a row of several pieces has is shown on all of them.
        for (let q = a; q <= b; q++) found.set(q, (found.get(q) || 0) + columns.value[k]);
      }
    return { found };
  }
  // Relevance of the places of images and sounds: of rows together, or what one place led to.
  function cellsOf(cells, rows) {
    if (!cells) return null;
    const count = cells.steps.length / cells.most.length, found = new Float32Array(count);
    for (const row of rows) for (let k = 0; k < count; k++) found[k] += (cells.steps[row * count + k] * cells.most[row]) / 32767;
    return found;
  }
  function effectsOfCell(one, cell) {
    const { steps, most } = table(one).cells, count = steps.length / most.length, found = new Map();
    one.rows.forEach(([a, b], row) => {
      const x = (steps[row * count + cell] * most[row]) / 32767;
      for (let q = a; q <= b; q++) found.set(q, (found.get(q) || 0) + x);
    });
    return { found };
  }
  function boxesOf(one, selected) {
    if (!one.data.boxes) return null;
    const on = (k) => selected && one.first + k >= selected[0] && one.first + k <= selected[1];
    return one.data.boxes.map((box, k) => [box, one.pieces[one.first + k].t, on(k)]);
  }
  function all(one) {
    return sourcesOf(one, one.first, one.pieces.length - 1);
  }
  function paint(found, selected) {
    for (const p of painted) { spans[p].style.background = ""; spans[p].classList.remove("on"); spans[p].removeAttribute("title"); }
    painted = [];
    let strongest = [...found].filter(([, x]) => x !== 0).sort((a, b) => Math.abs(b[1]) - Math.abs(a[1]));
    const scale = strongest.length ? Math.abs(strongest[0][1]) : 1;
    const many = Number($("many").value), full = Number($("many").max) === many;
    if (!full) strongest = strongest.slice(0, many);
    for (const [p, x] of strongest) {
      spans[p].style.background = color(x / scale);
      spans[p].title = `${current().pieces[p].raw}  ${number(x)}`;
      painted.push(p);
    }
    if (selected) for (let p = selected[0]; p <= selected[1]; p++) { spans[p].classList.add("on"); painted.push(p); }
    return { strongest, scale };
  }
  function element(tag, text, kind) {
    const found = document.createElement(tag);
    if (text !== undefined) found.textContent = text;
    if (kind) found.className = kind;
    return found;
  }
  function bars(rows, scale) {
    const list = element("table");
    for (const [name, x, where] of rows) {
      const row = list.insertRow(), bar = element("i");
      row.insertCell().append(element("bdi", label(name)));
      row.cells[0].title = where || "";
      const cell = row.insertCell();
      cell.className = "b";
      bar.style.width = `${Math.max(1, 100 * Math.abs(x) / scale)}%`;
      bar.style.background = color(Math.sign(x) || 1);
      cell.append(bar);
      row.insertCell().textContent = number(x);
      row.cells[2].className = "n";
    }
    return list;
  }
  const named = (sums) => Object.entries(sums).map(([name, x]) => [names[name] || name, x]);
  function details(one, selected, result, strongest, scale, title) {
    const box = $("details");
    box.textContent = "";
    box.append(element("h3", title));
    const out = selected && selected[0] >= one.first;
    if (out) {
      const turn = element("button", mode === "from" ? "Show what it led to" : "Show where it comes from");
      turn.addEventListener("click", () => { mode = mode === "from" ? "to" : "from"; if (!held) held = selected; render(); });
      box.append(turn);
    }
    if (result.score !== undefined) {
      const said = element("p", `${one.data.quantity} ${number(result.score)}`);
      box.append(said);
    }
    if (result.sums) {
      box.append(element("h4", "Where it is"));
      const every = named(result.sums), most = Math.max(...every.map(([, x]) => Math.abs(x)), 1e-30);
      box.append(bars(every.filter(([, x]) => Math.abs(x) > 1e-5 * most), most));
    }
    if (strongest.length) {
      const what = mode === "to" ? "What it led to" : "Strongest sources";
      box.append(element("h4", what));
      box.append(bars(strongest.slice(0, 12).map(([p, x]) => [one.pieces[p].t, x, `${one.pieces[p].side} ${p}: ${one.pieces[p].raw}`]), scale));
      const m = table(one);
      if (m.kept < 0.9995) box.append(element("p", `The ${m.most} strongest sources of each piece are kept: ${percent(m.kept)} of all relevance.`, "dim"));
    }
    if (out && mode === "from") predictions(box, one, selected);
  }
  function predictions(box, one, [first, last]) {
    const tokens = [];
    for (let p = first; p <= last; p++) tokens.push(...(one.data.likely[p - one.first] || []));
    if (!tokens.length) return;
    box.append(element("h4", tokens.length > 1 ? `How likely it was (first ${Math.min(6, tokens.length)} tokens)` : "How likely it was, and what else"));
    for (const [name, share, rank, best] of tokens.slice(0, 6)) {
      const list = element("table");
      const came = [name, share, `#${rank + 1}`];
      const ranked = best.map(([text, p], k) => [text, p, `#${k + 1}`]).filter((_, k) => k !== rank);
      for (const [text, p, place] of [came, ...(tokens.length > 1 ? ranked.slice(0, 2) : ranked)]) {
        const row = list.insertRow();
        row.insertCell().append(element("bdi", label(text)));
        row.insertCell().textContent = percent(p);
        row.insertCell().textContent = place;
        row.cells[1].className = row.cells[2].className = "n";
        if (row.rowIndex === 0) row.className = "here";
      }
      box.append(list);
    }
  }
  function render(preview, overCell) {
    const one = current(), cell = overCell !== undefined ? overCell : preview ? null : heldCell, selected = cell !== null ? null : preview || held;
    shown = selected;
    if (view === "contrast") return contrast(one, selected);
    if (cell !== null) return fromCell(one, cell);
    const out = selected && selected[0] >= one.first;
    const direction = !selected ? "from" : !out ? "to" : preview && !held ? "from" : mode;
    const result = !selected ? all(one) : direction === "from" ? sourcesOf(one, ...selected) : effectsOf(one, ...selected);
    let marked = selected;
    if (out && direction === "from" && result.rows.size && !one.data.joined) {
      const rows = [...result.rows].map((row) => one.rows[row]);
      marked = [Math.min(...rows.map(([a]) => a)), Math.max(...rows.map(([, b]) => b))];
    }
    const before = mode;
    mode = direction;
    const { strongest, scale } = paint(result.found, marked);
    grids.paint(result.rows ? cellsOf(table(one).cells, result.rows) : null, null, boxesOf(one, marked));
    details(one, marked, result, strongest, scale, selected ? textOf(one, ...marked) : "The whole answer");
    if (!preview) inside.show(one, result.rows || one.rows.keys());
    if (preview) mode = before;
  }
  function fromCell(one, cell) {
    const result = effectsOfCell(one, cell), before = mode;
    mode = "to";
    const { strongest, scale } = paint(result.found, null);
    grids.paint(cellsOf(table(one).cells, one.rows.keys()), cell, boxesOf(one, null));
    details(one, null, result, strongest, scale, grids.title(cell));
    mode = before;
  }
  const inside = insideOf({
    $, element, number, percent, color, bars, bytes, floats,
    hold: (row) => hold(row === null ? null : current().rows[row].slice(0, 2)),
  });
  const grids = gridsOf({
    $, element, number,
    over: (cell) => { if (!held && heldCell === null && dragging === null) render(undefined, cell); },
    hold: (cell, stay) => { held = null; heldCell = heldCell === cell && !stay ? null : cell; render(); },
  });
  function contrast(one, selected) {
    const data = answers[chosen], values = floats(data.contrast.values), found = new Map();
    values.forEach((x, p) => found.set(p, x));
    const many = $("many").value;
    const { strongest, scale } = paint(found, selected);
    for (const p of painted) if (found.get(p)) spans[p].style.background = color(found.get(p) / contrastScale(data));
    $("many").value = many;
    grids.paint(data.contrast.cells ? cellsOf({ steps: new Int16Array(bytes(data.contrast.cells)), most: floats(data.contrast.most_of_cells) }, [0]) : null, null, null);
    const before = mode;
    mode = "contrast";
    details(one, null, { score: data.contrast.score, sums: data.contrast.sums }, strongest, scale, "This answer rather than the other");
    mode = before;
  }
  function verdicts() {
    const data = view === "other" ? answers[chosen].other : answers[chosen];
    for (const id of ["verdict", "verdict-again"]) {
      const at = data.verdict.search(/[:;]/), place = $(id);
      place.textContent = "";
      place.append(element("b", data.verdict.slice(0, at)), data.verdict.slice(at) + ".");
    }
    const one = current(), box = $("sums"), sums = all(one);
    box.textContent = "";
    const rows = named(sums.sums);
    const list = bars([...rows, ["the score", sums.score]], Math.max(...rows.map(([, x]) => Math.abs(x)), Math.abs(sums.score), 1e-30));
    box.append(element("h2", `All rows together, as ${data.quantity}`), list);
    document.querySelectorAll(".tables").forEach((part, k) => { part.hidden = k !== chosen; });
  }

  // ---- pointer and keyboard -----------------------------------------------------------------------------------------
  let dragging = null, cursor = null;
  const pieceAt = (event) => { const span = event.target.closest && event.target.closest(".t"); return span && span.dataset.n !== undefined ? Number(span.dataset.n) : null; };
  const sameSide = (a, b) => (a >= current().first) === (b >= current().first);
  const between = (a, b) => [Math.min(a, b), Math.max(a, b)];
  function hold(selected) {
    held = selected;
    heldCell = null;
    mode = selected && selected[0] < current().first ? "to" : "from";
    render();
  }
  for (const side of ["prompt", "output"]) {
    const pane = $(side);
    pane.addEventListener("pointerover", (event) => {
      const p = pieceAt(event);
      if (p === null) return;
      if (dragging !== null && sameSide(p, dragging)) render(between(p, dragging));
      else if (!held && heldCell === null && dragging === null) render([p, p]);
    });
    pane.addEventListener("pointerleave", () => { if (!held && heldCell === null && dragging === null) render(); });
    pane.addEventListener("pointerdown", (event) => {
      const p = pieceAt(event);
      if (p === null || event.button !== 0) return;
      dragging = cursor = p;
      render([p, p]);
    });
    pane.addEventListener("keydown", (event) => keys(event, side));
  }
  window.addEventListener("pointerup", (event) => {
    if (dragging === null) return;
    const p = pieceAt(event), end = p !== null && sameSide(p, dragging) ? p : shown ? (shown[0] === dragging ? shown[1] : shown[0]) : dragging;
    const next = between(dragging, end);
    const same = held && held[0] === next[0] && held[1] === next[1];
    dragging = null;
    hold(same ? null : next);
  });
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") { dragging = cursor = null; hold(null); } });
  function keys(event, side) {
    const one = current(), range = side === "output" ? [one.first, one.pieces.length - 1] : [0, one.first - 1];
    const rtl = getComputedStyle(spans[range[0]] || document.body).direction === "rtl" ? -1 : 1;
    const step = { ArrowRight: rtl, ArrowLeft: -rtl, ArrowDown: 10, ArrowUp: -10, Home: -1e9, End: 1e9 }[event.key];
    if (event.key === "Enter" && held) { event.preventDefault(); if (held[0] >= one.first) { mode = mode === "from" ? "to" : "from"; render(); } return; }
    if (step === undefined || range[1] < range[0]) return;
    event.preventDefault();
    const inside = cursor !== null && cursor >= range[0] && cursor <= range[1];
    const anchor = event.shiftKey && inside && held ? (held[0] === cursor ? held[1] : held[0]) : null;
    cursor = inside ? Math.min(range[1], Math.max(range[0], cursor + step)) : step < 0 && side === "output" && step > -1e9 ? range[1] : range[0];
    hold(between(cursor, anchor === null ? cursor : anchor));
    spans[cursor].scrollIntoView({ block: "nearest" });
  }

  // ---- controls -----------------------------------------------------------------------------------------------------
  function slide() {
    const full = $("many").value === $("many").max;
    $("many-shown").textContent = full ? "all" : $("many").value;
  }
  $("many").addEventListener("input", () => { slide(); render(); });
  $("special").addEventListener("change", () => document.body.classList.toggle("nospecial", !$("special").checked));
  $("unlikely").addEventListener("change", unlikely);
  document.querySelectorAll("input[name=view]").forEach((one) => one.addEventListener("change", () => { view = one.value; held = heldCell = null; build(); }));
  document.querySelectorAll("input[name=way]").forEach((one) => one.addEventListener("change", () => { way = one.value; verdicts(); render(); }));
  const tabs = [...document.querySelectorAll("[role=tab]")];
  function open(tab) {
    tabs.forEach((one) => {
      one.setAttribute("aria-selected", one === tab);
      one.tabIndex = one === tab ? 0 : -1;
      $(one.getAttribute("aria-controls")).hidden = one !== tab;
    });
    render();
  }
  tabs.forEach((tab) => {
    tab.addEventListener("click", () => open(tab));
    tab.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      const seen = tabs.filter((one) => !one.hidden), next = seen[(seen.indexOf(tab) + step + seen.length) % seen.length];
      open(next);
      next.focus();
    });
  });
  function choose(number) {
    chosen = number;
    view = "own";
    held = heldCell = cursor = null;
    inside.forget();
    document.querySelector("input[name=view]").checked = true;
    $("views").hidden = !answers[number].other;
    const most = Math.min(answers[number].direct.most, 64);
    $("many").max = Math.max(2, most);
    $("many").value = Math.min(12, most);
    slide();
    build();
  }
  $("which").hidden = answers.length < 2;
  answers.forEach((one, k) => {
    const option = element("option", `${k + 1}: ${one.text.slice(0, 60)}`);
    option.value = k;
    $("answer").append(option);
  });
  $("answer").addEventListener("change", () => choose(Number($("answer").value)));
  // All answers in a table; a click opens one.
  function index() {
    $("tab-index").hidden = answers.length < 2;
    const table = element("table", undefined, "index"), head = table.insertRow();
    for (const name of ["", "Prompt", "Answer", ""]) head.append(element("th", name));
    answers.forEach((one, k) => {
      const pieces = one.pieces.filter((p) => p.side !== "output" && !p.x), row = table.insertRow(), turn = element("button", `${k + 1}`);
      const prompt = pieces.slice(-40).reduce((text, p) => text + (p.s || p.l ? " " : "") + p.t, pieces.length > 40 ? "\u2026" : "");
      turn.addEventListener("click", () => { $("answer").value = k; choose(k); open($("tab-text")); });
      row.insertCell().append(turn);
      for (const text of [prompt.trim(), one.text]) row.insertCell().append(element("bdi", text));
      row.insertCell().textContent = one.verdict;
      row.cells[3].className = "dim";
    });
    $("index-list").replaceChildren(table);
  }
  index();
  choose(0);
})();
