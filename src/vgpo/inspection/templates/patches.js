// The images of a question, with the similarity of a token to each of their patches drawn over them.

const MAX_LABELS = 16; // cells of an image: more labels than that cannot be read
const MAX_DIGITS = 3;

// A map's levels, one byte per token and cell: they are stored as differences to the token before.
async function unpackLevels(map) {
  const packed = Uint8Array.from(atob(map.data), (character) => character.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  const levels = new Uint8Array(await new Response(stream).arrayBuffer());
  for (let i = map.cells; i < levels.length; i++) levels[i] += levels[i - map.cells];
  return levels;
}

// The similarities of one token to all cells; without a token, their means over the response.
function cellValues(map, levels, token) {
  const unit = (map.high - map.low) / (DATA.levels - 1);
  const ofToken = (t) => levels.subarray(t * map.cells, (t + 1) * map.cells);
  if (token !== null) return Array.from(ofToken(token), (level) => map.low + unit * level);
  const count = levels.length / map.cells;
  const sums = new Array(map.cells).fill(0);
  for (let t = 0; t < count; t++) ofToken(t).forEach((level, i) => { sums[i] += level; });
  return sums.map((sum) => map.low + unit * sum / count);
}

// Digits that separate the levels of a map.
function mapDigits({ low, high }) {
  const step = (high - low) / (DATA.levels - 1);
  return Math.min(MAX_DIGITS, Math.max(0, Math.ceil(-Math.log10(step))));
}

// The cells of a grid as boxes in pixels of its image, row by row; those on the page may be blocks of the file's.
// What reaches beyond the image, as blocks at its edges and cells in its padding may, is cut off.
function gridCells(grid, image) {
  const [left, top, right, bottom] = grid.box;
  const edges = (count, from, to, size) => Array.from({ length: Math.ceil(count / DATA.block) + 1 },
    (_, i) => size * clamped(from + (to - from) * Math.min(i * DATA.block, count) / count));
  const ys = edges(grid.rows, top, bottom, image.height);
  const xs = edges(grid.columns, left, right, image.width);
  return ys.slice(1).flatMap((y1, row) => xs.slice(1).map((x1, column) => (
    { x: xs[column], y: ys[row], width: x1 - xs[column], height: y1 - ys[row], row, column, grid })));
}

function clamped(share) {
  return Math.min(1, Math.max(0, share));
}

// All cells of a question in the order of its maps; `image` is the number of their image.
function questionCells(question) {
  return question.grids.flatMap((grid) => gridCells(grid, question.images[grid.image]))
    .map((cell, index) => ({ ...cell, index, image: cell.grid.image }));
}

// What can be drawn over an image: its only grid; or all its tiles together, and each grid by itself.
function gridChoices(grids) {
  const named = grids.map((grid) => [grid.name, [grid]]);
  const tiles = grids.filter((grid) => grid.name !== "whole");
  return tiles.length > 1 ? [["all tiles", tiles], ...named] : named;
}

// Dark to light in even steps of lightness, one hue, as colourful as a screen can show it.
function heat(share) {
  const lightness = 0.22 + 0.7 * share;
  const chroma = Math.min(0.21 * lightness, 0.75 * (1 - lightness));
  return `oklch(${lightness.toFixed(3)} ${chroma.toFixed(3)} 70)`;
}

function cellName(cell, question) {
  const where = question.images.length > 1 ? `image ${cell.image + 1}, ` : "";
  const alone = question.grids.filter((grid) => grid.image === cell.image).length === 1;
  const of = alone ? "" : `${cell.grid.name}, `;
  return visible(`${where}${of}row ${cell.row + 1}, column ${cell.column + 1}`);
}

// All images of a question, each beside a copy with the map of a rollout over it.
class MappedImages {
  constructor(question) {
    this.question = question;
    this.cells = questionCells(question);
    this.key = element("div", { class: "key" });
    this.readout = element("p", { class: "patch-readout", "aria-live": "polite" });
    this.values = null;
    this.peak = null;
    this.frames = question.images.map((image, i) => this.frame(image, i));
    const row = element("div", { class: "row" }, ...this.frames.map(({ figure }) => figure));
    this.node = element("div", { class: "images" }, row, this.key, this.readout);
  }

  frame(image, i) {
    const viewBox = `0 0 ${image.width} ${image.height}`;
    const svg = shape("svg", { class: "overlay", viewBox, preserveAspectRatio: "none", role: "img", tabindex: "0" });
    const shaded = imageElement(image.data, image, i);
    shaded.alt = ""; // the overlay has a label of its own
    const figure = element("figure", { class: "pair" },
      element("div", { class: "image-box plain" }, imageElement(image.data, image, i)),
      element("div", { class: "image-box" }, shaded, svg));
    const frame = { svg, figure, rects: new Map(), labels: new Map() };
    const grids = gridChoices(this.question.grids.filter((grid) => grid.image === i));
    if (grids.length > 0) this.lay(frame, grids[0][1]);
    if (grids.length > 1) figure.append(this.gridSelect(frame, grids, i));
    this.listen(frame);
    return frame;
  }

  gridSelect(frame, grids, i) {
    const select = element("select", { "aria-label": `Grid over image ${i + 1}` },
      ...grids.map(([name], place) => element("option", { value: place }, visible(name))));
    select.addEventListener("change", () => {
      this.lay(frame, grids[select.value][1]);
      this.repaint();
    });
    return select;
  }

  lay(frame, grids) {
    frame.rects.clear();
    frame.labels.clear();
    const shown = this.cells.filter((cell) => grids.includes(cell.grid));
    for (const { index, x, y, width, height } of shown) {
      const box = { class: "cell", fill: "none", x, y, width, height, "data-cell": index };
      frame.rects.set(index, shape("rect", box));
      if (shown.length > MAX_LABELS) continue;
      const size = Math.min(0.16 * height, 0.2 * width);
      frame.labels.set(index, shape("text", { x: x + size / 2, y: y + height - size / 2, "font-size": size }));
    }
    frame.svg.replaceChildren(...frame.rects.values(), ...frame.labels.values());
  }

  listen({ svg, rects }) {
    let at = null;
    const point = (index) => {
      at = index;
      this.say("", index);
    };
    svg.addEventListener("pointerover", (event) => {
      if (event.target.dataset.cell) point(Number(event.target.dataset.cell));
    });
    for (const kind of ["pointerleave", "blur"]) svg.addEventListener(kind, () => this.say("highest: ", this.peak));
    svg.addEventListener("keydown", (event) => {
      const shown = [...rects.keys()];
      if (shown.length === 0) return;
      const next = rects.has(at) ? besides(this.cells, shown, at, event.key) : shown[0];
      if (next === null) return;
      event.preventDefault();
      point(next);
    });
  }

  say(before, index) {
    if (this.values === null || index === null) return;
    const value = element("b", {}, number(this.values[index], this.digits));
    this.readout.replaceChildren(`${before}${cellName(this.cells[index], this.question)}: `, value);
  }

  // `values` of all cells, told with so many `digits`, their shades from `low` to `high`; `peaks`: the highest cell of
  // each grid, highest first; `about` names what they belong to.
  paint({ values, low, high, peaks, digits, about }) {
    Object.assign(this, { values, low, high, peaks, digits });
    const ramp = element("span", { class: "ramp heat" });
    this.key.replaceChildren(
      element("span", {}, `similarity ${number(low, digits)}`, ramp, number(high, digits)),
      element("span", {}, element("span", { class: "peak-sign" }), " highest"));
    this.frames.forEach(({ svg }, i) => svg.setAttribute("aria-label",
      `Similarity of ${about} to the patches of image ${i + 1}; arrow keys read them`));
    this.repaint();
  }

  repaint() {
    if (this.values === null) return;
    for (const { svg, rects, labels } of this.frames) {
      svg.querySelector(".peak")?.remove();
      for (const [index, rect] of rects) {
        rect.setAttribute("fill", heat((this.values[index] - this.low) / (this.high - this.low || 1)));
      }
      for (const [index, label] of labels) label.textContent = number(this.values[index], Math.min(2, this.digits));
    }
    this.peak = this.peaks.find((index) => this.frames.some(({ rects }) => rects.has(index))) ?? null;
    if (this.peak === null) return;
    const { x, y, width, height } = this.cells[this.peak];
    const rings = ["outer", "inner"].map((name) => shape("rect", { class: name, x, y, width, height }));
    this.frames.find(({ rects }) => rects.has(this.peak)).svg.append(shape("g", { class: "peak" }, ...rings));
    this.say("highest: ", this.peak);
  }
}

// The cell that an arrow key leads to from cell `at`: the nearest one on that side.
function besides(cells, shown, at, key) {
  const [dx, dy] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[key] ?? [0, 0];
  if (dx === 0 && dy === 0) return null;
  const centre = ({ x, y, width, height }) => [x + width / 2, y + height / 2];
  const [x, y] = centre(cells[at]);
  let best = at;
  let least = Infinity;
  for (const index of shown) {
    const [otherX, otherY] = centre(cells[index]);
    const ahead = dx * (otherX - x) + dy * (otherY - y);
    const aside = Math.abs(dy * (otherX - x)) + Math.abs(dx * (otherY - y));
    if (ahead > 1e-6 && ahead + 3 * aside < least) {
      best = index;
      least = ahead + 3 * aside;
    }
  }
  return best;
}

// Images of a rollout that has no map.
function plainImages(question) {
  const note = question.images.length > 0
    ? "This response has no map of its patches." : "A question without an image.";
  const row = element("div", { class: "row" }, ...question.images.map((image, i) =>
    element("figure", {}, element("div", { class: "image-box" }, imageElement(image.data, image, i)))));
  return element("div", { class: "images" }, row, element("p", { class: "empty" }, note));
}
