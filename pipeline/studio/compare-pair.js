// <compare-pair>: two pictures of one size, one over the other, and a slider between them.

import { fill, h } from "./dom.js";

export class ComparePair extends HTMLElement {
  constructor() {
    super();
    this.slider = h("input", { type: "range", min: "0", max: "100", value: "50", step: "1" });
    this.slider.addEventListener("input", () => this.move());
  }

  /** @param {Element} before @param {Element} after @param {string} left @param {string} right */
  show(before, after, left, right) {
    this.slider.setAttribute("aria-label", `${left} at the left, ${right} at the right`);
    fill(
      this,
      h("div", { class: "under" }, before),
      h("div", { class: "over" }, after),
      h("span", { class: "tag left", "aria-hidden": "true" }, left),
      h("span", { class: "tag right-tag", "aria-hidden": "true" }, right),
      h("span", { class: "edge", "aria-hidden": "true" }),
      this.slider,
    );
    this.move();
  }

  move() {
    this.style.setProperty("--at", `${this.slider.value}%`);
    this.slider.setAttribute("aria-valuetext", `${this.slider.value} % of the first`);
  }
}

customElements.define("compare-pair", ComparePair);
