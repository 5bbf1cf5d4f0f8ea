// A numpy ufunc: a * b + c in float32 or float64, rounded once.
#define NPY_NO_DEPRECATED_API NPY_1_7_API_VERSION
#include <Python.h>
#include <math.h>
#include <numpy/ndarraytypes.h>
#include <numpy/ufuncobject.h>

#define FUSED(name, type, fused)                                                                        \
  static void name(char** arrays, const npy_intp* counts, const npy_intp* strides, void* unused) {      \
    const npy_intp n = counts[0], size = sizeof(type);                                                  \
    if (strides[0] == size && strides[1] == size && strides[2] == size && strides[3] == size) {         \
      const type *a = (const type*)arrays[0], *b = (const type*)arrays[1], *c = (const type*)arrays[2]; \
      type* out = (type*)arrays[3];                                                                     \
      for (npy_intp i = 0; i < n; ++i) out[i] = fused(a[i], b[i], c[i]);                                \
      return;                                                                                           \
    }                                                                                                   \
    for (npy_intp i = 0; i < n; ++i)                                                                    \
      *(type*)(arrays[3] + i * strides[3]) =                                                            \
          fused(*(const type*)(arrays[0] + i * strides[0]), *(const type*)(arrays[1] + i * strides[1]), \
                *(const type*)(arrays[2] + i * strides[2]));                                            \
    (void)unused;                                                                                       \
  }

FUSED(fused_float32, float, fmaf)
FUSED(fused_float64, double, fma)

static PyUFuncGenericFunction loops[] = {fused_float32, fused_float64};
static void* data[] = {NULL, NULL};
static const char types[] = {NPY_FLOAT,  NPY_FLOAT,  NPY_FLOAT,  NPY_FLOAT,
                             NPY_DOUBLE, NPY_DOUBLE, NPY_DOUBLE, NPY_DOUBLE};
static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "fused", NULL, -1, NULL, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit_fused(void) {
  import_array();
  import_umath();
  PyObject* module = PyModule_Create(&definition);
  if (module == NULL) return NULL;
  PyObject* fma = PyUFunc_FromFuncAndData(loops, data, types, 2, 3, 1, PyUFunc_None, "fma", "a * b + c", 0);
  if (fma == NULL || PyModule_AddObject(module, "fma", fma) < 0) return NULL;
  return module;
}
