"use strict";
(() => {
  const page = window.evomergePage;
  const pick = page.data.pick;
  const form = document.getElementById("preference");
  if (!pick || !form) return;
  const count = pick.objectives.length;
  const weights = [...form.querySelectorAll("input[type=range]")];
  const bounds = [...form.querySelectorAll("input[type=number]")];
  const one = form.querySelector("select");
  const at = (id) => document.getElementById(id);
  form.hidden = false;
  let manual = null;

  // The rule of evomerge/picking.py: weighted sum of values scaled from 0 (worst) to 1 (best).
  function rank(wanted, limits) {
    const sum = wanted.reduce((a, b) => a + b, 0);
    const scores = pick.raw.map((row) => row.reduce((total, value, k) => {
      const span = pick.best[k] !== pick.worst[k] ? pick.best[k] - pick.worst[k] : Infinity;
      return total + ((value - pick.worst[k]) / span) * (wanted[k] / sum);
    }, 0));
    const kept = pick.raw.map((row) => row.every((value, k) => limits[k] === null
      || (pick.objectives[k].minimised ? value <= limits[k] : value >= limits[k])));
    const order = [...scores.keys()].filter((i) => kept[i]);
    order.sort((a, b) => scores[b] - scores[a] || a - b);
    return { order, scores };
  }
  page.rank = rank;

  function shown(value, k) {
    const { percent, unit } = pick.objectives[k];
    if (percent) return `${(100 * value).toFixed(1)}%`;
    const digits = Math.abs(value) >= 1000 ? 0 : 3;
    return `${value.toFixed(digits)}${unit ? ` ${unit}` : ""}`;
  }

  function quoted(text) {
    return /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\"'\"'")}'`;
  }

  function limit(input, k) {
    if (input.value.trim() === "" || !Number.isFinite(input.valueAsNumber)) return null;
    return pick.objectives[k].percent ? input.valueAsNumber / 100 : input.valueAsNumber;
  }

  function command(wanted, limits) {
    if (!pick.sayable) return "";
    const pairs = (values) => pick.objectives
      .map(({ name }, k) => [name, values[k]]).filter(([, v]) => v !== null && v !== 0)
      .map(([name, v]) => `${name}=${v}`).join(",");
    const side = (minimised) => pairs(limits.map(
      (v, k) => (v !== null && pick.objectives[k].minimised === minimised ? v : null)));
    const parts = ["python -m evomerge pick", pick.run, "--prefer", quoted(pairs(wanted))];
    if (side(false)) parts.push("--at-least", quoted(side(false)));
    if (side(true)) parts.push("--at-most", quoted(side(true)));
    return [...parts, "--measured"].join(" ");
  }

  function highlight(place) {
    const id = place === null ? null : pick.ids[place];
    const row = place === null ? null : pick.raw[place];
    for (const [name, view] of page.views) {
      const pair = /^front-(\d+)-(\d+)$/.exec(name);
      let rows = null;
      if (pair) {
        const hidden = { x: pick.raw[0][pair[1]], y: pick.raw[0][pair[2]], shown: 0 };
        rows = [row ? { x: row[pair[1]], y: row[pair[2]], shown: 1 } : hidden];
      } else if (name === "front-parallel" && pick.heldOut) {
        rows = (row ?? pick.raw[0]).map((value, k) => {
          const span = pick.nadir[k] - pick.ideal[k];
          const height = span ? 1 - (value - pick.ideal[k]) / span : 1;
          return { place: k, height, line: 0, shown: row ? 0.75 : 0 };
        });
      }
      if (rows) view.data("pick", rows).runAsync();
    }
    for (const tr of document.querySelectorAll("tr[data-candidate]")) {
      const same = id !== null && tr.dataset.candidate === String(id);
      tr.classList.toggle("picked", same);
      if (same) tr.setAttribute("aria-current", "true"); else tr.removeAttribute("aria-current");
    }
  }

  function update() {
    const wanted = weights.map((input) => input.valueAsNumber);
    const limits = bounds.map(limit);
    const total = wanted.reduce((a, b) => a + b, 0);
    weights.forEach((input, k) => {
      const share = total ? Math.round((100 * wanted[k]) / total) : 0;
      input.setAttribute("aria-valuetext", `${share} percent of the preference`);
      input.nextElementSibling.textContent = `${share}%`;
    });
    let place = null;
    let said = "";
    if (manual !== null) {
      place = pick.ids.indexOf(manual);
      said = "Looked at by hand; move a slider to let the preference choose again.";
    } else if (!total) {
      said = "Give at least one objective some weight.";
    } else {
      const { order, scores } = rank(wanted, limits);
      if (order.length) {
        [place] = order;
        const second = order.length > 1
          ? ` Runner-up: ${pick.names[order[1]]} (${scores[order[1]].toFixed(3)}).` : "";
        said = `Weighted sum ${scores[place].toFixed(3)}; ${order.length} of ${pick.names.length}`
          + ` merges keep the bounds.${second}`;
      } else {
        said = "No measured merge keeps these bounds. Ask for less.";
      }
    }
    at("picked-name").textContent = place === null ? "None" : pick.names[place];
    at("picked-why").textContent = said;
    at("picked-values").replaceChildren(...(place === null ? [] : pick.raw[place].map((value, k) => {
      const li = document.createElement("li");
      li.textContent = `${pick.objectives[k].name}: ${shown(value, k)}`;
      return li;
    })));
    at("picked-export").textContent = place === null ? ""
      : `python -m evomerge export ${pick.run} ${pick.ids[place]} OUT`;
    at("picked-again").textContent = total ? command(wanted, limits) : "";
    one.value = place === null ? "" : String(pick.ids[place]);
    highlight(place);
  }

  function look(id) {
    if (!pick.ids.includes(id)) return;
    manual = id;
    update();
  }

  form.addEventListener("input", (event) => {
    if (event.target === one) return;
    manual = null;
    update();
  });
  one.addEventListener("change", () => { if (one.value !== "") look(Number(one.value)); });
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(() => { manual = null; update(); }));
  page.listeners.push(() => {
    for (const [name, view] of page.views) {
      if (!/^front-/.test(name)) continue;
      view.addEventListener("click", (_, item) => {
        const id = item?.datum?.candidate;
        if (typeof id === "number") look(id);
      });
    }
    update();
  });
  update();
})();
