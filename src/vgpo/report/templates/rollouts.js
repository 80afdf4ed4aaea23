const OUTCOMES = [["all", "All"], ["correct", "✓ Correct"], ["wrong", "✗ Wrong"]];
const SHADES = [["focus", "Focus"], ["token_factor", "Token factor"]];
const state = { run: 0, outcome: "all", shade: "focus", shown: null };

// The question, with a sign where a picture stands.
function questionText(rollout) {
  return visible(rollout.question.replaceAll("<image>", "▣ "));
}

function verdict(rollout) {
  return element("span", { class: rollout.correct ? "right" : "wrong-answer" }, rollout.correct ? "✓ correct" : "✗ wrong");
}

function drawRolloutBrowser() {
  if (document.getElementById("rollout") === null) return;
  state.run = DATA.runs.findLastIndex((run) => run.rollouts.length > 0);
  const runs = DATA.runs.map((run, index) => [index, visible(run.name)]);
  choices(document.getElementById("run-choice"), runs, state.run, (value) => update({ run: value }));
  choices(document.getElementById("outcome-choice"), OUTCOMES, state.outcome, (value) => update({ outcome: value }));
  choices(document.getElementById("shade-choice"), SHADES, state.shade, (value) => {
    state.shade = value;
    drawRollout();
  });
  update({});
}

function update(change) {
  Object.assign(state, change);
  const list = document.getElementById("rollout-list");
  const wanted = DATA.runs[state.run].rollouts.filter(
    (rollout) => state.outcome === "all" || (state.outcome === "correct") === rollout.correct);
  state.shown = wanted[0] ?? null;
  list.replaceChildren(...wanted.map((rollout) => listEntry(rollout, list)));
  if (wanted.length === 0) list.append(element("li", { class: "empty" }, "None stored."));
  drawRollout();
}

function listEntry(rollout, list) {
  const facts = element("span", { class: "facts" }, verdict(rollout), `step ${rollout.step} · group ${rollout.group}`);
  const excerpt = element("span", { class: "excerpt" }, questionText(rollout).slice(0, 160));
  const button = element("button", { type: "button", "aria-current": String(rollout === state.shown) }, facts, excerpt);
  button.addEventListener("click", () => {
    for (const other of list.querySelectorAll("button")) other.setAttribute("aria-current", String(other === button));
    state.shown = rollout;
    drawRollout();
  });
  return element("li", {}, button);
}

function drawRollout() {
  const article = document.getElementById("rollout");
  const rollout = state.shown;
  if (rollout === null) {
    article.replaceChildren(element("p", { class: "empty" }, "No rollout of this kind was stored for this run."));
    return;
  }
  const head = element("div", {},
    element("p", { class: "question" }, questionText(rollout)),
    element("p", { class: "gold" }, "Expected ", element("b", {}, visible(rollout.gold)), " · ", verdict(rollout)));
  const readout = element("p", { class: "token-readout", "aria-live": "polite" }, hint());
  const strip = focusStrip(rollout);
  const text = tokenText(rollout, readout, strip);
  const body = element("div", {}, head, numbers(rollout), shadeKey(rollout), ...(strip ? [strip] : []), text, readout);
  article.replaceChildren(pictures(rollout), body);
}

function hint() {
  return "Point at a token, tap it, or focus the text and use the arrow keys, to read its numbers.";
}

function pictures(rollout) {
  const column = element("div", { class: "pictures" });
  rollout.images.forEach((name, i) => {
    const image = DATA.images[name];
    if (image === null) {
      column.append(element("p", { class: "empty" }, "This picture is no longer in the run folder."));
      return;
    }
    const size = { width: image.width, height: image.height, alt: `Picture ${i + 1} of the question` };
    column.append(element("img", { ...size, src: image.uri, class: image.width <= 160 ? "small" : "" }));
  });
  if (rollout.images.length === 0) column.append(element("p", { class: "empty" }, "A question without a picture."));
  return column;
}

function numbers(rollout) {
  const rewards = Object.entries(rollout.rewards).map(([name, value]) => [visible(name), number(value, 2)]);
  const facts = [
    ...rewards,
    ["advantage", signed(rollout.advantage, 3)],
    ["rollout factor", number(rollout.rollout_factor, 3)],
    ["tokens", String(rollout.num_tokens)],
  ];
  return element("dl", { class: "numbers" }, ...facts.map(([name, value]) =>
    element("div", {}, element("dt", {}, name), element("dd", {}, value))));
}

function shadeKey(rollout) {
  const gate = element("span", {}, element("u", {}, "underlined"), " passed the gate");
  const scale = (name, kind, low, high) =>
    element("span", {}, `${name} ${low}`, element("span", { class: `ramp ${kind}` }), high);
  if (rollout[state.shade] === null) return element("div", { class: "key" }, absence(rollout));
  if (state.shade === "focus") {
    const [low, high] = extent(rollout.focus);
    return element("div", { class: "key" }, scale("focus", "focus", number(low, 3), number(high, 3)), gate);
  }
  const reach = factorReach(rollout);
  return element("div", { class: "key" }, scale("factor", "factor", number(1 - reach, 2), number(1 + reach, 2)), gate);
}

function absence(rollout) {
  if (state.shade === "token_factor") return "No token factors: this run does not shape advantages.";
  return rollout.images.length === 0 ? "No focus: the question has no picture." : "Focus was not measured in this run.";
}

function extent(values) {
  const known = values.filter((value) => value !== null);
  return [Math.min(...known), Math.max(...known)];
}

function factorReach(rollout) {
  return Math.max(1e-9, ...(rollout.token_factor ?? []).map((factor) => Math.abs((factor ?? 1) - 1)));
}

// Focus by position; ticks below mark the gated tokens.
function focusStrip(rollout) {
  const count = rollout.focus?.length ?? 0;
  if (count < 2) return null;
  const [low, high] = extent(rollout.focus);
  const y = (rho) => 36 - 33 * (rho - low) / (high - low || 1);
  const line = rollout.focus.map((rho, i) => `${i ? "L" : "M"}${i + 0.5} ${y(rho ?? low).toFixed(2)}`).join("");
  const gated = rollout.gate.map((gate, i) => (gate ? `M${i + 0.5} 41V46` : "")).join("");
  return shape("svg", { class: "strip", viewBox: `0 0 ${count} 46`, preserveAspectRatio: "none", role: "img", "aria-label": "Focus by position in the response" },
    shape("path", { class: "base", d: `M0 38.5H${count}`, "vector-effect": "non-scaling-stroke" }),
    shape("path", { class: "curve", d: line }),
    shape("path", { class: "gated", d: gated }),
    shape("path", { class: "cursor", d: "" }));
}

function shadeToken(span, rollout, i) {
  if (state.shade === "focus") {
    if (rollout.focus === null) return;
    const [low, high] = rollout.extent;
    span.style.setProperty("--value", high > low ? ((rollout.focus[i] ?? low) - low) / (high - low) : 0);
    return;
  }
  const offset = (rollout.token_factor?.[i] ?? 1) - 1;
  span.classList.add(offset < 0 ? "below" : "above");
  span.style.setProperty("--value", Math.abs(offset) / rollout.reach);
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

function tokenText(rollout, readout, strip) {
  rollout.extent = rollout.focus === null ? null : extent(rollout.focus);
  rollout.reach = factorReach(rollout);
  const text = element("div", { class: "tokens", role: "group", "aria-label": "Completion, token by token" });
  const spans = rollout.tokens.map((token, i) => {
    const span = tokenSpan(token);
    if (rollout.gate[i]) span.classList.add("gated");
    shadeToken(span, rollout, i);
    return span;
  });
  let current = 0;
  const show = (i) => {
    spans[current].classList.remove("current");
    spans[current].tabIndex = -1;
    current = i;
    spans[i].classList.add("current");
    spans[i].tabIndex = 0;
    readout.replaceChildren(...tokenNumbers(rollout, i));
    strip?.querySelector(".cursor").setAttribute("d", `M${i + 0.5} 0V46`);
  };
  spans.forEach((span, i) => {
    span.addEventListener("pointerenter", () => show(i));
    span.addEventListener("focus", () => show(i));
  });
  text.addEventListener("keydown", (event) => {
    const next = neighbour(spans, current, event.key);
    if (next === null) return;
    event.preventDefault();
    spans[next].focus();
  });
  text.append(...spans);
  if (spans.length > 0) spans[0].tabIndex = 0;
  if (rollout.num_tokens > spans.length) text.append(` […${rollout.num_tokens - spans.length} more tokens]`);
  if (rollout.num_tokens === 0) text.append("(an empty response)");
  return text;
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

function tokenNumbers(rollout, i) {
  const token = element("code", {}, visible(rollout.tokens[i]).replaceAll("\n", "↵"));
  const weighted = rollout.advantage === null ? null
    : rollout.advantage * (rollout.token_factor?.[i] ?? 1) * (rollout.rollout_factor ?? 1);
  const parts = [
    `focus ${number(rollout.focus?.[i], 3)}`,
    `token factor ${number(rollout.token_factor?.[i], 3)}`,
    `advantage ${signed(weighted, 3)}`,
    rollout.gate[i] ? "gate passed" : "gate not passed",
  ];
  return [`token ${i + 1} of ${rollout.num_tokens} `, token, ` · ${parts.join(" · ")}`];
}
