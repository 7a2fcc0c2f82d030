// <line-chart>: numbers over steps. The plot stretches with the page, its letters do not; a line under the pointer reads the values.

import { fill, h, number, svg } from "./dom.js";

/** @typedef {Record<string, [number, number][]>} Lines */

const PLOT = 1000;
const LOG_SPREAD = 60; // a largest value so many times the smallest asks for a logarithmic axis

export class LineChart extends HTMLElement {
  /** @param {string} title @param {Lines} lines @param {string} x @param {string} unit */
  show(title, lines, x, unit) {
    const names = Object.keys(lines).filter(name => lines[name].length);
    const points = names.flatMap(name => lines[name]);
    if (!points.length) return fill(this, h("p", { class: "quiet" }, "Nothing measured yet."));
    const [values, steps] = [points.map(point => point[1]), points.map(point => point[0])];
    const [low, high] = [Math.min(...values), Math.max(...values)];
    const wide = low > 0 && high / low > LOG_SPREAD;
    const told = wide ? Math.log : (/** @type {number} */ value) => value;
    const spread = told(high) - told(low) || Math.abs(told(high)) || 1;
    const [bottom, top] = wide || low < 0 || low > 0.4 * high ? [told(low) - spread * 0.06, told(high) + spread * 0.06] : [0, told(high) * 1.06 || 1];
    const [first, last] = [Math.min(...steps), Math.max(...steps)];
    const along = (/** @type {number} */ step) => (last > first ? ((step - first) / (last - first)) * PLOT : PLOT / 2);
    const down = (/** @type {number} */ value) => PLOT - ((told(value) - bottom) / (top - bottom)) * PLOT;
    const ticks = wide ? decades(low, high) : round(bottom, top);
    const legend = h(
      "ul",
      { class: "legend" },
      names.map((name, at) => h("li", { class: `s${at % 6}` }, h("i", {}), name, " ", h("b", {}, number(/** @type {[number, number]} */ (lines[name].at(-1))[1])))),
    );
    const plot = svg(
      "svg",
      { viewBox: `0 0 ${PLOT} ${PLOT}`, preserveAspectRatio: "none", "aria-hidden": "true" },
      svg("path", { class: "grid", d: ticks.map(tick => `M0 ${down(tick).toFixed(1)}H${PLOT}`).join("") }),
      names.map((name, at) =>
        svg("polyline", { class: `s${at % 6}${lines[name].length === 1 ? " dot" : ""}`, points: lines[name].map(([step, value]) => `${along(step).toFixed(1)},${down(value).toFixed(1)}`).join(" ") }),
      ),
    );
    const area = h("div", { class: "area" }, plot);
    const spoken = names.map(name => `${name} from ${number(lines[name][0][1])} to ${number(/** @type {[number, number]} */ (lines[name].at(-1))[1])}`).join("; ");
    fill(
      this,
      h("h3", {}, title, unit ? h("small", { class: "quiet" }, ` ${unit}`) : null, wide ? h("small", { class: "quiet" }, " logarithmic") : null),
      legend,
      h(
        "div",
        { class: "plot", role: "img", "aria-label": `${title}: ${spoken}` },
        h("div", { class: "side" }, ticks.map(tick => h("span", { style: { top: `${down(tick) / 10}%` } }, short(tick)))),
        area,
        h("div", { class: "foot" }, h("span", {}, `${x} ${number(first)}`), h("span", {}, number(last))),
      ),
    );
    readout(area, lines, names, x, along);
  }
}

/** @param {HTMLElement} area @param {Lines} lines @param {string[]} names @param {string} x @param {(step: number) => number} along */
function readout(area, lines, names, x, along) {
  const cursor = h("div", { class: "cursor", hidden: true });
  const tip = h("div", { class: "tip", hidden: true });
  area.append(cursor, tip);
  area.addEventListener("pointermove", event => {
    const box = area.getBoundingClientRect();
    const at = ((event.clientX - box.left) / box.width) * PLOT;
    const near = names.map(name => lines[name].reduce((one, other) => (Math.abs(along(other[0]) - at) < Math.abs(along(one[0]) - at) ? other : one)));
    const left = along(near[0][0]) / 10;
    cursor.hidden = tip.hidden = false;
    cursor.style.left = `${left}%`;
    tip.style.left = left < 55 ? `calc(${left}% + 10px)` : "";
    tip.style.right = left < 55 ? "" : `calc(${100 - left}% + 10px)`;
    fill(tip, h("div", { class: "quiet" }, `${x} ${number(near[0][0])}`), near.map((point, line) => h("div", {}, h("i", { class: `s${line % 6}` }), `${names[line]} `, h("b", {}, number(point[1])))));
  });
  area.addEventListener("pointerleave", () => (cursor.hidden = tip.hidden = true));
}

/** Three to five round numbers. @param {number} low @param {number} high */
function round(low, high) {
  const raw = (high - low) / 4;
  const base = 10 ** Math.floor(Math.log10(raw));
  const step = ([1, 2, 2.5, 5, 10].find(each => each * base >= raw) ?? 10) * base;
  const ticks = [];
  for (let tick = Math.ceil(low / step) * step; tick <= high + step * 1e-9; tick += step) ticks.push(Math.abs(tick) < step * 1e-9 ? 0 : tick);
  return ticks;
}

/** Powers of ten, at most six of them. @param {number} low @param {number} high */
function decades(low, high) {
  const [first, last] = [Math.ceil(Math.log10(low) - 1e-9), Math.floor(Math.log10(high) + 1e-9)];
  const every = Math.max(1, Math.ceil((last - first + 1) / 6));
  return Array.from({ length: Math.max(0, Math.floor((last - first) / every) + 1) }, (_, at) => 10 ** (first + at * every));
}

/** @param {number} tick */
function short(tick) {
  if (tick === 0) return "0";
  const size = Math.abs(tick);
  if (size >= 1e6) return `${+(tick / 1e6).toPrecision(3)}M`;
  if (size >= 1e4) return `${+(tick / 1e3).toPrecision(3)}k`;
  return size < 1e-3 ? tick.toExponential(0) : String(+tick.toPrecision(4));
}

customElements.define("line-chart", LineChart);
