// One column of results per operation: out[k * n + i]. The test holds the same list of operations.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

template <class T>
struct Columns {
  T* out;
  int n, i, k = 0;
  __device__ void operator()(T value) { out[k++ * n + i] = value; }
};
#define INDEX                                    \
  int i = blockIdx.x * blockDim.x + threadIdx.x; \
  if (i >= n) return

#define ASM2(type, constraint, name, text)                                       \
  __device__ type name(type a, type b) {                                         \
    type d;                                                                      \
    asm(text " %0, %1, %2;" : "=" constraint(d) : constraint(a), constraint(b)); \
    return d;                                                                    \
  }
#define ASM1(to, cto, from, cfrom, name, text)    \
  __device__ to name(from a) {                    \
    to d;                                         \
    asm(text " %0, %1;" : "=" cto(d) : cfrom(a)); \
    return d;                                     \
  }
ASM2(float, "f", add_ftz, "add.ftz.f32")
ASM2(float, "f", mul_sat, "mul.sat.f32")
ASM2(float, "f", min_nan, "min.NaN.f32")
ASM2(float, "f", copysign_ptx, "copysign.f32")

extern "C" __global__ void float32_ops(const float* a, const float* b, const float* c, float* out, int n) {
  INDEX;
  Columns<float> put{out, n, i};
  float x = a[i], y = b[i], z = c[i];
  put(__fadd_rn(x, y));
  put(__fadd_rz(x, y));
  put(__fadd_rd(x, y));
  put(__fadd_ru(x, y));
  put(__fmul_rn(x, y));
  put(__fmul_rz(x, y));
  put(__fmul_rd(x, y));
  put(__fmul_ru(x, y));
  put(__fmaf_rn(x, y, z));
  put(__fmaf_rz(x, y, z));
  put(__fmaf_rd(x, y, z));
  put(__fmaf_ru(x, y, z));
  put(__fdiv_rn(x, y));
  put(__fsqrt_rn(fabsf(x)));
  put(__frcp_rn(x));
  put(fminf(x, y));
  put(fmaxf(x, y));
  put(add_ftz(x, y));
  put(mul_sat(x, y));
  put(min_nan(x, y));
  put(copysign_ptx(x, y));
}
extern "C" __global__ void float64_ops(const double* a, const double* b, const double* c, double* out, int n) {
  INDEX;
  Columns<double> put{out, n, i};
  double x = a[i], y = b[i], z = c[i];
  put(__dadd_rn(x, y));
  put(__dadd_rz(x, y));
  put(__dadd_rd(x, y));
  put(__dadd_ru(x, y));
  put(__dmul_rn(x, y));
  put(__dmul_rz(x, y));
  put(__dmul_rd(x, y));
  put(__dmul_ru(x, y));
  put(__fma_rn(x, y, z));
  put(__ddiv_rn(x, y));
  put(__dsqrt_rn(fabs(x)));
  put(__drcp_rn(x));
  put(fmin(x, y));
  put(fmax(x, y));
}
extern "C" __global__ void libdevice_ops(const double* a, double* out, int n) {
  INDEX;
  Columns<double> put{out, n, i};
  double x = a[i];
  put(exp(x));
  put(log(fabs(x)));
  put(log1p(fabs(x)));
  put(expm1(x));
  put(nextafter(x, 1e300));
  put(nextafter(x, -1e300));
}
extern "C" __global__ void approx_ops(const float* a, float* out, int n) {
  INDEX;
  Columns<float> put{out, n, i};
  float x = a[i];
  put(exp2f(x));
  put(__expf(x));
  put(__log2f(fabsf(x)));
  put(rsqrtf(fabsf(x)));
  put(__fdividef(1.f, x));
  float t;
  asm("tanh.approx.f32 %0, %1;" : "=f"(t) : "f"(x));
  put(t);
}
// Both formats are driven through 16-bit patterns, packed: element i with element i of the other operand array.
template <class H2>
__device__ H2 load(const uint16_t* p, int i, int n) {
  uint32_t bits = p[i] | (uint32_t)p[n - 1 - i] << 16;
  return *reinterpret_cast<H2*>(&bits);
}
template <class H2>
__device__ void half_columns(const uint16_t* a, const uint16_t* b, const uint16_t* c, uint32_t* out, int n) {
  INDEX;
  H2 x = load<H2>(a, i, n), y = load<H2>(b, i, n), z = load<H2>(c, i, n);
  H2 r[] = {__hadd2(x, y), __hsub2(x, y),     __hmul2(x, y), __hfma2(x, y, z), __hmin2(x, y),
            __hmax2(x, y), __hmax2_nan(x, y), __hneg2(x),    __habs2(x)};
  for (int k = 0; k < 9; k++) out[k * n + i] = *reinterpret_cast<uint32_t*>(&r[k]);
}
extern "C" __global__ void half_ops(const uint16_t* a, const uint16_t* b, const uint16_t* c, uint32_t* out, int n) {
  half_columns<__half2>(a, b, c, out, n);
}
extern "C" __global__ void bfloat_ops(const uint16_t* a, const uint16_t* b, const uint16_t* c, uint32_t* out, int n) {
  half_columns<__nv_bfloat162>(a, b, c, out, n);
}

extern "C" __global__ void narrow_ops(const float* a, const double* b, uint16_t* out, int n) {
  INDEX;
  Columns<uint16_t> put{out, n, i};
  __nv_bfloat162 pair = __floats2bfloat162_rn(a[i], -a[i]);
  __half2 halves = __floats2half2_rn(a[i], -a[i]);
  put(__bfloat16_as_ushort(__float2bfloat16_rn(a[i])));
  put(__bfloat16_as_ushort(pair.x));
  put(__bfloat16_as_ushort(pair.y));
  put(__half_as_ushort(__float2half_rn(a[i])));
  put(__half_as_ushort(halves.x));
  put(__half_as_ushort(halves.y));
}
extern "C" __global__ void widen_ops(const uint16_t* a, float* out, int n) {
  INDEX;
  Columns<float> put{out, n, i};
  put(__bfloat162float(__ushort_as_bfloat16(a[i])));
  put(__half2float(__ushort_as_half(a[i])));
}
extern "C" __global__ void float_to_int(const double* a, long long* out, int n) {
  INDEX;
  Columns<long long> put{out, n, i};
  double x = a[i];
  float f = (float)x;
  put(__double2int_rn(x));
  put(__double2int_rz(x));
  put(__double2int_rd(x));
  put(__double2int_ru(x));
  put(__double2ll_rn(x));
  put(__double2ll_rz(x));
  put(__double2uint_rz(x));
  put((long long)__double2ull_rz(x));
  put(__float2int_rn(f));
  put(__float2uint_rd(f));
  put((long long)(signed char)__float2int_rz(f));
  put((short)__float2int_rz(f));
}
extern "C" __global__ void int_to_float(const long long* a, double* out, int n) {
  INDEX;
  Columns<double> put{out, n, i};
  long long x = a[i];
  put(__ll2float_rn(x));
  put(__ll2float_rz(x));
  put(__ll2float_rd(x));
  put(__ll2float_ru(x));
  put(__ll2double_rn(x));
  put(__ll2double_rd(x));
  put(__int2float_rn((int)x));
  put(__uint2float_rz((unsigned)x));
  put(__ull2double_ru((unsigned long long)x));
  put((double)(int)x);
}
ASM2(uint32_t, "r", add_sat, "add.sat.s32")
extern "C" __global__ void int32_ops(const uint32_t* a, const uint32_t* b, const uint32_t* c, uint32_t* out, int n) {
  INDEX;
  Columns<uint32_t> put{out, n, i};
  uint32_t x = a[i], y = b[i], z = c[i], d;
  put(x * y + z);
  put(__umulhi(x, y));
  put(__mulhi((int)x, (int)y));
  put(x / y);
  put(x % y);
  put((int)x / (int)y);
  put((int)x % (int)y);
  put(x << (y & 63));
  put(x >> (y & 63));
  put((int)x >> (y & 31));
  put(__popc(x));
  put(__clz(x));
  put(__brev(x));
  put(__ffs(x));
  put(__funnelshift_l(x, y, z));
  put(__funnelshift_rc(x, y, z & 63));
  put(__byte_perm(x, y, z));
  put(__sad((int)x, (int)y, z));
  put(min((int)x, (int)y));
  put(max(x, y));
  put(add_sat(x, y));
  asm("bfe.u32 %0, %1, %2, %3;" : "=r"(d) : "r"(x), "r"(y & 63), "r"(z & 63));
  put(d);
  asm("bfe.s32 %0, %1, %2, %3;" : "=r"(d) : "r"(x), "r"(y & 63), "r"(z & 63));
  put(d);
  asm("bfi.b32 %0, %1, %2, %3, %4;" : "=r"(d) : "r"(x), "r"(y), "r"(y & 63), "r"(z & 63));
  put(d);
  asm("bfind.u32 %0, %1;" : "=r"(d) : "r"(x));
  put(d);
  asm("bfind.shiftamt.s32 %0, %1;" : "=r"(d) : "r"(x));
  put(d);
  asm("lop3.b32 %0, %1, %2, %3, 0xe8;" : "=r"(d) : "r"(x), "r"(y), "r"(z));
  put(d);
  asm("slct.u32.s32 %0, %1, %2, %3;" : "=r"(d) : "r"(x), "r"(y), "r"(z));
  put(d);
}
extern "C" __global__ void int64_ops(const uint64_t* a, const uint64_t* b, uint64_t* out, int n) {
  INDEX;
  Columns<uint64_t> put{out, n, i};
  uint64_t x = a[i], y = b[i];
  put(x * y);
  put(__umul64hi(x, y));
  put(__mul64hi((long long)x, (long long)y));
  put((long long)x / (long long)y);
  put(x % y);
  put((uint64_t)(uint32_t)x * (uint32_t)y);
  put((long long)(int)x * (int)y);
  put(x << (y & 63));
  put((long long)x >> (y & 63));
  put(__popcll(x));
  put(__clzll(x));
  put(__brevll(x));
  put((uint64_t)(long long)(short)x);
  put((uint64_t)(uint8_t)x);
}
// Bit k of out[i]: comparison k of a[i] and b[i].
extern "C" __global__ void comparisons(const float* a, const float* b, uint32_t* out, int n) {
  INDEX;
  uint32_t bits = 0, p;
#define COMPARE(k, name)                                                                                        \
  asm("{ .reg .pred q; setp." name ".f32 q, %1, %2; selp.u32 %0, 1, 0, q; }" : "=r"(p) : "f"(a[i]), "f"(b[i])); \
  bits |= p << k
  COMPARE(0, "eq");
  COMPARE(1, "ne");
  COMPARE(2, "lt");
  COMPARE(3, "le");
  COMPARE(4, "gt");
  COMPARE(5, "ge");
  COMPARE(6, "equ");
  COMPARE(7, "neu");
  COMPARE(8, "ltu");
  COMPARE(9, "leu");
  COMPARE(10, "gtu");
  COMPARE(11, "geu");
  COMPARE(12, "num");
  COMPARE(13, "nan");
  asm("{ .reg .pred q, r; setp.lt.f32 q|r, %1, %2; selp.u32 %0, 1, 0, r; }" : "=r"(p) : "f"(a[i]), "f"(b[i]));
  bits |= p << 14;
  asm("{ .reg .pred q, r; setp.gt.f32 r, %1, 0f00000000; setp.lt.and.f32 q, %1, %2, !r; selp.u32 %0, 1, 0, q; }"
      : "=r"(p)
      : "f"(a[i]), "f"(b[i]));
  bits |= p << 15;
  asm("{ .reg .pred q; testp.subnormal.f32 q, %1; selp.u32 %0, 1, 0, q; }" : "=r"(p) : "f"(a[i]), "f"(b[i]));
  bits |= p << 16;
  out[i] = bits;
}
#if __CUDA_ARCH__ >= 1000
extern "C" __global__ void packed_float32(const uint64_t* a, const uint64_t* b, const uint64_t* c, uint64_t* out,
                                          int n) {
  INDEX;
  uint64_t d;
  asm("fma.rn.f32x2 %0, %1, %2, %3;" : "=l"(d) : "l"(a[i]), "l"(b[i]), "l"(c[i]));
  out[i] = d;
  asm("add.rn.f32x2 %0, %1, %2;" : "=l"(d) : "l"(a[i]), "l"(b[i]));
  out[n + i] = d;
  asm("mul.rn.f32x2 %0, %1, %2;" : "=l"(d) : "l"(a[i]), "l"(b[i]));
  out[2 * n + i] = d;
}
extern "C" __global__ void max3(const float* a, const float* b, const float* c, float* out, int n) {
  INDEX;
  float d;
  asm("max.f32 %0, %1, %2, %3;" : "=f"(d) : "f"(a[i]), "f"(b[i]), "f"(c[i]));
  out[i] = d;
}
#endif
