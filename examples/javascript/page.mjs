// The page: a model and photos from the disk, judged here.

import * as ort from "./ort/ort.wasm.min.mjs";
import { Detector } from "./detector.mjs";

ort.env.wasm.wasmPaths = new URL("./ort/", import.meta.url).href;

const element = (id) => document.getElementById(id);
const canvas = element("picture");
let detector = null;
let shown = null; // the newest photo and what was said of it
let turn = Promise.resolve(); // one thing after another, in the order in which it was asked for

function say(text, verdict = "") {
  element("verdict").textContent = text;
  element("verdict").dataset.verdict = verdict;
  element("details").textContent = "";
}

async function openModel(file) {
  say(`opening ${file.name} ...`);
  const opened = await Detector.open(ort, new Uint8Array(await file.arrayBuffer()));
  const { bitDepth } = opened.preprocess;
  if (bitDepth < 16) {
    await opened.release();
    throw new Error(
      `it is for grey photos of ${bitDepth} bits in files of 16, of which a browser gives the upper 8: ` +
        "judge them with judge.mjs",
    );
  }
  const before = detector;
  detector = opened;
  await before?.release();
  say(`${file.name}: threshold ${detector.threshold.toFixed(3)}. Now a photo.`);
}

async function judge(file) {
  if (!detector) throw new Error("choose a model first: a padim.onnx");
  // As padim-edge, which applies no colour profiles.
  const bitmap = await createImageBitmap(file, { colorSpaceConversion: "none" });
  const { width, height } = bitmap;
  const context = new OffscreenCanvas(width, height).getContext("2d");
  context.drawImage(bitmap, 0, 0);
  const rgba = context.getImageData(0, 0, width, height).data;
  const rgb = new Uint8Array(width * height * 3);
  for (let from = 0, to = 0; from < rgba.length; from += 4) {
    rgb[to++] = rgba[from];
    rgb[to++] = rgba[from + 1];
    rgb[to++] = rgba[from + 2];
    // A canvas holds colours times alpha: the file's own are lost.
    if (rgba[from + 3] < 255) {
      throw new Error("has transparent pixels, whose colours a browser does not give: save it without alpha");
    }
  }
  const begun = performance.now();
  const result = await detector.judge(rgb, width, height);
  const took = performance.now() - begun;
  shown = { bitmap, result, seen: detector.preprocess.seen(width, height) };
  draw();
  say(result.isAnomalous ? "ANOMALY" : "OK", result.isAnomalous ? "anomaly" : "ok");
  element("verdict").dataset.score = result.score;
  const percentile = result.percentile === null ? "" : `, above ${result.percentile.toFixed(0)} % of good ones`;
  element("details").textContent =
    `${file.name}: score ${result.score.toFixed(3)}, threshold ${result.threshold.toFixed(3)}` +
    `${percentile}; ${took.toFixed(0)} ms`;
}

// The photo, and over it where the score map passes half of the threshold: yellow to red at 1.5
// times the threshold. The map covers what the graph sees, which is less where it crops.
function draw() {
  if (!shown) return;
  const { bitmap, result, seen } = shown;
  canvas.width = bitmap.width;
  canvas.height = bitmap.height;
  const context = canvas.getContext("2d");
  context.drawImage(bitmap, 0, 0);
  if (!element("heat").checked) return;
  const { data, width, height } = result.map;
  const heat = new ImageData(width, height);
  data.forEach((score, index) => {
    const share = Math.min(Math.max(score / result.threshold - 0.5, 0), 1);
    heat.data.set([255, 220 * (1 - share), 0, 190 * share], 4 * index);
  });
  const small = new OffscreenCanvas(width, height);
  small.getContext("2d").putImageData(heat, 0, 0);
  context.drawImage(small, seen.left, seen.top, seen.right - seen.left, seen.bottom - seen.top);
}

function take(file) {
  const step = file.name.endsWith(".onnx") ? openModel : judge;
  turn = turn.then(() => step(file)).catch((error) => say(`${file.name}: ${error.message}`, "error"));
}

for (const id of ["model", "photo"]) {
  element(id).addEventListener("change", (event) => {
    [...event.target.files].forEach(take);
    event.target.value = ""; // so that the same file can be chosen again
  });
}
element("heat").addEventListener("change", draw);
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    element("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop") [...event.dataTransfer.files].sort(modelFirst).forEach(take);
  });
}

function modelFirst(one, other) {
  return other.name.endsWith(".onnx") - one.name.endsWith(".onnx");
}
