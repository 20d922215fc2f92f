// The values as a tree of modules. A folded module is one slot of a figure; otherwise each value is
// one. All figures share the folding.

// The most slots of a figure at the start, and the most columns that it draws: more are joined.
const FIRST_SLOTS = 260;
const MOST_COLUMNS = 360;

let root = null;
const open = new Set([""]);
const foldListeners = [];

function onFold(listener) {
  foldListeners.push(listener);
}

function refold() {
  foldListeners.forEach((listener) => listener());
}

function buildTree() {
  root = { path: "", name: "", depth: 0, modules: new Map(), items: [], values: [] };
  for (const value of report.values) {
    let node = root;
    node.values.push(value);
    const parts = value.module ? value.module.split(".") : [];
    parts.forEach((part, index) => {
      if (!node.modules.has(part)) {
        const path = parts.slice(0, index + 1).join(".");
        const made = { path, name: part, depth: index + 1, modules: new Map(), items: [], values: [] };
        node.modules.set(part, made);
        node.items.push(made);
      }
      node = node.modules.get(part);
      node.values.push(value);
    });
    node.items.push(value);
  }
  openUpTo(FIRST_SLOTS);
}

// Unfolds level by level, up to ``limit`` slots.
function openUpTo(limit) {
  open.clear();
  open.add("");
  for (let level = [...root.modules.values()]; level.length;) {
    level.forEach((node) => open.add(node.path));
    if (slotsOf(root).length > limit) {
      level.forEach((node) => open.delete(node.path));
      return;
    }
    level = level.flatMap((node) => [...node.modules.values()]);
  }
}

function openLevels(levels) {
  open.clear();
  open.add("");
  let level = [...root.modules.values()];
  for (let depth = 0; depth < levels && level.length; depth++) {
    level.forEach((node) => open.add(node.path));
    level = level.flatMap((node) => [...node.modules.values()]);
  }
}

function deepest() {
  return Math.max(...report.values.map((value) => (value.module ? value.module.split(".").length : 0)));
}

// A slot: {values, module} of a folded module, {values: [value]} of a value. They are in the order of
// the graph, where a module has the place of its first value.
function slotsOf(node) {
  return slotsIn(node).sort((a, b) => a.values[0].index - b.values[0].index);
}

function slotsIn(node) {
  return node.items.flatMap((item) => {
    if (item.items === undefined) return [{ values: [item], node: null, within: node.path }];
    return open.has(item.path) ? slotsIn(item) : [{ values: item.values, node: item, within: node.path }];
  });
}

// At most MOST_COLUMNS of the slots in [first, last): neighbors are joined where there are more.
function columnsOf(slots, first, end) {
  const width = Math.max(Math.ceil((end - first) / MOST_COLUMNS), 1);
  const columns = [];
  for (let start = first; start < end; start += width) {
    const held = slots.slice(start, Math.min(start + width, end));
    columns.push({
      x: start + (held.length - 1) / 2,
      slots: held,
      values: held.length === 1 ? held[0].values : held.flatMap((slot) => slot.values),
      node: held.length === 1 ? held[0].node : null,
    });
  }
  return columns;
}

function columnTitle(column) {
  if (column.values.length === 1) return shownName(column.values[0]);
  if (column.node) return column.node.path;
  const [first, final] = [column.values[0], column.values[column.values.length - 1]];
  return `${shownName(first)} … ${shownName(final)}`;
}

// The tree as a list of buttons, for the keyboard.
function foldingOutline() {
  const list = element("ul", { class: "outline", role: "tree", "aria-label": "Modules" });
  const draw = () => {
    const focused = document.activeElement?.dataset?.path;
    const rows = [];
    const visit = (node) => {
      for (const child of node.modules.values()) {
        const isOpen = open.has(child.path);
        const row = element(
          "li",
          {
            role: "treeitem",
            "aria-expanded": isOpen,
            "aria-level": child.depth,
            tabindex: -1,
            "data-path": child.path,
            style: `--depth: ${child.depth - 1}`,
            onclick: () => toggle(child.path),
          },
          element("span", { class: "twist", "aria-hidden": "true" }, isOpen ? "▾" : "▸"),
          element("span", { class: "name" }, child.name),
          element("span", { class: "count" }, count(child.values.length)),
        );
        rows.push(row);
        if (isOpen) visit(child);
      }
    };
    visit(root);
    list.replaceChildren(...rows);
    const current = rows.find((row) => row.dataset.path === focused) ?? rows[0];
    if (current) {
      current.tabIndex = 0;
      if (focused !== undefined) current.focus({ preventScroll: true });
    }
  };
  const toggle = (path) => {
    open.has(path) ? open.delete(path) : open.add(path);
    refold();
  };
  list.addEventListener("keydown", (event) => {
    const rows = [...list.children];
    const at = rows.indexOf(document.activeElement);
    if (at < 0) return;
    const path = rows[at].dataset.path;
    const moves = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: rows.length - 1 };
    if (event.key in moves) {
      const target = rows[Math.min(Math.max(moves[event.key], 0), rows.length - 1)];
      rows[at].tabIndex = -1;
      target.tabIndex = 0;
      target.focus();
    } else if (event.key === "Enter" || event.key === " ") toggle(path);
    else if (event.key === "ArrowRight" && !open.has(path)) toggle(path);
    else if (event.key === "ArrowLeft" && open.has(path)) toggle(path);
    else return;
    event.preventDefault();
  });
  onFold(draw);
  draw();
  return list;
}

function foldingButtons() {
  const deep = deepest();
  const level = (text, levels) =>
    element("button", { type: "button", onclick: () => (openLevels(levels), refold()) }, text);
  return element(
    "div",
    { class: "buttons", role: "group", "aria-label": "Fold modules" },
    level("Fold all", 0),
    ...Array.from({ length: Math.min(Math.max(deep - 1, 0), 4) }, (_, i) => level(`Level ${i + 1}`, i + 1)),
    level("All values", deep),
  );
}
