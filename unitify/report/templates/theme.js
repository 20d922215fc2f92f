// Light and dark: the system's choice until somebody switches. Figures take their colours from CSS.

const themeListeners = [];

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
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
