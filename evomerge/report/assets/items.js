"use strict";
(() => {
  const { items } = window.evomergePage.data;
  const box = document.getElementById("browser");
  if (!items || !box) return;
  const PER_PAGE = 10;
  const form = box.querySelector("form");
  const { task, kind, text } = form.elements;
  const at = (id) => document.getElementById(id);
  const [list, found, earlier, later] = ["answer-list", "found", "earlier", "later"].map(at);
  let first = 0;
  box.hidden = false;

  // Every text comes from a model or a data file: it is only ever set as text.
  function element(tag, content, className) {
    const node = document.createElement(tag);
    node.textContent = content;
    if (className) node.className = className;
    return node;
  }

  function matches(item, words) {
    if (kind.value && !item.k.includes(kind.value)) return false;
    const whole = [item.id, item.q, item.t, ...item.a].join("\n").toLowerCase();
    return words.every((word) => whole.includes(word));
  }

  function answer([name, role], content, score) {
    const right = score >= 0.5;
    const node = element("div", "", `answer ${right ? "right" : "wrong"}`);
    const head = element("p", "", "who");
    const verdict = score === 0 || score === 1 ? "" : ` ${Math.round(100 * score)}%`;
    head.append(element("strong", name), element("span", ` ${role} `, "role"),
      element("span", `${right ? "\u2713 right" : "\u2717 wrong"}${verdict}`, "mark"));
    node.append(head, element("p", content || "(empty)", content ? "text" : "text empty"));
    return node;
  }

  function card(item, models) {
    const node = document.createElement("li");
    node.append(element("p", item.id, "id"));
    if (item.q) node.append(element("p", item.q, "text question"));
    if (item.t) {
      const line = element("p", "Expected: ", "expected");
      line.append(element("span", item.t, "text"));
      node.append(line);
    }
    const answers = element("div", "", "answers");
    answers.append(...models.map((model, n) => answer(model, item.a[n], item.s[n])));
    node.append(answers);
    return node;
  }

  function show() {
    const chosen = items[Number(task.value) || 0];
    const words = text.value.toLowerCase().split(/\s+/).filter(Boolean);
    const hits = chosen.items.filter((item) => matches(item, words));
    first = Math.max(0, Math.min(first, hits.length - 1));
    first -= first % PER_PAGE;
    const shown = hits.slice(first, first + PER_PAGE);
    list.replaceChildren(...shown.map((item) => card(item, chosen.models)));
    list.start = first + 1;
    found.textContent = `${hits.length} of ${chosen.items.length} items`;
    const pages = Math.max(1, Math.ceil(hits.length / PER_PAGE));
    const page = Math.floor(first / PER_PAGE) + 1;
    at("page-number").textContent = `Page ${page} of ${pages}`;
    earlier.disabled = page <= 1;
    later.disabled = page >= pages;
  }

  form.addEventListener("input", () => { first = 0; show(); });
  form.addEventListener("submit", (event) => event.preventDefault());
  for (const [button, step] of [[earlier, -PER_PAGE], [later, PER_PAGE]]) {
    button.addEventListener("click", () => {
      first += step;
      show();
      at("answers").scrollIntoView({ block: "start" });
    });
  }
  show();
})();
