/**
 * The five explorables: controls, drawing and words around the mathematics of equilibria.js.
 *
 * The page holds `<div class="explorable" data-explorable="NAME">` with a picture inside. When it
 * comes near the screen, plotly.js is loaded from the site itself and the picture gives way to the
 * explorable; where scripts are off or something fails, the picture stays.
 *
 * A view is an object: `knobs` (the controls), `plots` (labels of the drawings) and
 * `draw(values, theme, moving)`, which turns settings into drawings, handles and sentences. It
 * touches no page; everything below "the page" does, and knows no mathematics.
 */
(function () {
  "use strict";

  const E = Equilibria;
  const HERE = document.currentScript.src;
  const PLOTLY = new URL("plotly/plotly.min.js", HERE).href;

  // ------------------------------------------------------------------------------ small helpers

  const clamp = (x, low, high) => Math.min(high, Math.max(low, x));
  const grid = (low, high, n) =>
    Array.from({ length: n }, (_, i) => low + ((high - low) * i) / (n - 1));
  const radians = (degrees) => (degrees * Math.PI) / 180;
  const degrees = (angle) => (angle * 180) / Math.PI;
  const last = (list) => list[list.length - 1];
  const SUPERSCRIPT = "⁰¹²³⁴⁵⁶⁷⁸⁹";

  /** A number as text: `digits` significant ones, powers of ten where it is large or small. */
  function say(x, digits = 3) {
    if (!Number.isFinite(x)) return Number.isNaN(x) ? "not a number" : x > 0 ? "∞" : "−∞";
    const size = Math.abs(x);
    if (size !== 0 && (size < 1e-3 || size >= 1e5)) {
      const [mantissa, power] = x.toExponential(digits - 1).split("e");
      const raised = [...String(Math.abs(power))].map((c) => SUPERSCRIPT[c]).join("");
      const sign = Number(power) < 0 ? "⁻" : "";
      return `${mantissa.replace("-", "−")} × 10${sign}${raised}`;
    }
    return String(Number(x.toPrecision(digits))).replace("-", "−");
  }

  const fixed = (digits) => (x) => x.toFixed(digits).replace("-", "−");

  /** A circle of this radius around (0, 0). */
  function circle(radius, n = 121) {
    const turn = grid(0, 2 * Math.PI, n);
    return { x: turn.map((t) => radius * Math.cos(t)), y: turn.map((t) => radius * Math.sin(t)) };
  }

  /** Points as a plotly trace; `mark` and `stroke` are plotly's marker and line. */
  function trace(name, x, y, { stroke, mark, ...more }) {
    const mode = [stroke && "lines", mark && "markers"].filter(Boolean).join("+");
    return {
      type: "scatter", name, x, y, mode, showlegend: name !== "", hoverinfo: "skip",
      ...(stroke ? { line: stroke } : {}), ...(mark ? { marker: mark } : {}), ...more,
    };
  }

  // ------------------------------------------------------------------------------------- cobweb

  const VERDICTS = ["converges", "oscillates", "diverges", "undecided"];

  /** Verdicts over the (a, b) plane for one link and start; kept, as dragging a or b asks again. */
  const verdictMap = (function () {
    let key = "";
    let map = null;
    return function (name, z0, moving) {
      const wanted = `${name} ${z0}`;
      if (key !== wanted && !(moving && map)) {
        const a = grid(-3, 3, 61);
        const b = grid(-2, 2, 41);
        const rows = b.map((y) =>
          a.map((x) => VERDICTS.indexOf(E.fate(name, x, y, z0, 400).verdict)),
        );
        [key, map] = [wanted, { a, b, rows }];
      }
      return map;
    };
  })();

  const cobweb = {
    title: "Picard’s iteration as a cobweb",
    knobs: [
      { id: "link", label: "link <i>φ</i>", options: Object.keys(E.LINKS), value: "tanh" },
      { id: "a", label: "self-weight <i>a</i>", min: -3, max: 3, step: 0.05, value: -2, say: fixed(2) },
      { id: "b", label: "shift <i>b</i>", min: -2, max: 2, step: 0.05, value: 0.5, say: fixed(2) },
      { id: "z0", label: "start <i>z</i>₀", min: -2.5, max: 2.5, step: 0.05, value: -1.2, say: fixed(2) },
      { id: "steps", label: "steps", min: 0, max: 60, step: 1, value: 20, say: fixed(0) },
    ],
    plays: "steps",
    plots: [
      "Cobweb: the curve φ(az + b), the diagonal, and the steps of the iteration",
      "Map of the plane of a and b: where the iteration converges, oscillates or diverges",
    ],
    draw({ link, a, b, z0, steps }, theme, moving) {
      const f = (z) => E.link(link).value(a * z + b);
      const run = E.picard(link, a, b, z0, steps);
      const end = E.fate(link, a, b, z0);
      const found = E.equilibria(link, a, b);
      const farthest = Math.max(...[z0, ...found.map((e) => e.z), ...end.z].map(Math.abs));
      const reach = [3, 6, 12].find((r) => farthest < 0.97 * r) || 3;

      const kink = a === 0 ? [] : [-b / a].filter((z) => Math.abs(z) < reach);
      const z = [...grid(-reach, reach, 301), ...kink].sort((x, y) => x - y);
      const [x, y] = [[z0], [z0]];
      for (const next of run.z.slice(1)) {
        x.push(last(x), clamp(next, -1e3, 1e3));
        y.push(clamp(next, -1e3, 1e3), clamp(next, -1e3, 1e3));
        if (Math.abs(next) >= 1e3) break;
      }
      // The slope decides on Picard's iteration when it is between −1 and 1, not only below 1.
      const draws = found.filter((e) => Math.abs(e.gain) < 1);
      const repels = found.filter((e) => !(Math.abs(e.gain) < 1));
      const dots = (name, list, colour, fill) =>
        trace(name, list.map((e) => e.z), list.map((e) => e.z), {
          mark: { size: 10, color: fill, line: { color: colour, width: 2 } },
          visible: list.length > 0,
        });
      const main = {
        x: [-reach, reach], y: [-reach, reach], xTitle: "<i>z<sub>k</sub></i>",
        yTitle: "<i>z</i><sub><i>k</i>+1</sub>",
        data: [
          trace("diagonal", [-reach, reach], [-reach, reach], { stroke: { color: theme.ink, width: 1 } }),
          trace("<i>φ</i>(<i>az</i> + <i>b</i>)", z, z.map(f), { stroke: { color: theme.blue, width: 2.5 } }),
          trace("iterates", x, y, { stroke: { color: theme.red, width: 1.6 } }),
          dots("equilibrium that attracts", draws, theme.green, theme.green),
          dots("equilibrium that repels", repels, theme.green, theme.paper),
        ],
      };

      const map = verdictMap(link, z0, moving);
      const shades = [theme.shadeBlue, theme.shadeAmber, theme.shadeRed, theme.shadeGrey];
      const side = {
        x: [-3.05, 3.05], y: [-2.05, 2.05], shape: 1.15, xTitle: "<i>a</i>", yTitle: "<i>b</i>",
        data: [
          {
            type: "heatmap", name: "", x: map.a, y: map.b, z: map.rows, zmin: -0.5, zmax: 3.5,
            colorscale: shades.flatMap((c, i) => [[i / 4, c], [(i + 1) / 4, c]]),
            showscale: false, hoverinfo: "skip",
          },
        ],
        areas: VERDICTS.map((name, i) => [name === "undecided" ? "too slow to tell" : name, shades[i], i])
          .filter(([, , i]) => i < 3 || map.rows.some((row) => row.includes(3))),
      };

      const near = end.verdict === "converges" &&
        found.reduce((best, e) => (Math.abs(e.z - end.z[0]) < Math.abs(best.z - end.z[0]) ? e : best));
      const words = {
        converges: () =>
          `<b>Converges</b> to <i>z</i> = ${say(end.z[0], 4)}. The slope there is ` +
          `<i>aφ</i>′ = ${say(near.gain)}: ` +
          (near.gain < 0 ? "each step overshoots, and" : "steps come from one side, and") +
          ` near the end the error is multiplied by ${say(Math.abs(near.gain))} a step.`,
        oscillates: () =>
          `<b>Oscillates</b> in the end between <i>z</i> = ${say(end.z[0], 4)} and ` +
          `${say(end.z[1], 4)}.` +
          (found.length === 1 ? ` The equilibrium <i>z</i> = ${say(found[0].z, 4)} exists, with ` +
            `slope <i>aφ</i>′ = ${say(found[0].gain)}.` : ""),
        diverges: () =>
          "<b>Diverges</b>: the iterates leave every bound." +
          (found.length === 1 ? ` The equilibrium <i>z</i> = ${say(found[0].z, 4)} exists, with ` +
            `slope <i>aφ</i>′ = ${say(found[0].gain)}.` : ""),
        undecided: () =>
          `<b>Undecided</b> after ${end.steps} steps, at <i>z</i> = ${say(end.z[0], 4)}: it is ` +
          "too slow to tell.",
      };
      const stable = draws.length;
      const count = found.length === 0 ? "There is no equilibrium." :
        found.length === 1 ? "" : `There are ${found.length} equilibria, ${stable} of which ` +
          `attract${stable === 1 ? "s" : ""}.`;
      const left = run.outcome === "finished"
        ? `After ${steps} steps <i>z</i> = ${say(last(run.z), 4)}, and the residual ` +
          `|<i>φ</i>(<i>az</i> + <i>b</i>) − <i>z</i>| is ${say(last(run.residual))}.`
        : `After ${run.z.length - 1} steps the next iterate is no finite number.`;
      return {
        plots: [main, side],
        handles: [
          { id: "z0", plot: 0, x: z0, y: z0, colour: theme.red,
            move: (p, q) => ({ z0: (p + q) / 2 }) },
          { id: "ab", plot: 1, x: a, y: b, colour: theme.ink, move: (p, q) => ({ a: p, b: q }) },
        ],
        said: [words[end.verdict](), [count, left].filter(Boolean).join(" ")],
      };
    },
  };

  // ------------------------------------------------------------------------------------- sphere

  const LONG = [0, ...grid(-6, 0, 160).map((p) => 10 ** p)];

  /** Flow to its end, with records dense in the beginning: time in units of the slowest rate. */
  function fullFlow(theta, S, A) {
    const slow = E.hessianSpectrum(E.sphereLimit(theta, A), S, A)[0];
    return E.flow(theta, S, A, LONG.map((t) => (20 / slow) * t));
  }

  /** The part of a run within `far` of the origin; a path beyond it is cut there. */
  function within(points, far) {
    const out = points.findIndex((p) => Math.hypot(...p) > far);
    return out < 0 ? points : points.slice(0, out + 1);
  }

  const sphere = {
    title: "Training on a sphere",
    knobs: [
      { id: "space", label: "inputs", options: ["d = 1: a circle", "d = 2: a sphere"], value: "d = 1: a circle" },
      { id: "angle", label: "start, angle", min: -175, max: 175, step: 1, value: 150, say: (x) => `${fixed(0)(x)}°`, when: (v) => v.space[4] === "1" },
      { id: "lat", label: "start, latitude", min: -85, max: 85, step: 1, value: 35, say: (x) => `${fixed(0)(x)}°`, when: (v) => v.space[4] === "2" },
      { id: "lon", label: "start, longitude", min: -180, max: 180, step: 1, value: -100, say: (x) => `${fixed(0)(x)}°`, when: (v) => v.space[4] === "2" },
      { id: "r", label: "radius <i>r</i>₀", min: 0.2, max: 2, step: 0.05, value: 1, say: fixed(2) },
      { id: "eta", label: "step <i>η</i>", min: -2, max: 0.7, step: 0.05, value: -1.3, scale: (x) => 10 ** x, say: (x) => say(x, 2) },
      { id: "steps", label: "steps", min: 1, max: 120, step: 1, value: 60, say: fixed(0) },
      { id: "A1", label: "target <i>A</i>₁", min: -2, max: 2, step: 0.1, value: 1, say: fixed(1) },
      { id: "A2", label: "target <i>A</i>₂", min: -2, max: 2, step: 0.1, value: -0.5, say: fixed(1), when: (v) => v.space[4] === "2" },
      { id: "turn", label: "turn the view", min: -180, max: 180, step: 5, value: -60, say: (x) => `${fixed(0)(x)}°`, when: (v) => v.space[4] === "2" },
    ],
    plays: "steps",
    plots: [
      "Paths of flow and descent, and the circle or sphere on which they start",
      "Squared radius over the steps",
    ],
    draw(v, theme) {
      const flat = v.space[4] === "1";
      const A = flat ? [v.A1] : [v.A1, v.A2];
      const S = flat ? [[1]] : [[1, 0], [0, 0.25]];
      // A point of the space (u, P), P = 1 − a, on the start's sphere; and how it is looked at.
      const [lat, lon, turn, tilt] = [v.lat, v.lon, v.turn, 20].map(radians);
      const start = flat
        ? [v.r * Math.cos(radians(v.angle)), v.r * Math.sin(radians(v.angle))]
        : [Math.cos(lat) * Math.cos(lon), Math.cos(lat) * Math.sin(lon), Math.sin(lat)].map((x) => v.r * x);
      const right = [-Math.sin(turn), Math.cos(turn), 0];
      const up = [-Math.sin(tilt) * Math.cos(turn), -Math.sin(tilt) * Math.sin(turn), Math.cos(tilt)];
      const ahead = [Math.cos(tilt) * Math.cos(turn), Math.cos(tilt) * Math.sin(turn), Math.sin(tilt)];
      const along = (axis, p) => axis.reduce((sum, x, i) => sum + x * p[i], 0);
      const look = (p) => (flat ? [...p, 1] : [along(right, p), along(up, p), along(ahead, p)]);
      /** Two traces: what is in front, and, thin and faint, what is behind the plane of the page. */
      const seen = (name, points, { stroke, mark, hidden = 0.35 }) => {
        const shown = points.map(look);
        return [true, false].map((front) => {
          const [x, y] = [[], []];
          shown.forEach(([p, q, depth], i) => {
            const mine = depth >= 0 === front;
            const joins = i > 0 && shown[i - 1][2] >= 0 === front;
            x.push(mine || (stroke && joins) ? p : null);
            y.push(mine || (stroke && joins) ? q : null);
          });
          return trace(front ? name : "", x, y, {
            stroke, mark: mark && { ...mark, color: front ? mark.color : theme.paper, line: { color: mark.color, width: 1 } },
            opacity: front ? 1 : hidden, connectgaps: false,
            visible: x.some((p) => p !== null),
          });
        });
      };

      const reach = 2.3;
      const data = [];
      const wire = { stroke: { color: theme.faint, width: 0.8 }, hidden: 0.45 };
      if (flat) {
        const { x, y } = circle(v.r);
        data.push(trace("circle of the flow", x, y, { stroke: { color: theme.faint, width: 2 } }));
        data.push(trace("<i>a</i> = 1: no equilibrium", [-9, 9], [0, 0], { stroke: { color: theme.amber, width: 2, dash: "dot" } }));
      } else {
        const round = grid(0, 2 * Math.PI, 73);
        for (const t of [-60, -30, 30, 60].map(radians)) {
          data.push(...seen("", round.map((s) => [Math.cos(t) * Math.cos(s), Math.cos(t) * Math.sin(s), Math.sin(t)].map((x) => v.r * x)), wire));
        }
        for (const s of [0, 30, 60, 90, 120, 150].map(radians)) {
          data.push(...seen("", round.map((t) => [Math.cos(t) * Math.cos(s), Math.cos(t) * Math.sin(s), Math.sin(t)].map((x) => v.r * x)), wire));
        }
        const { x, y } = circle(v.r);
        data.push(trace("sphere of the flow", x, y, { stroke: { color: theme.faint, width: 1.6 } }));
        data.push(...seen("<i>a</i> = 1: no equilibrium", round.map((s) => [v.r * Math.cos(s), v.r * Math.sin(s), 0]), { stroke: { color: theme.amber, width: 2, dash: "dot" } }));
      }
      const ray = 9 / Math.hypot(...A, 1);
      const ends = [-ray, ray].map((P) => look([...A.map((x) => x * P), P]));
      data.push(trace("minimisers", ends.map((p) => p[0]), ends.map((p) => p[1]), { stroke: { color: theme.ink, width: 1.6, dash: "dash" } }));

      const axes = flat
        ? { xTitle: "<i>u</i>", yTitle: "1 − <i>a</i>" }
        : { xTitle: "", yTitle: "", bare: true };
      const at = look(start);
      const handle = {
        id: "start", plot: 0, x: at[0], y: at[1], colour: theme.blue,
        move(p, q) {
          if (flat) return { angle: degrees(Math.atan2(q, p)), r: Math.hypot(p, q) };
          const far = Math.min(1, (0.999 * v.r) / Math.hypot(p, q));
          const [x, y] = [p * far, q * far];
          const depth = Math.sqrt(v.r * v.r - x * x - y * y);
          const [u1, u2, P] = [0, 1, 2].map((i) => x * right[i] + y * up[i] + depth * ahead[i]);
          return { lat: degrees(Math.asin(P / v.r)), lon: degrees(Math.atan2(u2, u1)) };
        },
      };
      const main = { x: [-reach, reach], y: [-reach, reach], ...axes, data };
      const P0 = last(start);
      if (Math.abs(P0) < 1e-9) {
        return {
          plots: [main, { x: [0, 1], y: [0, 1], shape: 1.15, xTitle: "step", yTitle: "squared radius", data: [] }],
          handles: [handle],
          said: ["<b>No equilibrium.</b> The start lies on <i>a</i> = 1: the model has no equilibrium there, and nothing can be trained. Move it a little."],
        };
      }

      const theta = { a: 1 - P0, u: start.slice(0, -1) };
      const flow = fullFlow(theta, S, A);
      const run = E.descent(theta, S, A, v.eta, v.steps);
      const point = (t) => [...t.u, 1 - t.a];
      const path = within(run.theta.map(point), 40);
      data.push(...seen("flow", flow.theta.map(point), { stroke: { color: theme.blue, width: 3 } }));
      data.push(...seen("descent", path, { stroke: { color: theme.red, width: 1 }, mark: { color: theme.red, size: 5 } }));
      const r2 = run.theta.map(E.invariant);
      const final = Math.sqrt(last(r2));
      const outer = circle(final);
      data.push(trace(flat ? "circle of the last step" : "sphere of the last step", outer.x, outer.y, { stroke: { color: theme.red, width: 1.2, dash: "dash" }, visible: final < 40 }));
      const limit = look(point(last(flow.theta)));
      data.push(trace("", [limit[0]], [limit[1]], { mark: { color: theme.blue, size: 9 } }));
      const stop = look(last(path));
      data.push(trace("", [stop[0]], [stop[1]], { mark: { color: theme.red, size: 9 } }));

      const r02 = E.invariant(theta);
      const predicted = run.pushed.map((p) => r02 + p);
      const top = Math.max(...r2, r02);
      const side = {
        x: [-0.03 * v.steps, 1.03 * v.steps], y: [0, 1.12 * top], shape: 1.15, xTitle: "step <i>k</i>",
        yTitle: "squared radius",
        data: [
          trace("descent, measured", run.k, r2, { mark: { color: theme.red, size: 5 } }),
          trace("<i>r</i>₀² + <i>η</i>² Σ|∇<i>L</i>|²", run.k, predicted, { stroke: { color: theme.ink, width: 1.4, dash: "dash" } }),
          trace("flow", [0, v.steps], [r02, r02], { stroke: { color: theme.blue, width: 2.5 } }),
        ],
      };
      const off = Math.max(...r2.map((x, i) => Math.abs(x / predicted[i] - 1)));
      const grown = last(r2) / r02 - 1;
      const crossed = run.crossings.length;
      const edge = E.edgeRadius(v.eta, S, A);
      const settled = last(run.loss) < 1e-6 * run.loss[0];
      const drift = Math.max(...flow.theta.map((t) => Math.abs(E.invariant(t) / r02 - 1)));
      return {
        plots: [main, side],
        handles: [handle],
        said: [
          `<b>${grown < 0.02 ? "Descent stays close to the" : grown < 0.5 ? "Descent spirals outward from the" : "Descent leaves the"} ${flat ? "circle" : "sphere"}</b>: ` +
            `its radius grows from ${say(Math.sqrt(r02))} to ${say(final)}, ` +
            (grown < 1 ? `the squared radius by ${say(100 * grown, 2)} %.` : `the squared radius by a factor of ${say(1 + grown)}.`) +
            (crossed ? ` It jumps across <i>a</i> = 1 ${crossed === 1 ? "once" : `${crossed} times`}.` : "") +
            (run.outcome === "finished" ? "" : ` After ${last(run.k)} steps the loss is no finite number.`) +
            (path.length < run.theta.length || final > reach * 1.4 ? " It has left the picture." : ""),
          `Flow keeps its squared radius to ${say(drift, 1)} (relative). Descent’s is <i>r</i>₀² + <i>η</i>² Σ|∇<i>L</i>|² to ${say(off, 1)}. ` +
            `Loss after ${last(run.k)} steps: ${say(last(run.loss))}` +
            (settled ? ". " : ", not yet at rest. ") +
            `With this step the minimisers within ${say(edge)} of the centre repel descent.`,
        ],
      };
    },
  };

  // ---------------------------------------------------------------------------------- landscape

  const LEVELS = [-3, -2, -1.5, -1, -0.5, 0, 0.5, 1, 2].map((p) => 10 ** p);

  const landscape = {
    title: "The loss landscape and its singular line",
    knobs: [
      { id: "A", label: "target <i>A</i>", min: -3, max: 3, step: 0.1, value: 1, say: fixed(1) },
      { id: "a", label: "start <i>a</i>₀", min: -1.3, max: 3.3, step: 0.05, value: -0.6, say: fixed(2) },
      { id: "u", label: "start <i>u</i>₀", min: -2.3, max: 2.3, step: 0.05, value: -1.2, say: fixed(2) },
      { id: "eta", label: "step <i>η</i>", min: -2, max: 1, step: 0.05, value: -0.5, scale: (x) => 10 ** x, say: (x) => say(x, 2) },
      { id: "steps", label: "steps", min: 1, max: 200, step: 1, value: 40, say: fixed(0) },
    ],
    plays: "steps",
    plots: [
      "Levels of the loss over the plane of a and u, the singular line, the minimisers, and the paths of flow and descent",
      "Loss of descent and of the flow over the steps",
    ],
    draw(v, theme) {
      const [low, high, top] = [-1.3, 3.3, 2.3];
      // {L ≤ level} is a double wedge with its tip at (1, 0): drawn exactly, largest level first.
      const wedge = (level) => {
        const [f0, f1] = E.levelSlopes(level, 1, v.A);
        const turn = grid(Math.atan(f0), Math.atan(f1), 9);
        const [x, y] = [[], []];
        for (const side of [1, -1]) {
          x.push(1, ...turn.map((t) => 1 - side * 9 * Math.cos(t)));
          y.push(0, ...turn.map((t) => side * 9 * Math.sin(t)));
        }
        return [x, y];
      };
      const shade = (i) => theme.levels(i / LEVELS.length);
      const data = [...LEVELS].reverse().map((level, j) => {
        const [x, y] = wedge(level);
        return trace("", x, y, {
          stroke: { width: 0.6, color: theme.faint }, fill: "toself",
          fillcolor: shade(LEVELS.length - 1 - j),
        });
      });
      const ink = { color: theme.ink, width: 2, dash: "dash" };
      data.push(trace("minimisers", [low, high], [(1 - low) * v.A, (1 - high) * v.A], { stroke: ink }));
      data.push(trace("<i>a</i> = 1: no equilibrium", [1, 1], [-top, top], { stroke: { color: theme.amber, width: 2.5, dash: "dot" } }));
      const main = {
        x: [low, high], y: [-top, top], xTitle: "<i>a</i>", yTitle: "<i>u</i>", data, plain: true,
        ground: shade(LEVELS.length),
        ramp: { label: "<i>L</i>", from: "10⁻³", to: "100", colours: LEVELS.map((_, i) => shade(i)) },
      };
      const handle = {
        id: "start", plot: 0, x: v.a, y: v.u, colour: theme.blue, move: (p, q) => ({ a: p, u: q }),
      };
      const lossPlot = { x: [0, v.steps], y: [-12, 2], log: true, shape: 1.15, xTitle: "step <i>k</i>", yTitle: "loss <i>L</i>", data: [] };
      if (Math.abs(1 - v.a) < 1e-9) {
        return {
          plots: [main, lossPlot], handles: [handle],
          said: ["<b>No equilibrium.</b> At <i>a</i> = 1 the equation <i>z</i> = <i>z</i> + <i>ux</i> has no solution (or, for <i>u</i> = 0, all of them). Move the start to one side."],
        };
      }
      const [theta, S, A] = [{ a: v.a, u: [v.u] }, [[1]], [v.A]];
      const flow = fullFlow(theta, S, A);
      const run = E.descent(theta, S, A, v.eta, v.steps);
      const beside = E.flow(theta, S, A, grid(0, v.eta * v.steps, Math.min(v.steps, 100) + 1));
      const path = within(run.theta.map((t) => [t.a, t.u[0]]), 60);
      const xy = (points) => [points.map((p) => p[0]), points.map((p) => p[1])];
      data.push(trace("flow", ...xy(flow.theta.map((t) => [t.a, t.u[0]])), { stroke: { color: theme.blue, width: 3 } }));
      data.push(trace("descent", ...xy(path), { stroke: { color: theme.red, width: 1.2 }, mark: { color: theme.red, size: 5 } }));
      data.push(trace("", [1], [0], { mark: { size: 9, color: theme.paper, line: { color: theme.ink, width: 1.5 } } }));
      const limit = last(flow.theta);
      data.push(trace("", [limit.a], [limit.u[0]], { mark: { color: theme.blue, size: 11, symbol: "star" } }));
      data.push(trace("", [last(path)[0]], [last(path)[1]], { mark: { color: theme.red, size: 10 } }));

      const bottom = (L) => Math.max(L, 1e-17);
      const finite = [...run.loss, ...beside.loss].map(bottom);
      const ceiling = Math.log10(Math.max(...finite)) + 0.5;
      const floor = Math.max(-16, Math.min(ceiling - 3, Math.log10(Math.min(...finite)) - 0.5));
      Object.assign(lossPlot, {
        x: [-0.03 * v.steps, 1.03 * v.steps], y: [floor, ceiling],
        data: [
          trace("flow, at time <i>kη</i>", beside.t.map((t) => t / v.eta), beside.loss.map(bottom), { stroke: { color: theme.blue, width: 3 } }),
          trace("descent", run.k, run.loss.map(bottom), { stroke: { color: theme.red, width: 1 }, mark: { color: theme.red, size: 5 } }),
        ],
      });
      const crossed = run.crossings;
      const r0 = Math.sqrt(E.invariant(theta));
      const rises = run.loss.some((L, k) => k > 0 && L > run.loss[k - 1] * (1 + 1e-9) && L > 1e-14);
      const goal = last(run.theta);
      return {
        plots: [main, lossPlot],
        handles: [handle],
        said: [
          (crossed.length
            ? `<b>Descent jumps across the singular line</b> ${crossed.length === 1 ? "" : `${crossed.length} times, first `}at step ${crossed[0]}; the flow never does.`
            : rises ? "<b>The loss rises on the way</b>: the step is too long for this place."
              : "<b>The loss falls at every step.</b>") +
            ` After ${last(run.k)} steps <i>a</i> = ${say(goal.a)}, <i>u</i> = ${say(goal.u[0])}, ` +
            `<i>L</i> = ${say(last(run.loss))}.` +
            (run.outcome === "finished" ? "" : " There the next loss is no finite number.") +
            (path.length < run.theta.length || Math.abs(goal.u[0]) > top || goal.a < low || goal.a > high ? " The path has left the picture." : ""),
          `The flow walks on the circle of radius ${say(r0)} around (1, 0) and ends at ` +
            `<i>a</i> = ${say(limit.a)}, <i>u</i> = ${say(limit.u[0])}. ` +
            `Descent ends ${say(Math.sqrt(E.invariant(goal)))} from (1, 0).`,
        ],
      };
    },
  };

  // --------------------------------------------------------------------------------------- link

  const link = {
    title: "The learned link and its fold",
    knobs: [
      { id: "link", label: "link <i>φ</i>", options: Object.keys(E.LINKS), value: "tanh" },
      { id: "share", label: "self-weight <i>aβ</i>", min: -8, max: 3, step: 0.05, value: 1.5, say: fixed(2) },
      { id: "s", label: "index <i>s</i>", min: -4, max: 4, step: 0.05, value: 0.1, say: fixed(2) },
    ],
    plots: [
      "All equilibria z against the index s: stable and unstable branches, and folds",
      "The equation at this index: the curve φ(az + s) and the diagonal",
    ],
    draw(v, theme) {
      const phi = E.link(v.link);
      const a = v.share / phi.beta;
      const found = E.equilibria(v.link, a, v.s);
      const folds = E.folds(v.link, a);
      // The curve u ↦ (u − a φ(u), φ(u)), between the outermost equilibria at the window's ends.
      const edges = [-4.2, 4.2].flatMap((s) => E.equilibria(v.link, a, s)).map((e) => e.u);
      const all = [...edges, ...folds.map((f) => f.u), ...found.map((e) => e.u)];
      const ends = all.length ? [Math.min(...all), Math.max(...all)] : [0, 0];
      const room = edges.length < 2 || ends[1] - ends[0] < 1e-6 ? 6 : 0;
      const u = all.length
        ? [...grid(ends[0] - room, ends[1] + room, 801), ...folds.map((f) => f.u), 0].sort((x, y) => x - y)
        : [];
      const s = u.map((x) => x - a * phi.value(x));
      const z = u.map(phi.value);
      // The gain between two neighbours says whether the piece between them is stable.
      const stable = u.map((x, i) => a * phi.derivative(i + 1 < u.length ? (x + u[i + 1]) / 2 : x) < 1);
      const branch = (wanted) => u.map((_, i) => stable[i] === wanted || (i > 0 && stable[i - 1] === wanted));
      const part = (wanted) => [s, z].map((list) => { const keep = branch(wanted); return list.map((x, i) => (keep[i] ? x : null)); });
      const inside = z.filter((_, i) => Math.abs(s[i]) <= 4);
      const shown = [...inside, ...found.map((e) => e.z), phi.value(-1.5), phi.value(1.5)].filter((x) => Math.abs(x) <= 8);
      const [low, high] = [Math.min(...shown), Math.max(...shown)];
      const pad = 0.12 * (high - low);
      const zs = [low - pad, high + pad];
      const dots = (list, colour, name, fill) =>
        trace(name, list.map((e) => e.x), list.map((e) => e.z), {
          mark: { symbol: "square", size: 9, color: fill, line: { color: colour, width: 2 } },
          visible: list.length > 0,
        });
      const good = found.filter((e) => e.stable);
      const bad = found.filter((e) => !e.stable);
      const plain = grid(-4, 4, 201);
      const main = {
        x: [-4, 4], y: zs, shape: 0.78, xTitle: "index <i>s</i>", yTitle: "equilibria <i>z</i>",
        data: [
          trace("<i>φ</i> itself (<i>a</i> = 0)", plain, plain.map(phi.value), { stroke: { color: theme.faint, width: 1.4 } }),
          trace("this <i>s</i>", [v.s, v.s], [zs[0] - 9, zs[1] + 9], { stroke: { color: theme.faint, width: 1, dash: "dot" } }),
          trace("stable", ...part(true), { stroke: { color: theme.blue, width: 3 }, visible: stable.includes(true) && u.length > 0 }),
          trace("unstable", ...part(false), { stroke: { color: theme.red, width: 2.5, dash: "dot" }, visible: stable.includes(false) && u.length > 0 }),
          trace("fold", folds.map((f) => f.s), folds.map((f) => f.z), { mark: { size: 9, color: theme.ink }, visible: folds.some((f) => Math.abs(f.s) <= 4) }),
          dots(good.map((e) => ({ x: v.s, z: e.z })), theme.blue, "", theme.blue),
          dots(bad.map((e) => ({ x: v.s, z: e.z })), theme.red, "", theme.paper),
        ],
      };
      const wide = [zs[0] - pad, zs[1] + pad];
      const kink = a === 0 ? [] : [-v.s / a].filter((x) => x > wide[0] && x < wide[1]);
      const zz = [...grid(wide[0], wide[1], 301), ...kink].sort((x, y) => x - y);
      const side = {
        x: wide, y: wide, xTitle: "<i>z</i>", yTitle: "",
        data: [
          trace("<i>z</i>", wide, wide, { stroke: { color: theme.ink, width: 1 } }),
          trace("<i>φ</i>(<i>az</i> + <i>s</i>)", zz, zz.map((x) => phi.value(a * x + v.s)), { stroke: { color: theme.green, width: 2.5 } }),
          dots(good.map((e) => ({ x: e.z, z: e.z })), theme.blue, "stable", theme.blue),
          dots(bad.map((e) => ({ x: e.z, z: e.z })), theme.red, "unstable", theme.paper),
        ],
      };
      const unique = E.admissible(v.link, a);
      const list = (items) => items.join(items.length === 2 ? " and " : ", ");
      const one = unique && found.length === 1;
      const kinds = found.map((e) => `${say(e.z)}${e.stable ? "" : " (unstable)"}`);
      const first = one
        ? `<b>One equilibrium</b>, <i>z</i> = <i>h<sub>a</sub></i>(<i>s</i>) = ${say(found[0].z, 4)}. The slope of the learned link there is <i>D</i> = ${say(E.slope(v.link, a, found[0].u))}.`
        : found.length === 0
          ? "<b>No equilibrium</b> at this index."
          : `<b>${found.length === 1 ? "One equilibrium" : `${found.length} equilibria`}</b> at this index: <i>z</i> = ${list(kinds)}.`;
      const bounds = [phi.alpha, phi.beta].map((slope) => slope / (1 - a * slope));
      const second = unique
        ? `<i>a</i> = ${say(a)}, so <i>aβ</i> &lt; 1: exactly one equilibrium for every <i>s</i>. All slopes of <i>h<sub>a</sub></i> lie between ${say(bounds[0])} and ${say(bounds[1])}.`
        : folds.length
          ? `<i>a</i> = ${say(a)}: the curve folds at <i>s</i> = ${list(folds.map((f) => say(Math.abs(f.s) < 1e-12 ? 0 : f.s, 4)))}, where a stable and an unstable equilibrium meet and vanish.`
          : stable.includes(true)
            ? `<i>a</i> = ${say(a)}, so <i>aβ</i> = 1: the curve is vertical where <i>φ</i>′ is largest, and folds as soon as <i>a</i> grows.`
            : `<i>a</i> = ${say(a)}: 1 − <i>aφ</i>′ is nowhere positive, so there is no stable branch${all.length ? "" : ", and no equilibrium but for one <i>s</i>"}.`;
      const grip = good[0] || found[0] || { z: clamp(0, zs[0], zs[1]) };
      return {
        plots: [main, side],
        handles: [{ id: "s", plot: 0, x: v.s, y: grip.z, colour: theme.blue, move: (p) => ({ s: p }) }],
        said: [first, second],
      };
    },
  };

  // --------------------------------------------------------------------------------------- rate

  const rate = {
    title: "Measured, promised and sharp rate",
    knobs: [
      { id: "kappa", label: "condition number <i>κ</i>(<i>S</i>)", min: 0, max: 1.5, step: 0.05, value: 0.6, scale: (x) => 10 ** x, say: (x) => say(x, 3) },
      { id: "angle", label: "axis of <i>S</i>", min: 0, max: 180, step: 5, value: 30, say: (x) => `${fixed(0)(x)}°` },
      { id: "A1", label: "target <i>A</i>₁", min: -2, max: 2, step: 0.05, value: 1, say: fixed(2) },
      { id: "A2", label: "target <i>A</i>₂", min: -2, max: 2, step: 0.05, value: 0.5, say: fixed(2) },
      { id: "F1", label: "start <i>F</i>₁", min: -2, max: 2, step: 0.05, value: 0, say: fixed(2) },
      { id: "F2", label: "start <i>F</i>₂", min: -2, max: 2, step: 0.05, value: 0, say: fixed(2) },
      { id: "a", label: "start <i>a</i>₀", min: -2, max: 0.95, step: 0.05, value: 0, say: fixed(2) },
      { id: "times", label: "step, 4<i>Λη</i>", min: 0, max: 12, step: 0.25, value: 4, scale: (x) => 2 ** x, say: (x) => say(x, 4) },
    ],
    plots: [
      "Loss over time on a logarithmic axis: flow, descent, the proved bound and the sharp slope",
      "The plane of equilibrium maps: levels of the loss around the target, and the path of the flow",
    ],
    draw(v, theme) {
      const S = E.moment(v.kappa, radians(v.angle));
      const A = [v.A1, v.A2];
      const P = 1 - v.a;
      const theta = { a: v.a, u: [v.F1 * P, v.F2 * P] };
      const L0 = E.loss(theta, S, A);
      const reach = 2.3;
      // {L = level}: F = A + √(2 level) S^(−½) (a unit circle).
      const half = E.root(S);
      const det = half[0][0] * half[1][1] - half[0][1] ** 2;
      const level = (L) => {
        const { x, y } = circle(Math.sqrt(2 * L), 73);
        return [
          x.map((p, i) => v.A1 + (half[1][1] * p - half[0][1] * y[i]) / det),
          x.map((p, i) => v.A2 + (half[0][0] * y[i] - half[0][1] * p) / det),
        ];
      };
      const ellipses = [0.003, 0.03, 0.1, 0.3, 1, 3].map((L) => trace("", ...level(L), { stroke: { color: theme.faint, width: 1 } }));
      const side = { x: [-reach, reach], y: [-reach, reach], xTitle: "<i>F</i>₁", yTitle: "<i>F</i>₂", data: ellipses };
      const handles = [
        { id: "start", plot: 1, x: v.F1, y: v.F2, colour: theme.blue, move: (p, q) => ({ F1: p, F2: q }) },
        { id: "target", plot: 1, x: v.A1, y: v.A2, colour: theme.green, move: (p, q) => ({ A1: p, A2: q }) },
      ];
      const main = { x: [0, 1], y: [-8, 0.6], log: true, shape: 0.8, xTitle: "time <i>t</i>", yTitle: "<i>L</i>/<i>L</i>₀", data: [] };
      if (L0 < 1e-20) {
        side.data.push(trace("levels of <i>L</i>", [null], [null], { stroke: { color: theme.faint, width: 1 } }));
        return { plots: [main, side], handles, said: ["<b>Already there.</b> The start is a minimiser: the loss is 0 and nothing moves. Drag start and target apart."] };
      }
      const mu = E.plConstant(theta, S);
      const sharp = E.hessianSpectrum(E.sphereLimit(theta, A), S, A)[0];
      // The picture ends where the flow's loss has fallen by 1e-8, at the latest after the time that
      // the sharp rate needs for it.
      const long = Math.log(1e8) / (2 * sharp);
      const rough = E.flow(theta, S, A, grid(0, long, 81));
      const fallen = rough.loss.findIndex((L) => L < 1e-8 * L0);
      const T = fallen > 0 ? rough.t[fallen] : long;
      const flow = E.flow(theta, S, A, grid(0, T, 121));
      const Lam = E.smoothness(theta, S, A);
      const safe = 1 / (4 * Lam);
      const eta = v.times * safe;
      const wanted = Math.ceil(T / eta);
      const steps = Math.min(wanted, 20000);
      const run = E.descent(theta, S, A, eta, steps, Math.max(1, Math.floor(steps / 60)));
      const normal = (L) => Math.max(L / L0, 1e-17);
      const measured = E.measuredRate(flow.t, flow.loss, 1e-9);
      const endL = normal(last(flow.loss));
      const t = grid(0, T, 61);
      const muDescent = E.descentRate(theta, S, A, eta);
      const proved = v.times <= 1;
      const highest = Math.log10(Math.max(1, ...run.loss.map(normal)));
      main.x = [-0.02 * T, 1.02 * T];
      main.y = [-8, Math.min(highest, 4) + 0.6];
      main.data = [
        trace("bound e<sup>−2<i>μt</i></sup>", t, t.map((x) => Math.exp(-2 * mu * x)), { stroke: { color: theme.ink, width: 1.8, dash: "dash" } }),
        trace("sharp slope", t, t.map((x) => Math.max(endL * Math.exp(-2 * sharp * (x - T)), 1e-300)), { stroke: { color: theme.green, width: 2.5, dash: "dot" } }),
        trace("flow", flow.t, flow.loss.map(normal), { stroke: { color: theme.blue, width: 3 } }),
        trace("descent, at <i>t</i> = <i>kη</i>", run.k.map((k) => k * eta), run.loss.map(normal), { stroke: { color: theme.red, width: 0.8 }, mark: { color: theme.red, size: 5 } }),
      ];
      const path = flow.theta.map(E.equilibriumMap);
      side.data.push(
        trace("levels of <i>L</i>", [null], [null], { stroke: { color: theme.faint, width: 1 } }),
        trace("path of the flow", path.map((f) => f[0]), path.map((f) => f[1]), { stroke: { color: theme.blue, width: 3 } }),
      );
      side.grips = [["start", theme.blue], ["target", theme.green]];
      const mean = Math.log(flow.loss[0] / last(flow.loss)) / (2 * T);
      const worse = run.loss.some((L, i) => i > 0 && L > run.loss[i - 1] * (1 + 1e-9) && L > 1e-15 * L0);
      const above = run.loss.some((L, i) => Math.log(L / L0) > run.k[i] * Math.log1p(-eta * muDescent) + 1e-9);
      const quotient = sharp / mu;
      return {
        plots: [main, side],
        handles,
        said: [
          `Promised <i>μ</i> = <b>${say(mu)}</b>, sharp <i>μ</i><sub>sharp</sub> = <b>${say(sharp)}</b>, measured at the end of the flow <b>${say(measured)}</b> (mean over the run ${say(mean)}). ` +
            (quotient > 10 ? `The promise is ${say(quotient, 2)} times too cautious.` : quotient < 1.25 ? "The promise is nearly attained." : `The flow is ${say(quotient, 2)} times as fast as promised.`),
          `Descent with <i>η</i> = ${say(eta)}, ${v.times === 1 ? "the largest step that is proved safe" : `${say(v.times, 4)} times the largest step that is proved safe`}: ` +
            (run.outcome !== "finished" ? `after ${last(run.k)} steps the loss is no finite number.`
              : proved ? `after ${run.k[run.k.length - 1]} steps the loss is below its bound (1 − <i>ημ</i>′)<sup><i>k</i></sup><i>L</i>₀, as it must be.`
                : worse ? "the loss does not fall at every step shown."
                  : above ? "the loss falls, but not as fast as the bound for small steps would say." : "nothing is promised, and yet the loss falls.") +
            (steps < wanted ? ` Shown are the first ${steps} of ${wanted} steps.` : ""),
        ],
      };
    },
  };

  const VIEWS = { cobweb, sphere, landscape, link, rate };

  // ---------------------------------------------------------------------------------- the page

  const MARGIN = { l: 60, r: 10, t: 10, b: 44 };
  const BARE = { l: 10, r: 10, t: 10, b: 10 };

  /** Colours of the page's present theme; hues are Okabe and Ito's, lighter in the dark. */
  function currentTheme() {
    const css = getComputedStyle(document.documentElement);
    const own = (name, otherwise) => css.getPropertyValue(name).trim() || otherwise;
    const dark = document.documentElement.dataset.theme === "dark";
    const mix = (from, to) => (share) =>
      `rgb(${from.map((x, i) => Math.round(x + (to[i] - x) * share)).join(",")})`;
    return dark
      ? {
          ink: own("--pst-color-text-base", "#ced6dd"), paper: own("--pst-color-background", "#14181e"),
          faint: "#8b96a3", grid: "#333a44", blue: "#56b4e9", red: "#ff8a4c", green: "#2fc99a", amber: "#f0b93a",
          shadeBlue: "#1b3c54", shadeAmber: "#8a7028", shadeRed: "#cf8d75", shadeGrey: "#5a6068",
          levels: mix([22, 27, 34], [98, 108, 122]),
        }
      : {
          ink: own("--pst-color-text-base", "#323232"), paper: own("--pst-color-background", "#ffffff"),
          faint: "#7c8794", grid: "#dddddd", blue: "#0072b2", red: "#d55e00", green: "#009e73", amber: "#b27700",
          shadeBlue: "#dcecf7", shadeAmber: "#efc65a", shadeRed: "#a9604c", shadeGrey: "#b4b8bd",
          levels: mix([255, 255, 255], [168, 174, 182]),
        };
  }

  function element(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name === "html") made.innerHTML = value;
      else if (value !== undefined) made.setAttribute(name, value);
    }
    made.append(...children);
    return made;
  }

  let plotly = null;
  /** plotly.js from the site itself, once. */
  function loadPlotly() {
    plotly ||= new Promise((resolve, reject) => {
      window.PlotlyConfig = { MathJaxConfig: "local" };
      const script = element("script", { src: PLOTLY });
      script.onload = () => resolve(window.Plotly);
      script.onerror = () => reject(new Error(`${PLOTLY} could not be loaded`));
      document.head.append(script);
    });
    return plotly;
  }

  const DASHES = { dash: "6 4", dot: "2 3" };

  /** The key below a drawing: a small line or dot for every named trace. */
  function drawKey(key, plot) {
    const sample = (inside) =>
      `<svg width="26" height="12" aria-hidden="true" focusable="false">${inside}</svg>`;
    const items = [];
    for (const { name, line, marker, showlegend, visible } of plot.data) {
      if (!showlegend || visible === false) continue;
      const stroke = line && `<line x1="1" x2="25" y1="6" y2="6" stroke="${line.color}" stroke-width="${Math.max(1.4, line.width)}" stroke-dasharray="${DASHES[line.dash] || ""}"/>`;
      const edge = marker && (marker.line || { color: marker.color, width: 0 });
      const dot = marker && (marker.symbol === "square"
        ? `<rect x="9" y="2" width="8" height="8" fill="${marker.color}" stroke="${edge.color}" stroke-width="${edge.width}"/>`
        : `<circle cx="13" cy="6" r="${Math.min(5, 1 + marker.size / 2)}" fill="${marker.color}" stroke="${edge.color}" stroke-width="${edge.width}"/>`);
      items.push(sample((stroke || "") + (dot || "")) + name);
    }
    for (const [name, colour] of plot.areas || []) {
      items.push(`<span class="explorable-area" style="background:${colour}"></span>${name}`);
    }
    for (const [name, colour] of plot.grips || []) {
      items.push(`<span class="explorable-grip" style="--grip:${colour}"></span>${name}`);
    }
    if (plot.ramp) {
      const { label, from, to, colours } = plot.ramp;
      const n = colours.length;
      const stops = colours.map((c, i) => `${c} ${(100 * i) / n}% ${(100 * (i + 1)) / n}%`).join(",");
      items.push(`${label}:&nbsp;${from}&nbsp;<span class="explorable-ramp" style="background:linear-gradient(to right,${stops})"></span>${to}`);
    }
    key.innerHTML = items.map((item) => `<li>${item}</li>`).join("");
  }

  /** An axis of a drawing, unmovable, in the page's colours. */
  function axis(title, range, theme, more) {
    return {
      title: { text: title, standoff: 6 }, range, fixedrange: true, zeroline: false,
      gridcolor: theme.grid, linecolor: theme.ink, tickcolor: theme.ink, showline: true, ticks: "outside",
      ticklen: 4, ...more,
    };
  }

  class Explorable {
    constructor(root, view, Plotly) {
      this.root = root;
      this.view = view;
      this.Plotly = Plotly;
      this.values = {};
      this.handles = new Map();
      this.moving = false;
      this.build();
      this.reset();
      this.root.classList.add("explorable-on");
      this.draw();
      new ResizeObserver(() => this.ask()).observe(this.live);
      new MutationObserver(() => this.ask()).observe(document.documentElement, {
        attributes: true, attributeFilter: ["data-theme"],
      });
    }

    // -------------------------------------------------------------------------- controls

    build() {
      const { view, root } = this;
      const id = (part) => `${root.id}-${part}`;
      this.said = element("div", { class: "explorable-said", id: id("said"), "aria-live": "polite", "aria-atomic": "true" });
      this.plots = view.plots.map((label, i) => {
        const canvas = element("div", { class: "explorable-canvas", role: "img", "aria-label": label, "aria-describedby": id("said") });
        const frame = element("div", { class: "explorable-frame" }, canvas);
        const key = element("ul", { class: "explorable-key", "aria-label": `Key: ${label}` });
        const plot = element("div", { class: `explorable-plot explorable-plot-${i}` }, frame, key);
        return { plot, frame, canvas, key, range: null };
      });
      this.inputs = new Map();
      const rows = view.knobs.map((knob) => {
        const label = element("label", { for: id(knob.id), html: knob.label });
        const input = knob.options
          ? element("select", { id: id(knob.id) }, ...knob.options.map((o) => element("option", { value: o }, o)))
          : element("input", { id: id(knob.id), type: "range", min: knob.min, max: knob.max, step: knob.step });
        const output = knob.options ? null : element("output", { for: id(knob.id) });
        input.addEventListener("input", () => {
          this.stop();
          this.change({ [knob.id]: knob.options ? input.value : this.scaled(knob, Number(input.value)) });
        });
        const row = element("div", { class: "explorable-knob", "data-knob": knob.id }, label, input, ...(output ? [output] : []));
        this.inputs.set(knob.id, { knob, input, output, row });
        return row;
      });
      const reset = element("button", { type: "button", class: "explorable-reset" }, "Reset");
      reset.addEventListener("click", () => {
        this.stop();
        this.reset();
        this.moved();
      });
      const buttons = [reset];
      if (view.plays && !matchMedia("(prefers-reduced-motion: reduce)").matches) {
        this.player = element("button", { type: "button", class: "explorable-play" }, "Play");
        this.player.addEventListener("click", () => (this.timer ? this.stop() : this.play()));
        buttons.push(this.player);
      }
      const knobs = element("div", { class: "explorable-knobs" }, ...rows, element("div", { class: "explorable-buttons" }, ...buttons));
      this.live = element(
        "div", { class: "explorable-live", role: "group", "aria-label": view.title },
        this.plots[0].plot, this.said, knobs, this.plots[1].plot,
      );
      root.prepend(this.live);
    }

    scaled(knob, position) {
      return knob.scale ? knob.scale(position) : position;
    }

    /** Where a knob's slider stands for this value. */
    position(knob, value) {
      if (!knob.scale) return value;
      const base = knob.scale(1);
      return Math.log(value) / Math.log(base);
    }

    reset() {
      for (const knob of this.view.knobs) {
        this.values[knob.id] = knob.options ? knob.value : this.scaled(knob, knob.value);
      }
    }

    /** New settings, each moved to the nearest mark of its slider. */
    change(patch) {
      for (const [name, value] of Object.entries(patch)) {
        const { knob } = this.inputs.get(name);
        if (knob.options) this.values[name] = value;
        else {
          const at = clamp(this.position(knob, value), knob.min, knob.max);
          const mark = knob.min + knob.step * Math.round((at - knob.min) / knob.step);
          this.values[name] = this.scaled(knob, Number(Math.min(mark, knob.max).toFixed(6)));
        }
      }
      this.moved();
    }

    /** Redraw soon; once nothing has moved for a moment, draw what is slow and let it be read out. */
    moved() {
      this.moving = true;
      this.said.setAttribute("aria-busy", "true");
      clearTimeout(this.settles);
      this.settles = setTimeout(() => {
        this.moving = false;
        this.ask();
      }, 250);
      this.ask();
    }

    ask() {
      if (this.asked) return;
      this.asked = true;
      requestAnimationFrame(() => {
        this.asked = false;
        this.draw();
      });
    }

    play() {
      const { knob } = this.inputs.get(this.view.plays);
      const goal = this.values[knob.id] > knob.min ? this.values[knob.id] : knob.value;
      let now = knob.min;
      const tick = () => {
        this.change({ [knob.id]: now });
        if (now >= goal) this.stop();
        now += 1;
      };
      this.player.textContent = "Stop";
      this.timer = setInterval(tick, 120);
      tick();
    }

    stop() {
      if (!this.timer) return;
      clearInterval(this.timer);
      this.timer = null;
      this.player.textContent = "Play";
    }

    // --------------------------------------------------------------------------- drawing

    draw() {
      const theme = currentTheme();
      for (const { knob, input, output, row } of this.inputs.values()) {
        const value = this.values[knob.id];
        row.hidden = Boolean(knob.when) && !knob.when(this.values);
        input.value = knob.options ? value : this.position(knob, value).toFixed(6);
        if (output) {
          output.textContent = knob.say(value);
          input.setAttribute("aria-valuetext", knob.say(value));
        }
      }
      let seen;
      try {
        seen = this.view.draw(this.values, theme, this.moving);
      } catch (error) {
        this.said.textContent = error.message;
        this.said.setAttribute("aria-busy", "false");
        return;
      }
      seen.plots.forEach((plot, i) => this.paint(plot, this.plots[i], theme));
      const wanted = new Set(seen.handles.map((h) => h.id));
      for (const handle of seen.handles) this.place(handle);
      for (const [id, { dot }] of this.handles) dot.hidden = !wanted.has(id);
      const text = seen.said.map((line) => `<p>${line}</p>`).join("");
      if (this.text !== text) this.said.innerHTML = this.text = text;
      this.said.setAttribute("aria-busy", String(this.moving));
    }

    paint(plot, where, theme) {
      const width = where.frame.clientWidth;
      if (width < 100) return;
      const margin = plot.bare ? BARE : MARGIN;
      const inner = width - margin.l - margin.r;
      const ratio = plot.shape || (plot.y[1] - plot.y[0]) / (plot.x[1] - plot.x[0]);
      const height = Math.round(inner * ratio) + margin.t + margin.b;
      where.range = { x: plot.x, y: plot.y, margin, inner, tall: height - margin.t - margin.b };
      where.frame.style.height = `${height}px`;
      const bare = plot.bare
        ? { showticklabels: false, showgrid: false, showline: false, ticks: "" }
        : { showgrid: !plot.plain };
      const layout = {
        width, height, margin, showlegend: false, dragmode: false, hovermode: false,
        paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: plot.ground || "rgba(0,0,0,0)",
        font: { family: "inherit", size: 13, color: theme.ink },
        xaxis: axis(plot.xTitle, plot.x, theme, bare),
        yaxis: axis(plot.yTitle, plot.y, theme, {
          ...bare,
          ...(plot.log ? { type: "log", exponentformat: "power", dtick: [1, 2, 4][[5, 10].filter((n) => plot.y[1] - plot.y[0] > n).length], tickfont: { size: 11 } } : {}),
        }),
      };
      this.Plotly.react(where.canvas, plot.data, layout, { staticPlot: true, displayModeBar: false });
      drawKey(where.key, plot);
    }

    /** Put a handle where it belongs; it is made once, so that a drag survives the redrawing. */
    place(handle) {
      const { frame, range } = this.plots[handle.plot];
      if (!range) return;
      let made = this.handles.get(handle.id);
      if (!made) {
        const dot = element("div", { class: "explorable-handle", "data-handle": handle.id, "aria-hidden": "true" });
        made = { dot };
        this.handles.set(handle.id, made);
        this.drag(made, frame);
        frame.append(dot);
      }
      Object.assign(made, { handle, range });
      const [x, y] = [handle.x, handle.y].map((value, i) => {
        const [low, high] = i ? range.y : range.x;
        return clamp((value - low) / (high - low), 0, 1);
      });
      made.dot.style.left = `${range.margin.l + x * range.inner}px`;
      made.dot.style.top = `${range.margin.t + (1 - y) * range.tall}px`;
      made.dot.style.setProperty("--grip", handle.colour);
    }

    /** Mouse, pen and touch alike. Only the handle takes the touch, so the page still scrolls. */
    drag(made, frame) {
      const { dot } = made;
      dot.addEventListener("pointerdown", (event) => {
        event.preventDefault();
        this.stop();
        dot.setPointerCapture(event.pointerId);
        made.held = event.pointerId;
      });
      dot.addEventListener("pointermove", (event) => {
        if (made.held !== event.pointerId) return;
        const box = frame.getBoundingClientRect();
        const { x, y, margin, inner, tall } = made.range;
        const share = clamp((event.clientX - box.left - margin.l) / inner, 0, 1);
        const rise = clamp(1 - (event.clientY - box.top - margin.t) / tall, 0, 1);
        this.change(made.handle.move(x[0] + share * (x[1] - x[0]), y[0] + rise * (y[1] - y[0])));
      });
      for (const end of ["pointerup", "pointercancel"]) {
        dot.addEventListener(end, () => (made.held = null));
      }
    }
  }

  function start() {
    const roots = [...document.querySelectorAll(".explorable[data-explorable]")];
    const near = new IntersectionObserver(
      (entries) => {
        for (const { isIntersecting, target } of entries) {
          if (!isIntersecting) continue;
          near.unobserve(target);
          loadPlotly()
            .then((Plotly) => new Explorable(target, VIEWS[target.dataset.explorable], Plotly))
            .catch((error) => {
              target.classList.remove("explorable-on");
              console.error(error);
            });
        }
      },
      { rootMargin: "600px" },
    );
    for (const root of roots) near.observe(root);
  }

  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
})();
