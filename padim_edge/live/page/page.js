"use strict";

// The page of a watch. All that comes from outside (names of cameras and files, messages) becomes
// text by textContent, never markup.

const $ = (id) => document.getElementById(id);
const el = (tag, attributes = {}, ...children) => {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((one) => one !== null && one !== undefined));
  return node;
};

/** Write only what is new: a screen reader is not told the same twice. */
function put(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

// ------------------------------------------------------------------------------------- numbers

const finite = (value) => typeof value === "number" && Number.isFinite(value);
const plural = (count, one, many = `${one}s`) => `${count} ${count === 1 ? one : many}`;

/** Four significant digits or so. */
function score(value) {
  if (!finite(value)) return "\u2013";
  const size = Math.abs(value);
  return value.toFixed(size >= 1000 ? 0 : size >= 100 ? 1 : size >= 1 ? 2 : 4);
}

const milliseconds = (value) => (!finite(value) ? "\u2013" : value < 10 ? `${value.toFixed(1)} ms` : value < 10000 ? `${value.toFixed(0)} ms` : `${(value / 1000).toFixed(0)} s`);
const percent = (share) => `${Number((100 * share).toPrecision(2))} %`;
const clock = (seconds) => new Date(1000 * seconds).toLocaleTimeString([], { hour12: false });
const moment = (seconds) => {
  const when = new Date(1000 * seconds);
  const today = when.toDateString() === new Date().toDateString();
  return today ? clock(seconds) : `${when.toLocaleDateString()} ${clock(seconds)}`;
};

// --------------------------------------------------------------------------------------- state

const state = {
  camera: null, // its name; null for the first
  now: null, // the last part
  points: [], // [time, score or null, decided], oldest first
  good: [], // [rank from the lowest on, score] of good parts of the fit, ascending; of many, some
  goodCount: 0, // of all of them
  threshold: null,
  version: undefined, // the name of the one that judges
  preview: null, // another threshold; null for that of now
  anomalies: [], // newest first
  all: false, // not the newest few alone are listed
  held: false, // the picture stands still
  waiting: null, // what is shown when it does no longer: the newest part with a picture, its bytes
  seen: 0, // when the last part came, and when one with another frame did: milliseconds
  fresh: 0,
  announced: null,
  patience: 8000, // milliseconds after which a connection is given up: something comes every 2 s
};
const CHART = 600;

// -------------------------------------------------------------------------------------- stream

let running = null; // what ends the stream of now

/** Read parts until the stream ends: a line of JSON, then as many bytes of JPEG as it says. */
async function read(body, part) {
  const reader = body.getReader();
  let buffer = new Uint8Array(0);
  let head = null;
  let searched = 0;
  for (;;) {
    if (head === null) {
      const end = buffer.indexOf(10, searched);
      if (end >= 0) {
        head = JSON.parse(new TextDecoder().decode(buffer.subarray(0, end)));
        buffer = buffer.subarray(end + 1);
      } else searched = buffer.length;
    }
    if (head !== null && buffer.length >= head.bytes) {
      part(head, buffer.slice(0, head.bytes));
      buffer = buffer.subarray(head.bytes);
      [head, searched] = [null, 0];
      continue;
    }
    const { done, value } = await reader.read();
    if (done) return;
    const longer = new Uint8Array(buffer.length + value.length);
    longer.set(buffer);
    longer.set(value, buffer.length);
    buffer = longer;
  }
}

/** Show a camera, again and again when the connection is lost. */
async function watch() {
  running?.end();
  const own = { ended: false, attempt: null, end: () => { own.ended = true; own.attempt?.abort(); } };
  running = own;
  let pause = 500;
  while (!own.ended) {
    const attempt = new AbortController();
    own.attempt = attempt;
    came = Date.now();
    try {
      const asked = new URLSearchParams({ heat: $("heat").checked ? "1" : "0" });
      if (state.camera !== null) asked.set("camera", state.camera);
      const answer = await fetch(`/api/live?${asked}`, { signal: attempt.signal });
      if (answer.status === 401) {
        location.assign("/login");
        return;
      }
      if (answer.status === 400) clear(null); // it has other cameras than before
      if (!answer.ok) throw new Error(await reason(answer));
      let first = true;
      await read(answer.body, (head, bytes) => {
        if (own.ended) return;
        if (first) state.points = [];
        first = false;
        pause = 500;
        take(head, bytes);
      });
      throw new TypeError("the answer has ended");
    } catch (error) {
      if (own.ended) return;
      const lost = error instanceof TypeError || error.name === "AbortError";
      off(`${lost ? "connection lost" : error.message}; trying again`);
      await new Promise((resolve) => setTimeout(resolve, pause));
      pause = Math.min(2 * pause, 5000);
    }
  }
}

/** Why something was refused: in the words of the server, or by the number of a proxy before it. */
async function reason(answer) {
  const said = await answer.json().catch(() => null);
  return said?.error || `the server answers ${answer.status}`;
}

let came = 0; // when the last part came, or when it was asked for

function line(kind, text) {
  $("line").dataset.kind = kind;
  put($("line"), text);
}

/** Nothing is known of now: the decision of then must not look like one. */
function off(text) {
  line("off", text);
  $("picture").dataset.kind = "stale";
  decide("none", "no connection", state.seen ? `What you see is of ${clock(state.seen / 1000)}.` : "");
}

setInterval(() => {
  if (running && !running.ended && Date.now() - came > state.patience) running.attempt?.abort();
}, 1000);

function take(head, bytes) {
  came = state.seen = Date.now();
  if (head.newest?.id !== state.now?.newest?.id) state.fresh = came;
  state.now = head;
  state.camera = head.camera.name;
  if (head.has_picture !== undefined) {
    if (state.held) state.waiting = [head, bytes];
    else show(head, bytes);
  }
  state.points = state.points.concat(head.points).slice(-CHART);
  if (head.good) [state.good, state.goodCount] = [head.good, head.good_count];
  if (finite(head.camera.threshold)) state.threshold = head.camera.threshold;
  if (head.versions) state.version = head.versions.find((one) => one.is_current)?.name;
  $("camera").hidden = false;
  document.title = `${head.camera.name} \u2013 padim-edge`;
  line("on", "live");
  tabs();
  verdict();
  teaching();
  chart();
  preview();
  if (head.anomalies) anomalies(head.anomalies);
  if (head.messages) messages(head.messages);
  if (head.drifts) drifts(head.drifts);
  if (head.versions) versions(head.versions);
  states();
}

// ---------------------------------------------------------------------------------------- tabs

function tabs() {
  const { cameras } = state.now;
  const list = $("tabs");
  list.hidden = cameras.length < 2;
  const names = cameras.map((one) => one.name);
  if (JSON.stringify([...list.children].map((one) => one.textContent)) !== JSON.stringify(names)) {
    list.replaceChildren(...cameras.map((one) => {
      const tab = el("button", { role: "tab", "aria-controls": "camera", onclick: () => choose(one.name) });
      tab.textContent = one.name;
      return tab;
    }));
  }
  chosen();
  cameras.forEach((one, i) => {
    const tab = list.children[i];
    tab.dataset.kind = !one.is_connected ? "lost" : one.is_anomalous ? "anomaly" : "ok";
    tab.title = !one.is_connected ? "no frames come" : one.is_anomalous ? "anomaly" : "ok";
  });
}

function chosen() {
  for (const tab of $("tabs").children) {
    const is = tab.textContent === state.camera;
    tab.setAttribute("aria-selected", String(is));
    tab.tabIndex = is ? 0 : -1;
  }
}

function choose(name) {
  if (name === state.camera) return;
  clear(name);
  watch();
}

/** Nothing of another camera stays: what is clicked would be done to this one. */
function clear(name) {
  Object.assign(state, { camera: name, now: null, seen: 0, points: [], good: [], goodCount: 0, threshold: null, preview: null, waiting: null, announced: null, version: undefined });
  chosen();
  hold(false);
  show({ newest: null, has_picture: false });
  put($("nothing"), "");
  decide("none", "waiting", "");
  for (const id of ["numbers", "states"]) pairs($(id), []);
  $("picture").dataset.kind = "";
  put($("failed"), "");
  told = "";
  recalled(null);
  teaching();
  $("anomalies").replaceChildren();
  anomalies([]);
  messages([]);
  drifts([]);
  versions([]);
  preview();
  chart();
}

$("tabs").addEventListener("keydown", (event) => {
  const all = [...$("tabs").children];
  const at = all.findIndex((one) => one === document.activeElement);
  const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: all.length - 1 }[event.key];
  if (to === undefined) return;
  event.preventDefault();
  const tab = all[(to + all.length) % all.length];
  tab.focus();
  tab.click();
});

// ----------------------------------------------------------------------------------------- now

let blanks = 0; // how often there was no picture: none that is still being decoded comes after that

function show(head, bytes) {
  const { newest, has_picture } = head;
  const frame = $("frame");
  $("nothing").hidden = has_picture;
  put($("nothing"), newest?.error || (newest ? "There is no picture of this frame." : "No frame has come yet."));
  put($("named"), newest ? `${moment(newest.time)} \u00b7 ${newest.name || `frame ${newest.sequence}`}` : "");
  if (!has_picture) {
    blanks += 1;
    frame.hidden = true;
    return;
  }
  const blank = blanks;
  const url = URL.createObjectURL(new Blob([bytes], { type: "image/jpeg" }));
  const gone = () => URL.revokeObjectURL(url);
  const next = new Image();
  next.onload = () => {
    if (blank === blanks && state.held) state.waiting ??= [head, bytes];
    else if (blank === blanks) {
      frame.hidden = false;
      frame.src = url;
      frame.alt = newest.is_anomalous ? "The frame of now, anomalous" : "The frame of now";
    }
    setTimeout(gone, 1000);
  };
  next.onerror = gone;
  next.src = url;
}

function decide(kind, text, why) {
  $("decision").dataset.kind = kind;
  put($("decision"), text);
  put($("why"), why);
}

function verdict() {
  const { newest, camera } = state.now;
  const judged = newest && newest.is_anomalous !== undefined;
  const [kind, text, why] = !newest
    ? ["none", "waiting", camera.is_connected ? camera.source : ""]
    : newest.error
      ? ["none", "not judged", newest.error]
      : !judged
        ? ["none", "not taught", "There is no detector yet: take good parts below, then fit."]
        : newest.is_anomalous
          ? ["anomaly", "ANOMALY", ""]
          : ["ok", "OK", ""];
  const waits = Math.round((Date.now() - state.fresh) / 1000);
  if (!camera.is_connected) {
    const last = judged ? ` The last frame, of ${moment(newest.time)}, was ${newest.is_anomalous ? "an anomaly" : "OK"}.` : "";
    decide("none", "no frames", `No frames come: ${camera.source}.${last}`);
  } else {
    decide(kind, text, newest && waits >= 10 ? `No frame has come for ${waits} s. ${why}` : why ||
      (judged && finite(newest.percentile) ? `${Math.floor(newest.percentile)} % of the good parts of the fit score no higher` : ""));
  }
  $("picture").dataset.kind = camera.is_connected ? "" : "stale";
  const latency = camera.latency_ms;
  const rows = [
    ["score", judged ? score(newest.score) : "\u2013"],
    ["threshold", score(camera.threshold)],
    ["latency p50", milliseconds(latency.p50)],
    ["latency p99", milliseconds(latency.p99)],
    ["frames a second", finite(camera.rate) ? camera.rate.toFixed(1) : "\u2013"],
    ["judged", camera.judged],
    ["anomalous", camera.anomalous],
    ["dropped", camera.dropped],
    ["lost on the way", camera.lost],
    ["not readable", camera.unreadable],
  ];
  pairs($("numbers"), rows);
  if (newest?.is_anomalous && state.announced !== newest.id && Date.now() - (state.toldAt || 0) > 5000) {
    Object.assign(state, { announced: newest.id, toldAt: Date.now() });
    put($("told"), `Anomaly at ${camera.name}, score ${score(newest.score)}, ${clock(newest.time)}`);
  }
}

/** A list of names and values, in which only what changed is written. */
function pairs(list, rows) {
  while (list.children.length > rows.length) list.lastChild.remove();
  rows.forEach(([name, value], i) => {
    const row = list.children[i] || list.appendChild(el("div", {}, el("dt"), el("dd")));
    put(row.firstChild, name);
    put(row.lastChild, String(value));
  });
}

function hold(on) {
  state.held = on;
  $("hold").setAttribute("aria-pressed", String(on));
  if (on || !state.waiting) return;
  show(...state.waiting);
  state.waiting = null;
}
$("hold").addEventListener("click", () => hold(!state.held));
$("heat").addEventListener("change", () => {
  hold(false);
  watch();
});

// --------------------------------------------------------------------------------------- teach

let asking = false; // what was asked for is not done: a second click would ask for it twice

/** Whether more can be asked of the teacher; taking begins and ends at any time. */
const idle = () => !asking && !state.now?.lesson?.doing;

/** Have a button be used or not. It keeps the keyboard's place, which a disabled one would lose. */
function able(button, can) {
  if (can) button.removeAttribute("aria-disabled");
  else button.setAttribute("aria-disabled", "true");
}

/** A button that asks something of the teacher. */
const asks = (text, what, more = {}) => el("button", { class: "asks", onclick: () => idle() && what(), ...more }, text);

/** What the teacher answers; null if it was not done. Why not is said where it was asked for. */
async function ask(what) {
  const { camera } = state;
  const failed = (text) => camera === state.camera && put($("failed"), text);
  failed("");
  told = ""; // what fails again for the same reason is said again
  if (state.now?.lesson) state.now.lesson.failed = "";
  const quick = ["take", "stop"].includes(what.do);
  if (!quick) asking = true;
  teaching();
  try {
    const answer = await fetch("/api/teach", {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ camera, ...what }),
    });
    if (answer.status === 401) location.assign("/login");
    const said = await answer.json();
    if (answer.ok) return said;
    failed(said.error);
  } catch {
    failed("The connection was lost: look whether it was done.");
  } finally {
    if (!quick) asking = false;
    teaching();
  }
  $("teaching").scrollIntoView({ block: "nearest" });
  return null;
}

let told = ""; // what the teacher last said had failed

function teaching() {
  const { lesson } = state.now || {};
  $("teaching").hidden = !lesson;
  if (!lesson) return;
  const parts = `${plural(lesson.taken, "good part")} taken.`;
  const promise = !finite(lesson.promised)
    ? ` From ${lesson.needed} on a detector can be fitted.`
    : ` They can promise that ${percent(lesson.promised)} of good parts raise an alarm` +
      (lesson.interval ? ` (95 %: ${lesson.interval.map(percent).join(" to ")})` : "") +
      (lesson.promised > lesson.wanted ? `; for the ${percent(lesson.wanted)} asked for, ${Math.ceil(1 / lesson.wanted - 1 - 1e-9)} are needed.` : ", as asked for.");
  put($("lesson"), parts + promise);
  put($("doing"), lesson.doing && `${lesson.doing} \u2026`);
  if (lesson.failed !== told) {
    told = lesson.failed;
    put($("failed"), told);
  }
  $("take").setAttribute("aria-pressed", String(lesson.is_taking));
  put($("take"), lesson.is_taking ? "Stop taking" : "Take good parts");
  able($("take"), idle() || lesson.is_taking);
  able($("fit"), idle() && lesson.taken >= lesson.needed);
  // While parts are taken the last step is another one each moment.
  able($("undo"), idle() && lesson.undoable && !lesson.is_taking);
  put($("undo"), lesson.is_taking ? "Undo: not while parts are taken" : lesson.undoable ? `Undo: ${lesson.undoable}` : "Undo");
  $("recall").hidden = !lesson.bad;
  able($("recall"), idle() && state.version);
  put($("recall"), lesson.bad === 1 ? "Is the bad part found?" : `How many of the ${lesson.bad} bad parts are found?`);
  if (found !== `${state.version} ${lesson.bad}`) recalled(null);
  const list = lesson.warnings.slice(-5);
  const node = $("warnings");
  if ([...node.children].map((one) => one.textContent).join("\n") !== list.join("\n"))
    node.replaceChildren(...list.map((one) => el("li", {}, one)));
  const odd = lesson.odd.map((part) => `Leave part ${part} out`);
  if ([...$("odd").children].map((one) => one.textContent).join("\n") !== odd.join("\n"))
    $("odd").replaceChildren(...lesson.odd.map((part, i) => asks(odd[i], () => ask({ do: "leave out", part: String(part) }))));
  for (const one of document.querySelectorAll("button.asks")) able(one, idle());
}

const press = (id, what) => $(id).addEventListener("click", () => $(id).getAttribute("aria-disabled") || what(state.now.lesson));
press("take", (lesson) => ask({ do: lesson.is_taking ? "stop" : "take" }));
press("fit", () => ask({ do: "fit" }));
// What is looked at is undone, or nothing: another browser may have been quicker.
press("undo", (lesson) => ask({ do: "undo", step: String(lesson.step) }));
press("recall", async () => {
  const [{ camera, version }, { bad }] = [state, state.now.lesson];
  const said = await ask({ do: "recall" });
  if (said && camera === state.camera) recalled(said.rows, version, bad);
});

let found = ""; // the version and the number of bad parts that the table is of

/** How many bad parts each threshold finds; null clears it. */
function recalled(rows, version, bad) {
  found = rows ? `${version} ${bad}` : "";
  $("found").hidden = !rows;
  if (!rows) {
    put($("recalled"), "");
    return;
  }
  const hits = (row) => Math.round(row.recall * bad);
  const near = (row) => Math.abs(row.threshold - state.threshold) <= 1e-6 * Math.abs(state.threshold);
  const now = rows.find(near);
  if (now) put($("recalled"), `${hits(now)} of ${plural(bad, "bad part")} ${hits(now) === 1 ? "is" : "are"} found by the threshold of now, ${score(now.threshold)}.`);
  $("found").tBodies[0].replaceChildren(...rows.map((row) => el("tr", row === now ? { "aria-current": "true" } : {},
    el("td", {}, percent(row.false_alarm_rate)), el("td", {}, score(row.threshold)), el("td", {}, `${hits(row)} of ${bad}`),
    el("td", {}, row.true_recall.map(percent).join(" to ")))));
}

let listed = "";

/** Drawn anew only if there is another: a button that somebody presses must not be replaced. */
function versions(list) {
  if (listed === JSON.stringify(list)) return;
  listed = JSON.stringify(list);
  const had = $("versions").contains(document.activeElement);
  $("kept").hidden = !list.length;
  $("versions").replaceChildren(...list.map((one) => el("li", {},
    el("time", {}, moment(one.time)),
    el("span", { class: "name" }, one.name),
    el("span", { class: "note" }, one.note),
    one.is_current
      ? el("span", { class: "is" }, "judges now")
      : asks("Roll back", () => ask({ do: "roll back", version: one.name }), { "aria-label": `Roll back to ${one.name}` }))));
  if (had) $("versions").focus();
  teaching();
}

// --------------------------------------------------------------------------------------- chart

let drawing = false;

function chart() {
  if (drawing) return;
  drawing = true;
  requestAnimationFrame(() => {
    drawing = false;
    draw();
  });
}

function scale() {
  const threshold = state.threshold || 0;
  const highest = state.points.reduce((most, one) => Math.max(most, one[1] ?? 0), 0);
  return Math.max(Math.min(1.08 * highest, 4 * threshold || Infinity), 1.6 * threshold, 1e-6);
}

function draw() {
  const canvas = $("chart");
  const { clientWidth: width, clientHeight: height } = canvas;
  const ratio = window.devicePixelRatio || 1;
  if (!width) return;
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
  }
  const colours = getComputedStyle(document.documentElement);
  const colour = (name) => colours.getPropertyValue(`--${name}`);
  const pen = canvas.getContext("2d");
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, width, height);
  const size = 0.75 * parseFloat(colours.fontSize);
  pen.font = `${size}px system-ui, sans-serif`;
  const [left, right, top, bottom] = [4, width - 6, size + 4, height - 6];
  const most = scale();
  const count = Math.max(60, state.points.length);
  const x = (i) => right - ((state.points.length - 1 - i) * (right - left)) / (count - 1);
  const y = (value) => Math.max(top - 6, bottom - (value * (bottom - top)) / most);
  pen.strokeStyle = colour("line");
  pen.beginPath();
  pen.moveTo(0, bottom + 0.5);
  pen.lineTo(width, bottom + 0.5);
  pen.stroke();
  const labels = [];
  const rule = (value, name, dashes, ink, above) => {
    pen.strokeStyle = ink;
    pen.setLineDash(dashes);
    pen.beginPath();
    pen.moveTo(0, y(value));
    pen.lineTo(width, y(value));
    pen.stroke();
    pen.setLineDash([]);
    const base = above ? y(value) - 5 : y(value) + size + 2;
    labels.push(() => {
      pen.fillStyle = colour("paper");
      pen.globalAlpha = 0.85;
      pen.fillRect(0, base - size + 1, pen.measureText(name).width + 8, size + 2);
      pen.globalAlpha = 1;
      pen.fillStyle = ink;
      pen.fillText(name, 4, base);
    });
  };
  pen.strokeStyle = colour("good");
  pen.lineWidth = 1.25;
  pen.lineJoin = "round";
  pen.beginPath();
  let broken = true;
  state.points.forEach(([, value], i) => {
    if (!finite(value)) broken = true;
    else if (broken) {
      pen.moveTo(x(i), y(value));
      broken = false;
    } else pen.lineTo(x(i), y(value));
  });
  pen.stroke();
  pen.lineWidth = 1;
  const limit = state.preview;
  state.points.forEach(([, value, decided], i) => {
    const would = limit === null ? Boolean(decided) : !(value !== null && value <= limit);
    const [px, py] = [x(i), y(value ?? most)];
    pen.fillStyle = colour("bad");
    if (would) pen.fillRect(px - 2.5, py - 2.5, 5, 5);
    if (limit !== null && would !== Boolean(decided)) {
      pen.strokeStyle = colour("ink");
      pen.beginPath();
      pen.arc(px, py, 5.5, 0, 7);
      pen.stroke();
    }
  });
  if (finite(state.threshold)) {
    const apart = limit === null || limit <= state.threshold;
    rule(state.threshold, `threshold ${score(state.threshold)}`, [4, 4], colour("soft"), apart);
    if (limit !== null) rule(limit, `tried ${score(limit)}`, [], colour("ink"), !apart);
    labels.forEach((write) => write());
  }
  put($("from"), state.points.length ? clock(state.points[0][0]) : "");
  put($("to"), state.points.length ? clock(state.points[state.points.length - 1][0]) : "");
}

new ResizeObserver(chart).observe($("chart"));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", chart);

// ------------------------------------------------------------------------------------- preview

const quoted = (path) => (/^[\w@%+=:,./-]+$/.test(path) ? path : `'${path.replaceAll("'", "'\\''")}'`);

/** How many of the last frames were and would be anomalous, and what makes a threshold stay. */
function preview() {
  const slider = $("preview");
  $("back").hidden = $("keep").hidden = state.preview === null;
  slider.disabled = !finite(state.threshold);
  if (slider.disabled) {
    put($("would"), "");
    return;
  }
  if (document.activeElement !== slider || state.preview === null) {
    slider.min = 0;
    slider.max = scale();
    slider.value = state.preview ?? state.threshold;
    slider.step = scale() / 1000;
  }
  const all = state.points.length;
  const were = state.points.filter((one) => one[2]).length;
  const limit = state.preview;
  for (const one of state.anomalies) {
    const card = $("anomalies").querySelector(`[data-id="${CSS.escape(one.id)}"]`);
    card?.classList.toggle("spared", limit !== null && finite(one.score) && one.score <= limit);
  }
  if (limit === null) {
    put($("would"), all ? `${were} of the last ${plural(all, "frame")} anomalous. Drag, or use the arrow keys; nothing is changed by it.` : "No frame was judged yet.");
    slider.setAttribute("aria-valuetext", `${score(state.threshold)}, the threshold of now`);
    return;
  }
  const will = state.points.filter((one) => !(one[1] !== null && one[1] <= limit)).length;
  const change = will - were;
  put($("would"), `At ${score(limit)}, ${will} of the last ${plural(all, "frame")} would have been anomalous; ${were} were` +
    (change ? `: ${Math.abs(change)} ${change > 0 ? "more" : "fewer"}. Rings mark what would change.` : "."));
  slider.setAttribute("aria-valuetext", `${score(limit)}, ${will} anomalous`);
  keep(limit);
}

function keep(limit) {
  const { camera, lesson } = state.now;
  const count = state.goodCount;
  const [below, nearest] = state.good.findLast(([, value]) => value <= limit) || [0, null];
  // With an embedding, a threshold of one's own is refused.
  const exactly = lesson ? [] : ["To judge by exactly this one: ", el("code", {}, `padim-edge watch \u2026 --threshold ${limit.toPrecision(5)}`), "."];
  if (!below) {
    $("keep").replaceChildren("Every good part of the fit scores higher than this: nearly all good parts would raise an alarm. ", ...exactly);
    return;
  }
  // The rate whose rank among N good scores is this one (split conformal rule), rounded up by less
  // than a rank.
  const alpha = 1 - below / (count + 1);
  const digits = 10 ** Math.max(3 - Math.floor(Math.log10(alpha)), Math.ceil(Math.log10(count + 1)) + 1);
  const rate = Math.ceil(alpha * digits - 1e-9) / digits;
  const calibrate = `padim-edge calibrate ${quoted(camera.model)} --false-alarm-rate ${rate}`;
  const [command, then] = camera.threshold_file ? [`${calibrate} --in-place`, " (it is taken while this runs). "]
    : lesson ? [calibrate, ", and watch the file that it writes. Here each fit sets its own. "]
      : [`${calibrate} --in-place`, ", and start without --threshold, which holds whatever the file says. "];
  $("keep").replaceChildren(
    "Nothing is changed yet. To keep the nearest that a false-alarm rate stands for, ", `${score(nearest)} with ${percent(alpha)} of good parts above it: `,
    el("code", {}, command), then,
    ...(below === count ? [`All ${count} good scores lie below: only more good photos (--good) can promise less. `] : []), ...exactly);
}

$("preview").addEventListener("input", () => {
  state.preview = Number($("preview").value);
  preview();
  chart();
});
$("back").addEventListener("click", () => {
  state.preview = null;
  $("preview").focus();
  preview();
  chart();
});

// ----------------------------------------------------------------------------------- anomalies

const picture = (id, size) => `/api/picture?${new URLSearchParams({ camera: state.camera, event: id, size })}`;

const FEW = 12;
let looked = null; // the anomaly in the viewer; it stays there when it is none of the last ones

const GONE = "no longer among the last 30";
const among = (id) => state.anomalies.find((one) => one.id === id);

/** New ones wait while somebody points at the list: nobody teaches the card that moved there. */
function anomalies(list, now = false) {
  const node = $("anomalies");
  const newest = node.firstElementChild?.dataset.id;
  const at = list.findIndex((one) => one.id === newest);
  const waiting = at < 0 ? list.length : at;
  state.anomalies = list;
  marks();
  const cards = new Map([...node.children].map((one) => [one.dataset.id, one]));
  const busy = node.children.length && ($("list").matches(":hover") || $("list").contains(document.activeElement) || $("viewer").open);
  $("none").hidden = list.length > 0;
  $("newer").classList.toggle("away", !(busy && !now && waiting));
  put($("newer"), `Show ${plural(waiting, "newer anomaly", "newer anomalies")}`);
  if (busy && !now && waiting) return;
  const few = state.all ? list : list.slice(0, FEW);
  $("older").hidden = few.length === list.length;
  put($("older"), `Show ${list.length - few.length} older`);
  const wanted = few.map((one) => cards.get(one.id) || card(one));
  const kept = new Set(wanted);
  [...node.children].forEach((one) => kept.has(one) || one.remove());
  wanted.forEach((one, i) => node.children[i] === one || node.insertBefore(one, node.children[i] || null));
  marks();
}

function card(one) {
  const name = one.name || `frame ${one.sequence}`;
  const from = el("p", { class: "from", title: name }, el("bdi", {}, name));
  return el("li", { "data-id": one.id },
    el("button", { class: "look", "aria-label": `Look at the anomaly of ${moment(one.time)}`, onclick: () => look(among(one.id) || one) }),
    el("p", { class: "what" }, el("span", {}, moment(one.time)), el("b", {}, score(one.score))),
    from, el("p", { class: "chip" }), el("div", { class: "buttons" }));
}

const SAID = { good: ["This was good", "learnt as good"], bad: ["This was bad", "kept as bad"] };

/** The picture of an anomaly, on its card or in the viewer, or in words why there is none now. */
function pictured(node, one, attributes) {
  const wanted = `${one.id} ${one.lacks}`;
  if (node.dataset.kind === wanted) return;
  node.dataset.kind = wanted;
  const lack = (text) => el("p", { class: "lack" }, text);
  const failed = ({ target }) => {
    if (!target.isConnected) return;
    const here = among(one.id);
    if (here) node.dataset.kind = ""; // the next part has it asked for again
    target.replaceWith(lack(here ? "the picture did not come" : `${GONE}: the picture is not kept`));
  };
  node.replaceChildren(one.lacks ? lack(one.lacks) : el("img", { ...attributes, onerror: failed }));
}

/** What was said of an anomaly, and what can be; on its card, and in the viewer. */
function mark(node, one) {
  const [place, size, loading] = node === $("viewer") ? [$("large"), "large"] : [node.querySelector(".look"), "small", "lazy"];
  pictured(place, one, { src: picture(one.id, size), alt: `Anomaly, score ${score(one.score)}, ${moment(one.time)}`, loading });
  put(node.querySelector(".chip"), one.said ? SAID[one.said][1] : "");
  const buttons = node.querySelector(".buttons");
  const wanted = !state.now?.lesson ? "" : `${one.said ? "back" : "say"} ${one.id}`;
  if (buttons.dataset.kind === wanted) return;
  const had = buttons.contains(document.activeElement);
  buttons.dataset.kind = wanted;
  const offered = !wanted ? [] : one.said ? [["take back", "Take back"]] : Object.entries(SAID).map(([what, [text]]) => [what, text]);
  buttons.replaceChildren(...offered.map(([what, text]) => asks(text, () => teach(one, what))));
  if (had) node.querySelector(".look, #close").focus();
}

async function teach(one, what) {
  put($("refused"), "");
  if (!await ask({ do: what, event: one.id })) {
    put($("refused"), $("failed").textContent);
    return;
  }
  const said = what === "take back" ? null : what;
  put($("told"), `The anomaly of ${moment(one.time)} is ${said ? SAID[said][1] : "taken back"}.`);
  const here = among(one.id);
  if (here) here.said = said; // the next part says the same
  marks({ ...one, said }); // of one that is gone no part says it
}

/** Of each anomaly that is shown what is known now; ``gone`` is one that may not be listed. */
function marks(gone = null) {
  const now = (id) => among(id) || (gone?.id === id ? gone : null);
  for (const node of $("anomalies").children) {
    const one = now(node.dataset.id);
    if (one) mark(node, one);
  }
  if (!looked) return;
  looked = now(looked.id) || looked;
  mark($("viewer"), looked);
  const where = `${moment(looked.time)} \u00b7 score ${score(looked.score)}, threshold ${score(looked.threshold)} \u00b7 ${looked.name || `frame ${looked.sequence}`}`;
  put($("viewed"), among(looked.id) ? where : `${where} \u00b7 ${GONE}`);
  able($("previous"), beside(-1));
  able($("next"), beside(1));
}

$("newer").addEventListener("click", () => {
  anomalies(state.anomalies, true);
  $("anomalies").querySelector(".look")?.focus();
});
$("older").addEventListener("click", () => {
  state.all = true;
  const first = $("anomalies").children.length;
  anomalies(state.anomalies, true);
  $("anomalies").children[first]?.querySelector(".look").focus();
});
$("list").addEventListener("mouseleave", () => anomalies(state.anomalies));
$("list").addEventListener("focusout", () => setTimeout(() => anomalies(state.anomalies)));

// -------------------------------------------------------------------------------------- viewer

function look(one) {
  looked = one;
  put($("refused"), "");
  marks();
  if (!$("viewer").open) $("viewer").showModal();
}

/** The next newer anomaly (-1) or older one (1), also of one that is gone: ids are in order. */
const beside = (by) => by < 0 ? state.anomalies.findLast((one) => one.id > looked.id) : state.anomalies.find((one) => one.id < looked.id);

function step(by) {
  const to = beside(by);
  if (to) look(to);
}

$("previous").addEventListener("click", () => step(-1));
$("next").addEventListener("click", () => step(1));
$("close").addEventListener("click", () => $("viewer").close());
$("viewer").addEventListener("click", (event) => event.target === $("viewer") && $("viewer").close());
$("viewer").addEventListener("keydown", (event) => {
  if (event.key === "ArrowLeft") step(-1);
  if (event.key === "ArrowRight") step(1);
});
$("viewer").addEventListener("close", () => {
  anomalies(state.anomalies); // those that waited
  const { id } = looked;
  looked = null;
  ($("anomalies").querySelector(`[data-id="${CSS.escape(id)}"] .look`) || $("anomalies").querySelector(".look"))?.focus();
});

// -------------------------------------------------------------------------------------- states

function states() {
  const { camera, sinks } = state.now;
  const rest = (sink) => Object.entries(sink).filter(([name, value]) => name !== "address" && value !== null && value !== "")
    .map(([name, value]) => `${name.replaceAll("_", " ")} ${value === true ? "yes" : value === false ? "no" : value}`).join(", ");
  pairs($("states"), [
    [`source, policy ${camera.policy}`, camera.address],
    ["it says", camera.source],
    ["model", camera.model || "none yet"],
    ...sinks.map((sink) => [`sink ${sink.address ?? ""}`, rest(sink)]),
  ]);
}

function messages(list) {
  const here = list.filter((one) => !one.camera || one.camera === state.camera);
  $("messages").replaceChildren(...(here.length ? here.map((one) => el("li", {}, el("time", {}, moment(one.time)), one.message ?? one.kind))
    : [el("li", { class: "hint" }, "Nothing yet.")]));
}

/** What drifts now, until it has ended. */
function drifts(list) {
  $("drift").hidden = !list.length;
  if ([...$("drift").children].map((one) => one.textContent).join("\n") !== list.join("\n"))
    $("drift").replaceChildren(...list.map((one) => el("p", {}, one)));
}

// --------------------------------------------------------------------------------------- begin

document.addEventListener("visibilitychange", () => {
  if (document.hidden) running?.end();
  else watch();
});
watch();
