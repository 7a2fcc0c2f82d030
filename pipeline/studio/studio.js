// The frame: which view is shown, the theme, the token.

import { ApiError, Leaving, setToken, whenRefused } from "./api.js";
import { fill, h, say } from "./dom.js";

/** @typedef {{title: string, show: (place: HTMLElement, path: string[], leaving: Leaving) => Promise<void>}} View */

/** @type {Record<string, () => Promise<View>>} */
const VIEWS = {
  tokenizers: async () => (await import("./tokenizers.js")).view,
  world: async () => (await import("./world.js")).view,
  runs: async () => (await import("./runs.js")).view,
  datasets: async () => (await import("./datasets.js")).view,
};
const main = /** @type {HTMLElement} */ (document.getElementById("main"));
let leaving = new Leaving();
let before = "";

async function route() {
  const [name, ...path] = location.hash.replace(/^#\/?/, "").split("/").map(decodeURIComponent);
  const shown = name in VIEWS ? name : "tokenizers";
  leaving.controller.abort();
  const mine = (leaving = new Leaving());
  for (const link of /** @type {NodeListOf<HTMLAnchorElement>} */ (document.querySelectorAll("nav a"))) {
    if (link.dataset.view === shown) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  try {
    const view = await VIEWS[shown]();
    if (mine.left) return;
    document.title = `${view.title} · worldloom studio`;
    const place = h("div", { class: `view ${shown}` });
    if (shown !== before) fill(main, place, h("div", { class: "loading" }, h("span", { class: "unseen", role: "status" }, "Loading")));
    await view.show(place, path, mine);
    if (mine.left) return;
    fill(main, place);
    // On a phone the cards are a row that is wider than the screen.
    place.querySelector(".cards [aria-current]")?.scrollIntoView({ behavior: "instant", block: "nearest", inline: "center" });
    if (before && shown !== before) {
      main.focus({ preventScroll: true });
      scrollTo({ top: 0, behavior: "instant" });
    }
    before = shown;
  } catch (error) {
    if (!mine.left) fill(main, trouble(error));
    before = "";
  }
}

/** @param {unknown} error */
function trouble(error) {
  const words = error instanceof ApiError ? error.message : `Something in the page went wrong: ${error}`;
  return h(
    "div",
    { class: "empty" },
    h("p", { class: "trouble", role: "alert" }, words),
    h("p", { style: { "margin-top": "16px" } }, h("button", { type: "button", onclick: route }, "Try again")),
  );
}

// The theme: as the system, light, dark.
const THEMES = ["system", "light", "dark"];
const button = /** @type {HTMLButtonElement} */ (document.getElementById("theme"));

/** @param {string} theme */
function wear(theme) {
  if (theme === "system") {
    delete document.documentElement.dataset.theme;
    localStorage.removeItem("theme");
  } else {
    document.documentElement.dataset.theme = theme;
    localStorage.setItem("theme", theme);
  }
  button.setAttribute("aria-label", `Theme: ${theme === "system" ? "as the system" : theme}`);
  button.title = button.getAttribute("aria-label") ?? "";
  document.dispatchEvent(new CustomEvent("themechange"));
}
button.addEventListener("click", () => {
  const now = THEMES.indexOf(document.documentElement.dataset.theme ?? "system");
  wear(THEMES[(now + 1) % THEMES.length]);
  say(button.title);
});
wear(document.documentElement.dataset.theme ?? "system");

// The token, kept for this tab only.
whenRefused(
  () =>
    new Promise(resolve => {
      const field = h("input", { type: "password", autocomplete: "off", required: true, id: "token" });
      const box = h(
        "dialog",
        { class: "panel ask", "aria-labelledby": "ask-title" },
        h(
          "form",
          { method: "dialog", class: "stack" },
          h("h2", { id: "ask-title" }, "This service asks for a token"),
          h("label", { class: "field", for: "token" }, "Token", field, h("span", { class: "hint" }, "It is kept in this tab, and forgotten with it.")),
          h("div", { class: "row" }, h("button", { class: "main" }, "Go on")),
        ),
      );
      box.addEventListener("cancel", event => event.preventDefault());
      box.addEventListener("close", () => {
        setToken(field.value.trim());
        box.remove();
        resolve();
      });
      document.body.append(box);
      box.showModal();
    }),
);

addEventListener("hashchange", route);
route();
