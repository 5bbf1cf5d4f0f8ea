// chip_probe: measures on a GPU what the model of the kernels (benchmarks/models/cuda_model.py) assumes, as JSON.
//
//   nvcc -std=c++17 -O3 -arch=native benchmarks/chip_probe/main.cu -o chip_probe && ./chip_probe > chip.json
//   python -m benchmarks.models.cuda_model --chip chip.json
//
// Takes some seconds and 2 GB of device memory. Cycles are those of the multiprocessors' clock.
#include "clusters.cuh"
#include "latencies.cuh"
#include "memory.cuh"
#include "sweeps.cuh"

using namespace chip;

namespace {

constexpr int kSharedKilobytes[] = {76,  101, 107,
                                    152, 203, 220};  // of a block: two of the first three, one of the rest
constexpr int kMeetingRanks[] = {2, 6, 8};

void print_clusters() {
  require(cudaFuncSetAttribute(occupant, cudaFuncAttributeNonPortableClusterSizeAllowed, 1), "large clusters");
  std::printf("  \"clusters_at_once\": {");
  const char* separator = "";
  for (const int kilobytes : kSharedKilobytes) {
    std::printf("%s\n    \"%d\": [", separator, kilobytes);
    for (int ranks = 1; ranks <= kLargestCluster; ++ranks) {
      std::printf("%s%d", ranks > 1 ? ", " : "", clusters_at_once(ranks, kilobytes));
    }
    std::printf("]");
    separator = ",";
  }
  std::printf("\n  },\n");
  std::fflush(stdout);
}

void print_meetings() {
  std::printf("  \"meeting_cycles\": {");
  for (const Meeting meeting : {Meeting::kStoreAndBarrier, Meeting::kBarrier, Meeting::kAsyncStore}) {
    std::printf("%s\n    \"%s\": {", meeting == Meeting::kStoreAndBarrier ? "" : ",",
                kMeetings[static_cast<int>(meeting)]);
    for (const int ranks : kMeetingRanks) {
      std::printf("%s\"%d\": %.1f", ranks == kMeetingRanks[0] ? "" : ", ", ranks, probe_meeting(meeting, ranks));
    }
    std::printf("}");
  }
  std::printf("\n  },\n");
  std::fflush(stdout);
}

}  // namespace

int main() {
  cudaDeviceProp device;
  require(cudaGetDeviceProperties(&device, 0), "no device");
  const int multiprocessors = device.multiProcessorCount;
  std::printf("{\n  \"gpu\": \"%s\",\n  \"capability\": \"%d%d\",\n  \"multiprocessors\": %d,\n", device.name,
              device.major, device.minor, multiprocessors);
  std::printf("  \"l2_bytes\": %d,\n  \"shared_bytes_per_multiprocessor\": %zu,\n", device.l2CacheSize,
              device.sharedMemPerMultiprocessor);

  const Memory memory = probe_memory(multiprocessors);
  std::printf("  \"clock_ghz\": %.4f,\n  \"copy_gb_per_s\": %.1f,\n  \"launch_us\": %.2f,\n", memory.clock_ghz,
              memory.copy_gb_per_s, memory.launch_us);
  std::printf("  \"load_latency_cycles\": {\"device\": %.1f, \"cache\": %.1f},\n", memory.device_latency,
              memory.cache_latency);
  std::printf("  \"stream\": {\"device\": {\"start_cycles\": %.1f, \"bytes_per_cycle\": %.2f}, ", memory.device_start,
              memory.device_rate);
  std::printf("\"cache\": {\"start_cycles\": %.1f, \"bytes_per_cycle\": %.2f}, ", memory.cache_start,
              memory.cache_rate);
  std::printf("\"every_multiprocessor\": {\"gb_per_s\": %.1f}},\n", memory.cache_gb_per_s);

  float cycles[kLatencyCount];
  probe_latencies(cycles);
  std::printf("  \"latency_cycles\": {");
  for (int k = 0; k < kLatencyCount; ++k) std::printf("%s\"%s\": %.1f", k > 0 ? ", " : "", kLatencies[k], cycles[k]);
  std::printf("},\n");
  std::fflush(stdout);

  if (device.major >= 9) {
    print_clusters();
    print_meetings();
  }
  std::printf("  \"sweep_cycles_per_pair\": {");
  for (int blocks = 1; blocks <= 2; ++blocks) {
    std::printf("%s\"%d\": {\"first\": %.4f, \"direct\": %.4f, \"stable\": %.4f}", blocks > 1 ? ", " : "", blocks,
                probe_sweep<trb::cuda::EndsSweep>(multiprocessors, blocks),
                probe_sweep<trb::cuda::DirectSweep>(multiprocessors, blocks),
                probe_sweep<trb::cuda::StableSweep>(multiprocessors, blocks));
  }
  std::printf("}\n}\n");
  return 0;
}
