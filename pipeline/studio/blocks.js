// What a stage shows, by the type of its blocks: no stage is known here by name.

import { blob } from "./api.js";
import { h, number } from "./dom.js";
import { LineChart } from "./line-chart.js";
import { player } from "./sound.js";

/** @typedef {import("./api.js").Block} Block */
/** @typedef {import("./api.js").Item} Item */
/** @typedef {import("./api.js").Leaving} Leaving */

const FEW = 12; // of a gallery's items that are shown before one asks for all

/** @param {Block[]} all @param {string} base path of the stage @param {Leaving} leaving */
export function blocks(all, base, leaving) {
  return all.map(block => {
    switch (block.type) {
      case "text":
        return h("p", {}, block.text);
      case "table":
        return table(block.title, block.columns, block.rows);
      case "gallery":
        return gallery(block, base, leaving);
      case "bars":
        return block.labels.length ? rows(block) : columns(block);
      case "curves": {
        const chart = new LineChart();
        chart.show(block.title, block.lines, block.x, block.unit);
        return chart;
      }
      default:
        return null;
    }
  });
}

/** @param {string} title @param {string[]} head @param {(string | number | boolean | null)[][]} body */
export function table(title, head, body) {
  const right = head.map((_, at) => body.length > 0 && body.every(row => row[at] === null || typeof row[at] === "number"));
  const cell = (/** @type {string | number | boolean | null} */ value) => (value === null ? "–" : typeof value === "number" ? number(value) : String(value));
  return h(
    "figure",
    { class: "table" },
    title ? h("h3", {}, title) : null,
    h(
      "div",
      { class: "scroll", tabindex: "0", role: "group", "aria-label": title || head.join(", ") },
      h(
        "table",
        {},
        h("thead", {}, h("tr", {}, head.map((name, at) => h("th", { scope: "col", class: right[at] ? "number" : null }, name)))),
        h("tbody", {}, body.map(row => h("tr", {}, row.map((value, at) => h("td", { class: right[at] ? "number" : null }, cell(value)))))),
      ),
    ),
  );
}

/** @param {Block} block @param {string} base @param {Leaving} leaving */
function gallery(block, base, leaving) {
  const judged = block.items.filter(item => item.verdict);
  const right = judged.filter(item => item.verdict === "right").length;
  const list = h("ul", { class: "gallery" }, block.items.slice(0, FEW).map(item => h("li", {}, card(item, base, leaving))));
  if (block.items.some(item => item.before !== undefined)) list.classList.add("pairs");
  if (block.items.every(item => item.wide)) list.classList.add("whole");
  const more =
    block.items.length > FEW
      ? h("button", { type: "button", onclick: () => (list.append(...block.items.slice(FEW).map(item => h("li", {}, card(item, base, leaving)))), more?.remove()) }, `Show all ${block.items.length}`)
      : null;
  return h("figure", {}, block.title ? h("h3", {}, block.title, judged.length ? h("span", { class: "quiet" }, `  ${right} of ${judged.length} right`) : null) : null, list, more);
}

/** @param {Item} item @param {string} base @param {Leaving} leaving */
function card(item, base, leaving) {
  const pictures = [item.before, item.file].filter(file => file !== undefined).map((file, at, both) => picture(`${base}/files/${file}`, both.length > 1 && at === 0 ? "before" : (item.caption ?? ""), leaving));
  const play = h("span", {});
  if (item.sound !== undefined) load(`${base}/files/${item.sound}`, leaving).then(url => url && play.replaceWith(player(url, "Play", `Play: ${item.caption ?? "sound"}`)));
  return h(
    "figure",
    { class: "item" },
    h("div", { class: "pictures" }, pictures),
    item.sound !== undefined ? play : null,
    h("figcaption", {}, item.caption, item.verdict ? h("span", { class: `verdict ${item.verdict}` }, item.verdict === "right" ? "✓ right" : "✗ wrong") : null, item.detail ? h("small", { class: "quiet" }, item.detail) : null),
  );
}

/** A picture of the service, fetched when it comes near. @param {string} path @param {string} words @param {Leaving} leaving */
function picture(path, words, leaving) {
  const image = h("img", { alt: words, class: "pixels" });
  new IntersectionObserver(
    (seen, watch) => {
      if (!seen.some(each => each.isIntersecting)) return;
      watch.disconnect();
      load(path, leaving).then(url => {
        image.addEventListener("load", () => image.classList.toggle("pixels", image.naturalWidth <= 160));
        if (url) image.src = url;
      });
    },
    { rootMargin: "400px" },
  ).observe(image);
  return image;
}

/** @param {string} path @param {Leaving} leaving @returns {Promise<string | null>} a URL that is given back when the view is left */
async function load(path, leaving) {
  try {
    const url = URL.createObjectURL(await blob(path, leaving.signal));
    leaving.signal.addEventListener("abort", () => URL.revokeObjectURL(url));
    return url;
  } catch {
    return null; // left, or no longer there: the words beside it stay
  }
}

/** @param {Block} block */
function rows(block) {
  const top = Math.max(...block.values) <= 1 ? 1 : Math.max(...block.values);
  return h(
    "figure",
    {},
    h("h3", {}, block.title),
    h("ul", { class: "rows" }, block.values.map((value, at) => h("li", {}, h("span", {}, block.labels[at]), h("span", { class: "bar" }, h("i", { style: { width: `${(100 * value) / top}%` } })), h("b", {}, `${number(value)} ${block.unit}`)))),
  );
}

/** @param {Block} block */
function columns(block) {
  const top = Math.max(...block.values, 1e-9);
  return h(
    "figure",
    {},
    h("h3", {}, block.title),
    h("div", { class: "columns", role: "img", "aria-label": `${block.title}: from ${number(Math.max(...block.values))} down to ${number(Math.min(...block.values))}` }, block.values.map(value => h("i", { style: { height: `${(100 * value) / top}%` } }))),
  );
}
