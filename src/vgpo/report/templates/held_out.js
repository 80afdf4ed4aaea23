// Held-out questions with the answers before and after training: what training fixed and broke.

const NUM_CARDS = 6; // shown at first, and more each time
const CHANGES = { fixed: "Fixed", broken: "Broken", wrong: "Wrong", right: "Right" };
const CHANGE_NAMES = {
  fixed: "wrong before, right after", broken: "right before, wrong after", wrong: "wrong before and after",
  right: "right before and after",
};
const heldOutView = { run: 0, outcome: "", text: "", count: NUM_CARDS };

function drawHeldOut() {
  if (document.getElementById("questions") === null) return;
  const runs = DATA.runs.map((run, index) => [index, run]).filter(([, run]) => run.held_out !== null);
  heldOutView.run = runs.at(-1)[0];
  const names = runs.map(([index, run]) => [index, visible(run.name)]);
  choices(document.getElementById("held-out-run"), names, heldOutView.run, (run) => showHeldOut({ run, outcome: "" }));
  document.getElementById("held-out-text").addEventListener("input",
    ({ target }) => showHeldOut({ text: target.value.trim().toLowerCase() }));
  document.getElementById("held-out-more").addEventListener("click",
    () => showHeldOut({ count: heldOutView.count + NUM_CARDS }));
  showHeldOut({});
}

function showHeldOut(change) {
  Object.assign(heldOutView, { count: NUM_CARDS }, change);
  const found = DATA.runs[heldOutView.run].held_out;
  if (!("text" in change) && !("count" in change)) drawOutcomeChoice(found);
  const shown = found.entries.filter((entry) => heldOutView.outcome === "" || entry.outcome === heldOutView.outcome)
    .filter((entry) => entryText(entry).includes(heldOutView.text));
  const cards = shown.slice(0, heldOutView.count).map((entry) => (entry.card ??= questionCard(entry, found)));
  document.getElementById("questions").replaceChildren(...cards);
  document.getElementById("held-out-count").textContent =
    `${shown.length} questions${cards.length < shown.length ? `, the first ${cards.length} shown` : ""}`;
  document.getElementById("held-out-more").hidden = cards.length === shown.length;
}

function drawOutcomeChoice({ counts, is_paired: paired }) {
  const outcomes = Object.entries(CHANGES).filter(([outcome]) => paired || !["fixed", "broken"].includes(outcome));
  const options = outcomes.map(([outcome, label]) => [outcome, `${label} ${counts[outcome] ?? 0}`]);
  choices(document.getElementById("held-out-outcome"), [["", "All"], ...options], heldOutView.outcome,
    (outcome) => showHeldOut({ outcome }));
}

function entryText(entry) {
  const given = [entry.before, entry.after].filter(Boolean).flatMap((one) => [one.predicted ?? "", one.completion]);
  entry.searched ??= [entry.problem, entry.answer, ...given].join("\n").toLowerCase();
  return entry.searched;
}

function questionCard(entry, { is_paired: paired }) {
  const outcome = paired ? CHANGE_NAMES[entry.outcome] : entry.outcome;
  const facts = element("p", { class: "facts" }, element("span", {}, `question ${entry.number}`),
    element("span", { class: `outcome ${entry.outcome}` }, outcome));
  const answers = paired ? [["before training", entry.before], ["after training", entry.after]] : [["", entry.after]];
  return element("li", { class: "row" }, element("div", {}, facts,
    element("p", { class: "question" }, questionText(entry.problem)),
    element("p", { class: "reference" }, "Expected ", element("b", {}, visible(entry.answer))),
    element("div", { class: paired ? "answers two" : "answers" },
      ...answers.map(([when, answer]) => givenAnswer(when, answer)))));
}

function givenAnswer(when, answer) {
  const head = element("p", {}, ...(when ? [`${when}: `] : []), ...verdictOf(answer));
  return element("div", { class: `answer run-${heldOutView.run}` }, head, completion(answer.completion, "Completion"));
}
