"""The page around a report that is being watched: it looks for news and swaps the report.

The report stands in a frame of its own, so that its own policy holds there: nothing of it can
load or send anything. The outer page shows no text but numbers and states of this program.
"""

from __future__ import annotations

import base64
import hashlib

STYLE = """
:root { color-scheme: light dark; --bar: #ffffff; --text: #1c2733; --line: #d9dfe6;
  --live: #1b7a43; --wait: #8a5a00; --bad: #b3261e; --muted: #566270; --page: #f4f6f8; }
@media (prefers-color-scheme: dark) { :root { --bar: #181f27; --text: #e6ebf1; --line: #303a46;
  --live: #5fd08d; --wait: #eab65a; --bad: #ff8f86; --muted: #a3afbd; --page: #10151b; } }
* { box-sizing: border-box; }
html, body { height: 100%; margin: 0; }
body { display: flex; flex-direction: column; background: var(--page); color: var(--text);
  font: 15px/1.4 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
#bar { display: flex; flex-wrap: wrap; gap: .1rem 1rem; align-items: baseline; margin: 0;
  padding: .35rem 1rem; background: var(--bar); border-bottom: 1px solid var(--line); }
#state { font-weight: 600; color: var(--wait); }
#state.running { color: var(--live); } #state.lost, #state.damaged { color: var(--bad); }
#facts { color: var(--muted); overflow-wrap: anywhere; }
#frames { flex: 1; position: relative; min-height: 0; }
iframe { position: absolute; inset: 0; width: 100%; height: 100%; border: 0; }
iframe.coming { visibility: hidden; }
"""

SCRIPT = """
"use strict";
(() => {
  const every = Number(document.body.dataset.every) * 1000;
  const frames = document.getElementById("frames");
  const state = document.getElementById("state");
  const facts = document.getElementById("facts");
  const names = {
    waiting: "not there yet", running: "running", finished: "ended", unfinished: "stopped",
    damaged: "cannot be read", lost: "evomerge watch has ended",
  };
  let shown = null, busy = false;

  function ago(seconds) {
    if (seconds < 90) return `${Math.round(seconds)} s`;
    return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${Math.round(seconds / 3600)} h`;
  }

  function tell(name, told) {
    state.className = name;
    state.textContent = names[name] ?? name;
    facts.textContent = told;
  }

  const controls = (page) => [...page.querySelectorAll("input, select, textarea")];

  function path(node) {
    const steps = [];
    for (let n = node; n && n.parentElement; n = n.parentElement) {
      if (n.id) { steps.unshift("#" + n.id); break; }
      steps.unshift([...n.parentElement.children].indexOf(n));
    }
    return steps;
  }

  function follow(page, steps) {
    let node = page.documentElement;
    for (const step of steps) {
      node = typeof step === "string" ? page.getElementById(step.slice(1)) : node?.children[step];
    }
    return node ?? null;
  }

  // Panels by their titles: others may come before them as the study goes on.
  function panels(page) {
    const found = new Map(), seen = {};
    for (const panel of page.querySelectorAll("details")) {
      const title = panel.querySelector("summary")?.textContent.trim() ?? "";
      seen[title] = (seen[title] ?? 0) + 1;
      found.set(`${seen[title]} ${title}`, panel);
    }
    return found;
  }

  // What the reader has done to the page: where they are, what is open, typed and sorted.
  function remember(frame) {
    const page = frame.contentDocument, view = frame.contentWindow;
    const active = page.activeElement;
    const focus = active && active !== page.body ? active : null;
    return {
      top: view.scrollY, left: view.scrollX,
      height: page.documentElement.scrollHeight,
      open: [...panels(page)].map(([title, panel]) => [title, panel.open]),
      inputs: controls(page).filter((c) => c.value !== c.defaultValue || c.checked
        !== c.defaultChecked).map((c) => [path(c), c.value, c.checked]),
      sorted: [...page.querySelectorAll("th[aria-sort]")].map((th) => [path(th),
        th.getAttribute("aria-sort")]),
      scrolled: [...page.querySelectorAll("*")].filter((n) => n.scrollLeft || (n.scrollTop
        && n !== page.documentElement)).map((n) => [path(n), n.scrollLeft, n.scrollTop]),
      focus: focus && path(focus),
    };
  }

  function restore(frame, kept) {
    const page = frame.contentDocument;
    const fire = (node, ...kinds) => kinds.forEach((kind) =>
      node.dispatchEvent(new frame.contentWindow.Event(kind, { bubbles: true })));
    const there = panels(page);
    for (const [title, open] of kept.open) if (there.has(title)) there.get(title).open = open;
    for (const [steps, value, checked] of kept.inputs) {
      const node = follow(page, steps);
      if (!node || !("value" in node)) continue;
      node.value = value;
      if ("checked" in node) node.checked = checked;
      fire(node, "input", "change");
    }
    for (const [steps, order] of kept.sorted) {
      const button = follow(page, steps)?.querySelector("button") ?? follow(page, steps);
      for (let i = 0; button && i < 2; i += 1) {
        if (follow(page, steps).getAttribute("aria-sort") !== order) button.click();
      }
    }
    for (const [steps, left, top] of kept.scrolled) {
      const node = follow(page, steps);
      if (node) { node.scrollLeft = left; node.scrollTop = top; }
    }
    if (kept.focus) follow(page, kept.focus)?.focus({ preventScroll: true });
    frame.contentWindow.scrollTo({ left: kept.left, top: kept.top, behavior: "instant" });
  }

  // Charts are drawn after the page has loaded, and only then is it as long as it will be.
  async function drawn(page) {
    const root = page.documentElement;
    for (let i = 0; i < 60 && page.querySelector("[data-chart]")
         && root.dataset.charts !== "drawn"; i += 1) {
      await new Promise((done) => setTimeout(done, 50));
    }
  }

  async function swap(version) {
    const old = frames.querySelector("iframe");
    const next = document.createElement("iframe");
    next.title = "report";
    next.className = "coming";
    const loaded = new Promise((done) => { next.onload = done; });
    next.src = `/report?${encodeURIComponent(version)}`;
    frames.append(next);
    await loaded;
    await drawn(next.contentDocument);
    if (old) restore(next, remember(old));
    next.className = "";
    old?.remove();
    document.title = next.contentDocument.title || document.title;
    shown = version;
    document.body.dataset.version = version;
  }

  async function look() {
    if (busy) return;
    busy = true;
    try {
      const answer = await fetch("/state", { cache: "no-store" });
      const news = await answer.json();
      const parts = [];
      if (news.candidates !== null) parts.push(`${news.candidates} candidates`);
      if (news.age !== null) parts.push(`last event ${ago(news.age)} ago`);
      if (news.note) parts.push(news.note);
      tell(news.state, parts.join(", "));
      if (news.version !== null && news.version !== shown) await swap(news.version);
    } catch (error) {
      tell("lost", shown ? "this is the last report" : "");
    } finally {
      busy = false;
    }
  }

  look();
  setInterval(look, every);
})();
"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>evomerge watch</title>
<style>{style}</style>
</head>
<body data-every="{every:g}">
<p id="bar" role="status"><span id="state">looking</span><span id="facts"></span></p>
<div id="frames"></div>
<noscript>This page needs JavaScript: <a href="/report">the report as it is now</a>.</noscript>
<script>{script}</script>
</body>
</html>
"""


def shell(every: float) -> str:
    """The page, which looks for news every so many seconds."""
    return _PAGE.format(style=STYLE, script=SCRIPT, every=every)


def policy() -> str:
    """Its content security policy: its own script and style, and frames from this server."""
    return (
        f"default-src 'none'; script-src {_hash(SCRIPT)}; style-src {_hash(STYLE)}; "
        "connect-src 'self'; frame-src 'self'; img-src data:; frame-ancestors 'none'; "
        "base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
