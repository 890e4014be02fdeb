"use strict";

// The page of a service. All that comes from outside (names of models and files, messages) becomes
// text by textContent, never markup.

const $ = (id) => document.getElementById(id);
const el = (tag, attributes = {}, ...children) => {
  const node = Object.assign(document.createElement(tag), attributes);
  node.append(...children);
  return node;
};

const FEW = 4; // samples of a kind that are shown at first
let models = [];
let shown = null; // what was judged last: {name, photo()}, which another model may judge
let asked = 0;

/** Four significant digits or so. */
function score(value) {
  if (value === null) return "no number";
  return value.toFixed(value >= 1000 ? 0 : value >= 100 ? 1 : value >= 1 ? 2 : 4);
}

async function get(path, options) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch (error) {
    throw new Error(`The server does not answer: ${error.message}`);
  }
  if (answer.ok) return answer;
  throw new Error((await answer.json().catch(() => ({}))).error || `The server answers ${answer.status}`);
}

// -------------------------------------------------------------------------------------- judging

/** Judge a photo, and show what is said of it. Of several the last asked for is shown. */
async function judge(wanted, sample = null) {
  const mine = ++asked;
  const { name } = wanted;
  shown = wanted;
  for (const one of document.querySelectorAll(".sample")) one.setAttribute("aria-pressed", one === sample);
  document.querySelector(".now").setAttribute("aria-busy", "true");
  $("named").textContent = `${name} is being judged`;
  let photo = null, said = null, took = null, failed = null;
  try {
    photo = await wanted.photo();
    const path = `/v1/models/${encodeURIComponent($("model").value)}/judge?heat_map=jpeg`;
    const answer = await get(path, { method: "POST", body: photo });
    took = /judge;dur=([\d.]+)/.exec(answer.headers.get("server-timing"))?.[1];
    said = await answer.json();
    if (!known(said)) await list().catch(() => null); // its file was replaced since
  } catch (error) {
    failed = error.message;
  }
  if (mine !== asked) return;
  document.querySelector(".now").removeAttribute("aria-busy");
  $("named").textContent = said ? `${name}, ${said.size.width} \u00d7 ${said.size.height}` : name;
  if (sample && said) sample.dataset.decision = said.decision;
  picture(name, photo, said);
  if (said) tell(said, took);
  else refuse(failed);
}

function picture(name, photo, said) {
  URL.revokeObjectURL($("photo").src);
  put($("photo"), photo && URL.createObjectURL(photo), name);
  put($("heat-map"), said?.heat_map && `data:image/jpeg;base64,${said.heat_map}`, `${name} with its heat map`);
  $("picture").classList.remove("empty");
  $("nothing").hidden = true;
  heat();
}

function put(image, source, alt) {
  image.hidden = !source;
  image.alt = alt;
  if (source) image.src = source;
  else image.removeAttribute("src");
}

/** The heat map has the photo below it: hiding it shows that. */
function heat() {
  $("heat-map").hidden = !$("heat").checked || !$("heat-map").hasAttribute("src");
}

/** The model that has judged, if it is listed as it was then. */
const known = (said) => models.find((one) => one.name === said.model && one.threshold === said.threshold);

function tell(said, took) {
  const { heat_map: _, ...rest } = said;
  const { decision, threshold, size } = said;
  const good = known(said)?.good_images;
  const ratio = said.score / threshold;
  const area = said.regions.reduce((sum, one) => sum + one.area, 0) / (size.width * size.height);
  verdict(decision, decision === "ok" ? "OK" : "ANOMALY");
  $("why").textContent = `${Math.floor(10 * said.percentile) / 10} % of the ${good === undefined ? "" : `${good} `}good photos of the fit score no higher.`;
  numbers([
    ["score", score(said.score)],
    ["threshold", score(threshold)],
    ["times the threshold", said.score === null ? "\u2013" : ratio.toFixed(2)],
    ["judged in", took ? `${took < 10 ? took : Math.round(took)} ms` : "\u2013"],
    ["regions", said.regions.length],
    ["their area", `${Number((100 * area).toPrecision(2))} %`],
  ]);
  $("scale").hidden = said.score === null;
  $("scale").setAttribute("aria-label", `${ratio.toFixed(2)} times the threshold`);
  $("reached").style.width = `${(100 * ratio) / Math.max(2, ratio)}%`;
  $("limit").style.left = `${100 / Math.max(2, ratio)}%`;
  // Positions in one line each.
  $("answer").textContent = JSON.stringify(rest, null, 2).replace(/\[[-\d.,\s]+\]/g, (one) => one.replace(/\s+/g, " "));
  $("answer").hidden = false;
}

function refuse(message) {
  verdict("error", message);
  $("why").textContent = "";
  numbers([]);
  $("scale").hidden = $("answer").hidden = true;
}

function verdict(kind, text) {
  $("verdict").className = kind;
  $("verdict").textContent = text;
}

function numbers(rows) {
  const row = ([name, value]) => el("div", {}, el("dt", { textContent: name }), el("dd", { textContent: value }));
  $("numbers").replaceChildren(...rows.map(row));
}

// ---------------------------------------------------------------------------------- own photos

/** The first file that was dropped, pasted or chosen. */
function take(files) {
  if (!files.length) return;
  const file = files[0];
  judge({ name: file.name, photo: async () => file });
}

for (const id of ["file", "camera"]) {
  $(id).addEventListener("change", () => {
    take([...$(id).files]);
    $(id).value = ""; // so that the same one can be chosen again
  });
}
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    document.body.classList.toggle("over", kind === "dragover");
    if (kind === "drop") take([...event.dataTransfer.files]);
  });
}
document.addEventListener("paste", (event) => take([...event.clipboardData.files]));
$("heat").addEventListener("change", heat);

// ------------------------------------------------------------------------------------- samples

function thumbnail({ number, kind, name }) {
  const path = `/v1/samples/${number}`;
  const full = kind ? `${kind}/${name}` : name;
  const image = el("img", { src: `${path}/thumbnail`, alt: full, loading: "lazy", decoding: "async" });
  const button = el("button", { type: "button", className: "sample", title: full }, image);
  button.setAttribute("aria-pressed", "false");
  const photo = async () => (await get(path)).blob();
  button.addEventListener("click", () => judge({ name: full, photo }, button));
  return el("li", {}, button);
}

/** Of each kind a few, or all. */
async function samples() {
  const listed = (await (await get("/v1/samples")).json()).samples;
  if (!listed.length) return;
  const kinds = new Map();
  for (const one of listed) kinds.set(one.kind, [...(kinds.get(one.kind) ?? []), one]);
  const rest = [];
  for (const [kind, ones] of kinds) {
    const list = el("ul", {}, ...ones.map(thumbnail));
    rest.push(...[...list.children].slice(FEW));
    const title = `${kind.replaceAll("_", " ") || "photos"} \u00b7 ${ones.length}`;
    $("samples").append(el("div", {}, el("h3", { textContent: title }), list));
  }
  for (const one of rest) one.hidden = true;
  $("all").textContent = `Show all ${listed.length}`;
  $("all").hidden = !rest.length;
  $("all").addEventListener("click", () => {
    for (const one of rest) one.hidden = false;
    $("samples").classList.add("all");
    $("all").hidden = true;
    rest[0].firstChild.focus();
  });
  $("samples").hidden = $("samples-title").hidden = false;
  $("nothing").textContent = "Click a sample, drop a photo here, or paste one.";
}

// -------------------------------------------------------------------------------------- models

function describe() {
  const one = models[$("model").selectedIndex];
  if (!one) return;
  const { ready, good_images: good, false_alarm_rate: rate, input } = one;
  $("about").textContent = ready
    ? `fitted on ${good} good photos alone; threshold for ${Number((100 * rate).toPrecision(3))} % false alarms`
    : "is being loaded";
  $("runs").textContent = ready ? `${one.backbone}, ${input.width} \u00d7 ${input.height}, ${one.engine}` : "";
  $("command").textContent = `curl --data-binary @photo.jpg ${location.origin}/v1/models/${encodeURIComponent(one.name)}/judge`;
}

$("model").addEventListener("change", () => {
  describe();
  for (const one of document.querySelectorAll(".sample")) delete one.dataset.decision;
  if (shown) judge(shown, document.querySelector('.sample[aria-pressed="true"]'));
});

async function list() {
  ({ models } = await (await get("/v1/models")).json());
  const chosen = $("model").value;
  $("model").replaceChildren(...models.map((one) => new Option(one.name)));
  if (models.some((one) => one.name === chosen)) $("model").value = chosen;
  describe();
}

async function look() {
  let loading = true;
  try {
    await list();
    loading = !models.every((one) => one.ready);
  } catch (error) {
    $("about").textContent = error.message;
  }
  if (loading) setTimeout(look, 1000);
}

look();
samples().catch((error) => refuse(error.message));
