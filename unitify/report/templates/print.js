// Paper: light, as wide as a page, and whole. Figures are drawn again, folded parts opened, and tables
// have all of their rows.

const PAPER = 690;
let isPrinting = false;
const printListeners = [];

function onPrint(listener) {
  printListeners.push(listener);
}

function startPrint() {
  const page = document.documentElement;
  let theme, closed;
  addEventListener("beforeprint", () => {
    isPrinting = true;
    theme = page.dataset.theme;
    page.dataset.theme = "light";
    closed = [...document.querySelectorAll("main details:not([open])")];
    closed.forEach((part) => (part.open = true));
    printListeners.forEach((listener) => listener());
  });
  addEventListener("afterprint", () => {
    isPrinting = false;
    if (theme) page.dataset.theme = theme;
    else delete page.dataset.theme;
    closed.forEach((part) => (part.open = false));
    printListeners.forEach((listener) => listener());
  });
}
