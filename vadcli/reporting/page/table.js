"use strict";
// The list of events, filtered, sorted and shown page by page; and the dialog that shows one event.
vadcli.table = (() => {
  const {events, el, clock, lasting, seconds, review, data, nameOf, $} = vadcli;
  const PAGE = 100;
  const VERDICTS = {t: "true", f: "false", u: "unsure"};
  const SOURCES = data.time_sources;
  const body = $("table").tBodies[0];
  const form = $("filters");
  const sorting = {key: "peak_score", down: true};
  let found = [];
  let page = 0;
  let rows = new Map();

  const counted = (number) => `${number.toLocaleString("en")} ${number === 1 ? "event" : "events"}`;

  const valueOf = (event, key) => (key === "verdict" ? review.of(event).verdict || "" : event[key] ?? "");
  const compare = (one, other) => {
    const [a, b] = [valueOf(one, sorting.key), valueOf(other, sorting.key)];
    const order = typeof a === "number" ? a - b : a < b ? -1 : a > b ? 1 : 0;
    return (sorting.down ? -order : order) || one.place - other.place || one.id - other.id;
  };

  const wanted = () => {
    const given = Object.fromEntries(new FormData(form));
    const text = given.text.trim().toLowerCase();
    const camera = given.camera === "" ? null : data.cameras[given.camera].name;
    const least = given.score === "" ? 0 : Number(given.score);
    const [from, to] = [seconds(given.from) ?? 0, seconds(given.to) ?? Infinity];
    const ofDay = (text) => seconds(/^\d+:\d+$/.test(text || "") ? `${text}:00` : text || "") ?? 0; // hours and minutes
    const [dayFrom, dayTo] = [ofDay(given.day_from), ofDay(given.day_to)];
    const anyTime = !given.day_from && !given.day_to;
    const day = (length_s) => ((length_s % 86400) + 86400) % 86400;
    const inDay = ({day_s, length_s}) => day_s !== null && (day(day_s - dayFrom) < (day(dayTo - dayFrom) || 86400) || day(dayFrom - day_s) < length_s);
    return (event) => {
      const {verdict, note} = review.of(event);
      return (
        (!text || event.text.includes(text) || (note || "").toLowerCase().includes(text)) &&
        (camera === null || event.camera === camera) &&
        (!given.category || event.category === given.category) &&
        event.peak_score >= least &&
        event.end_s >= from &&
        event.start_s <= to &&
        (anyTime || inDay(event)) &&
        (!given.verdict || (given.verdict === "none" ? !verdict : verdict === given.verdict))
      );
    };
  };

  const strip = (event) => {
    if (!event.strip) return el("button", {type: "button", class: "strip dim", onclick: () => open(event), "aria-label": `Open event ${event.id} of ${event.video}`}, event.clip ? "clip" : "open");
    const [width, height, times, sources] = event.strip;
    const images = sources.map((src, place) => el("img", {src, width, height, loading: "lazy", alt: `at ${clock(times[place])}`}));
    return el("button", {type: "button", class: "strip", onclick: () => open(event), "aria-label": `Open event ${event.id} of ${event.video}`}, ...images);
  };

  const verdicts = (event) => {
    const buttons = Object.values(VERDICTS).map((verdict) =>
      el("button", {type: "button", "data-verdict": verdict, "aria-pressed": "false", onclick: () => judge(event, verdict)}, verdict),
    );
    const note = el("input", {class: "note", placeholder: "note", "aria-label": `Note on event ${event.id} of ${event.video}`, onchange: ({target}) => review.set(event, {note: target.value})});
    return el("div", {}, el("div", {class: "verdicts", role: "group", "aria-label": `Review of event ${event.id} of ${event.video}`}, ...buttons), note);
  };

  const judge = (event, verdict) => review.set(event, {verdict: review.of(event).verdict === verdict ? null : verdict});

  const cell = (label, ...children) => el("td", {role: "cell", "data-label": label}, ...children);
  const row = (event) => {
    const made = el(
      "tr",
      {role: "row", tabindex: "-1"},
      cell("Score", el("span", {class: "score"}, event.peak_score.toFixed(3)), event.head_score === null ? null : el("div", {class: "dim"}, `head ${event.head_score.toFixed(3)}`)),
      cell("Camera", el("bdi", {}, nameOf(event.camera))),
      cell("Video", el("bdi", {}, event.video)),
      event.when ? cell("Starts", el("div", {}, el("div", {}, event.when), el("div", {class: "dim"}, clock(event.start_s)))) : cell("Starts", clock(event.start_s)),
      cell("Lasts", lasting(event.length_s)),
      cell("Category", el("div", {}, el("bdi", {}, event.category || "–"), ...(event.verified ? [el("div", {class: "dim"}, event.verified)] : []))),
      cell("Pictures", strip(event)),
      cell("Review", verdicts(event)),
    );
    [0, 3, 4].forEach((place) => made.cells[place].classList.add("number"));
    [1, 2, 5].forEach((place) => made.cells[place].classList.add("text"));
    made.cells[2].classList.add("path");
    made.addEventListener("keydown", (pressed) => onKey(pressed, made, event));
    made.addEventListener("focusin", () => mark(made));
    return made;
  };

  const mark = (chosen) => {
    for (const one of body.rows) {
      one.tabIndex = one === chosen ? 0 : -1;
      one.classList.toggle("chosen", one === chosen);
    }
  };

  const onKey = (pressed, made, event) => {
    if (pressed.target !== made || pressed.ctrlKey || pressed.metaKey || pressed.altKey) return;
    const steps = {ArrowDown: made.nextElementSibling, ArrowUp: made.previousElementSibling, Home: body.firstElementChild, End: body.lastElementChild};
    if (pressed.key in steps) steps[pressed.key]?.focus();
    else if (pressed.key in VERDICTS) judge(event, VERDICTS[pressed.key]);
    else if (pressed.key === "Backspace") review.set(event, {verdict: null});
    else if (pressed.key === "n") made.querySelector(".note").focus();
    else if (pressed.key === "Enter") open(event);
    else return;
    pressed.preventDefault();
  };

  const paint = () => {
    for (const [event, made] of rows) {
      const {verdict, note} = review.of(event);
      made.querySelectorAll("[data-verdict]").forEach((button) => button.setAttribute("aria-pressed", String(button.dataset.verdict === verdict)));
      const field = made.querySelector(".note");
      if (field !== document.activeElement) field.value = note || "";
    }
  };

  const draw = () => {
    const last = Math.max(0, Math.ceil(found.length / PAGE) - 1);
    page = Math.min(Math.max(0, page), last);
    rows = new Map(found.slice(page * PAGE, (page + 1) * PAGE).map((event) => [event, row(event)]));
    body.replaceChildren(...rows.values());
    if (!rows.size) body.append(el("tr", {role: "row"}, el("td", {role: "cell", colspan: "8"}, events.length ? "No event matches these filters." : "There are no events.")));
    else body.firstElementChild.tabIndex = 0;
    $("count").textContent = found.length === events.length ? counted(events.length) : `${found.length.toLocaleString("en")} of ${counted(events.length)}`;
    $("page").textContent = `page ${page + 1} of ${last + 1}`;
    $("before").disabled = page === 0;
    $("after").disabled = page === last;
    document.querySelector(".pages").hidden = last === 0;
    paint();
  };

  const update = () => {
    found = events.filter(wanted()).sort(compare);
    draw();
  };

  const turn = (step) => {
    page += step;
    draw();
    $("table").scrollIntoView();
  };

  const open = (event) => {
    $("dialog-heading").textContent = `Event ${event.id} of ${event.video}`;
    const facts = `${event.when ? `${event.when} (from ${SOURCES[event.source]}) · ` : ""}${clock(event.start_s)} – ${clock(event.end_s)}, ${lasting(event.length_s)} · peak ${event.peak_score.toFixed(3)} at ${clock(event.peak_s)}${event.head_score === null ? "" : ` · head ${event.head_score.toFixed(3)}`}${event.category ? ` · ${event.category}` : ""}${event.verified ? ` · ${event.verified}` : ""}`;
    const parts = [el("p", {}, el("bdi", {}, facts))];
    if (event.described) parts.push(el("p", {}, el("bdi", {}, event.described), el("span", {class: "dim"}, " (the model's words; they may be wrong)")));
    if (event.clip) {
      const part = el("p", {class: "dim", role: "status"});
      const showLength = ({target}) => (part.textContent = target.duration < event.length_s - 0.5 ? `The clip shows ${lasting(target.duration)} of the event, around the peak.` : "");
      parts.push(el("video", {src: event.clip, controls: true, loop: true, muted: true, playsinline: true, "aria-label": "Clip of the event", onloadedmetadata: showLength}), part);
    }
    if (event.strip) {
      const [width, height, times, sources] = event.strip;
      parts.push(el("div", {class: "frames"}, ...sources.map((src, place) => el("figure", {}, el("img", {src, width, height, alt: `Frame at ${clock(times[place])}`}), el("figcaption", {class: "dim"}, clock(times[place]))))));
    }
    if (!event.clip && !event.strip) parts.push(el("p", {class: "dim"}, "No pictures of this event are in the report."));
    const review_ = verdicts(event);
    const field = review_.querySelector(".note");
    field.value = review.of(event).note || "";
    const show = () => review_.querySelectorAll("[data-verdict]").forEach((button) => button.setAttribute("aria-pressed", String(button.dataset.verdict === review.of(event).verdict)));
    show();
    review_.addEventListener("click", show);
    $("dialog-body").replaceChildren(parts[0], review_, ...parts.slice(1));
    if (!$("dialog").open) $("dialog").showModal();
  };

  $("first")?.addEventListener("click", (click) => {
    const event = events[click.target.dataset.event];
    click.preventDefault();
    form.reset(); // its listener filters the list again, in a timer
    setTimeout(() => {
      page = Math.floor(found.indexOf(event) / PAGE);
      draw();
      rows.get(event).focus({preventScroll: true});
      rows.get(event).scrollIntoView({block: "center"});
    });
  });
  $("close").addEventListener("click", () => $("dialog").close());
  $("dialog").addEventListener("close", () => $("dialog-body").replaceChildren());
  for (const head of $("table").tHead.rows[0].cells) {
    const key = head.dataset.key;
    if (!key) continue;
    const button = el("button", {type: "button"}, head.textContent);
    const show = () => (key === sorting.key ? head.setAttribute("aria-sort", sorting.down ? "descending" : "ascending") : head.removeAttribute("aria-sort"));
    button.addEventListener("click", () => {
      sorting.down = key === sorting.key ? !sorting.down : ["peak_score", "length_s"].includes(key);
      sorting.key = key;
      for (const other of $("table").tHead.rows[0].cells) other.dispatchEvent(new Event("sorted"));
      page = 0;
      update();
    });
    head.addEventListener("sorted", show);
    head.replaceChildren(button);
    show();
  }
  form.addEventListener("input", () => {
    page = 0;
    update();
  });
  form.addEventListener("submit", (sent) => sent.preventDefault());
  form.addEventListener("reset", () => setTimeout(() => ((page = 0), update())));
  $("before").addEventListener("click", () => turn(-1));
  $("after").addEventListener("click", () => turn(1));
  review.onChange(paint);
  return {update, open, found: () => found};
})();
