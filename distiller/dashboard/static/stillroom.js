// What pages do beyond reading and forms: the theme, charts from their tables, saying what a refused request said,
// sending each form once, and coming back after the connection was lost.
"use strict";

(() => {
  const root = document.documentElement;
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const drawn = new Map();

  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : dark.matches);

  function theme() {
    const button = document.getElementById("theme");
    const name = () => { button.textContent = isDark() ? "Light theme" : "Dark theme"; };
    button.hidden = false;
    name();
    button.addEventListener("click", () => {
      root.dataset.theme = isDark() ? "light" : "dark";
      document.cookie = `stillroom_theme=${root.dataset.theme}; path=/ui; max-age=31536000; samesite=lax`;
      name();
      redraw();
    });
    dark.addEventListener("change", () => { name(); redraw(); });
  }

  const colour = (name) => getComputedStyle(root).getPropertyValue(`--${name}`).trim();

  const FORMATS = {
    money: (value) => (value < 0 ? "-" : "") + "$" + Math.abs(value).toLocaleString("en", { maximumFractionDigits: Math.abs(value) < 1 ? 4 : 2 }),
    share: (value) => (100 * value).toLocaleString("en", { maximumFractionDigits: 1 }) + "%",
    milliseconds: (value) => value.toLocaleString("en", { maximumFractionDigits: 0 }) + " ms",
    count: (value) => value.toLocaleString("en", { maximumFractionDigits: 2 }),
    time: (value) => new Date(1000 * value).toISOString().slice(5, 16).replace("T", " "),
  };

  // The table under a chart is its data.
  function read(figure) {
    const names = [...figure.querySelectorAll("thead th")].map((cell) => cell.textContent);
    const rows = [...figure.querySelectorAll("tbody tr")];
    return {
      labels: rows.map((row) => row.cells[0].textContent),
      places: rows.map((row) => Number(row.cells[0].dataset.value)),
      series: names.slice(1).map((name, place) => ({
        name,
        values: rows.map((row) => (row.cells[place + 1].dataset.value === "" ? null : Number(row.cells[place + 1].dataset.value))),
      })),
    };
  }

  function configuration(figure) {
    const { labels, places, series } = read(figure);
    const colours = ["accent", "second", "third", "fourth", "muted"].map(colour);
    const format = FORMATS[figure.dataset.unit] ?? FORMATS.count;
    const line = figure.dataset.kind === "line";
    const stacked = "stacked" in figure.dataset;
    // Over numbers, each series has its own points; a single one is a mark.
    const along = FORMATS[figure.dataset.x];
    const points = (values) => values.map((y, row) => ({ x: places[row], y })).filter((point) => point.y !== null);
    const x = along
      ? { type: "linear", bounds: "data", ticks: { color: colour("muted"), callback: along, maxTicksLimit: 7 }, grid: { display: false } }
      : { stacked, ticks: { color: colour("muted"), maxRotation: 0, autoSkipPadding: 16 }, grid: { display: false } };
    return {
      type: line ? "line" : "bar",
      data: {
        labels: along ? undefined : labels,
        datasets: series.map(({ name, values }, place) => ({
          label: name, data: along ? points(values) : values, stepped: "stepped" in figure.dataset, borderColor: colours[place % 5], backgroundColor: colours[place % 5],
          borderDash: line && place ? [4 + 2 * place, 3] : [], borderWidth: line ? 2 : 0, pointRadius: along && points(values).length === 1 ? 6 : labels.length > 60 ? 0 : 2,
          tension: 0, spanGaps: false,
        })),
      },
      options: {
        animation: false, responsive: true, maintainAspectRatio: false,
        interaction: { mode: along ? "nearest" : "index", axis: "x", intersect: false },
        plugins: {
          legend: { display: series.length > 1, labels: { color: colour("ink"), boxWidth: 24, boxHeight: 2 } },
          tooltip: { callbacks: {
            title: (items) => (along ? `${figure.querySelector("thead th").textContent}: ${along(items[0].parsed.x)}` : items[0].label),
            label: (item) => `${item.dataset.label}: ${item.parsed.y === null ? "–" : format(item.parsed.y)}`,
          } },
        },
        scales: {
          x,
          y: { stacked, beginAtZero: !("free" in figure.dataset), ticks: { color: colour("muted"), callback: format, maxTicksLimit: 6 }, grid: { color: colour("line") } },
        },
      },
    };
  }

  function draw(figure) {
    const place = figure.querySelector(".canvas");
    if (!window.Chart || !figure.querySelector("tbody tr")) return;
    let chart = drawn.get(place);
    if (!chart) {
      for (const [other, old] of drawn) if (!other.isConnected) { old.destroy(); drawn.delete(other); }
      const canvas = document.createElement("canvas");
      place.hidden = false;
      place.replaceChildren(canvas);
      chart = new window.Chart(canvas, configuration(figure));
      drawn.set(place, chart);
    } else {
      const made = configuration(figure);
      chart.data = made.data;
      chart.options = made.options;
      chart.update("none");
    }
    const canvas = place.querySelector("canvas");
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", figure.querySelector("figcaption").textContent.replace(/\s+/g, " ").trim());
  }

  const redraw = () => document.querySelectorAll("figure.chart").forEach(draw);

  function say(text) {
    const note = document.getElementById("note");
    note.textContent = text;
    note.classList.add("bad");
    note.hidden = false;
  }

  // What could not be loaded has been loaded since.
  function unsay() {
    const note = document.getElementById("note");
    if (!note.classList.contains("bad")) return;
    note.hidden = true;
    note.textContent = "";
    note.classList.remove("bad");
  }

  // A second click sends nothing twice; of what is downloaded the page stays, so that may be sent again.
  let sent = new WeakSet();
  document.addEventListener("submit", (event) => {
    if (event.target.method !== "post" || "again" in event.target.dataset) return;
    if (sent.has(event.target)) event.preventDefault();
    sent.add(event.target);
  });
  window.addEventListener("pageshow", () => { sent = new WeakSet(); });

  let connections = 0;
  document.addEventListener("htmx:sse:after:connection", (event) => {
    if (event.detail.connection.status === 204) {  // The session has ended: this leads to the login, and back here.
      window.location.reload();
      return;
    }
    connections += 1;
    if (connections === 1) return;
    // What was told in the meantime was not heard.
    for (const name of ["log", "training"]) event.target.dispatchEvent(new CustomEvent(name, { bubbles: true }));
  });

  theme();
  redraw();
  document.addEventListener("htmx:after:swap", () => { unsay(); redraw(); });
  document.addEventListener("htmx:response:error", (event) => {
    const page = new DOMParser().parseFromString(event.detail.ctx.text ?? "", "text/html");
    say(page.querySelector("main p:not(.note)")?.textContent ?? "That did not work: load the page again.");
  });
})();
