// Datasets: what lies in their shards, what was refused and why, and samples drawn at random.

import { get } from "./api.js";
import { table } from "./blocks.js";
import { fill, figuresOf, h, icon, number, say, size } from "./dom.js";
import { streamName, valueOf } from "./samples.js";
import { silence } from "./sound.js";

/** @typedef {import("./api.js").DatasetLine} DatasetLine */
/** @typedef {import("./api.js").DatasetPage} DatasetPage */
/** @typedef {import("./api.js").Sample} Sample */
/** @typedef {import("./api.js").Leaving} Leaving */

export const view = { title: "Datasets", show };

/** @param {HTMLElement} place @param {string[]} path @param {Leaving} leaving */
async function show(place, path, leaving) {
  const { data: all } = /** @type {{data: DatasetLine[]}} */ (await get("/v1/datasets", leaving.signal));
  leaving.signal.addEventListener("abort", silence);
  const head = h("header", { class: "head" }, h("h1", {}, "Datasets"), h("p", { class: "lead" }, "What lies in the shards: samples as they came, and the codes that they became."));
  if (!all.length) return fill(place, head, h("p", { class: "empty" }, "No dataset is finished yet in the runs that are served."));
  const one = all.find(each => each.run === path[0] && each.stage === path[1]) ?? all[0];
  const several = new Set(all.map(each => each.run)).size > 1;
  const picker = h(
    "ul",
    { class: "cards", "aria-label": "Datasets" },
    all.map(each =>
      h(
        "li",
        {},
        h(
          "a",
          { href: `#/datasets/${encodeURIComponent(each.run)}/${encodeURIComponent(each.stage)}`, "aria-current": each === one ? "true" : null },
          icon(each.produces === "tokens" ? "action" : "image"),
          h("span", {}, h("b", {}, several ? `${each.run} / ${each.stage}` : each.stage), h("small", {}, `${each.produces === "tokens" ? "codes" : "samples"} · ${number(each.samples)}`)),
        ),
      ),
    ),
  );
  const base = `/v1/datasets/${encodeURIComponent(one.run)}/${encodeURIComponent(one.stage)}`;
  const page = /** @type {DatasetPage} */ (await get(base, leaving.signal));
  fill(
    place,
    head,
    picker,
    figuresOf([
      ["samples", number(page.samples)],
      ["shards", number(page.shards)],
      ["refused", number(page.rejected)],
      ["on disk", ...split(size(page.bytes))],
      ["streams", number(page.streams.length)],
    ]),
    samplesOf(base, page, leaving),
    h(
      "div",
      { class: "pair" },
      h("section", { class: "panel" }, h("h2", {}, "Shards"), page.splits.map(shards)),
      h("section", { class: "panel" }, h("h2", {}, "Streams"), streams(page), h("h2", { class: "second" }, "Refused"), refused(page)),
    ),
  );
}

/** @param {string} words @returns {[string, string]} */
function split(words) {
  const [value, unit] = words.split(" ");
  return [value, unit];
}

/** @param {DatasetPage["splits"][number]} one */
function shards(one) {
  const most = Math.max(1, ...one.shards.map(shard => shard.samples));
  return h(
    "div",
    { class: "split" },
    h("h3", {}, one.name.replaceAll("_", " "), h("span", { class: "quiet" }, `  ${number(one.samples)} samples in ${number(one.shards.length)} ${one.shards.length === 1 ? "shard" : "shards"}`)),
    h("ul", { class: "shards" }, one.shards.slice(0, 400).map(shard => h("li", { title: `${shard.name}: ${number(shard.samples)} samples` }, h("i", { style: { height: `${Math.max(6, (100 * shard.samples) / most)}%` } }), h("span", { class: "unseen" }, `${shard.name}: ${shard.samples} samples`)))),
  );
}

/** @param {DatasetPage} page */
function streams(page) {
  const names = page.splits.map(each => each.name);
  const coded = page.produces === "tokens";
  return h(
    "div",
    { class: "scroll", tabindex: "0", role: "group", "aria-label": "streams" },
    h(
      "table",
      {},
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "stream"), names.map(name => h("th", { scope: "col", class: "number" }, name.replaceAll("_", " "))), coded ? h("th", { scope: "col" }, "codes") : null)),
      h(
        "tbody",
        {},
        page.streams.map(stream =>
          h(
            "tr",
            {},
            h("td", {}, streamName(stream.name, stream.kind)),
            names.map(name => h("td", { class: "number" }, number(stream.samples[name] ?? 0))),
            coded ? h("td", {}, `${number(stream.codebook_size ?? 0)}${stream.shape ? `, ${stream.shape.join(" × ")}` : ", as long as it is"}`) : null,
          ),
        ),
      ),
    ),
  );
}

/** @param {DatasetPage} page */
function refused(page) {
  const reasons = Object.entries(page.reasons);
  if (!reasons.length) return h("p", { class: "quiet" }, "Nothing: every sample could be used.");
  const most = Math.max(...reasons.map(([, many]) => many));
  return [
    h("ul", { class: "rows" }, reasons.map(([code, many]) => h("li", {}, h("span", { class: "mono" }, code), h("span", { class: "bar" }, h("i", { style: { width: `${(100 * many) / most}%` } })), h("b", {}, number(many))))),
    h("details", {}, h("summary", {}, "Which ones"), table("", ["sample", "reason", "detail"], page.refusals.map(each => [each.key, each.code, each.detail]))),
  ];
}

/** @param {string} base @param {DatasetPage} page @param {Leaving} leaving */
function samplesOf(base, page, leaving) {
  const list = h("ul", { class: "samples" });
  const choose = h("select", { "aria-label": "Split" }, page.splits.filter(each => each.samples).map(each => h("option", { value: each.name }, each.name.replaceAll("_", " "))));
  const having = h("select", { "aria-label": "With the stream" }, h("option", { value: "" }, "any streams"), page.streams.map(each => h("option", { value: each.name }, `with ${each.name}`)));
  let seed = 0;
  const draw = async () => {
    const query = new URLSearchParams({ split: choose.value, seed: String(seed++), count: "8", ...(having.value ? { stream: having.value } : {}) });
    try {
      const { data } = /** @type {{data: Sample[]}} */ (await get(`${base}/samples?${query}`, leaving.signal));
      silence();
      fill(list, data.map(sample => h("li", { class: "panel" }, Object.entries(sample.values).sort(byKind).map(([name, value]) => h("div", { class: `value ${value.kind}` }, h("span", { class: "tiny quiet" }, name), valueOf(value, `${name} of ${sample.key}`))), h("p", { class: "quiet tiny mono" }, sample.key))));
    } catch (error) {
      if (!leaving.left) say(error instanceof Error ? error.message : String(error));
    }
  };
  for (const select of [choose, having]) select.addEventListener("change", draw);
  draw();
  return h("section", { "aria-label": "Samples" }, h("div", { class: "row between" }, h("h2", {}, "Drawn at random"), h("span", { class: "row end" }, choose, having, h("button", { type: "button", onclick: draw }, icon("dice"), "Draw again"))), list);
}

const ORDER = ["image", "video", "audio", "text", "action"];

/** @param {[string, {kind: string}]} one @param {[string, {kind: string}]} other */
function byKind([, one], [, other]) {
  return ORDER.indexOf(one.kind) - ORDER.indexOf(other.kind);
}
