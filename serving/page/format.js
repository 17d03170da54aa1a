// Formatting of numbers, and creation of elements.
"use strict";

const whole = new Intl.NumberFormat("en");
const short = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });

function seconds(value) {
  if (value === null || value === undefined) return "–";
  if (value < 10) return `${value.toFixed(1)} s`;
  if (value < 120) return `${Math.round(value)} s`;
  if (value < 7200) return `${Math.round(value / 60)} min`;
  if (value < 172800) return `${Math.round(value / 3600)} h`;
  return `${whole.format(Math.round(value / 86400))} d`;
}

function rate(value) {
  if (value >= 1000) return short.format(value);
  return value >= 10 || value === 0 ? String(Math.round(value)) : value.toFixed(1);
}

function count(value, one, many) {
  return `${whole.format(value)} ${value === 1 ? one : many}`;
}

// element("p", { class: "muted", text: "…" }, child, …): text is never parsed as HTML.
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "text") made.textContent = value;
    else if (value !== null && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

// Text with `code` between backticks.
function prose(text) {
  return text.split("`").map((part, index) => (index % 2 ? element("code", { text: part }) : part));
}

function byId(id) {
  return document.getElementById(id);
}

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}
