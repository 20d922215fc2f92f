// Light and dark: the system's choice until the user switches. Figures take their colors from CSS.

const themeListeners = [];

// A color in the present theme, resolved by the browser.
const probe = document.createElement("span");

function color(name) {
  if (!probe.isConnected) document.body.append(Object.assign(probe, { hidden: true }));
  probe.style.color = `var(--${name})`;
  return getComputedStyle(probe).color;
}

function isDark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

function onTheme(listener) {
  themeListeners.push(listener);
}

function startTheme() {
  const changed = () => themeListeners.forEach((listener) => listener());
  document.getElementById("theme").addEventListener("click", () => {
    document.documentElement.dataset.theme = isDark() ? "light" : "dark";
    changed();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", changed);
}
