/* A plugin for QEMU that counts, for every function of the guest, calls, instructions, loads and
   stores. It reads the functions' addresses from the file that the argument `symbols` names (one a
   line: address and bytes in hexadecimal, name) and writes what it counted to `out`:

       window N        a stretch from firmware_begin to firmware_end, N from 0
       NAME CALLS INSTRUCTIONS LOADS STORES
       ...
       whole           the same for the whole run
       last NAME       where the guest was in the end, or when it faulted

   An instruction whose condition failed counts; a load or store counts once for every access, so
   that one of several registers counts as that many. */
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The part of QEMU's interface for plugins that is used here. It is declared and not included,
   since distributions ship QEMU without the header. */
typedef uint64_t qemu_plugin_id_t;
typedef uint32_t qemu_plugin_meminfo_t;
typedef struct qemu_info_t qemu_info_t;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
enum { CB_NO_REGS = 0, MEM_READ_WRITE = 3 };
typedef void (*translated_fn)(qemu_plugin_id_t id, struct qemu_plugin_tb *block);
typedef void (*executed_fn)(unsigned int vcpu, void *data);
typedef void (*accessed_fn)(unsigned int vcpu, qemu_plugin_meminfo_t info, uint64_t at, void *data);
typedef void (*exit_fn)(qemu_plugin_id_t id, void *data);
extern size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *block);
extern struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *block,
                                                        size_t index);
extern uint64_t qemu_plugin_insn_vaddr(const struct qemu_plugin_insn *instruction);
extern void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t id, translated_fn callback);
extern void qemu_plugin_register_vcpu_insn_exec_cb(struct qemu_plugin_insn *instruction,
                                                   executed_fn callback, int registers, void *data);
extern void qemu_plugin_register_vcpu_mem_cb(struct qemu_plugin_insn *instruction,
                                             accessed_fn callback, int registers, int accesses,
                                             void *data);
extern int qemu_plugin_mem_is_store(qemu_plugin_meminfo_t info);
extern void qemu_plugin_register_atexit_cb(qemu_plugin_id_t id, exit_fn callback, void *data);

#define EXPORTED __attribute__((visibility("default")))
EXPORTED extern const int qemu_plugin_version;
const int qemu_plugin_version = PLUGIN_VERSION; /* by the build, after QEMU's own version */

enum { CALLS, INSTRUCTIONS, LOADS, STORES, KINDS };

typedef struct {
    uint64_t start, end;
    char name[128];
    uint64_t count[KINDS], before[KINDS];
} function;

/* Instructions in a row that belong to one function and run one after the other. */
typedef struct {
    function *in;
    uint64_t instructions;
    int entry;
} stretch;

static function *functions; /* sorted by address; the last one stands for all other code */
static size_t function_count;
static function *begin_mark, *end_mark, *fault_mark, *current, *faulted;
static FILE *out;
static unsigned window;
static int counting;

static void fail(const char *what, const char *name) {
    fprintf(stderr, "profiler: %s %s\n", what, name);
    exit(1);
}

static function *function_at(uint64_t address) {
    size_t low = 0, high = function_count - 1;
    while (low < high) {
        const size_t middle = (low + high) / 2;
        if (address < functions[middle].start)
            high = middle;
        else if (address >= functions[middle].end)
            low = middle + 1;
        else
            return &functions[middle];
    }
    return &functions[function_count - 1];
}

static void write_row(const function *f, const uint64_t *before) {
    uint64_t n[KINDS], any = 0;
    for (int kind = 0; kind < KINDS; kind++) any |= n[kind] = f->count[kind] - before[kind];
    if (any)
        fprintf(out, "%s %" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 "\n", f->name, n[CALLS],
                n[INSTRUCTIONS], n[LOADS], n[STORES]);
}

static void begin_window(void) {
    for (size_t i = 0; i < function_count; i++)
        memcpy(functions[i].before, functions[i].count, sizeof functions[i].count);
    counting = 1;
}

static void end_window(void) {
    if (!counting) return;
    fprintf(out, "window %u\n", window++);
    for (size_t i = 0; i < function_count; i++) write_row(&functions[i], functions[i].before);
    counting = 0;
}

/* A function is called where control comes to its first instruction from another function: a loop
   may lead back there as well. */
static void executed(unsigned int vcpu, void *data) {
    const stretch *const s = data;
    (void)vcpu;
    if (s->entry && current != s->in) {
        if (s->in == end_mark) end_window();
        if (s->in == begin_mark) begin_window();
        if (s->in == fault_mark && faulted == NULL) faulted = current;
        s->in->count[CALLS]++;
    }
    current = s->in;
    s->in->count[INSTRUCTIONS] += s->instructions;
}

static void accessed(unsigned int vcpu, qemu_plugin_meminfo_t info, uint64_t at, void *data) {
    (void)vcpu, (void)at;
    ((function *)data)->count[qemu_plugin_mem_is_store(info) ? STORES : LOADS]++;
}

/* A block has no way out but its end, so one callback a stretch will do. A stretch lives as long as
   the block, and QEMU does not tell when that ends: it is never freed. */
static void translated(qemu_plugin_id_t id, struct qemu_plugin_tb *block) {
    const size_t count = qemu_plugin_tb_n_insns(block);
    stretch *s = NULL;
    (void)id;
    for (size_t i = 0; i < count; i++) {
        struct qemu_plugin_insn *const instruction = qemu_plugin_tb_get_insn(block, i);
        const uint64_t address = qemu_plugin_insn_vaddr(instruction);
        function *const in = function_at(address);
        if (s == NULL || s->in != in) {
            s = calloc(1, sizeof *s);
            if (s == NULL) fail("out of memory at", in->name);
            s->in = in;
            s->entry = address == in->start;
            qemu_plugin_register_vcpu_insn_exec_cb(instruction, executed, CB_NO_REGS, s);
        }
        s->instructions++;
        qemu_plugin_register_vcpu_mem_cb(instruction, accessed, CB_NO_REGS, MEM_READ_WRITE, in);
    }
}

static void finished(qemu_plugin_id_t id, void *data) {
    static const uint64_t nothing[KINDS];
    (void)id, (void)data;
    fprintf(out, "whole\n");
    for (size_t i = 0; i < function_count; i++) write_row(&functions[i], nothing);
    if (faulted == NULL) faulted = current;
    if (faulted != NULL) fprintf(out, "last %s\n", faulted->name);
    fclose(out);
}

static void read_functions(const char *path) {
    FILE *const file = fopen(path, "r");
    uint64_t bytes;
    size_t room = 0;
    function next = {.start = 0};
    if (file == NULL) fail("cannot read", path);
    for (;;) {
        if (function_count == room) {
            room = room ? 2 * room : 256;
            functions = realloc(functions, room * sizeof *functions);
            if (functions == NULL) fail("out of memory for", path);
        }
        if (fscanf(file, "%" SCNx64 " %" SCNx64 " %127s", &next.start, &bytes, next.name) != 3) break;
        next.end = next.start + bytes;
        functions[function_count++] = next;
    }
    fclose(file);
    functions[function_count++] = (function){.start = UINT64_MAX, .end = UINT64_MAX, .name = "?"};
    for (size_t i = 0; i < function_count; i++) {
        if (strcmp(functions[i].name, "firmware_begin") == 0) begin_mark = &functions[i];
        if (strcmp(functions[i].name, "firmware_end") == 0) end_mark = &functions[i];
        if (strcmp(functions[i].name, "firmware_fault") == 0) fault_mark = &functions[i];
    }
}

EXPORTED int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info_t *info, int count,
                                 char **arguments);

int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info_t *info, int count, char **arguments) {
    const char *symbols = NULL, *result = NULL;
    (void)info;
    for (int i = 0; i < count; i++) {
        if (strncmp(arguments[i], "symbols=", 8) == 0) symbols = arguments[i] + 8;
        if (strncmp(arguments[i], "out=", 4) == 0) result = arguments[i] + 4;
    }
    if (symbols == NULL || result == NULL) fail("the arguments must name", "symbols and out");
    read_functions(symbols);
    out = fopen(result, "w");
    if (out == NULL) fail("cannot write", result);
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_atexit_cb(id, finished, NULL);
    return 0;
}
