"use strict";
(() => {
  const root = document.documentElement;
  const isDark = () => root.dataset.theme
    ? root.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  const toggle = document.getElementById("theme");
  const name = () => { toggle.textContent = isDark() ? "Light" : "Dark"; };
  toggle.addEventListener("click", () => { root.dataset.theme = isDark() ? "light" : "dark"; name(); });
  name();

  const trim = (value) => Number(value.toFixed(2)).toString();
  const units = {
    count: (v) => v >= 1e6 ? trim(v / 1e6) + "M" : v >= 1e3 ? trim(v / 1e3) + "k" : trim(v),
    time: (v) => v >= 1e6 ? trim(v / 1e6) + " s" : v >= 1e3 ? trim(v / 1e3) + " ms" : trim(v) + " \u00b5s",
    bytes: (v) => v >= 2 ** 30 ? trim(v / 2 ** 30) + " GiB" : trim(v / 2 ** 20) + " MiB",
    seconds: (v) => trim(v) + " s",
    percentile: (v) => "p" + Number(v.toFixed(4)),
  };

  for (const figure of document.querySelectorAll("figure.plot")) {
    const svg = figure.querySelector("svg.drawing");
    const pointer = svg.querySelector(".pointer");
    const readout = figure.querySelector(".readout");
    const data = JSON.parse(figure.querySelector("script").textContent);
    pointer.setAttribute("y1", data.top);
    pointer.setAttribute("y2", data.bottom);
    const hide = () => { readout.hidden = true; pointer.style.visibility = "hidden"; };
    svg.addEventListener("pointerleave", hide);
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      const x = (event.clientX - box.left) / box.width * svg.viewBox.baseVal.width;
      if (x < data.left - 6 || x > data.right + 6) { hide(); return; }
      const nearest = (points) => points.reduce(
        (best, point) => Math.abs(point[0] - x) < Math.abs(best[0] - x) ? point : best);
      const found = data.lines.filter((line) => line.points.length > 0)
        .map((line) => ({ line, point: nearest(line.points) }))
        .filter(({ point }) => Math.abs(point[0] - x) < 26);
      if (found.length === 0) { hide(); return; }
      const at = found.reduce((a, b) => Math.abs(b.point[0] - x) < Math.abs(a.point[0] - x) ? b : a).point;
      pointer.setAttribute("x1", at[0]);
      pointer.setAttribute("x2", at[0]);
      pointer.style.visibility = "visible";
      readout.replaceChildren();
      const head = document.createElement("b");
      head.textContent = units[data.x_unit](at[2]);
      readout.append(head);
      for (const { line, point } of found) {
        const row = document.createElement("span");
        const label = document.createElement("span");
        const mark = document.createElement("i");
        mark.style.background = `var(--c${line.colour})`;
        label.append(mark, line.name);
        const value = document.createElement("span");
        value.textContent = units[data.y_unit](point[3]);
        row.append(label, value);
        readout.append(row);
      }
      readout.hidden = false;
      const place = (at[0] / svg.viewBox.baseVal.width) * box.width + (box.left - figure.getBoundingClientRect().left);
      const isRight = place > box.width / 2;
      readout.style.left = isRight ? "" : place + 14 + "px";
      readout.style.right = isRight ? figure.clientWidth - place + 14 + "px" : "";
      readout.style.top = box.top - figure.getBoundingClientRect().top + 34 + "px";
    });
  }
})();
