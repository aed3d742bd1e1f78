/* The relay's fast path in C: the same class as router/relay/fastpath.py, which tells what it does and why.
 *
 * One call of this stands between the event loop's read and the peer's write; nothing is allocated unless a read holds more
 * than what passes. A property test of the router holds both forms against each other, byte for byte and counter for counter.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* Python 3.12 has the member types in Python.h, under these names, and deprecates the header. */
#if PY_VERSION_HEX < 0x030C0000
#include <structmember.h>
#define Py_T_INT T_INT
#define Py_T_BOOL T_BOOL
#define Py_T_PYSSIZET T_PYSSIZET
#define Py_T_LONGLONG T_LONGLONG
#define Py_T_OBJECT_EX T_OBJECT_EX
#define Py_READONLY READONLY
#endif

/* All of it as in router/relay/fastpath.py. */
#define INTERFACE 1
#define HOT_KEY_BYTES 33
#define HOT_MASKED_KEY_BYTES 36
#define MAX_HOT_TYPES 8
#define FAIR_BYTES (16 * 1024)
enum { SLOW = 0, BOUNDARY = 1, MIDDLE = 2 };

/* Whatever is written to the attributes, nothing outside of this and of the read is touched: they are checked where they are used.
 * The references are NULL before __init__, after ``del``, and when the collector has taken the object apart. */
typedef struct {
    PyObject_HEAD
    Py_ssize_t left;
    Py_ssize_t entered;
    Py_ssize_t entered_bytes;
    Py_ssize_t max_message_bytes;
    long long events;
    long long skipped_bytes;
    long long counts[2 * MAX_HOT_TYPES];
    PyObject *hot;
    PyObject *write;
    PyObject *slow;
    /* The entry that was found last, NULL when there is none; audio follows audio. An exact bytes object. */
    PyObject *last_prefix;
    Py_ssize_t last_index;
    unsigned char last_key[HOT_MASKED_KEY_BYTES];
    int mode;
    char masked;
    char waiting;
} FastPath;

/* Look a key up. Returns 1 when it is in the table, 0 when it is not, -1 with an exception set. */
static int
look_up(FastPath *self, const unsigned char *key, Py_ssize_t key_size)
{
    if (self->hot == NULL) {
        return 0;
    }
    PyObject *name = PyBytes_FromStringAndSize((const char *)key, key_size);
    if (name == NULL) {
        return -1;
    }
    /* A table may hold keys that run code when they are compared, and that may exchange the table: it is kept meanwhile. */
    PyObject *hot = Py_NewRef(self->hot);
    PyObject *entry = Py_XNewRef(PyDict_GetItemWithError(hot, name));
    Py_DECREF(name);
    int found = entry != NULL ? 1 : PyErr_Occurred() ? -1 : 0;
    if (found == 1) {
        Py_ssize_t index = -1;
        if (!PyTuple_CheckExact(entry) || PyTuple_GET_SIZE(entry) != 2 || !PyBytes_CheckExact(PyTuple_GET_ITEM(entry, 0))) {
            PyErr_SetString(PyExc_TypeError, "hot: expected (bytes, int) for each key");
            found = -1;
        } else {
            index = PyLong_AsSsize_t(PyTuple_GET_ITEM(entry, 1));
            if (index == -1 && PyErr_Occurred()) {
                found = -1;
            } else if (index < 0 || index >= MAX_HOT_TYPES) {
                PyErr_Format(PyExc_ValueError, "hot: found place %zd, expected 0 to %d", index, MAX_HOT_TYPES - 1);
                found = -1;
            } else if (self->hot != hot) {
                /* It was exchanged: what it said does not hold any more. */
                found = 0;
            }
        }
        if (found == 1) {
            Py_XSETREF(self->last_prefix, Py_NewRef(PyTuple_GET_ITEM(entry, 0)));
            self->last_index = index;
            memcpy(self->last_key, key, (size_t)key_size);
        }
        Py_DECREF(entry);
    }
    Py_DECREF(hot);
    return found;
}

/* Returns the type's place in the counts, -1 when these bytes are no hot type's, -2 with an exception set. */
static Py_ssize_t
find(FastPath *self, const unsigned char *first, Py_ssize_t available, const unsigned char *key, Py_ssize_t key_size)
{
    if (self->last_prefix == NULL || memcmp(self->last_key, key, (size_t)key_size) != 0) {
        int found = look_up(self, key, key_size);
        if (found <= 0) {
            return found - 1;
        }
        /* The last reference to an odd table's entry may have been the one that was dropped just now, with code of its own. */
        if (self->last_prefix == NULL) {
            return -1;
        }
    }
    /* From a client the key is all of the prefix. */
    if (!self->masked) {
        Py_ssize_t size = PyBytes_GET_SIZE(self->last_prefix);
        if (size > available || memcmp(first, PyBytes_AS_STRING(self->last_prefix), (size_t)size) != 0) {
            return -1;
        }
    }
    return self->last_index;
}

static void
count(FastPath *self, Py_ssize_t index, Py_ssize_t length)
{
    self->counts[2 * index] += 1;
    self->counts[2 * index + 1] += length;
    self->events += 1;
}

/* Returns 0, -1 with an exception set. */
static int
leave(FastPath *self)
{
    if (self->entered < 0 || self->entered >= MAX_HOT_TYPES) {
        PyErr_Format(PyExc_ValueError, "entered: found place %zd, expected 0 to %d", self->entered, MAX_HOT_TYPES - 1);
        return -1;
    }
    count(self, self->entered, self->entered_bytes);
    self->entered = -1;
    self->left = 0;
    return 0;
}

/* Returns how many bytes pass, -1 with an exception set. */
static Py_ssize_t
skip(FastPath *self, const unsigned char *data, Py_ssize_t size)
{
    Py_ssize_t at = 0;
    if (self->mode == SLOW) {
        return 0;
    }
    if (self->mode == MIDDLE) {
        at = self->left;
        if (at > size) {
            self->left = at - size;
            return size;
        }
        if (at < 0) {
            PyErr_Format(PyExc_ValueError, "left: found %zd, expected 0 or more", at);
            return -1;
        }
        if (self->entered < 0) {
            /* The end of a message that the sink is told of. */
            return 0;
        }
        if (leave(self) < 0) {
            return -1;
        }
        self->mode = BOUNDARY;
    }
    const Py_ssize_t head = self->masked ? 8 : 4;
    const Py_ssize_t key_size = self->masked ? HOT_MASKED_KEY_BYTES : HOT_KEY_BYTES;
    const unsigned char second = self->masked ? 0xFE : 126;
    while (size - at >= head + key_size && data[at] == 0x81 && data[at + 1] == second) {
        const unsigned char *first = data + at + head;
        unsigned char plain[HOT_MASKED_KEY_BYTES];
        const unsigned char *key = first;
        if (self->masked) {
            uint32_t mask, word;
            memcpy(&mask, data + at + 4, 4);
            for (int i = 0; i < HOT_MASKED_KEY_BYTES; i += 4) {
                memcpy(&word, first + i, 4);
                word ^= mask;
                memcpy(plain + i, &word, 4);
            }
            key = plain;
        }
        Py_ssize_t index = find(self, first, size - at - head, key, key_size);
        if (index < 0) {
            if (index == -2) {
                return -1;
            }
            break;
        }
        Py_ssize_t length = (Py_ssize_t)data[at + 2] << 8 | data[at + 3];
        if (length < 126 || length > self->max_message_bytes) {
            break;
        }
        at += head + length;
        if (at > size) {
            self->mode = MIDDLE;
            self->left = at - size;
            self->entered = index;
            self->entered_bytes = length;
            return size;
        }
        count(self, index, length);
    }
    return at;
}

static int
give(PyObject *callable, const char *name, PyObject *data)
{
    if (callable == NULL) {
        PyErr_SetString(PyExc_AttributeError, name);
        return -1;
    }
    /* What is called may exchange the attribute. */
    Py_INCREF(callable);
    PyObject *result = PyObject_CallOneArg(callable, data);
    Py_DECREF(callable);
    if (result == NULL) {
        return -1;
    }
    Py_DECREF(result);
    return 0;
}

static int
expect_bytes(PyObject *data)
{
    if (PyBytes_Check(data)) {
        return 0;
    }
    PyErr_Format(PyExc_TypeError, "found %.100s, expected bytes", Py_TYPE(data)->tp_name);
    return -1;
}

static PyObject *
FastPath_data_received(PyObject *op, PyObject *data)
{
    FastPath *self = (FastPath *)op;
    if (expect_bytes(data) < 0) {
        return NULL;
    }
    Py_ssize_t size = PyBytes_GET_SIZE(data);
    if (size < FAIR_BYTES && !self->waiting) {
        const char *bytes = PyBytes_AS_STRING(data);
        Py_ssize_t passes = skip(self, (const unsigned char *)bytes, size);
        if (passes < 0) {
            return NULL;
        }
        if (passes == size) {
            self->skipped_bytes += size;
            if (give(self->write, "write", data) < 0) {
                return NULL;
            }
            Py_RETURN_NONE;
        }
        if (passes > 0) {
            self->skipped_bytes += passes;
            PyObject *part = PyBytes_FromStringAndSize(bytes, passes);
            PyObject *rest = PyBytes_FromStringAndSize(bytes + passes, size - passes);
            int failed =
                part == NULL || rest == NULL || give(self->write, "write", part) < 0 || give(self->slow, "slow", rest) < 0;
            Py_XDECREF(part);
            Py_XDECREF(rest);
            if (failed) {
                return NULL;
            }
            Py_RETURN_NONE;
        }
    }
    if (give(self->slow, "slow", data) < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *
FastPath_skip(PyObject *op, PyObject *data)
{
    if (expect_bytes(data) < 0) {
        return NULL;
    }
    Py_ssize_t passes = skip((FastPath *)op, (const unsigned char *)PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data));
    return passes < 0 ? NULL : PyLong_FromSsize_t(passes);
}

static PyObject *
FastPath_leave(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    if (leave((FastPath *)op) < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *
FastPath_take_counts(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    FastPath *self = (FastPath *)op;
    PyObject *taken = PyList_New(2 * MAX_HOT_TYPES);
    if (taken == NULL) {
        return NULL;
    }
    for (Py_ssize_t i = 0; i < 2 * MAX_HOT_TYPES; i++) {
        PyObject *number = PyLong_FromLongLong(self->counts[i]);
        if (number == NULL) {
            Py_DECREF(taken);
            return NULL;
        }
        PyList_SET_ITEM(taken, i, number);
    }
    memset(self->counts, 0, sizeof self->counts);
    return taken;
}

static PyObject *
FastPath_nowhere(PyObject *Py_UNUSED(ignored), PyObject *Py_UNUSED(data))
{
    Py_RETURN_NONE;
}

/* May be called again, like any __init__: nothing of before is left then. */
static int
FastPath_init(PyObject *op, PyObject *args, PyObject *kwargs)
{
    FastPath *self = (FastPath *)op;
    static char *names[] = {"masked", "max_message_bytes", NULL};
    int masked;
    Py_ssize_t max_message_bytes;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "pn", names, &masked, &max_message_bytes)) {
        return -1;
    }
    PyObject *hot = PyDict_New();
    PyObject *nowhere = PyObject_GetAttrString((PyObject *)Py_TYPE(op), "_nowhere");
    if (hot == NULL || nowhere == NULL) {
        Py_XDECREF(hot);
        Py_XDECREF(nowhere);
        return -1;
    }
    self->masked = (char)masked;
    self->max_message_bytes = max_message_bytes;
    self->mode = BOUNDARY;
    self->left = 0;
    self->entered = -1;
    self->entered_bytes = 0;
    self->events = 0;
    self->skipped_bytes = 0;
    self->waiting = 0;
    memset(self->counts, 0, sizeof self->counts);
    Py_CLEAR(self->last_prefix);
    Py_XSETREF(self->hot, hot);
    Py_XSETREF(self->write, Py_NewRef(nowhere));
    Py_XSETREF(self->slow, nowhere);
    return 0;
}

static int
FastPath_traverse(PyObject *op, visitproc visit, void *arg)
{
    FastPath *self = (FastPath *)op;
    Py_VISIT(Py_TYPE(op));
    Py_VISIT(self->hot);
    Py_VISIT(self->write);
    Py_VISIT(self->slow);
    return 0;
}

static int
FastPath_clear(PyObject *op)
{
    FastPath *self = (FastPath *)op;
    Py_CLEAR(self->last_prefix);
    Py_CLEAR(self->hot);
    Py_CLEAR(self->write);
    Py_CLEAR(self->slow);
    return 0;
}

static void
FastPath_dealloc(PyObject *op)
{
    PyTypeObject *type = Py_TYPE(op);
    PyObject_GC_UnTrack(op);
    FastPath_clear(op);
    type->tp_free(op);
    Py_DECREF(type);
}

static PyObject *
FastPath_get_hot(PyObject *op, void *Py_UNUSED(closure))
{
    FastPath *self = (FastPath *)op;
    if (self->hot == NULL) {
        PyErr_SetString(PyExc_AttributeError, "hot");
        return NULL;
    }
    return Py_NewRef(self->hot);
}

static int
FastPath_set_hot(PyObject *op, PyObject *hot, void *Py_UNUSED(closure))
{
    FastPath *self = (FastPath *)op;
    if (hot == NULL || !PyDict_Check(hot)) {
        PyErr_SetString(PyExc_TypeError, "hot: expected a dict");
        return -1;
    }
    Py_CLEAR(self->last_prefix);
    Py_XSETREF(self->hot, Py_NewRef(hot));
    return 0;
}

static PyMethodDef FastPath_methods[] = {
    {"data_received", FastPath_data_received, METH_O, "Take a read: write what passes, hand the rest to slow."},
    {"skip", FastPath_skip, METH_O, "Move over what passes; return how many bytes that are."},
    {"leave", FastPath_leave, METH_NOARGS, "Count the hot frame that was entered."},
    {"take_counts", FastPath_take_counts, METH_NOARGS, "Return what was counted since the last call."},
    {"_nowhere", FastPath_nowhere, METH_O | METH_STATIC, "Where bytes go before anybody takes them."},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef FastPath_members[] = {
    {"left", Py_T_PYSSIZET, offsetof(FastPath, left), 0, NULL},
    {"entered", Py_T_PYSSIZET, offsetof(FastPath, entered), 0, NULL},
    {"entered_bytes", Py_T_PYSSIZET, offsetof(FastPath, entered_bytes), 0, NULL},
    {"events", Py_T_LONGLONG, offsetof(FastPath, events), 0, NULL},
    {"skipped_bytes", Py_T_LONGLONG, offsetof(FastPath, skipped_bytes), 0, NULL},
    {"max_message_bytes", Py_T_PYSSIZET, offsetof(FastPath, max_message_bytes), Py_READONLY, NULL},
    {"write", Py_T_OBJECT_EX, offsetof(FastPath, write), 0, NULL},
    {"slow", Py_T_OBJECT_EX, offsetof(FastPath, slow), 0, NULL},
    {"mode", Py_T_INT, offsetof(FastPath, mode), 0, NULL},
    {"masked", Py_T_BOOL, offsetof(FastPath, masked), Py_READONLY, NULL},
    {"waiting", Py_T_BOOL, offsetof(FastPath, waiting), 0, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyGetSetDef FastPath_getset[] = {
    {"hot", FastPath_get_hot, FastPath_set_hot, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot FastPath_slots[] = {
    {Py_tp_doc, "The fast path's state, and its way through a read."},
    {Py_tp_new, PyType_GenericNew},
    {Py_tp_init, FastPath_init},
    {Py_tp_dealloc, FastPath_dealloc},
    {Py_tp_traverse, FastPath_traverse},
    {Py_tp_clear, FastPath_clear},
    {Py_tp_methods, FastPath_methods},
    {Py_tp_members, FastPath_members},
    {Py_tp_getset, FastPath_getset},
    {0, NULL},
};

static PyType_Spec FastPath_spec = {
    .name = "realtime_router_accel.FastPath",
    .basicsize = sizeof(FastPath),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .slots = FastPath_slots,
};

static int
module_exec(PyObject *module)
{
    PyObject *type = PyType_FromModuleAndSpec(module, &FastPath_spec, NULL);
    if (type == NULL) {
        return -1;
    }
    int failed = PyModule_AddType(module, (PyTypeObject *)type);
    Py_DECREF(type);
    return failed < 0 ? -1 : PyModule_AddIntConstant(module, "INTERFACE", INTERFACE);
}

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, module_exec},
#if PY_VERSION_HEX >= 0x030C0000
    /* Nothing is shared between objects, so nothing is between interpreters. */
    {Py_mod_multiple_interpreters, Py_MOD_PER_INTERPRETER_GIL_SUPPORTED},
#endif
#if PY_VERSION_HEX >= 0x030D0000
    /* An object's state is guarded by nothing else; a free-threaded interpreter switches its lock on, and says so. */
    {Py_mod_gil, Py_MOD_GIL_USED},
#endif
    {0, NULL},
};

static struct PyModuleDef module_definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "realtime_router_accel",
    .m_doc = "The relay's fast path in C.",
    .m_size = 0,
    .m_slots = module_slots,
};

PyMODINIT_FUNC
PyInit_realtime_router_accel(void)
{
    return PyModuleDef_Init(&module_definition);
}
