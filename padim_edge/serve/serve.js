"use strict";
const at = (id) => document.getElementById(id);
let models = [];
let asked = 0;

function describe() {
  const one = models[at("model").selectedIndex];
  at("about").textContent = one && one.ready
    ? `${one.backbone}, threshold ${one.threshold.toPrecision(4)}, ${one.engine}`
    : "is being loaded";
}

function say(kind, text) {
  at("verdict").className = kind;
  at("verdict").textContent = text;
}

async function judge(file) {
  const mine = ++asked; // of photos one after another the last is shown, whoever answers when
  say("", "...");
  at("picture").hidden = at("answer").hidden = true;
  try {
    const name = encodeURIComponent(at("model").value);
    const answer = await fetch(`/v1/models/${name}/judge?heat_map=png`, { method: "POST", body: file });
    const said = await answer.json();
    if (mine !== asked) return;
    if (!answer.ok) return say("error", said.error);
    say(said.decision, said.decision === "ok" ? "OK" : "ANOMALY");
    if (said.heat_map) {
      at("picture").src = `data:image/png;base64,${said.heat_map}`;
      at("picture").alt = `${file.name} with its heat map`;
      at("picture").hidden = false;
    }
    delete said.heat_map;
    at("answer").textContent = JSON.stringify(said, null, 2);
    at("answer").hidden = false;
  } catch (error) {
    if (mine === asked) say("error", `The server does not answer: ${error.message}`);
  }
}

at("model").addEventListener("change", describe);
at("file").addEventListener("change", () => at("file").files[0] && judge(at("file").files[0]));
for (const kind of ["dragover", "dragleave", "drop"]) {
  at("drop").addEventListener(kind, (event) => {
    event.preventDefault();
    at("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop" && event.dataTransfer.files[0]) judge(event.dataTransfer.files[0]);
  });
}

async function look() {
  let loading = true;
  try {
    const answer = await fetch("/v1/models");
    const said = await answer.json();
    if (!answer.ok) throw new Error(said.error);
    const chosen = at("model").value;
    models = said.models;
    at("model").replaceChildren(...models.map((one) => new Option(one.name)));
    if (models.some((one) => one.name === chosen)) at("model").value = chosen;
    describe();
    loading = !models.every((one) => one.ready);
  } catch (error) {
    at("about").textContent = `The server does not answer: ${error.message}`;
  }
  if (loading) setTimeout(look, 1000);
}
look();
