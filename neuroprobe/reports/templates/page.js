"use strict";
// What every part shares: elements made without markup, scripts of data, addresses, keys, colors of light and dark.
// Data become text nodes and attributes of our own choosing, never markup.

const neuroprobe = (() => {
  const page = document.documentElement.dataset.page;
  const waiting = new Map(); // name of a script -> { promise, resolve, reject }

  // --- elements

  function fill(node, attributes, children) {
    for (const [name, value] of Object.entries(attributes || {})) {
      if (value === null || value === undefined || value === false) continue;
      if (name === "on") for (const [event, handler] of Object.entries(value)) node.addEventListener(event, handler);
      else node.setAttribute(name, value === true ? "" : String(value));
    }
    for (const child of children.flat(Infinity)) if (child !== null && child !== undefined && child !== false) node.append(child);
    return node;
  }

  const el = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
  const svg = (tag, attributes, ...children) => fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
  /** A text of the user's: it keeps its own direction, and cannot turn that of what stands beside it. */
  const named = (text, attributes) => el("bdi", attributes, text);

  // --- data

  /** Called by every script of data. */
  function take(name, of, payload) {
    const wait = waited(name);
    if (of !== page) wait.reject(new Error("This page was made anew since it was opened. Load it again."));
    else wait.resolve(payload);
  }

  function waited(name) {
    if (!waiting.has(name)) {
      const wait = {};
      wait.promise = new Promise((resolve, reject) => Object.assign(wait, { resolve, reject }));
      wait.promise.catch(() => {}); // told where it is awaited
      waiting.set(name, wait);
    }
    return waiting.get(name);
  }

  /** The data of one script, which is loaded when they are first asked for. */
  function load(name) {
    const known = waiting.has(name);
    const wait = waited(name);
    if (!known) {
      const missing = () => {
        waiting.delete(name);
        wait.reject(new Error(`data/${name}.js cannot be read. The folder of this page is not complete.`));
      };
      document.head.append(el("script", { src: file("data", `${name}.js`), on: { error: missing } }));
    }
    return wait.promise;
  }

  const file = (folder, name) => `${folder}/${name}?v=${page}`;

  function picture(name, alt, size) {
    return el("img", { src: file("images", `${name}.jpg`), alt, width: size, height: size, loading: "lazy", decoding: "async" });
  }

  // --- numbers

  const count = (n) => n.toLocaleString("en");
  /** Three digits; a whole number as it is. */
  function short(x) {
    if (x === null || x === undefined) return "–";
    const size = Math.abs(x), far = size >= 1e5 || (size && size < 1e-3);
    const text = far ? size.toExponential(1) : Number.isInteger(x) || size >= 1000 ? String(Math.round(size)) : size.toPrecision(3);
    return (x < 0 ? "−" : "") + text;
  }
  const share = (x) => (x === null || x === undefined ? "–" : `${Math.round(100 * x)} %`);
  const small = (x) => (x === null || x === undefined ? "–" : x < 0.001 ? "< 0.001" : short(x));
  const bytes = (n) => (n < 1e5 ? `${Math.max(1, Math.round(n / 1e3))} kB` : `${(n / 1e6).toFixed(1)} MB`);

  // --- addresses: #/, #/layer/NAME, #/unit/LAYER/UNIT, #/probes, each with ?name=value

  const encoded = (text) => encodeURIComponent(text.isWellFormed && !text.isWellFormed() ? text.toWellFormed() : text);

  function address(...parts) {
    const last = parts.length && typeof parts.at(-1) === "object" ? parts.pop() : {};
    const values = Object.entries(last).filter(([, value]) => value !== "" && value !== null && value !== undefined);
    const query = values.map(([name, value]) => `${name}=${encoded(String(value))}`).join("&");
    return `#/${parts.map((part) => encoded(String(part))).join("/")}${query ? `?${query}` : ""}`;
  }

  function route() {
    const [path, query] = location.hash.replace(/^#\/?/, "").split(/\?(.*)/s);
    const values = {};
    for (const pair of (query || "").split("&")) {
      const [name, value] = pair.split(/=(.*)/s);
      if (/^[a-z]+$/.test(name)) values[name] = decoded(value || "");
    }
    return { parts: path.split("/"), values };
  }

  function decoded(text) {
    try {
      return decodeURIComponent(text);
    } catch {
      return text;
    }
  }

  /** Which of the texts a part of the address names. */
  const found = (texts, part) => texts.findIndex((text) => encoded(text) === part || text === decoded(part || ""));

  // --- keys

  let keys = {};
  const typing = (event) => event.target.closest && event.target.closest("input, select, textarea");

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
    if (typing(event) && event.key !== "Escape") return;
    const action = event.key === "?" ? openHelp : keys[event.key];
    if (action && action(event) !== false) event.preventDefault();
  });

  const openHelp = () => document.getElementById("help").showModal();

  // --- light and dark

  const THEMES = { auto: "◐", light: "☀", dark: "☾" };
  let theme = remembered();

  function remembered() {
    try {
      const known = localStorage.getItem("neuroprobe-theme");
      return Object.hasOwn(THEMES, known) ? known : "auto";
    } catch {
      return "auto"; // a browser may keep nothing for pages from disk
    }
  }

  function setTheme(next) {
    theme = next;
    document.documentElement.dataset.theme = next;
    try {
      localStorage.setItem("neuroprobe-theme", next);
    } catch {
      // then it lasts as long as the page
    }
    const button = document.getElementById("theme");
    if (button) {
      button.textContent = THEMES[next];
      button.setAttribute("aria-label", `Colors: ${next}`);
      button.title = next === "auto" ? "Colors: as the system has them" : `Colors: ${next}`;
    }
    document.dispatchEvent(new Event("theme"));
  }

  const print = matchMedia("print"); // on paper it is light
  const isDark = () => !print.matches && (theme === "auto" ? matchMedia("(prefers-color-scheme: dark)").matches : theme === "dark");
  document.documentElement.dataset.theme = theme;
  for (const query of [print, matchMedia("(prefers-color-scheme: dark)")]) query.addEventListener("change", () => document.dispatchEvent(new Event("theme")));

  // --- the whole

  const views = {}; // name -> (parts, values) => { title, keys, nodes, tab, shown }
  let leave = null, standing = null; // what is to be done when the view goes; its address

  function say(text) {
    document.getElementById("said").textContent = text;
  }

  async function show() {
    const { parts, values } = route();
    const name = Object.hasOwn(views, parts[0]) ? parts[0] : "";
    const asked = location.hash;
    let view;
    try {
      view = await views[name](parts.slice(1), values);
    } catch (error) {
      view = { title: "Not found", tab: "", nodes: [el("p", { class: "notice", role: "alert" }, error.message, " ", el("a", { href: "#/" }, "To the beginning"))] };
    }
    if (location.hash !== asked) return; // another was asked for meanwhile
    if (leave) leave();
    standing = asked;
    leave = view.leave || null;
    keys = view.keys || {};
    document.getElementById("content").replaceChildren(...view.nodes);
    document.title = view.title ? `${view.title} · ${neuroprobe.about.title}` : neuroprobe.about.title;
    for (const tab of document.querySelectorAll("#tabs a")) {
      if (tab.dataset.tab === view.tab) tab.setAttribute("aria-current", "page");
      else tab.removeAttribute("aria-current");
    }
    scrollTo(0, 0);
    if (view.shown) view.shown();
    if (view.said) say(view.said);
  }

  /** Put the state of the view that is shown into the address, without a step in the history. */
  function keep(hash) {
    if (location.hash !== standing || hash === standing) return; // it is on its way to another
    standing = hash;
    history.replaceState(null, "", hash);
  }

  function foot(about) {
    const pictures = about.images.count ? `${count(about.images.count)} pictures of at most ${about.thumbnail} px, ${bytes(about.images.size)}; ` : "";
    const facts = about.facts.map(([name, value]) => [" · ", `${name} `, named(value)]);
    return [el("p", null, about.summaries.map((text, i) => [i ? " · " : "", named(text)])), el("p", null, `This page: ${pictures}data, ${bytes(about.size)}`, facts)];
  }

  async function begin() {
    const data = await load("units");
    Object.assign(neuroprobe, { data, about: data.about });
    const tabs = [data.columns.unit.length || data.about.labeled ? ["units", "#/", "Units"] : null, data.about.study ? ["probes", "#/probes", "Probes"] : null];
    document.getElementById("tabs").append(...tabs.filter(Boolean).map(([tab, href, text]) => el("a", { href, "data-tab": tab }, text)));
    document.getElementById("foot").append(...foot(data.about));
    await show();
    window.addEventListener("hashchange", show);
    requestAnimationFrame(() => requestAnimationFrame(() => performance.mark("neuroprobe-shown"))); // the frame after
  }

  document.addEventListener("DOMContentLoaded", () => {
    setTheme(theme);
    document.getElementById("theme").addEventListener("click", () => setTheme({ auto: "light", light: "dark", dark: "auto" }[theme]));
    document.getElementById("open-help").addEventListener("click", openHelp);
    document.getElementById("skip").addEventListener("click", () => document.getElementById("content").focus());
    begin().catch((error) => document.getElementById("content").replaceChildren(el("p", { class: "notice", role: "alert" }, error.message)));
  });

  return { el, svg, named, take, load, picture, count, short, share, small, address, found, views, say, keep, isDark };
})();
