"use strict";
// The page of a unit: its examples, histogram, best concepts, visualization, probes and effects.

(() => {
  const { el, svg, named, load, picture, count, short, share, small, address, found } = neuroprobe;

  // --- examples

  const heading = (group) => {
    const quantile = neuroprobe.about.quantiles[group - 1];
    if (!group) return "Strongest";
    return quantile === 0.5 ? "About the median" : `About the ${Math.round(100 * quantile)}th percentile`;
  };

  function example([group, number, id, value, shareOf], texts, rank, size) {
    const where = group ? `${heading(group).toLowerCase()}` : `strongest but ${rank}`;
    const alt = `${texts[id]}, activation ${short(value)}, ${rank || group ? where : "strongest"}`;
    const at = `${texts[id]}: activation ${value}, at or above ${(100 * shareOf).toFixed(1)} % of the images`;
    return el("figure", { title: at },
      number === null ? el("span", { class: "missing", role: "img", "aria-label": alt }, "no picture") : picture(number, alt, size),
      el("figcaption", null, el("b", null, short(value)), named(texts[id], { class: "id" })));
  }

  function examples(unit, texts) {
    if (!unit.examples) return null;
    if (!unit.examples.length) return el("section", { class: "panel" }, el("h2", null, "Examples"), el("p", { class: "muted" }, `The unit is ${short(unit.low)} on every image.`));
    const groups = [...new Set(unit.examples.map(([group]) => group))];
    const box = (group) => {
      const shown = unit.examples.filter(([of]) => of === group);
      return el("div", null, el("h2", null, heading(group)), el("div", { class: "examples" }, shown.map((one, rank) => example(one, texts, rank, neuroprobe.about.thumbnail))));
    };
    return el("section", { class: "panel", "aria-label": "Examples" }, box(groups[0]), el("div", { class: "quantiles" }, groups.slice(1).map(box)));
  }

  // --- the histogram

  function histogram(unit) {
    if (!unit.counts || !unit.counts.length) return null;
    const { counts, low, high } = unit, most = Math.max(...counts), total = counts.reduce((a, b) => a + b, 0);
    const step = (high - low) / counts.length;
    const bars = counts.map((n, i) => {
      const height = n ? Math.max(1, 80 * Math.sqrt(n / most)) : 0;
      const text = `${count(n)} image${n === 1 ? "" : "s"} from ${short(low + i * step)} to ${short(low + (i + 1) * step)}`;
      return svg("g", null, svg("title", null, text), svg("rect", { class: "hit", x: i * 10, y: 0, width: 10, height: 84 }), svg("rect", { x: i * 10 + 0.5, y: 84 - height, width: 9, height }));
    });
    const zero = low < 0 && high > 0 ? svg("path", { class: "zero", d: `M${(240 * -low) / (high - low)} 0v84` }) : null;
    const words = `Histogram of the activations on ${count(total)} images, from ${short(low)} to ${short(high)}; the fullest bin holds ${count(most)}.`;
    return el("section", { class: "panel" }, el("h2", null, "Activations"),
      el("div", { class: "histogram" },
        svg("svg", { viewBox: "0 0 240 85", preserveAspectRatio: "none", role: "img", "aria-label": words }, zero, bars, svg("path", { class: "axis", d: "M0 84.5h240" })),
        el("div", { class: "ends" }, el("span", null, short(low)), el("span", { class: "muted" }, `${count(total)} images`), el("span", null, short(high)))),
      el("p", { class: "note" }, "Heights are square roots of counts."));
  }

  // --- concepts, probes

  function concepts(unit, texts) {
    if (!unit.concepts.length) return null;
    const most = Math.max(...unit.concepts.map(([, score]) => score ?? 0), 1e-12);
    const row = ([text, score]) => el("li", null,
      el("a", { href: address({ q: neuroprobe.grid.exactly(texts[text]) }), title: "Units with this concept" }, named(texts[text])),
      el("span", { class: "value" }, short(score)),
      svg("svg", { viewBox: "0 0 100 4", preserveAspectRatio: "none", "aria-hidden": "true" }, svg("rect", { class: "track", width: 100, height: 4 }), svg("rect", { width: Math.max(0, (100 * (score ?? 0)) / most), height: 4 })));
    const margin = unit.margin === null || unit.margin === undefined ? null : el("p", { class: "note" }, `The first is ${short(unit.margin)} ahead of the second.`);
    return el("section", { class: "panel" }, el("h2", null, "Best concepts"), el("ol", { class: "concepts" }, unit.concepts.map(row)), margin);
  }

  /** A table; so many columns from the first hold words, the others numbers. */
  function table(caption, head, rows, words = 1) {
    const side = (i) => (i < words ? "words" : null);
    return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption }, el("table", null, el("caption", { class: "unseen" }, caption),
      el("thead", null, el("tr", null, head.map((text, i) => el("th", { scope: "col", class: side(i) }, text)))),
      el("tbody", null, rows.map((cells) => el("tr", null, cells.map((cell, i) => (i ? el("td", { class: side(i) }, cell) : el("th", { scope: "row", class: side(i) }, cell))))))));
  }
  neuroprobe.table = table;

  function probes(unit, texts) {
    if (!unit.probes && !unit.best) return null;
    const { checkpoint, n_probed: all } = neuroprobe.about;
    const kinds = new Set((unit.probes || []).map(([, kind]) => kind));
    const concept = ([text, kind]) => [named(texts[text]), kinds.size > 1 ? `, ${texts[kind]}` : ""];
    const rows = (unit.probes || []).map((row) => [concept(row), short(row[2]), short(row[3]), short(row[4]), small(row[5])]);
    const at = checkpoint && checkpoint !== "model" ? [" at the checkpoint ", named(checkpoint)] : "";
    const best = (unit.best || []).map(([text, when, accuracy, low, high, baseline]) =>
      el("li", null, named(texts[text]), texts[when] && texts[when] !== "model" ? [" at ", named(texts[when])] : "", `: accuracy ${short(accuracy)} [${short(low)}, ${short(high)}], baseline ${short(baseline)}`));
    return el("section", { class: "panel" }, el("h2", null, "Probes"),
      rows.length ? [el("p", { class: "note" }, "What this unit tells by itself", at, all * kinds.size > rows.length ? `: the ${rows.length} clearest of ${count(all * kinds.size)} probes` : "", ", on held-out images."), table("Probes of this unit", ["concept", "AUROC", "accuracy", "baseline", "q"], rows)] : null,
      best.length ? [el("p", { class: "note" }, "Chosen on the training part as the best unit of its layer for"), el("ul", { class: "plain" }, best)] : null);
  }

  // --- effects

  const SHOWN_EFFECTS = 8;

  /** An effect and its interval over those of random units, on a common scale. */
  function whisker([, , , effect, low, high, , randomLow, randomHigh], [from, to]) {
    const x = (value) => 4 + (152 * (value - from)) / (to - from);
    const known = (...values) => values.every((value) => value !== null);
    return svg("svg", { class: "whisker", viewBox: "0 0 160 18", "aria-hidden": "true" },
      svg("path", { class: "zero", d: `M${x(0)} 0v18` }),
      known(randomLow, randomHigh) ? svg("rect", { class: "random", x: x(randomLow), y: 5, width: Math.max(1.5, x(randomHigh) - x(randomLow)), height: 8, rx: 2 }) : null,
      known(low, high) ? svg("path", { class: "interval", d: `M${x(low)} 9H${x(high)}` }) : null,
      known(effect) ? svg("circle", { cx: x(effect), cy: 9, r: 3.5 }) : null);
  }

  function effectGroup({ units, rows }, texts) {
    const sorted = [...rows].sort((a, b) => Math.abs(b[3] ?? 0) - Math.abs(a[3] ?? 0));
    const values = rows.flatMap((row) => [row[3], row[4], row[5], row[7], row[8]]).filter((value) => value !== null);
    const scale = [Math.min(0, ...values), Math.max(0, ...values)];
    if (scale[0] === scale[1]) scale[1] = 1;
    const range = (low, high) => (low === null ? "" : ` [${short(low)}, ${short(high)}]`);
    const cells = (row) => [named(texts[row[2]]), named(texts[row[1]]), named(texts[row[0]]), whisker(row, scale), `${short(row[3])}${range(row[4], row[5])}`, row[6] === null ? "–" : `${short(row[6])}${range(row[7], row[8])}`, row[9] === null ? "–" : count(row[9])];
    const head = ["output", "images with", "intervention", "", "effect", "random units", "pairs"];
    const box = el("div", null, table("Effects", head, sorted.slice(0, SHOWN_EFFECTS).map(cells), 4));
    const more = sorted.length > SHOWN_EFFECTS ? el("button", { type: "button", class: "chip", on: { click: () => (box.replaceChildren(table("Effects", head, sorted.map(cells), 4)), more.remove()) } }, `All ${sorted.length}`) : null;
    const together = units.length > 1 ? el("p", { class: "note" }, `Together with ${count(units.length - 1)} other unit${units.length === 2 ? "" : "s"} of this layer: ${units.slice(0, 24).join(", ")}${units.length > 24 ? ", …" : ""}`) : null;
    return [together, box, more];
  }

  function effects(groups, texts) {
    return el("section", { class: "panel wide" }, el("h2", null, "Effects"), el("p", { class: "note" }, "What an intervention on units does: how much more an output changes on images with the concept than on matched ones without. Dot and line: the mean and its interval; gray: the effects of random units of the layer. Largest first."), groups.map((group) => effectGroup(group, texts)));
  }

  // --- panels of others: neuroprobe.panels holds a function for each, from a unit's data to what is shown

  neuroprobe.panels = [];

  function panels(unit) {
    const broken = () => el("p", { class: "muted" }, "The script of this panel cannot be run.");
    return (unit.panels || []).map(([at, data]) => el("section", { class: "panel" }, el("h2", null, named(neuroprobe.about.panels[at])), (neuroprobe.panels[at] || broken)(data)));
  }

  // --- the view

  function sentence(i) {
    const { grid } = neuroprobe, { state } = grid.known();
    const facts = grid.confidence(i).map(([name, value]) => [el("span", { class: "fact" }, name === "stable" ? "the same in " : `${name} `, el("b", null, value), name === "stable" ? " of resamples" : "")]);
    const words = { named: "Named", unnamed: "No better than chance", dead: "The same on every image" }[state[i]];
    return el("p", { class: "sentence" }, el("span", { class: `state ${state[i]}` }, neuroprobe.about.labeled || state[i] === "dead" ? words : "Not labeled"), facts);
  }

  function steps(i) {
    const { grid } = neuroprobe;
    const order = grid.kept.order && grid.kept.order.includes(i) ? grid.kept.order : grid.known().all;
    const at = order.indexOf(i);
    const link = (to, text, name, key) => (to === undefined ? el("span", { class: "step off", "aria-hidden": "true" }, text) : el("a", { class: "step", href: grid.unitAddress(to), rel: name, "aria-label": `${name === "next" ? "Next" : "Previous"} unit: ${grid.described(to)}`, title: `${name === "next" ? "Next" : "Previous"} unit (${key})` }, text));
    const go = (to) => () => (to === undefined ? false : void (location.hash = grid.unitAddress(to)));
    const nodes = el("div", { class: "steps" }, link(order[at - 1], "←", "prev", "k"), el("span", { class: "muted" }, `${count(at + 1)} of ${count(order.length)}`), link(order[at + 1], "→", "next", "j"));
    return { nodes, keys: { j: go(order[at + 1]), k: go(order[at - 1]) } };
  }

  function permanent(i) {
    const link = el("a", { class: "quiet permanent", href: neuroprobe.grid.unitAddress(i), on: { click: copy } }, "Permanent link");
    async function copy(event) {
      event.preventDefault();
      try {
        await navigator.clipboard.writeText(location.href);
        link.textContent = "Copied";
      } catch {
        link.textContent = "Copy it from the address bar";
      }
      neuroprobe.say(link.textContent);
    }
    return link;
  }

  neuroprobe.views.unit = async ([layerName, number]) => {
    const { data, grid, about } = neuroprobe;
    const layer = found(data.layers, layerName), { columns } = data;
    const i = columns.unit.findIndex((unit, at) => columns.layer[at] === layer && String(unit) === number);
    if (i < 0) throw new Error("There is no such unit on this page.");
    const chunk = await load(`details-${Math.floor(i / data.chunk)}`);
    const unit = chunk.units[i - chunk.start], { texts } = chunk;
    const effect = unit.effects ? await load("effects") : null;
    const back = grid.kept.hash, stepped = steps(i), title = `${data.layers[layer]} · ${number}`;
    const seen = unit.visualization === undefined ? null : el("section", { class: "panel" }, el("h2", null, "Visualization"), el("div", { class: "seen" }, picture(`v${unit.visualization}`, `What unit ${number} of ${data.layers[layer]} responds to, made by gradient ascent`, 224)), el("p", { class: "note" }, "An image made for this unit, not one of the probing set."));
    const aside = [seen, histogram(unit), concepts(unit, texts)].filter(Boolean);
    const shown = examples(unit, texts);
    return {
      title: `${grid.headline(i)} · ${title}`,
      tab: "units",
      nodes: [el("article", { class: "unit" },
        el("div", { class: "crumbs" }, el("a", { href: back }, "Units"), el("span", { "aria-hidden": "true" }, "/"), el("a", { href: address("layer", data.layers[layer]) }, named(data.layers[layer])), el("span", { "aria-hidden": "true" }, "/"), el("span", null, number), permanent(i), stepped.nodes),
        el("h1", { tabindex: "-1" }, grid.label(i)), sentence(i),
        el("div", { class: shown ? "body" : "body narrow" }, shown, el("div", { class: "aside" }, aside)),
        el("div", { class: "body below" }, probes(unit, texts), effect ? effects(unit.effects.map((group) => effect.groups[group]), effect.texts) : null, panels(unit)))],
      keys: { ...stepped.keys, Escape: () => void (location.hash = back), "/": () => ((grid.kept.searching = true), void (location.hash = back)) },
      said: `${grid.described(i)}`,
      shown: () => document.querySelector("h1").focus({ preventScroll: true }),
    };
  };
})();
