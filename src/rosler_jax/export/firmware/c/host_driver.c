/* Runs an exported model on every input of the first file and writes its outputs to the second. */
#include <stdio.h>
#include <stdlib.h>

#ifndef ROSLER_HEADER
#define ROSLER_HEADER "rosler_model.h"
#endif
#include ROSLER_HEADER

static rosler_arena arena;
static rosler_input input[ROSLER_INPUT_SIZE];
static rosler_output output[ROSLER_OUTPUT_SIZE];

static FILE *opened(const char *path, const char *mode) {
    FILE *const file = fopen(path, mode);
    if (file == NULL) {
        perror(path);
        exit(1);
    }
    return file;
}

int main(int count, char **arguments) {
    if (count != 3) {
        fprintf(stderr, "usage: %s INPUTS OUTPUTS\n", arguments[0]);
        return 2;
    }
    FILE *const from = opened(arguments[1], "rb");
    FILE *const to = opened(arguments[2], "wb");
    while (fread(input, sizeof input, 1, from) == 1) {
        rosler_predict(input, output, &arena);
        if (fwrite(output, sizeof output, 1, to) != 1) {
            perror(arguments[2]);
            return 1;
        }
    }
    if (fclose(to) != 0) {
        perror(arguments[2]);
        return 1;
    }
    return fclose(from) == 0 ? 0 : 1;
}
