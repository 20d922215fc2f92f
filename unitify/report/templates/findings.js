// Diagnostics with their codes, and notes of the report.

function findingsView() {
  const rows = report.findings.map((finding) =>
    element(
      "li",
      {},
      element("span", { class: "badge" }, finding.code),
      finding.where ? element("code", {}, finding.where) : null,
      ` ${finding.why}. ${finding.fix}.`,
    ),
  );
  const notes = report.notes.map((note) => element("li", {}, sentence(note)));
  const versions = Object.entries(report.versions)
    .map(([name, version]) => `${name} ${version}`)
    .join(", ");
  section("findings").replaceChildren(
    rows.length || notes.length
      ? element("ul", { class: "findings" }, ...rows, ...notes)
      : element("p", { class: "empty" }, "Nothing was left out."),
    element(
      "p",
      { class: "note" },
      `Made by ${versions}. The JSON file beside this page has all its numbers.`,
    ),
  );
}
