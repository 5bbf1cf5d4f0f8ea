// Solves rows whose teacher is k tokens, one block per row, for all of solve, blend, sample and verify.
//
// Device memory is read once per logit, then once more for the block of tokens that a draw falls into and for the k
// logits, which the first-level cache keeps. Sums over the vocabulary are float32 per lane and double over the lanes;
// the k + 1 outcomes are double. All orders of addition are fixed, so that a row's result is bitwise the same in any
// batch.
#include "kernel/row_task.cuh"
#include "kernel/top_k/draw.cuh"
#include "kernel/top_k/solve.cuh"
#include "kernel/top_k/sweep.cuh"

namespace trb::cuda {
namespace {

// Warp 0: finds the arguments of a row.
__device__ __forceinline__ void read_task(const KernelArgs& args, int64_t row, RequestScan* scan, TopKState& state,
                                          int lane) {
  const VerifyArrays& verify = args.verify;
  const int64_t request = args.verifies() ? request_of_row(verify, row, scan, lane) : -1;
  if (lane != 0) return;
  state.fault = 0;
  state.searching = true;
  if (!args.verifies()) {
    state.task = {row, row, 1.0f, 1};
    state.temperature = args.temperature;
    state.epsilon = args.epsilon_per_row ? args.epsilon_per_row[row * args.epsilon_stride] : args.epsilon;
    state.uniform = args.token ? args.uniform[row * args.uniform_stride] : 0.0;
    state.draft = -1;
    return;
  }
  state.task = {0, 0, 1.0f, 0};
  if (request < 0 || !row_in_range(verify, row)) return;
  const int64_t begin = verify.offsets[request], draft = verify.draft_tokens[row];
  const RequestRows rows{begin, verify.offsets[request + 1] - begin, false};
  // A rejected draft needs draw_uniform as well, which is looked at once the draft is rejected.
  const double uniform = draft >= 0 ? verify.accept_uniform[row] : verify.draw_uniform[row];
  state.task = {verify.student_row[row], verify.teacher_row[row], verify.temperature[request],
                !request_at_fault(verify, request, rows) && is_uniform(uniform)};
  state.temperature = Temperature(state.task.temperature);
  state.epsilon = verify.epsilon[request];
  state.uniform = verify.draw_uniform[row];
  state.accept_uniform = uniform;
  state.draft = draft;
}

// One thread: writes all outputs of a row without a fault but log mu.
__device__ __forceinline__ void write_outputs(const KernelArgs& args, int64_t row, const TopKState& state,
                                              int64_t token, const LogProbs& of, Verdict verdict) {
  const float kl = static_cast<float>(state.kl), student = static_cast<float>(of.student),
              teacher = static_cast<float>(of.teacher), behavior = static_cast<float>(of.behavior);
  args.beta[row] = state.beta;
  args.kl[row] = kl;
  if (args.sweeps != nullptr) args.sweeps[row] = 1;
  if (args.verifies()) args.verdicts[row] = {token, verdict, student, teacher, behavior, state.beta, kl};
  if (args.token == nullptr) return;
  args.token[row] = token;
  args.log_prob[row] = behavior;
  args.student_log_prob[row] = student;
  args.teacher_log_prob[row] = teacher;
}

// Warp 0: solves the swept row, draws its token and writes all outputs but log mu. Sets state.fault if it is at fault.
__device__ __forceinline__ void finish_row(const TopKRow& row, int64_t index) {
  const KernelArgs& args = row.args.call;
  TopKState& state = row.state;
  // 1. beta.
  bool fault = !gather_outcomes(row);
  if (!fault) {
    solve_outcomes(row);
    fault = state.status == Status::kFault;
  }
  // 2. The token: the draft, or one that is drawn.
  int64_t token = state.draft;
  LogProbs of{};
  bool accepted = false;
  if (!fault && token >= 0) {
    of = log_probs_at(row, token);
    accepted = is_accepted(state.accept_uniform, of.behavior, of.student);
  }
  if (!fault && args.draws() && !accepted) {
    fault = !is_uniform(state.uniform);
    // If mu is the student, or rounding leaves no mass in max(mu - pi_S, 0), the token is drawn from mu.
    bool residual = token >= 0 && state.status != Status::kStudent;
    token = -1;
#pragma unroll 1
    while (!fault && token < 0) {
      token = draw_token(row, residual, state.uniform);
      fault = token < 0 && !residual;
      residual = false;
    }
    if (!fault) of = log_probs_at(row, token);
  }
  // 3. The outputs. Other lanes may still read state.fault.
  __syncwarp();
  if (row.lane != 0) return;
  if (fault) {
    state.fault = 1;
    write_fault(args, index, 1);
  } else {
    write_outputs(args, index, state, token, of, accepted ? Verdict::kAccepted : Verdict::kDrawn);
  }
}

// All threads: writes log mu. The rest is the student's own log-probability, moved by the one ratio, in the frame of
// its own maximum.
__device__ __forceinline__ void write_log_probs(const TopKRow& row, float* out) {
  const TopKState& state = row.state;
  const int32_t vocab = row.student.vocab;
  if (state.fault != 0) {
    for (int32_t token = threadIdx.x; token < vocab; token += kTopKThreads) out[token] = NAN;
    return;
  }
  const float scale = static_cast<float>(state.temperature.inverse);
  const float at_peak = static_cast<float>(state.log_mu_of_rest - state.log_rest);
  for (int32_t token = threadIdx.x; token < vocab; token += kTopKThreads) {
    const float logit = row.student.logit(token);
    const bool supported = logit > -INFINITY && state.rest_ratio > -INFINITY;
    out[token] = supported ? fmaf(logit - state.rest_peak, scale, at_peak) : -INFINITY;
  }
  // A listed token is written again by the thread that wrote it above, so that no barrier is needed.
  for (int64_t place = 0; place < row.args.teacher.k; ++place) {
    const int64_t token = row.id(place);
    if (token < 0 || token % kTopKThreads != threadIdx.x) continue;
    out[token] = static_cast<float>(row.log_mu(row.outcome(place)));
  }
}

__global__ void __launch_bounds__(kTopKThreads) top_k_rows(const __grid_constant__ TopKArgs args) {
  __shared__ alignas(16) unsigned char storage[sizeof(TopKState)];
  extern __shared__ uint4 of_blocks[];
  TopKState& state = reinterpret_cast<TopKState&>(storage);
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  double* const masses = reinterpret_cast<double*>(of_blocks);
  BlockWeight* const weights = reinterpret_cast<BlockWeight*>(masses + block_count(args.call.vocab));
  state.listed[threadIdx.x] = 0;
  RequestScan scan;
#pragma unroll 1
  for (int64_t index = blockIdx.x; index < args.call.rows; index += gridDim.x) {
    if (warp == 0) read_task(args.call, index, &scan, state, lane);
    __syncthreads();
    const StudentRow student(args.call, state.task);
    const TopKRow row{args, student, state, weights, masses, lane};
    if (state.task.judged != 0) {
      sweep_rest(row, warp);
      if (warp == 0) finish_row(row, index);
    } else if (threadIdx.x == 0) {
      write_fault(args.call, index, 1);
    }
    __syncthreads();  // because log mu needs the answer, and the next row the state
    if (args.call.log_probs == nullptr) continue;
    write_log_probs(row, args.call.log_probs + index * args.call.vocab);
    __syncthreads();
  }
}

}  // namespace

const void* top_k_kernel() { return reinterpret_cast<const void*>(&top_k_rows); }

}  // namespace trb::cuda
