// Decides what the blocks of a row do after each sweep: adds up what they have sent, and continues the search for beta.
//
// Warp 0 of every block does this by itself, from the same numbers in the same order, so that all blocks reach the same
// decision to the last bit without another exchange. All other warps wait for it, so it is kept short: all lanes hold
// the search in registers, what can be done side by side is done on lanes, and nothing has a division
// (`python -m benchmarks.models.decision_trace` estimates its cycles).
#pragma once

#include "outputs.cuh"
#include "sweep/sweep.cuh"
#include "sweep/swept_nodes.cuh"

namespace trb::cuda {

constexpr float kLargestShiftOfRow = 4e6f;  // in units of log 2; float32 holds all whole numbers up to here
// Between the models' largest logits, of 16 bits: b - a is then rounded by at most 2^-13. Float32 logits are taken less
// their maxima first (`difference`).
constexpr float kLargestOffset = 2048.0f;
constexpr float kLn2Float = static_cast<float>(kLn2);

constexpr int kLanesOfGroup = kMostSections / 2;  // each lane adds up two sections

// The first sweep's sums of a row, in one frame: those of beta = 0 and 1, and with what the other model masks.
struct FirstSums {
  double mass, first;
  float second, third;

  // The sums of a record in a frame with shifts that are `below` larger for the weights, and for D by `delta` less.
  __device__ __forceinline__ FirstSums(const double* sums, double masked, int below, int delta) {
    const double factor = power_of_two(below), by = delta;
    const float small = float_power_of_two(below), d = static_cast<float>(delta);
    const float s0 = static_cast<float>(sums[0]) * small, s1 = static_cast<float>(sums[1]) * small,
                s2 = static_cast<float>(sums[2]) * small, s3 = static_cast<float>(sums[3]) * small;
    mass = sums[0] * factor;
    first = fma(by, mass, sums[1] * factor);
    mass = fma(masked, factor, mass);
    second = fmaf(d, fmaf(d, s0, s1 + s1), s2);
    third = fmaf(d, fmaf(d, fmaf(d, s0, 3.0f * s1), 3.0f * s2), s3);
  }

  __device__ __forceinline__ FirstSums(const FirstSums& a, const FirstSums& b)
      : mass(a.mass + b.mass), first(a.first + b.first), second(a.second + b.second), third(a.third + b.third) {}

  // Sums over each group of kLanesOfGroup lanes. All lanes of a group get the totals.
  __device__ __forceinline__ void add_over_sections() {
#pragma unroll
    for (int distance = 1; distance < kLanesOfGroup; distance *= 2) {
      const double of_mass = __shfl_xor_sync(kAllLanes, mass, distance),
                   of_first = __shfl_xor_sync(kAllLanes, first, distance);
      const float of_second = __shfl_xor_sync(kAllLanes, second, distance),
                  of_third = __shfl_xor_sync(kAllLanes, third, distance);
      mass += of_mass;
      first += of_first;
      second += of_second;
      third += of_third;
    }
  }
};

// Warp 0: adds up the first sweep's sums of all sections in one frame, and begins the search. Sets `reachable` to false
// if the range of float32 exponents is too small for the row, or too little of a model is common.
template <int kWarps>
__device__ __forceinline__ Next begin_search(BlockState<kWarps>& state, Search& search, RowFrame& row, Found& found,
                                             int32_t vocab, int slot, unsigned lane, bool* reachable) {
  static_assert(kWarp == 4 * kLanesOfGroup, "four groups of lanes");
  const double epsilon = state.epsilon;
  row.scale = state.temperature.scale;
  // 1. A lane's two sections, and which of their sums the lane adds: the moments at beta = 0 and 1, then the masses of
  // both models, with what the other one masks.
  const unsigned pair = lane % kLanesOfGroup, group = lane / kLanesOfGroup, at_one = group % 2;
  const bool whole = group >= 2;
  const Record* const records = &state.record[slot][2 * pair];
  // 2. The row's frame and extremes are the maxima over its sections.
  const SliceFrame a = records[0].frame, b = records[1].frame;
  const int shift_student = __reduce_max_sync(kAllLanes, max(a.shift_student, b.shift_student)),
            shift_teacher = __reduce_max_sync(kAllLanes, max(a.shift_teacher, b.shift_teacher));
  row.max_student = from_ordered(__reduce_max_sync(kAllLanes, max(a.max_student, b.max_student)));
  row.max_teacher = from_ordered(__reduce_max_sync(kAllLanes, max(a.max_teacher, b.max_teacher)));
  const float high = from_ordered(__reduce_max_sync(kAllLanes, max(a.high, b.high))),
              low = from_ordered(__reduce_min_sync(kAllLanes, min(a.low, b.low)));
  row.range = (high - low) * (row.scale * kLn2Float);
  row.shift_student = static_cast<float>(shift_student);
  row.shift_teacher = static_cast<float>(shift_teacher);
  // 3. The sums over the sections in the row's frame.
  const auto in_frame = [&](const Record& record, const SliceFrame& frame) {
    const bool both = (frame.shift_student > kNoShift) & (frame.shift_teacher > kNoShift);
    const int below_student = frame.shift_student - shift_student, below_teacher = frame.shift_teacher - shift_teacher;
    return FirstSums(record.sums + 4 * at_one, select(whole, record.sums[8 + at_one], 0.0),
                     select(at_one != 0, below_teacher, below_student), select(both, below_teacher - below_student, 0));
  };
  const FirstSums of_a = in_frame(records[0], a), of_b = in_frame(records[1], b);
  state.mass[group][2 * pair] = of_a.mass;
  state.mass[group][2 * pair + 1] = of_b.mass;
  FirstSums sums(of_a, of_b);
  sums.add_over_sections();
  // 4. The nodes of the first two groups. The interpolation has its own logarithms and means, which are ready before
  // those of the answer.
  const float mass = static_cast<float>(sums.mass), inverse = reciprocal(mass), log2_mass = log2_of(mass);
  const float mean = static_cast<float>(sums.first) * inverse;
  const float growth = (log2_mass - __shfl_sync(kAllLanes, log2_mass, 0)) * kLn2Float;
  const float apart = fmaf(mean, kLn2Float, -growth);
  BracketEnd end;
  end.f = select((at_one != 0) & !(apart < 0.0f), apart, 0.0f);
  end.log_gain = growth;
  end.mean = mean * kLn2Float;
  float k2, k3;
  cumulants_of(mean, sums.second * inverse, sums.third * inverse, kLn2Float, &k2, &k3);
  end.log = log_node_of_end(at_one != 0, end.f, k2, k3);
  search.low = from_lane(end, 0.0f, 0);
  search.high = from_lane(end, 1.0f, kLanesOfGroup);
  const float lost = fmaxf(__shfl_sync(kAllLanes, growth, 2 * kLanesOfGroup), 0.0f);
  const float target = (static_cast<float>(epsilon) - lost) * static_cast<float>(1.0 - 0.5 * kTolerance);
  const float root = root_of_interpolation(search.low.log, search.high.log, target, lane);
  // 5. What the answer needs of the groups.
  const double log_mass = log_of(sums.mass).add_to(0.0), log_zero = __shfl_sync(kAllLanes, log_mass, 0);
  const double log_gain = log_mass - log_zero, phi = __shfl_sync(kAllLanes, log_gain, 2 * kLanesOfGroup);
  const double f = fma(sums.first * reciprocal(sums.mass), kLn2, -log_gain);
  const double f_at_one = not_negative(__shfl_sync(kAllLanes, f, kLanesOfGroup));
  const bool disjoint = !(low <= high), some = __all_sync(kAllLanes, sums.mass > kLeastCommonMass);
  search.phi = select(disjoint, static_cast<double>(INFINITY), phi > 0.0 ? phi : 0.0);
  row.log_zero = static_cast<float>(log_zero);
  row.zero_mean = search.low.mean;
  store_if(pair == 0, &state.log_of[group], log_mass);
  // 6. A vocabulary of one token has probability 1, which only double precision gives exactly.
  const bool fault = !((row.max_student < INFINITY) & (row.max_teacher < INFINITY) & (row.max_student > -INFINITY) &
                       (row.max_teacher > -INFINITY));
  const bool framed =
      (vocab > 1) & (fabsf(row.shift_student) <= kLargestShiftOfRow) & (fabsf(row.shift_teacher) <= kLargestShiftOfRow);
  *reachable = fault | (framed & (disjoint | ((row.range <= static_cast<float>(kLargestRangeOnGpu)) & some)));
  return search.begin(select(fault, static_cast<double>(NAN), epsilon), f_at_one, 8e-6f + 4e-7f * row.range, root,
                      found);
}

// Plans the sweep at search.beta (csrc/solver/sweep_plan.h). The plan's action is kDouble if float32 exponents could
// overflow there, and else kSweep.
template <typename T>
__device__ __forceinline__ Plan plan_sweep(const Search& search, const RowFrame& row) {
  const BracketEnd &low = search.low, &high = search.high;
  const float beta = search.beta, width = high.log.beta - low.log.beta, ahead = beta - low.log.beta;
  const float t = ahead * reciprocal(width);
  const float from_low = fmaf(ahead, low.mean, low.log_gain), from_high = fmaf(ahead - width, high.mean, high.log_gain);
  const float tangent = from_low > from_high ? from_low : from_high;
  const float tilted = beta * (high.mean - low.mean);  // the exponents at the means, from the center between them
  const float headroom = coarse(search.headroom);
  const bool stable = (headroom < static_cast<float>(kStableBelow)) | (high.f < static_cast<float>(kStableBelow)) |
                      (headroom < kStableBelowPerNatOfTilt * tilted);
  const float center = select(stable, row.zero_mean, fmaf(high.mean - low.mean, t, low.mean));
  const float chord = fmaf(t, high.log_gain - low.log_gain, low.log_gain);
  const float overshoot = select(stable, -beta * center, chord - tangent);
  const float kappa = select(stable, 0.0f, floorf(fmaf(-beta, center, row.log_zero + tangent) * kLog2eFloat));
  Plan plan;
  plan.frame.scale = row.scale;
  plan.frame.shift = row.shift_student + kappa;
  plan.frame.center = difference_at<T>(row, center);
  plan.frame.slope = beta * row.scale;
  plan.frame.tilt = select(stable, plan.frame.slope * kLn2Float, 0.0f);
  plan.frame.offset = plan.frame.tilt * plan.frame.center;
  plan.frame.base_student = row.max_student;
  plan.frame.base_teacher = row.max_teacher;
  plan.form = stable ? Form::kStable : Form::kDirect;
  plan.action = overshoot <= static_cast<float>(kLargestExponent) ? Action::kSweep : Action::kDouble;
  plan.kappa = kappa;
  plan.swept = beta;
  plan.search = search;
  return plan;
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
__device__ __forceinline__ void frame_residual(BlockState<kWarps>& state, const ExactFrame& last, const RowFrame& row,
                                               const Units& units) {
  const Answer& answer = state.answer;
  ExactFrame& frame = state.residual_frame;
  frame = last;
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

// All lanes of warp 0: keeps what the search has found, and writes the outputs that need no logits of the row. `plan`
// is that of the last exact sweep.
template <typename T, int kWarps>
__device__ __forceinline__ void finish(const KernelArgs& args, BlockState<kWarps>& state, int64_t row_index,
                                       const Cluster& cluster, int lane, const Search& search, const Found& found,
                                       const SweptNode& node, double center, const RowFrame& row, const Plan& last,
                                       Plan& next) {
  const bool fault = found.status == Status::kFault, writes = (cluster.rank == 0) & (lane == 0);
  // 1. Without a draw the answer itself is all that is written here.
  if (!args.draws()) {
    if (writes) {
      args.beta[row_index] = select(fault, NAN, found.beta);
      args.kl[row_index] = select(fault, NAN, static_cast<float>(found.kl));
      if (args.sweeps != nullptr) args.sweeps[row_index] = search.sweeps;
    }
    if (args.log_probs == nullptr) {
      if (lane == 0) {
        next.frame = ExactFrame{};  // which is loaded together with the action
        next.form = Form::kDirect;
        next.action = Action::kDone;
      }
      return;
    }
  }
  // 2. Otherwise all threads need more of it.
  const Units units = Units::of<T>(row);
  const Answer answer = answer_of(state, search, found, node, center, row, units);
  if (lane != 0) return;
  state.answer = answer;
  state.shift = found.shift;
  next.frame = last.frame;
  next.frame.slope = found.beta * row.scale;  // for the weights from which a token is drawn
  next.form = last.form;
  next.action = Action::kOutputs;
  next.swept = last.swept;
  const TokenFrom from = args.draws() ? token_from<false>(args, state)
                         : fault      ? TokenFrom::kFault
                                      : TokenFrom::kNowhere;
  state.token_from = from;
  if (from == TokenFrom::kResidual) frame_residual<T>(state, next.frame, row, units);
  if (writes & args.draws()) write_without_a_draw(args, row_index, state);
}

// All lanes of warp 0: decides what follows the first sweep. Neither decision is inlined, to save the kernel's
// registers.
template <typename T, int kWarps>
__device__ __noinline__ void decide_first(const KernelArgs& args, BlockState<kWarps>& state, int64_t row_index,
                                          Cluster cluster, int slot, int lane) {
  Search search;
  Found found;
  RowFrame row;
  bool reachable;
  Plan& next = state.plan[slot ^ 1];
  const Next what = begin_search(state, search, row, found, args.vocab, slot, lane, &reachable);
  if (!std::is_same_v<T, float>) {
    const bool apart = fabsf(row.max_student - row.max_teacher) > kLargestOffset;
    reachable = reachable & (!apart | (found.status == Status::kFault));
  }
  if ((what == Next::kSweep) | !reachable) {
    Plan plan = plan_sweep<T>(search, row);
    plan.action = reachable ? plan.action : Action::kDouble;
    if (lane != 0) return;
    next = plan;
    state.row = row;
    state.answer.sweeps = search.sweeps;
    if (plan.action == Action::kSweep) cluster.expect(words_of(plan.form), &state.arrived[slot ^ 1]);
    return;
  }
  __syncwarp();  // every lane has written its logarithms
  finish<T>(args, state, row_index, cluster, lane, search, found, SweptNode{}, 0.0, row, Plan{}, next);
}

// All lanes of warp 0: decides what follows an exact sweep. What does not depend on its sums is computed while they are
// on their way.
template <typename T, int kWarps>
__device__ __noinline__ void decide(const KernelArgs& args, BlockState<kWarps>& state, int64_t row_index,
                                    Cluster cluster, int exchange, int lane) {
  const int slot = exchange & 1;
  const Plan& last = state.plan[slot];
  Plan& next = state.plan[slot ^ 1];
  Search search = last.search;
  const RowFrame row = state.row;
  const Units units = Units::of<T>(row);
  const bool stable = last.form == Form::kStable;
  double difference = last.frame.center;
  if (stable) difference = last.frame.offset * reciprocal(static_cast<double>(last.frame.tilt));
  const double center = units.of_difference(difference);
  const double log_of_factor = last.kappa * kLn2 - state.log_of[0];
  cluster.wait(&state.arrived[slot], exchange >> 1);
  const double of_lane = sum_of_lane(state, slot, min(lane, words_of(last.form) - 1));
  const JudgedNode judged =
      stable ? node_of_stable_sums(search.beta, of_lane, search.headroom)
             : node_of_direct_sums(search.beta, of_lane, units.inverse_temperature, log_of_factor, search.headroom);
  Found found;
  Next what = search.update(judged.node, judged.room, center, row.range, found);
  if (what == Next::kPropose) what = search.propose(lane, found);
  if (what == Next::kSweep) {
    const Plan plan = plan_sweep<T>(search, row);
    if (lane != 0) return;
    next = plan;
    state.answer.sweeps = search.sweeps;
    if (plan.action == Action::kSweep) cluster.expect(words_of(plan.form), &state.arrived[slot ^ 1]);
    return;
  }
  finish<T>(args, state, row_index, cluster, lane, search, found, judged.node, center, row, last, next);
}

}  // namespace trb::cuda
