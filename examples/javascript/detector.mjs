// A detector from a padim.onnx that was fitted with --frame-input: its graph takes the frame as it
// is. `ort` is onnxruntime-node or onnxruntime-web; nothing here knows which.

export class Detector {
  // ort: the runtime; bytes: Uint8Array of the file.
  static async open(ort, bytes) {
    const metadata = readMetadata(bytes);
    const value = (key) => valueOf(metadata, key);
    const format = value("format") ?? 1; // without: no detector, see below
    // 2: a region of interest, which lies in the graph.
    if (format !== 1 && format !== 2) {
      throw new Error(
        `its format is version ${format}, this program reads 1 and 2: take the example of the ` +
          "padim-edge that made the file",
      );
    }
    const threshold = value("threshold");
    if (threshold === null) throw new Error("this file is no detector: fit one with padim-edge fit");
    const goodScores = value("good_scores") ?? [];
    const preprocess = new Preprocess(value("preprocess"));
    const session = await ort.InferenceSession.create(bytes);
    if (!session.inputNames.includes("frame")) {
      await session.release();
      throw new Error("this file takes prepared images: fit it with padim-edge fit --frame-input");
    }
    return new Detector({ ort, session, threshold, goodScores, preprocess });
  }

  constructor(parts) {
    Object.assign(this, parts);
  }

  // rgb: Uint8Array of height * width * 3 values, row by row.
  async judge(rgb, width, height) {
    const frame = new this.ort.Tensor("uint8", rgb, [1, height, width, 3]);
    const { score, score_map: map } = await this.session.run({ frame });
    // ONNX Runtime's largest of NaN and numbers is a number.
    const value = map.data.every(Number.isFinite) ? score.data[0] : NaN;
    return {
      score: value,
      threshold: this.threshold,
      // A score that is not a number is no proof of a good part.
      isAnomalous: !(value <= this.threshold),
      percentile: percentile(this.goodScores, value),
      map: { data: map.data, height: map.dims[1], width: map.dims[2] },
    };
  }

  // Free what the runtime holds, which in a browser nobody else does. The last call.
  async release() {
    await this.session.release();
  }
}

// What the graph does with a frame: for those who want to know beforehand.
export class Preprocess {
  constructor(said) {
    const isSide = (value) => Number.isInteger(value) && value > 0;
    const isSize = (value) => Array.isArray(value) && value.length === 2 && value.every(isSide);
    const { size, resize, bit_depth: depth } = said ?? {};
    const bitDepth = depth ?? 16;
    if (!isSize(size) || !(isSize(resize) || isSide(resize)) || !isSide(bitDepth) || bitDepth > 16) {
      throw damaged("size, resize or bit_depth of preprocess");
    }
    // bitDepth: of grey values of 16 bits, as the camera fills them.
    Object.assign(this, { size, resize, bitDepth });
  }

  // The part of a frame that the graph sees, and its score map covers, in pixels of the frame.
  seen(width, height) {
    const [rows, columns] = this.#resized(width, height);
    const [seenRows, seenColumns] = this.size;
    const top = halved(rows - seenRows);
    const left = halved(columns - seenColumns);
    const across = width / columns;
    const down = height / rows;
    return {
      left: left * across,
      top: top * down,
      right: (left + seenColumns) * across,
      bottom: (top + seenRows) * down,
    };
  }

  #resized(width, height) {
    if (Array.isArray(this.resize)) return this.resize;
    const longer = Math.floor((this.resize * Math.max(width, height)) / Math.min(width, height));
    return height <= width ? [this.resize, longer] : [longer, this.resize];
  }
}

// Half of it, halves to even, as torchvision's crop is rounded.
function halved(count) {
  const half = Math.floor(count / 2);
  return count % 2 ? half + (half % 2) : half;
}

const damaged = (what) => new Error(`its metadata is damaged (${what}): fit it again`);

// The value of a key in a file's metadata; null if it has none.
function valueOf(metadata, key) {
  try {
    return JSON.parse(metadata.get(`padim_edge.${key}`) ?? "null");
  } catch {
    throw damaged(`${key} is no JSON`);
  }
}

// Per cent of the good images of the fit that score no higher.
function percentile(goodScores, score) {
  if (!goodScores.length) return null;
  return (100 * goodScores.filter((one) => one <= score).length) / goodScores.length;
}

// The metadata of an ONNX file, which neither runtime gives: key -> text. In protobuf's terms, the
// entries of field 14 of the outermost message, each with a key (1) and a value (2).
export function readMetadata(bytes) {
  const found = new Map();
  for (const [number, entry] of fields(bytes)) {
    if (number !== 14) continue;
    const parts = new Map(fields(entry));
    const text = (part) => new TextDecoder().decode(parts.get(part) ?? new Uint8Array());
    found.set(text(1), text(2));
  }
  return found;
}

// [number, bytes] of each field of a message that has a length.
function* fields(bytes) {
  let at = 0;
  const varint = () => {
    let value = 0;
    for (let shift = 1; ; shift *= 128) {
      if (at >= bytes.length) throw new Error("this is no ONNX file: it ends within a number");
      const byte = bytes[at++];
      value += (byte & 127) * shift; // no bit operations: lengths pass 2 ** 31
      if (byte < 128) return value;
    }
  };
  while (at < bytes.length) {
    const key = varint();
    const kind = key % 8;
    if (kind === 0) varint();
    else if (kind === 1) at += 8;
    else if (kind === 5) at += 4;
    else if (kind === 2) {
      const length = varint();
      if (at + length > bytes.length) throw new Error("this is no whole ONNX file");
      yield [Math.floor(key / 8), bytes.subarray(at, at + length)];
      at += length;
    } else throw new Error("this is no ONNX file");
  }
}
