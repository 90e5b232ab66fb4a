"use strict";
(() => {
  const data = JSON.parse(document.getElementById("chart-data").textContent);
  const { charts, themes } = data;
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const refuse = () => Promise.reject(new Error("This page loads nothing."));
  const loader = { load: refuse, sanitize: refuse, http: refuse, file: refuse };
  const MANY = 700; // points from which on a chart is drawn on a canvas, to scroll smoothly
  const views = [];
  const page = window.evomergePage = { data, views: new Map(), listeners: [] };

  function config(box) {
    const chosen = structuredClone(dark.matches ? themes.dark : themes.light);
    chosen.axis.labelLimit = Math.max(90, Math.min(240, box.clientWidth * 0.36));
    return chosen;
  }

  function points(spec) {
    const own = spec.data?.values?.length ?? 0;
    return (spec.layer ?? []).reduce((sum, layer) => sum + points(layer), own);
  }

  async function draw(box) {
    const spec = charts[box.dataset.chart];
    const label = box.getAttribute("aria-label") ?? box.dataset.label;
    box.dataset.label = label; // vega takes role and label off its container
    try {
      const result = await window.vegaEmbed(box, spec, {
        mode: "vega-lite", ast: true, actions: false, defaultStyle: false,
        renderer: points(spec) > MANY ? "canvas" : "svg",
        config: config(box), loader, tooltip: { disableDefaultStyle: true, theme: "page" },
      });
      views.push(result);
      box.setAttribute("role", "img");
      box.setAttribute("aria-label", label);
      box.removeAttribute("aria-roledescription");
      page.views.set(box.dataset.chart, result.view);
    } catch (error) {
      console.error(error);
      box.textContent = "This chart could not be drawn; the table has its values.";
    }
  }

  async function drawAll() {
    while (views.length) views.pop().finalize();
    for (const box of document.querySelectorAll("[data-chart]")) await draw(box);
    for (const listener of page.listeners) listener();
    document.documentElement.dataset.charts = "drawn";
  }

  function select(node) {
    const range = document.createRange();
    range.selectNodeContents(node);
    const selection = window.getSelection();
    selection.removeAllRanges();
    selection.addRange(range);
  }

  for (const button of document.querySelectorAll("[data-copy]")) {
    const label = button.firstChild;
    const source = document.getElementById(button.dataset.copy);
    button.hidden = false;
    button.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(source.textContent);
        label.data = "Copied";
      } catch {
        select(source);
        label.data = "Selected";
      }
      setTimeout(() => { label.data = "Copy"; }, 2000);
    });
  }

  function cellValue(row, column) {
    const cell = row.cells[column];
    const text = cell.dataset.value ?? cell.textContent.trim();
    const number = /^[-+]?[\d.]/.test(text) ? Number.parseFloat(text.replaceAll(",", "")) : NaN;
    return { text, number };
  }

  function sortBy(table, column, heading) {
    const down = heading.getAttribute("aria-sort") === "ascending";
    const body = table.tBodies[0];
    const rows = [...body.rows].map((row) => ({ row, ...cellValue(row, column) }));
    rows.sort((a, b) => {
      if (a.text === "" || b.text === "") return (a.text === "") - (b.text === "");
      const order = Number.isNaN(a.number) || Number.isNaN(b.number)
        ? a.text.localeCompare(b.text, undefined, { numeric: true }) : a.number - b.number;
      return down ? -order : order;
    });
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", down ? "descending" : "ascending");
    body.append(...rows.map(({ row }) => row));
  }

  const LONG = 12; // rows from which on a table can be searched

  function searchable(table) {
    const box = table.closest(".scroll");
    const rows = [...table.tBodies[0].rows];
    const label = document.createElement("label");
    const input = document.createElement("input");
    const count = document.createElement("span");
    label.className = "filter";
    input.type = "search";
    count.className = "between";
    count.setAttribute("role", "status");
    label.append("Search this table ", input, " ", count);
    input.addEventListener("input", () => {
      const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      let kept = 0;
      for (const row of rows) {
        const text = row.textContent.toLowerCase();
        row.hidden = !words.every((word) => text.includes(word));
        kept += !row.hidden;
      }
      count.textContent = words.length ? `${kept} of ${rows.length} rows` : "";
    });
    box.before(label);
  }

  for (const table of document.querySelectorAll("table.sortable")) {
    if (table.tBodies[0].rows.length >= LONG) searchable(table);
    [...table.tHead.rows[0].cells].forEach((heading, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...heading.childNodes);
      button.addEventListener("click", () => sortBy(table, column, heading));
      heading.append(button);
    });
  }

  if (window.vegaEmbed) {
    drawAll();
    dark.addEventListener("change", drawAll);
  }
})();
