// Scale classes: values that share a scale, and the rescales between them. The x axis is the order
// of the graph, the y axis is the exponent of the scale.

const MOST_CLASSES = 320;

function classesView() {
  const host = section("classes");
  const plot = element("div", {
    class: "figure",
    id: "classes-figure",
    role: "group",
    "aria-label": "Scale classes in the order of the graph",
  });
  const say = element("p", { class: "note", role: "status" });
  const held = report.classes
    .map((each, index) => {
      const values = each.values.map((name) => valueByName.get(name)).filter(Boolean);
      return { ...each, index, members: values, at: Math.min(...values.map((value) => value.index)) };
    })
    .filter((each) => each.members.length);
  if (held.length < 2) {
    const why = "Every value is stored at the same scale, so there are no rescales: constants are in the casts.";
    host.replaceChildren(element("p", { class: "empty" }, why));
    return;
  }
  const byIndex = new Map(held.map((each) => [each.index, each]));
  const inside = (path) => (each) =>
    !path || each.members.some((value) => value.module === path || value.module.startsWith(`${path}.`));
  const modules = modulesOf(root).filter((node) => node.modules.size || node.depth <= 1);
  const small = modules.find(
    (node) => held.filter(inside(node.path)).length <= MOST_CLASSES && node.values.length > 4,
  );
  let path = small ? small.path : "";
  let direction = "forward";
  let withParameters = false;
  const pick = element(
    "select",
    {
      "aria-label": "Module",
      onchange: (event) => {
        path = event.target.value;
        redraw();
      },
    },
    ...modules.map((node) =>
      element("option", { value: node.path, selected: node.path === path }, node.path || "the whole model"),
    ),
  );
  const way = directionPicker((chosen) => {
    direction = chosen;
    redraw();
  });
  const parameters = element(
    "label",
    { class: "switch" },
    element("input", {
      type: "checkbox",
      onchange: (event) => {
        withParameters = event.target.checked;
        redraw();
      },
    }),
    "parameters",
  );

  let nodes = [];
  let edges = [];
  const redraw = figure(plot, (library) => {
    nodes = held
      .filter(inside(path))
      .filter((each) => withParameters || each.members.some((value) => value.kind !== "parameter"))
      .sort((a, b) => a.at - b.at);
    nodes.forEach((each, x) => (each.x = x));
    const shown = new Set(nodes);
    edges = report.rescales
      .map(([source, target, forward, backward, uses]) => ({
        source: byIndex.get(source),
        target: byIndex.get(target),
        forward,
        backward,
        uses,
      }))
      .filter((edge) => shown.has(edge.source) && shown.has(edge.target));
    const y = (each) => each[direction];
    const layout = baseLayout(420);
    layout.margin.t = 16;
    layout.xaxis = slotAxis(
      nodes.map((each) => ({ node: null, within: each.members[0].module })),
      [-1, nodes.length],
    );
    layout.yaxis = axis({
      title: {
        text: `log₂ of the scale of ${direction === "forward" ? "values" : "gradients"}`,
        font: { size: 12 },
        standoff: 6,
      },
      dtick: tickStep(extent(nodes.map(y))),
      tick0: 0,
    });
    const isRestored = (each) => each.members.some((value) => value.restored !== null);
    const isCast = (each) => each.members.some((value) => value[direction].cast);
    const traces = [
      {
        type: "scatter",
        mode: "lines",
        hoverinfo: "skip",
        line: { color: color("edge"), width: 1 },
        x: edges.flatMap((edge) => [edge.source.x, edge.target.x, null]),
        y: edges.flatMap((edge) => [y(edge.source), y(edge.target), null]),
      },
      {
        type: "scatter",
        mode: "markers",
        hoverinfo: "none",
        meta: "edge",
        marker: { size: 10, color: "rgba(0,0,0,0)" },
        x: edges.map((edge) => (edge.source.x + edge.target.x) / 2),
        y: edges.map((edge) => (y(edge.source) + y(edge.target)) / 2),
      },
      {
        type: "scatter",
        mode: "markers",
        hoverinfo: "none",
        meta: "class",
        x: nodes.map((each) => each.x),
        y: nodes.map(y),
        marker: {
          size: nodes.map((each) => Math.min(7 + 2.2 * Math.sqrt(each.members.length), 26)),
          symbol: nodes.map((each) => (isRestored(each) ? "diamond" : "circle")),
          color: nodes.map((each) => (isCast(each) ? color("transformed") : color("surface"))),
          line: {
            width: 1.6,
            color: nodes.map((each) => (isRestored(each) ? color("text") : color("transformed"))),
          },
        },
      },
    ];
    library.react(plot, traces, layout, CONFIG);
    say.replaceChildren(
      `${plural(nodes.length, "class", "classes")}, ${plural(edges.length, "rescale")} between them. `,
      "Filled: cast by the recipe. Diamond: has the result of a restored operation. Larger: more values.",
    );
    if (plot.dataset.listens) return;
    plot.dataset.listens = "yes";
    plot.on("plotly_hover", ({ event, points: [point] }) => {
      if (point.data.meta === "edge") return edgeTooltip(event, edges[point.pointIndex]);
      classTooltip(event, nodes[point.pointIndex]);
    });
    plot.on("plotly_unhover", hideTooltip);
    plot.on(
      "plotly_click",
      ({ points: [point] }) => point.data.meta === "class" && showDetails(nodes[point.pointIndex].members[0]),
    );
  });
  host.replaceChildren(
    element(
      "div",
      { class: "controls" },
      element("label", {}, "module ", pick),
      element("label", {}, "scale of ", way),
      parameters,
    ),
    plot,
    say,
  );
}

function modulesOf(node) {
  const found = [node];
  for (const each of found) found.push(...each.modules.values());
  return found;
}

function extent(numbers) {
  return [numbers.reduce((a, b) => Math.min(a, b), 0), numbers.reduce((a, b) => Math.max(a, b), 0)];
}

function classTooltip(event, each) {
  const names = each.members.slice(0, 6).map(shownName).join(", ");
  const restored = each.members.filter((value) => value.restored !== null).map((value) => value.name);
  showTooltip(event, plural(each.members.length, "value"), [
    ["scale", `2^${each.forward} of values, 2^${each.backward} of gradients`],
    ["values", each.members.length > 6 ? `${names} …` : names],
    ["restored", restored.slice(0, 4).join(", ")],
  ]);
}

function edgeTooltip(event, edge) {
  showTooltip(event, "rescale", [
    ["from", shownName(edge.source.members[0])],
    ["to", shownName(edge.target.members[0])],
    ["forward", `× 2^${edge.forward}`],
    ["backward", `× 2^${edge.backward}`],
    ["uses", edge.uses > 1 ? count(edge.uses) : ""],
  ]);
}
