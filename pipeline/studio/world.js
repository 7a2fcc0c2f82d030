// The world: something given, something asked for, and the rest appears code by code. Or a dream, steered by the arrow keys.

import { bytesOf, get, lines, toBase64, blob, urlOf } from "./api.js";
import { CodeGrid } from "./code-grid.js";
import { choice, colourOf, dropPlace, fill, h, icon, number, say } from "./dom.js";
import { dream } from "./dream.js";
import { streamName } from "./samples.js";
import { loudest, player, readWav, silence, spectrogram, spectrum } from "./sound.js";

/** @typedef {import("./api.js").World} World */
/** @typedef {import("./api.js").WorldStream} WorldStream */
/** @typedef {import("./api.js").Shown} Shown */
/** @typedef {import("./api.js").Line} Line */
/** @typedef {import("./api.js").Leaving} Leaving */
/** @typedef {import("./api.js").DatasetLine} DatasetLine */
/** @typedef {{given: Record<string, string>, modes: Record<string, string>}} Asked */

export const view = { title: "World", show };

/** @param {HTMLElement} place @param {string[]} path @param {Leaving} leaving */
async function show(place, path, leaving) {
  const [{ world }, { data: datasets }] = await Promise.all([
    /** @type {Promise<{world: World | null}>} */ (get("/v1/info", leaving.signal)),
    /** @type {Promise<{data: DatasetLine[]}>} */ (get("/v1/datasets", leaving.signal)),
  ]);
  leaving.signal.addEventListener("abort", silence);
  const head = h("header", { class: "head" }, h("h1", {}, "World"));
  if (!world) return fill(place, head, h("p", { class: "empty" }, "No world model is served. Start the service with a run whose world is done."));
  const dreams = world.clock !== null && world.streams.some(stream => stream.on_clock && stream.kind === "video");
  const dreaming = dreams && path[0] === "dream";
  head.append(
    h("p", { class: "lead" }, dreaming ? "From one frame on, everything is dreamed. You say what is done." : "Give it what you like, and it goes on: pictures, sounds and words, one code after the other."),
    h("p", { class: "quiet tiny" }, `${world.name} · ${number(world.parameters)} parameters · ${world.streams.map(stream => stream.name).join(", ")}`),
  );
  const tabs = dreams ? h("div", { class: "row" }, choice("What to do", [["weave", "Weave"], ["dream", "Dream"]], dreaming ? "dream" : "weave", to => (location.hash = to === "dream" ? "#/world/dream" : "#/world"))) : null;
  const body = dreaming ? await dream(world, leaving) : weave(world, datasets, leaving);
  fill(place, head, tabs, body);
}

/** @param {World} world @param {DatasetLine[]} datasets @param {Leaving} leaving */
function weave(world, datasets, leaving) {
  /** @type {Asked} */
  const asked = { given: {}, modes: Object.fromEntries(world.streams.map(stream => [stream.name, "leave"])) };
  const of = (/** @type {string} */ kind) => world.streams.find(stream => stream.kind === kind);
  const [told, drawn] = [of("text"), of("image") ?? of("video")];
  if (drawn) asked.modes[drawn.name] = "make";
  for (const stream of world.streams) if (stream.kind === "audio") asked.modes[stream.name] = "make";
  if (told) asked.modes[told.name] = drawn ? "give" : "make";
  const result = h("div", { class: "stack loom" });
  const empty = () => fill(result, h("div", { class: "empty woven" }, threads(), h("p", {}, "What it weaves appears here, code by code.")));
  const rows = world.streams.map(stream => row(stream, asked, datasets, leaving));
  const free = h("input", { type: "checkbox", id: "free" });
  const wanting = h("div", { class: "streams" }, rows);
  free.addEventListener("change", () => wanting.classList.toggle("free", free.checked));
  const temperature = h("input", { type: "range", id: "temperature", min: "0", max: "1.5", step: "0.05", value: "0.25" });
  const heat = h("output", { for: "temperature" }, "0.25");
  temperature.addEventListener("input", () => (heat.textContent = temperature.value));
  const seed = h("input", { type: "number", id: "seed", min: "0", max: "999999", value: "0" });
  const steps = h("input", { type: "number", id: "steps", min: "0", max: "256", placeholder: "as it learnt" });
  const go = h("button", { class: "main", type: "submit" }, "Weave");
  const stop = h("button", { type: "button", hidden: true }, icon("stop"), "Stop");
  /** @type {AbortController | null} */
  let going = null;
  stop.addEventListener("click", () => going?.abort());
  leaving.signal.addEventListener("abort", () => going?.abort());
  const form = h(
    "form",
    { class: "panel composer stack" },
    h("h2", {}, "What it gets, and what you want"),
    wanting,
    h("label", { class: "check", for: "free" }, free, h("span", {}, "Let the model choose what to make")),
    h(
      "details",
      {},
      h("summary", {}, "How it chooses"),
      h(
        "div",
        { class: "stack settings" },
        h("label", { class: "field", for: "temperature" }, h("span", { class: "row between" }, "Temperature", heat), temperature, h("span", { class: "hint" }, "0 takes the likeliest, 1 is its own measure")),
        h("label", { class: "field", for: "seed" }, "Seed", seed),
        world.fills ? h("label", { class: "field", for: "steps" }, "Fill in so many steps", steps, h("span", { class: "hint" }, "0: code by code")) : null,
      ),
    ),
    h("div", { class: "row" }, go, stop, h("button", { type: "button", onclick: () => ((seed.value = String(Math.floor(Math.random() * 1e6))), form.requestSubmit()) }, icon("dice"), "Another seed")),
  );
  form.addEventListener("submit", async event => {
    event.preventDefault();
    going?.abort();
    const mine = (going = new AbortController());
    const given = Object.fromEntries(Object.entries(asked.given).filter(([name, value]) => asked.modes[name] === "give" && value));
    const want = world.streams.filter(stream => asked.modes[stream.name] === "make").map(stream => stream.name);
    if (!free.checked && !want.length) return say("Choose something to make, or let the model choose.");
    const body = { given, want: free.checked ? null : want, temperature: Number(temperature.value), seed: Number(seed.value) || 0, fill_steps: free.checked || !steps.value ? null : Number(steps.value) };
    stop.hidden = false;
    try {
      await stream(world, body, result, mine.signal);
    } catch (error) {
      if (!mine.signal.aborted) {
        empty();
        say(error instanceof Error ? error.message : String(error));
      }
    } finally {
      if (going === mine) stop.hidden = true;
    }
  });
  empty();
  return h("div", { class: "pair composing" }, form, result);
}

/** Threads that cross, for where nothing is yet. */
function threads() {
  return h("div", { class: "threads", "aria-hidden": "true" }, Array.from({ length: 24 }, (_, at) => h("i", { style: { "--thread": colourOf(at * 7 + 3, 0.55) } })));
}

/** A stream, with what is done about it. @param {WorldStream} stream @param {Asked} asked @param {DatasetLine[]} datasets @param {Leaving} leaving */
function row(stream, asked, datasets, leaving) {
  const input = h("div", { class: "input" });
  const draw = () => fill(input, asked.modes[stream.name] === "give" ? giving(stream, asked, datasets, leaving) : null);
  const options = /** @type {[string, string][]} */ ([["give", "Give"], ["make", "Make"], ["leave", "Leave"]]);
  draw();
  return h(
    "div",
    { class: "stream-row" },
    h("div", { class: "row between" }, streamName(stream.name, stream.kind), choice(`What to do with ${stream.name}`, options, asked.modes[stream.name], mode => ((asked.modes[stream.name] = mode), draw()))),
    input,
  );
}

/** Where a value is given. @param {WorldStream} stream @param {Asked} asked @param {DatasetLine[]} datasets @param {Leaving} leaving */
function giving(stream, asked, datasets, leaving) {
  const source = datasets.find(each => each.produces === "dataset" && each.kinds.some(other => other.name === stream.name && other.kind === stream.kind));
  const shown = h("div", { class: "given" });
  const draw = async () => {
    if (!source) return;
    try {
      const query = new URLSearchParams({ stream: stream.name, seed: String(Math.floor(Math.random() * 1e9)) });
      const file = await blob(`/v1/datasets/${source.run}/${source.stage}/draw?${query}`, leaving.signal);
      await take(file);
    } catch (error) {
      if (!leaving.left) say(error instanceof Error ? error.message : String(error));
    }
  };
  const sample = source ? h("button", { type: "button", class: "plain", onclick: draw }, icon("dice"), "One of the dataset") : null;
  if (stream.kind === "text") {
    const field = h("textarea", { rows: "2", "aria-label": stream.name, placeholder: "Say what it is…", spellcheck: "false" });
    field.value = asked.given[stream.name] ?? "";
    field.addEventListener("input", () => (asked.given[stream.name] = field.value));
    var take = async (/** @type {Blob} */ file) => {
      field.value = asked.given[stream.name] = (await file.text()).trim();
    };
    if (!field.value) draw(); // something to begin with
    return [field, sample];
  }
  take = async file => {
    asked.given[stream.name] = await toBase64(file);
    const url = URL.createObjectURL(file);
    leaving.signal.addEventListener("abort", () => URL.revokeObjectURL(url));
    const image = h("img", { src: url, alt: `given: ${stream.name}`, class: "pixels" });
    image.addEventListener("error", () => fill(shown, h("span", { class: "tiny quiet" }, `${file instanceof File ? file.name : "a sample"} is given`)));
    fill(shown, stream.kind === "audio" ? player(url, "Hear it") : image);
  };
  return [dropPlace(`Choose a ${stream.kind === "audio" ? "sound" : stream.kind}`, stream.kind === "audio" ? "audio/*" : stream.kind === "action" ? ".json,.npy" : "image/*,video/*", take), shown, sample];
}

/** Draws what comes, as it comes. @param {World} world @param {object} body @param {HTMLElement} result @param {AbortSignal} signal */
async function stream(world, body, result, signal) {
  /** @type {Map<string, Segment>} */
  const segments = new Map();
  const state = h("p", { class: "state running", role: "status" }, "weaving");
  const count = h("span", { class: "quiet tiny" });
  const began = performance.now();
  let codes = 0;
  fill(result, h("div", { class: "row between" }, state, count));
  const of = (/** @type {string} */ name, /** @type {number[] | null | undefined} */ shape) => {
    const about = world.streams.find(each => each.name === name);
    if (!about) throw new Error(`the world has no stream ${name}`);
    const there = segments.get(name) ?? new Segment(about, shape ?? about.shape);
    if (!segments.has(name)) result.append(there.element);
    segments.set(name, there);
    return there;
  };
  for await (const line of lines("/v1/generate", body, signal)) {
    if (line.event === "error") throw new Error(line.error?.message ?? "the service failed");
    if (line.event === "segment" && line.stream) of(line.stream, line.shape);
    if (line.event === "codes" && line.stream) {
      of(line.stream, null).codes(line.places ?? [], line.codes ?? []);
      codes += line.codes?.length ?? 0;
      count.textContent = `${number(codes)} codes · ${number(Math.round(codes / Math.max(0.05, (performance.now() - began) / 1000)))} a second`;
    }
    if (line.event === "value" && line.stream && line.value) of(line.stream, null).value(line.value, line.given === true);
    if (line.event === "end") {
      state.className = "state done";
      state.textContent = `woven in ${((performance.now() - began) / 1000).toFixed(1)} s${line.legal === false ? ", and not legal" : ""}`;
    }
  }
}

/** One stream as it is written: its codes, then its value. */
class Segment {
  /** @param {WorldStream} stream @param {number[] | null} shape */
  constructor(stream, shape) {
    this.stream = stream;
    /** @type {number[]} */
    this.written = [];
    this.made = h("div", { class: "made" });
    this.cells = h("div", { class: `cells ${stream.kind}` });
    this.element = h("section", { class: `panel segment ${stream.kind}`, "aria-label": stream.name }, h("h2", {}, streamName(stream.name, stream.kind)), h("div", { class: "woven-pair" }, this.cells, this.made));
    /** @type {CodeGrid[]} */
    this.grids = [];
    this.rows = this.columns = this.size = 1;
    const plain = stream.levels > 1 ? shape?.slice(0, -1) : shape;
    if (plain && plain.length >= 2 && stream.kind !== "action") this.grid(plain.slice(-2), plain.length > 2 ? plain[0] : 1);
  }

  /** @param {number[]} shape @param {number} frames */
  grid([rows, columns], frames) {
    this.size = rows * columns;
    const sound = this.stream.kind === "audio";
    this.rows = sound ? columns : rows;
    this.columns = sound ? rows : columns;
    this.written = Array(this.size * frames).fill(-1);
    this.grids = Array.from({ length: frames }, () => {
      const grid = /** @type {CodeGrid} */ (document.createElement("code-grid"));
      grid.coloured = true;
      grid.style.setProperty("--ratio", String(this.columns / this.rows));
      return grid;
    });
    this.cells.append(...this.grids);
    this.drawGrids();
  }

  drawGrids() {
    const { rows, columns, size } = this;
    const { levels } = this.stream;
    this.grids.forEach((grid, frame) => {
      const first = this.written.slice(frame * size, (frame + 1) * size);
      const turned = this.stream.kind === "audio" ? Array.from({ length: size }, (_, at) => first[(at % columns) * rows + (rows - 1 - Math.floor(at / columns))]) : first;
      grid.show(turned, rows, columns, `Codes of ${this.stream.name}${this.grids.length > 1 ? `, frame ${frame + 1}` : ""}${levels > 1 ? ", first level" : ""}`);
    });
  }

  /** @param {number[]} places @param {number[]} codes */
  codes(places, codes) {
    const { levels } = this.stream;
    places.forEach((place, at) => {
      if (this.grids.length && place % levels === 0) this.written[Math.floor(place / levels)] = codes[at];
      if (!this.grids.length) this.chip(place, codes[at]);
    });
    if (this.grids.length) this.drawGrids();
  }

  /** @param {number} place @param {number} code */
  chip(place, code) {
    const there = this.cells.children[place];
    const chip = h("span", { class: "chip", style: { "--chip": colourOf(code) } }, code);
    if (there) there.replaceWith(chip);
    else this.cells.append(chip);
  }

  /** @param {Shown} shown @param {boolean} given */
  value(shown, given) {
    const { kind, name } = this.stream;
    const words = `${given ? "given" : "made"}: ${name}`;
    if (given) this.element.classList.add("handed");
    const tag = h("span", { class: "tiny quiet" }, given ? "given, behind its tokenizer" : "made");
    if (shown.text !== null && shown.text !== undefined) return fill(this.made, h("p", { class: "big-text" }, shown.text), tag);
    if (kind === "audio") {
      const sound = readWav(bytesOf(shown.content ?? ""));
      const columns = spectrum(sound.samples);
      return fill(this.made, spectrogram(columns, sound.rate, loudest(columns)), h("div", { class: "row" }, player(urlOf(shown), "Play", `Play: ${name}`), tag));
    }
    if (shown.media_type === "application/json") {
      const rows = /** @type {any[]} */ (JSON.parse(new TextDecoder().decode(bytesOf(shown.content ?? ""))));
      return fill(this.made, h("p", { class: "mono" }, rows.flat(Infinity).join("  ")), tag);
    }
    const image = h("img", { src: urlOf(shown), alt: words, class: "pixels" });
    image.addEventListener("load", () => image.classList.toggle("pixels", image.naturalWidth <= 160));
    fill(this.made, image, tag);
  }
}
