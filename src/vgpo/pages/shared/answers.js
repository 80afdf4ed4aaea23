// An answer to a question: its verdict in words, and the full response, folded.

function isUnboxed(answer) {
  return answer.predicted === null && !answer.oversized;
}

function verdictOf(answer) {
  const parts = [verdict(answer.correct)];
  if (answer.oversized) parts.push(element("span", { class: "flag" }, "oversized: not asked"));
  else if (answer.predicted === null) parts.push(element("span", { class: "flag" }, "no box"));
  else parts.push(", answered ", element("b", {}, visible(answer.predicted)));
  if (answer.truncated) parts.push(element("span", { class: "flag" }, "cut off"));
  return parts;
}

// The text is set when it is opened: a page has hundreds of long ones.
function completion(text, label) {
  const body = element("div", { class: "completion", tabindex: "0", role: "group", "aria-label": label });
  const details = element("details", {}, element("summary", {}, label), body);
  details.addEventListener("toggle", () => {
    if (body.textContent === "") body.textContent = text === "" ? "(an empty response)" : visible(text);
  });
  return details;
}
