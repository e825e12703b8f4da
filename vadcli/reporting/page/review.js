"use strict";
// The reader's verdicts on events: stored in this browser, saved as JSON or CSV, and loaded again.
vadcli.review = (() => {
  const {data, events, $} = vadcli;
  const place = `vadcli-review:${data.archive}`;
  const COLUMNS = ["video", "start_frame", "end_frame", "start_s", "end_s", "peak_score", "category", "verdict", "note", "reviewed_at"];
  const ENOUGH_TO_LEARN = 10; // with this many verdicts, the page shows the command that learns from them
  const VERDICTS = ["true", "false", "unsure"];
  const keyOf = (event) => JSON.stringify([event.video, event.start_frame, event.end_frame]);
  const listeners = [];
  let said = {};
  let keeps = true;
  try {
    said = JSON.parse(localStorage.getItem(place) || "{}") || {};
  } catch {
    keeps = false;
  }

  const store = () => {
    try {
      localStorage.setItem(place, JSON.stringify(said));
    } catch {
      keeps = false;
    }
    tell();
  };
  const of = (event) => said[keyOf(event)] || {verdict: null, note: ""};
  const set = (event, change) => {
    const entry = {...of(event), ...change, reviewed_at: new Date().toISOString()};
    if (entry.verdict || entry.note) said[keyOf(event)] = entry;
    else delete said[keyOf(event)];
    store();
  };
  const tell = () => {
    const count = events.filter((event) => of(event).verdict).length;
    const where = keeps ? "stored in this browser" : "this browser stores nothing: save the review before you leave";
    $("kept").textContent = `${count} of ${events.length} reviewed, ${where}`;
    if ($("learn")) $("learn").hidden = count < ENOUGH_TO_LEARN;
    listeners.forEach((listener) => listener());
  };

  const rows = () =>
    events
      .filter((event) => of(event).verdict)
      .map((event) => {
        const {verdict, note, reviewed_at} = of(event);
        return Object.fromEntries(COLUMNS.map((name) => [name, {...event, verdict, note: note || "", reviewed_at}[name] ?? null]));
      });
  const asJson = () => JSON.stringify({format_version: 1, generator: data.generator, reviews: rows()}, null, 2) + "\n";
  // A cell that a spreadsheet would run as a formula gets an apostrophe before its text.
  const cell = (value) => {
    let text = value === null ? "" : String(value);
    if (/^'*[=+\-@\t\r]/.test(text)) text = `'${text}`;
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  const asCsv = () => [COLUMNS.join(","), ...rows().map((row) => COLUMNS.map((name) => cell(row[name])).join(","))].join("\r\n") + "\r\n";
  const save = (name, text, type) => {
    const url = URL.createObjectURL(new Blob([text], {type}));
    vadcli.el("a", {href: url, download: name}).click();
    setTimeout(() => URL.revokeObjectURL(url), 10000);
  };

  // Loads a saved review. Returns a message: why it can't be loaded, or how many of its entries are events of this report.
  const load = (text) => {
    let document_;
    try {
      document_ = JSON.parse(text);
    } catch {
      return "not JSON: load a file that “Save review as JSON” wrote";
    }
    if (document_?.format_version !== 1 || !Array.isArray(document_.reviews)) return "not a review of format version 1";
    const known = new Set(events.map(keyOf));
    let taken = 0;
    for (const entry of document_.reviews) {
      const key = keyOf(entry);
      if (!known.has(key) || !VERDICTS.includes(entry.verdict)) continue;
      said[key] = {verdict: entry.verdict, note: String(entry.note || ""), reviewed_at: String(entry.reviewed_at || "")};
      taken += 1;
    }
    store();
    return `${taken} of ${document_.reviews.length} entries loaded`;
  };

  $("save-json").addEventListener("click", () => save("review.json", asJson(), "application/json"));
  $("save-csv").addEventListener("click", () => save("review.csv", asCsv(), "text/csv"));
  $("load").addEventListener("change", async ({target}) => {
    const [file] = target.files;
    if (file) $("kept").textContent = load(await file.text());
    target.value = "";
  });
  return {of, set, save, asJson, asCsv, load, tell, onChange: (listener) => listeners.push(listener)};
})();
