// One response in full: its images with the map of a token, its text, its numbers.

const MEASURES = {
  similarity: ["Similarity", "similarity", 3, null],
  focus: ["ρ", "ρ", 3, null],
  weight: ["w", "w", 3, null],
  token_factor: ["Token factor", "token factor", 3, 1],
  advantage: ["Advantage", "advantage", 3, 0],
  attention: ["Attention to image", "attention to the image", 3, null],
};

function measureOf(rollout, key) {
  const [, name, digits, centre] = MEASURES[key];
  const values = key === "attention" ? rollout.attention?.image ?? null : rollout[key];
  return { name, values: values?.some((value) => value !== null) ? values : null, digits, centre };
}

function pane(question, rollouts, first) {
  const article = element("article", { class: "pane" });
  const change = (rollout) => {
    view.samples[rollout.model] = rollout.sample;
    show(rollout);
    article.querySelector(".choices [aria-pressed='true']").focus();
  };
  const show = (rollout) => article.replaceChildren(...paneParts(question, rollout, rollouts, change));
  show(first);
  return article;
}

function paneParts(question, rollout, rollouts, change) {
  const mapped = rollout.map === null ? null : new MappedImages(question);
  const images = mapped === null ? plainImages(question) : mapped.node;
  const measure = measureOf(rollout, view.measure);
  const strip = tokenStrip(measure, rollout.gate);
  const readout = element("div", { class: "token-readout", "aria-live": "polite" });
  const showToken = (i, chosen) => {
    if (chosen) rollout.chosen = i;
    rollout.shown = i;
    readout.replaceChildren(...tokenNumbers(rollout, i));
    moveCursor(strip, i);
    paintMap(rollout, mapped);
  };
  const { text, choose } = tokenText(rollout, measure, showToken);
  if (rollout.num_tokens > 0) choose(rollout.chosen ?? startToken(rollout));
  const key = measure.values === null
    ? element("div", { class: "key" }, absence(question, view.measure)) : shadeKey(measure);
  const words = element("div", { class: "words" }, facts(rollout), key, ...(strip ? [strip] : []), text, readout);
  rollout.repaint = () => paintMap(rollout, mapped);
  return [paneHead(rollout, rollouts, change), element("div", { class: "parts" }, images, words)];
}

// The page opens at the token that is nearest to the image.
function startToken(rollout) {
  const values = rollout.similarity ?? [];
  return Math.max(0, values.indexOf(extent(values)[1]));
}

async function paintMap(rollout, mapped) {
  if (mapped === null || rollout.shown === undefined) return;
  rollout.levels ??= unpackLevels(rollout.map);
  const levels = await rollout.levels;
  const whole = view.map === "response";
  const values = cellValues(rollout.map, levels, whole ? null : rollout.shown);
  const [low, high] = whole || view.scale === "token" ? extent(values) : [rollout.map.low, rollout.map.high];
  mapped.paint({
    values,
    low,
    high,
    peaks: rollout.map.peaks.at(whole ? -1 : rollout.shown),
    digits: mapDigits(rollout.map),
    about: whole ? "the mean token" : `token ${rollout.shown + 1}`,
  });
}

function paneHead(rollout, rollouts, change) {
  const model = DATA.models[rollout.model];
  const answered = rollout.predicted === null ? "no answer" : element("b", {}, visible(rollout.predicted));
  const limit = rollout.truncated ? " · cut at the token limit" : "";
  const head = element("header", {}, element("h3", {}, swatch(rollout.model), visible(model.name)),
    element("p", { class: "reference" }, verdict(rollout.correct), " · answered ", answered, limit));
  if (rollouts.length > 1) head.append(sampleChoice(rollout, rollouts, change));
  return head;
}

function sampleChoice(rollout, rollouts, change) {
  const container = element("div", { class: "choices", role: "group", "aria-label": "Sample" });
  const options = rollouts.map((one) => [one, `${one.correct ? "✓" : "✗"} ${one.sample + 1}`]);
  choices(container, options, rollout, change);
  return container;
}

function facts(rollout) {
  const focus = rollout.focus?.filter((value) => value !== null) ?? [];
  const mean = focus.length > 0 ? focus.reduce((sum, value) => sum + value, 0) / focus.length : null;
  const entries = [
    ["mean ρ", number(mean, 3)],
    ["late / early", number(rollout.late_early_ratio, 3)],
    ["rollout factor", number(rollout.rollout_factor, 3)],
    ["tokens", String(rollout.num_tokens)],
  ];
  return definitions(entries);
}

function absence(question, key) {
  if (question.images.length === 0) return "Nothing to shade: the question has no image.";
  if (key === "attention") return "Attention was not measured.";
  if (key === "advantage") return "No advantage: it needs several samples of a question.";
  return "Not measured for this response.";
}

function tokenNumbers(rollout, i) {
  const entries = ["similarity", "focus", "weight", "token_factor"]
    .map((key) => [MEASURES[key][1], number(rollout[key]?.[i], 3)]);
  entries.push(["advantage", signed(rollout.advantage?.[i], 3)]);
  if (rollout.attention !== null) {
    const shares = Object.values(rollout.attention).map((values) => number(values[i], 2));
    entries.push([`attention: ${Object.keys(rollout.attention).join(" / ")}`, shares.join(" / ")]);
  }
  return [element("p", {}, ...tokenHead(rollout, i), passedGate(rollout.gate[i])), definitions(entries)];
}
