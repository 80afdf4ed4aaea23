// The browser of questions: filters, the list, and the chosen question with a response of each model.

const MAPS = [["token", "Chosen token"], ["response", "Whole response"]];
const SCALES = [["token", "Own range"], ["response", "Response’s range"]];
const ORDERS = {
  differ: ["Largest difference first", (a, b) => byDifference(a, b)],
  data: ["Order of the data", (a, b) => a.number - b.number],
  ratio: ["Lowest late / early first", (a, b) => leastRatio(a) - leastRatio(b)],
};
// `samples`: which one of each model is asked for, where it is not the first that meets the filters.
const view = { measure: "similarity", map: "token", scale: "token", question: null, samples: {} };
const requested = { outcome: "all", model: null, kind: null, low: -Infinity, high: Infinity, text: "", order: "data" };

function byDifference(a, b) {
  const size = (question, name) => Math.abs(question.difference[name] ?? 0);
  return size(b, "correct") - size(a, "correct") || size(b, "focus") - size(a, "focus");
}

function leastRatio(question) {
  return Math.min(...question.rollouts.map((rollout) => rollout.late_early_ratio ?? Infinity));
}

function drawQuestions() {
  if (document.getElementById("questions") === null) return Promise.resolve();
  const compared = DATA.models.length > 1;
  requested.order = compared ? "differ" : "data";
  const outcomes = compared ? [...OUTCOMES, ["differ", "≠ Differ"]] : OUTCOMES;
  choices(document.getElementById("outcome-choice"), outcomes, "all", (outcome) => filter({ outcome }));
  const attention = DATA.questions.some(({ rollouts }) => rollouts.some((rollout) => rollout.attention !== null));
  const measures = Object.entries(MEASURES).filter(([key]) => attention || key !== "attention");
  choices(document.getElementById("measure-choice"), measures.map(([key, [label]]) => [key, label]), view.measure,
    (measure) => redraw({ measure }));
  choices(document.getElementById("map-choice"), MAPS, view.map, (map) => repaintMaps({ map }));
  choices(document.getElementById("scale-choice"), SCALES, view.scale, (scale) => repaintMaps({ scale }));
  listenToFilters(compared);
  listenToStrength();
  return filter({});
}

function listenToFilters(compared) {
  const on = (id, kind, change) => document.getElementById(id)
    ?.addEventListener(kind, (event) => filter(change(event.target.value)));
  const bound = (value, none) => (value === "" || Number.isNaN(Number(value)) ? none : Number(value));
  on("model-choice", "change", (value) => ({ model: value === "" ? null : Number(value) }));
  on("kind-choice", "change", (value) => ({ kind: value === "" ? null : KINDS[Number(value)] }));
  on("ratio-low", "input", (value) => ({ low: bound(value, -Infinity) }));
  on("ratio-high", "input", (value) => ({ high: bound(value, Infinity) }));
  on("text-choice", "input", (value) => ({ text: value.trim().toLowerCase() }));
  on("order-choice", "change", (order) => ({ order }));
  const orders = Object.entries(ORDERS).filter(([key]) => compared || key !== "differ");
  fillSelect("order-choice", orders.map(([key, [label]]) => [key, label]));
  fillSelect("kind-choice", [["", "All kinds"], ...KINDS.map((kind, i) => [i, visible(kind)])]);
  fillSelect("model-choice", [["", "any model"], ...DATA.models.map((model, i) => [i, visible(model.name)])]);
}

const KINDS = [...new Set(DATA.questions.map((question) => question.kind))].filter((kind) => kind !== null).sort();

function listenToStrength() {
  const slider = document.getElementById("strength");
  const style = document.getElementById("questions").style;
  const set = () => {
    style.setProperty("--strength", slider.value / 100);
    style.setProperty("--labels", slider.value > 0 ? "visible" : "hidden");
  };
  slider.addEventListener("input", set);
  set();
}

function rolloutRequested(rollout, question) {
  if (requested.model !== null && rollout.model !== requested.model) return false;
  if (requested.outcome === "differ" && !question.difference.correct) return false;
  if (requested.outcome === "correct" && !rollout.correct) return false;
  if (requested.outcome === "wrong" && rollout.correct) return false;
  if (requested.low === -Infinity && requested.high === Infinity) return true;
  const ratio = rollout.late_early_ratio;
  return ratio !== null && ratio >= requested.low && ratio <= requested.high;
}

function hasText(question) {
  const responses = () => question.rollouts.map((rollout) => rollout.tokens.join(""));
  question.searched ??= [question.problem, question.answer, ...responses()].join("\n").toLowerCase();
  return question.searched.includes(requested.text);
}

function questionRequested(question) {
  return (requested.kind === null || question.kind === requested.kind) && hasText(question)
    && question.rollouts.some((rollout) => rolloutRequested(rollout, question));
}

function filter(change) {
  Object.assign(requested, change);
  const list = document.getElementById("question-list");
  const shown = DATA.questions.filter(questionRequested).sort(ORDERS[requested.order][1]);
  document.getElementById("count").textContent = `${shown.length} of ${DATA.questions.length} questions`;
  list.replaceChildren(...shown.map((question) => listEntry(question)));
  if (shown.length === 0) list.append(element("li", { class: "empty" }, "None match these filters."));
  return chooseQuestion(shown.includes(view.question) ? view.question : shown[0] ?? null);
}

function listEntry(question) {
  const verdicts = DATA.models.map((_, i) => modelVerdict(question, i));
  const facts = element("span", { class: "facts" }, element("span", { class: "verdicts" }, ...verdicts));
  const focus = question.difference?.focus ?? null;
  const about = [`row ${question.row}`];
  if (question.kind !== null) about.push(visible(question.kind));
  if (focus !== null) about.push(`Δρ ${signed(focus, 3)}`);
  const excerpt = element("span", { class: "excerpt" }, questionText(question.problem).slice(0, 160));
  const last = element("span", { class: "facts" }, about.join(" · "));
  const button = element("button", { type: "button" }, facts, excerpt, last);
  button.addEventListener("click", () => chooseQuestion(question));
  question.button = button;
  return element("li", {}, button);
}

function modelVerdict(question, model) {
  const rollouts = question.rollouts.filter((rollout) => rollout.model === model);
  const mark = DATA.models.length > 1 ? [swatch(model)] : [];
  if (rollouts.length === 0) return element("span", {}, ...mark, "–");
  if (rollouts.length === 1) return element("span", {}, ...mark, verdict(rollouts[0].correct));
  const right = rollouts.filter((rollout) => rollout.correct).length;
  return element("span", {}, ...mark, `${right} of ${rollouts.length} ✓`);
}

function chooseQuestion(question, samples = {}) {
  view.question?.button.removeAttribute("aria-current");
  Object.assign(view, { question, samples });
  question?.button.setAttribute("aria-current", "true");
  return redraw({});
}

function redraw(change) {
  Object.assign(view, change);
  const container = document.getElementById("question");
  const question = view.question;
  if (question === null) {
    container.replaceChildren(element("p", { class: "empty" }, "No question to show."));
    return Promise.resolve();
  }
  const panes = DATA.models.map((_, model) => question.rollouts.filter((rollout) => rollout.model === model))
    .filter((rollouts) => rollouts.length > 0)
    .map((rollouts) => pane(question, rollouts, shownRollout(question, rollouts)));
  container.replaceChildren(
    element("p", { class: "question" }, questionText(question.problem)),
    expectedAnswer(question.answer, `row ${question.row}`),
    element("div", { class: panes.length > 1 ? "panes two" : "panes" }, ...panes));
  return Promise.all(question.rollouts.map((rollout) => rollout.repaint?.()));
}

function shownRollout(question, rollouts) {
  return rollouts.find(({ model, sample }) => view.samples[model] === sample)
    ?? rollouts.find((rollout) => rolloutRequested(rollout, question)) ?? rollouts[0];
}

function repaintMaps(change) {
  Object.assign(view, change);
  for (const rollout of view.question?.rollouts ?? []) rollout.repaint?.();
}
