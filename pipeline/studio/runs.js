// Runs: the stages with their states and times, live while they go on, and what each of them shows.

import { ApiError, get } from "./api.js";
import { blocks } from "./blocks.js";
import { offer } from "./checkpoints.js";
import { choice, duration, figuresOf, fill, h, number, size } from "./dom.js";
import { LineChart } from "./line-chart.js";
import { silence } from "./sound.js";
import { StageGraph } from "./stage-graph.js";

/** @typedef {import("./api.js").RunLine} RunLine */
/** @typedef {import("./api.js").StageLine} StageLine */
/** @typedef {import("./api.js").StagePage} StagePage */
/** @typedef {import("./api.js").Leaving} Leaving */

const EVERY = 2000; // ms between two looks at a run that goes on
const IDLE = 15000; // at one that does not
const SHARES = /(accuracy|share|use)$/; // figures that read better in percent

export const view = { title: "Runs", show };

/** @param {HTMLElement} place @param {string[]} path @param {Leaving} leaving */
async function show(place, path, leaving) {
  const { data: runs } = /** @type {{data: RunLine[]}} */ (await get("/v1/runs", leaving.signal));
  leaving.signal.addEventListener("abort", silence);
  const head = h("header", { class: "head" }, h("h1", {}, "Runs"), h("p", { class: "lead" }, "Every stage of a pipeline: how far it is, what it measured, what it made."));
  if (!runs.length) return fill(place, head, h("p", { class: "empty" }, "No run is served. Start the service with a run: ", h("code", {}, "worldloom serve runs/shapes")));
  const run = runs.find(each => each.name === path[0]) ?? runs[0];
  const summary = h("div", { class: "row summary" });
  const graph = new StageGraph();
  const detail = h("div", { class: "stack" });
  const picker = runs.length > 1 ? choice("Run", runs.map(each => [each.name, each.name]), run.name, name => (location.hash = `#/runs/${encodeURIComponent(name)}`)) : null;
  fill(
    place,
    head,
    picker ? h("div", { class: "row" }, picker) : null,
    h("section", { class: "panel" }, h("h2", { class: "row" }, run.pipeline), summary, h("div", { class: "scroll graph", tabindex: "0", role: "group", "aria-label": "graph of the stages" }, graph)),
    detail,
  );
  const page = await look(run.name, path[1], { summary, graph, detail }, leaving);
  follow(run.name, path[1] ?? page.chosen, { summary, graph, detail }, page.running, leaving);
}

/** @typedef {{summary: HTMLElement, graph: StageGraph, detail: HTMLElement}} Places */

/** Draws the run as it stands. @param {string} name @param {string | undefined} wanted @param {Places} places @param {Leaving} leaving */
async function look(name, wanted, places, leaving) {
  const run = /** @type {RunLine & {lines: StageLine[]}} */ (await get(`/v1/runs/${encodeURIComponent(name)}`, leaving.signal));
  const fallback = run.lines.find(line => line.state === "running") ?? run.lines.findLast(line => line.state === "done") ?? run.lines[0];
  const chosen = run.lines.find(line => line.name === wanted) ?? fallback;
  const seconds = run.lines.reduce((sum, line) => sum + (line.seconds ?? 0), 0);
  fill(places.summary, h("span", { class: `state ${run.state.split(" ")[0]}` }, run.state), h("span", { class: "quiet" }, `${run.done} of ${run.stages} stages done`), h("span", { class: "quiet" }, `${duration(seconds)} of work`), run.started ? h("span", { class: "quiet" }, new Date(run.started * 1000).toLocaleString()) : null);
  places.graph.show(name, run.lines, chosen.name);
  await stage(name, chosen.name, places.detail, leaving);
  return { running: run.state === "running", chosen: chosen.name };
}

/** Looks again and again, until the view is left; the page rests while it is not seen. @param {string} name @param {string} chosen @param {Places} places @param {boolean} running @param {Leaving} leaving */
async function follow(name, chosen, places, running, leaving) {
  while (!leaving.left) {
    await new Promise(resolve => setTimeout(resolve, running ? EVERY : IDLE));
    if (leaving.left || document.hidden) continue;
    try {
      running = (await look(name, chosen, places, leaving)).running;
    } catch (error) {
      if (!(error instanceof ApiError)) return; // left
      running = false; // the service is gone or busy: it is asked less often
    }
  }
}

/** @param {string} run @param {string} name @param {HTMLElement} place @param {Leaving} leaving */
async function stage(run, name, place, leaving) {
  const base = `/v1/runs/${encodeURIComponent(run)}/stages/${encodeURIComponent(name)}`;
  const page = /** @type {StagePage} */ (await get(base, leaving.signal));
  const key = JSON.stringify({ ...page, seconds: page.state === "running" ? 0 : page.seconds });
  if (place.dataset.key === key || leaving.left) return;
  // What has the focus stays as it is, and is drawn anew once it has lost it.
  const focused = place.contains(document.activeElement);
  if (place.dataset.stage === name && (page.state === "running" || focused)) {
    const whole = update(page, place, base, leaving);
    place.dataset.key = whole && page.state === "running" ? key : "";
    if (whole || focused) return;
  }
  Object.assign(place.dataset, { key, stage: name });
  const facts = [page.kind, page.inputs.length ? `from ${page.inputs.join(", ")}` : "", page.seconds === null ? "" : duration(page.seconds), page.bytes ? size(page.bytes) : ""];
  const rows = Object.entries(page.settings).map(([setting, value]) => h("tr", {}, h("td", { class: "mono" }, setting), h("td", { class: "mono" }, value)));
  const offers = h("div", { class: "offers" });
  offer(offers, base, page.checkpoints, leaving);
  fill(
    place,
    h(
      "section",
      { class: "panel", "aria-label": `Stage ${name}` },
      h("div", { class: "row" }, h("h2", {}, page.title), h("span", { class: "end" }, h("span", { class: `state ${page.state}` }, page.state))),
      h("p", { class: "quiet tiny" }, facts.filter(Boolean).join(" · ")),
      page.note && page.state !== "done" ? h("p", { class: "trouble" }, page.note) : null,
      h("div", { class: "progress" }, progress(page)),
      measured(page),
      h("div", { class: "blocks" }, blocks(page.blocks, base, leaving)),
      page.blocks.length || page.state === "running" ? null : h("p", { class: "quiet" }, "Nothing to show yet."),
      offers,
      rows.length ? h("details", {}, h("summary", {}, "Settings"), h("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": "settings" }, h("table", {}, h("tbody", {}, rows)))) : null,
    ),
  );
}

/** What goes on: the bar, the checkpoints and the curves alone; whether all of them have their place. @param {StagePage} page @param {HTMLElement} place @param {string} base @param {Leaving} leaving */
function update(page, place, base, leaving) {
  const [bar, offers] = /** @type {HTMLElement[]} */ ([place.querySelector(".progress"), place.querySelector(".offers")]);
  fill(bar, progress(page));
  offer(offers, base, page.checkpoints, leaving);
  const charts = /** @type {NodeListOf<LineChart>} */ (place.querySelectorAll("line-chart"));
  const curves = page.blocks.filter(block => block.type === "curves");
  if (charts.length !== curves.length) return false;
  charts.forEach((chart, at) => chart.show(curves[at].title, curves[at].lines, curves[at].x, curves[at].unit));
  return true;
}

/** @param {StagePage} page */
function progress(page) {
  if (!page.progress || page.state === "done") return null;
  const { done, total, unit, notes } = page.progress;
  const share = Math.min(1, done / Math.max(1, total));
  const left = page.state === "running" && page.seconds && done ? ` · about ${duration((page.seconds * (1 - share)) / Math.max(share, 0.01))} left` : "";
  return [
    h("div", { class: "bar", role: "progressbar", "aria-valuenow": done, "aria-valuemin": 0, "aria-valuemax": total, "aria-label": `Progress of ${page.name}` }, h("i", { style: { width: `${100 * share}%` } })),
    h("p", { class: "quiet tiny" }, `${number(done)} of ${number(total)} ${unit}${left}`, Object.entries(notes).map(([name, value]) => ` · ${name.replaceAll("_", " ")} ${number(value)}`)),
  ];
}

/** @param {StagePage} page */
function measured(page) {
  const first = page.headline.filter(name => name in page.figures);
  const figures = /** @type {[string, number][]} */ ([...first, ...Object.keys(page.figures).filter(name => !first.includes(name))].map(name => [name, page.figures[name]]));
  if (!figures.length) return null;
  const told = (/** @type {[string, number][]} */ some) => figuresOf(some.map(([name, value]) => [spoken(name), ...shown(name, value)]));
  return figures.length <= 8
    ? told(figures)
    : [told(figures.slice(0, 8)), h("details", {}, h("summary", {}, `All ${figures.length} figures`), h("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": "all figures" }, h("table", {}, h("tbody", {}, figures.map(([name, value]) => h("tr", {}, h("td", {}, spoken(name)), h("td", { class: "number" }, number(value))))))))];
}

/** @param {string} name */
function spoken(name) {
  return name.replaceAll("_to_", " → ").replaceAll(".", ", ").replaceAll("_", " ");
}

/** @param {string} name @param {number} value @returns {[string, string?]} */
function shown(name, value) {
  if (SHARES.test(name) && value >= 0 && value <= 1) return [String(+(100 * value).toFixed(1)), "%"];
  return name.includes("psnr") ? [number(value), "dB"] : [number(value)];
}
