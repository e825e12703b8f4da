"use strict";
// One score curve per camera, with its events. A curve is made when it comes into view or is printed.
vadcli.timelines = (() => {
  const {data, events, el, clock, lasting, colour, nameOf, $} = vadcli;
  const NO_SCORE = 255;
  const LEVELS = 254;
  const STEPS_S = [0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200, 86400, 172800, 604800];
  const NAMED = 8; // the heading of the folded cameras names at most this many of them
  const PRINT_PX = 700; // about the width of the text on A4 and on letter paper
  const waiting = new Map();
  const loaded = new Set();
  const made = [];
  const unmade = new Set(); // one function per curve that is not made yet
  vadcli.curves = (place, packed) => waiting.get(place)?.(packed);

  const byVideo = new Map();
  for (const event of events) {
    if (!byVideo.has(event.place)) byVideo.set(event.place, []);
    byVideo.get(event.place).push(event);
  }

  // Returns [seconds, scores] of a camera's videos, with a gap between two videos.
  const unpack = (camera, packed) => {
    const at = [];
    const score = [];
    camera.spans.forEach(([, begin, length], number) => {
      const levels = Uint8Array.from(atob(packed[number]), (character) => character.charCodeAt(0));
      levels.forEach((level, index) => {
        at.push(begin + ((index + 0.5) * length) / levels.length);
        score.push(level === NO_SCORE ? null : level / LEVELS);
      });
      at.push(begin + length);
      score.push(null);
    });
    return [at, score];
  };

  const marksOf = (camera) =>
    camera.spans.flatMap(([video, begin]) =>
      (byVideo.get(video) || []).map((event) => ({event, from: begin + event.start_s, to: begin + event.end_s})),
    );

  const drawGround = (chart, camera, marks) => {
    const {ctx, bbox} = chart;
    ctx.save();
    ctx.beginPath();
    ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
    ctx.clip();
    ctx.fillStyle = colour("band");
    for (const {from, to} of marks) {
      const left = chart.valToPos(from, "x", true);
      ctx.fillRect(left, bbox.top, Math.max(3, chart.valToPos(to, "x", true) - left), bbox.height);
    }
    ctx.strokeStyle = colour("line");
    for (const [, begin] of camera.spans.slice(1)) {
      const x = Math.round(chart.valToPos(begin, "x", true)) + 0.5;
      ctx.beginPath();
      ctx.moveTo(x, bbox.top);
      ctx.lineTo(x, bbox.top + bbox.height);
      ctx.stroke();
    }
    ctx.strokeStyle = colour("event");
    ctx.setLineDash([6, 5]);
    for (const [, begin, length, high] of camera.spans) {
      const y = chart.valToPos(high, "y", true);
      ctx.beginPath();
      ctx.moveTo(chart.valToPos(begin, "x", true), y);
      ctx.lineTo(chart.valToPos(begin + length, "x", true), y);
      ctx.stroke();
    }
    ctx.restore();
  };

  const build = (camera, holder, reading, packed) => {
    const marks = marksOf(camera);
    const curve = unpack(camera, packed);
    const say = (x, score) => {
      const span = camera.spans.findLast(([, begin]) => begin <= x) || camera.spans[0];
      const known = score === null || score === undefined ? "no score" : `score ${score.toFixed(2)}`;
      reading.textContent = `${data.videos[span[0]][0]} · ${clock(x - span[1])} · ${known}`;
    };
    const axis = {stroke: () => colour("dim"), grid: {stroke: () => colour("line"), width: 1}, ticks: {stroke: () => colour("line")}};
    const chart = new uPlot(
      {
        width: holder.clientWidth || 600,
        height: holder.clientHeight || 144,
        legend: {show: false},
        padding: [null, 32, null, null],
        cursor: {drag: {x: true, y: false}, y: false},
        scales: {x: {time: false, range: (_, low, high) => [low, high]}, y: {range: [0, 1]}},
        axes: [{...axis, size: 34, incrs: STEPS_S, values: (_, values, place, space, step) => values.map((value) => clock(value, step < 1)), space: 70}, {...axis, size: 40, values: (_, values) => values.map((value) => value.toFixed(1)), space: 30}],
        series: [{}, {stroke: () => colour("curve"), fill: () => colour("fill"), width: 1.5, points: {show: false}}],
        hooks: {
          drawClear: [(self) => drawGround(self, camera, marks)],
          setCursor: [(self) => self.cursor.idx !== null && say(self.data[0][self.cursor.idx], self.data[1][self.cursor.idx])],
        },
      },
      curve,
      holder,
    );
    const whole = [0, Math.max(camera.end_s, 1e-3)];
    let current = -1;
    let visited = null; // the event that a key chose; null after the mouse has moved
    const inView = (seconds) => seconds >= chart.scales.x.min && seconds <= chart.scales.x.max;
    const middleOf = ({from, to}) => (from + to) / 2;
    const point = () => {
      if (!visited || !inView(middleOf(visited))) return;
      chart.setCursor({left: chart.valToPos(middleOf(visited), "x"), top: 10});
      const {id, video, start_s, peak_score} = visited.event;
      reading.textContent = `event ${id} of ${video} · ${clock(start_s)} · peak ${peak_score.toFixed(2)}`;
    };
    const show = (from, to) => {
      const length = Math.min(whole[1], Math.max(1, to - from));
      const begin = Math.min(Math.max(0, from), whole[1] - length);
      chart.batch(() => chart.setScale("x", {min: begin, max: begin + length}));
      point();
    };
    const around = (middle, length) => show(middle - length / 2, middle + length / 2);
    const zoom = (factor) => {
      const {min, max} = chart.scales.x;
      around(visited && inView(middleOf(visited)) ? middleOf(visited) : (min + max) / 2, (max - min) * factor);
    };
    const zoomAt = (seconds, factor) => {
      const {min, max} = chart.scales.x;
      show(seconds - (seconds - min) * factor, seconds + (max - seconds) * factor);
    };
    const move = (share) => {
      const {min, max} = chart.scales.x;
      show(min + share * (max - min), max + share * (max - min));
    };
    const visit = (step) => {
      if (!marks.length) return;
      current = (current + step + marks.length) % marks.length;
      visited = marks[current];
      const {min, max} = chart.scales.x;
      if (visited.from < min || visited.to > max) around(middleOf(visited), max - min);
      else point();
    };
    show(...whole);
    let down = null;
    chart.over.addEventListener("mousemove", () => (visited = null));
    chart.over.addEventListener("mousedown", (press) => (down = press.clientX));
    chart.over.addEventListener("mouseup", (press) => {
      if (down === null || Math.abs(press.clientX - down) > 3) return;
      const x = chart.posToVal(press.offsetX, "x");
      const near = (5 * (chart.scales.x.max - chart.scales.x.min)) / chart.over.clientWidth;
      const hit = marks.find(({from, to}) => from - near <= x && x <= to + near);
      if (hit) vadcli.table.open(hit.event);
    });
    chart.over.addEventListener("dblclick", () => show(...whole));
    chart.over.addEventListener(
      "wheel",
      (turn) => {
        if (!turn.ctrlKey) return;
        turn.preventDefault();
        zoomAt(chart.posToVal(turn.offsetX, "x"), turn.deltaY > 0 ? 1.25 : 0.8);
      },
      {passive: false},
    );
    new ResizeObserver(() => holder.clientWidth && chart.setSize({width: holder.clientWidth, height: holder.clientHeight})).observe(holder);
    made.push(chart);
    return {
      chart,
      keys: {
        "+": () => zoom(0.5), "=": () => zoom(0.5), "-": () => zoom(2), "−": () => zoom(2), 0: () => show(...whole), Home: () => show(...whole),
        ArrowLeft: () => move(-0.2), ArrowRight: () => move(0.2), n: () => visit(1), p: () => visit(-1),
        Enter: () => current >= 0 && vadcli.table.open(marks[current].event),
      },
    };
  };

  // With --assets, curves are files. All of them are loaded soon after the page, because printing can't wait for them.
  const load = (place) => {
    const {script} = data.cameras[place];
    if (!script || !waiting.has(place) || loaded.has(place)) return;
    loaded.add(place);
    document.body.append(el("script", {src: script}));
  };

  const section = (camera, place) => {
    const name = nameOf(camera.name);
    const marks = marksOf(camera);
    const best = marks.reduce((highest, {event}) => Math.max(highest, event.peak_score), 0);
    const told = marks.length ? `${marks.length} event${marks.length > 1 ? "s" : ""}, highest ${best.toFixed(2)}` : "no events";
    const reading = el("div", {class: "reading"});
    const holder = el("div", {class: "chart", tabindex: "0", role: "group", "aria-label": `Score curve of ${name}: ${lasting(camera.end_s)} of footage, ${told}`});
    let view = null;
    let packed = camera.curves;
    const press = (key) => view?.keys[key]?.();
    const button = (text, key, label) => el("button", {type: "button", class: "quiet", "aria-label": `${label}, ${name}`, onclick: () => press(key)}, text);
    const heading = el("h3", {}, el("bdi", {}, name));
    const buttons = el("div", {class: "buttons"}, button("+", "+", "Zoom in"), button("−", "-", "Zoom out"), button("Whole", "0", "Show the whole"));
    if (marks.length) buttons.append(button("‹ event", "p", "Event before"), button("event ›", "n", "Next event"));
    if (camera.frame) buttons.append(vadcli.regions.button(place, name));
    holder.addEventListener("keydown", (pressed) => {
      if (pressed.ctrlKey || pressed.metaKey || pressed.altKey || !view?.keys[pressed.key]) return;
      pressed.preventDefault();
      press(pressed.key);
    });
    let seen = false;
    const make = () => {
      seen = true;
      if (!packed) return;
      unmade.delete(make);
      view ??= build(camera, holder, reading, packed);
    };
    unmade.add(make);
    if (!packed) {
      waiting.set(place, (told) => {
        packed = told;
        if (seen) make();
      });
    }
    new IntersectionObserver((entries, observer) => {
      if (!entries.some((entry) => entry.isIntersecting)) return;
      observer.disconnect();
      load(place);
      make();
    }, {rootMargin: "200px"}).observe(holder);
    return el("div", {class: "camera"}, el("div", {class: "head"}, el("div", {}, heading, el("span", {class: "dim"}, `${lasting(camera.end_s)} of footage, ${told}`)), buttons), holder, reading);
  };

  // Cameras without events are folded, unless there is nothing else to show.
  const cameras = data.no_curves ? [] : data.cameras; // a page about very many videos has no curves
  const sections = cameras.map(section);
  const isQuiet = (camera) => !marksOf(camera).length;
  const quiet = cameras.filter(isQuiet);
  $("timelines").append(...sections.filter((_, place) => !isQuiet(cameras[place])));
  if (quiet.length) {
    const named = quiet.slice(0, NAMED).map((camera) => nameOf(camera.name)).join(", ");
    const [summary, inside] = $("quiet").children;
    summary.append(`${quiet.length} camera${quiet.length > 1 ? "s" : ""} without events: `, el("bdi", {}, named), quiet.length > NAMED ? ", …" : "");
    inside.append(...sections.filter((_, place) => isQuiet(cameras[place])));
    $("quiet").hidden = false;
    $("quiet").open = quiet.length === cameras.length;
  }
  if (!cameras.length) $("timelines").append(el("p", {}, "No video has scores."));
  addEventListener("load", () => cameras.forEach((_, place) => load(place)));

  const redraw = () => made.forEach((chart) => chart.redraw(false, true));
  const resize = (width) => made.forEach((chart) => chart.setSize({width: width || chart.root.parentNode.clientWidth || PRINT_PX, height: chart.height}));
  return {
    redraw,
    charts: made,
    print: () => {
      [...unmade].forEach((make) => make());
      resize(PRINT_PX);
      redraw();
    },
    printed: () => {
      resize();
      redraw();
    },
  };
})();
