/* Runs a job of training steps and predictions: on this machine with ROSLER_HOST, else on a board.
   job.bin: six words (steps, examples in a step, predictions, the step before which the parallel
   stage ends or -1, whether weights are given, the learning rate), then these weights, then inputs
   and targets of each step, then inputs to predict from. result.bin: losses, weights, velocity,
   predictions. */
#include <stdint.h>

#include "rosler_train.h"

#ifdef ROSLER_HOST
#include <stdio.h>
#include <stdlib.h>

typedef FILE *stream;

static stream opened(const char *name, const char *mode) {
    FILE *const file = fopen(name, mode);
    if (file == NULL) {
        perror(name);
        exit(1);
    }
    return file;
}

static stream opened_to_read(const char *name) { return opened(name, "rb"); }
static stream opened_to_write(const char *name) { return opened(name, "wb"); }

static void take(stream from, void *bytes, uint32_t size) {
    if (fread(bytes, 1, size, from) != size) exit(3);
}

static void put(stream to, const void *bytes, uint32_t size) {
    if (fwrite(bytes, 1, size, to) != size) exit(4);
}

static void close(stream file) {
    if (fclose(file) != 0) exit(4);
}

static void begin(void) {}
static void end(void) {}
#else
#include "firmware.h"

typedef int stream;

static stream opened_to_read(const char *name) { return firmware_open_to_read(name); }
static stream opened_to_write(const char *name) { return firmware_open_to_write(name); }

static void take(stream from, void *bytes, uint32_t size) {
    if (firmware_read(from, bytes, size) != size) firmware_fail("job.bin ends early\n");
}

static void put(stream to, const void *bytes, uint32_t size) { firmware_write(to, bytes, size); }
static void close(stream file) { firmware_close(file); }

#define begin firmware_begin
#define end firmware_end
#endif

#ifndef ROSLER_TARGETS
#define ROSLER_TARGETS 1 /* for each example */
#endif

static rosler_state state;
static rosler_train_arena arena;
static rosler_train_input x[ROSLER_TRAIN_BATCH * ROSLER_TRAIN_INPUT_SIZE];
static rosler_train_target target[ROSLER_TRAIN_BATCH * ROSLER_TARGETS];
static rosler_train_output y[ROSLER_TRAIN_OUTPUT_SIZE];

int main(void) {
    const stream from = opened_to_read("job.bin");
    const stream to = opened_to_write("result.bin");
    int32_t job[5], i;
    rosler_train_rate rate;
    take(from, job, sizeof job);
    take(from, &rate, sizeof rate);
    if (job[1] < 0 || job[1] > ROSLER_TRAIN_BATCH) return 2;
    rosler_train_begin(&state);
    if (job[4]) take(from, state.weights, sizeof state.weights);
    for (i = 0; i < job[0]; ++i) {
        const uint32_t count = (uint32_t)job[1];
        rosler_train_loss loss;
        take(from, x, count * ROSLER_TRAIN_INPUT_SIZE * (uint32_t)sizeof x[0]);
        take(from, target, count * ROSLER_TARGETS * (uint32_t)sizeof target[0]);
#ifdef ROSLER_SWITCHES
        if (i == job[3]) rosler_train_switch(&state, &arena);
#endif
        begin();
        loss = rosler_train_step(&state, &arena, x, target, job[1], rate);
        end();
        put(to, &loss, sizeof loss);
    }
    put(to, state.weights, sizeof state.weights);
#if ROSLER_TRAIN_VELOCITY
    put(to, state.velocity, sizeof state.velocity);
#endif
    for (i = 0; i < job[2]; ++i) {
        take(from, x, ROSLER_TRAIN_INPUT_SIZE * (uint32_t)sizeof x[0]);
        begin();
        rosler_train_predict(&state, &arena, x, y);
        end();
        put(to, y, sizeof y);
    }
    close(to);
    close(from);
    return 0;
}
