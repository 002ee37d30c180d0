"use strict";
// Shows in the panel the thoughts of the token under the pointer or with the focus. Arrow keys move the focus.
const panel = document.getElementById("panel");
const tokens = [...document.querySelectorAll(".t[data-thoughts]")];

const isShown = (token) => !token.closest("details:not([open])");

function element(name, text, css) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (css) made.className = css;
  return made;
}

function meter(label, p, css) {
  const box = element("div", label + " " + p.toPrecision(3));
  const bar = element("div", undefined, "meter " + css);
  const inside = element("i");
  inside.style.width = 100 * p + "%";
  bar.append(inside);
  box.append(bar);
  return box;
}

function signed(value) {
  if (value === null) return "\u2013"; // not a number
  if (!value) return "0";
  const size = Math.abs(value);
  return (value < 0 ? "\u2212" : "+") + (size < 0.0005 ? size.toExponential(0).replace("-", "\u2212") : size.toFixed(3));
}

function show(token) {
  for (const other of document.querySelectorAll('.t[aria-selected="true"]')) other.setAttribute("aria-selected", "false");
  token.setAttribute("aria-selected", "true");
  const { base, gain, thoughts } = JSON.parse(token.dataset.thoughts);
  const table = element("table");
  const head = element("tr");
  for (const [name, css] of [["thought before it", ""], ["weight", "n"], ["nats", "n"]]) head.append(element("th", name, css));
  table.append(head);
  const times = new Map(); // equal thoughts share a row
  for (const [text, weight, nats] of thoughts) {
    const same = times.get(text);
    times.set(text, [weight, nats, same ? same[2] + 1 : 1]);
  }
  for (const [text, [weight, nats, count]] of times) {
    const row = element("tr");
    const cell = element("td", text, "m");
    if (count > 1) cell.append(element("span", "  \u00d7" + count, "soft"));
    row.append(cell, element("td", weight === null ? "\u2013" : weight && Math.abs(weight) < 0.005 ? weight.toExponential(0) : weight.toFixed(2), "n"), element("td", signed(nats), "n"));
    table.append(row);
  }
  const meters = element("div", undefined, "meters");
  meters.append(
    meter("p without", Math.exp(base), "without"),
    meter("p with", Math.min(1, Math.exp(base + gain)), "with"),
  );
  panel.replaceChildren(
    element("h3", "\u2039" + (token.dataset.text.trim() || token.dataset.text.replaceAll("\n", "\u21b5")) + "\u203a"),
    element("p", signed(gain) + " nats: thoughts " + (gain > 0 ? "help" : gain < 0 ? "hurt" : "change nothing"), "soft"),
    meters,
    table,
  );
}

function move(from, to) {
  if (!to) return;
  from.tabIndex = -1;
  to.tabIndex = 0;
  to.focus();
}

for (const [i, token] of tokens.entries()) {
  token.removeAttribute("title"); // the panel shows more
  token.tabIndex = i === 0 ? 0 : -1;
  // "mouseenter" would also fire when the page scrolls below a pointer at rest.
  token.addEventListener("mousemove", (event) => {
    if ((event.movementX || event.movementY) && token.getAttribute("aria-selected") !== "true") show(token);
  });
  token.addEventListener("focus", () => show(token));
  token.addEventListener("click", () => move(document.querySelector('.t[tabindex="0"]') || token, token));
  token.addEventListener("keydown", (event) => {
    const document_ = token.closest(".doc");
    const next = {
      ArrowRight: () => tokens.find((other, j) => j > i && isShown(other)),
      ArrowLeft: () => tokens.findLast((other, j) => j < i && isShown(other)),
      ArrowDown: () => tokens.find((other, j) => j > i && isShown(other) && other.closest(".doc") !== document_),
      ArrowUp: () => tokens.findLast((other, j) => j < i && isShown(other) && other.closest(".doc") !== document_),
      Home: () => tokens[0],
      End: () => tokens.filter(isShown).at(-1),
    }[event.key];
    if (!next) return;
    event.preventDefault();
    move(token, next());
  });
}
// At first the panel shows the token that was helped most.
const gainOf = (token) => JSON.parse(token.dataset.thoughts).gain;
if (tokens.length) show(tokens.filter(isShown).reduce((best, token) => (gainOf(token) > gainOf(best) ? token : best)));
