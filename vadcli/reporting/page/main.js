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
  matchMedia("print").addEventListener("change", () => timelines.redraw());
  addEventListener("beforeprint", () => document.querySelectorAll("img[loading]").forEach((image) => (image.loading = "eager")));
  vadcli.review.tell();
  vadcli.table.update();
})();
