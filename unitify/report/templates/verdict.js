// The verdict: what would be lost as it is, where it begins, what unitify changed and what it leaves.

function verdictView() {
  const { original, transformed } = report.check;
  const recipe = report.recipe.name;
  const lost = original.findings.filter((finding) => finding.severity !== "note");
  const left = transformed.findings.filter((finding) => finding.severity !== "note");
  const places = original.starts.map(([[first]]) => original.findings[first]);
  const lines = new Set(places.map(({ file, line }) => `${file}:${line}`)).size;
  const scaled = DIRECTIONS.map(
    (direction) => report.values.filter((value) => value[direction].exponent !== 0).length,
  );
  const rescales = report.rescales.reduce((sum, [, , , , uses]) => sum + uses, 0);
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
        ? `In ${recipe}, ${count(lost.length)} of ${plural(original.judged, "tensor")} would be lost as they are` +
            `, from ${plural(lines, "line")}. With unitify, ${left.length ? count(left.length) : "none"}.`
        : `In ${recipe}, all ${plural(original.judged, "tensor")} hold as they are.` +
            (left.length ? ` With unitify, ${count(left.length)} would be lost.` : ""),
    ),
    element("h3", { class: "original" }, "As it is"),
    startsTable(original, "Nothing would be lost."),
    roundingNote(original),
    element("h3", { class: "transformed" }, "What unitify changes"),
    element(
      "p",
      {},
      `${plural(scaled[0], "value")} and ${plural(scaled[1], "gradient")} are stored at another scale, ` +
        `with ${plural(rescales, "rescale")} between them. ${exact}` +
        (report.recipe_is_applied ? "" : ` The casts of ${recipe} are not applied: they are what it would do.`),
    ),
    element("h3", { class: "transformed" }, "What is left"),
    startsTable(transformed, "Nothing: everything that is judged holds."),
    element(
      "p",
      { class: "note" },
      `Judged: ${original.judged_by}. An error is a tensor that the recipe casts; a warning, one that would be lost if it were cast.`,
    ),
  );
}

// A row for each line where something begins.
function startsTable({ starts, findings }, none) {
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
          ),
        ),
      ),
    ),
  );
}

function startRow([first, ...others], followers) {
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
      value ? valueLink(value) : element("code", {}, first.name),
      `: ${first.why}.`,
      others.length ? ` Also ${namesOf(others)}.` : "",
      followers ? ` ${plural(followers, "more tensor")} would be lost because of it.` : "",
      ` (${first.code})`,
    ),
    element("td", {}, `${first.fix}.`, ...scaleOf(value, first.direction)),
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
  const stored = digits(rms(side) / 2 ** side.exponent);
  const held = [`unitify stores it as RMS ${stored}, times `, ...powerOfTwo(side.exponent), "."];
  return [" ", element("span", { class: "transformed" }, ...held)];
}

function roundingNote({ rounding }) {
  if (!rounding.length) return "";
  return element(
    "p",
    { class: "note" },
    `Not counted: ${plural(rounding.length, "gradient")} that ${rounding.length === 1 ? "is" : "are"} zero but for rounding (${namesOf(rounding)}).`,
  );
}
