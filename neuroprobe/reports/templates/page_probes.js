"use strict";
// The probing study: what is read where and when. A concept is chosen among small pictures of all; layers across, checkpoints up.

(() => {
  const { el, svg, named, load, short, small, count, address, isDark, keep } = neuroprobe;
  const SCOPES = { layer: "whole layer", neuron: "best unit of the layer", full: "all layers together" };
  // red above and blue below the baseline can be told apart by the color-blind; the middle is the page itself
  const COLORS = { light: ["#2166ac", "#92c5de", "#f4f3f1", "#f4a582", "#b2182b"], dark: ["#7cc4f5", "#3f78a3", "#23272e", "#b0563d", "#ff9b7d"] };
  const LEAST_SCALE = 0.1; // what is only noise stays pale

  function color(value, furthest) {
    const stops = COLORS[isDark() ? "dark" : "light"];
    const at = Math.min(Math.max((value / furthest + 1) * 2, 0), 4), i = Math.min(Math.floor(at), 3), t = at - i;
    const part = (text, k) => parseInt(text.slice(1 + 2 * k, 3 + 2 * k), 16);
    return `rgb(${[0, 1, 2].map((k) => Math.round((1 - t) * part(stops[i], k) + t * part(stops[i + 1], k))).join(",")})`;
  }

  // --- the cells of one probe: by concept, by checkpoint and layer

  function study(data, probe) {
    const { columns } = data, cells = data.concepts.map(() => new Map());
    const layers = new Set(), checkpoints = new Set(), { length } = data.layers;
    let furthest = LEAST_SCALE;
    columns.probe.forEach((of, i) => {
      if (of !== probe) return;
      const cell = { layer: columns.layer[i], checkpoint: columns.checkpoint[i], gain: columns.value[i] - columns.baseline[i] };
      for (const name of Object.keys(columns)) if (!(name in cell)) cell[name] = columns[name][i];
      cell.doubtful = cell.low !== null && cell.low <= cell.baseline;
      cells[columns.concept[i]].set(cell.checkpoint * length + cell.layer, cell);
      layers.add(cell.layer), checkpoints.add(cell.checkpoint);
      furthest = Math.max(furthest, Math.abs(cell.gain));
    });
    const inOrder = (set) => [...set].sort((a, b) => a - b);
    const at = (concept, checkpoint, layer) => cells[concept].get(checkpoint * length + layer);
    return { layers: inOrder(layers), checkpoints: inOrder(checkpoints), furthest, at, cells, concepts: data.concepts.map((_, i) => i).filter((i) => cells[i].size) };
  }

  const probeName = ({ scope, kind, features }) => `${kind}, ${features}, ${Object.hasOwn(SCOPES, scope) ? SCOPES[scope] : scope}`;

  /** Names of the probes; where two are alike, with their own. */
  function probeNames(data) {
    const plain = data.probes.map(probeName);
    return plain.map((name, i) => (plain.indexOf(name) === plain.lastIndexOf(name) ? name : `${name} (${data.probes[i].name})`));
  }

  // --- pictures

  function thumbnail(part, concept) {
    const box = el("canvas", { width: part.layers.length, height: part.checkpoints.length, "aria-hidden": "true" });
    const paint = box.getContext("2d");
    part.checkpoints.forEach((checkpoint, y) => part.layers.forEach((layer, x) => {
      const cell = part.at(concept, checkpoint, layer);
      if (!cell) return;
      paint.fillStyle = color(cell.gain, part.furthest);
      paint.fillRect(x, part.checkpoints.length - 1 - y, 1, 1);
    }));
    return box;
  }

  const cut = (text, length) => (text.length > length ? `${text.slice(0, Math.ceil(length / 2) - 1)}…${text.slice(-Math.floor(length / 2))}` : text);

  function words(data, cell, measure) {
    const interval = cell.low === null || cell.low === undefined ? "" : ` [${short(cell.low)}, ${short(cell.high)}]`;
    const where = `${data.layers[cell.layer]}${data.checkpoints[cell.checkpoint] ? ` at ${data.checkpoints[cell.checkpoint]}` : ""}`;
    const gain = `${cell.gain < 0 ? "−" : "+"}${short(Math.abs(cell.gain))}`;
    return { where, value: `${measure} ${short(cell.value)}${interval}`, gain: `${gain} from the baseline ${short(cell.baseline)}${cell.doubtful ? ", not surely above it" : ""}`, unit: cell.unit === null || cell.unit === undefined ? "" : `unit ${cell.unit}` };
  }

  /** The picture of one concept; `tell` is called with the cell that is pointed at. */
  function heatmap(data, part, concept, measure, tell) {
    const longest = (texts, numbers) => Math.max(...numbers.map((i) => cut(texts[i], 20).length));
    const left = Math.min(150, 12 + 7 * longest(data.checkpoints, part.checkpoints)), bottom = Math.min(130, 26 + 5 * longest(data.layers, part.layers));
    const room = (innerWidth > 960 ? Math.min(innerWidth, 1480) - 390 : innerWidth - 64) - left - 40;
    const width = Math.min(Math.max(Math.floor(room / part.layers.length), 20), 64), height = Math.min(Math.max(Math.floor(320 / part.checkpoints.length), 16), 44);
    const w = left + width * part.layers.length + 40, h = height * part.checkpoints.length + bottom;
    const picture = svg("svg", { class: "heat", width: w, height: h, viewBox: `0 0 ${w} ${h}`, role: "group", "aria-label": `${data.concepts[concept]}: layers across, checkpoints up, color is ${measure} above the baseline` });
    const rects = [];
    part.checkpoints.forEach((checkpoint, row) => {
      const y = height * (part.checkpoints.length - 1 - row);
      picture.append(svg("text", { x: left - 8, y: y + height / 2, class: "row" }, svg("title", null, data.checkpoints[checkpoint]), cut(data.checkpoints[checkpoint], 20)));
      part.layers.forEach((layer, column) => {
        const cell = part.at(concept, checkpoint, layer), x = left + width * column;
        if (!cell) return void picture.append(svg("rect", { class: "nothing", x: x + 1, y: y + 1, width: width - 2, height: height - 2, rx: 2 }));
        const said = words(data, cell, measure);
        const rect = svg("rect", { class: "cell", x: x + 1, y: y + 1, width: width - 2, height: height - 2, rx: 2, fill: color(cell.gain, part.furthest), tabindex: rects.length ? -1 : 0, role: "img", "aria-label": [said.where, said.value, said.gain, said.unit].filter(Boolean).join(", ") });
        rect.addEventListener("pointerenter", () => tell(cell, rect));
        rect.addEventListener("focus", () => tell(cell, rect));
        rect.addEventListener("pointerleave", () => tell(null));
        rect.addEventListener("blur", () => tell(null));
        rect.addEventListener("click", () => open(data, cell));
        rects.push({ rect, row, column, cell });
        picture.append(rect);
        if (cell.doubtful) picture.append(svg("circle", { class: "doubt", cx: x + width / 2, cy: y + height / 2, r: 2.2 }));
      });
    });
    part.layers.forEach((layer, column) => {
      const x = left + width * (column + 0.5), y = height * part.checkpoints.length + 12;
      picture.append(svg("text", { x, y, class: "column", transform: `rotate(40 ${x} ${y})` }, svg("title", null, data.layers[layer]), cut(data.layers[layer], 20)));
    });
    picture.addEventListener("keydown", (event) => move(event, rects, data));
    return picture;
  }

  const STEPS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [1, 0], ArrowDown: [-1, 0] };

  function move(event, rects, data) {
    const here = rects.find(({ rect }) => rect === event.target);
    if (here && event.key === "Enter") return void open(data, here.cell);
    if (!here || !Object.hasOwn(STEPS, event.key)) return;
    event.preventDefault();
    event.stopPropagation();
    const [up, right] = STEPS[event.key];
    const ahead = rects.filter(({ row, column }) => (up ? column === here.column && Math.sign(row - here.row) === up : row === here.row && Math.sign(column - here.column) === right));
    const distance = ({ row, column }) => Math.abs(row - here.row) + Math.abs(column - here.column);
    const next = ahead.sort((a, b) => distance(a) - distance(b))[0];
    if (!next) return;
    here.rect.setAttribute("tabindex", -1);
    next.rect.setAttribute("tabindex", 0);
    next.rect.focus();
  }

  /** The page of the unit that a cell tells of, if there is one. */
  function open(data, cell) {
    const { layers, columns } = neuroprobe.data, layer = layers.indexOf(data.layers[cell.layer]);
    if (cell.unit === null || cell.unit === undefined || layer < 0) return;
    if (columns.unit.some((unit, i) => unit === cell.unit && columns.layer[i] === layer)) location.hash = address("unit", layers[layer], cell.unit);
  }

  function legend(part, measure) {
    const steps = Array.from({ length: 41 }, (_, i) => i - 20);
    const bar = svg("svg", { viewBox: "0 0 205 10", width: 205, height: 10, "aria-hidden": "true" }, steps.map((i) => svg("rect", { x: 5 * (i + 20), y: 0, width: 5.2, height: 10, fill: color((part.furthest * i) / 20, part.furthest) })));
    return el("div", { class: "legend" }, el("span", null, `−${short(part.furthest)}`), bar, el("span", null, `+${short(part.furthest)}`), el("span", { class: "muted" }, `${measure} above the baseline`),
      el("span", { class: "key" }, svg("svg", { viewBox: "0 0 12 12", width: 12, height: 12, "aria-hidden": "true" }, svg("circle", { class: "doubt", cx: 6, cy: 6, r: 2.2 })), "not surely above it: the 95 % interval reaches the baseline"));
  }

  function rows(data, part, concept, measure) {
    const cells = [...part.cells[concept].values()];
    const line = (cell) => {
      const said = words(data, cell, measure);
      return [named(data.layers[cell.layer]), named(data.checkpoints[cell.checkpoint]), short(cell.value), cell.low === null || cell.low === undefined ? "–" : `${short(cell.low)} to ${short(cell.high)}`, short(cell.baseline), cell.doubtful ? "not surely" : cell.gain > 0 ? "yes" : "no", ...("q_value" in cell ? [small(cell.q_value)] : []), ...("unit" in cell ? [said.unit] : [])];
    };
    const some = cells[0] || {};
    const head = ["layer", "checkpoint", measure, "95 % interval", "baseline", "above it", ...("q_value" in some ? ["q"] : []), ...("unit" in some ? ["unit"] : [])];
    const box = el("details", { class: "astable" }, el("summary", null, `As a table: ${count(cells.length)} rows`));
    box.addEventListener("toggle", () => box.open && box.children.length === 1 && box.append(neuroprobe.table(`${data.concepts[concept]}: ${measure} by layer and checkpoint`, head, cells.map(line), 2)));
    return box;
  }

  function best(data, part, concept, measure) {
    const cells = [...part.cells[concept].values()].sort((a, b) => b.gain - a.gain);
    const said = words(data, cells[0], measure);
    return el("p", { class: "sentence" }, "Best read in ", named(said.where), said.unit ? ` by ${said.unit}` : "", `: ${said.value}, ${said.gain}.`);
  }

  // --- the view

  neuroprobe.views.probes = async (_, values) => {
    if (!neuroprobe.about.study) throw new Error("This page has no probing study.");
    const data = await load("probes"), names = probeNames(data);
    const state = { probe: Math.max(0, names.indexOf(values.probe)), concept: data.concepts.indexOf(values.concept) };
    let part = null;
    const choose = el("select", { "aria-label": "Probe", on: { change: () => set({ probe: Number(choose.value) }) } }, names.map((name, i) => el("option", { value: i, selected: i === state.probe }, name)));
    const list = el("div", { class: "choices", role: "group", "aria-label": "Concepts" });
    const filter = el("input", { type: "search", id: "search", placeholder: "Find a concept", "aria-label": "Find a concept", autocomplete: "off", on: { input: () => narrow() } });
    const stage = el("div", { class: "stage" });
    const tip = el("div", { class: "tip", hidden: true, "aria-hidden": "true" });

    function set(change) {
      Object.assign(state, change);
      draw();
      keep(address("probes", { concept: data.concepts[state.concept], probe: state.probe ? names[state.probe] : "" }));
    }

    function draw() {
      part = study(data, state.probe);
      if (!part.concepts.includes(state.concept)) state.concept = part.concepts[0];
      list.replaceChildren(...part.concepts.map((i) => el("button", { type: "button", class: "choice", "aria-pressed": String(i === state.concept), on: { click: () => pick(i) } }, named(data.concepts[i], { class: "text" }), thumbnail(part, i))));
      narrow();
      paint();
    }

    function pick(concept) {
      part.concepts.forEach((i, at) => list.children[at].setAttribute("aria-pressed", String(i === concept)));
      state.concept = concept;
      paint();
      keep(address("probes", { concept: data.concepts[concept], probe: state.probe ? names[state.probe] : "" }));
    }

    function paint() {
      const { measure } = data.probes[state.probe], { concept } = state;
      tip.hidden = true;
      stage.replaceChildren(el("h2", null, named(data.concepts[concept])), best(data, part, concept, measure), el("div", { class: "scroll" }, heatmap(data, part, concept, measure, (cell, rect) => tell(cell, rect, measure))), legend(part, measure), rows(data, part, concept, measure));
    }

    function tell(cell, rect, measure) {
      tip.hidden = !cell;
      if (!cell) return;
      const said = words(data, cell, measure), box = rect.getBoundingClientRect();
      tip.replaceChildren(el("b", null, named(said.where)), el("span", null, said.value), el("span", null, said.gain), said.unit ? el("span", null, said.unit) : "");
      const x = Math.min(Math.max(box.left + box.width / 2, 130), innerWidth - 130);
      const above = box.top > 130;
      Object.assign(tip.style, { left: `${x}px`, top: `${above ? box.top - 8 : box.bottom + 8}px` });
      tip.classList.toggle("above", above);
    }

    function narrow() {
      const text = filter.value.normalize("NFKC").toLowerCase();
      part.concepts.forEach((i, at) => (list.children[at].hidden = !data.concepts[i].normalize("NFKC").toLowerCase().includes(text)));
    }

    if (!data.probes.length) return { title: "Probes", tab: "probes", nodes: [el("p", { class: "notice" }, "The study has no probe with an accuracy.")] };
    draw();
    const scrolled = () => (tip.hidden = true);
    addEventListener("scroll", scrolled, { passive: true });
    document.addEventListener("theme", draw);
    addEventListener("resize", paint, { passive: true });
    return {
      title: "Probes",
      tab: "probes",
      nodes: [el("section", { class: "probes" }, el("div", { class: "head" }, el("h1", null, "What is read where, and when"), el("p", { class: "muted" }, "Layers across, checkpoints up; color is how far a probe is above the more frequent class on held-out images.")),
        el("div", { class: "bar" }, data.concepts.length > 12 ? filter : null, choose), el("div", { class: "split" }, list, stage), tip)],
      keys: { "/": () => (data.concepts.length > 12 ? filter.focus() : choose.focus()), Escape: () => void (location.hash = "#/") },
      shown: () => (list.scrollLeft = list.children[part.concepts.indexOf(state.concept)].offsetLeft - list.offsetLeft - 8),
      leave: () => (removeEventListener("scroll", scrolled), removeEventListener("resize", paint), document.removeEventListener("theme", draw)),
    };
  };
})();
