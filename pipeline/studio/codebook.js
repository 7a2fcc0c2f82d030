// The whole codebook as a picture: a square for every code, the deeper its colour the more often it is chosen.

import { get } from "./api.js";
import "./code-grid.js";
import { choice, colourNamed, h, number } from "./dom.js";

/** @typedef {import("./api.js").Tokenizer} Tokenizer */
/** @typedef {import("./api.js").Leaving} Leaving */

const PLAIN = 4096; // codes above which squares would be dust: then only those that are chosen most are drawn

/**
 * Draws the codebook into `place`: counted over a dataset where one is at hand, else in the value itself.
 * @param {Tokenizer} info @param {number[]} codes of the value
 * @param {{run: string, stage: string, stream: {name: string}} | undefined} counted
 * @param {HTMLElement} place @param {(code: number | null) => void} then @param {Leaving} leaving
 * @returns {Promise<{mark: (code: number | null, level: number) => void} | null>}
 */
export async function codebookPicture(info, codes, counted, place, then, leaving) {
  const here = Array.from({ length: info.levels }, () => Array(info.codebook_size).fill(0));
  codes.forEach((code, at) => here[at % info.levels][code]++);
  /** @type {{samples: number, split: string, counts: number[][]} | null} */
  const use = counted
    ? await get(`/v1/datasets/${counted.run}/${counted.stage}/use?${new URLSearchParams({ stream: counted.stream.name })}`, leaving.signal)
    : null;
  const counts = use?.counts ?? here;
  const canvas = h("canvas", { class: "squares" });
  const note = h("p", { class: "quiet tiny" });
  let level = 0;
  /** @type {number | null} */
  let marked = null;
  const columns = () => Math.ceil(Math.sqrt(Math.min(PLAIN, info.codebook_size) * 2));
  const draw = () => {
    const of = counts[level];
    const many = Math.min(PLAIN, of.length);
    const wide = columns();
    const tall = Math.ceil(many / wide);
    const side = 12;
    canvas.width = wide * side;
    canvas.height = tall * side;
    const pen = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
    const [full, empty, framed, mark] = ["--s0", "--sunk", "--s1", "--ink"].map(colourNamed);
    const most = Math.log1p(Math.max(...of));
    for (let code = 0; code < many; code++) {
      const [x, y] = [(code % wide) * side, Math.floor(code / wide) * side];
      pen.globalAlpha = of[code] ? 0.18 + (0.82 * Math.log1p(of[code])) / most : 1;
      pen.fillStyle = of[code] ? full : empty;
      pen.fillRect(x + 1, y + 1, side - 2, side - 2);
      pen.globalAlpha = 1;
      if (here[level][code] || code === marked) {
        pen.strokeStyle = code === marked ? mark : framed;
        pen.lineWidth = code === marked ? 3 : 2;
        pen.strokeRect(x + 1.5, y + 1.5, side - 3, side - 3);
      }
    }
    const used = of.filter(count => count > 0).length;
    const sum = of.reduce((all, count) => all + count, 0);
    const entropy = of.reduce((all, count) => all - (count ? (count / sum) * Math.log2(count / sum) : 0), 0);
    note.textContent = use
      ? `${number(used)} of ${number(of.length)} codes chosen in ${number(use.samples)} samples (${use.split}), as if ${number(Math.round(2 ** entropy))} were chosen alike. Framed: those in this value.`
      : `${number(used)} of ${number(of.length)} codes are in this value.`;
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `Use of the codebook: ${note.textContent}`);
  };
  const codeAt = (/** @type {MouseEvent} */ event) => {
    const box = canvas.getBoundingClientRect();
    const wide = columns();
    const code = Math.floor(((event.clientY - box.top) / box.height) * (canvas.height / 12)) * wide + Math.floor(((event.clientX - box.left) / box.width) * wide);
    return code >= 0 && code < counts[level].length ? code : null;
  };
  const told = h("p", { class: "told" }, "\u00a0");
  canvas.addEventListener("pointermove", event => {
    const code = codeAt(event);
    told.textContent = code === null ? "\u00a0" : `Code ${code}: chosen ${number(counts[level][code])} times, ${number(here[level][code])} of them here`.replace(use ? "" : /, \d+ of them here/, "");
  });
  canvas.addEventListener("click", event => {
    const code = codeAt(event);
    marked = code === marked ? null : code;
    draw();
    then(marked);
  });
  document.addEventListener("themechange", () => canvas.isConnected && draw());
  const levels = info.levels > 1 ? choice("Level of the codebook", counts.map((_, at) => [String(at), `Level ${at + 1}`]), "0", value => ((level = Number(value)), draw())) : null;
  place.replaceChildren(...[levels, canvas, told, note].filter(each => each !== null));
  draw();
  return {
    mark: (code, at) => {
      marked = code;
      level = Math.min(at, counts.length - 1);
      draw();
    },
  };
}
