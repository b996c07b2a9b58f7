// The update with rewards in {0, 1}, as in pmd/theory/binary.py, to which tests/test_explorer.py compares it. No DOM here.
//
// s1 and s0 are the log-ratios of right and wrong responses and u = s1 − s0 is the step in log-odds. Normalisation,
// p e^s1 + q e^s0 = 1 with q = 1 − p, gives s1 = −log(p + q e^−u). KL-PMD takes u = 1/τ. PMD-mean's conditions
// s1 + λ e^s1 = q/τ and s0 + λ e^s0 = −p/τ leave one equation for v = 1/τ − u, the part of the step that it forgoes:
// s1 + v/(1 − e^−u) = q/τ. The left side exceeds the right at v = 1/τ, and not at v = 0 (Jensen), so bisection finds v.
const pmd = {
  // log-ratios [s1, s0] after a step u in log-odds
  ratios(p, u) {
    const q = 1 - p, mass = p + q * Math.exp(-u);
    const s1 = mass < 0.5 ? -Math.log(mass) : -Math.log1p(q * Math.expm1(-u)); // each where it keeps its digits
    return [s1, s1 - u];
  },

  // KL-PMD: the exact step of mirror descent
  partition(p, tau) {
    const [s1, s0] = pmd.ratios(p, 1 / tau);
    return { lam: 0, s1, s0, pNext: p * Math.exp(s1) };
  },

  // PMD-mean: 0 < p < 1, τ > 0
  mean(p, tau) {
    const q = 1 - p;
    let [low, high] = [0, 1 / tau];
    for (let i = 0; i < 200 && high - low > 1e-13 * high; i++) {
      const v = (low + high) / 2, u = 1 / tau - v;
      if (pmd.ratios(p, u)[0] + v / -Math.expm1(-u) > q / tau) high = v;
      else low = v;
    }
    const u = 1 / tau - high, [s1, s0] = pmd.ratios(p, u);
    const omega = high / -Math.expm1(-u); // λρ1, the value of Lambert's W at a right response
    return { lam: omega * Math.exp(-s1), s1, s0, pNext: p * Math.exp(s1) };
  },

  // P(λ < 0 or no solution): that the baseline of a rollout, estimated from the n − 1 others, exceeds τ log Z
  negative(p, tau, n) {
    const logZ = 1 / tau - pmd.ratios(p, 1 / tau)[0];
    let [mean, partition, choose] = [0, 0, 0];
    for (let k = 0; k < n; k++) {
      const share = k / (n - 1);
      const weight = Math.exp(choose + k * Math.log(p) + (n - 1 - k) * Math.log1p(-p));
      if (share > tau * logZ) mean += weight;
      if (share > p) partition += weight; // mean_j e^(r_j/τ) > Z, whatever τ is
      choose += Math.log((n - 1 - k) / (k + 1));
    }
    return { mean, partition };
  },
};
if (typeof module !== "undefined") module.exports = pmd;
