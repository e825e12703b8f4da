"use strict";
// The theme, and the first drawing.
(() => {
  const {$, timelines} = vadcli;
  const NEXT = {system: "light", light: "dark", dark: "system"};
  const root = document.documentElement;
  const set = (theme) => {
    if (theme === "system") delete root.dataset.theme;
    else root.dataset.theme = theme;
    $("theme").textContent = `Theme: ${theme}`;
    timelines.redraw();
  };
  $("theme").addEventListener("click", () => set(NEXT[root.dataset.theme || "system"]));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => timelines.redraw());
  // For printing, every section is opened, colours are light, and every curve is drawn. Afterwards the page is as before.
  let before = null;
  const print = () => {
    if (before) return;
    before = {theme: root.dataset.theme || "system", closed: [...document.querySelectorAll("details:not([open])")]};
    before.closed.forEach((details) => (details.open = true));
    document.querySelectorAll("img[loading]").forEach((image) => (image.loading = "eager"));
    root.dataset.theme = "light";
    timelines.print();
  };
  const printed = () => {
    if (!before) return;
    before.closed.forEach((details) => (details.open = false));
    set(before.theme);
    before = null;
    timelines.printed();
  };
  addEventListener("beforeprint", print);
  addEventListener("afterprint", printed);
  matchMedia("print").addEventListener("change", ({matches}) => (matches ? print : printed)());
  $("tools").open = !matchMedia("(max-width: 52rem)").matches;
  vadcli.review.tell();
  vadcli.table.update();
})();
