// Decides what the blocks of a row do after each sweep: adds up what they have sent, and continues the search for beta.
//
// Warp 0 of every block does this by itself, from the same numbers in the same order, so that all blocks reach the same
// decision to the last bit without another exchange. All other warps wait for it, so it is kept short: all lanes hold
// the search in registers, what can be done side by side is done on lanes, and nothing has a division or a call
// (`python -m benchmarks.models.decision_trace` estimates its cycles).
#pragma once

#include "acceptance.cuh"
#include "sweep.cuh"

namespace trb::cuda {

constexpr float kLargestShiftOfRow = 4e6f;  // in units of log 2; float32 holds all whole numbers up to here
constexpr float kLn2Float = static_cast<float>(kLn2);

// 2^n for a whole number n <= 0; 0 below the smallest normal number.
__device__ __forceinline__ double power_of_two(float n) {
  return __hiloint2double((max(static_cast<int>(n), -1023) + 1023) << 20, 0);
}

// Moves the moments about 0 to numbers that are `delta` larger, with weights `factor` times as large.
__device__ __forceinline__ void move_moments(double (&s)[4], double factor, double delta) {
  const double first = fma(delta, s[0], s[1]), second = fma(delta, s[1] + first, s[2]);
  const double third = fma(delta, fma(delta, fma(delta, s[0], 3.0 * s[1]), 3.0 * s[2]), s[3]);
  s[0] *= factor;
  s[1] = first * factor;
  s[2] = second * factor;
  s[3] = third * factor;
}

// Sums four numbers over each group of kLargestCluster lanes. All lanes of a group get the totals.
__device__ __forceinline__ void sum_over_ranks(double (&s)[4]) {
#pragma unroll
  for (int distance = 1; distance < kLargestCluster; distance *= 2) {
    double of_other[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) of_other[k] = __shfl_xor_sync(kAllLanes, s[k], distance);
#pragma unroll
    for (int k = 0; k < 4; ++k) s[k] += of_other[k];
  }
}

// The node from raw moments of numbers that are D in units of `unit`; log_gain and f follow later.
__device__ __forceinline__ SweptNode node_of_raw_moments(float beta, const double (&s)[4], double unit) {
  const double inverse = reciprocal(s[0]), mean = s[1] * inverse, second = s[2] * inverse, third = s[3] * inverse;
  const double k2 = fma(-mean, mean, second) * (unit * unit), square = mean * mean;
  const double k3 = fma(-mean, fma(3.0, second, -2.0 * square), third);
  const float to_nats = static_cast<float>(unit);
  return {beta, 0.0, 0.0, mean * unit, k2 > 0.0 ? k2 : 0.0, static_cast<float>(k3) * (to_nats * to_nats * to_nats)};
}

// Rounding may make f slightly negative. A NaN must stay a NaN, which counts as infeasible.
__device__ __forceinline__ double not_negative(double f) { return f < 0.0 ? 0.0 : f; }

// Converts a row's numbers: logits to nats, and b - a to D = (b - a) / T - gap. `base` is the constant that
// `difference` (sweep_terms.cuh) leaves out of b - a for float32 logits.
struct Units {
  double inverse_temperature, base, gap;

  template <typename T>
  static __device__ __forceinline__ Units of(const RowFrame& row) {
    return {row.scale * kLn2, std::is_same_v<T, float> ? static_cast<double>(row.max_teacher) - row.max_student : 0.0,
            (static_cast<double>(row.shift_teacher) - row.shift_student) * kLn2};
  }
  // D at the difference `center`.
  __device__ __forceinline__ double of_difference(double center) const {
    return (center + base) * inverse_temperature - gap;
  }
};

// The difference at which D has about this value, in nats. The shifts are taken off the maxima first, because the
// models may be far apart.
template <typename T>
__device__ __forceinline__ float difference_at(const RowFrame& row, float nats) {
  const bool relative = std::is_same_v<T, float>;
  const float student = relative ? fmaf(-row.max_student, row.scale, row.shift_student) : row.shift_student;
  const float teacher = relative ? fmaf(-row.max_teacher, row.scale, row.shift_teacher) : row.shift_teacher;
  return fmaf(nats, kLog2eFloat, teacher - student) * reciprocal(row.scale);
}

// The center of D in the last exact sweep, as the rounded numbers of its frame have it.
template <int kWarps>
__device__ __forceinline__ double center_of(const BlockState<kWarps>& state, const Units& units) {
  const double tilt = state.frame.tilt, offset = state.frame.offset, center = state.frame.center;
  return units.of_difference(select(state.form == Form::kStable, offset * reciprocal(tilt), center));
}

// Warp 0: adds up the first sweep's sums of all blocks in one frame, and begins the search. Sets `reachable` to false
// if the range of float32 exponents is too small for the row.
template <int kWarps>
__device__ __forceinline__ Next begin_search(BlockState<kWarps>& state, Search& search, RowFrame& row, Found& found,
                                             int32_t vocab, int slot, int ranks, unsigned lane, bool* reachable) {
  static_assert(kWarp == 4 * kLargestCluster, "four groups of lanes, and in each a lane per block");
  const double epsilon = state.epsilon;
  row.scale = state.temperature.scale;
  // 1. A lane's block, and which of its sums the lane adds: the moments at beta = 0 and 1, then the masses of both
  // models, with what the other one masks.
  const unsigned rank = lane % kLargestCluster, group = lane / kLargestCluster, at_one = group % 2;
  const bool holds = rank < static_cast<unsigned>(ranks), whole = group >= 2;
  const Record& record = state.record[slot][holds ? rank : 0];
  const double *const sums = record.sums + 4 * at_one, masked = record.sums[8 + at_one];
  double s[4] = {sums[0] + select(whole, masked, 0.0), sums[1], sums[2], sums[3]};
  // 2. The row's extremes and frame are the maxima over its blocks.
  const float student = record.shift_student, teacher = record.shift_teacher;
  const int32_t own[6] = {
      ordered(student),     ordered(teacher),   ordered(record.max_student), ordered(record.max_teacher),
      ordered(record.high), ordered(record.low)};
  int32_t of_row[6];
#pragma unroll
  for (int i = 0; i < 5; ++i) of_row[i] = __reduce_max_sync(kAllLanes, own[i]);
  of_row[5] = __reduce_min_sync(kAllLanes, own[5]);
  row.shift_student = from_ordered(of_row[0]);
  row.shift_teacher = from_ordered(of_row[1]);
  row.max_student = from_ordered(of_row[2]);
  row.max_teacher = from_ordered(of_row[3]);
  const float high = from_ordered(of_row[4]), low = from_ordered(of_row[5]);
  row.range = (high - low) * (row.scale * kLn2Float);
  // 3. The sums over the blocks in the row's frame. Shifts are whole numbers, so their differences are exact.
  const bool both = (student > -INFINITY) & (teacher > -INFINITY);
  const float below_student = student - row.shift_student, below_teacher = teacher - row.shift_teacher;
  const double factor = power_of_two(at_one != 0 ? below_teacher : below_student);
  move_moments(s, select(holds, factor, 0.0), select(both, below_teacher - below_student, 0.0f));
  if (holds & ((at_one != 0) != whole)) state.mass_of_rank[at_one][rank] = s[0];
  sum_over_ranks(s);
  // 4. The nodes of the first two groups. The interpolation has its own logarithms, which are ready before those of the
  // answer and wrong by less than the sums.
  const double log_mass = log_of(s[0]);
  const float log2_mass = log2_of(static_cast<float>(s[0]));
  const float growth = (log2_mass - __shfl_sync(kAllLanes, log2_mass, 0)) * kLn2Float;
  SweptNode node = node_of_raw_moments(static_cast<float>(at_one), s, kLn2);
  node.log_gain = growth;
  node.f = select((at_one != 0) & !(node.mean < node.log_gain), node.mean - node.log_gain, 0.0);
  const BracketEnd end(node, 0.0);
  search.low = from_lane(end, 0);
  search.high = from_lane(end, kLargestCluster);
  const float lost = fmaxf(__shfl_sync(kAllLanes, growth, 2 * kLargestCluster), 0.0f);
  const float target = (static_cast<float>(epsilon) - lost) * static_cast<float>(1.0 - 0.5 * kTolerance);
  const float root = root_of_interpolation(search.low.log, search.high.log, target, lane);
  // 5. What the answer needs of the groups.
  const double log_zero = __shfl_sync(kAllLanes, log_mass, 0), log_gain = log_mass - log_zero;
  const double phi = __shfl_sync(kAllLanes, log_gain, 2 * kLargestCluster);
  const double f_at_one = not_negative(__shfl_sync(kAllLanes, node.mean - log_gain, kLargestCluster));
  const bool disjoint = !(low <= high), some = __all_sync(kAllLanes, s[0] > kLeastMass);
  search.phi = select(disjoint, static_cast<double>(INFINITY), phi > 0.0 ? phi : 0.0);
  row.log_zero = static_cast<float>(log_zero);
  row.zero_mean = search.low.mean;
  if (rank == 0) state.log_of[group] = log_mass;
  // 6. A vocabulary of one token has probability 1, which only double precision gives exactly.
  const bool fault = !((row.max_student < INFINITY) & (row.max_teacher < INFINITY) & (row.max_student > -INFINITY) &
                       (row.max_teacher > -INFINITY));
  const bool framed =
      (vocab > 1) & (fabsf(row.shift_student) <= kLargestShiftOfRow) & (fabsf(row.shift_teacher) <= kLargestShiftOfRow);
  *reachable = fault | (framed & (disjoint | ((row.range <= static_cast<float>(kLargestRangeOnGpu)) & some)));
  return search.begin(select(fault, static_cast<double>(NAN), epsilon), f_at_one, 8e-6f + 4e-7f * row.range, root,
                      found);
}

// The node of a stable sweep from its sums, of which each lane has one: csrc/solver/cumulants.h, with 1 / (1 + y + W)
// as p / (p + y + W) for sums that are not divided.
__device__ __forceinline__ SweptNode node_of_stable_sums(float beta, double of_lane) {
  double s[6];
#pragma unroll
  for (int k = 0; k < 6; ++k) s[k] = __shfl_sync(kAllLanes, of_lane, k);
  const double growth = s[1] + s[2], mass = s[0] + growth, per_mass = reciprocal(mass), per_beta = reciprocal(beta);
  const double v1 = (s[3] + s[1]) * per_mass, v2 = s[4] * per_mass, v3 = s[5] * per_mass;
  const double log_gain = log_of_ratio(mass, s[0], growth), k2 = fma(-v1, v1, v2) * (per_beta * per_beta);
  const double k3 = fma(-v1, fma(3.0, v2, -2.0 * (v1 * v1)), v3) * (per_beta * per_beta * per_beta);
  return {beta, not_negative(v1 - log_gain), log_gain, v1 * per_beta, k2 > 0.0 ? k2 : 0.0, static_cast<float>(k3)};
}

// Warp 0: lane k adds up sum k of an exact sweep over the blocks, which share its frame, in a fixed tree.
template <int kWarps>
__device__ __forceinline__ double sum_of_lane(const BlockState<kWarps>& state, int slot, int ranks, int lane) {
  const int own = min(lane, (state.form == Form::kStable ? StableSweep::kSums : DirectSweep::kSums) - 1);
  double part[kLargestCluster];
#pragma unroll
  for (int r = 0; r < kLargestCluster; ++r) {
    part[r] = select(r < ranks, state.record[slot][min(r, ranks - 1)].sums[own], 0.0);
  }
#pragma unroll
  for (int apart = 1; apart < kLargestCluster; apart *= 2) {
#pragma unroll
    for (int r = 0; r < kLargestCluster; r += 2 * apart) part[r] += part[r + apart];
  }
  return part[0];
}

// The node of a direct sweep from its sums, of which each lane has one. `log_of_factor` is the logarithm of what the
// weights leave out, less that of the mass at beta = 0.
__device__ __forceinline__ SweptNode node_of_direct_sums(float beta, double of_lane, double unit,
                                                         double log_of_factor) {
  double s[4];
#pragma unroll
  for (int k = 0; k < 4; ++k) s[k] = __shfl_sync(kAllLanes, of_lane, k);
  SweptNode node = node_of_raw_moments(beta, s, unit);
  node.log_gain = log_of(s[0]) + log_of_factor;
  node.f = not_negative(fma(static_cast<double>(beta), node.mean, -node.log_gain));
  return node;
}

struct PlannedSweep {
  ExactFrame frame;
  Form form;
  float kappa;    // of the direct form, in units of log 2
  bool in_range;  // else float32 exponents could overflow
};

// Plans the sweep at search.beta (csrc/solver/sweep_plan.h).
template <typename T>
__device__ __forceinline__ PlannedSweep plan_sweep(const Search& search, const RowFrame& row) {
  const BracketEnd &low = search.low, &high = search.high;
  const float beta = search.beta, width = high.log.beta - low.log.beta, ahead = beta - low.log.beta;
  const float t = ahead * reciprocal(width);
  const float from_low = fmaf(ahead, low.mean, low.log_gain), from_high = fmaf(ahead - width, high.mean, high.log_gain);
  const float tangent = from_low > from_high ? from_low : from_high;
  const bool stable = (search.headroom < kStableBelow) | (high.f < static_cast<float>(kStableBelow));
  const float center = select(stable, row.zero_mean, fmaf(high.mean - low.mean, t, low.mean));
  const float chord = fmaf(t, high.log_gain - low.log_gain, low.log_gain);
  const float overshoot = select(stable, -beta * center, chord - tangent);
  const float kappa = select(stable, 0.0f, floorf((row.log_zero + tangent - beta * center) * kLog2eFloat));
  ExactFrame frame;
  frame.scale = row.scale;
  frame.shift = row.shift_student + kappa;
  frame.center = difference_at<T>(row, center);
  frame.slope = beta * row.scale;
  frame.tilt = select(stable, frame.slope * kLn2Float, 0.0f);
  frame.offset = frame.tilt * frame.center;
  frame.base_student = row.max_student;
  frame.base_teacher = row.max_teacher;
  return {frame, stable ? Form::kStable : Form::kDirect, kappa, overshoot <= static_cast<float>(kLargestExponent)};
}

// The answer that the search has found. `node` is that of the last exact sweep, and `center` its center of D.
template <int kWarps>
__device__ __forceinline__ Answer answer_of(const BlockState<kWarps>& state, const Search& search, const Found& found,
                                            const SweptNode& node, double center, const RowFrame& row,
                                            const Units& units) {
  const bool fault = found.status == Status::kFault, interior = found.status == Status::kInterior;
  const double log_student = state.log_of[2], log_teacher = state.log_of[3];
  const double of_end = state.log_of[found.status == Status::kTeacher ? 1 : found.status == Status::kStudent ? 2 : 0];
  const double h = found.shift, gain = h * (node.mean + center + h * (0.5 * node.k2 + h * node.k3 * (1.0 / 6)));
  const double of_interior = of_end + (node.log_gain + node.beta * center + gain);
  return {found.status,
          select(fault, NAN, found.beta),
          select(fault, static_cast<double>(NAN), found.kl),
          search.sweeps,
          units.inverse_temperature,
          row.shift_student * kLn2,
          row.shift_teacher * kLn2,
          select(interior, of_interior, of_end),
          log_student,
          log_teacher,
          row.max_student,
          row.max_teacher};
}

// One thread: sets the frame of max(mu - pi_S, 0). Its center is that of the last exact sweep or, for the teacher,
// which had none, the difference at which mu and pi_S are equal.
template <typename T, int kWarps>
__device__ __forceinline__ void frame_residual(BlockState<kWarps>& state, const RowFrame& row, const Units& units) {
  const Answer& answer = state.answer;
  ExactFrame& frame = state.residual_frame;
  frame = state.frame;
  frame.scale = row.scale;
  frame.shift = row.shift_student;
  frame.base_student = row.max_student;
  frame.base_teacher = row.max_teacher;
  frame.tilt = static_cast<float>(answer.beta * units.inverse_temperature);
  // log mu - log pi_S = beta D - gain
  const double gain = answer.log_norm - answer.log_student;
  if (answer.status == Status::kTeacher) frame.center = difference_at<T>(row, static_cast<float>(gain));
  frame.offset = static_cast<float>(gain - answer.beta * units.of_difference(frame.center));
}

// Warp 0: decides what the row's blocks do next. Not inlined, to save the kernel's registers and instruction cache.
template <typename T, int kWarps>
__device__ __noinline__ void decide(const KernelArgs& args, BlockState<kWarps>& state, int slot, int ranks, int lane,
                                    bool first) {
  const bool draws = args.draws();  // read here, while the warp waits for other loads
  Search search;
  SweptNode node{};
  Found found;
  RowFrame row;
  PlannedSweep planned;
  double center = 0.0;
  bool sweeps, reachable = true;
  // 1. All lanes: the search takes in the sweep, chooses the next beta, and plans the sweep there.
  if (first) {
    sweeps = begin_search(state, search, row, found, args.vocab, slot, ranks, lane, &reachable) == Next::kSweep;
    planned = plan_sweep<T>(search, row);
    __syncwarp();  // all lanes have read the state, and written the logarithms
  } else {
    search = state.search;
    row = state.row;
    const double of_lane = sum_of_lane(state, slot, ranks, lane);
    const double log_of_factor = state.kappa * kLn2 - state.log_of[0];
    const Units units = Units::of<T>(row);
    center = center_of(state, units);
    node = state.form == Form::kStable
               ? node_of_stable_sums(search.beta, of_lane)
               : node_of_direct_sums(search.beta, of_lane, units.inverse_temperature, log_of_factor);
    Next next = search.update(node, center, row.range, found);
    if (next == Next::kPropose) next = search.propose(lane, found);
    sweeps = next == Next::kSweep;
    if (sweeps) planned = plan_sweep<T>(search, row);
    __syncwarp();  // all lanes have read the state
  }
  // 2. One thread keeps the search for the decision after the sweep.
  if (sweeps | !reachable) {
    if (lane != 0) return;
    state.answer.sweeps = search.sweeps;
    state.action = reachable & planned.in_range ? Action::kSweep : Action::kDouble;
    if (first) state.row = row;
    state.search = search;
    state.frame = planned.frame;
    state.form = planned.form;
    state.kappa = planned.kappa;
    state.swept = search.beta;
    return;
  }
  // 3. Or it keeps the answer.
  const Units units = Units::of<T>(row);
  const Answer answer = answer_of(state, search, found, node, center, row, units);
  if (lane != 0) return;
  state.action = Action::kDone;
  state.answer = answer;
  state.shift = found.shift;
  if (first) state.frame = ExactFrame{};
  state.frame.slope = found.beta * row.scale;  // for the weights from which a token is drawn
  TokenFrom from = found.status == Status::kFault ? TokenFrom::kFault : TokenFrom::kNowhere;
  if (draws) from = token_from(args, state);
  state.token_from = from;
  if (from == TokenFrom::kResidual) frame_residual<T>(state, row, units);
}

}  // namespace trb::cuda
