// The pictures of a question, with the similarity of a token to each of their patches drawn over them.

const MAX_LABELS = 16; // cells of a picture: more labels than that cannot be read

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

// The cells of a grid as boxes in pixels of its picture, row by row; those on the page may be blocks of the file's. What
// reaches beyond the picture, as blocks at its edges may, is cut off.
function gridCells(grid, image) {
  const [left, top, right, bottom] = grid.box;
  const edges = (count, from, to, size) => Array.from({ length: Math.ceil(count / DATA.block) + 1 },
    (_, i) => size * Math.min(1, from + (to - from) * Math.min(i * DATA.block, count) / count));
  const ys = edges(grid.rows, top, bottom, image.height);
  const xs = edges(grid.columns, left, right, image.width);
  return ys.slice(1).flatMap((y1, row) => xs.slice(1).map((x1, column) => (
    { x: xs[column], y: ys[row], width: x1 - xs[column], height: y1 - ys[row], row, column, grid })));
}

// All cells of a question in the order of its maps; `image` is the number of their picture.
function questionCells(question) {
  return question.grids.flatMap((grid) => gridCells(grid, question.images[grid.image]))
    .map((cell, index) => ({ ...cell, index, image: cell.grid.image }));
}

// What can be drawn over a picture: its only grid; or all its tiles together, and each grid by itself.
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

function pictureImage(image, i) {
  const attributes = { width: image.width, height: image.height, alt: `Picture ${i + 1} of the question` };
  const img = element("img", { ...attributes, class: image.width <= 160 ? "small" : "" });
  img.src = image.data;
  return img;
}

function cellName(cell, question) {
  const where = question.images.length > 1 ? `picture ${cell.image + 1}, ` : "";
  const alone = question.grids.filter((grid) => grid.image === cell.image).length === 1;
  const of = alone ? "" : `${cell.grid.name}, `;
  return visible(`${where}${of}row ${cell.row + 1}, column ${cell.column + 1}`);
}

// All pictures of a question side by side. `paint(values, low, high)` shades the cells of their grids.
function mappedPictures(question) {
  const cells = questionCells(question);
  const readout = element("p", { class: "patch-readout", "aria-live": "polite" });
  const key = element("div", { class: "key" });
  const map = { values: null, low: 0, high: 1, peak: null };
  const frames = question.images.map((image, i) => mappedPicture(image, i));

  function mappedPicture(image, i) {
    const choices = gridChoices(question.grids.filter((grid) => grid.image === i));
    const svg = shape("svg", { class: "overlay", viewBox: `0 0 ${image.width} ${image.height}`, preserveAspectRatio: "none", role: "img", tabindex: "0" });
    const frame = { image: i, svg, rects: new Map(), labels: new Map() };
    const picture = element("div", { class: "picture" }, pictureImage(image, i), svg);
    const figure = element("figure", {}, picture);
    const lay = (grids) => layGrids(frame, grids);
    if (choices.length > 0) lay(choices[0][1]);
    if (choices.length > 1) figure.append(gridSelect(choices, i, lay));
    listen(frame);
    return { ...frame, figure };
  }

  function gridSelect(choices, i, lay) {
    const select = element("select", { "aria-label": `Grid over picture ${i + 1}` },
      ...choices.map(([name], place) => element("option", { value: place }, visible(name))));
    select.addEventListener("change", () => {
      lay(choices[select.value][1]);
      repaint();
    });
    return select;
  }

  function layGrids(frame, grids) {
    frame.rects.clear();
    frame.labels.clear();
    const shown = cells.filter((cell) => grids.includes(cell.grid));
    for (const { index, x, y, width, height } of shown) {
      frame.rects.set(index, shape("rect", { class: "cell", x, y, width, height, "data-cell": index }));
      if (shown.length > MAX_LABELS) continue;
      const size = Math.min(0.16 * height, 0.2 * width);
      frame.labels.set(index, shape("text", { x: x + size / 2, y: y + height - size / 2, "font-size": size }));
    }
    frame.svg.replaceChildren(...frame.rects.values(), ...frame.labels.values());
  }

  function listen(frame) {
    let at = null;
    const say = (index) => {
      at = index;
      if (map.values !== null) readout.replaceChildren(`${cellName(cells[index], question)}: `, element("b", {}, number(map.values[index], 3)));
    };
    frame.svg.addEventListener("pointerover", (event) => {
      if (event.target.dataset.cell) say(Number(event.target.dataset.cell));
    });
    frame.svg.addEventListener("pointerleave", sayPeak);
    frame.svg.addEventListener("blur", sayPeak);
    frame.svg.addEventListener("keydown", (event) => {
      const shown = [...frame.rects.keys()];
      if (shown.length === 0) return;
      const next = at === null || !frame.rects.has(at) ? shown[0] : besides(cells, shown, at, event.key);
      if (next === null) return;
      event.preventDefault();
      say(next);
    });
  }

  function sayPeak() {
    if (map.peak === null) return;
    readout.replaceChildren(`highest: ${cellName(cells[map.peak], question)}, `, element("b", {}, number(map.values[map.peak], 3)));
  }

  function repaint() {
    if (map.values === null) return;
    map.peak = null;
    for (const { svg, rects, labels } of frames) {
      svg.querySelector(".peak")?.remove();
      for (const [index, rect] of rects) {
        const value = map.values[index];
        rect.setAttribute("fill", heat((value - map.low) / (map.high - map.low || 1)));
        if (map.peak === null || value > map.values[map.peak]) map.peak = index;
      }
      for (const [index, label] of labels) label.textContent = number(map.values[index], 2);
    }
    if (map.peak === null) return;
    const frame = frames.find(({ rects }) => rects.has(map.peak));
    const { x, y, width, height } = cells[map.peak];
    frame.svg.append(shape("g", { class: "peak" }, ...["outer", "inner"].map((name) =>
      shape("rect", { class: name, x, y, width, height }))));
    sayPeak();
  }

  function paint(values, low, high, about) {
    Object.assign(map, { values, low, high });
    key.replaceChildren(element("span", {}, `similarity ${number(low, 3)}`, element("span", { class: "ramp heat" }), number(high, 3)),
      element("span", {}, element("span", { class: "peak-sign" }), " highest"));
    repaint();
    for (const { svg, image } of frames) svg.setAttribute("aria-label", `Similarity of ${about} to the patches of picture ${image + 1}; arrow keys read them`);
  }

  const row = element("div", { class: "row" }, ...frames.map(({ figure }) => figure));
  return { node: element("div", { class: "pictures" }, row, key, readout), paint };
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

// Pictures of a rollout that has no map.
function plainPictures(question) {
  const note = question.images.length > 0 ? "No patch maps were stored for this response." : "A question without a picture.";
  const row = element("div", { class: "row" }, ...question.images.map((image, i) =>
    element("figure", {}, element("div", { class: "picture" }, pictureImage(image, i)))));
  return { node: element("div", { class: "pictures" }, row, element("p", { class: "empty" }, note)), paint: null };
}
