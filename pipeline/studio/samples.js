// Values of a sample to look at and listen to.

import { h, icon, number } from "./dom.js";
import { player } from "./sound.js";

/** @typedef {import("./api.js").SampleValue} SampleValue */

/** @param {SampleValue} value @param {string} words */
export function valueOf(value, words) {
  if (value.kind === "text") return h("p", { class: "said" }, value.text);
  if (value.rows) return h("p", { class: "mono tiny" }, value.rows.map(row => (row.length === 1 ? number(row[0]) : `(${row.map(number).join(", ")})`)).join("  "));
  const image = value.picture ? h("img", { src: value.picture, alt: words, class: value.sound ? "heard" : "pixels", loading: "lazy" }) : null;
  image?.addEventListener("load", () => image.classList.toggle("pixels", image.naturalWidth <= 96));
  return value.sound ? h("div", {}, image, player(value.sound, "Play", `Play: ${words}`)) : image;
}

/** @param {SampleValue} value @param {string} caption @param {string | null} verdict @param {string} detail */
export function sampleCard(value, caption, verdict, detail) {
  return h(
    "figure",
    { class: "item" },
    valueOf(value, caption),
    h("figcaption", {}, caption, verdict ? h("span", { class: `verdict ${verdict}` }, verdict === "right" ? "✓ right" : "✗ wrong") : null, detail ? h("small", { class: "quiet" }, detail) : null),
  );
}

/** A stream's name with the sign of its kind. @param {string} name @param {string} kind */
export function streamName(name, kind) {
  return h("span", { class: "stream", title: kind }, icon(kind), name);
}
