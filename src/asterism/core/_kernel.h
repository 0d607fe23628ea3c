/* What the kernels' Python sides share. Include it after Python.h. */
#ifndef ASTERISM_KERNEL_H
#define ASTERISM_KERNEL_H

/* The first `count` names of levels as a tuple. */
static inline PyObject *tuple_of(const char *const *names, int count) {
    PyObject *tuple = PyTuple_New(count);
    for (int i = 0; tuple && i < count; i++) {
        PyObject *name = PyUnicode_FromString(names[i]);
        if (!name || PyTuple_SetItem(tuple, i, name) < 0) Py_CLEAR(tuple);
    }
    return tuple;
}

/* A tuple of k addresses into `to`; 0 with an exception set when it is something else. */
static inline int addresses(PyObject *tuple, Py_ssize_t k, const void **to) {
    if (PyTuple_Size(tuple) != k) {
        if (!PyErr_Occurred()) PyErr_SetString(PyExc_ValueError, "as many weights as tensors");
        return 0;
    }
    for (Py_ssize_t i = 0; i < k; i++) {
        to[i] = PyLong_AsVoidPtr(PyTuple_GetItem(tuple, i));
        if (PyErr_Occurred()) return 0;
    }
    return 1;
}

#endif
