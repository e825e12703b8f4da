"use strict";
// Helpers of the page. For safety, text from data only becomes textContent or the value of an attribute.
window.vadcli = {};
vadcli.data = JSON.parse(document.getElementById("data").textContent);
vadcli.$ = (id) => document.getElementById(id);

vadcli.el = (tag, attributes = {}, ...children) => {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
};

vadcli.nameOf = (camera) => (camera === "." || !camera ? "root folder" : camera);

vadcli.clock = (seconds, tenths = false) => {
  const parts = Math.max(0, Math.floor(seconds * 10 + 1e-5));
  const whole = Math.floor(parts / 10);
  const two = (number) => String(number).padStart(2, "0");
  return `${Math.floor(whole / 3600)}:${two(Math.floor(whole / 60) % 60)}:${two(whole % 60)}${tenths ? `.${parts % 10}` : ""}`;
};

vadcli.lasting = (seconds) => (seconds < 60 ? `${seconds.toFixed(1)} s` : vadcli.clock(seconds));

// "90", "1:30" and "0:01:30" are all 90; null if the text is not a time.
vadcli.seconds = (text) => {
  const parts = text.trim().split(":");
  if (!text.trim() || parts.length > 3 || !parts.every((part) => /^\d+(\.\d+)?$/.test(part))) return null;
  return parts.reduce((sum, part) => sum * 60 + Number(part), 0);
};

vadcli.events = vadcli.data.events.map((row) => {
  const event = Object.fromEntries(vadcli.data.fields.map((name, place) => [name, row[place]]));
  const [video, camera, source] = vadcli.data.videos[event.video];
  event.place = event.video;
  event.video = video;
  event.camera = camera;
  event.source = source;
  // Wall-clock time in the camera's time zone. If it is unknown, events are sorted by their time in the video.
  event.when = event.start_time ? event.start_time.slice(0, 19).replace("T", " ") : null;
  event.began = event.start_time ? Date.parse(event.start_time) / 1000 : event.start_s;
  event.day_s = event.when ? vadcli.seconds(event.start_time.slice(11).match(/^[\d:.]*/)[0]) : null;
  event.length_s = event.end_s - event.start_s;
  event.text = `${video}\n${camera}\n${event.category || ""}\n${event.verified}\n${event.described}`.toLowerCase();
  return event;
});

vadcli.colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
