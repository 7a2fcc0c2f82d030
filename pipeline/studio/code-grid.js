// <code-grid>: the codes of a picture, or of a sound over time, as a grid that lies over it.
//
// Everything is drawn on one canvas, so a grid may have thousands of cells; one below 0 is empty. Pointing at a cell, or walking there with the arrow keys, sends
// "codehover" {code, row, column, many}; clicking, or Enter, marks all cells of that code and sends "codepick".

import { colourNamed, colourOf } from "./dom.js";

/** @typedef {{code: number, level: number, row: number, column: number, many: number}} Cell */

export class CodeGrid extends HTMLElement {
  constructor() {
    super();
    /** @type {number[]} */
    this.codes = [];
    this.rows = 1;
    this.columns = 1;
    this.size = Infinity; // of a level's codebook: code + level * size tells the levels' codes apart
    this.coloured = false;
    /** @type {number | null} */
    this.picked = null;
    this.at = -1;
    this.walked = 0;
    this.veil = true;
    this.canvas = document.createElement("canvas");
    this.watch = new ResizeObserver(() => this.draw());
    this.redraw = () => this.draw();
    this.addEventListener("pointermove", event => this.point(this.cellAt(event)));
    this.addEventListener("pointerleave", () => this.point(-1));
    this.addEventListener("click", event => this.pick(this.cellAt(event)));
    this.addEventListener("keydown", event => this.key(event));
    this.addEventListener("focus", () => this.matches(":focus-visible") && this.point(this.walked));
    this.addEventListener("blur", () => this.point(-1));
  }

  connectedCallback() {
    if (!this.canvas.isConnected) this.append(this.canvas);
    this.tabIndex = 0;
    this.setAttribute("role", "application");
    this.setAttribute("aria-roledescription", "grid of codes");
    this.watch.observe(this);
    document.addEventListener("themechange", this.redraw);
  }

  disconnectedCallback() {
    this.watch.disconnect();
    document.removeEventListener("themechange", this.redraw);
  }

  /**
   * Shows other codes: row by row, the first at the top left.
   * @param {number[]} codes @param {number} rows @param {number} columns @param {string} what
   */
  show(codes, rows, columns, what) {
    Object.assign(this, { codes, rows, columns });
    this.walked = Math.min(this.walked, codes.length - 1);
    this.setAttribute("aria-label", `${what}: ${rows} by ${columns} codes. The arrow keys walk, Enter marks all cells of a code.`);
    this.draw();
  }

  /** Fills the cells with their codes' colours, or leaves what lies below in sight. @param {boolean} coloured */
  colour(coloured) {
    this.coloured = coloured;
    this.draw();
  }

  /** Marks a code's cells; null marks none. @param {number | null} code */
  mark(code) {
    this.picked = code;
    this.draw();
  }

  /** @param {MouseEvent} event */
  cellAt(event) {
    const box = this.canvas.getBoundingClientRect();
    const column = Math.floor(((event.clientX - box.left) / box.width) * this.columns);
    const row = Math.floor(((event.clientY - box.top) / box.height) * this.rows);
    return column >= 0 && column < this.columns && row >= 0 && row < this.rows ? row * this.columns + column : -1;
  }

  /** @param {number} at */
  point(at) {
    if (at === this.at) return;
    this.at = at;
    this.draw();
    this.dispatchEvent(new CustomEvent("codehover", { detail: this.cell(at) }));
  }

  /** @param {number} at */
  pick(at) {
    if (at < 0 || at >= this.codes.length) return;
    this.walked = at;
    this.mark(this.codes[at] === this.picked ? null : this.codes[at]);
    this.dispatchEvent(new CustomEvent("codepick", { detail: this.picked === null ? null : this.cell(at) }));
  }

  /** @param {number} at @returns {Cell | null} */
  cell(at) {
    if (at < 0 || at >= this.codes.length) return null;
    const code = this.codes[at];
    const level = Number.isFinite(this.size) ? Math.floor(code / this.size) : 0;
    return { code: level ? code - level * this.size : code, level, row: Math.floor(at / this.columns), column: at % this.columns, many: this.codes.filter(each => each === code).length };
  }

  /** @param {KeyboardEvent} event */
  key(event) {
    const moves = /** @type {Record<string, [number, number]>} */ ({ ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] });
    if (event.key in moves) {
      const [down, along] = moves[event.key];
      const row = Math.min(this.rows - 1, Math.max(0, Math.floor(this.walked / this.columns) + down));
      const column = Math.min(this.columns - 1, Math.max(0, (this.walked % this.columns) + along));
      this.walked = row * this.columns + column;
      this.point(this.walked);
    } else if (event.key === "Enter" || event.key === " ") this.pick(this.walked);
    else if (event.key === "Escape") {
      this.mark(null);
      this.dispatchEvent(new CustomEvent("codepick", { detail: null }));
    } else return;
    event.preventDefault();
  }

  draw() {
    const { width, height } = this.getBoundingClientRect();
    if (!width || !height || !this.codes.length) return;
    const ratio = Math.min(3, devicePixelRatio || 1);
    this.canvas.width = Math.round(width * ratio);
    this.canvas.height = Math.round(height * ratio);
    const pen = /** @type {CanvasRenderingContext2D} */ (this.canvas.getContext("2d"));
    pen.scale(ratio, ratio);
    const across = width / this.columns;
    const down = height / this.rows;
    const [marking, empty] = [colourNamed("--mark"), colourNamed("--sunk")];
    this.codes.forEach((code, at) => {
      const [x, y] = [(at % this.columns) * across, Math.floor(at / this.columns) * down];
      if (code < 0) {
        pen.fillStyle = empty;
        pen.fillRect(x + 1, y + 1, across - 2, down - 2);
        return;
      }
      if (this.coloured) {
        pen.fillStyle = colourOf(code);
        pen.fillRect(x, y, across + 0.5, down + 0.5);
        if (across >= 24 && down >= 15) this.label(pen, Number.isFinite(this.size) ? code % this.size : code, x, y, across, down);
      }
      if (this.picked !== null && code !== this.picked && this.veil) {
        pen.fillStyle = "rgb(10 12 16 / .56)";
        pen.fillRect(x, y, across + 0.5, down + 0.5);
      }
    });
    if (!this.coloured) this.lines(pen, width, height, across, down);
    const pointed = this.at >= 0 ? this.codes[this.at] : null;
    this.codes.forEach((code, at) => {
      if (at !== this.at && code === pointed && this.picked === null) this.outline(pen, at, across, down, "rgb(255 255 255 / .95)", 1.5);
      if (code === this.picked) this.outline(pen, at, across, down, marking, 2.5);
    });
    if (this.at >= 0) this.outline(pen, this.at, across, down, "#fff", 3);
  }

  /** @param {CanvasRenderingContext2D} pen @param {number} width @param {number} height @param {number} across @param {number} down */
  lines(pen, width, height, across, down) {
    if (Math.min(across, down) < 5) return;
    for (const [colour, shift] of /** @type {[string, number][]} */ ([["rgb(0 0 0 / .30)", 0.5], ["rgb(255 255 255 / .42)", -0.5]])) {
      pen.strokeStyle = colour;
      pen.lineWidth = 1;
      pen.beginPath();
      for (let column = 1; column < this.columns; column++) {
        pen.moveTo(Math.round(column * across) + shift, 0);
        pen.lineTo(Math.round(column * across) + shift, height);
      }
      for (let row = 1; row < this.rows; row++) {
        pen.moveTo(0, Math.round(row * down) + shift);
        pen.lineTo(width, Math.round(row * down) + shift);
      }
      pen.stroke();
    }
  }

  /** @param {CanvasRenderingContext2D} pen @param {number} at @param {number} across @param {number} down @param {string} colour @param {number} thick */
  outline(pen, at, across, down, colour, thick) {
    const [x, y] = [(at % this.columns) * across, Math.floor(at / this.columns) * down];
    const inset = thick / 2 + 0.5;
    pen.lineWidth = thick + 2;
    pen.strokeStyle = "rgb(0 0 0 / .5)";
    pen.strokeRect(x + inset, y + inset, across - 2 * inset, down - 2 * inset);
    pen.lineWidth = thick;
    pen.strokeStyle = colour;
    pen.strokeRect(x + inset, y + inset, across - 2 * inset, down - 2 * inset);
  }

  /** @param {CanvasRenderingContext2D} pen @param {number} code @param {number} x @param {number} y @param {number} across @param {number} down */
  label(pen, code, x, y, across, down) {
    pen.fillStyle = "rgb(0 0 0 / .78)";
    pen.font = `${Math.min(15, across / 3, down * 0.6)}px ui-monospace, Menlo, Consolas, monospace`;
    pen.textAlign = "center";
    pen.textBaseline = "middle";
    pen.fillText(String(code), x + across / 2, y + down / 2);
  }
}

customElements.define("code-grid", CodeGrid);
