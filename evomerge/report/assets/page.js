"use strict";
(() => {
  const { charts, themes } = JSON.parse(document.getElementById("chart-data").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const refuse = () => Promise.reject(new Error("This page loads nothing."));
  const loader = { load: refuse, sanitize: refuse, http: refuse, file: refuse };
  const views = [];

  function config(box) {
    const chosen = structuredClone(dark.matches ? themes.dark : themes.light);
    chosen.axis.labelLimit = Math.max(90, Math.min(240, box.clientWidth * 0.36));
    return chosen;
  }

  async function draw(box) {
    try {
      const result = await window.vegaEmbed(box, charts[box.dataset.chart], {
        mode: "vega-lite", ast: true, actions: false, renderer: "svg", defaultStyle: false,
        config: config(box), loader, tooltip: { disableDefaultStyle: true, theme: "page" },
      });
      views.push(result);
    } catch (error) {
      console.error(error);
      box.textContent = "This chart could not be drawn; the table has its values.";
    }
  }

  async function drawAll() {
    while (views.length) views.pop().finalize();
    for (const box of document.querySelectorAll("[data-chart]")) await draw(box);
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

  if (window.vegaEmbed) {
    drawAll();
    dark.addEventListener("change", drawAll);
  }
})();
