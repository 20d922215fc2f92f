// The readings of a monitor: the drift of stored RMS from one.

function driftView() {
  const host = section("drift");
  const drift = report.drift;
  if (!drift) {
    host.replaceChildren(
      element(
        "p",
        { class: "empty" },
        "No readings. Pass the file that unitify.monitor(module, path=…) writes: --drift FILE.",
      ),
    );
    return;
  }
  let direction = "forward";
  const lines = element("div", {
    class: "figure",
    id: "drift-figure",
    role: "group",
    "aria-label": "Stored RMS during training",
  });
  const way = directionPicker((chosen) => {
    direction = chosen;
    redraw();
    table.replace(rowsOf());
  });
  host.replaceChildren(
    element("div", { class: "controls" }, element("label", {}, "readings of ", way)),
    lines,
  );

  const rowsOf = () =>
    Object.entries(drift.rms[direction])
      .map(([name, readings]) => {
        const logs = readings.map((reading) => (reading > 0 ? Math.log2(reading) : null));
        const found = logs.filter((logarithm) => logarithm !== null);
        const worst = (kind) =>
          (drift[kind][direction][name] ?? []).reduce((a, b) => Math.max(a ?? 0, b ?? 0), null);
        return {
          name,
          logs,
          value: valueByName.get(name) ?? null,
          first: found[0] ?? null,
          final: found[found.length - 1] ?? null,
          moved: found.length ? found[found.length - 1] - found[0] : null,
          underflow: worst("underflow"),
          saturation: worst("saturation"),
        };
      })
      .sort((a, b) => (a.value?.index ?? Infinity) - (b.value?.index ?? Infinity));

  const redraw = figure(lines, (library) => {
    const rows = sampled(rowsOf());
    const layout = baseLayout(460);
    layout.margin = { ...layout.margin, t: 14, l: 58 };
    const steps = drift.steps;
    layout.xaxis = axis({
      domain: [0, 1],
      anchor: "y",
      title: { text: "call", font: { size: 12 } },
      showgrid: false,
    });
    layout.xaxis2 = axis({
      domain: [0, 1],
      anchor: "y2",
      matches: "x",
      showticklabels: false,
      showgrid: false,
    });
    layout.yaxis = axis({
      domain: [0, 0.68],
      showticklabels: false,
      showgrid: false,
      autorange: "reversed",
      title: { text: "values in graph order", font: { size: 12 } },
    });
    layout.yaxis2 = axis({
      domain: [0.74, 1],
      tickformat: ".0%",
      rangemode: "tozero",
      title: { text: "outside unit", font: { size: 12 } },
    });
    layout.coloraxis = {
      cmin: -6,
      cmax: 6,
      colorscale: [
        [0, color("below")],
        [0.5, color("surface")],
        [1, color("above")],
      ],
      colorbar: {
        thickness: 9,
        len: 0.66,
        y: 0,
        yanchor: "bottom",
        outlinewidth: 0,
        tickfont: { size: 10 },
        title: { text: "log₂ stored", font: { size: 10.5 } },
      },
    };
    library.react(
      lines,
      [
        {
          type: "heatmap",
          x: steps,
          y: rows.map((_, index) => index),
          z: rows.map((row) => row.logs),
          coloraxis: "coloraxis",
          hoverinfo: "none",
        },
        {
          type: "scatter",
          mode: "lines+markers",
          x: steps,
          y: drift.outside,
          xaxis: "x2",
          yaxis: "y2",
          hoverinfo: "x+y",
          line: { color: color("transformed"), width: 2 },
          marker: { size: 5 },
        },
      ],
      layout,
      CONFIG,
    );
    lines.rows = rows;
    if (lines.dataset.listens) return;
    lines.dataset.listens = "yes";
    lines.on("plotly_hover", ({ event, points: [point] }) => {
      if (point.data.type !== "heatmap") return;
      const row = lines.rows[point.pointIndex[0]];
      showTooltip(event, row.name, [
        ["call", count(point.x)],
        ["log₂ stored RMS", log2Text(point.z)],
        ["moved since the first", log2Text(row.moved)],
      ]);
    });
    lines.on("plotly_unhover", hideTooltip);
  });

  const number = (label, key, note, show = log2Text) => ({
    label,
    note,
    numeric: true,
    get: (row) => row[key],
    show: (row) => show(row[key]),
  });
  const moved = {
    ...number("moved", "moved", "octaves between the first reading and the last"),
    get: (row) => (row.moved === null ? null : Math.abs(row.moved)),
  };
  const table = grid(host, {
    label: "Drift",
    rows: rowsOf(),
    opened: (row) => row.value && showDetails(row.value),
    search: (row) => `${row.name} ${row.value ? valueSearch(row.value) : ""}`,
    columns: [
      {
        label: "value",
        width: "30%",
        get: (row) => row.name,
        show: (row) => (row.value ? valueLink(row.value) : row.name),
      },
      {
        label: "module",
        width: "26%",
        get: (row) => row.value?.module ?? "",
        show: (row) => row.value?.module ?? "",
      },
      number("first", "first", "log2 stored RMS"),
      number("last", "final", "log2 stored RMS"),
      moved,
      number("underflow", "underflow", "largest share that becomes zero or subnormal", percent),
      number("saturated", "saturation", "largest share beyond the largest number", percent),
    ],
    sort: { column: moved, descending: true },
  });
}

// At most as many rows as the figure is high.
function sampled(rows) {
  const step = Math.max(Math.ceil(rows.length / 400), 1);
  return rows.filter((_, index) => index % step === 0);
}
