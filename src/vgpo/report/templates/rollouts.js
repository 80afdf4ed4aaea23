const SHADES = [["focus", "Focus"], ["token_factor", "Token factor"]];
const state = { run: 0, outcome: "all", shade: "focus", shown: null };

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
    (rollout) => state.outcome === "all" || rollout.correct === (state.outcome === "correct"));
  state.shown = wanted[0] ?? null;
  list.replaceChildren(...wanted.map((rollout) => listEntry(rollout, list)));
  if (wanted.length === 0) list.append(element("li", { class: "empty" }, "None stored."));
  drawRollout();
}

function listEntry(rollout, list) {
  const facts = element("span", { class: "facts" }, verdict(rollout.correct), `step ${rollout.step} · group ${rollout.group}`);
  const excerpt = element("span", { class: "excerpt" }, questionText(rollout.question).slice(0, 160));
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
    element("p", { class: "question" }, questionText(rollout.question)),
    expectedAnswer(rollout.gold, verdict(rollout.correct)));
  const body = element("div", {}, head, numbers(rollout), ...drawTokens(rollout));
  article.replaceChildren(images(rollout), body);
}

function hint() {
  return "Point at a token, tap it, or focus the text and use the arrow keys, to read its numbers.";
}

function images(rollout) {
  const column = element("div", { class: "pictures" });
  rollout.images.forEach((name, i) => {
    const image = DATA.images[name];
    if (image === null) {
      column.append(element("p", { class: "empty" }, "This image is no longer in the run folder."));
      return;
    }
    column.append(pictureImage(image.uri, image, i));
  });
  if (rollout.images.length === 0) column.append(element("p", { class: "empty" }, "A question without an image."));
  return column;
}

function numbers(rollout) {
  const rewards = Object.entries(rollout.rewards).map(([name, value]) => [visible(name), number(value, 2)]);
  return definitions([
    ...rewards,
    ["advantage", signed(rollout.advantage, 3)],
    ["rollout factor", number(rollout.rollout_factor, 3)],
    ["tokens", String(rollout.num_tokens)],
  ]);
}

function drawTokens(rollout) {
  const measure = {
    focus: { name: "focus", values: rollout.focus, digits: 3, centre: null },
    token_factor: { name: "factor", values: rollout.token_factor, digits: 2, centre: 1 },
  }[state.shade];
  const key = measure.values === null ? element("div", { class: "key" }, absence(rollout)) : shadeKey(measure);
  const strip = tokenStrip({ name: "focus", values: rollout.focus }, rollout.gate);
  const readout = element("p", { class: "token-readout", "aria-live": "polite" }, hint());
  const { text } = tokenText(rollout, measure, (i) => {
    readout.replaceChildren(...tokenNumbers(rollout, i));
    moveCursor(strip, i);
  });
  return [key, ...(strip ? [strip] : []), text, readout];
}

function absence(rollout) {
  if (state.shade === "token_factor") return "No token factors: this run does not shape advantages.";
  return rollout.images.length === 0 ? "No focus: the question has no image." : "Focus was not measured in this run.";
}

function tokenNumbers(rollout, i) {
  const parts = [
    `focus ${number(rollout.focus?.[i], 3)}`,
    `token factor ${number(rollout.token_factor?.[i], 3)}`,
    `advantage ${signed(rollout.token_advantages?.[i], 3)}`,
    passedGate(rollout.gate[i]),
  ];
  return [...tokenHead(rollout, i), parts.join(" · ")];
}
