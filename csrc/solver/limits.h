// Defines sizes and limits that the CPU and the GPU share. It has only constants, because files with different -m flags
// include it.
#pragma once

#include <cstdint>

namespace trb {

constexpr double kLn2 = 0.6931471805599453;
constexpr double kLog2e = 1.4426950408889634;
constexpr float kLog2eFloat = static_cast<float>(kLog2e);

// Tokens per token block of the CPU, the unit in which it merges sums and reads a row again to draw a token.
constexpr int64_t kBlock = 1024;

// The headroom in nats below which the direct form's float32 rounding (1e-7 on the CPU, 5e-7 on the GPU) would show, so
// that the stable form is needed.
constexpr double kStableBelow = 1.5e-2;

// The same on the GPU, per nat of the tilt beta D between the means at the ends of the bracket. The direct form rounds
// by 6e-8 of it: 7e-4 of a headroom of 0.018 at 240 nats.
constexpr float kStableBelowPerNatOfTilt = 1.2e-3f;

// The largest range of D in nats that float32 sweeps accept. Beyond it the rounding of large exponents would show, and
// the row is solved in double precision. The CPU's first sweep raises fourth roots of weights to powers, which the
// GPU's does not, so the CPU's limit is half as large.
constexpr double kLargestRangeOnCpu = 500.0, kLargestRangeOnGpu = 1000.0;

// A float32 sum of weights below this has underflowed too far to be a mass.
constexpr double kLeastMass = 1e-30;

// The least mass of the common support under either model, relative to that model's largest logit. Less is left only if
// the other model masks what this one thinks likely. Every weight that counts then has an exponent beyond -21, whose
// rounding in float32 would show in the KL, so the row is solved in double precision.
constexpr double kLeastCommonMass = 1e-9;

// In double precision: how far, in nats, the likeliest token of mu may lie from the origin in either model
// (double precision then leaves it 9 digits after the point), and how many origins are tried.
constexpr double kFarthestFromOrigin = 1e6;
constexpr int kMostOrigins = 4;

// The most sweeps in double precision. The limit is for safety only: a search that no interpolation helps bisects the
// float32 numbers of [0, 1] in some 270 sweeps.
constexpr int kMaxDoubleSweeps = 320;

}  // namespace trb
