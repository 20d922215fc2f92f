// log2 of the RMS of every value in the order of the graph: a point for a value, a bar from the
// smallest to the largest with the median for a folded module.

function scalesView() {
  const host = element("div", {
    class: "figure",
    id: "scales-figure",
    role: "group",
    "aria-label": "log2 RMS of every value and gradient; the table of all values has the same numbers",
  });
  const say = element("p", { class: "note", "aria-live": "polite" });
  let zoomed = null;
  let drawn = [];
  let isDrawing = false;

  const redraw = figure(host, (library) => {
    const slots = slotsOf(root);
    const range = zoomed ?? [-0.8, slots.length - 0.2];
    const first = Math.max(Math.floor(range[0]), 0);
    const end = Math.min(Math.ceil(range[1]) + 1, slots.length);
    const columns = columnsOf(slots, first, end);
    drawn = columns;
    const span = {};
    for (const direction of DIRECTIONS) {
      const all = report.values
        .filter((value) => !isMask(value))
        .flatMap((value) => GRAPHS.map((graph) => logRms(value, direction, graph)))
        .filter((logarithm) => logarithm !== null);
      span[direction] = spanOf(all, direction);
    }
    const traces = PANELS.flatMap((panel) => panelTraces(panel, columns));
    isDrawing = true;
    library.react(host, traces, panelLayout(slots, span, range, "RMS"), CONFIG).then(() => (isDrawing = false));
    say.textContent =
      `${plural(slots.length, "slot")}: ${plural(slots.filter((s) => !s.node).length, "value")} and ` +
      `${plural(slots.filter((s) => s.node).length, "folded module")}` +
      (columns.some((column) => column.slots.length > 1)
        ? "; neighbors are joined, zoom in to tell them apart"
        : "");
    if (!host.dataset.listens) listen(library);
  });

  function listen() {
    host.dataset.listens = "yes";
    host.on("plotly_hover", ({ event, points: [point] }) => {
      const panel = PANELS[point.data.meta];
      const column = drawn[point.customdata];
      columnTooltip(event, column, panel);
    });
    host.on("plotly_unhover", hideTooltip);
    host.on("plotly_click", ({ points: [point] }) => {
      const column = drawn[point.customdata];
      hideTooltip();
      if (column.values.length === 1) showDetails(column.values[0]);
      else if (column.node) {
        open.add(column.node.path);
        refold();
      }
    });
    host.on("plotly_relayout", (change) => {
      if (isDrawing) return;
      const key = ["xaxis", "xaxis2", "xaxis3", "xaxis4"].find((name) => `${name}.range[0]` in change);
      if (key) zoomed = [change[`${key}.range[0]`], change[`${key}.range[1]`]];
      else if (Object.keys(change).some((name) => name.endsWith("autorange"))) zoomed = null;
      else return;
      redraw();
    });
  }

  onFold(() => {
    zoomed = null;
    redraw();
  });
  const outline = element(
    "details",
    { class: "modules", open: !isNarrow() },
    element("summary", {}, "Modules"),
    foldingOutline(),
  );
  section("scales").replaceChildren(
    element(
      "div",
      { class: "controls" },
      foldingButtons(),
      element("span", { class: "spacer" }),
      element("span", {}, "range for"),
      ...DIRECTIONS.map((direction) => formatChoice(direction, () => refold())),
    ),
    element("div", { class: "beside" }, outline, element("div", {}, host, say)),
  );
}

function columnTooltip(event, column, { direction, graph }) {
  if (column.values.length === 1) {
    showTooltip(event, columnTitle(column), valueRows(column.values[0], direction, graph));
    return;
  }
  const found = sortedLogs(column.values, direction, graph);
  if (!found.length) return;
  showTooltip(event, columnTitle(column), [
    ["values", count(found.length)],
    ["log₂ RMS", `${log2Text(found[0])} … ${log2Text(found[found.length - 1])}`],
    ["median", log2Text(median(found))],
    ["outside unit", count(found.filter((logarithm) => !isUnit(logarithm)).length)],
    ["", column.node ? "click to unfold" : "zoom in to separate"],
  ]);
}

function sortedLogs(values, direction, graph) {
  return values
    .filter((value) => !isMask(value))
    .map((value) => logRms(value, direction, graph))
    .filter((logarithm) => logarithm !== null)
    .sort((a, b) => a - b);
}

function symbolOf(value, direction) {
  if (isRounding(value, direction)) return "x-thin";
  return value.kind === "result" ? "circle" : "diamond-open";
}

function panelTraces({ direction, graph, axis: name }, columns) {
  const ink = color(graph);
  const bars = { x: [], y: [] };
  const points = { x: [], y: [], customdata: [], symbol: [], size: [] };
  columns.forEach((column, index) => {
    const found = sortedLogs(column.values, direction, graph);
    if (!found.length) return;
    if (found.length > 1) {
      bars.x.push(column.x, column.x, null);
      bars.y.push(found[0], found[found.length - 1], null);
    }
    points.x.push(column.x);
    points.y.push(median(found));
    points.customdata.push(index);
    const single = column.values.length === 1;
    points.symbol.push(single ? symbolOf(column.values[0], direction) : "circle");
    points.size.push(single ? 6 : 7);
  });
  const panel = PANELS.findIndex((each) => each.axis === name);
  const common = { xaxis: `x${name}`, yaxis: `y${name}`, type: "scatter", meta: panel };
  const width = Math.min(Math.max(260 / columns.length, 1.5), 7);
  return [
    { ...common, ...bars, mode: "lines", hoverinfo: "skip", opacity: 0.38, line: { color: ink, width } },
    {
      ...common,
      x: points.x,
      y: points.y,
      customdata: points.customdata,
      mode: "markers",
      hoverinfo: "none",
      marker: {
        color: ink,
        symbol: points.symbol,
        size: columns.length > 200 ? 4 : points.size,
        line: { width: 1, color: ink },
      },
    },
  ];
}
