// Draw the curves that the page carries as data; a new round changes the data of a standing plot.
"use strict";

(() => {
  const HEIGHT = 210;
  const DASHES = [[], [6, 3], [2, 3], [8, 3, 2, 3]];
  const BORDERS = ["solid", "dashed", "dotted", "double"];
  const COLOURS = 8;
  const plots = new Map();

  const colour = (style) => {
    const name = style === 0 ? "--c0" : style < 0 ? "--cx" : `--c${((style - 1) % COLOURS) + 1}`;
    return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  };
  // Sites differ by dash as well as by colour; the global line is the thick whole one.
  const dash = (style) => (style === 0 ? 0 : style < 0 ? 2 : (style - 1) % DASHES.length);
  const soft = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const written = (value) => (value === null || value === undefined ? "–" : value.toFixed(3));

  const series = (line, worst) => ({
    label: line.scope === worst ? `${line.scope} (worst)` : line.scope,
    ...(line.scope === worst ? { class: "worst" } : {}),
    stroke: () => colour(line.style),
    width: line.style === 0 ? 3 : line.scope === worst ? 2.5 : 1.25,
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

  const build = (home, drawing) => {
    const rounds = drawing.rounds;
    const options = {
      width: Math.max(home.clientWidth, 240),
      height: HEIGHT,
      scales: {
        x: { time: false, range: (_, low, high) => (low === high ? [low - 1, high + 1] : [low, high]) },
        y: { range: (_, low, high) => roomy(low, high) },
      },
      series: [
        { label: "Round", value: (_, value) => (value === null || value === undefined ? "–" : String(value)) },
        ...drawing.lines.map((line) => series(line, drawing.worst)),
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
        markers: {
          show: true,
          width: 2,
          dash: (plot, index) => BORDERS[dash(drawing.lines[index - 1]?.style ?? 0)],
        },
      },
    };
    const plot = new uPlot(options, [rounds, ...drawing.lines.map((line) => line.values)], home);
    newest(plot);
    return plot;
  };

  const draw = () => {
    for (const [id, held] of plots) {
      if (!document.contains(held.plot.root)) {
        held.plot.destroy();
        plots.delete(id);
      }
    }
    for (const item of document.querySelectorAll("[data-plot]")) {
      const home = document.getElementById(item.dataset.plot);
      const drawing = JSON.parse(item.dataset.lines);
      // Another set of lines or another worst site is another legend: built anew.
      const shape = JSON.stringify([drawing.worst, drawing.lines.map((line) => [line.scope, line.style])]);
      const held = plots.get(home.id);
      if (held && held.shape === shape) {
        held.plot.setData([drawing.rounds, ...drawing.lines.map((line) => line.values)]);
        if (held.plot.cursor.idx == null) newest(held.plot);
      } else {
        held?.plot.destroy();
        plots.set(home.id, { plot: build(home, drawing), shape });
      }
      home.dataset.rounds = String(drawing.rounds.length);
    }
  };

  const fit = () => {
    for (const { plot } of plots.values()) {
      const home = plot.root.parentElement;
      if (home && home.clientWidth > 0) plot.setSize({ width: Math.max(home.clientWidth, 240), height: HEIGHT });
    }
  };

  draw();
  document.addEventListener("popmi:drawn", draw);
  addEventListener("resize", fit);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => plots.forEach(({ plot }) => plot.redraw(false, true)));
})();
