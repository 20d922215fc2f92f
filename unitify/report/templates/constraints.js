// What unit scaling as published has to constrain: the cost in all, then operation by operation.

// Octaves below which two factors are one.
const APART = 0.05;

function logOf(number) {
  return number > 0 ? Math.log2(number) : null;
}

function furthest(logarithms) {
  return logarithms.length ? logarithms.reduce((a, b) => (Math.abs(b) > Math.abs(a) ? b : a)) : null;
}

function constraintsView() {
  const host = section("constraints");
  host.replaceChildren();
  const found = report.constraints;
  if (!found) {
    host.append(element("p", { class: "empty" }, "The model is not captured as one graph."));
    return;
  }
  const rules = Object.keys(found.stored);
  const published = rules.filter((rule) => rule !== "planned");
  const joined = found.operations.filter((operation) => operation.joined.length);
  const rows = joined.map((operation) => ({
    ...operation,
    held: valueByName.get(operation.value),
    module: valueByName.get(operation.value)?.module ?? "",
    own: logOf(operation.forward),
    gradient: furthest(operation.joined.map((name) => logOf(operation.backward[name]))),
    stored: found.values[operation.value]?.stored ?? {},
  }));
  const isApart = (row) => published.some((rule) => Math.abs(row.off[rule]) > APART);
  const apart = rows.filter(isApart).length;
  host.append(
    totals(found, rules),
    element(
      "p",
      { class: "note" },
      `${plural(found.bridges.length, "of the uses is a bridge", "of the uses are bridges")} (of ${count(found.edges)}). ` +
        `${count(joined.length)} of ${plural(found.operations.length, "operation")} must use one factor both ways; of ${count(apart)} the two factors differ.`,
    ),
  );
  const number = (label, group, note, get, text = log2Text) => ({
    label,
    group,
    note,
    numeric: true,
    width: "8%",
    get,
    show: (row) => text(get(row)),
  });
  const stored = (rule) => ({
    ...number(ruleLabel(rule), "gradient as stored", `log2 RMS of the result's gradient: ${rule}`, (row) =>
      logOf(row.stored[rule]?.[1]),
    ),
    show: (row) => {
      const logarithm = logOf(row.stored[rule]?.[1]);
      const text = log2Text(logarithm);
      return logarithm !== null && !isUnit(logarithm) ? element("span", { class: "outside" }, text) : text;
    },
  });
  const cost = published.map((rule) =>
    number(
      ruleLabel(rule),
      "constraint costs",
      `log2 RMS of the gradient that it hands on, for a unit gradient, where that is worst: ${rule}`,
      (row) => row.off[rule] ?? null,
    ),
  );
  const columns = [
    {
      label: "value",
      get: (row) => (row.held ? shownName(row.held) : row.value),
      show: (row) => nameLink(row.value),
      width: "17%",
    },
    { label: "module", get: (row) => row.module, show: (row) => clipped(row.module), width: "16%" },
    {
      label: "operation",
      get: (row) => row.operation,
      show: (row) => clipped(row.operation.replace(/^aten\.|\.default$/g, "")),
      width: "11%",
    },
    number("result", "ideal factors", "log2 of the factor on the result", (row) => row.own),
    number("gradient", "ideal factors", "log2 of the factor on a gradient, the furthest", (row) => row.gradient),
    ...cost,
    ...rules.map(stored),
  ];
  let table = null;
  table = grid(host, {
    label: "Constrained operations",
    rows,
    columns,
    opened: (row) => row.held && showDetails(row.held),
    search: (row) => `${row.value} ${row.module} ${row.operation}`,
    tools: [filterSwitch("factors that differ", isApart, () => table.update(), apart > 0)],
  });
}

function ruleLabel(rule) {
  return { "geometric mean": "mean", "forward factor": "forward", planned: "here" }[rule] ?? rule;
}

// Under each rule, how many values and gradients have unit RMS, and how far from it they all are.
function totals(found, rules) {
  const cells = (held) => [
    element("td", { class: "number" }, held.total ? percent(held.unit / held.total) : "–"),
    element("td", { class: "number" }, held.octaves === null ? "–" : held.octaves.toFixed(2)),
  ];
  const titles = { planned: "this module" };
  return element(
    "table",
    { class: "matrix", id: "constraint-totals" },
    element("caption", {}, "Values and gradients at unit RMS, and how many octaves off they are (root mean square)"),
    element(
      "thead",
      {},
      element(
        "tr",
        {},
        element("th"),
        ...["values", "gradients"].map((name) => element("th", { colspan: 2, scope: "colgroup" }, name)),
      ),
      element(
        "tr",
        {},
        element("th", { scope: "col" }, "one factor"),
        ...["unit", "octaves", "unit", "octaves"].map((name) =>
          element("th", { scope: "col", class: "number" }, name),
        ),
      ),
    ),
    element(
      "tbody",
      {},
      ...rules.map((rule) =>
        element(
          "tr",
          {},
          element("th", { scope: "row" }, titles[rule] ?? `published: ${rule}`),
          ...DIRECTIONS.flatMap((direction) => cells(found.stored[rule][direction])),
        ),
      ),
    ),
  );
}
