// Judge photos in Node.js: one JSON line each.
//
//     npm ci
//     node judge.mjs padim.onnx photo.png ...
//
// padim.onnx is fitted with --frame-input. Exit code 3 if a photo is anomalous, 1 if one could not
// be judged, as `padim-edge run --fail-on-anomaly`.

import { readFile } from "node:fs/promises";

import { Detector } from "./detector.mjs";

const [model, ...photos] = process.argv.slice(2);
if (!photos.length) {
  console.error("usage: node judge.mjs padim.onnx PHOTO...");
  process.exit(2);
}

let ort, sharp;
try {
  ort = await import("onnxruntime-node");
  sharp = (await import("sharp")).default;
} catch (error) {
  console.error(`error: ${error.message.split("\n", 1)[0]}: run npm ci beside this file`);
  process.exit(1);
}

let anomalous = 0;
let unreadable = 0;
try {
  const detector = await Detector.open(ort, await readFile(model));
  for (const path of photos) {
    try {
      // Turned as the camera held it, three channels, eight bits.
      const image = sharp(path).rotate().toColourspace("srgb").removeAlpha().raw();
      const { data, info } = await image.toBuffer({ resolveWithObject: true });
      const { map, ...result } = await detector.judge(data, info.width, info.height);
      anomalous += result.isAnomalous;
      console.log(JSON.stringify({ path, ...result }));
    } catch (error) {
      unreadable += 1;
      console.log(JSON.stringify({ path, error: error.message }));
    }
  }
} catch (error) {
  console.error(`error: ${model}: ${error.message}`);
  process.exit(1);
}
process.exitCode = anomalous ? 3 : unreadable ? 1 : 0;
