const PLOT = { width: 340, height: 190, left: 42, right: 8, top: 8, bottom: 22 };

// The widest round steps (1, 2 or 5 times a power of ten) that give at least `count` ticks.
function niceTicks(low, high, count) {
  const power = 10 ** Math.floor(Math.log10((high - low) / count));
  const multiples = (step) => {
    const ticks = [];
    for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) ticks.push(i * step);
    return ticks;
  };
  const step = [10, 5, 2, 1, 0.5].map((m) => m * power).find((s) => multiples(s).length >= count);
  return { ticks: multiples(step), digits: Math.max(0, -Math.floor(Math.log10(step) + 1e-9)) };
}

function valueRange(values, fromZero) {
  const low = fromZero ? Math.min(0, ...values) : Math.min(...values);
  const high = Math.max(...values);
  const room = (high - low || Math.abs(high) || 1) * 0.06;
  return [fromZero && low === 0 ? 0 : low - room, high + room];
}

function scales(xRange, yRange) {
  const across = PLOT.width - PLOT.left - PLOT.right;
  const down = PLOT.height - PLOT.top - PLOT.bottom;
  return {
    x: (value) => PLOT.left + across * (value - xRange[0]) / (xRange[1] - xRange[0] || 1),
    y: (value) => PLOT.top + down * (1 - (value - yRange[0]) / (yRange[1] - yRange[0])),
  };
}

function axes(scale, xTicks, yRange) {
  const group = shape("g");
  const { ticks, digits } = niceTicks(...yRange, 3);
  for (const tick of ticks) {
    const y = scale.y(tick);
    group.append(shape("line", { class: "grid", x1: PLOT.left, x2: PLOT.width - PLOT.right, y1: y, y2: y }));
    const label = scaled(tick, digits);
    group.append(shape("text", { x: PLOT.left - 6, y: y + 4, "text-anchor": "end" }, label));
  }
  for (const [value, label] of xTicks) {
    group.append(shape("text", { x: scale.x(value), y: PLOT.height - 5, "text-anchor": "middle" }, label));
  }
  return group;
}

function path(scale, xs, ys) {
  let pen = "M";
  let text = "";
  xs.forEach((x, i) => {
    if (ys[i] === null) {
      pen = "M";
      return;
    }
    text += `${pen}${scale.x(x).toFixed(1)} ${scale.y(ys[i]).toFixed(1)}`;
    pen = "L";
  });
  return text;
}

// The area between the bounds of a line, passing over points that have none.
function band(scale, { steps, low, high }) {
  const points = steps.map((step, i) => [step, low[i], high[i]]).filter((point) => point[1] !== null);
  if (points.length === 0) return "";
  const back = points.toReversed();
  const there = path(scale, points.map((point) => point[0]), points.map((point) => point[2]));
  return `${there}L${path(scale, back.map((point) => point[0]), back.map((point) => point[1])).slice(1)}Z`;
}

// Centred mean over a tenth of the points, over what there is of it at the ends and beside gaps.
function runningMean(values) {
  const reach = Math.floor(values.length / 20);
  return values.map((own, i) => {
    if (own === null) return null;
    const part = values.slice(Math.max(0, i - reach), i + reach + 1).filter((value) => value !== null);
    return part.reduce((sum, value) => sum + value, 0) / part.length;
  });
}

function drawMetric(chart, smooth) {
  const steps = chart.series.flatMap((line) => line.steps);
  const xRange = [Math.min(0, ...steps), Math.max(...steps)];
  const shown = chart.series.flatMap((line) => [...line.values, ...(line.low ?? []), ...(line.high ?? [])]);
  const yRange = valueRange(shown.filter((value) => value !== null), chart.from_zero);
  const scale = scales(xRange, yRange);
  const { ticks } = niceTicks(...xRange, 3);
  const svg = shape("svg", { class: "chart", viewBox: `0 0 ${PLOT.width} ${PLOT.height}`, role: "img" });
  svg.setAttribute("aria-label", `${chart.title} against steps`);
  svg.append(axes(scale, ticks.filter(Number.isInteger).map((tick) => [tick, String(tick)]), yRange));
  for (const line of chart.series) {
    const group = shape("g", { class: `run-${line.run}` });
    if (line.low) group.append(shape("path", { class: "band", d: band(scale, line) }));
    const smoothed = smooth && line.values.length >= 20;
    if (smoothed) group.append(shape("path", { class: "run-line raw", d: path(scale, line.steps, line.values) }));
    const values = smoothed ? runningMean(line.values) : line.values;
    group.append(shape("path", { class: "run-line", d: path(scale, line.steps, values) }));
    values.forEach((value, i) => {
      const alone = value !== null && (values[i - 1] ?? null) === null && (values[i + 1] ?? null) === null;
      if (alone) group.append(dot(scale, line, i, value));
    });
    svg.append(group);
  }
  return { svg, scale };
}

function dot(scale, line, i, value) {
  return shape("circle", { class: `dot run-${line.run}`, r: 3.5, cx: scale.x(line.steps[i]), cy: scale.y(value) });
}

function nearest(steps, step) {
  let best = 0;
  steps.forEach((other, i) => {
    if (Math.abs(other - step) < Math.abs(steps[best] - step)) best = i;
  });
  return best;
}

// Shows the values as logged at the step nearest to the cursor.
function readOut(chart, scale, svg, readout, step) {
  svg.querySelector(".marks")?.remove();
  if (step === null) {
    readout.replaceChildren(latest(chart));
    return;
  }
  const marks = shape("g", { class: "marks" });
  const x = scale.x(step);
  marks.append(shape("line", { class: "cursor", x1: x, x2: x, y1: PLOT.top, y2: PLOT.height - PLOT.bottom }));
  const parts = [`step ${step}`];
  for (const line of chart.series) {
    const at = nearest(line.steps, step);
    const value = line.values[at];
    if (value !== null) marks.append(dot(scale, line, at, value));
    parts.push(element("span", { class: "mark" }, swatch(line.run), scaled(value, chart.digits)));
  }
  svg.append(marks);
  readout.replaceChildren(...parts);
}

function latest(chart) {
  const row = element("span", {}, "last");
  for (const line of chart.series) {
    row.append(element("span", { class: "mark" }, swatch(line.run), scaled(line.values.at(-1), chart.digits)));
  }
  return row;
}

function chartFigure(chart, smooth) {
  const { svg, scale } = drawMetric(chart, smooth);
  const steps = [...new Set(chart.series.flatMap((line) => line.steps))].sort((a, b) => a - b);
  const readout = element("p", { class: "readout", "aria-live": "polite" });
  const show = (step) => readOut(chart, scale, svg, readout, step);
  let at = steps.length - 1;
  svg.setAttribute("tabindex", "0");
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const x = (event.clientX - box.left) * PLOT.width / box.width;
    at = nearest(steps.map(scale.x), x);
    show(steps[at]);
  });
  svg.addEventListener("pointerleave", () => show(null));
  svg.addEventListener("blur", () => show(null));
  svg.addEventListener("keydown", (event) => {
    const moves = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: steps.length - 1 };
    if (!(event.key in moves)) return;
    event.preventDefault();
    at = Math.max(0, Math.min(steps.length - 1, moves[event.key]));
    show(steps[at]);
  });
  show(null);
  const title = chart.unit ? `${chart.title}, ${chart.unit}` : chart.title;
  const averaged = chart.series.map((line) => line.averaged);
  const [least, most] = [Math.min(...averaged), Math.max(...averaged)];
  const stretch = least < most ? `${least} to ${most} logged steps, by the length of its run` : `${most} logged steps`;
  const note = most > 1 ? ` Each point is the mean of ${stretch}.` : "";
  const caption = element("figcaption", {}, title);
  return element("figure", {}, caption, element("p", {}, chart.caption + note), svg, readout);
}

function drawCharts() {
  const container = document.getElementById("charts");
  if (container === null) return;
  const smooth = document.getElementById("smooth");
  const draw = () => container.replaceChildren(...DATA.charts.map((chart) => chartFigure(chart, smooth.checked)));
  smooth.addEventListener("change", draw);
  draw();
}

// Mean focus in each tenth of the response, one small chart per run on a common scale.
function drawFocusCurves() {
  const container = document.getElementById("focus-curves");
  if (container === null) return;
  const runs = DATA.runs.map((run, index) => ({ ...run, index })).filter((run) => run.focus_curve !== null);
  const outcomes = runs.flatMap((run) => [run.focus_curve.correct, run.focus_curve.wrong]);
  const yRange = valueRange(outcomes.flatMap((one) => one.values).filter((value) => value !== null), false);
  const scale = scales([0, 100], yRange);
  container.replaceChildren(...runs.map((run) => {
    const { correct, wrong, first_step: first, last_step: last } = run.focus_curve;
    const counts = `${correct.num_rollouts} correct, ${wrong.num_rollouts} wrong rollouts of steps ${first} to ${last}.`;
    return focusFigure(run, counts, scale, yRange);
  }));
}

function focusFigure(run, note, scale, yRange) {
  const lines = ["correct", "wrong"].map((outcome) => ({ ...run.focus_curve[outcome], outcome }));
  const caption = element("figcaption", {}, swatch(run.index), visible(run.name));
  return positionFigure(caption, note, `Focus along the response, ${run.name}`, run.index, lines, scale, yRange);
}

// Lines of one value in each tenth of the response: `values`, their bounds `low` and `high` if there are any, and the
// class `outcome` that distinguishes them.
function positionFigure(caption, note, label, index, lines, scale, yRange) {
  const svg = shape("svg", { class: `chart run-${index}`, viewBox: `0 0 ${PLOT.width} ${PLOT.height}`, role: "img", "aria-label": label });
  svg.append(axes(scale, [0, 25, 50, 75, 100].map((tick) => [tick, `${tick} %`]), yRange));
  for (const { values, low, high, outcome } of lines) {
    const centres = values.map((_, i) => 10 * i + 5);
    const group = shape("g", { class: outcome });
    if (low) group.append(shape("path", { class: "band", d: band(scale, { steps: centres, low, high }) }));
    group.append(shape("path", { class: "curve", d: path(scale, centres, values) }));
    values.forEach((value, i) => {
      if (value === null) return;
      group.append(shape("circle", { class: "point", r: 3, cx: scale.x(centres[i]), cy: scale.y(value) }));
    });
    svg.append(group);
  }
  return element("figure", {}, caption, element("p", {}, note), svg);
}
