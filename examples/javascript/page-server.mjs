// Serve the page on this machine alone: node page-server.mjs [PORT], then open the address printed.
// Any server of files will do: no frame leaves the browser.

import { access, readFile } from "node:fs/promises";
import { createServer } from "node:http";
import { extname } from "node:path";

const FILES = new Map(
  ["index.html", "page.mjs", "detector.mjs"].map((name) => [`/${name}`, `./${name}`]),
).set("/", "./index.html");
const RUNTIME = ["ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"];
for (const name of RUNTIME) FILES.set(`/ort/${name}`, `./node_modules/onnxruntime-web/dist/${name}`);
const TYPES = {
  ".html": "text/html; charset=utf-8",
  ".mjs": "text/javascript; charset=utf-8",
  ".wasm": "application/wasm",
};

function fail(text) {
  console.error(`error: ${text}`);
  process.exit(1);
}

const port = Number(process.argv[2] ?? 0);
if (!(Number.isInteger(port) && port >= 0 && port < 65536)) {
  fail(`${process.argv[2]} is no port: 0 to 65535, 0 for a free one`);
}
for (const file of FILES.values()) {
  await access(new URL(file, import.meta.url)).catch(() => {
    fail(`${file} is not here: run npm ci in ${import.meta.dirname ?? "this folder"}`);
  });
}

const server = createServer(async (request, response) => {
  // Not by URL, which throws at some of what can be asked for, such as "//".
  const file = FILES.get(request.url.split("?", 1)[0]);
  if (!file) return response.writeHead(404).end("not here\n");
  const content = await readFile(new URL(file, import.meta.url)).catch(() => null);
  if (!content) return response.writeHead(404).end("not here any more\n");
  response.writeHead(200, {
    "Content-Type": TYPES[extname(file)],
    // What WebAssembly needs for threads of its own.
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
  });
  return response.end(content);
});
server.on("error", (error) => fail(error.message));
server.listen(port, "127.0.0.1", () => {
  console.log(`http://127.0.0.1:${server.address().port}/`);
});
