// Elements built as values. Text is always text: nothing that a user or a file says becomes markup.

/** @typedef {Node | string | number | null | undefined | false | Child[]} Child */

/**
 * One element. Attributes that are null or false are left out; those whose name begins with "on" are listeners; `data` and `style` take objects.
 * @template {keyof HTMLElementTagNameMap} K
 * @param {K} name
 * @param {Record<string, any>} [attributes]
 * @param {...Child} children
 * @returns {HTMLElementTagNameMap[K]}
 */
export function h(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  assign(element, attributes);
  element.append(...nodes(children));
  return element;
}

/**
 * @param {string} name
 * @param {Record<string, any>} [attributes]
 * @param {...Child} children
 * @returns {SVGElement}
 */
export function svg(name, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  assign(element, attributes);
  element.append(...nodes(children));
  return element;
}

/** @param {Element & ElementCSSInlineStyle} element @param {Record<string, any>} attributes */
function assign(element, attributes) {
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key === "style") for (const [property, told] of Object.entries(value)) element.style.setProperty(property, String(told));
    else if (key === "data") Object.assign(/** @type {HTMLElement} */ (element).dataset, value);
    else element.setAttribute(key, value === true ? "" : String(value));
  }
}

/** @param {Child[]} children @returns {(Node | string)[]} */
function nodes(children) {
  return children.flat(9).flatMap(child => (child === null || child === undefined || child === false ? [] : [child instanceof Node ? child : String(child)]));
}

/** @param {Element} parent @param {...Child} children */
export function fill(parent, ...children) {
  parent.replaceChildren(...nodes(children));
}

const DRAWN = {
  play: "M8 5v14l11-7z",
  stop: "M7 7h10v10H7z",
  dice: "M4 7h3.500l8.500 10h4M4 17h3.500l2.300-2.700M13.700 9.700L16 7h4M18 5l2 2-2 2M18 15l2 2-2 2",
  upload: "M12 16V4M7 9l5-5 5 5M4 16v4h16v-4",
  close: "M6 6l12 12M18 6L6 18",
  again: "M4 12a8 8 0 1 1 2.500 5.800M4 12V7M4 12h5",
  up: "M12 19V5M6 11l6-6 6 6",
  down: "M12 5v14M6 13l6 6 6-6",
  left: "M19 12H5M11 6l-6 6 6 6",
  right: "M5 12h14M13 6l6 6-6 6",
  still: "M12 8.5a3.5 3.5 0 1 0 0 7a3.5 3.5 0 0 0 0-7",
  text: "M5 6h14M12 6v13",
  image: "M4 5h16v14H4zM4 16l5-5 4 4 3-3 4 4",
  video: "M4 6h11v12H4zM15 10l5-3v10l-5-3",
  audio: "M4 10v4M8 6v12M12 9v6M16 4v16M20 10v4",
  action: "M12 3v6M12 15v6M3 12h6M15 12h6",
};

/** A drawing of 24 x 24. @param {string} name */
export function icon(name) {
  return svg("svg", { viewBox: "0 0 24 24", "aria-hidden": "true" }, svg("path", { d: DRAWN[/** @type {keyof typeof DRAWN} */ (name)] ?? DRAWN.still }));
}

/** A word to everyone, also to those who listen; it goes away by itself. @param {string} text */
export function say(text) {
  const place = /** @type {HTMLElement & {timer?: number}} */ (document.getElementById("says"));
  place.textContent = text;
  clearTimeout(place.timer);
  place.timer = window.setTimeout(() => (place.textContent = ""), 6000);
}

/**
 * One of several, as buttons side by side.
 * @param {string} label
 * @param {[string, string][]} options value and words of each
 * @param {string} chosen
 * @param {(value: string) => void} then
 */
export function choice(label, options, chosen, then) {
  const name = `choice-${Math.random().toString(36).slice(2)}`;
  return h(
    "fieldset",
    { class: "choice" },
    h("legend", { class: "unseen" }, label),
    options.map(([value, words]) =>
      h("label", {}, h("input", { type: "radio", name, value, checked: value === chosen, onchange: () => then(value) }), h("span", {}, words)),
    ),
  );
}

/**
 * Numbers under their names.
 * @param {[string, string, string?][]} figures name, value, unit
 */
export function figuresOf(figures) {
  return h(
    "dl",
    { class: "figures" },
    figures.map(([name, value, unit]) => h("div", {}, h("dt", {}, name), h("dd", {}, value, unit ? h("small", {}, unit) : null))),
  );
}

/** Four digits that count, thousands apart. @param {number} value */
export function number(value) {
  if (!Number.isFinite(value)) return String(value);
  if (Number.isInteger(value) || Math.abs(value) >= 1000) return Math.round(value).toLocaleString("en").replaceAll(",", "\u202f");
  return String(+value.toPrecision(4));
}

/** @param {number} seconds */
export function duration(seconds) {
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  return whole < 3600 ? `${Math.floor(whole / 60)} min ${whole % 60} s` : `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
}

/** @param {number} bytes */
export function size(bytes) {
  const units = ["bytes", "kB", "MB", "GB", "TB"];
  let at = 0;
  for (; bytes >= 1000 && at < units.length - 1; at++) bytes /= 1000;
  return `${at ? +bytes.toPrecision(3) : bytes} ${units[at]}`;
}

/** A colour for a code: neighbours differ, equal codes are equal everywhere. @param {number} code @param {number} [alpha] */
export function colourOf(code, alpha = 1) {
  const hue = (code * 137.508) % 360;
  const light = 0.5 + 0.3 * ((code * 0.618034) % 1);
  return `oklch(${light.toFixed(3)} 0.115 ${hue.toFixed(1)} / ${alpha})`;
}

/** A colour of the design as a canvas takes it. @param {string} name of the custom property */
export function colourNamed(name) {
  document.documentElement.style.setProperty("outline-color", `var(${name})`); // drawn nowhere: the root has no outline
  return getComputedStyle(document.documentElement).outlineColor;
}

/** A file that is chosen by a button, dropped or pasted onto the place. @param {string} words @param {string} accept @param {(file: File) => void} then */
export function dropPlace(words, accept, then) {
  const input = h("input", { type: "file", accept, class: "unseen", tabindex: "-1", "aria-label": words });
  const take = (/** @type {FileList | null | undefined} */ files) => files?.[0] && then(files[0]);
  input.addEventListener("change", () => {
    take(input.files);
    input.value = "";
  });
  const place = h(
    "div",
    { class: "drop" },
    input,
    h("button", { type: "button", onclick: () => input.click() }, icon("upload"), words),
    h("span", { class: "quiet tiny" }, "or drop it here, or paste it"),
  );
  place.addEventListener("dragover", event => {
    event.preventDefault();
    place.classList.add("over");
  });
  place.addEventListener("dragleave", () => place.classList.remove("over"));
  place.addEventListener("drop", event => {
    event.preventDefault();
    place.classList.remove("over");
    take(event.dataTransfer?.files);
  });
  const paste = (/** @type {ClipboardEvent} */ event) => {
    if (!place.isConnected) return document.removeEventListener("paste", paste);
    if (event.clipboardData?.files.length) take(event.clipboardData.files);
  };
  document.addEventListener("paste", paste);
  return place;
}
