/* What a program on the emulated board may use: the board has no operating system. */
#ifndef ROSLER_FIRMWARE_H
#define ROSLER_FIRMWARE_H

#include <stdint.h>

/* Ends the program; the emulator exits with `code`, 0 to 255. */
void firmware_exit(int code) __attribute__((noreturn));

/* Writes `text` to the emulator's standard error and ends the program with code 1. */
void firmware_fail(const char *text) __attribute__((noreturn));

/* Files of the folder that the emulator runs in. Failures end the program with a message. */
int firmware_open_to_read(const char *name);
int firmware_open_to_write(const char *name);
uint32_t firmware_length(int file);
uint32_t firmware_read(int file, void *bytes, uint32_t count); /* fewer at the file's end */
void firmware_write(int file, const void *bytes, uint32_t count);
void firmware_close(int file);

/* Appends to what the host reads as the program's output. */
void firmware_print(const char *text);
void firmware_print_bytes(const void *bytes, uint32_t count);
void firmware_print_number(uint32_t number);

/* The profiler's marks: each stretch from begin to end gets a table of its own. */
void firmware_begin(void);
void firmware_end(void);

/* Fills the free stack with a pattern; then, from the same function, bytes used since. */
void firmware_paint_stack(void);
uint32_t firmware_stack_used(void);

#endif
