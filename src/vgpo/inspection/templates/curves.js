// Curves and distributions over all responses, one chart a model on common scales.

function drawFocusByPosition() {
  const container = document.getElementById("focus-curves");
  if (container === null) return;
  const runs = DATA.models.map(({ name, outcomes }, index) => (
    { name, index, focus_curve: { correct: outcomes.correct.deciles, wrong: outcomes.wrong.deciles } }));
  const values = runs.flatMap(({ focus_curve: curve }) => [curve.correct, curve.wrong])
    .flatMap(({ values, low, high }) => [...values, ...low, ...high]).filter((value) => value !== null);
  const yRange = valueRange(values, false);
  const scale = scales([0, 100], yRange);
  container.replaceChildren(...runs.map((run) => {
    const { correct, wrong } = run.focus_curve;
    return focusFigure(run, `${correct.num_rollouts} correct, ${wrong.num_rollouts} wrong responses.`, scale, yRange);
  }));
}

function drawAttention() {
  const container = document.getElementById("attention-curves");
  if (container === null) return;
  const scale = scales([0, 100], [0, 1]);
  const figures = DATA.models.map((model, index) => {
    if (model.attention === null) return null;
    const lines = Object.entries(model.attention).map(([source, deciles]) => ({ ...deciles, outcome: source }));
    const caption = element("figcaption", {}, swatch(index), visible(model.name));
    const label = `Attention along the response, ${model.name}`;
    return positionFigure(caption, `${lines[0].num_rollouts} responses.`, label, index, lines, scale, [0, 1], "share of attention");
  });
  container.replaceChildren(...figures.filter((figure) => figure !== null));
}

function drawRatios() {
  const container = document.getElementById("ratio-plots");
  if (container === null) return;
  const values = DATA.models.flatMap(({ outcomes }) => [outcomes.correct, outcomes.wrong])
    .flatMap(({ late_early: found }) => found?.values ?? []);
  const xRange = valueRange([...values, 1], false);
  container.replaceChildren(...DATA.models.map((model, index) => ratioFigure(model, index, xRange)));
}

// A dot per response, stacked where they are many; box and line: middle half and median.
function ratioFigure(model, index, xRange) {
  const [height, bottom] = [166, 128];
  const { x } = scales(xRange, [0, 1]);
  const label = `Late / early ratio of the responses, ${model.name}`;
  const svg = shape("svg", { class: `chart run-${index}`, viewBox: `0 0 ${PLOT.width} ${height}`, role: "img", "aria-label": label });
  const { ticks, digits } = niceTicks(...xRange, 3);
  for (const tick of ticks) {
    svg.append(shape("line", { class: "grid", x1: x(tick), x2: x(tick), y1: PLOT.top, y2: bottom }));
    svg.append(shape("text", { x: x(tick), y: bottom + 15, "text-anchor": "middle" }, number(tick, digits)));
  }
  const middle = (PLOT.left + PLOT.width - PLOT.right) / 2;
  svg.append(shape("text", { class: "axis-title", x: middle, y: height - 5, "text-anchor": "middle" }, "late / early"));
  svg.append(shape("line", { class: "even", x1: x(1), x2: x(1), y1: PLOT.top, y2: bottom }));
  ["correct", "wrong"].forEach((outcome, row) => {
    const y = 37 + 58 * row;
    svg.append(shape("text", { x: 0, y: y + 4 }, outcome));
    const found = model.outcomes[outcome].late_early;
    if (found === null) return;
    const [low, median, high] = [found.low, found.median, found.high].map(x);
    svg.append(shape("g", { class: outcome },
      shape("rect", { class: "box", x: low, y: y - 25, width: Math.max(1, high - low), height: 50 }),
      ...stackedDots(found.values.map(x), y),
      shape("line", { class: "median", x1: median, x2: median, y1: y - 25, y2: y + 25 })));
  });
  const tools = downloadTools({ id: label, title: label, svg, legend: () => [], table: () => ratioTable(model.outcomes) });
  return element("figure", {}, element("figcaption", {}, swatch(index), visible(model.name), tools), svg);
}

function ratioTable(outcomes) {
  const rows = ["correct", "wrong"]
    .flatMap((outcome) => (outcomes[outcome].late_early?.values ?? []).map((value) => [outcome, value]));
  return [["outcome", "late / early"], ...rows];
}

function stackedDots(xs, y) {
  const stacks = new Map();
  const places = xs.map((x) => {
    const column = Math.round(x / 5);
    const level = stacks.get(column) ?? 0;
    stacks.set(column, level + 1);
    return [column * 5, level];
  });
  const step = Math.min(5, 46 / Math.max(...stacks.values()));
  return places.map(([x, level]) =>
    shape("circle", { class: "point", r: 2.2, cx: x, cy: y + step * Math.ceil(level / 2) * (level % 2 ? 1 : -1) }));
}

// The table of answers without the image: which rows are shown, and the way from a row to its question.
function listenToAnswers() {
  const table = document.getElementById("answers");
  if (table === null) return;
  const changed = document.getElementById("changed-only");
  const show = () => {
    for (const row of table.tBodies[0].rows) row.hidden = changed.checked && row.dataset.changed === "no";
  };
  changed.addEventListener("change", show);
  show();
  for (const button of table.querySelectorAll("button")) {
    const question = DATA.questions.find((one) => one.number === Number(button.dataset.question));
    button.disabled = question === undefined;
    const samples = { [button.dataset.model]: Number(button.dataset.sample) };
    button.addEventListener("click", () => openQuestion(question, samples));
  }
}

function openQuestion(question, samples) {
  chooseQuestion(question, samples);
  document.getElementById("responses").scrollIntoView();
}
