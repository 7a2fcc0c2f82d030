// Tokenizers: what a sample becomes, and what comes back of it.

import { bytesOf, get, post, toBase64, blob, urlOf } from "./api.js";
import "./code-grid.js";
import "./compare-pair.js";
import { codebookPicture } from "./codebook.js";
import { choice, colourOf, dropPlace, figuresOf, fill, h, icon, number, say } from "./dom.js";
import { grids } from "./grids.js";
import { FLOOR, loudest, player, readWav, silence, spectrogram, spectrum, wave } from "./sound.js";
import { canvasOf, paint, psnr, readPixels } from "./values.js";

/** @typedef {import("./api.js").Tokenizer} Tokenizer */
/** @typedef {import("./api.js").Shown} Shown */
/** @typedef {import("./api.js").Leaving} Leaving */
/** @typedef {import("./code-grid.js").Cell} Cell */
/** @typedef {import("./code-grid.js").CodeGrid} CodeGrid */
/** @typedef {import("./api.js").DatasetLine} Dataset */
/** @typedef {{info: Tokenizer, codes: number[], prepared: Shown, made: Shown}} Seen */

const WORDS = { image: "picture", video: "clip", audio: "sound", text: "text", action: "row of actions" };
const READS = { image: "image/*", video: "video/*,image/png,.npy", audio: "audio/*", text: "text/plain", action: ".json,.npy" };

export const view = { title: "Tokenizers", show };

/** @param {HTMLElement} place @param {string[]} path @param {Leaving} leaving */
async function show(place, path, leaving) {
  const [{ data: all }, { data: datasets }] = await Promise.all([
    /** @type {Promise<{data: Tokenizer[]}>} */ (get("/v1/tokenizers", leaving.signal)),
    /** @type {Promise<{data: Dataset[]}>} */ (get("/v1/datasets", leaving.signal)),
  ]);
  leaving.signal.addEventListener("abort", silence);
  const head = h("header", { class: "head" }, h("h1", {}, "Tokenizers"), h("p", { class: "lead" }, "What a sample becomes: a grid of whole numbers. And what comes back when only these numbers are kept."));
  if (!all.length) return fill(place, head, h("p", { class: "empty" }, "No tokenizer is served. Start the service with a run whose tokenizers are done, or with tokenizers' folders."));
  const info = all.find(each => each.name === path[0]) ?? all.find(each => each.kind === "image") ?? all[0];
  const picker = h(
    "ul",
    { class: "cards", "aria-label": "Tokenizers" },
    all.map(each =>
      h(
        "li",
        {},
        h(
          "a",
          { href: `#/tokenizers/${encodeURIComponent(each.name)}`, "aria-current": each === info ? "true" : null },
          icon(each.kind),
          h("span", {}, h("b", {}, each.name), h("small", {}, `${number(each.codebook_size)} codes${each.shape ? ` · ${each.shape.join("\u202f×\u202f")}` : ""}`)),
        ),
      ),
    ),
  );
  const result = h("div", { class: "stack result", "aria-live": "off" });
  fill(place, head, picker, asking(info, datasets, result, leaving), result);
}

/** The place where a value is given. @param {Tokenizer} info @param {Dataset[]} datasets @param {HTMLElement} result @param {Leaving} leaving */
function asking(info, datasets, result, leaving) {
  const source = datasets.flatMap(each => each.kinds.map(stream => ({ ...each, stream }))).find(each => each.produces === "dataset" && fits(info, each.stream));
  const counted = datasets.flatMap(each => each.kinds.map(stream => ({ ...each, stream }))).find(each => each.produces === "tokens" && each.stream.tokenizer === info.fingerprint);
  let turn = 0;
  let seed = Math.floor(Math.random() * 1e6);
  const wait = h("span", { class: "busy", hidden: true });

  /** @param {string} input text, or a file in base64 */
  const see = async input => {
    const mine = ++turn;
    wait.hidden = false;
    try {
      const seen = await look(info, input, leaving.signal);
      if (mine === turn && !leaving.left) await present(seen, counted, result, leaving);
    } catch (error) {
      if (mine === turn && !leaving.left) say(error instanceof Error ? error.message : String(error));
    } finally {
      if (mine === turn) wait.hidden = true;
    }
  };
  const drawn = async () => {
    if (!source) return see(await ofItsOwn(info));
    const query = new URLSearchParams({ stream: source.stream.name, seed: String(seed++) });
    const file = await blob(`/v1/datasets/${source.run}/${source.stage}/draw?${query}`, leaving.signal);
    if (info.kind !== "text") return see(await toBase64(file));
    field.value = (await file.text()).trim();
    see(field.value);
  };
  const field = h("textarea", { id: "words", rows: "2", placeholder: "Type something…", spellcheck: "false" });
  let later = 0;
  field.addEventListener("input", () => {
    clearTimeout(later);
    later = window.setTimeout(() => field.value && see(field.value), 350);
  });
  const another = h("button", { type: "button", onclick: () => drawn().catch(error => say(error.message)) }, icon("dice"), source ? "Draw a sample" : "Make one");
  drawn().catch(error => leaving.left || say(error.message));
  const kind = WORDS[/** @type {keyof typeof WORDS} */ (info.kind)];
  const accept = [READS[/** @type {keyof typeof READS} */ (info.kind)], ...info.endings.map(ending => `.${ending}`)].join(",");
  return h(
    "section",
    { class: "panel asking", "aria-label": `A ${kind}` },
    info.kind === "text"
      ? h("label", { class: "field", for: "words" }, "Text", field)
      : dropPlace(`Choose a ${kind}`, accept, async file => see(info.kind === "text" ? await file.text() : await toBase64(file))),
    h("div", { class: "row" }, another, wait),
  );
}

/** @param {Tokenizer} info @param {{kind: string, tokenizer: string | null}} stream */
function fits(info, stream) {
  return stream.kind === info.kind;
}

/** A value where no dataset is at hand: stripes, a tone, a sentence, nothing done. @param {Tokenizer} info */
async function ofItsOwn(info) {
  if (info.kind === "text") return "a small red circle at the top left";
  if (info.kind === "action") return btoa(JSON.stringify(Array.from({ length: info.stream.steps ?? 1 }, () => Array(info.stream.dimensions ?? 1).fill(0))));
  if (info.kind === "audio") return tone(info.stream.sample_rate ?? 8000, info.stream.seconds ?? 1);
  const canvas = h("canvas", { width: 128, height: 128 });
  const pen = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  for (let at = 0; at < 128; at++) {
    pen.fillStyle = `hsl(${at * 2 + 20} 60% ${35 + at / 3}%)`;
    pen.fillRect(at, 0, 1, 128);
  }
  pen.fillStyle = "#fff";
  pen.arc(64, 64, 34, 0, 7);
  pen.fill();
  return canvas.toDataURL("image/png").split(",")[1];
}

/** A WAV file in base64. @param {number} rate @param {number} seconds */
function tone(rate, seconds) {
  const many = Math.round(rate * seconds);
  const bytes = new Uint8Array(44 + 2 * many);
  const view = new DataView(bytes.buffer);
  const words = /** @type {[number, string][]} */ ([[0, "RIFF"], [8, "WAVEfmt "], [36, "data"]]);
  for (const [at, word] of words) bytes.set(new TextEncoder().encode(word), at);
  for (const [at, value] of [[4, 36 + 2 * many], [16, 16], [24, rate], [28, 2 * rate], [40, 2 * many]]) view.setUint32(at, value, true);
  for (const [at, value] of [[20, 1], [22, 1], [32, 2], [34, 16]]) view.setUint16(at, value, true);
  for (let at = 0; at < many; at++) view.setInt16(44 + 2 * at, 12000 * Math.sin((2 * Math.PI * (220 + (300 * at) / many) * at) / rate), true);
  return btoa(bytes.reduce((text, byte) => text + String.fromCharCode(byte), ""));
}

/** Encodes a value and decodes its codes. @param {Tokenizer} info @param {string} input @param {AbortSignal} signal @returns {Promise<Seen>} */
async function look(info, input, signal) {
  const [coded, prepared] = await Promise.all([
    /** @type {Promise<{data: {codes: any[]}[]}>} */ (post("/v1/tokenize", { tokenizer: info.name, input }, signal)),
    /** @type {Promise<Shown>} */ (post("/v1/prepare", { tokenizer: info.name, input }, signal)),
  ]);
  const codes = /** @type {number[]} */ (coded.data[0].codes.flat(Infinity));
  return { info, codes, prepared, made: (await decode(info, [coded.data[0].codes], signal))[0] };
}

/** @param {Tokenizer} info @param {any[][]} codes @param {AbortSignal} signal */
async function decode(info, codes, signal) {
  const format = info.kind === "video" ? "npy" : null;
  const { data } = /** @type {{data: Shown[]}} */ (await post("/v1/detokenize", { tokenizer: info.name, codes, format }, signal));
  return data;
}

/** @param {Seen} seen @param {any} counted @param {HTMLElement} result @param {Leaving} leaving */
async function present(seen, counted, result, leaving) {
  silence();
  const { kind } = seen.info;
  if (kind === "text") return presentText(seen, result, leaving);
  if (kind === "action") return presentActions(seen, result);
  const { figures, comparison, layers, below, frames } = await (kind === "audio" ? ofSound(seen) : ofPixels(seen));
  if (leaving.left) return;
  const plan = grids(seen.info, seen.codes);
  const grid = /** @type {CodeGrid} */ (document.createElement("code-grid"));
  grid.size = seen.info.codebook_size;
  const told = h("output", { class: "told", "aria-live": "polite" }, "Point at a cell, or walk there with the arrow keys.");
  const alone = h("div", { class: "alone" });
  const book = h("div", { class: "book" });
  let [frame, level] = [0, 0];
  const redraw = () => {
    const { codes, rows, columns } = plan.grid(frame, level);
    grid.show(codes, rows, columns, `Codes of ${seen.info.name}`);
    layers.forEach(layer => layer(frame));
  };
  const words = (/** @type {Cell | null} */ cell) =>
    cell === null ? "Point at a cell, or walk there with the arrow keys." : `Code ${cell.code}${plan.levelled ? `, level ${cell.level}` : ""} · row ${cell.row + 1}, column ${cell.column + 1} · ${cell.many === 1 ? "once" : `${cell.many} times`} here`;
  grid.addEventListener("codehover", event => (told.textContent = words(/** @type {CustomEvent<Cell | null>} */ (event).detail)));
  grid.addEventListener("codepick", event => {
    const cell = /** @type {CustomEvent<Cell | null>} */ (event).detail;
    told.textContent = words(cell);
    picture?.mark(cell ? cell.code : null, cell?.level ?? 0);
    showAlone(seen.info, cell, alone, leaving);
  });
  const marked = (/** @type {number | null} */ code, /** @type {number} */ of) => {
    grid.mark(code === null ? null : code + of * seen.info.codebook_size);
    showAlone(seen.info, code === null ? null : { code, level: of, row: 0, column: 0, many: 0 }, alone, leaving);
  };
  const picture = await codebookPicture(seen.info, seen.codes, counted, book, marked, leaving);
  if (leaving.left) return;
  const screen = h("div", { class: kind === "audio" ? "screen wide" : "screen", style: { "--ratio": below.ratio } }, below.element, grid);
  const controls = h("div", { class: "row" }, choice("What the grid shows", [["lines", kind === "audio" ? "Sound" : "Picture"], ["colours", "Codes"]], "lines", value => grid.colour(value === "colours")));
  if (frames > 1) controls.append(framesOf(frames, seen.info.stream.frame_rate ?? 8, at => ((frame = at), redraw()), leaving));
  if (plan.levels > 1) controls.append(choice("Level", Array.from({ length: plan.levels }, (_, at) => [String(at), `Level ${at + 1}`]), "0", value => ((level = Number(value)), redraw())));
  fill(
    result,
    h(
      "div",
      { class: kind === "audio" ? "pair sounds" : "pair" },
      h("section", { class: "panel" }, h("h2", {}, "Its codes"), screen, told, controls),
      h("section", { class: "panel" }, h("h2", {}, "What comes back"), comparison, h("p", { class: "told" }, "Drag the edge, or move it by the arrow keys.")),
    ),
    figuresOf(figures),
    h("div", { class: "pair uneven" }, h("section", { class: "panel" }, h("h2", {}, "The codebook"), book), h("section", { class: "panel" }, h("h2", {}, "One code alone"), alone)),
  );
  showAlone(seen.info, mostChosen(seen), alone, leaving);
  redraw();
}

/** Play, and a slider over the frames. @param {number} many @param {number} rate @param {(frame: number) => void} then @param {Leaving} leaving */
function framesOf(many, rate, then, leaving) {
  const slider = h("input", { type: "range", min: "0", max: String(many - 1), value: "0", "aria-label": "Frame" });
  const button = h("button", { type: "button", class: "icon", "aria-label": "Play" }, icon("play"));
  let timer = 0;
  const go = (/** @type {number} */ at) => {
    slider.value = String(at);
    slider.setAttribute("aria-valuetext", `frame ${at + 1} of ${many}`);
    then(at);
  };
  const toggle = (/** @type {boolean} */ on) => {
    clearInterval(timer);
    timer = on ? window.setInterval(() => (slider.isConnected ? go((Number(slider.value) + 1) % many) : toggle(false)), 1000 / rate) : 0;
    button.replaceChildren(icon(on ? "stop" : "play"));
    button.setAttribute("aria-label", on ? "Stop" : "Play");
  };
  button.addEventListener("click", () => toggle(!timer));
  slider.addEventListener("input", () => (toggle(false), go(Number(slider.value))));
  leaving.signal.addEventListener("abort", () => toggle(false));
  return h("span", { class: "row frames" }, button, slider);
}

/** @param {Seen} seen */
async function ofPixels(seen) {
  const [before, after] = await Promise.all([readPixels(seen.prepared), readPixels(seen.made)]);
  const pair = /** @type {import("./compare-pair.js").ComparePair} */ (document.createElement("compare-pair"));
  const canvases = [canvasOf(before, "original"), canvasOf(before, "original"), canvasOf(after, "reconstruction")];
  pair.show(canvases[1], canvases[2], "Original", "From its codes");
  pair.style.setProperty("--ratio", String(before.width / before.height));
  const likeness = psnr(before, after);
  const places = before.width * before.height * before.frames.length;
  const bits = bitsOf(seen);
  return {
    comparison: pair,
    below: { element: canvases[0], ratio: before.width / before.height },
    frames: before.frames.length,
    layers: canvases.map((canvas, at) => (/** @type {number} */ frame) => paint(canvas, at < 2 ? before : after, frame)),
    figures: /** @type {[string, string, string?][]} */ ([
      ["likeness (PSNR)", Number.isFinite(likeness) ? likeness.toFixed(1) : "exact", Number.isFinite(likeness) ? "dB" : ""],
      ["codes", number(seen.codes.length)],
      ["bits of its codes", number(Math.round(bits))],
      ["bits a pixel", number(+(bits / places).toPrecision(3))],
      ["smaller than 8-bit RGB", number(+((places * 24) / bits).toPrecision(3)), "×"],
      ["different codes in it", number(new Set(seen.codes).size)],
    ]),
  };
}

/** @param {Seen} seen */
async function ofSound(seen) {
  const files = [seen.prepared, seen.made];
  const sounds = files.map(file => readWav(bytesOf(file.content ?? "")));
  const columns = sounds.map(sound => spectrum(sound.samples));
  const loud = Math.max(...columns.map(loudest));
  const pictures = [columns[0], columns[0], columns[1]].map(each => spectrogram(each, sounds[0].rate, loud));
  pictures[0].setAttribute("role", "img");
  pictures[0].setAttribute("aria-label", "spectrogram of the original");
  const pair = /** @type {import("./compare-pair.js").ComparePair} */ (document.createElement("compare-pair"));
  pair.show(pictures[1], pictures[2], "Original", "From its codes");
  pair.classList.add("wide");
  const far = distance(columns[0], columns[1], loud - FLOOR);
  const seconds = sounds[0].samples.length / sounds[0].rate;
  const bits = bitsOf(seen);
  return {
    comparison: h(
      "div",
      { class: "heard" },
      pair,
      sounds.map((sound, at) => {
        const words = at ? "From its codes" : "Original";
        return h("div", { class: "voice" }, player(urlOf(files[at]), words, `Play: ${words}`), wave(sound.samples, `wave of the ${at ? "reconstruction" : "original"}`));
      }),
    ),
    below: { element: pictures[0], ratio: 2.4 },
    frames: 1,
    layers: /** @type {((frame: number) => void)[]} */ ([]),
    figures: /** @type {[string, string, string?][]} */ ([
      ["mean distance of the spectra", far.toFixed(1), "dB"],
      ["codes", number(seen.codes.length)],
      ["bits a second", number(Math.round(bits / seconds))],
      ["smaller than 16-bit PCM", number(Math.round((sounds[0].samples.length * 16) / bits)), "×"],
      ["different codes in it", number(new Set(seen.codes).size)],
      ["length", number(+seconds.toPrecision(3)), "s"],
    ]),
  };
}

/** Mean difference in dB, wherever one of the two is louder than the floor. @param {Float64Array[]} one @param {Float64Array[]} other @param {number} floor */
function distance(one, other, floor) {
  let [sum, many] = [0, 0];
  one.forEach((column, x) =>
    column.forEach((loud, y) => {
      const [here, there] = [Math.max(loud, floor), Math.max(other[x]?.[y] ?? floor, floor)];
      if (here === floor && there === floor) return;
      sum += Math.abs(here - there);
      many++;
    }),
  );
  return many ? sum / many : 0;
}

/** All codes are equally long. @param {Seen} seen */
function bitsOf(seen) {
  return seen.codes.length * Math.log2(seen.info.codebook_size);
}

/** The code that is most of a value. @param {Seen} seen @returns {Cell} */
function mostChosen(seen) {
  /** @type {Map<number, number>} */
  const counts = new Map();
  for (const code of seen.codes) counts.set(code, (counts.get(code) ?? 0) + 1);
  const [code, many] = [...counts].reduce((one, other) => (other[1] > one[1] ? other : one));
  return { code, level: 0, row: 0, column: 0, many };
}

/** What a grid of nothing but this code is. @param {Tokenizer} info @param {Cell | null} cell @param {HTMLElement} place @param {Leaving} leaving */
async function showAlone(info, cell, place, leaving) {
  if (cell === null || !info.shape) return fill(place, h("p", { class: "quiet" }, "Click a cell above, or a square of the codebook: all cells of that code are marked, and here is what a value made of nothing else looks like."));
  const shape = info.shape;
  const codes = /** @type {any} */ (full(shape, cell.code));
  try {
    const [made] = await decode(info, [codes], leaving.signal);
    if (leaving.left) return;
    const name = h("p", {}, h("span", { class: "chip", style: { "--chip": colourOf(cell.code) } }, "code "), h("b", { class: "mono" }, `${cell.code}`), h("span", { class: "quiet tiny" }, "  in every cell"));
    if (info.kind === "audio") {
      const sound = readWav(bytesOf(made.content ?? ""));
      const columns = spectrum(sound.samples);
      return fill(place, name, spectrogram(columns, sound.rate, loudest(columns)), h("div", { class: "row" }, player(urlOf(made), "Hear it")));
    }
    fill(place, name, canvasOf(await readPixels(made), `a value of code ${cell.code} alone`));
  } catch (error) {
    if (!leaving.left) fill(place, h("p", { class: "trouble" }, error instanceof Error ? error.message : String(error)));
  }
}

/** @param {number[]} shape @param {number} code @returns {any} */
function full([many, ...rest], code) {
  return Array.from({ length: many }, () => (rest.length ? full(rest, code) : code));
}

/** @param {Seen} seen @param {HTMLElement} result @param {Leaving} leaving */
async function presentText(seen, result, leaving) {
  const different = [...new Set(seen.codes)].slice(0, 256);
  const pieces = different.length ? await decode(seen.info, different.map(code => [code]), leaving.signal) : [];
  if (leaving.left) return;
  const words = new Map(different.map((code, at) => [code, pieces[at].text ?? ""]));
  const [given, back] = [seen.prepared.text ?? "", seen.made.text ?? ""];
  const list = h("ol", { class: "pieces", "aria-label": "Pieces" });
  const mark = (/** @type {number | null} */ code) => list.querySelectorAll("button").forEach(each => each.classList.toggle("marked", each.dataset.code === String(code)));
  list.append(
    ...seen.codes.map(code =>
      h("li", {}, h("button", { type: "button", data: { code }, style: { "--chip": colourOf(code) }, onclick: () => mark(code) }, h("span", {}, words.get(code) || "␣"), h("small", {}, String(code)))),
    ),
  );
  fill(
    result,
    h("section", { class: "panel" }, h("h2", {}, "Its codes"), list),
    figuresOf([
      ["comes back", given === back ? "exactly" : "changed"],
      ["codes", number(seen.codes.length)],
      ["characters a code", number(+([...given].length / Math.max(1, seen.codes.length)).toPrecision(3))],
      ["bits of its codes", number(Math.round(bitsOf(seen)))],
      ["codebook", number(seen.info.codebook_size)],
    ]),
    h("section", { class: "panel" }, h("h2", {}, "What comes back"), h("p", { class: "big-text" }, back)),
  );
}

/** @param {Seen} seen @param {HTMLElement} result */
function presentActions(seen, result) {
  const [before, after] = [seen.prepared, seen.made].map(each => /** @type {number[][]} */ (JSON.parse(new TextDecoder().decode(bytesOf(each.content ?? "")))));
  const wide = seen.codes.length / Math.max(1, before.length);
  let far = 0;
  before.forEach((row, at) => row.forEach((value, part) => (far = Math.max(far, Math.abs(value - after[at][part])))));
  const rows = before.map((row, step) =>
    h(
      "tr",
      {},
      h("td", { class: "number" }, step + 1),
      h("td", { class: "number" }, row.map(number).join(", ")),
      h("td", {}, seen.codes.slice(step * wide, (step + 1) * wide).map(code => h("span", { class: "chip", style: { "--chip": colourOf(code) } }, code))),
      h("td", { class: "number" }, after[step].map(number).join(", ")),
    ),
  );
  const head = ["step", "value", "codes", "from its codes"].map((name, at) => h("th", { class: at === 2 ? "" : "number", scope: "col" }, name));
  fill(
    result,
    h("section", { class: "panel" }, h("h2", {}, "Its codes"), h("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": "codes by step" }, h("table", {}, h("thead", {}, h("tr", {}, head)), h("tbody", {}, rows)))),
    figuresOf([
      ["largest error", number(+far.toPrecision(3))],
      ["codes", number(seen.codes.length)],
      ["bits of its codes", number(+bitsOf(seen).toPrecision(3))],
      ["codebook", number(seen.info.codebook_size)],
    ]),
  );
}
