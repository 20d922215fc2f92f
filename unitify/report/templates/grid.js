// A table of any length: only visible rows are in the page. Sorting, searching and moving work by
// keyboard. A screen reader gets the number of the row and of all rows.

const ROW = 34;
// Rows on paper.
const PRINTED = 1000;

// ``columns``: {label, group, get(row), show(row), numeric, width, note, tail: cut at its start,
// isWideOnly: not on a phone}. ``tools``: further filters, each
// {node, keeps(row)}. Returns a function that redraws it.
function grid(host, { label, columns, rows, opened, search, sort, tools = [], rowClass }) {
  let shown = rows;
  let order = sort ?? null;
  let active = 0;
  const head = element("tr", { "aria-rowindex": 1 });
  const body = element("tbody");
  const table = element(
    "table",
    { role: "grid", "aria-label": label },
    element(
      "colgroup",
      {},
      ...columns.map((column) =>
        element("col", { class: classOf(column, column.tail), style: column.width ? `width: ${column.width}` : "" }),
      ),
    ),
    element("thead", {}, groupsOf(columns), head),
    body,
  );
  const scroller = element(
    "div",
    { class: "scroller", tabindex: 0, "aria-label": `${label}, use the arrow keys` },
    table,
  );
  const say = element("span", { class: "note", role: "status" });
  const unprinted = element("p", { class: "note", hidden: true }, `The first ${count(PRINTED)} rows.`);
  const field = element("input", {
    type: "search",
    placeholder: "Search name, module, operation, file …",
    "aria-label": `Search in ${label}`,
    oninput: () => update(),
  });

  columns.forEach((column) => {
    const button = element(
      "button",
      {
        type: "button",
        title: column.note ?? "",
        onclick: () => {
          const descending = order?.column === column ? !order.descending : Boolean(column.numeric);
          order = { column, descending };
          update();
        },
      },
      column.label,
    );
    column.head = element(
      "th",
      { scope: "col", class: classOf(column, false), "data-label": column.label },
      button,
    );
    head.append(column.head);
  });

  function update() {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    shown = rows.filter((row) => {
      if (!tools.every((tool) => tool.keeps(row))) return false;
      if (!words.length) return true;
      const text = search(row).toLowerCase();
      return words.every((word) => text.includes(word));
    });
    for (const column of columns) {
      column.head.setAttribute(
        "aria-sort",
        order?.column !== column ? "none" : order.descending ? "descending" : "ascending",
      );
    }
    if (order) {
      const sign = order.descending ? -1 : 1;
      const keyed = shown.map((row, index) => [order.column.get(row), index, row]);
      keyed.sort(([a, i], [b, j]) => compared(a, b, sign) || i - j);
      shown = keyed.map(([, , row]) => row);
    }
    active = Math.min(active, Math.max(shown.length - 1, 0));
    say.textContent =
      shown.length === rows.length
        ? plural(rows.length, "row")
        : `${count(shown.length)} of ${plural(rows.length, "row")}`;
    table.setAttribute("aria-rowcount", shown.length + 1);
    scroller.scrollTop = 0;
    draw();
  }

  function draw() {
    const first = isPrinting ? 0 : Math.max(Math.floor(scroller.scrollTop / ROW) - 8, 0);
    const seen = isPrinting ? PRINTED : Math.ceil((scroller.clientHeight || 480) / ROW) + 16;
    const end = Math.min(first + seen, shown.length);
    unprinted.hidden = !isPrinting || end === shown.length;
    const spacer = (height) =>
      element(
        "tr",
        { class: "spacer", "aria-hidden": "true", style: `height: ${height}px` },
        element("td", { colspan: columns.length }),
      );
    const [above, below] = isPrinting ? [0, 0] : [first * ROW, (shown.length - end) * ROW];
    body.replaceChildren(
      spacer(above),
      ...shown.slice(first, end).map((row, offset) => rowOf(row, first + offset)),
      spacer(below),
    );
  }

  function rowOf(row, index) {
    const made = element(
      "tr",
      {
        "aria-rowindex": index + 2,
        class: [index === active ? "active" : "", rowClass ? rowClass(row) : ""].join(" ").trim() || null,
        onclick: (event) => {
          active = index;
          if (!event.target.closest("a, button")) opened(row);
          draw();
        },
      },
      ...columns.map((column) => {
        const cell = element("td", { class: classOf(column, column.tail) });
        const content = column.show(row);
        cell.append(...[content].flat().filter((part) => part !== null && part !== undefined));
        return cell;
      }),
    );
    return made;
  }

  function move(to) {
    active = Math.min(Math.max(to, 0), shown.length - 1);
    const [top, height] = [active * ROW, scroller.clientHeight - 2 * ROW];
    if (top < scroller.scrollTop) scroller.scrollTop = top;
    if (top > scroller.scrollTop + height) scroller.scrollTop = top - height;
    draw();
  }

  scroller.addEventListener("scroll", () => requestAnimationFrame(draw), { passive: true });
  scroller.addEventListener("keydown", (event) => {
    if (event.target.closest("thead")) return;
    const page = Math.max(Math.floor(scroller.clientHeight / ROW) - 2, 1);
    const moves = {
      ArrowDown: active + 1,
      ArrowUp: active - 1,
      PageDown: active + page,
      PageUp: active - page,
      Home: 0,
      End: shown.length - 1,
    };
    if (event.key in moves) move(moves[event.key]);
    else if (event.key === "Enter" && shown.length) opened(shown[active]);
    else return;
    event.preventDefault();
  });
  host.append(
    element(
      "div",
      { class: "controls" },
      field,
      ...tools.map((tool) => tool.node),
      element("span", { class: "spacer" }),
      say,
    ),
    scroller,
    element("p", { class: "note swipe", "aria-hidden": "true" }, "More columns to the right: swipe."),
    unprinted,
  );
  onPrint(draw);
  update();
  return { update, replace: (others) => ((rows = others), update()) };
}

function classOf(column, isTail) {
  const own = column.numeric ? "number" : isTail ? "tail" : "";
  return column.isWideOnly ? `${own} wide-only` : own;
}

// A row above the heads that groups neighbors; none without groups.
function groupsOf(columns) {
  if (!columns.some((column) => column.group)) return null;
  const cells = [];
  for (const { group, isWideOnly } of columns) {
    const before = cells[cells.length - 1];
    if (before && before.group === group && before.isWideOnly === isWideOnly) before.cell.colSpan += 1;
    else {
      const own = `group ${group ?? ""}${isWideOnly ? " wide-only" : ""}`;
      const cell = element("th", { scope: "colgroup", class: own, colspan: 1 }, group ?? "");
      cells.push({ group, isWideOnly, cell });
    }
  }
  return element("tr", { class: "groups" }, ...cells.map(({ cell }) => cell));
}

// Empty cells last, in both directions.
function compared(a, b, sign) {
  const [none, other] = [a === null || a === undefined, b === null || b === undefined];
  if (none || other) return none - other;
  return sign * (typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a - b);
}

// A filter with a switch.
function filterSwitch(text, test, changed, isOn = false) {
  const box = element("input", { type: "checkbox", checked: isOn, onchange: () => changed() });
  return {
    node: element("label", { class: "switch" }, box, text),
    keeps: (row) => !box.checked || test(row),
  };
}
