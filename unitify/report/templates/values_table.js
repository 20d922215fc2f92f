// Every value, one row each.

// On paper the file without its folder, because a path would be cut into many lines.
function sourceCell(value) {
  const text = sourceText(value);
  if (!isPrinting) return clipped(text);
  return element("span", { class: "place-line" }, text.slice(text.lastIndexOf("/") + 1));
}

function valuesView() {
  const host = section("values");
  host.replaceChildren();
  const logColumn = (direction, graph) => ({
    label: graph === "original" ? "true" : scaledWord(),
    group: direction === "forward" ? "value" : "gradient",
    note: `log2 RMS of the ${direction === "forward" ? "value" : "gradient"}, ${graph}`,
    numeric: true,
    width: "7%",
    get: (value) => logRms(value, direction, graph),
    show: (value) => {
      const logarithm = logRms(value, direction, graph);
      const text = log2Text(logarithm);
      if (logarithm === null || isUnit(logarithm) || isRounding(value, direction)) return text;
      return element("span", { class: `outside ${graph}` }, text);
    },
  });
  const isOutside = (value) =>
    DIRECTIONS.some((direction) => {
      const logarithm = logRms(value, direction, "transformed");
      return logarithm !== null && !isUnit(logarithm) && counts(value, direction);
    });
  let table = null;
  const changed = () => table.update();
  table = grid(host, {
    label: "All values",
    rows: report.values,
    opened: (value) => showDetails(value),
    search: valueSearch,
    tools: [
      filterSwitch("cast", (value) => DIRECTIONS.some((direction) => value[direction].cast), changed),
      filterSwitch("restored", (value) => value.restored !== null, changed),
      filterSwitch(`${scaledWord()} outside unit`, isOutside, changed),
    ],
    columns: [
      nameColumn(),
      moduleColumn(),
      {
        label: "operation",
        get: operationText,
        show: (value) => clipped(operationText(value)),
        width: "10%",
        isWideOnly: true,
      },
      { label: "source", get: sourceText, show: sourceCell, tail: true, width: "15%", isWideOnly: true },
      logColumn("forward", "original"),
      logColumn("forward", "transformed"),
      logColumn("backward", "original"),
      logColumn("backward", "transformed"),
      { label: "", get: (value) => badges(value).length, show: badges },
    ],
  });
}
