"use strict";
// Draws regions on the frame of a camera, and saves the regions of all cameras as a file for `vadcli scan --ignore`.
vadcli.regions = (() => {
  const {data, el, review} = vadcli;
  const SVG = "http://www.w3.org/2000/svg";
  const STEP = 0.01;
  const WORDS = {ignore: "hidden", only: "looked at"};
  const drawn = data.cameras.map(({regions}) => structuredClone(regions || {ignore: [], only: []}));
  let camera = null; // the number of the camera that is shown
  let points = []; // the points of the polygon that is being drawn
  let closed = []; // for undo: the list (ignore or only) to which each polygon was added, the newest at the end
  let cursor = [0.5, 0.5];

  const shape = (tag, attributes) => {
    const made = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    return made;
  };
  const image = el("img", {alt: ""});
  const sheet = shape("svg", {viewBox: "0 0 1 1", preserveAspectRatio: "none", "aria-hidden": "true"});
  const pad = el("div", {class: "pad", tabindex: "0", role: "application", "aria-labelledby": "regions-heading", "aria-describedby": "regions-keys"}, image, sheet);
  const kinds = ["ignore", "only"].map((kind) => el("input", {type: "radio", name: "kind", value: kind, checked: kind === "ignore"}));
  const heading = el("h2", {id: "regions-heading"});
  const state = el("p", {role: "status", id: "regions-state"});
  const button = (text, act) => el("button", {type: "button", class: "quiet", onclick: act}, text);
  const kind = () => kinds.find((radio) => radio.checked).value;

  const polygon = (some, what) => shape("polygon", {points: some.map((point) => point.join(",")).join(" "), class: what});
  const draw = () => {
    const {ignore, only} = drawn[camera];
    const open = points.length ? [shape("polyline", {points: points.map((point) => point.join(",")).join(" "), class: "open"})] : [];
    const [x, y] = cursor;
    const cross = shape("path", {d: `M${x - 0.02},${y}H${x + 0.02}M${x},${y - 0.03}V${y + 0.03}`, class: "cross"});
    const polygons = (some, what) => some.filter(Array.isArray).map((one) => polygon(one, what));
    sheet.replaceChildren(...polygons(ignore, "ignore"), ...polygons(only, "only"), ...open, cross);
    const count = (some, what) => `${some.length} ${some.length === 1 ? "region" : "regions"} ${WORDS[what]}`;
    const begun = points.length ? `; ${points.length} ${points.length === 1 ? "point" : "points"} of the next` : "";
    state.textContent = `${count(ignore, "ignore")}, ${count(only, "only")}${begun}`;
  };
  const tidy = (value) => Math.min(1, Math.max(0, Math.round(value * 10000) / 10000));
  const add = () => {
    points.push([...cursor]);
    draw();
  };
  const close = () => {
    if (points.length < 3) {
      state.textContent = "A polygon needs at least three points.";
      return;
    }
    const list = drawn[camera][kind()];
    list.push(points);
    closed.push(list);
    points = [];
    draw();
  };
  const undo = () => {
    if (points.length) points.pop();
    else closed.pop()?.pop();
    draw();
  };
  const clear = () => {
    points = [];
    closed = [];
    drawn[camera] = {ignore: [], only: []};
    draw();
  };
  const asJson = () => {
    const named = data.cameras.map(({name}, place) => [name, drawn[place]]).filter(([, {ignore, only}]) => ignore.length || only.length);
    return JSON.stringify({format_version: 1, generator: data.generator, cameras: Object.fromEntries(named)}, null, 1) + "\n";
  };
  const save = () => {
    if (points.length >= 3) close();
    review.save("regions.json", asJson(), "application/json");
  };

  pad.addEventListener("click", (press) => {
    const {left, top, width, height} = pad.getBoundingClientRect();
    cursor = [tidy((press.clientX - left) / width), tidy((press.clientY - top) / height)];
    add();
  });
  pad.addEventListener("keydown", (pressed) => {
    if (pressed.ctrlKey || pressed.metaKey || pressed.altKey) return;
    const step = pressed.shiftKey ? 5 * STEP : STEP;
    const move = (x, y) => () => {
      cursor = [tidy(cursor[0] + x * step), tidy(cursor[1] + y * step)];
      draw();
    };
    const keys = {ArrowLeft: move(-1, 0), ArrowRight: move(1, 0), ArrowUp: move(0, -1), ArrowDown: move(0, 1), Enter: add, " ": add, c: close, Backspace: undo};
    if (!keys[pressed.key]) return;
    pressed.preventDefault();
    keys[pressed.key]();
  });

  const dialog = el(
    "dialog", {id: "regions", "aria-labelledby": "regions-heading"},
    el("div", {class: "head"}, heading, button("Close", () => dialog.close())),
    el("p", {class: "dim", id: "regions-keys"}, "Click the corners of a polygon, then close it. On the keyboard, arrows move the cross (with Shift faster), Enter sets a corner, c closes the polygon, Backspace undoes the last step."),
    el("div", {class: "tools"}, el("label", {}, kinds[0], " Hide what is inside"), el("label", {}, kinds[1], " Look only at what is inside")),
    pad,
    state,
    el("div", {class: "tools"}, button("Close polygon", close), button("Undo", undo), button("Remove all regions of this camera", clear), el("button", {type: "button", onclick: save}, "Save regions.json")),
    el("p", {class: "dim"}, "The file has the regions of all cameras. Use it in the next scan: vadcli scan … --ignore regions.json"),
  );
  document.body.append(dialog);

  const open = (place, name) => {
    camera = place;
    points = [];
    closed = [];
    heading.textContent = `Regions of ${name}`;
    image.src = data.cameras[place].frame;
    draw();
    dialog.showModal();
    pad.focus();
  };
  return {
    asJson,
    button: (place, name) => el("button", {type: "button", class: "quiet", "aria-label": `Draw regions, ${name}`, onclick: () => open(place, name)}, "Regions"),
  };
})();
