// Tokens of a response, shaded by a measure, with a strip of it by position. A measure is
// { name, values (one per token, or null), digits, centre (null, or what no shade means) }.

const OUTCOMES = [["all", "All"], ["correct", "✓ Correct"], ["wrong", "✗ Wrong"]];

// The question, with a sign in place of an image.
function questionText(problem) {
  return visible(problem.replaceAll("<image>", "▣ "));
}

function verdict(correct) {
  if (correct === null) return element("span", {}, "not graded");
  return element("span", { class: correct ? "right" : "wrong-answer" }, correct ? "✓ correct" : "✗ wrong");
}

function expectedAnswer(answer, ...about) {
  return element("p", { class: "reference" }, "Expected ", element("b", {}, visible(answer)), " · ", ...about);
}

function extent(values) {
  const known = values.filter((value) => value !== null);
  return [Math.min(...known), Math.max(...known)];
}

// The values at the two ends of a measure's shade.
function shadeEnds({ values, centre }) {
  if (centre === null) return extent(values);
  const reach = Math.max(1e-9, ...values.map((value) => Math.abs((value ?? centre) - centre)));
  return [centre - reach, centre + reach];
}

function shadeKey(measure) {
  const [low, high] = shadeEnds(measure).map((end) => number(end, measure.digits));
  const ramp = element("span", { class: `ramp ${measure.centre === null ? "rising" : "around"}` });
  return element("div", { class: "key" },
    element("span", {}, `${measure.name} ${low}`, ramp, high),
    element("span", {}, element("u", {}, "underlined"), " passed the gate"));
}

// A measure by position; ticks below mark the gated tokens.
function tokenStrip({ name, values }, gate) {
  const count = values?.length ?? 0;
  if (count < 2) return null;
  const [low, high] = extent(values);
  const y = (value) => 36 - 33 * (value - low) / (high - low || 1);
  const line = values.map((value, i) => `${i ? "L" : "M"}${i + 0.5} ${y(value ?? low).toFixed(2)}`).join("");
  const gated = gate.map((passed, i) => (passed ? `M${i + 0.5} 41V46` : "")).join("");
  const label = `${name[0].toUpperCase()}${name.slice(1)} by position in the response`;
  return shape("svg", { class: "strip", viewBox: `0 0 ${count} 46`, preserveAspectRatio: "none", role: "img", "aria-label": label },
    shape("path", { class: "base", d: `M0 38.5H${count}`, "vector-effect": "non-scaling-stroke" }),
    shape("path", { class: "curve", d: line }),
    shape("path", { class: "gated", d: gated }),
    shape("path", { class: "cursor", d: "" }));
}

function moveCursor(strip, i) {
  strip?.querySelector(".cursor").setAttribute("d", `M${i + 0.5} 0V46`);
}

function shadeTokens(spans, measure) {
  const [low, high] = shadeEnds(measure);
  spans.forEach((span, i) => {
    if (measure.centre === null) {
      span.style.setProperty("--value", high > low ? ((measure.values[i] ?? low) - low) / (high - low) : 0);
      return;
    }
    const offset = (measure.values[i] ?? measure.centre) - measure.centre;
    span.classList.add(offset < 0 ? "below" : "above");
    span.style.setProperty("--value", Math.abs(offset) / (high - measure.centre));
  });
}

function tokenSpan(token) {
  const span = element("span", { class: "token", tabindex: "-1" });
  // A line break is nothing to point at: show a sign before it.
  token.split("\n").forEach((part, i) => {
    if (i > 0) span.append(element("span", { class: "newline" }, "↵"), "\n");
    span.append(visible(part));
  });
  return span;
}

// `show(i, chosen)` is called when token i is pointed at, and, as chosen, when it is tapped or focused. A chosen token
// comes back when the pointer leaves the text.
function tokenText({ tokens, num_tokens: numTokens, gate }, measure, show) {
  const text = element("div", { class: "tokens", role: "group", "aria-label": "Completion, token by token" });
  const spans = tokens.map(tokenSpan);
  spans.forEach((span, i) => span.classList.toggle("gated", Boolean(gate[i])));
  if (measure.values !== null) shadeTokens(spans, measure);
  let current = 0;
  let chosen = null;
  const mark = (i) => {
    spans[current].classList.remove("current");
    spans[current].tabIndex = -1;
    current = i;
    spans[i].classList.add("current");
    spans[i].tabIndex = 0;
  };
  const point = (i) => {
    mark(i);
    show(i, false);
  };
  const choose = (i) => {
    chosen = i;
    mark(i);
    show(i, true);
  };
  spans.forEach((span, i) => {
    span.addEventListener("pointerenter", () => point(i));
    span.addEventListener("click", () => choose(i));
    span.addEventListener("focus", () => choose(i));
  });
  text.addEventListener("pointerleave", () => {
    if (chosen !== null) point(chosen);
  });
  text.addEventListener("keydown", (event) => {
    const next = neighbour(spans, current, event.key);
    if (next === null) return;
    event.preventDefault();
    spans[next].focus();
  });
  text.append(...spans);
  if (spans.length > 0) spans[0].tabIndex = 0;
  if (numTokens > spans.length) text.append(` […${numTokens - spans.length} more tokens]`);
  if (numTokens === 0) text.append("(an empty response)");
  return { text, choose };
}

function neighbour(spans, current, key) {
  const last = spans.length - 1;
  if (key === "Home") return 0;
  if (key === "End") return last;
  if (key === "ArrowLeft") return Math.max(0, current - 1);
  if (key === "ArrowRight") return Math.min(last, current + 1);
  if (key === "ArrowUp" || key === "ArrowDown") return onNextLine(spans, current, key === "ArrowUp" ? -1 : 1);
  return null;
}

// The token nearest in the next line of the text as it is laid out now.
function onNextLine(spans, current, direction) {
  const from = spans[current];
  let i = current;
  while (spans[i] && spans[i].offsetTop === from.offsetTop) i += direction;
  if (!spans[i]) return current;
  const line = spans[i].offsetTop;
  let best = i;
  for (; spans[i] && spans[i].offsetTop === line; i += direction) {
    if (Math.abs(spans[i].offsetLeft - from.offsetLeft) < Math.abs(spans[best].offsetLeft - from.offsetLeft)) best = i;
  }
  return best;
}

function tokenCode(token) {
  return element("code", {}, visible(token).replaceAll("\n", "↵"));
}

// What the numbers of a token begin with.
function tokenHead({ tokens, num_tokens: numTokens }, i) {
  return [`token ${i + 1} of ${numTokens} `, tokenCode(tokens[i]), " · "];
}

function passedGate(gate) {
  return gate ? "gate passed" : "gate not passed";
}
