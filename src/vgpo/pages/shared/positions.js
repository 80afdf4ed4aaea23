// Curves along the response: a value in each tenth of it.

function focusFigure(run, note, scale, yRange) {
  const lines = ["correct", "wrong"].map((outcome) => ({ ...run.focus_curve[outcome], outcome }));
  const caption = element("figcaption", {}, swatch(run.index), visible(run.name));
  return positionFigure(caption, note, `Focus along the response, ${run.name}`, run.index, lines, scale, yRange, "ρ");
}

// Lines of one value in each tenth of the response: `values`, their bounds `low` and `high` if there are any, and the
// class `outcome` that distinguishes them; `unit` of the value.
function positionFigure(caption, note, label, index, lines, scale, yRange, unit) {
  const svg = shape("svg", { class: `chart run-${index}`, viewBox: `0 0 ${PLOT.width} ${PLOT.height}`, role: "img", "aria-label": visible(label) });
  const ticks = [0, 25, 50, 75, 100].map((tick) => [tick, String(tick)]);
  svg.append(axes(scale, ticks, yTicks(yRange, false), "% of the response", unit));
  const centres = lines[0].values.map((_, i) => 10 * i + 5);
  for (const { values, low, high, outcome } of lines) {
    const group = shape("g", { class: outcome });
    if (low) group.append(shape("path", { class: "band", d: band(scale, { steps: centres, low, high }) }));
    group.append(shape("path", { class: "curve", d: path(scale, centres, values) }));
    values.forEach((value, i) => {
      if (value === null) return;
      group.append(shape("circle", { class: "point", r: 3, cx: scale.x(centres[i]), cy: scale.y(value) }));
    });
    svg.append(group);
  }
  const series = lines.map(({ values, low, high }, run) => ({ run, steps: centres, values, low, high }));
  const chart = { id: label, title: label, x_name: "percent of the response", series };
  caption.append(lineTools({ chart, svg, nameOf: (line) => lines[line].outcome }, () => []));
  return element("figure", {}, caption, element("p", {}, note), svg);
}
