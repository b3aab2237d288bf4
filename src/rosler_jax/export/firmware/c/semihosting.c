/* Files, text and the exit code by way of semihosting: requests to the emulator (or a debugger). */
#include <stdint.h>

#include "firmware.h"

enum {
    SYS_OPEN = 0x01,
    SYS_CLOSE = 0x02,
    SYS_WRITE0 = 0x04,
    SYS_WRITE = 0x05,
    SYS_READ = 0x06,
    SYS_FLEN = 0x0C,
    SYS_EXIT_EXTENDED = 0x20,
    STOPPED_BY_APPLICATION = 0x20026,
    MODE_READ_BINARY = 1,
    MODE_WRITE_BINARY = 5
};

static int32_t request(uint32_t operation, const void *argument) {
    register uint32_t r0 __asm__("r0") = operation;
    register const void *r1 __asm__("r1") = argument;
    __asm__ volatile("bkpt 0xAB" : "+r"(r0) : "r"(r1) : "memory");
    return (int32_t)r0;
}

static uint32_t address(const void *pointer) { return (uint32_t)(uintptr_t)pointer; }

static uint32_t text_length(const char *text) {
    uint32_t count = 0;
    while (text[count]) count++;
    return count;
}

void firmware_exit(int code) {
    const uint32_t arguments[2] = {STOPPED_BY_APPLICATION, (uint32_t)code & 255u};
    for (;;) (void)request(SYS_EXIT_EXTENDED, arguments);
}

void firmware_fail(const char *text) {
    (void)request(SYS_WRITE0, text);
    firmware_exit(1);
}

static int open_file(const char *name, uint32_t mode) {
    const uint32_t arguments[3] = {address(name), mode, text_length(name)};
    const int32_t file = request(SYS_OPEN, arguments);
    if (file < 0) {
        (void)request(SYS_WRITE0, name);
        firmware_fail(": the firmware could not open this file\n");
    }
    return (int)file;
}

int firmware_open_to_read(const char *name) { return open_file(name, MODE_READ_BINARY); }

int firmware_open_to_write(const char *name) { return open_file(name, MODE_WRITE_BINARY); }

uint32_t firmware_length(int file) {
    const uint32_t argument = (uint32_t)file;
    const int32_t length = request(SYS_FLEN, &argument);
    if (length < 0) firmware_fail("the firmware could not read the length of a file\n");
    return (uint32_t)length;
}

uint32_t firmware_read(int file, void *bytes, uint32_t count) {
    uint32_t done = 0;
    while (done < count) {
        const uint32_t arguments[3] = {(uint32_t)file, address(bytes) + done, count - done};
        const int32_t left = request(SYS_READ, arguments);
        if (left < 0) firmware_fail("the firmware could not read a file\n");
        if ((uint32_t)left >= count - done) break; /* the end of the file */
        done = count - (uint32_t)left;
    }
    return done;
}

void firmware_write(int file, const void *bytes, uint32_t count) {
    uint32_t left = count;
    while (left > 0) {
        const uint32_t arguments[3] = {(uint32_t)file, address(bytes) + (count - left), left};
        const int32_t now = request(SYS_WRITE, arguments);
        if (now < 0 || (uint32_t)now >= left) firmware_fail("the firmware could not write a file\n");
        left = (uint32_t)now;
    }
}

void firmware_close(int file) {
    const uint32_t argument = (uint32_t)file;
    (void)request(SYS_CLOSE, &argument);
}

void firmware_print_bytes(const void *bytes, uint32_t count) {
    static int output, opened;
    if (!opened) {
        output = firmware_open_to_write("stdout.bin");
        opened = 1;
    }
    firmware_write(output, bytes, count);
}

void firmware_print(const char *text) { firmware_print_bytes(text, text_length(text)); }

void firmware_print_number(uint32_t number) {
    char digits[10];
    uint32_t at = sizeof digits;
    do {
        digits[--at] = (char)('0' + number % 10u);
        number /= 10u;
    } while (number > 0);
    firmware_print_bytes(digits + at, (uint32_t)sizeof digits - at);
}

/* Empty, but never removed or merged: the profiler knows them by their addresses. */
__attribute__((noinline)) void firmware_begin(void) { __asm__ volatile("@ begin" ::: "memory"); }

__attribute__((noinline)) void firmware_end(void) { __asm__ volatile("@ end" ::: "memory"); }
