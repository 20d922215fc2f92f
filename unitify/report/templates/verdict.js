// The verdict: what would be lost as it is, where it begins, what unitify changed and what it leaves.

function verdictView() {
  const { original, transformed } = report.check;
  const recipe = report.recipe.name;
  const lost = original.findings.filter((finding) => finding.severity !== "note");
  const left = transformed.findings.filter((finding) => finding.severity !== "note");
  const places = original.starts.map(([[first]]) => original.findings[first]);
  const lines = new Set(places.map(({ file, line }) => `${file}:${line}`)).size;
  const exact = {
    true: "Before casts, outputs and gradients are bitwise the original's.",
    false: "Before casts, outputs or gradients are NOT those of the original.",
    null: "It was not compared with the original.",
  }[report.exact_before_casts];
  section("verdict").replaceChildren(
    element(
      "p",
      { class: "headline" },
      lost.length
        ? `In ${recipe}, ${count(lost.length)} of ${plural(original.judged, "tensor")} would lose elements or digits as they are` +
            `, from ${plural(lines, "line")}. With unitify, ${left.length ? count(left.length) : "none"}.`
        : `In ${recipe}, all ${plural(original.judged, "tensor")} hold as they are.` +
            (left.length ? ` With unitify, ${count(left.length)} would not.` : ""),
    ),
    element("h3", { class: "original" }, "As it is"),
    startsTable(original, "Nothing would be lost."),
    ...original.notes.map((note) => element("p", { class: "note" }, sentence(note))),
    element("h3", { class: "transformed" }, "What unitify changes"),
    element(
      "p",
      {},
      `${scaledText()} ${exact}` +
        (report.recipe_is_applied ? "" : ` The casts of ${recipe} are not applied: they are what it would do.`),
    ),
    element("h3", { class: "transformed" }, "What is left"),
    startsTable(transformed, "Nothing: everything that is judged holds.", true),
    element(
      "p",
      { class: "note" },
      `Judged: ${original.judged_by}. An error is a tensor that the recipe casts; a warning, one that would lose as much if it were cast.`,
    ),
  );
}

// What casts multiply, and what is stored at another scale.
function scaledText() {
  const [values, gradients] = DIRECTIONS.map(
    (direction) =>
      report.values.filter(({ [direction]: side }) => side.exponent !== 0 && (side.cast || !inCasts())).length,
  );
  const both = `${plural(values, "value")} and ${plural(gradients, "gradient")} are`;
  const rescales = plural(report.rescales.reduce((sum, [, , , , uses]) => sum + uses, 0), "rescale");
  if (!inCasts()) return `${both} stored at another scale, with ${rescales} between them.`;
  const moved = report.values.filter((value) => report.classes[value.class]?.forward).length;
  const kept = moved ? `${plural(moved, "value")} ${moved === 1 ? "is" : "are"} stored at another scale, with ${rescales}.` : "everything is stored as it was.";
  return `${both} multiplied by a constant as they are cast; ${kept}`;
}

// A row for each line where something begins. ``isTransformed``: the RMS is the stored one already.
function startsTable({ starts, findings }, none, isTransformed = false) {
  if (!starts.length) return element("p", {}, none);
  return element(
    "div",
    { class: "scroller wrapped" },
    element(
      "table",
      { "aria-label": "Findings by the line where they begin" },
      element(
        "thead",
        {},
        element(
          "tr",
          {},
          ...["where it begins", "what is lost", "what to do"].map((head) =>
            element("th", { scope: "col" }, head),
          ),
        ),
      ),
      element(
        "tbody",
        {},
        ...starts.map(([begun, followers]) =>
          startRow(
            begun.map((index) => findings[index]),
            followers,
            isTransformed,
          ),
        ),
      ),
    ),
  );
}

function startRow([first, ...others], followers, isTransformed) {
  const value = valueByName.get(first.value);
  const place = first.file ? `${first.file}:${first.line}` : "no line";
  return element(
    "tr",
    {},
    element(
      "td",
      {},
      element("strong", {}, ...place.split(/(?<=[/])/).flatMap((part) => [part, element("wbr")])),
      first.source ? element("code", {}, first.source) : null,
    ),
    element(
      "td",
      {},
      element("span", { class: `badge ${first.severity}` }, first.severity),
      value ? valueLink(value, first.name) : element("code", {}, first.name),
      ": ",
      ...withPowers(`${first.why}.`),
      others.length ? ` Also ${namesOf(others)}.` : "",
      followers ? ` ${plural(followers, "more tensor")} would lose because of it.` : "",
      ` (${first.code})`,
    ),
    element("td", {}, ...withPowers(`${first.fix}.`), ...(isTransformed ? [] : scaleOf(value, first.direction))),
  );
}

function namesOf(findings, most = 3) {
  const names = findings.slice(0, most).map((finding) => finding.name);
  const more = findings.length - names.length;
  return names.join(", ") + (more ? ` and ${count(more)} more` : "");
}

function scaleOf(value, direction) {
  const side = value?.[direction];
  if (!side?.exponent || rms(side) === null) return [];
  const scaled = digits(rms(side) / 2 ** side.exponent);
  const held = [`unitify ${inCasts() ? "casts" : "stores"} it as RMS ${scaled}, times `, ...powerOfTwo(side.exponent), "."];
  return [" ", element("span", { class: "transformed" }, ...held)];
}

