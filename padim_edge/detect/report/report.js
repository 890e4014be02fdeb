"use strict";

// The page of a report. All text of a user's becomes text by textContent, never markup.

const DATA = JSON.parse(document.getElementById("data").textContent);
const OWN = DATA.own_threshold;
const BINS = 48;
const STEPS = 1000;

// ------------------------------------------------------------------------------------ elements

const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "style") Object.entries(value).forEach(([k, v]) => node.style.setProperty(k, v));
    else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(Infinity).filter((one) => one !== null && one !== undefined));
  return node;
}

const el = (tag, attributes = {}, ...children) =>
  fill(document.createElement(tag), attributes, children);
const svg = (tag, attributes = {}, ...children) =>
  fill(document.createElementNS(SVG, tag), attributes, children);

// ------------------------------------------------------------------------------------- numbers

const finite = (value) => value !== null && value !== undefined;

/** Four significant digits, none of them lost to rounding up to a whole number. */
function score(value) {
  if (!finite(value)) return "not a number";
  const size = Math.abs(value);
  return value.toFixed(size >= 1000 ? 0 : size >= 100 ? 1 : size >= 1 ? 2 : 4);
}

const share = (value) => (finite(value) ? value.toFixed(3) : "\u2013");
const percent = (part, whole) => (whole ? `${((100 * part) / whole).toFixed(1)} %` : "\u2013");
const plural = (count, one, many = `${one}s`) => `${count} ${count === 1 ? one : many}`;

/** How many of sorted values exceed a limit. */
function above(sorted, limit) {
  let low = 0;
  let high = sorted.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (sorted[middle] > limit) high = middle;
    else low = middle + 1;
  }
  return sorted.length - low;
}

const groups = DATA.groups;
const of = (role) => groups.filter((group) => group.role === role);
const total = (some) => some.reduce((sum, group) => sum + group.scores.length, 0);
const exceed = (some, limit) => some.reduce((sum, one) => sum + above(one.scores, limit), 0);
const good = of("good");
const defective = of("defective");
const evaluated = DATA.kind === "eval";

const everything = groups.concat(DATA.reference || []).flatMap((group) => [
  group.scores[0], group.scores[group.scores.length - 1],
]).filter(finite).concat(OWN, DATA.threshold);
const LOW = Math.min(...everything);
const HIGH = Math.max(...everything);
const MARGIN = (HIGH - LOW || 1) * 0.03;
const FROM = Math.max(0, LOW - MARGIN);
const TO = HIGH + MARGIN;

// ----------------------------------------------------------------------------------- threshold

let threshold = DATA.threshold;
const listeners = [];

/** Take a threshold; `settled` once the hand is off, so that nothing moves under it. */
function judge(value, settled = true) {
  threshold = value;
  listeners.forEach((listener) => listener(settled));
}

/** What is said of an image at the threshold, and whether it is wrong. */
function verdict(image) {
  const alarm = !finite(image.score) || image.score > threshold;
  const role = groups[image.group].role;
  if (role === "good") return alarm ? ["false alarm", "wrong"] : ["passed", "right"];
  if (role === "defective") return alarm ? ["found", "right"] : ["missed", "wrong"];
  if (image.remark) return [image.remark, "alarm"];
  if (DATA.kind === "fit") return alarm ? ["above the threshold", "alarm"] : ["", "right"];
  return alarm ? ["anomaly", "alarm"] : ["ok", "right"];
}

/** How far the score is on the wrong side of the threshold; negative on the right one. */
function wrongness(image) {
  const beyond = (finite(image.score) ? image.score : Infinity) - threshold;
  return groups[image.group].role === "defective" ? -beyond : beyond;
}

// -------------------------------------------------------------------------------------- header

function header() {
  const titles = {
    eval: ["Evaluation", `${plural(total(good), "good image")}, ${total(defective)} defective`],
    run: ["Photos, by score", plural(total(groups), "image") + " judged"],
    fit: ["Training photos, by leave-one-out score", plural(total(groups), "photo")],
  };
  const [kind, counts] = titles[DATA.kind];
  document.title = `${DATA.title} \u2013 padim-edge`;
  return el("header", {},
    el("p", { class: "kind" }, kind),
    el("h1", {}, DATA.title),
    el("p", { class: "counts" }, counts),
    DATA.kind === "fit" ? el("p", { class: "lead" },
      "Each photo is scored as if it had not been among those of the fit. Those on top are the " +
      "least like all others: look whether they really show good parts, and fit again without " +
      "those that do not.") : null);
}

const facts = () => el("dl", { class: "facts" },
  DATA.facts.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))));

// ------------------------------------------------------------------------------------- metrics

/** The interval on a scale that ends at 1 and begins where all of the table's have room. */
function whisker(metric, from) {
  const x = (value) => (100 * (value - from)) / (1 - from);
  return svg("svg", { class: "whisker", viewBox: "-3 0 106 10", "aria-hidden": "true" },
    svg("line", { class: "rail", x1: 0, x2: 100, y1: 5, y2: 5 }),
    finite(metric.low) ? svg("line", { class: "range", x1: x(metric.low), x2: x(metric.high), y1: 5, y2: 5 }) : null,
    finite(metric.value) ? svg("circle", { cx: x(metric.value), cy: 5, r: 2.6 }) : null);
}

function metricTable(some, caption) {
  const least = Math.min(...some.flatMap((one) => [one.low, one.value]).filter(finite));
  const from = [0.99, 0.95, 0.9, 0.8, 0.5].find((value) => value <= least) || 0;
  return el("table", { class: "metrics" },
    el("caption", {}, caption),
    el("thead", { class: "quiet" }, el("tr", {}, el("th", { scope: "col" }, "metric"),
      el("th", { scope: "col", class: "number" }, "value"),
      el("th", { scope: "col", class: "number" }, "95 % interval"),
      el("td", { class: "bar number" }, el("span", { class: "ends" }, el("span", {}, String(from)), el("span", {}, "1"))))),
    el("tbody", {}, some.map((metric) => el("tr", { "data-metric": metric.name },
      el("th", { scope: "row" }, metric.name),
      el("td", { class: "number value", "data-value": metric.value },
        finite(metric.value) ? metric.value.toFixed(4) : "no masks"),
      el("td", { class: "number interval" },
        finite(metric.low) ? `${share(metric.low)} \u2013 ${share(metric.high)}` : ""),
      el("td", { class: "bar" }, whisker(metric, from))))));
}

function metrics() {
  if (!DATA.metrics.length) return null;
  return el("section", { "aria-labelledby": "metrics" },
    el("h2", { id: "metrics" }, "Metrics"),
    el("div", { class: "pair" },
      metricTable(DATA.metrics.filter((one) => !one.at_threshold), "Over all thresholds"),
      metricTable(DATA.metrics.filter((one) => one.at_threshold),
        `At ${score(DATA.threshold)}, ${DATA.threshold === OWN ? "the file\u2019s threshold" : "the threshold that was given"}`)));
}

// ----------------------------------------------------------------------------------- histogram

/** Bars of shares: what lies above the axis, and below it. */
function histogram() {
  const wide = 720;
  const tall = 240;
  const halves = evaluated
    ? [["good", "good", good], ["defective", "defective", defective]]
    : [[DATA.kind === "fit" ? "training photos" : "photos", DATA.kind === "fit" ? "good" : "unknown", groups]]
      .concat(DATA.reference ? [[DATA.reference.name, DATA.reference.role, [DATA.reference]]] : []);
  const binned = halves.map(([name, role, some]) => {
    const counts = new Array(BINS).fill(0);
    some.forEach((group) => group.scores.forEach((value) => {
      counts[Math.min(BINS - 1, Math.floor(((value - FROM) / (TO - FROM)) * BINS))] += 1;
    }));
    return { name, role, counts, sum: total(some) };
  });
  // One scale for both halves, the axis where both have room.
  const highest = binned.map((half) => Math.max(...half.counts) / (half.sum || 1));
  const scale = (tall - 24) / (highest.reduce((sum, one) => sum + one, 0) || 1);
  const axis = 14 + highest[0] * scale;
  const x = (value) => ((value - FROM) / (TO - FROM)) * wide;
  const width = wide / BINS;
  const bars = binned.map(({ name, role, counts, sum }, half) => counts.map((count, bin) => {
    if (!count) return null;
    const height = Math.max(2, (count / sum) * scale);
    const start = FROM + (bin * (TO - FROM)) / BINS;
    return svg("rect", {
      class: `bar ${role}`, x: bin * width + 0.75, width: width - 1.5,
      y: half ? axis + 1 : axis - height, height, rx: 1.5,
    }, svg("title", {}, `${score(start)} to ${score(start + (TO - FROM) / BINS)}: ${count} of ${sum} ${name}`));
  }));
  const line = svg("line", { class: "now", y1: 0, y2: tall });
  const picture = svg("svg", {
    class: "histogram", viewBox: `0 0 ${wide} ${tall}`, preserveAspectRatio: "none",
    role: "img", "aria-label": `Histogram of the scores: ${binned.map((h) => h.name).join(" above, ")}${binned.length > 1 ? " below the axis" : ""}`,
  },
  svg("line", { class: "axis", x1: 0, x2: wide, y1: axis + 0.5, y2: axis + 0.5 }),
  bars,
  svg("line", { class: "own", x1: x(OWN), x2: x(OWN), y1: 0, y2: tall }),
  line);
  listeners.push(() => {
    const place = Math.min(Math.max(x(threshold), 0), wide);
    [["x1", place], ["x2", place]].forEach(([name, value]) => line.setAttribute(name, value));
  });
  const take = (event, settled) => {
    const box = picture.getBoundingClientRect();
    const part = Math.min(Math.max((event.clientX - box.left) / box.width, 0), 1);
    judge(near(FROM + part * (TO - FROM)), settled);
  };
  picture.addEventListener("pointerdown", (event) => {
    picture.setPointerCapture(event.pointerId);
    take(event, false);
  });
  picture.addEventListener("pointermove", (event) => { if (event.buttons) take(event, false); });
  picture.addEventListener("pointerup", (event) => take(event, true));
  const names = el("p", { class: "legend" }, binned.map(({ name, role, sum }) =>
    el("span", { class: role }, name, el("b", {}, String(sum)))));
  // Left of its line by as much as it is from the left: within the picture wherever the line is.
  const part = (100 * x(OWN)) / wide;
  const mark = el("p", { class: "mark number", style: { left: `${part}%`, transform: `translateX(-${part}%)` } },
    `file\u2019s threshold ${score(OWN)}`);
  return [names, el("div", { class: "plot" }, mark, picture)];
}

/** A threshold of the slider; the file's own where it is the nearest. */
function near(value) {
  const step = (TO - FROM) / STEPS;
  return Math.abs(value - OWN) <= step / 2 ? OWN : value;
}

function slider() {
  const place = (value) => Math.round(((value - FROM) / (TO - FROM)) * STEPS);
  const range = el("input", {
    type: "range", id: "threshold", min: 0, max: STEPS, step: 1, "aria-label": "Threshold",
    oninput: () => judge(near(FROM + (range.value / STEPS) * (TO - FROM)), false),
    onchange: () => judge(threshold),
  });
  const exact = el("input", {
    type: "number", id: "exact", step: "any", min: 0, inputmode: "decimal", "aria-label": "Threshold as a number",
    onchange: () => {
      const value = Number(exact.value);
      if (exact.value.trim() !== "" && value > 0) judge(value);
      else exact.value = threshold;
    },
  });
  const back = el("button", { type: "button", id: "own", onclick: () => judge(OWN) },
    `The file\u2019s: ${score(OWN)}`);
  listeners.push(() => {
    range.value = place(threshold);
    range.setAttribute("aria-valuetext", `${score(threshold)}: ${spoken()}`);
    exact.value = threshold === OWN || Number(exact.value) !== threshold ? Number(threshold.toPrecision(6)) : exact.value;
    back.disabled = threshold === OWN;
    document.body.dataset.threshold = threshold;
  });
  return [
    el("div", { class: "slider" }, range),
    el("div", { class: "ends number", "aria-hidden": "true" }, el("span", {}, score(FROM)), el("span", {}, score(TO))),
    el("p", { class: "controls" }, el("label", { for: "exact" }, "Threshold"), exact, back),
  ];
}

const spoken = () => evaluated
  ? `${plural(exceed(good, threshold), "false alarm")}, ${exceed(defective, threshold)} of ${total(defective)} defects found`
  : `${exceed(groups, threshold) + broken()} of ${total(groups) + broken()} above`;

/** Images whose score is no number: anomalous at any threshold. */
const broken = () => DATA.shown.concat(DATA.named).filter((one) => !finite(one.score)).length;

// ------------------------------------------------------------------------------------ decision

function decisions() {
  const cell = (name) => el("output", { class: "number", "data-count": name });
  const cells = Object.fromEntries(["tn", "fp", "fn", "tp", "ok", "alarm"].map((name) => [name, cell(name)]));
  const rates = {};
  const rate = (name, text) => {
    rates[name] = el("dd", { class: "number", "data-rate": name });
    return el("div", {}, el("dt", {}, text), rates[name]);
  };
  listeners.push(() => {
    const fp = exceed(good, threshold);
    const tp = exceed(defective, threshold);
    const [negative, positive] = [total(good), total(defective)];
    const all = total(groups);
    const alarm = exceed(groups, threshold) + broken();
    const counts = { tn: negative - fp, fp, fn: positive - tp, tp, ok: all + broken() - alarm, alarm };
    Object.entries(counts).forEach(([name, value]) => {
      cells[name].textContent = value;
      cells[name].dataset.none = value === 0;
    });
    const found = {
      recall: percent(tp, positive), precision: percent(tp, tp + fp),
      f1: share((2 * tp) / (tp + fp + positive)), alarms: percent(fp, negative),
      share: percent(alarm, all + broken()),
      reference: DATA.reference ? percent(above(DATA.reference.scores, threshold), DATA.reference.scores.length) : "",
    };
    Object.entries(rates).forEach(([name, node]) => { node.textContent = found[name]; });
  });
  if (!evaluated) {
    return el("div", { class: "decisions" },
      el("dl", { class: "rates" },
        el("div", {}, el("dt", {}, DATA.kind === "fit" ? "above" : "anomalous"), el("dd", { class: "number" }, cells.alarm)),
        el("div", {}, el("dt", {}, DATA.kind === "fit" ? "below" : "ok"), el("dd", { class: "number" }, cells.ok)),
        rate("share", DATA.kind === "fit" ? "share above" : "share anomalous"),
        DATA.reference ? rate("reference", "of the fit\u2019s good photos") : null));
  }
  return el("div", { class: "decisions" },
    el("table", { class: "confusion" },
      el("caption", { class: "hidden" }, "Decisions at the threshold"),
      el("thead", {}, el("tr", {}, el("td", {}), el("th", { scope: "col" }, "judged ok"), el("th", { scope: "col" }, "judged anomalous"))),
      el("tbody", {},
        el("tr", {}, el("th", { scope: "row" }, "good"), el("td", {}, cells.tn), el("td", { class: "error" }, cells.fp, el("small", {}, "false alarms"))),
        el("tr", {}, el("th", { scope: "row" }, "defective"), el("td", { class: "error" }, cells.fn, el("small", {}, "missed")), el("td", {}, cells.tp)))),
    el("dl", { class: "rates" }, rate("recall", "recall"), rate("precision", "precision"),
      rate("alarms", "false-alarm rate"), rate("f1", "F1")));
}

function scores() {
  return el("section", { "aria-labelledby": "scores" },
    el("h2", { id: "scores" }, "Scores and threshold"),
    el("p", { class: "hint" }, "Bars are shares of all images of their kind. Drag the threshold, or use the arrow keys: everything below follows."),
    histogram(), slider(), decisions());
}

// -------------------------------------------------------------------------------------- curves

function curve({ name, x: [xName, xs], y: [yName, ys] }, point) {
  const [left, top, side] = [34, 8, 260];
  const x = (value) => left + value * side;
  const y = (value) => top + (1 - value) * side;
  const ticks = [0, 0.25, 0.5, 0.75, 1];
  const dot = svg("circle", { class: "point", r: 5 });
  const said = el("span", { class: "number" });
  listeners.push(() => {
    const [px, py] = point();
    dot.setAttribute("visibility", finite(px) && finite(py) ? "visible" : "hidden");
    said.textContent = finite(px) && finite(py) ? `${share(px)}, ${share(py)}` : "\u2013";
    if (!finite(px) || !finite(py)) return;
    dot.setAttribute("cx", x(px));
    dot.setAttribute("cy", y(py));
  });
  const path = xs.map((value, i) => `${i ? "L" : "M"}${x(value).toFixed(2)} ${y(ys[i]).toFixed(2)}`).join("");
  return el("figure", { class: "curve" },
    el("figcaption", {}, name),
    svg("svg", { viewBox: `0 0 ${left + side + 10} ${top + side + 38}`, role: "img", "aria-label": `${name}: ${yName} over ${xName}` },
      ticks.map((tick) => [
        svg("line", { class: "grid", x1: x(tick), x2: x(tick), y1: top, y2: top + side }),
        svg("line", { class: "grid", x1: left, x2: left + side, y1: y(tick), y2: y(tick) }),
        tick % 0.5 ? null : svg("text", { x: x(tick), y: top + side + 16, "text-anchor": "middle" }, String(tick)),
        tick % 0.5 ? null : svg("text", { x: left - 8, y: y(tick) + 4, "text-anchor": "end" }, String(tick)),
      ]),
      svg("path", { class: "line", d: path }), dot,
      svg("text", { class: "name", x: left + side / 2, y: top + side + 34, "text-anchor": "middle" }, xName)),
    el("p", { class: "hint" }, `${yName} over ${xName}; at the threshold `, said));
}

function curves() {
  if (!DATA.curves.length) return null;
  const points = [
    () => [exceed(good, threshold) / total(good), exceed(defective, threshold) / total(defective)],
    () => {
      const [tp, fp] = [exceed(defective, threshold), exceed(good, threshold)];
      return [tp / total(defective), tp + fp ? tp / (tp + fp) : null];
    },
  ];
  return el("section", { "aria-labelledby": "curves" },
    el("h2", { id: "curves" }, "Every threshold"),
    el("div", { class: "pair" }, DATA.curves.map((one, i) => curve(one, points[i]))));
}

// --------------------------------------------------------------------------------------- kinds

function kinds() {
  if (!evaluated) return null;
  const rows = defective.map((group) => {
    const found = el("td", { class: "number", "data-found": group.name });
    const bar = el("i");
    listeners.push(() => {
      const count = above(group.scores, threshold);
      found.textContent = `${count} of ${group.scores.length}`;
      bar.style.setProperty("width", `${(100 * count) / group.scores.length}%`);
    });
    return el("tr", {},
      el("th", { scope: "row" }, group.name), el("td", { class: "number" }, group.scores.length), found,
      el("td", { class: "meter" }, el("span", {}, bar)),
      el("td", { class: "number" }, finite(group.auroc) ? group.auroc.toFixed(4) : "\u2013"),
      el("td", { class: "number" }, score(group.scores[0])));
  });
  return el("section", { "aria-labelledby": "kinds" },
    el("h2", { id: "kinds" }, "Kinds of defect"),
    el("div", { class: "scroll", tabindex: 0, role: "region", "aria-labelledby": "kinds" }, el("table", { class: "kinds" },
      el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "kind"),
        el("th", { scope: "col", class: "number" }, "images"),
        el("th", { scope: "col", class: "number" }, "found"), el("td", { class: "meter" }),
        el("th", { scope: "col", class: "number" }, "AUROC against good"),
        el("th", { scope: "col", class: "number" }, "lowest score"))),
      el("tbody", {}, rows))));
}

// ------------------------------------------------------------------------------------- gallery

const PANELS = [
  ["photo", "photo", () => true],
  ["truth", "truth", () => evaluated],
  ["heat", "heat map", () => DATA.shown.some((one) => one.layers.heat)],
  ["mask", "detected", () => DATA.shown.some((one) => one.layers.mask)],
].filter(([, , wanted]) => wanted());

function panels(image) {
  const { layers, name } = image;
  return PANELS.map(([kind, text]) => {
    const layer = kind === "photo" ? null : layers[kind];
    const missing = kind !== "photo" && !layer;
    const nothing = kind !== "truth" ? "no map" : groups[image.group].role === "good" ? "good" : "no mask";
    return el("span", { class: `panel ${kind}` },
      el("span", { class: "stack", style: { "aspect-ratio": `${layers.width} / ${layers.height}` } },
        el("img", { src: layers.photo, alt: missing ? "" : `${text} of ${name}`, class: missing ? "faint" : "", width: layers.width, height: layers.height }),
        layer ? el("img", { src: layer, alt: "", width: layers.width, height: layers.height }) : null,
        missing ? el("span", { class: "nothing" }, nothing) : null),
      el("span", { class: "what" }, text));
  });
}

function named(path) {
  const cut = path.lastIndexOf("/") + 1;
  return el("span", { class: "name", title: path }, el("span", {}, path.slice(0, cut)), el("b", {}, path.slice(cut)));
}

function captions(image) {
  const chip = el("span", { class: "chip" });
  const value = el("span", { class: "number", "data-score": finite(image.score) ? image.score : "" }, score(image.score));
  return {
    node: el("span", { class: "caption" }, named(image.name), el("span", { class: "said" }, value, chip)),
    update: () => {
      const [text, kind] = verdict(image);
      chip.textContent = text;
      chip.dataset.kind = kind;
      return kind;
    },
  };
}

function card(image) {
  const caption = captions(image);
  const button = el("button", { type: "button", class: "card", tabindex: -1 }, el("span", { class: "panels" }, panels(image)), caption.node);
  return { image, button, node: el("li", {}, button), update: () => { button.dataset.kind = caption.update(); } };
}

const byName = (a, b) => (a.image.name < b.image.name ? -1 : a.image.name > b.image.name ? 1 : 0);
const number = (image) => (finite(image.score) ? image.score : Infinity);
const ORDERS = {
  wrong: ["most wrong first", (a, b) => wrongness(b.image) - wrongness(a.image) || byName(a, b)],
  high: ["highest score first", (a, b) => number(b.image) - number(a.image) || byName(a, b)],
  low: ["lowest score first", (a, b) => number(a.image) - number(b.image) || byName(a, b)],
  name: ["by name", byName],
};

function gallery() {
  const cards = DATA.shown.map(card);
  const list = el("ol", { class: `gallery of-${PANELS.length}`, id: "gallery" });
  const count = el("p", { class: "hint", "aria-live": "polite", id: "count" });
  const choice = (id, text, options) => {
    const node = el("select", { id, onchange: arrange }, options.map(([value, name]) => el("option", { value }, name)));
    return [node, el("label", { for: id }, text, node)];
  };
  const [sort, sortLabel] = choice("sort", "Sort", Object.entries(ORDERS)
    .filter(([key]) => evaluated || key !== "wrong").map(([key, [name]]) => [key, name]));
  const filters = [["all", "all"]].concat(
    evaluated ? [["wrong", "wrong decisions"]] : DATA.kind === "run" ? [["alarm", "anomalies"], ["right", "ok"]] : [["alarm", "those with a remark"]],
    groups.length > 1 ? groups.map((group, i) => [`group-${i}`, group.name]) : []);
  const [filter, filterLabel] = choice("filter", "Show", filters);
  let visible = [];

  function passes(one) {
    if (filter.value === "all") return true;
    if (filter.value.startsWith("group-")) return `group-${one.image.group}` === filter.value;
    return one.button.dataset.kind === filter.value;
  }

  function arrange() {
    const held = document.activeElement && document.activeElement.closest(".card");
    visible = cards.filter(passes).sort(ORDERS[sort.value][1]);
    list.replaceChildren(...visible.map((one) => one.node));
    const current = visible.find((one) => one.button === held) || visible[0];
    cards.forEach((one) => { one.button.tabIndex = one === current ? 0 : -1; });
    if (held && current && current.button === held) held.focus({ preventScroll: true });
    const wrong = evaluated ? `, ${cards.filter((one) => one.button.dataset.kind === "wrong").length} of all ${cards.length} wrong at this threshold` : "";
    count.textContent = `${plural(visible.length, "image")}${wrong}`;
  }

  listeners.push((settled) => {
    cards.forEach((one) => one.update());
    if (settled) arrange();
  });

  const focus = (place) => {
    const one = visible[Math.min(Math.max(place, 0), visible.length - 1)];
    cards.forEach((other) => { other.button.tabIndex = other === one ? 0 : -1; });
    one.button.focus();
    one.button.scrollIntoView({ block: "nearest" });
  };
  list.addEventListener("keydown", (event) => {
    const place = visible.findIndex((one) => one.button === document.activeElement);
    if (place < 0) return;
    const columns = getComputedStyle(list).gridTemplateColumns.split(" ").length;
    const move = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns, Home: -Infinity, End: Infinity }[event.key];
    if (move === undefined) return;
    event.preventDefault();
    focus(place + move);
  });
  list.addEventListener("click", (event) => {
    const button = event.target.closest(".card");
    const place = visible.findIndex((one) => one.button === button);
    if (place >= 0) viewer(visible, place, focus);
  });
  const what = { eval: "Images", run: "Photos", fit: "Photos" }[DATA.kind];
  return el("section", { "aria-labelledby": "images" },
    el("h2", { id: "images" }, what),
    el("div", { class: "bar-of-tools" }, sortLabel, filterLabel, legend()),
    count, list, rest());
}

/** The colour scale of all heat maps. */
function legend() {
  if (!DATA.shown.some((one) => one.layers.heat)) return null;
  const [low, top] = DATA.scale;
  const colours = DATA.colours.map(([r, g, b]) => `rgb(${r} ${g} ${b})`).join(", ");
  const place = (100 * (DATA.threshold - low)) / (top - low);
  return el("figure", { class: "scale", "aria-label": "Colours of the heat maps by score" },
    el("span", { class: "of" }, "Heat map"),
    el("span", { class: "ramp", style: { background: `linear-gradient(to right, ${colours})` } },
      place < 100 ? el("i", { style: { left: `${place}%` } }) : null),
    el("figcaption", { class: "number" }, el("span", {}, score(low)),
      place < 100 ? el("span", { class: "at", style: { left: `${place}%` } }, score(DATA.threshold)) : null,
      el("span", {}, score(top))));
}

function rest() {
  const more = DATA.named.length + DATA.unnamed;
  const lists = [];
  const named = (summary, rows) => {
    const body = el("div", { class: "scroll" });
    const details = el("details", {}, el("summary", {}, summary), body);
    details.addEventListener("toggle", () => {
      if (details.open && !body.childElementCount) body.append(el("table", { class: "rest" }, el("tbody", {}, rows())));
    });
    lists.push(details);
  };
  if (more) {
    named(`${plural(more, "more image")}, without pictures${DATA.unnamed ? `; ${DATA.unnamed} of them only counted` : ""}`,
      () => DATA.named.map((image) => el("tr", {}, el("td", {}, image.name),
        el("td", {}, groups.length > 1 ? groups[image.group].name : ""), el("td", { class: "number" }, score(image.score)))));
  }
  if (DATA.unreadable.length) {
    named(`${plural(DATA.unreadable.length, "file")} could not be read`,
      () => DATA.unreadable.map(([name, why]) => el("tr", {}, el("td", {}, name), el("td", {}, why))));
  }
  return lists;
}

// -------------------------------------------------------------------------------------- viewer

function viewer(visible, start, focus) {
  const dialog = document.getElementById("viewer");
  let place = start;
  const show = () => {
    const image = visible[place].image;
    const caption = captions(image);
    caption.update();
    const step = (by, text, sign) => el("button", { type: "button", "aria-label": text, disabled: place + by < 0 || place + by >= visible.length, onclick: () => move(by) }, sign);
    dialog.replaceChildren(
      el("div", { class: "top" }, caption.node,
        el("span", { class: "steps" }, el("span", { class: "hint number" }, `${place + 1} / ${visible.length}`),
          step(-1, "Previous image", "\u2190"), step(1, "Next image", "\u2192"),
          el("button", { type: "button", "aria-label": "Close", onclick: () => dialog.close() }, "\u00d7"))),
      el("div", { class: `panels large of-${PANELS.length}` }, panels(image)));
  };
  const move = (by) => {
    const next = Math.min(Math.max(place + by, 0), visible.length - 1);
    if (next === place) return;
    place = next;
    show();
    dialog.focus();
  };
  dialog.tabIndex = -1;
  dialog.onkeydown = (event) => {
    const by = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (by) {
      event.preventDefault();
      move(by);
    }
  };
  dialog.onclick = (event) => { if (event.target === dialog) dialog.close(); };
  dialog.onclose = () => focus(place);
  show();
  dialog.showModal();
  dialog.focus();
}

// ---------------------------------------------------------------------------------------- page

function notes() {
  if (!DATA.notes.length) return null;
  return el("section", { class: "notes", "aria-labelledby": "notes" },
    el("h2", { id: "notes" }, "How this was made"), DATA.notes.map((note) => el("p", {}, note)));
}

document.getElementById("page").replaceChildren(
  ...[header(), facts(), metrics(), scores(), curves(), kinds(), gallery(), notes()].filter(Boolean));
judge(DATA.threshold);
