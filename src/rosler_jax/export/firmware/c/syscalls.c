/* What the C library asks of a system, for programs that print or allocate. Exported models do
   neither, and the linker then leaves all of this out. */
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>

#include "firmware.h"

extern char firmware_heap_start[], firmware_heap_end[];

void *_sbrk(ptrdiff_t increment);
int _write(int file, const char *bytes, int count);
int _read(int file, char *bytes, int count);
int _close(int file);
int _fstat(int file, struct stat *status);
int _isatty(int file);
int _lseek(int file, int offset, int whence);
int _getpid(void);
int _kill(int process, int signal);
void _exit(int code) __attribute__((noreturn));

void *_sbrk(ptrdiff_t increment) {
    static char *top = firmware_heap_start;
    char *const before = top;
    if (increment > firmware_heap_end - top) return (void *)(intptr_t)-1; /* malloc returns NULL */
    top += increment;
    return before;
}

int _write(int file, const char *bytes, int count) {
    (void)file;
    firmware_print_bytes(bytes, (uint32_t)count);
    return count;
}

int _read(int file, char *bytes, int count) {
    (void)file, (void)bytes, (void)count;
    return 0;
}

int _close(int file) {
    (void)file;
    return -1;
}

int _fstat(int file, struct stat *status) {
    (void)file;
    status->st_mode = S_IFCHR;
    return 0;
}

int _isatty(int file) {
    (void)file;
    return 0;
}

int _lseek(int file, int offset, int whence) {
    (void)file, (void)offset, (void)whence;
    return 0;
}

int _getpid(void) { return 1; }

int _kill(int process, int signal) {
    (void)process, (void)signal;
    firmware_fail("the firmware called abort\n");
}

void _exit(int code) { firmware_exit(code); }
