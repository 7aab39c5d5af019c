"use strict";
// Units as cards: searched, filtered and sorted as rows of columns; only the cards in sight are elements.

(() => {
  const { el, svg, named, picture, count, short, share, small, address, found, say, keep } = neuroprobe;
  const GAP = 14, NARROWEST = 208, BEYOND = 2; // pixels, and rows drawn beyond those in sight

  // --- what is known of all units

  let units = null;

  /** The columns, and what searching and sorting need of them; made once. */
  function known() {
    if (units) return units;
    const { columns, concepts, layers, statuses } = neuroprobe.data;
    const n = columns.unit.length;
    const dead = statuses.indexOf("never varies");
    const alphabetic = concepts.map((_, i) => i).sort((a, b) => concepts[a].localeCompare(concepts[b]));
    const rank = [];
    alphabetic.forEach((concept, place) => (rank[concept] = place));
    const isDead = (i) => columns.status[i] === dead || (columns.bars !== undefined && columns.bars[i] === "");
    const state = Array.from({ length: n }, (_, i) => (isDead(i) ? "dead" : columns.concept[i] === null ? "unnamed" : "named"));
    const name = (i) => (columns.concept[i] ?? columns.candidate[i]) === null ? "" : concepts[columns.concept[i] ?? columns.candidate[i]];
    const plain = (text) => text.normalize("NFKC").toLowerCase();
    const layerTexts = layers.map(plain);
    const conceptTexts = Array.from({ length: n }, (_, i) => plain(name(i)));
    units = { ...columns, n, state, name, rank, plain, layerTexts, conceptTexts, all: Array.from({ length: n }, (_, i) => i) };
    return units;
  }

  const SHOWN = {
    all: ["All", () => true],
    named: ["Named", (i) => known().state[i] === "named"],
    unnamed: ["Unnamed", (i) => known().state[i] === "unnamed"],
    dead: ["Dead", (i) => known().state[i] === "dead"],
    visualized: ["Visualized", (i) => known().seen[i] & 1],
    effects: ["With an effect", (i) => known().seen[i] & 2],
  };

  const by = (column, sign) => (a, b) => {
    const x = known()[column][a], y = known()[column][b];
    return x === y ? a - b : x === null || x === undefined ? 1 : y === null || y === undefined ? -1 : sign * (x - y) || a - b;
  };
  const concept = (i) => known().concept[i] ?? known().candidate[i];
  const byConcept = (a, b) => (concept(a) === null) - (concept(b) === null) || (known().rank[concept(a)] ?? 0) - (known().rank[concept(b)] ?? 0) || a - b;
  const SORTS = {
    layer: ["Layer and unit", () => true, (a, b) => a - b],
    score: ["Score, highest first", () => known().score, by("score", -1)],
    lowest: ["Score, lowest first", () => known().score, by("score", 1)],
    q: ["q, smallest first", () => known().q, by("q", 1)],
    stability: ["Most stable first", () => known().stability, by("stability", -1)],
    concept: ["Concept, A to Z", () => neuroprobe.data.concepts.length, byConcept],
  };

  // --- searching

  /** What a search asks for: { place, text, whole } or { number, sign, value } each, all of which must hold; `whole` for concept:"...". */
  function terms(text) {
    const number = /(score|q|stable)\s?(<=?|>=?)\s?(-?\d*\.?\d+(?:e-?\d+)?)(?=\s|$)/, words = /(?:(concept|layer|unit):)?(?:"((?:[^"\\]|\\.)*)("?)|(\S+))/;
    const found = [...text.matchAll(new RegExp(`${number.source}|${words.source}`, "gis"))];
    const term = ([, name, sign, value, place, quoted, end, word]) =>
      name ? { number: name.toLowerCase(), sign, value: Number(value) } : { place: (place || "").toLowerCase(), text: known().plain(quoted?.replace(/\\(.)/gs, "$1") ?? word), whole: Boolean(place && end) };
    return found.map(term).filter((term) => term.number || term.text);
  }

  /** The search for one concept. */
  const exactly = (concept) => `concept:"${concept.replace(/["\\]/g, "\\$&")}"`;

  const COMPARED = { "<": (a, b) => a < b, "<=": (a, b) => a <= b, ">": (a, b) => a > b, ">=": (a, b) => a >= b };

  /** Whether a unit's score, q-value or stability (in percent) is as a search asks; what is not known is not. */
  function compared(i, { number, sign, value }) {
    const known_ = known()[{ score: "score", q: "q", stable: "stability" }[number]]?.[i];
    return known_ !== null && known_ !== undefined && COMPARED[sign](number === "stable" ? 100 * known_ : known_, value);
  }

  function matches(i, wanted) {
    if (wanted.number) return compared(i, wanted);
    const { place, text, whole } = wanted;
    const { layer, unit, layerTexts, conceptTexts } = known();
    const holds = (there) => (whole ? there === text : there.includes(text));
    const inConcept = () => holds(conceptTexts[i]);
    const inLayer = () => holds(layerTexts[layer[i]]);
    const isUnit = () => String(unit[i]) === text;
    if (place) return { concept: inConcept, layer: inLayer, unit: isUnit }[place]();
    return inConcept() || inLayer() || isUnit();
  }

  /** The units that a search, a layer and a filter leave, in order. */
  function chosen({ q, show, sort, layer }) {
    const wanted = terms(q);
    const left = known().all.filter((i) => (layer < 0 || known().layer[i] === layer) && wanted.every((term) => matches(i, term)));
    const counts = Object.fromEntries(Object.entries(SHOWN).map(([name, [, test]]) => [name, left.filter(test).length]));
    return { order: left.filter(SHOWN[show][1]).sort(SORTS[sort][2]), counts };
  }

  // --- a card

  const LEVELS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-_";

  function bars(text) {
    const height = (c) => (LEVELS.indexOf(c) / 63) * 30;
    const path = [...text].map((c, i) => (c === "0" ? "" : `M${i * 10 + 1} 31v${-height(c).toFixed(1)}h8V31z`)).join("");
    return svg("svg", { class: "bars", viewBox: "0 0 240 32", preserveAspectRatio: "none", "aria-hidden": "true" }, svg("path", { d: path }), svg("path", { class: "axis", d: "M0 31.5h240" }));
  }

  /** The unit's label as an element: a name, a guess, or that there is none. */
  function label(i) {
    const { state, name } = known();
    if (state[i] === "named") return named(name(i), { class: "label" });
    if (state[i] === "dead") return el("span", { class: "label none" }, "never varies");
    const guess = name(i) ? [" ", el("span", { class: "guess" }, "perhaps ", named(name(i)))] : "";
    const none = neuroprobe.about.labeled ? "unnamed" : "not labeled";
    return el("span", { class: "label none" }, el("span", { class: guess ? "unless-card" : "" }, none), guess);
  }

  function confidence(i) {
    const { score, q, stability } = known();
    const known_ = [["score", score && score[i], short], ["q", q && q[i], small], ["stable", stability && stability[i], share]];
    return known_.filter(([, value]) => value !== null && value !== undefined).map(([name, value, form]) => [name, form(value)]);
  }

  const place = (i) => `${neuroprobe.data.layers[known().layer[i]]} · ${known().unit[i]}`;
  const unitAddress = (i) => address("unit", neuroprobe.data.layers[known().layer[i]], known().unit[i]);

  /** The unit's label as a text. */
  function headline(i) {
    const { state, name } = known();
    return state[i] === "named" ? name(i) : state[i] === "dead" ? "never varies" : `${neuroprobe.about.labeled ? "unnamed" : "not labeled"}${name(i) ? `, perhaps ${name(i)}` : ""}`;
  }

  /** What a card says, in words. */
  function described(i) {
    return [headline(i), `unit ${known().unit[i]} of ${neuroprobe.data.layers[known().layer[i]]}`, ...confidence(i).map(([name_, value]) => `${name_} ${value}`)].join(", ");
  }

  function card(i, position, total) {
    const { thumbs, bars: histograms } = known(), facts = confidence(i);
    const pictures = thumbs && thumbs[i].map((number, rank) => el("span", { class: "thumb", "data-picture": number, "data-alt": `Strongest image ${rank + 1} of unit ${place(i)}` }));
    return el("div", { role: "listitem", "aria-posinset": position + 1, "aria-setsize": total, class: `card ${known().state[i]}` },
      el("a", { href: unitAddress(i), "aria-label": described(i), tabindex: "-1" },
        thumbs && el("span", { class: "thumbs" }, pictures),
        el("span", { class: "name" }, label(i), facts.filter(([name]) => name === "score").map(([, value]) => el("span", { class: "score", title: "score" }, value))),
        el("span", { class: "place" }, named(place(i))),
        histograms && (histograms[i] ? bars(histograms[i]) : el("span", { class: "bars" })),
        el("span", { class: "facts" }, facts.filter(([name]) => name !== "score").map(([name, value]) => el("span", null, `${name} `, el("b", null, value)))),
      ));
  }

  /** Pictures come a frame after their cards: asking for a hundred files takes longer than all the rest of a search. */
  function unveil(box) {
    for (const place of box.querySelectorAll(".thumb")) place.replaceWith(picture(place.dataset.picture, place.dataset.alt, 56));
  }

  // --- the grid: cards by position in the order; rows of one height

  class Grid {
    constructor(box) {
      this.box = box;
      this.order = [];
      this.cards = new Map(); // position -> element
      this.active = 0;
      box.addEventListener("keydown", (event) => this.move(event));
      box.addEventListener("focusin", (event) => this.activate([...this.cards].find(([, node]) => node.contains(event.target))?.[0] ?? this.active));
    }

    set(order) {
      this.order = order;
      this.active = 0;
      this.clear();
      if (this.box.clientWidth !== this.room) this.measure();
      this.box.style.height = order.length ? `${Math.ceil(order.length / this.columns) * this.height}px` : "0";
      if (order.length) this.draw();
    }

    /** The same cards in another room. */
    again() {
      const { active } = this, focused = this.box.contains(document.activeElement);
      this.room = -1;
      this.set(this.order);
      if (focused) this.focus(active);
      else this.activate(active);
    }

    /** How many columns there is room for, and how high a row is: that of any card. */
    measure() {
      if (!this.order.length) return;
      this.room = this.box.clientWidth;
      this.columns = Math.max(1, Math.floor((this.room + GAP) / (NARROWEST + GAP)));
      if (this.columns === 1 && this.room >= 300) this.columns = 2;
      this.width = (this.room - GAP * (this.columns - 1)) / this.columns;
      this.clear();
      this.height = this.put(0).offsetHeight + GAP;
      this.clear();
    }

    clear() {
      this.box.replaceChildren();
      this.cards.clear();
    }

    put(position, before = null) {
      const node = card(this.order[position], position, this.order.length);
      const x = (position % this.columns) * (this.width + GAP), y = Math.floor(position / this.columns) * (this.height || 0);
      Object.assign(node.style, { width: `${this.width}px`, transform: `translate(${x}px, ${y}px)` });
      node.firstChild.tabIndex = position === this.active ? 0 : -1;
      this.box.insertBefore(node, before);
      this.cards.set(position, node);
      return node;
    }

    /** Cards for the rows in sight, and the one with the focus; `rows` draws so many from the first. */
    draw(rows = 0) {
      const top = -this.box.getBoundingClientRect().top;
      const first = rows ? 0 : Math.max(0, Math.floor(top / this.height) - BEYOND);
      const last = rows || Math.max(1, Math.ceil((top + innerHeight) / this.height) + BEYOND);
      const wanted = new Set();
      for (let p = first * this.columns; p < Math.min(last * this.columns, this.order.length); p++) wanted.add(p);
      if (this.box.contains(document.activeElement)) wanted.add(this.active);
      for (const [position, node] of this.cards) {
        if (wanted.has(position)) continue;
        node.remove();
        this.cards.delete(position);
      }
      let node = this.box.firstChild; // elements stand in the order of the cards, for those who hear them
      for (const position of [...wanted].sort((a, b) => a - b)) {
        if (this.cards.has(position)) node = this.cards.get(position).nextSibling;
        else this.put(position, node);
      }
      if (rows) unveil(this.box);
      else requestAnimationFrame(() => setTimeout(() => unveil(this.box)));
    }

    activate(position) {
      const before = this.cards.get(this.active);
      if (before) before.firstChild.tabIndex = -1;
      this.active = position;
      const now = this.cards.get(position);
      if (now) now.firstChild.tabIndex = 0;
    }

    focus(position) {
      if (!this.order.length) return;
      this.activate(Math.min(Math.max(position, 0), this.order.length - 1));
      const top = scrollY + this.box.getBoundingClientRect().top + Math.floor(this.active / this.columns) * this.height;
      const head = document.querySelector(".top").offsetHeight + GAP;
      if (top < scrollY + head) scrollTo(0, top - head);
      else if (top + this.height > scrollY + innerHeight) scrollTo(0, top + this.height - innerHeight);
      if (!this.cards.has(this.active)) this.draw();
      if (!this.cards.has(this.active)) this.put(this.active);
      this.cards.get(this.active).firstChild.focus({ preventScroll: true });
    }

    move(event) {
      const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: this.columns, ArrowUp: -this.columns, Home: -this.active, End: this.order.length - 1 - this.active };
      if (!Object.hasOwn(steps, event.key) || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      event.stopPropagation();
      const to = this.active + steps[event.key];
      if (to >= 0 && to < this.order.length) this.focus(to);
      else if (event.key === "ArrowUp") document.getElementById("search").focus();
    }
  }

  // --- the layers beside it

  function layerCounts() {
    const sums = neuroprobe.data.layers.map(() => ({ named: 0, unnamed: 0, dead: 0, n: 0 }));
    known().all.forEach((i) => (sums[known().layer[i]][known().state[i]]++, sums[known().layer[i]].n++));
    return sums;
  }

  function layerList(current) {
    const entry = (sum, i) => el("a", { href: address("layer", neuroprobe.data.layers[i]), "aria-current": i === current ? "page" : null, title: `${count(sum.named)} named, ${count(sum.unnamed)} unnamed, ${count(sum.dead)} dead` },
      el("span", { class: "row" }, named(neuroprobe.data.layers[i], { class: "text" }), el("span", { class: "n" }, count(sum.n))),
      parts(sum));
    return el("nav", { class: "layers", "aria-label": "Layers" }, el("a", { href: "#/", "aria-current": current < 0 ? "page" : null }, el("span", { class: "row" }, el("span", { class: "text" }, "All layers"), el("span", { class: "n" }, count(known().n)))), layerCounts().map(entry));
  }

  function parts(sum) {
    const bar = svg("svg", { class: "parts", viewBox: "0 0 100 4", preserveAspectRatio: "none", "aria-hidden": "true" });
    let x = 0;
    for (const name of ["named", "unnamed", "dead"]) {
      const width = (100 * sum[name]) / sum.n;
      bar.append(svg("rect", { class: name, x, y: 0, width, height: 4 }));
      x += width;
    }
    return bar;
  }

  /** A layer's leading concepts, each a search. */
  function leading(layer) {
    const counts = new Map();
    known().all.forEach((i) => known().layer[i] === layer && known().state[i] === "named" && counts.set(concept(i), (counts.get(concept(i)) || 0) + 1));
    const first = [...counts].sort((a, b) => b[1] - a[1] || a[0] - b[0]).slice(0, 8);
    const { layers, concepts } = neuroprobe.data;
    const chip = ([c, n]) => el("a", { class: "chip", href: address("layer", layers[layer], { q: exactly(concepts[c]), show: "named" }) }, named(concepts[c]), el("span", { class: "n" }, count(n)));
    return first.length ? el("p", { class: "leading" }, el("span", { class: "muted" }, "Most frequent "), first.map(chip)) : null;
  }

  // --- the view

  const kept = { hash: "#/", scroll: 0, position: -1, order: null, searching: false };
  /** Where the grid was left, and the units in its order: the unit's page goes on from there. */
  neuroprobe.grid = { kept, known, exactly, label, headline, described, unitAddress, confidence };

  function view(layer, values) {
    const { layers } = neuroprobe.data;
    const state = { q: values.q || "", show: Object.hasOwn(SHOWN, values.show) ? values.show : "all", sort: Object.hasOwn(SORTS, values.sort) ? values.sort : "layer", layer };
    const returning = location.hash === kept.hash ? { ...kept } : null;
    const box = el("div", { class: "grid", role: "list", "aria-label": "Units" });
    const grid = new Grid(box);
    const result = el("p", { class: "result" });
    const chips = el("div", { class: "chips", role: "group", "aria-label": "Which units" });
    const hash = () => {
      const rest = { q: state.q, show: state.show === "all" ? "" : state.show, sort: state.sort === "layer" ? "" : state.sort };
      return layer < 0 ? address(rest) : address("layer", layers[layer], rest);
    };
    let later = 0;

    function update() {
      performance.mark("neuroprobe-search");
      const { order, counts } = chosen(state);
      grid.set(order);
      kept.order = order;
      result.textContent = `${count(order.length)} unit${order.length === 1 ? "" : "s"}${order.length ? "" : ". Try another word, or fewer."}`;
      chips.replaceChildren(...Object.entries(SHOWN).filter(([name]) => name in counts && (counts[name] || ["all", "named", "unnamed", "dead"].includes(name) || name === state.show))
        .map(([name, [text]]) => el("button", { type: "button", "data-show": name, "aria-pressed": String(name === state.show), on: { click: () => set({ show: name }, name) } }, text, el("span", { class: "n" }, count(counts[name])))));
      clearTimeout(later);
      later = setTimeout(() => (keep(hash()), say(result.textContent)), 250);
      performance.measure("neuroprobe-search", "neuroprobe-search");
    }

    function set(change, focus) {
      Object.assign(state, change);
      update();
      if (focus) chips.querySelector(`[data-show=${focus}]`).focus();
    }

    const search = el("input", { id: "search", type: "search", placeholder: "Search concepts and layers", "aria-label": "Search concepts and layers", "aria-keyshortcuts": "/", autocomplete: "off", spellcheck: "false", enterkeyhint: "search", value: state.q, dir: "auto", on: { input: () => set({ q: search.value }), keydown: fromSearch } });
    function fromSearch(event) {
      if (event.key === "ArrowDown" || event.key === "Enter") (event.preventDefault(), grid.focus(0));
      else if (event.key === "Escape") (event.stopPropagation(), search.value ? ((search.value = ""), set({ q: "" })) : search.blur());
    }
    const sort = el("select", { "aria-label": "Order", on: { change: () => set({ sort: sort.value }) } }, Object.entries(SORTS).filter(([, [, there]]) => there()).map(([name, [text]]) => el("option", { value: name, selected: name === state.sort }, text)));
    const pick = el("select", { class: "pick", "aria-label": "Layer", on: { change: () => (location.hash = pick.value) } }, el("option", { value: "#/" }, "All layers"), layers.map((name, i) => el("option", { value: address("layer", name), selected: i === layer }, name)));
    const head = layer < 0 ? null : el("div", { class: "head" }, el("h1", null, named(layers[layer])), leading(layer));

    const resized = () => requestAnimationFrame(() => grid.again());
    const scrolled = () => grid.order.length && grid.draw();
    const printed = () => grid.order.length && grid.draw(Math.ceil(Math.min(grid.order.length, 400) / grid.columns));
    const listeners = [["resize", resized], ["scroll", scrolled], ["beforeprint", printed], ["afterprint", scrolled]];

    function shown() {
      listeners.forEach(([name, handler]) => addEventListener(name, handler, { passive: true }));
      update();
      if (returning) {
        scrollTo(0, returning.scroll);
        if (returning.position >= 0) grid.focus(returning.position);
      }
      if (kept.searching) search.focus();
      kept.searching = false;
    }

    function leave() {
      clearTimeout(later);
      listeners.forEach(([name, handler]) => removeEventListener(name, handler));
    }

    // where the grid is left for a unit, it is found again
    box.addEventListener("click", () => (keep(hash()), Object.assign(kept, { hash: hash(), scroll: scrollY, position: grid.active })));
    return {
      title: layer < 0 ? "" : layers[layer],
      tab: "units",
      nodes: [el("div", { class: "columns" }, layerList(layer), el("section", { class: "units", "aria-label": "Units" }, head, el("div", { class: "bar" }, search, pick, sort), el("div", { class: "under" }, chips, result), box))],
      keys: { "/": () => (search.focus(), search.select()), Escape: () => (layer < 0 ? false : void (location.hash = "#/")), ArrowDown: () => (document.activeElement === document.body ? grid.focus(0) : false) },
      shown,
      leave,
    };
  }

  neuroprobe.views[""] = (_, values) => {
    const { about, data } = neuroprobe;
    if (!data.columns.unit.length && about.study) return neuroprobe.views.probes([], {});
    return view(-1, values);
  };

  neuroprobe.views.layer = ([name], values) => {
    const layer = found(neuroprobe.data.layers, name);
    if (layer < 0) throw new Error("There is no such layer on this page.");
    return view(layer, values);
  };
})();
