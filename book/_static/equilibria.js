/**
 * The mathematics of the explorables, in the formulas of deqlib and of the book.
 *
 * A classic script (a page opened from disk may not load modules). It defines one object,
 * `Equilibria`, whose members are pure functions of numbers and arrays: nothing here knows of the
 * page. Sources name the book's statements; the deqlib function with the same formula stands beside
 * them. Wrong input throws an Error whose sentence names the argument, its value, and what it must
 * be. A run that leaves the finite numbers is cut at its last finite point and says so.
 *
 * Letters: φ a link, a the self-weight, s the index, u = a z + s the pre-activation, z = φ(u).
 * Linear model with one output: θ = {a, u}, with P = 1 − a and u an array of d weights; f = u/P the
 * equilibrium map, z = f·x; S a d × d second moment (array of rows); A the target map (array of d).
 */
const Equilibria = (function () {
  "use strict";

  const EPS = Number.EPSILON;

  function need(condition, sentence) {
    if (!condition) throw new Error(sentence);
  }

  function finite(name, value) {
    need(Number.isFinite(value), `${name} is ${value}; it must be a finite number`);
  }

  function whole(name, value, least) {
    need(
      Number.isInteger(value) && value >= least,
      `${name} is ${value}; it must be a whole number, at least ${least}`,
    );
  }

  // ---------------------------------------------------------------------------------- links

  const logistic = (s) => 1 / (1 + Math.exp(-s));
  const softplus = (s) => Math.max(s, 0) + Math.log1p(Math.exp(-Math.abs(s)));
  const tanhSlope = (s) => 1 / Math.cosh(s) ** 2;
  const bell = (s) => Math.exp((-s * s) / 2) / Math.sqrt(2 * Math.PI);

  /**
   * Normal distribution function Φ(s) = ½ + bell(s)·(s + s³/3 + s⁵/(3·5) + …).
   * All terms have one sign, so the sum errs by rounding only. Beyond |s| = 9 it is 0 or 1 to 1e-18.
   * Source: G. Marsaglia, Evaluating the normal distribution, J. Stat. Software 11 (2004).
   */
  function normalBelow(s) {
    if (Math.abs(s) > 9) return s < 0 ? 0 : 1;
    let term = s;
    let sum = s;
    for (let k = 3; sum + term !== sum; k += 2) {
      term *= (s * s) / k;
      sum += term;
    }
    return 0.5 + sum * bell(s);
  }

  /**
   * The book's links by name, as `deqlib.activations.LINKS`: value φ, derivative φ′ (at a kink the
   * one on the right), and the infimum alpha and supremum beta of the slopes.
   */
  const LINKS = Object.freeze({
    identity: { value: (s) => s, derivative: () => 1, alpha: 1, beta: 1 },
    tanh: { value: Math.tanh, derivative: tanhSlope, alpha: 0, beta: 1 },
    logistic: {
      value: logistic,
      derivative: (s) => logistic(s) * logistic(-s),
      alpha: 0,
      beta: 0.25,
    },
    arctan: { value: Math.atan, derivative: (s) => 1 / (1 + s * s), alpha: 0, beta: 1 },
    softsign: {
      value: (s) => s / (1 + Math.abs(s)),
      derivative: (s) => 1 / (1 + Math.abs(s)) ** 2,
      alpha: 0,
      beta: 1,
    },
    softplus: { value: softplus, derivative: logistic, alpha: 0, beta: 1 },
    ReLU: { value: (s) => Math.max(s, 0), derivative: (s) => (s >= 0 ? 1 : 0), alpha: 0, beta: 1 },
    "leaky ReLU 0.2": {
      value: (s) => (s >= 0 ? s : 0.2 * s),
      derivative: (s) => (s >= 0 ? 1 : 0.2),
      alpha: 0.2,
      beta: 1,
    },
    "smooth leaky ReLU 0.2": {
      value: (s) => 0.2 * s + 0.8 * softplus(s),
      derivative: (s) => 0.2 + 0.8 * logistic(s),
      alpha: 0.2,
      beta: 1,
    },
    "0.3 s + 0.7 tanh s": {
      value: (s) => 0.3 * s + 0.7 * Math.tanh(s),
      derivative: (s) => 0.3 + 0.7 * tanhSlope(s),
      alpha: 0.3,
      beta: 1,
    },
    "s + 0.5 tanh s": {
      value: (s) => s + 0.5 * Math.tanh(s),
      derivative: (s) => 1 + 0.5 * tanhSlope(s),
      alpha: 1,
      beta: 1.5,
    },
    GELU: {
      value: (s) => s * normalBelow(s),
      derivative: (s) => normalBelow(s) + s * bell(s),
      // the slope is extreme where φ″(s) = (2 − s²) bell(s) vanishes
      alpha: normalBelow(-Math.SQRT2) - Math.SQRT2 * bell(Math.SQRT2),
      beta: normalBelow(Math.SQRT2) + Math.SQRT2 * bell(Math.SQRT2),
    },
  });

  /** The link of this name. */
  function link(name) {
    const names = Object.keys(LINKS);
    need(names.includes(name), `link is ${name}; it must be one of ${names.join(", ")}`);
    return LINKS[name];
  }

  // ------------------------------------------------------------- Picard's iteration, one state

  /**
   * Picard's iterates z₀, z₁ = φ(a z₀ + b), … of one state.
   * @returns {{z: number[], residual: number[], outcome: string}} z holds up to steps + 1 iterates;
   *   residual[k] = |φ(a z_k + b) − z_k|; outcome is "finished", or "not finite" where the next
   *   iterate left the finite numbers (z ends before it).
   * Source: theorem `picard-rate`.
   */
  function picard(name, a, b, z0, steps) {
    const { value } = link(name);
    finite("a", a);
    finite("b", b);
    finite("z0", z0);
    whole("steps", steps, 0);
    const z = [z0];
    const residual = [];
    let next = value(a * z0 + b);
    for (let k = 0; Number.isFinite(next - z[k]); k++) {
      residual.push(Math.abs(next - z[k]));
      if (k === steps) return { z, residual, outcome: "finished" };
      z.push(next);
      next = value(a * next + b);
    }
    if (z.length > residual.length) z.pop();
    return { z, residual, outcome: "not finite" };
  }

  /**
   * Where Picard's iteration on z = φ(a z + b) ends, from z0.
   *
   * For a non-decreasing φ the map f is monotone, and so is f∘f increasing: its iterates are monotone
   * and either converge or leave every bound. So there are three ends: an equilibrium, two points
   * that map to each other, or infinity.
   * @returns {{verdict: string, z: number[], steps: number}} verdict "converges" with z = [limit]
   *   where a step is at most 1e-13 (1 + |z|); "oscillates" with z = [p, f(p)] where two steps lead
   *   back to that precision and one does not; "diverges" with z = [] where |z| exceeds 1e8, or where
   *   a ≥ 0 and no equilibrium lies ahead; otherwise "undecided" with z = [last], for instance
   *   because a slope of ±1 at the equilibrium makes the way there endless.
   */
  function fate(name, a, b, z0, most = 20000) {
    const phi = link(name);
    finite("a", a);
    finite("b", b);
    finite("z0", z0);
    whole("most", most, 1);
    let z = z0;
    for (let k = 0; k < most; k++) {
      const once = phi.value(a * z + b);
      if (!(Math.abs(once) <= 1e8)) return { verdict: "diverges", z: [], steps: k };
      const small = 1e-13 * (1 + Math.abs(z));
      if (Math.abs(once - z) <= small) return { verdict: "converges", z: [once], steps: k };
      if (Math.abs(phi.value(a * once + b) - z) <= small && Math.abs(once - z) > 1e5 * small) {
        return { verdict: "oscillates", z: [z, once], steps: k };
      }
      z = once;
    }
    if (a >= 0 && phi.alpha >= 0 && walk(name, a, b, z0) === null) {
      return { verdict: "diverges", z: [], steps: most };
    }
    return { verdict: "undecided", z: [z], steps: most };
  }

  // ------------------------------------------------------------------ equilibria of one state

  /** Whether a φ′ < 1 everywhere, so that z = φ(a z + s) has exactly one solution for every s. */
  function admissible(name, a) {
    const { alpha, beta } = link(name);
    return a * beta < 1 && a * alpha < 1;
  }

  /**
   * The solution u of u = a φ(u) + s for an admissible a, as `deqlib.single_index.preactivation`.
   *
   * g(u) = u − a φ(u) − s has slopes in [m, M] with m > 0, so |g|/M and |g|/m bound the distance to
   * the root. Newton's method inside this bracket, which every point tightens; where a step leaves
   * it or gains less than half, the bracket is halved. It stops at rounding.
   * Source: theorem `unique-equilibrium`.
   */
  function preactivation(name, a, s) {
    const phi = link(name);
    finite("a", a);
    finite("s", s);
    need(
      admissible(name, a),
      `a is ${a} and the slopes of ${name} reach from ${phi.alpha} to ${phi.beta}; a times a ` +
        "slope must stay below 1, or the equilibrium need not exist or be the only one",
    );
    const m = 1 - Math.max(a * phi.alpha, a * phi.beta);
    const M = 1 - Math.min(a * phi.alpha, a * phi.beta);
    let [low, high, last, u] = [-Infinity, Infinity, Infinity, s];
    for (let k = 0; k < 200; k++) {
      const pulled = a * phi.value(u);
      const g = u - pulled - s;
      const size = Math.abs(g);
      const scale = Math.abs(u) + Math.abs(pulled) + Math.abs(s);
      const stale =
        size > 0.5 * last && size <= 8 * EPS * (scale + phi.beta * Math.abs(a * u));
      if (size <= 4 * EPS * scale || stale) return u;
      const near = Math.min(u - g / M, u - g / m);
      const far = Math.max(u - g / M, u - g / m);
      [low, high] = [Math.max(low, near), Math.min(high, far)];
      if (!(low < high)) [low, high] = [near, far]; // rounding closed the bracket
      const step = u - g / (1 - a * phi.derivative(u));
      const poor = !(step >= low && step <= high) || size > 0.5 * last;
      u = poor ? low + (high - low) / 2 : step;
      last = size;
    }
    throw new Error(`z = φ(a z + s) with φ = ${name}, a = ${a}, s = ${s} was not solved`);
  }

  /** The learned link h_a(s): the only solution z of z = φ(a z + s). a must be admissible. */
  function learnedLink(name, a, s) {
    return link(name).value(preactivation(name, a, s));
  }

  /** D = φ′(u)/(1 − a φ′(u)), the slope of h_a. Source: theorem `single-index-gradient`. */
  function slope(name, a, u) {
    const rise = link(name).derivative(u);
    return rise / (1 - a * rise);
  }

  /** Where `turningPoints` looks: sinh of 4001 equal cells on [−8, 8], so |u| ≤ 1490. */
  const GRID = Array.from({ length: 4001 }, (_, i) => Math.sinh(-8 + (16 * i) / 4000));

  function bisect(holds, low, high, times) {
    const left = holds(low);
    for (let k = 0; k < times; k++) {
      const middle = low + (high - low) / 2;
      if (holds(middle) === left) low = middle;
      else high = middle;
    }
    return [low, high];
  }

  /**
   * The u at which r(u) = u − a φ(u) turns between rising and falling, in increasing order: sign
   * changes of 1 − a φ′ on `GRID`, bisected. As `deqlib.branches.turning_points`.
   */
  function turningPoints(name, a) {
    const phi = link(name);
    finite("a", a);
    const rises = (u) => 1 - a * phi.derivative(u) >= -4 * EPS;
    const found = [];
    for (let i = 0; i + 1 < GRID.length; i++) {
      if (rises(GRID[i]) !== rises(GRID[i + 1])) {
        const [low, high] = bisect(rises, GRID[i], GRID[i + 1], 80);
        found.push((low + high) / 2);
      }
    }
    return found;
  }

  /**
   * Folds: where two equilibria meet, as [{u, s, z}] with s = u − a φ(u) and z = φ(u).
   * As `deqlib.branches.folds`. Source: theorem `stable-branches`.
   */
  function folds(name, a) {
    const phi = link(name);
    return turningPoints(name, a).map((u) => ({ u, s: u - a * phi.value(u), z: phi.value(u) }));
  }

  /** s_c(a) = a z_c − artanh z_c with z_c = √(1 − 1/a): tanh has three equilibria for |s| < s_c. */
  function tanhFold(a) {
    need(a >= 1, `a is ${a}; z = tanh(a z + s) folds only for a ≥ 1`);
    const z = Math.sqrt(1 - 1 / a);
    return a * z - Math.atanh(z);
  }

  /**
   * All equilibria of z = φ(a z + s), as [{u, z, gain, stable}] in increasing u.
   *
   * Between two turning points r is monotone, so each piece holds at most one solution of r(u) = s,
   * and the signs of r − s at its ends say whether it does; bisection finds it. gain = a φ′(u), and
   * stable means gain < 1. As `deqlib.branches.equilibria`. Source: theorem `stable-branches`.
   */
  function equilibria(name, a, s) {
    const phi = link(name);
    finite("a", a);
    finite("s", s);
    const turns = turningPoints(name, a);
    const far = 1e12 * (1 + Math.abs(s));
    const first = turns.length ? turns[0] : s;
    const last = turns.length ? turns[turns.length - 1] : s;
    const ends = [first - far, ...turns, last + far];
    const above = (u) => u - a * phi.value(u) >= s;
    const found = [];
    for (let i = 0; i + 1 < ends.length; i++) {
      if (above(ends[i]) === above(ends[i + 1])) continue;
      const u = bisect(above, ends[i], ends[i + 1], 120)[1];
      const gain = a * phi.derivative(u);
      found.push({ u, z: phi.value(u), gain, stable: gain < 1 });
    }
    return found;
  }

  /**
   * Where Picard's iteration ends from z, without its iterations, for a ≥ 0 and a non-decreasing
   * φ: at the next equilibrium in the direction of the first step, given by its u, or null where
   * there is none. As `deqlib.branches.walk`. Source: proposition `picard-walks`.
   */
  function walk(name, a, s, z) {
    const phi = link(name);
    need(
      a >= 0 && phi.alpha >= 0,
      `a is ${a} and the slopes of ${name} begin at ${phi.alpha}; neither may be negative, or ` +
        "Picard's iterates need not be monotone",
    );
    finite("z", z);
    const here = a * z + s;
    const slip = 1e-12 * (1 + Math.abs(here));
    const up = here - a * phi.value(here) <= s;
    const ahead = equilibria(name, a, s)
      .map((e) => e.u)
      .filter((u) => (up ? u >= here - slip : u <= here + slip));
    if (!ahead.length) return null;
    return up ? ahead[0] : ahead[ahead.length - 1];
  }

  // ------------------------------------------------------- the linear model with one output

  const dot = (x, y) => x.reduce((sum, value, i) => sum + value * y[i], 0);
  const times = (M, x) => M.map((row) => dot(row, x));
  const square = (x) => dot(x, x);

  function checkTheta(theta) {
    finite("a", theta.a);
    theta.u.forEach((value, i) => finite(`u[${i}]`, value));
    need(theta.a !== 1, "a is 1; then 1 − a = 0 and the model has no unique equilibrium");
  }

  function checkProblem(theta, S, A) {
    const d = theta.u.length;
    need(
      S.length === d && S.every((row) => row.length === d),
      `S has ${S.length} rows; with ${d} weights in u it must be ${d} × ${d}`,
    );
    need(A.length === d, `A has ${A.length} entries; with ${d} weights in u it must have ${d}`);
    S.flat().forEach((value) => finite("an entry of S", value));
    A.forEach((value, i) => finite(`A[${i}]`, value));
  }

  /** f = u/(1 − a): the equilibrium of input x is z = f·x. As `deqlib.linear.equilibrium_map`. */
  function equilibriumMap(theta) {
    checkTheta(theta);
    return theta.u.map((value) => value / (1 - theta.a));
  }

  const error = (theta, A) => theta.u.map((value, i) => value / (1 - theta.a) - A[i]);

  function lossAt(theta, S, A) {
    const e = error(theta, A);
    return 0.5 * dot(times(S, e), e);
  }

  function gradientAt(theta, S, A) {
    const q = times(S, error(theta, A)).map((value) => value / (1 - theta.a));
    return { a: dot(q, theta.u) / (1 - theta.a), u: q };
  }

  /** L = ½ (f − A) S (f − A)ᵀ. As `deqlib.linear.loss`. */
  function loss(theta, S, A) {
    checkTheta(theta);
    checkProblem(theta, S, A);
    return lossAt(theta, S, A);
  }

  /** ∇L: ∂L/∂u = q = S(f − A)/(1 − a) and ∂L/∂a = q·f. Source: theorem `linear-gradient`. */
  function gradient(theta, S, A) {
    checkTheta(theta);
    checkProblem(theta, S, A);
    return gradientAt(theta, S, A);
  }

  /** C = (1 − a)² + |u|², the squared radius r² that gradient flow keeps (`conservation-law`). */
  function invariant(theta) {
    return (1 - theta.a) ** 2 + square(theta.u);
  }

  /**
   * Where gradient flow ends: P_∞ = sign(1 − a₀) r/√(1 + |A|²), u_∞ = P_∞ A.
   * As `deqlib.linear.sphere_limit`. Source: theorem `sphere-limit`.
   */
  function sphereLimit(theta, A) {
    checkTheta(theta);
    const P = Math.sign(1 - theta.a) * Math.sqrt(invariant(theta) / (1 + square(A)));
    return { a: 1 - P, u: A.map((value) => P * value) };
  }

  /**
   * The levels of the loss for one input: {L = level} is the two lines u = (1 − a) f through the
   * singular point (1, 0), with f = A ∓ √(2 level/s). Returns [lower f, upper f].
   */
  function levelSlopes(level, s, A) {
    need(level >= 0 && s > 0, `level is ${level} and s ${s}; they must be ≥ 0 and positive`);
    const half = Math.sqrt((2 * level) / s);
    return [A - half, A + half];
  }

  function checkStart(theta0, S, A) {
    const value = loss(theta0, S, A);
    need(Number.isFinite(value), `theta0 has the loss ${value}; start where it is finite`);
  }

  const finiteTheta = (theta) => Number.isFinite(theta.a) && theta.u.every(Number.isFinite);

  /**
   * Gradient descent θ ← θ − η∇L(θ), as `deqlib.dynamics.gradient_descent`.
   * @param {number} every keep every so many iterates; the first and the last are always kept.
   * @returns {{k: number[], theta: object[], loss: number[], pushed: number[], outcome: string,
   *   crossings: number[]}} pushed[i] = η² Σ|∇L|² over the steps before record i, by which the
   *   squared radius has grown (`conservation-law`, eq-step-identity); crossings: steps k after
   *   which 1 − a has another sign; outcome "finished", or "not finite" where the next point has no
   *   finite loss.
   */
  function descent(theta0, S, A, eta, steps, every = 1) {
    checkStart(theta0, S, A);
    need(eta > 0 && Number.isFinite(eta), `eta is ${eta}; it must be positive and finite`);
    whole("steps", steps, 0);
    whole("every", every, 1);
    let theta = theta0;
    let value = lossAt(theta, S, A);
    let sum = 0;
    const run = { k: [0], theta: [theta], loss: [value], pushed: [0], crossings: [] };
    const keep = (k) => {
      run.k.push(k);
      run.theta.push(theta);
      run.loss.push(value);
      run.pushed.push(eta * eta * sum);
    };
    for (let k = 1; k <= steps; k++) {
      const g = gradientAt(theta, S, A);
      const next = { a: theta.a - eta * g.a, u: theta.u.map((x, i) => x - eta * g.u[i]) };
      const reached = lossAt(next, S, A);
      if (!finiteTheta(next) || !Number.isFinite(reached)) {
        if (run.k[run.k.length - 1] !== k - 1) keep(k - 1);
        return { ...run, outcome: "not finite" };
      }
      if (1 - next.a > 0 !== 1 - theta.a > 0) run.crossings.push(k);
      sum += g.a * g.a + square(g.u);
      [theta, value] = [next, reached];
      if (k % every === 0 || k === steps) keep(k);
    }
    return { ...run, outcome: "finished" };
  }

  // Dormand and Prince's pair of orders 5 and 4: nodes, stages, and the error's weights.
  const NODES = [
    [],
    [1 / 5],
    [3 / 40, 9 / 40],
    [44 / 45, -56 / 15, 32 / 9],
    [19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729],
    [9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656],
    [35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84],
  ];
  const ERROR = [71 / 57600, 0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40];

  /**
   * Gradient flow θ′ = −∇L(θ) at the given times: Dormand and Prince's method of order 5 with the
   * step chosen so that the root mean square of (estimated error)/(atol + rtol |θ|) stays below 1.
   * @param {number[]} at increasing times, the first ≥ 0; the flow starts at time 0.
   * @returns {{t: number[], theta: object[], loss: number[], steps: number, outcome: string}}
   *   outcome "finished", or "stuck" where most steps were not enough or a step went to zero; the
   *   records end there.
   * Source: theorem `flow-rate`; Hairer, Nørsett and Wanner, Solving ODEs I, section II.5.
   */
  function flow(theta0, S, A, at, { rtol = 1e-11, atol = 1e-13, most = 200000 } = {}) {
    checkStart(theta0, S, A);
    need(
      at.length > 0 && at[0] >= 0 && at.every((t, i) => i === 0 || t > at[i - 1]),
      `at is ${at}; it must hold increasing times, the first at least 0`,
    );
    need(rtol > 0 && atol > 0, `rtol is ${rtol} and atol ${atol}; both must be positive`);
    const d = theta0.u.length;
    const parts = (y) => ({ a: y[0], u: y.slice(1) });
    const velocity = (y) => {
      const g = gradientAt(parts(y), S, A);
      return [-g.a, ...g.u.map((x) => -x)];
    };
    let y = [theta0.a, ...theta0.u];
    let t = 0;
    let first = velocity(y);
    let h = 1e-3 * Math.min(at[at.length - 1] || 1, Math.sqrt(invariant(theta0) / (EPS + square(first))));
    let steps = 0;
    const run = { t: [], theta: [], loss: [] };
    for (const goal of at) {
      while (t < goal) {
        const last = t + h >= goal * (1 - 4 * EPS);
        const step = last ? goal - t : h;
        const k = [first];
        let next = y;
        for (let i = 1; i < 7; i++) {
          next = y.map((x, j) => x + step * NODES[i].reduce((sum, w, l) => sum + w * k[l][j], 0));
          k.push(velocity(next));
        }
        let off = 0;
        for (let j = 0; j <= d; j++) {
          const wrong = step * ERROR.reduce((sum, w, i) => sum + w * k[i][j], 0);
          off += (wrong / (atol + rtol * Math.max(Math.abs(y[j]), Math.abs(next[j])))) ** 2;
        }
        off = Math.sqrt(off / (d + 1));
        const accepted = off <= 1;
        if (accepted) {
          [t, y, first] = [last ? goal : t + step, next, k[6]];
          steps += 1;
        }
        const factor = Number.isFinite(off) ? 0.9 * Math.max(off, 1e-10) ** -0.2 : 0.1;
        const proposed = step * Math.min(5, Math.max(0.2, factor));
        // a step cut short to meet a record says little about the next one
        h = accepted && last ? Math.max(h, proposed) : proposed;
        if (steps >= most || !(h > 4 * EPS * t)) return { ...run, steps, outcome: "stuck" };
      }
      const theta = parts(y);
      run.t.push(goal);
      run.theta.push(theta);
      run.loss.push(lossAt(theta, S, A));
    }
    return { ...run, steps, outcome: "finished" };
  }

  // ---------------------------------------------------------------------------------- rates

  /** [λ_min, λ_max] of a symmetric 1 × 1 or 2 × 2 matrix; λ_min = det/λ_max loses no digits. */
  function extremes(M) {
    if (M.length === 1) return [M[0][0], M[0][0]];
    need(M.length === 2, `M has ${M.length} rows; it must have one or two`);
    const [[p, q], [, r]] = M;
    const middle = (p + r) / 2;
    const half = Math.hypot((p - r) / 2, q);
    if (middle < 0) return [middle - half, (p * r - q * q) / (middle - half)];
    return middle + half === 0 ? [0, 0] : [(p * r - q * q) / (middle + half), middle + half];
  }

  function checkMoment(S) {
    const [low] = extremes(S);
    need(low > 0, `S has the eigenvalue ${low}; S must be positive definite`);
  }

  /** The symmetric square root of a positive definite S of one or two rows. */
  function root(S) {
    checkMoment(S);
    if (S.length === 1) return [[Math.sqrt(S[0][0])]];
    const [[p, q], [, r]] = S;
    const det = Math.sqrt(p * r - q * q);
    const size = Math.sqrt(p + r + 2 * det);
    return [
      [(p + det) / size, q / size],
      [q / size, (r + det) / size],
    ];
  }

  /** S = 2 × 2 with eigenvalues 1 and 1/condition, the first along the angle (radians). */
  function moment(condition, angle) {
    need(condition >= 1, `condition is ${condition}; it must be at least 1`);
    const [c, s, small] = [Math.cos(angle), Math.sin(angle), 1 / condition];
    return [
      [c * c + small * s * s, (1 - small) * c * s],
      [(1 - small) * c * s, s * s + small * c * c],
    ];
  }

  /** H = S^½ (I + AᵀA) S^½: its eigenvalues over P² are the curvatures at a minimiser. */
  function curvature(S, A) {
    const half = root(S);
    const row = times(half, A);
    const M = S.map((line, i) => line.map((value, j) => value + row[i] * row[j]));
    return extremes(M);
  }

  /** μ = λ_min(S)/C: L(t) ≤ e^(−2μt) L(0). As `rates.pl_constant`; theorem `flow-rate`. */
  function plConstant(theta, S) {
    checkTheta(theta);
    checkMoment(S);
    return extremes(S)[0] / invariant(theta);
  }

  /**
   * [smallest, largest] positive eigenvalue of the Hessian at the minimiser with this P = 1 − a:
   * eigenvalues of S^½ (I + AᵀA) S^½ over P². The smallest at the flow's end is the sharp rate:
   * L falls as e^(−2 μ_sharp t). As `rates.hessian_spectrum`. Source: proposition `sharp-rate`.
   */
  function hessianSpectrum(theta, S, A) {
    checkTheta(theta);
    return curvature(S, A).map((value) => value / (1 - theta.a) ** 2);
  }

  /** Φ = |A| + √(2 L₀/λ_min(S)): |f| stays below it. As `rates.map_bound`; `well-conditioned`. */
  function mapBound(theta, S, A) {
    checkMoment(S);
    return Math.sqrt(square(A)) + Math.sqrt((2 * loss(theta, S, A)) / extremes(S)[0]);
  }

  /** Λ = λ_max(S)(1 + Φ²)²/C₀: steps up to 1/(4Λ) are proved safe (theorem `descent-rate`). */
  function smoothness(theta, S, A) {
    return (extremes(S)[1] * (1 + mapBound(theta, S, A) ** 2) ** 2) / invariant(theta);
  }

  /** μ′ = λ_min(S)/(C₀ + 2ηL₀): L_k ≤ (1 − ημ′)^k L₀ for η ≤ 1/(4Λ) (theorem `descent-rate`). */
  function descentRate(theta, S, A, eta) {
    checkMoment(S);
    return extremes(S)[0] / (invariant(theta) + 2 * eta * loss(theta, S, A));
  }

  /**
   * r_EoS with r² = (η/2)(1 + |A|²) λ_max(S^½ (I + AᵀA) S^½): the radius below which a minimiser
   * repels descent with step η. As `rates.edge_radius`. Source: theorem `any-step`.
   */
  function edgeRadius(eta, S, A) {
    need(eta > 0, `eta is ${eta}; it must be positive`);
    return Math.sqrt((eta / 2) * (1 + square(A)) * curvature(S, A)[1]);
  }

  /**
   * The rate −½ d log L/dt over the last third of a run, from records t and L: between the last
   * record with L above `floor`·L₀ and the first at two thirds of its time or later. NaN where they
   * are one.
   */
  function measuredRate(t, L, floor = 1e-18) {
    const seen = t.map((_, i) => i).filter((i) => L[i] > floor * L[0]);
    const end = seen[seen.length - 1];
    const begin = seen.find((i) => t[i] >= (2 / 3) * t[end]);
    if (!(t[end] > t[begin])) return NaN;
    return Math.log(L[begin] / L[end]) / (2 * (t[end] - t[begin]));
  }

  return Object.freeze({
    LINKS, link, picard, fate,
    admissible, preactivation, learnedLink, slope,
    turningPoints, folds, tanhFold, equilibria, walk,
    equilibriumMap, loss, gradient, invariant, sphereLimit, levelSlopes, descent, flow,
    extremes, root, moment, plConstant, hessianSpectrum, mapBound, smoothness, descentRate,
    edgeRadius, measuredRate,
  });
})();
