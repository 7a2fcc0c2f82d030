// A dream: the arrow keys, or the buttons, say what is done, and the world says what comes of it.

import { ApiError, post, remove, urlOf } from "./api.js";
import { fill, h, icon, number, say } from "./dom.js";

/** @typedef {import("./api.js").World} World */
/** @typedef {import("./api.js").Step} Step */
/** @typedef {import("./api.js").Leaving} Leaving */
/** @typedef {import("./api.js").Actions} Actions */
/** @typedef {{id: string, frames: string, actions: Actions | null, first: Step}} Opened */
/** @typedef {number | number[] | null} Action */
/** @typedef {{action: Action, name: string}} Press */

const ARROWS = /** @type {Record<string, string>} */ ({ ArrowUp: "up", ArrowDown: "down", ArrowLeft: "left", ArrowRight: "right" });
const STILL = ["none", "noop", "stay", "still"];
const KEPT = 48; // frames on the strip
const SLOWEST = 70; // ms that a frame stays at least, so that one sees it

/** @param {World} world @param {Leaving} leaving @returns {Promise<HTMLElement>} */
export async function dream(world, leaving) {
  const screen = h("img", { class: "pixels", alt: "the dream, before its first frame" });
  const strip = h("ol", { class: "strip", tabindex: "0", "aria-label": "What was dreamed so far" });
  const told = h("p", { class: "told", role: "status" }, "\u00a0");
  const pad = h("div", { class: "pad", role: "group", "aria-label": "Actions" });
  const temperature = h("input", { type: "range", id: "dream-heat", min: "0", max: "1.5", step: "0.05", value: "0.25" });
  const heat = h("output", { for: "dream-heat" }, "0.25");
  temperature.addEventListener("input", () => (heat.textContent = temperature.value));
  const heard = h("input", { type: "checkbox", id: "heard", checked: true });
  /** @type {Opened | null} */
  let session = null;
  /** @type {Map<string, Press>} what is held down, by the key or pointer that holds it; the last of them is what is done */
  const held = new Map();
  /** @type {Press | null} what was pressed since the last step: it is done once, however soon it is let go */
  let pressed = null;
  let acting = false;
  let seed = Math.floor(Math.random() * 1e6);
  let rate = 0;

  const show = (/** @type {Step} */ step, /** @type {string} */ name) => {
    const frame = session && step.values[session.frames];
    if (!frame) return;
    screen.src = urlOf(frame);
    screen.alt = `frame ${step.step} of the dream`;
    strip.append(h("li", {}, h("img", { src: urlOf(frame), alt: `frame ${step.step}`, class: "pixels" }), h("span", {}, name)));
    while (strip.children.length > KEPT) strip.firstChild?.remove();
    strip.scrollLeft = strip.scrollWidth;
    const numbers = Object.entries(step.numbers).filter(([stream]) => stream !== session?.actions?.stream);
    told.textContent = `Step ${step.step}${name ? ` · ${name}` : ""}${rate ? ` · ${rate.toFixed(1)} frames a second` : ""}${numbers.map(([stream, values]) => ` · ${stream} ${values.map(number).join(", ")}`).join("")}`;
    const sound = Object.values(step.values).find(value => value.media_type === "audio/wav");
    if (sound && heard.checked && name) new Audio(urlOf(sound)).play().catch(() => undefined);
  };
  const leave = () => {
    if (session) remove(`/v1/rollouts/${session.id}`).catch(() => undefined);
    session = null;
  };
  let opening = 0; // how many dreams have been asked for: of those that come, the last one stays
  const open = async () => {
    leave();
    letGo();
    fill(strip);
    const mine = ++opening;
    const opened = /** @type {Opened} */ (await post("/v1/rollouts", { seed, sample: seed, temperature: Number(temperature.value) }, leaving.signal));
    if (mine !== opening) {
      remove(`/v1/rollouts/${opened.id}`).catch(() => undefined);
      return;
    }
    seed++;
    session = opened;
    rate = 0;
    show(opened.first, "");
    fill(pad, buttons(opened.actions));
  };
  /** One step of a dream. @param {Press} what @param {Opened} mine */
  const step = async ({ action, name }, mine) => {
    try {
      const began = performance.now();
      const { data } = /** @type {{data: Step[]}} */ (await post(`/v1/rollouts/${mine.id}/act`, { action, steps: 1 }, leaving.signal));
      const took = performance.now() - began;
      if (took < SLOWEST) await new Promise(resolve => setTimeout(resolve, SLOWEST - took));
      if (session !== mine) return;
      rate = rate ? 0.7 * rate + 300 / (performance.now() - began) : 1000 / (performance.now() - began);
      for (const each of data) show(each, name);
    } catch (error) {
      if (leaving.left || session !== mine) return;
      letGo();
      say(error instanceof ApiError && error.status === 404 ? "This dream has ended. Begin another." : error instanceof Error ? error.message : String(error));
    }
  };
  /** Does what is held now, as long as something is. */
  const go = async () => {
    if (acting) return;
    acting = true;
    while (session && !leaving.left) {
      const now = pressed ?? [...held.values()].at(-1);
      pressed = null;
      if (!now) break;
      await step(now, session);
    }
    acting = false;
  };
  /** @param {Press} what @param {string} [by] the key or pointer that holds it */
  const press = (what, by) => {
    pressed = what;
    if (by) held.set(by, what);
    mark();
    go();
  };
  /** @param {string} [by] all that is held, where nothing is said */
  const letGo = by => {
    if (by) held.delete(by);
    else {
      held.clear();
      pressed = null;
    }
    mark();
  };
  const mark = () => {
    const names = [...held.values()].map(each => each.name);
    for (const each of /** @type {NodeListOf<HTMLButtonElement>} */ (pad.querySelectorAll("button.act"))) each.classList.toggle("held", names.includes(each.title));
  };

  /** @param {Actions | null} actions */
  const buttons = actions => {
    if (!actions) return button(null, "go on", "right", "go");
    if (actions.choices === null) return reals(actions);
    const names = Array.from({ length: actions.choices }, (_, at) => actions.names[at] ?? `action ${at}`);
    return names.map((name, at) => {
      const plain = name.toLowerCase();
      const arrow = Object.values(ARROWS).includes(plain) ? plain : STILL.includes(plain) ? "still" : "";
      return button(actions.dimensions === 1 ? at : Array(actions.dimensions).fill(at), name, arrow, arrow || String(at));
    });
  };
  /** @param {Action} action @param {string} name @param {string} drawing @param {string} place */
  const button = (action, name, drawing, place) => {
    const made = h("button", { type: "button", class: `act ${place}`, "aria-label": name, title: name, data: { name: name.toLowerCase() } }, drawing ? icon(drawing) : name);
    made.addEventListener("pointerdown", event => {
      made.setPointerCapture(event.pointerId);
      press({ action, name }, `pointer ${event.pointerId}`);
    });
    for (const type of /** @type {const} */ (["pointerup", "pointercancel", "lostpointercapture"])) made.addEventListener(type, event => letGo(`pointer ${event.pointerId}`));
    made.addEventListener("click", event => event.detail === 0 && press({ action, name }));
    made.addEventListener("contextmenu", event => event.preventDefault());
    Object.assign(made, { press: (/** @type {string} */ by) => press({ action, name }, by) });
    return made;
  };
  /** @param {Actions} actions */
  const reals = actions => {
    const field = h("input", { type: "text", value: Array(actions.dimensions).fill(0).join(", "), "aria-label": `${actions.dimensions} numbers, with commas between them` });
    const once = () => press({ action: field.value.split(",").map(Number), name: field.value });
    return h("div", { class: "row reals" }, field, h("button", { type: "button", onclick: once }, "Act"));
  };

  const down = (/** @type {KeyboardEvent} */ event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || /INPUT|TEXTAREA|SELECT/.test(/** @type {Element} */ (event.target).tagName)) return;
    const name = ARROWS[event.key];
    const digit = /^[0-9]$/.test(event.key) ? Number(event.key) : -1;
    const all = /** @type {(HTMLButtonElement & {press: (by: string) => void})[]} */ ([...pad.querySelectorAll("button.act")]);
    const found = name ? all.find(each => each.dataset.name === name) ?? (all.length === 1 ? all[0] : undefined) : digit >= 0 ? all[digit] : undefined;
    if (!found) return;
    event.preventDefault();
    if (event.repeat) return;
    found.press(event.code);
  };
  const up = (/** @type {KeyboardEvent} */ event) => letGo(event.code);
  const away = () => letGo();
  document.addEventListener("keydown", down);
  document.addEventListener("keyup", up);
  addEventListener("blur", away);
  leaving.signal.addEventListener("abort", () => {
    document.removeEventListener("keydown", down);
    document.removeEventListener("keyup", up);
    removeEventListener("blur", away);
    leave();
  });
  const again = h("button", { type: "button", class: "main", onclick: () => open().catch(error => leaving.left || say(error.message)) }, icon("again"), "Another dream");
  await open();
  const sounds = world.streams.some(stream => stream.on_clock && stream.kind === "audio");
  return h(
    "div",
    { class: "pair dreaming" },
    h("section", { class: "panel theatre", "aria-label": "The dream" }, h("div", { class: "screen" }, screen), told, pad, h("p", { class: "quiet tiny keys" }, "Arrow keys, or number keys for the other actions. Hold one to go on.")),
    h(
      "div",
      { class: "stack" },
      h("section", { class: "panel", "aria-label": "What was dreamed" }, h("h2", {}, "So far"), strip),
      h(
        "section",
        { class: "panel stack" },
        h("h2", {}, "Begin elsewhere"),
        h("label", { class: "field", for: "dream-heat" }, h("span", { class: "row between" }, "Temperature", heat), temperature, h("span", { class: "hint" }, "of the next dream")),
        sounds ? h("label", { class: "check", for: "heard" }, heard, h("span", {}, "With sound")) : null,
        h("div", { class: "row" }, again),
      ),
    ),
  );
}
