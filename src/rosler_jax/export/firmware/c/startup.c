/* Vector table, first instructions after reset, and what happens on a fault. */
#include <stdint.h>

#include "firmware.h"

/* Placed by the linker script. */
extern uint32_t firmware_stack_bottom[], firmware_stack_top[];
extern uint32_t firmware_data_start[], firmware_data_end[];
extern const uint32_t firmware_data_initial[];
extern uint32_t firmware_bss_start[], firmware_bss_end[];

int main(void);
void firmware_reset(void) __attribute__((noreturn));
void firmware_fault(void) __attribute__((naked));
void firmware_report_fault(const uint32_t *frame, const uint32_t *stack) __attribute__((noreturn));

typedef union {
    uint32_t *stack;
    void (*handler)(void);
} vector;

__attribute__((section(".vectors"), used)) static const vector vectors[16] = {
    {.stack = firmware_stack_top},  {.handler = firmware_reset},
    {.handler = firmware_fault},    {.handler = firmware_fault},
    {.handler = firmware_fault},    {.handler = firmware_fault},
    {.handler = firmware_fault},    {.handler = 0},
    {.handler = 0},                 {.handler = 0},
    {.handler = 0},                 {.handler = firmware_fault},
    {.handler = firmware_fault},    {.handler = 0},
    {.handler = firmware_fault},    {.handler = firmware_fault},
};

#define SYSTEM_REGISTER(address) (*(volatile uint32_t *)(address))
#define CPACR SYSTEM_REGISTER(0xE000ED88u)
#define CFSR SYSTEM_REGISTER(0xE000ED28u)
#define CCR SYSTEM_REGISTER(0xE000ED14u)
#define SHCSR SYSTEM_REGISTER(0xE000ED24u)
#define MPU_CTRL SYSTEM_REGISTER(0xE000ED94u)
#define MPU_RBAR SYSTEM_REGISTER(0xE000ED9Cu)
#define MPU_RASR SYSTEM_REGISTER(0xE000EDA0u)
#define REGION(address, number) ((address) | 16u | (number))
#define MEGABYTES_1 (19u << 1)
#define MEGABYTES_4 (21u << 1)
#define NO_ACCESS (0u << 24)
#define READ_ONLY (6u << 24)
#define PATTERN 0xA5C3965Au

/* The emulated board ignores writes below its memory, where a full stack goes, and obeys those to
   its flash. Memory protection makes faults of both. */
static void protect_memory(void) {
    MPU_RBAR = REGION(0x1FF00000u, 0u);
    MPU_RASR = NO_ACCESS | MEGABYTES_1 | 1u;
    MPU_RBAR = REGION(0x00000000u, 1u);
    MPU_RASR = READ_ONLY | MEGABYTES_4 | 1u;
    MPU_CTRL = 5u;     /* on, with the usual memory map elsewhere */
    SHCSR |= 7u << 16; /* faults of memory, bus and usage on their own, not as a hard fault */
    CCR |= 16u;        /* a division by zero faults; else it would give zero */
    __asm__ volatile("dsb\n\tisb" ::: "memory");
}

void firmware_reset(void) {
    const uint32_t *from = firmware_data_initial;
    /* The barriers keep the compiler from calling memcpy and memset, which the small C library
       does byte by byte. */
    for (uint32_t *to = firmware_data_start; to < firmware_data_end; to++) {
        *to = *from++;
        __asm__ volatile("" ::: "memory");
    }
    for (uint32_t *to = firmware_bss_start; to < firmware_bss_end; to++) {
        *to = 0;
        __asm__ volatile("" ::: "memory");
    }
#if defined(__ARM_FP) && !defined(__SOFTFP__)
    CPACR |= 0xFu << 20; /* full access to coprocessors 10 and 11, the floating-point unit */
    __asm__ volatile("dsb\n\tisb" ::: "memory");
#endif
    protect_memory();
    firmware_exit(main());
}

/* r0: the frame that the processor pushed; then a fresh stack, since the old one may be full. */
void firmware_fault(void) {
    __asm__ volatile("mov r0, sp\n\t"
                     "ldr r1, =firmware_stack_top\n\t"
                     "mov sp, r1\n\t"
                     "b firmware_report_fault\n\t"
                     ".ltorg");
}

static char *hexadecimal(char *to, uint32_t value) {
    for (int shift = 28; shift >= 0; shift -= 4) *to++ = "0123456789abcdef"[(value >> shift) & 15u];
    return to;
}

static char *copied(char *to, const char *text) {
    while (*text) *to++ = *text++;
    return to;
}

/* frame: r0 to r3, r12, lr, pc, xPSR. The host looks for this line. */
void firmware_report_fault(const uint32_t *frame, const uint32_t *stack) {
    char line[64];
    char *to = copied(line, "firmware fault: pc=");
    const int readable = frame >= firmware_stack_bottom && frame + 8 <= stack;
    to = hexadecimal(to, readable ? frame[6] : 0);
    to = copied(to, " cfsr=");
    to = hexadecimal(to, CFSR);
    *copied(to, "\n") = 0;
    firmware_fail(line);
}

__attribute__((noinline)) void firmware_paint_stack(void) {
    volatile uint32_t *end;
    __asm__ volatile("mov %0, sp" : "=r"(end));
    for (volatile uint32_t *at = firmware_stack_bottom; at < end; at++) *at = PATTERN;
}

__attribute__((noinline)) uint32_t firmware_stack_used(void) {
    volatile uint32_t *end, *at = firmware_stack_bottom;
    __asm__ volatile("mov %0, sp" : "=r"(end));
    while (at < end && *at == PATTERN) at++;
    return (uint32_t)(end - at) * 4u;
}
