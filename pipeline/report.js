// A line and the values under the pointer; without script the page loses only this.
const shown = value => (Math.abs(value) >= 1000 ? Math.round(value).toLocaleString() : String(+value.toPrecision(4)));

for (const plot of document.querySelectorAll("[data-readout]")) {
  const { x, lines } = JSON.parse(plot.dataset.readout);
  const area = plot.querySelector(".area");
  const cursor = document.createElement("div");
  const tip = document.createElement("div");
  cursor.className = "cursor";
  tip.className = "tip";

  area.addEventListener("pointermove", event => {
    const box = area.getBoundingClientRect();
    const at = ((event.clientX - box.left) / box.width) * 1000;
    const closer = (a, b) => (Math.abs(b[2] - at) < Math.abs(a[2] - at) ? b : a);
    const nearest = Object.entries(lines).map(([name, points]) => [name, points.reduce(closer)]);
    const [step, , left] = nearest.map(([, point]) => point).reduce(closer);
    tip.replaceChildren(
      ...[[x, step], ...nearest.map(([name, point]) => [name, point[1]])].map(([name, value]) => {
        const row = document.createElement("div");
        row.textContent = `${name}  ${shown(value)}`;
        return row;
      }),
    );
    const onTheLeft = left < 600;
    cursor.style.left = `${left / 10}%`;
    tip.style.left = onTheLeft ? `calc(${left / 10}% + 10px)` : "";
    tip.style.right = onTheLeft ? "" : `calc(${100 - left / 10}% + 10px)`;
    area.append(cursor, tip);
  });
  area.addEventListener("pointerleave", () => {
    cursor.remove();
    tip.remove();
  });
}
