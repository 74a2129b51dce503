// The Python module affinity_pool._C. Importing it registers the kernels; it says what they were built for.
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "cpu/kernels.h"

namespace {

PyObject* cpu_instruction_set(PyObject*, PyObject*) {
  return PyUnicode_FromString(affinity_pool::cpu::instruction_set());
}

PyMethodDef methods[] = {
    {"cpu_instruction_set", cpu_instruction_set, METH_NOARGS, "The instruction set that the CPU kernels use here."},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

extern "C" __attribute__((visibility("default"))) PyObject* PyInit__C() { return PyModule_Create(&module); }
