// Layers and heads: where the relevance of what is explained is inside the model.
const insideOf = ({ $, element, number, percent, color, bars, bytes, floats, hold }) => {
  const most = 48;
  let data = null, pieces = [], rows = [], head = null;
  const unpacked = (packed) => ({
    kept: packed.kept, value: floats(packed.value),
    index: packed.wide === 2 ? new Uint16Array(bytes(packed.index)) : new Uint32Array(bytes(packed.index)),
  });
  function opened() {
    if (!data.ready) data.ready = { tokens: unpacked(data.tokens), sums: data.heads ? floats(data.sums) : null, from: data.heads ? unpacked(data.from) : null };
    return data.ready;
  }
  // Sums over rows of the strongest pieces at one place of a table [rows, places, kept].
  function gathered({ kept, index, value }, places, place) {
    const found = new Map();
    for (const row of rows)
      for (let k = (row * places + place) * kept, end = k + kept; k < end; k++) found.set(index[k], (found.get(index[k]) || 0) + value[k]);
    return found;
  }
  const named = (p) => pieces[p].t.trim() || "\u2423";
  function cell(x, scale, tip) {
    const box = element("td");
    box.style.background = color(x / scale);
    box.title = tip;
    return box;
  }
  const strongest = (x, scales) => scales.reduce((a, b) => Math.max(a, Math.abs(b)), x);
  function layers() {
    const box = $("trace"), { tokens } = opened(), depth = data.names.length;
    const each = data.names.map((_, layer) => gathered(tokens, depth, layer)), top = new Map();
    for (const one of each) for (const [p, x] of one) top.set(p, Math.max(top.get(p) || 0, Math.abs(x)));
    const shown = [...top].filter(([, x]) => x > 0).sort((a, b) => b[1] - a[1]).slice(0, most).map(([p]) => p).sort((a, b) => a - b);
    const scale = strongest(1e-30, [...top.values()]), table = element("table", undefined, "grid");
    for (let layer = depth - 1; layer >= 0; layer--) {
      const row = table.insertRow(), sum = [...each[layer].values()].reduce((a, b) => a + b, 0);
      row.append(element("th", data.names[layer]));
      for (const p of shown) row.append(cell(each[layer].get(p) || 0, scale, `${named(p)} in ${data.names[layer]}: ${number(each[layer].get(p) || 0)}`));
      row.append(element("th", number(sum)));
    }
    const foot = table.insertRow();
    foot.append(element("th"));
    for (const p of shown) {
      const name = element("th", undefined, "turned");
      name.append(element("bdi", named(p)));
      foot.append(name);
    }
    foot.append(element("th"));
    box.replaceChildren(table, element("p", `The ${shown.length} strongest pieces; full color is ${number(scale).slice(1)}. At the right, the sum of those kept: what a layer has less than the one above is in its biases, softmax and the like.`, "dim"));
  }
  function heads() {
    const box = $("heads-grid"), list = $("heads-list"), { sums, from } = opened(), depth = data.names.length, count = data.heads;
    const total = new Float64Array(depth * count);
    for (const row of rows) for (let k = 0; k < total.length; k++) total[k] += sums[row * total.length + k];
    const scale = strongest(1e-30, [...total]), table = element("table", undefined, "grid");
    for (let layer = depth - 1; layer >= 0; layer--) {
      const row = table.insertRow();
      row.append(element("th", data.names[layer]));
      for (let h = 0; h < count; h++) {
        const k = layer * count + h, one = cell(total[k], scale, `head ${h} of ${data.names[layer]}: ${number(total[k])}`), turn = element("button");
        turn.setAttribute("aria-label", one.title);
        turn.setAttribute("aria-pressed", head === k);
        turn.addEventListener("click", () => { head = head === k ? null : k; heads(); });
        one.append(turn);
        row.append(one);
      }
    }
    const foot = table.insertRow();
    foot.append(element("th"));
    for (let h = 0; h < count; h++) foot.append(element("th", String(h)));
    box.replaceChildren(table, element("p", `Full color is ${number(scale).slice(1)}.`, "dim"));
    const order = [...total.keys()].sort((a, b) => Math.abs(total[b]) - Math.abs(total[a]));
    const chosen = head === null ? order[0] : head;
    const found = [...gathered(from, depth * count, chosen)].filter(([, x]) => x).sort((a, b) => Math.abs(b[1]) - Math.abs(a[1])).slice(0, 12);
    list.replaceChildren(element("h3", `Head ${chosen % count} of ${data.names[Math.floor(chosen / count)]}: ${number(total[chosen])}`), element("h4", "Takes values from"), bars(found.map(([p, x]) => [named(p), x]), Math.max(...found.map(([, x]) => Math.abs(x)), 1e-30)),
      element("h4", "Heads that have most"), bars(order.slice(0, 8).map((k) => [`${data.names[Math.floor(k / count)]}, head ${k % count}`, total[k]]), scale));
  }
  // Options to explain: the whole answer, or one row of it; the same in both tabs.
  function choices(one, chosen) {
    document.querySelectorAll(".explain").forEach((select) => {
      const whole = element("option", "the whole answer");
      whole.value = "";
      select.replaceChildren(whole, ...one.rows.map(([, , name], row) => {
        const option = element("option", `${row + 1}: ${name}`);
        option.value = row;
        return option;
      }));
      if (chosen.length > 1 && chosen.length < one.rows.length) {
        const several = element("option", `${chosen[0] + 1} to ${chosen[chosen.length - 1] + 1}`);
        several.value = "several";
        select.append(several);
      }
      select.value = chosen.length === 1 ? chosen[0] : chosen.length < one.rows.length ? "several" : "";
    });
  }
  document.querySelectorAll(".explain").forEach((select) => select.addEventListener("change", () => { if (select.value !== "several") hold(select.value === "" ? null : Number(select.value)); }));
  return {
    show(one, wanted) {
      data = one.data.inside || null;
      $("tab-layers").hidden = !data;
      $("tab-heads").hidden = !data || !data.heads;
      if (!data) return;
      pieces = one.pieces;
      rows = [...wanted];
      choices(one, rows);
      if (!$("layers").hidden) layers();
      if (!$("heads").hidden && data.heads) heads();
    },
    forget() { head = null; },
  };
};
