// Rollouts: a group at a step, its responses side by side.

const SHADES = [["focus", "Focus"], ["token_factor", "Token factor"]];
// `place` of the group among those that match; null is the newest one.
const rolloutView = { run: 0, outcome: "all", shade: "focus", text: "", place: null };

function drawRolloutBrowser() {
  if (document.getElementById("group") === null) return;
  rolloutView.run = DATA.runs.findLastIndex((run) => run.rollouts.length > 0);
  const runs = DATA.runs.map((run, index) => [index, visible(run.name)]);
  choices(document.getElementById("run-choice"), runs, rolloutView.run, (run) => showRollouts({ run, place: null }));
  choices(document.getElementById("outcome-choice"), OUTCOMES, "all", (outcome) => showRollouts({ outcome }));
  choices(document.getElementById("shade-choice"), SHADES, "focus", (shade) => showRollouts({ shade }));
  const on = (id, change) => document.getElementById(id)
    .addEventListener("input", (event) => showRollouts(change(event.target.value)));
  on("step-choice", (value) => ({ place: Number(value) }));
  on("text-choice", (value) => ({ text: value.trim().toLowerCase(), place: null }));
  showRollouts({});
}

// The groups of a run by step, each a list of rollouts.
function groupsOf(run) {
  const groups = new Map();
  for (const rollout of run.rollouts) {
    const key = `${rollout.step}/${rollout.group}`;
    groups.set(key, [...(groups.get(key) ?? []), rollout]);
  }
  return [...groups.values()];
}

function hasRolloutText(group) {
  return group.some((rollout) => {
    rollout.searched ??= [rollout.question, rollout.reference, rollout.tokens.join("")].join("\n").toLowerCase();
    return rollout.searched.includes(rolloutView.text);
  });
}

function showRollouts(change) {
  Object.assign(rolloutView, change);
  const all = groupsOf(DATA.runs[rolloutView.run]);
  const groups = all.filter(hasRolloutText);
  const place = Math.min(rolloutView.place ?? groups.length - 1, groups.length - 1);
  const slider = document.getElementById("step-choice");
  Object.assign(slider, { max: Math.max(0, groups.length - 1), value: Math.max(0, place), disabled: groups.length < 2 });
  const group = groups[place];
  slider.setAttribute("aria-valuetext", group ? `step ${group[0].step}` : "none");
  document.getElementById("step-label").textContent = group ? stepLabel(group) : "–";
  document.getElementById("group-count").textContent = `${groups.length} of ${all.length} groups`;
  const article = document.getElementById("group");
  if (group) article.replaceChildren(...groupParts(group));
  else article.replaceChildren(element("p", { class: "empty" }, all.length > 0 ? "No group matches." : "None stored."));
}

function stepLabel(group) {
  const correct = group.filter((rollout) => rollout.correct).length;
  return `step ${group[0].step}, group ${group[0].group}: ${correct} of ${group.length} correct`;
}

function groupParts(group) {
  const [first] = group;
  const head = element("div", { class: "group-head" }, images(first), element("div", {},
    element("p", { class: "question" }, questionText(first.question)),
    expectedAnswer(first.reference, `row ${first.row}`)));
  const { outcome } = rolloutView;
  const shown = group.filter(({ correct }) => outcome === "all" || correct === (outcome === "correct"));
  const cards = shown.map((rollout) => rolloutCard(rollout, group.indexOf(rollout) + 1));
  if (shown.length === 0) cards.push(element("p", { class: "empty" }, "None in this group."));
  return [head, element("div", { class: "cards" }, ...cards)];
}

function rolloutCard(rollout, number) {
  const head = element("header", {}, element("b", {}, `rollout ${number}`), verdict(rollout.correct));
  return element("article", { class: "card" }, head, numbers(rollout), ...drawTokens(rollout));
}

function images(rollout) {
  const column = element("div", { class: "images" });
  rollout.images.forEach((name, i) => {
    const image = DATA.images[name];
    if (image === null) {
      column.append(element("p", { class: "empty" }, "This image is no longer in the run folder."));
      return;
    }
    column.append(imageElement(image.uri, image, i));
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
  }[rolloutView.shade];
  const key = measure.values === null ? element("div", { class: "key" }, absence(rollout)) : shadeKey(measure);
  const strip = tokenStrip({ name: "focus", values: rollout.focus }, rollout.gate);
  const readout = element("p", { class: "token-readout", "aria-live": "polite" }, "Point at a token to read its numbers.");
  const { text } = tokenText(rollout, measure, (i) => {
    readout.replaceChildren(...tokenNumbers(rollout, i));
    moveCursor(strip, i);
  });
  return [key, ...(strip ? [strip] : []), text, readout];
}

function absence(rollout) {
  if (rolloutView.shade === "token_factor") return "No token factors: this run does not shape advantages.";
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
