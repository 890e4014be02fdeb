// Serve the page on this machine alone: node page-server.mjs [PORT], then open the address printed.
// Any server of files will do: no frame leaves the browser.

import { readFile } from "node:fs/promises";
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

const server = createServer(async (request, response) => {
  const file = FILES.get(new URL(request.url, "http://localhost").pathname);
  if (!file) return response.writeHead(404).end("not here\n");
  response.writeHead(200, {
    "Content-Type": TYPES[extname(file)],
    // What WebAssembly needs for threads of its own.
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
  });
  return response.end(await readFile(new URL(file, import.meta.url)));
});
server.listen(Number(process.argv[2] ?? 0), "127.0.0.1", () => {
  console.log(`http://127.0.0.1:${server.address().port}/`);
});
