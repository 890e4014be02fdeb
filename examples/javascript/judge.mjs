// Judge photos in Node.js: one JSON line each.
//
//     npm ci
//     node judge.mjs padim.onnx photo.png ...
//
// padim.onnx is fitted with --frame-input. A grey PNG of 16 bits is scaled by the --bit-depth that it
// was fitted with. Exit code 3 if a photo is anomalous, 1 if one could not
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

// As padim-edge decodes it: turned as the camera held it, eight bits, no alpha, no colour profile.
async function read(path, bitDepth) {
  const image = sharp(path, { ignoreIcc: true }).rotate().removeAlpha();
  const { depth, space, channels } = await image.metadata();
  if (!["uchar", "ushort"].includes(depth) || !["b-w", "grey16", "srgb", "rgb16"].includes(space)) {
    throw new Error(`has ${space} pixels of ${depth}; grey and RGB of 8 and 16 bits are allowed: convert it`);
  }
  const isWide = depth === "ushort" && channels === 1;
  if (isWide) image.toColourspace("grey16").raw({ depth });
  else image.toColourspace("srgb").raw();
  const { data, info } = await image.toBuffer({ resolveWithObject: true });
  return { rgb: isWide ? narrowed(data, bitDepth) : data, width: info.width, height: info.height };
}

// Grey values of 16 bits, as bytes, to RGB of 8; white is what the camera's bits hold.
function narrowed(bytes, bitDepth) {
  const white = 2 ** bitDepth - 1;
  const values = new Uint16Array(new Uint8Array(bytes).buffer); // of a copy: aligned
  const rgb = new Uint8Array(3 * values.length);
  values.forEach((value, index) => {
    if (value > white) {
      throw new Error(
        `has values of ${value}, and ${bitDepth} bits hold up to ${white}: fit with the --bit-depth ` +
          "that the camera has",
      );
    }
    rgb.fill((value * 255 + (white - 1) / 2) / white, 3 * index, 3 * index + 3);
  });
  return rgb;
}

let anomalous = 0;
let unreadable = 0;
try {
  const detector = await Detector.open(ort, await readFile(model));
  for (const path of photos) {
    try {
      const { rgb, width, height } = await read(path, detector.preprocess.bitDepth);
      const { map, ...result } = await detector.judge(rgb, width, height);
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
