// Losses of the formats: a summary by format, then every value and gradient, worst first.

const NOTABLE = 0.01;

function lossesView() {
  const host = section("losses");
  host.replaceChildren(formatSummary());
  let table = null;
  const changed = () => table.replace(lossRows());
  const choices = DIRECTIONS.map((direction) => ({
    node: formatChoice(direction, changed),
    keeps: () => true,
  }));
  const share = (graph, part, label, note) => ({
    label,
    group: graph,
    note: `${graph}: ${note}`,
    numeric: true,
    width: "9.5%",
    get: (row) => row[graph]?.[part] ?? null,
    show: (row) => barCell(row[graph]?.[part], graph),
  });
  const columns = [
    nameColumn((row) => row.value),
    moduleColumn((row) => row.value),
    {
      label: "of the",
      get: (row) => row.direction,
      show: (row) => (row.direction === "forward" ? "value" : "gradient"),
      width: "8%",
    },
    {
      label: "format",
      get: (row) => row.format,
      show: (row) => row.format.toUpperCase(),
      width: "7%",
      isWideOnly: true,
    },
    share("original", 0, "to zero", "share of the non-zero elements that become zero"),
    share("original", 2, "saturated", "share of the elements beyond the largest number"),
    share("transformed", 0, "to zero", "share of the non-zero elements that become zero"),
    share("transformed", 2, "saturated", "share of the elements beyond the largest number"),
    {
      label: "worst",
      note: "the largest of the four shares",
      numeric: true,
      get: (row) => row.worst,
      show: (row) => percent(row.worst),
    },
  ];
  const isCast = filterSwitch(
    "only casts of the recipe",
    (row) => Boolean(row.value[row.direction].cast),
    () => table.update(),
  );
  table = grid(host, {
    label: "Underflow and overflow",
    rows: lossRows(),
    columns,
    opened: (row) => showDetails(row.value),
    search: (row) => `${valueSearch(row.value)} ${row.direction}`,
    tools: [...choices, isCast],
    sort: { column: columns[columns.length - 1], descending: true },
  });
}

function lossRows() {
  return report.values
    .flatMap((value) =>
      DIRECTIONS.filter((direction) => counts(value, direction)).map((direction) => {
        const format = shownFormat[direction];
        const [original, transformed] = GRAPHS.map((graph) => loss(value, direction, graph, format));
        if (original === null) return null;
        const worst = Math.max(lostOutright(original), lostOutright(transformed));
        return { value, direction, format, original, transformed, worst };
      }).filter((row) => row !== null),
    );
}

// By format and direction: the number of values that lose more than 1 % of their elements.
function formatSummary() {
  const cell = (format, direction, graph) => {
    const losses = report.values
      .filter((value) => counts(value, direction))
      .map((value) => loss(value, direction, graph, format))
      .filter((held) => held !== null);
    const bad = losses.filter((held) => lostOutright(held) > NOTABLE).length;
    const cellClass = `number ${graph}${bad ? "" : " none"}`;
    return element("td", { class: cellClass }, bad ? `${count(bad)} of ${count(losses.length)}` : "none");
  };
  const table = element(
    "table",
    { class: "matrix", "aria-label": "Losses by format" },
    element(
      "thead",
      {},
      element(
        "tr",
        {},
        element("th"),
        ...DIRECTIONS.map((direction) =>
          element("th", { colspan: 2, scope: "colgroup" }, direction === "forward" ? "values" : "gradients"),
        ),
      ),
      element(
        "tr",
        {},
        element("th", { scope: "col" }, "format"),
        ...DIRECTIONS.flatMap(() =>
          GRAPHS.map((graph) => element("th", { scope: "col", class: `number ${graph}` }, graph)),
        ),
      ),
    ),
    element(
      "tbody",
      {},
      ...Object.entries(report.formats).map(([name, format]) =>
        element(
          "tr",
          {},
          element(
            "th",
            { scope: "row" },
            name.toUpperCase(),
            element("small", {}, " ", ...powerOfTwo(Math.round(Math.log2(format.smallest_subnormal))), ` … ${largestText(name)}`),
          ),
          ...DIRECTIONS.flatMap((direction) => GRAPHS.map((graph) => cell(name, direction, graph))),
        ),
      ),
    ),
  );
  return element(
    "div",
    { class: "wide", tabindex: 0 },
    element("p", { class: "note" }, "Values that lose more than 1 % of their elements, to zero or beyond the range."),
    table,
  );
}
