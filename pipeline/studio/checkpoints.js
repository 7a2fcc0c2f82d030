// What a training made at each of its checkpoints, asked the same thing every time.

import { get } from "./api.js";
import { fill, h, number } from "./dom.js";
import { sampleCard } from "./samples.js";

/** @typedef {import("./api.js").Leaving} Leaving */
/** @typedef {{step: number, samples: {caption: string, verdict: string | null, detail: string, value: import("./api.js").SampleValue}[]}} Made */

/** Offers those that are not offered yet, behind the others. @param {HTMLElement} place @param {string} base path of the stage @param {number[]} steps @param {Leaving} leaving */
export function offer(place, base, steps, leaving) {
  if (!steps.length) return;
  if (!place.firstChild)
    fill(place, h("figure", { class: "checkpoints" }, h("h3", {}, "Samples of its checkpoints"), h("p", { class: "quiet tiny" }, "The same request and the same seed every time."), h("div", { class: "row" }), h("div", { class: "stack" })));
  const [row, made] = /** @type {HTMLElement[]} */ ([place.querySelector(".row"), place.querySelector(".stack")]);
  const offered = new Set([...row.children].map(each => Number(/** @type {HTMLElement} */ (each).dataset.step)));
  row.append(...steps.filter(step => !offered.has(step)).map(step => button(base, step, made, leaving)));
}

/** @param {string} base @param {number} step @param {HTMLElement} place @param {Leaving} leaving */
function button(base, step, place, leaving) {
  return h(
    "button",
    {
      type: "button",
      data: { step },
      onclick: async (/** @type {MouseEvent} */ event) => {
        const button = /** @type {HTMLButtonElement} */ (event.currentTarget);
        button.disabled = true;
        try {
          const made = /** @type {Made} */ (await get(`${base}/checkpoints/${step}`, leaving.signal));
          const line = h(
            "section",
            { "aria-label": `Step ${step}`, data: { step } },
            h("h3", {}, `Step ${number(step)}`),
            h("ul", { class: "gallery" }, made.samples.map(each => h("li", {}, sampleCard(each.value, each.caption, each.verdict, each.detail)))),
          );
          const after = [...place.children].find(other => Number(/** @type {HTMLElement} */ (other).dataset.step) > step);
          place.insertBefore(line, after ?? null);
        } catch (error) {
          if (!leaving.left) place.append(h("p", { class: "trouble" }, error instanceof Error ? error.message : String(error)));
          button.disabled = false;
        }
      },
    },
    `Step ${number(step)}`,
  );
}
