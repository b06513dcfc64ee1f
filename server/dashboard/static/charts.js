// Draw curves: points come as JSON, once whole and then by round; a new round changes the data of a standing plot.
"use strict";

(() => {
  const HEIGHT = 210;
  const MANY = 8;
  const DASHES = [[], [6, 3], [2, 3], [8, 3, 2, 3]];
  const BORDERS = ["solid", "dashed", "dotted", "double"];
  const COLOURS = 8;
  const plots = new Map(); // by the id of their home: { plot, shape }
  const held = { epoch: "", done: -1, charts: new Map() };
  const live = document.getElementById("live");
  const words = { worst: live?.dataset.worst || "worst", round: live?.dataset.round || "Round" };

  const soft = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const colour = (style) => soft(style === 0 ? "--c0" : style < 0 ? "--cx" : `--c${((style - 1) % COLOURS) + 1}`);
  // Sites differ by dash as well as by colour; the global line is the thick whole one.
  const dash = (style) => (style === 0 ? 0 : style < 0 ? 2 : (style - 1) % DASHES.length);
  const written = (value) => (value === null || value === undefined ? "–" : value.toFixed(3));
  const named = (line) => line.label || line.scope;

  // What a person chose: which scopes to hide, which one to lift out; the same for every chart.
  const choice = { hidden: new Set(), chosen: "" };
  const width = (line, worst) => (line.scope === choice.chosen ? 3.5 : line.style === 0 ? 3 : line.scope === worst ? 2.5 : 1.25);
  const plain = (line, worst) => line.kind === "site" && line.scope !== worst && line.scope !== choice.chosen;
  const alpha = (line, worst, many) => (plain(line, worst) && (choice.chosen || many) ? 0.35 : 1);
  // What matters is drawn last, on top of the rest.
  const height = (line, worst) => (line.kind === "global" ? 4 : line.kind === "external" ? 3 : line.scope === choice.chosen ? 2 : line.scope === worst ? 1 : 0);
  // The worst site is always seen.
  const visible = (line, worst) => line.kind === "other" || line.scope === worst || !choice.hidden.has(line.scope);

  const series = (line, worst, many) => ({
    label: line.scope === worst ? `${named(line)} (${words.worst})` : named(line),
    class: line.kind === "global" ? "first" : line.scope === worst ? "worst" : many && plain(line, worst) ? "folded" : undefined,
    stroke: () => colour(line.style),
    width: width(line, worst),
    alpha: alpha(line, worst, many),
    show: visible(line, worst),
    dash: DASHES[dash(line.style)],
    points: { show: (plot) => plot.data[0].length < 30, size: line.style === 0 ? 6 : 4 },
    value: (_, value) => written(value),
    spanGaps: false,
  });

  const axis = (more) => ({
    stroke: () => soft("--soft"),
    grid: { stroke: () => soft("--line"), width: 1 },
    ticks: { show: false },
    font: "11px system-ui, sans-serif",
    ...more,
  });

  // Some air above and below; curves that never change lie in the middle.
  const roomy = (low, high) => {
    if (low == null || high == null) return [0, 1];
    const air = (high - low) * 0.08 || Math.max(Math.abs(high) * 0.1, 0.01);
    return [low - air, high + air];
  };

  const newest = (plot) => plot.setLegend({ idx: plot.data[0].length - 1 }, false);
  const table = (drawing) => [drawing.rounds, ...drawing.lines.map((line) => line.values)];

  const build = (home, drawing) => {
    const many = drawing.lines.length > MANY;
    const options = {
      width: Math.max(home.clientWidth, 240),
      height: HEIGHT,
      scales: {
        x: { time: false, range: (_, low, high) => (low === high ? [low - 1, high + 1] : [low, high]) },
        y: { range: (_, low, high) => roomy(low, high) },
      },
      series: [
        { label: words.round, value: (_, value) => (value === null || value === undefined ? "–" : String(value)) },
        ...drawing.lines.map((line) => series(line, drawing.worst, many)),
      ],
      axes: [
        axis({ space: 36, size: 26, gap: 4, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000], values: (_, ticks) => ticks.map(String) }),
        axis({ size: 46, gap: 4, space: 30 }),
      ],
      cursor: { points: { size: 7 }, drag: { x: false, y: false } },
      // With no pointer over the plot the legend reads the newest round.
      hooks: { setCursor: [(plot) => { if (plot.cursor.idx == null) newest(plot); }] },
      legend: {
        live: true,
        markers: { show: true, width: 2, dash: (_, index) => BORDERS[dash(drawing.lines[index - 1]?.style ?? 0)] },
      },
    };
    const plot = new uPlot(options, table(drawing), home);
    newest(plot);
    return plot;
  };

  const put = (home, given) => {
    const drawing = { ...given, lines: [...given.lines].sort((a, b) => height(a, given.worst) - height(b, given.worst)) };
    // Another set of lines, another worst site or another choice is another legend: built anew.
    const looks = drawing.lines.map((line) => [line.scope, line.style, visible(line, drawing.worst)]);
    const shape = JSON.stringify([drawing.worst, choice.chosen, looks]);
    const found = plots.get(home.id);
    if (found && found.shape === shape && document.contains(found.plot.root)) {
      found.plot.setData(table(drawing));
      if (found.plot.cursor.idx == null) newest(found.plot);
    } else {
      found?.plot.destroy();
      plots.set(home.id, { plot: build(home, drawing), shape });
    }
    home.dataset.rounds = String(drawing.rounds.length);
  };

  const draw = () => {
    for (const [id, { plot }] of plots) {
      if (!document.contains(plot.root)) {
        plot.destroy();
        plots.delete(id);
      }
    }
    // A small page carries its curves itself.
    for (const item of document.querySelectorAll("[data-plot]")) put(document.getElementById(item.dataset.plot), JSON.parse(item.dataset.lines));
    for (const home of document.querySelectorAll("[data-chart]")) {
      const drawing = held.charts.get(home.dataset.chart);
      if (!drawing || !drawing.rounds.length) continue;
      put(home, drawing);
      const reading = document.getElementById(`reading-${home.dataset.chart}`);
      if (reading && drawing.reading !== undefined && reading.innerHTML !== drawing.reading) reading.innerHTML = drawing.reading;
    }
  };

  // Rounds from ``first`` on are replaced by what came; a line that was not there before has gaps until then.
  const merge = (old, came, first) => {
    if (!old || first === 0) return came;
    const place = old.rounds.findIndex((number) => number >= first);
    const size = place < 0 ? old.rounds.length : place;
    const before = new Map(old.lines.map((line) => [line.scope, line.values]));
    return {
      ...came,
      rounds: [...old.rounds.slice(0, size), ...came.rounds],
      lines: came.lines.map((line) => ({
        ...line,
        values: [...(before.get(line.scope)?.slice(0, size) || new Array(size).fill(null)), ...line.values],
      })),
    };
  };

  let asking = false;
  let again = false;
  const fetchPoints = async () => {
    if (!live?.dataset.series || !document.querySelector("[data-chart]")) return;
    if (asking) { again = true; return; }
    asking = true;
    try {
      const more = held.epoch ? `&epoch=${encodeURIComponent(held.epoch)}&since=${held.done + 1}` : "";
      const answer = await fetch(live.dataset.series + more, { credentials: "same-origin" });
      if (answer.ok) {
        const told = await answer.json();
        for (const [id, came] of Object.entries(told.charts)) held.charts.set(id, merge(held.charts.get(id), came, told.from));
        for (const id of [...held.charts.keys()]) if (!(id in told.charts)) held.charts.delete(id);
        held.epoch = told.epoch;
        held.done = told.done;
        control();
        draw();
      }
    } catch {
      // The line at the top says that the connection is lost; the next round asks again.
    }
    asking = false;
    if (again) { again = false; fetchPoints(); }
  };

  // One control for all charts: a box a scope, and one scope to lift out.
  const control = () => {
    const home = document.getElementById("scopes");
    if (!home) return;
    const scopes = new Map();
    for (const drawing of held.charts.values()) for (const line of drawing.lines) if (line.kind !== "other") scopes.set(line.scope, line);
    const wanted = [...scopes.keys()].join("\n");
    if (home.dataset.built === wanted) return;
    home.dataset.built = wanted;
    home.hidden = scopes.size < 2;
    const boxes = home.querySelector(".boxes");
    const chosen = home.querySelector("#chosen");
    boxes.replaceChildren();
    chosen.replaceChildren(chosen.options[0]);
    let number = 0;
    for (const line of scopes.values()) {
      const label = document.createElement("label");
      const box = document.createElement("input");
      box.type = "checkbox";
      box.id = `scope-${number++}`;
      box.value = line.scope;
      box.checked = !choice.hidden.has(line.scope);
      label.append(box, sample(line), named(line));
      boxes.append(label);
      if (line.kind === "site") chosen.append(new Option(named(line), line.scope, false, line.scope === choice.chosen));
    }
  };
  const sample = (line) => {
    const make = (name, given) => {
      const made = document.createElementNS("http://www.w3.org/2000/svg", name);
      for (const [key, value] of Object.entries(given)) made.setAttribute(key, value);
      return made;
    };
    const tint = line.style < 0 ? "cx" : line.style === 0 ? "c0" : `c${((line.style - 1) % COLOURS) + 1}`;
    const drawn = make("svg", { class: "swatch", viewBox: "0 0 22 8", "aria-hidden": "true" });
    drawn.append(make("path", { class: `line ${tint}`, d: "M0 4H22", "stroke-width": line.style === 0 ? 3 : 2, "stroke-dasharray": DASHES[dash(line.style)].join(" ") }));
    return drawn;
  };
  const change = (event) => {
    const home = event.target.closest("#scopes");
    if (!home) return;
    if (event.target.id === "chosen") choice.chosen = event.target.value;
    if (event.target.matches("button[data-all]")) {
      for (const box of home.querySelectorAll(".boxes input")) box.checked = Boolean(event.target.dataset.all) || box.value === "global";
    }
    choice.hidden = new Set([...home.querySelectorAll(".boxes input:not(:checked)")].map((box) => box.value));
    draw();
  };
  document.addEventListener("change", change);
  document.addEventListener("click", (event) => { if (event.target.matches?.("#scopes button")) change(event); });

  const fit = () => {
    for (const { plot } of plots.values()) {
      const home = plot.root.parentElement;
      if (home && home.clientWidth > 0) plot.setSize({ width: Math.max(home.clientWidth, 240), height: HEIGHT });
    }
  };

  draw();
  fetchPoints();
  document.addEventListener("popmi:drawn", () => { control(); draw(); });
  document.addEventListener("popmi:finished", fetchPoints);
  addEventListener("resize", fit);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => plots.forEach(({ plot }) => plot.redraw(false, true)));
})();
