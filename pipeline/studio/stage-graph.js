// <stage-graph>: the stages of a run and what they read, from left to right where there is room, else from top to bottom.

import { duration, fill, svg } from "./dom.js";

/** @typedef {import("./api.js").StageLine} StageLine */

const WORDS = /** @type {Record<string, string>} */ ({ done: "done", running: "running", failed: "failed", interrupted: "interrupted", waiting: "waiting" });
const EDGE = 2; // px around the drawing, for the lines of its outermost boxes

export class StageGraph extends HTMLElement {
  constructor() {
    super();
    /** @type {StageLine[]} */
    this.stages = [];
    this.run = "";
    this.chosen = "";
    this.lying = true;
    this.drawn = 0; // width that it was drawn for
    this.watch = new ResizeObserver(() => this.stages.length > 0 && this.clientWidth > 0 && this.clientWidth !== this.drawn && this.draw());
  }

  connectedCallback() {
    this.watch.observe(this);
    if (this.stages.length) this.draw();
  }

  disconnectedCallback() {
    this.watch.disconnect();
  }

  /** @param {string} run @param {StageLine[]} stages @param {string} chosen */
  show(run, stages, chosen) {
    Object.assign(this, { run, stages, chosen });
    this.draw();
  }

  fits() {
    return this.clientWidth === 0 || this.clientWidth >= Math.min(620, this.layers().length * 150);
  }

  layers() {
    /** @type {Map<string, number>} */
    const depth = new Map();
    const names = new Set(this.stages.map(stage => stage.name));
    for (const stage of this.stages)
      depth.set(stage.name, 1 + Math.max(-1, ...stage.inputs.filter(name => names.has(name)).map(name => depth.get(name) ?? -1)));
    return Array.from({ length: Math.max(0, ...depth.values()) + 1 }, (_, layer) => this.stages.filter(stage => depth.get(stage.name) === layer));
  }

  draw() {
    const layers = this.layers();
    this.lying = this.fits();
    this.drawn = this.clientWidth;
    const most = Math.max(...layers.map(layer => layer.length));
    const [width, height] = this.lying ? [172, 58] : [136, 58];
    const [across, along] = this.lying ? [14, 44] : [6, 26];
    const [pitch, side] = this.lying ? [width + along, height + across] : [height + along, width + across];
    const rows = this.lying ? most : Math.min(most, Math.max(1, Math.floor((this.clientWidth - 2 * EDGE + across) / (width + across))));
    /** @type {Map<string, [number, number]>} */
    const places = new Map();
    let deep = 0;
    for (const layer of layers) {
      for (let start = 0; start < layer.length; start += rows) {
        const part = layer.slice(start, start + rows);
        const shift = ((rows - part.length) * side) / 2;
        part.forEach((stage, at) => places.set(stage.name, this.lying ? [deep * pitch, at * side + shift] : [at * side + shift, deep * pitch]));
        deep++;
      }
    }
    const whole = this.lying ? [deep * pitch - along, rows * side - across] : [rows * side - across, deep * pitch - along];
    const edges = this.stages.flatMap(stage =>
      stage.inputs.map(name => {
        const [from, to] = [places.get(name), places.get(stage.name)];
        if (!from || !to) return null;
        const [x, y, u, v] = this.lying
          ? [from[0] + width, from[1] + height / 2, to[0], to[1] + height / 2]
          : [from[0] + width / 2, from[1] + height, to[0] + width / 2, to[1]];
        const half = this.lying ? (u - x) / 2 : (v - y) / 2;
        return svg("path", { class: "edge", d: this.lying ? `M${x} ${y}C${x + half} ${y} ${u - half} ${v} ${u} ${v}` : `M${x} ${y}C${x} ${y + half} ${u} ${v - half} ${u} ${v}` });
      }),
    );
    const nodes = this.stages.map(stage => {
      const [x, y] = places.get(stage.name) ?? [0, 0];
      const share = stage.progress && stage.state === "running" ? stage.progress.done / Math.max(1, stage.progress.total) : null;
      const note = share === null ? (stage.seconds === null ? WORDS[stage.state] : duration(stage.seconds)) : `${Math.floor(100 * share)} %`;
      const name = cut(stage.name, this.lying ? 17 : 13);
      const words = WORDS[stage.state] ?? stage.state;
      return svg(
        "a",
        {
          href: `#/runs/${encodeURIComponent(this.run)}/${encodeURIComponent(stage.name)}`,
          class: `node ${stage.state}`,
          "aria-current": stage.name === this.chosen ? "true" : null,
        },
        svg("rect", { x, y, width, height, rx: 11 }),
        share === null ? null : svg("rect", { class: "share", x: x + 1, y: y + height - 5, width: Math.max(4, (width - 2) * share), height: 4, rx: 2 }),
        svg("circle", { cx: x + 17, cy: y + 22, r: 4.5 }, svg("title", {}, words)),
        svg("text", { class: "name", x: x + 30, y: y + 26.5 }, name),
        " ",
        svg("text", { x: x + 30, y: y + 44 }, note),
      );
    });
    const [wide, high] = whole.map(size => size + 2 * EDGE);
    fill(this, svg("svg", { viewBox: `${-EDGE} ${-EDGE} ${wide} ${high}`, width: wide, height: high, role: "group", "aria-label": "Stages" }, edges, nodes));
  }
}

/** @param {string} text @param {number} most */
function cut(text, most) {
  return text.length > most ? `${text.slice(0, most - 1)}…` : text;
}

customElements.define("stage-graph", StageGraph);
