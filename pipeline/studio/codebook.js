// The whole codebook as a picture: a square for every code, the deeper its colour the more often it is chosen.

import { get } from "./api.js";
import "./code-grid.js";
import { choice, colourNamed, h, number } from "./dom.js";

/** @typedef {import("./api.js").Tokenizer} Tokenizer */
/** @typedef {import("./api.js").Leaving} Leaving */

const PLAIN = 4096; // codes that are drawn at most: more squares would be dust

/**
 * Draws the codebook into `place`: counted over a dataset where one is at hand, else in the value itself.
 * @param {Tokenizer} info @param {number[]} codes of the value
 * @param {{run: string, stage: string, stream: {name: string}} | undefined} counted
 * @param {HTMLElement} place @param {(code: number | null, level: number) => void} then @param {Leaving} leaving
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
  const canvas = h("canvas", { class: "squares", tabindex: "0", role: "application", "aria-roledescription": "codebook" });
  const note = h("p", { class: "quiet tiny" });
  let level = 0;
  let walked = -1; // where the arrow keys are
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
      if (code === walked) {
        pen.fillStyle = mark;
        pen.fillRect(x + 4, y + 4, side - 8, side - 8);
      }
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
    canvas.setAttribute("aria-label", `Use of the codebook: ${note.textContent} The arrow keys walk, Enter marks a code.`);
  };
  const codeAt = (/** @type {MouseEvent} */ event) => {
    const box = canvas.getBoundingClientRect();
    const wide = columns();
    const code = Math.floor(((event.clientY - box.top) / box.height) * (canvas.height / 12)) * wide + Math.floor(((event.clientX - box.left) / box.width) * wide);
    return code >= 0 && code < Math.min(PLAIN, counts[level].length) ? code : null;
  };
  const told = h("output", { class: "told", "aria-live": "polite" }, "\u00a0");
  const tell = (/** @type {number | null} */ code) => {
    const times = code === null ? "" : `chosen ${number(counts[level][code])} times${use ? `, ${number(here[level][code])} times here` : ""}`;
    told.textContent = code === null ? "\u00a0" : `Code ${code}: ${times}`;
  };
  const pick = (/** @type {number | null} */ code) => {
    marked = code === marked ? null : code;
    draw();
    then(marked, level);
  };
  canvas.addEventListener("pointermove", event => tell(codeAt(event)));
  canvas.addEventListener("click", event => pick(codeAt(event)));
  canvas.addEventListener("keydown", event => {
    const step = /** @type {Record<string, number>} */ ({ ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns(), ArrowDown: columns() })[event.key];
    if (step) walked = Math.min(Math.min(PLAIN, counts[level].length) - 1, Math.max(0, walked < 0 ? 0 : walked + step));
    else if (event.key === "Enter" && walked >= 0) pick(walked);
    else return;
    event.preventDefault();
    draw();
    tell(walked);
  });
  canvas.addEventListener("blur", () => ((walked = -1), draw()));
  document.addEventListener("themechange", draw, { signal: leaving.signal });
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
