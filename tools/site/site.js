// Light and dark, folded code, the menu of a phone, and the search. No library, and nothing from the network.
"use strict";
const page = document.documentElement;
const base = document.body.dataset.base; // the way to the site's folder, as "../"
const byId = (id) => document.getElementById(id);

function remember(name, value) {
  try { localStorage[name] = value; } catch { /* private windows keep nothing */ }
}

byId("theme").addEventListener("click", () => {
  page.dataset.theme = page.dataset.theme === "dark" ? "light" : "dark";
  remember("theme", page.dataset.theme);
});

byId("menu").addEventListener("click", () => {
  const open = document.body.classList.toggle("menu");
  byId("menu").setAttribute("aria-expanded", open);
});

// Code: as the page has it, or all of it
const cells = document.querySelectorAll("main details.input");
const asItWas = [...cells].map((cell) => cell.open);

function showCode(all) {
  cells.forEach((cell, k) => { cell.open = all || asItWas[k]; });
  byId("code").setAttribute("aria-pressed", all);
  byId("code").textContent = all ? "Fold long code" : "Show all code";
}

byId("code").addEventListener("click", () => {
  const all = byId("code").getAttribute("aria-pressed") !== "true";
  showCode(all);
  remember("code", all ? "all" : "");
});
try { if (localStorage.code === "all") showCode(true); } catch { /* as it was */ }

// The search. The index is loaded when it is first needed, as a script: from a disk nothing else may be read
let loading = null;

function loadIndex() {
  loading ??= new Promise((done, failed) => {
    const script = document.createElement("script");
    script.src = base + "search-index.js";
    script.onload = () => done(window.SECTIONS);
    script.onerror = failed;
    document.head.append(script);
  });
  return loading;
}

// How well a section answers: every word must be somewhere; a title weighs more than a heading, that more than text
function worth([, title, , heading, text], words) {
  const [t, h, x] = [title, heading, text].map((s) => s.toLowerCase());
  let sum = 0;
  for (const word of words) {
    const count = Math.min(x.split(word).length - 1, 5);
    const found = 20 * t.includes(word) + 10 * h.includes(word) + count;
    if (!found) return 0;
    sum += found;
  }
  return sum + (heading === title ? 5 : 0);
}

function excerpt(text, word) {
  const at = Math.max(0, text.toLowerCase().indexOf(word) - 50);
  return (at ? "…" : "") + text.slice(at, at + 160) + (at + 160 < text.length ? "…" : "");
}

// Text with the words marked, as nodes: nothing of it is read as HTML
function marked(text, words) {
  const escaped = words.map((w) => w.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"));
  return text.split(new RegExp(`(${escaped.join("|")})`, "i")).map((part, k) => {
    if (k % 2 === 0) return part;
    const mark = document.createElement("mark");
    mark.textContent = part;
    return mark;
  });
}

function shown(section, words) {
  const [file, title, anchor, heading, text] = section;
  const item = document.createElement("li");
  const link = document.createElement("a");
  link.href = base + file + (anchor ? "#" + encodeURIComponent(anchor) : "");
  link.textContent = heading && heading !== title ? `${title.split(":")[0]} › ${heading}` : title;
  const about = document.createElement("p");
  about.append(...marked(excerpt(text, words[0]), words));
  item.append(link, about);
  return item;
}

function nothing(text) {
  const item = document.createElement("li");
  item.textContent = text;
  return [item];
}

async function search() {
  const words = byId("search").value.toLowerCase().split(/\s+/).filter((w) => w.length > 1);
  byId("found").hidden = words.length === 0;
  if (words.length === 0) return;
  const sections = await loadIndex();
  const best = sections.map((s) => [worth(s, words), s]).filter(([w]) => w > 0);
  best.sort((a, b) => b[0] - a[0]);
  const items = best.slice(0, 12).map(([, s]) => shown(s, words));
  byId("found").replaceChildren(...(items.length ? items : nothing("No page has all these words.")));
}

byId("search").addEventListener("input", search);
byId("search").addEventListener("keydown", (event) => {
  const first = document.querySelector("#found a");
  if (event.key === "Enter" && first) location.href = first.href;
  if (event.key === "ArrowDown" && first) { first.focus(); event.preventDefault(); }
});
document.addEventListener("keydown", (event) => {
  const typing = event.target.closest("input, textarea");
  if (event.key === "/" && !typing) { byId("search").focus(); event.preventDefault(); }
  if (event.key === "Escape") byId("found").hidden = true;
});
document.addEventListener("click", (event) => {
  if (!event.target.closest("#finder")) byId("found").hidden = true;
});

const asked = new URLSearchParams(location.search).get("q");
if (asked) { byId("search").value = asked; search(); }
