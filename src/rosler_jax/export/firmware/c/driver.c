/* Runs an exported model on every input of inputs.bin and writes outputs.bin. */
#include "firmware.h"
#ifndef ROSLER_HEADER
#define ROSLER_HEADER "rosler_model.h"
#endif
#include ROSLER_HEADER

#define STACK_CHECKS 8 /* a model's stack hardly depends on its input, and a look at it takes time */

static rosler_arena arena;
static rosler_input input[ROSLER_INPUT_SIZE];
static rosler_output output[ROSLER_OUTPUT_SIZE];

int main(void) {
    const int from = firmware_open_to_read("inputs.bin");
    const int to = firmware_open_to_write("outputs.bin");
    const uint32_t count = firmware_length(from) / (uint32_t)sizeof input;
    uint32_t stack = 0;
#ifdef ROSLER_START
    firmware_paint_stack();
    firmware_begin();
    rosler_init(&arena);
    firmware_end();
    stack = firmware_stack_used();
#endif
    for (uint32_t i = 0; i < count; i++) {
        if (firmware_read(from, input, sizeof input) != sizeof input)
            firmware_fail("inputs.bin ends within an input\n");
        if (i < STACK_CHECKS) firmware_paint_stack();
        firmware_begin();
        rosler_predict(input, output, &arena);
        firmware_end();
        if (i < STACK_CHECKS) {
            const uint32_t used = firmware_stack_used();
            if (used > stack) stack = used;
        }
        firmware_write(to, output, sizeof output);
    }
    firmware_close(to);
    firmware_print_number(stack);
    return 0;
}
