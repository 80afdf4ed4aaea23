// The rows of an evaluation, or of two, as cards; DATA and the helpers are those of elements.js, tokens.js and answers.js.
const LETTERS = ["A", "B"];
const COMPARED = DATA.num_evaluations > 1;
const SEVERAL = DATA.several_samples;
// With several samples a row has a winner if one is right in more of them.
const COMPARISONS = SEVERAL
  ? [["both", "Equally often"], ["neither", "Never right"], ["first", "A more often"], ["second", "B more often"]]
  : [["both", "Both right"], ["neither", "Both wrong"], ["first", "Only A"], ["second", "Only B"]];
const SINGLE = SEVERAL
  ? [["right", "✓ Always right"], ["wrong", "✗ Never right"], ["mixed", "Mixed"]]
  : [["right", "✓ Right"], ["wrong", "✗ Wrong"]];
const VERDICTS = [["", "All"], ...(COMPARED ? COMPARISONS : SINGLE)];
const OUTCOME_NAMES = SEVERAL
  ? {
    both: "right equally often", neither: "never right", first: "A right more often", second: "B right more often",
    right: "right in all samples", wrong: "wrong in all samples", mixed: "right in some samples",
  }
  : {
    both: "both right", neither: "both wrong", first: "only A right", second: "only B right",
    right: "right", wrong: "wrong",
  };
const requested = { task: "", category: "", verdict: "", truncated: false, unboxed: false, text: "" };

function drawRows() {
  if (document.getElementById("rows") === null) return;
  choices(document.getElementById("verdict-choice"), VERDICTS, "", (verdict) => filter({ verdict }));
  const names = Object.keys(DATA.titles).filter((name) => DATA.rows.some((row) => row.task === name));
  fillSelect("task-choice", [["", "All tasks"], ...names.map((name) => [name, visible(DATA.titles[name])])]);
  fillCategories();
  const on = (id, kind, change) => document.getElementById(id)
    .addEventListener(kind, (event) => filter(change(event.target)));
  on("task-choice", "change", ({ value }) => ({ task: value, category: "" }));
  on("category-choice", "change", ({ value }) => ({ category: value === "" ? "" : categories()[Number(value)] }));
  on("truncated-choice", "change", ({ checked }) => ({ truncated: checked }));
  on("unboxed-choice", "change", ({ checked }) => ({ unboxed: checked }));
  on("text-choice", "input", ({ value }) => ({ text: value.trim().toLowerCase() }));
  document.getElementById("task-choice").addEventListener("change", fillCategories);
  filter({});
}

function categories() {
  const rows = DATA.rows.filter((row) => requested.task === "" || row.task === requested.task);
  return [...new Set(rows.map((row) => row.category))].filter((category) => category !== null).sort();
}

function fillCategories() {
  const found = categories();
  fillSelect("category-choice", [["", "All categories"], ...found.map((category, i) => [i, visible(category)])]);
  document.getElementById("category-choice").disabled = found.length === 0;
}

function filter(change) {
  Object.assign(requested, change);
  const shown = DATA.rows.filter(isRequested);
  document.getElementById("count").textContent = `${shown.length} of the ${DATA.rows.length} rows on this page`;
  document.getElementById("rows").replaceChildren(...shown.map((row) => (row.card ??= card(row))));
  document.getElementById("no-rows").hidden = shown.length > 0;
}

function isRequested(row) {
  const given = () => row.answers.flat();
  return (requested.task === "" || row.task === requested.task)
    && (requested.category === "" || row.category === requested.category)
    && (requested.verdict === "" || row.outcome === requested.verdict)
    && (!requested.truncated || given().some((answer) => answer.truncated))
    && (!requested.unboxed || given().some(isUnboxed))
    && (requested.text === "" || searchedText(row).includes(requested.text));
}

function searchedText(row) {
  const given = row.answers.flat().flatMap((answer) => [answer.predicted ?? "", answer.completion]);
  row.searched ??= [row.id, row.category ?? "", row.problem, row.answer, ...given].join("\n").toLowerCase();
  return row.searched;
}

function card(row) {
  const about = [visible(DATA.titles[row.task]), row.category === null ? null : visible(row.category), `row ${row.row}`];
  if (row.id !== String(row.row)) about.push(visible(row.id));
  const outcome = element("span", { class: "outcome" }, OUTCOME_NAMES[row.outcome]);
  const facts = element("p", { class: "facts" }, element("span", {}, about.filter(Boolean).join(" · ")), outcome);
  const given = row.answers.map((answers, place) => answerOf(row, answers, place)).filter((one) => one !== null);
  const body = element("div", {}, facts,
    element("p", { class: "question" }, questionText(row.problem)),
    element("p", { class: "reference" }, "Expected ", element("b", {}, visible(row.answer))),
    element("div", { class: COMPARED ? "answers two" : "answers" }, ...given));
  return row.images.length === 0 ? element("li", { class: "row" }, body)
    : element("li", { class: "row with-images" }, images(row), body);
}

function images(row) {
  const column = element("div", { class: "images" });
  row.images.forEach((place, i) => {
    if (place === null) {
      column.append(element("p", { class: "empty" }, "This image cannot be read."));
      return;
    }
    const { uri, width, height } = DATA.images[place];
    const alt = `Image ${i + 1} of the question`;
    column.append(element("img", { src: uri, width, height, alt }));
  });
  return column;
}

// What one checkpoint answered; null if it was not evaluated on the task.
function answerOf(row, answers, place) {
  if (answers.length === 0) return null;
  const number = row.num_answers[place];
  const head = element("p", {});
  if (COMPARED) head.append(element("span", { class: "letter" }, LETTERS[place]), " ");
  const box = element("div", { class: `answer run-${place}` });
  if (number === 1) {
    head.append(...verdictOf(answers[0]));
    box.append(head, completion(answers[0].completion, "Completion"));
    return box;
  }
  head.append(`${row.num_right[place]} of ${number} right`);
  box.append(head);
  answers.forEach((answer, i) => {
    box.append(element("p", {}, ...verdictOf(answer)), completion(answer.completion, `Completion ${i + 1}`));
  });
  if (number > answers.length) box.append(element("p", {}, `${number - answers.length} more answers are not shown.`));
  return box;
}

addDownloads();
drawRows();
stackTables();
document.documentElement.dataset.drawn = "yes";
