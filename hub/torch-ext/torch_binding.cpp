// Lets Python import the library, which is all that the hub's loader asks of it: the ops are registered in csrc as it
// is loaded, under the name of the library. The builder's generated _ops.py imports it.
#include <Python.h>

#define AP_JOIN(a, b) a##b
#define AP_INIT(name) AP_JOIN(PyInit_, name)
#define AP_QUOTE(name) #name
#define AP_TEXT(name) AP_QUOTE(name)

PyMODINIT_FUNC AP_INIT(TORCH_EXTENSION_NAME)() {
  static PyModuleDef module = {PyModuleDef_HEAD_INIT, AP_TEXT(TORCH_EXTENSION_NAME), nullptr, 0, nullptr};
  return PyModule_Create(&module);
}
