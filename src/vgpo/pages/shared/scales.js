// From values to places in a chart: ranges, ticks, paths and running means.

const PLOT = { width: 340, height: 214, left: 46, right: 8, top: 20, bottom: 38 };

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

// Ticks of a logarithmic axis: powers of ten, or 1, 2 and 5 times these where there are few.
function logTicks(low, high) {
  const within = (factors) => {
    const ticks = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++) {
      ticks.push(...factors.map((factor) => Number(`${factor}e${power}`)));
    }
    return ticks.filter((tick) => tick >= low && tick <= high);
  };
  const powers = within([1]);
  const ticks = powers.length >= 2 ? powers : within([1, 2, 5]);
  if (ticks.length < 2) return niceTicks(low, high, 3).ticks;
  const every = Math.ceil(ticks.length / 6);
  return ticks.filter((_, i) => i % every === 0);
}

function yTicks([low, high], log) {
  if (log) return logTicks(low, high).map((tick) => [tick, compact(tick)]);
  const { ticks, digits } = niceTicks(low, high, 3);
  return ticks.map((tick) => [tick, scaled(tick, digits)]);
}

function valueRange(values, fromZero) {
  const low = fromZero ? Math.min(0, ...values) : Math.min(...values);
  const high = Math.max(...values);
  const room = (high - low || Math.abs(high) || 1) * 0.06;
  return [fromZero && low === 0 ? 0 : low - room, high + room];
}

// As `valueRange`, for values above 0 on a logarithmic axis.
function logRange(values) {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const room = high > low ? (high / low) ** 0.06 : 2;
  return [low / room, high * room];
}

function scales(xRange, yRange, log = false) {
  const across = PLOT.width - PLOT.left - PLOT.right;
  const down = PLOT.height - PLOT.top - PLOT.bottom;
  const place = log ? Math.log : (value) => value;
  const [low, high] = yRange.map(place);
  return {
    x: (value) => PLOT.left + across * (value - xRange[0]) / (xRange[1] - xRange[0] || 1),
    y: (value) => PLOT.top + down * (1 - (place(value) - low) / (high - low)),
    step: (x) => xRange[0] + (xRange[1] - xRange[0]) * (x - PLOT.left) / across,
  };
}

// Grid, tick labels and the titles of both axes.
function axes(scale, xTicks, ticks, xTitle, yTitle) {
  const group = shape("g", { class: "axes" });
  for (const [tick, label] of ticks) {
    const y = scale.y(tick);
    group.append(shape("line", { class: "grid", x1: PLOT.left, x2: PLOT.width - PLOT.right, y1: y, y2: y }));
    group.append(shape("text", { x: PLOT.left - 6, y: y + 4, "text-anchor": "end" }, label));
  }
  for (const [value, label] of xTicks) {
    group.append(shape("text", { x: scale.x(value), y: PLOT.height - PLOT.bottom + 16, "text-anchor": "middle" }, label));
  }
  group.append(shape("text", { class: "axis-title", x: 0, y: 10 }, yTitle));
  const middle = (PLOT.left + PLOT.width - PLOT.right) / 2;
  group.append(shape("text", { class: "axis-title", x: middle, y: PLOT.height - 4, "text-anchor": "middle" }, xTitle));
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

function meanOf(values) {
  const known = values.filter((value) => value !== null);
  return known.length > 0 ? known.reduce((sum, value) => sum + value, 0) / known.length : null;
}

// Centred mean over so many percent of the points, over what there is of it at the ends and beside gaps.
function runningMean(values, percent) {
  const reach = reachOf(values, percent);
  return values.map((own, i) => (own === null ? null : meanOf(values.slice(Math.max(0, i - reach), i + reach + 1))));
}

// Points on each side of a running mean.
function reachOf(values, percent) {
  return Math.floor(values.length * percent / 200);
}

// Values of the last tenth of a line, at least one.
function lastTenth(values) {
  return values.slice(-Math.max(1, Math.round(values.length / 10)));
}

function nearest(steps, step) {
  let best = 0;
  steps.forEach((other, i) => {
    if (Math.abs(other - step) < Math.abs(steps[best] - step)) best = i;
  });
  return best;
}
