"use strict";

// The data of the page; every text in it is untrusted and only ever set as textContent.
const DATA = JSON.parse(document.getElementById("report-data").textContent);
const SVG = document.querySelector("svg").namespaceURI;

function element(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

function shape(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

// What steers or reorders a line, or cannot be encoded, is shown, not obeyed: the rule of vgpo.text.visible.
function visible(text) {
  return text.replace(/(?![\n\t])[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]/gu, (c) =>
    `[U+${c.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}]`);
}

function number(value, digits) {
  if (value === null || value === undefined) return "–";
  return value.toFixed(digits).replace("-", "\u2212");
}

// As `number`, and with an exponent where so few digits would show zeros only, or so many would not fit an axis.
function scaled(value, digits) {
  const small = Math.abs(value) < Math.min(1e-3, 0.5 * 10 ** -digits);
  if (digits > 4 && value === 0) return "0";
  return value && (small || digits > 4) ? value.toExponential(1).replaceAll("-", "\u2212") : number(value, Math.min(digits, 4));
}

// A tick of a logarithmic axis.
function compact(value) {
  const text = value >= 1e4 || value < 1e-3 ? value.toExponential(0) : String(Number(value.toPrecision(3)));
  return text.replace("e+", "e").replaceAll("-", "\u2212");
}

function signed(value, digits) {
  return (value > 0 ? "+" : "") + number(value, digits);
}

function swatch(run) {
  const line = shape("line", { class: "run-line", x1: 1, y1: 4, x2: 33, y2: 4 });
  return shape("svg", { class: `swatch run-${run}`, viewBox: "0 0 34 8", "aria-hidden": "true" }, line);
}

// Names and values side by side.
function definitions(entries) {
  return element("dl", { class: "numbers" }, ...entries.map(([name, value]) =>
    element("div", {}, element("dt", {}, name), element("dd", {}, value))));
}

// Image `i` of a question; one of few pixels is shown larger.
function imageElement(src, { width, height }, i) {
  const alt = `Image ${i + 1} of the question`;
  return element("img", { src, width, height, alt, class: width <= 160 ? "small" : "" });
}

// A row of buttons of which one is pressed; `choose` is called with its value.
function choices(container, options, chosen, choose) {
  container.replaceChildren(...options.map(([value, ...label]) => {
    const button = element("button", { type: "button", "aria-pressed": String(value === chosen) }, ...label);
    button.addEventListener("click", () => {
      for (const other of container.children) other.setAttribute("aria-pressed", String(other === button));
      choose(value);
    });
    return button;
  }));
}

// The options of a select, as pairs of value and label.
function fillSelect(id, options) {
  const made = options.map(([value, label]) => element("option", { value }, label));
  document.getElementById(id)?.replaceChildren(...made);
}
