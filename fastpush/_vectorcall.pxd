# cython: language_level=3
"""The arguments of a call, sorted into an array without a tuple, a dict or a default (PEP 590).

For the classes that are made once per push. Cython's own parsing fills what is left out with None and
takes it back, one reference at a time: on CPython 3.11 that was a third of the time to make an `Alert`.
A class whose `tp_vectorcall` is one of ours must be final, since subtypes do not inherit the slot, and has
a `tp_new` that goes the same way (`call_with_tuple`), for those who call it by an older road. The class's
own module still gets an empty object by `Kind.__new__(Kind)`, which Cython binds when it compiles.
"""

from cpython.ref cimport Py_INCREF, Py_XDECREF, PyObject
from libc.string cimport memcpy

cdef extern from "Python.h":
    ctypedef PyObject *(*vectorcallfunc)(PyObject *, PyObject **, size_t, PyObject *) except NULL
    ctypedef PyObject *(*newfunc)(PyTypeObject *, PyObject *, PyObject *)
    ctypedef struct PyTypeObject:
        newfunc tp_new
        vectorcallfunc tp_vectorcall
    PyObject **PySequence_Fast_ITEMS(object list) noexcept
    Py_ssize_t PyVectorcall_NARGS(size_t nargsf) noexcept nogil
    PyObject *PyTuple_GET_ITEM(PyObject *tuple, Py_ssize_t place) noexcept nogil
    Py_ssize_t PyTuple_GET_SIZE(PyObject *tuple) noexcept nogil


cdef enum:
    MOST_NAMES = 16             # arguments of a class


cdef struct LastCall:
    PyObject *kwnames           # owned; NULL before the first call
    Py_ssize_t given            # arguments without a name in that call
    unsigned char[MOST_NAMES] places     # where its names belong


cdef inline int sort_arguments(
    LastCall *last, PyObject **values, tuple names, Py_ssize_t positional, Py_ssize_t needed, str function,
    PyObject **args, size_t nargsf, PyObject *kwnames,
) except -1:
    """Put each argument, borrowed, at its name's place in `values`, which holds NULL everywhere.

    The first `positional` may come without a name, the first `needed` may not be left out. Raises TypeError.

    A place in the code calls with the same tuple of names each time: `last` keeps what was found for it, which
    saves two thirds of the instructions of this function.
    """
    cdef Py_ssize_t given = PyVectorcall_NARGS(nargsf), count = PyTuple_GET_SIZE(<PyObject *>names)
    cdef Py_ssize_t place, keyword, tried, candidate = 0
    cdef PyObject *name
    cdef unsigned char places[MOST_NAMES]
    if count > MOST_NAMES:
        raise AssertionError("MOST_NAMES is too low")
    if given > positional:
        raise TypeError(f"{function}() takes {positional} arguments without a name; {given} were given")
    for place in range(given):
        values[place] = args[place]
    if kwnames is not NULL and kwnames == last.kwnames and given == last.given:
        for keyword in range(PyTuple_GET_SIZE(kwnames)):
            values[last.places[keyword]] = args[given + keyword]
    elif kwnames is not NULL:
        for keyword in range(PyTuple_GET_SIZE(kwnames)):
            # Names are interned and mostly come in our order: look from where the last one was found.
            name = PyTuple_GET_ITEM(kwnames, keyword)
            for tried in range(count):
                if PyTuple_GET_ITEM(<PyObject *>names, candidate) == name:
                    break
                candidate += 1
                if candidate == count:
                    candidate = 0
            else:
                if <object>name not in names:
                    raise TypeError(f"{function}() has no argument {<object>name!r}")
                candidate = names.index(<object>name)
            if values[candidate] is not NULL:
                raise TypeError(f"{function}() got {<object>name!r} twice")
            values[candidate] = args[given + keyword]
            places[keyword] = <unsigned char>candidate
        # Only now: comparing names may have run a caller's code, and that may have come here too.
        name = last.kwnames
        Py_INCREF(<object>kwnames)
        last.kwnames = kwnames
        last.given = given
        memcpy(last.places, places, <size_t>PyTuple_GET_SIZE(kwnames))
        Py_XDECREF(name)
    for place in range(needed):
        if values[place] is NULL:
            raise TypeError(f"{function}() needs {names[place]!r}")
    return 0


cdef inline PyObject *call_with_tuple(
    vectorcallfunc make, PyObject *kind, PyObject *args, PyObject *kwargs
) except NULL:
    """Call a `tp_vectorcall` with what a `tp_new` is given."""
    cdef tuple names = None if kwargs is NULL else tuple(<dict>kwargs)
    cdef list values = list(<tuple>args)
    cdef size_t given = <size_t>len(values)
    if names is not None:
        values.extend((<dict>kwargs).values())
    return make(kind, PySequence_Fast_ITEMS(values), given, NULL if names is None else <PyObject *>names)
