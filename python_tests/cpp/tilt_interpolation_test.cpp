// Compares the interpolated moments of a gentle segment with those that are summed at the nodes.
#include "cpu/tilt_interpolation.h"

#include <cstdio>
#include <random>
#include <vector>

int main() {
  std::mt19937_64 bits(0);
  std::normal_distribution<double> normal;
  int failures = 0;
  // Standard deviations of D in nats; the range of 4096 tokens is about 7.5 times that.
  for (const double spread : {0.01, 0.5, 1.5, 3.0}) {
    const double offset = 2.0;  // D is centered elsewhere than at 0
    std::vector<double> x(4096), d(4096);
    for (size_t i = 0; i < x.size(); ++i) {
      x[i] = 2.0 * normal(bits);
      d[i] = spread * normal(bits) + 0.1;
    }
    double swept[5][5] = {};
    for (int node = 0; node < 5; ++node)
      for (size_t i = 0; i < x.size(); ++i) {
        double term = std::exp(x[i] + 0.25 * node * (d[i] - offset));
        for (int k = 0; k < 5; ++k, term *= d[i]) swept[node][k] += term;
      }
    const double* const nodes[3] = {swept[0], swept[2], swept[4]};
    const trb::cpu::TiltInterpolation<4> interpolation(nodes, offset);
    for (const int node : {0, 1, 3}) {
      const trb::cpu::RawMoments found = interpolation.moments(0.25 * node);
      const int moments = node == 0 ? 5 : 4;  // the fourth, of about three spreads^4, is needed only at 0
      for (int k = 0; k < moments; ++k) {
        // Relative to the moment of |D|, which an odd one may be much smaller than.
        const double scale = swept[node][0] * std::pow(std::fabs(0.1) + spread, k);
        const double error = std::fabs(found.s[k] - swept[node][k]) / scale;
        if (!(error < (k == 4 ? 0.3 : 1e-2))) {
          std::printf("spread %g, beta %g, moment %d: off by %g\n", spread, 0.25 * node, k, error);
          ++failures;
        }
      }
    }
  }
  return failures != 0;
}
