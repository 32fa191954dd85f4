"use strict";
// Images and sounds: a picture of each, and above it the relevance of its places.
const gridsOf = ({ $, element, number, over, hold }) => {
  let panes = [], values = null, cell = null;
  const ofImage = (grid) => grid.kind === "image";
  const seconds = (x) => `${Number(x.toFixed(2))} s`;
  const columnName = (grid, c) => (ofImage(grid) ? `column ${c}` : grid.seconds ? seconds(c * grid.seconds) : `step ${c}`);
  const rowName = (grid, r) => (ofImage(grid) ? `row ${r}` : grid.rows > 1 ? `band ${grid.rows - 1 - r}` : "");
  const nameOf = (grid, at) => [rowName(grid, Math.floor(at / grid.columns)), columnName(grid, at % grid.columns)].filter(Boolean).join(", ");
  const paneOf = (at) => panes.find((pane) => at >= pane.first && at < pane.first + pane.count);
  function axis(grid) {
    const box = element("div", undefined, "axis"), whole = grid.columns * (grid.seconds || 1), rough = whole / 6;
    const ten = 10 ** Math.floor(Math.log10(rough)), step = [1, 2, 5, 10].map((k) => k * ten).find((x) => x >= rough);
    for (let x = 0; x < whole * 0.98; x += step) {
      const tick = element("span", grid.seconds ? seconds(x) : String(Math.round(x)));
      tick.style.insetInlineStart = `${(100 * x) / whole}%`;
      box.append(tick);
    }
    if (!grid.seconds) box.append(element("span", "steps", "unit"));
    return box;
  }
  function pane(grid, first) {
    const figure = element("figure", undefined, ofImage(grid) ? "image" : "sound"), frame = element("div", undefined, "frame");
    const canvas = element("canvas"), mark = element("div", undefined, "cell"), boxes = element("div"), caption = element("figcaption");
    canvas.width = grid.columns;
    canvas.height = grid.rows;
    canvas.tabIndex = 0;
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `relevance of the ${grid.name}; arrows move over its places`);
    if (grid.picture) {
      const image = element("img");
      image.alt = grid.name;
      image.src = grid.picture;
      frame.append(image);
    }
    if (ofImage(grid)) frame.style.aspectRatio = grid.picture ? `${grid.width} / ${grid.height}` : `${grid.columns} / ${grid.rows}`;
    frame.append(canvas, boxes, mark);
    figure.append(frame);
    if (!ofImage(grid)) figure.append(axis(grid));
    figure.append(caption);
    const made = { grid, first, count: grid.rows * grid.columns, canvas, mark, boxes, caption, frame };
    const at = (event) => {
      const box = canvas.getBoundingClientRect();
      const c = Math.floor(((event.clientX - box.left) / box.width) * grid.columns), r = Math.floor(((event.clientY - box.top) / box.height) * grid.rows);
      return first + Math.min(grid.rows - 1, Math.max(0, r)) * grid.columns + Math.min(grid.columns - 1, Math.max(0, c));
    };
    canvas.addEventListener("pointermove", (event) => over(at(event)));
    canvas.addEventListener("pointerleave", () => over(null));
    canvas.addEventListener("click", (event) => hold(at(event)));
    canvas.addEventListener("keydown", (event) => {
      const step = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] }[event.key];
      if (!step) return;
      event.preventDefault();
      const from = cell !== null && paneOf(cell) === made ? cell - first : 0;
      const r = Math.floor(from / grid.columns) + step[0], c = (from % grid.columns) + step[1];
      if (r >= 0 && c >= 0 && r < grid.rows && c < grid.columns) hold(first + r * grid.columns + c, true);
    });
    return made;
  }
  function build(grids) {
    const box = $("pictures");
    box.textContent = "";
    panes = [];
    let first = 0;
    for (const grid of grids) {
      panes.push(pane(grid, first));
      first += grid.rows * grid.columns;
    }
    box.hidden = $("cover-label").hidden = !panes.length;
    box.classList.toggle("many", panes.length > 2);
    box.append(...panes.map((one) => one.frame.parentNode));
  }
  function colors() {
    const style = getComputedStyle(document.documentElement);
    return ["--for", "--against"].map((name) => style.getPropertyValue(name).split(",").map(Number));
  }
  function draw() {
    const [red, blue] = colors(), cover = Number($("cover").value) / 100;
    let scale = 0;
    if (values) for (const x of values) scale = Math.max(scale, Math.abs(x));
    for (const one of panes) {
      const context = one.canvas.getContext("2d"), image = context.createImageData(one.grid.columns, one.grid.rows);
      let sum = 0, most = 0, where = 0;
      for (let k = 0; values && k < one.count; k++) {
        const x = values[one.first + k], color = x > 0 ? red : blue;
        sum += x;
        if (Math.abs(x) > Math.abs(most)) [most, where] = [x, k];
        image.data.set([color[0], color[1], color[2], 255 * cover * (scale ? Math.abs(x) / scale : 0)], 4 * k);
      }
      context.putImageData(image, 0, 0);
      one.caption.textContent = !values ? one.grid.name
        : `${one.grid.name} ${number(sum)}` + (most ? `; strongest ${nameOf(one.grid, where)}: ${number(most)}` : "") + `; full color ${number(scale).slice(1)}`;
      const here = cell !== null && paneOf(cell) === one;
      one.mark.hidden = !here;
      if (here) {
        const k = cell - one.first, { rows, columns } = one.grid;
        Object.assign(one.mark.style, { left: `${(100 * (k % columns)) / columns}%`, top: `${(100 * Math.floor(k / columns)) / rows}%`, width: `${100 / columns}%`, height: `${100 / rows}%` });
      }
    }
  }
  // Values of all places, or null; the number of the one that is chosen, or null; boxes with a text each.
  function paint(found, chosen, boxes) {
    values = found;
    cell = chosen;
    draw();
    if (panes.length) panes[0].boxes.replaceChildren(...(boxes || []).map(([[left, top, right, bottom], text, on]) => {
      const box = element("div", undefined, on ? "box on" : "box");
      Object.assign(box.style, { left: `${100 * left}%`, top: `${100 * top}%`, width: `${100 * (right - left)}%`, height: `${100 * (bottom - top)}%` });
      if (on) box.append(element("span", text));
      return box;
    }));
  }
  $("cover").addEventListener("input", draw);
  return { build, paint, title: (at) => { const one = paneOf(at); return `${one.grid.name}: ${nameOf(one.grid, at - one.first)}`; } };
};
