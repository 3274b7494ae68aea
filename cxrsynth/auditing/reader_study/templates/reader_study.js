
"use strict";
(() => {
  const get = (id) => document.getElementById(id);
  const data = JSON.parse(get("data").textContent);
  const pictures = document.querySelectorAll("script.picture");
  const total = data.images.length;
  const slot = `cxrsynth-reader-study-${data.study}`;

  // Answers, kept after each change.

  const fresh = () => ({reader: null, place: 0, answers: {}});
  let state = fresh();
  let keeps = true;
  const keep = () => {
    try {
      localStorage.setItem(slot, JSON.stringify(state));
    } catch {
      keeps = false;
      get("no-storage").hidden = false;
    }
  };
  try {
    state = JSON.parse(localStorage.getItem(slot)) ?? state;
  } catch {
    keeps = false;
  }
  const answerOf = (place) =>
    (state.answers[data.images[place]] ??= {origin: null, quality: null, findings: [], match: null, seconds: 0, final: false});
  const current = () => answerOf(state.place);
  const missing = (answer) => {
    const left = [];
    if (answer.origin === null) left.push("origin");
    if (answer.quality === null) left.push("quality");
    if (answer.findings.length === 0) left.push("findings");
    if (data.texts !== null && answer.final && answer.match === null) left.push("match");
    return left;
  };
  const isDone = (answer) => answer !== undefined && missing(answer).length === 0 && (data.texts === null || answer.final);
  const doneCount = () => data.images.filter((name) => isDone(state.answers[name])).length;

  // Time: only while an image is to be seen, and until its text is.

  let since = null;
  const stopClock = () => {
    if (since === null) return;
    const answer = current();
    answer.seconds = Math.round((answer.seconds + (performance.now() - since) / 1000) * 10) / 10;
    since = null;
    keep();
  };
  const startClock = () => {
    if (since === null && !get("read").hidden && !document.hidden && !current().final) since = performance.now();
  };
  document.addEventListener("visibilitychange", () => (document.hidden ? stopClock() : startClock()));
  addEventListener("pagehide", stopClock);
  // Answered in another tab: this one would write its older answers over those.
  addEventListener("storage", (event) => {
    if (event.key !== slot) return;
    since = null;
    location.reload();
  });
  addEventListener("beforeunload", (event) => {
    if (!keeps && doneCount() > 0) event.preventDefault();
  });

  // The image: gray levels through window and level, then zoom.

  const canvas = get("canvas");
  const frame = get("frame");
  const pen = canvas.getContext("2d");
  const pixels = pen.createImageData(data.side, data.side);
  const view = {window: 256, level: 128, inverted: false, zoom: 1, x: 0, y: 0, pans: false};
  let levels = null;

  const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
  let asked = false;
  const draw = () => {
    get("window").value = Math.round(view.window);
    get("level").value = Math.round(view.level);
    get("invert").setAttribute("aria-pressed", view.inverted);
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => {
      asked = false;
      const table = new Uint8ClampedArray(256);
      for (let gray = 0; gray < 256; gray++) {
        const shown = ((gray - view.level) / view.window + 0.5) * 255;
        table[gray] = view.inverted ? 255 - shown : shown;
      }
      for (let place = 0, at = 0; place < levels.length; place++, at += 4) {
        pixels.data[at] = pixels.data[at + 1] = pixels.data[at + 2] = table[levels[place]];
        pixels.data[at + 3] = 255;
      }
      pen.putImageData(pixels, 0, 0);
    });
  };
  const move = () => {
    const side = frame.clientWidth;
    view.x = clamp(view.x, side * (1 - view.zoom), 0);
    view.y = clamp(view.y, side * (1 - view.zoom), 0);
    canvas.style.transform = `translate(${view.x}px, ${view.y}px) scale(${view.zoom})`;
    get("zoom").textContent = `${Math.round(view.zoom * 100)}%`;
  };
  const setWindow = (window, level) => {
    view.window = clamp(window, 2, 512);
    view.level = clamp(level, 0, 256);
    draw();
  };
  // Zooms about a point of the frame, by default its middle.
  const zoomBy = (factor, x = frame.clientWidth / 2, y = frame.clientHeight / 2) => {
    const zoom = clamp(view.zoom * factor, 1, 10);
    view.x = x - ((x - view.x) * zoom) / view.zoom;
    view.y = y - ((y - view.y) * zoom) / view.zoom;
    view.zoom = zoom;
    move();
  };
  const resetView = () => {
    Object.assign(view, {window: 256, level: 128, inverted: false, zoom: 1, x: 0, y: 0});
    draw();
    move();
  };
  const setDrag = (pans) => {
    view.pans = pans;
    frame.classList.toggle("pan", pans);
    get("drag").textContent = pans ? "Drag: move" : "Drag: window";
  };

  const fingers = new Map();
  const placeIn = (event) => {
    const box = frame.getBoundingClientRect();
    return {x: event.clientX - box.left, y: event.clientY - box.top};
  };
  const spread = () => {
    const [one, other] = [...fingers.values()];
    return {x: (one.x + other.x) / 2, y: (one.y + other.y) / 2, apart: Math.hypot(one.x - other.x, one.y - other.y) || 1};
  };
  frame.addEventListener("pointerdown", (event) => {
    frame.setPointerCapture(event.pointerId);
    fingers.set(event.pointerId, placeIn(event));
  });
  frame.addEventListener("pointermove", (event) => {
    const last = fingers.get(event.pointerId);
    if (last === undefined) return;
    const here = placeIn(event);
    if (fingers.size === 2) {
      const before = spread();
      fingers.set(event.pointerId, here);
      const now = spread();
      view.x += now.x - before.x;
      view.y += now.y - before.y;
      zoomBy(now.apart / before.apart, now.x, now.y);
      return;
    }
    fingers.set(event.pointerId, here);
    const [right, down] = [here.x - last.x, here.y - last.y];
    if (view.pans || event.shiftKey) {
      view.x += right;
      view.y += down;
      move();
    } else {
      setWindow(view.window + right, view.level + down / 2);
    }
  });
  for (const end of ["pointerup", "pointercancel"]) {
    frame.addEventListener(end, (event) => fingers.delete(event.pointerId));
  }
  frame.addEventListener("wheel", (event) => {
    event.preventDefault();
    const {x, y} = placeIn(event);
    zoomBy(Math.exp(-event.deltaY / 500), x, y);
  }, {passive: false});
  addEventListener("resize", () => get("read").hidden || move());

  get("window").addEventListener("input", (event) => setWindow(event.target.valueAsNumber, view.level));
  get("level").addEventListener("input", (event) => setWindow(view.window, event.target.valueAsNumber));
  const tools = {
    in: () => zoomBy(1.25),
    out: () => zoomBy(0.8),
    invert: () => { view.inverted = !view.inverted; draw(); },
    drag: () => setDrag(!view.pans),
    reset: resetView,
  };
  for (const [id, act] of Object.entries(tools)) get(id).addEventListener("click", act);

  // Screens.

  const show = (screen) => {
    stopClock();
    for (const one of document.querySelectorAll(".screen")) one.hidden = one.id !== screen;
    scrollTo(0, 0);
  };
  const mark = () => {
    const answer = current();
    for (const button of document.querySelectorAll(".choice")) {
      const {group, value} = button.dataset;
      const given = answer[group];
      button.setAttribute("aria-pressed", Array.isArray(given) ? given.includes(value) : String(given) === value);
      button.disabled = answer.final && group !== "match";
    }
    if (data.texts !== null) {
      get("match").hidden = !answer.final;
      get("report").textContent = answer.final ? data.texts[state.place] : "";
    }
    get("missing").textContent = "";
    get("next").textContent = data.texts !== null && !answer.final ? "Show text" : state.place + 1 < total ? "Next" : "Finish";
    get("back").disabled = state.place === 0;
    get("progress").value = doneCount();
  };
  const open = (place) => {
    stopClock();
    state.place = place;
    levels = Uint8Array.from(atob(pictures[place].textContent), (letter) => letter.charCodeAt(0));
    show("read");
    get("place").textContent = `Image ${place + 1} of ${total}`;
    canvas.setAttribute("aria-label", `Chest X-ray ${place + 1} of ${total}`);
    resetView();
    mark();
    document.activeElement.blur();
    keep();
    startClock();
  };

  // Answering.

  const choose = (group, value) => {
    const answer = current();
    if (group === "match" ? !answer.final : answer.final) return;
    if (group === "findings") {
      const normal = get("findings").dataset.normal;
      const has = answer.findings.includes(value);
      // A normal chest may hold devices, and nothing else.
      const goes = (name) => name === value || (value === normal && name !== "Support Devices") ||
        (name === normal && value !== "Support Devices");
      answer.findings = answer.findings.filter((name) => (has ? name !== value : !goes(name)));
      if (!has) answer.findings.push(value);
    } else {
      answer[group] = group === "quality" ? Number(value) : value;
    }
    mark();
    keep();
  };
  const next = () => {
    const answer = current();
    const left = missing(answer);
    if (left.length > 0) {
      const names = {origin: "real or synthetic", quality: "quality", findings: "findings", match: "match"};
      get("missing").textContent = `Still to answer: ${left.map((name) => names[name]).join(", ")}`;
      get(left[0]).scrollIntoView({block: "nearest"});
      return;
    }
    if (data.texts !== null && !answer.final) {
      stopClock();
      answer.final = true;
      mark();
      keep();
      get("match").scrollIntoView({block: "nearest"});
      get("report").focus({preventScroll: true});
      return;
    }
    if (state.place + 1 < total) open(state.place + 1);
    else finish();
  };
  const back = () => state.place > 0 && open(state.place - 1);
  const finish = () => {
    show("done");
    get("saved").textContent = "";
    get("save").focus();
  };
  for (const button of document.querySelectorAll(".choice")) {
    button.addEventListener("click", (event) => {
      choose(button.dataset.group, button.dataset.value);
      // After a click with the mouse, Enter goes on; with the keyboard, the focus stays where it is.
      if (event.detail > 0) button.blur();
    });
  }
  get("next").addEventListener("click", next);
  get("back").addEventListener("click", back);

  const keys = {
    ArrowLeft: () => setWindow(view.window - 8, view.level),
    ArrowRight: () => setWindow(view.window + 8, view.level),
    ArrowUp: () => setWindow(view.window, view.level - 4),
    ArrowDown: () => setWindow(view.window, view.level + 4),
    "+": tools.in, "=": tools.in, "-": tools.out, "0": tools.reset, i: tools.invert, t: tools.drag,
    Enter: next, Backspace: back,
  };
  for (const button of document.querySelectorAll(".choice")) {
    keys[button.getAttribute("aria-keyshortcuts")] = () => choose(button.dataset.group, button.dataset.value);
  }
  document.addEventListener("keydown", (event) => {
    if (get("read").hidden || event.ctrlKey || event.metaKey || event.altKey) return;
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const target = event.target;
    if (target.type === "range" && key.startsWith("Arrow")) return;
    if (key === "Enter" && target.closest("button, summary")) return;  // presses what has the focus
    if (event.repeat && (key === "Enter" || key === "Backspace")) return;
    if (keys[key] === undefined) return;
    event.preventDefault();
    keys[key]();
  });

  // The file.

  const save = () => {
    stopClock();
    const answers = data.images.filter((name) => name in state.answers).map((image) => {
      const {origin, quality, findings, match, seconds} = state.answers[image];
      return {image, origin, quality, findings, match, seconds};
    });
    const file = {format: data.format, version: data.version, study: data.study, reader: state.reader, answers};
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([JSON.stringify(file, null, 1)], {type: "application/json"}));
    const name = state.reader.name.replace(/[^\p{L}\p{N}-]+/gu, "_");
    link.download = `reader-answers-${data.study}-${name}.json`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
    get("saved").textContent = `Saved as ${link.download}, ${doneCount()} of ${total} images answered.`;
    startClock();
  };
  for (const button of document.querySelectorAll(".save")) button.addEventListener("click", save);
  get("again").addEventListener("click", () => open(0));

  // The first screen, and another reader on the same computer.

  const isSure = (button, question) => {
    if (button.dataset.asked) return true;
    button.dataset.asked = "yes";
    button.textContent = question;
    return false;
  };
  const forget = () => {
    since = null;
    state = fresh();
    keep();
    location.reload();
  };
  get("other").addEventListener("click", () => {
    if (isSure(get("other"), `Delete the answers of ${state.reader.name} from this browser?`)) forget();
  });
  get("delete").addEventListener("click", () => {
    if (isSure(get("delete"), "Delete them? Only the saved file remains")) forget();
  });
  get("reader").addEventListener("submit", (event) => {
    event.preventDefault();
    const years = get("years").valueAsNumber;
    state.reader = {name: get("name").value.trim(), role: get("role").value, years: Number.isNaN(years) ? null : years};
    if (state.reader.name === "") return;
    open(Math.min(state.place, total - 1));
  });

  keep();
  get("no-storage").hidden = keeps;
  if (state.reader !== null) {
    get("name").value = state.reader.name;
    get("role").value = state.reader.role;
    get("years").value = state.reader.years ?? "";
    get("begin").textContent = "Continue";
    get("other").hidden = false;
    get("known").textContent = `${state.reader.name} has answered ${doneCount()} of ${total} images.`;
  }
  show("start");
})();
